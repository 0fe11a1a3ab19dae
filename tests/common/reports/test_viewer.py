"""common/reports/viewer.py: the page holds exact HU, and what a browser shows of it is what a reader asked for."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common.dicom.geometry import SliceGeometry
from common.reports import viewer
from common.reports.viewer import Slice, Stack, Study, choose_slices, pack, write_viewer
from tests.browser import BROWSER, Page, browser

LABELS = ("epidural", "subdural", "any")
ROWS, COLUMNS, COUNT = 40, 50, 12
HOSTILE = "</script><img src=x onerror=alert(1)> {{data}} & \"'"


def image(place: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """HU over the whole range of int16, with a soft middle."""
    noise = np.random.default_rng(place)
    hu = noise.integers(-32768, 32768, (rows, columns)).astype(np.int16)
    hu[10:30, 10:40] = noise.integers(-20, 120, (20, 30))
    hu[0, :4] = [-32768, 32767, -32768, 0]
    return hu


def unpacked(element: str, shape: tuple[int, int]) -> np.ndarray:
    """What the page holds of a slice, read without numpy's differences: one pixel after the other."""
    planes = zlib.decompress(base64.b64decode(element))
    half, last, values = len(planes) // 2, 0, []
    for low, high in zip(planes[:half], planes[half:], strict=True):
        code = low + 256 * high
        last += code // 2 if code % 2 == 0 else -(code + 1) // 2
        values.append((last + 32768) % 65536 - 32768)
    return np.array(values).reshape(shape)


def stack(
    count: int = COUNT, title: str = "series 1 of 1", size: tuple[int, int] = (ROWS, COLUMNS), known: bool = True
) -> Stack:
    nan = float("nan")
    places = [
        SliceGeometry((-100.0, -80.0, 5.0 * place), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), 0.8, 0.4, 5.0)
        if known
        else SliceGeometry((nan,) * 3, (nan,) * 6, nan, nan, nan)
        for place in range(count)
    ]
    slices = [
        Slice(*size, where, 5.0 * place if known else nan, [("picture", f"ID_{place}"), ("noted", HOSTILE)])
        for place, where in enumerate(places)
    ]
    probabilities = np.linspace(0, 0.3, count * 3).reshape(count, 3)
    probabilities[np.array([2, 7, 7]) % count, [0, 1, 2]] = 0.8, 0.9, 0.95
    return Stack(title, "From below.", [("series", HOSTILE)], slices, probabilities, lambda place: image(place, *size))


def study(*stacks: Stack) -> Study:
    values = dict(zip(LABELS, (0.8, 0.9, 0.95), strict=True))
    return Study(HOSTILE, values, "The study's value: highest slice.", [("patient", "patient_1")],
                 stacks or (stack(),), "Not for diagnosis.", [("study_2", "study_2.html")])  # fmt: skip


def elements(page: Path) -> dict[str, str]:
    return dict(re.findall(r'<script type="text/plain" id="(p[\d-]+)">([^<]*)</script>', page.read_text("utf-8")))


def test_the_page_holds_every_slices_exact_hounsfield_units(tmp_path: Path) -> None:
    second = stack(3, "series 2 of 2", (1, 7), known=False)
    second = replace(second, probabilities=np.zeros((3, 3)), read=lambda place: np.full((1, 7), place - 1, np.int16))
    assert write_viewer(tmp_path / "a.html", study(stack(), second)) == ""
    held = elements(tmp_path / "a.html")
    assert sorted(held) == sorted([f"p0-{place}" for place in range(COUNT)] + ["p1-0", "p1-1", "p1-2"])
    for place in range(COUNT):
        np.testing.assert_array_equal(unpacked(held[f"p0-{place}"], (ROWS, COLUMNS)), image(place))
    for place in range(3):
        np.testing.assert_array_equal(unpacked(held[f"p1-{place}"], (1, 7)), np.full((1, 7), place - 1))


def test_forty_slices_of_a_noisy_scan_take_less_than_twenty_megabytes() -> None:
    y, x = np.ogrid[:512, :512]
    noise = np.random.default_rng(0).normal(0, 8, (512, 512))
    hu = np.where((y - 256) ** 2 + (x - 256) ** 2 < 200**2, 35 + noise, -1000).round().astype(np.int16)
    assert 40 * len(base64.b64encode(pack(hu))) < 20e6


