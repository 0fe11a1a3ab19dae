from __future__ import annotations

import pickle

import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.albumentations import DicomWindowShift, fixed_windows
from common.errors import UsageError


def test_the_defaults_are_the_brain_subdural_and_bone_windows() -> None:
    """By hand: (HU − (centre − width / 2)) / width, clipped to 0..1."""
    hu = np.array([[-1024, 0, 40, 80, 180, 3000]], dtype=np.int16)
    image = DicomWindowShift()(image=hu)["image"]
    assert image.shape == (1, 6, 3)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, :, 0], [0, 0, 0.5, 1, 1, 1], atol=1e-6)  # 40/80: 0..80
    np.testing.assert_allclose(image[0, :, 1], [0, 0.1, 0.3, 0.5, 1, 1], atol=1e-6)  # 80/200: -20..180
    np.testing.assert_allclose(image[0, :, 2], [0, 150 / 380, 0.5, 230 / 380, 330 / 380, 1], atol=1e-6)  # -150..230


def test_neighbouring_slices_come_out_neighbour_by_neighbour() -> None:
    hu = np.stack([np.full((2, 2), 0), np.full((2, 2), 80)], axis=-1).astype(np.float32)
    image = fixed_windows([(40, 80), (80, 200)])(image=hu)["image"]
    np.testing.assert_allclose(image[0, 0], [0, 0.1, 1, 0.5], atol=1e-6)


@given(
    hu=hnp.arrays(np.int16, (3, 4)),
    center=st.integers(-1000, 3000),
    width=st.integers(1, 5000),
)
def test_a_window_stays_in_0_to_1_and_never_turns_an_order_round(hu: np.ndarray, center: int, width: int) -> None:
    image = fixed_windows([(center, width)])(image=hu)["image"]
    assert image.min() >= 0
    assert image.max() <= 1
    order = np.argsort(hu, axis=None)
    assert (np.diff(image.ravel()[order]) >= 0).all()


def test_draws_reach_both_ends_of_whole_ranges_and_nothing_beyond() -> None:
    transform = DicomWindowShift([80], [82], [39], [41])
    transform.set_random_seed(0)
    drawn = {transform.get_params()["windows"][0] for _ in range(300)}
    assert drawn == {(center, width) for center in (39, 40, 41) for width in (80, 81, 82)}


def test_draws_from_broken_ranges_are_fractions_within_them() -> None:
    transform = DicomWindowShift([80.5], [90.5], [40], [40])
    transform.set_random_seed(0)
    widths = [transform.get_params()["windows"][0][1] for _ in range(50)]
    assert all(80.5 <= width <= 90.5 for width in widths)
    assert len(set(widths)) == 50


def test_it_survives_json_and_pickling() -> None:
    transform = DicomWindowShift([80, 190], [90, 210], [30, 70], [50, 90])
    again = A.from_dict(A.to_dict(transform))
    copy = pickle.loads(pickle.dumps(transform))
    for other in (again, copy):
        assert A.to_dict(other) == A.to_dict(transform)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"window_width_mins": [80]}, "one value for each channel"),
        ({"window_width_mins": [0, 200, 380]}, "above 0"),
        ({"window_center_mins": [41, 80, 40]}, "above its maximum"),
        ({"p": 0.5}, "p must be 1"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(arguments: dict, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        DicomWindowShift(**arguments)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int32)])
def test_what_is_not_in_hounsfield_units_is_refused(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="takes Hounsfield units"):
        DicomWindowShift()(image=image)
