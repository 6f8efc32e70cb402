"""A finite set of images, sets made out of it, and positive pairs: as images, or as rows of what a device holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt8

from mirigor_jax.data.pairing import (
    AnyPairing,
    ClassPairing,
    SameImage,
    by_class,
    class_index,
    fresh_pairs,
    joint_values,
    random_words,
    rank_in_class,
    shared_names,
)
from mirigor_jax.errors import InputError

TURNS = ("0°", "90°", "180°", "270°")  # counterclockwise


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n images by their rows.

    title: what messages call it. attributes: of all images, (n, 0) where they have no labels; names, value_names: what
    the attributes and their values are called. read: rows (k,) → fresh images uint8 (k, s, s, 3).
    """

    title: str
    names: tuple[str, ...]
    value_names: tuple[tuple[str, ...], ...]
    attributes: Int[np.ndarray, "n a"]
    read: Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k s s 3"]]

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(values) for values in self.value_names)

    def images(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop): `image` uint8 (k, s, s, 3), `attributes` int32 (k, a)."""
        return {"image": self.read(np.arange(start, stop)), "attributes": self.attributes[start:stop]}

    def same_class(self, text: str) -> ClassPairing:
        """Same-class sampling by the attributes that `text` names, its classes as frequent as in this set.

        text: "all", "none", or attributes joined by "+". Raises InputError for an unknown attribute, where there are no
        labels, and where a class has no image here.
        """
        if not self.names and text != "none":
            raise InputError(
                f"pairing {text!r} needs labels, and the {self.title} has none: give a labelled set, or pair the views "
                "of an image by its augmentations"
            )
        shared = shared_names(text, self.names)
        columns = tuple(map(self.names.index, shared))
        num_classes = math.prod(self.sizes[a] for a in columns)
        counts = np.bincount(joint_values(self.attributes, columns, self.sizes), minlength=num_classes)
        if (empty := np.flatnonzero(counts == 0)).size:
            raise InputError(
                f"{empty.size} of {num_classes} classes have no image in the {self.title} "
                f"(the first: {self._called(shared, int(empty[0]))}): give some, or leave these classes out"
            )
        return ClassPairing(self.names, self.sizes, shared, counts / len(self))

    def row_pairs(self, pairing: AnyPairing, seed: int, stream: int) -> Callable[[int, int], dict[str, np.ndarray]]:
        """(start, stop) → `x`, `y`, the rows int32 of positive pairs [start, stop) of an endless stream.

        x is any row, and y any row of the class that the pairing gives to x's: same-class sampling from a finite set
        (Lee et al. 2023, §III-A); of SameImage, x. Pair i of (seed, stream) is a function of these three numbers.
        Raises InputError where a class has no image.
        """
        if isinstance(pairing, SameImage):
            n = np.uint64(len(self.attributes))

            def same(start: int, stop: int) -> dict[str, np.ndarray]:
                words = random_words(seed, stream, start, stop)[:, 0].astype(np.uint64)
                x = ((words * n) >> np.uint64(32)).astype(np.int32)
                return {"x": x, "y": x}

            return same
        classes = pairing.classes(self.attributes)
        index = class_index(classes, pairing.joint())

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            of_x, of_class, of_y, *_ = random_words(seed, stream, start, stop).T.astype(np.uint64)
            x = (of_x * np.uint64(len(classes))) >> np.uint64(32)
            of_partner = np.sum((of_class / 2.0**32)[:, None] >= index.law[classes[x]], axis=1)
            within = (of_y * index.sizes[of_partner].astype(np.uint64)) >> np.uint64(32)
            y = index.order[index.starts[of_partner] + within.astype(np.int64)]
            return {"x": x.astype(np.int32), "y": y.astype(np.int32)}

        return rows

    def fresh_rows(
        self, pairing: ClassPairing, seed: int, stream: int, *, risk: float, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """Rows of independent pairs of the pairing's law, each image in one of them at most: what a certificate needs.

        Give every part a stream of its own: its pairs' classes are drawn by it.

        As many as there may be while a class runs out of images with probability <= risk, by which the certificate's
        confidence has to be raised. Raises InputError where these are fewer than `least`, naming the rarest class.
        """
        classes = pairing.classes(self.attributes)
        rng = np.random.default_rng([seed, stream])
        pairs = fresh_pairs(np.arange(len(self)), classes, pairing.law, risk, rng)
        if len(pairs) < least:
            counts = np.bincount(classes, minlength=pairing.num_classes)
            rarest = int(counts.argmin())
            raise InputError(
                f"the {self.title} gives {len(pairs):,} pairs of different images before a class may run out, expected "
                f"{least:,}; the rarest, {self._called(pairing.shared, rarest)}, has {counts[rarest]:,}: give more "
                "images, or leave rare classes out"
            )
        return pairs

    def pairs(self, rows: Int[np.ndarray, "p 2"], start: int, stop: int) -> dict[str, np.ndarray]:
        """Pairs [start, stop) of these: `x`, `y` uint8 (k, s, s, 3), `attributes_x`, `attributes_y` int32 (k, a)."""
        x, y = rows[start:stop].T
        return {
            "x": self.read(x),
            "y": self.read(y),
            "attributes_x": self.attributes[x],
            "attributes_y": self.attributes[y],
        }

    def take(self, rows: Int[np.ndarray, " k"]) -> "ImageSet":
        """The set of these rows."""
        return replace(self, attributes=self.attributes[rows], read=lambda chosen: self.read(rows[chosen]))

    def salted(self, share: float, seed: int, stream: int) -> "ImageSet":
        """The set with this share of each image's pixels black or white, as likely: salt-and-pepper noise.

        An image's noise is a function of its row, seed and stream. Source: Gosch 2020, appendix D.1.
        """

        def read(rows: np.ndarray) -> np.ndarray:
            images = self.read(rows)
            for image, row in zip(images, rows.tolist(), strict=True):
                philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, row, 0])
                uniform = np.random.Generator(philox).random(image.shape[:2], np.float32)
                image[uniform < share] = 255
                image[uniform < share / 2] = 0
            return images

        return replace(self, read=read)

    def turned(self) -> "ImageSet":
        """The set four times as large: row 4i + t is image i turned by t·90°, which is a new attribute, `rotation`.

        Source: Gosch 2020, section 4 (the enlarged CIFAR-10).
        """
        n = len(self)
        return self._turn(np.repeat(np.arange(n), 4), np.tile(np.arange(4), n))

    def turned_once(self, seed: int) -> "ImageSet":
        """The set with each image at one turn drawn at random, as many of a class at each: `turned`'s distribution.

        Unlike the turns of one image these are independent, so that they can serve as test images.
        """
        classes = self.attributes[:, 0] if self.names else np.zeros(len(self), int)
        order = by_class(np.arange(len(self)), classes, np.random.default_rng(seed))
        turns = np.empty(len(self), int)
        turns[order] = rank_in_class(classes[order]) % 4
        return self._turn(np.arange(len(self)), turns)

    def _turn(self, sources: np.ndarray, turns: np.ndarray) -> "ImageSet":
        def read(rows: np.ndarray) -> np.ndarray:
            images, of_image = self.read(sources[rows]), turns[rows]
            for turn in (1, 2, 3):
                images[of_image == turn] = np.rot90(images[of_image == turn], turn, axes=(1, 2))
            return images

        return self._with("rotation", TURNS, self.attributes[sources], turns, read)

    def corrupted(self, share: float, seed: int, stream: int) -> "ImageSet":
        """The set with a new attribute, `corrupted`: its first one, redrawn from all values with probability `share`.

        Source: Zhang et al. 2017, section 2.1; at share 1 the random labels of Gosch 2020, section 4.
        """
        if not self.names:
            raise InputError(f"the {self.title} has no labels to corrupt: give a labelled set")
        of_share, of_value, *_ = random_words(seed, stream, 0, len(self)).T.astype(np.uint64)
        redrawn = (of_value * np.uint64(self.sizes[0])) >> np.uint64(32)
        values = np.where(of_share < share * 2.0**32, redrawn.astype(np.int32), self.attributes[:, 0])
        return self._with("corrupted", self.value_names[0], self.attributes, values, self.read)

    def _with(self, name: str, values: tuple[str, ...], attributes, column, read) -> "ImageSet":
        attributes = np.hstack([attributes, column[:, None].astype(np.int32)])
        return ImageSet(self.title, (*self.names, name), (*self.value_names, values), attributes, read)

    def _called(self, shared: tuple[str, ...], index: int) -> str:
        """A class by the names of its values."""
        columns = [self.names.index(name) for name in shared]
        values = np.unravel_index(index, [self.sizes[a] for a in columns])
        return ", ".join(repr(self.value_names[a][int(v)]) for a, v in zip(columns, values, strict=True))
