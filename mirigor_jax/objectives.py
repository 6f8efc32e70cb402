"""What an encoder is trained for: losses of the head's outputs for the views of k pairs, in nats.

Each is the mean over this device's 2k views, scored under `axis_name` against every device's, so that `pmean` over the
axis gives the global batch's value, and `pmean` of its gradients the global gradient (as in mi/contrastive.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent


@dataclass(frozen=True)
class Objective:
    """A loss, and what it asks of the head and of the batches.

    loss: (z_x, z_y, c_x, c_y) → nats, the mean over this device's views; the classes c are None where it needs none.
    labelled: batches have to bring the classes c_x, c_y. outputs: of the head; None: as many as the config says.
    negatives: batches have to bring images n_x, n_y, and the loss is of (z_x, z_y, z of n_x, z of n_y).
    turns: every view is turned by a random multiple of 90°, and how many of these is its class.
    bounds_mi: log(2k−1) − loss is the in-training MI (Lee et al. 2023, Eq. 4). It is for NT-Xent alone, which finds one
    partner among 2k−1 views: supcon has several, and a least loss of the log of their number; decoupled leaves the
    partner out of the candidates, and may be negative; the others find an image's class.
    """

    loss: Callable[..., Float[Array, ""]]
    labelled: bool = False
    negatives: bool = False
    outputs: int | None = None
    turns: bool = False
    bounds_mi: bool = False


def make(
    name: str, *, temperature: float, num_classes: int | None, axis_name: str | None, negatives: bool = False
) -> Objective:
    """The objective of that name. num_classes: that images can have; None where they have no labels.

    negatives: whether they are images of their own and not the batch's other pairs.
    Raises InputError for another name, where a labelled objective has fewer than two classes, and where an objective
    has no use for negatives of their own.
    """

    def unlabelled(loss):
        return lambda z_x, z_y, c_x, c_y: loss(z_x, z_y, temperature, axis_name=axis_name)

    objectives = {
        "simclr": Objective(unlabelled(nt_xent), bounds_mi=True),
        "supcon": Objective(partial(supcon, temperature=temperature, axis_name=axis_name), labelled=True),
        "decoupled": Objective(unlabelled(decoupled)),
        "cross_entropy": Objective(cross_entropy, labelled=True, outputs=num_classes),
        "rotation": Objective(cross_entropy, outputs=4, turns=True),
    }
    if name not in objectives:
        raise InputError(f"objective='{name}' is unknown; choose one of {', '.join(objectives)}")
    if objectives[name].labelled and (num_classes or 0) < 2:
        free = ", ".join(other for other, objective in objectives.items() if not objective.labelled)
        raise InputError(
            f"objective='{name}' needs images of two classes or more, and these have {num_classes or 'no labels'}; "
            f"give labelled images, or choose one of {free}"
        )
    if negatives and name != "simclr":
        raise InputError(f"objective='{name}' has no use for negatives of their own, as simclr has; leave them out")
    if negatives:
        return Objective(partial(nce, temperature=temperature, axis_name=axis_name), negatives=True)
    return objectives[name]


def _everyone(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else lax.all_gather(rows, axis_name, tiled=True)


def _unit(z_x: Float[Array, "k d"], z_y: Float[Array, "k d"]) -> Float[Array, "m d"]:
    """This device's m = 2k embeddings, normalised, in float32 at least."""
    z = jnp.concatenate([z_x, z_y])
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    # rsqrt of a clipped square keeps the gradient finite at z = 0, where sqrt's is not.
    return z * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=1, keepdims=True), 1e-24))


def _scores(
    z: Float[Array, "m d"], others: Float[Array, "m d"], temperature: float | Float[Array, ""], axis_name: str | None
) -> tuple[Float[Array, "m n"], Int[Array, " m"]]:
    """Cosines over the temperature of this device's m rows with all devices' n others; and which n are its own."""
    first = 0 if axis_name is None else len(z) * lax.axis_index(axis_name)
    return (z / temperature) @ _everyone(others, axis_name).T, first + jnp.arange(len(z))


def supcon(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k d"],
    c_x: Int[Array, " k"],
    c_y: Int[Array, " k"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss L_out, in nats: all other views of a view's class are its positives.

    z_x, z_y: embeddings, normalised here. c_x, c_y: their classes. A view without a positive counts with 0.
    Source: Khosla et al. 2020, Eq. 2.
    """
    z = _unit(z_x, z_y)
    scores, own = _scores(z, z, temperature, axis_name)
    classes = jnp.concatenate([c_x, c_y])
    others = own[:, None] != jnp.arange(scores.shape[1])[None, :]
    positive = others & (classes[:, None] == _everyone(classes, axis_name)[None, :])
    positives = jnp.sum(positive, axis=1)
    score = jnp.sum(jnp.where(positive, scores, 0), axis=1) / jnp.maximum(positives, 1)
    losses = logsumexp(jnp.where(others, scores, -jnp.inf), axis=1) - score
    return jnp.mean(jnp.where(positives > 0, losses, 0))


def decoupled(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k d"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Decoupled contrastive loss, in nats: NT-Xent whose denominator leaves the positive out. It may be negative.

    z_x, z_y: embeddings, normalised here. Positives are not weighted (L_DC, not L_DCW).
    Raises InputError where all devices together have one pair.
    Source: Yeh et al. 2022, section 3.
    """
    z = _unit(z_x, z_y)
    scores, own = _scores(z, z, temperature, axis_name)
    if scores.shape[1] == 2:
        raise InputError("objective='decoupled' has no negatives at k = 1; give 2 pairs or more")
    views = jnp.arange(scores.shape[1])[None, :]
    partner = views == jnp.roll(own, len(z_x))[:, None]
    negative = ~partner & (views != own[:, None])
    positives = jnp.sum(jnp.where(partner, scores, 0), axis=1)
    return jnp.mean(logsumexp(jnp.where(negative, scores, -jnp.inf), axis=1) - positives)


def nce(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k d"],
    n_x: Float[Array, "k d"],
    n_y: Float[Array, "k d"],
    temperature: float | Float[Array, ""],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent whose negatives are images of their own, in nats; these may be of any distribution.

    n_x, n_y: embeddings of the negatives of all anchors, normalised here as z_x, z_y are. Anchors of pair i leave out
    n_x[i] and n_y[i], so that K pairs (of all devices) have 2K−2 negatives each, as in NT-Xent: of n = z it is that.
    Source: Lee et al. 2023, Eq. 2 and appendix C.
    """
    z = _unit(z_x, z_y)
    scores, own = _scores(z, _unit(n_x, n_y), temperature, axis_name)
    k, column = len(z_x), jnp.arange(scores.shape[1])[None, :]
    left_out = (column == own[:, None]) | (column == jnp.roll(own, k)[:, None])
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
