"""What critics of several kinds and widths reach on the pairs of a frozen encoder, without their classes.

The kinds are those of the benchmark of Lee & Rhee 2024: inner, bilinear, separable and joint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mirigor_jax import mi, tables
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    INK,
    LOWER_BOUND,
    NO_BOUND,
    Figure,
    floats,
    panels,
    shared_legend,
)
from mirigor_jax.errors import InputError
from mirigor_jax.mi.critics import BilinearCritic, JointCritic, Partners, Scores, SeparableCritic
from mirigor_jax.progress import show_progress
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import ImageReport, read
from mirigor_jax.studies.rows import Row, groups, mean
from mirigor_jax.studies.table import Section

TITLE = "Critics fitted to the pairs, without their classes"
FIGURE = "patches_critics"
CAPTION = (
    "Each estimator with critics of each kind and width, fitted to the pairs without their classes. Gray: the truth."
)
# Estimator → its name in tables.
ESTIMATORS = {"info_nce_symmetric": "InfoNCE", "nwj": "NWJ", "anchor": "anchor"}
DEFAULT = "default"  # the critic of `mi.estimate` as it is, which starts from a Gaussian copula
COLORS = {DEFAULT: INK, "inner": NO_BOUND, "bilinear": LOWER_BOUND, "separable": CERTIFIED, "joint": CEILING}
LARGE = 1000.0  # bits
MARKERS = "osD^v"  # of the widths of a kind


class InnerCritic(nn.Module):
    """score = gain · xᵀy: the inner product of the representations as they are, with one learned number.

    Both views have the same columns.
    """

    @nn.compact
    def scores(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], partners: Partners = None, *, deterministic: bool = True
    ) -> Scores:
        """The scores gain · xᵀy. There is no dropout, so `deterministic` changes nothing."""
        del deterministic
        log_gain = self.param("log_gain", nn.initializers.constant(-jnp.log(x.shape[1])), (), x.dtype)
        y = jnp.exp(log_gain) * y
        return x @ y.T if partners is None else jnp.einsum("nd,npd->np", x, y[partners])


def critics(widths: Sequence[int]) -> dict[str, nn.Module]:
    """Name in tables → critic: the kinds without a width once, the others at each width."""
    return {
        "inner": InnerCritic(),
        "bilinear": BilinearCritic(),
        **{f"separable, {width}": SeparableCritic((width, width), 32) for width in widths},
        **{f"joint, {width}": JointCritic((width, width)) for width in widths},
    }


def make(asked: Mapping[str, Any], runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """A row for each critic: what it shows of the MI of one run's representations.

    asked: `run`, the run's name; `pairs` of its test part, `steps` and `widths` of the critics.
    Raises InputError if the run is not finished.
    """
    run = runs[asked["run"]]
    contents = run.read("report.json")
    if contents is None:
        raise InputError(f"'{run}' has no report; run the study again to finish this run first")
    done = read(ImageReport, contents)
    test = run.arrays("features/test.npz")
    pair = test["h_x"][: asked["pairs"]], test["h_y"][: asked["pairs"]]
    rows = []
    for name, critic in {DEFAULT: None, **critics(asked["widths"])}.items():
        own: dict[str, Any] = {} if critic is None else {"critic": critic, "base": False}
        with show_progress(f"critic {name}", "steps") as on_progress:
            found = mi.estimate_all(
                [pair],
                estimators=tuple(ESTIMATORS),
                steps=asked["steps"],
                seed=done.run.config["seed"],
                rows="independent",  # each pair of the run's test part is drawn anew
                on_progress=on_progress,
                **own,
            )[0]
        rows.append(
            {
                "bits": done.truth.mutual_information_bits,
                "seed": done.run.config["seed"],
                "critic": name,
                "k": found[0].k,
                "pairs": len(pair[0]),
                "lower_bits": found[0].lower_bits,
                "confidence": found[0].confidence,
                **{f"{each}_bits": one.value_bits for each, one in zip(ESTIMATORS, found, strict=True)},
            }
        )
    return rows


def section(rows: Sequence[Row]) -> Section:
    """The table and the figure of all critics."""
    return Section(TITLE, table(rows), {FIGURE: draw(rows)})


def table(rows: Sequence[Row]) -> str:
    """A line for each truth and critic, in the order of the truth."""
    header = ("truth", "critic", *ESTIMATORS.values(), "certified: at least")
    lines = []
    for (bits, critic), same in sorted(groups(rows, "bits", "critic").items(), key=lambda item: item[0][0]):
        lower = min(one["lower_bits"] or 0.0 for one in same)
        lines.append(
            (
                f"{bits:g}",
                critic,
                *(_shown([one[f"{each}_bits"] for one in same]) for each in ESTIMATORS),
                f"{tables.round_down(lower):.3f}",
            )
        )
    first = rows[0]
    legend = (
        f"Values are in bits. Each critic is fitted to {first['pairs']:,} test pairs of the run, split 60 : 20 : 20, "
        f"and read on the last part at K = {first['k']:,}. `{DEFAULT}` is `mi.estimate` with its default critic; the "
        "numbers beside the others are their widths. The anchor's estimate is not a bound. NWJ is a lower bound in "
        "expectation, but one batch can pass the truth. The certified end belongs to InfoNCE's critic, at "
        f"{100 * first['confidence']:g} % confidence; it is the least of the seeds."
    )
    return f"{tables.grid(header, lines)}\n\n{legend}"


def _shown(values: Sequence[float]) -> str:
    """The mean; with two digits if an estimate has left the scale of bits."""
    return mean(values, ".1e" if max(map(abs, values)) >= LARGE else ".3f")


def draw(rows: Sequence[Row]) -> Figure:
    """A panel for each estimator: a line for each critic against the truth."""
    figure, axes = panels(*(f"{title}, bits" for title in ESTIMATORS.values()))
    truths = sorted({one["bits"] for one in rows})
    for ax, each in zip(axes, ESTIMATORS, strict=True):
        ax.plot(truths, truths, color=ENTROPY, linewidth=4, alpha=0.6, label="the truth")
        drawn: list[str] = []
        for (critic,), same in groups(rows, "critic").items():
            kind = critic.split(",")[0]
            marker = MARKERS[drawn.count(kind) % len(MARKERS)]
            drawn.append(kind)
            by_truth = groups(same, "bits")
            values = [floats([one[f"{each}_bits"] for one in by_truth[bits,]]).mean() for bits in truths]
            ax.plot(truths, values, color=COLORS[kind], marker=marker, markersize=5, linewidth=1, label=critic)
        ax.set_xlabel("true MI, bits")
        ax.set_ylim(-1, 1.6 * max(truths))  # an estimate outside is in the table
    shared_legend(figure, axes)
    return figure
