"""common/preprocessing/crop.py: what is kept of a slice, on drawn heads whose outline is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.preprocessing.crop import MARGIN_MM, find_head

SIDE, SPACING = 256, 0.9


def draw(
    centre: tuple[float, float] = (120, 128),
    axes: tuple[float, float] = (95, 75),
    turn: float = 0,
    *,
    table: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A slice of SIDE² pixels of SPACING mm and the head's outline: scalp, skull, brain, sinus, holder, table, tube."""

    def ellipse(shrink: float) -> np.ndarray:
        size = (round(axes[1] - shrink), round(axes[0] - shrink))
        place = (round(centre[1]), round(centre[0]))
        return cv2.ellipse(np.zeros((SIDE, SIDE), np.uint8), place, size, turn, 0, 360, 1, -1).astype(bool)

    noise = np.random.default_rng(0).normal(0, 6, (SIDE, SIDE))
    hu = np.full((SIDE, SIDE), -1000.0)
    if table:
        y, x = np.ogrid[:SIDE, :SIDE]
        distance = np.hypot(x - centre[1], y - centre[0])
        hu[(np.abs(distance - axes[0] - 3) < 1.2) & (y > centre[0] + 20)] = -60  # the holder's shell, at the skin
        hu[(distance > axes[0] + 4) & (distance < axes[0] + 12) & (y > centre[0] + 20)] = -930  # its foam
        hu[np.broadcast_to(np.abs(y - 245) < 4, hu.shape)] = 120
        hu[np.abs(y - x / 2 - 5) < 1.5] = 400
    head = ellipse(0)
    for shrink, value in ((0, -90), (3, 50), (7, 1200), (13, 35)):
        hu[ellipse(shrink)] = value
    cv2.circle(hu, (round(centre[1]), round(centre[0] - axes[0] / 3)), 9, -1000, -1)  # air in a sinus
    return (hu + noise).round().clip(-1024).astype(np.int16), head


def full_mask(hu: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    crop = find_head(hu, spacing, spacing)
    assert crop.mask is not None
    mask = np.zeros(hu.shape, bool)
    mask[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns] = crop.mask
    return mask


POSES = {
    "upright": {},
    "turned": {"turn": 35},
    "vertex": {"axes": (24, 20)},
    "cut off below": {"centre": (215, 128)},
    "cut off at the side": {"centre": (120, 225)},
    "cut off in a corner": {"centre": (30, 30)},
    "larger than the picture": {"axes": (150, 140)},
}


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("table", [False, True])
def test_the_whole_head_is_kept_and_hardly_more_than_a_margin(pose: str, table: bool) -> None:
    hu, head = draw(**POSES[pose], table=table)
    mask = full_mask(hu)
    assert mask[head].mean() > 0.998  # a cavity that the border opens stays open
    reach = 2 * round((MARGIN_MM + 5) / SPACING) + 1
    allowed = cv2.dilate(head.astype(np.uint8), np.ones((reach, reach), np.uint8)).astype(bool)
    assert (mask & ~allowed).sum() < 0.002 * mask.size


def test_the_box_is_the_masks_and_what_lies_in_it_is_kept_to_the_last_bit() -> None:
    hu, head = draw()
    crop = find_head(hu, SPACING, SPACING)
    kept = crop.apply(hu)
    assert kept.shape == (crop.rows, crop.columns) == crop.mask.shape
    assert kept.dtype == np.int16
    inside = slice(crop.top, crop.top + crop.rows), slice(crop.left, crop.left + crop.columns)
    np.testing.assert_array_equal(kept[crop.mask], hu[inside][crop.mask])
    assert (kept[~crop.mask] == -1024).all()
    for axis in (0, 1):
        edges = crop.mask.any(axis=1 - axis)
        assert edges[0]
        assert edges[-1]
    rows = np.flatnonzero(head.any(axis=1))
    assert rows[0] - 10 <= crop.top <= rows[0]
    assert rows[-1] < crop.top + crop.rows <= rows[-1] + 11


def test_the_result_does_not_depend_on_the_pixels_size() -> None:
    hu, _ = draw()
    larger = cv2.resize(hu, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_LINEAR)
    mask, doubled = full_mask(hu), full_mask(larger, SPACING / 2)
    assert (doubled[::2, ::2] ^ mask).mean() < 0.01


def test_an_unknown_spacing_is_taken_for_a_usual_one() -> None:
    hu, head = draw()
    assert full_mask(hu, float("nan"))[head].mean() > 0.999


@pytest.mark.parametrize(
    "hu",
    [
        np.full((SIDE, SIDE), -1000, np.int16),
        np.where(np.abs(np.arange(SIDE)[:, None] - 240) < 5, 120, -1000).astype(np.int16)
        + np.zeros((1, SIDE), np.int16),
        np.zeros((1, 1), np.int16),
    ],
    ids=["air", "table", "one pixel"],
)
def test_where_there_is_no_head_the_whole_picture_is_kept(hu: np.ndarray) -> None:
    crop = find_head(hu, SPACING, SPACING)
    assert (crop.top, crop.left, crop.rows, crop.columns) == (0, 0, *hu.shape)
    assert crop.apply(hu) is hu


@settings(max_examples=50, deadline=None)
@given(
    hu=hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=60)),
    spacing=st.sampled_from([float("nan"), 0.0, -1.0, 0.01, 1.0, 50.0, 1e9]),
)
def test_any_picture_gives_a_box_inside_it(hu: np.ndarray, spacing: float) -> None:
    crop = find_head(hu, spacing, 1.0)
    assert 0 <= crop.top < crop.top + crop.rows <= hu.shape[0]
    assert 0 <= crop.left < crop.left + crop.columns <= hu.shape[1]
    assert crop.apply(hu).shape == (crop.rows, crop.columns)
