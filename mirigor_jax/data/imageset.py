"""A finite labelled set of images, and positive pairs drawn from it: as images, or as rows of what a device holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int, UInt8

from mirigor_jax.data.pairing import Pairing, SameImage, class_index, random_words


@dataclass(frozen=True, eq=False)
class ImageSet:
    """n images by their rows. attributes: of all of them; read: rows (k,) → images uint8 (k, s, s, 3)."""

    attributes: Int[np.ndarray, "n a"]
    read: Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k s s 3"]]

    def row_pairs(
        self, pairing: Pairing | SameImage, seed: int, stream: int
    ) -> Callable[[int, int], dict[str, np.ndarray]]:
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
        index = class_index(classes, pairing.joint(), "data.images")

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            of_x, of_class, of_y, *_ = random_words(seed, stream, start, stop).T.astype(np.uint64)
            x = (of_x * np.uint64(len(classes))) >> np.uint64(32)
            of_partner = np.sum((of_class / 2.0**32)[:, None] >= index.law[classes[x]], axis=1)
            within = (of_y * index.sizes[of_partner].astype(np.uint64)) >> np.uint64(32)
            y = index.order[index.starts[of_partner] + within.astype(np.int64)]
            return {"x": x.astype(np.int32), "y": y.astype(np.int32)}

        return rows

    def image_pairs(
        self, pairing: Pairing | SameImage, seed: int, stream: int
    ) -> Callable[[int, int], dict[str, np.ndarray]]:
        """The same pairs as images. Raises InputError as `row_pairs` does."""
        return partial(self._look_up, self.row_pairs(pairing, seed, stream))

    def _look_up(self, rows: Callable[[int, int], dict[str, np.ndarray]], start: int, stop: int):
        return {view: self.read(of_view) for view, of_view in rows(start, stop).items()}
