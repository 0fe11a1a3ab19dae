"""A page of tables and charts in one HTML file: no script, no network, light and dark, a text for each picture."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd

WIDTH, HEIGHT, AXIS = 560, 170, 34
LARGEST = 1e100  # larger numbers are not drawn: their differences can be infinite
MAX_TICKS = 6
CHART_HEIGHT = 260
JPEG_QUALITY = 90
WORDS = re.compile(r"([^\s,;:()]+)")  # an id in a sentence is one
NOTICE = "Not a medical device; not for diagnosis."
COLOURS = ("one", "two", "three", "four", "five", "six", "seven")  # after Okabe and Ito, for colour-blind readers too
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 5", "12 4")
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --line: #d0d0d0; --page: #ffffff; --card: #f5f6f8;
  --one: #0072b2; --two: #d55e00; --warn: #a04000; --good: #005f47; --three: #009e73; --four: #a2528a; --five: #7a6a00;
  --six: #2f2f8f; --seven: #555555; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #b3b3b3; --line: #4a4a4a; --page: #16181c;
  --card: #21242a; --one: #56b4e9; --two: #e69f00; --warn: #f0a860; --good: #5fd3ac; --three: #2fc79a; --four: #e79cc7;
  --five: #f0e442; --six: #a9b1ff; --seven: #c8c8c8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 60rem; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 31rem), 1fr)); gap: 1rem; }
figure:focus-visible, .card:focus-visible { outline: 2px solid var(--one); }
figure, .card { margin: 0; padding: .8rem 1rem; background: var(--card); border-radius: 6px; overflow-x: auto; }
section > figure + figure { margin-top: 1rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; } figure p { font-size: .85rem; color: var(--soft); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; }
ul.findings { list-style: none; padding: 0; margin: .5rem 0; } ul.findings li { padding: .35rem 0 .35rem 5.2rem;
  text-indent: -5.2rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.mark { display: inline-block; width: 5.2rem; text-indent: 0; font-weight: 700; } .look { color: var(--warn); }
.fine { color: var(--good); }
table.words { width: 100%; } .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.words thead th { text-align: left; } .words tbody th { vertical-align: top; }
svg { display: block; width: 100%; max-width: 44rem; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
@media (max-width: 40rem) { svg.chart text { font-size: 17px; } svg.bars text { font-size: 14px; } }
.one { fill: var(--one); } .two { fill: var(--two); } .line { stroke: var(--line); }
polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.run { cursor: pointer; stroke-opacity: .75; outline: none; }
.run:hover, .run:focus-visible, .chosen { stroke-opacity: 1; }
.run:hover, .run:focus-visible { stroke-width: 6 !important; } .chosen { stroke-dasharray: 9 3; }
.axis { stroke: var(--soft); } svg .name { fill: var(--ink); font-weight: 600; }
svg .tick { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 3; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--one); }
input, select { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line);
  padding: .1rem .4rem; }
th.who, td.who { position: sticky; left: 0; background: var(--card); text-align: left; }
tr.group th { position: static; text-align: left; padding-top: 1rem; color: var(--ink); }
tr.group span { position: sticky; left: 0; }
td button { font: inherit; color: var(--one); background: none; border: 0; cursor: pointer; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.who > * { display: block; width: max-content; max-width: 16rem; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 40rem) { tr.group th { position: static; text-align: left; padding-top: 1rem; color: var(--ink); }
tr.group span { position: sticky; left: 0; }
td button { font: inherit; color: var(--one); background: none; border: 0; cursor: pointer; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.who > * { max-width: 8rem; } }
a { color: var(--one); }
nav a { margin-right: .9rem; white-space: nowrap; }
caption { text-align: left; caption-side: top; white-space: normal; }
details { margin: .6rem 0; } summary { cursor: pointer; } code, pre { font-size: .85rem;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.big { font-size: 1.5rem; font-weight: 700; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem; }
.tiles figure { padding: .4rem; }
.tiles.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.tiles img { width: 100%; display: block; border-radius: 3px; }
.tiles .close { display: none; } .tiles figure:target { grid-column: 1 / -1; outline: 2px solid var(--one); }
.tiles figure:target img { width: min(100%, 40rem); } .tiles figure:target .close { display: block; }
.tiles .close a { margin-right: 1rem; }
.tiles p { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Line:
    """A line of a chart: ``x`` and ``y`` (N,); a non-finite value interrupts it. ``dots`` mark its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def page(title: str, lead: str, body: Sequence[str]) -> str:
    """Return the whole document; ``title`` and ``lead`` are plain text, ``body`` HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><main><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a heading and its ``parts``."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def contents(sections: Sequence[str], links: Mapping[str, str]) -> str:
    """Return links to those of ``sections`` that :func:`section` made, then ``links`` to other pages by their text."""
    found = [re.match(r'<section id="([^"]+)"><h2>(.+?)</h2>', part) for part in sections]
    own = [f'<a href="#{match[1]}">{match[2]}</a>' for match in found if match]
    others = [f'<a href="{escape(address, quote=True)}">{escape(text)} ↗</a>' for text, address in links.items()]
    return f'<nav aria-label="Contents">{" ".join([*own, *others])}</nav>'


def cards(*parts: str) -> str:
    """Return parts side by side where there is room."""
    return '<div class="cards">' + "\n".join(parts) + "</div>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def findings(rows: Sequence[tuple[bool, str]], pictured: Collection[str] = ()) -> str:
    """Return a list of sentences, each marked as fine or as something to look at.

    Words of ``pictured`` lead to their pictures, see :func:`enlarging`.
    """
    marks = {True: '<span class="mark look">▲ look</span>', False: '<span class="mark fine">✓ fine</span>'}
    links = {name: picture_link(name) for name in pictured}
    items = [f"<li>{marks[look]}{_with_links(text, links)}</li>" for look, text in rows]
    return '<ul class="findings">' + "".join(items) + "</ul>"


def _with_links(text: str, links: Mapping[str, str]) -> str:
    return "".join(_linked(part, links) for part in WORDS.split(text))


def picture_link(name: str, kind: str = "picture") -> str:
    """Return the address of a picture on its page. One picture may be there once of each ``kind``."""
    return f"#{kind}-{quote(name, safe='')}"


def table(
    title: str, frame: pd.DataFrame, note: str = "", links: Mapping[str, str] | None = None, words: bool = False
) -> str:
    """Return a table with its index as first column; cells are written as they are.

    ``links``: addresses by the index's texts. ``words``: long texts in the cells wrap; otherwise a wide table scrolls
    sideways, also by keyboard.
    """
    names = [str(frame.index.name or ""), *map(str, frame.columns)]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" if name else "<td></td>" for name in names)
    rows = "".join(
        f"<tr><th scope='row'>{_linked(str(index), links or {})}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for index, row in zip(frame.index, frame.itertuples(index=False), strict=True)
    )
    kind = ' class="words"' if words else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    return _figure(title, f"<table{kind}>{top}<tbody>{rows}</tbody></table>", note, not words)


def _linked(text: str, links: Mapping[str, str]) -> str:
    return f'<a href="{escape(links[text], quote=True)}">{escape(text)}</a>' if text in links else escape(text)


def histogram(title: str, counts: np.ndarray, edges: np.ndarray, note: str) -> str:
    """Draw counts (N,) between edges (N + 1,) as bars on a linear scale from 0; ``note`` says it in words."""
    top = max(float(counts.max(initial=0)), 1e-12)
    step = (WIDTH - AXIS) / len(counts)
    bars = []
    for number, count in enumerate(counts.tolist()):
        height = count / top * (HEIGHT - AXIS)
        tip = f"{edges[number]:.6g} to {edges[number + 1]:.6g}: {count:,.6g}"
        bars.append(
            f'<rect class="one" x="{AXIS + number * step:.1f}" y="{HEIGHT - 20 - height:.1f}" '
            f'width="{max(step - 1, 0.8):.1f}" height="{height:.1f}"><title>{tip}</title></rect>'
        )
    places = np.unique(np.linspace(0, len(counts), min(MAX_TICKS, len(counts)) + 1).round().astype(int))
    labels = [
        f'<text x="{AXIS + place * step:.1f}" y="{HEIGHT - 4}" text-anchor="{_anchor(place, len(counts))}">'
        f"{edges[place]:.4g}</text>"
        for place in places
    ]
    base = f'<line class="line" x1="{AXIS}" x2="{WIDTH}" y1="{HEIGHT - 20}" y2="{HEIGHT - 20}"/>'
    peak = f'<text x="0" y="12">{top:,.4g}</text>'
    return _figure(title, _svg(f"{title}. {note}", HEIGHT, [*bars, base, *labels, peak], "bars"), note)


def lines(
    title: str,
    series: Sequence[Line],
    axes: tuple[str, str],
    note: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw lines over two named axes; they differ by colour and by dashes, and the legend shows both.

    Without a range, the data's is taken. Without data, the figure says so.
    """
    known = [(line, *_finite(line)) for line in series]
    known = [(line, x, y) for line, x, y in known if len(x)]
    if not known:
        return _figure(title, "<p>No values.</p>", note)
    spans = [
        _widened(given or (min(float(v.min()) for v in values), max(float(v.max()) for v in values)))
        for given, values in ((x_range, [x for _, x, _ in known]), (y_range, [y for _, _, y in known]))
    ]

    ticks = [_ticks(*span) for span in spans]
    if all((x == x.round()).all() for _, x, _ in known) and x_range is None:  # iterations: no ticks between
        ticks[0] = [tick for tick in ticks[0] if abs(tick - round(tick)) < 1e-9]
    # Room for numbers beside and below, in the letters of a narrow screen, and above for the upright axis's name.
    left = max(40, 12 + 10 * max(len(f"{tick:.6g}") for tick in ticks[1]))
    right, bottom, top = 26, 46, 26

    def place(values: np.ndarray, axis: int) -> np.ndarray:
        low, high = spans[axis]
        share = (np.clip(values, low, high) - low) / (high - low)
        return (
            left + share * (WIDTH - left - right)
            if axis == 0
            else CHART_HEIGHT - bottom - share * (CHART_HEIGHT - bottom - top)
        )

    parts = []
    for axis in (0, 1):
        for tick in ticks[axis]:
            at = float(place(np.array([tick]), axis)[0])
            ends = (at, at, top, CHART_HEIGHT - bottom) if axis == 0 else (left, WIDTH - right, at, at)
            x1, x2, y1, y2 = (f"{end:.1f}" for end in ends)
            parts.append(f'<line class="line" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>')
            spot = (at, CHART_HEIGHT - bottom + 18, "middle") if axis == 0 else (left - 6, at + 4, "end")
            parts.append(f'<text x="{spot[0]:.1f}" y="{spot[1]:.1f}" text-anchor="{spot[2]}">{tick:.6g}</text>')
    keys = []
    for number, (line, x, y) in enumerate(known):
        colour = COLOURS[number % len(COLOURS)]
        dash = DASHES[(number + number // len(COLOURS)) % len(DASHES)]  # other dashes when the colours repeat
        points = list(zip(place(x, 0).tolist(), place(y, 1).tolist(), strict=True))
        look = f'style="stroke: var(--{colour})" stroke-dasharray="{dash}"'
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{path}" {look}><title>{escape(line.name)}</title></polyline>')
        for (across, down), one, other in zip(
            points if line.dots or len(points) == 1 else (), x.tolist(), y.tolist(), strict=False
        ):
            tip = f"<title>{escape(line.name)}: {one:.6g}, {other:.6g}</title>"
            parts.append(
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" style="fill: var(--{colour})">{tip}</circle>'
            )
        keys.append(
            f'<span style="white-space: nowrap"><svg viewBox="0 0 28 8" style="display: inline; width: 28px">'
            f'<polyline points="0,4 28,4" {look}/></svg> {escape(line.name)}</span>'
        )
    legend = f"<p>{' &nbsp; '.join(keys)}</p>" if len(known) > 1 else ""
    parts.append(
        f'<text x="{(WIDTH + left) / 2:.0f}" y="{CHART_HEIGHT - 6}" text-anchor="middle">{escape(axes[0])}</text>'
    )
    parts.append(f'<text x="2" y="14">{escape(axes[1])}</text>')
    label = f"{title}: {', '.join(line.name for line, _, _ in known)}; {axes[1]} over {axes[0]}. {note}"
    return _figure(title, legend + _svg(label, CHART_HEIGHT, parts, "chart"), note)


def _finite(line: Line) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    kept = (np.abs(x) < LARGEST) & (np.abs(y) < LARGEST)  # not NaN either
    return x[kept], y[kept]


def _widened(span: tuple[float, float]) -> tuple[float, float]:
    """Return the span, widened if it is a single point."""
    low, high = span
    room = max(0.5, abs(low) * 1e-6)  # 0.5 vanishes beside 1e17
    return (low, high) if high > low else (low - room, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """Return the round numbers (1, 2 or 5 times a power of ten) within a span, at most about six."""
    rough = (high - low) / MAX_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def details(title: str, *parts: str) -> str:
    """Return parts that a click on the title shows."""
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def preformatted(text: str) -> str:
    """Return text with its line breaks, such as a command."""
    return f"<pre>{escape(text)}</pre>"


def headline(figure: str, text: str) -> str:
    """Return a card with one prominent figure and what it means."""
    return f'<div class="card"><p class="big">{escape(figure)}</p><p>{escape(text)}</p></div>'


def pairs(title: str, rows: pd.DataFrame, note: str, form: str = ".2%") -> str:
    """Draw one or two numbers (columns) for each row as bars that start at 0, with their values in figures.

    Position and words tell the two apart, not colour alone.
    """
    top = max(float(np.nanmax(rows.to_numpy(dtype=float), initial=0)), 1e-12)
    left, right, line = 150, 70, 15
    parts = []
    y = 4
    for name, values in zip(rows.index, rows.to_numpy(dtype=float), strict=True):
        parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(str(name))}</text>')
        for kind, value in zip(("one", "two"), values, strict=False):
            if np.isfinite(value):
                width = value / top * (WIDTH - left - right)
                parts.append(
                    f'<rect class="{kind}" x="{left}" y="{y}" width="{max(width, 0.5):.1f}" height="{line - 3}"/>'
                )
                parts.append(f'<text x="{left + width + 5:.1f}" y="{y + 11}">{value:{form}}</text>')
            y += line
        y += 5
    keys = "".join(
        f' <span style="color: var(--{kind})">■</span> {place}{escape(str(name))}'
        for kind, place, name in zip(("one", "two"), ("upper: ", "lower: "), rows.columns, strict=False)
    )
    legend = f"<p>{keys}</p>" if len(rows.columns) > 1 else ""
    return _figure(title, legend + _svg(f"{title}. {note}", y, parts, "bars"), note)


def tiles(pictures: Sequence[tuple[np.ndarray, str]]) -> str:
    """Return pictures side by side with their captions: uint8, grey (H, W) as PNG or BGR (H, W, 3) as JPEG."""
    items = []
    for picture, text in pictures:
        source, words = _embedded(picture, "png" if picture.ndim == 2 else "jpeg"), escape(text, quote=True)
        items.append(f'<figure><img src="{source}" alt="{words}"><p>{escape(text)}</p></figure>')
    wide = any(picture.shape[1] > 1.5 * picture.shape[0] for picture, _ in pictures)
    return f'<div class="tiles{" wide" if wide else ""}">' + "".join(items) + "</div>"


def enlarging(pictures: Mapping[str, tuple[np.ndarray, str]], kind: str = "picture") -> str:
    """Return thumbnails by name, uint8 (H, W), with their captions. One that is clicked, or linked to, is shown large.

    This needs no script: the address names the picture. ``kind``: see :func:`picture_link`.
    """
    items = []
    for name, (picture, text) in pictures.items():
        source, link = _embedded(picture, "jpeg"), picture_link(name, kind)
        words = escape(text, quote=True)
        items.append(
            f'<figure id="{escape(link[1:], quote=True)}"><a href="{escape(link, quote=True)}">'
            f'<img src="{source}" alt="{words}" loading="lazy"></a><p>{escape(text)}</p>'
            '<p class="close"><a href="#verdict">to the verdict</a> <a href="#all">make it small</a></p></figure>'
        )
    return '<div class="tiles">' + "".join(items) + "</div>"


def _embedded(picture: np.ndarray, form: str) -> str:
    """Return the address that holds a picture."""
    done, content = cv2.imencode(f".{form}", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] * (form == "jpeg"))
    if not done:
        raise ValueError("the picture can't be encoded")
    return f"data:image/{form};base64," + base64.b64encode(content.tobytes()).decode("ascii")


def _figure(title: str, content: str, note: str, scrolls: bool = False) -> str:
    name = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    said = f"<p>{escape(note)}</p>" if note else ""
    keys = ' tabindex="0"' if scrolls else ""  # scrolls by keyboard too
    return f"<figure{keys}>{name}{content}{said}</figure>"


def _svg(label: str, height: float, parts: Sequence[str], kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _anchor(place: int, last: int) -> str:
    return "start" if place == 0 else "end" if place == last else "middle"
