"""The plan as Markdown tables, and the picture of its scaling."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mirigor_jax.drawing import ENTROPY, LOWER_BOUND, Figure, panels, shared_legend
from mirigor_jax.plan.chips import Slice, gib
from mirigor_jax.tables import grid

PARTS = ("compute", "memory", "network")
NOTE = "The compiler's numbers, not a measurement"


def report(
    rows: list[dict[str, Any]],
    notes: list[str],
    where: Slice,
    largest: dict[str, Any] | None,
    curve: list[dict[str, Any]],
    *,
    versions: dict[str, str],
) -> str:
    """The plan in Markdown: a table of the stages, the largest batch, and a table of the scaling.

    rows: the stages, as `search.measure` returns them.
    notes: reasons why the other stages are not planned.
    largest: result of `search.search`; None: it was not asked for.
    curve: rows of `search.scaling`.
    versions: package → version.
    """
    made_by = ", ".join(f"{name} {versions[name]}" for name in ("jax", "libtpu"))
    kinds = sorted({kind for row in rows for kind in row.get("collectives", ())})
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "arithmetic": lambda row: _amount(row["flops"], "FLOP"),
        "HBM traffic": lambda row: _amount(row["hbm_traffic_bytes"], "B"),
        **{kind: partial(_collective, kind) for kind in kinds},
        "compute, memory, network": lambda row: ", ".join(_time(row["seconds"][part]) for part in PARTS),
        "at best it takes": lambda row: f"{_time(row['seconds']['at_best'])}: {row['binds']} binds",
        "without overlap": lambda row: _time(row["seconds"]["without_overlap"]),
        "images/s of all chips, at best": lambda row: _rate(row["images_per_second"]),
        "pairs/s of all chips, at best": lambda row: _rate(row["pairs_per_second"]),
    }
    table = [["a chip, a call", *(f"{row['stage']}, {row['batch']}" for row in rows)]]
    table += [[f"HBM needed, of {gib(where.chip.hbm)}", *(gib(row["hbm"]["needed_bytes"]) for row in rows)]]
    table += [[name, *(value(row) if row["fits"] else "" for row in rows)] for name, value in lines.items()]
    sentences = [f"Not planned: {note}" for note in notes]
    for row in rows:
        if row.get("loops_counted_once"):
            sentences.append(
                f"{row['stage']}: {row['loops_counted_once']} loops count once, because their trips are not known."
            )
    if largest:
        best, worst = largest["largest_k"], largest["fails_at_k"]
        most = f"Largest batch compiled that fits: train.k={best:,}" if best else "No batch compiled fits"
        sentences.append(f"{most}; train.k={worst:,} does not." if worst else f"{most}; larger ones were not tried.")
    if curve:
        names = ["chips", "stage", "batch", "at best", "binds", "efficiency", "without overlap"]
        sentences += ["", grid(names, list(map(_scaled, curve)))]
    title = f"**{where.name}, {len(where.devices)} chips. {NOTE}** ({made_by})."
    return "\n".join([title, "", grid(table[0], table[1:]), "", *sentences]).rstrip() + "\n"


def _scaled(row: dict[str, Any]) -> list[str]:
    cells = [f"{row['chips']} ({row['topology']})", row["stage"], row["batch"]]
    if not row["fits"]:
        return [*cells, "does not fit", "", "", ""]
    efficiency = [f"{100 * row[f'efficiency_{how}']:.1f} %" for how in ("at_best", "without_overlap")]
    return [*cells, _time(row["seconds"]["at_best"]), row["binds"], *efficiency]


def _collective(kind: str, row: dict[str, Any]) -> str:
    total = row["collectives"].get(kind)
    return f"{total['count']:,}: {_amount(total['bytes'], 'B')}" if total else "none"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value else ""


def _amount(value: float | int, unit: str) -> str:
    power = min(4, int(math.log10(value) // 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}{unit}"


def _time(seconds: float) -> str:
    power = 0 if seconds >= 1 or seconds == 0 else 1 if seconds >= 1e-3 else 2
    return f"{seconds * 1000**power:.3g} {('s', 'ms', 'µs')[power]}"


def scaling(rows: Sequence[Mapping[str, Any]], kind: str) -> Figure:
    """Draw the efficiency in % against the number of chips. Training and estimation have a panel each, if swept.

    rows: plan.json's `scaling`; rows that do not fit are not drawn.
    kind: the chips' kind, such as v5e.
    """
    stages = {"train": "training, as many pairs a chip", "estimate": "estimation, the same K on all chips"}
    swept = [stage for stage in stages if any(row["stage"] == stage for row in rows)]
    figure, axes = panels(*(f"{stages[stage]}: efficiency in %" for stage in swept))
    for ax, stage in zip(axes, swept, strict=True):
        points = [row for row in rows if row["stage"] == stage and row["fits"]]
        chips = [row["chips"] for row in points]
        for how, line, heading in (
            ("at_best", "-", "arithmetic, memory and network overlap in full"),
            ("without_overlap", "--", "they do not overlap"),
        ):
            percent = [100 * row[f"efficiency_{how}"] for row in points]
            ax.plot(chips, percent, line, marker="o", markersize=4, color=LOWER_BOUND, label=heading)
        ax.axhline(100, color=ENTROPY, zorder=1.5)
        ax.set_xscale("log", base=2)
        ax.set_xticks(chips, [f"{n}" for n in chips])
        ax.minorticks_off()
        ax.set(xlabel=f"{kind} chips; the compiler's numbers, not a measurement", ylim=(0, 109))
    shared_legend(figure, axes)
    return figure
