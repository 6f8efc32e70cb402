"""What may be claimed about I(h_X;h_Y) on fresh images, and in which words. Host side, numpy in float64.

Every lower end here is about *fresh* test images: independent given their class, used in no fitting and no selection,
each in one term only. Pairs redrawn from a finite bank of images are not fresh: the bank is a population of its own,
in which any encoder with distinct rows, an untrained one too, determines the class.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure
from scipy import stats
from scipy.special import entr, logsumexp, xlogy

from mirigor_jax.errors import InputError

Certificate = Literal["classifier", "posterior", "infonce"]
Verdict = Literal["certified", "bounded", "k-limited", "not-a-bound"]


@dataclass(frozen=True)
class Estimate:
    """One estimate of I(h_X;h_Y) and the interval that can be defended; bits throughout.

    value_bits may pass every bound unless `kind` is a bound; `t_*` is the approximate interval of its mean, while
    [lower_bits, upper_bits] holds at `confidence`, by the named certificate. None: no such end is known.
    pairs: test pairs read. seed_bits: each seed's own value; value_bits is the seeds' averaged critic's. bound_bits:
    strict InfoNCE of the same critic, where the estimator itself is no bound. note: its bias, in words.
    """

    name: str
    value_bits: float
    kind: str
    k: int
    ceiling_bits: float
    t_lower_bits: float
    t_upper_bits: float
    lower_bits: float | None
    upper_bits: float | None
    confidence: float
    certificate: Certificate | None
    verdict: Verdict
    pairs: int = 0
    seed_bits: tuple[float, ...] = ()
    bound_bits: float | None = None
    note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def value_nats(self) -> float:
        return self.value_bits * float(np.log(2))

    @property
    def mean_bits(self) -> float:
        """The mean of the seeds' own values."""
        return float(np.mean(self.seed_bits or self.value_bits))

    @property
    def spread_bits(self) -> float | None:
        """Their standard deviation; None for a single seed."""
        return float(np.std(self.seed_bits, ddof=1)) if len(self.seed_bits) > 1 else None

    def __str__(self) -> str:
        estimate = f"{self.name} at K = {self.k:,} reads {self.value_bits:z.3f} bits ({self.kind})"
        if self.spread_bits is not None:
            estimate += f", {self.mean_bits:z.3f} ± {self.spread_bits:.3f} over {len(self.seed_bits)} seeds"
        if self.bound_bits is not None:
            estimate += f", its critic's InfoNCE bound {self.bound_bits:z.3f} bits"
        if self.lower_bits is None:
            return f"{estimate}; nothing is certified."
        claim = _claim(self.lower_bits, self.upper_bits, self.confidence)
        by = f"by the {self.certificate} certificate" if self.certificate else "without a certificate"
        return f"{estimate}; the MI {claim}, {by} ({self.verdict})."

    def figure(self) -> Figure:
        """The estimate with its interval, certificate, ceiling and seeds."""
        from mirigor_jax import figures  # which draws whole runs too, and knows this module

        return figures.estimators([self])


def round_down(bits: float) -> float:
    """To three decimals, downwards: a lower end that is printed so holds too."""
    return math.floor(1000 * bits) / 1000


def _claim(lower_bits: float, upper_bits: float | None, confidence: float) -> str:
    """The interval in words."""
    upper = "" if upper_bits is None else f" of at most {upper_bits:.3f}"
    return f"is at least {round_down(lower_bits):.3f}{upper} bits, at {100 * confidence:.6g} % confidence"


def reach_bits(k: int, class_probabilities: Float[np.ndarray, " c"]) -> float:
    """The most any critic's strict InfoNCE shows, in expectation, at batches of k pairs that share their class.

    The optimal critic scores same-class pairs alone: log2 K - sum_c p_c E log2(1 + Bin(K-1, p_c)), summed exactly.
    Source: Poole et al. 2019, eq. 10, at the density ratio of same-class sampling (Lee et al. 2023, III-A).
    """
    values, counts = np.unique(class_probabilities, return_counts=True)
    return float(np.log2(k) - sum(m * p * _mean_log2(k - 1, p, 1) for p, m in zip(values, counts, strict=True)))


