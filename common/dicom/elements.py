"""Values of a data set's elements; nothing that a damaged file holds raises anything but :class:`DicomError`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from common.dicom.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None where it is missing, empty or can't be converted (pydicom converts on access)."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises whatever the conversion of a damaged value raises
        return None
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def text_of(dataset: Dataset, keyword: str) -> str:
    return str(value_of(dataset, keyword) or "").strip()


def integer_of(dataset: Dataset, keyword: str) -> int:
    value = value_of(dataset, keyword)
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise DicomError("pixel_format", f"{keyword} is missing or not a whole number") from None


def numbers_of(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Return ``count`` finite numbers; all NaN where the element holds anything else."""
    unknown = (math.nan,) * count
    value = value_of(dataset, keyword)
    if value is None or (count > 1 and isinstance(value, (str, bytes))):
        return unknown
    try:
        numbers = tuple(float(number) for number in (value if count > 1 else (value,)))
    except (TypeError, ValueError):
        return unknown
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else unknown
