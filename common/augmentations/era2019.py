"""Transforms of albumentations 0.3 to 0.5 that have no equal in 2.0.8.

Definitions are those of release 0.4.5. If 2.0.8 has a class of the same name, the docstring says how it differs.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema
from pydantic import Field, model_validator

from common.augmentations.base import GeometryTransform, ImageTransform, Range, SymmetricRange
from common.augmentations.warp import AffineTransform, Box, Fill, crop_resize, remap, warp_affine

Pair = tuple[float, float]

CROP_ATTEMPTS = 10


class _BorderSchema(BaseTransformInitSchema):
    interpolation: int = Field(ge=0, le=4)
    border_mode: int = Field(ge=0, le=4)
    fill: Fill
    fill_mask: Fill


class ShiftScaleRotate(AffineTransform):
    """Rotates about the picture's middle (W / 2, H / 2), scales both axes by one factor and shifts, in one warp.

    2.0.8's own draws separate factors for x and y, and warns. ``shift_limit_x`` and ``shift_limit_y`` are shares of
    width and height, ``scale_limit`` is added to 1, ``rotate_limit`` is in degrees, counter-clockwise.
    """

    class InitSchema(_BorderSchema):
        shift_limit_x: SymmetricRange
        shift_limit_y: SymmetricRange
        scale_limit: SymmetricRange
        rotate_limit: SymmetricRange

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse a scale of 0 or below."""
            if self.scale_limit[0] <= -1:
                raise ValueError("scale_limit is added to 1 and must stay above -1")
            return self

    def __init__(
        self,
        shift_limit_x: float | Pair = (-0.0625, 0.0625),
        shift_limit_y: float | Pair = (-0.0625, 0.0625),
        scale_limit: float | Pair = (-0.1, 0.1),
        rotate_limit: float | Pair = (-45.0, 45.0),
        interpolation: int = cv2.INTER_LINEAR,
        border_mode: int = cv2.BORDER_REFLECT_101,
        fill: Fill = 0.0,
        fill_mask: Fill = 0.0,
        p: float = 0.5,
    ) -> None:
        """A single number x as limit means (-x, x)."""
        super().__init__(p=p)
        self.shift_limit_x = shift_limit_x
        self.shift_limit_y = shift_limit_y
        self.scale_limit = scale_limit
        self.rotate_limit = rotate_limit
        self.interpolation = interpolation
        self.border_mode = border_mode
        self.fill = fill
        self.fill_mask = fill_mask

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the matrix."""
        height, width = params["shape"][:2]
        angle = self.py_random.uniform(*self.rotate_limit)
        scale = 1 + self.py_random.uniform(*self.scale_limit)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
        matrix[0, 2] += self.py_random.uniform(*self.shift_limit_x) * width
        matrix[1, 2] += self.py_random.uniform(*self.shift_limit_y) * height
        return {"matrix": matrix}


class RandomResizedCrop(GeometryTransform):
    """Crops a random share of the area, from ``scale``, with a random aspect ratio, and resizes it to ``size`` (H, W).

    2.0.8's own refuses a ``scale`` above 1, which files of 2019 have. An area larger than the picture is drawn again.
    After ten draws the whole picture is taken, cropped about its centre to the nearest allowed ratio.
    """

    class InitSchema(BaseTransformInitSchema):
        size: tuple[int, int]
        scale: Range
        ratio: Range
        interpolation: int = Field(ge=0, le=4)

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse arguments that leave no picture."""
            if min(*self.size, self.scale[0], self.ratio[0]) <= 0:
                raise ValueError("size, scale and ratio must be above 0")
            return self

    def __init__(
        self,
        size: tuple[int, int],
        scale: Pair = (0.08, 1.0),
        ratio: Pair = (3 / 4, 4 / 3),
        interpolation: int = cv2.INTER_LINEAR,
        p: float = 1.0,
    ) -> None:
        """``scale`` in shares of the picture's area, ``ratio`` as width / height."""
        super().__init__(p=p)
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the ``box`` (top, left, height, width) that is kept."""
        height, width = params["shape"][:2]
        for _ in range(CROP_ATTEMPTS):
            area = self.py_random.uniform(*self.scale) * height * width
            aspect = math.exp(self.py_random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < columns <= width and 0 < rows <= height:
                top, left = self.py_random.randint(0, height - rows), self.py_random.randint(0, width - columns)
                return {"box": (top, left, rows, columns)}
        columns, rows = width, height
        if width / height < self.ratio[0]:
            rows = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            columns = round(height * self.ratio[1])
        return {"box": ((height - rows) // 2, (width - columns) // 2, rows, columns)}

    def apply(self, img: np.ndarray, box: Box, **params: Any) -> np.ndarray:
        """Crop and resize the picture."""
        return crop_resize(np.ascontiguousarray(img), box, self.size, self.interpolation)

    def apply_to_mask(self, mask: np.ndarray, box: Box, **params: Any) -> np.ndarray:
        """Crop and resize a mask by the nearest pixel."""
        return crop_resize(np.ascontiguousarray(mask), box, self.size, cv2.INTER_NEAREST)


class Cutout(ImageTransform):
    """Fills ``num_holes`` boxes of ``max_h_size`` x ``max_w_size`` pixels; they may reach over the picture's edge.

    A box's middle is uniform over the picture. 2.0.8's CoarseDropout keeps its boxes inside.
    """

    class InitSchema(BaseTransformInitSchema):
        num_holes: int = Field(ge=1)
        max_h_size: int = Field(ge=1)
        max_w_size: int = Field(ge=1)
        fill: float

    def __init__(
        self, num_holes: int = 8, max_h_size: int = 8, max_w_size: int = 8, fill: float = 0.0, p: float = 0.5
    ) -> None:
        """``fill`` in the picture's own units."""
        super().__init__(p=p)
        self.num_holes = num_holes
        self.max_h_size = max_h_size
        self.max_w_size = max_w_size
        self.fill = fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the boxes (top, bottom, left, right)."""
        height, width = params["shape"][:2]
        holes = []
        for _ in range(self.num_holes):
            middle_y, middle_x = self.py_random.randint(0, height), self.py_random.randint(0, width)
            top, left = max(0, middle_y - self.max_h_size // 2), max(0, middle_x - self.max_w_size // 2)
            holes.append((top, min(height, top + self.max_h_size), left, min(width, left + self.max_w_size)))
        return {"holes": holes}

    def apply(self, img: np.ndarray, holes: list[Box], **params: Any) -> np.ndarray:
        """Fill the boxes."""
        filled = img.copy()
        for top, bottom, left, right in holes:
            filled[top:bottom, left:right] = self.fill
        return filled


class MotionBlur(ImageTransform):
    """Averages along a line between two random pixels of a square, whose odd side comes from ``blur_limit``.

    2.0.8's own draws an angle and a direction instead, which gives longer lines.
    """

    class InitSchema(BaseTransformInitSchema):
        blur_limit: tuple[int, int]

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse squares without two pixels."""
            if self.blur_limit[0] < 3 or self.blur_limit[0] > self.blur_limit[1]:
                raise ValueError("blur_limit must be a minimum of at least 3 and a maximum")
            return self

    def __init__(self, blur_limit: tuple[int, int] = (3, 7), p: float = 0.5) -> None:
        """``blur_limit`` in pixels."""
        super().__init__(p=p)
        self.blur_limit = blur_limit

    def get_params(self) -> dict[str, Any]:
        """Draw the kernel."""
        side = self.py_random.choice(range(self.blur_limit[0], self.blur_limit[1] + 1, 2))
        (x1, x2), (y1, y2) = ([self.py_random.randrange(side) for _ in range(2)] for _ in range(2))
        if x1 == x2:
            y1, y2 = self.py_random.sample(range(side), 2)
        kernel = cv2.line(np.zeros((side, side), np.uint8), (x1, y1), (x2, y2), 1, thickness=1).astype(np.float32)
        return {"kernel": kernel / kernel.sum()}

    def apply(self, img: np.ndarray, kernel: np.ndarray, **params: Any) -> np.ndarray:
        """Convolve the picture."""
        return cv2.filter2D(img, ddepth=-1, kernel=kernel).reshape(img.shape)


