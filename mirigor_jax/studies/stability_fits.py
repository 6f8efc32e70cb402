"""What a run's encoder holds at several steps of its training, and what several numbers of rows show of its last one.

Every critic, probe and certificate reads images that the encoder has not seen: those of the training part that
`data.images` leaves out take the place of the fit part.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from mirigor_jax import mi, parallel
from mirigor_jax.data.population import Features
from mirigor_jax.errors import InputError
from mirigor_jax.progress import Progress
from mirigor_jax.runs import usable
from mirigor_jax.runs.estimate import certified, linear_accuracy, measure_by_class
from mirigor_jax.runs.features import encode, freeze, parts_to_encode
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import UNSEEN, Job, re_estimated
from mirigor_jax.runs.re_estimate import parse_restored, restorable
from mirigor_jax.studies.rows import Row

ROWS = "rows.jsonl"
# What a fit varies: the step of the encoder, the rows that the critic is fitted on, the pairs that the lower end of
# I_class is certified on, and the rows of usable information.
STEP, FIT, PAIRS, USABLE = "step", "fit rows", "test pairs", "usable rows"
OWN = ("run", "seed", "steps", "by", "at", "share")  # columns that say what a row is of

Spec = Mapping[str, Any]
Rows = tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Measure a run's encoder at each kept step, and its last one on each share of the rows. Returns a row for each.

    spec: run (its name), steps (of the checkpoints, in order; the last is the training's last), shares (of the rows,
        0..1, in order).
    runs: name → folder of a finished run on a set of images, trained on pairs by class, with `data.images`.
    folder: keeps the features of each checkpoint, and the rows that are finished.
    Raises InputError if the run is not finished, kept no such checkpoint or left out no training images, if ends are
    withheld because rows look dependent, and as `measure_by_class` and `mi.usable_information` do.
    """
    run = runs[spec["run"]]
    run_config = ConfigDict(restorable(run))
    folder.mend(partial(_measure, spec, run, run_config, folder))
    return folder.rows(ROWS)


def _measure(spec: Spec, run: RunFolder, run_config: ConfigDict, folder: RunFolder) -> None:
    """Measure what the folder lacks."""
    rows = folder.rows(ROWS)
    shares = [(by, share) for by in (FIT, PAIRS, USABLE) for share in spec["shares"]]
    todo: list[tuple[str, float]] = [*((STEP, step) for step in spec["steps"]), *shares]
    size = {FIT: "fit_rows", PAIRS: "pairs", USABLE: "usable_rows"}
    loaded: dict[float, tuple[Job, Features]] = {}
    with Progress("measured", len(todo), "encoders and shares") as progress:
        for by, at in todo[len(rows) :]:
            step = at if by == STEP else spec["steps"][-1]
            if step not in loaded:  # only one encoder's features are in memory
                job = _job(run, run_config, str(step))
                loaded = {step: (job, _features(job, run, folder / f"features-{step}"))}
            job, features = loaded[step]
            if by == STEP:
                found = _of_step(job, features)
            elif at == 1 and by != PAIRS:  # all rows: measured at the last step
                found = {key: x for key, x in rows[len(spec["steps"]) - 1].items() if key not in OWN}
            else:
                found = _of_share(job, features, by, at)
            own = {"run": spec["run"], "seed": job.config.seed, "steps": job.config.train.steps, "by": by}
            rows.append(
                {**own, "at": at if by == STEP else found[size[by]], "share": None if by == STEP else at, **found}
            )
            folder.write_rows(ROWS, rows)
            progress.update(len(rows), f"{by}, {rows[-1]['at']:,}")


def _job(run: RunFolder, run_config: ConfigDict, step: str) -> Job:
    """The job of the run's encoder at a step."""
    config, _ = re_estimated(run_config, checkpoint=step)
    return parse_restored(config, run_config, run)


