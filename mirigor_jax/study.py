"""A study: a grid of runs, a table over the finished ones, and figures.

Its runs are ordinary run folders inside the study's, made, continued and re-estimated by experiment.py; here they are
only told apart, counted and read.
"""

import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mirigor_jax import experiment, figures, parallel, quality, report
from mirigor_jax.configuration import flatten, near
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, failures, locate, read_arrays, replace_figure, replace_json, replace_text
from mirigor_jax.mi.certificates import classifier_lower_bits
from mirigor_jax.mi.estimate import round_down
from mirigor_jax.progress import duration
from mirigor_jax.watch import UNWATCHED, Watch

Row = dict[str, Any]
TASKS = ("color", "digit", "position", "all")
REDRAWS = 65_536  # as many as one likes: they cost nothing, and hold nothing new
BEST_KNOWN = "best known, unsupervised"
LOSSES = {  # by pairing and objective
    ("simclr", "simclr"): "SimCLR",
    ("simclr", "decoupled"): "decoupled",
    ("class", "simclr"): "class",
    ("simclr", "supcon"): "SupCon",
    ("class", "cross_entropy"): "cross-entropy",
}
NEGATIVES = {  # by data.negatives; a folder has its name
    "": "D, of the same batch",
    "own": "D, drawn apart",
    "classes:second-half": "the other half of the classes",
    "cdp": "CDP images",
    "uniform": "uniform noise",
    "gaussian": "Gaussian noise",
}
# Linear accuracy in percent; L_class of the paper is the contrastive loss of same-class pairs.
# Source: Lee et al. 2023, Table III, and what it cites.
PAPER_OBJECTIVES = {
    "cifar10": {"SimCLR": 93.0, BEST_KNOWN: 94.1, "class": 93.1, "SupCon": 96.0},
    "imagenet100": {"SimCLR": 77.8, BEST_KNOWN: 84.5, "class": 87.4, "SupCon": 87.6},
    "imagenet1k": {"SimCLR": 69.1, BEST_KNOWN: 76.4, "class": 75.2, "SupCon": 78.7},
}


@dataclass(frozen=True)
class Cell:
    """One run of a study. config: what it is trained with; None where another study trained it."""

    name: str
    folder: AnyPath
    config: ConfigDict | None


@dataclass(frozen=True)
class Study:
    """What a study makes of its finished runs.

    row: a run's report and folder → its numbers, plain values. table: the rows → Markdown. draw: the rows → figures.
    """

    row: Callable[[report.Report, AnyPath], Row]
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row]], dict[str, Figure]]


def run(config: ConfigDict, name: str, workdir: str | None, watch: Watch = UNWATCHED) -> None:
    """Run what is not finished of the study's cells, or of those `study.only` names; then tabulate what is.

    Raises InputError where the study can't be started, and at its end where a run failed.
    """
    folder = locate(workdir or f"runs/studies-{name}")
    print(f"study folder: {folder}", flush=True)
    if config.study.name not in STUDIES:
        raise InputError(f"unknown study '{config.study.name}'; choose one of {', '.join(STUDIES)}")
    cells = _cells(config, folder)
    chosen = _chosen(config.study.only, cells)
    experiment.claim(folder, config)
    failures = _work(cells, chosen, config.study.estimates, watch)
    _tabulate(config, folder, cells, failures)
    if failures:
        raise InputError(f"{len(failures)} of {len(chosen)} runs failed, the others went on: see {folder / 'study.md'}")


def _cells(config: ConfigDict, folder: AnyPath) -> list[Cell]:
    """The config's own runs, and the finished ones of the studies it reads."""
    known, cells = flatten(config.run), []
    for cell in config.study.cells:
        if unknown := cell["run"].keys() - known.keys():
            raise InputError(f"{cell['name']}: unknown config key '{min(unknown)}'; {near(min(unknown), list(known))}")
        own = ConfigDict(config.run.to_dict())
        own.update_from_flattened_dict(cell["run"])
        cells.append(Cell(cell["name"], folder / cell["name"], own))
    for source in map(locate, filter(None, config.study.sources.split(","))):
        cells += [
            Cell(f"{source.name.removeprefix('studies-')}/{name}", source / name, None)
            for name in parallel.from_main(partial(_finished_cells, source))
        ]
    return cells


