"""CT transforms as albumentations classes, for JSON files together with the library's own classes."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema
from pydantic import model_validator

from common.augmentations.base import HOUNSFIELD, MIN_MAX_NOTE, ImageTransform
from common.augmentations.ct import (
    HeadMotion,
    HeadRotation,
    HounsfieldContrast,
    HounsfieldNoise,
    MetalStreak,
    ReconstructionKernel,
    SliceThickness,
)
from common.augmentations.era2019 import Cutout, ElasticTransform, MotionBlur, RandomResizedCrop, ShiftScaleRotate
from common.dicom.pictures import window
from common.errors import UsageError

logger = logging.getLogger(__name__)


class DicomWindowShift(ImageTransform):
    """Turns Hounsfield units into windowed channels: the only step between HU and pictures on 0..1.

    Takes HU, int16 or float, (H, W), or (H, W, K) for K neighbouring slices. Gives float32 (H, W, K · C) in 0..1 for C
    windows, neighbour by neighbour. Width and centre of each channel are drawn evenly from their ranges, ends included;
    they are whole numbers if both ends are. Equal ends give a fixed window. The window [centre − width/2, centre +
    width/2] is mapped linearly to [0, 1] and clipped, the same for every slice.

    The defaults are brain 40/80, subdural 80/200 and bone 40/380 (centre/width in HU), fixed.

    ``min_max_normalize`` is an argument of the class of 2019. True meant minimum and maximum of each picture then. Here
    it gives the fixed map too, with a warning. False gives HU clipped to the window, float32, not 0..1.
    """

    units = HOUNSFIELD

    class InitSchema(BaseTransformInitSchema):
        window_width_mins: tuple[float, ...]
        window_width_maxs: tuple[float, ...]
        window_center_mins: tuple[float, ...]
        window_center_maxs: tuple[float, ...]
        min_max_normalize: bool | None

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse impossible ranges, and a probability below 1, which would pass Hounsfield units on."""
            widths = (self.window_width_mins, self.window_width_maxs)
            centers = (self.window_center_mins, self.window_center_maxs)
            if len({len(values) for values in (*widths, *centers)}) != 1 or not self.window_width_mins:
                raise ValueError("the four lists of windows must have one value for each channel")
            if any(low > high for lows, highs in (widths, centers) for low, high in zip(lows, highs, strict=True)):
                raise ValueError("a window's minimum is above its maximum")
            if min(self.window_width_mins) <= 0:
                raise ValueError("a window's width must be above 0")
            if self.p != 1:
                raise ValueError("p must be 1: without the window the next transforms would get Hounsfield units")
            return self

    def __init__(
        self,
        window_width_mins: Sequence[float] = (80, 200, 380),
        window_width_maxs: Sequence[float] = (80, 200, 380),
        window_center_mins: Sequence[float] = (40, 80, 40),
        window_center_maxs: Sequence[float] = (40, 80, 40),
        min_max_normalize: bool | None = None,
        p: float = 1.0,
    ) -> None:
        """One value for each output channel, in HU; ValueError for impossible ranges and for p below 1."""
        super().__init__(p=p)
        if min_max_normalize:
            logger.warning("DicomWindowShift: %s", MIN_MAX_NOTE)
        self.min_max_normalize = min_max_normalize
        self.window_width_mins = tuple(window_width_mins)
        self.window_width_maxs = tuple(window_width_maxs)
        self.window_center_mins = tuple(window_center_mins)
        self.window_center_maxs = tuple(window_center_maxs)

    @property
    def channels(self) -> int:
        """Number of windows."""
        return len(self.window_width_mins)

    def get_params(self) -> dict[str, Any]:
        """Draw centre and width of each channel."""
        widths = zip(self.window_width_mins, self.window_width_maxs, strict=True)
        centers = zip(self.window_center_mins, self.window_center_maxs, strict=True)
        return {
            "windows": [
                (_draw(self.py_random, *center), _draw(self.py_random, *width))
                for center, width in zip(centers, widths, strict=True)
            ]
        }

    def apply(self, img: np.ndarray, windows: Sequence[tuple[float, float]] = (), **params: Any) -> np.ndarray:
        """Return the windowed channels; UsageError if the image is not in Hounsfield units."""
        if img.ndim not in (2, 3) or not (img.dtype == np.int16 or np.issubdtype(img.dtype, np.floating)):
            raise UsageError(
                f"DicomWindowShift takes Hounsfield units, int16 or float, of shape (H, W) or (H, W, neighbours); got "
                f"{img.dtype} {img.shape}"
            )
        slices = [img] if img.ndim == 2 else [img[..., k] for k in range(img.shape[2])]
        shown = clipped if self.min_max_normalize is False else window
        return np.stack([shown(one, center, width) for one in slices for center, width in windows], axis=-1)


def clipped(image_hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Clip Hounsfield units to [center - width / 2, center + width / 2]; float32 of the image's shape."""
    return np.clip(image_hu.astype(np.float32), center - width / 2, center + width / 2)


def fixed_windows(windows: Sequence[tuple[float, float]]) -> DicomWindowShift:
    """Return a :class:`DicomWindowShift` with fixed windows, given as (centre, width) in HU."""
    centers, widths = [center for center, _ in windows], [width for _, width in windows]
    return DicomWindowShift(widths, widths, centers, centers)


def _draw(generator: random.Random, low: float, high: float) -> float:
    if float(low).is_integer() and float(high).is_integer():
        return generator.randint(int(low), int(high))
    return generator.uniform(low, high)


OWN_CLASSES: dict[str, type] = {
    one.__name__: one
    for one in (
        DicomWindowShift,
        HounsfieldNoise,
        ReconstructionKernel,
        SliceThickness,
        HounsfieldContrast,
        HeadRotation,
        HeadMotion,
        MetalStreak,
        ShiftScaleRotate,
        RandomResizedCrop,
        Cutout,
        MotionBlur,
        ElasticTransform,
    )
}
"""The classes that a transform file may name beside albumentations' own, as ``common.albumentations.<name>``."""
