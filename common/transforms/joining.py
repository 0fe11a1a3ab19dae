"""Turn the transforms' draws into steps: flips wait for the next warp, and warps may be joined into one.

Coordinates are pixels (x, y); (0, 0) is the middle of the first pixel. A link maps a place in its target to the place
in its source. A chain lists its links beginning at the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from common.augmentations.warp import Box, Fill, Size
from common.datasets.steps import Step

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A link to (``columns[x]``, ``rows[y]``), float (W,), (H,); linear between the pixels, extrapolated beyond."""

    columns: np.ndarray
    rows: np.ndarray


Link = np.ndarray | Grid
"""An array is a matrix (2 x 3): the place matrix · (x, y, 1)."""


@dataclass(frozen=True)
class Flip:
    """Swap left and right (``horizontal``), or top and bottom."""

    horizontal: bool


@dataclass(frozen=True)
class Move:
    """Show a chain's source places in a picture of ``size`` (height, width).

    ``border``: OpenCV's mode and the fill beyond the source's edge; None: nothing beyond the edge is shown. ``box``
    (top, left, height, width): the move shows this part, resized.
    """

    links: tuple[Link, ...]
    size: Size
    interpolation: int
    border: tuple[int, Fill] | None
    box: Box | None = None


@dataclass(frozen=True)
class Change:
    """Change values by the step ``kind``, with its ``constants`` and ``numbers``, see :class:`Step`.

    ``boxes``: which of the numbers are boxes (left, top, right, bottom), (N, 4); (): each pixel changes by itself. In
    both cases the step may be done before a waiting flip. None: flips are done first. ``shape``: the picture's shape
    afterwards; None: unchanged.
    """

    kind: str
    constants: tuple[Any, ...] = ()
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    boxes: tuple[str, ...] | None = None
    shape: Shape | None = None


Drawn = Flip | Move | Change


def forward(matrix: np.ndarray) -> np.ndarray:
    """Return the link of a 2 x 3 matrix from source to target places; it must not be singular."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])


def flip(horizontal: bool, vertical: bool, shape: Shape) -> np.ndarray:
    """Return the link that swaps left and right, top and bottom, or both, in a picture of ``shape``."""
    height, width = shape[:2]
    x = (-1.0, 0.0, width - 1.0) if horizontal else (1.0, 0.0, 0.0)
    y = (0.0, -1.0, height - 1.0) if vertical else (0.0, 1.0, 0.0)
    return np.array([x, y])


def crop(box: Box, size: Size, interpolation: int) -> Move:
    """Return the move of a part (top, left, height, width) resized to ``size``, aligned at the pixels' edges."""
    top, left, rows, columns = box
    y, x = rows / size[0], columns / size[1]
    link = np.array([[x, 0, left + x / 2 - 0.5], [0, y, top + y / 2 - 0.5]])
    return Move((link,), size, interpolation, None, box)


def join(links: Sequence[Link]) -> tuple[Link, ...]:
    """Return the same chain with neighbouring matrices multiplied."""
    joined: list[Link] = []
    for link in links:
        if joined and not isinstance(link, Grid) and not isinstance(joined[-1], Grid):
            joined[-1] = joined[-1] @ np.vstack([link, (0, 0, 1)])
        else:
            joined.append(link)
    return tuple(joined)


