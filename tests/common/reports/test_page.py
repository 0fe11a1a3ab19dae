"""common/reports/page.py: HTML that stands alone and says in words what it draws."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.reports import page

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that wasn't opened last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def check(html: str) -> None:
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []


def test_a_page_is_one_well_formed_file_without_scripts_or_addresses_for_light_and_dark() -> None:
    frame = pd.DataFrame({"n": [1, 2]}, index=["a", "b"])
    html = page.page(
        "Title",
        "lead",
        [
            page.section("S", page.cards(page.table("T", frame), page.pairs("P", frame / 2, "note"))),
            page.findings([(True, "bad"), (False, "good")]),
            page.histogram("H", np.array([1, 3]), np.array([0, 1, 2]), "in words"),
            page.tiles([(np.zeros((4, 4), np.uint8), "black")]),
        ],
    )
    check(html)
    assert "prefers-color-scheme: dark" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert 'aria-label="H. in words"' in html
    assert 'alt="black"' in html
    assert "▲ look" in html
    assert "✓ fine" in html


def test_text_of_the_data_is_never_taken_for_html() -> None:
    evil = '<img src=x onerror="1">&'
    frame = pd.DataFrame({evil: [evil]}, index=[evil])
    parts = [page.table(evil, frame, evil), page.paragraph(evil), page.findings([(True, evil)])]
    parts += [page.tiles([(np.zeros((2, 2), np.uint8), evil)]), page.histogram(evil, np.ones(1), np.arange(2), evil)]
    parts.append(page.pairs(evil, pd.DataFrame({evil: [1.0], "b": [0.5]}, index=[evil]), evil))
    for part in parts:
        check(part)
        assert "<img src=x" not in part
        assert 'onerror="1"' not in part


def test_a_histograms_bars_start_at_zero_and_are_as_high_as_their_counts() -> None:
    html = page.histogram("H", np.array([2, 0, 8, 4]), np.arange(5), "")
    heights = [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', html)]
    np.testing.assert_allclose(np.array(heights) / heights[2], [0.25, 0, 1, 0.5], atol=0.01)


def test_pairs_show_their_numbers_and_leave_out_what_is_unknown() -> None:
    html = page.pairs("P", pd.DataFrame({"here": [0.1, 0.2], "there": [0.4, np.nan]}, index=["a", "b"]), "")
    assert re.findall(r">([\d.]+%)<", html) == ["10.00%", "40.00%", "20.00%"]
    assert "upper: here" in html
    assert "lower: there" in html


def chart_points(html: str, number: int) -> np.ndarray:
    path = re.findall(r'<polyline points="([^"]+)" style="stroke: var\(--\w+\)" stroke-dasharray="[^"]*"><title>', html)
    return np.array([[float(value) for value in pair.split(",")] for pair in path[number].split()])


def test_a_lines_points_lie_where_their_numbers_say_in_the_given_ranges() -> None:
    html = page.lines("L", [page.Line("a", [0, 5, 10], [0, 1, 0.5])], ("x", "y"), "", (0, 10), (0, 1))
    check(html)
    points = chart_points(html, 0)
    share = (points - points[0]) / (np.array([points[2, 0], points[1, 1]]) - points[0])
    np.testing.assert_allclose(share, [[0, 0], [0.5, 1], [1, 0.5]], atol=1e-3)


def test_lines_leave_out_what_is_not_finite_and_tell_lines_apart_by_more_than_colour() -> None:
    series = [page.Line("one", [0, 1, 2], [1, np.nan, 3]), page.Line("<b>", [0, 2], [2, 2]), page.Line("none", [], [])]
    html = page.lines("L", series, ("iteration", "loss"), "in words")
    check(html)
    assert len(chart_points(html, 0)) == 2
    dashes = re.findall(r'stroke-dasharray="([^"]*)"><title>', html)
    assert len(set(dashes)) == 2
    assert 'aria-label="L: one, &lt;b&gt;; loss over iteration. in words"' in html


def test_a_line_of_one_point_is_a_dot_at_a_whole_iteration() -> None:
    html = page.lines("L", [page.Line("a", [10], [0.5])], ("iteration", "loss"))
    assert html.count("<circle") == 1
    assert re.findall(r'text-anchor="middle">([\d.]+)<', html) == ["10"]


@pytest.mark.parametrize("top", [0.0008, 0.06, 1.0, 123456.0])
def test_an_axis_name_stands_above_its_numbers_which_have_room_for_all_their_digits(top) -> None:
    html = page.lines("L", [page.Line("a", [0, 30000], [0, top])], ("iteration", "share of the time"))
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")?>([^<]+)<', html)
    (name,) = [float(y) for _, y, _, text in texts if text == "share of the time"]
    numbers = [(float(x), float(y), text) for x, y, anchor, text in texts if anchor == "end"]
    assert len(numbers) > 2
    assert all(y > name + 8 for _, y, _ in numbers)
    assert all(x >= 0.6 * 17 * len(text) - 6 for x, _, text in numbers)  # 17 px digits of a phone
    right = max(float(x) for x, _, anchor, text in texts if anchor == "middle" and text == "30000")
    assert right + 0.6 * 17 * len("30000") / 2 <= page.WIDTH


def test_a_table_wider_than_the_screen_is_reached_by_keys_and_words_go_on_in_a_new_line() -> None:
    frame = pd.DataFrame({"": ["long " * 100]}, index=["a"])
    assert page.table("T", frame).startswith('<figure tabindex="0"><figcaption>')
    words = page.table("", frame, words=True)
    assert words.startswith('<figure><table class="words"><tbody>')
    assert "figcaption" not in words


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [2.0, 2.0]])
def test_a_chart_of_no_value_or_of_one_is_no_error(values) -> None:
    check(page.lines("L", [page.Line("a", range(len(values)), values)], ("x", "y")))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside_their_span(low, width) -> None:
    ticks = page._ticks(low, low + width)
    assert 1 <= len(ticks) <= 7
    slack = 1e-6 * width + 4 * np.spacing(abs(low) + width)  # and what a float of this size can't tell apart
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)
