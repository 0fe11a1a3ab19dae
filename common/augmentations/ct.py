"""Augmentations in Hounsfield units: they imitate differences between scanners, protocols and patients.

All take HU, int16 or float, as (H, W) or (H, W, K) neighbouring slices, and return float32 of the same shape. The K
slices share a draw. They stand before DicomWindowShift. Default strengths are round numbers that look plausible; they
are not fitted to data.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema
from pydantic import Field, model_validator

from common.augmentations.base import HOUNSFIELD, ImageTransform, Range, SymmetricRange
from common.augmentations.warp import AffineTransform, warp_affine
from common.errors import UsageError

AIR_HU = -1024.0
BODY_HU = -300.0  # tissue and bone lie above, air below

Pair = tuple[float, float]


def as_hounsfield(image: np.ndarray, name: str) -> np.ndarray:
    """Return ``image`` as float32; UsageError if its type, shape or range can't be Hounsfield units."""
    kind = image.dtype
    if image.ndim not in (2, 3) or not (kind == np.int16 or np.issubdtype(kind, np.floating)):
        raise UsageError(
            f"{name} takes Hounsfield units, int16 or float, of shape (H, W) or (H, W, neighbours); got {kind} "
            f"{image.shape}"
        )
    if kind != np.int16 and image.size and image.min() >= 0 and 0 < image.max() <= 1:
        raise UsageError(f"{name} takes Hounsfield units; got a picture on 0..1")
    return image.astype(np.float32)


class _HounsfieldTransform(ImageTransform):
    units = HOUNSFIELD

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Check the picture and change it."""
        return self.change(as_hounsfield(img, type(self).__name__), **params)

    def change(self, image_hu: np.ndarray, **params: Any) -> np.ndarray:
        """Return the changed picture; ``image_hu`` is float32 and may be changed in place."""
        raise NotImplementedError


class HounsfieldNoise(_HounsfieldTransform):
    """Adds normal noise, with a standard deviation in HU from ``std_range`` and grain like that of a reconstruction.

    ``grain_range``: sigma, in pixels, of the Gaussian that smooths the noise before it is scaled to its standard
    deviation; 0 gives white noise.
    """

    class InitSchema(BaseTransformInitSchema):
        std_range: Range
        grain_range: Range

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse negative deviations."""
            if min(self.std_range[0], self.grain_range[0]) < 0:
                raise ValueError("std_range and grain_range must be at least 0")
            return self

    def __init__(self, std_range: Pair = (2.0, 12.0), grain_range: Pair = (0.0, 1.0), p: float = 0.5) -> None:
        """``std_range`` in HU, ``grain_range`` in pixels."""
        super().__init__(p=p)
        self.std_range = std_range
        self.grain_range = grain_range

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the noise."""
        std, grain = self.py_random.uniform(*self.std_range), self.py_random.uniform(*self.grain_range)
        noise = self.random_generator.standard_normal(params["shape"], dtype=np.float32)
        if grain > 0:
            noise = _blurred(noise, grain)
            noise /= max(float(noise.std()), 1e-6)
        return {"noise": noise * np.float32(std)}

    def change(self, image_hu: np.ndarray, noise: np.ndarray, **params: Any) -> np.ndarray:
        """Add the noise."""
        return image_hu + noise


class ReconstructionKernel(_HounsfieldTransform):
    """Imitates a softer or sharper reconstruction kernel.

    ``strength_range``: below 0, the picture is blended with itself smoothed by ``sigma`` pixels (−1: only the smoothed
    one). Above 0, the difference from the smoothed picture is added (unsharp mask).
    """

    class InitSchema(BaseTransformInitSchema):
        strength_range: SymmetricRange
        sigma: float = Field(gt=0)

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse strengths that are no blend."""
            if self.strength_range[0] < -1:
                raise ValueError("strength_range must be at least -1")
            return self

    def __init__(self, strength_range: float | Pair = (-0.8, 0.8), sigma: float = 1.0, p: float = 0.5) -> None:
        """``sigma`` in pixels."""
        super().__init__(p=p)
        self.strength_range = strength_range
        self.sigma = sigma

    def get_params(self) -> dict[str, Any]:
        """Draw the strength."""
        return {"strength": self.py_random.uniform(*self.strength_range)}

    def change(self, image_hu: np.ndarray, strength: float, **params: Any) -> np.ndarray:
        """Add or subtract the detail that smoothing removes."""
        return image_hu + np.float32(strength) * (image_hu - _blurred(image_hu, self.sigma))


