"""Coverage of each certificate over fresh test samples, the critic fixed. The table: pytest -m slow -s -n 0 THIS_FILE.

A lower end must not exceed the critic's own expected bound, at the K and window that validation chose.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy import stats
from scipy.special import entr, log_softmax
from test_certificate import channel, confusion, critic_bits, draw

from mirigor_jax.mi import certify
from mirigor_jax.mi.certificates import (
    choose_batches,
    classifier_lower_bits,
    fano_bits,
    info_nce_lower_bits,
    info_nce_lower_bits_at,
)
from mirigor_jax.mi.certify import CERTIFICATES, Classified, HeldOut
from mirigor_jax.mi.critics import JointCritic
from mirigor_jax.mi.distributions import BENCHMARK
from mirigor_jax.mi.values import info_nce

pytestmark = pytest.mark.slow

REPEATS, PAIRS, POPULATION, CONFIDENCE = 400, 10_000, 10_000_000, 0.95


def fit(distribution, k, steps=2000):
    """A joint critic after steps of Adam on k fresh pairs each, with asinh inputs because of heavy tails."""
    critic, optimizer = JointCritic((16, 16)), optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def scores(params, x, y):
        return critic.apply(params, jnp.arcsinh(x), jnp.arcsinh(y), method="scores")

    def step(carry, key):
        params, state = carry
        gradients = jax.grad(lambda p: -info_nce(scores(p, *distribution.sample(key, k))))(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    key = jax.random.key(0)
    params = critic.init(key, *distribution.sample(key, 2), method="scores")
    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda c, keys: lax.scan(step, c, keys))(start, jax.random.split(key, steps))
    return functools.partial(scores, params)


def exact(distribution):
    """The density ratio itself as critic."""

    def scores(x, y):
        def row(one):
            return distribution.log_ratio(jnp.broadcast_to(one, x.shape), y)

        return jax.vmap(row)(x)

    return scores


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def fresh_scores(sample, scores, matrices, rows, key):
    """Score matrices (matrices, rows, rows) of fresh pairs."""
    x, y = (a.reshape(matrices, rows, -1) for a in sample(key, matrices * rows))
    return lax.map(lambda pair: scores(*pair), (x, y))


def expected_bits(sample, scores, k, weight):
    """The mean over POPULATION fresh pairs, both directions, of log2(weight + (1 - weight) k softmax)."""
    per_call = 20_000 // k

    @jax.jit
    def one(key):
        s = fresh_scores(sample, scores, per_call, k, key)
        softmax = jnp.stack([jnp.diagonal(jax.nn.softmax(s, axis), axis1=1, axis2=2) for axis in (1, 2)])
        return jnp.mean(jnp.log2(weight + (1 - weight) * k * softmax))

    keys = jax.random.split(jax.random.key(2), POPULATION // (per_call * k))
    return float(np.mean(np.asarray(jax.jit(lambda keys: lax.map(one, keys))(keys)), dtype=np.float64))


def report(name, **numbers):
    print(f"\n{name:28}", *(f"{key} {value:.3f} " for key, value in numbers.items()), end="")


def check(name, expected, truth, lower, value, coverage=None):
    """Check one certificate's lower ends: valid for the critic's bound and I, near the former, at most the value."""
    expected, lower = np.broadcast_to(expected, len(lower)), np.array(lower)
    assert np.all(lower <= np.array(value))
    coverage = np.mean(lower <= expected) if coverage is None else coverage
    report(name, I=truth, expected=expected.mean(), median=np.median(lower), coverage=coverage)
    assert len(lower) >= 400
    assert coverage >= CONFIDENCE
    assert np.mean(lower <= truth) >= CONFIDENCE
    assert np.median(expected - lower) < 0.15


def check_infonce(name, expected, truth, certificates):
    check(name, expected, truth, [c.lower_bits for c in certificates], [c.value_bits for c in certificates])
    plug_in = np.array([c.plug_in_lower_bits for c in certificates])
    t_low, t_high = np.array([(c.t_lower_bits, c.t_upper_bits) for c in certificates]).T
    covered = np.mean((t_low <= expected) & (expected <= t_high))
    report("", plug_in_median=np.median(plug_in), plug_in_coverage=np.mean(plug_in <= expected), t_coverage=covered)
    assert np.mean(plug_in <= expected) >= CONFIDENCE
    assert np.isfinite([t_low, t_high]).all()


def check_interval(name, expected, shown):
    """Check that the interval of each repeat's statistic covers its expectation about as often as stated."""
    low, high = np.array([(one.interval.lower_bits, one.interval.upper_bits) for one in shown]).T
    covered = np.mean((low <= expected) & (expected <= high))
    report(f"{name}, interval", coverage=covered, width=np.median(high - low))
    assert len(shown) >= 400
    assert 0.92 <= covered <= 0.99


