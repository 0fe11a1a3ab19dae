"""What a transform does to one picture, as plain numbers: transforms draw operations, a canvas carries them out.

:func:`draw` takes the numbers from the transform's own methods, in the library's order, so that a stream of random
numbers means the same here and in ``albumentations.Compose``; only the noise's field is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import albumentations as A
import cv2
import numpy as np
from albumentations.core.composition import BaseCompose

from common.albumentations import DicomWindowShift
from common.augmentations import era2019
from common.dicom.pictures import window as show_window

BLOCK_ROWS = 16  # of 512 x 3 float32: what is multiplied is still in the cache when it is added to

Size = tuple[int, int]
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
class Remap:
    """Show at (y, x) the source's pixel (map_y, map_x), float32 (H, W)."""

    map_x: np.ndarray
    map_y: np.ndarray
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
    """Add normal noise of a mean and standard deviation, from a field seeded by ``seed``, and clip to 0..1."""

    mean: float
    std: float
    seed: int


@dataclass(frozen=True)
class Normalize:
    """Subtract ``mean`` and divide by ``std``: a value for each channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


Operation = Window | Flip | CropResize | Warp | Remap | Holes | Noise | Normalize


class Canvas(Protocol):
    """Carries out operations on a picture."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The picture's shape after all operations so far."""

    def add(self, operation: Operation) -> None:
        """Carry out an operation, now or when it is needed."""

    def call(self, transform: Any, *, force: bool) -> None:
        """Let a transform that has no operation work on the picture by itself; ``force``: whatever its probability."""


def run(transform: Any, canvas: Canvas, *, force: bool = False) -> None:
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
        canvas.add(DRAWS[type(transform)].draw(transform, canvas.shape))
    else:
        canvas.call(transform, force=True)


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


def _grid(transform: A.GridDistortion, shape: tuple[int, ...]) -> Remap:
    params = _params(transform, shape)
    return Remap(params["map_x"], params["map_y"], transform.interpolation, transform.border_mode, transform.fill)


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
    A.GridDistortion: DrawRow(_grid),
    A.CoarseDropout: DrawRow(_holes, lambda transform: isinstance(transform.fill, (int, float))),
    A.GaussNoise: DrawRow(_noise, lambda transform: transform.per_channel),
    A.Normalize: DrawRow(
        _normalize, lambda transform: transform.normalization == "standard" and transform.max_pixel_value is not None
    ),
}


