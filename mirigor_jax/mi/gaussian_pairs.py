"""Gaussian V-information between the representations of several encoders, for all ordered pairs of them."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.mi.api import LEAST, as_rows
from mirigor_jax.mi.gaussian_usable import PENALTIES
from mirigor_jax.numerics import compact
from mirigor_jax.softmax import mean_and_scale

LEAST_WIDTH, STEP = 64, 256  # columns that representations are filled up to: powers of two, then multiples of STEP


def gaussian_v_shares(features: Mapping[str, Any]) -> Float[np.ndarray, "m m"]:
    """The share of each encoder's variance that linear maps of each other encoder predict, between 0 and 1 or below 0.

    Entry [a, b] is the `share` of `gaussian_v_information(h_a, h_b)`, on the same split of the rows and with the same
    penalties, without its interval. It is directed: a wide encoder may predict a narrow one, and not the reverse. It
    is too low in expectation, as each map is fitted on other rows. Columns of b with more variance count more.
    The second moments of three parts of the rows give each pair in closed form. Representations of similar width get
    columns of zeros up to one width, so few programs are compiled.
    features: name of an encoder → (n, d) numbers, an array of any framework. Row i of each is the same image. n is 110
        at least. The encoders must not have been trained on these images.
    Returns (m, m), with NaN on the diagonal, and in column b if h_b is constant.
    Raises InputError for fewer than two encoders, for different or too few rows, and as `gaussian_v_information` does.
    Source: Xu et al. 2020; Gosch 2020, eq. 14.
    """
    if len(features) < 2:
        raise InputError(f"{len(features)} encoder(s): expected two or more, as each is compared with the others")
    rows = {name: compact(as_rows(h, name, as_they_are=True)) for name, h in features.items()}
    sizes = {len(h) for h in rows.values()}
    if len(sizes) > 1:
        raise InputError(f"the encoders have {min(sizes):,} to {max(sizes):,} rows: expected the same images for all")
    (n,) = sizes
    if n < LEAST:
        raise InputError(f"{n} rows are too few to split into fit, validation and test parts; {LEAST} at least")
    parts = parts_of(np.zeros(n, int), row_keys(n))
    fitted = [_Standard.of(h, parts[0]) for h in rows.values()]
    shares = np.full((len(rows), len(rows)), np.nan)
    with jax.enable_x64(True):
        for a, source in enumerate(fitted):
            given = _source(*source.parts(parts))
            for b, target in enumerate(fitted):
                if a != b:
                    shares[a, b] = _share(given, target.parts(parts), target.weights)
    return shares


class _Standard(NamedTuple):
    """Rows with the mean and scale of their fit part, and the width that they are filled up to.

    weights: variance of each column on the fit part, as a share of all; the errors of standardized columns count by it.
    """

    h: Float[np.ndarray, "n d"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " w"]

    @classmethod
    def of(cls, h: Float[np.ndarray, "n d"], part: np.ndarray) -> "_Standard":
        mean, scale = mean_and_scale(h[part])
        d = h.shape[1]
        weights = np.zeros(max(LEAST_WIDTH, 1 << (d - 1).bit_length()) if d <= STEP else -(-d // STEP) * STEP)
        weights[:d] = (scale / scale.max()) ** 2
        return cls(h, mean, scale, weights / weights.sum())

    def parts(self, parts: Any) -> tuple[Float[np.ndarray, "m w"], ...]:
        """The standardized rows of each part, in float64 and with columns of zeros up to the width."""
        more = len(self.weights) - self.h.shape[1]
        return tuple(np.pad((self.h[part] - self.mean) / self.scale, ((0, 0), (0, more))) for part in parts)


class _Source(NamedTuple):
    """An encoder that predicts others: its rows along the axes of its covariance on the fit part.

    sizes: the covariance's eigenvalues. kept: those above the rounding error.
    fit, validation, test: rows. validation_moment, test_moment: mean products of these rows' coordinates.
    """

    sizes: Float[Array, " w"]
    kept: Bool[Array, " w"]
    fit: Float[Array, "f w"]
    validation: Float[Array, "v w"]
    test: Float[Array, "t w"]
    validation_moment: Float[Array, "w w"]
    test_moment: Float[Array, "w w"]


@jax.jit
def _source(fit: Float[Array, "f w"], validation: Float[Array, "v w"], test: Float[Array, "t w"]) -> _Source:
    sizes, axes = jnp.linalg.eigh(fit.T @ fit / len(fit))
    kept = sizes > max(fit.shape) * jnp.finfo(fit.dtype).eps * jnp.maximum(sizes[-1], 1.0)
    fit, validation, test = fit @ axes, validation @ axes, test @ axes
    return _Source(sizes, kept, fit, validation, test, *(rows.T @ rows / len(rows) for rows in (validation, test)))


@jax.jit
def _share(source: _Source, target: tuple[Float[Array, "_ w"], ...], weights: Float[Array, " w"]) -> Float[Array, ""]:
    """The share of the target's variance on the test part that the source's map predicts, which validation chooses."""
    fit, validation, test = target
    projected = source.fit.T @ fit / len(fit) * weights[None, :]
    products = projected @ (source.fit.T @ fit / len(fit)).T

    def error(rows: Float[Array, "m w"], of: Float[Array, "m w"], moment: Float[Array, "w w"], penalty: Any) -> Any:
        """Mean squared error of the map of this penalty, in closed form of the moments. An infinite one maps to 0."""
        factors = jnp.where(source.kept, 1 / (jnp.where(source.kept, source.sizes, 1.0) + penalty), 0.0)
        cross = jnp.sum(projected * (of.T @ rows / len(rows)), axis=1)
        return jnp.mean(rows**2, axis=0) @ weights - 2 * factors @ cross + factors @ (products * moment) @ factors

    penalties = jnp.asarray(PENALTIES)
    errors = jax.vmap(partial(error, validation, source.validation, source.validation_moment))(penalties)
    left = error(test, source.test, source.test_moment, penalties[jnp.argmin(errors)])
    total = jnp.var(test, axis=0, ddof=1) @ weights
    return jnp.where(total > 0, 1 - left / jnp.where(total > 0, total, 1.0), math.nan)
