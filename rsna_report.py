"""The report of an experiment and the leaderboard of all, from what their folders hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.arguments import from_dict, to_dict
from common.datasets.image_files import SUFFIXES
from common.datasets.images import read_image
from common.dicom.pictures import window
from common.errors import UsageError, UserError
from common.evaluation.resampling import Array
from common.files import write_text
from common.metrics import binary_log_losses, constant_predictor, normalized_weights
from common.reports.experiment import Evaluated, experiment_page
from common.reports.leaderboard import REPORT_FILE, update_leaderboard
from common.reports.record import Record, read_record, read_records, results_folder
from config import TrainConfig, Windows
from rsna_data import select_rows
from rsna_dataset import (
    LABEL_WEIGHTS,
    LABELS,
    dataset_folder,
    read_dataset_info,
    read_fold,
    read_predictions,
)
from rsna_evaluation import PREDICTION_FILES, described_images, evaluate_predictions
from rsna_network import MONITOR

logger = logging.getLogger(__name__)

METRIC = MONITOR.partition("/")[2]
DRAWS = 200  # evaluate.py makes more; a report should not take minutes
PICTURES_EACH, TILE = 8, 180


def write_report(folder: Path, status: str | None = None) -> Path:
    """Write ``report.html`` into an experiment's folder, of what there is, and return its path."""
    record = read_record(folder, status)
    rivals = [other for other in read_records(results_folder(folder)) if same_data(other, record)]
    constant, evaluated, missing = None, None, ""
    try:
        config = from_dict(TrainConfig, record.config, str(folder / "config.yaml"))
        rows, constant = labelled_rows(config)
        evaluated = evaluate(folder, config, rows)
    except UserError as error:
        missing = f"There is no evaluation: {error}"
    page = experiment_page(record, rivals, METRIC, to_dict(TrainConfig()), constant, evaluated, missing)
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def write_leaderboard(results: Path) -> Path:
    """Write leaderboard.csv and leaderboard.html of all experiments below ``results``; return the second."""
    return update_leaderboard(results, METRIC)


def same_data(one: Record, other: Record) -> bool:
    """Whether two experiments were validated on the same images, so that their values can be compared."""
    names = ("data_dataset", "data_fold", "data_input_folder", "dev_enabled", "tr_overfit")
    return all(one.config.get(name) == other.config.get(name) for name in names)


def labelled_rows(config: TrainConfig) -> tuple[pd.DataFrame, float]:
    """Return the fold's rows, and the weighted log loss of the constant predictor on its validation images."""
    if config.is_cross_validation:
        raise UsageError("each fold has a report of its own; evaluate.py evaluates them together")
    rows = read_fold(
        dataset_folder(config.data_input_folder, config.data_dataset), config.data_dataset, config.data_fold
    )
    train, valid = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    prevalences = train[list(LABELS)].to_numpy(dtype=np.float64).mean(axis=0)
    return rows, constant_predictor(prevalences, valid[list(LABELS)].to_numpy(), LABEL_WEIGHTS)


def evaluate(folder: Path, config: TrainConfig, rows: pd.DataFrame) -> Evaluated | None:
    """Evaluate the experiment's predictions of the validation images; None where it has none yet."""
    path = next((folder / name for name in PREDICTION_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    frame = read_predictions(path)
    known = rows.loc[rows.index.intersection(frame.index)]
    frame = frame.loc[known.index]
    data = dataset_folder(config.data_input_folder, config.data_dataset)
    train = select_rows(rows, "train", config.dev_enabled)[list(LABELS)].to_numpy(dtype=np.float64)
    found = evaluate_predictions(frame, known, train.mean(axis=0), DRAWS, described_images(data))
    predictions, targets = frame[list(LABELS)].to_numpy(np.float64), known[list(LABELS)].to_numpy(np.float64)
    return Evaluated(found.document, predictions, targets, LABELS, pictures(data, config, frame, predictions, targets))


def pictures(
    data: Path, config: TrainConfig, frame: pd.DataFrame, predictions: Array, targets: Array
) -> dict[str, Sequence[tuple[np.ndarray, str]]]:
    """Return slices worth a look: the worst, those found best, and those that the model was least sure of."""
    losses = binary_log_losses(predictions, targets) @ normalized_weights(LABEL_WEIGHTS, len(LABELS))
    bleeding = np.flatnonzero(targets[:, -1] == 1)
    doubt = np.abs(predictions[:, -1] - 0.5)
    chosen = {
        "Worst slices: the highest log loss": np.argsort(-losses, kind="stable"),
        "Best slices with hemorrhage: the lowest log loss": bleeding[np.argsort(losses[bleeding], kind="stable")],
        "Most uncertain slices: any nearest to 0.5": np.argsort(doubt, kind="stable"),
    }
    info = read_dataset_info(data)
    found: dict[str, Sequence[tuple[np.ndarray, str]]] = {}
    for title, order in chosen.items():
        found[title] = []
        for place in order[:PICTURES_EACH]:
            image_id = str(frame.index[place])
            image = read_image(data / "images" / f"{image_id}{SUFFIXES[info['format']]}", info["image_form"])
            text = described(image_id, predictions[place], targets[place])
            found[title].append((shown(image, config.data_windows), text))
    return found


def shown(image: np.ndarray, windows: Windows) -> np.ndarray:
    """Return an image, HU (H, W) or windowed (H, W, C), in its first two windows side by side, uint8."""
    if image.ndim == 2:
        image = np.stack([window(image, center, width) for center, width in windows], axis=-1)
    elif image.dtype == np.uint8:
        image = image.astype(np.float32) / np.float32(255)
    size = (TILE, TILE * image.shape[0] // image.shape[1])
    parts = [cv2.resize(image[..., c], size, interpolation=cv2.INTER_AREA) for c in range(min(2, image.shape[2]))]
    return (np.clip(np.hstack(parts), 0, 1) * 255).round().astype(np.uint8)


def described(image_id: str, predictions: Array, targets: Array) -> str:
    """Say what an image shows and what was predicted."""
    true = [name for name, value in zip(LABELS[:-1], targets, strict=False) if value == 1]
    likely = sorted(zip(predictions[:-1], LABELS, strict=False), reverse=True)[:2]
    said = ", ".join(f"{name} {value:.2f}" for value, name in likely)
    return f"{image_id}: {', '.join(true) or 'nothing'}; predicted any {predictions[-1]:.2f}, {said}"
