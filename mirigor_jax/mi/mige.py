"""MIGE: the gradient of I(X;Y) with respect to whatever x and y depend on, from estimated scores.

A score is a gradient of a log density. The density's own parameters contribute nothing to the gradient of an entropy:
∇h(X) = −E[∇ log p(x) · ∂x]. As I = h(X) + h(Y) − h(X,Y), the gradient of I is E[g_x · ∂x + g_y · ∂y], where g_x and g_y
are the gradients of the log density ratio, log p(x,y) − log p(x) − log p(y), with respect to x and y. No density ratio,
no critic and no bound is needed.

Here every column is first mapped to a standard normal, smoothly, which leaves I as it is. The scores are those of a
Gaussian, plus an estimate of what it lacks by the spectral Stein gradient estimator (SSGE), one canonical pair of
coordinates at a time. A coefficient of this estimate counts only as far as it exceeds its own noise.

Source: Wen et al. 2020 (MIGE), Eq. 6 to 8; Shi et al. 2018 (SSGE), Eq. 5 and theorem 2.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from mirigor_jax.errors import InputError

CENTERS = 100  # quantiles of a column that its map to a standard normal is made from
NEIGHBORS = 2  # quantiles on each side whose distance sets the width of the map's steps
WIDTH = 2.0  # width of a step, in distances between neighboring quantiles
LANDMARKS = 60  # rows that the eigenfunctions are made from
LEAST_EIGENVALUE = 1e-5  # of the eigenfunctions in use, as a share of the largest: below it, float32 rounds
ROWS_PER_COLUMN = 2  # least number of rows for each column of x and y


def mige(x: Float[Array, "n dx"], y: Float[Array, "n dy"], *, axis_name: str | None = None) -> Float[Array, ""]:
    """A loss whose gradient estimates −∇I(X;Y), in nats: who minimizes it maximizes I.

    Only the gradient is MIGE's. The value is −I of the Gaussian copula, for a look at the training; it is no bound, and
    its own gradient is another one.
    x, y: pairs of rows, both with a density: I is infinite if x is a one-to-one function of y, so add noise.
    axis_name: the mapped axis that the rows are spread over; scores then come from the rows of all devices. None: one
        device.
    Raises InputError as `density_ratio_gradients` does.
    Source: Wen et al. 2020, Eq. 8.
    """
    rows = [lax.stop_gradient(one.astype(jnp.promote_types(one.dtype, jnp.float32))) for one in (x, y)]
    if axis_name is not None:
        rows = [lax.all_gather(one, axis_name, tiled=True) for one in rows]
    slopes, gaussian_nats = _fit(*rows)
    if axis_name is not None:
        first = len(x) * lax.axis_index(axis_name)
        slopes = jax.tree.map(lambda one: lax.dynamic_slice_in_dim(one, first, len(x)), slopes)
    along = sum(jnp.sum(one * rows) for one, rows in zip(slopes, (x, y), strict=True)) / len(x)
    return lax.stop_gradient(along - gaussian_nats) - along


def density_ratio_gradients(
    x: Float[Array, "n dx"], y: Float[Array, "n dy"]
) -> tuple[Float[Array, "n dx"], Float[Array, "n dy"]]:
    """The gradients of log p(x,y) − log p(x) − log p(y) at each pair, with respect to x and to y.

    x, y: pairs of rows, independent draws, in any order.
    Raises InputError if x and y differ in their numbers of rows, or if there are fewer than two rows for each column.
    """
    return _fit(x, y)[0]


def _fit(
    x: Float[Array, "n dx"], y: Float[Array, "m dy"]
) -> tuple[tuple[Float[Array, "n dx"], Float[Array, "m dy"]], Float[Array, ""]]:
    """(`density_ratio_gradients`, I of the Gaussian copula in nats)."""
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} rows and y has {len(y)}: expected one row of y for each row of x")
    columns = x.shape[1] + y.shape[1]
    if len(x) < ROWS_PER_COLUMN * columns:
        raise InputError(
            f"{len(x)} pairs of {columns} columns: MIGE needs at least {ROWS_PER_COLUMN * columns}; give more pairs "
            "(train.k, in a run) or fewer columns (head.features)"
        )
    (u, u_slopes), (v, v_slopes) = _normal_scores(x), _normal_scores(y)
    white_u, white_v = _whitening(u), _whitening(v)
    left, rho, right = jnp.linalg.svd((u @ white_u).T @ (v @ white_v) / len(u), full_matrices=False)
    to_a, to_b, rho = white_u @ left, white_v @ right.T, jnp.clip(rho, 0, 0.9999)
    a, b = u @ to_a, v @ to_b
    r = rho[None, :]
    g_a, g_b = r * (b - r * a) / (1 - r**2), r * (a - r * b) / (1 - r**2)
    # One pair after the other: on CPUs, batched eigendecompositions in one program can wait for each other forever.
    rest_a, rest_b = lax.map(lambda pair: _beyond_gaussian(*pair), (a.T, b.T, g_a.T, g_b.T))
    slopes = ((g_a + rest_a.T) @ to_a.T * u_slopes, (g_b + rest_b.T) @ to_b.T * v_slopes)
    return slopes, -0.5 * jnp.sum(jnp.log1p(-(rho**2)))


def _normal_scores(rows: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """(each column mapped to about a standard normal and centered, the map's slopes).

    The map is the normal quantile of a smooth distribution function: the mean of normal ones at the column's quantiles,
    as wide as these are apart, so that tails are as smooth as the middle.
    A value far beyond the largest quantile still has a large score: at a kurtosis of thousands, take logarithms first.
    A column of equal values has scores and slopes of 0, as nothing can be said of its density.
    """
    count = min(len(rows), CENTERS)
    centers = jnp.quantile(rows, (jnp.arange(count) + 0.5) / count, axis=0)
    above = jnp.minimum(jnp.arange(count) + NEIGHBORS, count - 1)
    below = jnp.maximum(jnp.arange(count) - NEIGHBORS, 0)
    widths = WIDTH * (centers[above] - centers[below]) / (above - below)[:, None]
    # Equal values have steps of width 0.
    least = 1e-2 * jnp.std(rows, axis=0) + 1e-6 * jnp.max(jnp.abs(rows), axis=0) + 1e-30

    def column(values, centers, widths):
        def score(values):
            z = (values[:, None] - centers[None, :]) / widths[None, :]
            # Each tail from its own side, because 1 − p is rounded where p is close to 1.
            lower, upper = jnp.mean(ndtr(z), axis=1), jnp.mean(ndtr(-z), axis=1)
            # Not minimum: where both are equal, it has the mean of their slopes, which is 0.
            score = ndtri(jnp.maximum(jnp.where(lower < upper, lower, upper), 1e-30))
            return jnp.where(lower < upper, score, -score)

        return jax.jvp(score, (values,), (jnp.ones_like(values),))

    scores, slopes = jax.vmap(column, in_axes=1, out_axes=1)(rows, centers, jnp.maximum(widths, least[None, :]))
    varies = (jnp.max(rows, axis=0) > jnp.min(rows, axis=0))[None, :]
    return jnp.where(varies, scores - jnp.mean(scores, axis=0, keepdims=True), 0), jnp.where(varies, slopes, 0)


def _whitening(rows: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """A matrix that maps rows of mean 0 to uncorrelated coordinates of variance 1."""
    values, vectors = jnp.linalg.eigh(rows.T @ rows / len(rows))
    return vectors / jnp.sqrt(jnp.maximum(values, 1e-5 * values[-1] + 1e-30))[None, :]


def _beyond_gaussian(
    a: Float[Array, " n"], b: Float[Array, " n"], g_a: Float[Array, " n"], g_b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """What the gradients of the log density ratio of one canonical pair (a, b) have beyond the Gaussian's, g_a and g_b.

    The scores of a and b alone come first, and the joint score is what they and the Gaussian's gradients leave. So if
    nothing exceeds its noise, the gradients are the Gaussian's.
    """
    both = jnp.stack([a, b], axis=1)
    alone = jnp.stack([-row + spectral_score(row[:, None], -row[:, None])[:, 0] for row in (a, b)], axis=1)
    rest = spectral_score(both, alone + jnp.stack([g_a, g_b], axis=1))
    return rest[:, 0], rest[:, 1]


def spectral_score(
    rows: Float[Array, "n m"], base: Float[Array, "n m"], *, landmarks: int = LANDMARKS
) -> Float[Array, "n m"]:
    """The score of p(rows) less a base, expanded in eigenfunctions of a Gaussian kernel (SSGE).

    A coefficient is −E[∂ψ + base·ψ] for an eigenfunction ψ. It shrinks by the factor 1 − 2 log(their number)/z², for z
    in its own standard errors, and to 0 if this is negative.
    base: a score that is known. With 0, all of the score is estimated.
    landmarks: rows that the eigenfunctions are made from (Nyström). With n, they are Shi et al.'s.
    Source: Shi et al. 2018, Eq. 5 and theorem 2; shrinkage, Gao 1998 (the nonnegative garrote) at the universal
    threshold of Donoho & Johnstone 1994.
    """
    n = len(rows)
    centers = rows[:: max(1, n // landmarks)][:landmarks]
    width = jnp.maximum(jnp.median(_squares(centers, centers)) / 2, 1e-12)
    kernel = jnp.exp(-_squares(rows, centers) / (2 * width))
    values, vectors = jnp.linalg.eigh(kernel.T @ kernel / n)
    in_use = values > LEAST_EIGENVALUE * values[-1]
    to_psi = vectors * jnp.where(in_use, 1 / jnp.sqrt(jnp.where(in_use, values, 1)), 0)[None, :]
    psi = kernel @ to_psi
    threshold = 2 * jnp.log(jnp.sum(in_use) * rows.shape[1])

    def column(values, centers, base):
        slopes = ((centers[None, :] - values[:, None]) / width * kernel) @ to_psi
        terms = -(slopes + base[:, None] * psi)
        mean, variance = jnp.mean(terms, axis=0), jnp.var(terms, axis=0) / n
        return psi @ (mean * jnp.maximum(0, 1 - threshold * variance / jnp.maximum(mean**2, 1e-30)))

    return jax.vmap(column, in_axes=1, out_axes=1)(rows, centers, base)


def _squares(rows: Float[Array, "n m"], others: Float[Array, "l m"]) -> Float[Array, "n l"]:
    """Squared distances."""
    return jnp.sum((rows[:, None, :] - others[None, :, :]) ** 2, axis=2)
