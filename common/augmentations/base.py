"""Base classes of this project's albumentations transforms: their names in JSON files and their units."""

from __future__ import annotations

from typing import Annotated

from albumentations.core.transforms_interface import DualTransform, ImageOnlyTransform
from pydantic import BeforeValidator

MODULE = "common.albumentations"
MIN_MAX_NOTE = (
    "min_max_normalize is not done: the minimum and maximum of each picture would give the same HU "
    "another value on every slice; each window is mapped to 0..1 by a fixed linear map instead (the one deliberate "
    "departure from the class of 2019)"
)

HOUNSFIELD, UNIT, ANY = "hu", "0..1", "any"


def _pair(value: object) -> object:
    return (-value, value) if isinstance(value, (int, float)) else value


def _ordered(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] > value[1]:
        raise ValueError("the range's minimum is above its maximum")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_ordered)]
"""A range as (minimum, maximum)."""

SymmetricRange = Annotated[tuple[float, float], BeforeValidator(_ordered), BeforeValidator(_pair)]
"""A range as (minimum, maximum); one number x means (-x, x)."""


class _Own:
    units = ANY

    @classmethod
    def get_class_fullname(cls) -> str:
        """Return the name in JSON files: ``common.albumentations.X`` for a class in ``common``, else its path."""
        return f"{MODULE if cls.__module__.startswith('common.') else cls.__module__}.{cls.__name__}"


class ImageTransform(_Own, ImageOnlyTransform):
    """Base of this project's transforms that change values only.

    ``units``: what they take and return: Hounsfield units, pictures on 0..1, or anything.
    """


class GeometryTransform(_Own, DualTransform):
    """Base of this project's transforms that move pixels; masks move with the picture."""
