"""Views whose attributes pass through symmetric channels, which set the MI of images made to measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from mirigor_jax.data.attributes import Attributes, AttributeSpace, Batch, Generator, Rows
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.draws import class_index, joint_values, rows_of_pairs
from mirigor_jax.errors import InputError


class Channel(NamedTuple):
    """What is asked of the shared attributes beside being equal in both views; one of the two.

    mi_bits: what the views share in total. Each shared attribute is redrawn uniformly over all its values with one
    common probability t, that is epsilon = t (m - 1)/m, so that epsilons are equal if alphabets are.
    epsilon: the probability that an attribute differs, by the attribute's name.
    """

    mi_bits: float | None = None
    epsilon: Mapping[str, float] | None = None

    @property
    def is_asked_for(self) -> bool:
        return self.mi_bits is not None or bool(self.epsilon)


@dataclass(frozen=True)
class ChannelPairing:
    """Two views whose attributes are each uniform and pass through a symmetric channel of their own.

    Attribute a of m values keeps its value in the other view with probability 1 - epsilon, else it takes one of the
    m - 1 others uniformly: shared exactly at epsilon = 0 (same-class sampling, Lee et al. 2023, §III-A), independent at
    epsilon = (m - 1)/m.

    shows_attributes: whether every image shows its attributes, so that the views' MI is the attributes'.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    epsilon: tuple[float, ...]
    shows_attributes: bool = True
    augmentation: Augmentation | None = None
    needs_encoder_in_step: bool = False

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the attributes that the views do not draw independently."""
        return tuple(self.names[a] for a in self._shared)

    @property
    def exact(self) -> bool:
        """Whether every shared attribute is equal in both views, so that they have a class in common."""
        return all(self.epsilon[a] == 0 for a in self._shared)

    @property
    def by_class(self) -> "ChannelPairing":
        return self

    @property
    def num_classes(self) -> int:
        """Number of joint values of the shared attributes; 1 if none is shared."""
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
    def truth_bits(self) -> float | None:
        known = self.shows_attributes and self.augmentation is None
        return self.mutual_information_bits if known else None

    @property
    def upper_bits(self) -> float:
        return self.mutual_information_bits

    @property
    def frequencies(self) -> Float[np.ndarray, " c"]:
        """p(c) over the classes of one view."""
        return np.full(self.num_classes, 1 / self.num_classes)

    @property
    def common_frequencies(self) -> Float[np.ndarray, " c"] | None:
        return self.frequencies if self.exact else None

    @property
    def certificates(self) -> tuple[str, ...]:
        """A classifier certifies only views that have a class in common."""
        if self.num_classes == 1:
            return ()
        return ("posterior", "classifier", "infonce") if self.exact else ("posterior", "infonce")

    def augmented(self, by: Augmentation) -> "ChannelPairing":
        return replace(self, augmentation=by)

    def of(self, space: AttributeSpace) -> "ChannelPairing":
        """Itself: it sets the frequencies, and does not take them from a set."""
        return self

    def classes(self, attributes: Attributes) -> Int[np.ndarray, " n"]:
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

    def partner(self, attributes: Attributes, uniforms: Float[np.ndarray, "n a"]) -> Attributes:
        """The other view's attributes given this view's, from uniforms in [0, 1)."""
        sizes, epsilon = np.array(self.sizes), np.array(self.epsilon)
        others = np.maximum(sizes - 1, 1)
        # u in [0, epsilon) is cut into m - 1 equal parts, the k-th of which moves the value on by k, cyclically.
        step = np.ceil((epsilon - uniforms) * others / np.where(epsilon > 0, epsilon, 1))
        return (attributes + np.maximum(step, 0).astype(attributes.dtype)) % sizes.astype(attributes.dtype)

    def draw(self, images: Generator, seed: int, stream: int, start: int, stop: int) -> Batch:
        return images.pairs(self.partner, seed, stream, start, stop)

    def rows(self, space: AttributeSpace) -> Rows:
        """x is any row, and y any row of the class that the channel gives to x's."""
        classes = self.classes(space.values)
        return partial(rows_of_pairs, class_index(classes, self.joint()), classes)

    def fresh_rows(
        self, space: AttributeSpace, risk: float, rng: np.random.Generator, *, least: int
    ) -> Int[np.ndarray, "p 2"]:
        raise InputError("a channel between views takes pairs that are made to measure: share attributes exactly")

    @property
    def _shared(self) -> tuple[int, ...]:
        return tuple(a for a, m in enumerate(self.sizes) if self.epsilon[a] < _independent(m))

    @property
    def _radix(self) -> tuple[int, ...]:
        return tuple(self.sizes[a] for a in self._shared)


def channels(
    shared: Sequence[str],
    names: Sequence[str],
    sizes: Sequence[int],
    channel: Channel | None = None,
) -> ChannelPairing:
    """The pairing of uniform attributes of so many values each, of which the views share some.

    The shared attributes are equal in both views, unless a channel is asked for. Raises InputError for an mi_bits
    outside [0, H(C)], for an epsilon outside [0, (m - 1)/m] or of an attribute that is not shared, and for mi_bits and
    epsilon together.
    """
    mi_bits, epsilon = channel or Channel()
    if mi_bits is not None and epsilon:
        raise InputError(f"mi={mi_bits:g} and epsilon of {', '.join(epsilon)} are given: mi sets epsilon, give one")
    text = "all" if tuple(shared) == tuple(names) else "+".join(shared) or "none"

    def pairing(**options: float) -> ChannelPairing:
        values = [options.get(n, 0.0) if n in shared else _independent(m) for n, m in zip(names, sizes, strict=True)]
        return ChannelPairing(tuple(names), tuple(sizes), tuple(values))

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

    def redrawn(t: float) -> ChannelPairing:
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


def _independent(m: int) -> float:
    """The epsilon at which a symmetric channel over m values passes nothing."""
    return (m - 1) / m


def _channel_mi_bits(m: int, epsilon: float) -> float:
    lost_nats = entr(1 - epsilon) + (m - 1) * entr(epsilon / (m - 1))
    return math.log2(m) - float(lost_nats) / math.log(2)
