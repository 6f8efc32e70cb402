"""Usable information of a run's encoder: its rows, its result and its pointwise values."""

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mirigor_jax import mi
from mirigor_jax.data.attribute_classes import AttributeClasses
from mirigor_jax.data.pairing import ByClass
from mirigor_jax.data.sources import table
from mirigor_jax.drawing import Figure, floats
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress, StepCounter
from mirigor_jax.mi import picture
from mirigor_jax.mi.usable import Division, read_attributes, read_checked
from mirigor_jax.mi.usable_results import UsableInformation
from mirigor_jax.progress import Progress
from mirigor_jax.runs import figures
from mirigor_jax.runs.estimate import joint_of
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import PARTS, UNSEEN, Job
from mirigor_jax.runs.schema import UsableEntry, read

RESULT, POINTWISE = "evaluate/usable.json", "evaluate/pvi.csv"
COLUMNS = ("part", "index", "label", "prediction", "pvi_bits", "label_probability", "prediction_entropy_bits")
MOST_SHOWN = 12  # images in each group of the sheet of hardest images


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
    attributes: Int[np.ndarray, "n a"]
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
        attributes=attributes[:, _columns(job, classes)],
        seen=np.isin(parts, job.seen_parts),
        parts=parts,
        index=np.concatenate([np.arange(n) for n in sizes]),
    )


def _columns(job: Job, classes: ByClass) -> list[int]:
    """The columns of the attributes that the classes share, if they are attributes."""
    return [job.images.names.index(name) for name in classes.shared if name in job.images.names]


def _names(job: Job, classes: ByClass, labels: np.ndarray, attributes: np.ndarray) -> tuple[str, ...]:
    """The names of the classes: the values of the shared attributes, if each class has its own values of them."""
    population, names = job.images, [f"class {c}" for c in range(classes.num_classes)]
    if set(classes.shared) <= {*population.names}:
        columns = _columns(job, classes)
        if len(np.unique(attributes[:, columns], axis=0)) == len(np.unique(labels)):
            for c, row in zip(*np.unique(labels, return_index=True), strict=True):
                names[c] = ", ".join(population.value_names[a][attributes[row, a]] for a in columns)
    return tuple(names)


def information(job: Job, rows: UsableRows, h: Float[np.ndarray, "n d"]) -> UsableInformation:
    """Usable information of representations h of these rows. Raises InputError as `mi.usable_information` does."""
    e, labels = job.config.estimate, np.asarray(rows.names)[rows.labels]
    classes = job.evaluated_classes
    made = None if classes is None else joint_of(classes)
    if classes is not None and isinstance(made, AttributeClasses) and made.independent:
        values = [job.images.value_names[a] for a in _columns(job, classes)]
        with show_progress(len(values)) as on_progress:
            counter = StepCounter(on_progress, len(values))
            return read_attributes(h, rows.attributes, values, e.confidence, counter=counter)
    if table.find(job.config.data.source).is_generated:  # such images are drawn independently and need no check
        with show_progress(2) as on_progress:
            counter = StepCounter(on_progress, 2)
            return read_checked(h, Division.of(labels, rows.seen), e.confidence, counter=counter)
    options = {"seen": rows.seen, "confidence": e.confidence, "rows": e.rows}
    with show_progress(3) as on_progress:
        return mi.usable_information(h, labels, **options, on_progress=on_progress)


@contextmanager
def show_progress(steps: int) -> Iterator[OnProgress]:
    """Show the progress of `mi.usable_information`, but not its last step, after which the result is printed."""
    with Progress("usable information", steps, "steps") as progress:
        yield lambda step, _, note: progress.update(step, note) if step < steps else None


