"""Where a run's images and pairs come from: generated without end, or finite sets. One interface for the stages."""

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

# Disjoint images: every part of a run renders its own stream; of finite sets they number the draws.
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
THUMBNAIL = 8  # pixels of a side of the versions of images that copies are found by
READ_AT_ONCE = 256  # images
Read = Callable[[int, int], dict[str, np.ndarray]]
Features = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class GeneratedPopulation:
    """Images made to measure: every image of every part is new.

    sizes: images of `fit`, pairs of `validation` and of `test`.
    images: how many to train on, drawn again and again; None: training, too, never sees an image twice.
    """

    pairs_features: ClassVar[bool] = False  # whether one features folder of single images serves every pairing
    data: GeneratedImages
    seed: int
    sizes: Mapping[str, int]
    images: int | None

    @property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.data.size

    @property
    def space(self) -> AttributeSpace:
        """What its pairings are made of."""
        return self.data.space

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.names

    @property
    def value_names(self) -> tuple[tuple[str, ...], ...]:
        return self.data.value_names

    @property
    def tasks(self) -> tuple[str, ...]:
        """What an encoder is evaluated on: every attribute, and all of them together. The last is what counts."""
        return (*self.names, "all")

    def pairing(self, text: str, **options: Any) -> Pairing:
        """The pairing that `text` names. options, and what is raised: as of `pairing.parse`."""
        return parse(text, self.space, **options)

    def task(self, name: str) -> ByClass:
        """The classes that the attribute of this name tells apart, or `all` of them together."""
        return classes_of(name, self.space)

    def training(self, pairing: Pairing) -> tuple[ImageSet, Read] | None:
        """The images that training draws its pairs from, and the pairs' rows; None if it never sees one twice."""
        if self.images is None:
            return None
        images = self.data.finite(self.seed, STREAMS["train"], self.images)
        return images, images.row_pairs(pairing, self.seed, STREAMS["pairs"])

    def negatives(self) -> None:
        """None: negatives are a batch's other pairs."""

    def pairs(self, pairing: Pairing, stream: str) -> Read:
        """(start, stop) → fresh pairs [start, stop) of a stream."""
        return partial(pairing.draw, self.data, self.seed, STREAMS[stream])

    def parts(self, pairing: Pairing) -> dict[str, tuple[Read, int]]:
        """What to encode of every part, and how much: single images to fit on, pairs to validate and to test on."""
        fit = partial(self.data.images, seed=self.seed, stream=STREAMS["fit"]), self.sizes["fit"]
        return {"fit": fit} | {name: (self.pairs(pairing, name), self.sizes[name]) for name in ("validation", "test")}

    def paired(self, features: Features, pairing: Pairing) -> Features:
        """The features with their validation and test parts in pairs, as they are already."""
        del pairing
        return features

    def num_pairs(self, part: str, pairing: Pairing) -> int:
        """How many pairs `validation` or `test` has."""
        del pairing
        return self.sizes[part]

    def risk(self, pairing: Pairing) -> float:
        """What the pairs cost of a certificate's risk: nothing."""
        del pairing
        return 0.0

    def thumbnails(self, pairing: Pairing, threads: int) -> None:
        """None: no image is a copy of another's."""


