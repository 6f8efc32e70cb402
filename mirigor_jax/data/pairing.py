"""Which attributes two views share, how exactly, and the mutual information that follows from it."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt32
from scipy.special import entr

from mirigor_jax.errors import InputError


@dataclass(frozen=True)
class Pairing:
    """Joint law of two views' attributes, each uniform and passed through its own symmetric channel.

    Attribute a of m values keeps its value in the other view with probability 1 - epsilon, else it takes one of the
    m - 1 others uniformly: shared exactly at epsilon = 0 (same-class sampling, Lee et al. 2023, §III-A), independent at
    epsilon = (m - 1)/m.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    epsilon: tuple[float, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the attributes that the views do not draw independently."""
        return tuple(self.names[a] for a in self._shared)

    @property
    def exact(self) -> bool:
        """Whether every shared attribute is equal in both views, so that they have a class in common."""
        return all(self.epsilon[a] == 0 for a in self._shared)

    @property
    def num_classes(self) -> int:
        """Number of joint values of the shared attributes; 1 when none is shared."""
        return math.prod(self._radix)

    @property
    def entropy_bits(self) -> float:
        """H(C) of the shared attributes of one view."""
        return math.fsum(math.log2(m) for m in self._radix)

    @property
    def mutual_information_bits(self) -> float:
        """Exact I of the two views' attributes: the sum of the shared channels' (Cover & Thomas 2006, eq. 7.23)."""
        return math.fsum(_channel_mi_bits(self.sizes[a], self.epsilon[a]) for a in self._shared)

    @property
    def law(self) -> Float[np.ndarray, " c"]:
        """p(c) over the classes of one view."""
        return np.full(self.num_classes, 1 / self.num_classes)

    def classes(self, attributes: Int[np.ndarray, "n a"]) -> Int[np.ndarray, " n"]:
        """Index in [0, num_classes) of each row's shared attributes, the first of them the most significant digit."""
        return joint_values(attributes, self._shared, self.sizes)

    def joint(self) -> Float[np.ndarray, "c c"]:
        """p(c, c') over the classes of the two views, in float64."""
        joint: np.ndarray = np.ones((1, 1))
        for a in self._shared:
            m, epsilon = self.sizes[a], self.epsilon[a]
            channel = np.full((m, m), epsilon / (m - 1))
            np.fill_diagonal(channel, 1 - epsilon)
            joint = np.kron(joint, channel / m)
        return joint

    def partner(self, attributes: Int[np.ndarray, "n a"], uniforms: Float[np.ndarray, "n a"]) -> Int[np.ndarray, "n a"]:
        """The other view's attributes given this view's, from uniforms in [0, 1)."""
        sizes, epsilon = np.array(self.sizes), np.array(self.epsilon)
        others = np.maximum(sizes - 1, 1)
        # u in [0, epsilon) is cut into m - 1 equal parts, the k-th of which moves the value on by k, cyclically.
        step = np.ceil((epsilon - uniforms) * others / np.where(epsilon > 0, epsilon, 1))
        return (attributes + np.maximum(step, 0).astype(attributes.dtype)) % sizes.astype(attributes.dtype)

    @property
    def _shared(self) -> tuple[int, ...]:
        return tuple(a for a, m in enumerate(self.sizes) if self.epsilon[a] < _independent(m))

    @property
    def _radix(self) -> tuple[int, ...]:
        return tuple(self.sizes[a] for a in self._shared)


@dataclass(frozen=True, eq=False)
class ClassPairing:
    """Same-class sampling where classes are as frequent as they are: c ~ law, then x and y independently of class c.

    A class is a joint value of the shared attributes. Where law is the classes' shares of a set of images, that is x
    uniform over the set and y uniform over the images of x's class.
    Source: Lee et al. 2023, §III-A.
    """

    exact: ClassVar[bool] = True
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shared: tuple[str, ...]
    law: Float[np.ndarray, " c"]

    @property
    def num_classes(self) -> int:
        """Number of joint values of the shared attributes; 1 when none is shared."""
        return len(self.law)

    @property
    def entropy_bits(self) -> float:
        """H(C)."""
        return float(entr(self.law).sum()) / math.log(2)

    @property
    def mutual_information_bits(self) -> float:
        """The views' classes are equal, so that they share H(C), and the views H(C) at most."""
        return self.entropy_bits

    def classes(self, attributes: Int[np.ndarray, "n a"]) -> Int[np.ndarray, " n"]:
        """Index in [0, num_classes) of each row's shared attributes, the first of them the most significant digit."""
        return joint_values(attributes, tuple(map(self.names.index, self.shared)), self.sizes)

    def joint(self) -> Float[np.ndarray, "c c"]:
        """p(c, c') over the classes of the two views."""
        return np.diag(self.law)


@dataclass(frozen=True)
class SameImage:
    """Both views are of one image, told apart by their augmentations: no class is shared, and no MI is known.

    T_SimCLR of Lee et al. 2023, Fig. 1(b).
    """

    shared: tuple[str, ...] = ("the image",)
    exact: bool = False
    num_classes: None = None
    entropy_bits: None = None
    mutual_information_bits: None = None


ByClass = Pairing | ClassPairing
AnyPairing = Pairing | ClassPairing | SameImage


def joint_values(
    attributes: Int[np.ndarray, "n a"], shared: Sequence[int], sizes: Sequence[int]
) -> Int[np.ndarray, " n"]:
    """Index of each row's values in the columns `shared`, the first of them the most significant digit."""
    index = np.zeros(len(attributes), np.int32)
    for a in shared:
        index = index * sizes[a] + attributes[:, a]
    return index


def parse(
    text: str,
    names: Sequence[str],
    sizes: Sequence[int],
    *,
    mi_bits: float | None = None,
    epsilon: Mapping[str, float] | None = None,
) -> Pairing:
    """The pairing that `text` names: "all", "none", or attributes joined by "+", as in "color+digit".

    The named attributes are shared exactly, unless
    - `mi_bits` asks for less: each then is redrawn uniformly over all its values with one common probability t, that is
      epsilon = t (m - 1)/m (equal epsilons where alphabets are equal), such that the views share mi_bits in total;
    - `epsilon` gives the probability that an attribute differs, by name.
    Raises InputError for an unknown attribute, an mi_bits outside [0, H(C)], an epsilon outside [0, (m - 1)/m] or of an
    attribute that is not shared, and for mi_bits and epsilon together.
    """
    shared = shared_names(text, names, *(epsilon or ()))
    if mi_bits is not None and epsilon:
        raise InputError(f"mi={mi_bits:g} and epsilon of {', '.join(epsilon)} are given: mi sets epsilon, give one")

    def pairing(**given: float) -> Pairing:
        values = [given.get(n, 0.0) if n in shared else _independent(m) for n, m in zip(names, sizes, strict=True)]
        return Pairing(tuple(names), tuple(sizes), tuple(values))

    for name, value in (epsilon or {}).items():
        limit = _independent(sizes[names.index(name)])
        if name not in shared:
            raise InputError(f"epsilon of {name!r} is given, but pairing {text!r} does not share it: add it there")
        if not 0 <= value <= limit:
            raise InputError(
                f"epsilon of {name!r} is {value:g}, expected 0 to {limit:.6g}, where the views are independent: "
                "beyond it their information rises again"
            )
    if mi_bits is None:
        return pairing(**(epsilon or {}))

    from scipy.optimize import root_scalar  # here, as it takes a tenth of a second to import

    def redrawn(t: float) -> Pairing:
        return pairing(**{n: t * _independent(m) for n, m in zip(names, sizes, strict=True)})

    entropy_bits = redrawn(0.0).entropy_bits
    if not 0 <= mi_bits <= entropy_bits:
        raise InputError(
            f"mi={mi_bits:g} bits asked for, but pairing {text!r} can share 0 to {entropy_bits:g}: "
            "ask for less, or share more or larger attributes"
        )
    if mi_bits == 0:
        return redrawn(1.0)
    excess = root_scalar(lambda t: redrawn(t).mutual_information_bits - mi_bits, bracket=(0, 1), xtol=1e-15)
    return redrawn(excess.root)


def shared_names(text: str, names: Sequence[str], *others: str) -> tuple[str, ...]:
    """The attributes that `text` names: "all", "none", or some joined by "+".

    Raises InputError where these or the others are not among `names`.
    """
    shared = {"all": tuple(names), "none": ()}.get(text, tuple(text.split("+")))
    for name in (*shared, *others):
        if name not in names:
            raise InputError(f"unknown attribute {name!r} in the pairing: use all, none, or some of {'+'.join(names)}")
    return shared


class ClassIndex(NamedTuple):
    """Where a set's classes stand: class c is order[starts[c] : starts[c] + sizes[c]]; law[c] sums p(·|c) up."""

    order: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " c"]
    sizes: Int[np.ndarray, " c"]
    law: Float[np.ndarray, "c c"]


