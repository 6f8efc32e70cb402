"""Pairings of two views: their joint distribution and its MI, the PAIRINGS by name, and the grammar of these names."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from mirigor_jax.data.attributes import Attributes, AttributeSpace, Batch, Generator, Rows
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.channels import Channel, channels
from mirigor_jax.data.draws import ClassIndex, class_index, fresh_pairs, joint_values, rows_of_pairs
from mirigor_jax.errors import InputError, listed

CERTIFICATES = ("posterior", "classifier", "infonce")


@runtime_checkable
class Pairing(Protocol):
    """The joint distribution of two views of a population's images.

    To make a pairing of your own, call `same_class` or `sharing`, or write a class with these methods.
    """

    @property
    def shared(self) -> tuple[str, ...]:
        """The things that the two views share: names of attributes, or words for a report."""

    @property
    def augmentation(self) -> Augmentation | None:
        """The random augmentation of each view. None: the views are the unchanged images."""

    @property
    def by_class(self) -> "ByClass | None":
        """The pairing itself if its views have classes; else None."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes of a view; 1 if nothing is shared. None: a pairing without classes."""

    @property
    def entropy_bits(self) -> float | None:
        """H(C) of a view's class C, in bits. None: a pairing without classes."""

    @property
    def truth_bits(self) -> float | None:
        """The true I(X;Y) of the two views, in bits. None: it is not known."""

    @property
    def upper_bits(self) -> float | None:
        """An upper bound of I(h_X;h_Y) for every encoder, in bits. None: no bound is known."""

    @property
    def common_frequencies(self) -> Float[np.ndarray, " c"] | None:
        """p(c) of the views' common class. None: their classes may differ."""

    @property
    def certificates(self) -> tuple[str, ...]:
        """Names of the certificates that apply to this pairing; () if the views are independent."""

    @property
    def needs_encoder_in_step(self) -> bool:
        """Whether a critic needs streamed images, because views can't be paired after they are encoded."""

    def augmented(self, by: Augmentation) -> "Pairing":
        """The same pairing, with each view augmented."""

    def of(self, space: AttributeSpace) -> "Pairing":
        """The same pairing for another set, with its class frequencies. Raises InputError if a class has no image."""

    def draw(self, images: Generator, seed: int, stream: int, start: int, stop: int) -> Batch:
        """Pairs [start, stop) of generated images: `x`, `y`, `attributes_x`, `attributes_y`."""

    def rows(self, space: AttributeSpace) -> Rows:
        """A function that turns random words (k, 8) into k pairs, rows x and y (k,), of the finite set with this space.

        Each pair depends on its own eight words only. Raises InputError if a class has no row.
        """

    def fresh_rows(
        self, space: AttributeSpace, risk: float, rng: np.random.Generator, *, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """Draw independent pairs from a finite set, each row in at most one pair, as a certificate needs them.

        risk: largest probability with which a class may run out of rows. The number of pairs is the largest that this
            risk allows. If the pairing has classes, the certificate has to add it to its own probability of failure.
        Raises InputError if there are fewer than `least` pairs.
        """


@runtime_checkable
class ByClass(Pairing, Protocol):
    """A pairing whose views have classes, and are independent given these classes."""

    @property
    def num_classes(self) -> int: ...

    @property
    def entropy_bits(self) -> float: ...

    @property
    def frequencies(self) -> Float[np.ndarray, " c"]:
        """p(c) over the classes of one view."""

    def classes(self, attributes: Attributes) -> Int[np.ndarray, " n"]:
        """The class of each row, in [0, num_classes)."""

    def joint(self) -> Float[np.ndarray, "c c"]:
        """p(c, c') over the classes of the two views, in float64."""


@dataclass(frozen=True, eq=False)
class ClassPairing:
    """Same-class sampling: the class c follows the images' class frequencies; x and y are independent given c.

    For a finite set, x is uniform over the images, and y is uniform over the images of x's class.
    space: the images' attributes.
    shared, class_of, num_classes, class_name: see `same_class`.
    Source: Lee et al. 2023, §III-A.
    """

    space: AttributeSpace
    shared: tuple[str, ...]
    class_of: Callable[[Attributes], np.ndarray]
    num_classes: int
    class_name: Callable[[int], str]
    augmentation: Augmentation | None = None
    needs_encoder_in_step: bool = False

    @property
    def by_class(self) -> "ClassPairing":
        return self

    @cached_property
    def frequencies(self) -> Float[np.ndarray, " c"]:
        """p(c) over the classes of one view."""
        return self._counts / len(self.space.values)

    @property
    def common_frequencies(self) -> Float[np.ndarray, " c"]:
        return self.frequencies

    @property
    def entropy_bits(self) -> float:
        """H(C) of a view's class C, in bits."""
        return float(entr(self.frequencies).sum()) / math.log(2)

    @property
    def truth_bits(self) -> float | None:
        known = self.space.shows_attributes and self.augmentation is None
        return self.entropy_bits if known else None

    @property
    def upper_bits(self) -> float:
        """H(C): the views share only their class, so I(h_X;h_Y) is at most H(C)."""
        return self.entropy_bits

    @property
    def certificates(self) -> tuple[str, ...]:
        return () if self.num_classes == 1 else CERTIFICATES

    def augmented(self, by: Augmentation) -> "ClassPairing":
        return replace(self, augmentation=by)

    def of(self, space: AttributeSpace) -> "ClassPairing":
        result = replace(self, space=space)
        if (empty := np.flatnonzero(result._counts == 0)).size:
            raise InputError(
                f"{empty.size} of {self.num_classes} classes have no image in the {space.title} "
                f"({listed([self.class_name(c) for c in empty.tolist()])}): give some, or leave these classes out"
            )
        return result

    def classes(self, attributes: Attributes) -> Int[np.ndarray, " n"]:
        """The class of each row, in [0, num_classes)."""
        return self.class_of(attributes)

    def joint(self) -> Float[np.ndarray, "c c"]:
        """p(c, c') over the classes of the two views."""
        return np.diag(self.frequencies)

    def partner(self, attributes: Attributes, uniforms: Float[np.ndarray, "n a"]) -> Attributes:
        """Attributes of the other view: a random row of the space, of the same class."""
        index, classes = self._index, self.classes(attributes)
        within = (uniforms[:, 0] * index.sizes[classes]).astype(np.int64)
        return self.space.values[index.order[index.starts[classes] + within]]

    def draw(self, images: Generator, seed: int, stream: int, start: int, stop: int) -> Batch:
        return images.pairs(self.partner, seed, stream, start, stop)

    def rows(self, space: AttributeSpace) -> Rows:
        """As `Pairing.rows`: x is a random row, and y is a random row of x's class."""
        classes = self.classes(space.values)
        return partial(rows_of_pairs, class_index(classes, self.joint()), classes)

    def fresh_rows(
        self, space: AttributeSpace, risk: float, rng: np.random.Generator, *, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """As `Pairing.fresh_rows`: each pair is two rows of a class c, drawn by the frequencies."""
        classes = self.classes(space.values)
        pairs = fresh_pairs(np.arange(len(classes)), classes, self.frequencies, risk, rng)
        if len(pairs) < least:
            counts = np.bincount(classes, minlength=self.num_classes)
            rarest = int(counts.argmin())
            raise InputError(
                f"the {space.title} gives {len(pairs):,} pairs of different images before a class may run out, "
                f"expected {least:,}; the rarest, {self.class_name(rarest)}, has {counts[rarest]:,}: give more images, "
                "or leave rare classes out"
            )
        return pairs

    @cached_property
    def _counts(self) -> Int[np.ndarray, " c"]:
        return np.bincount(self.class_of(self.space.values), minlength=self.num_classes)

    @cached_property
    def _index(self) -> ClassIndex:
        return class_index(self.classes(self.space.values), self.joint())


@dataclass(frozen=True)
class SameImage:
    """Both views are augmentations of one image: the pairing has no classes, and its MI is not known.

    Source: T_SimCLR of Lee et al. 2023, Fig. 1(b).
    """

    augmentation: Augmentation | None = None
    shared: tuple[str, ...] = ("the image",)
    by_class: None = None
    num_classes: None = None
    entropy_bits: None = None
    truth_bits: None = None
    upper_bits: None = None
    common_frequencies: None = None
    certificates: tuple[str, ...] = ("infonce",)
    needs_encoder_in_step: bool = True

    def augmented(self, by: Augmentation) -> "SameImage":
        return replace(self, augmentation=by)

    def of(self, space: AttributeSpace) -> "SameImage":
        return self

    def draw(self, images: Generator, seed: int, stream: int, start: int, stop: int) -> Batch:
        """Both views of pair i are image i of the stream."""
        image, attributes = images.images(start, stop, seed=seed, stream=stream).values()
        return {"x": image, "y": image, "attributes_x": attributes, "attributes_y": attributes}

    def rows(self, space: AttributeSpace) -> Rows:
        """As `Pairing.rows`: a random row is both x and y."""
        n = np.uint64(len(space.values))

        def twice(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x = ((words[:, 0].astype(np.uint64) * n) >> np.uint64(32)).astype(np.int32)
            return x, x

        return twice

    def fresh_rows(
        self, space: AttributeSpace, risk: float, rng: np.random.Generator, *, least: int
    ) -> Int[np.ndarray, "p 2"]:
        """As `Pairing.fresh_rows`: each row with itself. The order is random, so that batches mix the classes."""
        return np.stack([rng.permutation(len(space.values))] * 2, axis=1)


def sharing(space: AttributeSpace, shared: Sequence[str], channel: Channel | None = None) -> ByClass:
    """The pairing of views that share these attributes.

    channel: a noisy channel between the views' attributes, for generated images. None: the attributes are equal.
    Raises InputError for an unknown attribute, if the images have no labels, if a class has no image, and for a channel
    between images that are not generated.
    """
    channel = channel or Channel()
    if not space.names and shared:
        raise _without_labels(space, "+".join(shared))
    for name in (*shared, *(channel.epsilon or ())):
        if name not in space.names:
            known = f"{', '.join(PAIRINGS)}, or some of {'+'.join(space.names)}"
            raise InputError(f"unknown attribute {name!r} in the pairing: use {known}")
    if space.is_generated:
        made = channels(shared, space.names, space.sizes, channel, law=space.law)
        return replace(made, shows_attributes=space.shows_attributes)
    if channel.is_asked_for:
        raise InputError("mi_bits and epsilon are for CDP and other generated images, not for a set; leave them out")
    columns, sizes = tuple(map(space.names.index, shared)), space.sizes
    return same_class(
        space,
        lambda attributes: joint_values(attributes, columns, sizes),
        math.prod(sizes[a] for a in columns),
        shared=shared,
        class_name=partial(_joint_name, [space.value_names[a] for a in columns]),
    )


def same_class(
    space: AttributeSpace,
    class_of: Callable[[Attributes], np.ndarray],
    num_classes: int,
    *,
    shared: Sequence[str],
    class_name: Callable[[int], str] = "class {}".format,
) -> ClassPairing:
    """Same-class sampling by any function of the attributes.

    space: the images' attributes.
    class_of: rows of attributes (n, a) → classes (n,), from 0 to num_classes - 1.
    shared: the things that the views share, as a report says it.
    class_name: a class's number → its name in messages.
    Raises InputError if a class has no image.
    """
    return ClassPairing(space, tuple(shared), class_of, num_classes, class_name).of(space)


def _all(space: AttributeSpace, channel: Channel | None = None) -> Pairing:
    if not space.names:
        raise _without_labels(space, "all")
    return sharing(space, space.names, channel)


def _none(space: AttributeSpace, channel: Channel | None = None) -> Pairing:
    return sharing(space, (), channel)


def _class(space: AttributeSpace, channel: Channel | None = None) -> Pairing:
    return sharing(space, space.main, channel)


def _one_image(space: AttributeSpace, channel: Channel | None = None) -> Pairing:
    if channel is not None:
        raise InputError(
            "views of one image share the image itself: mi_bits and epsilon say nothing of it; leave them out"
        )
    return SameImage()


AUGMENTED = "simclr"  # this word augments each view; alone, it also means that both views are of one image
INDEPENDENT = "none"  # this word means independent views
# Name in `data.pairing` → a function (the population's AttributeSpace, the user's Channel or None) → the pairing. A
# function that can't use a channel takes the space alone. Any other text means names of attributes joined by "+".
PAIRINGS: dict[str, Callable[..., Pairing]] = {"class": _class, "all": _all, INDEPENDENT: _none, AUGMENTED: _one_image}


def split(text: str) -> tuple[str, bool]:
    """Split a pairing's text into the shared part, and whether each view is augmented.

    "color" → ("color", False); "class+simclr" → ("class", True); "simclr" → ("", True), two views of one image.
    """
    *shared, last = text.split("+")
    return ("+".join(shared), True) if last == AUGMENTED else (text, False)


def shares_image(text: str) -> bool:
    """Whether a pairing's text names two augmented views of one image."""
    return split(text) == ("", True)


def shares_nothing(text: str) -> bool:
    """Whether a pairing's text names independent views."""
    return split(text)[0] == INDEPENDENT


def parse(
    text: str,
    space: AttributeSpace,
    *,
    augmentation: Augmentation | None = None,
    mi_bits: float | None = None,
    epsilon: Mapping[str, float] | None = None,
) -> Pairing:
    """The pairing that a text names: a name in PAIRINGS, or attributes joined by "+". "+simclr" augments each view.

    augmentation: the augmentation for "simclr". None: SimCLR's.
    mi_bits, epsilon: a channel between the views, see `Channel`.
    Raises InputError for an unknown name, for a channel that the pairing cannot use, and as the function in PAIRINGS
    does.
    """
    shared, augmented = split(text)
    make = PAIRINGS.get(shared or AUGMENTED)
    channel = Channel(mi_bits, epsilon)
    if make is None:
        result: Pairing = sharing(space, shared.split("+"), channel)
    elif not channel.is_asked_for:
        result = make(space)
    elif len(inspect.signature(make).parameters) == 1:
        raise InputError(f"pairing {text!r} has no use for mi_bits and epsilon: leave them out")
    else:
        result = make(space, channel)
    return result.augmented(augmentation or Augmentation()) if augmented else result


def classes_of(text: str, space: AttributeSpace) -> ByClass:
    """The classes of the pairing that a text names. Raises InputError as `parse` does, and if there are no classes."""
    result = parse(text, space).by_class
    if result is None:
        raise InputError(f"pairing {text!r} has no classes to tell apart: use all, or some of {'+'.join(space.names)}")
    return result


def _without_labels(space: AttributeSpace, text: str) -> InputError:
    return InputError(
        f"pairing {text!r} needs labels, and the {space.title} has none: give a labeled set, or pair the views of an "
        "image by its augmentations"
    )


def _joint_name(value_names: Sequence[Sequence[str]], index: int) -> str:
    """The name of a class: the names of its attributes' values."""
    values = np.unravel_index(index, [len(names) for names in value_names])
    return ", ".join(repr(names[int(value)]) for names, value in zip(value_names, values, strict=True))
