"""Variational bounds of mutual information as functions of a score matrix: row i scores x_i against every y_j. Nats."""

import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float


def info_nce(scores: Float[Array, "k k"]) -> Float[Array, ""]:
    """Strict InfoNCE lower bound of I(X;Y), in nats; at most log k.

    scores: row i scores x_i against every y_j; the diagonal holds the positives. Negatives come from the other view
    alone, which is what makes it a bound for every critic.
    Source: Poole et al. 2019, eq. 10.
    """
    positives = jnp.diagonal(scores)
    return jnp.log(scores.shape[0]) + jnp.mean(positives - logsumexp(scores, axis=1))


def info_nce_symmetric(scores: Float[Array, "k k"]) -> Float[Array, ""]:
    """The mean of InfoNCE over rows and over columns, in nats: each direction is a bound, so their mean is one."""
    return 0.5 * (info_nce(scores) + info_nce(scores.T))