class ElasticTransform(GeometryTransform):
    """Moves three points by up to ``alpha_affine`` pixels (an affine map), then displaces smoothly at random.

    The displacement is uniform noise in (-1, 1), smoothed by a Gaussian of ``sigma`` pixels, times ``alpha``. 2.0.8's
    own has no affine part and draws normal noise.
    """

    class InitSchema(_BorderSchema):
        alpha: float = Field(ge=0)
        sigma: float = Field(gt=0)
        alpha_affine: float = Field(ge=0)
        approximate: bool

    def __init__(
        self,
        alpha: float = 1.0,
        sigma: float = 50.0,
        alpha_affine: float = 50.0,
        interpolation: int = cv2.INTER_LINEAR,
        border_mode: int = cv2.BORDER_REFLECT_101,
        fill: Fill = 0.0,
        fill_mask: Fill = 0.0,
        approximate: bool = False,
        p: float = 0.5,
    ) -> None:
        """``approximate``: smooth by a kernel of at most 17 pixels, for any ``sigma``."""
        super().__init__(p=p)
        self.alpha = alpha
        self.sigma = sigma
        self.alpha_affine = alpha_affine
        self.interpolation = interpolation
        self.border_mode = border_mode
        self.fill = fill
        self.fill_mask = fill_mask
        self.approximate = approximate

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the matrix and the maps."""
        height, width = params["shape"][:2]
        middle, side = np.float32((height // 2, width // 2)), min(height, width) // 3
        points = np.float32([middle + side, (middle[0] + side, middle[1] - side), middle - side])
        moved = points + self.random_generator.uniform(-self.alpha_affine, self.alpha_affine, (3, 2)).astype(np.float32)
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        return {
            "matrix": cv2.getAffineTransform(points, moved),
            "map_x": columns + self._displacement(height, width),
            "map_y": rows + self._displacement(height, width),
        }

    def _displacement(self, height: int, width: int) -> np.ndarray:
        noise = self.random_generator.random((height, width), dtype=np.float32) * 2 - 1
        # scipy's filter of 2019 reached 4 sigma and mirrored the border, its edge pixel included.
        kernel = (17, 17) if self.approximate else (2 * int(4 * self.sigma + 0.5) + 1,) * 2
        border = cv2.BORDER_REFLECT_101 if self.approximate else cv2.BORDER_REFLECT
        return cv2.GaussianBlur(noise, kernel, self.sigma, borderType=border) * np.float32(self.alpha)

    def apply(
        self, img: np.ndarray, matrix: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any
    ) -> np.ndarray:
        """Warp the picture twice."""
        return self._warped(img, matrix, map_x, map_y, self.interpolation, self.fill)

    def apply_to_mask(
        self, mask: np.ndarray, matrix: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any
    ) -> np.ndarray:
        """Warp a mask twice by the nearest pixel."""
        return self._warped(mask, matrix, map_x, map_y, cv2.INTER_NEAREST, self.fill_mask)

    def _warped(
        self,
        image: np.ndarray,
        matrix: np.ndarray,
        map_x: np.ndarray,
        map_y: np.ndarray,
        interpolation: int,
        fill: Fill,
    ) -> np.ndarray:
        moved = warp_affine(image, matrix, interpolation, self.border_mode, fill)
        return remap(moved, map_x, map_y, interpolation, self.border_mode, fill)
