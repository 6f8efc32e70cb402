"""Populations: the source of a run's images and pairs, generated or finite, with one interface for all stages."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax.data.attributes import AttributeSpace
from mirigor_jax.data.draws import TEST, VALIDATION
from mirigor_jax.data.generated import LIBRARY_STREAM, GeneratedImages
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import ByClass, Pairing, SameImage, classes_of, parse

# Streams of random numbers. Each part of a run renders its own stream of generated images, so parts are disjoint. With
# a finite set, each purpose draws from its own stream.
STREAMS = {
    "train": 0,
    "fit": 1,
    "validation": VALIDATION,
    "test": TEST,
    "critic": 4,
    "pairs": 5,
    "negatives": 6,
    "library": LIBRARY_STREAM,
}
THUMBNAIL = 8  # pixels. The side of the small versions of images by which copies are found
READ_AT_ONCE = 256  # images
Read = Callable[[int, int], dict[str, np.ndarray]]
Features = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class GeneratedPopulation:
    """A population of generated images; the parts of a run have no image in common.

    data: the generator, such as CDP.
    seed: of all streams.
    sizes: number of images of `fit`, and of pairs of `validation` and `test`.
    images: number of images to train on, drawn again and again. None: every training image is new.
    """

    pairs_features: ClassVar[bool] = False  # whether features of single images serve every pairing
    validates_on_training: ClassVar[bool] = False  # there is no set that has a training part
    data: GeneratedImages
    seed: int
    sizes: Mapping[str, int]
    images: int | None

    @property
    def side(self) -> int:
        """Pixels. The side of the square images."""
        return self.data.size

    @property
    def is_one_sample(self) -> bool:
        """Whether all parts were split off from one set. No: each part is drawn independently of the others."""
        return False

    @property
    def space(self) -> AttributeSpace:
        """The attributes from which pairings are made."""
        return self.data.space

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.names

    @property
    def value_names(self) -> tuple[tuple[str, ...], ...]:
        return self.data.value_names

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the classification tasks: each attribute, then "all" of them together, which is the main task."""
        return (*self.names, "all")

    def pairing(self, text: str, **options: Any) -> Pairing:
        """The pairing that `text` names. Takes the options of `pairing.parse`, and raises InputError as it does."""
        return parse(text, self.space, **options)

    def task(self, name: str) -> ByClass:
        """The classes of a task: the values of the attribute of this name; for "all", those of all attributes."""
        return classes_of(name, self.space)

    def training(self, pairing: Pairing) -> tuple[ImageSet, Read] | None:
        """The training images, and a reader (start, stop) → rows of pairs; None if every training image is new."""
        if self.images is None:
            return None
        images = self.data.finite(self.seed, STREAMS["train"], self.images)
        return images, images.row_pairs(pairing, self.seed, STREAMS["pairs"])

    def negatives(self) -> None:
        """None: the negatives are the batch's other pairs."""

    def pairs(self, pairing: Pairing, stream: str) -> Read:
        """A reader (start, stop) → fresh pairs [start, stop) of a stream."""
        return partial(pairing.draw, self.data, self.seed, STREAMS[stream])

    def parts(self, pairing: Pairing) -> dict[str, tuple[Read, int]]:
        """For each part, a reader of the examples to encode, and their number: images of `fit`, pairs of the others."""
        fit = partial(self.data.images, seed=self.seed, stream=STREAMS["fit"]), self.sizes["fit"]
        return {"fit": fit} | {name: (self.pairs(pairing, name), self.sizes[name]) for name in ("validation", "test")}

    def unseen(self) -> None:
        """None: no image is left out, as there are always new ones."""

    def paired(self, features: Features, pairing: Pairing) -> Features:
        """The features unchanged: their validation and test parts are in pairs already."""
        del pairing
        return features

    def num_pairs(self, part: str, pairing: Pairing) -> int:
        """The number of pairs in `validation` or `test`."""
        del pairing
        return self.sizes[part]

    def risk(self, pairing: Pairing) -> float:
        """The probability that a class runs out of images for pairs: 0, because generated images never run out."""
        del pairing
        return 0.0

    def thumbnails(self, pairing: Pairing, threads: int) -> None:
        """None: generated images need no search for copies."""


