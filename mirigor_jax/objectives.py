"""What an encoder is trained for: losses of the head's outputs for the views of k pairs, in nats.

Each is the mean over this device's 2k views, scored under `axis_name` against every device's, so that `pmean` over the
axis gives the global batch's value, and `pmean` of its gradients the global gradient (as in mi/contrastive.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Key

from mirigor_jax import checks
from mirigor_jax.data.preprocess import rotate
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent, unit_rows

# What a batch brings, by name; and for each view that an objective asks for, a key an image, new at every step.
Batch = Mapping[str, Array]
Keys = Callable[[], Sequence[Key[Array, " k"]]]


def _no_targets(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    return ()


@dataclass(frozen=True)
class Objective:
    """A loss, what it asks of the head and of the batches, and how it prepares a batch.

    loss: (z of each view …, each target …) → nats, the mean over this device's views.
    prepare: (batch, keys) → the targets, arrays of k rows. keys(): for each view a key an image.
    transform: (images, target of each) → the images that the encoder is given, after normalization and augmentation;
        then there is a target for each view. None: the images stay as they are.
    needs_classes: batches bring the classes of the pairs' images, c_x and c_y.
    needs_negatives: batches bring further images, n_x and n_y, which are views too.
    outputs: of the head. None: as many as the caller chooses.
    bounds_mi: log(2k−1) − loss is the in-training MI (Lee et al. 2023, Eq. 4). That holds for NT-Xent alone, which
        finds one partner among 2k−1 views: supcon has several, and a least loss of the log of their number; decoupled
        leaves the partner out of the candidates, and may be negative; the others find an image's class.
    has_temperature: whether the temperature that it is made with makes a difference.
    with_negatives: the objective whose negatives are images of their own. None: it has no use for them.
    """

    loss: Callable[..., Float[Array, ""]]
    prepare: Callable[[Batch, Keys], tuple[Array, ...]] = _no_targets
    transform: Callable[[Float[Array, "n s s 3"], Array], Float[Array, "n s s 3"]] | None = None
    needs_classes: bool = False
    needs_negatives: bool = False
    outputs: int | None = None
    bounds_mi: bool = False
    has_temperature: bool = True
    with_negatives: "Objective | None" = None

    @property
    def views(self) -> tuple[str, ...]:
        """What of a batch goes through the encoder, in order."""
        return ("x", "y", "n_x", "n_y") if self.needs_negatives else ("x", "y")

    @property
    def labels(self) -> tuple[str, ...]:
        """What else a batch brings: int32 (k,) each."""
        return ("c_x", "c_y") if self.needs_classes else ()


def _classes(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    return batch["c_x"], batch["c_y"]


def _rotations(batch: Batch, keys: Keys) -> tuple[Array, ...]:
    """How many quarter turns each view is turned by."""
    return tuple(jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(view_keys) for view_keys in keys())


def simclr_objective(*, temperature: float, num_classes: int | None, axis_name: str | None) -> Objective:
    """NT-Xent of the batch's other pairs, or of negatives of their own."""
    del num_classes
    options: Any = {"temperature": temperature, "axis_name": axis_name}
    other = Objective(partial(nce, **options), needs_negatives=True)
    return Objective(partial(nt_xent, **options), bounds_mi=True, with_negatives=other)


def supcon_objective(*, temperature: float, num_classes: int | None, axis_name: str | None) -> Objective:
    """SupCon, which tells the images' classes apart."""
    del num_classes
    loss = partial(supcon, temperature=temperature, axis_name=axis_name)
    return Objective(loss, prepare=_classes, needs_classes=True)


def decoupled_objective(*, temperature: float, num_classes: int | None, axis_name: str | None) -> Objective:
    """The decoupled contrastive loss."""
    del num_classes
    return Objective(partial(decoupled, temperature=temperature, axis_name=axis_name))


def cross_entropy_objective(*, temperature: float, num_classes: int | None, axis_name: str | None) -> Objective:
    """Supervised learning of the images' classes."""
    del temperature, axis_name
    return Objective(cross_entropy, prepare=_classes, needs_classes=True, outputs=num_classes, has_temperature=False)


def rotation_objective(*, temperature: float, num_classes: int | None, axis_name: str | None) -> Objective:
    """Each view is turned by a random multiple of 90°, and which one is its class."""
    del temperature, num_classes, axis_name
    return Objective(cross_entropy, prepare=_rotations, transform=rotate, outputs=4, has_temperature=False)


# An entry's function is called with temperature, num_classes (None: the images have no labels) and axis_name.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "simclr": simclr_objective,
    "supcon": supcon_objective,
    "decoupled": decoupled_objective,
    "cross_entropy": cross_entropy_objective,
    "rotation": rotation_objective,
}


