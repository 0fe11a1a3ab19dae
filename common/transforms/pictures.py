"""Execute steps on one picture by OpenCV; :mod:`common.datasets.finish` executes the same steps on batches."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from common.augmentations.warp import Fill, Size, crop_resize, remap, warp_affine
from common.datasets.noise import noise_field
from common.datasets.steps import Step
from common.dicom.pictures import window as show_window
from common.errors import UsageError, UserError

BLOCK_VALUES = 2**14  # float32: a product is still in the cache when it is added

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return uninitialized float32 memory of ``shape``; the next call with ``name`` reuses it.

    New memory pages cost more than the arithmetic on them.
    """
    count = math.prod(shape)
    buffers = _kept.__dict__
    if name not in buffers or len(buffers[name]) < count:
        buffers[name] = np.empty(count, dtype=np.float32)
    return buffers[name][:count].reshape(shape)


Numbers = Mapping[str, np.ndarray]


class Picture:
    """A picture that steps change, and its mask with it; the caller's own arrays never change.

    Pictures of three channels are warped with a fourth channel, which is quicker. Until they are narrow again, they lie
    in scratch memory.
    """

    def __init__(self, values: np.ndarray, mask: np.ndarray | None = None) -> None:
        """``values`` (H, W) or (H, W, C); ``mask`` uint8 (H, W)."""
        self._values = values
        self.mask = mask
        self._owned = False  # False: the array is the caller's
        self._wide = False  # True: with a fourth channel
        self._turn = False

    def do(self, step: Step) -> tuple[int, ...]:
        """Do a step; return the new shape."""
        FORMS[step.kind](self, step.numbers, *step.constants)
        shape = (*self._values.shape[:2], 3) if self._wide else self._values.shape
        if self.mask is not None and step.kind != "call":
            self._move_mask(step, shape[:2])
        return shape

    def _move_mask(self, step: Step, size: Size) -> None:
        """Do a step to the mask as batches do it: masks are equal wherever they are moved."""
        import torch  # here: pictures without masks don't need it

        from common.datasets.finish import collect, execute_masks

        masks = torch.from_numpy(np.ascontiguousarray(self.mask))[None, None]
        self.mask = execute_masks(collect([[step]], size), masks)[0, 0].numpy()

    @property
    def values(self) -> np.ndarray:
        """The present picture, read-only: it may be the caller's array."""
        if self._wide:
            self.put(cv2.cvtColor(self._values, cv2.COLOR_RGBA2RGB))
        return self._values

    def own_values(self) -> np.ndarray:
        """Return the picture as float32 that may be changed in place."""
        values = self.values
        if not self._owned or values.dtype != np.float32 or not values.flags.c_contiguous:
            self.put(np.array(values, dtype=np.float32, order="C"))
        return self._values

    def put(self, values: np.ndarray, *, wide: bool = False) -> None:
        """Replace the picture by ``values``, which the caller gives away; ``wide``: they have a fourth channel."""
        self._values, self._owned, self._wide = values, True, wide

    def _wide_memory(self, size: Size) -> np.ndarray:
        """Return memory for a wide picture, alternating between two: a warp reads one and writes the other."""
        self._turn = not self._turn
        return scratch(f"wide {self._turn:d}", (*size, 4))

    def _call(self, numbers: Numbers, transform: Any, force: bool) -> None:
        """Call a transform directly; ``force``: whatever its probability. UsageError if it fails."""
        values = np.ascontiguousarray(self.values)
        given = {"image": values if self._owned else values.copy()}
        if self.mask is not None:
            given["mask"] = np.ascontiguousarray(self.mask)
        try:
            changed = transform(**given, force_apply=force)
            self.put(changed["image"])
            self.mask = changed.get("mask")
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"{type(transform).__name__} fails on an image of shape {values.shape} and type {values.dtype} "
                f"({type(error).__name__}: {reason})"
            ) from error

    def _window(self, numbers: Numbers) -> None:
        image = self.values
        planes = [image] if image.ndim == 2 else [image[..., k] for k in range(image.shape[2])]
        channels = [show_window(np.ascontiguousarray(plane), *one) for plane in planes for one in numbers["windows"]]
        self.put(cv2.merge(channels).reshape(*image.shape[:2], len(channels)))

    def _flip(self, numbers: Numbers, horizontal: bool, vertical: bool) -> None:
        code = -1 if horizontal and vertical else 1 if horizontal else 0
        self.put(cv2.flip(self._values, code).reshape(self._values.shape), wide=self._wide)

    def _crop(self, numbers: Numbers, size: Size, interpolation: int) -> None:
        left, top, right, bottom = numbers["frame"].tolist()
        box = (top, left, bottom + 1 - top, right + 1 - left)
        self.put(crop_resize(self.values, box, size, interpolation))

    def _sample(
        self, numbers: Numbers, links: tuple[str, ...], size: Size, interpolation: int, border_mode: int, fill: Fill
    ) -> None:
        if not self._wide and self._values.dtype == np.float32 and self._values.shape[2:] == (3,):
            memory = self._wide_memory(self._values.shape[:2])
            self.put(cv2.cvtColor(self._values, cv2.COLOR_RGB2RGBA, dst=memory), wide=True)
        target = self._wide_memory(size) if self._wide else None
        if self._wide and isinstance(fill, tuple):
            fill = (*fill, 0.0)
        if links == ("affine",):
            flags = interpolation | cv2.WARP_INVERSE_MAP
            moved = warp_affine(self._values, numbers["matrix 0"], flags, border_mode, fill, size, target)
        else:
            moved = remap(self._values, *source_maps(numbers, links, size), interpolation, border_mode, fill, target)
        self.put(moved, wide=self._wide)

    def _holes(self, numbers: Numbers, fill: float) -> None:
        if not self._owned:
            self.put(self._values.copy())
        for left, top, right, bottom in numbers["boxes"].tolist():
            self._values[top:bottom, left:right] = fill

    def _noise(self, numbers: Numbers) -> None:
        values = self.own_values().reshape(-1)
        std, mean = (np.float32(numbers[name]) for name in ("std", "mean"))
        field = noise_field(int(numbers["start"]), len(values))
        for start in range(0, len(values), BLOCK_VALUES):
            block = values[start : start + BLOCK_VALUES]
            np.add(block, np.multiply(field[start : start + BLOCK_VALUES], std), out=block)
            if mean:
                np.add(block, mean, out=block)
            np.clip(block, 0, 1, out=block)

    def _normalize(self, numbers: Numbers) -> None:
        scale, offset = numbers["scale"], numbers["offset"]
        if len(scale) == 3 and self._values.dtype == np.float32:
            matrix = np.column_stack([np.diag(scale), offset]).astype(np.float32)
            self.put(cv2.transform(self._narrow_view(), matrix))
            return
        picture = self.own_values()
        rows = picture.reshape(picture.shape[0], -1)
        factors, terms = (np.tile(one.astype(np.float32), picture.shape[1]) for one in (scale, offset))
        step = max(1, BLOCK_VALUES // rows.shape[1])
        for top in range(0, len(rows), step):
            block = rows[top : top + step]
            np.multiply(block, factors, out=block)
            np.add(block, terms, out=block)

    def _narrow_view(self) -> np.ndarray:
        """Return the picture without its fourth channel, in scratch memory: use it at once."""
        if not self._wide:
            return np.ascontiguousarray(self._values)
        narrow = scratch("narrow", (*self._values.shape[:2], 3))
        return cv2.cvtColor(self._values, cv2.COLOR_RGBA2RGB, dst=narrow)


FORMS: dict[str, Callable[..., None]] = {
    "call": Picture._call,
    "window": Picture._window,
    "flip": Picture._flip,
    "crop": Picture._crop,
    "sample": Picture._sample,
    "holes": Picture._holes,
    "noise": Picture._noise,
    "normalize": Picture._normalize,
}
"""What can be done to a picture: a function of the :class:`Picture`, the step's numbers and its constants."""


def source_maps(numbers: Numbers, links: tuple[str, ...], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the source for each pixel of a target of ``size``, float32 (H, W), as OpenCV's remap takes.

    ``links`` and ``numbers`` as in :func:`common.datasets.finish.sample`. The maps lie in scratch memory, which the
    next call reuses. As long as x depends only on the column, and y only on the row, no full map is computed.
    """
    x, y = np.arange(size[1], dtype=np.float64)[np.newaxis], np.arange(size[0], dtype=np.float64)[:, np.newaxis]
    for number, link in reversed(list(enumerate(links))):
        if link == "grid":
            x, y = _look_up(numbers[f"columns {number}"], x), _look_up(numbers[f"rows {number}"], y)
        else:
            rows = numbers[f"matrix {number}"]
            x, y = (_weighted(name, x, y, *row) for name, row in zip(("map x", "map y"), rows, strict=True))
    return _whole("map x", x, size), _whole("map y", y, size)


def _look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    table = table.astype(np.float64)
    start = np.clip(np.floor(places).astype(np.int64), 0, len(table) - 2)
    return table[start] + (places - start) * np.diff(table)[start]


def _weighted(name: str, x: np.ndarray, y: np.ndarray, of_x: float, of_y: float, constant: float) -> np.ndarray:
    if of_y == 0:
        return of_x * x + constant
    if of_x == 0:
        return of_y * y + constant
    x, y = (of_x * x + constant).astype(np.float32), (of_y * y).astype(np.float32)
    return np.add(x, y, out=scratch(name, np.broadcast_shapes(x.shape, y.shape)))


def _whole(name: str, values: np.ndarray, size: Size) -> np.ndarray:
    if values.shape == size and values.dtype == np.float32:
        return values
    whole = scratch(name, size)
    np.copyto(whole, values, casting="same_kind")
    return whole
