from __future__ import annotations

import json
import pickle

import albumentations as A
import cv2
import numpy as np
import pytest

from common.albumentations import (
    OWN_CLASSES,
    DicomWindowShift,
    HeadMotion,
    HeadRotation,
    HounsfieldContrast,
    HounsfieldNoise,
    MetalStreak,
    ReconstructionKernel,
    SliceThickness,
)
from common.errors import UsageError
from common.transforms.pipeline import pipeline_from_dict

CT_CLASSES = (
    HounsfieldNoise,
    ReconstructionKernel,
    HounsfieldContrast,
    HeadRotation,
    HeadMotion,
    MetalStreak,
    SliceThickness,
)
WINDOWS = ((40.0, 80.0),)


def head(shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    """A skull of 1000 HU around brain of 35 HU in air."""
    hu = np.full(shape[:2], -1024, np.int16)
    cv2.circle(hu, (32, 32), 24, 1000, -1)
    cv2.circle(hu, (32, 32), 20, 35, -1)
    return hu if len(shape) == 2 else np.repeat(hu[..., None], shape[2], axis=2)


def applied(transform: A.BasicTransform, image: np.ndarray, seed: int = 0) -> np.ndarray:
    transform.set_random_seed(seed)
    return transform(image=image)["image"]


@pytest.mark.parametrize("kind", CT_CLASSES)
def test_it_keeps_shape_and_input_and_survives_json_and_pickling(kind: type) -> None:
    image = head((64, 64, 3))
    before = image.copy()
    transform = kind(p=1)
    changed = applied(transform, image)
    assert changed.shape == image.shape
    assert changed.dtype == np.float32
    assert not np.array_equal(changed, image) or kind is SliceThickness  # equal slices have an equal mean
    np.testing.assert_array_equal(image, before)
    again = A.from_dict(json.loads(json.dumps(A.to_dict(transform))))
    for copy in (again, pickle.loads(pickle.dumps(transform))):
        np.testing.assert_array_equal(applied(copy, image), changed)


@pytest.mark.parametrize("kind", CT_CLASSES)
@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)]
)
def test_what_cannot_be_hounsfield_units_is_refused(kind: type, image: np.ndarray) -> None:
    with pytest.raises(UsageError, match=f"{kind.__name__} takes Hounsfield units"):
        applied(kind(p=1), image)


@pytest.mark.parametrize("kind", CT_CLASSES)
def test_an_order_on_wrong_units_is_refused_when_the_file_is_loaded(kind: type) -> None:
    def load(*transforms: A.BasicTransform, **options) -> None:
        pipeline_from_dict(json.loads(json.dumps(A.to_dict(A.Compose(list(transforms))))), "f.json", WINDOWS, **options)

    load(kind(), DicomWindowShift())
    load(A.OneOf([kind(), kind()]), A.HorizontalFlip())  # the windows go behind it
    for wrong in ([DicomWindowShift(), kind()], [DicomWindowShift(), A.OneOf([kind(), A.HorizontalFlip()])]):
        with pytest.raises(UsageError, match=rf"f.json: {kind.__name__} takes Hounsfield units"):
            load(*wrong)
    with pytest.raises(UsageError, match=rf"f.json: {kind.__name__} takes Hounsfield units"):
        load(kind(), windowed=True)
    with pytest.raises(UsageError, match="GaussNoise stands before DicomWindowShift"):
        load(A.GaussNoise(), kind(), DicomWindowShift())


def test_noise_has_its_deviation_in_hounsfield_units_whatever_its_grain() -> None:
    flat = np.full((128, 128), 35, np.int16)
    white = applied(HounsfieldNoise((8, 8), (0, 0), p=1), flat) - 35
    grainy = applied(HounsfieldNoise((8, 8), (1, 1), p=1), flat) - 35
    for noise in (white, grainy):
        assert abs(noise.std() - 8) < 0.3
        assert abs(noise.mean()) < 0.5
    neighbours = [np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] for noise in (white, grainy)]
    assert abs(neighbours[0]) < 0.05
    assert neighbours[1] > 0.6