@dataclass(frozen=True, eq=False)
class FinitePopulation:
    """A population of finite sets of images.

    sets: `train`, `validation` and `test`; `fit`, some of the training images; `unseen`, if training images were left
        out; `negatives`, if training draws its negatives from a separate set.
    seed: of all draws.
    depletion_risk: largest probability with which a class may run out of images for pairs of different images.
    shows_attributes: whether every image shows its attributes; the MI of the views is then known.
    whole: the attributes of one set, if all parts were split off from it; pairings then have its class frequencies.
        None: the set has a test part of its own, and pairings have that part's class frequencies.
    validates_on_training: whether the validation part was split off from the set's own training part.
    """

    pairs_features: ClassVar[bool] = True
    sets: Mapping[str, ImageSet]
    seed: int
    depletion_risk: float
    shows_attributes: bool = False
    whole: AttributeSpace | None = None
    validates_on_training: bool = False

    @cached_property
    def side(self) -> int:
        """Pixels. The side of the square images."""
        return self.sets["test"].read(np.arange(1)).shape[1]

    @property
    def is_one_sample(self) -> bool:
        """Whether all parts were split off from one set."""
        return self.whole is not None

    @property
    def space(self) -> AttributeSpace:
        """The attributes from which pairings are made: those of `whole`, or else of the test part."""
        return replace(self.whole or self.sets["test"].space, shows_attributes=self.shows_attributes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.sets["test"].names

    @property
    def value_names(self) -> tuple[tuple[str, ...], ...]:
        return self.sets["test"].value_names

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the classification tasks: each attribute; the last one, the class, is the main task."""
        return self.names[::-1]

    def pairing(self, text: str, **options: Any) -> Pairing:
        """The pairing that `text` names. Takes the options of `pairing.parse`, and raises InputError as it does."""
        return parse(text, self.space, **options)

    def task(self, name: str) -> ByClass:
        """The classes of a task, with the class frequencies of the pairings."""
        return classes_of(name, self.space)

    def training(self, pairing: Pairing) -> tuple[ImageSet, Read]:
        """The training images, and a reader (start, stop) → rows of pairs."""
        train = self.sets["train"]
        return train, train.row_pairs(pairing.of(train.space), self.seed, STREAMS["pairs"])

    def negatives(self) -> tuple[ImageSet, Read] | None:
        """The set of negatives, and a reader (start, stop) → rows `n_x`, `n_y` of independent images; or None."""
        if (images := self.sets.get("negatives")) is None:
            return None
        rows = images.row_pairs(SameImage(), self.seed, STREAMS["negatives"])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            drawn = rows(2 * start, 2 * stop)["x"]
            return {"n_x": drawn[::2], "n_y": drawn[1::2]}

        return images, read

    def pairs(self, pairing: Pairing, stream: str) -> Read:
        """A reader (start, stop) → pairs of training images, with their attributes, from an endless stream."""
        train = self.sets["train"]
        rows = train.row_pairs(pairing.of(train.space), self.seed, STREAMS[stream])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            return train.pairs(np.stack([*rows(start, stop).values()], axis=1), 0, stop - start)

        return read

    def parts(self, pairing: Pairing) -> dict[str, tuple[Read, int]]:
        """For each part, a reader of the examples to encode, and their number.

        The examples are all images of the part, or pairs of `validation` and `test` if the pairing augments.
        """
        fit = self.sets["fit"].images, len(self.sets["fit"])
        parts: dict[str, tuple[Read, int]] = {"fit": fit}
        for name in ("validation", "test"):
            images = self.sets[name]
            rows = None if pairing.augmentation is None else self._rows(name, pairing)
            parts[name] = (images.images, len(images)) if rows is None else (partial(images.pairs, rows), len(rows))
        return parts

    def unseen(self) -> tuple[Read, int] | None:
        """A reader of the images that training leaves out, and their number; None if it leaves none out."""
        images = self.sets.get("unseen")
        return None if images is None else (images.images, len(images))

    def paired(self, features: Features, pairing: Pairing) -> Features:
        """The features, with the pairs of their validation and test images added."""
        in_pairs = {"fit": features["fit"]}
        for name in ("validation", "test"):
            if "h_x" in features[name]:
                return features
            views = zip("xy", self._rows(name, pairing).T, strict=True)
            pairs = {f"{key}_{view}": x[rows] for view, rows in views for key, x in features[name].items()}
            in_pairs[name] = features[name] | pairs
        return in_pairs

    def num_pairs(self, part: str, pairing: Pairing) -> int:
        """The number of pairs in `validation` or `test`."""
        return len(self._rows(part, pairing))

    def risk(self, pairing: Pairing) -> float:
        """The largest probability with which a class runs out of images for pairs; 0 without classes.

        It is subtracted from a certificate's error probability.
        """
        return 0.0 if pairing.by_class is None else self.depletion_risk

    def thumbnails(self, pairing: Pairing, threads: int) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "p 2"]]:
        """Small versions of the training, validation and test images, and the rows of the test pairs among them.

        A run compares them to find copies of images. threads: number of threads that read images.
        """
        parts = [_small(self.sets[name], threads) for name in ("train", "validation", "test")]
        return np.concatenate(parts), sum(map(len, parts[:2])) + self._rows("test", pairing)

    def _rows(self, name: str, pairing: Pairing) -> Int[np.ndarray, "p 2"]:
        """Rows of a part's independent pairs: no image is in two of them."""
        return self.sets[name].fresh_rows(pairing, self.seed, STREAMS[name], risk=self.depletion_risk, least=2)


def _small(images: ImageSet, threads: int) -> Float[np.ndarray, "n d"]:
    """Every image, reduced to THUMBNAIL×THUMBNAIL means over its cells."""

    def means(start: int) -> np.ndarray:
        pixels = images.images(start, min(start + READ_AT_ONCE, len(images)))["image"].astype(np.float32)
        edges = np.unique(np.arange(THUMBNAIL) * pixels.shape[1] // THUMBNAIL)
        counts = np.diff(np.append(edges, pixels.shape[1])).astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(pixels, edges, axis=1), edges, axis=2)
        return (sums / np.outer(counts, counts)[None, :, :, None]).reshape(len(pixels), -1)

    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate([*pool.map(means, range(0, len(images), READ_AT_ONCE))])


Population = GeneratedPopulation | FinitePopulation
