"""Usable information of a run's encoder: the rows that it is read on, its result, and the pointwise values."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mirigor_jax import mi
from mirigor_jax.data.pairing import ByClass
from mirigor_jax.data.sources import table
from mirigor_jax.errors import InputError
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import PARTS, UNSEEN, Job
from mirigor_jax.runs.schema import UsableEntry, read
from mirigor_jax.settings import Rows

RESULT, POINTWISE = "evaluate/usable.json", "evaluate/pvi.csv"
COLUMNS = ("part", "index", "label", "prediction", "pvi_bits", "label_probability", "prediction_entropy_bits")


@dataclass(frozen=True)
class UsableRows:
    """The rows of a run that usable information is measured on: single images, each independent given its class.

    h: the frozen encoder's representations of unaugmented images.
    labels: class of each row, from 0. names: of the classes.
    seen: the rows that the encoder was trained or chosen on, or may have been.
    parts: the part of each row: fit, validation, test or unseen. index: the row's number in its part.
    """

    h: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    seen: Bool[np.ndarray, " n"]
    parts: Shaped[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]


def is_measured(job: Job) -> bool:
    """Whether the run measures usable information: there are labels of two classes or more."""
    classes = job.evaluated_classes
    return classes is not None and classes.num_classes > 1


def rows_of(job: Job, folder: RunFolder) -> UsableRows:
    """The rows of a run in `folder` whose features are encoded. The run's `is_measured` must hold.

    A pair gives its first view only: two views of a pair may share more than their class.
    Raises InputError if features are missing.
    """
    classes, features = job.evaluated_classes, folder / "features"
    assert classes is not None  # `is_measured` says so
    has_more = job.images.unseen() is not None and features.exists(f"{UNSEEN}.npz")  # older runs lack it
    loaded = {}
    for part in (*PARTS, UNSEEN) if has_more else PARTS:
        arrays = features.arrays(f"{part}.npz")
        ending = "" if "h" in arrays else "_x"
        loaded[part] = arrays[f"h{ending}"], arrays[f"labels{ending}"]
    attributes = np.concatenate([labels for _, labels in loaded.values()])
    sizes = [len(h) for h, _ in loaded.values()]
    parts = np.repeat([*loaded], sizes)
    labels = classes.classes(attributes)
    return UsableRows(
        h=np.concatenate([h for h, _ in loaded.values()]),
        labels=labels,
        names=_names(job, classes, labels, attributes),
        seen=np.isin(parts, job.seen_parts),
        parts=parts,
        index=np.concatenate([np.arange(n) for n in sizes]),
    )


def _names(job: Job, classes: ByClass, labels: np.ndarray, attributes: np.ndarray) -> tuple[str, ...]:
    """The names of the classes: the values of the shared attributes, if each class has its own values of them."""
    population, names = job.images, [f"class {c}" for c in range(classes.num_classes)]
    if set(classes.shared) <= {*population.names}:
        columns = [population.names.index(name) for name in classes.shared]
        if math.prod(len(population.value_names[a]) for a in columns) == classes.num_classes:
            for c, row in zip(*np.unique(labels, return_index=True), strict=True):
                names[c] = ", ".join(population.value_names[a][attributes[row, a]] for a in columns)
    return tuple(names)


def information(job: Job, rows: UsableRows, h: Float[np.ndarray, "n d"]) -> mi.UsableInformation:
    """Usable information of representations h of these rows. Raises InputError as `mi.usable_information` does."""
    e = job.config.estimate
    # Generated images are drawn independently and need no check.
    stated: Rows = "independent" if table.find(job.config.data.source).is_generated else e.rows
    labels = np.asarray(rows.names)[rows.labels]
    return mi.usable_information(h, labels, seen=rows.seen, confidence=e.confidence, rows=stated)


def measure(job: Job, folder: RunFolder) -> None:
    """Measure usable information, and write its result and the pointwise values of the rows that its ends read."""
    rows, classes = rows_of(job, folder), job.evaluated_classes
    assert classes is not None  # `is_measured` says so
    shared = tuple(classes.shared)
    labels = np.asarray(rows.names)[rows.labels]
    try:
        result = information(job, rows, rows.h)
    except InputError as error:  # too few rows of a class; the run's other results stand
        folder.write(RESULT, dataclasses.asdict(UsableEntry(shared=shared, note=str(error))))
        return
    print(f"  {result.sentence}", flush=True)
    parts, index = rows.parts[result.rows], rows.index[result.rows]
    found, counts = np.unique(parts, return_counts=True)
    fields = {field.name for field in dataclasses.fields(UsableEntry)} - {"shared", "rows"}
    entry = read(
        UsableEntry,
        {
            **{name: value for name, value in result.to_dict().items() if name in fields},
            "shared": shared,
            "rows": dict(zip(found.tolist(), counts.tolist(), strict=True)),
        },
    )
    label_probability = np.exp2(result.pointwise_bits) * np.array([result.frequencies[c] for c in labels[result.rows]])
    columns = (
        parts,
        index,
        labels[result.rows],
        result.predicted,
        *(
            [f"{x:z.6g}" for x in values]
            for values in (result.pointwise_bits, label_probability, result.prediction_entropy_bits)
        ),
    )
    folder.write_table(POINTWISE, COLUMNS, zip(*columns, strict=True))
    folder.write(RESULT, dataclasses.asdict(entry))


def finished(folder: RunFolder) -> UsableEntry | None:
    """The contents of usable.json; None if there is none, or if another version wrote it."""
    result = folder.read(RESULT)
    try:
        return None if result is None else read(UsableEntry, result)
    except InputError:
        return None
