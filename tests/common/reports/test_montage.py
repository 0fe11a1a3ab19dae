"""Tests of common/reports/montage.py: what stands where in the picture of a series."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WorkError
from common.reports.montage import (
    MARKED,
    NAMES_WIDTH,
    SHOWN_SLICES,
    TILE,
    WIDTH,
    Heat,
    Highlight,
    draw_series,
    draw_strip,
    fit,
    heat_bar,
    hottest_of,
    overlay,
    shown_places,
    write_picture,
)

NAMES = ("one", "any")


def series(count, probability=0.1, side=40):
    probabilities = np.full((count, 2), probability)
    return [np.full((side, side), 90, np.uint8)] * count, probabilities


def framed(picture):
    return int((picture == MARKED).all(axis=2).sum())


def test_slices_at_or_above_one_half_are_framed_and_no_others():
    slices, probabilities = series(12)
    assert framed(draw_series("t", [], slices, probabilities, NAMES, [], "n")) == 0
    probabilities[[3, 4], 1] = 0.5, 0.9
    perimeter = 4 * (TILE - 1)
    assert 2 * perimeter <= framed(draw_series("t", [], slices, probabilities, NAMES, [], "n")) < 2 * perimeter + 400


def test_the_strip_is_brightest_where_the_probability_is_highest():
    probabilities = np.zeros((20, 2))
    probabilities[7, 1] = 1.0
    strip = draw_strip(probabilities, NAMES).astype(int).sum(axis=2)
    row = strip[17 + 5, NAMES_WIDTH : WIDTH - 10]
    assert int(row.argmax() // (len(row) / 20)) == 7


def changes(grey, heat, hottest):
    """How far each pixel is from the plain picture."""
    return np.abs(overlay(grey, heat, hottest).astype(int) - grey[..., None]).sum(axis=2)


def test_heat_colours_the_place_where_it_is_and_no_heat_changes_nothing():
    grey = np.full((100, 100), 120, np.uint8)
    assert changes(grey, Heat(np.zeros((4, 4), np.float32)), 1.0).max() == 0
    values = np.zeros((4, 4), np.float32)
    values[0, 3] = 1e-6
    change = changes(grey, Heat(values), hottest_of([None, Heat(values)]))
    top, left = np.unravel_index(change.argmax(), change.shape)
    assert top < 25
    assert left > 75
    assert change[60:, :30].max() == 0


def test_pictures_share_a_scale_and_heat_stays_inside_the_head_in_a_square_of_any_proportion():
    grey, weak, strong = np.full((80, 80), 120, np.uint8), *(np.full((4, 4), value, np.float32) for value in (1, 4))
    hottest = hottest_of([Heat(weak), None, Heat(strong)])
    assert hottest == 4
    assert hottest_of([None]) == 0
    assert changes(grey, Heat(weak), hottest).max() < 0.5 * changes(grey, Heat(strong), hottest).max()
    inside = np.zeros((20, 40), bool)  # the picture fills the middle half of the square's rows
    inside[:, 20:] = True
    found = changes(grey, Heat(strong, inside), hottest) > 0
    expected = np.zeros((80, 80), bool)
    expected[20:60, 40:] = True
    np.testing.assert_array_equal(found, expected)


def test_a_bar_shows_the_scale_where_a_slice_has_heat_and_only_there():
    slices, probabilities = series(3)
    heat = Heat(np.ones((3, 3), np.float32))
    heights = [
        len(draw_series("t", [], slices, probabilities, NAMES, [Highlight(0, one, "x")], "n", 1.0))
        for one in (heat, None)
    ]
    assert heights[0] - heights[1] == len(heat_bar(1.0))
    bar = heat_bar(1.0)
    coloured = np.ptp(bar.astype(int), axis=2).max(axis=0)
    marked = np.flatnonzero(coloured > 60)
    assert coloured[marked[-1] - 5] > coloured[marked[0] + 5]  # rises to the right


@given(count=st.integers(1, 500), marked=st.lists(st.integers(0, 499), max_size=4))
def test_all_slices_are_shown_or_sixty_with_those_that_are_marked(count, marked):
    marked = [place for place in marked if place < count]
    places = shown_places(count, marked)
    assert places == sorted(set(places))
    assert set(marked) | {0, count - 1} <= set(places)
    assert len(places) == count if count <= SHOWN_SLICES else SHOWN_SLICES <= len(places) <= SHOWN_SLICES + 4


@given(rows=st.integers(1, 300), columns=st.integers(1, 300))
def test_a_picture_of_any_size_keeps_its_proportion_in_the_middle_of_a_square(rows, columns):
    square = fit(np.full((rows, columns), 255, np.uint8), 64)
    assert square.shape == (64, 64)
    height, width = (int(np.count_nonzero(square.max(axis=axis))) for axis in (1, 0))
    assert max(height, width) == 64
    assert height == max(1, round(rows * 64 / max(rows, columns)))


@pytest.mark.parametrize("count", [1, 59, 75, 400])
def test_a_series_of_any_length_is_drawn_and_written(count, tmp_path):
    slices, probabilities = series(count, 0.7)
    highlights = [Highlight(count - 1, Heat(np.ones((3, 3), np.float32)), "last"), Highlight(0, None, "first")]
    path = tmp_path / "series.png"
    write_picture(path, draw_series("title", ["line"], slices, probabilities, NAMES, highlights, "notice"))
    assert cv2.imread(str(path)).shape[1] == WIDTH


def test_what_can_not_be_written_is_one_line(tmp_path):
    with pytest.raises((WorkError, OSError)):
        write_picture(tmp_path / "no" / "folder.png", np.zeros((2, 2, 3), np.uint8))
