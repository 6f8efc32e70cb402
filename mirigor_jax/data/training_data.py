"""Training batches of a population or of a user's images, streamed or as rows of images that the devices hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mirigor_jax import memory, parallel
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import ByClass, Pairing
from mirigor_jax.data.population import FinitePopulation, GeneratedPopulation, Population, Read
from mirigor_jax.errors import InputError
from mirigor_jax.fields import of
from mirigor_jax.settings import Data

RESIDENT_SHARE = 4  # images may fill at most 1/4 of a device's memory


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of a training.

    read: (start, stop) → pairs [start, stop) of an endless stream: a dict view → images, or rows of resident_images.
    resident_images: uint8 (n, s, s, 3). The images that every device holds. None: batches contain images.
    note: one line for the user about the images.
    """

    read: Read
    resident_images: UInt8[np.ndarray, "n s s 3"] | None
    note: str


def training_data(
    population: Population, pairing: Pairing, *, classes: ByClass | None, negatives: bool, resident: str = Data.resident
) -> TrainingData:
    """The pairs that training draws from a population. `resident` does not change the pairs.

    classes: the classes whose numbers c_x and c_y are in the batches. None: batches have no labels.
    negatives: whether batches contain negatives n_x and n_y, if the population has a set of them.
    resident: whether devices hold a finite set: "always", "never", or "auto" (if it fits 1/4 of a device's memory).
    Raises InputError as `check_resident` does.
    """
    result = population.training(pairing)
    check_resident(resident, has_set=result is not None)
    if result is None:
        return TrainingData(_fresh(population.pairs(pairing, "train"), classes), None, "every one new, streamed")
    images, rows = result
    more, draw = (negatives and population.negatives()) or (None, None)
    sets = [images] if more is None else [images, more]
    n, limit = sum(map(len, sets)), parallel.from_main(memory.memory_bytes) // RESIDENT_SHARE
    needed = n * images.read(np.arange(1)).nbytes
    holds = resident == "always" or (resident == "auto" and needed <= limit)
    how = "held by each device" if holds else "streamed"
    note = f"{n:,}, {needed / 2**20:,.0f} MiB, {how} ({resident}; auto holds up to {limit / 2**20:,.0f} MiB)"
    labels = None if classes is None else classes.classes(images.attributes)

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        of = rows(start, stop)
        batch = of if holds else {view: images.read(chosen) for view, chosen in of.items()}
        if labels is not None:
            batch = batch | {f"c_{view}": labels[chosen] for view, chosen in of.items()}
        if more is not None and draw is not None:
            for view, chosen in draw(start, stop).items():
                batch[view] = len(images) + chosen if holds else more.read(chosen)
        return batch

    return TrainingData(read, np.concatenate([s.read(np.arange(len(s))) for s in sets]) if holds else None, note)


def check_resident(
    resident: str, *, has_set: bool, key: str = "resident_images", fix: str = "train on a finite set"
) -> None:
    """Raises InputError for an unknown value, and for "always" if there is no finite set of images to hold.

    resident: "always", "never" or "auto".
    has_set: whether training draws from a finite set.
    key: the setting's name in the message.
    fix: the advice in the message, if there is no finite set.
    """
    of(Data, "resident").check(key, resident)
    if resident == "always" and not has_set:
        raise InputError(f"{key}='always': there is nothing to hold, every image is new; {fix}")


def _fresh(pairs: Read, classes: ByClass | None) -> Read:
    """A reader of pairs that adds their classes, unless `classes` is None."""

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        batch = pairs(start, stop)
        if classes is not None:
            batch |= {f"c_{view}": classes.classes(batch[f"attributes_{view}"]) for view in ("x", "y")}
        return batch

    return read


def told_apart(population: Population, pairing: Pairing) -> ByClass | None:
    """The classes that a labeled objective learns: those that the views share, or else those of the main task.

    None if the images have no labels.
    """
    if pairing.by_class is not None:
        return pairing.by_class
    return population.task(population.tasks[-1]) if population.names else None


def population_of(source: Any, seed: int) -> Population:
    """Make a population of the source that a user gives.

    source: a population, which is returned as it is; generated images such as CDP; an ImageSet; images
        uint8 (n, s, s, 3); or a pair (images, labels (n,)).
    seed: of the population's draws.
    Raises InputError for anything else.
    """
    if isinstance(source, Population):
        return source
    if isinstance(source, GeneratedImages):
        return GeneratedPopulation(source, seed, {}, None)
    if not isinstance(source, ImageSet):
        source = image_set(*source) if isinstance(source, tuple) and len(source) == 2 else image_set(source)
    return FinitePopulation({"train": source, "test": source}, seed, 0.0)


def image_set(images: Any, labels: Any = None) -> ImageSet:
    """A set of images in memory. Labels become the attribute `class`.

    images: uint8 (n, s, s, 3).
    labels: (n,). Numbers or names of the images' classes. None: there are no labels.
    Raises InputError for other types and shapes.
    """
    if getattr(images, "dtype", None) != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        result = f"{images.dtype} {images.shape}" if hasattr(images, "dtype") else type(images).__name__
        raise InputError(f"images are {result}; expected bytes, uint8 (n, s, s, 3), or a source such as cdp.make()")
    pixels = np.asarray(images)
    attributes = np.zeros((len(pixels), 0), np.int32)
    names: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    if labels is not None:
        if np.shape(labels) != (len(pixels),):
            raise InputError(f"labels have shape {np.shape(labels)}; expected ({len(pixels)},), one an image")
        known, classes = np.unique(np.asarray(labels), return_inverse=True)
        attributes = classes[:, None].astype(np.int32)
        names, values = ("class",), (tuple(map(str, known.tolist())),)
    return ImageSet("images", names, values, attributes, lambda rows: pixels[rows])


def pairing_of(population: Population, text: str, augmentation: Augmentation | None) -> Pairing:
    """The pairing that a text names.

    augmentation: the augmentation for a pairing with simclr. None: SimCLR's.
    Raises InputError for an unknown pairing, and for an augmentation if the pairing does not augment.
    """
    pairing = population.pairing(text, augmentation=augmentation)
    if augmentation is not None and pairing.augmentation is None:
        raise InputError(f"pairing='{text}' augments nothing, so `augmentation` has no effect; leave it out")
    return pairing
