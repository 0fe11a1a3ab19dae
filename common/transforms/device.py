"""Split a pipeline: the loading processes draw the random numbers, the device computes whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import albumentations as A
import cv2
import numpy as np

from common.albumentations import DicomWindowShift
from common.datasets.finish import KERNELS
from common.datasets.steps import CONSTANT, REFLECT, REFLECT_101, REPLICATE, Step
from common.transforms.drawing import FOLLOWED, Chance, draw_steps, row_of

if TYPE_CHECKING:
    from common.transforms.pipeline import Pipeline

BORDERS = (CONSTANT, REPLICATE, REFLECT, REFLECT_101)


class DevicePart:
    """Draws the steps that ``pipeline`` would do; :mod:`common.datasets.finish` does them, for whole batches.

    ``part(image=picture)`` returns the unchanged ``image``, its ``steps``, and the ``size`` (height, width) after them.
    The draws are those of the pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """``pipeline``: one for which :func:`device_refusal` returns None."""
        self.pipeline = pipeline
        self.name, self.document, self.channels = pipeline.name, pipeline.document, pipeline.channels

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of the next call."""
        self.pipeline.set_random_seed(seed)

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Return the picture, (H, W) or (H, W, K), and its steps."""
        steps: list[Step] = []
        shape = draw_steps(self.pipeline.compose, image.shape, steps.append, Chance(), fuse=self.pipeline.fuse)
        return {"image": image, "steps": tuple(steps), "size": shape[:2]}

    def trial(self, image: np.ndarray) -> None:
        """Try the pipeline, see :meth:`common.transforms.pipeline.Pipeline.trial`."""
        self.pipeline.trial(image)


def device_refusal(pipeline: Pipeline) -> str | None:
    """Return in words which step of a pipeline has no form for batches; None if all have one."""
    windows = [isinstance(transform, DicomWindowShift) for transform in pipeline.transforms]
    before_window = pipeline.transforms[: windows.index(True)] if any(windows) else []
    in_hu = {id(leaf) for transform in before_window for leaf in _leaves(transform)}
    for transform in _leaves(pipeline.compose):
        name, row = type(transform).__name__, row_of(transform)
        if row is None or row.kind not in KERNELS:
            return f"{name} is not among the transforms that work on batches"
        if getattr(transform, "interpolation", cv2.INTER_LINEAR) != cv2.INTER_LINEAR:
            return f"{name} does not interpolate linearly"
        if getattr(transform, "border_mode", REFLECT_101) not in BORDERS:
            return f"the border mode of {name} is not among {', '.join(map(str, BORDERS))}"
        if id(transform) in in_hu and not isinstance(transform, (A.HorizontalFlip, A.VerticalFlip)):
            return f"{name} stands before the window"
    return None


def _leaves(transform: Any) -> Iterator[Any]:
    if type(transform) in FOLLOWED:
        for child in transform.transforms:
            yield from _leaves(child)
    else:
        yield transform
