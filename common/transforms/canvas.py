"""Carries out a picture's operations, one after the other or with all that move pixels joined to one warp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np

from common.augmentations import era2019
from common.datasets.noise import noise_field
from common.dicom.pictures import window as show_window
from common.errors import UsageError, UserError
from common.transforms.geometry import Affine, Grid, Link, Size, crop_resize, flip, forward, join, source_maps
from common.transforms.operations import (
    CropResize,
    Fill,
    Flip,
    Holes,
    Noise,
    Normalize,
    Operation,
    Stretch,
    Warp,
    Window,
)
from common.transforms.scratch import scratch

BLOCK_VALUES = 2**14  # float32: what is multiplied is still in the cache when it is added to


@dataclass(frozen=True)
class Sampling:
    """Show a chain's source places in a picture of ``size``; beyond the source's edge ``border_mode`` and ``fill``."""

    links: tuple[Link, ...]
    size: Size
    interpolation: int
    border_mode: int
    fill: Fill


@dataclass(frozen=True)
class Flips:
    """Exchange left and right, top and bottom, or both."""

    horizontal: bool
    vertical: bool


Stroke = Window | Flips | CropResize | Sampling | Holes | Noise | Normalize
Move = CropResize | Sampling


class Brush(Protocol):
    """Does to a picture what a canvas has made of its operations."""

    def paint(self, stroke: Stroke, shape: tuple[int, ...], place: Any) -> None:
        """Do one stroke to the picture of ``shape``.

        ``place``: the transform that was drawn last for it; for flips the one that needs them done, None at the end.
        """

    def call(self, transform: Any, *, force: bool) -> tuple[int, ...]:
        """Let a transform work by itself and return the picture's shape; ``force``: whatever its probability."""


