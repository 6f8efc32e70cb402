"""The page of a run's or a study's report for a browser, made from its Markdown, and the drawing of its intervals."""

from collections.abc import Callable, Sequence
from typing import Any

from mirigor_jax.files import AnyPath
from mirigor_jax.runs import page
from mirigor_jax.runs.page import Bar
from mirigor_jax.runs.schema import ArrayReport, EstimateEntry, ImageReport, LayersReport, UsableEntry
from mirigor_jax.tables import round_down, round_up

CAPTION = (
    "In bits. A bar spans what is proven at the confidence that the tables state; without an upper end it reaches to "
    "the edge. A dot is the estimate."
)


def html(text: str, folder: AnyPath, bars: Sequence[Bar] = (), more: Sequence[str] = ()) -> str:
    """The page of a report.

    text: its Markdown, whose first line is its title. folder: where its pictures are.
    bars: its intervals, drawn below the first paragraph, which is its headline. more: blocks at its end.
    """
    title, _, body = text.removeprefix("# ").partition("\n\n")
    headline, _, rest = body.partition("\n\n")
    parts = [headline, rest] if bars else [body]

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    blocks = [page.markdown(part, read) for part in parts]
    if bars:
        blocks.insert(1, page.intervals(bars, CAPTION))
    return page.page(title, [*blocks, *more])


def bars_of(report: Any) -> list[Bar]:
    """The intervals of a report, in bits; none if its kind has none."""
    return next((of(report) for kind, of in BARS.items() if isinstance(report, kind)), [])


def _image_bars(report: ImageReport) -> list[Bar]:
    entries = {"I(h_X;h_Y)": report.estimate}
    entries |= {f"I, {name}": each for name, each in report.estimates.items() if name != report.estimate.name}
    return [*(_bar(title, each) for title, each in entries.items()), *_usable(report.usable)]


def _bar(title: str, entry: EstimateEntry) -> Bar:
    return Bar(title, "MI", entry.value_bits, round_down(entry.lower_bits or 0.0), entry.upper_bits)


def _usable(usable: UsableEntry | None) -> list[Bar]:
    if usable is None or usable.lower_bits is None or usable.upper_bits is None:
        return []
    ends = round_down(usable.lower_bits), round_up(usable.upper_bits)
    return [Bar("usable information", "usable", usable.value_bits, *ends)]


def _array_bars(report: ArrayReport) -> list[Bar]:
    entries = report.estimates.values()
    bars = [Bar(each.name, "MI", each.value_bits, each.lower_bits, each.upper_bits) for each in entries]
    return [*bars, *_usable(report.usable)]


def _layer_bars(report: LayersReport) -> list[Bar]:
    bars = []
    for layer in report.layers:
        ends = layer.i_class_lower_bits, report.entropy_bits
        bars.append(Bar(f"I_class, {layer.stage}", "MI", layer.i_class_bits, *ends))
        usable = layer.usable_lower_bits, layer.usable_upper_bits
        bars.append(Bar(f"usable, {layer.stage}", "usable", layer.usable_bits, *usable))
    return bars


BARS: dict[type, Callable[[Any], list[Bar]]] = {
    ImageReport: _image_bars,
    ArrayReport: _array_bars,
    LayersReport: _layer_bars,
}
