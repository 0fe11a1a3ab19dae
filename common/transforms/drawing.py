"""Draw each transform's random numbers for one picture; the result is a flip, a move or a change of values.

The numbers come from the transforms' own methods, in the library's order. So a stream of random numbers means the same
here and in ``albumentations.Compose``; only the noise's field differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import albumentations as A
import numpy as np
from albumentations.core.composition import BaseCompose

from common.albumentations import DicomWindowShift
from common.augmentations import era2019
from common.datasets.noise import table_place
from common.datasets.steps import Step
from common.errors import UsageError
from common.transforms.joining import Change, Drawn, Flip, Grid, Joiner, Move, Shape, crop, forward
from common.transforms.pictures import FORMS

FOLLOWED = (A.OneOf, A.Sequential, A.Compose)  # exactly these classes; other compositions work as one step
BOX_STEP = 8


class Chance:
    """Draws which transforms work, as the library does; a single one with p = 1 draws nothing, a composition does."""

    def works(self, transform: Any, *, chosen: bool) -> bool:
        """Say whether a transform works; ``chosen``: a OneOf has chosen it."""
        by_itself = isinstance(transform, BaseCompose) and type(transform) not in FOLLOWED
        if chosen or by_itself or (transform.p >= 1 and not isinstance(transform, BaseCompose)):
            return True
        return transform.py_random.random() < transform.p

    def choice(self, one_of: A.OneOf) -> int:
        """Return the number of the child that a OneOf chooses."""
        return int(one_of.random_generator.choice(len(one_of.transforms), p=one_of.transforms_ps))


@dataclass(frozen=True)
class Trial(Chance):
    """Every transform with p > 0 works, and OneOf chooses child ``number``; ``sure``: only those with p = 1 work."""

    number: int
    sure: bool = False

    def works(self, transform: Any, *, chosen: bool) -> bool:
        """Say so by the probability alone."""
        return transform.p > 0 and (chosen or not self.sure or transform.p >= 1)

    def choice(self, one_of: A.OneOf) -> int:
        """Return ``number`` modulo the count of children."""
        return self.number % len(one_of.transforms)


def draw_steps(
    compose: A.Compose, shape: Shape, do: Callable[[Step], Shape | None], chance: Chance, *, fuse: bool = False
) -> Shape:
    """Draw for a picture of ``shape``, pass each step to ``do`` as soon as it is known; return the final shape.

    ``do`` may return the picture's new shape. It must do so if a transform is called directly.
    """
    joiner = Joiner(shape, do, fuse=fuse)
    draw(compose, joiner, chance, ())
    joiner.finish((len(compose.transforms),))
    return joiner.shape


def draw(transform: Any, joiner: Joiner, chance: Chance, place: tuple[int, ...], *, chosen: bool = False) -> None:
    """Draw whether and how ``transform`` works, and add it to ``joiner``.

    The children of OneOf, Sequential and Compose are drawn one by one. Any other composition, and a transform without a
    row in :data:`DRAWS`, becomes a step that calls it directly. ``place``: the transform's path, its parents' numbers
    first, then its own.
    """
    if not chance.works(transform, chosen=chosen):
        return
    if isinstance(transform, A.OneOf):
        number = chance.choice(transform)
        draw(transform.transforms[number], joiner, chance, (*place, number), chosen=True)
    elif type(transform) in FOLLOWED:
        for number, child in enumerate(transform.transforms):
            draw(child, joiner, chance, (*place, number))
    elif row := row_of(transform):
        joiner.add(row.draw(transform, joiner.shape), place)
    else:
        force = chosen or isinstance(chance, Trial) or not isinstance(transform, BaseCompose)
        joiner.add(Change("call", (transform, force)), place)


def alternatives(transform: Any) -> int:
    """Return the most children that a OneOf in ``transform`` chooses from, at least 1."""
    if type(transform) not in FOLLOWED:
        return 1
    own = len(transform.transforms) if isinstance(transform, A.OneOf) else 1
    return max([own, *map(alternatives, transform.transforms)])


@dataclass(frozen=True)
class Row:
    """How a class draws: its step's ``kind``, the draw for a picture of a shape, and for which arguments."""

    kind: str
    draw: Callable[[Any, Shape], Drawn]
    fits: Callable[[Any], bool] = lambda _: True


def row_of(transform: Any) -> Row | None:
    """Return a transform's row; None if it has none, or none for its arguments."""
    row = DRAWS.get(type(transform))
    return row if row is not None and row.fits(transform) else None