def _finished_cells(source: AnyPath) -> list[str]:
    """The names of the runs in a study's folder. Raises InputError where it is none."""
    try:
        return [row["cell"] for row in json.loads((source / "study.json").read_text())["rows"]]
    except (failures(source), ValueError, KeyError) as error:
        raise InputError(f"study.sources: '{source}' is no study's folder; run that study first ({error})") from error


def _chosen(only: str, cells: Sequence[Cell]) -> Sequence[Cell]:
    """All cells, or the one that `3/16` names."""
    if not only:
        return cells
    number, _, total = only.partition("/")
    if total != str(len(cells)) or not number.isdigit() or not 1 <= int(number) <= len(cells):
        raise InputError(f"study.only='{only}': this study has {len(cells)} runs; give 1/{len(cells)} and so on")
    return [cells[int(number) - 1]]


def _finished(cell: Cell, wanted: Sequence[dict[str, Any]]) -> report.Report | None:
    """The run's report where it is there, with every estimate that is wanted of it."""
    path = cell.folder / "report.json"
    found = parallel.from_main(lambda: json.loads(path.read_text()) if path.exists() else None)
    if found is None or not _names(found, wanted) <= found["estimates"].keys():
        return None
    return found


def _names(found: report.Report, wanted: Sequence[dict[str, Any]]) -> set[str]:
    return {experiment.re_estimated(ConfigDict(found["run"]["config"]), **asked)[1] for asked in wanted}


def _work(
    cells: Sequence[Cell], chosen: Sequence[Cell], wanted: Sequence[dict[str, Any]], watch: Watch
) -> dict[str, str]:
    """Finish the chosen cells, one that another process is at after all others; the message of each that failed."""
    todo = [cell for cell in chosen if not _finished(cell, wanted)]
    print(f"{len(cells)} runs, {len(chosen)} asked for, {len(chosen) - len(todo)} of these finished before", flush=True)
    failures: dict[str, str] = {}
    locked: list[Cell] = []
    began, done = time.monotonic(), 0
    for last, batch in ((False, todo), (True, locked)):
        for cell in batch:
            left = f"; about {duration((time.monotonic() - began) / done * (len(todo) - done))} left" if done else ""
            print(f"\n=== run {cells.index(cell) + 1} of {len(cells)}: {cell.name}{left}", flush=True)
            try:
                _finish(cell, wanted, watch)
                done += 1
            except experiment.LockedError:
                print(f"another process is at it{', and keeps it' if last else ': later'}", flush=True)
                if not last:
                    locked.append(cell)
            except Exception as error:
                # One run's failure must not cost the others theirs; but among several processes none can go on alone.
                if not isinstance(error, InputError):
                    if jax.process_count() > 1:
                        raise
                    traceback.print_exc()
                failures[cell.name] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"failed: {failures[cell.name]}", file=sys.stderr, flush=True)
                done += 1
    return failures


def _finish(cell: Cell, wanted: Sequence[dict[str, Any]], watch: Watch) -> None:
    if _finished(cell, wanted):
        print("finished by another process", flush=True)
        return
    if cell.config is not None:
        experiment.run(cell.config, cell.name, str(cell.folder), watch)
    for asked in wanted:
        experiment.re_estimate(cell.folder, watch, **asked)


def _tabulate(config: ConfigDict, folder: AnyPath, cells: Sequence[Cell], failures: dict[str, str]) -> None:
    """study.json, study.md and the figures, of the runs that are finished; those of other processes too."""
    wanted = config.study.estimates
    # Whoever writes last has then seen the runs of all before.
    with experiment.lock(folder, wait=True):
        found = [(cell, _finished(cell, wanted)) for cell in cells]
        parallel.from_main(lambda: _write_table(config, folder, found, failures))


