"""Estimate MI on distributions whose MI is known: makes the tables and pictures of docs/results/known_mi.md.

python launch/known_mi.py defaults --n=1000,10000     settings that the defaults of mi.estimate were chosen from
python launch/known_mi.py stair                       every estimator, and ours, on 20-d Gaussians of 2 to 10 bits
python launch/known_mi.py flow --n=10000              flow matching beside InfoNCE and the anchor, all at their defaults

With --out=FOLDER a part also writes its rows (FOLDER/PART.json), its table (PART.md) and its picture (PART.png).
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from mirigor_jax import mi
from mirigor_jax.mi.distributions import BENCHMARK, Distribution, Gaussian
from mirigor_jax.progress import Progress, show_progress, verbosely
from mirigor_jax.tables import grid

Row = dict[str, Any]
Pairs = list[tuple[jax.Array, jax.Array]]

# Name of a setting → the arguments of mi.estimate that differ from its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no base": {"base": False},
    "separable critic": {"critic": "separable"},
    "64 wide": {"critic": mi.JointCritic((64, 64))},
    "3 seeds averaged": {"num_critics": 3},
    "NWJ": {"estimators": ["nwj"]},
    "anchor plug-in": {"estimators": ["anchor"]},
}
BITS = (2, 4, 6, 8, 10)
# All estimators get the same critic, trained from scratch on batches of 64, as in public benchmarks of these Gaussians.
STAIR = {
    "critic": mi.JointCritic((64, 64)),
    "base": False,
    "steps": 5000,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "k": 2048,
}
OURS = {"critic": "separable", "steps": 5000, "batch_size": 256, "k": 32_768}


# What the part "flow" reads: Gaussians, and tasks that are no Gaussian copula, except the two multinormal ones.
STEPS = {f"gaussian-20, {bits} bits": Gaussian(20, bits * math.log(2)) for bits in BITS}
TASKS = (
    "1v1-additive-0.1",
    "student-identity-5-5-2",
    "asinh-student-identity-5-5-2",
    "half_cube-multinormal-sparse-5-5-2-2.0",
    "multinormal-dense-25-25-0.5",
)


def defaults(sizes: list[int], names: list[str], settings: list[str]) -> Iterator[Row]:
    """Yields a row for each size, distribution and setting."""

    def by(setting: str) -> Callable[[Pairs], list[mi.Estimate]]:
        return lambda pairs: [row[0] for row in mi.estimate_all(pairs, **SETTINGS[setting])]

    return _rows(sizes, {name: BENCHMARK[name] for name in names}, {setting: by(setting) for setting in settings})


def flow(sizes: list[int]) -> Iterator[Row]:
    """Yields a row for each size, distribution and estimator."""
    ways: dict[str, Callable[[Pairs], list[mi.Estimate]]] = {
        "flow matching": lambda pairs: [mi.flow_matching(x, y) for x, y in pairs],
        "InfoNCE": lambda pairs: [row[0] for row in mi.estimate_all(pairs)],
        "anchor plug-in": lambda pairs: [row[0] for row in mi.estimate_all(pairs, estimators=["anchor"])],
    }
    return _rows(sizes, STEPS | {name: BENCHMARK[name] for name in TASKS}, ways)


def _rows(
    sizes: list[int],
    distributions: dict[str, Distribution],
    ways: dict[str, Callable[[Pairs], list[mi.Estimate]]],
    draws: int = 3,
) -> Iterator[Row]:
    """Yields a row for each size, distribution and way to estimate. draws: number of samples, each with its own fit."""
    with Progress("rows", len(sizes) * len(distributions) * len(ways), "made") as progress:
        made = itertools.count(1)
        for n in sizes:
            for name, distribution in distributions.items():
                pairs = [distribution.sample(jax.random.key(draw), n) for draw in range(draws)]
                for setting, estimates_of in ways.items():
                    start = time.perf_counter()
                    estimates = estimates_of(pairs)
                    yield {
                        "n": n,
                        "distribution": name,
                        "setting": setting,
                        "truth_nats": distribution.mutual_information(),
                        "nats": [estimate.value_nats for estimate in estimates],
                        "lower_nats": [(estimate.lower_bits or 0.0) * math.log(2) for estimate in estimates],
                        "seconds": time.perf_counter() - start,
                    }
                    progress.update(next(made))


def stair(names: list[str]) -> Iterator[Row]:
    """Yields a row for each named estimator, with its estimates at all five truths.

    The name "ours" means mi.estimate with the settings OURS. All other estimators are fitted at once.
    """

    def samples(n: int) -> Pairs:
        return [Gaussian(20, bits * math.log(2)).sample(jax.random.key(bits), n) for bits in BITS]

    by_estimator: dict[str, list[mi.Estimate]] = {}
    if same := [name for name in names if name != "ours"]:
        with show_progress("critics", "steps") as on_progress:
            rows = mi.estimate_all(samples(200_000), estimators=same, **STAIR, on_progress=on_progress)
        by_estimator |= {name: [row[index] for row in rows] for index, name in enumerate(same)}
    if "ours" in names:
        with show_progress("ours", "steps") as on_progress:
            found = mi.estimate_all(samples(330_000), **OURS, on_progress=on_progress)
        by_estimator["ours"] = [row[0] for row in found]
    for name, estimates in by_estimator.items():
        yield {
            "estimator": name,
            "kind": estimates[0].kind,
            "bits": [estimate.value_bits for estimate in estimates],
            "interval_bits": [one and (one.lower_bits, one.upper_bits) for one in (e.interval for e in estimates)],
            "lower_bits": [estimate.lower_bits for estimate in estimates],
        }


def defaults_table(rows: list[Row]) -> str:
    """For each n a table of mean errors in nats; below, each setting's mean absolute error and largest overshoot."""
    parts = []
    for n in sorted({row["n"] for row in rows}):
        errors = {(r["distribution"], r["setting"]): np.mean(r["nats"]) - r["truth_nats"] for r in rows if r["n"] == n}
        truths = {row["distribution"]: row["truth_nats"] for row in rows}
        settings = list(dict.fromkeys(row["setting"] for row in rows if row["n"] == n))
        lines = [["distribution", "truth", *settings]]
        for name, truth in truths.items():
            lines.append([name, f"{truth:.3f}", *(f"{errors[name, s]:+z.3f}" for s in settings)])
        columns = [[errors[name, s] for name in truths] for s in settings]
        lines.append(["**mean absolute error**", "", *(f"**{np.mean(np.abs(c)):.3f}**" for c in columns)])
        lines.append(["largest overshoot", "", *(f"{max(0, *c):.3f}" for c in columns)])
        parts += [f"### n = {n:,}", grid(lines[0], lines[1:])]
    return "\n\n".join(parts)


