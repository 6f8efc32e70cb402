"""Metrics of the spectrum of representations: RankMe, α-ReQ, participation ratio, stable rank, and LiDAR.

They need no labels. `Spectrum.of` decomposes the rows once for all metrics that read it, those in transfer.py too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mirigor_jax import checks
from mirigor_jax.errors import InputError
from mirigor_jax.numerics import CHUNK

EPSILON = 1e-7  # of RankMe and LiDAR, added to each share so that its logarithm exists
DELTA = 1e-4  # of LiDAR, added to the variances within images
FIRST, LAST = 10, 100  # the eigenvalues that α-ReQ fits, counted from 1
FEWEST = 11  # of them that it needs
ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of a QR decomposition, as a share of the matrix's norm


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of representations h, raw and centered. They are those of h / scale, which can't overflow.

    h: (n, d). The representations.
    scale: the largest absolute value in h; 1 if all are 0.
    mean: (d,). Mean of the rows of h / scale.
    singular: (r,). Singular values of h / scale, from the largest; r = min(n, d).
    right: (r, d). Its right singular vectors, as rows.
    variances: (s,). Eigenvalues of the covariance of h / scale (divided by n), from the largest; s = min(n - 1, d).
    axes: (s, d). The covariance's eigenvectors, as rows.
    rounding: singular values of this size or below are no larger than the error of rounding h to its dtype.
    """

    h: Float[Any, "n d"]
    scale: float
    mean: Float[np.ndarray, " d"]
    singular: Float[np.ndarray, " r"]
    right: Float[np.ndarray, "r d"]
    variances: Float[np.ndarray, " s"]
    axes: Float[np.ndarray, "s d"]
    rounding: float

    @classmethod
    def of(cls, h: Float[Any, "n d"]) -> "Spectrum":
        """Decompose representations h (n, d), in float64, with a copy of a few thousand rows at a time.

        A QR decomposition of the rows with a first column of ones gives a triangle of d + 1 rows. Without its first
        column it has the singular values of the rows; without its first row too, those of the centered rows.
        h: (n, d). Representations, one row an image; any array.
        Raises InputError if there is no row or no column, and for NaN and values that are infinite in float32.
        """
        rows = np.asarray(h)
        if rows.ndim != 2 or 0 in rows.shape:
            raise InputError(f"h has shape {rows.shape}: expected (n, d), with at least one row and one column")
        checks.finite(rows, "h")
        scale = max(float(rows.max()), -float(rows.min())) or 1.0
        ones = (np.insert(part / scale, 0, 1.0, axis=1) for part in _parts(rows))
        triangle = _triangle(ones)
        _, singular, right = np.linalg.svd(triangle[:, 1:], full_matrices=False)
        _, centered, axes = np.linalg.svd(triangle[1:, 1:], full_matrices=False)
        # No singular value moves by more than the Frobenius norm of the errors.
        relative = np.finfo(np.float32).eps if rows.dtype.itemsize <= 4 else ROUNDING
        least = min(rows.shape)
        return cls(
            h=rows,
            scale=scale,
            mean=triangle[0, 1:] / triangle[0, 0],
            singular=singular[:least],
            right=right[:least],
            variances=centered**2 / len(rows),
            axes=axes,
            rounding=float(relative * np.linalg.norm(singular)),
        )

    @property
    def rank(self) -> int:
        """Number of singular values above the rounding error."""
        return int(np.sum(self.singular > self.rounding))

    @property
    def centered_rank(self) -> int:
        """Number of the covariance's eigenvalues above the rounding error."""
        return int(np.sum(self.variances * len(self.h) > self.rounding**2))


def rank_me(of: Spectrum) -> float:
    """RankMe: exp of the entropy of the singular values as shares of their sum, from 1 to min(n, d). NaN if h is 0.

    The rows are neither centered nor normalized. It compares runs of one method, such as hyperparameters, on the same
    images: its authors warn against comparing methods or architectures with it. It grows with the number of rows.
    Source: Garrido et al. 2023, with their ε = 1e-7.
    """
    return _effective_rank(of.singular)


def alpha_req(of: Spectrum) -> float:
    """α-ReQ: how fast the covariance's eigenvalues λ_i decay, as the exponent α of a power law λ_i ~ i^-α. Best near 1.

    α is minus the slope of ln λ_i against ln i, over i = 10 to 100 or to the rank, by least squares with weights 1/i.
    NaN if the rank of the covariance is below 20, which leaves fewer than eleven eigenvalues to fit.
    Its authors compare encoders of one architecture, because α depends on the width d.
    Source: Agrawal et al. 2022; the weights and the range are those of the authors' code, after Stringer et al. 2019.
    """
    last = min(LAST, of.centered_rank)
    if last - FIRST + 1 < FEWEST:
        return float("nan")
    index = np.arange(FIRST, last + 1)
    slope, _ = np.polyfit(np.log(index), np.log(of.variances[index - 1]), 1, w=index**-0.5)
    return float(-slope)


