"""Losses of two views without negatives: Barlow Twins, VICReg, BYOL and SwAV, and the modules that they train.

Their values have no unit. Sums and means over a batch span the devices of `axis_name`, so each device has the loss of
the global batch, or its own share of the mean.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mirigor_jax import checks
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import unit_rows

LEAST_VARIANCE = 1e-5  # added to variances by Barlow Twins, as BatchNorm in its authors' code does
LEAST_VARIANCE_VICREG = 1e-4  # ε of Bardes et al. 2022, Eq. 2
SHARPNESS, ITERATIONS = 0.05, 3  # ε of Caron et al. 2020, Eq. 3, and their number of Sinkhorn iterations


def _float(rows: Array) -> Array:
    """The rows in float32 or more."""
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def _mean(rows: Float[Array, "k d"], axis_name: str | None) -> Float[Array, "1 d"]:
    """The mean over the rows of all devices, which have equally many."""
    own = jnp.mean(rows, axis=0, keepdims=True)
    return own if axis_name is None else lax.pmean(own, axis_name)


def _covariance(x: Float[Array, "k d"], y: Float[Array, "k d"], axis_name: str | None) -> Float[Array, "d d"]:
    """The mean of x yᵀ over the rows of all devices. x, y: rows whose mean is 0."""
    own = x.T @ y / len(x)
    return own if axis_name is None else lax.pmean(own, axis_name)


def _off_diagonal(squares: Float[Array, "d d"]) -> Float[Array, ""]:
    return jnp.sum(squares) - jnp.trace(squares)


def barlow_twins(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    *,
    redundancy: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The distance of the views' cross-correlation matrix from the identity: Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij².

    z_x, z_y: embeddings. Each coordinate is centered and divided by its standard deviation in the batch, without
        Bessel's correction, so that equal views have C_ii = 1.
    redundancy: λ.
    Raises InputError if the views differ in shape.
    Source: Zbontar et al. 2021, Eq. 1 and 2.
    """
    checks.views(z_x, z_y)

    def standardized(z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        z = _float(z)
        centered = z - _mean(z, axis_name)
        return centered * lax.rsqrt(_mean(centered**2, axis_name) + LEAST_VARIANCE)

    correlations = _covariance(standardized(z_x), standardized(z_y), axis_name)
    return jnp.sum((1 - jnp.diag(correlations)) ** 2) + redundancy * _off_diagonal(correlations**2)


def vicreg(
    z_x: Float[Array, "k d"],
    z_y: Float[Array, "k_y d_y"],
    *,
    weights: tuple[float, ...],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """λ s(Z, Z') + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z')): invariance, variance and covariance.

    s is the mean squared difference of a coordinate, and v the mean over coordinates of max(0, 1 − standard deviation).
    c is the sum of the squared covariances of different coordinates, divided by d. Variances and covariances have
    Bessel's correction. Eq. 5 sums s over the coordinates, but the paper's weights belong to their mean, as in its
    algorithm 1. The authors' code also halves v, so its μ is twice ours.
    z_x, z_y: embeddings.
    weights: λ, μ and ν.
    Raises InputError if the views differ in shape, or if all devices together have only one pair.
    Source: Bardes et al. 2022, Eq. 1 to 6 and algorithm 1.
    """
    checks.views(z_x, z_y)
    views = [_float(z) for z in (z_x, z_y)]
    pairs = len(z_x) * (1 if axis_name is None else lax.axis_size(axis_name))
    if pairs == 1:
        raise InputError("objective='vicreg' has no variance at k = 1; give 2 pairs or more")
    correction = pairs / (pairs - 1)
    variances, covariances = [], []
    for z in views:
        centered = z - _mean(z, axis_name)
        spread = correction * _covariance(centered, centered, axis_name)
        deviations = jnp.sqrt(jnp.diag(spread) + LEAST_VARIANCE_VICREG)
        variances.append(jnp.mean(jnp.maximum(0, 1 - deviations)))
        covariances.append(_off_diagonal(spread**2) / len(spread))
    invariance = jnp.mean(_mean((views[0] - views[1]) ** 2, axis_name))
    terms = invariance, variances[0] + variances[1], covariances[0] + covariances[1]
    return weights[0] * terms[0] + weights[1] * terms[1] + weights[2] * terms[2]


class Predictor(nn.Module):
    """BYOL's predictor: rows (n, d) → predictions (n, d) of the target network's rows.

    Its hidden layer has twice as many units as there are outputs. Like the head, and unlike the authors' predictor, it
    has no BatchNorm.
    Source: Grill et al. 2020, section 3.1 and 3.2.
    """

    @nn.compact
    def __call__(self, z: Float[Array, "n d"]) -> Float[Array, "n d"]:
        d = z.shape[-1]
        dtype = jnp.promote_types(z.dtype, jnp.float32)
        hidden = nn.relu(nn.Dense(2 * d, dtype=dtype, param_dtype=dtype)(z))
        return nn.Dense(d, dtype=dtype, param_dtype=dtype)(hidden)


def byol(
    q_x: Float[Array, "k d"],
    q_y: Float[Array, "k_y d_y"],
    slow_x: Float[Array, "k d"],
    slow_y: Float[Array, "k d"],
) -> Float[Array, ""]:
    """‖q_x − z'_y‖² + ‖q_y − z'_x‖² of rows of length 1, the mean over pairs.

    q_x, q_y: the predictor's outputs; this function normalizes all four arrays.
    slow_x, slow_y: the target network's outputs z' for the same views. No gradient passes through them.
    Raises InputError if the views differ in shape.
    Source: Grill et al. 2020, Eq. 2 and the symmetric loss below it.
    """
    checks.views(q_x, q_y)
    q, z = (unit_rows(jnp.concatenate(rows)) for rows in ((q_x, q_y), (slow_y, slow_x)))
    return 2 * jnp.mean(jnp.sum((q - lax.stop_gradient(z)) ** 2, axis=1))


def target_share(step: Array, *, decay: float, steps: int) -> Float[Array, ""]:
    """The share τ of the target network's weights that stays at an update; it rises from `decay` to 1 along a cosine.

    step: the number of updates so far, of `steps`.
    Source: Grill et al. 2020, section 3.2: τ = 1 − (1 − τ_base)(cos(πk/K) + 1)/2.
    """
    return 1 - (1 - decay) * (jnp.cos(jnp.pi * jnp.minimum(step, steps) / max(steps, 1)) + 1) / 2


class Prototypes(nn.Module):
    """SwAV's prototypes: rows (n, d) → cosines (n, number) with each prototype.

    The authors normalize the prototypes after each update; here their direction alone is learned, which gives the same
    scores. They keep them fixed in the first epoch, which this module does not.
    Source: Caron et al. 2020, section 3.1.
    """

    number: int

    @nn.compact
    def __call__(self, z: Float[Array, "n d"]) -> Float[Array, "n p"]:
        shape, dtype = (self.number, z.shape[-1]), jnp.promote_types(z.dtype, jnp.float32)
        prototypes: Array = self.param("prototypes", nn.initializers.normal(1.0), shape, dtype)
        return unit_rows(z) @ unit_rows(prototypes).T


def swav(
    scores_x: Float[Array, "k p"],
    scores_y: Float[Array, "k_y p_y"],
    *,
    temperature: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Swapped prediction: the cross-entropy, in nats, of each view's assignment under the other view's scores.

    The mean over the 2k views. There are no further small crops and no queue of earlier batches.
    scores_x, scores_y: cosines of the views with the prototypes, as `Prototypes` gives them.
    temperature: of the predictions.
    Raises InputError if the views differ in shape.
    Source: Caron et al. 2020, Eq. 1 and 2.
    """
    checks.views(scores_x, scores_y)
    checks.temperature(temperature)
    views = [_float(scores) for scores in (scores_x, scores_y)]
    predicted = [jax.nn.log_softmax(scores / temperature) for scores in views]
    wanted = [lax.stop_gradient(sinkhorn(scores, axis_name=axis_name)) for scores in views]
    swapped = jnp.stack([wanted[1] * predicted[0], wanted[0] * predicted[1]])
    return -jnp.mean(jnp.sum(swapped, axis=2))


def sinkhorn(scores: Float[Array, "k p"], *, axis_name: str | None = None) -> Float[Array, "k p"]:
    """Soft assignments of the rows to prototypes, so that every prototype gets about as much of the global batch.

    scores: cosines of the rows with the prototypes.
    Returns a distribution over the prototypes for each row.
    Source: Caron et al. 2020, Eq. 3 to 5, with three iterations.
    """
    q = jnp.exp((scores - 1) / SHARPNESS)  # at most 1, and at least e^-40
    for _ in range(ITERATIONS):
        q = q / _mean(q, axis_name)
        q = q / jnp.sum(q, axis=1, keepdims=True)
    return q
