"""Describe a pipeline in words: what each step does, how often, and on which units and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import albumentations as A
from albumentations.core.composition import BaseCompose

from common.albumentations import DicomWindowShift
from common.augmentations import era2019
from common.transforms.pipeline import Pipeline

BORDERS = ("filled with {fill}", "the edge pixel repeated", "mirrored", "wrapped", "reflected (reflect-101)")


def describe(pipeline: Pipeline) -> str:
    """Return a line for the input, for each step and for the output."""
    has_window = any(isinstance(transform, DicomWindowShift) for transform in pipeline.transforms)
    start = "(H, W) or (H, W, neighbours), Hounsfield units" if has_window else "(H, W, C), pictures on 0..1"
    lines = [f"in    {start}"]
    shape = _Shape()
    for number, transform in enumerate(pipeline.transforms, start=1):
        first, *rest = _lines(transform, shape)
        lines += [f"{number:>3}.  {first}", *(f"      {line}" for line in rest)]
    end = f"on {pipeline.scale}" if not pipeline.scale.normalizations else "normalized"
    lines.append(f"out   float32 {shape}, {end}")
    return "\n".join(lines)


class _Shape:
    def __init__(self) -> None:
        self.height, self.width, self.channels = "H", "W", "C"

    def __str__(self) -> str:
        return f"({self.height}, {self.width}, {self.channels})"

    def follow(self, transform: Any) -> str:
        """Follow the shape through a transform; return the change as the end of a sentence."""
        before = str(self)
        if isinstance(transform, DicomWindowShift):
            self.channels = str(transform.channels)
        if transform.p == 1 and hasattr(transform, "size"):
            self.height, self.width = map(str, transform.size)
        elif transform.p == 1 and isinstance(transform, (A.Resize, A.CenterCrop, A.RandomCrop)):
            self.height, self.width = str(transform.height), str(transform.width)
        return "" if str(self) == before else f" → {self}"


def _lines(transform: Any, shape: _Shape, weight: float | None = None) -> Iterator[str]:
    name = type(transform).__name__
    chance = f"weight {weight:.3g}" if weight is not None else chance_of(transform.p)
    if not isinstance(transform, BaseCompose):
        yield f"{name}, {chance}: {words(transform)}{shape.follow(transform)}"
        return
    yield f"{name}, {chance}:"
    weights = transform.transforms_ps if isinstance(transform, A.OneOf) else [None] * len(transform.transforms)
    for child, share in zip(transform.transforms, weights, strict=True):
        yield from (f"  {line}" for line in _lines(child, shape, share))


def chance_of(p: float) -> str:
    """Return a probability in words."""
    return "always" if p == 1 else "never" if p == 0 else f"probability {p:g}"


def words(transform: Any) -> str:
    """Return what a transform does; for a class without words of its own, its arguments."""
    for kind, say in WORDS.items():
        if isinstance(transform, kind):
            return say(transform)
    arguments = transform.get_transform_init_args() if hasattr(transform, "get_transform_init_args") else {}
    return ", ".join(f"{key} {_number(value)}" for key, value in arguments.items() if key != "p") or "no arguments"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_number(one) for one in value) + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_number(one)}" for key, one in value.items()) + "}"
    return str(value)


def _range(limits: Any, unit: str = "", factor: float = 1.0) -> str:
    low, high = (limit * factor + 0.0 for limit in limits)  # no minus before a 0
    if low == high:
        return f"{low:.4g}{unit}"
    return f"± {high:.4g}{unit}" if abs(low + high) < 1e-9 else f"{low:.4g} to {high:.4g}{unit}"


def _border(transform: Any) -> str:
    return f"border {BORDERS[transform.border_mode].format(fill=transform.fill)}"


def _window(transform: DicomWindowShift) -> str:
    limits = zip(
        zip(transform.window_center_mins, transform.window_center_maxs, strict=True),
        zip(transform.window_width_mins, transform.window_width_maxs, strict=True),
        strict=True,
    )
    windows = ", ".join(f"{_ends(center)}/{_ends(width)}" for center, width in limits)
    result = "HU clipped to the window" if transform.min_max_normalize is False else "float32 on 0..1"
    return f"windows {windows} (centre/width in HU), {result}"


def _ends(limits: Any) -> str:
    return f"{limits[0]:g}" if limits[0] == limits[1] else f"{limits[0]:g}–{limits[1]:g}"


def _shift_scale_rotate(transform: era2019.ShiftScaleRotate) -> str:
    x, y = (_range(limits, " %", 100) for limits in (transform.shift_limit_x, transform.shift_limit_y))
    scale = _range([1 + limit for limit in transform.scale_limit])
    angle = _range(transform.rotate_limit, "°")
    return (
        f"shift x {x} of the width, y {y} of the height, scale {scale} (one factor), rotation {angle}, "
        f"{_border(transform)}"
    )


def _crop(transform: Any) -> str:
    return (
        f"a part of {_range(transform.scale, ' %', 100)} of the area, width / height {_range(transform.ratio)}, "
        f"resized to {transform.size[0]} x {transform.size[1]} pixels"
    )


def _holes(transform: A.CoarseDropout) -> str:
    sizes = []
    for limits in (transform.hole_height_range, transform.hole_width_range):
        sizes.append(_ends(limits) + " pixels" if limits[1] >= 1 else _range(limits, " %", 100))
    return f"{_ends(transform.num_holes_range)} holes, {sizes[0]} high, {sizes[1]} wide, filled with {transform.fill}"


def _noise(transform: A.GaussNoise) -> str:
    deviations = _range(transform.std_range)
    eight_bit = _range(transform.std_range, factor=255)
    return f"normal noise of standard deviation {deviations} on 0..1 ({eight_bit} of 255), clipped to 0..1"


def _grid(transform: A.GridDistortion) -> str:
    stretch = _range(transform.distort_limit, " %", 100)
    return f"{transform.num_steps} x {transform.num_steps} cells stretched by {stretch}, {_border(transform)}"


def _normalize(transform: A.Normalize) -> str:
    if transform.normalization != "standard":
        return f"{transform.normalization} of each picture"
    mean, std = _number(transform.mean), _number(transform.std)
    return f"minus mean {mean}, divided by std {std} (of pictures on 0..{transform.max_pixel_value:g})"


WORDS: dict[type, Callable[[Any], str]] = {
    DicomWindowShift: _window,
    era2019.ShiftScaleRotate: _shift_scale_rotate,
    era2019.RandomResizedCrop: _crop,
    A.RandomResizedCrop: _crop,
    A.HorizontalFlip: lambda _: "left and right exchanged",
    A.VerticalFlip: lambda _: "top and bottom exchanged",
    A.Rotate: lambda transform: f"rotation {_range(transform.limit, '°')}, {_border(transform)}",
    A.CoarseDropout: _holes,
    A.GaussNoise: _noise,
    A.GridDistortion: _grid,
    A.Normalize: _normalize,
}