def test_a_soft_kernel_lowers_an_edge_and_a_sharp_one_overshoots() -> None:
    edge = np.repeat(np.where(np.arange(32) < 16, 0, 100).astype(np.int16)[None], 32, axis=0)
    soft = applied(ReconstructionKernel((-1, -1), p=1), edge)
    sharp = applied(ReconstructionKernel((0.5, 0.5), p=1), edge)
    np.testing.assert_allclose(soft, cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 1), atol=1e-3)
    assert sharp.max() > 105
    assert sharp.min() < -5
    assert abs(sharp.mean() - edge.mean()) < 0.5


def test_a_slice_of_twice_the_thickness_takes_a_quarter_of_each_neighbour() -> None:
    hu = np.zeros((4, 4, 3), np.int16)
    hu[..., 1] = 100
    thick = applied(SliceThickness((2, 2), p=1), hu)
    np.testing.assert_allclose(thick[0, 0], [25, 50, 25], atol=1e-4)
    with pytest.raises(UsageError, match="neighbouring slices"):
        applied(SliceThickness(p=1), hu[..., 1])


def test_contrast_is_linear_about_its_centre_and_leaves_air() -> None:
    hu = np.array([[-1024, 0, 40, 140]], np.int16)
    changed = applied(HounsfieldContrast((1.1, 1.1), (3, 3), center=40, p=1), hu)
    np.testing.assert_allclose(changed, [[-1024, -1, 43, 153]], atol=1e-3)


def test_a_rotated_head_has_air_at_the_border_and_takes_its_mask_along() -> None:
    hu = np.full((33, 33), 35, np.int16)
    hu[4, 16] = 1000
    mask = (hu == 1000).astype(np.uint8)
    transform = A.Compose([HeadRotation((90, 90), p=1)])
    result = transform(image=hu, mask=mask)
    assert result["image"][16, 4] == pytest.approx(1000)  # counter-clockwise: up goes left
    assert result["mask"][16, 4] == 1
    tilted = applied(HeadRotation((45, 45), p=1), hu)
    assert tilted[0, 0] == -1024


def test_motion_smears_the_skull_and_keeps_the_mean_of_the_brain() -> None:
    hu = head()
    moved = applied(HeadMotion(poses=4, rotation=0, shift=0.05, p=1), hu)
    assert moved.max() <= 1000 + 1e-3
    assert (moved > 900).sum() < (hu > 900).sum()
    assert abs(moved[28:36, 28:36].mean() - 35) < 1


def test_streaks_come_from_dense_pixels_bright_and_dark_and_leave_air() -> None:
    hu = head()
    streaks = applied(MetalStreak((100, 100), (6, 6), p=1), hu) - hu
    assert (streaks[hu == -1024] == 0).all()
    assert streaks.max() > 20
    assert streaks.min() < -20
    np.testing.assert_array_equal(applied(MetalStreak(p=1), np.full((8, 8), -1024, np.int16)), -1024.0)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (HounsfieldNoise, {"std_range": (-1, 2)}),
        (HounsfieldNoise, {"std_range": (3, 2)}),
        (ReconstructionKernel, {"strength_range": (-2, 0)}),
        (SliceThickness, {"slices_range": (0.5, 2)}),
        (HounsfieldContrast, {"factor_range": (0, 1)}),
        (HeadMotion, {"poses": 1}),
        (MetalStreak, {"count_range": (0, 3)}),
    ],
)
def test_impossible_arguments_are_refused(kind: type, arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        kind(**arguments)


def test_every_class_of_ours_has_its_name_in_files() -> None:
    for name, kind in OWN_CLASSES.items():
        assert kind.get_class_fullname() == f"common.albumentations.{name}"
