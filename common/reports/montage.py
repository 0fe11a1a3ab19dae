"""A picture of a series: a strip of probabilities over its slices, the highest slices with heat, a montage of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from common.dicom.pictures import resize_mask
from common.errors import WorkError
from common.files import atomic_path

Picture = npt.NDArray[np.uint8]  # BGR (H, W, 3)

TILE, COLUMNS, SHOWN_SLICES = 128, 10, 60
WIDTH, MARGIN = TILE * COLUMNS, 10
NAMES_WIDTH, ROW_HEIGHT, LINE_HEIGHT = 150, 17, 24
LARGE, LARGE_TILES = 312, 4
HEAT_SHARE = 0.45  # share of the colour at the highest heat
BACKGROUND, TEXT, FAINT, MARKED = (24, 24, 24), (235, 235, 235), (150, 150, 150), (60, 150, 255)
COLOURS = cv2.COLORMAP_INFERNO


@dataclass(frozen=True)
class Heat:
    """Heat of a picture: ``values`` (h, w), 0 or more, and where it may be shown, bool (H, W); None: everywhere."""

    values: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Highlight:
    """A slice to show large: its position, its heat or None, and a line of text."""

    place: int
    heat: Heat | None
    text: str


def draw_series(
    title: str,
    lines: Sequence[str],
    slices: Sequence[npt.NDArray[np.uint8]],
    probabilities: npt.NDArray[np.float64],
    names: Sequence[str],
    highlights: Sequence[Highlight],
    notice: str,
    hottest: float = 0.0,
) -> Picture:
    """Draw a series: ``slices`` grey (H, W), in order; ``probabilities`` (N, C) of ``names``, the last one overall.

    ``hottest``: the heat that gets the brightest colour, the same for all series of a study; a bar shows the scale.
    Strip and montage number the slices from 0. The montage shows at most 60 slices, evenly spread, and those of
    ``highlights``. A frame marks slices whose overall probability is 0.5 or more.
    """
    parts = [_text_block([title, *lines]), draw_strip(probabilities, names)]
    if highlights:
        large = [_large_tile(slices[item.place], item, hottest) for item in highlights[:LARGE_TILES]]
        parts.append(_grid(large, LARGE_TILES))
        if any(item.heat is not None for item in highlights):
            parts.append(heat_bar(hottest))
    places = shown_places(len(slices), [item.place for item in highlights])
    if len(places) < len(slices):
        parts.append(_text_block([f"{len(places)} of {len(slices)} slices"]))
    parts.append(_grid([_tile(slices[place], place, probabilities[place, -1]) for place in places], COLUMNS))
    return np.vstack([*parts, _text_block([notice])])


def shown_places(count: int, marked: Sequence[int]) -> list[int]:
    """Return which of ``count`` slices to show: all, or 60 evenly spread ones and those ``marked``."""
    evenly = np.linspace(0, count - 1, min(count, SHOWN_SLICES)).round().astype(int).tolist()
    return sorted({*evenly, *marked})


def draw_strip(probabilities: npt.NDArray[np.float64], names: Sequence[str]) -> Picture:
    """Draw a row of cells for each name, a cell for each slice, dark at 0 and bright at 1, with slice numbers below."""
    count, classes = probabilities.shape
    picture = _blank(ROW_HEIGHT * (classes + 1) + MARGIN)
    edges = np.linspace(NAMES_WIDTH, WIDTH - MARGIN, count + 1).round().astype(int)
    levels = np.rint(np.clip(probabilities, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, COLOURS)  # (N, C, 3)
    for row, name in enumerate(names):
        top = row * ROW_HEIGHT
        _write(picture, name, MARGIN, top + 12, 0.42)
        for place in range(count):
            gap = 1 if count <= 200 else 0
            picture[top : top + ROW_HEIGHT - 2, edges[place] : max(edges[place] + 1, edges[place + 1] - gap)] = colours[
                place, row
            ]
    for place in range(0, count, max(1, -(-count // 20))):
        _write(picture, str(place), int(edges[place]), ROW_HEIGHT * classes + 12, 0.36, FAINT)
    return picture


def hottest_of(heats: Iterable[Heat | None]) -> float:
    """Return the highest value of several pictures' heat, for a scale that they share; 0 where there is none."""
    return max((float(heat.values.max()) for heat in heats if heat is not None), default=0.0)


