"""Certificates: lower ends of I(h_X;h_Y) on fresh images, each at a confidence. They run on the host, in float64.

Every lower end here is about *fresh* test images: they are independent given their class, no fit and no choice has used
them, and each is in one term only. Pairs that are redrawn from a finite bank of images are not fresh. The bank is a
population of its own, in which any encoder with distinct rows determines the class, an untrained one too.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.special import entr, xlogy

from mirigor_jax.errors import InputError
from mirigor_jax.mi.confidence import (
    clopper_pearson_upper,
    mean_lower_bound,
    plug_in_lower_bound,
    t_interval,
    vector_mean_radius,
)


@dataclass(frozen=True)
class PosteriorCertificate:
    """Lower end of I(h_X;h_Y) from a class posterior, by Donsker and Varadhan's bound, and its point estimate; bits.

    lower_bits: the bound's lower confidence limit, at the confidence that was asked for.
    value_bits: the bound's point estimate, never below lower_bits.
    influence_nats: for each pair, the value plus the pair's first-order effect on it. Their mean is the value in nats.
    """

    lower_bits: float
    value_bits: float
    influence_nats: Float[np.ndarray, " n"]


def fano_bits(error: float, class_probabilities: Float[np.ndarray, " c"]) -> float:
    """Lower bound of I(h_X;h_Y), in bits, that a classifier g with this error rate proves if both views share a class.

    error: rate at which g(h) is wrong, in 0..1. class_probabilities: p(c).
    Let F(e) = H_b(e) + e log2(c-1). Fano's inequality gives H(g(h_X)) >= H(C) - F(e). Two views disagree only if g is
    wrong about one of them, so H(g(h_X)|g(h_Y)) <= F(2e). Hence I >= H(C) - F(e) - F(2e). Beyond e = 1 - 1/c, F is kept
    at its largest value, log2 c, so that the bound never rises with e. The bound is at least 0, as I is.
    Source: Lee et al. 2023, Theorem III.2 (e = 0), by Fano's and the data processing inequality (Cover & Thomas 2006).
    """
    classes = len(class_probabilities)

    def fano_nats(rate: float) -> float:
        e = min(rate, 1 - 1 / classes)
        return float(entr(e) + entr(1 - e) + xlogy(e, classes - 1))

    nats = entr(class_probabilities).sum() - fano_nats(error) - fano_nats(2 * error)
    return max(0.0, float(nats / np.log(2)))


def classifier_lower_bits(
    errors: int, n: int, class_probabilities: Float[np.ndarray, " c"], confidence: float
) -> float:
    """Certificate of a classifier g: lower end of I(h_X;h_Y), in bits, if both views share their class exactly.

    errors: number of errors of g(h) on n fresh images, one from each pair.
    class_probabilities: p(c), known exactly.
    confidence: in (0, 1), one-sided.
    The result is `fano_bits` at Clopper and Pearson's upper limit of the error rate, so every lower rate is covered.
    Raises InputError as `clopper_pearson_upper` does.
    """
    return fano_bits(clopper_pearson_upper(errors, n, confidence), class_probabilities)


def stratified_trials(
    errors: int, counts: Int[np.ndarray, " c"], frequencies: Float[np.ndarray, " c"], confidence: float
) -> int:
    """The largest number of draws by `frequencies` that limits the error rate no tighter than stratified rows do.

    There are counts[c] rows of each class c, with `errors` errors in all. Clopper and Pearson's limit holds for the
    mean rate over independent trials of unequal rates, because the sum of such trials is less spread than a binomial.
    If counts are not in proportion to p_c, the error rate is at most max_c p_c n / counts_c times that limit.
    Source: Hoeffding 1956, Theorem 5.
    """
    n = int(counts.sum())
    limit = clopper_pearson_upper(errors, n, confidence) * float(np.max(frequencies * n / counts))
    draws = range(n, errors, -1)
    return next((m for m in draws if clopper_pearson_upper(errors, m, confidence) >= limit), max(errors, 1))


def mix_posterior(posterior: Float[np.ndarray, "n c"], weight: float) -> Float[np.ndarray, "n c"]:
    """Class probabilities (n, c) mixed with `weight` of the uniform distribution, so that none is zero."""
    return (1 - weight) * posterior + weight / posterior.shape[1]


def posterior_lower_bits(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
    *,
    confidence: float,
    mixing: float = 1e-3,
) -> float:
    """Certificate of a class posterior: lower end of I(h_X;h_Y), in bits, for any known dependence of the classes.

    q_x, q_y: (n, a) and (n, b). Class probabilities of n fresh pairs, by a model that was fitted on other images.
    c_x, c_y: (n,). The pairs' true classes.
    joint: (a, b). The distribution p(c, c') that the pairs' classes were drawn from.
    mixing: weight of the uniform distribution that is mixed into q, chosen beforehand.

    The bound is I >= E_P f - log E_Q e^f with the critic f = log q_x^T W q_y, W = p(c,c') / (p(c) p(c')). The classes
    serve as a control variate of known mean: E_P f = I(C;C') - E_P[log W_cc' - f], so only the posterior's mistakes
    lower the bound. f - log W_cc' lies in a window that is known from W and the mixing. Its betting bound uses 0.9 of
    the error probability 1 - confidence, and `partition_upper_bound` uses the other 0.1.

    Raises InputError if joint or a row of q is not a probability distribution, or if a class, or the pair of classes
    of a test pair, has probability 0.
    Source: Donsker & Varadhan 1983.
    """
    return posterior_certificate(q_x, q_y, c_x, c_y, joint, confidence=confidence, mixing=mixing).lower_bits


def posterior_certificate(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
    *,
    confidence: float,
    mixing: float = 1e-3,
) -> PosteriorCertificate:
    """`posterior_lower_bits` and the point estimate of its bound, E_P f - log E_Q e^f with the sample's means.

    Arguments and errors are those of `posterior_lower_bits`.
    """
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    if abs(joint.sum() - 1) > 1e-9 or joint.min() < 0 or p_x.min() <= 0 or p_y.min() <= 0:
        raise InputError(
            f"joint distribution of classes sums to {joint.sum():.6g}: expected p(c,c') >= 0 with sum 1, no class empty"
        )
    if not joint[c_x, c_y].all():
        raise InputError(
            "a test pair's classes have probability 0 under the joint distribution: expected pairs drawn from it"
        )
    for name, q in (("q_x", q_x), ("q_y", q_y)):
        if q.min() < 0 or abs(q.sum(axis=1) - 1).max() > 1e-6:
            raise InputError(f"rows of {name} sum to {q.sum(axis=1).max():.6g}: expected probabilities that sum to 1")
    risk, ratio = 1 - confidence, joint / np.outer(p_x, p_y)
    if np.allclose(ratio, 1):
        return PosteriorCertificate(0.0, 0.0, np.zeros(len(q_x)))  # independent classes: there is nothing to find
    q_x, q_y = mix_posterior(q_x, mixing), mix_posterior(q_y, mixing)

    corners = mix_posterior(np.eye(len(p_x)), mixing) @ ratio @ mix_posterior(np.eye(len(p_y)), mixing).T
    f_low, f_high = np.log(corners.min()), np.log(corners.max())  # bilinear in q: its extremes are at the corners
    log_ratio = np.log(ratio, out=np.zeros_like(ratio), where=joint > 0)
    possible = log_ratio[joint > 0]
    excess = np.log(np.sum(q_x @ ratio * q_y, axis=1)) - log_ratio[c_x, c_y]
    window = float(f_low - possible.max()), float(f_high - possible.min())
    return certificate_of_excess(
        excess,
        window,
        partition_function(q_x, q_y, c_x, c_y, joint),
        truth=float(np.sum(joint * log_ratio)),
        partition_upper=partition_upper_bound(q_x, q_y, c_x, c_y, joint, confidence=1 - 0.1 * risk),
        least=float(corners.min()),
        confidence=1 - 0.9 * risk,
    )


def certificate_of_excess(
    excess: Float[np.ndarray, " n"],
    window: tuple[float, float],
    partition: "Partition",
    *,
    truth: float,
    partition_upper: float,
    least: float,
    confidence: float,
) -> PosteriorCertificate:
    """Donsker and Varadhan's bound of a critic f, from the pairs' f - log W, of expectation E_P f - I(C;C'); nats.

    excess: f - log W of each pair. window: it holds every value of it.
    partition: the estimate of E_Q e^f.
    truth: I(C;C') of the classes.
    partition_upper: the upper confidence limit of E_Q e^f.
    least: the least value of e^f.
    confidence: of the excess's limit; it does not count the risk of `partition_upper`.
    """
    lower = truth + mean_lower_bound(excess, *window, confidence)
    lower -= math.log(max(partition_upper, least))
    at_least, slope = max(partition.value, least), partition.influence if partition.value > least else 0.0
    influence = truth + excess - math.log(at_least) - slope / at_least
    lower_bits, value_bits = (max(0.0, nats) / math.log(2) for nats in (lower, float(influence.mean())))
    return PosteriorCertificate(lower_bits, value_bits, influence)


@dataclass(frozen=True)
class Partition:
    """A sample's estimate of E_Q[q_x^T W q_y] as a function of the means d_x and d_y; see `partition_upper_bound`.

    value: the estimate. influence: each pair's effect on it, to first order; their mean is 0.
    slope: length of its gradient in (d_x, d_y). curvature: largest absolute eigenvalue of its Hessian.
    """

    value: float
    influence: Float[np.ndarray, " n"]
    slope: float
    curvature: float


def partition_function(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
) -> Partition:
    """Estimate the partition function of `posterior_lower_bits`, 1 + d_x^T B d_y; see `partition_upper_bound`."""
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    s_x, s_y = _mistakes(q_x, c_x, p_x), _mistakes(q_y, c_y, p_y)
    dependence = (joint - np.outer(p_x, p_y)) / np.sqrt(np.outer(p_x, p_y))
    d_x, d_y = s_x.mean(axis=0), s_y.mean(axis=0)
    by_x, by_y = dependence @ d_y, d_x @ dependence
    return Partition(
        value=float(1 + d_x @ by_x),
        influence=(s_x - d_x[None, :]) @ by_x + (s_y - d_y[None, :]) @ by_y,
        slope=float(np.hypot(np.linalg.norm(by_x), np.linalg.norm(by_y))),
        curvature=float(np.linalg.norm(dependence, 2)),
    )


def _mistakes(
    q: Float[np.ndarray, "n c"], c: Integer[np.ndarray, " n"], p: Float[np.ndarray, " c"]
) -> Float[np.ndarray, "n c"]:
    return (q - np.eye(len(p))[c]) / np.sqrt(p)[None, :]


def partition_upper_bound(
    q_x: Float[np.ndarray, "n a"],
    q_y: Float[np.ndarray, "n b"],
    c_x: Integer[np.ndarray, " n"],
    c_y: Integer[np.ndarray, " n"],
    joint: Float[np.ndarray, "a b"],
    *,
    confidence: float,
) -> float:
    """Upper confidence limit of E_Q[q_x^T W q_y], the partition function of `posterior_lower_bits`; same arguments.

    The partition function is 1 + d_x^T B d_y, with d = E[(q - e_c) / sqrt p] and B = (joint - p_x p_y^T) /
    sqrt(p_x p_y^T), because W averages to 1 and e_c to p. Each pair has a vector s = ((q_x - e_c) / sqrt p_x,
    (q_y - e_c') / sqrt p_y), whose mean is within r of (d_x, d_y), by `vector_mean_radius`. Then d_x^T B d_y is at most
    its value at the mean + r |gradient| + r^2 |B| / 2.
    """
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    s_x, s_y = _mistakes(q_x, c_x, p_x), _mistakes(q_y, c_y, p_y)
    # q and e_c lie in the simplex, so q - e_c is longest if both are vertices.
    longest = float(sum(np.sum(np.sort(1 / p)[-2:]) for p in (p_x, p_y)))
    squares = np.sum(s_x**2, axis=1) + np.sum(s_y**2, axis=1)
    radius = vector_mean_radius(squares, longest, confidence)
    at = partition_function(q_x, q_y, c_x, c_y, joint)
    return float(at.value + radius * at.slope + radius**2 * at.curvature / 2)


@dataclass(frozen=True)
class InfoNCECertificate:
    """Lower end of I(X;Y) from InfoNCE on disjoint batches of k fresh pairs, and other limits for comparison; bits.

    lower_bits: the lower end at the confidence that was asked for; at least 0, as I is.
    value_bits: the mean over batches, at least 0 and never below lower_bits.
    k: pairs a batch. batches: number of batches in one partition.
    window_nats: the interval that holds every batch's value.
    plug_in_lower_bits: the looser empirical Bernstein lower end, from one partition, at the same confidence.
    t_lower_bits, t_upper_bits: two-sided t-interval from one partition; an approximation.
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

    validation, test: matrices of scores in nats, row x_i against column y_j; the diagonal holds the positives. The
        critic has seen none of the pairs, and all are independent draws.
    confidence: in (0, 1), one-sided.
    partitions, seed: as in `info_nce_lower_bits_at`.
    Raises InputError as these two functions do.
    """
    k, weight = choose_batches(validation, test.shape[:2], confidence, seed=seed)
    return info_nce_lower_bits_at(test, k, weight, confidence, partitions=partitions, seed=seed)


def choose_batches(
    validation: Float[np.ndarray, "b n n"], test_shape: tuple[int, int], confidence: float, *, seed: int = 0
) -> tuple[int, float]:
    """Choose the k and weight for which `info_nce_lower_bits_at` is expected to give the best lower end on test.

    test_shape: (c, m), the shape of test scores (c, m, m). k is m divided by a power of 2; the weight is a power of
        1/2. From M values above `low`, the betting bound is below their mean by about
        ln(1/risk) / (M λ) + λ variance / 2, and the bet λ is at most 0.9 / (mean - low). Only the first term is
        compared: at the best bet the variance costs √(2 ln(1/risk) variance / M), which hardly depends on k.
    Raises InputError if scores are not finite, or if there are too few pairs for eight batches of two.
    """
    _require_finite(validation, "validation")
    matrices, rows = test_shape
    sizes = [rows >> halvings for halvings in range(rows.bit_length() - 1)]
    # Doubling k adds log 2 at most. With fewer than eight batches it costs more than that.
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
    """Betting bound of E[b] <= I(X;Y); b is InfoNCE of k pairs, averaged over both directions and kept in a window.

    scores: as `test` in `info_nce_lower_bits`.
    k, weight: pairs a batch, and weight of the uniform distribution; chosen without looking at these scores.
    confidence: in (0, 1), one-sided.
    partitions: number of random partitions of each matrix's rows. Batches are the diagonal blocks of each partition.
    seed: seeds the partitions.

    InfoNCE is log k minus the cross-entropy of picking the positive from k candidates, so any distribution q over them
    gives a bound: E log(k q_positive) <= I. Here q is the critic's softmax, mixed with `weight` of the uniform
    distribution. This keeps b in [log weight, log k] for any scores, and costs nothing to first order if the softmax is
    calibrated. Clipping the scores would instead leave b in a range that grows with log k.

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
        value_bits=max(0.0, float(values.mean())) / math.log(2),
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
    """K times the softmax of the positive among K candidates, for b batches in p partitions and both directions."""
    matrices, rows = scores.shape[:2]
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(partitions):
        order = rng.permuted(np.tile(np.arange(rows), (matrices, 1)), axis=1)[:, : rows // k * k]
        order = order.reshape(matrices, -1, k)
        matrix = np.arange(matrices)[:, None, None, None]
        batches = scores[matrix, order[..., :, None], order[..., None, :]].reshape(-1, k, k).astype(np.float64)
        positives = np.diagonal(batches, axis1=1, axis2=2)
        with np.errstate(over="ignore"):  # the positive may score far too low: the sum is infinite and the ratio 0
            row_sums = np.exp(batches - positives[:, :, None]).sum(axis=2)
            column_sums = np.exp(batches - positives[:, None, :]).sum(axis=1)
        ratios.append(k / np.stack([row_sums, column_sums], axis=1))
    return np.stack(ratios)


def _values(ratios: Float[np.ndarray, "p b 2 k"], weight: float) -> Float[np.ndarray, "p b"]:
    return np.log(weight + (1 - weight) * ratios).mean(axis=(2, 3))


def _require_finite(scores: np.ndarray, part: str) -> None:
    if bad := scores.size - np.count_nonzero(np.isfinite(scores)):
        raise InputError(
            f"{bad:,} of {scores.size:,} {part} scores are NaN or infinite: expected finite; clip the critic"
        )