def add_transform(
    transform: type,
    row: Row,
    picture: Callable[..., None] | None = None,
    batch: Callable[..., Any] | None = None,
) -> None:
    """Register your own transform class, so that it draws a step for both executors.

    ``picture`` and ``batch`` execute a new kind of step: functions as in :data:`common.transforms.pictures.FORMS` and
    :data:`common.datasets.finish.KERNELS`. Without ``batch``, a file with the transform is computed on the CPU. Raises
    ValueError if the kind is taken.
    """
    # Here: it imports torch, which `python -m common.transforms` doesn't need.
    from common.datasets.finish import KERNELS, MASK_KERNELS, unmoved

    forms = [(table, form) for table, form in ((FORMS, picture), (KERNELS, batch)) if form is not None]
    if any(row.kind in table for table, _ in forms):
        raise ValueError(f"a step of the kind {row.kind} exists; give yours another name")
    for table, form in forms:
        table[row.kind] = form
    if forms and issubclass(transform, A.ImageOnlyTransform):
        MASK_KERNELS[row.kind] = unmoved
    DRAWS[transform] = row


def _params(transform: Any, shape: Shape) -> dict[str, Any]:
    params = {**transform.get_params(), "shape": shape}
    return {**params, **transform.get_params_dependent_on_data(params, {})}


def _window(transform: DicomWindowShift, shape: Shape) -> Change:
    windows = np.array(transform.get_params()["windows"], dtype=np.float64)
    slices = 1 if len(shape) == 2 else shape[2]
    return Change("window", (), {"windows": windows}, (), (*shape[:2], slices * len(windows)))


def _warp(transform: Any, shape: Shape) -> Move:
    link = forward(np.asarray(_params(transform, shape)["matrix"], dtype=np.float64)[:2])
    return Move((link,), shape[:2], transform.interpolation, (transform.border_mode, transform.fill))


def _grid(transform: A.GridDistortion, shape: Shape) -> Move:
    params = _params(transform, shape)  # the library's maps repeat in every row, or column
    link = Grid(params["map_x"][0], params["map_y"][:, 0])
    return Move((link,), shape[:2], transform.interpolation, (transform.border_mode, transform.fill))


def _library_crop(transform: A.RandomResizedCrop, shape: Shape) -> Move:
    left, top, right, bottom = _params(transform, shape)["crop_coords"]
    return crop((top, left, bottom - top, right - left), tuple(transform.size), transform.interpolation)


def _own_crop(transform: era2019.RandomResizedCrop, shape: Shape) -> Move:
    return crop(_params(transform, shape)["box"], tuple(transform.size), transform.interpolation)


def _holes(transform: A.CoarseDropout, shape: Shape) -> Change:
    holes = np.asarray(_params(transform, shape)["holes"]).reshape(-1, 4)
    boxes = np.zeros((-(-len(holes) // BOX_STEP) * BOX_STEP, 4), dtype=np.int64)
    boxes[: len(holes)] = holes  # the rest stay empty, so that pictures with fewer holes fit in a batch
    return Change("holes", (float(transform.fill),), {"boxes": boxes}, ("boxes",))


def _noise(transform: A.GaussNoise, shape: Shape) -> Change:
    std, mean = transform.py_random.uniform(*transform.std_range), transform.py_random.uniform(*transform.mean_range)
    start, sign = table_place(int(transform.random_generator.integers(2**31 - 1)))
    numbers = {"start": start, "std": sign * std, "mean": mean, "width": shape[1]}
    return Change("noise", (), {name: np.array(value) for name, value in numbers.items()})


def _normalize(transform: A.Normalize, shape: Shape) -> Change:
    channels = 1 if len(shape) == 2 else shape[2]
    mean, std = (
        np.ravel(values).astype(float) * transform.max_pixel_value for values in (transform.mean, transform.std)
    )
    for values in (mean, std):
        if len(values) not in (1, channels):
            raise UsageError(f"Normalize has {len(values)} values, and the pictures that reach it {channels} channels")
    scale = 1 / np.broadcast_to(std, channels)
    return Change("normalize", (), {"scale": scale, "offset": -np.broadcast_to(mean, channels) * scale}, ())


DRAWS: dict[type, Row] = {
    DicomWindowShift: Row("window", _window, lambda transform: transform.min_max_normalize is not False),
    A.HorizontalFlip: Row("flip", lambda *_: Flip(horizontal=True)),
    A.VerticalFlip: Row("flip", lambda *_: Flip(horizontal=False)),
    era2019.ShiftScaleRotate: Row("sample", _warp),
    A.Rotate: Row("sample", _warp, lambda transform: not transform.crop_border),
    A.Affine: Row("sample", _warp, lambda transform: not transform.fit_output),
    A.RandomResizedCrop: Row("crop", _library_crop, lambda transform: transform.area_for_downscale is None),
    era2019.RandomResizedCrop: Row("crop", _own_crop),
    A.GridDistortion: Row("sample", _grid),
    A.CoarseDropout: Row("holes", _holes, lambda transform: isinstance(transform.fill, (int, float))),
    A.GaussNoise: Row("noise", _noise, lambda transform: transform.per_channel),
    A.Normalize: Row(
        "normalize",
        _normalize,
        lambda transform: transform.normalization == "standard" and transform.max_pixel_value is not None,
    ),
}
"""What the known classes draw; every other one is called as it is."""