def _features(job: Job, run: RunFolder, folder: RunFolder) -> Features:
    """The features of a checkpoint, in pairs, with the images that training leaves out in place of the fit part.

    folder: keeps the features. Raises InputError if the training leaves out no images, or kept no such checkpoint.
    """
    parts = parts_to_encode(job, unseen=True)
    del parts["fit"]
    if UNSEEN not in parts:
        raise InputError(f"the run '{run}' leaves out no training images; give data.images=N, and features.unseen")
    if not all(folder.exists(f"{part}.npz") for part in parts):
        mesh = parallel.make_mesh(job.config.features.batch_size)
        encode(job, freeze(job, run, mesh), parts, folder, mesh)
    loaded = {part: folder.arrays(f"{part}.npz") for part in parts}
    return job.images.paired({**loaded, "fit": loaded.pop(UNSEEN)}, job.pairing)


def _of_step(job: Job, features: Features) -> Row:
    """What the features of one checkpoint hold: I_class, usable information and linear accuracy."""
    classes = job.pairing.by_class
    assert classes is not None  # the run was trained on them
    accuracy = linear_accuracy(job, features, classes)
    return {**_class_information(job, features), **_usable(job, *unseen_rows(job, features)), "accuracy": accuracy}


def _of_share(job: Job, features: Features, by: str, share: float) -> Row:
    """What a share of the rows shows of the features: of those that `by` names, while the others stay."""
    if by == USABLE:
        h, labels = unseen_rows(job, features)
        rows = nested(labels, share, job.config.seed)
        return _usable(job, h[rows], labels[rows])
    if by == FIT:
        fit, classes = features["fit"], job.pairing.by_class
        assert classes is not None  # the run was trained on them
        rows = nested(classes.classes(fit["labels"]), share, job.config.seed)
        return _class_information(job, features | {"fit": {name: x[rows] for name, x in fit.items()}})
    return _class_information(job, with_pairs(features, share))


def with_pairs(features: Features, share: float) -> Features:
    """The features with a share of the test pairs, the first ones: their classes are independent draws.

    The test part then has pairs alone: a classifier is judged by one image of each, so that all certificates read
    equally many rows.
    """
    pairs = {name: x for name, x in features["test"].items() if name.endswith(("_x", "_y"))}
    number = round(share * len(pairs["h_x"]))
    return features | {"test": {name: x[:number] for name, x in pairs.items()}}


def nested(labels: Int[np.ndarray, " n"], share: float, seed: int) -> Int[np.ndarray, " m"]:
    """A share of the rows of each class, in order. The rows of a smaller share are among those of a larger one."""
    order, rank = np.random.default_rng(seed).permutation(len(labels)), np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own)) / len(own)
    return np.flatnonzero(rank < share)


def _class_information(job: Job, features: Features) -> Row:
    estimate = certified(job, measure_by_class(job, features).estimate)
    if estimate.lower_bits is None:
        raise InputError(f"I_class has no certified end: {'; '.join(estimate.warnings)}")
    return {
        **{name: getattr(estimate, name) for name in ("value_bits", "lower_bits", "certificate", "pairs")},
        "entropy_bits": job.pairing.entropy_bits,
        "fit_rows": len(features["fit"]["h"]),
        "warnings": list(estimate.warnings),
    }


def unseen_rows(job: Job, features: Features) -> Rows:
    """All rows that the encoder has not seen, and their classes: the rows of usable information."""
    classes = job.pairing.by_class
    assert classes is not None  # the run was trained on them
    parts = [features[part] for part in ("fit", "validation", "test")]
    labels = classes.classes(np.concatenate([part["labels"] for part in parts]))
    return np.concatenate([part["h"] for part in parts]), labels


def _usable(job: Job, h: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Row:
    e = job.config.estimate
    with usable.show_progress(3) as on_progress:
        found = mi.usable_information(h, labels, confidence=e.confidence, rows=e.rows, on_progress=on_progress)
    if found.lower_bits is None or found.upper_bits is None:
        raise InputError(f"usable information has no certified ends: {'; '.join(found.warnings)}")
    return {
        **{f"usable_{end}": getattr(found, end) for end in ("lower_bits", "upper_bits")},
        "usable_bits": found.value_bits,
        "usable_rows": len(h),
        "usable_warnings": list(found.warnings),
    }
