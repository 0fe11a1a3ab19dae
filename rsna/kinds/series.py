"""Shared by all kinds over whole series: the network, loaders of series, predictions of studies, export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.cli.arguments import given_options
from common.cli.console import progress
from common.datasets.batch import Batch
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.datasets.sequences import LengthSampler, Series
from common.errors import UsageError, WorkError
from common.models.sequence import build_sequence_model, sequence_settings
from common.models.sequence_layers import in_series, of_slices
from common.networks.network import Predictions, StepOutput, Training
from common.training import distributed
from config import TrainConfig
from rsna.kinds.kind import ExportForm, Kind, Probabilities, TrainingData
from rsna.kinds.levels import LEVELS, study_frame
from rsna_dataset import LABELS, STUDY_LABELS, dataset_folder, read_metadata
from rsna_network import RSNANetwork, prediction_frame

PLACES = {
    "position_mm": "(batch, slices): places along the series, rising, minus their mean",
    "mask": "(batch, slices): true for slices, false for padding, which stands at the end",
}
SERIES_OUTPUTS = {"slice_logits": "(batch, slices, labels), 0 in padding", "study_logits": "(batch, labels)"}


OPEN = 0.5  # stands for a missing label of a slice: more than 0, less than 1


class RSNASequenceNetwork(RSNANetwork):
    """The network for series of slices: it gives logits of each slice and of the study."""

    inputs: ClassVar[tuple[str, ...]] = ("features", "logits", "position_mm", "mask")

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        study_weight: float = 0.0,
        valid_rows: pd.DataFrame | None = None,
    ) -> None:
        """``model``: :class:`common.models.sequence_layers.SequenceModel`; ``study_weight`` of the studies' loss.

        ``valid_rows`` as of :class:`rsna.kinds.kind.TrainingData`; None: the network is only validated by slices.
        """
        super().__init__(model, device, amp_dtype, training, loss)
        self.study_weight = study_weight
        self.valid_rows = valid_rows
        labelled = [] if valid_rows is None else LEVELS.values()
        self.levels = [level for level in labelled if level.has_labels(valid_rows)]

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of the batch's slices plus that of its series.

        A series has the label of its study, where that was labelled. Otherwise its label is 1 if a slice's is, 0 if
        all its slices' are, and missing if those of its slices leave it open.
        """
        output, places = model(*self.inputs_of(batch)), batch.inputs["places"]
        logits = of_slices(output.slices, places)
        with torch.autocast(self.device.type, enabled=False):
            loss = batch.share * self.loss(logits.float(), batch.target)
            # Processes exchange gradients of all parameters, so that each needs one even with a study weight of 0.
            if self.study_weight or distributed.world_size() > 1:
                known = in_series(batch.target.nan_to_num(OPEN), places, output.slices.shape[:2]).amax(dim=1)
                targets = known.masked_fill(known == OPEN, torch.nan)
                if "study_target" in batch.inputs:
                    own = batch.inputs["study_target"]
                    targets = own.where(~own.isnan(), targets)
                loss = loss + self.study_weight * self.loss(output.study.float(), targets)
        return StepOutput(loss, logits, batch.target, batch.image_id)

    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (N, 12) of the batch's slices, series after series: its own, then those of its study."""
        output, places = model(*self.inputs_of(batch)), batch.inputs["places"]
        studies = output.study.index_select(0, places // output.slices.shape[1])
        return torch.cat([of_slices(output.slices, places), studies], dim=1)

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the log losses of slices where slices are labelled, and those of studies where studies are.

        The latter have names like ``study_weighted_log_loss``.
        """
        if self.valid_rows is None:
            return super().compute_metrics(predictions)
        frame, judged = prediction_frame(predictions), study_frame(predictions, self.valid_rows)
        return {
            f"{level.prefix}{key}": value
            for level in self.levels
            for key, value in level.metrics(frame, judged, self.valid_rows).items()
        }

    def inputs_of(self, batch: Batch) -> tuple[Tensor | tuple[int, ...], ...]:
        """Return the model's inputs from a batch, followed by the lengths of its series."""
        return *super().inputs_of(batch), batch.lengths


class SeriesKind(Kind):
    """A kind over whole series: it has a sequence model, and gives logits of studies besides those of slices."""

    network = RSNASequenceNetwork
    unit = "series"
    judges_studies = True

    def network_options(self, config: TrainConfig, data: TrainingData | None) -> dict[str, Any]:
        """Return the weight of the studies' loss, and the validation images with their labels."""
        rows = None if data is None else data.valid_rows
        return {"study_weight": settings_of(config)["seq_study_weight"], "valid_rows": rows}

    def learning(self, config: TrainConfig) -> dict[str, bool]:
        """Return the argument of :meth:`TrainingData.of` that says whether labels of studies are learnt from."""
        return {"learns_studies": settings_of(config)["seq_study_weight"] > 0}

    def study_rule(self, config: TrainConfig) -> str:
        """Describe how the sequence model computes the study's probabilities."""
        return f"sequence model ({settings_of(config)['seq_study']})"


def series_form(
    model: nn.Module,
    dataset: Series,
    count: int,
    inputs_of: Callable[[Sequence[Any]], dict[str, Tensor]],
    metadata: Mapping[str, Any],
    folder: Path,
) -> ExportForm:
    """Return how to export a network over series. The file is checked on ``count`` series, each alone and all together.

    ``inputs_of`` makes the model's inputs from some series. Raises UsageError if all series of the dataset have the
    same length.
    """
    series = shortest_to_longest(dataset, count, folder)
    together = inputs_of(series)
    lengths = [int(length) for length in together["mask"].sum(dim=1)]
    return ExportForm(
        model,
        together,
        {**metadata, "outputs": SERIES_OUTPUTS},
        f"batches of series to {len(LABELS)} logits of each slice and of the study",
        f"{len(series)} series of {min(lengths)} to {max(lengths)} slices of {folder}, padded together and each alone,",
        {name: {0: "batch", 1: "slices"} for name in together},
        ("slice_logits", "study_logits"),
        [inputs_of([one]) for one in series],
    )


def shortest_to_longest(dataset: Series, count: int, folder: Path) -> list[Any]:
    """Return at most ``count`` series of a dataset, evenly spread from the shortest to the longest."""
    order = np.argsort(dataset.lengths, kind="stable")
    if dataset.lengths.min() == dataset.lengths.max():
        raise UsageError(
            f"{folder}: all its series have {dataset.lengths.max()} slices, so that padding can't be checked; name "
            "another dataset by --data_dataset (of a sequence model by --seq_features too)"
        )
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [dataset[int(order[place])] for place in places]


def build_sequence(config: TrainConfig, num_features: int) -> nn.Module:
    """Build the sequence model of a configuration."""
    return build_sequence_model(config.seq_model, sequence_options(config), num_features, len(LABELS))


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return the values of all options of the sequence model; the model's defaults replace those not given."""
    return sequence_settings(config.seq_model, sequence_options(config))


def sequence_options(config: TrainConfig) -> dict[str, Any]:
    """Return the ``seq_…`` options of the model itself; None for those not given."""
    return given_options(config, "seq_", "seq_model", "seq_features")


def training_series(
    config: TrainConfig, dataset: Series, collate: Callable[[Sequence[Any]], Batch], workers: int
) -> DataLoader:
    """Build the loader of training series with ``workers`` processes; UsageError if the series don't fill a batch."""
    batch, processes = config.tr_batch_size, distributed.world_size()
    if len(dataset) < batch * processes:
        many = f" in each of {processes} processes" if processes > 1 else ""
        raise UsageError(
            f"--tr_batch_size={batch}{many} is larger than the {len(dataset)} training series of fold "
            f"{config.data_fold}: with --net_kind={config.net_kind} a batch is of series"
            + f"; --tr_batch_size={len(dataset) // processes} is the largest that works"
            * (len(dataset) >= processes)
        )
    sampler = LengthSampler(dataset.lengths, batch, config.seed, distributed.rank(), processes)
    return make_loader(dataset, sampler, batch, workers, drop_last=True, seed=config.seed, collate=collate)


def series_in_order(
    config: TrainConfig, dataset: Series, collate: Callable[[Sequence[Any]], Batch], workers: int
) -> DataLoader:
    """Build a loader that yields every series of ``dataset`` once, in order."""
    return make_loader(
        dataset,
        SequentialSampler(len(dataset), config.seed),
        config.tr_batch_size,
        workers,
        drop_last=False,
        seed=config.seed,
        collate=collate,
        rows=dataset.lengths,
    )


def series_of(
    config: TrainConfig, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return ids, series, positions in mm, slice indices and labels (or None) of ``rows``; see :class:`Series`."""
    metadata = read_metadata(dataset_folder(config.data_input_folder, config.data_dataset)).reindex(rows.index)
    if metadata["series_id"].isna().any():
        raise WorkError(
            f"{config.data_dataset}: metadata.csv lacks images of the fold; run python preprocessing.py again"
        )
    labelled = set(LABELS) <= set(rows.columns) and bool(rows[list(LABELS)].notna().any(axis=None))
    return (
        rows.index.to_numpy(dtype=np.str_),
        metadata["series_id"].to_numpy(dtype=np.str_),
        metadata["position_mm"].to_numpy(),
        metadata["slice_index"].to_numpy(dtype=np.int64),
        rows[list(LABELS)].to_numpy(dtype=np.float32) if labelled else None,
    )


def study_labels_of(rows: pd.DataFrame) -> np.ndarray | None:
    """Return the labels (N, 6) of the studies of ``rows``, float32 with NaN where missing; None if there are none."""
    labelled = STUDY_LABELS[0] in rows and bool(rows[list(STUDY_LABELS)].notna().any(axis=None))
    return rows[list(STUDY_LABELS)].to_numpy(dtype=np.float32) if labelled else None


def predict_series(network: RSNASequenceNetwork, loader: DataLoader, rows: pd.DataFrame, label: str) -> Probabilities:
    """Return the probabilities of ``rows`` (index ``id``, same order) and of their studies (index ``study_id``).

    ``loader`` yields the series of ``rows``; ``label`` stands before the progress bar. For a study with several series,
    each label gets the highest probability.
    """
    found = network.predict(progress(loader, desc=label, unit="batch"))
    return prediction_frame(found).loc[rows.index], study_frame(found, rows)
