"""The Gaussian copula of two arrays: their columns' normal scores, and the density ratio that critics start from."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from mirigor_jax.mi.read import symmetric_info_nce

RANK = 256  # largest number of canonical directions in the density ratio


def normal_scores(parts: Sequence[Float[np.ndarray, "_ d"]]) -> tuple[Float[np.ndarray, "_ d"], ...]:
    """Map every column to a standard normal by the fit part's ranks. The maps are monotonic, so I does not change."""
    scores = [np.empty(part.shape) for part in parts]
    for column in range(parts[0].shape[1]):
        values, counts = np.unique(parts[0][:, column], return_counts=True)
        normal = ndtri((np.cumsum(counts) - 0.5 * counts) / len(parts[0]))
        for score, part in zip(scores, parts, strict=True):
            score[:, column] = np.interp(part[:, column], values, normal)
    return tuple(scores)


def features(
    scores: Sequence[Float[np.ndarray, "_ d"]], parts: Sequence[Float[np.ndarray, "_ d"]]
) -> tuple[Float[np.ndarray, "_ p"], ...]:
    """The columns that critics read: normal scores, asinh of robustly scaled values, and the length of the scores.

    Values keep edges straight, scores keep tails short, and heavy-tailed distributions make lengths dependent.
    """

    by = center_and_spread(parts[0])

    def rows(score, part):
        values = squash(part, *by)
        length = (np.mean(score**2, axis=1, keepdims=True) - 1) * math.sqrt(score.shape[1] / 2)
        return np.hstack([score, values, length]).astype(np.float32)

    return tuple(map(rows, scores, parts))


def center_and_spread(rows: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Each column's median, and its standard deviation estimated from its quartiles; 1 if the column is constant."""
    low, center, high = np.percentile(rows, [25, 50, 75], axis=0)
    spread = (high - low) / 1.349
    spread = np.where(spread > 0, spread, rows.std(axis=0))
    return center, np.where(spread > 0, spread, 1.0)


def squash(
    rows: Float[np.ndarray, "n d"], center: Float[np.ndarray, " d"], spread: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """asinh of centered and scaled columns: a one-to-one map that shortens tails."""
    return 2 * np.arcsinh((rows - center[None, :]) / spread[None, :] / 2)


class Copula(NamedTuple):
    """The Gaussian copula of x and y in canonical coordinates, in which only a_i and b_i of the same i are correlated.

    a, b: each part's coordinates of x and of y. rho: the correlation of a_i and b_i, for the first r of them.
    """

    a: tuple[Float[np.ndarray, "_ p"], ...]
    b: tuple[Float[np.ndarray, "_ q"], ...]
    rho: Float[np.ndarray, " r"]


def gaussian_copula(x: Sequence[Float[np.ndarray, "_ p"]], y: Sequence[Float[np.ndarray, "_ q"]]) -> Copula:
    """The Gaussian copula of normal scores x and y, each in three parts: fit, validation and test.

    The directions come from the fit part. Their correlations come from the validation part, because there a direction
    that only fits noise shows none. Each correlation is shrunk, the more so the closer it is to that part's own noise.
    All are then multiplied by the factor that gives the best InfoNCE on that part.
    Source: Hotelling 1936 (canonical correlations); James & Stein 1961 (shrinkage).
    """
    white_x, white_y = whitening(x[0]), whitening(y[0])
    left, _, right = np.linalg.svd(white_x.T @ (x[0].T @ y[0] / len(x[0])) @ white_y)
    to_a, to_b = white_x @ left, white_y @ right.T
    a, b = tuple(rows @ to_a for rows in x), tuple(rows @ to_b for rows in y)
    r = min(len(left), len(right))
    a_held, b_held = a[1][:, :r], b[1][:, :r]
    scale = np.sqrt(np.mean(a_held**2, axis=0) * np.mean(b_held**2, axis=0))
    seen = np.clip(np.mean(a_held * b_held, axis=0) / np.where(scale > 0, scale, 1), 1e-6, 0.9999)
    seen = seen * np.maximum(0, 1 - 2 / (len(a_held) * seen**2))

    def validated(factor: float) -> float:
        u, v = _embed(factor * seen, a_held[:500], b_held[:500])
        # The correlations were measured on these same rows, so each one costs a penalty (Schwarz 1978).
        price = np.count_nonzero(factor * seen) * math.log(len(a_held)) / (2 * len(a_held))
        return float(symmetric_info_nce((u @ v.T)[None])[0]) - price

    return Copula(a, b, max((1.0, 0.95, 0.8, 0.5, 0.0), key=validated) * seen)


def gaussian_copula_embeddings(
    x: Sequence[Float[np.ndarray, "_ p"]], y: Sequence[Float[np.ndarray, "_ q"]]
) -> tuple[tuple[Float[np.ndarray, "_ r"], ...], tuple[Float[np.ndarray, "_ r"], ...]]:
    """u and v of every part: u·v is the log density ratio of a Gaussian copula, from which critics start."""
    a, b, rho = gaussian_copula(x, y)
    u, v = zip(*(_embed(rho, *rows) for rows in zip(a, b, strict=True)), strict=True)
    return u, v


def _embed(
    rho: Float[np.ndarray, " r"], a: Float[np.ndarray, "n p"], b: Float[np.ndarray, "n q"]
) -> tuple[Float[np.ndarray, "n s"], Float[np.ndarray, "n s"]]:
    """u and v of canonical coordinates: u·v = Σ −½ log(1−ρ²) + (ρ a b − ½ ρ² (a² + b²)) / (1−ρ²).

    Source: Cover & Thomas 2006, theorem 8.4.1.
    """
    a, b = a[:, : len(rho)], b[:, : len(rho)]
    gain = rho / (1 - rho**2)
    bias_a = -0.5 * (np.log1p(-(rho**2)).sum() + a**2 @ (rho * gain))[:, None]
    bias_b = -0.5 * (b**2 @ (rho * gain))[:, None]
    u = np.hstack([a * np.sqrt(gain)[None, :], bias_a, np.ones_like(bias_a)])
    v = np.hstack([b * np.sqrt(gain)[None, :], np.ones_like(bias_b), bias_b])
    return u.astype(np.float32), v.astype(np.float32)


def whitening(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d r"]:
    """A matrix that maps rows of mean 0 to uncorrelated coordinates of variance 1, in directions of most variance."""
    n, d = rows.shape
    covariance = rows.T @ rows / n
    shrink = d / (n + d)  # the fewer the rows, the more their covariance is shrunk
    values, vectors = np.linalg.eigh((1 - shrink) * covariance + shrink * np.trace(covariance) / d * np.eye(d))
    values, vectors = values[::-1][:RANK], vectors[:, ::-1][:, :RANK]
    return vectors / np.sqrt(np.maximum(values, 1e-12))[None, :]
