"""What a transform does to one picture, as plain numbers: transforms draw operations, a canvas takes them.

:func:`run` takes the numbers from the transform's own methods, in the library's order, so that a stream of random
numbers means the same here and in ``albumentations.Compose``; only the noise's field is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import albumentations as A
import numpy as np
from albumentations.core.composition import BaseCompose

from common.albumentations import DicomWindowShift
from common.augmentations import era2019
from common.errors import UsageError
from common.transforms.geometry import Size

Fill = float | tuple[float, ...]


@dataclass(frozen=True)
class Window:
    """Hounsfield units to channels on 0..1: (centre, width) in HU of each channel."""

    windows: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Flip:
    """Exchange left and right (``horizontal``), or top and bottom."""

    horizontal: bool


@dataclass(frozen=True)
class CropResize:
    """Keep a part (top, left, height, width) and resize it to ``size`` (height, width)."""

    box: tuple[int, int, int, int]
    size: Size
    interpolation: int


@dataclass(frozen=True)
class Warp:
    """Move pixels by a 2 x 3 matrix, from source to target (x, y); the size stays."""

    matrix: np.ndarray
    interpolation: int
    border_mode: int
    fill: Fill


@dataclass(frozen=True)
class Stretch:
    """Show at (x, y) the source's place (columns[x], rows[y]), float (W,) and (H,)."""

    columns: np.ndarray
    rows: np.ndarray
    interpolation: int
    border_mode: int
    fill: Fill


@dataclass(frozen=True)
class Holes:
    """Fill boxes (left, top, right, bottom), int (N, 4)."""

    boxes: np.ndarray
    fill: float


@dataclass(frozen=True)
class Noise:
    """Add normal noise of a mean and deviation, the field of ``common.datasets.noise`` for ``seed``; clip to 0..1."""

    mean: float
    std: float
    seed: int


@dataclass(frozen=True)
class Normalize:
    """Subtract ``mean`` and divide by ``std``: a value for each channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def factors(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what a picture of so many channels is multiplied by, and what is then added; float64 (C,) each.

        Raises UsageError where mean or std are of another number of channels.
        """
        for values in (self.mean, self.std):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"Normalize has {len(values)} values, and the pictures that reach it {channels} channels"
                )
        scale = 1 / np.broadcast_to(np.asarray(self.std), channels)
        return scale, -np.broadcast_to(np.asarray(self.mean), channels) * scale


Operation = Window | Flip | CropResize | Warp | Stretch | Holes | Noise | Normalize


class Taker(Protocol):
    """Takes the operations of a picture, in their order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The picture's shape after all operations so far."""

    def add(self, operation: Operation, transform: Any) -> None:
        """Take an operation that ``transform`` has drawn."""

    def call(self, transform: Any, *, force: bool) -> None:
        """Let a transform that has no operation work on the picture by itself; ``force``: whatever its probability."""


def run(transform: Any, canvas: Taker, *, force: bool = False) -> None:
    """Draw whether and how ``transform`` works and let ``canvas`` do it; ``force``: whatever its probability.

    OneOf, Sequential and Compose are followed into; every other composition, and a transform that has no operation, is
    called as it is.
    """
    if isinstance(transform, BaseCompose) and type(transform) not in FOLLOWED:
        canvas.call(transform, force=force)
        return
    if not force and not _applies(transform):
        return
    if isinstance(transform, A.OneOf):
        choice = transform.random_generator.choice(len(transform.transforms), p=transform.transforms_ps)
        run(transform.transforms[choice], canvas, force=True)
    elif isinstance(transform, BaseCompose):
        for child in transform.transforms:
            run(child, canvas)
    elif has_operation(transform):
        canvas.add(DRAWS[type(transform)].draw(transform, canvas.shape), transform)
    else:
        canvas.call(transform, force=True)


def run_all(transform: Any, canvas: Taker, *, choice: int, sure: bool = False) -> None:
    """Let ``canvas`` do every step of ``transform`` that has a chance, of OneOf the one numbered ``choice``.

    ``sure``: only those whose probability is 1.
    """
    if transform.p == 0 or (sure and transform.p < 1):
        return
    if isinstance(transform, A.OneOf):
        run_all(transform.transforms[choice % len(transform.transforms)], canvas, choice=choice)
    elif type(transform) in FOLLOWED:
        for child in transform.transforms:
            run_all(child, canvas, choice=choice, sure=sure)
    elif has_operation(transform):
        canvas.add(DRAWS[type(transform)].draw(transform, canvas.shape), transform)
    else:
        canvas.call(transform, force=True)


