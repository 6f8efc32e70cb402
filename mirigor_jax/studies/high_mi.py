"""Estimators at 2.5 to 30 nats: critics that see fresh pairs of Gaussians, and `mi.estimate` with its defaults.

After Gosch 2020, section 3 and appendix D.2 and D.3, Figs. 1 to 3 and 10 to 13.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import fields, mi, tables
from mirigor_jax.config_files import flatten
from mirigor_jax.drawing import (
    CEILING,
    CERTIFIED,
    ENTROPY,
    INK,
    LOWER_BOUND,
    Axes,
    Figure,
    empty_figure,
    floats,
    legends,
    style,
)
from mirigor_jax.errors import InputError
from mirigor_jax.mi.critics import JointCritic
from mirigor_jax.mi.distributions import Gaussian
from mirigor_jax.mi.estimators import resolve
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import show_progress
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.report import Form, publish
from mirigor_jax.runs.schema import Report
from mirigor_jax.settings import FreshPairs
from mirigor_jax.studies import grid, high_mi_critics
from mirigor_jax.studies.high_mi_critics import Training

CURVES, ESTIMATES = "curves.npz", "estimates.json"
TODAY = "today"
TAKEN = (TODAY, "figures")  # folders that belong to no training
SHOWN = (-3.0, 33.0)  # nats; values beyond are not drawn
MARKS = {"shuffle": "o-", "derange": "s--", "in-batch": "^-."}
# Whether some x meet their own y among the negatives.
MEETS_ITS_OWN = {"shuffle": True, "derange": False, "in-batch": False}
CAPTIONS = {
    "high_mi": "Values against the batch and against the true MI; dotted: log N; gray: the best critic's value with "
    "permuted negatives. Values below −3 or above 33 nats are not drawn.",
    "high_mi_curves": "Smoothed values over the epochs, a line a level, after Gosch 2020, Figs. 1 to 3 and 10 to 13; "
    "dotted: log N.",
}


@dataclass(frozen=True, kw_only=True)
class HighMiReport(Report):
    """report.json of a run on Gaussians of high information. Nats.

    trainings: a row for each finished training and reader, as `_rows_of` makes it.
    missing: names of the other trainings.
    today: for each level the estimate of `mi.estimate`, as `_estimate_today` makes it; empty if it is missing.
    """

    trainings: list[dict[str, Any]]
    missing: list[str]
    today: list[dict[str, Any]]


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """Of the `given` keys, those that affect no training: key → the reason."""
    words = "has no effect, since every training of this study sets its own value; leave it out"
    own = [cell["run"].keys() for cell in config.study.cells]
    return {key: words for key in given if own and all(key.removeprefix("run.") in keys for keys in own)}


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run `mi.estimate`, train the critics of every cell, and report all that is finished.

    If `study.only` names a cell, its critics alone are trained. Several processes may do so at the same time, each for
    a cell of its own.
    Raises InputError if a cell has a setting that it cannot have, or if another process is at work on a cell.
    """
    del monitoring  # this kind of run has no stage that it shows
    folder = RunFolder.at(workdir or f"runs/studies-{name}")
    print(f"study folder: {folder}", flush=True)
    if not config.study.cells:
        raise InputError("study.cells=(): this study has no training; give one at least")
    names = [cell["name"] for cell in config.study.cells]
    if twice := {each for each in names if names.count(each) > 1 or each in TAKEN or "/" in each}:
        raise InputError(f"study.cells: the name '{min(twice)}' is taken, or no name of a folder; give another")
    chosen = grid.chosen_of(config.study.only, names)
    cells = dict(zip(names, grid.configs_of(config.run, config.study.cells), strict=True))
    trainings = {each: _training(each, cell, config) for each, cell in cells.items()}
    with folder.claimed(config, wait=True):
        pass  # released at once, for the other processes
    if not config.study.only:
        itself = RunFolder(folder.path / TODAY)
        with itself.lock():
            itself.mend(partial(_today, config, itself, _levels(cells.values())))
    for number, each in enumerate(chosen, 1):
        print(f"training {number} of {len(chosen)}", flush=True)
        itself = RunFolder(folder.path / each)
        with itself.lock():
            itself.mend(partial(_train, config, itself, cells[each], trainings[each]))
    with folder.lock(wait=True):
        _report(config, folder, cells, trainings)


