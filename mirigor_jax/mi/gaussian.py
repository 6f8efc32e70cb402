"""The Gaussian copula of two arrays: their columns' normal scores, and the density ratio that critics start from."""

import math
from collections.abc import Sequence

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


def gaussian_copula_embeddings(
    x: Sequence[Float[np.ndarray, "_ p"]], y: Sequence[Float[np.ndarray, "_ q"]]
) -> tuple[tuple[Float[np.ndarray, "_ r"], ...], tuple[Float[np.ndarray, "_ r"], ...]]:
    """u and v of every part: u·v is the log density ratio of a Gaussian copula, from which critics start.

    In canonical coordinates (a, b) with correlations ρ it is Σ −½ log(1−ρ²) + (ρ a b − ½ ρ² (a² + b²)) / (1−ρ²).
    The directions come from the fit part. Their correlations come from the validation part, because there a direction
    that only fits noise shows none. Each correlation is shrunk, the more so the closer it is to that part's own noise.
    All are then multiplied by the factor that gives the best InfoNCE on that part.
    Source: Hotelling 1936 (canonical correlations); Cover & Thomas 2006, theorem 8.4.1; James & Stein 1961 (shrinkage).
    """
    white_x, white_y = whitening(x[0]), whitening(y[0])
    left, _, right = np.linalg.svd(white_x.T @ (x[0].T @ y[0] / len(x[0])) @ white_y, full_matrices=False)
    a = [rows @ (white_x @ left[:, :RANK]) for rows in x]
    b = [rows @ (white_y @ right[:RANK].T) for rows in y]
    scale = np.sqrt(np.mean(a[1] ** 2, axis=0) * np.mean(b[1] ** 2, axis=0))
    seen = np.clip(np.mean(a[1] * b[1], axis=0) / np.where(scale > 0, scale, 1), 1e-6, 0.9999)
    seen = seen * np.maximum(0, 1 - 2 / (len(a[1]) * seen**2))

    def embed(rho: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gain = rho / (1 - rho**2)
        bias_a = -0.5 * (np.log1p(-(rho**2)).sum() + rows_a**2 @ (rho * gain))[:, None]
        bias_b = -0.5 * (rows_b**2 @ (rho * gain))[:, None]
        u = np.hstack([rows_a * np.sqrt(gain)[None, :], bias_a, np.ones_like(bias_a)])
        v = np.hstack([rows_b * np.sqrt(gain)[None, :], np.ones_like(bias_b), bias_b])
        return u.astype(np.float32), v.astype(np.float32)

    def validated(factor: float) -> float:
        u, v = embed(factor * seen, a[1][:500], b[1][:500])
        # The correlations were measured on these same rows, so each one costs a penalty (Schwarz 1978).
        price = np.count_nonzero(factor * seen) * math.log(len(a[1])) / (2 * len(a[1]))
        return float(symmetric_info_nce((u @ v.T)[None])[0]) - price

    best = max((1.0, 0.95, 0.8, 0.5, 0.0), key=validated)
    u, v = zip(*(embed(best * seen, *rows) for rows in zip(a, b, strict=True)), strict=True)
    return u, v


def whitening(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d r"]:
    """A matrix that maps rows of mean 0 to uncorrelated coordinates of variance 1, in directions of most variance."""
    n, d = rows.shape
    covariance = rows.T @ rows / n
    shrink = d / (n + d)  # the fewer the rows, the more their covariance is shrunk
    values, vectors = np.linalg.eigh((1 - shrink) * covariance + shrink * np.trace(covariance) / d * np.eye(d))
    values, vectors = values[::-1][:RANK], vectors[:, ::-1][:, :RANK]
    return vectors / np.sqrt(np.maximum(values, 1e-12))[None, :]
