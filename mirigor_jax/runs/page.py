"""Web pages of results. A page is one file that needs no server and no network: styles, code and pictures are inside.

`page` puts blocks of HTML together; every other function makes one block.
"""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from mirigor_jax.drawing import CERTIFIED, LINEAR, Figure
from mirigor_jax.files import plain

HERE = Path(__file__).parent
# A node of a graph, in pixels: the width of a letter, its height, and the distances between nodes.
LETTER, HEIGHT, APART, BETWEEN = 7, 26, 16, 64
BARS, ROW = 480, 30  # a drawing of intervals, in pixels: the width of its axis, and the height of a row
COLORS = {"MI": CERTIFIED, "usable": LINEAR}  # of intervals, by what they are about
NUMBER = re.compile(r"[≥≤\s\[]*([-+]?\d[\d,]*(?:\.\d+)?)")  # the first number of a cell such as [5.990, 6.000]


@dataclass(frozen=True)
class Column:
    """A column of a table, or an axis of a scatter plot.

    title: its heading.
    texts: the text of each row.
    values: the number that each row is sorted by or drawn at; None where it has none. Empty: rows are sorted by text.
    ends: both ends of each value's interval; None where it has none. Empty: there are no intervals.
    links: the address that each row's text leads to; empty: they lead nowhere.
    """

    title: str
    texts: Sequence[str]
    values: Sequence[float | None] = ()
    ends: Sequence[tuple[float | None, float | None] | None] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Bar:
    """One line of a drawing of intervals.

    title: its name. about: "MI" or "usable", which decides its color.
    value: the estimate, a dot; None: not drawn.
    lower, upper: the ends that are proven; an end that is None is not known, and the bar ends open at the edge.
    """

    title: str
    about: str
    value: float | None
    lower: float | None
    upper: float | None


def page(title: str, blocks: Sequence[str]) -> str:
    """A whole page of HTML. blocks: its parts, in order."""
    style, code = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # The empty icon keeps the browser from asking a server for one.
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(blocks)
        + f"\n<script>\n{code}</script>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(drawn: Figure, caption: str) -> str:
    """A picture with its caption, as PNG."""
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return (
        f'<figure><img alt="{escape(caption)}" src="{_png(file.getvalue())}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def markdown(text: str, read: Callable[[str], bytes]) -> str:
    """The HTML of a Markdown text, in which tables can be sorted and pictures are inside.

    text: it may hold no HTML of its own; what looks like it is shown as text.
    read: path of a picture, relative to the text → the contents of its PNG file.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    _make_sortable(tokens)

    def picture(tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
        return f'<img alt="{escape(tokens[i].content)}" src="{_png(read(str(tokens[i].attrs["src"])))}">'

    def heading(tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
        opened = parser.renderer.renderToken(tokens, i, options, env)  # type: ignore[attr-defined]
        return f'{opened}<button title="Sort the rows by this column">'

    rules = parser.renderer.rules  # type: ignore[attr-defined]
    rules["image"] = picture
    rules["table_open"] = lambda *_: '<div class="wide" tabindex="0"><table class="sorted">'
    rules["th_open"] = heading
    rules["table_close"] = lambda *_: "</table></div>"
    rules["th_close"] = lambda *_: "</button></th>"
    return parser.renderer.render(tokens, parser.options, {})


def _make_sortable(tokens: Sequence[Token]) -> None:
    """Give each cell of each table the key that it is sorted by, and columns with words their class."""
    columns: list[list[Token]] = []  # of the table at hand: the heading and the cells of each column
    column = 0
    for token, content in pairwise(tokens):
        if token.type == "table_open":
            columns = []
        elif token.type == "tr_open":
            column = 0
        elif token.type == "th_open":
            token.attrs = {"scope": "col"}
            columns.append([token])
        elif token.type == "td_open":
            number = NUMBER.match(content.content)
            key = number[1].replace(",", "") if number else "" if content.content == "–" else content.content
            token.attrs = {"data-value": key}
            columns[column].append(token)
            column += 1
        elif token.type == "table_close":
            for heading, *cells in columns:
                if not all(NUMBER.fullmatch(str(cell.attrs["data-value"]) or "0") for cell in cells):
                    for each in (heading, *cells):
                        each.attrs["class"] = "text"


def _png(contents: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(contents).decode()}"


def intervals(bars: Sequence[Bar], caption: str) -> str:
    """A drawing of intervals, one below the other, on one axis from 0. caption: what they are, and their unit."""
    known = [end for bar in bars for end in (bar.value, bar.lower, bar.upper) if end is not None]
    most = max([*known, 1e-9]) * 1.05
    height = ROW * len(bars) + 34
    left = LETTER * max((len(bar.title) for bar in bars), default=0) + 20
    whole = left + BARS + 20

    def across(value: float) -> float:
        return left + BARS * max(value, 0.0) / most

    parts = []
    step = _step(most)
    for i in range(int(most / step) + 1):
        x, label = across(i * step), f"{i * step:g}"
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{height - 26}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{label}</text>')
    for row, bar in enumerate(bars):
        y = ROW * row + ROW / 2 + 4
        low, high = (across(end) for end in (bar.lower or 0.0, most if bar.upper is None else bar.upper))
        ends = "–" if bar.lower is None else f"{bar.lower:.3f}", "–" if bar.upper is None else f"{bar.upper:.3f}"
        estimate = "" if bar.value is None else f"estimate {bar.value:.3f}, "
        parts.append(f"<g><title>{escape(bar.title)}: {estimate}proven [{', '.join(ends)}]</title>")
        parts.append(f'<text x="{left - 12}" y="{y + 4:g}" text-anchor="end">{escape(bar.title)}</text>')
        if bar.lower is not None or bar.upper is not None:
            width = max(high - low, 2.0)
            shape = f'x="{low:.1f}" y="{y - 8:g}" width="{width:.1f}" height="16" rx="3" fill="{COLORS[bar.about]}"'
            parts.append(f"<rect {shape}/>")
        if bar.value is not None:
            parts.append(f'<circle cx="{across(bar.value):.1f}" cy="{y:g}" r="4"/>')
        parts.append("</g>")
    return (
        f'<figure><div class="wide" tabindex="0"><svg class="bars" width="{whole}" height="{height}" '
        f'viewBox="0 0 {whole} {height}" role="img" aria-label="{escape(caption)}">{"".join(parts)}</svg></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _step(most: float) -> float:
    """The distance of ticks, 1, 2 or 5 times a power of ten, for an axis from 0 to `most` with four to ten of them."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if most / (factor * power) <= 9)


def table(columns: Sequence[Column]) -> str:
    """A table whose rows a reader can sort by any column. All columns have equally many rows."""
    head = "".join(f'<th scope="col"><button>{escape(column.title)}</button></th>' for column in columns)
    keys = [plain(column.values) if column.values else column.texts for column in columns]
    rows = zip(
        zip(*(_linked(column) for column in columns), strict=True),
        zip(*keys, strict=True),
        strict=True,
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-value="{"" if key is None else escape(str(key))}">{text}</td>'
            for text, key in zip(texts, values, strict=True)
        )
        + "</tr>"
        for texts, values in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table class="sorted"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        '</table></div><p class="hint">A click on a heading sorts the rows by its column.</p>'
    )