def participation_ratio(of: Spectrum) -> float:
    """(Σλ)² / Σλ² of the covariance's eigenvalues λ: the number of axes if all λ > 0 are equal. From 1 to d.

    It counts the axes that hold most of the variance, and not those that matter for a task. NaN if h is constant.
    Source: Gao et al. 2017.
    """
    if of.centered_rank == 0:
        return float("nan")
    shares = of.variances / of.variances.sum()
    return float(1 / np.sum(shares**2))


def stable_rank(of: Spectrum) -> float:
    """Sum of the squared singular values over the largest one squared, from 1 to the rank; rows are not centered.

    If the mean of the rows is large, it is near 1, whatever the rows are. NaN if h is 0.
    Source: Rudelson & Vershynin 2007.
    """
    if of.rank == 0:
        return float("nan")
    return float(np.sum((of.singular / of.singular[0]) ** 2))


def lidar(h_x: Float[Any, "n d"], h_y: Float[Any, "n_y d_y"], delta: float = DELTA) -> float:
    """LiDAR: RankMe's effective rank of what tells images apart beyond their augmentations, from 1 to min(n - 1, d).

    Each image is a class of its own, with its views as members. Σ_b is the covariance of the images' mean views, Σ_w
    that of the views around them, plus δI; the eigenvalues are those of Σ_w^-1/2 Σ_b Σ_w^-1/2. NaN if all images have
    the same mean view. δ is in the squared units of h, so LiDAR depends on the scale of h.
    It is comparable at equal n and for the same augmentations. The paper has 50 views an image; two are fewer data for
    Σ_w, and then n should be well above d.
    h_x, h_y: (n, d). Representations of two augmentations of each of n images.
    Raises InputError if the shapes differ, if there is no row, for values that are not finite, and if δ is not above 0.
    Source: Thilak et al. 2024, with their δ = 1e-4 and ε = 1e-7.
    """
    x, y = np.asarray(h_x), np.asarray(h_y)
    checks.views(x, y)
    checks.above_zero("delta", delta, "1e-4")
    for name, rows in (("h_x", x), ("h_y", y)):
        checks.finite(rows, name)
    d, root = x.shape[1], np.sqrt(len(x))
    halves = ((a - b) / 2 for a, b in zip(_parts(x), _parts(y), strict=True))
    means = ((a + b) / 2 for a, b in zip(_parts(x), _parts(y), strict=True))
    _, within, axes = np.linalg.svd(_triangle(halves) / root)
    triangle = _triangle(np.insert(mean, 0, 1.0, axis=1) for mean in means)[:, 1:] / root
    variances, spreads = np.zeros(d), np.zeros(d)
    variances[: len(within)] = within**2
    if np.linalg.norm(triangle[1:]) <= ROUNDING * np.linalg.norm(triangle):
        return float("nan")
    found = np.linalg.svd(triangle[1:] @ axes.T / np.sqrt(variances + delta)[None, :], compute_uv=False)
    spreads[: len(found)] = found
    return _effective_rank((spreads / spreads.max()) ** 2)


def _effective_rank(sizes: Float[np.ndarray, " r"]) -> float:
    """exp of the entropy of the sizes as shares of their sum, each share plus ε; NaN if all are 0."""
    total = sizes.sum()
    if total == 0:
        return float("nan")
    shares = sizes / total + EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _parts(rows: Float[np.ndarray, "n d"]) -> Iterator[Float[np.ndarray, "m d"]]:
    """The rows in float64, some thousands at a time; more if they are wide, so that few triangles are stacked."""
    size = max(CHUNK, 4 * rows.shape[1])
    for first in range(0, len(rows), size):
        yield rows[first : first + size].astype(np.float64)


def _triangle(parts: Iterator[Float[np.ndarray, "m d"]]) -> Float[np.ndarray, "r d"]:
    """R of a QR decomposition of all parts stacked: R'R is the sum of their products.

    Unlike that sum, it keeps small singular values to the precision of the rows.
    Source: Demmel et al. 2012 (sequential TSQR).
    """
    triangle: Any = np.linalg.qr(next(parts), mode="r")
    for part in parts:
        triangle = np.linalg.qr(np.concatenate([triangle, part]), mode="r")
    return triangle
