"""A trained network as a file for other programs, checked on images of its own dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.arguments import to_dict
from common.files import check_output
from common.models.exporting import FORMATS, export_model
from common.reports.page import NOTICE
from config import ExportConfig
from rsna_dataset import LABELS, RSNADataset, read_metadata
from rsna_prediction import TrainedNetwork, dataset_folder_of, load_network

IMAGES = 8


def export_network(config: ExportConfig) -> Path:
    """Write the network of a weight file in another form; return the file."""
    path = config.export_file or config.net_weight_file.with_suffix(FORMATS[config.export_format].suffix)
    trained = load_network(
        config.net_weight_file, config.n_jobs, config.data_input_folder, config.data_dataset, config.net_weights
    )
    check_output("export_file", path)
    pictures = real_pictures(trained)
    metadata = export_metadata(trained, tuple(pictures.shape[1:]))
    difference = export_model(trained.network.model, {"image": pictures}, path, config.export_format, metadata)
    shape = " x ".join(map(str, pictures.shape[1:]))
    print(f"{FORMATS[config.export_format].summary}: batches of {shape} to {len(LABELS)} logits")
    checked = f"{len(pictures)} images of {dataset_folder_of(trained)}"
    print(f"on {checked} the logits differ from torch's by {difference:.1e} at most")
    print(NOTICE)
    return path


def real_pictures(trained: TrainedNetwork) -> torch.Tensor:
    """Return some of the dataset's images, evenly spread, as the network gets them: (B, C, H, W)."""
    folder = dataset_folder_of(trained)
    rows = read_metadata(folder)
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).round().astype(int)]
    config = trained.config
    dataset = RSNADataset(folder, chosen, trained.pipeline, config.data_image_size, config.seed, config.data_context)
    return torch.from_numpy(np.stack([dataset[index].image for index in range(len(dataset))]))


def export_metadata(trained: TrainedNetwork, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what another program needs to know to make pictures and to read the outputs, in JSON's types."""
    options = to_dict(trained.config)
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "output": "logits; a probability is 1 / (1 + exp(-logit))",
        "input": list(shape),
        "image_size": options["data_image_size"],
        "windows": options["data_windows"],
        "neighbours_each_side": options["data_context"],
        "transform": trained.pipeline.document,
        "model": options["net_model"],
        "weights": trained.weights,
        "iteration": trained.iteration,
    }
