"""The base class of all kinds of network: each has its own data, model, network, predictions and limits.

To add a kind, write a subclass of :class:`Kind` and a row in :data:`rsna.kinds.table.KINDS`. Other code calls the
methods of ``kind_of(config)``. It never asks which kind it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
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
from rsna.kinds.levels import Level, Probabilities, has_slice_labels, has_study_labels, level_of
from rsna.kinds.table import KINDS
from rsna_dataset import LABEL_WEIGHTS, dataset_folder, rows_hash
from rsna_network import RSNANetwork

if TYPE_CHECKING:
    from common.transforms.pipeline import Pipeline

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingData:
    """The data of a training run.

    - ``valid_rows``: validation images (index ``id``) with their labels, patients and studies.
    - ``prevalences`` (6,): share of positives among the training images, or studies, that have the label.
    - ``level``: the level that judges the network, see :func:`rsna.kinds.levels.level_of`.
    - ``constant_log_loss``: score of predicting these prevalences for all that this level's validation has.
    - ``transforms``: JSON document of the pipeline of each split.
    - ``channels``: channels of a picture, or number of features of an image.
    - ``hash``: hash of the fold's images and labels.
    """

    train_loader: DataLoader
    valid_loader: DataLoader
    valid_rows: pd.DataFrame
    level: Level
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
        *,
        learns_studies: bool = False,
    ) -> TrainingData:
        """Build the data from loaders and rows; level, prevalences, constant predictor and hash follow from the rows.

        ``learns_studies``: the network learns from labels of studies. Raises UsageError for one that doesn't if no
        validation or training slice has a label 1 because only studies are labelled, and where there are no labels.
        """
        level = level_of(valid_rows)
        for split, rows in (("training", train_rows), ("validation", valid_rows)):
            if not (learns_studies and has_study_labels(rows)):
                check_slice_labels(rows, split)
        prevalences = prevalences_of(level.truth(train_rows))
        constant = constant_predictor(prevalences, level.truth(valid_rows).to_numpy(), LABEL_WEIGHTS)
        hashed = rows_hash(train_rows, valid_rows)
        loaders = (train_loader, valid_loader)
        return cls(*loaders, valid_rows, level, prevalences, constant, transforms, channels, hashed)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network rebuilt from a checkpoint, with the settings that its images need.

    - ``config``: the training's options; ``tr_batch_size`` is the batch size to predict with.
    - ``pipeline``: validation transform; None for a kind that sees no pictures.
    - ``weights``: name of the loaded weights, raw or an average.
    - ``data_hash``, ``trained_on``: hash of the training's images and labels, and name of their dataset.
    - ``features_sha256``: hash of the features that a sequence model was trained on.
    - ``trained_batch``: batch size of the training.
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
    """How to write a network for other programs.

    ``takes`` describes inputs and outputs in words. ``checked_on`` names the real data that the file is checked on. The
    other fields are parameters of ``export_model``.
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
    """One kind of network. With the three abstract methods it can train, resume, predict and be evaluated.

    - ``network``: class of the network.
    - ``noun``, ``unit``, ``sees``: words for messages: what it is called, what a batch consists of, what it sees.
    - ``sees_pictures``: it sees pictures of slices, so that it has --tta and heat maps, and predicts DICOM files.
    - ``has_ways``: a CPU can compute it in several ways (--net_compute).
    - ``gives_features``: it can write features for other networks (predict.py --features=1).
    - ``reads_features``: it learns from such features.
    - ``judges_studies``: it predicts whole studies itself; otherwise a study gets the value of its highest slice.
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
        """Read the fold and build its loaders; UsageError if the options don't fit the data."""

    @abstractmethod
    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        """Build the model with random weights; ``channels`` as of :class:`TrainingData`."""

    @abstractmethod
    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: Transform | None, workers: int, label: str
    ) -> Probabilities:
        """Return the probabilities of ``rows``, and of their studies if the kind judges studies, otherwise None.

        ``workers`` processes load the pictures and apply ``pipeline``. ``label`` stands before the progress bar.
        """

    def build_model(self, config: TrainConfig, channels: int, prevalences: npt.ArrayLike | None) -> nn.Module:
        """Build the model of a run with the weights that it starts from.

        ``prevalences`` as of :class:`TrainingData`, where a new head may begin. None: a resumed run, whose checkpoint
        brings all weights.
        """
        return self.build_architecture(config, channels)

    def build_network(
        self,
        config: TrainConfig,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        training: Training | None = None,
        loss: Loss | None = None,
        data: TrainingData | None = None,
    ) -> RSNANetwork:
        """Return the network around a model; one that only predicts has no ``training``, ``loss`` and ``data``."""
        return self.network(model, device, amp_dtype, training, loss, **self.network_options(config, data))

    def network_options(self, config: TrainConfig, data: TrainingData | None) -> dict[str, Any]:
        """Return further arguments for the network's constructor; ``data`` None: it only predicts."""
        return {}

    def model_name(self, config: TrainConfig) -> str:
        """Return the name of the model."""
        return config.net_kind

    def describe_sample(self, batch: Batch, seen: Tensor) -> str:
        """Describe a batch of one in words; ``seen`` is the model's first input for it."""
        return f"an image {by(seen.shape[1:])}"

    def check_training(self, config: TrainConfig, data: TrainingData, model: nn.Module) -> None:
        """Raise UsageError if this model can't learn from batches of this data."""
        return

    def known_rows(self, config: TrainConfig, tables: Mapping[int, pd.DataFrame]) -> Mapping[int, pd.DataFrame]:
        """Return the images of each fold that this kind can learn from."""
        return tables

    def fold_options(self, config: TrainConfig) -> dict[str, Any]:
        """Return options that a fold's run, which has another output folder, needs changed: paths instead of ids."""
        return {}

    def load_pipeline(self, checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline | None:
        """Return the validation transform of a checkpoint; None for a kind that sees no pictures."""
        return None

    def saved_channels(self, state: Mapping[str, Tensor], pipeline: Pipeline | None, weight_file: Path) -> int:
        """Return the number of ``channels`` that the weights expect; WorkError if they belong to another model."""
        return 0 if pipeline is None else pipeline.channels

    def slice_network(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that sees single slices."""
        return model

    def study_rule(self, config: TrainConfig) -> str:
        """Describe in words how a study gets its probabilities."""
        return "highest slice"

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return how to write the network for other programs; UsageError if it can't be exported."""
        raise UsageError(f"{self.noun} is exported as --export_format=checkpoint alone")


def check_slice_labels(rows: pd.DataFrame, split: str) -> None:
    """Raise UsageError if labels are missing in the images of a ``split`` and no slice has a label 1."""
    if not has_slice_labels(rows):
        raise UsageError(
            f"none of the {len(rows)} {split} images has a label 1 of its own (a study's 1 is no label of its slices), "
            "so that this network would learn or be judged by zeros alone; --net_kind=study and sequence learn from "
            "labels of studies (with a --seq_study_weight above 0), or label the slices of some bleeding studies by "
            "--pre_labels"
        )


def kind_of(config: TrainConfig) -> Kind:
    """Return the kind of network that a configuration names."""
    kind: Kind = load(choose("net_kind", config.net_kind, KINDS).path)()
    return kind


def dataset_folder_of(trained: TrainedNetwork) -> Path:
    """Return the folder of the dataset to predict."""
    return dataset_folder(trained.config.data_input_folder, trained.config.data_dataset)


def by(shape: Sequence[int]) -> str:
    """Write a shape as text: 3x96x96."""
    return "x".join(map(str, shape))