def paper_reach_bits(k: int, num_classes: int) -> float:
    """What log(2K-1) - L_NT-Xent expects of a perfect critic on uniform classes, in bits; it can pass log2 of them.

    Each anchor's denominator holds its positive and both views of every other pair of its class:
    log2(2K-1) - E log2(1 + 2 Bin(K-1, 1/N)). Source: Lee et al. 2023, Eq. 4, at temperature 0.
    """
    return float(np.log2(2 * k - 1) - _mean_log2(k - 1, 1 / num_classes, 2))


def _mean_log2(trials: int, p: float, weight: int) -> float:
    """E log2(1 + weight B), B ~ Bin(trials, p); what lies outside the summed window has probability < 1e-15."""
    centre, radius = trials * p, 10 * np.sqrt(trials * p * (1 - p)) + 30
    successes = np.arange(max(0, int(centre - radius)), min(trials, int(centre + radius)) + 1)
    return float(np.sum(stats.binom.pmf(successes, trials, p) * np.log2(1 + weight * successes)))


def clopper_pearson_upper(errors: int, n: int, confidence: float) -> float:
    """One-sided upper confidence limit of an error rate, from `errors` in n independent trials.

    Raises InputError unless 0 <= errors <= n and n >= 1. Source: Clopper & Pearson 1934.
    """
    if not 0 <= errors <= n or n < 1:
        raise InputError(f"{errors} errors in {n} images: expected 0 <= errors <= images and at least one image")
    return 1.0 if errors == n else float(stats.beta.ppf(confidence, errors + 1, n - errors))


def classifier_lower_bits(
    errors: int, n: int, class_probabilities: Float[np.ndarray, " c"], confidence: float
) -> float:
    """Certificate of a classifier g: lower end of I(h_X;h_Y) where both views share their class exactly, in bits.

    errors: of g(h) on n fresh images, one of each pair. class_probabilities: p(c), known exactly.
    With Clopper-Pearson's u and F(e) = H_b(e) + e log2(c-1), Fano's inequality gives H(g(h_X)) >= H(C) - F(u) and,
    as two views disagree only where one is wrong, H(g(h_X)|g(h_Y)) <= F(2u); so I >= H(C) - F(u) - F(2u).
    F is held at its largest value, log2 c, beyond e = 1 - 1/c: every true error rate below u is then covered.
    Raises InputError as `clopper_pearson_upper` does.
    Source: Lee et al. 2023, Theorem III.2 (u = 0), by Fano's and the data processing inequality (Cover & Thomas 2006).
    """
    classes = len(class_probabilities)
    u = clopper_pearson_upper(errors, n, confidence)

    def fano_nats(error: float) -> float:
        e = min(error, 1 - 1 / classes)
        return float(entr(e) + entr(1 - e) + xlogy(e, classes - 1))

    return max(0.0, float((entr(class_probabilities).sum() - fano_nats(u) - fano_nats(2 * u)) / np.log(2)))


def mix_posterior(posterior: Float[np.ndarray, "n c"], weight: float) -> Float[np.ndarray, "n c"]:
    """Class probabilities (n, c) mixed with `weight` of the uniform law: no pair can then score minus infinity."""
    return (1 - weight) * posterior + weight / posterior.shape[1]