def overlay(grey: npt.NDArray[np.uint8], heat: Heat, hottest: float) -> Picture:
    """Lay heat over a grey square (S, S), see :func:`fit`: no colour at 0, the brightest at ``hottest``."""
    base = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    if hottest <= 0:
        return base
    share = cv2.resize(heat.values / hottest, grey.shape[::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)
    if heat.inside is not None:
        share *= resize_mask(heat.inside.astype(np.uint8), len(grey))
    return _coloured(base, share)


def heat_bar(hottest: float) -> Picture:
    """Draw the scale of heat: from no colour at 0 to the brightest at ``hottest``, in the logit's unit."""
    left, right = MARGIN + 30, MARGIN + 30 + LARGE
    picture = _blank(LINE_HEIGHT)
    share = np.broadcast_to(np.linspace(0, 1, right - left, dtype=np.float32), (LINE_HEIGHT - 12, right - left))
    picture[6 : LINE_HEIGHT - 6, left:right] = _coloured(np.full((*share.shape, 3), 90, np.uint8), share)
    _write(picture, "0", MARGIN + 12, 17, 0.42)
    _write(picture, f"{hottest:.2g}: heat, in the unit of the logit of any", right + 10, 17, 0.42)
    return picture


def _coloured(base: Picture, share: npt.NDArray[np.float32]) -> Picture:
    """Colour a picture by ``share`` (H, W) of the highest heat."""
    colour = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_PLASMA).astype(np.float32)
    alpha = (HEAT_SHARE * share)[..., None]
    return np.rint(base * (1 - alpha) + colour * alpha).astype(np.uint8)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture as PNG; a failure leaves no partial file."""
    done, content = cv2.imencode(".png", picture)
    if not done:
        raise WorkError(f"{path}: the picture can't be encoded")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def fit(grey: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return a grey picture (H, W) as a square of ``size`` pixels; it keeps its proportions and gets black borders."""
    scale = size / max(grey.shape)
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    rule = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(grey, (width, height), interpolation=rule)
    return square


def _tile(grey: npt.NDArray[np.uint8], place: int, probability: float) -> Picture:
    tile = cv2.cvtColor(fit(grey, TILE), cv2.COLOR_GRAY2BGR)
    _write(tile, str(place), 4, 13, 0.4)
    _write(tile, f"{probability:.2f}", TILE - 34, 13, 0.4, MARKED if probability >= 0.5 else FAINT)
    if probability >= 0.5:
        cv2.rectangle(tile, (0, 0), (TILE - 1, TILE - 1), MARKED, 1)
    return tile


def _large_tile(grey: npt.NDArray[np.uint8], item: Highlight, hottest: float) -> Picture:
    square = fit(grey, LARGE)
    tile = cv2.cvtColor(square, cv2.COLOR_GRAY2BGR) if item.heat is None else overlay(square, item.heat, hottest)
    framed = np.full((LARGE + LINE_HEIGHT, WIDTH // LARGE_TILES, 3), BACKGROUND, np.uint8)
    left = (framed.shape[1] - LARGE) // 2
    framed[:LARGE, left : left + LARGE] = tile
    _write(framed, item.text, left, LARGE + 16, 0.42)
    return framed


def _grid(tiles: Sequence[Picture], columns: int) -> Picture:
    empty = np.full_like(tiles[0], BACKGROUND)
    filled = [*tiles, *[empty] * (-len(tiles) % columns)]
    return np.vstack([np.hstack(filled[start : start + columns]) for start in range(0, len(filled), columns)])


def _text_block(lines: Sequence[str]) -> Picture:
    picture = _blank(LINE_HEIGHT * len(lines) + MARGIN)
    for number, line in enumerate(lines):
        _write(picture, line, MARGIN, LINE_HEIGHT * number + 20, 0.5)
    return picture


def _blank(height: int) -> Picture:
    return np.full((height, WIDTH, 3), BACKGROUND, np.uint8)


def _write(
    picture: Picture, text: str, left: int, baseline: int, scale: float, colour: tuple[int, int, int] = TEXT
) -> None:
    cv2.putText(picture, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
