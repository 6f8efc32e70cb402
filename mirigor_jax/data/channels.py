"""Pairings of generated images with a known MI: the views' attributes pass through symmetric channels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from mirigor_jax.data.attribute_classes import AttributeClasses, of_table
from mirigor_jax.data.attributes import Attributes, AttributeSpace, Batch, Generator, Rows
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.draws import class_index, joint_values, rows_of_pairs
from mirigor_jax.data.law import Law
from mirigor_jax.errors import InputError

ROUNDING = 1e-9  # bits by which the entropy of a law may be rounded


class Channel(NamedTuple):
    """A user's request for a channel between the views' shared attributes: one of the two fields, or neither.

    mi_bits: the MI of the views, in bits. Each shared attribute of m values is redrawn uniformly over all m with a
        common probability t, so its epsilon is t (m - 1)/m.
    epsilon: attribute's name → the probability that the attribute differs between the views.
    """

    mi_bits: float | None = None
    epsilon: Mapping[str, float] | None = None

    @property
    def is_asked_for(self) -> bool:
        return self.mi_bits is not None or bool(self.epsilon)


@dataclass(frozen=True)
class ChannelPairing:
    """A pairing of generated images, each of whose attributes passes through its own symmetric channel.

    An attribute of m values keeps its value in the other view with probability 1 - epsilon; otherwise it takes one of
    the m - 1 others uniformly. At epsilon = 0 it is shared exactly (same-class sampling, Lee et al. 2023, §III-A); at
    epsilon = (m - 1)/m it is not shared. Attributes that are not shared follow their law given the view's own shared
    attributes, so all MI of the views is that of their shared attributes.

    names, sizes, epsilon: each attribute's name, number of values, and epsilon.
    shows_attributes: whether every image shows its attributes; the MI of two views is then that of their attributes.
    law: the joint distribution of a view's attributes, before the channels. None: they are independent and uniform.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    epsilon: tuple[float, ...]
    shows_attributes: bool = True
    law: Law | None = None
    augmentation: Augmentation | None = None
    needs_encoder_in_step: bool = False

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the shared attributes. By a law, others may depend on them, and so on the other view."""
        return tuple(self.names[a] for a in self._shared)

    @property
    def exact(self) -> bool:
        """Whether every shared attribute is equal in both views; the views then have a common class."""
        return all(self.epsilon[a] == 0 for a in self._shared)

    @property
    def makes_impossible(self) -> bool:
        """Whether a view y may have shared attributes that no view x can have, by the law."""
        if self.law is None or self.exact:
            return False
        marginal = self.law.marginal(self._shared)
        return bool(np.any((marginal == 0) & (marginal @ self._channel() > 0)))

    @property
    def by_class(self) -> "ChannelPairing":
        return self

    @property
    def num_classes(self) -> int:
        """Number of possible joint values of the shared attributes; 1 if none is shared."""
        return math.prod(self._radix) if self.law is None else len(self._possible)

    @property
    def entropy_bits(self) -> float:
        """H(C) of the shared attributes of one view, in bits."""
        if self.law is None:
            return math.fsum(math.log2(m) for m in self._radix)
        return _entropy_bits(self.frequencies)

    @property
    def mutual_information_bits(self) -> float:
        """The exact MI of the views' attributes, in bits.

        That is H(C') - H(C'|C), and H(C'|C) is the sum of the channels' entropies, whatever the law. Without a law, it
        is the sum over the channels (Cover & Thomas 2006, eq. 7.23).
        """
        if self.law is None:
            return math.fsum(_channel_mi_bits(self.sizes[a], self.epsilon[a]) for a in self._shared)
        lost = math.fsum(_channel_entropy_bits(self.sizes[a], self.epsilon[a]) for a in self._shared)
        return max(0.0, _entropy_bits(self.law.marginal(self._shared) @ self._channel()) - lost)

    @property
    def truth_bits(self) -> float | None:
        known = self.shows_attributes and self.augmentation is None
        return self.mutual_information_bits if known else None

    @property
    def upper_bits(self) -> float:
        return self.mutual_information_bits

    @property
    def frequencies(self) -> Float[np.ndarray, " c"]:
        """p(c) over the classes of the view x. With a law and channels, p(c') of the view y differs from it."""
        if self.law is None:
            return np.full(self.num_classes, 1 / self.num_classes)
        return self.law.marginal(self._shared)[self._possible]

    @property
    def common_frequencies(self) -> Float[np.ndarray, " c"] | None:
        return self.frequencies if self.exact else None

    @property
    def certificates(self) -> tuple[str, ...]:
        """Names of the certificates that apply. A classifier certifies only views with a common class."""
        if self.num_classes == 1:
            return ()
        return ("posterior", "classifier", "infonce") if self.exact else ("posterior", "infonce")

    def augmented(self, by: Augmentation) -> "ChannelPairing":
        return replace(self, augmentation=by)

    def of(self, space: AttributeSpace) -> "ChannelPairing":
        """The pairing itself, because its frequencies do not depend on a set."""
        return self

    def classes(self, attributes: Attributes) -> Int[np.ndarray, " n"]:
        """The index, in [0, num_classes), of each row's shared attributes; the first attribute is most significant.

        Raises InputError for values that are impossible by the law.
        """
        joint = joint_values(attributes, self._shared, self.sizes)
        if self.law is None:
            return joint
        index = np.searchsorted(self._possible, joint)
        wrong = np.flatnonzero(self._possible[np.minimum(index, self.num_classes - 1)] != joint)
        if wrong.size:
            raise InputError(
                f"{wrong.size} of {len(joint)} rows have attributes of probability 0 by the law, such as "
                f"{attributes[wrong[0]].tolist()}: give images that were drawn by it"
            )
        return index.astype(joint.dtype)

    def joint(self) -> Float[np.ndarray, "c c"]:
        """p(c, c') over the classes of the two views, in float64."""
        if self.law is not None and self.exact:
            return np.diag(self.frequencies)
        return self.frequencies[:, None] * self._channel()[np.ix_(self._possible, self._possible)]

    def by_attribute(self) -> AttributeClasses | None:
        """The classes as combinations of the shared attributes; None for channels of attributes with a law.

        For more than some thousand classes, `joint` does not fit a machine's memory.
        """
        if self.law is not None and not self.exact:
            return None
        values = np.stack(np.unravel_index(self._possible, self._radix), axis=1)
        if self.law is not None:
            return of_table(values, self.frequencies)
        joints = tuple(_symmetric(self.sizes[a], self.epsilon[a]) / self.sizes[a] for a in self._shared)
        return AttributeClasses(values, self.frequencies, joints, exact=self.exact, independent=True)

    def partner(self, attributes: Attributes, uniforms: Float[np.ndarray, "n a"]) -> Attributes:
        """Draw the other view's attributes given this view's. uniforms: random numbers in [0, 1)."""
        sizes, epsilon = np.array(self.sizes), np.array(self.epsilon)
        others = np.maximum(sizes - 1, 1)
        # [0, epsilon) is cut into m - 1 equal parts. A uniform in one of them moves the value cyclically by 1 to m - 1.
        step = np.ceil((epsilon - uniforms) * others / np.where(epsilon > 0, epsilon, 1))
        result = (attributes + np.maximum(step, 0).astype(attributes.dtype)) % sizes.astype(attributes.dtype)
        free = [a for a in range(len(sizes)) if a not in self._shared]
        if self.law is None or not free:
            return result
        # One number draws all attributes that are not shared; the others' numbers have served the channels.
        cumulative = self._given_shared[joint_values(result, self._shared, self.sizes)]
        drawn = np.sum(uniforms[:, free[0], None] >= cumulative, axis=1)
        result[:, free] = np.stack(np.unravel_index(drawn, [self.sizes[a] for a in free]), axis=1)
        return result

    def draw(self, images: Generator, seed: int, stream: int, start: int, stop: int) -> Batch:
        return images.pairs(self.partner, seed, stream, start, stop)

    def rows(self, space: AttributeSpace) -> Rows:
        """As `Pairing.rows`: x is a random row; y is a random row of the class that the channel draws for x's."""
        classes = self.classes(space.values)
        return partial(rows_of_pairs, class_index(classes, self.joint()), classes)

    def fresh_rows(
        self, space: AttributeSpace, risk: float, rng: np.random.Generator, *, least: int
    ) -> Int[np.ndarray, "p 2"]:
        raise InputError("a channel between views needs generated pairs, not a finite set: share attributes exactly")

    @property
    def _shared(self) -> tuple[int, ...]:
        return tuple(a for a, m in enumerate(self.sizes) if self.epsilon[a] < _independent(m))

    @property
    def _radix(self) -> tuple[int, ...]:
        return tuple(self.sizes[a] for a in self._shared)

    @cached_property
    def _possible(self) -> Int[np.ndarray, " c"]:
        """The joint values of the shared attributes that have a probability above 0, in ascending order."""
        return np.arange(math.prod(self._radix)) if self.law is None else self.law.possible(self._shared)

    @cached_property
    def _given_shared(self) -> Float[np.ndarray, "c r"]:
        assert self.law is not None
        return self.law.given(self._shared)

    def _channel(self) -> Float[np.ndarray, "c c"]:
        """p(c'|c) of the shared attributes."""
        channel: np.ndarray = np.ones((1, 1))
        for a in self._shared:
            channel = np.kron(channel, _symmetric(self.sizes[a], self.epsilon[a]))
        return channel


def channels(
    shared: Sequence[str],
    names: Sequence[str],
    sizes: Sequence[int],
    channel: Channel | None = None,
    *,
    law: Law | None = None,
) -> ChannelPairing:
    """The pairing of views that share some of their attributes.

    shared: names of the shared attributes.
    names, sizes: each attribute's name and number of values.
    channel: a channel for the shared attributes. None: they are equal in both views.
    law: the joint distribution of the attributes. None: they are independent and uniform.
    Raises InputError if mi_bits is outside [0, H(C)], if an epsilon is outside [0, (m - 1)/m] or its attribute is not
    shared, if both mi_bits and epsilon are given, and for a channel that makes values which the law makes impossible.
    """
    mi_bits, epsilon = channel or Channel()
    if mi_bits is not None and epsilon:
        raise InputError(f"mi={mi_bits:g} and epsilon of {', '.join(epsilon)} are given: mi sets epsilon, give one")
    text = "all" if tuple(shared) == tuple(names) else "+".join(shared) or "none"

    def pairing(**options: float) -> ChannelPairing:
        values = [options.get(n, 0.0) if n in shared else _independent(m) for n, m in zip(names, sizes, strict=True)]
        made = ChannelPairing(tuple(names), tuple(sizes), tuple(values), law=law)
        if made.makes_impossible:
            raise InputError(
                f"a channel of pairing {text!r} makes combinations of values that are impossible by the law: leave out "
                "mi and epsilon, or choose a law in which every combination is possible, as at a strength below 1"
            )
        return made

    for name, value in (epsilon or {}).items():
        limit = _independent(sizes[names.index(name)])
        if name not in shared:
            raise InputError(f"epsilon of {name!r} is given, but pairing {text!r} does not share it: add it there")
        if law is not None and value == limit:
            raise InputError(f"epsilon of {name!r} is {limit:.6g}, where it is not shared: leave it out of the pairing")
        if not 0 <= value <= limit:
            raise InputError(
                f"epsilon of {name!r} is {value:g}, expected 0 to {limit:.6g}, where the views are independent: "
                "beyond it their information rises again"
            )
    if mi_bits is None:
        return pairing(**(epsilon or {}))

    from scipy.optimize import root_scalar  # imported here, since the import takes 0.1 s

    def redrawn(t: float) -> ChannelPairing:
        return pairing(**{n: t * _independent(m) for n, m in zip(names, sizes, strict=True)})

    exact = redrawn(0.0)
    if not 0 <= mi_bits <= exact.entropy_bits + ROUNDING:
        raise InputError(
            f"mi={mi_bits:g} bits asked for, but pairing {text!r} can share 0 to {exact.entropy_bits:g}: "
            "ask for less, or share more or larger attributes"
        )
    if mi_bits == 0:
        return redrawn(1.0)
    if mi_bits >= exact.entropy_bits - ROUNDING:
        return exact
    excess = root_scalar(lambda t: redrawn(t).mutual_information_bits - mi_bits, bracket=(0, 1), xtol=1e-15)
    return redrawn(excess.root)


def _independent(m: int) -> float:
    """The epsilon at which the input and the output of a symmetric channel over m values are independent."""
    return (m - 1) / m


def _symmetric(m: int, epsilon: float) -> Float[np.ndarray, "m m"]:
    """p(a'|a) of a symmetric channel over m values."""
    channel = np.full((m, m), epsilon / max(m - 1, 1))
    np.fill_diagonal(channel, 1 - epsilon)
    return channel


def _channel_mi_bits(m: int, epsilon: float) -> float:
    return math.log2(m) - _channel_entropy_bits(m, epsilon)


def _channel_entropy_bits(m: int, epsilon: float) -> float:
    """H(A'|A) of a symmetric channel over m values."""
    return float(entr(1 - epsilon) + (m - 1) * entr(epsilon / (m - 1))) / math.log(2)


def _entropy_bits(p: Float[np.ndarray, " c"]) -> float:
    return float(entr(p).sum()) / math.log(2)
