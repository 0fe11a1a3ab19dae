"""The pictures of a report: slices worth a look, in two windows and with heat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.cli.values import Windows, format_windows
from common.datasets.image_files import SUFFIXES
from common.datasets.images import read_image
from common.dicom.pictures import window
from common.errors import UserError
from common.evaluation.metrics import binary_log_losses
from common.evaluation.reader import image_losses
from common.evaluation.resampling import Array
from common.reports.montage import Heat, fit, hottest_of, overlay
from common.training.memory import is_out_of_memory
from config import TrainConfig
from rsna.kinds.pictures import seen_pictures
from rsna.prediction.pictures import OVERALL, grey_slices, heat_maps, heat_text, shown_heat
from rsna.prediction.trained import load_network
from rsna.training.outcome import PREDICTION_FILES
from rsna_dataset import LABEL_WEIGHTS, LABELS, dataset_folder, read_dataset_info

PICTURES_EACH, TILE = 9, 180


def pictures_of(
    config: TrainConfig, frame: pd.DataFrame, rows: pd.DataFrame, experiments: Sequence[Path]
) -> tuple[dict[str, Sequence[tuple[np.ndarray, str]]], str]:
    """Return pictures of some of the images ``rows`` by title, each with its caption, and a note on what they show.

    ``frame``: the images' predictions, in the same order. ``experiments``: folders whose best.pt predicted the images.
    Each experiment predicted the images in its predictions_valid.csv.
    """
    data = dataset_folder(config.data_input_folder, config.data_dataset)
    predictions, targets = frame[list(LABELS)].to_numpy(np.float64), rows[list(LABELS)].to_numpy(np.float64)
    chosen = {title: order[:PICTURES_EACH] for title, order in worth_a_look(predictions, targets).items()}
    places = np.unique(np.concatenate(list(chosen.values())))
    heat, note = heat_pictures(config, frame.iloc[places], experiments)
    info = read_dataset_info(data)
    pictures: dict[str, Sequence[tuple[np.ndarray, str]]] = {title: [] for title in chosen}
    for title, order in chosen.items():
        for place in order:
            image_id = str(frame.index[place])
            image = read_image(data / "images" / f"{image_id}{SUFFIXES[info['format']]}", info["image_form"])
            picture = beside(windowed(image, config.data_windows), heat.get(image_id))
            pictures[title].append((picture, described(image_id, predictions[place], targets[place])))
    return pictures, f"{windows_shown(config.data_windows, info['image_form'])} {note}"


def worth_a_look(predictions: Array, targets: Array) -> dict[str, np.ndarray]:
    """Return by title the positions of slices, most interesting first: worst, best and least sure."""
    losses = image_losses(binary_log_losses(predictions, targets), LABEL_WEIGHTS)[0]  # a missing label adds nothing
    bleeding = np.flatnonzero(targets[:, -1] == 1)
    doubt = np.abs(predictions[:, -1] - 0.5)
    found = {
        "Worst slices: the highest log loss": np.argsort(-losses, kind="stable"),
        "Best slices with hemorrhage: the lowest log loss": bleeding[np.argsort(losses[bleeding], kind="stable")],
        "Most uncertain slices: any nearest to 0.5": np.argsort(doubt, kind="stable"),
    }
    return {title: order for title, order in found.items() if len(order)}


def heat_pictures(
    config: TrainConfig, frame: pd.DataFrame, experiments: Sequence[Path]
) -> tuple[dict[str, np.ndarray], str]:
    """Return pictures (TILE, TILE, 3) with heat of ``any`` by image id, and a note; no pictures: the reason.

    ``frame``: the predictions of the images, index ``id``. The heat of an image comes from the network that predicted
    it. All pictures share one scale.
    """
    found: dict[str, tuple[np.ndarray, Heat | None]] = {}
    if not experiments:
        return {}, "No heat: the experiment has no network of its own."
    try:
        for folder in experiments:
            own = pd.read_csv(folder / PREDICTION_FILES[1], usecols=["id"], dtype=str)["id"]
            asked = frame.loc[frame.index.intersection(own)]
            if asked.empty:
                continue
            trained = load_network(
                folder / BEST, data_input_folder=config.data_input_folder, data_dataset=config.data_dataset
            )
            dataset = seen_pictures(trained, asked)
            any_of = asked[LABELS[OVERALL]].to_numpy(np.float64)
            for place, grey in enumerate(grey_slices(trained, dataset)):
                places = np.array([place])
                maps = heat_maps(trained, dataset, places)
                if maps is None:
                    return {}, f"No heat: {trained.config.net_model} has no maps of features."
                (heat,) = shown_heat(trained, dataset, places, maps, any_of[places])
                found[str(asked.index[place])] = fit(grey, TILE), heat
    except Exception as error:
        if not (isinstance(error, (UserError, OSError)) or is_out_of_memory(error)):
            raise
        return {}, f"No heat: {' '.join(str(error).split())}"
    heats = [heat for _, heat in found.values()]
    hottest = hottest_of(heats)
    coloured = {
        name: cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) if heat is None else overlay(grey, heat, hottest)
        for name, (grey, heat) in found.items()
    }
    text = heat_text(heats, f" up to {hottest:.2g}" * (hottest > 0))
    return coloured, f"{text[0].upper()}{text[1:]}."


def windowed(image: np.ndarray, windows: Windows) -> list[np.ndarray]:
    """Return the first two windows of an image, HU (H, W) or windowed (H, W, C), each as uint8 (TILE, TILE)."""
    if image.ndim == 2:
        image = np.stack([window(image, center, width) for center, width in windows[:2]], axis=-1)
    elif image.dtype == np.uint8:
        image = image.astype(np.float32) / np.float32(255)
    levels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return [fit(levels[..., channel], TILE) for channel in range(min(2, image.shape[2]))]


def windows_shown(windows: Windows, image_form: str) -> str:
    """Say which windows :func:`windowed` shows."""
    if image_form != "hu":
        return "Left the dataset's windows, the first two."
    return f"Left windows of {format_windows(windows[:2]).replace(',', ' and ')} HU (center/width)."


def beside(greys: Sequence[np.ndarray], coloured: np.ndarray | None) -> np.ndarray:
    """Return square pictures side by side: grey (H, W), or BGR (H, W, 3) if one is coloured."""
    if coloured is None:
        return np.hstack(list(greys))
    return np.hstack([*(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) for grey in greys), coloured])


def described(image_id: str, predictions: Array, targets: Array) -> str:
    """Return an image's caption: its id, its labels and its likeliest predictions."""
    true = [name for name, value in zip(LABELS[:-1], targets, strict=False) if value == 1]
    none = "not labelled" if np.isnan(targets).any() else "nothing"
    likely = sorted(zip(predictions[:-1], LABELS, strict=False), reverse=True)[:2]
    said = ", ".join(f"{name} {value:.2f}" for value, name in likely)
    return f"{image_id}: {', '.join(true) or none}; predicted any {predictions[-1]:.2f}, {said}"