def make(
    name: str, *, temperature: float, num_classes: int | None, axis_name: str | None, negatives: bool = False
) -> Objective:
    """The objective of that name.

    num_classes: that images can have; None if they have no labels.
    axis_name: of the devices that the batch is spread over; None for one device.
    negatives: whether they are images of their own and not the batch's other pairs.
    Raises InputError for another name, for a temperature that is not above 0, for an objective that needs classes of
    which there are fewer than two, and for negatives of their own that an objective has no use for.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective='{name}' is unknown; choose one of {', '.join(OBJECTIVES)}")
    checks.temperature(temperature)
    options = {"temperature": temperature, "num_classes": num_classes, "axis_name": axis_name}
    made = OBJECTIVES[name](**options)
    if made.needs_classes and (num_classes or 0) < 2:
        free = [other for other, constructor in OBJECTIVES.items() if not constructor(**options).needs_classes]
        raise InputError(
            f"objective='{name}' needs images of two classes or more, and these have {num_classes or 'no labels'}; "
            f"give labeled images, or choose one of {', '.join(free)}"
        )
    if not negatives:
        return made
    if made.with_negatives is None:
        able = [other for other, constructor in OBJECTIVES.items() if constructor(**options).with_negatives]
        raise InputError(
            f"objective='{name}' has no use for negatives of their own, as {', '.join(able)} has; leave them out"
        )
    return made.with_negatives


def _everyone(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else lax.all_gather(rows, axis_name, tiled=True)


def _unit(z_x: Float[Array, "k d"], z_y: Float[Array, "k_y d_y"]) -> Float[Array, "m d"]:
    """This device's m = 2k embeddings, normalized, in float32 at least."""
    checks.views(z_x, z_y)
    return unit_rows(jnp.concatenate([z_x, z_y]))


def _scores(
    z: Float[Array, "m d"], others: Float[Array, "m d"], temperature: float | Float[Array, ""], axis_name: str | None
) -> tuple[Float[Array, "m n"], Int[Array, " m"]]:
    """Cosines over the temperature of this device's m rows with all devices' n others; and which n are its own."""
    checks.temperature(temperature)
    first = 0 if axis_name is None else len(z) * lax.axis_index(axis_name)
    return (z / temperature) @ _everyone(others, axis_name).T, first + jnp.arange(len(z))


def supcon(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    c_x: Int[Array, " k"],
    c_y: Int[Array, " k_y"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss L_out, in nats: all other views of a view's class are its positives.

    z_x, z_y: embeddings, normalized here. c_x, c_y: their classes. A view without a positive counts with 0.
    Raises InputError if the views differ in shape, or if the temperature is not a finite number above 0.
    Source: Khosla et al. 2020, Eq. 2.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, z, temperature, axis_name)
    classes = jnp.concatenate([c_x, c_y])
    others = own_columns[:, None] != jnp.arange(scores.shape[1])[None, :]
    positive = others & (classes[:, None] == _everyone(classes, axis_name)[None, :])
    positives = jnp.sum(positive, axis=1)
    score = jnp.sum(jnp.where(positive, scores, 0), axis=1) / jnp.maximum(positives, 1)
    losses = logsumexp(jnp.where(others, scores, -jnp.inf), axis=1) - score
    return jnp.mean(jnp.where(positives > 0, losses, 0))


def decoupled(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Decoupled contrastive loss, in nats: NT-Xent whose denominator leaves the positive out. It may be negative.

    z_x, z_y: embeddings, normalized here. Positives are not weighted (L_DC, not L_DCW).
    Raises InputError where all devices together have one pair, and as `supcon` does.
    Source: Yeh et al. 2022, section 3.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, z, temperature, axis_name)
    if scores.shape[1] == 2:
        raise InputError("objective='decoupled' has no negatives at k = 1; give 2 pairs or more")
    views = jnp.arange(scores.shape[1])[None, :]
    partner = views == jnp.roll(own_columns, len(z_x))[:, None]
    negative = ~partner & (views != own_columns[:, None])
    positives = jnp.sum(jnp.where(partner, scores, 0), axis=1)
    return jnp.mean(logsumexp(jnp.where(negative, scores, -jnp.inf), axis=1) - positives)


def nce(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    n_x: Float[Array, "k_n d_n"],
    n_y: Float[Array, "k_m d_m"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent whose negatives are images of their own, in nats; these may be of any distribution.

    n_x, n_y: embeddings of the negatives of all anchors, normalized here as z_x, z_y are. Anchors of pair i leave out
    n_x[i] and n_y[i], so that K pairs (of all devices) have 2K−2 negatives each, as in NT-Xent: of n = z it is that.
    Raises InputError as `supcon` does.
    Source: Lee et al. 2023, Eq. 2 and appendix C.
    """
    z = _unit(z_x, z_y)
    scores, own_columns = _scores(z, _unit(n_x, n_y), temperature, axis_name)
    k, column = len(z_x), jnp.arange(scores.shape[1])[None, :]
    left_out = (column == own_columns[:, None]) | (column == jnp.roll(own_columns, k)[:, None])
    positive = jnp.sum(z * jnp.roll(z, k, axis=0), axis=1) / temperature
    candidates = jnp.concatenate([positive[:, None], jnp.where(left_out, -jnp.inf, scores)], axis=1)
    return jnp.mean(logsumexp(candidates, axis=1) - positive)


def cross_entropy(
    z_x: Float[Array, "k c"], z_y: Float[Array, "k c"], c_x: Int[Array, " k"], c_y: Int[Array, " k"]
) -> Float[Array, ""]:
    """Cross-entropy of both views' classes, in nats. z_x, z_y: logits of the c classes, 0 to c − 1.

    Source: supervised learning, as in Lee et al. 2023, Table I; of turns, Gidaris et al. 2018, section 3.1, which shows
    all four of an image.
    """
    z = jnp.concatenate([z_x, z_y])
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    classes = jnp.concatenate([c_x, c_y])
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(z, classes))
