"""Confidence limits of means and of error rates, from independent trials. They run on the host, in float64."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, kl_div, lambertw, logsumexp, stdtrit

from mirigor_jax.errors import InputError

# The kinds of intervals: the method and its data, in words.
BATCHES = "t over disjoint batches"
PAIRS = "t over the pairs' influence values"
FOLDS = "jackknife over folds of pairs"
ROWS = "t over the rows' differences"
ERRORS = "Clopper-Pearson of the classifier's errors"


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of a statistic's expectation, at the confidence that was asked for.

    lower_bits, upper_bits: its ends.
    kind: the method and the data that it was computed from, in words.
    """

    lower_bits: float
    upper_bits: float
    kind: str

    @property
    def positive_part(self) -> "Interval":
        """The interval with negative ends raised to 0. A lower bound of I below 0 says no more than 0, as I >= 0."""
        return replace(self, lower_bits=max(0.0, self.lower_bits), upper_bits=max(0.0, self.upper_bits))


def clopper_pearson_upper(errors: int, n: int, confidence: float) -> float:
    """One-sided upper confidence limit of an error rate, from `errors` in n independent trials.

    Raises InputError unless 0 <= errors <= n and n >= 1. Source: Clopper & Pearson 1934.
    """
    if not 0 <= errors <= n or n < 1:
        raise InputError(f"{errors} errors in {n} images: expected 0 <= errors <= images and at least one image")
    return 1.0 if errors == n else float(betaincinv(errors + 1, n - errors, confidence))


def clopper_pearson_lower(errors: int, n: int, confidence: float) -> float:
    """One-sided lower confidence limit of an error rate; see `clopper_pearson_upper`."""
    return 1.0 - clopper_pearson_upper(n - errors, n, confidence)


def mean_lower_bound(values: Float[np.ndarray, "*p n"], low: float, high: float, confidence: float) -> float:
    """Lower confidence limit of the mean of independent values in [low, high], valid at every n; same unit as values.

    A gambler bets, value by value, that the mean is above m. The limit is the largest m at which the gambler's capital
    has reached 1/risk at some time. Bets are predictable plug-ins, at most 0.9/m.
    values: (n,), or (p, n): one sample that was made into n independent values in p ways. In the second case the mean
        of the p final capitals has to reach 1/risk. If the mean is m, each final capital has an expectation of at most
        1, so their mean does too; that does not hold for running maxima. The limit then depends less on any one way,
        but p ways are no substitute for more data.
    A lucky order of bets could give a limit above the values' mean. It is then lowered to the mean, and still holds.
    Raises InputError if a value is outside the window.
    Source: Waudby-Smith & Ramdas 2023, Theorem 3 (hedged capital), its one-sided half, by Ville's inequality; the mean
    of e-values, Vovk & Wang 2021.
    """
    x = _unit(values, low, high)
    n, log_target = x.shape[-1], -np.log1p(-confidence)
    _, variances = _plug_ins(x)
    bets = np.sqrt(2 * log_target / (n * variances))

    # Every factor of the capital falls as m grows, so every mean up to `below` is rejected too.
    below, above = 0.0, float(x.mean())
    if above == 0:
        return low
    for _ in range(50):
        m = (below + above) / 2
        log_capital = np.cumsum(np.log1p(np.minimum(bets, 0.9 / m) * (x - m)), axis=-1)
        log_evidence = log_capital.max() if x.ndim == 1 else logsumexp(log_capital[..., -1]) - np.log(x.size / n)
        if log_evidence >= log_target:
            below = m
        else:
            above = m
    return low + below * (high - low)


def plug_in_lower_bound(values: Float[np.ndarray, " n"], low: float, high: float, confidence: float) -> float:
    """A looser `mean_lower_bound` in closed form: predictable plug-in empirical Bernstein.

    Raises InputError if a value is outside the window.
    Source: Waudby-Smith & Ramdas 2023, Theorem 2, its one-sided half with bets of at most 3/4.
    """
    x = _unit(values, low, high)
    log_target = -np.log1p(-confidence)
    means, variances = _plug_ins(x)
    bets = np.minimum(np.sqrt(2 * log_target / (len(x) * variances)), 0.75)
    price = (x - means) ** 2 * (-np.log1p(-bets) - bets)
    return low + max(0.0, float((np.sum(bets * x - price) - log_target) / np.sum(bets))) * (high - low)


def fixed_bet_lower_bound(
    values: Float[np.ndarray, " n"], low: float, high: float, confidence: float, bet: float
) -> float:
    """`mean_lower_bound` with one bet for all values, so that it holds if they are independent with different means.

    It is a limit of the mean of the values' means. For a fixed bet the expected final capital is the product of
    1 + bet (mean_i - m), which is at most 1 if the mean of the means is at most m, by the inequality of arithmetic and
    geometric means. Bets that learn from earlier values need equal means.
    bet: above 0, per unit of the values; chosen without looking at them. It is lowered to 0.9 / (m - low).
    Raises InputError if a value is outside the window.
    """
    x = _unit(values, low, high)
    below, above = 0.0, float(x.mean())
    for _ in range(50):
        m = (below + above) / 2
        stake = min(bet * (high - low), 0.9 / m) if m > 0 else bet * (high - low)
        if np.log1p(stake * (x - m)).sum() >= -np.log1p(-confidence):
            below = m
        else:
            above = m
    return low + below * (high - low)