def measure(job: Job, folder: RunFolder) -> None:
    """Measure usable information, and write its files and the sheet of the hardest images."""
    rows, classes = rows_of(job, folder), job.evaluated_classes
    assert classes is not None  # `is_measured` says so
    shared = tuple(classes.shared)
    labels = np.asarray(rows.names)[rows.labels]
    try:
        result = information(job, rows, rows.h)
    except InputError as error:  # too few rows of a class; the run's other results stand
        store_refusal(folder, shared, error)
        return
    parts, index, given = (values[result.rows] for values in (rows.parts, rows.index, labels))
    if not job.holds_features:
        captions = [
            f"{textwrap.fill(f'{label} → {found}', 26)}\n{bits:z.2f} bits"
            for label, found, bits in zip(given, result.predicted, result.pointwise_bits, strict=True)
        ]
        sheet = _hardest(job, result, list(zip(parts.tolist(), index.tolist(), captions, strict=True)))
        folder.write_figures({"hardest": sheet})
    store(folder, result, shared=shared, parts=parts, index=index, labels=given)


def store(
    folder: RunFolder,
    result: UsableInformation,
    *,
    shared: tuple[str, ...],
    parts: Shaped[np.ndarray, " n"],
    index: Int[np.ndarray, " n"],
    labels: Shaped[np.ndarray, " n"],
) -> None:
    """Write a result, and the pointwise values of the unseen rows. It prints the sentence.

    shared: the attributes that define the class. parts, index: of each unseen row. labels: its class, as a name.
    """
    print(f"  {result.sentence}", flush=True)
    fields = {field.name for field in dataclasses.fields(UsableEntry)} - {"shared", "rows"}
    entry = read(
        UsableEntry,
        {
            **{name: value for name, value in result.to_dict().items() if name in fields},
            "shared": shared,
            "rows": Counter(parts.tolist()),
        },
    )
    bits = result.pointwise_bits
    probability = np.array([result.frequencies[label] for label in labels.tolist()]) * np.exp2(bits)
    numbers = ([f"{x:z.6g}" for x in values] for values in (bits, probability, result.prediction_entropy_bits))
    folder.write_table(POINTWISE, COLUMNS, zip(parts, index, labels, result.predicted, *numbers, strict=True))
    folder.write(RESULT, dataclasses.asdict(entry))


def store_refusal(folder: RunFolder, shared: tuple[str, ...], error: InputError) -> None:
    """Write why usable information is not measured."""
    folder.write(RESULT, dataclasses.asdict(UsableEntry(shared=shared, note=str(error))))


def _hardest(job: Job, result: UsableInformation, rows: Sequence[tuple[str, int, str]]) -> Figure:
    """A sheet of the images that the probe predicts worst. rows: part, index and caption of each unseen image."""
    plain = job if job.augmentation is None else job.without_augmentation()
    readers = {name: read for name, (read, _) in job.images.parts(plain.pairing).items()}
    if (left_out := job.images.unseen()) is not None:
        readers[UNSEEN] = left_out[0]

    def shown(order: np.ndarray) -> list[tuple[np.ndarray, str]]:
        images = []
        for part, index, caption in (rows[i] for i in order[:MOST_SHOWN]):
            batch = readers[part](index, index + 1)
            images.append((batch["image" if "image" in batch else "x"][0], caption))
        return images

    return figures.hardest(
        {
            "Most surprising: the least pointwise information about the label (label → prediction). Look for wrong "
            "labels": shown(np.argsort(result.pointwise_bits, kind="stable")),
            "Least sure: the prediction of the largest entropy": shown(
                np.argsort(-result.prediction_entropy_bits, kind="stable")
            ),
        }
    )


def drawn(folder: RunFolder, entry: UsableEntry | None) -> dict[str, Figure]:
    """The library's figure of a finished result, by its name; empty if there is none."""
    if entry is None or entry.value_bits is None:
        return {}
    pointwise = floats([float(row["pvi_bits"]) for row in folder.table(POINTWISE)])
    return {"usable": picture.usable_information(SimpleNamespace(**vars(entry), pointwise_bits=pointwise))}


def is_done(folder: RunFolder) -> bool:
    """Whether the result is there, and the pointwise values if it has some."""
    entry = finished(folder)
    return entry is not None and (entry.value_bits is None or folder.exists(POINTWISE))


def finished(folder: RunFolder) -> UsableEntry | None:
    """The contents of usable.json; None if there is none, or if another version wrote it."""
    result = folder.read(RESULT)
    try:
        return None if result is None else read(UsableEntry, result)
    except InputError:
        return None
