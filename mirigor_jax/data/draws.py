"""Random draws of rows by their classes, and the random words behind them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt32
from scipy.special import bdtrc

from mirigor_jax.errors import InputError, listed

VALIDATION, TEST = 2, 3  # streams for the pairs of these parts
PREQUENTIAL = 8  # stream for the order of the prequential certificate; populations use 0 to 7
EXPORT = 9  # stream for the pairs of an export, so that no run has their images


def joint_values(
    attributes: Int[np.ndarray, "n a"], shared: Sequence[int], sizes: Sequence[int]
) -> Int[np.ndarray, " n"]:
    """The index of each row's combination of values in the columns `shared`; the first column is most significant."""
    index = np.zeros(len(attributes), np.int32)
    for a in shared:
        index = index * sizes[a] + attributes[:, a]
    return index


class ClassIndex(NamedTuple):
    """The rows of each class in a set, and the distribution of a partner's class.

    order, starts, sizes: the rows of class c are order[starts[c] : starts[c] + sizes[c]].
    cumulative: cumulative[c] is the cumulative sum of p(·|c), the distribution of the partner's class.
    """

    order: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " c"]
    sizes: Int[np.ndarray, " c"]
    cumulative: Float[np.ndarray, "c c"]


def class_index(classes: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> ClassIndex:
    """Index rows by class, to draw pairs with p(c'|c) = joint[c, c'] / Σ joint[c] for the partner's class c'.

    Raises InputError if a class has no row.
    """
    sizes = np.bincount(classes, minlength=len(joint))
    if (empty := np.flatnonzero(sizes == 0)).size:
        raise InputError(
            f"{empty.size} of {len(joint)} classes have none of the {len(classes):,} rows (classes "
            f"{listed(list(map(str, empty.tolist())))}); give more images or rows, so that each class has some"
        )
    cumulative = np.cumsum(joint, axis=1) / joint.sum(axis=1, keepdims=True)
    cumulative[:, -1] = 1.0
    return ClassIndex(np.argsort(classes, kind="stable"), np.cumsum(sizes) - sizes, sizes, cumulative)


def rows_of_pairs(
    index: ClassIndex, classes: Int[np.ndarray, " n"], words: UInt32[np.ndarray, "k 8"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Rows x and y of pairs, int32. x is a random row; y is a random row of the class drawn given x's class."""
    x_words, class_words, y_words, *_ = words.T.astype(np.uint64)
    x = (x_words * np.uint64(len(classes))) >> np.uint64(32)
    partner_classes = np.sum((class_words / 2.0**32)[:, None] >= index.cumulative[classes[x]], axis=1)
    within = (y_words * index.sizes[partner_classes].astype(np.uint64)) >> np.uint64(32)
    y = index.order[index.starts[partner_classes] + within.astype(np.int64)]
    return x.astype(np.int32), y.astype(np.int32)


def by_class(
    rows: Int[np.ndarray, " n"], classes: Int[np.ndarray, " m"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """The rows sorted by class, in random order within each class."""
    shuffled = rng.permutation(rows)
    return shuffled[np.argsort(classes[shuffled], kind="stable")]


def rank_in_class(sorted_classes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each entry, the number of earlier entries of its class."""
    return np.arange(len(sorted_classes)) - np.searchsorted(sorted_classes, sorted_classes)


def row_keys(n: int) -> UInt32[np.ndarray, " n"]:
    """Random numbers to split n rows by. Each depends on its row's number only, so no setting moves a row."""
    return random_words(0, 0, 0, n)[:, 0]


def parts_of(
    classes: Int[np.ndarray, " n"],
    keys: Shaped[np.ndarray, " n"],
    *,
    validation: float = 0.2,
    test: float = 0.2,
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, " v"], Int[np.ndarray, " t"]]:
    """Split rows into three parts, fit, validation and test, within each class. Every finite set is split by this.

    classes: (n,). Each row's class, in 0..c-1.
    keys: (n,). In each class, the rows with the smallest keys are the test part, and the next are validation.
    validation, test: shares of each class. The default split is 60 : 20 : 20; a set with a test part has other shares.
    Returns the rows of each part, ascending.
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
    """Draw independent pairs: two rows of a class c ~ frequencies. Each row is in at most one pair.

    The number of draws is the largest for which a class runs out of rows with probability <= risk (union bound over
    binomials). If a class does run out, the draws end there; the caller has to add `risk` to its own probability of
    failure.
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


def rows_of_classes(
    wanted: Int[np.ndarray, " n"], classes: Int[np.ndarray, " m"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """For each class that is wanted, a random row of it. Each row is used at most once.

    So if the rows are independent given their classes, the chosen ones are too.
    wanted: (n,) classes. classes: (m,). Each row's class.
    Raises InputError if a class has fewer rows than are wanted.
    """
    order = np.argsort(wanted, kind="stable")
    rank = np.empty(len(wanted), int)
    rank[order] = rank_in_class(wanted[order])
    rows = by_class(np.arange(len(classes)), classes, rng)
    short = rank >= np.bincount(classes, minlength=wanted.max(initial=-1) + 1)[wanted]
    if short.any():
        raise InputError(
            f"class {wanted[short][0]} has too few of the {len(classes):,} rows for {len(wanted):,} draws; "
            "give more rows, or another seed"
        )
    return rows[np.searchsorted(classes[rows], wanted) + rank]


def random_words(seed: int, stream: int, start: int, stop: int) -> UInt32[np.ndarray, "n 8"]:
    """Eight random words for each index in [start, stop), by Philox (Salmon et al. 2011) keyed by (seed, stream)."""
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start)
    return philox.random_raw(4 * (stop - start)).view(np.uint32).reshape(-1, 8)


def keyed_words(keys: Int[np.ndarray, "n 2"], count: int) -> UInt32[np.ndarray, "n c"]:
    """An even number of random words for each key, by Philox (Salmon et al. 2011). A larger count continues the words.

    keys: int64, two for each row, such as random words.
    """
    words = np.empty((len(keys), count // 2), np.uint64)
    philox = np.random.Philox(key=0)
    state = philox.state
    for row, key in zip(words, np.ascontiguousarray(keys).view(np.uint64), strict=True):
        state["state"]["key"] = key
        philox.state = state  # a new key in the first state is much faster than a new generator
        row[:] = philox.random_raw(count // 2)
    return words.view(np.uint32)
