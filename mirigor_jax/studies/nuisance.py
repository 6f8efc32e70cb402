"""The study `nuisance`: what do estimates and certificates say as the images of known MI become harder to read?

The pairing stays the same, so the MI of the views' attributes does. An oracle that knows how the images are rendered
tells how much of it the images still hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import mi, tables
from mirigor_jax.data.cdp import CDP
from mirigor_jax.data.cdp_oracle import read as read_attributes
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    ESTIMATE,
    IN_TRAINING,
    INK,
    LINEAR,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    empty_figure,
    floats,
    line_of_means,
    shared_legend,
    style,
)
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.runs.schema import ImageReport, read
from mirigor_jax.studies.rows import Row, groups, mean, run_row, usable_ends
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

TITLE = "Estimates against the strength of each nuisance"
NONE = "none"  # the nuisance of the runs that every other nuisance starts from
FIRST = 10**6  # the oracle's first image; the constants of its likelihood were chosen on earlier ones
# Estimator whose critic is fitted here → its name in tables.
FITTED = {"nwj": "NWJ", "anchor": "anchor"}
CAPTIONS = {
    "nuisance": "Estimates and certified intervals against the strength of each nuisance, at one MI of the pairing.",
}


def row(done: ImageReport, folder: AnyPath) -> Row:
    """The columns that every study reads from a run, and usable information."""
    return {**run_row(done), **usable_ends(done)}


def make(asked: Mapping[str, Any], runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """The row of one run: its own numbers, critics of NWJ and the anchor, and what the oracle reads.

    asked: `run`, the run's name; its `nuisance`, `strength` and `seed`; `steps` of the critics; the number of new
        `images` that the oracle reads.
    Raises InputError if the run is not finished, or if its pairs do not share attributes of CDP exactly.
    """
    run = runs[asked["run"]]
    contents, config = run.read("report.json"), run.config()
    if contents is None or config is None:
        raise InputError(f"'{run}' has no report; run the study again to finish this run first")
    done = read(ImageReport, contents)
    test = run.arrays("features/test.npz")
    fitted = {
        f"{name}_bits": mi.estimate(
            test["h_x"], test["h_y"], estimator=name, steps=asked["steps"], seed=asked["seed"]
        ).value_bits
        for name in FITTED
    }
    known = {name: asked[name] for name in ("nuisance", "strength", "seed")}
    return [{**known, **row(done, run.path), **fitted, **_oracle(ConfigDict(config), asked["images"], done)}]


def _oracle(config: ConfigDict, images: int, done: ImageReport) -> Row:
    """The oracle's errors on new images of the run's population, and the MI of the views that they prove."""
    job = parse(config)
    frequencies = job.pairing.common_frequencies
    data = getattr(job.population, "data", None)
    if not isinstance(data, CDP) or frequencies is None:
        raise InputError("the oracle of the study nuisance reads CDP images whose pairs share their attributes exactly")
    batch = data.images(FIRST, FIRST + images, seed=config.seed)
    found = read_attributes(data, batch["image"])
    columns = [data.names.index(name) for name in done.truth.shared]
    errors = int((found != batch["attributes"])[:, columns].any(axis=1).sum())
    confidence = done.estimate.confidence
    return {
        "oracle_errors": errors,
        "oracle_images": images,
        "oracle_bits": classifier_lower_bits(errors, images, frequencies, confidence),
        "confidence": confidence,
    }


def section(rows: Sequence[Row]) -> Section:
    """The table and the figure `nuisance` of all finished fits."""
    return Section(TITLE, table(rows), {"nuisance": picture(rows)})


def table(rows: Sequence[Row]) -> str:
    """A line for each nuisance and strength."""
    first = rows[0]
    header = (
        "nuisance",
        "strength",
        "seeds",
        "I(C;C')",
        "the oracle proves",
        "estimate",
        "certified",
        "InfoNCE",
        f"NT-Xent estimate, K = {first['nt_xent_k']}",
        *FITTED.values(),
        "usable, certified",
        "accuracy, %",
    )
    lines = []
    for (nuisance, strength), same in sorted(groups(rows, "nuisance", "strength").items(), key=_place):
        lines.append(
            (
                nuisance,
                f"{strength:g}",
                str(len(same)),
                f"{same[0]['entropy_bits']:.3f}",
                f"≥ {_least(same, 'oracle_bits')}",
                mean([one["value_bits"] for one in same]),
                f"[{_least(same, 'lower_bits')}, {same[0]['upper_bits']:.3f}]",
                mean([one["info_nce_bits"] for one in same]),
                mean([one["nt_xent_bits"] for one in same]),
                *(mean([one[f"{name}_bits"] for one in same]) for name in FITTED),
                f"≥ {_least(same, 'usable_lower_bits')}",
                mean([100 * one["accuracy"]["all"] for one in same], ".2f"),
            )
        )
    legend = (
        "MI is in bits. I(C;C') is the MI of the two views' attributes. It is the truth of the *pairing*: by the "
        "data-processing inequality no representation of the images holds more, and the images hold less if their "
        "attributes cannot be read. The oracle knows how the images are rendered. It proves a lower end of the images' "
        f"own MI, at {100 * first['confidence']:g} % confidence, by Fano's inequality from its errors on "
        f"{first['oracle_images']:,} new images for each seed. So the MI of the images lies between these two columns. "
        "Certified ends are the least of the seeds'; ± is the standard deviation over seeds. InfoNCE's critic starts "
        "from the class posterior of a linear probe. NWJ and the anchor are `mi.estimate` of the test pairs' "
        "representations, without their classes."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def _place(item: tuple[tuple, list[Row]]) -> tuple[bool, str, float]:
    """The runs without a nuisance first, then by nuisance and strength."""
    (nuisance, strength), _ = item
    return nuisance != NONE, nuisance, strength


def _least(rows: Sequence[Row], name: str) -> str:
    """The least value, rounded down; a dash if one is not known."""
    values = [row[name] for row in rows]
    return "–" if None in values else f"{tables.round_down(min(values)):.3f}"


def picture(rows: Sequence[Row]) -> Figure:
    """Draw, for each nuisance, every estimate and the certified intervals against its strength.

    rows: one for each run. The runs without a nuisance stand at strength 0 of each nuisance that has no run there.
    """
    names = [name for name in dict.fromkeys(row["nuisance"] for row in rows) if name != NONE] or [NONE]
    figure = empty_figure(3.4 * max(len(names), 2), 4.6)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    lines = (
        ("nt_xent_bits", f"NT-Xent estimate, K = {rows[0]['nt_xent_k']}, not a bound", NO_BOUND, "s"),
        ("nwj_bits", "NWJ", CEILING, "v"),
        ("anchor_bits", "anchor, not a bound", IN_TRAINING, "^"),
        ("info_nce_bits", "InfoNCE", LOWER_BOUND, "o"),
        ("value_bits", "estimate", ESTIMATE, "D"),
        ("usable_lower_bits", "usable information, certified lower end", LINEAR, "P"),
    )
    for ax, name in zip(axes, names, strict=True):
        own = [row for row in rows if row["nuisance"] == name]
        if all(row["strength"] > 0 for row in own):
            own = [{**row, "strength": 0.0} for row in rows if row["nuisance"] == NONE] + own
        style(ax, name)
        strengths = floats([row["strength"] for row in own])
        entropy = own[0]["entropy_bits"]
        ax.axhline(entropy, color=ENTROPY, linewidth=3, label=f"I(C;C') = {entropy:.3f} bits, the pairing's")
        at = np.unique(strengths)
        lower, oracle = (
            [min(row[end] for row in own if row["strength"] == strength) for strength in at]
            for end in ("lower_bits", "oracle_bits")
        )
        ax.vlines(at, lower, entropy, color=CERTIFIED, linewidth=9, alpha=0.4, label="certified at every seed")
        ax.plot(at, oracle, color=INK, linestyle=":", label="proven by the oracle, of the images' own MI")
        for column, label, color, marker in lines:
            line_of_means(ax, strengths, floats([row[column] for row in own]), color, marker, label=label)
        ax.set_xlabel("strength")
        ax.set_ylim(-0.3, 1.15 * entropy + 0.5)  # an estimate outside is in the table
    axes[0].set_ylabel("bits")
    shared_legend(figure, axes)
    return figure


STUDIES["nuisance"] = Study(row, captions=CAPTIONS, fits=Fits(make, section))