def test_of_a_long_study_the_longest_series_keeps_every_nth_slice_and_each_labels_highest(tmp_path, monkeypatch):
    long, short = stack(60, "series 1 of 2"), stack(9, "series 2 of 2")
    long.probabilities[[31, 17], [0, 2]] = 1.0
    held = choose_slices([long, short], 40 * ROWS * COLUMNS)
    assert held[1] == list(range(9))
    assert held[0] == sorted({*range(0, 60, 3), 31, 7, 17})  # every second one would be 30 and more
    assert sum(map(len, held)) <= 40
    monkeypatch.setattr(viewer, "MOST_PIXELS", 40 * ROWS * COLUMNS)
    left_out = write_viewer(tmp_path / "a.html", study(long, short))
    assert left_out == (
        f"The page holds the pictures of {len(held[0])} of the 60 slices of series 1 of 2: all would be too large"
    )
    assert set(elements(tmp_path / "a.html")) == {f"p0-{place}" for place in held[0]} | {f"p1-{n}" for n in range(9)}
    facts = document_of(tmp_path / "a.html")
    assert facts["left_out"] == f"{left_out}."
    assert len(facts["series"][0]["probabilities"]["any"]) == 60


def document_of(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])


def test_no_text_becomes_part_of_the_page_and_nothing_is_fetched(tmp_path: Path) -> None:
    write_viewer(tmp_path / "a.html", study())
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed((tmp_path / "a.html").read_text("utf-8"))
    names = [name for name, _ in tags]
    assert names.count("script") == 2 + COUNT
    assert not {"img", "link", "iframe", "a"} & set(names)
    assert not any({"src", "href", "onerror", "srcset"} & set(attributes) for _, attributes in tags)
    assert [more["content"] for _, more in tags if more.get("http-equiv")] == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    ]
    assert document_of(tmp_path / "a.html")["series"][0]["facts"] == [["series", HOSTILE]]


def test_a_page_is_whole_or_not_there(tmp_path: Path) -> None:
    def read(place: int) -> np.ndarray:
        if place == COUNT - 1:
            raise ValueError("a damaged picture")
        return image(place)

    with pytest.raises(ValueError, match="a damaged picture"):
        write_viewer(tmp_path / "a.html", study(replace(stack(), read=read)))
    assert list(tmp_path.iterdir()) == []