class SliceThickness(_HounsfieldTransform):
    """Averages neighbouring slices, as a thicker slice does, over a box whose width comes from ``slices_range``.

    Takes (H, W, K) with K of at least 2. A width of 1 slice changes nothing. With a width of 2, each slice gets a
    quarter of both neighbours. The first and last slice are repeated beyond the ends.
    """

    class InitSchema(BaseTransformInitSchema):
        slices_range: Range

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse a box thinner than a slice."""
            if self.slices_range[0] < 1 or self.slices_range[1] > 3:
                raise ValueError("slices_range must lie from 1 to 3")
            return self

    def __init__(self, slices_range: Pair = (1.0, 2.0), p: float = 0.5) -> None:
        """``slices_range`` in slices, 1 to 3."""
        super().__init__(p=p)
        self.slices_range = slices_range

    def get_params(self) -> dict[str, Any]:
        """Draw the width."""
        return {"slices": self.py_random.uniform(*self.slices_range)}

    def change(self, image_hu: np.ndarray, slices: float, **params: Any) -> np.ndarray:
        """Average along the slices."""
        if image_hu.ndim != 3 or image_hu.shape[2] < 2:
            raise UsageError(
                f"SliceThickness takes neighbouring slices, (H, W, K), K above 1; got {image_hu.shape}: give "
                "--data_context=1 or more, or take it out of the file"
            )
        share = np.float32((slices - 1) / (2 * slices))
        before = np.concatenate([image_hu[..., :1], image_hu[..., :-1]], axis=-1)
        behind = np.concatenate([image_hu[..., 1:], image_hu[..., -1:]], axis=-1)
        return (1 - 2 * share) * image_hu + share * (before + behind)


class HounsfieldContrast(_HounsfieldTransform):
    """Changes contrast and brightness: stretches HU about ``center`` and shifts them, without gamma.

    HU becomes center + factor · (HU − center) + shift. A window of another width and centre would do the same, but not
    before other steps. Air (−1024 and below) stays air.
    """

    class InitSchema(BaseTransformInitSchema):
        factor_range: Range
        shift_range: SymmetricRange
        center: float

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse factors that would invert the contrast."""
            if self.factor_range[0] <= 0:
                raise ValueError("factor_range must be above 0")
            return self

    def __init__(
        self,
        factor_range: Pair = (0.9, 1.1),
        shift_range: float | Pair = (-5.0, 5.0),
        center: float = 40.0,
        p: float = 0.5,
    ) -> None:
        """``shift_range`` and ``center`` in HU."""
        super().__init__(p=p)
        self.factor_range = factor_range
        self.shift_range = shift_range
        self.center = center

    def get_params(self) -> dict[str, Any]:
        """Draw factor and shift."""
        return {
            "factor": self.py_random.uniform(*self.factor_range),
            "shift": self.py_random.uniform(*self.shift_range),
        }

    def change(self, image_hu: np.ndarray, factor: float, shift: float, **params: Any) -> np.ndarray:
        """Stretch and shift."""
        changed = image_hu * np.float32(factor) + np.float32(self.center * (1 - factor) + shift)
        return np.where(image_hu <= AIR_HU, image_hu, changed)


class HeadRotation(AffineTransform):
    """Rotates the head about the picture's middle by degrees from ``limit``; air (−1024 HU) fills the border."""

    units = HOUNSFIELD
    fill = AIR_HU

    class InitSchema(BaseTransformInitSchema):
        limit: SymmetricRange

    def __init__(self, limit: float | Pair = (-15.0, 15.0), p: float = 0.5) -> None:
        """``limit`` in degrees, counter-clockwise; one number x means (-x, x)."""
        super().__init__(p=p)
        self.limit = limit

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the rotation."""
        height, width = params["shape"][:2]
        middle = ((width - 1) / 2, (height - 1) / 2)
        return {"matrix": cv2.getRotationMatrix2D(middle, self.py_random.uniform(*self.limit), 1.0)}

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Rotate the picture."""
        return super().apply(as_hounsfield(img, type(self).__name__), matrix)


