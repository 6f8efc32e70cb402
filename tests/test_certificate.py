"""Certificates against closed forms, score matrices written out, scipy, and coverage over fresh samples."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import softmax

from mirigor_jax.errors import InputError
from mirigor_jax.mi.certificates import (
    choose_batches,
    classifier_lower_bits,
    fano_bits,
    info_nce_lower_bits,
    info_nce_lower_bits_at,
    mix_posterior,
    partition_function,
    partition_upper_bound,
    posterior_certificate,
    posterior_lower_bits,
)
from mirigor_jax.mi.certify import CERTIFICATES, Certified, Classified, HeldOut, shown
from mirigor_jax.mi.conclusions import conclusions
from mirigor_jax.mi.confidence import (
    BATCHES,
    ERRORS,
    PAIRS,
    Interval,
    clopper_pearson_lower,
    clopper_pearson_upper,
    interval_of,
    mean_lower_bound,
    plug_in_lower_bound,
    t_interval,
)
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.mi.results import Curve, Estimate, Reading, verdict


def uniform(classes):
    return np.full(classes, 1 / classes)


def confusion(classes, accuracy):
    """p(symbol | class) of an encoder whose wrong symbols are equally likely."""
    wrong = (1 - accuracy) / (classes - 1)
    return np.full((classes, classes), wrong) + (accuracy - wrong) * np.eye(classes)


def channel(classes, epsilon):
    return confusion(classes, 1 - epsilon) / classes


def information_bits(joint):
    table = joint / np.outer(joint.sum(axis=1), joint.sum(axis=0))
    return float(np.sum(joint[joint > 0] * np.log2(table[joint > 0])))


def critic_bits(joint, symbols, posterior, mixing=1e-3):
    """E_P f - log2 E_Q 2^f of the posterior's critic over the encoder's symbols. Its certificate must not exceed it."""
    posterior = (1 - mixing) * posterior + mixing / posterior.shape[1]
    score = np.log2(posterior @ (joint / np.outer(joint.sum(axis=1), joint.sum(axis=0))) @ posterior.T)
    pairs = symbols.T @ joint @ symbols
    independent = np.outer(pairs.sum(axis=1), pairs.sum(axis=0))
    return float(np.sum(pairs * score) - np.log2(np.sum(independent * 2**score)))


def draw(rng, joint, symbols, n):
    """Fresh pairs: classes from the joint distribution, then each view's symbol from its class, independently."""
    c_x, c_y = np.divmod(rng.choice(joint.size, size=n, p=joint.ravel()), joint.shape[1])
    cumulative = np.cumsum(symbols, axis=1)
    cumulative[:, -1] = 1
    s_x, s_y = ((rng.random(n)[:, None] > cumulative[c]).sum(axis=1) for c in (c_x, c_y))
    return c_x, c_y, s_x, s_y


def perfect_scores(rng, k, probabilities):
    """A perfect critic's k x k scores at temperature 0: 0 within a class, minus infinity elsewhere."""
    classes = rng.choice(len(probabilities), size=k, p=probabilities)
    return np.where(classes[:, None] == classes[None, :], 0.0, -np.inf)


# the perfect critic


def max_nt_xent_bits(k, classes):
    """The expectation of log2(2K-1) - L_NT-Xent, in bits, for a perfect critic on uniform classes.

    It can exceed log2 of the number of classes. Each anchor's denominator holds its positive and both views of every
    other pair of its class:
    log2(2K-1) - E log2(1 + 2 Bin(K-1, 1/N)). Source: Lee et al. 2023, Eq. 4, at temperature 0.
    """
    others = np.arange(k)
    return np.log2(2 * k - 1) - stats.binom.pmf(others, k - 1, 1 / classes) @ np.log2(1 + 2 * others)


@pytest.mark.parametrize(
    ("classes", "k", "bits"), [(2, 6, 1.0055), (4, 15, 2.0043), (10, 42, 3.3256), (64, 256, 6.0030)]
)
def test_nt_xent_of_a_perfect_critic_passes_the_entropy(classes, k, bits):
    assert max_nt_xent_bits(k, classes) == pytest.approx(bits, abs=6e-5)
    assert max_nt_xent_bits(k, classes) > np.log2(classes)


@pytest.mark.parametrize(("k", "bits"), [(256, 5.811), (4096, 5.989), (65536, 5.9993)])
def test_the_most_on_64_classes(k, bits):
    assert max_info_nce_bits(k, uniform(64)) == pytest.approx(bits, abs=6e-4 if k < 65536 else 6e-5)


def test_the_most_by_enumerating_all_class_draws():
    p, k = np.array([0.5, 0.3, 0.2]), 6
    expected = 0.0
    for classes in itertools.product(range(3), repeat=k):
        counts = np.bincount(classes, minlength=3)
        expected += np.prod(p[list(classes)]) * np.mean([np.log2(k / counts[c]) for c in classes])
    assert max_info_nce_bits(k, p) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("classes", "k", "batches"), [(4, 15, 20_000), (64, 256, 1_000)])
def test_perfect_critic_by_explicit_score_matrices(classes, k, batches):
    rng = np.random.default_rng(0)
    info_nce, paper = [], []
    for _ in range(batches):
        scores = np.exp(perfect_scores(rng, k, uniform(classes)))
        info_nce.append(np.mean(np.log2(k * np.diagonal(scores) / scores.sum(axis=1))))
        both = np.tile(scores, (2, 2)) - np.eye(2 * k)  # rows: 2k anchors, each against all others of both views
        paper.append(np.mean(np.log2((2 * k - 1) / both.sum(axis=1))))
    for values, formula in ((info_nce, max_info_nce_bits(k, uniform(classes))), (paper, max_nt_xent_bits(k, classes))):
        error = np.std(values) / np.sqrt(batches)
        assert error < 2e-3
        assert np.mean(values) == pytest.approx(formula, abs=4 * error)


# the classifier


