"""What a kind of network has of its own: its data, model, network, predictions and limits.

A kind is a class of this protocol and a row of :data:`rsna.kinds.table.KINDS`. All other code asks
``kind_of(config)`` for what it needs and never which kind there is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.cli.choices import choose, load
from common.datasets.batch import Batch
from common.datasets.images import Transform
from common.errors import UsageError
from common.evaluation.metrics import constant_predictor, prevalences_of
from common.networks.network import Training
from config import TrainConfig
from rsna.kinds.table import KINDS
from rsna_dataset import LABEL_WEIGHTS, LABELS, dataset_folder, rows_hash
from rsna_network import RSNANetwork

if TYPE_CHECKING:
    from common.transforms.pipeline import Pipeline

Probabilities = tuple[pd.DataFrame, pd.DataFrame | None]  # probabilities of slices (index id), of studies (study_id)
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingData:
    """Everything about the data that a run needs.

    ``hash``: of the fold's images and labels; ``prevalences`` (6,): share of positives among the training images;
    ``constant_log_loss``: what predicting them for every validation image scores; ``transforms``: the JSON documents of
    the pipelines by split; ``channels``: of the pictures, or how many numbers the model sees of an image.
    """

    train_loader: DataLoader
    valid_loader: DataLoader
    prevalences: np.ndarray
    constant_log_loss: float
    transforms: dict[str, dict[str, Any]]
    channels: int
    hash: str

    @classmethod
    def of(
        cls,
        train_loader: DataLoader,
        valid_loader: DataLoader,
        train_rows: pd.DataFrame,
        valid_rows: pd.DataFrame,
        transforms: dict[str, dict[str, Any]],
        channels: int,
    ) -> TrainingData:
        """Return loaders of a fold's rows with what follows from the rows."""
        prevalences = prevalences_of(train_rows[list(LABELS)])
        constant = constant_predictor(prevalences, valid_rows[list(LABELS)].to_numpy(), LABEL_WEIGHTS)
        hashed = rows_hash(train_rows, valid_rows)
        return cls(train_loader, valid_loader, prevalences, constant, transforms, channels, hashed)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network rebuilt from a checkpoint, with the settings that its images need; ``weights``: raw or an average.

    ``pipeline`` is None for a kind that sees no pictures; ``data_hash``: of the images and labels of the training,
    ``trained_on`` the name of their dataset; ``features_sha256``: of the features that a sequence model was trained on.
    Batches of ``config.tr_batch_size`` are predicted; ``trained_batch``: that of the training.
    """

    network: RSNANetwork
    config: TrainConfig
    pipeline: Pipeline | None
    prevalences: np.ndarray
    metrics: dict[str, float]
    iteration: int
    weights: str
    data_hash: str | None
    trained_on: str
    features_sha256: str | None
    trained_batch: int


@dataclass(frozen=True)
class ExportForm:
    """How a network is written for other programs; ``model`` and what follows it as of ``export_model``.

    ``takes``: what goes in and comes out, in words; ``checked_on``: the real data that the file is checked on.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    takes: str
    checked_on: str
    free: Mapping[str, Mapping[int, str]] | None = None
    outputs: Sequence[str] = ("logits",)
    others: Sequence[Mapping[str, Tensor]] = ()


class Kind(ABC):
    """One kind of network. The three abstract methods make one that trains, resumes, predicts and is evaluated.

    - ``network``: its class, ``noun``: what people call it, ``unit``: what a batch is of, ``sees``: what it sees.
    - ``sees_pictures`` of slices: it has views (--tta) and heat, and predicts DICOM files.
    - ``has_ways``: a CPU may compute it in several ways (--net_compute).
    - ``gives_features``: other networks may learn from what its head sees (predict.py --features=1).
    - ``reads_features``: it is such another network.
    - ``judges_studies`` by more than their highest slice.
    """

    network: ClassVar[type[RSNANetwork]] = RSNANetwork
    noun: ClassVar[str] = "a network of another kind"
    unit: ClassVar[str] = "images"
    sees: ClassVar[str] = "no pictures"
    sees_pictures: ClassVar[bool] = False
    has_ways: ClassVar[bool] = False
    gives_features: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    judges_studies: ClassVar[bool] = False

    @abstractmethod
    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        """Read the fold and build its loaders; UsageError where the options don't fit it."""

    @abstractmethod
    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        """Build the model with random weights; ``channels`` as of :class:`TrainingData`."""

    @abstractmethod
    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: Transform | None, workers: int, label: str
    ) -> Probabilities:
        """Return probabilities of ``rows`` and, of a kind that judges studies, of whole studies, else None.

        ``pipeline``: what the loading processes, ``workers`` of them, do to pictures; ``label``: of the progress bar.
        """

    def build_model(self, config: TrainConfig, channels: int, *, starting_weights: bool = True) -> nn.Module:
        """Build the model of a run; ``starting_weights``: no checkpoint will bring them."""
        return self.build_architecture(config, channels)

    def build_network(
        self,
        config: TrainConfig,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        training: Training | None = None,
        loss: Loss | None = None,
    ) -> RSNANetwork:
        """Return the network around a model; ``training`` and ``loss``: of one that is trained."""
        return self.network(model, device, amp_dtype, training, loss, **self.network_options(config))

    def network_options(self, config: TrainConfig) -> dict[str, Any]:
        """Return what the network takes beside what each takes."""
        return {}

    def model_name(self, config: TrainConfig) -> str:
        """Return what the model is called."""
        return config.net_kind

    def describe_sample(self, batch: Batch, seen: Tensor) -> str:
        """Say what a batch of one holds; ``seen``: the model's first input of it."""
        return f"an image {by(seen.shape[1:])}"

    def check_training(self, config: TrainConfig, data: TrainingData, model: nn.Module) -> None:
        """Raise UsageError where this model can't learn from batches of this data."""
        return

    def known_rows(self, config: TrainConfig, tables: Mapping[int, pd.DataFrame]) -> Mapping[int, pd.DataFrame]:
        """Return of each fold the images that this kind can learn from."""
        return tables

    def fold_options(self, config: TrainConfig) -> dict[str, Any]:
        """Return the options that a fold's run in another folder is given anew: paths in place of ids."""
        return {}

    def load_pipeline(self, checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline | None:
        """Return the validation transform of a checkpoint; None of a kind that sees no pictures."""
        return None

    def saved_channels(self, state: Mapping[str, Tensor], pipeline: Pipeline | None, weight_file: Path) -> int:
        """Return the ``channels`` that weights are for; WorkError where they are another model's."""
        return 0 if pipeline is None else pipeline.channels

    def slice_network(self, model: nn.Module) -> nn.Module:
        """Return what sees single slices of a model that sees pictures."""
        return model

    def study_rule(self, config: TrainConfig) -> str:
        """Say how a study gets its probabilities."""
        return "highest slice"

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return how the network is written for other programs; UsageError where it can't be."""
        raise UsageError(f"{self.noun} is exported as --export_format=checkpoint alone")


def kind_of(config: TrainConfig) -> Kind:
    """Return the kind of network that a configuration names."""
    kind: Kind = load(choose("net_kind", config.net_kind, KINDS).path)()
    return kind


def dataset_folder_of(trained: TrainedNetwork) -> Path:
    """Return the folder of the dataset that a trained network predicts."""
    return dataset_folder(trained.config.data_input_folder, trained.config.data_dataset)


def by(shape: Sequence[int]) -> str:
    """Write a shape as text: 3x96x96."""
    return "x".join(map(str, shape))
