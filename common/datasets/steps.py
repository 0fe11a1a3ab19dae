"""Transform steps as plain data, the same for one picture on the CPU and for a batch on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONSTANT, REPLICATE, REFLECT, REFLECT_101 = 0, 1, 2, 4
"""Borders, by OpenCV's numbers; REFLECT repeats the edge pixel, REFLECT_101 does not."""


@dataclass(frozen=True)
class Step:
    """What one picture gets at one ``place`` of its transform file.

    ``kind`` says what is done: a key of :data:`common.transforms.pictures.FORMS` and, for batches, of
    :data:`common.datasets.finish.KERNELS`. ``constants`` are shared by all pictures, ``numbers`` belong to
    this one. Places rise along a picture's steps. A batch gets the steps of one place together if they differ in the
    numbers' values only.
    """

    place: tuple[int, ...]
    kind: str
    constants: tuple[Any, ...]
    numbers: dict[str, np.ndarray]

    @property
    def key(self) -> tuple[Any, ...]:
        """What steps must have in common to be done together."""
        shapes = tuple((name, values.shape) for name, values in self.numbers.items())
        return (self.place, self.kind, self.constants, shapes)