def _linked(column: Column) -> list[str]:
    """The HTML of each row's text."""
    texts = [escape(text) for text in column.texts]
    if not column.links:
        return texts
    return [f'<a href="{escape(to)}">{text}</a>' for text, to in zip(texts, column.links, strict=True)]


def scatter(names: Sequence[str], columns: Sequence[Column], x: int, y: int) -> str:
    """A scatter plot. Two menus choose its axes among the columns, which need `values`.

    names: of the points, one for each row of the columns.
    x, y: indices of the columns that it shows first.
    """
    menus = "".join(
        f"<label>{axis}: <select>"
        + "".join(
            f'<option value="{i}"{" selected" if i == first else ""}>{escape(column.title)}</option>'
            for i, column in enumerate(columns)
        )
        + "</select></label>"
        for axis, first in (("across", x), ("up", y))
    )
    data = {"names": list(names), "columns": [vars(column) for column in columns]}
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="scatter">{menus}<script type="application/json">{text}</script>'
        '<div class="wide" tabindex="0"><svg class="points" width="640" height="420" role="img" '
        'aria-label="scatter plot of the two chosen columns"></svg></div>'
        '<p class="hint">A point without a name has no room for it; the pointer shows it, with both values.</p>'
        "</div>"
    )


def order(levels: Sequence[Sequence[str]], larger: Mapping[str, Collection[str]], hint: str) -> str:
    """A graph of a partial order, the largest on top. A line from one node down to another says that it is larger.

    levels: the nodes, level by level.
    larger: node → the nodes that are larger. A line is left out if a path of two others leads to the same node.
    hint: a sentence below it. A click on a node marks the larger ones and the smaller ones.
    """
    names = [name for level in levels for name in level]
    place = {name: at for at, name in enumerate(names)}
    widths = {name: LETTER * len(name) + 16 for name in names}
    spans = [sum(widths[name] + APART for name in level) - APART for level in levels]
    whole = max(spans) + 2
    centers: dict[str, tuple[float, float]] = {}
    for row, (level, span) in enumerate(zip(levels, spans, strict=True)):
        left = (whole - span) / 2
        for name in level:
            centers[name] = (left + widths[name] / 2, row * BETWEEN + HEIGHT / 2 + 1)
            left += widths[name] + APART
    lines = [
        (above, below)
        for below in names
        for above in larger.get(below, ())
        if not any(above in larger.get(between, ()) for between in larger.get(below, ()))
    ]
    drawn = [
        f'<line x1="{centers[above][0]:g}" y1="{centers[above][1] + HEIGHT / 2:g}" '
        f'x2="{centers[below][0]:g}" y2="{centers[below][1] - HEIGHT / 2:g}"/>'
        for above, below in lines
    ]
    for name in names:
        x, y = centers[name]
        more = sorted(place[other] for other in larger.get(name, ()))
        less = sorted(place[other] for other in names if name in larger.get(other, ()))
        drawn.append(
            f'<g tabindex="0" role="button" data-more="{more}" data-less="{less}">'
            f'<rect x="{x - widths[name] / 2:g}" y="{y - HEIGHT / 2:g}" width="{widths[name]}" height="{HEIGHT}" '
            'rx="4"/>'
            f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{escape(name)}</text></g>'
        )
    height = (len(levels) - 1) * BETWEEN + HEIGHT + 2
    return (
        f'<div class="wide" tabindex="0"><svg class="order" width="{whole}" height="{height}" '
        f'viewBox="0 0 {whole} {height}">{"".join(drawn)}</svg></div>'
        f'<p class="hint">{escape(hint)}</p>'
    )
