"""Code of the studies `objectives`, `negatives` and `anchor`: each compares cases, if possible with the paper's."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mirigor_jax import tables
from mirigor_jax.drawing import CERTIFIED, ENTROPY, INK, LINEAR, LOWER_BOUND, Figure, panels, shared_legend
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies.rows import Row, groups, mean

BEST_KNOWN = "best known, unsupervised"
TAGS = ("set", "case")  # the set of images, and the case that is compared


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A run's accuracy, I_class and I_SimCLR."""
    class_estimate = done.estimates["class"]
    return {
        "seed": done.run.config["seed"],
        "accuracy": done.linear["class"],
        **{name: getattr(class_estimate, name) for name in ("value_bits", "lower_bits", "entropy_bits")},
        "simclr_bits": done.estimates["simclr"].info_nce_bits,
    }


def table(
    heading: str,
    rows: Sequence[Row],
    paper: Mapping[str, float],
    more: Mapping[str, Callable[[Sequence[Row]], str]] = MappingProxyType({}),
) -> str:
    """A line for each case.

    heading: heading of the column that names the cases.
    paper: case → the paper's accuracy, %.
    more: heading of a further column → (the rows of a case → its cell).
    """
    header = (heading, "seeds", "accuracy, %", "the paper's", "I_class", "certified", "I_SimCLR, InfoNCE", *more)
    lines = [
        (
            case,
            str(len(same)),
            mean([100 * row["accuracy"] for row in same], ".2f"),
            f"{paper[case]:.1f}" if case in paper else "–",
            mean([row["value_bits"] for row in same]),
            f"[{tables.round_down(min(row['lower_bits'] for row in same)):.3f}, {same[0]['entropy_bits']:.3f}]",
            mean([row["simclr_bits"] for row in same]),
            *(cell(same) for cell in more.values()),
        )
        for (case,), same in groups(rows, "case").items()
    ]
    if BEST_KNOWN in paper:
        lines.append((BEST_KNOWN, "", "", f"{paper[BEST_KNOWN]:.1f}", *[""] * (len(header) - 4)))
    return tables.grid(header, lines)


def picture(rows: Sequence[dict[str, Any]], paper: Mapping[str, float]) -> Figure:
    """Draw, for each case, the linear accuracy beside the paper's, and I_class in bits below a line at H(C).

    rows: rows of the study objectives (a case is a loss) or negatives (a case is a D⁻), one for each run.
    paper: case → the paper's accuracy, %.
    """
    names = list(dict.fromkeys([*(row["case"] for row in rows), *paper]))
    figure, (left, right) = panels("linear accuracy, %", "I_class of the encoder, bits")
    place = [names.index(row["case"]) for row in rows]
    left.plot(place, [100 * row["accuracy"] for row in rows], "o", color=LINEAR, label="ours, a dot a run")
    bar: dict[str, Any] = {"markersize": 14, "markeredgewidth": 3}
    if paper:
        left.plot(
            [names.index(case) for case in paper], list(paper.values()), "_", color=INK, label="the paper's", **bar
        )
    values, lower = ([row[name] for row in rows] for name in ("value_bits", "lower_bits"))
    right.plot(place, values, "o", color=LOWER_BOUND, label="estimate")
    right.plot(place, lower, "_", color=CERTIFIED, label="certified: at least", **bar)
    right.axhline(rows[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
    for ax in (left, right):
        ax.set_xticks(range(len(names)), names, rotation=25, ha="right")
        ax.set_xlim(-0.5, len(names) - 0.5)
    shared_legend(figure, [left, right])
    return figure