class HeadMotion(_HounsfieldTransform):
    """Imitates a head that moved during the scan: averages ``poses`` rotated and shifted copies with random weights.

    ``rotation`` (degrees) and ``shift`` (shares of the sides) limit each pose. The first pose is the original one.
    """

    class InitSchema(BaseTransformInitSchema):
        poses: int = Field(ge=2, le=16)
        rotation: float = Field(ge=0, le=45)
        shift: float = Field(ge=0, le=0.25)

    def __init__(self, poses: int = 4, rotation: float = 2.0, shift: float = 0.01, p: float = 0.1) -> None:
        """More poses blur more evenly; few show as ghosts."""
        super().__init__(p=p)
        self.poses = poses
        self.rotation = rotation
        self.shift = shift

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the poses and their weights."""
        height, width = params["shape"][:2]
        matrices = []
        for _ in range(self.poses - 1):
            angle = self.py_random.uniform(-self.rotation, self.rotation)
            matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
            matrix[0, 2] += self.py_random.uniform(-self.shift, self.shift) * width
            matrix[1, 2] += self.py_random.uniform(-self.shift, self.shift) * height
            matrices.append(matrix)
        return {"matrices": matrices, "weights": self.random_generator.dirichlet(np.full(self.poses, 2.0))}

    def change(
        self, image_hu: np.ndarray, matrices: list[np.ndarray], weights: np.ndarray, **params: Any
    ) -> np.ndarray:
        """Average the poses."""
        total = image_hu * np.float32(weights[0])
        for matrix, weight in zip(matrices, weights[1:], strict=True):
            moved = warp_affine(image_hu, matrix, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, AIR_HU)
            total += moved * np.float32(weight)
        return total


class MetalStreak(_HounsfieldTransform):
    """Adds bright and dark streaks from one dense point, like those of metal and beam hardening.

    The point is one of the densest ``share`` of the body's pixels. ``count_range`` streaks, bright and dark in turn,
    have random directions, the width ``width_degrees`` and amplitudes from ``amplitude_range`` HU. They fade with the
    distance: to half at ``reach`` of the longer side. Air stays as it is.
    """

    class InitSchema(BaseTransformInitSchema):
        amplitude_range: Range
        count_range: tuple[int, int]
        width_degrees: float = Field(gt=0, le=45)
        reach: float = Field(gt=0)
        share: float = Field(gt=0, le=1)

        @model_validator(mode="after")
        def check(self) -> Any:
            """Refuse a range without streaks."""
            if not 1 <= self.count_range[0] <= self.count_range[1]:
                raise ValueError("count_range must be a minimum of at least 1 and a maximum")
            return self

    def __init__(
        self,
        amplitude_range: Pair = (20.0, 150.0),
        count_range: tuple[int, int] = (4, 12),
        width_degrees: float = 2.0,
        reach: float = 0.2,
        share: float = 0.02,
        p: float = 0.1,
    ) -> None:
        """``amplitude_range`` in HU at the point."""
        super().__init__(p=p)
        self.amplitude_range = amplitude_range
        self.count_range = count_range
        self.width_degrees = width_degrees
        self.reach = reach
        self.share = share

    def get_params(self) -> dict[str, Any]:
        """Draw the streaks."""
        count = self.py_random.randint(*self.count_range)
        return {
            "place": self.py_random.random(),
            "angles": [self.py_random.uniform(0, np.pi) for _ in range(count)],
            "amplitudes": [(-1) ** i * self.py_random.uniform(*self.amplitude_range) for i in range(count)],
        }

    def change(
        self, image_hu: np.ndarray, place: float, angles: list[float], amplitudes: list[float], **params: Any
    ) -> np.ndarray:
        """Add the streaks."""
        flat = image_hu if image_hu.ndim == 2 else image_hu.max(axis=2)
        body = np.flatnonzero(flat > BODY_HU)
        if body.size == 0:
            return image_hu
        densest = body[np.argsort(flat.ravel()[body], kind="stable")][-max(1, round(self.share * body.size)) :]
        row, column = divmod(int(densest[int(place * densest.size)]), flat.shape[1])
        y, x = np.ogrid[: flat.shape[0], : flat.shape[1]]
        y, x = (y - row).astype(np.float32), (x - column).astype(np.float32)
        distance = np.hypot(y, x)
        direction = np.arctan2(y, x)
        streaks = np.zeros(flat.shape, np.float32)
        width = np.deg2rad(self.width_degrees)
        for angle, amplitude in zip(angles, amplitudes, strict=True):
            off = np.sin(direction - np.float32(angle))  # a streak runs both ways from the point
            streaks += np.float32(amplitude) * np.exp(-0.5 * (off / np.float32(width)) ** 2)
        streaks /= 1 + distance / np.float32(self.reach * max(flat.shape))
        if image_hu.ndim == 3:
            streaks = streaks[..., np.newaxis]
        return np.where(image_hu > BODY_HU, image_hu + streaks, image_hu)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)