def class_index(classes: Int[np.ndarray, " n"], joint: Float[np.ndarray, "c c"]) -> ClassIndex:
    """The index of rows of these classes, for drawing pairs whose classes follow p(c'|c) = joint[c, c'] / Σ joint[c].

    Raises InputError where a class has no row.
    """
    sizes = np.bincount(classes, minlength=len(joint))
    if (empty := np.flatnonzero(sizes == 0)).size:
        raise InputError(
            f"{empty.size} of {len(joint)} classes have none of the {len(classes):,} rows (the first: class "
            f"{empty[0]}); give more images or rows, so that each class has some"
        )
    law = np.cumsum(joint, axis=1) / joint.sum(axis=1, keepdims=True)
    law[:, -1] = 1.0
    return ClassIndex(np.argsort(classes, kind="stable"), np.cumsum(sizes) - sizes, sizes, law)


def by_class(
    rows: Int[np.ndarray, " n"], classes: Int[np.ndarray, " m"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """The rows in the order of their classes, at random within each."""
    shuffled = rng.permutation(rows)
    return shuffled[np.argsort(classes[shuffled], kind="stable")]


def rank_in_class(sorted_classes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many of its class stand before each."""
    return np.arange(len(sorted_classes)) - np.searchsorted(sorted_classes, sorted_classes)


def split_in_classes(
    classes: Int[np.ndarray, " n"], rng: np.random.Generator
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, " v"], Int[np.ndarray, " t"]]:
    """The rows of three parts (fit, validation, test): 60 : 20 : 20 of every class, at random.

    classes: each row's, in 0..c-1.
    """
    rows = by_class(np.arange(len(classes)), classes, rng)
    place = (rank_in_class(classes[rows]) + 0.5) / np.bincount(classes)[classes[rows]]
    part = np.searchsorted([0.6, 0.8], place)
    return rows[part == 0], rows[part == 1], rows[part == 2]


def fresh_pairs(
    rows: Int[np.ndarray, " n"],
    classes: Int[np.ndarray, " m"],
    law: Float[np.ndarray, " c"],
    risk: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, "draws 2"]:
    """Independent draws of two rows of a class c ~ law, each row in one pair at most.

    As many as there may be while a class runs out of its rows with probability <= risk (union bound over binomials).
    Should one do so, draws end there; the caller's confidence has to pay for that.
    """
    from scipy import stats  # here, as it takes half a second to import

    available = np.bincount(classes[rows], minlength=len(law)) // 2
    draws = bisect_left(
        range(1, int(available.sum()) + 1), True, key=lambda n: stats.binom.sf(available, n, law).sum() > risk
    )
    drawn = rng.choice(len(law), draws, p=law)
    order = np.argsort(drawn, kind="stable")
    turn = np.empty(draws, int)
    turn[order] = rank_in_class(drawn[order])
    missing = np.flatnonzero(turn >= available[drawn])
    drawn, turn = (values[: missing[0]] if missing.size else values for values in (drawn, turn))
    sorted_rows = by_class(rows, classes, rng)
    first = np.searchsorted(classes[sorted_rows], drawn) + 2 * turn
    return sorted_rows[first[:, None] + np.arange(2)[None, :]]


def random_words(seed: int, stream: int, start: int, stop: int) -> UInt32[np.ndarray, "n 8"]:
    """Eight random words for each index of a stream: Philox (Salmon et al. 2011) keyed by both, counting."""
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start)
    return philox.random_raw(4 * (stop - start)).view(np.uint32).reshape(-1, 8)


def _independent(m: int) -> float:
    """The epsilon at which a symmetric channel over m values passes nothing."""
    return (m - 1) / m


def _channel_mi_bits(m: int, epsilon: float) -> float:
    lost_nats = entr(1 - epsilon) + (m - 1) * entr(epsilon / (m - 1))
    return math.log2(m) - float(lost_nats) / math.log(2)
