"""Web pages of results. A page is one file that needs no server and no network: styles, code and pictures are inside.

`page` puts blocks of HTML together; every other function makes one block.
"""

import base64
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mirigor_jax.drawing import Figure
from mirigor_jax.files import plain

HERE = Path(__file__).parent
# A node of a graph, in pixels: the width of a letter, its height, and the distances between nodes.
LETTER, HEIGHT, APART, BETWEEN = 7, 26, 16, 64


@dataclass(frozen=True)
class Column:
    """A column of a table, or an axis of a scatter plot.

    title: its heading.
    texts: the text of each row.
    values: the number that each row is sorted by or drawn at; None where it has none. Empty: rows are sorted by text.
    ends: both ends of each value's interval; None where it has none. Empty: there are no intervals.
    """

    title: str
    texts: Sequence[str]
    values: Sequence[float | None] = ()
    ends: Sequence[tuple[float | None, float | None] | None] = ()


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
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(columns: Sequence[Column]) -> str:
    """A table whose rows a reader can sort by any column. All columns have equally many rows."""
    head = "".join(f'<th scope="col"><button>{escape(column.title)}</button></th>' for column in columns)
    keys = [plain(column.values) if column.values else column.texts for column in columns]
    rows = zip(
        zip(*(column.texts for column in columns), strict=True),
        zip(*keys, strict=True),
        strict=True,
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-value="{"" if key is None else escape(str(key))}">{escape(text)}</td>'
            for text, key in zip(texts, values, strict=True)
        )
        + "</tr>"
        for texts, values in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table class="sorted"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        '</table></div><p class="hint">A click on a heading sorts the rows by its column.</p>'
    )


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
        '<div class="wide"><svg class="points" viewBox="0 0 640 420" width="640" height="420" role="img" '
        'aria-label="scatter plot of the two chosen columns"></svg></div></div>'
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
