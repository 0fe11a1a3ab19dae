"""A kind of network of your own: it sees a histogram of a slice's Hounsfield units instead of the picture.

python train.py --net_kind=examples.kind.HISTOGRAM
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from common.datasets.loaders import make_loader
from common.datasets.samplers import RandomSampler
from config import TrainConfig
from rsna.kinds.kind import Kind, Probabilities, TrainedNetwork, TrainingData, dataset_folder_of
from rsna.kinds.pictures import build_loader, fold_rows
from rsna.kinds.table import OF_SINGLE_SLICES, SAMPLER, KindRow
from rsna_dataset import LABELS, RSNADataset
from rsna_network import prediction_frame

EDGES = [-(2**15), *range(-100, 220, 10), 2**15]  # of the bins, in Hounsfield units
BINS = len(EDGES) - 1
HISTOGRAM = KindRow(
    "histogram",
    "a network over histograms of Hounsfield units",
    path="examples.kind.HistogramKind",
    meaningless=(*OF_SINGLE_SLICES, *SAMPLER, "seq_*", "study_*", "net_[!k]*", "data_*transform*", "data_[wc]*"),
)


class Histogram:
    """A transform: a slice (H, W) in Hounsfield units becomes a picture of one pixel, with a channel for each bin."""

    def set_random_seed(self, seed: int) -> None:
        """There is nothing to draw."""

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": np.float32(np.histogram(image, EDGES)[0][None, None] / image.size)}


class HistogramKind(Kind):
    noun = "a network over histograms"

    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        folder, train, valid = fold_rows(config)
        data = RSNADataset(folder, train, Histogram(), config.data_image_size, config.seed)
        order = RandomSampler(len(data), config.seed)
        loader = make_loader(data, order, config.tr_batch_size, 0, drop_last=True, seed=config.seed)
        return TrainingData.of(loader, build_loader(folder, valid, Histogram(), config, 0), train, valid, {}, BINS)

    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(BINS, 32), nn.ReLU(), nn.Linear(32, len(LABELS)))

    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: None, workers: int, label: str
    ) -> Probabilities:
        loader = build_loader(dataset_folder_of(trained), rows, Histogram(), trained.config, workers)
        return prediction_frame(trained.network.predict(loader)), None