def stair_table(rows: list[Row]) -> str:
    lines = [["estimator", "kind", *(f"{bits} bits" for bits in BITS), "mean absolute error"]]
    for row in rows:
        error = np.mean(np.abs(np.array(row["bits"]) - BITS))
        values = [f"{value:.2f}" for value in row["bits"]]
        lines.append([row["estimator"], row["kind"], *values, f"{error:.2f}"])
    return grid(lines[0], lines[1:])


def defaults_figure(rows: list[Row]) -> Figure:
    """Draw every distribution's mean error against the setting."""
    sizes = sorted({row["n"] for row in rows})
    figure = Figure(figsize=(5 * len(sizes), 4.5), dpi=150, layout="constrained")
    for ax, n in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        settings = list(dict.fromkeys(row["setting"] for row in rows if row["n"] == n))
        for index, setting in enumerate(settings):
            chosen = [row for row in rows if row["n"] == n and row["setting"] == setting]
            errors = [np.mean(row["nats"]) - row["truth_nats"] for row in chosen]
            spot = {"alpha": 0.5, "color": "#0072B2", "markeredgewidth": 0, "clip_on": False}
            ax.plot(np.full(len(errors), index), errors, "o", **spot)
        ax.axhline(0, color="#333333", linewidth=1)
        ax.set_xticks(range(len(settings)), settings, rotation=40, ha="right", fontsize=8)
        ax.set_title(f"error in nats, n = {n:,}; a dot is a distribution", loc="left", fontsize=10)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def stair_figure(rows: list[Row]) -> Figure:
    """Draw the error against the truth: solid lines for lower bounds, dashed lines for other estimates."""
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    ax = figure.subplots()
    colors = list(colormaps["tab10"].colors)
    for row in rows:
        ours = row["estimator"] == "ours"
        color = "black" if ours else colors.pop(0)
        style = "-" if row["kind"] == "lower bound" else "--"
        label = f"{row['estimator']} ({row['kind']})"
        error = np.array(row["bits"]) - BITS
        ax.plot(BITS, error, style, marker="o", color=color, lw=3 if ours else 1.5, label=label)
    ax.axhline(0, color="#333333", linewidth=1)
    ax.set_xticks(BITS)
    ax.set_xlabel("true MI, bits (20-d Gaussians)")
    ax.set_ylim(bottom=max(-2.5, ax.get_ylim()[0]))  # DV and FLO would leave any frame
    ax.set_title("estimate less truth, bits", loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["defaults", "stair", "flow"])
    parser.add_argument("--n", default="1000,10000")
    parser.add_argument("--distributions", default=",".join(BENCHMARK))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument(
        "--estimators", default=",".join([*(name for name in mi.ESTIMATORS if name != "nt_xent"), "ours"])
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print all progress lines also if stdout is no terminal")
    options = parser.parse_args()
    sizes, names, settings, stairs = (
        value.split(",") for value in (options.n, options.distributions, options.settings, options.estimators)
    )
    counts = [int(n) for n in sizes]
    produced = {
        "defaults": lambda: defaults(counts, names, settings),
        "flow": lambda: flow(counts),
        "stair": lambda: stair(stairs),
    }[options.part]()
    rows = []
    with verbosely(options.verbose):
        for row in produced:
            rows.append(row)
            print(json.dumps(row), flush=True)
    of_stair = options.part == "stair"
    table, figure = (
        (stair_table(rows), stair_figure(rows)) if of_stair else (defaults_table(rows), defaults_figure(rows))
    )
    print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.part}.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        (options.out / f"{options.part}.md").write_text(table + "\n")
        figure.savefig(options.out / f"{options.part}.png")


if __name__ == "__main__":
    main()
