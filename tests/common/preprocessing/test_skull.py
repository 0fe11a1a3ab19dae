"""Tests of common/preprocessing/skull.py: what a skull encloses in a slice."""

from __future__ import annotations

import numpy as np
import pytest

from common.preprocessing.skull import HEAD_MM2, skull_area

SIDE, MM = 256, 0.9


def disc(radius_mm: float, step_mm: float = MM) -> np.ndarray:
    y, x = np.ogrid[:SIDE, :SIDE]
    return (y - SIDE / 2) ** 2 + (x - SIDE / 2) ** 2 < (radius_mm / step_mm) ** 2


def skull(inner_mm: float = 65.0) -> np.ndarray:
    """HU of scalp, a skull of 6 mm, and brain of a known radius in it."""
    image = np.full((SIDE, SIDE), -1000, np.int16)
    image[disc(inner_mm + 10)], image[disc(inner_mm + 6)], image[disc(inner_mm)] = 40, 900, 30
    return image


@pytest.mark.parametrize("spacing", [0.6, 0.9, 1.3])
def test_the_area_within_a_skull_is_measured_to_a_tenth(spacing: float) -> None:
    radius = 65.0
    image = np.full((SIDE, SIDE), -1000, np.int16)
    for size, hu in ((radius + 10, 40), (radius + 6, 900), (radius, 30)):
        image[disc(size, spacing)] = hu
    assert skull_area(image, spacing, spacing) == pytest.approx(np.pi * radius**2, rel=0.1)


def test_a_gap_of_the_skull_and_noise_of_a_sharp_kernel_leave_a_head_a_head() -> None:
    image = skull()
    image[: SIDE // 2, SIDE // 2 : SIDE // 2 + 8][image[: SIDE // 2, SIDE // 2 : SIDE // 2 + 8] == 900] = 40
    assert skull_area(image, MM, MM) > HEAD_MM2
    noisy = skull() + np.random.default_rng(0).normal(0, 60, (SIDE, SIDE)).astype(np.int16)
    assert skull_area(noisy, MM, MM) > HEAD_MM2
    empty = np.where(disc(65), -1000, skull()).astype(np.int16)  # as the skulls of neurolabusc/dcm_qa_ct
    assert skull_area(empty, MM, MM) > HEAD_MM2


def test_tissue_without_a_skull_around_it_is_no_head() -> None:
    belly = np.full((SIDE, SIDE), -1000, np.int16)
    belly[disc(105)], belly[disc(15)] = 40, 900  # with a vertebra
    assert skull_area(belly, MM, MM) < HEAD_MM2 / 10
    assert skull_area(np.full((SIDE, SIDE), -1000, np.int16), MM, MM) == 0


def test_nothing_is_said_of_a_picture_of_unknown_or_small_size() -> None:
    for spacing in (np.nan, 0.0, 0.2, 30.0):
        assert np.isnan(skull_area(skull(), spacing, MM))
