"""A study to scroll through in one HTML file that needs no network: exact HU, windows, probabilities, places in mm.

The file holds each slice's HU as :func:`pack` makes them. ``viewer.html`` is its template and ``viewer.js`` its script,
which unpacks a slice when it is shown.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dicom.geometry import SliceGeometry, edge_letters
from common.files import atomic_path

TEMPLATE = Path(__file__).with_name("viewer.html")
SCRIPT = Path(__file__).with_name("viewer.js")
MARKER = re.compile(r"\{\{(\w+)\}\}")
MOST_PIXELS = 512 * 512 * 400  # in a page, some 80 MB, which Chromium opens in seconds

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Slice:
    """A slice as scanned: its size in pixels, where it lies, and its place along the series, NaN where unknown."""

    rows: int
    columns: int
    geometry: SliceGeometry
    position_mm: float
    facts: Facts


@dataclass(frozen=True)
class Stack:
    """The slices of a series, in order, with ``probabilities`` (N, C) of the labels.

    ``read`` returns a slice's HU, int16 (rows, columns), by its place in ``slices``. ``direction`` is a sentence about
    their order.
    """

    title: str
    direction: str
    facts: Facts
    slices: Sequence[Slice]
    probabilities: npt.NDArray[np.float64]
    read: Callable[[int], npt.NDArray[np.int16]]


@dataclass(frozen=True)
class Study:
    """What a page shows of a study.

    ``probabilities`` are the study's by label, the last label is the overall one. ``rule`` is a sentence about where
    they come from. ``others`` are further pages of the same patient: titles and addresses. ``unused``: the study's
    series that the page doesn't show, each with the reason.
    """

    title: str
    probabilities: Mapping[str, float]
    rule: str
    facts: Facts
    stacks: Sequence[Stack]
    notice: str
    others: Sequence[tuple[str, str]] = ()
    unused: Facts = ()


def write_viewer(path: Path, study: Study) -> str:
    """Write the page of a study, whole or not at all. Return what was left out of it in words, "" for nothing.

    A page holds at most :data:`MOST_PIXELS`. Of a longer study, it holds every second, third ... slice of its longest
    series, and the highest slice of each label. The probabilities of all slices are there.
    """
    held = choose_slices(study.stacks, MOST_PIXELS)
    left_out = describe_left_out(study.stacks, held)
    first = (0, int(np.argmax(study.stacks[0].probabilities[:, -1])))  # which the page opens with
    facts = json.dumps(document(study, held, left_out), allow_nan=False, separators=(",", ":"))
    parts = {
        "title": escape(study.title),
        "notice": escape(study.notice),
        "summary": escape(", ".join(f"{name} {value:.2f}" for name, value in study.probabilities.items())),
        "data": facts.replace("<", "\\u003c"),  # no text ends the script
        "script": SCRIPT.read_text(encoding="utf-8"),
        "first": picture(study, *first),
    }
    # re.split gives text, name, text, name, ..., text. No part is searched for names: a text may hold any characters.
    pieces = MARKER.split(TEMPLATE.read_text(encoding="utf-8"))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for number, piece in enumerate(pieces):
            if number % 2 == 0:
                file.write(piece)
            elif piece != "pictures":
                file.write(parts[piece])
            else:
                file.writelines(f"{picture(study, *one)}\n" for one in places(held) if one != first)
    return left_out


def choose_slices(stacks: Sequence[Stack], most_pixels: int) -> list[list[int]]:
    """Return of each series the places of the slices that a page of ``most_pixels`` can hold."""
    steps = [1] * len(stacks)

    def chosen(number: int) -> list[int]:
        stack = stacks[number]
        highest = stack.probabilities.argmax(axis=0).tolist()
        return sorted({*range(0, len(stack.slices), steps[number]), *highest})

    def pixels(number: int) -> int:
        return sum(stacks[number].slices[place].rows * stacks[number].slices[place].columns for place in chosen(number))

    sizes = [pixels(number) for number in range(len(stacks))]
    while sum(sizes) > most_pixels:
        longest = int(np.argmax(sizes))
        if steps[longest] >= len(stacks[longest].slices):
            break  # only the highest slices are left
        steps[longest] += 1
        sizes[longest] = pixels(longest)
    return [chosen(number) for number in range(len(stacks))]


def describe_left_out(stacks: Sequence[Stack], held: Sequence[Sequence[int]]) -> str:
    """Return in words of which series the page doesn't hold all slices, "" if it holds all."""
    parts = [
        f"{len(places)} of the {len(stack.slices)} slices of {stack.title}"
        for stack, places in zip(stacks, held, strict=True)
        if len(places) < len(stack.slices)
    ]
    return f"The page holds the pictures of {' and of '.join(parts)}: all would be too large" if parts else ""


