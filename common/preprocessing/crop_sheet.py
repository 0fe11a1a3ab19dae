"""Draw a contact sheet for judging a cropped dataset: slices as scanned, with the box kept and the head's outline."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from common.datasets.image_files import load_image
from common.errors import WorkError
from common.files import atomic_path
from common.preprocessing.crop import find_head
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import ImageForm, Record, Task
from common.preprocessing.workers import convert_files

TILE, COLUMNS = 192, 10
EVENLY, SMALLEST, WITHOUT = 60, 20, 20
BOX_COLOUR, OUTLINE_COLOUR, TEXT_COLOUR = (255, 160, 60), (0, 200, 255), (255, 255, 255)  # blue, yellow, white (BGR)


def choose_images(images: pd.DataFrame) -> pd.Index:
    """Return the ids of the images to draw: some spread evenly, those with the smallest boxes, some without a head.

    ``images`` has the image ids as index and the columns rows, columns, crop_rows and crop_columns.
    """
    area = images["crop_rows"] * images["crop_columns"] / (images["rows"] * images["columns"])
    whole = images.index[area == 1]
    smallest = area[area < 1].nsmallest(SMALLEST).index
    return images.index[_evenly(len(images), EVENLY)].append([smallest, whole[_evenly(len(whole), WITHOUT)]]).unique()


def _evenly(length: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int))


def write_crop_sheet(path: Path, tasks: Sequence[Task], image_ids: pd.Index, pseudonyms: Pseudonyms) -> None:
    """Read the files of ``tasks`` again, uncropped, and draw the images of ``image_ids`` in order to a PNG file.

    Nothing is written to the tasks' own folder. Raises WorkError if none of the images can be drawn.
    """
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        moved = [replace(task, folder=Path(scratch)) for task in tasks]
        for records in convert_files(moved, ImageForm(0, (), "int16"), 1, pseudonyms):
            for record in records:
                if record.image_id in image_ids:
                    image = load_image(Path(scratch) / f"{record.image_id}.npy")
                    found[record.image_id] = draw_tile(image, record)
                    (Path(scratch) / f"{record.image_id}.npy").unlink()
    tiles = [found[image_id] for image_id in image_ids if image_id in found]
    tiles += [np.zeros((TILE, TILE, 3), np.uint8)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    done, content = cv2.imencode(".png", np.vstack(rows)) if rows else (False, np.zeros(0))
    if not done:
        raise WorkError(f"{path}: none of the images could be drawn")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def draw_tile(image_hu: np.ndarray, record: Record) -> np.ndarray:
    """Return a square tile, BGR: a slice from -1000 to 600 HU with box, outline and id, or ``whole`` without a head."""
    crop = find_head(image_hu, record.row_spacing_mm, record.column_spacing_mm)
    grey = ((image_hu.clip(-1000, 600).astype(np.float32) + 1000) / 1600 * 255).astype(np.uint8)
    scale = TILE / max(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    small = cv2.cvtColor(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    if crop.mask is not None:
        mask = np.zeros(image_hu.shape, np.uint8)
        mask[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns] = crop.mask
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, outlines, -1, OUTLINE_COLOUR, 1)
        corners = np.array([crop.left, crop.top, crop.left + crop.columns, crop.top + crop.rows]) * scale
        left, top, right, bottom = corners.round().astype(int).tolist()
        cv2.rectangle(small, (left, top), (right - 1, bottom - 1), BOX_COLOUR, 1)
    tile[: size[1], : size[0]] = small
    text = record.image_id[:24] + (" whole" if crop.mask is None else "")
    cv2.putText(tile, text, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.34, TEXT_COLOUR, 1, cv2.LINE_AA)
    return tile
