"""Embeddings: the features of an image that go into a network's head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.cli.console import progress
from common.datasets.batch import Batch
from common.models.embedding import head_input
from common.networks.network import evaluation_mode
from common.training.arrival import arrived
from common.training.hardware import loader_workers
from rsna.kinds.features import NO_FOLD, Block
from rsna.kinds.kind import TrainedNetwork, dataset_folder_of
from rsna.kinds.pictures import build_loader, place_transform
from rsna.prediction.alignment import Alignment, Floats
from rsna_network import RSNANetwork

Key = TypeVar("Key", int, str)


def embed(network: RSNANetwork, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, F) and logits (B, 6) of a batch; batch and results (float32) are on the device."""
    model = network.model
    with evaluation_mode([model]), torch.inference_mode(), head_input(model) as seen, network.autocast():
        logits = network.prediction_step(model, batch)
    return seen[0].float(), logits.float()


def embeddings(model: TrainedNetwork, rows: pd.DataFrame, label: str) -> Iterator[tuple[list[str], Floats, Floats]]:
    """Yield ids, embeddings (B, F) and logits (B, 6) of ``rows``, batch by batch."""
    network = model.network
    parts = ((batch.image_id, embed(network, network.prepare_batch(batch))) for batch in batches(model, rows, label))
    for ids, (features, logits) in arrived(parts):
        yield ids, features.numpy(), logits.numpy()


def batches(model: TrainedNetwork, rows: pd.DataFrame, label: str, workers: int | None = None) -> Iterator[Batch]:
    """Yield the batches of ``rows`` in order; ``workers`` as for :func:`rsna.prediction.trained.predict_rows`."""
    if workers is None:
        workers = loader_workers(model.config.n_jobs, model.network.device)
    pipeline = place_transform(model.pipeline, model.config, model.network.device)
    loader = build_loader(dataset_folder_of(model), rows, pipeline, model.config, workers)
    yield from progress(loader, desc=label, unit="batch")


def table(parts: Iterator[tuple[list[str], Floats, Floats]]) -> Floats:
    """Concatenate the embeddings (N, F) of all batches that :func:`embeddings` yields."""
    return np.concatenate([features for _, features, _ in parts])


def mean_blocks(
    models: Mapping[Key, TrainedNetwork],
    alignments: Mapping[Key, Alignment],
    rows: pd.DataFrame,
    workers: int | None = None,
) -> Iterator[Block]:
    """Yield the mean of the models' aligned embeddings and logits, for images that no model has seen."""
    first = next(iter(models.values()))

    def seen() -> Iterator[tuple[list[str], list[Tensor]]]:
        for batch in batches(first, rows, "new images", workers):
            ready = first.network.prepare_batch(batch)
            yield batch.image_id, [part for model in models.values() for part in embed(model.network, ready)]

    for ids, parts in arrived(seen()):
        own, logits = ([part.numpy() for part in parts[start::2]] for start in (0, 1))
        features = np.mean([alignments[number](one) for number, one in zip(models, own, strict=True)], axis=0)
        yield Block(ids, features, np.mean(logits, axis=0), NO_FOLD)