class SequentialCanvas:
    """Operation by operation, as OpenCV would one after the other; a flip waits for the next step that moves pixels.

    Pictures of three channels are warped with a fourth one beside them, which OpenCV 5 does in two thirds of the time.
    The caller's picture is never changed.
    """

    def __init__(self, picture: np.ndarray) -> None:
        """``picture`` (H, W) or (H, W, C)."""
        self._picture = picture
        self._owned = False
        self._wide = False  # a fourth channel stands beside the three
        self._flipped = {True: False, False: False}  # horizontal, vertical: what still has to be done

    @property
    def shape(self) -> tuple[int, ...]:
        """The picture's shape."""
        return (*self._picture.shape[:2], 3) if self._wide else self._picture.shape

    def add(self, operation: Operation) -> None:
        """Carry out an operation; a flip is only noted."""
        _STEPS[type(operation)](self, operation)

    def call(self, transform: Any, *, force: bool) -> None:
        """Let a transform work by itself; ``force``: whatever its probability."""
        picture = np.ascontiguousarray(self.finish())
        self._take(transform(image=picture if self._owned else picture.copy(), force_apply=force)["image"])

    def finish(self) -> np.ndarray:
        """Return the picture after all operations."""
        self._narrow()
        if any(self._flipped.values()):
            code = -1 if all(self._flipped.values()) else 1 if self._flipped[True] else 0
            self._take(cv2.flip(self._picture, code).reshape(self.shape))
            self._flipped = {True: False, False: False}
        return self._picture

    def _take(self, picture: np.ndarray) -> None:
        self._picture = picture
        self._owned = True

    def _widen(self) -> None:
        if self._picture.dtype == np.float32 and self._picture.shape[2:] == (3,):
            self._take(cv2.cvtColor(self._picture, cv2.COLOR_RGB2RGBA))
            self._wide = True

    def _narrow(self) -> None:
        if self._wide:
            self._take(cv2.cvtColor(self._picture, cv2.COLOR_RGBA2RGB))
            self._wide = False

    def _float(self) -> np.ndarray:
        """Return the picture as float32 that may be changed in place."""
        self._narrow()
        if not self._owned or self._picture.dtype != np.float32 or not self._picture.flags.c_contiguous:
            self._take(np.array(self._picture, dtype=np.float32, order="C"))
        return self._picture

    def _flip(self, flip: Flip) -> None:
        self._flipped[flip.horizontal] = not self._flipped[flip.horizontal]

    def _window(self, window: Window) -> None:
        image = self._picture
        planes = [image] if image.ndim == 2 else [image[..., k] for k in range(image.shape[2])]
        channels = [show_window(np.ascontiguousarray(plane), *one) for plane in planes for one in window.windows]
        self._take(cv2.merge(channels).reshape(*image.shape[:2], len(channels)))

    def _crop_resize(self, crop: CropResize) -> None:
        self._narrow()
        top, left, rows, columns = crop.box
        if self._flipped[True]:
            left = self.shape[1] - left - columns
        if self._flipped[False]:
            top = self.shape[0] - top - rows
        part = self._picture[top : top + rows, left : left + columns]
        resized = cv2.resize(part, crop.size[::-1], interpolation=crop.interpolation)
        self._take(resized.reshape(*crop.size, *self.shape[2:]))

    def _warp(self, warp: Warp) -> None:
        matrix = warp.matrix @ self._pending_matrix()
        self._widen()
        self._take(
            era2019.warp_affine(self._picture, matrix, warp.interpolation, warp.border_mode, self._border(warp.fill))
        )

    def _border(self, fill: Fill) -> Fill:
        return (*fill, 0.0) if self._wide and isinstance(fill, tuple) else fill

    def _pending_matrix(self) -> np.ndarray:
        """Return the 3 x 3 matrix of the flips that wait, and take them as done."""
        matrix = np.eye(3)
        for axis, horizontal in enumerate((True, False)):
            if self._flipped[horizontal]:
                matrix[axis, axis], matrix[axis, 2] = -1, self.shape[1 - axis] - 1
        self._flipped = {True: False, False: False}
        return matrix

    def _remap(self, remap: Remap) -> None:
        map_x, map_y = remap.map_x, remap.map_y
        if self._flipped[True]:
            map_x = self.shape[1] - 1 - map_x
        if self._flipped[False]:
            map_y = self.shape[0] - 1 - map_y
        self._flipped = {True: False, False: False}
        self._widen()
        self._take(
            era2019.by_channels(
                self._picture,
                self._border(remap.fill),
                lambda part, fill: cv2.remap(
                    part, map_x, map_y, remap.interpolation, borderMode=remap.border_mode, borderValue=fill
                ),
            )
        )

    def _holes(self, holes: Holes) -> None:
        if not self._owned:
            self._take(self._picture.copy())
        height, width = self.shape[:2]
        for left, top, right, bottom in holes.boxes:
            if self._flipped[True]:
                left, right = width - right, width - left
            if self._flipped[False]:
                top, bottom = height - bottom, height - top
            self._picture[top:bottom, left:right] = holes.fill

    def _noise(self, noise: Noise) -> None:
        self.finish()
        picture = self._float()
        cv2.setRNGSeed(noise.seed)
        values = picture.reshape(picture.shape[0], -1)  # of several channels randn would fill the first alone
        field = cv2.randn(np.empty_like(values), noise.mean, noise.std)
        np.clip(np.add(values, field, out=values), 0, 1, out=values)

    def _normalize(self, normalize: Normalize) -> None:
        rows = self._float().reshape(self.shape[0], -1)
        channels = 1 if len(self.shape) == 2 else self.shape[2]
        scale = 1 / np.broadcast_to(np.asarray(normalize.std), channels)
        offset = -np.broadcast_to(np.asarray(normalize.mean), channels) * scale
        factors, terms = (np.tile(one.astype(np.float32), self.shape[1]) for one in (scale, offset))
        for top in range(0, len(rows), BLOCK_ROWS):
            block = rows[top : top + BLOCK_ROWS]
            np.multiply(block, factors, out=block)
            np.add(block, terms, out=block)


_STEPS: dict[type, Callable[[SequentialCanvas, Any], None]] = {
    Window: SequentialCanvas._window,
    Flip: SequentialCanvas._flip,
    CropResize: SequentialCanvas._crop_resize,
    Warp: SequentialCanvas._warp,
    Remap: SequentialCanvas._remap,
    Holes: SequentialCanvas._holes,
    Noise: SequentialCanvas._noise,
    Normalize: SequentialCanvas._normalize,
}
