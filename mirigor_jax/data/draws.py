"""Random draws of rows by their classes, and the words that every draw is made of."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt32
from scipy.special import bdtrc

from mirigor_jax.errors import InputError

VALIDATION, TEST = 2, 3  # streams that the pairs of these parts are drawn from


def joint_values(
    attributes: Int[np.ndarray, "n a"], shared: Sequence[int], sizes: Sequence[int]
) -> Int[np.ndarray, " n"]:
    """Index of each row's values in the columns `shared`, the first of them the most significant digit."""
    index = np.zeros(len(attributes), np.int32)
    for a in shared:
        index = index * sizes[a] + attributes[:, a]
    return index


class ClassIndex(NamedTuple):
    """Where a set's classes stand, and which class follows which.

    order, starts, sizes: class c is order[starts[c] : starts[c] + sizes[c]].
    cumulative: cumulative[c] sums p(·|c) up.
    """

    order: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " c"]
    sizes: Int[np.ndarray, " c"]
    cumulative: Float[np.ndarray, "c c"]


def class_index(classes: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> ClassIndex:
    """The index of rows of these classes, for drawing pairs whose classes follow p(c'|c) = joint[c, c'] / Σ joint[c].

    Raises InputError if a class has no row.
    """
    sizes = np.bincount(classes, minlength=len(joint))
    if (empty := np.flatnonzero(sizes == 0)).size:
        raise InputError(
            f"{empty.size} of {len(joint)} classes have none of the {len(classes):,} rows (the first: class "
            f"{empty[0]}); give more images or rows, so that each class has some"
        )
    cumulative = np.cumsum(joint, axis=1) / joint.sum(axis=1, keepdims=True)
    cumulative[:, -1] = 1.0
    return ClassIndex(np.argsort(classes, kind="stable"), np.cumsum(sizes) - sizes, sizes, cumulative)


def rows_of_pairs(
    index: ClassIndex, classes: Int[np.ndarray, " n"], words: UInt32[np.ndarray, "k 8"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Rows x and y of pairs, int32: x is any row, y any row of the class that the index draws for x's."""
    x_words, class_words, y_words, *_ = words.T.astype(np.uint64)
    x = (x_words * np.uint64(len(classes))) >> np.uint64(32)
    partner_classes = np.sum((class_words / 2.0**32)[:, None] >= index.cumulative[classes[x]], axis=1)
    within = (y_words * index.sizes[partner_classes].astype(np.uint64)) >> np.uint64(32)
    y = index.order[index.starts[partner_classes] + within.astype(np.int64)]
    return x.astype(np.int32), y.astype(np.int32)


def by_class(
    rows: Int[np.ndarray, " n"], classes: Int[np.ndarray, " m"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """The rows in the order of their classes, at random within each."""
    shuffled = rng.permutation(rows)
    return shuffled[np.argsort(classes[shuffled], kind="stable")]


def rank_in_class(sorted_classes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many of its class stand before each."""
    return np.arange(len(sorted_classes)) - np.searchsorted(sorted_classes, sorted_classes)


def row_keys(n: int) -> UInt32[np.ndarray, " n"]:
    """Random numbers to split n rows by. They depend on a row's number alone: no setting moves a row between parts."""
    return random_words(0, 0, 0, n)[:, 0]


def parts_of(
    classes: Int[np.ndarray, " n"],
    keys: Shaped[np.ndarray, " n"],
    *,
    validation: float = 0.2,
    test: float = 0.2,
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, " v"], Int[np.ndarray, " t"]]:
    """The rows of three parts, ascending: fit, validation and test, the split of every finite set.

    classes: each row's, in 0..c-1. keys: the rows of a class with the smallest keys are test rows, the next validation.
    validation, test: their shares of every class; 60 : 20 : 20 unless the set's maker has set parts aside.
    """
    order = np.lexsort((keys, classes))
    place = np.empty(len(order))
    place[order] = (rank_in_class(classes[order]) + 0.5) / np.bincount(classes)[classes[order]]
    part = np.searchsorted([test, test + validation], place, side="right")
    of_fit, of_validation, of_test = (np.flatnonzero(part == number) for number in (2, 1, 0))
    return of_fit, of_validation, of_test


def fresh_pairs(
    rows: Int[np.ndarray, " n"],
    classes: Int[np.ndarray, " m"],
    frequencies: Float[np.ndarray, " c"],
    risk: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, "draws 2"]:
    """Independent draws of two rows of a class c ~ frequencies, each row in one pair at most.

    There are as many as possible while a class runs out of its rows with probability <= risk (union bound over
    binomials). If one does, the draws end there; the caller's confidence has to pay for that.
    """
    available = np.bincount(classes[rows], minlength=len(frequencies)) // 2

    def out_of_rows(n: int) -> float:
        return bdtrc(np.minimum(available, n), n, frequencies).sum()

    draws = bisect_left(range(1, int(available.sum()) + 1), True, key=lambda n: out_of_rows(n) > risk)
    drawn = rng.choice(len(frequencies), draws, p=frequencies)
    order = np.argsort(drawn, kind="stable")
    rank = np.empty(draws, int)
    rank[order] = rank_in_class(drawn[order])
    missing = np.flatnonzero(rank >= available[drawn])
    drawn, rank = (values[: missing[0]] if missing.size else values for values in (drawn, rank))
    sorted_rows = by_class(rows, classes, rng)
    first = np.searchsorted(classes[sorted_rows], drawn) + 2 * rank
    return sorted_rows[first[:, None] + np.arange(2)[None, :]]


def random_words(seed: int, stream: int, start: int, stop: int) -> UInt32[np.ndarray, "n 8"]:
    """Eight random words for each index of a stream: Philox (Salmon et al. 2011) keyed by both, counting."""
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start)
    return philox.random_raw(4 * (stop - start)).view(np.uint32).reshape(-1, 8)
