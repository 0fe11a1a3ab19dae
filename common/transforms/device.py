"""A pipeline of which the loading processes only draw the numbers; the device does the work, in whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import albumentations as A
import cv2
import numpy as np
from albumentations.core.composition import BaseCompose

from common.albumentations import DicomWindowShift
from common.datasets.noise import table_place
from common.datasets.steps import CONSTANT, REFLECT, REFLECT_101, REPLICATE, Step
from common.transforms.canvas import Canvas, Flips, Sampling, Stroke
from common.transforms.geometry import Affine, crop_resize
from common.transforms.operations import FOLLOWED, CropResize, Holes, Noise, Normalize, Window, has_operation, run
from common.transforms.pipeline import Pipeline

BORDERS = (CONSTANT, REPLICATE, REFLECT, REFLECT_101)
BOX_STEP = 8


class DevicePart:
    """Draws what ``pipeline`` would do to a picture; :mod:`common.datasets.finish` does it, for whole batches.

    ``part(image=picture)`` gives ``image`` as it came, ``steps``, and ``size`` (height, width) after them. All draws
    are those of the pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """``pipeline``: one that :func:`device_refusal` has nothing against."""
        self.pipeline = pipeline
        self.name, self.document, self.channels = pipeline.name, pipeline.document, pipeline.channels

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of the next call."""
        self.pipeline.set_random_seed(seed)

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Return the picture, (H, W) or (H, W, K), and its steps."""
        recorder = _Recorder(_leaves(self.pipeline.compose))
        canvas = Canvas(recorder, image.shape, fuse=self.pipeline.fuse)
        run(self.pipeline.compose, canvas)
        canvas.finish()
        return {"image": image, "steps": tuple(recorder.steps), "size": canvas.shape[:2]}

    def trial(self, image: np.ndarray) -> None:
        """Try the pipeline, as its own :meth:`~common.transforms.pipeline.Pipeline.trial`."""
        self.pipeline.trial(image)


def device_refusal(pipeline: Pipeline) -> str | None:
    """Return which step of a pipeline has no form for batches, in words; None where all have one."""
    windows = [isinstance(transform, DicomWindowShift) for transform in pipeline.transforms]
    before_window = pipeline.transforms[: windows.index(True)] if any(windows) else []
    in_hu = {id(leaf) for transform in before_window for leaf in _leaves(transform)}
    for transform in _leaves(pipeline.compose):
        name = type(transform).__name__
        if isinstance(transform, BaseCompose) or not has_operation(transform):
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


class _Recorder:
    """Writes down what a canvas paints, as steps."""

    def __init__(self, leaves: Iterable[Any]) -> None:
        self.steps: list[Step] = []
        self._places = (*leaves, None)  # found by what they are here: a loading process has a copy of each

    def paint(self, stroke: Stroke, shape: tuple[int, ...], place: Any) -> None:
        """Write one stroke down."""
        kind, constants, numbers = _TELL[type(stroke)](stroke, shape)
        number = next(number for number, leaf in enumerate(self._places) if leaf is place)
        self.steps.append(Step(2 * number + (kind != "flip"), kind, constants, numbers))  # a flip is in another's way

    def call(self, transform: Any, *, force: bool) -> NoReturn:
        """A pipeline that would come here is refused by :func:`device_refusal`."""
        raise AssertionError(f"{type(transform).__name__} can't be told as numbers")


Told = tuple[str, tuple[Any, ...], dict[str, np.ndarray]]


def _window(window: Window, shape: tuple[int, ...]) -> Told:
    return "window", (), {"windows": np.array(window.windows, dtype=np.float64)}


def _flip(flips: Flips, shape: tuple[int, ...]) -> Told:
    return "flip", (flips.horizontal, flips.vertical), {"size": np.array(shape[:2])}


def _crop_resize(crop: CropResize, shape: tuple[int, ...]) -> Told:
    top, left, rows, columns = crop.box
    matrix = crop_resize(crop.box, crop.size).matrix
    frame = np.array([left, top, left + columns - 1, top + rows - 1])
    return "sample", (("affine",), tuple(crop.size), REPLICATE, 0.0), {"matrix 0": matrix, "frame": frame}


def _sample(sampling: Sampling, shape: tuple[int, ...]) -> Told:
    numbers = {"frame": np.array([0, 0, shape[1] - 1, shape[0] - 1])}
    for number, link in enumerate(sampling.links):
        if isinstance(link, Affine):
            numbers[f"matrix {number}"] = link.matrix
        else:
            numbers[f"columns {number}"], numbers[f"rows {number}"] = _two(link.columns), _two(link.rows)
    kinds = tuple("affine" if isinstance(link, Affine) else "grid" for link in sampling.links)
    fill = sampling.fill if sampling.border_mode == CONSTANT else 0.0
    return "sample", (kinds, tuple(sampling.size), sampling.border_mode, fill), numbers


def _two(table: np.ndarray) -> np.ndarray:
    """Return a table with a second value at least, so that there is a slope."""
    return table if len(table) > 1 else np.append(table, table[0] + 1)


def _holes(holes: Holes, shape: tuple[int, ...]) -> Told:
    count = -(-len(holes.boxes) // BOX_STEP) * BOX_STEP  # pictures with another number of holes are done with them
    boxes = np.zeros((count, 4))
    boxes[: len(holes.boxes)] = holes.boxes
    return "holes", (holes.fill,), {"boxes": boxes}


def _noise(noise: Noise, shape: tuple[int, ...]) -> Told:
    start, sign = table_place(noise.seed)
    values = {"start": start, "std": sign * noise.std, "mean": noise.mean, "width": shape[1]}
    return "noise", (), {name: np.array(value) for name, value in values.items()}


def _normalize(normalize: Normalize, shape: tuple[int, ...]) -> Told:
    scale, offset = normalize.factors(1 if len(shape) == 2 else shape[2])
    return "normalize", (), {"scale": scale, "offset": offset}


_TELL: dict[type, Callable[[Any, tuple[int, ...]], Told]] = {
    Window: _window,
    Flips: _flip,
    CropResize: _crop_resize,
    Sampling: _sample,
    Holes: _holes,
    Noise: _noise,
    Normalize: _normalize,
}