def _write_table(
    config: ConfigDict, folder: AnyPath, found: Sequence[tuple[Cell, report.Report | None]], failures: dict[str, str]
) -> None:
    study, wanted = STUDIES[config.study.name], config.study.estimates
    rows = [
        {
            "cell": cell.name,
            "seconds": _seconds(cell, done, wanted),
            "devices": done["run"]["devices"],
            **study.row(done, cell.folder),
        }
        for cell, done in found
        if done
    ]
    missing = [cell.name for cell, done in found if not done]
    document = {
        "study": config.study.name,
        "runs": len(found),
        "finished": len(rows),
        "missing": missing,
        "failures": failures,
        "rows": rows,
    }
    drawn = study.draw(rows) if rows else {}
    for name, figure in drawn.items():
        replace_figure(folder / "figures" / f"{name}.png", figure)
    counted = f"{len(rows)} of {len(found)} runs finished" + (f"; missing: {', '.join(missing)}" if missing else "")
    sections = [f"# {config.study.name}", f"{counted}."]
    sections += [f"- {name} failed: {message}" for name, message in failures.items()]
    if rows:
        spent = duration(sum(row["seconds"] for row in rows))
        sections += [study.table(rows), *report.pictures([f"figures/{name}.png" for name in drawn])]
        sections += [f"{spent} in all, on {', '.join(sorted({row['devices'] for row in rows}))}."]
    replace_text(folder / "study.md", "\n\n".join(sections) + "\n")
    replace_json(folder / "study.json", document)
    print("\n" + "\n\n".join(sections[1:]) + f"\nstudy: {folder / 'study.md'}", flush=True)


def _seconds(cell: Cell, done: report.Report, wanted: Sequence[dict[str, Any]]) -> float:
    """What the study's own stages took: the run's, unless another study made it, and those of its re-estimates."""
    paths = [cell.folder / "estimates" / name / "stages.json" for name in _names(done, wanted)]
    stages = [stage for path in paths if path.exists() for stage in json.loads(path.read_text()).values()]
    return sum((s["seconds"] for s in stages), done["run"]["seconds"]["total"] if cell.config is not None else 0.0)


