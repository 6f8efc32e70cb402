"""Tables of reports, and the format of the numbers in them. Printed lower ends are rounded down, upper ends up."""

import math
from collections.abc import Sequence
from html import escape
from typing import TypeGuard


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of plain text: the header and the rows, with aligned columns. sides: < or > for each column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in (header, *rows)
    ]


def known(value: float | None) -> TypeGuard[float]:
    """Whether the value is a finite number."""
    return value is not None and math.isfinite(value)


def bits(value: float | None) -> str:
    """The value with three decimals; a dash if it is not known."""
    return f"{value:z.3f}" if known(value) else "–"


def round_down(bits: float) -> float:
    """Round down to three decimals, so that a printed lower end still is a lower bound."""
    return math.floor(1000 * bits) / 1000


def round_up(bits: float) -> float:
    """Round up to three decimals, so that a printed upper end still is an upper bound."""
    return math.ceil(1000 * bits) / 1000


def down(lower: float | None) -> float | None:
    """A lower end, rounded down for print; None stays None."""
    return None if lower is None else round_down(lower)


def up(upper: float | None) -> float | None:
    """An upper end, rounded up for print; None stays None."""
    return None if upper is None else round_up(upper)


def interval(lower: float | None, upper: float | None) -> str:
    """Both ends of an interval, with the unit."""
    return f"{ends(lower, upper)} bits"


def ends(lower: float | None, upper: float | None) -> str:
    """Both ends of an interval."""
    return f"[{bits(lower)}, {bits(upper)}]"


def html(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """An HTML table for notebooks, with a paragraph for each note below it."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    table = "".join([row("th", header), *(row("td", cells) for cells in rows)])
    return f"<table>{table}</table>" + "".join(f"<p>{escape(note)}</p>" for note in notes)