@pytest.mark.parametrize("name", ["gaussian-5-1.0", "student-identity-5-5-2", "1v1-additive-0.1"])
def test_infonce_certificate_of_a_fitted_critic(name):
    distribution = BENCHMARK[name]
    scores = fit(distribution, k=64)
    fresh = functools.partial(fresh_scores, distribution.sample, scores)
    k, weight = choose_batches(np.asarray(fresh(20, 500, jax.random.key(1))), (20, 500), CONFIDENCE)
    expected = expected_bits(distribution.sample, scores, k, weight)
    certificates = [
        info_nce_lower_bits_at(
            np.asarray(fresh(PAIRS // (2 * k), 2 * k, key)), k, weight, CONFIDENCE, partitions=4, seed=i
        )
        for i, key in enumerate(jax.random.split(jax.random.key(3), REPEATS))
    ]
    report(name, k=k, weight=weight)
    check_infonce(name, expected, distribution.mutual_information() / math.log(2), certificates)


def test_infonce_certificate_of_the_exact_log_ratio_with_every_choice_made_anew(monkeypatch):
    """Every repeat has a fresh validation part too: the choice of K and window on it costs no coverage."""
    distribution = BENCHMARK["gaussian-5-1.0"]
    sample, scores = distribution.sample, exact(distribution)
    expected = functools.cache(functools.partial(expected_bits, sample, scores))
    certificates, shown = [], []

    def kept(*arguments):
        certificates.append(info_nce_lower_bits(*arguments))
        return certificates[-1]

    monkeypatch.setattr(certify, "info_nce_lower_bits", kept)
    for key in jax.random.split(jax.random.key(4), REPEATS):
        validation, test = (
            HeldOut(np.asarray(fresh_scores(sample, scores, 156, 64, k))) for k in jax.random.split(key)
        )
        shown.append(CERTIFICATES["infonce"].show(test, validation, None, CONFIDENCE))
    means = np.array([expected(c.k, math.exp(c.window_nats[0])) for c in certificates])
    check_infonce("exact log ratio", means, distribution.mutual_information() / math.log(2), certificates)
    check_interval("exact log ratio", means, shown)


# An encoder of ten classes, right on 90 % of images: h = 2.983 e_c + normal noise, its posterior exact.

CLASSES, SEPARATION = 10, 2.983


def posteriors(rng, c):
    """Class posteriors of fresh images of the classes c. All rows are distinct."""
    h = rng.normal(size=(*c.shape, CLASSES))
    h += SEPARATION * (c[..., None] == np.arange(CLASSES))
    return np.exp(log_softmax(SEPARATION * h, axis=-1))


def same_class_bits(rng, weight, k):
    """Expected windowed InfoNCE of the posteriors' critic over POPULATION fresh pairs."""
    values = []
    for _ in range(POPULATION // 50_000):
        c = rng.integers(CLASSES, size=(50_000 // k, k))
        s = posteriors(rng, c) @ posteriors(rng, c).swapaxes(1, 2)
        positives = np.diagonal(s, axis1=1, axis2=2)
        softmax = np.stack([positives / s.sum(axis=axis) for axis in (1, 2)])
        values.append(np.mean(np.log2(weight + (1 - weight) * k * softmax)))
    return np.mean(values)


def test_classifier_and_posterior_certificates_of_a_ninety_percent_encoder():
    rng, joint = np.random.default_rng(5), np.eye(CLASSES) / CLASSES
    grid = np.linspace(-8, 12, 20_001)
    accuracy = np.sum(stats.norm.pdf(grid - SEPARATION) * stats.norm.cdf(grid) ** (CLASSES - 1)) * (grid[1] - grid[0])
    assert accuracy == pytest.approx(0.9, abs=2e-3)

    def lost_bits(error):
        return (entr(error) + entr(1 - error)) / math.log(2) + error * math.log2(CLASSES - 1)

    classifier_bits = math.log2(CLASSES) - lost_bits(1 - accuracy) - lost_bits(2 * (1 - accuracy))

    # The mean posterior is uniform, so E_Q e^f = 1 and the critic's bound is E_P f; it mixes 1e-3 of the uniform
    # distribution. The exact posterior is sufficient for the class, so I itself is E_P f without mixing.
    f = {0.0: [], 1e-3: []}
    for _ in range(POPULATION // 50_000):
        c = rng.integers(CLASSES, size=50_000)
        q_x, q_y = posteriors(rng, c), posteriors(rng, c)
        for mixing, values in f.items():
            inner = np.sum(((1 - mixing) * q_x + mixing / CLASSES) * ((1 - mixing) * q_y + mixing / CLASSES), axis=1)
            values.append(np.mean(np.log2(CLASSES * inner)))
    truth, posterior_bits = (float(np.mean(values)) for values in f.values())

    def by_errors(errors):
        return classifier_lower_bits(errors, PAIRS, np.full(CLASSES, 1 / CLASSES), CONFIDENCE)

    by_classifier, by_posterior = [], []
    for _ in range(REPEATS):
        c = rng.integers(CLASSES, size=PAIRS)
        q_x, q_y = posteriors(rng, c), posteriors(rng, c)
        part = HeldOut(np.zeros((1, 2, 2)), Classified(q_x, q_y, c, c, q_x.argmax(axis=1), c))
        for name, results in (("classifier", by_classifier), ("posterior", by_posterior)):
            results.append(CERTIFICATES[name].show(part, part, joint, CONFIDENCE))
        errors = by_classifier[-1].counts["errors"]
        assert errors == np.sum(q_x.argmax(axis=1) != c)
        assert by_classifier[-1].lower_bits == by_errors(errors)
        assert by_classifier[-1].value_bits == fano_bits(errors / PAIRS, np.full(CLASSES, 1 / CLASSES))
    # Clopper-Pearson's limit covers in hardly more than 95 %, which 400 repeats cannot tell from less: summed exactly.
    distribution = stats.binom(PAIRS, 1 - accuracy)
    counts = range(int(distribution.ppf(1e-6)), int(distribution.ppf(1 - 1e-6)))
    coverage = sum(distribution.pmf(errors) for errors in counts if by_errors(errors) <= classifier_bits)
    for name, expected, results, exact_coverage in (
        ("90 % encoder, classifier", classifier_bits, by_classifier, coverage),
        ("90 % encoder, posterior", posterior_bits, by_posterior, None),
    ):
        ends, values = [one.lower_bits for one in results], [one.value_bits for one in results]
        check(name, expected, truth, ends, values, exact_coverage)
        check_interval(name, expected, results)


@pytest.mark.parametrize(
    ("joint", "accuracy"),
    [
        pytest.param(np.diag([0.7, 0.2, 0.06, 0.04]), 0.95, id="unbalanced"),
        pytest.param(np.kron(channel(4, 0.165), channel(2, 0.1)), 0.95, id="channels"),
        pytest.param(np.array([[0.30, 0.02, 0.08], [0.00, 0.25, 0.05], [0.10, 0.00, 0.20]]), 0.8, id="any table"),
    ],
)
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_interval_of_the_posteriors_statistic(joint, accuracy, calibrated):
    """Also if the partition function is not 1; the influence values must include its error."""
    rng, symbols = np.random.default_rng(7), confusion(len(joint), accuracy)
    posterior = symbols.T if calibrated else 0.9 * np.eye(len(joint)) + 0.1 / len(joint)
    expected, shown = critic_bits(joint, symbols, posterior), []
    for _ in range(REPEATS):
        c_x, c_y, s_x, s_y = draw(rng, joint, symbols, 2000)
        part = HeldOut(np.zeros((1, 2, 2)), Classified(posterior[s_x], posterior[s_y], c_x, c_y, s_x, c_x))
        shown.append(CERTIFICATES["posterior"].show(part, part, joint, CONFIDENCE))
    assert all(one.lower_bits <= one.value_bits for one in shown)
    assert np.mean([one.lower_bits <= expected for one in shown]) >= CONFIDENCE
    check_interval("posterior", expected, shown)


def test_the_interval_over_redraws_fails_the_same_check():
    """The interval over redraws of a bank of 400 images is narrow around the bank's mean, which may be far off."""
    rng, k, weight, batches, bank = np.random.default_rng(6), 16, 1 / 8, 2000, 400
    expected = same_class_bits(rng, weight, k)
    lower, t_lower = [], []
    for i in range(REPEATS):
        classes = np.sort(rng.integers(CLASSES, size=bank))
        q = posteriors(rng, classes)
        assert len(np.unique(q, axis=0)) == bank
        sizes = np.bincount(classes, minlength=CLASSES)
        first = rng.integers(bank, size=(batches, k))
        c = classes[first]
        second = (np.cumsum(sizes) - sizes)[c] + (rng.random(c.shape) * sizes[c]).astype(int)
        scores = np.log(CLASSES * q[first] @ q[second].swapaxes(1, 2))
        certificate = info_nce_lower_bits_at(scores, k, weight, CONFIDENCE, partitions=1, seed=i)
        lower.append(certificate.lower_bits)
        t_lower.append(certificate.t_lower_bits)
    coverage, t_coverage = np.mean(np.array(lower) <= expected), np.mean(np.array(t_lower) <= expected)
    report("redraws", expected=expected, median=np.median(lower), coverage=coverage, t_coverage=t_coverage)
    assert coverage < 0.8
    assert t_coverage < 0.8
    assert np.median(lower) > expected - 0.15