def _groups(rows: Sequence[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows that differ in other things alone, as seeds are, together; in order."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _mean(values: Sequence[float], form: str = ".3f") -> str:
    """The mean; of several also their standard deviation."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):z{form}}{spread}"


def _run_row(done: report.Report) -> Row:
    """What every study reads of a run, off its own estimate; bits, accuracies in 0..1."""
    own, config, in_training = done["estimate"], done["run"]["config"], done["in_training"] or {}
    names = ("paper_bits", "paper_k", "strict_bits", "t_lower_bits", "t_upper_bits", "lower_bits", "upper_bits")
    return {
        "encoder": config["encoder"]["name"],
        "pairing": config["data"]["pairing"],
        "k": config["train"]["k"],
        "seed": config["seed"],
        "steps": config["train"]["steps"],
        "entropy_bits": done["truth"]["entropy_bits"],
        "in_training_bits": in_training.get("mi_bits"),
        "ceiling_bits": math.log2(2 * config["train"]["k"] - 1),
        **{name: own[name] for name in names},
        "accuracy": done["linear"],
    }


def _batch_size_table(rows: Sequence[Row]) -> str:
    header = (
        "encoder",
        "K_Tr",
        "seeds",
        "H(C)",
        "in-training",
        "log₂(2K_Tr−1)",
        f"paper's form, K = {rows[0]['paper_k']}",
        "the paper's value",
        "strict",
        "certified",
        "accuracy, %",
        "the paper's",
    )
    lines = []
    for (encoder, k), same in _groups(rows, "encoder", "k").items():
        of = {name: [row[name] for row in same] for name in ("in_training_bits", "paper_bits", "strict_bits")}
        lines.append(
            (
                encoder,
                str(k),
                str(len(same)),
                f"{same[0]['entropy_bits']:.3f}",
                _mean(of["in_training_bits"]),
                f"{same[0]['ceiling_bits']:.3f}",
                _mean(of["paper_bits"]),
                "≈ 6",
                _mean(of["strict_bits"]),
                f"[{round_down(min(row['lower_bits'] for row in same)):.3f}, {same[0]['upper_bits']:.3f}]",
                _mean([100 * row["accuracy"]["all"] for row in same], ".2f"),
                "96.0–99.8",
            )
        )
    legend = (
        "MI in bits; ± is the standard deviation over seeds, and the certified interval that of the seed with the "
        "least lower end. The paper's form is no bound. The paper's values (Lee et al. 2023, §IV-A): post-training MI "
        "“almost constant at 6 bits” at every K_Tr, accuracy between 96.0 % and 99.8 %."
    )
    return f"{report.grid(header, lines)}\n\n{legend}"


def _infomin_row(done: report.Report, folder: AnyPath) -> Row:
    names = ("strict_bits", "lower_bits", "upper_bits", "entropy_bits", "paper_bits")
    tasks = {task: {name: done["estimates"][task][name] for name in names} for task in TASKS}
    return {**_run_row(done), "estimates": tasks}


def _infomin_table(rows: Sequence[Row]) -> str:
    """For each encoder the two heat maps in numbers: evaluated task down, training pairing across."""
    sections = []
    for (encoder,), runs in _groups(rows, "encoder").items():
        columns = _groups(runs, "pairing")

        def matrix(corner: str, cell: Callable[[Sequence[Row], str], str], columns=columns) -> str:
            header = (corner, *(f"trained on {pairing}" for (pairing,) in columns))
            return report.grid(header, [(task, *(cell(same, task) for same in columns.values())) for task in TASKS])

        def accuracy(same: Sequence[Row], task: str) -> str:
            return _mean([100 * row["accuracy"][task] for row in same], ".2f")

        def information(same: Sequence[Row], task: str) -> str:
            of = [row["estimates"][task] for row in same]
            lower = round_down(min(one["lower_bits"] for one in of))
            return f"{_mean([one['strict_bits'] for one in of])} in [{lower:.3f}, {of[0]['upper_bits']:.3f}]"

        sections += [f"## {encoder}", matrix("accuracy, %", accuracy), matrix("I_class, bits", information)]
    legend = (
        "I_class: strict InfoNCE, in the interval certified for it. The paper gives its heat maps (Lee et al. 2023, "
        "Figs. 6 and 7) no numbers; in its words (§IV-C) the diagonal is high, all four tasks are high when all is "
        "shared in training, and position is high whatever is."
    )
    return "\n\n".join([*sections, legend])


def _strength_row(done: report.Report, folder: AnyPath) -> Row:
    """Which augmentations a run had, told by those that are on: one alone, all, or all of them beside the class."""
    row, strengths = _run_row(done), done["run"]["config"]["data"]["augment"]
    on = [name for name, strength in strengths.items() if strength]
    alone = on[0] if len(on) == 1 else "all"
    family = alone if row["pairing"] == "simclr" else "class and all"
    of_all = strengths["crop"] / Augmentation().crop
    told = {"family": family, "strength": strengths.get(family, of_all)}
    return {**row, **told, "ceiling_k_bits": done["estimate"]["ceiling_bits"]}


def _strength_table(rows: Sequence[Row]) -> str:
    """A line a strength; the best accuracy of each task in each of the two families of Fig. 5 is bold."""
    header = (
        "augmentation",
        "strength",
        "strict, bits",
        f"paper's form, K = {rows[0]['paper_k']}",
        "certified",
        *TASKS,
    )
    means = {
        key: {task: np.mean([100 * row["accuracy"][task] for row in same]) for task in TASKS}
        for key, same in _groups(rows, "family", "strength").items()
    }
    lines = []
    for (family, strength), same in _groups(rows, "family", "strength").items():
        best = {t: max(of[t] for (other, _), of in means.items() if other == family) for t in TASKS}
        alone = family in ("jitter", "crop")
        accuracies = [
            f"**{text}**" if alone and means[family, strength][t] == best[t] else text
            for t in TASKS
            for text in [_mean([100 * row["accuracy"][t] for row in same], ".2f")]
        ]
        lower, upper = round_down(min(row["lower_bits"] for row in same)), same[0]["upper_bits"]
        lines.append(
            (
                family,
                f"{strength:g}",
                _mean([row["strict_bits"] for row in same]),
                _mean([row["paper_bits"] for row in same]),
                f"≥ {lower:.3f}" if upper is None else f"[{lower:.3f}, {upper:.3f}]",
                *accuracies,
            )
        )
    legend = (
        "MI of the two views under the augmentation that the encoder was trained with, in bits; accuracies on images "
        "without augmentation, in percent, each task's best of its augmentation in bold. Views of one image have no "
        f"known upper end, and strict InfoNCE can't pass log₂ K = {same[0]['ceiling_k_bits']:.3f} bits. In the paper's "
        "words (Lee et al. 2023, §IV-C and Fig. 5) all four tasks' accuracies follow a reverse U and peak at the same "
        "MI, by colour jitter as by crops."
    )
    return f"{report.grid(header, lines)}\n\n{legend}"


def _certified_row(done: report.Report, folder: AnyPath) -> Row:
    """The estimate `certified` of a run: the paper's form, the strict one at every K, all routes, the interval."""
    found = done["estimates"]["certified"]
    paper, lower, upper = (found[name] for name in ("paper_bits", "lower_bits", "upper_bits"))
    # What the table's three decimals can't show is not called outside.
    outside = "above" if paper - upper > 5e-4 else "below" if lower - paper > 5e-4 else ""
    row = {
        **_run_row(done),
        **{name: found[name] for name in ("paper_bits", "paper_k", "strict_bits", "entropy_bits", "confidence")},
        **{name: found[name] for name in ("lower_bits", "upper_bits", "t_lower_bits", "t_upper_bits")},
        "outside": outside,
        "excess_bits": paper - (upper if outside == "above" else lower) if outside else 0.0,
        "curve": found["curve"],
        "routes": {name: route["lower_bits"] for name, route in found["routes"].items()},
        "trap": None,
    }
    if row["steps"] == 0 and row["pairing"] == "all":
        test = read_arrays(folder / "estimates" / "certified" / "features" / "test.npz")
        classes = np.unique(test["labels_x"], axis=0, return_inverse=True)[1]
        row["trap"] = trap(test["h_x"], classes, round(2 ** row["entropy_bits"]), found["confidence"])
    return row


def trap(
    h: Float[np.ndarray, "n d"], classes: Integer[np.ndarray, " n"], num_classes: int, confidence: float
) -> list[Row]:
    """What a redrawn bank of test images claims of I_class, and what fresh images say of the same classifier.

    h: representations of independent images; classes: theirs, of num_classes equally frequent ones. The classifier
    gives an image the class of the nearest row of a bank. Redrawn from that bank, every image finds itself: no errors,
    however many draws, whatever the encoder. Also with the classes shuffled, where the true information is 0.
    Returns rows {"bank", "shuffled", "redrawn_bits", "fresh_bits"}: lower ends by `classifier_lower_bits`.
    """
    rng, law = np.random.default_rng(0), np.full(num_classes, 1 / num_classes)
    shuffled = rng.permutation(classes)
    rows = []
    for bank in (size for size in (64, 256, 1024, 4096) if 2 * size <= len(h)):
        fresh = slice(bank, bank + 4096)
        redrawn = rng.integers(bank, size=REDRAWS)
        of_bank, of_fresh = _nearest(h[:bank], h[:bank]), _nearest(h[fresh], h[:bank])
        for labels in (classes, shuffled):
            wrong, wrong_fresh = labels[of_bank] != labels[:bank], labels[of_fresh] != labels[fresh]
            claims = (
                classifier_lower_bits(int(errors.sum()), len(errors), law, confidence)
                for errors in (wrong[redrawn], wrong_fresh)
            )
            rows.append(
                {
                    "bank": bank,
                    "shuffled": labels is shuffled,
                    **dict(zip(("redrawn_bits", "fresh_bits"), claims, strict=True)),
                }
            )
    return rows


def _nearest(h: Float[np.ndarray, "n d"], bank: Float[np.ndarray, "b d"]) -> Integer[np.ndarray, " n"]:
    """Row of the bank nearest to each h."""
    h, bank = h.astype(np.float64), bank.astype(np.float64)
    return np.argmin(np.sum(bank**2, axis=1)[None, :] - 2 * h @ bank.T, axis=1)


def _certified_table(rows: Sequence[Row]) -> str:
    ks = sorted({point["k"] for row in rows for point in row["curve"]})
    header = (
        "run",
        "H(C)",
        f"paper's form, K = {rows[0]['paper_k']}",
        *(f"strict, K = {k:,}" for k in ks),
        "(a) classifier",
        "(b) posterior",
        "(c) InfoNCE",
        "certified",
        "paper's form lies",
    )
    lines = []
    for row in rows:
        strict = {point["k"]: point["strict_bits"] for point in row["curve"]}
        lines.append(
            (
                row["cell"],
                f"{row['entropy_bits']:.3f}",
                f"{row['paper_bits']:.3f}",
                *(f"{strict[k]:z.3f}" if k in strict else "–" for k in ks),
                *(
                    f"{round_down(row['routes'][route]):.3f}" if route in row["routes"] else "–"
                    for route in ("classifier", "posterior", "infonce")
                ),
                f"[{round_down(row['lower_bits']):.3f}, {row['upper_bits']:.3f}]",
                f"**{row['outside']}, by {abs(row['excess_bits']):.3f}**" if row["outside"] else "within",
            )
        )
    entropies = sorted({row["entropy_bits"] for row in rows}, reverse=True)
    for entropy in entropies:
        reach = {p["k"]: p["reach_bits"] for row in rows if row["entropy_bits"] == entropy for p in row["curve"]}
        cells = (f"{reach[k]:.3f}" if reach.get(k) is not None else "–" for k in ks)
        lines.append((f"reach(K) at {entropy:g} bits", f"{entropy:.3f}", "", *cells, "", "", "", "", ""))
    legend = (
        f"Bits; each route's lower end holds at {100 * rows[0]['confidence']:g} % on fresh images, and the certificate "
        "is the route that validation chose. reach(K) is the most that any critic can show at that K. The paper's form "
        "(Lee et al. 2023, Eq. 4) is no bound: where it leaves the certified interval it is off by at least that."
    )
    sections = [report.grid(header, lines), legend]
    if trapped := next((row for row in rows if row["trap"]), None):
        grid = report.grid(
            ("bank, images", "classes", "redrawn from the bank: “I ≥”", "fresh images: I ≥"),
            [
                (
                    f"{one['bank']:,}",
                    "shuffled: the truth is 0" if one["shuffled"] else "true",
                    f"{round_down(one['redrawn_bits']):.3f}",
                    f"{round_down(one['fresh_bits']):.3f}",
                )
                for one in trapped["trap"]
            ],
        )
        words = (
            f"The trap, on the untrained encoder ({trapped['cell']}): a nearest-neighbour classifier of a bank of test "
            f"images, tested on {REDRAWS:,} images redrawn from that bank, and on fresh ones. Redraws “certify” H(C) "
            "for any encoder with distinct rows, even where the classes were shuffled and nothing is there to know."
        )
        sections += ["## What redraws certify", words, grid]
    return "\n\n".join(sections)


def _case_row(case: str, done: report.Report, folder: AnyPath) -> Row:
    """A run by its case and set of images: its accuracy, and what the encoder knows of the class and of the image."""
    of_class = done["estimates"]["class"]
    return {
        "set": folder.name.partition("-")[0],
        "case": case,
        "seed": done["run"]["config"]["seed"],
        "accuracy": done["linear"]["class"],
        **{name: of_class[name] for name in ("strict_bits", "lower_bits", "entropy_bits")},
        "simclr_bits": done["estimates"]["simclr"]["strict_bits"],
    }


def _case_table(heading: str, rows: Sequence[Row], paper: Mapping[str, float]) -> str:
    header = (heading, "seeds", "accuracy, %", "the paper's", "I_class, strict", "certified", "I_SimCLR, strict")
    lines = [
        (
            case,
            str(len(same)),
            _mean([100 * row["accuracy"] for row in same], ".2f"),
            f"{paper[case]:.1f}" if case in paper else "–",
            _mean([row["strict_bits"] for row in same]),
            f"[{round_down(min(row['lower_bits'] for row in same)):.3f}, {same[0]['entropy_bits']:.3f}]",
            _mean([row["simclr_bits"] for row in same]),
        )
        for (case,), same in _groups(rows, "case").items()
    ]
    if BEST_KNOWN in paper:
        lines.append((BEST_KNOWN, "", "", f"{paper[BEST_KNOWN]:.1f}", "", "", ""))
    return report.grid(header, lines)


def _objectives_row(done: report.Report, folder: AnyPath) -> Row:
    config = done["run"]["config"]
    return _case_row(LOSSES[config["data"]["pairing"], config["train"]["objective"]], done, folder)


def _objectives_table(rows: Sequence[Row]) -> str:
    legend = (
        "Linear accuracy of the encoder that each loss trains; MI in bits; ± is the standard deviation over seeds. "
        "SimCLR's, decoupled and SupCon see two augmentations of an image, class two images of a class as they are, "
        "cross-entropy images as they are. The paper's: Lee et al. 2023, Table III, which has CIFAR-10, ImageNet-100 "
        "and ImageNet-1k. It cites SupCon of CIFAR-10 and ImageNet-1k (Khosla et al. 2020), SimCLR of ImageNet-1k "
        "(Chen et al. 2020) and the best known unsupervised results: 94.1 % (SWD) of CIFAR-10, 84.5 % (MoCo-v2 + "
        "MoCHi) of ImageNet-100, 76.4 % (HCA) of ImageNet-1k."
    )
    return f"{_case_table('loss', rows, PAPER_OBJECTIVES.get(rows[0]['set'], {}))}\n\n{legend}"


def _draw_objectives(rows: Sequence[Row]) -> dict[str, Figure]:
    return {"objectives": figures.cases(rows, PAPER_OBJECTIVES.get(rows[0]["set"], {}))}


def _negatives_row(done: report.Report, folder: AnyPath) -> Row:
    named = done["run"]["config"]["data"]["negatives"]
    return _case_row(NEGATIVES.get(named, Path(named.partition(":")[2]).name), done, folder)


def _negatives_table(rows: Sequence[Row]) -> str:
    legend = (
        "Linear accuracy on D, half of the classes, of the encoder that SimCLR trains on D with negatives of D⁻; MI in "
        "bits; ± is the standard deviation over seeds. In the paper (Lee et al. 2023, appendix C and Table X) D⁻ = the "
        "other half is better than D⁻ = D, by 1.92 points of CIFAR-10's first five classes and 0.77 of CIFAR-100's "
        "first fifty, and PACS's cartoons, art, photographs and sketches, and uniform noise, are worse."
    )
    return f"{_case_table('negatives D⁻', rows, {})}\n\n{legend}"


STUDIES = {
    "batch_size": Study(
        lambda done, folder: _run_row(done), _batch_size_table, lambda rows: {"batch_size": figures.batch_size(rows)}
    ),
    "infomin_tasks": Study(_infomin_row, _infomin_table, lambda rows: {"infomin_tasks": figures.infomin_tasks(rows)}),
    "infomin_strength": Study(
        _strength_row, _strength_table, lambda rows: {"infomin_strength": figures.infomin_strength(rows)}
    ),
    "quality": Study(quality.row, quality.table, quality.draw),
    "objectives": Study(_objectives_row, _objectives_table, _draw_objectives),
    "negatives": Study(_negatives_row, _negatives_table, lambda rows: {"negatives": figures.cases(rows, {})}),
    "certified": Study(_certified_row, _certified_table, figures.certified),
}