def alternatives(transform: Any) -> int:
    """Return the most children that a OneOf in ``transform`` chooses from, at least 1."""
    if type(transform) not in FOLLOWED:
        return 1
    own = len(transform.transforms) if isinstance(transform, A.OneOf) else 1
    return max([own, *map(alternatives, transform.transforms)])


def _applies(transform: Any) -> bool:
    """Draw as the library does: a single transform that is sure draws nothing, a composition always does."""
    if not isinstance(transform, BaseCompose) and transform.p >= 1:
        return True
    return transform.py_random.random() < transform.p


def has_operation(transform: Any) -> bool:
    """Say whether a transform, with its arguments, can be told as an :data:`Operation`."""
    row = DRAWS.get(type(transform))
    return row is not None and row.fits(transform)


@dataclass(frozen=True)
class DrawRow:
    """How a class draws its operation, and for which arguments it can."""

    draw: Callable[[Any, tuple[int, ...]], Operation]
    fits: Callable[[Any], bool] = lambda _: True


FOLLOWED = (A.OneOf, A.Sequential, A.Compose)


def _params(transform: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    params = {**transform.get_params(), "shape": shape}
    return {**params, **transform.get_params_dependent_on_data(params, {})}


def _window(transform: DicomWindowShift, shape: tuple[int, ...]) -> Window:
    return Window(tuple(transform.get_params()["windows"]))


def _warp(transform: Any, shape: tuple[int, ...]) -> Warp:
    matrix = np.asarray(_params(transform, shape)["matrix"], dtype=np.float64)[:2]
    return Warp(matrix, transform.interpolation, transform.border_mode, transform.fill)


def _library_crop(transform: A.RandomResizedCrop, shape: tuple[int, ...]) -> CropResize:
    left, top, right, bottom = _params(transform, shape)["crop_coords"]
    return CropResize((top, left, bottom - top, right - left), tuple(transform.size), transform.interpolation)


def _own_crop(transform: era2019.RandomResizedCrop, shape: tuple[int, ...]) -> CropResize:
    return CropResize(transform.draw_box(*shape[:2]), tuple(transform.size), transform.interpolation)


def _stretch(transform: A.GridDistortion, shape: tuple[int, ...]) -> Stretch:
    params = _params(transform, shape)  # the library's maps are the same in every row, or column
    columns, rows = params["map_x"][0], params["map_y"][:, 0]
    return Stretch(columns, rows, transform.interpolation, transform.border_mode, transform.fill)


def _holes(transform: A.CoarseDropout, shape: tuple[int, ...]) -> Holes:
    return Holes(np.asarray(_params(transform, shape)["holes"]), float(transform.fill))


def _noise(transform: A.GaussNoise, shape: tuple[int, ...]) -> Noise:
    std, mean = transform.py_random.uniform(*transform.std_range), transform.py_random.uniform(*transform.mean_range)
    return Noise(mean, std, int(transform.random_generator.integers(2**31 - 1)))


def _normalize(transform: A.Normalize, shape: tuple[int, ...]) -> Normalize:
    mean, std = (np.ravel(values).astype(float) for values in (transform.mean, transform.std))
    return Normalize(
        tuple((mean * transform.max_pixel_value).tolist()), tuple((std * transform.max_pixel_value).tolist())
    )


DRAWS: dict[type, DrawRow] = {
    DicomWindowShift: DrawRow(_window, lambda transform: transform.min_max_normalize is not False),
    A.HorizontalFlip: DrawRow(lambda *_: Flip(horizontal=True)),
    A.VerticalFlip: DrawRow(lambda *_: Flip(horizontal=False)),
    era2019.ShiftScaleRotate: DrawRow(_warp),
    A.Rotate: DrawRow(_warp, lambda transform: not transform.crop_border),
    A.Affine: DrawRow(_warp, lambda transform: not transform.fit_output),
    A.RandomResizedCrop: DrawRow(_library_crop, lambda transform: transform.area_for_downscale is None),
    era2019.RandomResizedCrop: DrawRow(_own_crop),
    A.GridDistortion: DrawRow(_stretch),
    A.CoarseDropout: DrawRow(_holes, lambda transform: isinstance(transform.fill, (int, float))),
    A.GaussNoise: DrawRow(_noise, lambda transform: transform.per_channel),
    A.Normalize: DrawRow(
        _normalize, lambda transform: transform.normalization == "standard" and transform.max_pixel_value is not None
    ),
}
