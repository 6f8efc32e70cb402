"""NT-Xent and InfoNCE as functions of embeddings: what training and the critic's fit minimise.

Both take this device's rows and, under `axis_name`, score them against the gathered rows of every device. They return
the mean over this device's anchors, so `pmean` over the axis gives the global batch's value, and `pmean` of its
gradients the global gradient (the transpose of `all_gather` brings home what other devices' anchors owe to these rows).
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

Scalar = TypeVar("Scalar", float, Array)


def _normalize(z: Float[Array, "n d"]) -> Float[Array, "n d"]:
    # rsqrt of a clipped square keeps the gradient finite at z = 0, where sqrt's is not.
    return z * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=1, keepdims=True), 1e-24))


def _gather(z: Float[Array, "n d"], axis_name: str | None) -> tuple[Float[Array, "m d"], Int[Array, " n"]]:
    """All devices' rows, and where this device's own rows stand among them."""
    rows = jnp.arange(z.shape[0])
    if axis_name is None:
        return z, rows
    return lax.all_gather(z, axis_name, tiled=True), rows + lax.axis_index(axis_name) * z.shape[0]


def _log_normalizer(
    anchors: Float[Array, "n d"],
    candidates: Float[Array, "m d"],
    excluded: Int[Array, " n"] | None,
    block: int | None,
) -> Float[Array, " n"]:
    """log Σ_j e^{anchor·candidate_j} for each anchor, leaving out candidate `excluded[i]` for anchor i."""
    precision = jnp.promote_types(anchors.dtype, jnp.float32)

    def one(anchor, skip=None):
        scores = jnp.matmul(candidates, anchor, preferred_element_type=precision)
        return logsumexp(scores if skip is None else jnp.where(jnp.arange(len(scores)) == skip, -jnp.inf, scores))

    rows = (anchors,) if excluded is None else (anchors, excluded)
    if block is None:
        return jax.vmap(one)(*rows)
    return lax.map(jax.checkpoint(lambda row: one(*row)), rows, batch_size=block)


def _cross_entropy(anchors, positives, candidates, excluded, block) -> Float[Array, " n"]:
    log_normalizer = _log_normalizer(anchors, candidates, excluded, block)
    return log_normalizer - jnp.sum(anchors * positives, axis=1, dtype=log_normalizer.dtype)


def nt_xent(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k d"],
    temperature: float | Float[Array, ""],
    *,
    block: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent over the 2k embeddings of k positive pairs, in nats: mean over all 2k anchors.

    An anchor's candidates are its positive and both views of the other pairs, itself excluded: 2k−1 terms.
    z_x, z_y: embeddings, normalised here (cosine similarity). block: anchors scored at a time, all at once when None.
    axis_name: the mapped axis whose devices share their embeddings.
    Source: Lee et al. 2023, Eq. 2–3 (Chen et al. 2020).
    """
    z_x, z_y = _normalize(z_x), _normalize(z_y)
    all_x, rows = _gather(z_x, axis_name)
    all_y, _ = _gather(z_y, axis_name)
    anchors = jnp.concatenate([z_x, z_y]) / jnp.asarray(temperature, z_x.dtype)
    positives = jnp.concatenate([z_y, z_x])
    candidates = jnp.concatenate([all_x, all_y])
    itself = jnp.concatenate([rows, rows + all_x.shape[0]])
    return jnp.mean(_cross_entropy(anchors, positives, candidates, itself, block))


def nt_xent_mi(loss_nats: Scalar, k: int) -> Scalar:
    """The estimate log(2k−1) − L, in nats, that NT-Xent's loss over k pairs stands for; at most log(2k−1).

    Not a lower bound of I(X;Y): it can exceed it by up to log((2k−1)/k), because negatives come in dependent pairs and
    half of them from the anchor's own view. `info_nce_embeddings` is the bound.
    Source: Lee et al. 2023, Eq. 4.
    """
    return math.log(2 * k - 1) - loss_nats


def info_nce_embeddings(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k d"],
    *,
    block: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Strict InfoNCE with scores z_x·z_y, in nats: a lower bound of I(X;Y), at most log k.

    The mean of both directions, each with the k candidates of the other view alone. Embeddings are taken as they are:
    divide one side by a temperature for cosine critics. block, axis_name: as in `nt_xent`.
    Source: Poole et al. 2019, eq. 10.
    """
    all_x, _ = _gather(z_x, axis_name)
    all_y, _ = _gather(z_y, axis_name)
    forward = jnp.mean(_cross_entropy(z_x, z_y, all_y, None, block))
    backward = jnp.mean(_cross_entropy(z_y, z_x, all_x, None, block))
    return math.log(all_x.shape[0]) - 0.5 * (forward + backward)
