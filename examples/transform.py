"""A transform of your own that also works on whole batches: Gain multiplies pictures on 0..1 by a random factor.

A transform file names it by its path: {"__class_fullname__": "examples.transform.Gain", "gain_range": [0.8, 1.25]}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema
from torch import Tensor

from common.augmentations.base import UNIT, ImageTransform, Range
from common.transforms.drawing import Row, add_transform
from common.transforms.joining import Change, Shape
from common.transforms.pictures import Picture


class Gain(ImageTransform):
    """Multiplies a picture on 0..1 by a factor from ``gain_range`` and clips it to 0..1."""

    units = UNIT

    class InitSchema(BaseTransformInitSchema):
        gain_range: Range

    def __init__(self, gain_range: tuple[float, float] = (0.8, 1.25), p: float = 0.5) -> None:
        """``gain_range``: minimum and maximum of the factor."""
        super().__init__(p=p)
        self.gain_range = gain_range

    def get_params(self) -> dict[str, Any]:
        """Draw the factor from ``py_random``, which is seeded for each picture."""
        return {"gain": self.py_random.uniform(*self.gain_range)}

    def apply(self, img: np.ndarray, gain: float, **params: Any) -> np.ndarray:
        """Change the picture; albumentations calls this method."""
        return np.clip(img * np.float32(gain), 0, 1)


def draw(transform: Gain, shape: Shape) -> Change:
    """Return the step for a picture of ``shape``; ``boxes=()``: it moves no pixels."""
    return Change("gain", numbers={"gain": np.array(transform.get_params()["gain"])}, boxes=())


def change_picture(picture: Picture, numbers: Mapping[str, np.ndarray]) -> None:
    """Apply the step to one picture, in place."""
    values = picture.own_values()
    np.clip(np.multiply(values, np.float32(numbers["gain"]), out=values), 0, 1, out=values)


def change_batch(pictures: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Apply the step to pictures (B, C, H, W) on any device; ``numbers`` are (B,)."""
    return (pictures * numbers["gain"].float()[:, None, None, None]).clamp(0, 1)


add_transform(Gain, Row("gain", draw), change_picture, change_batch)
