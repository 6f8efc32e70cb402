"""The study `others`: does post-training estimation work for encoders that no contrastive loss trained?

After Lee et al. 2023, section V-A.
"""

from collections.abc import Sequence
from typing import Any

from mirigor_jax import tables
from mirigor_jax.drawing import ENTROPY, Figure, panels, shared_legend
from mirigor_jax.files import AnyPath
from mirigor_jax.runs.schema import ImageReport
from mirigor_jax.studies import cases
from mirigor_jax.studies.rows import Row, groups, mean, usable_ends
from mirigor_jax.studies.table import STUDIES, Study

# Name of a case, as in its cells' names → (its objective, its words in the table); "untrained" takes no step.
CASES = {
    "untrained": ("simclr", "untrained"),
    "simclr": ("simclr", "SimCLR"),
    "barlow_twins": ("barlow_twins", "Barlow Twins"),
    "vicreg": ("vicreg", "VICReg"),
    "byol": ("byol", "BYOL"),
    "swav": ("swav", "SwAV"),
    "masked": ("masked", "masked autoencoder"),
}
POINTS = 5.0  # of linear accuracy by which a trained encoder is to beat its untrained net
# Public ResNet-50s on ImageNet-100 → (linear accuracy in %, I_class in bits). Source: Lee et al. 2023, Table VI.
PAPER = {"SimCLR": (89.40, 5.546), "Barlow Twins": (90.80, 5.513), "SwAV": (92.52, 5.560)}
CAPTIONS = {"others": "Certified information about the class against linear accuracy; a mark is a run."}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """A run's accuracy, I_class and usable information."""
    config, class_estimate = done.run.config, done.estimates["class"]
    return {
        "seed": config["seed"],
        "steps": config["train"]["steps"],
        "accuracy": done.linear["class"],
        **{name: getattr(class_estimate, name) for name in ("value_bits", "lower_bits", "entropy_bits")},
        **usable_ends(done),
    }


def gains(rows: Sequence[Row]) -> list[float | None]:
    """For each run, the points of accuracy by which it beats its untrained net, that of its seed; None without it."""
    start = {row["seed"]: row["accuracy"] for row in rows if not row["steps"]}
    return [100 * (row["accuracy"] - start[row["seed"]]) if row["seed"] in start else None for row in rows]


def kendall(rows: Sequence[Row], column: str) -> float | None:
    """Kendall's τ of the column and linear accuracy over trained encoders; None for fewer than three."""
    known = [row for row in rows if row["steps"] and tables.known(row[column])]
    if len(known) < 3:
        return None
    from scipy.stats import kendalltau  # imported here because it takes a second

    return float(kendalltau([row["accuracy"] for row in known], [row[column] for row in known]).statistic)


def table(rows: Sequence[Row]) -> str:
    """A line for each objective, and the rank correlations of certified information and accuracy."""
    header = ("trained by", "seeds", "accuracy, %", "gain", "I_class", "certified", "usable", "certified")
    known = [{**row, "gain": gain} for row, gain in zip(rows, gains(rows), strict=True)]
    lines, short = [], []
    for (case,), same in groups(known, "case").items():
        gained = [row["gain"] for row in same if row["steps"] and row["gain"] is not None]
        if gained and min(gained) < POINTS:
            short.append(case)
        usable = [row["usable_bits"] for row in same if tables.known(row["usable_bits"])]
        lines.append(
            (
                case,
                str(len(same)),
                mean([100 * row["accuracy"] for row in same], ".1f"),
                mean(gained, ".1f") if gained else "–",
                mean([row["value_bits"] for row in same], ".2f"),
                f"≥ {tables.round_down(min(row['lower_bits'] for row in same)):.3f}",
                mean(usable, ".2f") if usable else "–",
                _ends(same),
            )
        )
    orders = {
        name: kendall(rows, column) for name, column in (("I_class", "lower_bits"), ("usable", "usable_lower_bits"))
    }
    paper = "; ".join(f"{name} {accuracy:.2f} %, {bits:.3f} bits" for name, (accuracy, bits) in PAPER.items())
    words = "; ".join(f"{name}: τ = {value:.2f}" for name, value in orders.items() if value is not None)
    legend = (
        "Gain is in points of linear accuracy over the untrained net of the same seed. MI and usable information are "
        f"in bits, out of H(C) = {rows[0]['entropy_bits']:.3f}. Certified ends are the outermost over seeds, each at "
        "95 %; ± is the standard deviation over seeds. The objectives see two augmentations of an image. The paper's "
        f"accuracy and I_class of public ResNet-50s on ImageNet-100 (Lee et al. 2023, Table VI): {paper}."
        + (f" Kendall's τ of certified lower end and accuracy over the trained runs: {words}." if words else "")
        + (f" Below a gain of {POINTS:.0f} points at some seed: {', '.join(short)}." if short else "")
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def _ends(rows: Sequence[Row]) -> str:
    """The outermost certified ends of usable information."""
    low, high = ([row[f"usable_{end}_bits"] for row in rows] for end in ("lower", "upper"))
    if not all(map(tables.known, [*low, *high])):
        return "–"
    return tables.ends(tables.round_down(min(low)), tables.round_up(max(high)))


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw I_class and usable information, certified lower ends, against linear accuracy, a color a case."""
    figure, axes = panels("I_class, certified at least, bits", "usable information, certified at least, bits")
    for ax, column in zip(axes, ("lower_bits", "usable_lower_bits"), strict=True):
        for i, ((case,), same) in enumerate(groups(rows, "case").items()):
            known = [row for row in same if tables.known(row[column])]
            marker: dict[str, Any] = {"color": f"C{i}", "marker": "osD^vPX"[i % 7], "linestyle": ""}
            ax.plot([100 * row["accuracy"] for row in known], [row[column] for row in known], label=case, **marker)
        ax.axhline(rows[0]["entropy_bits"], color=ENTROPY, label="H(C)", zorder=1.5)
        ax.set_xlabel("linear accuracy, %")
    shared_legend(figure, axes)
    return figure


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The study's only picture."""
    return {"others": picture(rows)}


STUDIES["others"] = Study(row, table, draw, CAPTIONS, cases.TAGS)