@pytest.mark.parametrize(
    ("errors", "n", "classes", "bits"),
    [(0, 4096, 64, 5.962), (0, 10_000, 64, 5.983), (10, 8192, 64, 5.903), (1000, 10_000, 10, 1.10)],
)
def test_classifier_certificate_figures(errors, n, classes, bits):
    assert classifier_lower_bits(errors, n, uniform(classes), 0.95) == pytest.approx(
        bits, abs=5e-3 if classes == 10 else 5e-4
    )


@pytest.mark.parametrize(("errors", "n"), [(0, 1), (0, 4096), (3, 50), (49, 50), (50, 50)])
def test_clopper_pearson_against_scipy(errors, n):
    expected = stats.binomtest(errors, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert clopper_pearson_upper(errors, n, 0.95) == pytest.approx(expected, abs=1e-12)
    expected = stats.binomtest(errors, n, alternative="greater").proportion_ci(0.95, method="exact").low
    assert clopper_pearson_lower(errors, n, 0.95) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p", [uniform(2), uniform(10), np.array([0.7, 0.2, 0.06, 0.04])], ids=["2", "10", "unequal"])
def test_what_errors_prove_falls_from_the_entropy_to_nothing(p):
    """Without errors this is Theorem III.2, I = H(C)."""
    assert fano_bits(0.0, p) == pytest.approx(stats.entropy(p, base=2), abs=1e-12)
    values = [fano_bits(error, p) for error in np.linspace(0, 1, 1001)]
    assert all(np.diff(values) <= 0)
    positive = np.array(values) > 0
    assert all(np.diff(values)[positive[:-1]] < 0)
    assert values[-1] == 0
    e, c = 0.01, len(p)
    lost = [-r * np.log2(r) - (1 - r) * np.log2(1 - r) + r * np.log2(c - 1) for r in (e, 2 * e)]
    assert fano_bits(e, p) == pytest.approx(stats.entropy(p, base=2) - sum(lost))


def test_classifier_bound_never_exceeds_the_information_of_its_answers():
    rng = np.random.default_rng(1)
    n, informative = 10**10, 0
    for _ in range(500):
        classes = int(rng.integers(2, 12))
        p = rng.dirichlet(np.full(classes, rng.choice([0.5, 5.0])))
        answers = np.eye(classes) + rng.choice([0.01, 0.1, 1.0]) * rng.dirichlet(np.full(classes, 0.3), size=classes)
        answers /= answers.sum(axis=1, keepdims=True)
        error = 1 - np.sum(p * np.diagonal(answers))
        lower = classifier_lower_bits(round(error * n), n, p, 0.95)
        assert lower <= information_bits(answers.T @ np.diag(p) @ answers)
        informative += lower > 0
    assert informative > 100


@pytest.mark.parametrize("classes", [2, 3, 10, 64])
def test_classifier_bound_falls_with_every_error_down_to_zero(classes):
    lowers = [classifier_lower_bits(errors, 200, uniform(classes), 0.95) for errors in range(201)]
    assert all(np.diff(lowers) <= 0)
    assert lowers[0] > 0
    assert lowers[200 * (classes - 1) // classes :] == [0.0] * (200 - 200 * (classes - 1) // classes + 1)


@pytest.mark.slow
def test_classifier_coverage_on_fresh_images():
    rng = np.random.default_rng(2)
    p, error, n = np.array([0.4, 0.3, 0.2, 0.1]), 0.01, 800
    at_truth = classifier_lower_bits(10**8, 10**10, p, 0.5)
    lowers = np.array([classifier_lower_bits(int(e), n, p, 0.95) for e in rng.binomial(n, error, size=2000)])
    assert 0.95 <= np.mean(lowers <= at_truth) < 0.99  # valid, and no more cautious than a discrete count must be


# the posterior


@pytest.mark.slow
@pytest.mark.parametrize(
    ("joint", "accuracy", "n"),
    [
        pytest.param(np.eye(10) / 10, 0.9, 500, id="shared"),
        pytest.param(np.eye(4) / 4, 0.99, 1000, id="shared, few errors"),
        pytest.param(np.diag([0.7, 0.2, 0.06, 0.04]), 0.95, 1000, id="unbalanced"),
        pytest.param(np.kron(channel(4, 0.165), channel(2, 0.1)), 0.95, 1000, id="channels"),
        pytest.param(
            np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.10, 0.00, 0.20]]), 0.95, 1000, id="any table"
        ),
    ],
)
@pytest.mark.parametrize("calibrated", [True, False])
def test_posterior_coverage_on_fresh_pairs(joint, accuracy, n, calibrated):
    rng = np.random.default_rng(3)
    symbols = confusion(len(joint), accuracy)
    posterior = symbols.T if calibrated else np.eye(len(joint))
    truth, lowers = critic_bits(joint, symbols, posterior), []
    for _ in range(400):
        c_x, c_y, s_x, s_y = draw(rng, joint, symbols, n)
        lowers.append(posterior_lower_bits(posterior[s_x], posterior[s_y], c_x, c_y, joint, confidence=0.8))
    assert np.mean(np.array(lowers) <= truth) >= 0.8
    assert np.mean(lowers) > truth - 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "n", "posterior"),
    [
        pytest.param(0.9, 20_000, [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], id="miscalibrated"),
        pytest.param(0.9999, 2000, np.eye(3), id="errors seldom seen"),
    ],
)
def test_partition_function_coverage_on_fresh_pairs(accuracy, n, posterior):
    rng = np.random.default_rng(12)
    joint = np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.10, 0.00, 0.20]])
    symbols, posterior = confusion(3, accuracy), np.array(posterior)
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    truth = (p_x @ symbols @ posterior) @ (joint / np.outer(p_x, p_y)) @ (p_y @ symbols @ posterior)
    uppers = []
    for _ in range(100):
        c_x, c_y, s_x, s_y = draw(rng, joint, symbols, n)
        uppers.append(partition_upper_bound(posterior[s_x], posterior[s_y], c_x, c_y, joint, confidence=0.8))
    assert np.mean(np.array(uppers) >= truth) >= 0.8
    assert np.mean(uppers) < truth + 0.02


