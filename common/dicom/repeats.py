"""Refuse a file that holds an element of its image more than once: programs differ in which of them they use.

Such elements are found side by side, inside the functional groups of an enhanced CT, and behind the pixels.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from common.dicom.elements import HEADER_BYTES
from common.dicom.errors import DicomError

if TYPE_CHECKING:
    from common.dicom.decoding import Syntax

IMAGE_GROUPS = (0x0028, 0x5200, 0x7FE0)  # form of the pixels, functional groups, pixels
FUNCTIONAL_GROUPS = 0x5200
ELEMENT_BYTES = 8  # at least, for an element's tag, type and length
ITEM, ITEM_END, ITEMS_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF
MAX_DEPTH = 100  # of nested sequences; only files made by hand have more


class Element(NamedTuple):
    """The header of an element: tag, type (empty if implicit), and the offset and length of its value."""

    tag: int
    kind: bytes
    value: int
    length: int


def element_at(data: bytes | bytearray, position: int, implicit: bool, little_endian: bool) -> Element | None:
    """Return the element at ``position``, None if there is none."""
    if not 0 <= position <= len(data) - ELEMENT_BYTES:
        return None
    order = "<" if little_endian else ">"
    group, number, length = struct.unpack_from(f"{order}HHL", data, position)
    tag, kind = group << 16 | number, bytes(data[position + 4 : position + 6])
    if implicit or group == ITEM >> 16:
        return Element(tag, b"", position + ELEMENT_BYTES, length)
    if HEADER_BYTES.get(kind) == ELEMENT_BYTES:
        return Element(tag, kind, position + 8, struct.unpack_from(f"{order}H", data, position + 6)[0])
    if kind in HEADER_BYTES and position + 12 <= len(data):
        return Element(tag, kind, position + 12, struct.unpack_from(f"{order}L", data, position + 8)[0])
    return None


class Repeats:
    """The tags found so far in one data set or item."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def add(self, tag: int) -> None:
        """Add an element's tag. Raise DicomError (pixel_format) if it is one of the image's and is here already."""
        if tag >> 16 in IMAGE_GROUPS:
            if tag in self.seen:
                raise given_twice(tag)
            self.seen.add(int(tag))


def check_items(data: bytes | bytearray, position: int, length: int, syntax: Syntax) -> None:
    """Raise DicomError if an item within a sequence's value, at any depth, holds an element of the image twice.

    The search ends at bytes that are no element. Reading the sequence reports what is wrong with them.
    """
    # For each open sequence and item: its end, its tags (None for a sequence), whether types are implicit.
    end = len(data) if length == UNDEFINED_LENGTH else position + length
    opened: list[tuple[int, Repeats | None, bool]] = [(end, None, syntax.implicit_vr)]
    while opened and len(opened) < MAX_DEPTH:
        end, repeats, implicit = opened[-1]
        if position >= end:
            opened.pop()
            continue
        found = element_at(data, position, implicit, syntax.little_endian)
        if found is None and repeats is not None and not implicit:
            # Explicit files can hold items with implicit types too (PS3.5 6.2.2, note 3).
            implicit = True
            found = element_at(data, position, implicit, syntax.little_endian)
        if found is None:
            return
        position = found.value
        past = end if found.length == UNDEFINED_LENGTH else position + found.length
        if found.tag in (ITEM_END, ITEMS_END):
            opened.pop()
        elif repeats is None:
            if found.tag != ITEM:
                return
            opened.append((past, Repeats(), implicit))
        else:
            repeats.add(found.tag)
            if found.length == UNDEFINED_LENGTH or _is_sequence(found):
                opened.append((past, None, implicit or found.kind == b"UN"))
            else:
                position = past


def _is_sequence(element: Element) -> bool:
    """Whether an element holds items, by its type or, without a known type, by the standard's dictionary."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    if element.kind not in (b"", b"UN"):
        return element.kind == b"SQ"
    return dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"


def check_rest(data: bytes | bytearray, position: int, syntax: Syntax) -> None:
    """Raise DicomError if an element of the image follows the pixels, which end at ``position``.

    The search ends at bytes that are no element, such as padding and garbage from old disks.
    """
    while (found := element_at(data, position, syntax.implicit_vr, syntax.little_endian)) is not None:
        if found.tag >> 16 in IMAGE_GROUPS:
            raise given_twice(found.tag)
        if found.length == UNDEFINED_LENGTH:
            return
        position = found.value + found.length


def fragments_end(data: bytes | bytearray, position: int) -> int:
    """Return the end of the fragments that begin at ``position``, -1 if their end is missing."""
    while (found := element_at(data, position, True, True)) is not None:
        if found.tag == ITEMS_END:
            return found.value
        if found.tag != ITEM or found.length == UNDEFINED_LENGTH:
            break
        position = found.value + found.length
    return -1


def given_twice(tag: int) -> DicomError:
    """Return the error for an element of the image that a file holds more than once."""
    return DicomError("pixel_format", f"the element ({tag >> 16:04X},{tag & 0xFFFF:04X}) stands twice in the file")