def _training(name: str, cell: ConfigDict, config: ConfigDict) -> Training:
    """The training that a cell's config describes. Raises InputError if there is none."""
    try:
        fields.check(FreshPairs, flatten(cell))
        if list(cell.levels) != sorted(set(cell.levels)):
            raise InputError(f"levels={cell.levels}: expected rising levels")
        critic = JointCritic(tuple(cell.hidden), cell.activation, tuple(cell.dropout) or 0.0)
        if cell.dropout and len(cell.dropout) != len(cell.hidden):
            raise InputError(f"dropout={cell.dropout}: expected one rate for each of hidden={cell.hidden}")
        readers = tuple(resolve(each) for each in cell.readers or (cell.estimator,))
        for estimator in (resolve(cell.estimator), *readers):
            estimator.check(critic, cell.negatives)
            if estimator.needs_u:
                raise InputError(f"{estimator.name} needs a second critic, which this study does not train")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return Training(
        critic=critic,
        estimator=resolve(cell.estimator),
        readers=readers,
        batches=config.batches,
        dimension=config.dimension,
        **{key: cell[key] for key in ("negatives", "k", "learning_rate", "weight_decay")},
    )


def _train(config: ConfigDict, itself: RunFolder, cell: ConfigDict, training: Training) -> None:
    """Train the critics of a cell, unless they are. itself: the cell's folder, which keeps each reader's values."""
    with itself.stage(itself.name, itself.exists(CURVES)) as work:
        if work:
            how = {key: cell[key] for key in ("epochs", "doublings", "settled_nats")}
            seeds = range(config.seed, config.seed + cell.seeds)
            with show_progress("critics", "epochs") as on_progress:
                curves = high_mi_critics.train(training, cell.levels, seeds, **how, on_progress=on_progress)
            names = (reader.name for reader in training.readers)
            itself.write_arrays(CURVES, dict(zip(names, curves, strict=True)))
        itself.arrays(CURVES)  # meets a damaged file here, where it can be made again


def _today(config: ConfigDict, itself: RunFolder, levels: Sequence[float]) -> None:
    """Run `mi.estimate` at every level, unless the folder has its results."""
    with itself.stage(TODAY, itself.exists(ESTIMATES)) as work:
        if work:
            itself.write(ESTIMATES, _estimate_today(config, levels))
        itself.read(ESTIMATES)


def _notes(folder: RunFolder, names: Sequence[str]) -> dict[str, Any]:
    """What each stage's folder records about it. A stage that was killed between its result and its record has none."""
    notes: dict[str, Any] = {}
    for name in names:
        notes |= RunFolder(folder.path / name).read("stages.json") or {}
    return notes


def _estimate_today(config: ConfigDict, levels: Sequence[float]) -> list[dict[str, Any]]:
    """For each level what `mi.estimate` says of `config.pairs` pairs with its defaults, in nats."""
    key = jax.random.key(config.seed)
    sets = [Gaussian(config.dimension, nats).sample(key, config.pairs) for nats in levels]
    with show_progress("critics", "steps") as on_progress:
        found = mi.estimate_all(sets, seed=config.seed, on_progress=on_progress)
    nats = math.log(2)
    return [
        {
            "level": level,
            "value": row[0].value_nats,
            "lower": None if row[0].lower_bits is None else row[0].lower_bits * nats,
            "ceiling": row[0].ceiling_bits * nats,
            "k": row[0].k,
            "confidence": row[0].confidence,
            "sentence": row[0].sentence,
        }
        for level, row in zip(levels, found, strict=True)
    ]