@pytest.mark.slow
def test_posterior_certificate_closes_on_its_critic_with_many_pairs():
    rng = np.random.default_rng(4)
    joint = np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.10, 0.00, 0.20]])
    symbols = np.array([[0.9, 0.1, 0.0], [0.05, 0.85, 0.1], [0.1, 0.2, 0.7]])
    posterior = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])
    c_x, c_y, s_x, s_y = draw(rng, joint, symbols, 1_000_000)
    lower = posterior_lower_bits(posterior[s_x], posterior[s_y], c_x, c_y, joint, confidence=0.95)
    truth = critic_bits(joint, symbols, posterior)
    assert truth - 0.01 < lower < truth < information_bits(symbols.T @ joint @ symbols)


UNEVEN = np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.10, 0.00, 0.20]])


def uneven_pairs(n, seed=0, sharpness=2.0):
    """Random posteriors, mostly right, of n pairs from the UNEVEN table, and the pairs' classes."""
    rng = np.random.default_rng(seed)
    c_x, c_y = np.divmod(rng.choice(9, size=n, p=UNEVEN.ravel()), 3)
    q_x, q_y = (softmax(rng.normal(size=(n, 3)) + sharpness * np.eye(3)[c], axis=1) for c in (c_x, c_y))
    return q_x, q_y, c_x, c_y


def weighted_partition(w, q_x, q_y, c_x, c_y):
    """E_Q[q_x^T W q_y] of weighted pairs, term by term. W - 1 averages to 0 over the classes of either view."""
    p_x, p_y = UNEVEN.sum(axis=1), UNEVEN.sum(axis=0)
    total = 1.0
    for a, b in itertools.product(range(3), repeat=2):
        mistake_x = np.sum(w * (q_x[:, a] - (c_x == a)))
        mistake_y = np.sum(w * (q_y[:, b] - (c_y == b)))
        total += mistake_x * mistake_y * (UNEVEN[a, b] / (p_x[a] * p_y[b]) - 1)
    return total


def towards_each(value, n, step=1e-6):
    """The derivatives of a function of weights, at equal weights, in the direction of each single pair."""
    start = np.full(n, 1 / n)
    ahead, behind = ([value((1 - e) * start + e * one) for one in np.eye(n)] for e in (step, -step))
    return (np.array(ahead) - np.array(behind)) / (2 * step)


def test_the_partition_function_and_each_pairs_influence_on_it():
    pairs = uneven_pairs(12)
    partition = partition_function(*pairs, UNEVEN)
    assert partition.value == pytest.approx(weighted_partition(np.full(12, 1 / 12), *pairs), rel=1e-12)
    assert abs(partition.value - 1) > 1e-3
    np.testing.assert_allclose(
        partition.influence, towards_each(lambda w: weighted_partition(w, *pairs), 12), atol=1e-8
    )
    assert partition.influence.mean() == pytest.approx(0, abs=1e-12)


def test_the_partition_functions_slope_and_curvature_bound_its_growth():
    """The function is 1 + d_x^T B d_y; the test writes out its gradient and Hessian."""
    q_x, q_y, c_x, c_y = uneven_pairs(12)
    p_x, p_y = UNEVEN.sum(axis=1), UNEVEN.sum(axis=0)
    b = np.array([[(UNEVEN[i, j] - p_x[i] * p_y[j]) / np.sqrt(p_x[i] * p_y[j]) for j in range(3)] for i in range(3)])
    d_x = (q_x.mean(axis=0) - np.bincount(c_x, minlength=3) / 12) / np.sqrt(p_x)
    d_y = (q_y.mean(axis=0) - np.bincount(c_y, minlength=3) / 12) / np.sqrt(p_y)
    partition = partition_function(q_x, q_y, c_x, c_y, UNEVEN)
    assert partition.slope == pytest.approx(np.sqrt(np.sum((b @ d_y) ** 2) + np.sum((b.T @ d_x) ** 2)))
    hessian = np.block([[np.zeros((3, 3)), b], [b.T, np.zeros((3, 3))]])
    assert partition.curvature == pytest.approx(np.linalg.eigvalsh(hessian).max())


def test_the_posteriors_value_is_its_critics_bound_at_the_samples_means():
    """E_P f - log E_Q e^f and its influences, by a loop over pairs. E_P f has the classes as a control variate."""
    n, mixing = 40, 0.01
    q_x, q_y, c_x, c_y = uneven_pairs(n)
    ratio = UNEVEN / np.outer(UNEVEN.sum(axis=1), UNEVEN.sum(axis=0))
    truth = sum(UNEVEN[a, b] * np.log(ratio[a, b]) for a, b in itertools.product(range(3), repeat=2) if UNEVEN[a, b])
    mixed_x, mixed_y = ((1 - mixing) * q + mixing / 3 for q in (q_x, q_y))
    excess = np.zeros(n)
    for i in range(n):
        e_f = sum(mixed_x[i, a] * ratio[a, b] * mixed_y[i, b] for a, b in itertools.product(range(3), repeat=2))
        excess[i] = np.log(e_f) - np.log(ratio[c_x[i], c_y[i]])

    def value(w):
        return truth + w @ excess - np.log(weighted_partition(w, mixed_x, mixed_y, c_x, c_y))

    certificate = posterior_certificate(q_x, q_y, c_x, c_y, UNEVEN, confidence=0.9, mixing=mixing)
    expected = value(np.full(n, 1 / n))
    assert expected > 0.05
    assert certificate.value_bits == pytest.approx(expected / np.log(2), rel=1e-12)
    assert certificate.influence_nats.mean() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(certificate.influence_nats - expected, towards_each(value, n), atol=1e-6)
    assert mix_posterior(q_x, mixing) == pytest.approx(mixed_x)