class Canvas:
    """Takes operations and has them painted; a flip waits for the next step that moves pixels.

    With ``fuse`` all that moves pixels waits, until a step that changes values needs the picture: neighbours of linear
    interpolation and the same border are joined to one warp of the first one's source. What lies beyond the source's
    edge is then decided once, by the border mode, and what an earlier crop left out is still there.
    """

    def __init__(self, brush: Brush, shape: tuple[int, ...], *, fuse: bool = False) -> None:
        """``shape`` (H, W) or (H, W, C) of the picture before the first operation."""
        self._brush = brush
        self._fuse = fuse
        self.shape = shape
        self._painted_shape = shape
        self._waiting: Move | None = None
        self._place: Any = None  # of what waits
        self._flips = {True: False, False: False}  # horizontal, vertical: to be done behind what waits

    def add(self, operation: Operation, transform: Any) -> None:
        """Take an operation; it is painted now or when another one needs the picture."""
        if isinstance(operation, Flip):
            self._flips[operation.horizontal] ^= True
        elif isinstance(operation, (CropResize, Warp, Stretch)):
            self._move(operation, transform)
        else:
            self._paint_waiting()
            if isinstance(operation, Noise):
                self._paint_flips(transform)
            if isinstance(operation, Holes):
                operation = Holes(self._mirrored(operation.boxes), operation.fill)
            self._brush.paint(operation, self.shape, transform)
            if isinstance(operation, Window):
                slices = 1 if len(self.shape) == 2 else self.shape[2]
                self.shape = (*self.shape[:2], slices * len(operation.windows))
            self._painted_shape = self.shape

    def call(self, transform: Any, *, force: bool) -> None:
        """Let a transform work by itself; ``force``: whatever its probability."""
        self.finish()
        self.shape = self._painted_shape = self._brush.call(transform, force=force)

    def finish(self) -> None:
        """Paint all that waits."""
        self._paint_waiting()
        self._paint_flips()

    def _move(self, operation: CropResize | Warp | Stretch, transform: Any) -> None:
        if self._waiting is not None and _join(self._waiting, operation):
            before = (*_links(self._waiting), flip(*self._take_flips(), self.shape[:2]))
            border = operation if isinstance(self._waiting, CropResize) else self._waiting
            move: Move = self._sampling(operation, before, border)
        else:
            self._paint_waiting()
            if isinstance(operation, CropResize):  # the flip is exchanged with it
                top, left, rows, columns = operation.box
                left, top, *_ = self._mirrored(np.array([[left, top, left + columns, top + rows]]))[0].tolist()
                move = CropResize((top, left, rows, columns), operation.size, operation.interpolation)
            else:
                move = self._sampling(operation, (flip(*self._take_flips(), self.shape[:2]),), operation)
        self.shape = (*(self.shape[:2] if isinstance(operation, (Warp, Stretch)) else operation.size), *self.shape[2:])
        self._waiting, self._place = move, transform
        if not self._fuse:
            self._paint_waiting()

    def _sampling(
        self, operation: CropResize | Warp | Stretch, before: tuple[Link, ...], border: Move | Warp | Stretch
    ) -> Sampling:
        size = operation.size if isinstance(operation, CropResize) else self.shape[:2]
        mode, fill = (
            (border.border_mode, border.fill) if not isinstance(border, CropResize) else (cv2.BORDER_REPLICATE, 0)
        )
        return Sampling(join((*before, *_links(operation))), size, operation.interpolation, mode, fill)

    def _mirrored(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (left, top, right, bottom), int (N, 4), where they are before the flips that wait."""
        height, width = self.shape[:2]
        left, top, right, bottom = np.asarray(boxes).reshape(-1, 4).T
        if self._flips[True]:
            left, right = width - right, width - left
        if self._flips[False]:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], axis=1)

    def _take_flips(self) -> tuple[bool, bool]:
        flips = self._flips[True], self._flips[False]
        self._flips = {True: False, False: False}
        return flips

    def _paint_waiting(self) -> None:
        if self._waiting is not None:
            move = self._waiting
            if isinstance(move, Sampling) and any(self._flips.values()):
                flips = flip(*self._take_flips(), self.shape[:2])
                move = replace(move, links=join((*move.links, flips)))
            self._brush.paint(move, self._painted_shape, self._place)
            self._waiting, self._painted_shape = None, self.shape

    def _paint_flips(self, place: Any = None) -> None:
        if any(self._flips.values()):
            self._brush.paint(Flips(*self._take_flips()), self.shape, place)


def _links(operation: Move | Warp | Stretch) -> tuple[Link, ...]:
    if isinstance(operation, Sampling):
        return operation.links
    if isinstance(operation, CropResize):
        return (crop_resize(operation.box, operation.size),)
    if isinstance(operation, Stretch):
        return (Grid(operation.columns, operation.rows),)
    return (forward(operation.matrix),)


def _join(first: Move, second: CropResize | Warp | Stretch) -> bool:
    """Say whether one warp can do both: linear, and with one idea of what is beyond the border."""
    if {first.interpolation, second.interpolation} != {cv2.INTER_LINEAR}:
        return False
    borders = [(one.border_mode, one.fill) for one in (first, second) if not isinstance(one, CropResize)]
    return len(borders) < 2 or borders[0] == borders[1]


class PictureBrush:
    """Paints on a picture at once, by OpenCV.

    Pictures of three channels are warped with a fourth one beside them, which is quicker; until it is narrow again such
    a picture lies in scratch memory. The caller's picture is never changed.
    """

    def __init__(self, picture: np.ndarray) -> None:
        """``picture`` (H, W) or (H, W, C)."""
        self._picture = picture
        self._owned = False
        self._wide = False  # a fourth channel stands beside the three
        self._turn = False

    @property
    def picture(self) -> np.ndarray:
        """The picture as painted so far."""
        self._narrow()
        return self._picture

    def paint(self, stroke: Stroke, shape: tuple[int, ...], place: Any = None) -> None:
        """Do one stroke to the picture, which has ``shape``."""
        _PAINT[type(stroke)](self, stroke)

    def call(self, transform: Any, *, force: bool) -> tuple[int, ...]:
        """Let a transform work by itself; ``force``: whatever its probability. UsageError where it fails."""
        picture = np.ascontiguousarray(self.picture)
        try:
            self._take(transform(image=picture if self._owned else picture.copy(), force_apply=force)["image"])
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"{type(transform).__name__} fails on an image of shape {picture.shape} and type {picture.dtype} "
                f"({type(error).__name__}: {reason})"
            ) from error
        return self._picture.shape

    def _take(self, picture: np.ndarray) -> None:
        self._picture = picture
        self._owned = True

    def _widen(self) -> None:
        if self._picture.dtype == np.float32 and self._picture.shape[2:] == (3,):
            self._take(cv2.cvtColor(self._picture, cv2.COLOR_RGB2RGBA, dst=self._canvas(self._picture.shape[:2])))
            self._wide = True

    def _narrow(self) -> None:
        if self._wide:
            self._take(cv2.cvtColor(self._picture, cv2.COLOR_RGBA2RGB))
            self._wide = False

    def _canvas(self, size: Size) -> np.ndarray:
        """Return memory for a wide picture, in turns one of two, so that one can be painted from the other."""
        self._turn = not self._turn
        return scratch(f"wide {self._turn:d}", (*size, 4))

    def _float(self) -> np.ndarray:
        """Return the picture as float32 that may be changed in place."""
        self._narrow()
        if not self._owned or self._picture.dtype != np.float32 or not self._picture.flags.c_contiguous:
            self._take(np.array(self._picture, dtype=np.float32, order="C"))
        return self._picture

    def _window(self, window: Window) -> None:
        image = self._picture
        planes = [image] if image.ndim == 2 else [image[..., k] for k in range(image.shape[2])]
        channels = [show_window(np.ascontiguousarray(plane), *one) for plane in planes for one in window.windows]
        self._take(cv2.merge(channels).reshape(*image.shape[:2], len(channels)))

    def _flips(self, flips: Flips) -> None:
        code = -1 if flips.horizontal and flips.vertical else 1 if flips.horizontal else 0
        self._take(cv2.flip(self._picture, code).reshape(self._picture.shape))

    def _crop_resize(self, crop: CropResize) -> None:
        self._narrow()
        top, left, rows, columns = crop.box
        part = self._picture[top : top + rows, left : left + columns]
        resized = cv2.resize(part, crop.size[::-1], interpolation=crop.interpolation)
        self._take(resized.reshape(*crop.size, *self._picture.shape[2:]))

    def _sample(self, sampling: Sampling) -> None:
        self._widen()
        fill = (*sampling.fill, 0.0) if self._wide and isinstance(sampling.fill, tuple) else sampling.fill
        target = self._canvas(sampling.size) if self._wide else None
        self._take(era2019.by_channels(self._picture, fill, _warp(sampling, target), sampling.size))

    def _holes(self, holes: Holes) -> None:
        if not self._owned:
            self._take(self._picture.copy())
        for left, top, right, bottom in holes.boxes:
            self._picture[top:bottom, left:right] = holes.fill

    def _noise(self, noise: Noise) -> None:
        values = self._float().reshape(-1)
        field, sign = noise_field(noise.seed, len(values))
        for start in range(0, len(values), BLOCK_VALUES):
            block = values[start : start + BLOCK_VALUES]
            added = np.multiply(field[start : start + BLOCK_VALUES], np.float32(sign * noise.std))
            np.add(block, added, out=block)
            if noise.mean:
                np.add(block, np.float32(noise.mean), out=block)
            np.clip(block, 0, 1, out=block)

    def _normalize(self, normalize: Normalize) -> None:
        channels = 1 if self._picture.ndim == 2 else 3 if self._wide else self._picture.shape[2]
        scale, offset = normalize.factors(channels)
        if channels == 3 and self._picture.dtype == np.float32:
            self._take(cv2.transform(self._narrow_view(), np.column_stack([np.diag(scale), offset]).astype(np.float32)))
            self._wide = False
            return
        picture = self._float()
        rows = picture.reshape(picture.shape[0], -1)
        factors, terms = (np.tile(one.astype(np.float32), picture.shape[1]) for one in (scale, offset))
        step = max(1, BLOCK_VALUES // rows.shape[1])
        for top in range(0, len(rows), step):
            block = rows[top : top + step]
            np.multiply(block, factors, out=block)
            np.add(block, terms, out=block)

    def _narrow_view(self) -> np.ndarray:
        """Return the picture without its fourth channel, in scratch memory: for what is painted from it at once."""
        if not self._wide:
            return np.ascontiguousarray(self._picture)
        narrow = scratch("narrow", (*self._picture.shape[:2], 3))
        return cv2.cvtColor(self._picture, cv2.COLOR_RGBA2RGB, dst=narrow)


def _warp(sampling: Sampling, target: np.ndarray | None) -> Callable[[np.ndarray, tuple[float, ...]], np.ndarray]:
    """Return the warp of a part of the channels, with its fill; ``target``: where it goes, None: to new memory."""
    flags, border = sampling.interpolation, sampling.border_mode
    if len(sampling.links) == 1 and isinstance(sampling.links[0], Affine):
        matrix, inverse, size = sampling.links[0].matrix, flags | cv2.WARP_INVERSE_MAP, sampling.size[::-1]
        return lambda part, fill: cv2.warpAffine(
            part, matrix, size, dst=target, flags=inverse, borderMode=border, borderValue=fill
        )
    map_x, map_y = source_maps(sampling.links, sampling.size)
    return lambda part, fill: cv2.remap(part, map_x, map_y, flags, dst=target, borderMode=border, borderValue=fill)


_PAINT: dict[type, Callable[[PictureBrush, Any], None]] = {
    Window: PictureBrush._window,
    Flips: PictureBrush._flips,
    CropResize: PictureBrush._crop_resize,
    Sampling: PictureBrush._sample,
    Holes: PictureBrush._holes,
    Noise: PictureBrush._noise,
    Normalize: PictureBrush._normalize,
}