def _rows_of(name: str, cell: ConfigDict, training: Training, curves: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each reader: the cell's settings, its values, and how far they rose at the end. Lists go by level.

    A value is the mean over the last fifth of the epochs and over the seeds; `quarter` is that of the first quarter of
    the training. `fall` is how far the value of the last level is below the largest, as a mean over the seeds. A spread
    is the standard deviation over seeds.
    """
    rows = []
    for reader, curve in curves.items():
        epochs = curve.shape[-1]
        ends, early = _ends(curve), _ends(curve[..., : epochs // 4])
        fall = ends.max(axis=1) - ends[:, -1]
        rows.append(
            {
                "cell": name,
                "reader": reader,
                **{key: cell[key] for key in ("estimator", "negatives", "k", "activation", "learning_rate", "seeds")},
                "hidden": list(cell.hidden),
                "dropout": list(cell.dropout),
                "levels": list(cell.levels),
                "epochs": epochs,
                "steps": epochs * training.steps,
                "values": ends.mean(axis=0).tolist(),
                "spread": _spread(ends),
                "quarter": early.mean(axis=0).tolist(),
                "quarter_spread": _spread(early),
                "fall": float(fall.mean()),
                "fall_spread": _spread(fall),
                "rise": high_mi_critics.rise(curve).tolist(),
                "settled": high_mi_critics.has_settled(curve, cell.settled_nats),
            }
        )
    return rows


def _ends(curve: np.ndarray) -> np.ndarray:
    """The mean over the last fifth of the epochs, by seed and level."""
    return np.mean(curve[..., high_mi_critics.last_fifth(curve.shape[-1])], axis=-1)


def _spread(by_seed: np.ndarray) -> Any:
    """The standard deviation over seeds, the first axis; None if there is one seed."""
    return by_seed.std(axis=0, ddof=1).tolist() if len(by_seed) > 1 else None


def _report(
    config: ConfigDict, folder: RunFolder, cells: Mapping[str, ConfigDict], trainings: Mapping[str, Training]
) -> None:
    """Report the finished cells, those of other processes included. The caller holds the study's lock."""
    folders = {name: RunFolder(folder.path / name) for name in cells}
    curves = {name: itself.arrays(CURVES) for name, itself in folders.items() if itself.exists(CURVES)}
    rows = [row for name in curves for row in _rows_of(name, cells[name], trainings[name], curves[name])]
    today = RunFolder(folder.path / TODAY).read(ESTIMATES) or []
    parts = {"trainings": rows, "missing": [name for name in cells if name not in curves], "today": today}
    drawn = {"high_mi": picture(rows, today, config.dimension), "high_mi_curves": picture_curves(rows, curves)}
    folder.write("stages.json", _notes(folder, [TODAY, *cells]))
    publish(config, folder, parts, drawn, FORM, captions=CAPTIONS)


def _at_top(report: HighMiReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every training at its largest level."""
    header = ["training", "read by", "N", "log N", "MI", "at ¼", "value", "− log N", "below largest", "rise", "epochs"]
    rows = []
    for row in report.trainings:
        value, log_n = row["values"][-1], math.log(row["k"])
        rows.append(
            [
                row["cell"],
                row["reader"],
                f"{row['k']:,}",
                f"{log_n:.2f}",
                f"{row['levels'][-1]:g}",
                _with_spread(row["quarter"][-1], row["quarter_spread"] and row["quarter_spread"][-1]),
                _with_spread(value, row["spread"] and row["spread"][-1]),
                _nats(value - log_n if tables.known(value) else None, "+"),
                _with_spread(row["fall"], row["fall_spread"]) if len(row["levels"]) > 1 else "–",
                _nats(row["rise"][-1], "+"),
                f"{row['epochs']:,}",
                "yes" if row["settled"] else "no",
            ]
        )
    return [*header, "settled"], rows


def _by_level(report: HighMiReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the values of every training with several levels, and those of `mi.estimate`.

    The first reader of a training also has its values after a quarter of the epochs.
    """
    levels = _levels(report.trainings)
    found = {row["level"]: row for row in report.today}

    def cells(row: Mapping[str, Any], values: str) -> list[str]:
        at = dict(zip(row["levels"], row[values], strict=True))
        return [_nats(at.get(nats)) for nats in levels]

    rows = []
    for row in report.trainings:
        if len(row["levels"]) > 1:
            if row["reader"] == row["estimator"]:
                rows.append([f"{row['cell']}: {row['reader']} at ¼", *cells(row, "quarter")])
            rows.append([f"{row['cell']}: {row['reader']}", *cells(row, "values")])
    if found:
        rows.append(["mi.estimate", *(_nats(found[nats]["value"]) for nats in levels)])
        rows.append(["certified: at least", *(_nats(tables.down(found[nats]["lower"])) for nats in levels)])
    return ["MI, nats", *(f"{nats:g}" for nats in levels)], rows


def _levels(trainings: Iterable[Any]) -> list[float]:
    """All levels of these trainings, which are rows of a report or configs of cells."""
    return sorted({nats for training in trainings for nats in training["levels"]})


def _with_spread(value: float | None, spread: float | None) -> str:
    """The value, and ± its standard deviation over seeds if that is known."""
    return _nats(value) + (f" ± {_nats(spread)}" if tables.known(spread) else "")


def _nats(value: float | None, sign: str = "") -> str:
    """The value with two decimals; a dash if it is not known; with an exponent if it is huge."""
    if not tables.known(value):
        return "–"
    return f"{value:{sign}z.2f}" if abs(value) < 1e4 else f"{value:{sign}.0e}"


def _legend(report: HighMiReport) -> str:
    sentences = [
        "All values are in nats. A value is the mean over the last fifth of the epochs, of batches that the critic has "
        "not seen; “at ¼” is the same after a quarter of the epochs. ± is the standard deviation over seeds. “below "
        "largest” is how far the value at the largest MI is below the largest value at any MI. “rise” is how far the "
        "smoothed value at the largest MI rises over the last fifth. “settled”: at no MI does the smoothed value rise "
        f"by `settled_nats` (by default {FreshPairs.settled_nats:g}) or more; a value that falls has settled, too. "
        "shuffle: negatives by a random permutation; derange: by one without fixed points; in-batch: all other pairs. "
        "f is the critic's score. js is the plug-in, js_nwj is NWJ at f + 1, and nwj of a JS critic is NWJ at f itself."
    ]
    if report.missing:
        sentences.append(f"Trainings that are missing: {', '.join(report.missing)}.")
    for first in report.today[:1]:
        sentences.append(
            f"mi.estimate has its defaults and {report.run.config['pairs']:,} pairs, of which it reads K = "
            f"{first['k']:,}, so that its ceiling is {first['ceiling']:.2f}; its lower end is certified at "
            f"{100 * first['confidence']:g} %."
        )
    return " ".join(sentences)


def _sections(report: HighMiReport) -> list[str]:
    return [tables.grid(*_at_top(report)), tables.grid(*_by_level(report)), _legend(report)]


def _lines(report: HighMiReport) -> list[str]:
    header, rows = _by_level(report)
    sides = "<" + ">" * (len(header) - 1)
    return [*tables.aligned(*_at_top(report), "<<" + ">" * 10), "", *tables.aligned(header, rows, sides)]


def picture(rows: Sequence[dict[str, Any]], today: Sequence[dict[str, Any]], dimension: int) -> Figure:
    """Draw values at the largest level against N, and those of each estimator and of `mi.estimate` against the true MI.

    rows: of trainings, as `_rows_of` makes them. today: as `_estimate_today` makes them. dimension: of x and of y.
    """
    estimators = list(dict.fromkeys(row["estimator"] for row in rows if len(row["levels"]) > 1))
    panels = 2 + len(estimators)
    height = -(-panels // 3)
    figure = empty_figure(14.4, 4.8 * height)
    places = figure.subplots(height, 3).ravel()
    by_batch, default, *against = axes = places[:panels]
    for ax in places[panels:]:
        ax.remove()
    top = max(nats for row in rows for nats in row["levels"])
    _draw_by_batch(by_batch, [row for row in rows if row["levels"][-1] == top], top)
    levels = floats(_levels(rows))
    style(default, "mi.estimate with its defaults, nats")
    if today:
        known = floats([row["level"] for row in today])
        default.plot(known, floats([row["value"] for row in today]), "o-", color=LOWER_BOUND, label="estimate")
        default.plot(known, floats([row["lower"] for row in today]), "v-", color=CERTIFIED, label="certified: at least")
        default.axhline(today[0]["ceiling"], color=CEILING, linestyle=":", label=f"ceiling log {today[0]['k']:,}")
    for ax, estimator in zip(against, estimators, strict=True):
        style(ax, f"critics trained by {estimator}: value, nats")
        own = [row for row in rows if row["estimator"] == estimator and len(row["levels"]) > 1]
        for at, row in enumerate(own):
            label = f"{row['reader']}, {row['negatives']}, N = {row['k']:,}, critic {_widths(row['hidden'])}"
            look: dict[str, Any] = {"color": f"C{at}", "label": label, "markersize": 4}
            ax.plot(floats(row["levels"]), floats(row["values"]), MARKS[row["negatives"]], **look)
        for k in sorted({row["k"] for row in own if MEETS_ITS_OWN[row["negatives"]]}):
            most = [high_mi_critics.most_of_permutations(nats, dimension, k) for nats in levels]
            look = {"color": ENTROPY, "label": f"most at N = {k:,}, shuffle", "zorder": 1.5}
            ax.plot(levels, most, linewidth=4, alpha=0.5, **look)
        _limit(ax)
    for ax in (by_batch, default):
        _limit(ax)
    for ax in (default, *against):
        ax.plot(levels, levels, color=INK, linewidth=0.8, label="true MI")
        ax.set_xlabel("true MI, nats")
    legends(*axes)
    return figure


def _widths(hidden: Sequence[int]) -> str:
    return "×".join(map(str, hidden))


def _limit(ax: Axes) -> None:
    """Show all that is drawn so far, but nothing beyond SHOWN."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.zeros(1)])
    low, high = np.nanmin(drawn) - 0.5, np.nanmax(drawn) + 1
    ax.set_ylim(max(SHOWN[0], min(0.0, low)), min(SHOWN[1], max(1.0, high)))


def _draw_by_batch(ax: Axes, rows: Sequence[dict[str, Any]], top: float) -> None:
    """Draw the values of trainings that differ in N alone. top: their level."""
    style(ax, f"value at {top:g} nats against N, nats")
    series: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        if row["reader"] == row["estimator"]:
            of_kind = series.setdefault((row["estimator"], row["negatives"], tuple(row["hidden"])), {})
            of_kind.setdefault(row["k"], row["values"][-1])
    sizes = sorted({k for values in series.values() for k in values})
    ax.plot(sizes, np.log(sizes), color=CEILING, linestyle=":", label="log N")
    for at, ((estimator, negatives, hidden), values) in enumerate(series.items()):
        if len(values) > 1:
            k = sorted(values)
            label = f"{estimator}, {negatives}, critic {_widths(hidden)}"
            ax.plot(k, floats([values[each] for each in k]), MARKS[negatives], color=f"C{at}", label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{k:,}" for k in sizes])
    ax.minorticks_off()
    ax.set_xlabel("N, pairs a batch")


def picture_curves(rows: Sequence[dict[str, Any]], curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw the smoothed values over the epochs, a panel a training; trainings of one level that differ in N share one.

    rows: of trainings, as `_rows_of` makes them. curves: cell → reader → values, as `high_mi_critics.train` returns.
    """
    from matplotlib import colormaps  # here, because importing matplotlib takes half a second

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        shared = (row["levels"][0], row["negatives"]) if len(row["levels"]) == 1 else (row["cell"],)
        groups.setdefault((row["reader"], *shared), []).append(row)
    height = -(-len(groups) // 3)
    figure = empty_figure(14.4, 3.6 * height)
    places = figure.subplots(height, 3, squeeze=False).ravel()
    for ax, own in zip(places, groups.values(), strict=False):
        first = own[0]
        title = first["cell"] if len(own) == 1 else f"{first['negatives']}, {first['levels'][0]:g} nats"
        style(ax, f"{title}: {first['reader']}, nats")
        lines = [(row, at) for row in own for at in range(len(row["levels"]))]
        for color, (row, at) in zip(colormaps["viridis"](np.linspace(0, 0.9, len(lines))), lines, strict=True):
            curve = np.mean(high_mi_critics.smoothed(curves[row["cell"]][row["reader"]]), axis=0)[at]
            label = f"{row['levels'][at]:g} nats" if len(own) == 1 else f"N = {row['k']:,}"
            ax.plot(np.arange(1, len(curve) + 1), floats(curve), color=color, linewidth=1, label=label)
        for k in sorted({row["k"] for row in own}):
            ax.axhline(math.log(k), color=CEILING, linestyle=":", linewidth=1)
        _limit(ax)
        ax.set_xlabel("epoch")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=7)
    for ax in places[len(groups) :]:
        ax.remove()
    return figure


FORM = Form(HighMiReport, _sections, _lines)
