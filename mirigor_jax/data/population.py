"""Where a run's images and pairs come from: rendered without end, or finite sets. One interface for the stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Int

from mirigor_jax.data import pairing
from mirigor_jax.data.cdp import CDP
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import AnyPairing, ByClass, SameImage
from mirigor_jax.errors import InputError

# Disjoint images: every part of a run renders its own stream; of finite sets they number the draws.
STREAMS = {"train": 0, "fit": 1, "validation": 2, "test": 3, "critic": 4, "pairs": 5, "negatives": 6}
Read = Callable[[int, int], dict[str, np.ndarray]]
Features = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Rendered:
    """CDP: every image of every part is new. sizes: images of `fit`, pairs of `validation` and of `test`."""

    data: CDP
    seed: int
    sizes: Mapping[str, int]
    images: int | None

    @property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.data.size

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

    def law(self, text: str, *, mi_bits: float | None = None, epsilon: Mapping[str, float] | None = None) -> AnyPairing:
        """The pairing that `text` names, "" where both views are of one image. Raises InputError as `pairing.parse`."""
        if not text:
            return _same_image(mi_bits, epsilon)
        text = "all" if text == "class" else text
        return pairing.parse(text, self.names, self.data.sizes, mi_bits=mi_bits, epsilon=epsilon)

    def task(self, name: str) -> ByClass:
        """The classes that the attribute of this name tells apart, or `all` of them together."""
        return pairing.parse(name, self.names, self.data.sizes)

    def training(self, law: AnyPairing) -> tuple[ImageSet, Read] | None:
        """The images that training draws its pairs from, and the pairs' rows; None where it never sees one twice."""
        if self.images is None:
            return None
        images = self.data.finite(self.seed, STREAMS["train"], self.images)
        return images, images.row_pairs(law, self.seed, STREAMS["pairs"])

    def negatives(self) -> None:
        """None: negatives are a batch's other pairs."""

    def pairs(self, law: AnyPairing, stream: str) -> Read:
        """(start, stop) → fresh pairs [start, stop) of a stream."""
        assert not isinstance(law, pairing.ClassPairing)
        return partial(self.data.pairs, law, self.seed, STREAMS[stream])

    def parts(self, law: AnyPairing, augmented: bool) -> dict[str, tuple[Read, int]]:
        """What to encode of every part, and how much: single images to fit on, pairs of `law` to validate and test."""
        del augmented
        fit = partial(self.data.images, self.seed, STREAMS["fit"]), self.sizes["fit"]
        return {"fit": fit} | {name: (self.pairs(law, name), self.sizes[name]) for name in ("validation", "test")}

    def paired(self, features: Features, law: AnyPairing) -> Features:
        """The features with their validation and test parts in pairs of `law`, as they are already."""
        del law
        return features

    def num_pairs(self, part: str, law: AnyPairing) -> int:
        """How many pairs `validation` or `test` has."""
        del law
        return self.sizes[part]

    def risk(self, law: AnyPairing) -> float:
        """What the pairs cost of a certificate's risk: nothing."""
        del law
        return 0.0


