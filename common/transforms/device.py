"""Which part of a pipeline a batch can get on the device that computes, and the rest for the loading processes."""

from __future__ import annotations

from typing import Any

import albumentations as A
import numpy as np

from common.albumentations import DicomWindowShift
from common.datasets.finish import WindowNormalize
from common.transforms.pipeline import Pipeline

# They move pixels and change none, so that they can as well come before the window.
MOVES = (A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.RandomRotate90, A.D4, A.NoOp)


class HostPart(Pipeline):
    """A pipeline without its window and normalization, which ``finish`` does to whole batches on the device.

    ``part(image=hu)`` gives ``image`` int16 (H, W) or (H, W, K) and ``windows`` float32 (C, 2), centre and width in HU.
    All draws are those of the whole pipeline.
    """

    def __init__(self, pipeline: Pipeline, window: DicomWindowShift, finish: WindowNormalize) -> None:
        """``pipeline``: the whole one, that begins with ``window`` and ends with the normalization of ``finish``."""
        super().__init__(pipeline.name, pipeline.document, pipeline.transforms, pipeline.channels)
        self.finish = finish
        self.window = _DrawnWindow(
            window.window_width_mins, window.window_width_maxs, window.window_center_mins, window.window_center_maxs
        )
        self.compose = A.Compose([self.window, *pipeline.transforms[1:-1]])

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the picture as it is stored, moved, and the windows that were drawn for it."""
        picture = self.compose(image=image)["image"]
        return {"image": picture, "windows": np.array(self.window.drawn, dtype=np.float32)}


class _DrawnWindow(DicomWindowShift):
    """Draws as the class above it and keeps what it drew; leaves the picture in Hounsfield units."""

    def apply(self, img: np.ndarray, windows: Any = (), **params: Any) -> np.ndarray:
        self.drawn = windows
        return img


def split_for_device(pipeline: Pipeline) -> HostPart | None:
    """Return the host's part of a pipeline whose rest can be done on the device; None where it must stay whole.

    It must begin with a window that gives 0..1, end with one standard normalization, and only move pixels in between:
    an interpolation of Hounsfield units is not the interpolation of a windowed picture.
    """
    transforms, normalizations = pipeline.transforms, pipeline.scale.normalizations
    if len(transforms) < 2 or len(normalizations) != 1 or normalizations[0][0] != "standard":
        return None
    window, normalize = transforms[0], transforms[-1]
    whole = type(window) is DicomWindowShift and window.min_max_normalize is not False
    if not whole or not isinstance(normalize, A.Normalize) or not all(isinstance(t, MOVES) for t in transforms[1:-1]):
        return None
    _, mean, std = normalizations[0]
    return HostPart(pipeline, window, WindowNormalize(mean, std))
