"""Which pixel of the source each pixel of the target shows: links of a chain, joined without touching a picture.

Coordinates are pixels (x, y), (0, 0) being the middle of the first one. A link takes a place in its target to the place
in its source; a chain lists its links from the picture's side on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.transforms.scratch import scratch

Size = tuple[int, int]


@dataclass(frozen=True)
class Affine:
    """The place ``matrix`` (2 x 3) · (x, y, 1)."""

    matrix: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The place (``columns[x]``, ``rows[y]``), linear between the pixels and going on beyond them; float (W,), (H,)."""

    columns: np.ndarray
    rows: np.ndarray


Link = Affine | Grid


def forward(matrix: np.ndarray) -> Affine:
    """Return the link of a 2 x 3 matrix that takes places of the source to the target; it must not be singular."""
    inverse = np.linalg.inv(matrix[:, :2])
    return Affine(np.column_stack([inverse, -inverse @ matrix[:, 2]]))


def flip(horizontal: bool, vertical: bool, size: Size) -> Affine:
    """Return the link that exchanges left and right, top and bottom, or both, of ``size`` (height, width)."""
    height, width = size
    x = (-1.0, 0.0, width - 1.0) if horizontal else (1.0, 0.0, 0.0)
    y = (0.0, -1.0, height - 1.0) if vertical else (0.0, 1.0, 0.0)
    return Affine(np.array([x, y]))


def crop_resize(box: tuple[int, int, int, int], size: Size) -> Affine:
    """Return the link of a part (top, left, height, width) resized to ``size``, the pixels' edges fitting."""
    top, left, rows, columns = box
    y, x = rows / size[0], columns / size[1]
    return Affine(np.array([[x, 0, left + x / 2 - 0.5], [0, y, top + y / 2 - 0.5]]))


def join(links: Sequence[Link]) -> tuple[Link, ...]:
    """Return the same chain with neighbouring matrices multiplied."""
    joined: list[Link] = []
    for link in links:
        if joined and isinstance(link, Affine) and isinstance(joined[-1], Affine):
            joined[-1] = Affine(joined[-1].matrix @ np.vstack([link.matrix, (0, 0, 1)]))
        else:
            joined.append(link)
    return tuple(joined)


def source_maps(links: Sequence[Link], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the source for each pixel of a target of ``size``, float32 (H, W), as OpenCV's remap takes.

    They lie in scratch memory, which the next call uses again. As long as x depends on the column alone, and y on the
    row, no whole map is computed.
    """
    x, y = np.arange(size[1], dtype=np.float64)[np.newaxis], np.arange(size[0], dtype=np.float64)[:, np.newaxis]
    for link in reversed(links):
        if isinstance(link, Grid):
            x, y = _look_up(link.columns, x), _look_up(link.rows, y)
        else:
            x, y = (_weighted(name, x, y, *row) for name, row in zip(("map x", "map y"), link.matrix, strict=True))
    return _whole("map x", x, size), _whole("map y", y, size)


def _look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    if len(table) == 1:
        return table[0] + places
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