with_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (apt-get install chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def window(folder: Path) -> Iterator[Page]:
    with browser(folder / "profile") as page:
        page.command("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
        page.command(
            "Page.addScriptToEvaluateOnNewDocument",
            source="window.faults = []; addEventListener('error', event => faults.push(event.message));"
            "addEventListener('unhandledrejection', event => faults.push(String(event.reason)));"
            "if (location.hash === '#old') delete window.DecompressionStream;",
        )
        yield page


@pytest.fixture
def shown(window: Page, folder: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A study of two series, the second without geometry, as it opens."""
    write_viewer(folder / "a.html", study(stack(), stack(3 * COUNT, "series 2 of 2", known=False)))
    window.requests.clear()
    window.open((folder / "a.html").as_uri())
    window.wait_for("document.readyState === 'complete' && !!document.querySelector('#picture').dataset.slice")
    yield window
    assert window.evaluate("faults") == []
    assert {address.partition(":")[0] for address in window.requests} == {"file"}


def at_slice(page: Page, series: int, place: int) -> None:
    """Wait until a slice is drawn, and hold its HU and its greys against the image."""
    page.wait_for(f"document.querySelector('#picture').dataset.slice === '{series}/{place}'")
    hu = page.evaluate("Array.from(unpacked.get(slice().picture))")
    np.testing.assert_array_equal(np.reshape(hu, (ROWS, COLUMNS)), image(place))
    center, width = page.evaluate("[state.center, state.width]")
    due = np.clip((image(place).astype(float) - (center - width / 2)) / width, 0, 1) * 255
    drawn = page.evaluate(
        f"Array.from(document.querySelector('#picture').getContext('2d').getImageData(0, 0, {COLUMNS}, {ROWS}).data)"
    )
    drawn = np.reshape(drawn, (ROWS, COLUMNS, 4))
    assert (drawn[..., 3] == 255).all()
    assert (np.ptp(drawn[..., :3], axis=2) == 0).all()
    assert np.abs(drawn[..., 0] - due).max() <= 0.5 + 1e-9


def press(page: Page, key: str, shift: bool = False) -> None:
    text = {"text": key} if len(key) == 1 else {}
    for kind in ("keyDown", "keyUp"):
        page.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 * shift, **text)
        text = {}


def mouse(page: Page, kind: str, x: float, y: float, **more: object) -> None:
    page.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def middle(page: Page, element: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    box = page.evaluate(f"document.querySelector({element!r}).getBoundingClientRect().toJSON()")
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def text(page: Page, element: str) -> str:
    return page.evaluate(f"document.querySelector({element!r}).textContent")


@with_browser
def test_it_opens_with_the_highest_slice_and_keys_wheel_and_drag_scroll(shown: Page) -> None:
    at_slice(shown, 0, 7)
    assert text(shown, "#where") == "slice 8 of 12, 35.0 mm"
    said = shown.evaluate("document.querySelector('#view').getAttribute('aria-valuetext')")
    assert said == "slice 8 of 12, 35.0 mm: epidural 0.18, subdural 0.90, any 0.95"
    shown.evaluate("document.querySelector('#view').focus()")
    for key, place in (("ArrowUp", 8), ("ArrowDown", 7), ("Home", 0), ("ArrowLeft", 0), ("PageUp", 10), ("End", 11)):
        press(shown, key)
        at_slice(shown, 0, place)
    x, y = middle(shown, "#view")
    for turned, place in ((100, 10), (100, 9), (-100, 10)):  # a notch away from the reader goes up
        mouse(shown, "mouseWheel", x, y, deltaX=0, deltaY=turned)
        at_slice(shown, 0, place)
    mouse(shown, "mousePressed", x, y, button="left", buttons=1, clickCount=1)
    mouse(shown, "mouseMoved", x, y + 40, button="left", buttons=1)
    mouse(shown, "mouseReleased", x, y + 40, button="left")
    at_slice(shown, 0, 8)
    for kind, points in (("touchStart", [(x, y)]), ("touchMove", [(x, y - 35)]), ("touchEnd", [])):
        shown.command("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": a, "y": b} for a, b in points])
    at_slice(shown, 0, 10)
    x, y = middle(shown, "#slider", 0.001)
    mouse(shown, "mousePressed", x, y, button="left", buttons=1, clickCount=1)
    mouse(shown, "mouseReleased", x, y, button="left")
    at_slice(shown, 0, 0)


@with_browser
def test_windows_are_chosen_by_button_key_number_and_drag(shown: Page) -> None:
    at_slice(shown, 0, 7)
    pressed = "[...document.querySelectorAll('#windows [aria-pressed=true]')].map(one => one.textContent).join()"
    shown.evaluate("document.querySelector('#view').focus()")
    for key, name, center, width in (("2", "Subdural", 80, 200), ("3", "Bone", 600, 2800), ("1", "Brain", 40, 80)):
        press(shown, key)
        shown.wait_for(f"{pressed} === '{name}'")
        assert text(shown, "#shown") == f"centre/width {center}/{width} HU"
        shown.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        at_slice(shown, 0, 7)
    x, y = middle(shown, "#view")
    mouse(shown, "mousePressed", x, y, button="right", buttons=2, clickCount=1)
    mouse(shown, "mouseMoved", x + 100, y - 50, button="right", buttons=2)
    mouse(shown, "mouseReleased", x + 100, y - 50, button="right")
    shown.wait_for(f"{pressed} === 'Own'")
    assert shown.evaluate("[state.center, state.width]") == [40 + 50 * 0.3, 80 + 100 * 0.3]
    press(shown, "1")
    shown.wait_for(f"{pressed} === 'Brain'")
    press(shown, "4")
    shown.wait_for(f"{pressed} === 'Own' && state.center === 55")
    shown.evaluate("at('width').focus(); at('width').select()")
    for key in "150":
        press(shown, key)
    shown.wait_for("state.width === 150")
    shown.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    at_slice(shown, 0, 7)


@with_browser
def test_the_pointer_and_the_cross_of_the_keys_read_hounsfield_units_in_pixels_and_mm(shown: Page) -> None:
    at_slice(shown, 0, 7)
    row, column = 12, 31
    x, y = middle(shown, "#picture", (column + 0.5) / COLUMNS, (row + 0.5) / ROWS)
    mouse(shown, "mouseMoved", x, y)
    place = f"x {-100 + 0.4 * column:.1f}, y {-80 + 0.8 * row:.1f}, z 35.0 mm"
    assert text(shown, "#reading") == f"{image(7)[row, column]} HU · row 12, column 31 · {place}"
    shown.evaluate("document.querySelector('#view').focus()")
    press(shown, "ArrowRight", shift=True)
    press(shown, "ArrowDown", shift=True)
    assert text(shown, "#reading").startswith(f"{image(7)[row + 1, column + 1]} HU · row 13, column 32 · ")
    assert shown.evaluate("document.querySelector('#reading').getAttribute('aria-live')") == "polite"
    press(shown, "ArrowUp")
    at_slice(shown, 0, 8)
    assert text(shown, "#reading").startswith(f"{image(8)[row + 1, column + 1]} HU · ")
    proportions = shown.evaluate("(box => box.height / box.width)(at('picture').getBoundingClientRect())")
    assert proportions == pytest.approx((ROWS * 0.8) / (COLUMNS * 0.4), rel=0.01)
    assert [text(shown, f"#{side}") for side in ("top", "right", "bottom", "left")] == ["A", "L", "P", "R"]


@with_browser
def test_strips_and_labels_jump_and_another_series_has_its_own(shown: Page) -> None:
    at_slice(shown, 0, 7)
    mouse_at = middle(shown, "[data-label=subdural] .bars", (3 + 0.5) / COUNT)
    mouse(shown, "mousePressed", *mouse_at, button="left", buttons=1, clickCount=1)
    mouse(shown, "mouseReleased", *mouse_at, button="left")
    at_slice(shown, 0, 3)
    assert text(shown, "[data-label=any] output") == f"{stack().probabilities[3, 2]:.2f}"
    shown.evaluate("document.querySelector('[data-label=epidural] button').click()")
    at_slice(shown, 0, 2)
    shown.evaluate("at('numbers').open = true")
    shown.wait_for("document.querySelectorAll('#numbers tr').length === 13")
    shown.evaluate("document.querySelectorAll('#numbers button')[5].click()")
    at_slice(shown, 0, 5)
    shown.evaluate("at('series').selectedIndex = 1; at('series').dispatchEvent(new Event('change'))")
    at_slice(shown, 1, 7)
    assert text(shown, "#where") == "slice 8 of 36"
    assert [text(shown, f"#{side}") for side in ("top", "right", "bottom", "left", "scale")] == [""] * 5
    mouse(shown, "mouseMoved", *middle(shown, "#picture", 0.5 / COLUMNS, 0.5 / ROWS))
    assert text(shown, "#reading") == "-32768 HU · row 0, column 0"
    assert shown.evaluate("[...document.querySelectorAll('#others a')].map(one => one.textContent)") == ["study_2"]


@with_browser
def test_everything_that_can_be_used_has_a_name_and_is_reached_by_tab(shown: Page) -> None:
    names = shown.evaluate(
        "[...document.querySelectorAll('button, select, input, [tabindex], summary')].map(one => "
        "one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent)"
    )
    assert len(names) > 12
    assert all(name.strip() for name in names)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 1000


@with_browser
def test_slices_that_the_page_does_not_hold_are_passed_over(window: Page, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(viewer, "MOST_PIXELS", 7 * ROWS * COLUMNS)
    write_viewer(folder / "long.html", study())
    held = sorted(int(name.partition("-")[2]) for name in elements(folder / "long.html"))
    assert len(held) < COUNT
    window.open((folder / "long.html").as_uri())
    window.wait_for("document.readyState === 'complete' && !!document.querySelector('#picture').dataset.slice")
    at_slice(window, 0, 7)
    assert "of the 12 slices" in text(window, "#left_out")
    window.evaluate("document.querySelector('#view').focus()")
    press(window, "Home")
    for place in held:
        at_slice(window, 0, place)
        press(window, "ArrowUp")


@with_browser
@pytest.mark.parametrize(
    ("name", "said"), [("a.html#old", "This browser can't unpack"), ("damaged.html", "picture is damaged")]
)
def test_what_can_not_be_shown_is_said_and_the_rest_works(window: Page, folder: Path, name: str, said: str) -> None:
    write_viewer(folder / "a.html", study())
    page = (folder / "a.html").read_text("utf-8")
    packed = elements(folder / "a.html")["p0-7"]
    (folder / "damaged.html").write_text(page.replace(packed, packed[:100] + packed[200:]), "utf-8")
    window.open((folder / "a.html").as_uri().replace("a.html", name))
    window.wait_for(f"location.href.endsWith('{name}') && document.readyState === 'complete'")
    window.wait_for(f"document.querySelector('#message').textContent.includes({said!r})")
    assert window.evaluate("faults") == []
    assert text(window, "[data-label=any] output") == "0.95"
