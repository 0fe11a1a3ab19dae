"""Writes the transform files of this folder: python transforms/make.py. Each recipe is a list of transforms below."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks a package index for a newer version

import albumentations as A  # noqa: E402
import cv2  # noqa: E402

from common.albumentations import DicomWindowShift, ShiftScaleRotate  # noqa: E402

REFLECT = cv2.BORDER_REFLECT_101  # what lay outside a moved picture in 2019

# Mean and standard deviation of brain, subdural and bone windows of the competition's images, on 0..1.
NORMALIZE = A.Normalize(mean=(0.27176, 0.26492, 0.46473), std=(0.35144, 0.29973, 0.23607), max_pixel_value=1.0)

FLIP = A.HorizontalFlip(p=0.5)
GRID = A.GridDistortion(num_steps=5, distort_limit=(-0.3, 0.3), normalized=False, border_mode=REFLECT, p=0.5)
NOISE = A.GaussNoise(std_range=(10**0.5 / 255, 50**0.5 / 255), p=0.5)  # variances 10 to 50 of 8-bit pictures
WINDOWS = DicomWindowShift()  # brain 40/80, subdural 80/200, bone 40/380


def holes(low: int, high: int) -> A.CoarseDropout:
    """Return 4 to 8 holes of ``low`` to ``high`` pixels a side."""
    return A.CoarseDropout((4, 8), hole_height_range=(low, high), hole_width_range=(low, high), fill=0.0, p=0.5)


def rotate(degrees: float) -> A.Rotate:
    """Return a rotation by up to ``degrees`` either way."""
    return A.Rotate(limit=(-degrees, degrees), border_mode=REFLECT, p=0.75)


def crop(size: int) -> A.RandomResizedCrop:
    """Return a crop of 0.7 to 1 of the area, resized to ``size`` pixels a side."""
    return A.RandomResizedCrop(size=(size, size), scale=(0.7, 1.0))


def shift(limit: float, scale: float, p: float) -> ShiftScaleRotate:
    """Return a shift by a share of the sides and a change of scale, without rotation."""
    return ShiftScaleRotate(limit, limit, scale, 0.0, p=p)


def recipes() -> dict[str, list]:
    """Return the transforms of each file."""
    demo_move = A.Affine(scale=(0.92, 1.08), keep_ratio=True, translate_percent=(-0.06, 0.06), rotate=(-15, 15), p=0.75)
    files: dict[str, list] = {
        "train_demo": [FLIP, demo_move, NORMALIZE],
        "valid_demo": [NORMALIZE],
        "valid_intermediate": [NORMALIZE],
    }
    # The twins of 128 pixels have holes in proportion.
    for suffix, size, (low, high) in (("", 512, (8, 16)), ("_128", 128, (2, 4))):
        crop_suffix = suffix or "_512"
        files[f"train_intermediate{suffix}"] = [
            FLIP,
            shift(0.0625, 0.08, p=0.75),
            rotate(15),
            holes(low, high),
            NORMALIZE,
        ]
        files[f"train_complex{crop_suffix}"] = [
            WINDOWS,
            crop(size),
            FLIP,
            shift(0.125, 0.0, p=0.6),
            rotate(30),
            GRID,
            holes(low, high),
            NOISE,
            NORMALIZE,
        ]
        files[f"test_intermediate_tta{crop_suffix}"] = [crop(size), FLIP, rotate(30), GRID, NORMALIZE]
    return {f"{name}.json": transforms for name, transforms in files.items()}


def text(transforms: list) -> str:
    """Return a file's text: what ``albumentations.save`` writes, on several lines."""
    return json.dumps(A.to_dict(A.Compose(transforms)), indent=1) + "\n"


def main() -> None:
    """Write all files."""
    for name, transforms in recipes().items():
        (FOLDER / name).write_text(text(transforms), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
