"""Draw a contact sheet of a dataset's pictures before and after a pipeline."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from common.albumentations import DicomWindowShift
from common.datasets.image_files import SUFFIXES, load_image, read_mask
from common.errors import UsageError, WorkError
from common.transforms.pipeline import Pipeline, load_pipeline

TILE = 192
GAP = 4
DEFAULT_WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))


def find_images(dataset: str) -> list[Path]:
    """Return a dataset's stored images, by folder or by name below input/datasets; UsageError for none."""
    for folder in (Path(dataset), Path("input/datasets") / dataset):
        files = sorted(path for suffix in SUFFIXES.values() for path in (folder / "images").glob(f"*{suffix}"))
        if files:
            return files
    raise UsageError(
        f"--dataset={dataset}: no images ({', '.join(SUFFIXES.values())}) there, nor below input/datasets/{dataset}"
    )


def read_image(path: Path) -> np.ndarray:
    """Read a stored image: int16 HU (H, W), or windowed (H, W, C) on 0..1; WorkError for anything else."""
    try:
        image = load_image(path)
    except (ValueError, OSError) as error:
        raise WorkError(f"{path}: the image is cut or damaged") from error
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / np.float32(255)
    if image.ndim not in (2, 3):
        raise WorkError(f"{path}: the image has shape {image.shape}")
    return image


def contact_sheet(file: Path, dataset: str, rows: int, views: int, seed: int, *, fuse: bool = False) -> np.ndarray:
    """Return the sheet, uint8: a row for each window of ``rows`` images, with the original and ``views`` draws.

    The images are spread over the dataset. The sheet shows no identifier. Where the dataset has a mask of an image, its
    outline is drawn.
    """
    paths = find_images(dataset)
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, rows + 2).round().astype(int)[1:-1])]
    images = [read_image(path) for path in chosen]
    windowed = images[0].ndim == 3
    pipeline = load_pipeline(file, None if windowed else DEFAULT_WINDOWS, windowed=windowed, fuse=fuse)
    channels = images[0].shape[2] if windowed else pipeline.channels
    window = next((one for one in pipeline.transforms if isinstance(one, DicomWindowShift)), None)
    sheet = [_header(["before", *(f"view {view + 1}" for view in range(views))])]
    for path, image in zip(chosen, images, strict=True):
        before = image if window is None else window(image=image)["image"]
        mask = _read_mask(path, image.shape[:2])
        after, outlined = [], [mask]
        for view in range(views):
            pipeline.set_random_seed(seed + view)
            result = pipeline(image=image, mask=mask)
            after.append(_shown(pipeline, result["image"]))
            outlined.append(result.get("mask"))
        for channel in range(channels):
            label = "" if window is None else _label(window, channel)
            pictures = zip((before, *after), outlined, strict=True)
            tiles = [_tile(picture[..., channel], mask) for picture, mask in pictures]
            _text(tiles[0], label)
            sheet.append(np.hstack(tiles))
    return np.vstack(sheet)


def _read_mask(image: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the mask, uint8 (H, W), that the dataset has of a stored image; None if there is none."""
    path = image.parent.parent / "masks" / f"{image.stem}.npy"
    return read_mask(path, shape, 8) if path.is_file() else None


def _shown(pipeline: Pipeline, picture: np.ndarray) -> np.ndarray:
    """Return a normalized picture, scaled back to 0..1."""
    for kind, mean, std in reversed(pipeline.scale.normalizations):
        if kind == "standard":
            picture = picture * np.array(std) + np.array(mean)
        else:
            picture = (picture - picture.min()) / max(float(np.ptp(picture)), 1e-6)
    return picture


def _label(window: DicomWindowShift, channel: int) -> str:
    index = channel % window.channels
    low, high = window.window_center_mins[index], window.window_center_maxs[index]
    widths = window.window_width_mins[index], window.window_width_maxs[index]
    return "/".join(f"{a:g}" if a == b else f"{a:g}-{b:g}" for a, b in ((low, high), widths))


def _header(titles: list[str]) -> np.ndarray:
    return np.hstack([_text(np.zeros((20, TILE + GAP), np.uint8), title) for title in titles])


def _text(tile: np.ndarray, text: str) -> np.ndarray:
    return cv2.putText(tile, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA)


def _tile(picture: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    scale = TILE / max(picture.shape)
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    grey = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    tile = np.zeros((TILE + GAP, TILE + GAP), np.uint8)
    tile[: size[1], : size[0]] = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if mask is not None:
        blood = cv2.resize((mask > 0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        outlines, _ = cv2.findContours(blood, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile[: size[1], : size[0]], outlines, -1, 255)
    return tile