@dataclass(frozen=True, eq=False)
class FinitePopulation:
    """Finite sets: `train`, `fit` of these, `validation`, and `test`.

    Also `negatives` if training is to draw them from a set of their own.
    depletion_risk: the probability with which pairs of different images may run out of a class.
    shows_attributes: whether every image shows its attributes, so that the views' MI is known.
    whole: attributes of the one set that all parts were split off, whose frequencies the pairing then has; None if the
        test part is its maker's own, with frequencies of its own.
    """

    pairs_features: ClassVar[bool] = True
    sets: Mapping[str, ImageSet]
    seed: int
    depletion_risk: float
    shows_attributes: bool = False
    whole: AttributeSpace | None = None

    @cached_property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.sets["test"].read(np.arange(1)).shape[1]

    @property
    def space(self) -> AttributeSpace:
        """What its pairings are made of: the attributes of all images, or of its maker's test part."""
        return replace(self.whole or self.sets["test"].space, shows_attributes=self.shows_attributes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.sets["test"].names

    @property
    def value_names(self) -> tuple[tuple[str, ...], ...]:
        return self.sets["test"].value_names

    @property
    def tasks(self) -> tuple[str, ...]:
        """What an encoder is evaluated on: every attribute, the class last, which is what counts."""
        return self.names[::-1]

    def pairing(self, text: str, **options: Any) -> Pairing:
        """The pairing that `text` names. options, and what is raised: as of `pairing.parse`."""
        return parse(text, self.space, **options)

    def task(self, name: str) -> ByClass:
        """The classes that the attributes of this name tell apart, by the frequencies of the pairings."""
        return classes_of(name, self.space)

    def training(self, pairing: Pairing) -> tuple[ImageSet, Read]:
        """The images that training draws its pairs from, and the pairs' rows."""
        train = self.sets["train"]
        return train, train.row_pairs(pairing.of(train.space), self.seed, STREAMS["pairs"])

    def negatives(self) -> tuple[ImageSet, Read] | None:
        """Images that nothing is a positive pair of, and (start, stop) → rows `n_x`, `n_y` of independent ones."""
        if (images := self.sets.get("negatives")) is None:
            return None
        rows = images.row_pairs(SameImage(), self.seed, STREAMS["negatives"])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            drawn = rows(2 * start, 2 * stop)["x"]
            return {"n_x": drawn[::2], "n_y": drawn[1::2]}

        return images, read

    def pairs(self, pairing: Pairing, stream: str) -> Read:
        """(start, stop) → pairs [start, stop) of training images with their attributes, drawn again and again."""
        train = self.sets["train"]
        rows = train.row_pairs(pairing.of(train.space), self.seed, STREAMS[stream])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            return train.pairs(np.stack([*rows(start, stop).values()], axis=1), 0, stop - start)

        return read

    def parts(self, pairing: Pairing) -> dict[str, tuple[Read, int]]:
        """What to encode of every part, and how much: all images; if they are augmented, pairs."""
        fit = self.sets["fit"].images, len(self.sets["fit"])
        parts: dict[str, tuple[Read, int]] = {"fit": fit}
        for name in ("validation", "test"):
            images = self.sets[name]
            rows = None if pairing.augmentation is None else self._rows(name, pairing)
            parts[name] = (images.images, len(images)) if rows is None else (partial(images.pairs, rows), len(rows))
        return parts

    def paired(self, features: Features, pairing: Pairing) -> Features:
        """The features with their validation and test parts, of single images, in pairs too."""
        in_pairs = {"fit": features["fit"]}
        for name in ("validation", "test"):
            if "h_x" in features[name]:
                return features
            views = zip("xy", self._rows(name, pairing).T, strict=True)
            pairs = {f"{key}_{view}": x[rows] for view, rows in views for key, x in features[name].items()}
            in_pairs[name] = features[name] | pairs
        return in_pairs

    def num_pairs(self, part: str, pairing: Pairing) -> int:
        """How many pairs `validation` or `test` has."""
        return len(self._rows(part, pairing))

    def risk(self, pairing: Pairing) -> float:
        """What the pairs cost of a certificate's risk: nothing without classes, of which they could run out."""
        return 0.0 if pairing.by_class is None else self.depletion_risk

    def thumbnails(self, pairing: Pairing, threads: int) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "p 2"]]:
        """What copies are found by: small versions of the images of all parts, and which of them test pairs are of.

        The encoder's training images are among them. threads: that read images.
        """
        parts = [_small(self.sets[name], threads) for name in ("train", "validation", "test")]
        return np.concatenate(parts), sum(map(len, parts[:2])) + self._rows("test", pairing)

    def _rows(self, name: str, pairing: Pairing) -> Int[np.ndarray, "p 2"]:
        """Rows of independent pairs: no image is in two of them."""
        return self.sets[name].fresh_rows(pairing, self.seed, STREAMS[name], risk=self.depletion_risk, least=2)


def _small(images: ImageSet, threads: int) -> Float[np.ndarray, "n d"]:
    """Every image at THUMBNAIL pixels a side, as the means of its cells."""

    def means(start: int) -> np.ndarray:
        pixels = images.images(start, min(start + READ_AT_ONCE, len(images)))["image"].astype(np.float32)
        edges = np.unique(np.arange(THUMBNAIL) * pixels.shape[1] // THUMBNAIL)
        counts = np.diff(np.append(edges, pixels.shape[1])).astype(np.float32)
        sums = np.add.reduceat(np.add.reduceat(pixels, edges, axis=1), edges, axis=2)
        return (sums / np.outer(counts, counts)[None, :, :, None]).reshape(len(pixels), -1)

    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate([*pool.map(means, range(0, len(images), READ_AT_ONCE))])


Population = GeneratedPopulation | FinitePopulation
