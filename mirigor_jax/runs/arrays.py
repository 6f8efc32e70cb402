"""A run on arrays in files: estimates of I(X;Y) by several estimators, or of I_class if there are labels."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import mi
from mirigor_jax.data import array_files
from mirigor_jax.errors import InputError
from mirigor_jax.manifest import DamagedError
from mirigor_jax.mi import picture
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import Progress, show_progress
from mirigor_jax.runs import report, usable
from mirigor_jax.runs.folder import RunFolder, digest
from mirigor_jax.runs.notes import noted
from mirigor_jax.runs.schema import ArrayEntry, Truth, read

SHARED = ("labels",)  # what defines the class
OF_LABELS = ("seen",)  # settings of I_class and usable information
SEEN = "the certificate is withheld, as the encoder has seen all rows; give rows that it was not trained or chosen on"
OF_PAIRS = ("estimators", "critic", "batch_size")  # settings of the critics of I(X;Y), which I_class does not use


def idle(config: ConfigDict, given: Sequence[str]) -> dict[str, str]:
    """The given keys that have no effect, each with words for a message."""
    if config.labels is None or config.y is not None:
        words = "only affects I_class and usable information, which need labels, and none are given; leave it out"
        return {key: words for key in given if key in OF_LABELS}
    words = f"only affects critics of rows x and y, and labels='{config.labels}' are given instead of y; leave it out"
    return {key: words for key in given if key in OF_PAIRS}


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run or resume a config, and write its report. Raises InputError if the user has to correct something."""
    del monitoring  # this kind of run has no stage that it shows
    folder = RunFolder.at(workdir or f"runs/{name}")
    print(f"run folder: {folder}", flush=True)
    if config.x is None or (config.y is None) == (config.labels is None):
        raise InputError("give --config.x=FILE and either --config.y=FILE or --config.labels=FILE: paired rows")
    if not config.estimators:
        raise InputError(f"estimators=(): expected one at least, of {', '.join(mi.ESTIMATORS)}")
    with Progress("reading the arrays"):
        (x, y), notes = noted(lambda: _read(config))
    if config.y is None and abs(len(x) - len(y)) == 1:
        raise InputError(
            f"x has {len(x):,} rows and labels {len(y):,}: expected as many; is a header, such as 0, among the lines "
            "of one of them?"
        )
    with config.unlocked():
        config.sha256 = {"x": digest(x), "y" if config.labels is None else "labels": digest(y)}
    with folder.claimed(config):
        folder.mend(partial(_stages, config, folder, x, y, notes))


def _read(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """x, and its partners or labels."""
    x = array_files.read(config.x, "x")
    return x, array_files.read_labels(config.labels) if config.y is None else array_files.read(config.y, "y")


def _stages(config: ConfigDict, folder: RunFolder, x: np.ndarray, y: np.ndarray, notes: Sequence[str]) -> None:
    try:
        _estimate(config, folder, x, y)
    except DamagedError:
        raise
    except InputError:
        if not folder.matches("estimates/*/estimate.json"):
            folder.give_up()
        raise
    if config.y is None:
        _measure_usable(config, folder, x, y)
    _report(config, folder, notes)


def _names(config: ConfigDict) -> list[str]:
    """The names of the estimates' folders in estimates/, without duplicates."""
    return ["labels"] if config.y is None else list(dict.fromkeys(config.estimators))


def _estimate(config: ConfigDict, folder: RunFolder, x: np.ndarray, y: np.ndarray) -> None:
    """Make the estimates that estimates/ lacks, all in one program. y: the partners of x's rows, or their labels."""
    missing = [name for name in _names(config) if _finished(folder, name) is None]

    def options(*names: str) -> dict[str, Any]:
        options = {name: config[name] for name in names if config[name] is not None}
        return {**options, "num_critics": config.seeds}

    with folder.stage("estimate", not missing) as work:
        if not work:
            return
        results: Sequence[mi.Estimate]
        with show_progress("critics", "steps") as on_progress:
            if config.y is None:
                more = options("k", "steps", "seed", "confidence", "rows")
                estimate = mi.estimate_labels(x, y, **more, on_progress=on_progress)
                results = [estimate.of_seen_rows(SEEN) if config.seen else estimate]
            else:
                more = options("critic", "k", "batch_size", "steps", "seed", "confidence", "rows")
                [results] = mi.estimate_all([(x, y)], estimators=missing, **more, on_progress=on_progress)
        for name, result in zip(missing, results, strict=True):
            entry = read(ArrayEntry, result.to_dict())
            folder.write(f"estimates/{name}/estimate.json", dataclasses.asdict(entry))


def _measure_usable(config: ConfigDict, folder: RunFolder, x: np.ndarray, labels: np.ndarray) -> None:
    with folder.stage("usable", usable.is_done(folder)) as work:
        if not work:
            return
        try:
            options = {"seen": config.seen, "confidence": config.confidence, "rows": config.rows}
            with usable.show_progress(3) as on_progress:
                result = mi.usable_information(x, labels, **options, on_progress=on_progress)
        except InputError as error:
            usable.store_refusal(folder, SHARED, error)
            return
        parts = np.full(len(result.rows), "x")
        usable.store(folder, result, shared=SHARED, parts=parts, index=result.rows, labels=labels[result.rows])


def _finished(folder: RunFolder, name: str) -> ArrayEntry | None:
    """The estimate of that name; None if there is none, or if another version made it."""
    result = folder.read(f"estimates/{name}/estimate.json")
    try:
        return None if result is None else read(ArrayEntry, result)
    except InputError:
        return None


def _report(config: ConfigDict, folder: RunFolder, notes: Sequence[str]) -> None:
    read_back = {name: _finished(folder, name) for name in _names(config)}
    estimates = {name: entry for name, entry in read_back.items() if entry is not None}
    first = next(iter(estimates.values()))
    found = usable.finished(folder)
    truth = Truth(entropy_bits=first.entropy_bits)
    parts = {"truth": truth, "estimate": first, "estimates": estimates, "usable": found}
    drawn = {"estimators": picture.estimators(list(estimates.values())), **usable.drawn(folder, found)}
    report.publish(config, folder, parts, drawn, report.ARRAY_FORM, notes=notes)