def posterior_lower_bits(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
    confidence: float,
    *,
    mixing: float = 1e-3,
) -> float:
    """Certificate of a class posterior: lower end of I(h_X;h_Y) for any known dependency of the classes, in bits.

    q_x, q_y: (n, a), (n, b) rows of class probabilities of n fresh pairs, by a model fitted on other images;
    c_x, c_y: (n,) their true classes; joint: (a, b) the law p(c, c') the pairs were drawn from; mixing: the weight of
    the uniform law in q, chosen beforehand.

    The critic f = log q_x^T W q_y, W = p(c,c') / (p(c) p(c')), enters I >= E_P f - log E_Q e^f. The classes are a
    control variate of known mean, E_P f = I(C;C') - E_P[log W_cc' - f], so that only the posterior's mistakes cost
    anything; the difference lies in a window known from W and the mixing, and its betting bound gets 0.9 of the risk,
    `partition_upper_bound` the other 0.1.

    Raises InputError where joint or a row of q is no probability law, a class has no mass, or a pair of classes none.
    Source: Donsker & Varadhan 1983.
    """
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    if abs(joint.sum() - 1) > 1e-9 or joint.min() < 0 or p_x.min() <= 0 or p_y.min() <= 0:
        raise InputError(f"joint class law sums to {joint.sum():.6g}: expected p(c,c') >= 0 with sum 1, no class empty")
    if not joint[c_x, c_y].all():
        raise InputError("a test pair's classes have probability 0 under the joint law: expected pairs drawn from it")
    for name, q in (("q_x", q_x), ("q_y", q_y)):
        if q.min() < 0 or abs(q.sum(axis=1) - 1).max() > 1e-6:
            raise InputError(f"rows of {name} sum to {q.sum(axis=1).max():.6g}: expected probabilities that sum to 1")
    risk, ratio = 1 - confidence, joint / np.outer(p_x, p_y)
    if np.allclose(ratio, 1):
        return 0.0  # independent classes: nothing to find, and no window to bet in
    q_x, q_y = mix_posterior(q_x, mixing), mix_posterior(q_y, mixing)

    corners = mix_posterior(np.eye(len(p_x)), mixing) @ ratio @ mix_posterior(np.eye(len(p_y)), mixing).T
    f_low, f_high = np.log(corners.min()), np.log(corners.max())  # bilinear in q: its extremes are at the corners
    log_ratio = np.log(ratio, out=np.zeros_like(ratio), where=joint > 0)
    possible = log_ratio[joint > 0]
    excess = np.log(np.sum(q_x @ ratio * q_y, axis=1)) - log_ratio[c_x, c_y]
    window = float(f_low - possible.max()), float(f_high - possible.min())
    joint_term = np.sum(joint * log_ratio) + mean_lower_bound(excess, *window, 1 - 0.9 * risk)
    partition = max(partition_upper_bound(q_x, q_y, c_x, c_y, joint, 1 - 0.1 * risk), float(corners.min()))
    return max(0.0, float((joint_term - np.log(partition)) / np.log(2)))


def partition_upper_bound(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
    confidence: float,
) -> float:
    """Upper confidence limit of E_Q[q_x^T W q_y], the partition function of `posterior_lower_bits`; same arguments.

    It is 1 + d_x^T B d_y, with d = E[(q - e_c) / sqrt p] and B = (joint - p_x p_y^T) / sqrt(p_x p_y^T): W averages to 1
    and e_c to p. The pairs' s = ((q_x - e_c) / sqrt p_x, (q_y - e_c') / sqrt p_y) has |s| <= m, so with v >= E|s|^2 and
    l = ln(2/risk) / n its mean is within r = 2lm/3 + sqrt((2lm/3)^2 + 2lv) of (d_x, d_y); v is a betting bound, half of
    the risk each. Then d_x^T B d_y <= its value at the mean + r |gradient| + r^2 |B| / 2.
    Source: Pinelis 1994, Theorem 3.4, in Bernstein's form (means of bounded vectors in Hilbert space).
    """
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    s_x = (q_x - np.eye(len(p_x))[c_x]) / np.sqrt(p_x)[None, :]
    s_y = (q_y - np.eye(len(p_y))[c_y]) / np.sqrt(p_y)[None, :]
    # q and e_c lie in the simplex, so q - e_c is longest from vertex to vertex.
    longest = float(sum(np.sum(np.sort(1 / p)[-2:]) for p in (p_x, p_y)))
    squares = np.sum(s_x**2, axis=1) + np.sum(s_y**2, axis=1)
    second_moment = -mean_lower_bound(-squares, -longest, 0.0, (1 + confidence) / 2)
    step = np.log(4 / (1 - confidence)) / len(squares)
    linear = 2 * step * np.sqrt(longest) / 3
    radius = linear + np.sqrt(linear**2 + 2 * step * second_moment)

    dependence = (joint - np.outer(p_x, p_y)) / np.sqrt(np.outer(p_x, p_y))
    d_x, d_y = s_x.mean(axis=0), s_y.mean(axis=0)
    slope = np.hypot(np.linalg.norm(dependence @ d_y), np.linalg.norm(d_x @ dependence))
    curvature = np.linalg.norm(dependence, 2)
    return float(1 + d_x @ dependence @ d_y + radius * slope + radius**2 * curvature / 2)


