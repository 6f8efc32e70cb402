"""The proven order of a study's encoders by usable information, on unseen images that all of them share."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import mi, tables
from mirigor_jax.files import plain
from mirigor_jax.manifest import DamagedError
from mirigor_jax.mi.confidence import Interval
from mirigor_jax.progress import show_progress
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, parse
from mirigor_jax.runs.usable import UsableRows, is_measured, rows_of
from mirigor_jax.studies.rows import Row

TITLE = "Which encoder is proven to hold more"
CACHE = "usable_order.json"
# The values of single rows, which the study does not keep.
BY_ROW = ("rows", "pointwise_bits", "predicted", "prediction_entropy_bits")
NO_ROWS: dict[str, Any] = dict.fromkeys(BY_ROW, np.zeros(0, int)) | {
    name: np.zeros(0) for name in ("pointwise_bits", "prediction_entropy_bits")
}


def found(rows: Sequence[Row], runs: Mapping[str, RunFolder], folder: RunFolder) -> tuple[str, mi.UsableOrder | None]:
    """The order in words, in Markdown, and the order; None if no two encoders were measured on the same images.

    rows: of the finished runs, with `cell`, `accuracy`, and `usable`, which changes if the run's features do.
    runs: a cell's name -> its run folder. folder: the study's, which keeps the order until a run has changed.
    """
    cells = [row["cell"] for row in rows if row["usable"] is not None]
    if len(cells) < 2:
        return "Fewer than two encoders have a measured usable information.", None
    known_as = [field.name for kind in (mi.UsableOrder, mi.UsableInformation, mi.PairOrder) for field in fields(kind)]
    key = hashlib.sha256(json.dumps([known_as, *([row["cell"], row["usable"]] for row in rows)]).encode()).hexdigest()
    known = folder.read(CACHE)
    if known is None or known["key"] != key:
        order, left_out = _computed(cells, runs)
        known = {"key": key, "left_out": left_out, "order": None if order is None else stored(order)}
        folder.write(CACHE, known)
    if known["order"] is None:
        return f"No two encoders were measured on the same images. {_reasons(known['left_out'])}".rstrip(), None
    order = restored(known["order"])
    accuracies = {row["cell"]: row["accuracy"] for row in rows}
    return text(order, accuracies, known["left_out"]), order


def _computed(cells: Sequence[str], runs: Mapping[str, RunFolder]) -> tuple[mi.UsableOrder | None, dict[str, str]]:
    """The order of the cells that were measured on the same images, and why others are left out."""
    found: dict[str, tuple[Job, UsableRows]] = {}
    left_out = {}
    for cell in cells:
        job = parse(ConfigDict(runs[cell].config()))
        try:
            if is_measured(job):
                found[cell] = job, rows_of(job, runs[cell])
        except DamagedError as damaged:
            left_out[cell] = str(damaged)
    images = {cell: _images(job, rows) for cell, (job, rows) in found.items()}
    for cell, own in images.items():
        if own != Counter(images.values()).most_common(1)[0][0]:
            left_out[cell] = "it was measured on other images"
    kept = {cell: rows for cell, (_, rows) in found.items() if cell not in left_out}
    if len(kept) < 2:
        return None, left_out
    first = next(iter(kept))
    job, (rows, *_) = found[first][0], kept.values()
    with show_progress("order", "encoders and pairs") as on_progress:
        order = mi.compare_many(
            {cell: rows.h for cell, rows in kept.items()},
            np.asarray(rows.names)[rows.labels],
            seen=np.any([rows.seen for rows in kept.values()], axis=0),
            confidence=job.config.estimate.confidence,
            rows=job.config.estimate.rows,
            on_progress=on_progress,
        )
    return order, left_out


def _images(job: Job, rows: UsableRows) -> str:
    """Equal for encoders that were measured on the same images: the classes in order, the parts and the seed."""
    digest = hashlib.sha256()
    for part in (rows.labels, rows.parts, rows.index):
        digest.update(np.ascontiguousarray(part).tobytes())
    return f"{digest.hexdigest()}-seed={job.config.seed}"


def stored(order: mi.UsableOrder) -> dict[str, Any]:
    """The order in JSON's types, without the values of single rows."""
    encoders = {
        name: {field.name: getattr(one, field.name) for field in fields(one) if field.name not in BY_ROW}
        for name, one in order.encoders.items()
    }
    return dict(plain({**vars(order), "encoders": encoders, "pairs": [asdict(pair) for pair in order.pairs]}))


def restored(known: Mapping[str, Any]) -> mi.UsableOrder:
    """The order that `stored` has put into JSON."""
    encoders = {
        name: mi.UsableInformation(**{**one, "warnings": tuple(one["warnings"])}, **NO_ROWS)
        for name, one in known["encoders"].items()
    }
    pairs = (
        mi.PairOrder(**{**pair, "interval": None if pair["interval"] is None else Interval(**pair["interval"])})
        for pair in known["pairs"]
    )
    return mi.UsableOrder(encoders, tuple(pairs), known["confidence"], known["rows"])


def text(order: mi.UsableOrder, accuracies: Mapping[str, float], left_out: Mapping[str, str]) -> str:
    """The order's sentence and table, and how far linear accuracy agrees with it.

    accuracies: linear accuracy of each encoder. left_out: an encoder without an order -> the reason.
    """
    against = [pair for pair in order.proven if accuracies[str(pair.larger)] < accuracies[str(pair.smaller)]]
    named = ", ".join(f"{pair.larger} > {pair.smaller}" for pair in against)
    agreement = (
        f"The encoder that holds more has the lower linear accuracy in {len(against) or 'none'} of the "
        f"{len(order.proven)} certified pairs{f' ({named})' if named else ''}."
    )
    sentences = f"{order} {agreement} {_reasons(left_out)}".rstrip()
    return f"{sentences}\n\n{tables.grid(*order.table())}"


def _reasons(left_out: Mapping[str, str]) -> str:
    return " ".join(f"{cell} is left out: {reason}." for cell, reason in left_out.items())
