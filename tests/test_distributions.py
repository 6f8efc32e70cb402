"""Known mutual information against integrals and scipy's densities; samples against scipy's distributions."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from mirigor_jax.errors import InputError
from mirigor_jax.mi.distributions import (
    ASINH,
    BENCHMARK,
    CUBE,
    HALF_CUBE,
    NORMAL_CDF,
    AdditiveUniform,
    Discrete,
    Embeddings,
    Gaussian,
    MultivariateNormal,
    StudentT,
    Transformed,
)

LINEAR = np.random.default_rng(7).normal(size=(5, 5))
COVARIANCE = LINEAR @ LINEAR.T + 0.5 * np.eye(5)
JOINT = np.array([[0.2, 0.0, 0.1], [0.05, 0.4, 0.25]])

GENERAL = MultivariateNormal(COVARIANCE, 2)
# With the degrees of freedom of scipy's multivariate_t: infinitely many are the normal.
ELLIPTICAL = {
    "gaussian": (Gaussian(4, 1.5), math.inf),
    "dense": (MultivariateNormal.dense(2, 3, 0.5), math.inf),
    "general": (GENERAL, math.inf),
    "cauchy": (StudentT(MultivariateNormal.dense(1, 1, 0.5), 1.0), 1.0),
    "student": (StudentT(GENERAL, 2.5), 2.5),
}


def scale_matrix(name):
    """Covariance, or dispersion, of (x, y)."""
    if name == "gaussian":
        correlation = math.sqrt(1 - math.exp(-2 * 1.5 / 4))
        return np.kron([[1, correlation], [correlation, 1]], np.eye(4))
    if name == "dense":
        return 0.5 * (np.ones((5, 5)) + np.eye(5))
    return np.array([[1, 0.5], [0.5, 1]]) if name == "cauchy" else COVARIANCE


def scipy_log_ratio(name, x, y):
    scale, d, df = scale_matrix(name), x.shape[1], ELLIPTICAL[name][1]
    joint, law_x, law_y = (stats.multivariate_t(shape=s, df=df) for s in (scale, scale[:d, :d], scale[d:, d:]))
    return joint.logpdf(np.hstack([x, y])) - law_x.logpdf(x).ravel() - law_y.logpdf(y).ravel()


def scipy_pairs(name, n, seed):
    distribution, df = ELLIPTICAL[name]
    sampler = stats.multivariate_t(shape=scale_matrix(name), df=df, seed=np.random.default_rng(seed))
    return np.split(sampler.rvs(n), [distribution.dim_x], axis=1)


def log_ratio(distribution, x, y):
    """Our log-ratio in float64, as a numpy array."""
    with jax.enable_x64(True):
        return np.asarray(distribution.log_ratio(jnp.asarray(x), jnp.asarray(y)))


def draw(distribution, n, seed=0):
    return tuple(np.asarray(view, float) for view in distribution.sample(jax.random.key(seed), n))


def assert_mean_is(values, expected):
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(len(values)) + 1e-12


@pytest.mark.parametrize("name", ELLIPTICAL)
def test_mutual_information_is_the_mean_of_scipys_log_ratio(name):
    ratio = scipy_log_ratio(name, *scipy_pairs(name, 200_000, seed=1))
    assert_mean_is(ratio, ELLIPTICAL[name][0].mutual_information())


@pytest.mark.slow
@pytest.mark.parametrize("name", ELLIPTICAL)
def test_mutual_information_is_the_mean_of_scipys_log_ratio_over_ten_million_pairs(name):
    ratio = np.concatenate([scipy_log_ratio(name, *scipy_pairs(name, 1_000_000, seed)) for seed in range(10)])
    assert_mean_is(ratio, ELLIPTICAL[name][0].mutual_information())


@pytest.mark.parametrize(("correlation", "df"), [(-0.6, math.inf), (0.0, 2.0), (0.4, 3.0)])
def test_mutual_information_is_the_integral(correlation, df):
    normal = MultivariateNormal.dense(1, 1, correlation)
    distribution = normal if df == math.inf else StudentT(normal, df)
    nodes, weights = np.polynomial.legendre.leggauss(400)  # on the line by t = tan
    t, dt = np.tan(nodes * np.pi / 2), weights * np.pi / 2 / np.cos(nodes * np.pi / 2) ** 2
    xy = np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1)
    log_joint = stats.multivariate_t(shape=[[1, correlation], [correlation, 1]], df=df).logpdf(xy)
    log_marginal = stats.t(df).logpdf(t)
    mass = np.exp(log_joint) * np.outer(dt, dt)
    assert np.sum(mass) == pytest.approx(1, abs=1e-4)
    integral = np.sum(mass * (log_joint - log_marginal[:, None] - log_marginal))
    assert distribution.mutual_information() == pytest.approx(integral, abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.75, 3.0])
def test_additive_uniform_is_the_integral(epsilon):
    def y_entropy(y):
        p = (stats.uniform.cdf(y + epsilon) - stats.uniform.cdf(y - epsilon)) / (2 * epsilon)
        return -p * np.log(p) if p > 0 else 0.0

    corners = sorted({-epsilon, epsilon, 1 - epsilon, 1 + epsilon})
    entropy = sum(integrate.quad(y_entropy, a, b)[0] for a, b in pairwise(corners))
    assert AdditiveUniform(epsilon).mutual_information() == pytest.approx(entropy - math.log(2 * epsilon), abs=1e-7)


def test_discrete_is_the_sum():
    total = sum(p * math.log(p / (JOINT[i].sum() * JOINT[:, j].sum())) for (i, j), p in np.ndenumerate(JOINT) if p > 0)
    assert Discrete(JOINT).mutual_information() == pytest.approx(total, abs=1e-12)
    assert Discrete.same_class(10).mutual_information() == pytest.approx(math.log(10), abs=1e-12)
    assert Discrete.same_class(4, 0.75).mutual_information() == pytest.approx(0, abs=1e-12)
    noisy = math.log(5) - stats.bernoulli(0.2).entropy() - 0.2 * math.log(4)
    assert Discrete.same_class(5, 0.2).mutual_information() == pytest.approx(noisy, abs=1e-12)


@pytest.mark.parametrize("pairs", [0, 1, 3])
def test_sparse_pairs_add_up(pairs):
    distribution = MultivariateNormal.sparse(3, 4, pairs, 0.8)
    assert (distribution.dim_x, distribution.dim_y) == (3, 4)
    assert distribution.mutual_information() == pytest.approx(-pairs * math.log(0.6), abs=1e-12)


def test_benchmark_truths():
    # Czyż et al. 2023's tasks, to three digits, from the log-determinants and entropies of their distributions.
    truths = {
        "1v1-normal-0.75": 0.413,
        "1v1-additive-0.1": 1.709,
        "1v1-additive-0.75": 0.333,
        "multinormal-dense-5-5-0.5": 0.593,
        "multinormal-dense-25-25-0.5": 1.292,
        "multinormal-sparse-5-5-2-2.0": 1.022,
        "multinormal-sparse-25-25-2-2.0": 1.022,
        "student-identity-1-1-1": 0.224,
        "student-identity-5-5-2": 0.448,
        "asinh-student-identity-5-5-2": 0.448,
    }
    for name, nats in truths.items():
        assert BENCHMARK[name].mutual_information() == pytest.approx(nats, abs=5e-4), name


@pytest.mark.parametrize("name", ELLIPTICAL)
def test_log_ratio_is_scipys(name):
    x, y = scipy_pairs(name, 1000, seed=2)
    for partner in (
        y,
        np.roll(y, 1, axis=0),
    ):  # pairs of the joint and of the product of the marginals: a critic sees both
        expected = scipy_log_ratio(name, x, partner)
        np.testing.assert_allclose(log_ratio(ELLIPTICAL[name][0], x, partner), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 0.75])
def test_log_ratio_of_additive_uniform(epsilon):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(size=(500, 1)), rng.uniform(-epsilon, 1 + epsilon, size=(500, 1))
    p_y = (stats.uniform.cdf(y + epsilon) - stats.uniform.cdf(y - epsilon)) / (2 * epsilon)
    ratio = (stats.uniform(x - epsilon, 2 * epsilon).logpdf(y) - np.log(p_y))[:, 0]
    assert np.isneginf(ratio).any()
    np.testing.assert_allclose(log_ratio(AdditiveUniform(epsilon), x, y), ratio, rtol=1e-9, atol=1e-9)


def test_additive_uniform_never_rules_its_own_rounded_samples_out():
    distribution = AdditiveUniform(1e-5)  # narrow noise, so that many samples round across its edge
    assert jnp.isfinite(distribution.log_ratio(*distribution.sample(jax.random.key(0), 100_000))).all()


def test_log_ratio_of_discrete():
    cells = np.array([(i, j) for i in range(2) for j in range(3)])
    result = log_ratio(Discrete(JOINT), np.eye(2)[cells[:, 0]], np.eye(3)[cells[:, 1]])
    expected = [JOINT[i, j] / (JOINT[i].sum() * JOINT[:, j].sum()) for i, j in cells]
    np.testing.assert_allclose(np.exp(result), expected, rtol=1e-12)
    assert np.isneginf(result[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARK)
def test_samples_and_their_log_ratio_hold_in_float32(name):
    distribution = BENCHMARK[name]

    @jax.jit
    def sample_and_score(key):
        x, y = distribution.sample(key, 100_000)
        return x, y, distribution.log_ratio(x, y)

    x, y, ratio = sample_and_score(jax.random.key(4))
    assert x.shape == (100_000, distribution.dim_x)
    assert y.shape == (100_000, distribution.dim_y)
    assert x.dtype == y.dtype == ratio.dtype == np.float32
    assert_mean_is(np.asarray(ratio, float), distribution.mutual_information())


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_samples_are_float64_under_x64_and_a_function_of_the_key():
    for distribution in (Gaussian(2, 1.0), StudentT(GENERAL, 2.5), AdditiveUniform(0.1), Discrete(JOINT)):
        first, again, other = (distribution.sample(jax.random.key(seed), 20) for seed in (0, 0, 1))
        assert first[0].dtype == first[1].dtype == distribution.log_ratio(*first).dtype == np.float64
        np.testing.assert_array_equal(np.hstack(first), np.hstack(again))
        assert not np.array_equal(np.hstack(first), np.hstack(other))


@pytest.mark.parametrize("name", ELLIPTICAL)
def test_every_projection_of_a_sample_has_its_law(name):
    distribution, df = ELLIPTICAL[name]
    xy, scale = np.hstack(draw(distribution, 20_000)), scale_matrix(name)
    directions = np.vstack([np.eye(len(scale)), np.random.default_rng(5).normal(size=(5, len(scale)))])
    for direction in directions:
        projection = xy @ direction / math.sqrt(direction @ scale @ direction)
        assert stats.kstest(projection, stats.t(df).cdf).pvalue > 1e-3


def test_additive_uniform_samples_independent_noise():
    x, y = draw(AdditiveUniform(0.3), 20_000)
    assert stats.kstest(x[:, 0], stats.uniform.cdf).pvalue > 1e-3
    assert stats.kstest((y - x)[:, 0], stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-3
    assert stats.spearmanr(x, y - x).pvalue > 1e-3


def test_discrete_samples_its_joint_law():
    x, y = draw(Discrete(JOINT), 20_000)
    assert (x.sum(axis=1) == 1).all()
    assert (y.sum(axis=1) == 1).all()
    counts = x.T @ y
    assert counts[0, 1] == 0
    assert stats.chisquare(counts[JOINT > 0], 20_000 * JOINT[JOINT > 0]).pvalue > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("homeomorphism", "function"),
    [
        (CUBE, lambda x: x**3),
        (ASINH, np.arcsinh),
        (HALF_CUBE, lambda x: np.sign(x) * np.abs(x) ** 1.5),
        (NORMAL_CDF, stats.norm.cdf),
    ],
)
def test_maps_are_their_functions_and_invertible(homeomorphism, function):
    x = np.linspace(-4, 4, 81)
    mapped = homeomorphism.forward(jnp.asarray(x))
    np.testing.assert_allclose(mapped, function(x), rtol=1e-12)
    np.testing.assert_allclose(homeomorphism.inverse(mapped), x, atol=1e-9)


@pytest.mark.slow
def test_normal_cdf_stays_finite_where_it_saturates():
    x = jnp.array([[5.2], [7.0]], jnp.float32)
    assert NORMAL_CDF.forward(x)[1] == 1
    assert jnp.isfinite(NORMAL_CDF.inverse(NORMAL_CDF.forward(x))).all()


@pytest.mark.slow
@pytest.mark.parametrize("maps", [(CUBE, ASINH), (NORMAL_CDF, HALF_CUBE)])
def test_maps_change_the_sample_and_not_the_information(maps):
    plain = MultivariateNormal.dense(2, 3, 0.5)
    mapped = Transformed(plain, *maps)
    assert (mapped.dim_x, mapped.dim_y) == (2, 3)
    assert mapped.mutual_information() == plain.mutual_information()
    with jax.enable_x64(True):
        before, after = plain.sample(jax.random.key(6), 100), mapped.sample(jax.random.key(6), 100)
        for homeomorphism, view, image in zip(maps, before, after, strict=True):
            np.testing.assert_array_equal(image, homeomorphism.forward(view))
        np.testing.assert_allclose(mapped.log_ratio(*after), plain.log_ratio(*before), atol=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(0, 1.0), "dimension 0"),
        (lambda: Gaussian(2, -0.1), "-0.1 nats"),
        (lambda: Gaussian(2, math.inf), "inf nats"),
        (lambda: MultivariateNormal(np.eye(3), 3), "dim_x 3"),
        (lambda: MultivariateNormal(np.array([[1.0, 0.5], [0.4, 1.0]]), 1), "symmetric"),
        (lambda: MultivariateNormal(np.diag([1.0, math.inf]), 1), "finite"),
        (lambda: MultivariateNormal(np.array([[1.0, math.nan], [math.nan, 1.0]]), 1), "finite"),
        (lambda: MultivariateNormal.dense(2, 2, 1.0), "positive definite"),
        (lambda: MultivariateNormal.dense(2, 2, -0.5), "positive definite"),
        (lambda: MultivariateNormal.sparse(2, 3, 3, 0.5), "3 pairs"),
        (lambda: StudentT(GENERAL, 0.0), "0.0 degrees"),
        (lambda: StudentT(GENERAL, math.inf), "inf degrees"),
        (lambda: AdditiveUniform(0.0), "half-width 0.0"),
        (lambda: Discrete(np.array([[0.6, 0.5], [-0.1, 0.0]])), "least entry -0.1"),
        (lambda: Discrete(np.full((2, 2), 0.3)), "sum 1.2"),
        (lambda: Discrete(np.array([[0.5, 0.5], [0.0, 0.0]])), "no class empty"),
        (lambda: Discrete.same_class(1), "1 classes"),
        (lambda: Discrete.same_class(3, 1.5), "epsilon 1.5"),
    ],
)
def test_impossible_parameters_are_the_users_mistake(build, message):
    with pytest.raises(InputError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)


def test_embeddings_have_the_mi_of_their_bits():
    """Against a table of all combinations of three bits, and its sum of p log ratio, by loops."""
    sources, epsilon = 3, 0.11
    law = Embeddings(sources, 8, epsilon)
    total = 0.0
    for flips in range(2**sources):
        flipped = bin(flips).count("1")
        p = epsilon**flipped * (1 - epsilon) ** (sources - flipped)
        total += p * math.log(p / 0.5**sources)
    assert law.mutual_information() == pytest.approx(total, rel=1e-12)
    assert Embeddings(10, 8).mutual_information() == pytest.approx(10 * math.log(2))
    assert Embeddings(10, 8, 0.5).mutual_information() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_embeddings_show_fair_bits_that_the_channel_flips(epsilon):
    n, law = 4000, Embeddings(10, 24, epsilon)
    x, y = law.sample(jax.random.key(1), n)
    assert x.shape == y.shape == (n, law.dim_x) == (n, 240)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(x).reshape(n, 10, 24), axis=2), 1, rtol=1e-5)
    of_x, of_y = np.asarray(law.bits(x)), np.asarray(law.bits(y))
    counts = stats.binomtest(int((of_x != of_y).sum()), of_x.size, epsilon)
    assert counts.pvalue > 1e-3
    assert stats.binomtest(int(of_x.sum()), of_x.size).pvalue > 1e-3
    assert np.abs(np.corrcoef(of_x.T) - np.eye(10)).max() < 5 / math.sqrt(n)
    ratio = np.asarray(law.log_ratio(x, y), np.float64)
    error = 5 * ratio.std() / math.sqrt(n) + 1e-5
    assert ratio.mean() == pytest.approx(law.mutual_information(), abs=error)
    # Independent pairs: the mean of the ratio is 1.
    independent = np.exp(np.asarray(law.log_ratio(x, jnp.roll(y, 1, axis=0)), np.float64))
    assert independent.mean() == pytest.approx(1, abs=5 * independent.std() / math.sqrt(n))


def test_embeddings_resemble_those_of_a_sentence_encoder():
    """All have a common direction, variance falls over many components, and a linear rule reads the bit."""
    n, law = 4000, Embeddings(1, 64)
    x, _ = law.sample(jax.random.key(2), n)
    rows, bits = np.asarray(x, np.float64), np.asarray(law.bits(x))[:, 0]
    assert (rows[:100] @ rows[100:200].T).mean() > 0.3
    variance = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert variance[0] / variance.sum() < 0.35
    assert variance[1] > 5 * variance[50]
    half = n // 2
    target = np.where(bits, 1.0, -1.0)
    weights, *_ = np.linalg.lstsq(np.c_[rows[:half], np.ones(half)], target[:half], rcond=None)
    read = np.c_[rows[half:], np.ones(half)] @ weights > 0
    assert (read == bits[half:]).mean() > 0.98


@pytest.mark.parametrize("wrong", [(0, 8, 0.1), (2, 2, 0.1), (2, 8, 0.6), (2, 8, -0.1), (2, 8, math.nan)])
def test_embeddings_outside_their_limits_are_refused(wrong):
    with pytest.raises(InputError, match="expected at least 1 source, at least 3 dim"):
        Embeddings(*wrong)