@dataclass(frozen=True)
class InfoNCECertificate:
    """Lower end of I(X;Y) from strict InfoNCE on disjoint batches of k fresh pairs, and what stands beside it; bits.

    lower_bits holds at the confidence that was asked for. value_bits is the mean over batches, each of which lies in
    `window_nats`. The others read one partition into batches: plug_in_lower_bits, the looser empirical Bernstein end
    (at the same confidence), and the t-interval, two-sided and an approximation.
    """

    lower_bits: float
    value_bits: float
    k: int
    batches: int
    window_nats: tuple[float, float]
    plug_in_lower_bits: float
    t_lower_bits: float
    t_upper_bits: float


def info_nce_lower_bits(
    validation: Float[np.ndarray, "b n n"],
    test: Float[np.ndarray, "c m m"],
    confidence: float,
    *,
    partitions: int = 8,
    seed: int = 0,
) -> InfoNCECertificate:
    """Certificate of a fixed critic for any pairing: `choose_batches` on validation, `info_nce_lower_bits_at` on test.

    validation, test: scores in nats, row x_i against column y_j, the diagonal the positives; all pairs of both are
    independent draws that the critic has not seen.
    Raises InputError as these two do.
    """
    k, weight = choose_batches(validation, test.shape[:2], confidence, seed=seed)
    return info_nce_lower_bits_at(test, k, weight, confidence, partitions=partitions, seed=seed)


