"""Read the values of a data set's elements. A damaged file raises nothing but :class:`DicomError`."""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

from common.dicom.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FILE_BYTES = 2**28  # 500 frames of 512 x 512

# Length of an element's header: 8 bytes with a length field of two bytes, 12 with one of four (PS3.5 7.1.2).
HEADER_BYTES = dict.fromkeys(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(), 8
) | dict.fromkeys(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(), 12)

MAX_READS = 2**17  # two or three for each element; an enhanced CT of 1,000 frames takes about 90,000
TEXT_LENGTH = 64  # the longest value that DICOM allows for the identifiers kept here
# A decimal string (DS) as PS3.5 6.2 allows it. Python's float accepts more: 1_0, nan, digits of other scripts.
DECIMAL = r" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *"
_DECIMAL = re.compile(DECIMAL)


class BoundedStream(BytesIO):
    """A file's content with a limited number of reads.

    pydicom makes an object of a kilobyte or more for each element and each item of a sequence, which may take only 8
    bytes in the file. Without a limit a file of a few megabytes could fill the memory.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like any stream. Raise DicomError after :data:`MAX_READS` reads."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise DicomError("too_large", "the header has too many elements")
        return super().read(size)


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None if it is missing, empty or can't be converted (pydicom converts on access)."""
    try:
        value = dataset.get(keyword)
    except MemoryError:
        raise
    except Exception:  # converting a damaged value can raise anything
        return None
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return an element's text without surrounding spaces, empty if there is none."""
    return str(value_of(dataset, keyword) or "").strip()


def texts_of(dataset: Dataset, keyword: str) -> str:
    """Return an element's values as text, joined by a backslash; empty if there are none."""
    value = value_of(dataset, keyword)
    if value is None:
        return ""
    several = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
    return "\\".join(str(part).strip() for part in (value if several else (value,)))


def identifier_of(dataset: Dataset, keyword: str) -> str:
    """Return an identifier as one line of printable text of at most :data:`TEXT_LENGTH` characters; empty for none."""
    return printable(str(value_of(dataset, keyword) or ""))


def printable(text: str) -> str:
    """Return the first :data:`TEXT_LENGTH` printable characters, without surrounding spaces."""
    return "".join(character for character in text if character.isprintable()).strip()[:TEXT_LENGTH]


def integer_of(dataset: Dataset, keyword: str) -> int:
    """Return an integer. Raise DicomError (pixel_format) if there is none."""
    value = value_of(dataset, keyword)
    try:
        _check_decimal(value)
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise DicomError("pixel_format", f"{keyword} is missing or not a whole number") from None


def numbers_of(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Return ``count`` finite numbers, or ``count`` NaN if the element holds anything else."""
    unknown = (math.nan,) * count
    value = value_of(dataset, keyword)
    if value is None or (count > 1 and isinstance(value, (str, bytes))):
        return unknown
    try:
        parts = tuple(value) if count > 1 else (value,)
        for part in parts:
            _check_decimal(part)
        numbers = tuple(map(float, parts))
    except (TypeError, ValueError):
        return unknown
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else unknown


def _check_decimal(value: Any) -> None:
    """Raise ValueError for a number whose text in the file is no DICOM decimal string."""
    text = value if isinstance(value, str) else getattr(value, "original_string", None)
    if text is not None and _DECIMAL.fullmatch(text) is None:
        raise ValueError("no decimal string")


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, none if it is missing or damaged. Raise DicomError for too many."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_sequence

    try:
        element = dataset.get_item(tag_for_keyword(keyword))
        if isinstance(element, RawDataElement):
            # pydicom's own conversion on access would read without a limit.
            value = element.value or b""
            stream = BoundedStream(value)
            little_endian, implicit_vr = element.is_little_endian, element.is_implicit_VR
            return list(read_sequence(stream, implicit_vr, little_endian, len(value), "iso8859"))
        return [] if element is None else list(element.value)
    except (DicomError, MemoryError):
        raise
    except Exception:  # as in value_of
        return []