def places(held: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield series and place of each slice that the page holds."""
    for number, chosen in enumerate(held):
        for place in chosen:
            yield number, place


def picture_id(series: int, place: int) -> str:
    """Return the id of the element that holds a slice's HU."""
    return f"p{series}-{place}"


def picture(study: Study, series: int, place: int) -> str:
    """Return the element that holds a slice's HU."""
    packed = base64.b64encode(pack(study.stacks[series].read(place))).decode("ascii")
    return f'<script type="text/plain" id="{picture_id(series, place)}">{packed}</script>'


def pack(image_hu: npt.NDArray[np.int16]) -> bytes:
    """Compress HU (rows, columns) without loss.

    Each pixel becomes its difference from the one before it (modulo 2^16), small numbers of either sign become small
    numbers without sign (zigzag), all low bytes come before all high bytes, and zlib compresses them. Run lengths
    (Z_RLE) give noisy CT of 512 x 512 152 KB in 6 ms; zlib's full search takes 36 ms for 148 KB.
    """
    values = np.ascontiguousarray(image_hu, dtype=np.int16).ravel()
    steps = np.diff(values, prepend=np.int16(0))
    codes = ((steps << 1) ^ (steps >> 15)).view(np.uint16)
    planes = np.concatenate([codes & 255, codes >> 8]).astype(np.uint8)
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return packer.compress(planes.tobytes()) + packer.flush()


def document(study: Study, held: Sequence[Sequence[int]], left_out: str) -> dict[str, Any]:
    """Return what the script needs besides the pictures, in JSON's types."""
    labels = list(study.probabilities)
    return {
        "labels": labels,
        "study": {name: float(value) for name, value in study.probabilities.items()},
        "rule": study.rule,
        "facts": study.facts,
        "others": study.others,
        "unused": study.unused,
        "left_out": f"{left_out}." if left_out else "",
        "series": [
            {
                "title": stack.title,
                "direction": stack.direction,
                "facts": stack.facts,
                "probabilities": {
                    name: [round(value, 6) for value in stack.probabilities[:, column].tolist()]
                    for column, name in enumerate(labels)
                },
                "slices": [
                    describe_slice(one) | {"picture": picture_id(number, place) if place in chosen else None}
                    for place, one in enumerate(stack.slices)
                ],
            }
            for number, (stack, chosen) in enumerate(zip(study.stacks, map(set, held), strict=True))
        ],
    }


def describe_slice(one: Slice) -> dict[str, Any]:
    """Return a slice's size and place in JSON's types, None where unknown."""
    known = one.geometry
    directed = bool(np.isfinite(known.orientation).all())
    spaced = known.row_spacing_mm > 0 and known.column_spacing_mm > 0
    placed = directed and spaced and bool(np.isfinite(known.position).all())
    return {
        "rows": one.rows,
        "columns": one.columns,
        "row_mm": known.row_spacing_mm if spaced else None,
        "column_mm": known.column_spacing_mm if spaced else None,
        "corner_mm": known.position if placed else None,
        "directions": known.orientation if placed else None,
        "edges": edge_letters(np.array(known.orientation)) if directed else None,
        "position_mm": one.position_mm if np.isfinite(one.position_mm) else None,
        "facts": one.facts,
    }