def choose_batches(
    validation: Float[np.ndarray, "b n n"], test_shape: tuple[int, int], confidence: float, *, seed: int = 0
) -> tuple[int, float]:
    """The k and weight of `info_nce_lower_bits_at` with the best lower end to be expected on test scores (c, m, m).

    test_shape: (c, m). k is m halved some times, the weight a power of 1/2. On M values above `low` the betting bound
    falls short of their mean by about ln(1/risk) / (M λ) + λ variance / 2, the bet λ being at most 0.9 / (mean - low).
    The first part decides: at the best bet the variance costs √(2 ln(1/risk) variance / M), hardly a matter of k.
    Raises InputError for scores that are not finite, or where no eight batches of two pairs can be made.
    """
    _require_finite(validation, "validation")
    matrices, rows = test_shape
    sizes = [rows >> halvings for halvings in range(rows.bit_length() - 1)]
    # With fewer than eight batches the shortfall outgrows the log 2, at most, that doubling k adds.
    sizes = [k for k in sizes if k <= validation.shape[1] and matrices * (rows // k) >= 8]
    if not sizes:
        raise InputError(
            f"{matrices} x {rows} test pairs, {len(validation)} x {validation.shape[1]} for validation: expected eight "
            "batches of two pairs or more; use more samples"
        )
    candidates = []
    for k in sizes:
        ratios = _likelihood_ratios(validation, k, 2, seed)
        price = -np.log1p(-confidence) / (0.9 * matrices * (rows // k))
        for weight in 0.5 ** np.arange(1, 9):
            mean = _values(ratios, weight).mean()
            candidates.append((mean - price * (mean - np.log(weight)), k, float(weight)))
    _, k, weight = max(candidates)
    return k, weight


def info_nce_lower_bits_at(
    scores: Float[np.ndarray, "c m m"],
    k: int,
    weight: float,
    confidence: float,
    *,
    partitions: int = 8,
    seed: int = 0,
) -> InfoNCECertificate:
    """Betting bound of E[b] <= I(X;Y), b being strict InfoNCE of k pairs, both directions averaged, kept in a window.

    scores: as `info_nce_lower_bits`'s test. Batches are diagonal blocks under `partitions` random partitions of each
    matrix's rows. k, weight: chosen without a look at these scores.

    InfoNCE is log k less the cross-entropy of telling the positive among k candidates, so any law q over them gives a
    bound: E log(k q_positive) <= I. Here q is the critic's softmax, mixed with `weight` of the uniform law. That keeps
    b in [log weight, log k] whatever the scores, and costs nothing to first order where the softmax is calibrated;
    a window clipped out of the scores would leave b a range that grows with log k.

    Raises InputError for scores that are not finite, k outside [2, m] or a weight outside (0, 1).
    Source: van den Oord et al. 2018, eq. 4; Poole et al. 2019, eq. 10; with any q, by Gibbs' inequality.
    """
    _require_finite(scores, "test")
    if not 2 <= k <= scores.shape[1] or not 0 < weight < 1:
        raise InputError(f"k = {k}, weight = {weight}: expected 2 <= k <= {scores.shape[1]} pairs and 0 < weight < 1")
    values = _values(_likelihood_ratios(scores, k, partitions, seed), weight)
    low, high = window = math.log(weight), math.log(weight + (1 - weight) * k)
    one_partition = values[0]
    lower = mean_lower_bound(values, low, high, confidence)
    plug_in_lower = plug_in_lower_bound(one_partition, low, high, confidence)
    t_lower, t_upper = t_interval(one_partition, confidence)
    return InfoNCECertificate(
        lower_bits=max(0.0, lower) / math.log(2),
        value_bits=float(values.mean()) / math.log(2),
        k=k,
        batches=len(one_partition),
        window_nats=window,
        plug_in_lower_bits=max(0.0, plug_in_lower) / math.log(2),
        t_lower_bits=t_lower / math.log(2),
        t_upper_bits=t_upper / math.log(2),
    )


def _likelihood_ratios(
    scores: Float[np.ndarray, "c m m"], k: int, partitions: int, seed: int
) -> Float[np.ndarray, "p b 2 k"]:
    """K times the softmax of the positive among K candidates, of b batches in p partitions, both directions."""
    matrices, rows = scores.shape[:2]
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(partitions):
        order = rng.permuted(np.tile(np.arange(rows), (matrices, 1)), axis=1)[:, : rows // k * k]
        order = order.reshape(matrices, -1, k)
        matrix = np.arange(matrices)[:, None, None, None]
        batches = scores[matrix, order[..., :, None], order[..., None, :]].reshape(-1, k, k).astype(np.float64)
        positives = np.diagonal(batches, axis1=1, axis2=2)
        with np.errstate(over="ignore"):  # a hopeless positive: the sum is infinite and the ratio 0
            of_x = np.exp(batches - positives[:, :, None]).sum(axis=2)
            of_y = np.exp(batches - positives[:, None, :]).sum(axis=1)
        ratios.append(k / np.stack([of_x, of_y], axis=1))
    return np.stack(ratios)


def _values(ratios: Float[np.ndarray, "p b 2 k"], weight: float) -> Float[np.ndarray, "p b"]:
    return np.log(weight + (1 - weight) * ratios).mean(axis=(2, 3))


def _require_finite(scores: np.ndarray, part: str) -> None:
    if bad := scores.size - np.count_nonzero(np.isfinite(scores)):
        raise InputError(
            f"{bad:,} of {scores.size:,} {part} scores are NaN or infinite: expected finite; clip the critic"
        )


def mean_lower_bound(values: Float[np.ndarray, "*p n"], low: float, high: float, confidence: float) -> float:
    """Lower confidence limit of the mean of independent values in [low, high], valid at every n; same unit as values.

    A gambler bets, value by value, that the mean is above m; the limit is the largest m at which the capital has once
    reached 1/risk. Bets are predictable plug-ins, at most 0.9/m.
    values: (n,), or (p, n): one sample made into n independent values in p ways. Then the mean of the p final capitals
    has to reach 1/risk. Each expects at most 1 if the mean is m, so theirs does too; running maxima expect more. The
    limit then hangs less on any one way; more data it does not buy.
    Raises InputError where a value leaves the window.
    Source: Waudby-Smith & Ramdas 2023, Theorem 3 (hedged capital), its one-sided half, by Ville's inequality; the mean
    of e-values, Vovk & Wang 2021.
    """
    x = _unit(values, low, high)
    n, log_target = x.shape[-1], -np.log1p(-confidence)
    _, variances = _plug_ins(x)
    bets = np.sqrt(2 * log_target / (n * variances))

    below, above = 0.0, 1.0  # every factor of the capital falls as m grows, so `below` stays a mean that was rejected
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
    """`mean_lower_bound` in closed form, and looser: predictable plug-in empirical Bernstein.

    Raises InputError where a value leaves the window.
    Source: Waudby-Smith & Ramdas 2023, Theorem 2, its one-sided half with bets of at most 3/4.
    """
    x = _unit(values, low, high)
    log_target = -np.log1p(-confidence)
    means, variances = _plug_ins(x)
    bets = np.minimum(np.sqrt(2 * log_target / (len(x) * variances)), 0.75)
    price = (x - means) ** 2 * (-np.log1p(-bets) - bets)
    return low + max(0.0, float((np.sum(bets * x - price) - log_target) / np.sum(bets))) * (high - low)


def _unit(values: Float[np.ndarray, "*p n"], low: float, high: float) -> Float[np.ndarray, "*p n"]:
    """values in [low, high], taken to [0, 1]."""
    slack = 1e-9 * (high - low)
    if values.size == 0 or not low < high or values.min() < low - slack or values.max() > high + slack:
        raise InputError(f"{values.size} values, window [{low:.6g}, {high:.6g}]: expected at least one, all inside it")
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _plug_ins(x: Float[np.ndarray, "*p n"]) -> tuple[Float[np.ndarray, "*p n"], Float[np.ndarray, "*p n"]]:
    """Mean and variance before each value, from the values before it and a first guess of 1/2 and 1/4."""
    count = np.arange(2, x.shape[-1] + 2)
    means = (0.5 + np.cumsum(x, axis=-1)) / count
    variances = (0.25 + np.cumsum((x - means) ** 2, axis=-1)) / count
    first = np.ones((*x.shape[:-1], 1))
    return (
        np.concatenate([0.5 * first, means[..., :-1]], axis=-1),
        np.concatenate([0.25 * first, variances[..., :-1]], axis=-1),
    )


def t_interval(values: Float[np.ndarray, " m"], confidence: float) -> tuple[float, float]:
    """Two-sided t-interval of the mean over m disjoint batches, an approximation; (-inf, inf) for fewer than two."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def verdict(lower_bits: float | None, upper_bits: float | None, tolerance_bits: float, reach_bits: float) -> Verdict:
    """In one word what [lower_bits, upper_bits] allows; reach_bits is the most any critic can show at the run's K.

    `certified`: the ends meet within the tolerance. `k-limited`: they do not, and no critic could make them at this K.
    `bounded`: they do not, or there is no upper end. `not-a-bound`: no lower end, the estimator gives no guarantee.
    """
    if lower_bits is None:
        return "not-a-bound"
    if upper_bits is None:
        return "bounded"
    if upper_bits - lower_bits <= tolerance_bits:
        return "certified"
    return "k-limited" if reach_bits < upper_bits - tolerance_bits else "bounded"


def conclusions(
    *,
    lower_bits: float | None,
    upper_bits: float | None,
    confidence: float,
    certificate: Certificate | None,
    n: int,
    errors: int | None,
    shared_exactly: bool,
    tolerance_bits: float,
    strict_bits: float,
    t_lower_bits: float,
    t_upper_bits: float,
    k: int,
    reach_bits: float,
    paper_bits: float,
    paper_k: int,
) -> list[str]:
    """What the numbers of one estimate allow, what they do not, and what would narrow them; one sentence each.

    n: fresh pairs behind the certificate; errors: of the classifier on one image of each pair, None without one.
    shared_exactly: both views have the same class C, so that upper_bits is H(C); else it is I(C;C').
    reach_bits: the most any critic shows at k, or an upper bound of it. Theorems: Lee et al. 2023.
    """
    if upper_bits == 0:
        sentences = ["The views share nothing, so I(h_X;h_Y) = 0 for every encoder, by data processing."]
    elif lower_bits is None or certificate is None:
        sentences = ["Nothing is certified: every number here is a point estimate."]
    else:
        evidence = f"{errors:,} errors in {n:,} images" if certificate == "classifier" else f"{n:,} fresh pairs"
        claim = _claim(lower_bits, upper_bits, confidence)
        sentences = [
            f"On fresh images I(h_X;h_Y) {claim} ({certificate} certificate, {evidence}).",
            "Of images drawn otherwise (other class frequencies, nuisances or pairings) nothing is claimed.",
        ]

    if not shared_exactly:
        end = "I(C;C') of the pairing is still the upper end" if upper_bits is not None else "no upper end is known"
        sentences.append(f"The views do not share their class exactly: Theorems III.1 and III.2 do not apply; {end}.")
    elif upper_bits:
        gap = upper_bits - (lower_bits or 0.0)
        met = f"it is met to within {gap:.3f} bits, which I = H(C) may still lack"
        missed = f"{gap:.3f} bits are open, so I = H(C) may not be concluded"
        sentences.append(
            f"Theorem III.1, a lower bound that meets H(C) = {upper_bits:.3f} bits makes I = H(C): "
            f"{met if gap <= tolerance_bits else missed}."
        )
        if errors is not None:
            rate = clopper_pearson_upper(errors, n, confidence)
            sentences.append(
                f"Theorem III.2, a classifier of C that never errs makes I = H(C): {errors:,} errors in {n:,} images "
                f"show only that it errs on at most {math.ceil(1e4 * rate) / 100:.2f} % of them, so no equality may be "
                "concluded."
            )

    interval = (
        f"its t-interval over disjoint batches, [{t_lower_bits:.3f}, {t_upper_bits:.3f}], is an approximation and no "
        "part of the certificate"
        if np.isfinite(t_lower_bits)
        else "one batch has no t-interval"
    )
    sentences.append(f"Strict InfoNCE reads {strict_bits:.3f} bits at K = {k:,}; {interval}.")
    excess = None if upper_bits is None else paper_bits - upper_bits
    sentences.append(
        f"The paper's form reads {paper_bits:.3f} bits at K = {paper_k:,} and is not a bound: it may exceed I"
        + (f", and here passes the upper end by {excess:.3f} bits." if excess is not None and excess > 0 else ".")
    )

    if upper_bits == 0:
        return sentences
    if upper_bits is not None and strict_bits >= upper_bits - 0.02:
        sentences.append(
            "The strict estimate is at the upper end: neither a larger K nor longer training can add to it."
        )
    elif reach_bits - strict_bits <= 0.02:
        sentences.append(
            f"At K = {k:,} no critic should show more than {reach_bits:.3f} bits: the strict estimate is there, "
            "and only a larger K can raise it."
        )
    else:
        sentences.append(
            f"At K = {k:,} no critic is expected to show more than {reach_bits:.3f} bits: the strict estimate is "
            f"{reach_bits - strict_bits:.3f} below, which longer training of encoder or critic may recover."
        )
    if certificate == "classifier" and errors == 0:
        sentences.append(
            "The certified interval narrows with more fresh test images only: the classifier made no error."
        )
    elif certificate is not None:
        wrong = "" if errors is None else f", as the classifier made {errors:,} errors"
        sentences.append(
            f"The certified interval narrows with a better encoder, longer training or a stronger probe{wrong}; more "
            "fresh test images remove only the margin for their number."
        )
    return sentences