def test_a_posterior_that_is_wrong_shows_nothing_and_says_by_how_much():
    """Its value is at least 0, as I is. The mean of the pairs' influences is still the negative value."""
    c = np.arange(60) % 3
    wrong = 0.98 * np.eye(3)[(c + 1) % 3] + 0.02 / 3
    certificate = posterior_certificate(wrong, wrong, c, (c + 1) % 3, (1 - np.eye(3)) / 6, confidence=0.95)
    assert certificate.value_bits == certificate.lower_bits == 0
    assert certificate.influence_nats.mean() < -1


@pytest.mark.parametrize("joint", [np.ones((1, 1)), np.outer([0.7, 0.3], [0.2, 0.5, 0.3])], ids=["one", "independent"])
def test_posterior_certificate_of_classes_that_tell_nothing_is_zero(joint):
    c_x, c_y = np.divmod(np.arange(60) % joint.size, joint.shape[1])
    q_x, q_y = np.eye(joint.shape[0])[c_x], np.eye(joint.shape[1])[c_y]
    assert posterior_lower_bits(q_x, q_y, c_x, c_y, joint, confidence=0.95) == 0
    assert classifier_lower_bits(0, 60, np.ones(1), 0.95) == 0


def test_posterior_certificate_of_ten_classes_at_ninety_percent():
    rng = np.random.default_rng(5)
    joint, symbols = np.eye(10) / 10, confusion(10, 0.9)
    truth = information_bits(symbols.T @ joint @ symbols)
    assert truth == pytest.approx(2.02, abs=0.01)
    lowers = []
    for _ in range(100):
        c_x, c_y, s_x, s_y = draw(rng, joint, symbols, 10_000)
        lowers.append(posterior_lower_bits(symbols[s_x], symbols[s_y], c_x, c_y, joint, confidence=0.95))
    assert np.mean(np.array(lowers) <= truth) >= 0.95
    assert np.mean(lowers) > 1.95


def test_posterior_certificate_of_three_channels():
    """3.3 bits over three attributes of four values, read off without error: only the number of pairs costs."""
    rng = np.random.default_rng(6)
    joint = np.kron(np.kron(channel(4, 0.1632), channel(4, 0.1632)), channel(4, 0.1632))
    c_x, c_y, _, _ = draw(rng, joint, np.eye(64), 8192)
    truth = information_bits(joint)
    assert truth == pytest.approx(3.3, abs=0.01)
    assert (
        truth - 0.01 < posterior_lower_bits(np.eye(64)[c_x], np.eye(64)[c_y], c_x, c_y, joint, confidence=0.95) < truth
    )


@pytest.mark.slow
def test_redrawn_pairs_certify_noise_and_fresh_pairs_do_not():
    rng = np.random.default_rng(7)
    classes, joint = 4, np.eye(4) / 4
    claimed = {"redrawn": 0, "fresh": 0}
    for _ in range(30):
        weights = 0.2 * rng.normal(size=(8, classes))
        posterior = np.exp(rng.normal(size=(40, 8)) @ weights)  # of features that know nothing of the class
        posterior /= posterior.sum(axis=1, keepdims=True)
        bank = posterior.reshape(classes, 10, classes)  # ten images of each class
        c = rng.integers(classes, size=100_000)
        q_x, q_y = (bank[c, rng.integers(10, size=len(c))] for _ in range(2))
        claimed["redrawn"] += posterior_lower_bits(q_x, q_y, c, c, joint, confidence=0.95) > 0
        c = np.repeat(np.arange(classes), 5)
        q_x, q_y = bank[:, :5].reshape(20, classes), bank[:, 5:].reshape(20, classes)
        claimed["fresh"] += posterior_lower_bits(q_x, q_y, c, c, joint, confidence=0.95) > 0
    assert claimed["fresh"] == 0
    assert claimed["redrawn"] > 6  # a 95 % interval may be wrong in 1.5 of 30


# InfoNCE on disjoint batches


def windowed_info_nce(scores, weight):
    """Windowed InfoNCE of one k x k matrix, in nats: mean log of k times a mixed softmax, over both directions."""
    k = len(scores)
    positives = np.stack([np.diagonal(softmax(scores, axis=axis)) for axis in (0, 1)])
    return np.mean(np.log((1 - weight) * k * positives + weight))


def gaussian_scores(rng, matrices, rows, correlation, scale=1.0):
    """The exact log-ratio of standard normal pairs, times scale."""
    x, noise = rng.normal(size=(2, matrices, rows))
    y = correlation * x + np.sqrt(1 - correlation**2) * noise
    ratio = x[:, :, None] * y[:, None, :] - 0.5 * correlation * (x[:, :, None] ** 2 + y[:, None, :] ** 2)
    return scale * correlation / (1 - correlation**2) * ratio


def test_infonce_certificate_against_a_loop_over_batches():
    scores = gaussian_scores(np.random.default_rng(20), 40, 8, 0.9)
    weight, k, confidence = 0.2, 8, 0.9
    certificate = info_nce_lower_bits_at(scores, k, weight, confidence, partitions=3)
    values = np.array([windowed_info_nce(s, weight) for s in scores])  # with k = m a partition only reorders
    low, high = np.log(0.2), np.log(0.2 + 0.8 * 8)
    assert (certificate.k, certificate.batches) == (8, 40)
    assert certificate.window_nats == pytest.approx((low, high))
    bits = {
        "value_bits": values.mean(),
        "plug_in_lower_bits": plug_in_lower_bound(values, low, high, confidence),
        "lower_bits": mean_lower_bound(np.tile(values, (3, 1)), low, high, confidence),
        "t_lower_bits": t_interval(values, confidence)[0],
        "t_upper_bits": t_interval(values, confidence)[1],
    }
    for name, nats in bits.items():
        assert getattr(certificate, name) == pytest.approx(nats / np.log(2), abs=1e-9), name