@dataclass(frozen=True, eq=False)
class Collected:
    """Finite sets: `train`, `fit` of these, `validation`, and `test`, whose classes' frequencies are the law's.

    Also `negatives` where training is to draw them from a set of their own.
    run_out: the probability with which pairs of different images may run out of a class.
    """

    sets: Mapping[str, ImageSet]
    seed: int
    run_out: float

    @cached_property
    def side(self) -> int:
        """Of the square images, in pixels."""
        return self.sets["test"].read(np.arange(1)).shape[1]

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

    def law(self, text: str, *, mi_bits: float | None = None, epsilon: Mapping[str, float] | None = None) -> AnyPairing:
        """Same-class sampling by the attributes that `text` names, or "" for two views of one image.

        Raises InputError as `ImageSet.same_class` does, and for a channel: the images are what they are.
        """
        if not text:
            return _same_image(mi_bits, epsilon)
        if mi_bits is not None or epsilon:
            raise InputError("mi_bits and epsilon are for CDP, whose pairs are made to measure; leave them out")
        return self.task(text)

    def task(self, name: str) -> ByClass:
        """The classes that the attributes of this name tell apart, by their frequencies in the test part."""
        return self.sets["test"].same_class(name)

    def training(self, law: AnyPairing) -> tuple[ImageSet, Read]:
        """The images that training draws its pairs from, and the pairs' rows."""
        train = self.sets["train"]
        return train, train.row_pairs(self._of(train, law), self.seed, STREAMS["pairs"])

    def negatives(self) -> tuple[ImageSet, Read] | None:
        """Images that nothing is a positive pair of, and (start, stop) → rows `n_x`, `n_y` of independent ones."""
        if (images := self.sets.get("negatives")) is None:
            return None
        rows = images.row_pairs(SameImage(), self.seed, STREAMS["negatives"])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            drawn = rows(2 * start, 2 * stop)["x"]
            return {"n_x": drawn[::2], "n_y": drawn[1::2]}

        return images, read

    def pairs(self, law: AnyPairing, stream: str) -> Read:
        """(start, stop) → pairs [start, stop) of training images with their attributes, drawn again and again."""
        train = self.sets["train"]
        rows = train.row_pairs(self._of(train, law), self.seed, STREAMS[stream])

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            return train.pairs(np.stack([*rows(start, stop).values()], axis=1), 0, stop - start)

        return read

    def parts(self, law: AnyPairing, augmented: bool) -> dict[str, tuple[Read, int]]:
        """What to encode of every part, and how much: all images; if they are augmented, pairs of `law`."""
        fit = self.sets["fit"].images, len(self.sets["fit"])
        found: dict[str, tuple[Read, int]] = {"fit": fit}
        for name in ("validation", "test"):
            images = self.sets[name]
            rows = self._rows(name, law) if augmented else None
            found[name] = (images.images, len(images)) if rows is None else (partial(images.pairs, rows), len(rows))
        return found

    def paired(self, features: Features, law: AnyPairing) -> Features:
        """The features with their validation and test parts, of single images, in pairs of `law`."""
        found = {"fit": features["fit"]}
        for name in ("validation", "test"):
            if "h_x" in features[name]:
                return features
            views = zip("xy", self._rows(name, law).T, strict=True)
            found[name] = {f"{key}_{view}": x[rows] for view, rows in views for key, x in features[name].items()}
        return found

    def num_pairs(self, part: str, law: AnyPairing) -> int:
        """How many pairs `validation` or `test` has."""
        return len(self._rows(part, law))

    def risk(self, law: AnyPairing) -> float:
        """What the pairs cost of a certificate's risk: where each is of one image, nothing."""
        return 0.0 if isinstance(law, SameImage) else self.run_out

    def _rows(self, name: str, law: AnyPairing) -> Int[np.ndarray, "p 2"]:
        """Rows of independent pairs: no image is in two of them."""
        if isinstance(law, SameImage):
            return np.stack([self._order[name]] * 2, axis=1)
        assert isinstance(law, pairing.ClassPairing)
        return self.sets[name].fresh_rows(law, self.seed, STREAMS[name], risk=self.run_out, least=2)

    @cached_property
    def _order(self) -> dict[str, np.ndarray]:
        """A random order of each part, so that batches mix the classes."""
        return {
            name: np.random.default_rng([self.seed, STREAMS[name]]).permutation(len(images))
            for name, images in self.sets.items()
        }

    def _of(self, images: ImageSet, law: AnyPairing) -> AnyPairing:
        """The pairing with the frequencies of these images. Raises InputError where a class has none."""
        if isinstance(law, SameImage):
            return law
        return images.same_class("+".join(law.shared) or "none")


Population = Rendered | Collected


def _same_image(mi_bits: float | None, epsilon: Mapping[str, float] | None) -> SameImage:
    if mi_bits is not None or epsilon:
        raise InputError(
            "views of one image share the image itself: mi_bits and epsilon say nothing of it; leave them out"
        )
    return SameImage()