class Joiner:
    """Takes the transforms' draws for one picture, in order, and passes on the steps.

    A flip waits for the next step that moves pixels. With ``fuse``, all moves wait until values change, and neighbours
    with linear interpolation and the same border become one warp of the first one's source. Then the border mode is
    applied only once, at the source's edge, and pixels that an earlier crop cut off can still appear.
    """

    def __init__(self, shape: Shape, do: Callable[[Step], Shape | None], *, fuse: bool = False) -> None:
        """``shape`` (H, W) or (H, W, C) before the first step; ``do`` gets the steps and may return the new shape."""
        self.shape = shape
        self._do = do
        self._fuse = fuse
        self._source = shape  # shape after the steps passed on so far
        self._move: Move | None = None  # waits; drawn at _place
        self._place: tuple[int, ...] = ()
        self._flips = {True: False, False: False}  # horizontal, vertical: they wait after the move

    def add(self, drawn: Drawn, place: tuple[int, ...]) -> None:
        """Add the draw of the transform at ``place`` in the file."""
        if isinstance(drawn, Flip):
            self._flips[drawn.horizontal] ^= True
        elif isinstance(drawn, Move):
            self._add_move(drawn, place)
        else:
            self._hand_on_move()
            if drawn.boxes is None:
                self._hand_on_flips(place)
            mirrored = {name: self._mirrored(drawn.numbers[name]) for name in drawn.boxes or ()}
            after = self._hand_on(drawn.kind, drawn.constants, {**drawn.numbers, **mirrored}, place)
            self.shape = self._source = after or drawn.shape or self.shape

    def finish(self, place: tuple[int, ...]) -> None:
        """Pass on everything that waits; ``place`` comes after all others."""
        self._hand_on_move()
        self._hand_on_flips(place)

    def _add_move(self, move: Move, place: tuple[int, ...]) -> None:
        waiting = self._move
        if waiting is not None and _fit(waiting, move):
            links = join((*waiting.links, self._flip_link(), *move.links))
            border = waiting.border or move.border or (cv2.BORDER_REPLICATE, 0.0)
            move = replace(move, links=links, border=border, box=None)
        else:
            self._hand_on_move()
            if move.box is None:
                move = replace(move, links=join((self._flip_link(), *move.links)))
            else:  # the flip keeps waiting
                top, left, rows, columns = move.box
                left, top, *_ = self._mirrored(np.array([[left, top, left + columns, top + rows]]))[0].tolist()
                move = crop((top, left, rows, columns), move.size, move.interpolation)
        self.shape = (*move.size, *self.shape[2:])
        self._move, self._place = move, place
        if not self._fuse:
            self._hand_on_move()

    def _hand_on_move(self) -> None:
        move, self._move = self._move, None
        if move is None:
            return
        links = move.links
        if move.box is None and any(self._flips.values()):
            links = join((*links, self._flip_link()))
        top, left, rows, columns = move.box or (0, 0, *self._source[:2])
        numbers = {"frame": np.array([left, top, left + columns - 1, top + rows - 1])}
        for number, link in enumerate(links):
            if isinstance(link, Grid):
                numbers[f"columns {number}"], numbers[f"rows {number}"] = _sloped(link.columns), _sloped(link.rows)
            else:
                numbers[f"matrix {number}"] = link
        if move.box is not None:
            self._hand_on("crop", (move.size, move.interpolation), numbers, self._place)
        else:
            kinds = tuple("grid" if isinstance(link, Grid) else "affine" for link in links)
            self._hand_on("sample", (kinds, move.size, move.interpolation, *move.border), numbers, self._place)
        self._source = self.shape

    def _hand_on_flips(self, place: tuple[int, ...]) -> None:
        if any(self._flips.values()):
            flips = self._flips[True], self._flips[False]
            self._flips = {True: False, False: False}
            self._hand_on("flip", flips, {"size": np.array(self.shape[:2])}, place)

    def _hand_on(
        self, kind: str, constants: tuple[Any, ...], numbers: dict[str, np.ndarray], place: tuple[int, ...]
    ) -> Shape | None:
        # The transform at this place may need the flip done first.
        return self._do(Step((*place, kind != "flip"), kind, constants, numbers))

    def _flip_link(self) -> np.ndarray:
        """Return the waiting flips as a link and clear them."""
        link = flip(self._flips[True], self._flips[False], self.shape)
        self._flips = {True: False, False: False}
        return link

    def _mirrored(self, boxes: np.ndarray) -> np.ndarray:
        """Return where boxes (left, top, right, bottom), (N, 4), lie before the waiting flips."""
        height, width = self.shape[:2]
        left, top, right, bottom = boxes.T
        if self._flips[True]:
            left, right = width - right, width - left
        if self._flips[False]:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], axis=1)


def _fit(first: Move, second: Move) -> bool:
    """Whether one warp can do both moves: linear interpolation, and the same border."""
    borders = {first.border, second.border} - {None}
    return {first.interpolation, second.interpolation} == {cv2.INTER_LINEAR} and len(borders) < 2


def _sloped(table: np.ndarray) -> np.ndarray:
    """Return a table with at least two values, so that it can be extrapolated."""
    return table if len(table) > 1 else np.append(table, table[0] + 1)