def test_a_partition_uses_every_pair_once_with_its_own_positive():
    rng = np.random.default_rng(21)
    positives = 2 + rng.normal(size=(5, 12))
    scores = np.zeros((5, 12, 12))
    scores[:, np.arange(12), np.arange(12)] = positives  # then each pair's term is the same in every batch of 3
    term = np.log(0.1 + 0.9 * 3 * np.exp(positives) / (np.exp(positives) + 2))
    certificate = info_nce_lower_bits_at(scores, 3, 0.1, 0.95, partitions=2)
    assert certificate.batches == 20
    assert certificate.value_bits == pytest.approx(term.mean() / np.log(2))


def test_a_batch_is_scored_on_its_own_pairs_alone():
    scores = np.full((4, 6, 6), 9.0)  # of 6 pairs 2 a batch: whichever they are, a permuted identity stays one
    scores[:, np.arange(6), np.arange(6)] = 10.0
    expected = np.log(0.5 + 0.5 * 2 / (1 + np.exp(-1)))
    assert info_nce_lower_bits_at(scores, 2, 0.5, 0.95).value_bits == pytest.approx(expected / np.log(2))


@pytest.mark.parametrize("weight", [0.004, 0.1, 0.5])
@pytest.mark.parametrize(
    "pairs", ["00 00 00 01 11 11 22 20", "00 01 02 10 11 12 20 21 22"], ids=["dependent", "independent"]
)
def test_windowed_infonce_expects_at_most_the_information_of_any_critic(pairs, weight):
    """Exact sums over all batches of three of these equally likely pairs, for random critics and the density ratio."""
    rng, pairs = np.random.default_rng(22), np.array([[int(symbol) for symbol in pair] for pair in pairs.split()])
    joint = np.zeros((3, 3))
    np.add.at(joint, tuple(pairs.T), 1 / len(pairs))
    ratio = np.log(joint / np.outer(joint.sum(axis=1), joint.sum(axis=0)) + 1e-9)
    x, y = pairs[list(itertools.product(range(len(pairs)), repeat=3))].transpose(2, 0, 1)
    expectations = []
    for critic in [ratio, *rng.normal(scale=3, size=(60, 3, 3))]:
        scores = critic[x[:, :, None], y[:, None, :]]
        expectations.append(info_nce_lower_bits_at(scores, 3, weight, 0.5, partitions=1).value_bits)
    assert max(expectations) <= information_bits(joint) + 1e-12
    assert expectations[0] > max(expectations) - 0.02


def test_scores_of_any_size_keep_to_the_window():
    rng = np.random.default_rng(23)
    for scores in (1e4 * rng.normal(size=(20, 6, 6)), np.tile(-1e4 * np.eye(6), (20, 1, 1))):
        certificate = info_nce_lower_bits(scores.astype(np.float32), scores.astype(np.float32), 0.95)
        assert certificate.lower_bits == 0
        assert certificate.window_nats[0] - 1e-9 <= certificate.value_bits * np.log(2) <= certificate.window_nats[1]


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "scale"), [(0.5, 1.0), (0.999, 1.0), (0.8, 5.0)])
def test_batches_chosen_on_validation_are_near_the_best_on_test(correlation, scale):
    rng = np.random.default_rng(24)
    validation = gaussian_scores(rng, 1, 1024, correlation, scale)
    tests = [gaussian_scores(rng, 1, 1024, correlation, scale) for _ in range(5)]

    def mean_lower(k, weight):
        return np.mean([info_nce_lower_bits_at(test, k, weight, 0.95, partitions=1).lower_bits for test in tests])

    best = max(mean_lower(k, weight) for k in (4, 8, 16, 32, 64) for weight in (0.5, 0.25, 0.125, 0.0625, 0.016))
    assert mean_lower(*choose_batches(validation, (1, 1024), 0.95)) > best - 0.04


def test_a_certificate_of_noise_claims_nothing():
    rng = np.random.default_rng(25)
    claims = [info_nce_lower_bits(*rng.normal(size=(2, 1, 256, 256)), 0.95).lower_bits for _ in range(50)]
    assert max(claims) == 0


def test_matrices_of_batches_or_of_all_pairs_may_be_handed_over():
    rng = np.random.default_rng(26)
    validation = gaussian_scores(rng, 30, 16, 0.9)
    batches = info_nce_lower_bits(validation, gaussian_scores(rng, 64, 16, 0.9), 0.95)
    square = info_nce_lower_bits(validation, gaussian_scores(rng, 1, 1024, 0.9), 0.95)
    assert batches.k <= 16
    assert square.k <= 16  # validation has no larger batch to choose on
    truth = -0.5 * np.log2(1 - 0.9**2)
    for certificate in (batches, square):
        assert truth - 0.5 < certificate.lower_bits < truth
        assert certificate.plug_in_lower_bits < certificate.lower_bits < certificate.t_lower_bits


# a value and its lower end


