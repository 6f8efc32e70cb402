"""Scores of representations and labels in closed form, without a fitted probe: LogME and the H-score."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mirigor_jax import checks
from mirigor_jax.errors import InputError
from mirigor_jax.metrics.spectrum import Spectrum
from mirigor_jax.numerics import CHUNK

EXACT = 1e-12  # a share of a label's square; a smaller squared error is one of rounding
TOLERANCE = 1e-12  # nats a label by which the evidence may still change at the fixed point
MOST_STEPS = 1000
FURTHEST = 1e30  # between the ratio α/β and the squared singular values


def log_me(of: Spectrum, labels: Any) -> float:
    """LogME: log evidence of Bayesian linear regression onto the labels, in nats a label; mean over classes.

    Each class in turn is a target y in {0, 1}^n, with y = H w + noise, w ~ N(0, I/α) and noise N(0, I/β). α and β
    maximize the evidence; a fixed point finds them: α = γ / |m|² and β = (n - γ) / |H m - y|², with m the posterior
    mean of w and γ the effective number of weights. H is neither centered nor given a constant column.
    It is the log of a density and may be above 0. It does not depend on the scale of H, and is infinite if a linear map
    of H gives the labels exactly. It compares encoders on the same rows and labels.
    of: the `Spectrum` of the representations. labels: (n,). Their classes.
    Raises InputError if lengths differ, and if there is only one class.
    Source: You et al. 2021 (there the fixed point has at most ten steps; here it converges).
    """
    sums, counts = _class_sums(of, labels)
    n, r = len(of.h), of.rank
    squares = of.singular[:r] ** 2
    projected = (of.right[:r] @ sums.T).T ** 2 / squares  # (c, r): squares of the targets' coordinates
    left = np.maximum(counts - projected.sum(axis=1), 0) if r < n else np.zeros(len(counts))
    if r < n and np.any(left <= EXACT * counts):
        return math.inf
    if r == 0:
        return float(np.mean(-0.5 * np.log(2 * np.pi * np.e * counts / n)))
    ratio, evidence = np.full(len(counts), squares.mean() / n), np.full(len(counts), -np.inf)
    for _ in range(MOST_STEPS):
        kept = squares / (ratio[:, None] + squares)
        lost = ratio[:, None] / (ratio[:, None] + squares)
        # With β at its maximum n / S for this α/β, where S = |H m - y|² + α/β |m|²
        total = left + np.sum(projected * lost, axis=1)
        before, evidence = evidence, -0.5 * (np.log(2 * np.pi * np.e * total / n) - np.log(lost).sum(axis=1) / n)
        if np.all(np.abs(evidence - before) <= TOLERANCE):
            break
        error = left + np.sum(projected * lost**2, axis=1)
        weights = np.sum(projected * kept**2 / squares, axis=1)
        alpha_over_beta = kept.sum(axis=1) * error / (n - r + lost.sum(axis=1))
        limits = squares[-1] / FURTHEST, squares[0] * FURTHEST
        ratio = np.clip(alpha_over_beta / np.maximum(weights, 1 / FURTHEST**2), *limits)
    return float(evidence.mean())


def h_score(of: Spectrum, labels: Any) -> float:
    """H-score: tr(Σ_a^-1 (1 - a) Σ_z), which is the variance of class means in units of all variance, over all axes.

    Σ_z is the covariance of the class means, each for every row of its class. Σ_a = (1 - a) Σ + a tr(Σ)/d I shrinks the
    covariance Σ of the rows, with Ledoit and Wolf's a. All covariances are divided by n. The H-score is from 0 to the
    smaller one of d and the number of classes minus 1. It is 0 if h is constant, and falls to 0 as a rises to 1:
    for few rows, and for whitened ones, whose covariance is a multiple of I.
    of: the `Spectrum` of the representations. labels: (n,). Their classes.
    Raises InputError if lengths differ, and if there is only one class.
    Source: Bao et al. 2019; Ibrahim et al. 2022 (shrinkage); Ledoit & Wolf 2004.
    """
    sums, counts = _class_sums(of, labels)
    r = of.centered_rank
    if r == 0:
        return 0.0
    shrunk, variances = shrinkage(of), of.variances[:r]
    deviations = (sums / counts[:, None] - of.mean[None, :]) @ of.axes[:r].T
    between = (counts / len(of.h)) @ deviations**2
    everywhere = (1 - shrunk) * variances + shrunk * of.variances.sum() / of.h.shape[1]
    return float(np.sum((1 - shrunk) * between / everywhere))


def shrinkage(of: Spectrum) -> float:
    """Ledoit and Wolf's weight of the multiple of the identity, from 0 to 1, that a covariance of n rows is shrunk to.

    Source: Ledoit & Wolf 2004.
    """
    n, d = of.h.shape
    total, squared = of.variances.sum(), np.sum(of.variances**2)
    fourth = 0.0
    for first in range(0, n, CHUNK):
        part = of.h[first : first + CHUNK].astype(np.float64) / of.scale - of.mean[None, :]
        fourth += float(np.sum(np.sum(part**2, axis=1) ** 2))
    spread = squared - total**2 / d
    return 0.0 if spread <= 0 else float(min(max(fourth / n - squared, 0) / n, spread) / spread)


def _class_sums(of: Spectrum, labels: Any) -> tuple[Float[np.ndarray, "c d"], Int[np.ndarray, " c"]]:
    """(sum of the rows of h / scale, number of rows) of each class. Raises InputError if there is only one class."""
    given = checks.labels(labels)
    if len(of.h) != len(given):
        raise InputError(f"{len(of.h)} feature rows for {len(given)} labels: expected one label for each row")
    names, classes, counts = np.unique(given, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"labels hold {len(names)} class: nothing to tell apart; give two classes or more")
    rows = of.h[np.argsort(classes, kind="stable")]
    sums = np.add.reduceat(rows, np.cumsum(counts) - counts, dtype=np.float64)
    return sums / of.scale, counts