def kl_lower_bound(mean: float, n: int, high: float, confidence: float) -> float:
    """Lower confidence limit of the expectation of the mean of n independent values in [0, high].

    mean: the values' mean, or less.
    Source: Hoeffding 1963, Theorem 1 (Chernoff's bound); the values may have different means.
    """
    x, price = min(mean / high, 1.0), -np.log1p(-confidence) / n
    below, above = 0.0, x
    for _ in range(60):
        m = (below + above) / 2
        if m == 0 or kl_div(x, m) + kl_div(1 - x, 1 - m) > price:
            below = m
        else:
            above = m
    return below * high


def vector_mean_radius(squares: Float[np.ndarray, " n"], longest: float, confidence: float) -> float:
    """The radius of a ball around the mean of n independent vectors of one distribution. It contains their expectation.

    squares: the vectors' squared lengths. longest: the largest squared length possible.
    confidence: in (0, 1). The probability with which the ball contains it.
    Let s be such a vector, and v a betting limit with v >= E|s|². Half of the error probability 1 - confidence is spent
    on v; the other half is δ. With m² = longest and l = ln(2/δ) / n, the radius is 2lm/3 + sqrt((2lm/3)² + 2lv).
    Source: Pinelis 1994, Theorem 3.4, in Bernstein's form (means of bounded vectors in Hilbert space).
    """
    second_moment = -mean_lower_bound(-squares, -longest, 0.0, (1 + confidence) / 2)
    step = np.log(4 / (1 - confidence)) / len(squares)
    linear = 2 * step * np.sqrt(longest) / 3
    return float(linear + np.sqrt(linear**2 + 2 * step * second_moment))


def relative_entropy_limit(cells: int, n: int, confidence: float) -> float:
    """Upper confidence limit of KL(p̂‖p), in nats: p̂ has the frequencies of n independent draws from any p on the cells.

    It is x / n for the root x > cells - 1 of exp(-x) (e x / (cells - 1))^(cells - 1) = 1 - confidence.
    Source: Agrawal 2020: at every n, the moment generating function is at most that of a gamma distribution of shape
    cells - 1 and rate n, so Chernoff's bound of that distribution holds.
    """
    if cells == 1:
        return 0.0
    free = cells - 1
    return -free / n * float(lambertw(-((1 - confidence) ** (1 / free)) / math.e, -1).real)


def largest_mean(shares: Float[np.ndarray, " m"], scores: Float[np.ndarray, " m"], radius: float) -> float:
    """An upper limit of Σ p score over all distributions p with KL(shares‖p) <= radius; to rounding, the largest value.

    Every μ >= max score gives an upper limit, μ - exp(Σ shares ln(μ - score) - radius), by Lagrange duality. It is
    convex in μ, and bisection of its slope finds the smallest; a search that stops early still gives a limit.
    Source: Filippi, Cappé & Garivier 2010, who maximize over the same set.
    """
    top, span = float(scores.max()), float(np.ptp(scores))
    seen = shares > 0
    share, below_top = shares[seen], top - scores[seen]
    if span == 0:
        return top
    limit, near, far = 0.0, -20.0, 14.0  # logarithms of (μ - max score) / span
    for _ in range(40):
        distance = span * math.exp((near + far) / 2)
        gaps = distance + below_top
        mean = math.exp(float(share @ np.log(gaps)) - radius)
        limit = min(limit, distance - mean)
        if mean * float(share @ (1 / gaps)) > 1:
            near = (near + far) / 2
        else:
            far = (near + far) / 2
    return top + limit


def _unit(values: Float[np.ndarray, "*p n"], low: float, high: float) -> Float[np.ndarray, "*p n"]:
    """Map values from [low, high] to [0, 1]. Raises InputError if there is none, or if one is outside."""
    slack = 1e-9 * (high - low)
    if values.size == 0 or not low < high or values.min() < low - slack or values.max() > high + slack:
        raise InputError(f"{values.size} values, window [{low:.6g}, {high:.6g}]: expected at least one, all inside it")
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _plug_ins(x: Float[np.ndarray, "*p n"]) -> tuple[Float[np.ndarray, "*p n"], Float[np.ndarray, "*p n"]]:
    """Running mean and variance before each value, from earlier values and a first guess of 1/2 and 1/4."""
    count = np.arange(2, x.shape[-1] + 2)
    means = (0.5 + np.cumsum(x, axis=-1)) / count
    variances = (0.25 + np.cumsum((x - means) ** 2, axis=-1)) / count
    first = np.ones((*x.shape[:-1], 1))
    return (
        np.concatenate([0.5 * first, means[..., :-1]], axis=-1),
        np.concatenate([0.25 * first, variances[..., :-1]], axis=-1),
    )


def t_interval(values: Float[np.ndarray, " m"], confidence: float) -> tuple[float, float]:
    """Two-sided t-interval of the mean of m independent values, an approximation; (-inf, inf) for fewer than two."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def interval_of(values: Float[np.ndarray, " m"], confidence: float, kind: str) -> Interval | None:
    """The `t_interval` of values in nats as an `Interval` in bits of this kind; None for fewer than two values."""
    lower, upper = t_interval(values, confidence)
    return Interval(lower / math.log(2), upper / math.log(2), kind) if math.isfinite(lower) else None