def at_random(rng, joint, n, kind):
    """Held-out pairs with random scores and posteriors. kind: the kind of model that made them."""
    classes = len(joint)
    c_x, c_y = np.divmod(rng.choice(joint.size, size=n, p=joint.ravel()), classes)
    scores = rng.normal(size=(4, n // 4, n // 4))
    sharpness = {"noise": 0.0, "right": 6.0, "wrong": -3.0, "sure": 60.0, "tied": 0.0}[kind]
    scores += sharpness * np.eye(n // 4)[None]
    if kind == "tied":
        scores = np.round(scores)
    h_x, h_y = (rng.normal(size=(n, classes)) + sharpness * np.eye(classes)[c] for c in (c_x, c_y))
    q_x, q_y = (softmax(rng.choice([0.3, 1.0, 4.0]) * h, axis=1) for h in (h_x, h_y))
    stratified = bool(rng.integers(2)) and len(np.unique(c_x)) == classes
    return HeldOut(scores, Classified(q_x, q_y, c_x, c_y, q_x.argmax(axis=1), c_x, stratified))


JOINTS = {
    "equal": np.eye(3) / 3,
    "unequal": np.diag([0.6, 0.3, 0.1]),
    "uneven": UNEVEN,
    "independent": np.outer([0.6, 0.3, 0.1], [0.2, 0.3, 0.5]),
}


@pytest.mark.parametrize("kind", ["noise", "right", "wrong", "sure", "tied"])
@pytest.mark.parametrize("name", JOINTS)
def test_no_value_is_below_its_lower_end_or_outside_its_interval(name, kind):
    rng, joint = np.random.default_rng(30), JOINTS[name]
    for confidence in (0.5, 0.8, 0.95, 0.999):
        for n in (64, 256):
            validation, test = (at_random(rng, joint, n, kind) for _ in range(2))
            result = shown(test, validation, joint, confidence)
            shared = name in ("equal", "unequal")
            assert result.keys() == {"posterior", "infonce"} | ({"classifier"} if shared else set())
            for one in result.values():
                assert 0 <= one.lower_bits <= one.value_bits
                slack = 1e-12
                assert 0 <= one.interval.lower_bits <= one.value_bits + slack
                assert one.value_bits <= one.interval.upper_bits + slack


# intervals of a mean


@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize(
    ("distribution", "mean"),
    [
        (stats.bernoulli(0.01), 0.01),
        (stats.bernoulli(0.99), 0.99),
        (stats.beta(0.1, 2), 0.1 / 2.1),
        (stats.beta(2, 0.1), 2 / 2.1),
    ],
    ids=["bernoulli low", "bernoulli high", "beta low", "beta high"],
)
def test_betting_bound_covers_skewed_bounded_means(distribution, mean, n):
    values = distribution.rvs(size=(1000, n), random_state=8).astype(float)
    lowers = np.array([mean_lower_bound(3 * v - 1, -1.0, 2.0, 0.95) for v in values])
    assert np.mean(lowers <= 3 * mean - 1) >= 0.95
    assert lowers.min() >= -1


def capital(values, m, confidence, cap=0.9):
    """The gambler's capital after each value in [0, 1], step by step as published."""
    n, wealth, history = len(values), 1.0, []
    total, squares = 0.5, 0.25
    for t, x in enumerate(values, start=1):
        variance = squares / t
        wealth *= 1 + min(np.sqrt(2 * np.log(1 / (1 - confidence)) / (n * variance)), cap / m) * (x - m)
        history.append(wealth)
        total += x
        squares += (x - total / (t + 1)) ** 2
    return np.array(history)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_betting_bound_is_where_the_capital_reaches_its_target(confidence):
    values = np.random.default_rng(27).beta(4, 2, size=(3, 60))

    def root(evidence):
        return optimize.brentq(lambda m: evidence(m) - 1 / (1 - confidence), 1e-2, 1 - 1e-2)

    once = root(lambda m: capital(values[0], m, confidence).max())
    final = root(lambda m: np.mean([capital(v, m, confidence)[-1] for v in values]))
    assert mean_lower_bound(2 * values[0] - 1, -1.0, 1.0, confidence) == pytest.approx(2 * once - 1, abs=1e-6)
    assert mean_lower_bound(2 * values - 1, -1.0, 1.0, confidence) == pytest.approx(2 * final - 1, abs=1e-6)


@pytest.mark.parametrize("low", [0.0, -3.0, 5.0])
@pytest.mark.parametrize(
    "values",
    [
        np.repeat([1.0, 0.0], [200, 200]),
        np.repeat([1.0, 0.2, 0.0], [50, 10, 200]),
        np.sort(np.random.default_rng(31).random(100))[::-1],
        np.tile(np.repeat([1.0, 0.0], [200, 200]), (4, 1)),
    ],
    ids=["ones first", "few ones first", "falling", "in four ways"],
)
def test_a_lucky_order_of_bets_does_not_pass_the_mean(values, low):
    """The capital against the mean reaches its target before the low values come. The lower limit is then the mean."""
    once = np.atleast_2d(values)[0]
    rejects_the_mean = capital(once, once.mean(), 0.95).max() > 20
    result = mean_lower_bound(low + 2 * values, low, low + 2.0, 0.95)
    mean = float((low + 2 * values).mean())
    assert result <= mean
    assert rejects_the_mean
    if values.ndim == 1:
        assert result == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "zeros", "ones", "two", "uniform", "rare", "falling", "rising"])
def test_a_mean_is_never_below_its_lower_limit(kind):
    rng = np.random.default_rng(32)
    for confidence in (0.5, 0.9, 0.999):
        for shape in ((1,), (2,), (30,), (500,), (3, 40)):
            x = {
                "constant": np.full(shape, rng.random()),
                "zeros": np.zeros(shape),
                "ones": np.ones(shape),
                "two": rng.choice([0.0, 1.0], shape),
                "uniform": rng.random(shape),
                "rare": (rng.random(shape) < 0.02).astype(float),
                "falling": -np.sort(-rng.random(shape)),
                "rising": np.sort(rng.random(shape)),
            }[kind]
            low, width = rng.normal(), rng.exponential()
            values = np.clip(low + width * x, low, low + width)
            limit = mean_lower_bound(values, low, low + width, confidence)
            assert low <= limit <= values.mean() + 1e-15


def test_plug_in_bound_against_a_loop():
    values, confidence = np.random.default_rng(28).beta(4, 2, size=200), 0.95
    target, total, squares = np.log(1 / (1 - confidence)), 0.5, 0.25
    bets, gains, price = 0.0, 0.0, 0.0
    for t, x in enumerate(values, start=1):
        bet = min(np.sqrt(2 * target / (len(values) * squares / t)), 0.75)
        bets, gains = bets + bet, gains + bet * x
        price += 4 * (x - total / t) ** 2 * (-np.log(1 - bet) - bet) / 4
        total += x
        squares += (x - total / (t + 1)) ** 2
    expected = (gains - target - price) / bets
    assert plug_in_lower_bound(2 * values - 1, -1.0, 1.0, confidence) == pytest.approx(2 * expected - 1)
    assert expected < mean_lower_bound(values, 0.0, 1.0, confidence)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", [stats.bernoulli(0.1), stats.bernoulli(0.5)], ids=["skewed", "even"])
def test_bounds_of_several_partitions_cover(distribution):
    """Means of groups of four, which each of five partitions of one sample draws anew."""
    rng = np.random.default_rng(29)
    betting, plug_in = [], []
    for sample in distribution.rvs(size=(400, 200), random_state=rng).astype(float):
        values = rng.permuted(np.tile(sample, (5, 1)), axis=1).reshape(5, 50, 4).mean(axis=2)
        betting.append(mean_lower_bound(values, 0.0, 1.0, 0.8))
        plug_in.append(plug_in_lower_bound(values[0], 0.0, 1.0, 0.8))
    assert 0.8 <= np.mean(np.array(betting) <= distribution.mean()) < 1
    assert np.mean(np.array(plug_in) <= distribution.mean()) >= 0.8


def test_t_interval_misses_what_the_betting_bound_covers():
    values = stats.bernoulli(0.99).rvs(size=(500, 50), random_state=9).astype(float)
    assert np.mean([t_interval(v, 0.9)[0] <= 0.99 for v in values]) < 0.6
    assert np.mean([mean_lower_bound(v, 0.0, 1.0, 0.95) <= 0.99 for v in values]) >= 0.95


@pytest.mark.parametrize(("batches", "bits"), [(200, 5.37), (1000, 5.83), (10_000, 5.94)])
def test_betting_bound_of_a_perfect_critic_on_64_classes(batches, bits):
    """At K = 1024 and scores in a window of 2/0.1 nats it has the published comparison's values, above Hoeffding's."""
    rng = np.random.default_rng(10)
    counts = rng.multinomial(1024, uniform(64), size=batches)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(1024) - np.nansum(counts * np.log(counts), axis=1) / 1024
    lower = mean_lower_bound(values, -20.0, float(np.log(1024)), 0.95)
    assert lower / np.log(2) == pytest.approx(bits, abs=0.015)
    assert lower > values.mean() - (20 + np.log(1024)) * np.sqrt(np.log(20) / (2 * batches))


def test_t_interval_against_scipy():
    values = np.random.default_rng(11).normal(size=20)
    expected = stats.t.interval(0.95, 19, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(t_interval(values, 0.95), expected)
    assert t_interval(values[:1], 0.95) == (-np.inf, np.inf)
    interval = interval_of(values, 0.95, PAIRS)
    np.testing.assert_allclose((interval.lower_bits, interval.upper_bits), np.array(expected) / np.log(2))
    assert interval.kind == PAIRS
    assert interval_of(values[:1], 0.95, PAIRS) is None


@pytest.mark.parametrize(("ends", "expected"), [((-2, -1), (0, 0)), ((-2, 1), (0, 1)), ((1, 2), (1, 2))])
def test_the_positive_part_of_an_interval(ends, expected):
    assert Interval(*ends, BATCHES).positive_part == Interval(*expected, BATCHES)


# words


@pytest.mark.parametrize(
    ("lower", "upper", "max_bits", "word"),
    [
        (5.96, 6.0, 5.8, "certified"),  # a certificate without K may close what K cannot
        (0.0, 0.1, 0.0, "certified"),  # the tolerance itself is within
        (5.80, 6.0, 5.95, "bounded"),
        (5.80, 6.0, 5.81, "k-limited"),
        (5.80, None, 5.81, "bounded"),
        (None, 6.0, 5.95, "not-a-bound"),
    ],
)
def test_verdict(lower, upper, max_bits, word):
    assert verdict(lower, upper, 0.1, max_bits) == word


ESTIMATE = Estimate(
    name="InfoNCE",
    value_bits=5.9712,
    kind="lower bound",
    k=1024,
    ceiling_bits=10.0,
    interval=Interval(5.9605, 5.9825, ERRORS),
    lower_bits=5.9629,
    upper_bits=6.0,
    confidence=0.95,
    certificate="classifier",
    verdict="certified",
)


def test_estimate_prints_one_sentence_that_rounds_the_lower_end_down():
    assert ESTIMATE.value_nats == pytest.approx(5.9712 * 0.693147, abs=1e-5)
    assert str(ESTIMATE) == (
        "InfoNCE at K = 1,024 reads 5.971 bits (lower bound); the MI is at least 5.962 of "
        "at most 6.000 bits, at 95 % confidence, by the classifier certificate (certified)."
    )


NUMBERS = {
    "certificates": {
        "classifier": Certified(5.9712, 5.9629, ESTIMATE.interval, {"errors": 0, "images": 4096}),
        "posterior": Certified(5.97, 5.96, Interval(5.96, 5.98, PAIRS), {"pairs": 4096}),
        "infonce": Certified(5.75, 5.7, Interval(5.7, 5.8, BATCHES), {"k": 512, "batches": 8}),
    },
    "shared_exactly": True,
    "tolerance_bits": 0.1,
    "max_info_nce_bits": 5.811,
}


def read_by(info_nce: float = 5.80, nt_xent: float = 6.003, interval: Interval | None = None) -> dict:
    """The curves of both estimators, quoted at K = 256."""
    return {
        "curve": {
            "info_nce_symmetric": Curve(
                "InfoNCE", "lower bound", 256, {256: Reading(info_nce, 16, interval, 8.0, 5.811)}
            ),
            "nt_xent": Curve("NT-Xent estimate", "not a bound", 256, {256: Reading(nt_xent, 16, None, 9.0, None)}),
        }
    }


def with_errors(errors: int) -> dict:
    """The certificates, with so many errors of the classifier."""
    certificates = NUMBERS["certificates"]
    return {
        "certificates": certificates
        | {"classifier": replace(certificates["classifier"], counts={"errors": errors, "images": 4096})}
    }


def concluded(**changes) -> list[str]:
    """The conclusions after these changes to the estimate or to the other numbers."""
    others = NUMBERS | read_by(interval=Interval(5.79, 5.81, BATCHES))
    of_estimate = {name: value for name, value in changes.items() if name not in others}
    changed = {name: value for name, value in changes.items() if name in others}
    return conclusions(replace(ESTIMATE, **of_estimate), **(others | changed))


def test_conclusions_of_a_certified_run():
    first, *rest = concluded()
    assert first == (
        "On fresh images I(h_X;h_Y) is at least 5.962 of at most 6.000 bits, at 95 % confidence "
        "(classifier certificate, 0 errors in 4,096 images)."
    )
    text = " ".join(rest)
    for phrase in (
        "Theorem III.1",
        "within 0.037 bits of it",
        "Theorem III.2",
        "at most 0.08 %",
        "The estimate, 5.971 bits, [5.960, 5.982] by Clopper-Pearson of the classifier's errors, is the point estimate "
        "of a lower bound of I(h_X;h_Y) (classifier certificate); the certified lower end is the lower confidence lim",
        "InfoNCE reads 5.800 bits at K = 256; its interval, [5.790, 5.810] by t over disjoint batches, is an approx",
        "not a bound: it may exceed I, and here passes the upper end by 0.003 bits",
        "only a larger K can raise it",
        "more fresh test images only",
    ):
        assert phrase in text


@pytest.mark.parametrize(
    ("changed", "expected", "unsaid"),
    [
        ({"lower_bits": 4.0}, "2.000 bits below it, so I = H(C) does not follow", "may still be"),
        (with_errors(50), "the classifier made 50 errors", "made no error"),
        (with_errors(1000), "it errs on at most 25.55 % of all images", "made no error"),  # beta.ppf(0.95, 1001, 3096)
        (read_by(), "one batch has no interval", "disjoint batches"),
        ({"interval": None}, "The estimate, 5.971 bits, is the point estimate of a", "Clopper"),
        (read_by(info_nce=5.0), "0.811 below, which longer training", "larger K"),
        (read_by(nt_xent=5.9), "not a bound: it may exceed I.", "passes the upper end"),
        ({"certificate": "posterior"}, "(posterior certificate, 4,096 fresh pairs)", "(classifier"),
        ({"certificate": "infonce"}, "(infonce certificate, 8 batches of 512 fresh pairs)", "(classifier"),
        (
            {"shared_exactly": False, "upper_bits": 3.3},
            "Theorems III.1 and III.2 of Lee et al. 2023 do not apply",
            "H(C)",
        ),
        ({"upper_bits": 0.0, "lower_bits": 0.0}, "The views share nothing", "Theorem"),
        ({"upper_bits": None, "shared_exactly": False}, "no upper end is known", "at most 6"),
        ({"lower_bits": None, "certificate": None}, "Nothing is certified", "On fresh images"),
    ],
)
def test_conclusions_follow_the_numbers(changed, expected, unsaid):
    text = " ".join(concluded(**changed))
    assert expected in text
    assert unsaid not in text


# bad input


def test_impossible_counts_values_and_tables_are_refused():
    with pytest.raises(InputError, match="5 errors in 4 images"):
        clopper_pearson_upper(5, 4, 0.95)
    for bound in (mean_lower_bound, plug_in_lower_bound):
        with pytest.raises(InputError, match=r"window \[0, 1\]"):
            bound(np.array([0.5, 1.5]), 0.0, 1.0, 0.95)
    q, c = np.full((3, 2), 0.5), np.array([0, 0, 1])
    with pytest.raises(InputError, match=r"sums to 0\.8"):
        posterior_lower_bits(q, q, c, c, np.diag([0.4, 0.4]), confidence=0.95)
    with pytest.raises(InputError, match="no class empty"):
        posterior_lower_bits(q, q, c, c, np.diag([1.0, 0.0]), confidence=0.95)
    with pytest.raises(InputError, match=r"rows of q_y sum to 2\b"):
        posterior_lower_bits(q, 2 * q, c, c, np.diag([0.5, 0.5]), confidence=0.95)
    with pytest.raises(InputError, match="probability 0"):
        posterior_lower_bits(q, q, c, c[::-1].copy(), np.diag([0.5, 0.5]), confidence=0.95)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_scores_that_are_not_finite_are_refused(part, value):
    scores = {"validation": np.zeros((1, 32, 32)), "test": np.zeros((1, 32, 32))}
    scores[part][0, 3, 5] = value
    with pytest.raises(InputError, match=f"1 of 1,024 {part} scores are NaN or infinite"):
        info_nce_lower_bits(scores["validation"], scores["test"], 0.95)


def test_too_few_pairs_and_impossible_batches_are_refused():
    with pytest.raises(InputError, match="1 x 15 test pairs"):
        choose_batches(np.zeros((1, 100, 100)), (1, 15), 0.95)
    assert choose_batches(np.zeros((1, 100, 100)), (1, 16), 0.95)[0] == 2
    for k, weight in ((1, 0.5), (17, 0.5), (4, 0.0), (4, 1.0)):
        with pytest.raises(InputError, match=f"k = {k}, weight = {weight}: expected 2 <= k <= 16"):
            info_nce_lower_bits_at(np.zeros((1, 16, 16)), k, weight, 0.95)


def test_the_theorem_of_a_classifier_names_the_rate_that_no_error_leaves():
    """0.05^(1/1000) = 0.99701; the error rate, the rest to 1, is rounded up."""
    words = CERTIFICATES["classifier"].theorem({"errors": 0, "images": 1000}, 0.95)
    assert "0 errors in 1,000 images show only that it errs on at most 0.30 % of all images" in words


def test_a_posterior_certificate_needs_classes_and_how_they_are_paired():
    """If either is unknown, there is no posterior certificate."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 64)
    q = np.full((64, 2), 0.5)
    seen = Classified(q, q, classes, classes, classes, classes, True)
    scores = rng.normal(size=(2, 32, 32))
    for classified, joint in ((None, np.eye(2) / 2), (seen, None)):
        part = HeldOut(scores, classified)
        assert "posterior" not in shown(part, part, joint, 0.95)
