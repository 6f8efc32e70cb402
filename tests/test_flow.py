"""Flow matching against known mutual information, and its parts against numbers from outside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from mirigor_jax import mi
from mirigor_jax.mi import flow
from mirigor_jax.mi.api import split
from mirigor_jax.mi.distributions import BENCHMARK, CUBE, Gaussian, MultivariateNormal, Transformed


def sample(distribution, n, key=0):
    x, y = distribution.sample(jax.random.key(key), n)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_gaussian_velocity_is_the_regression_of_the_way_on_where_it_has_come(t):
    rng, rho, n = np.random.default_rng(0), 0.8, 200_000
    b, start = rng.normal(size=n), rng.normal(size=n)
    end = rho * b + np.sqrt(1 - rho**2) * rng.normal(size=n)
    x = (1 - t) * start + t * end
    slopes, *_ = np.linalg.lstsq(np.stack([x, b], axis=1), end - start, rcond=None)
    at = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, -0.4]], np.float32)
    times, rhos = np.full((3, 1), t, np.float32), np.array([rho], np.float32)
    found = flow._gaussian_velocity(jnp.asarray(at[:, :1]), times, jnp.asarray(at[:, 1:]), rhos)
    np.testing.assert_allclose(found[:, 0], at @ slopes, atol=0.02)


class Diagonal(nn.Module):
    """A velocity whose divergence is known: t times 3 x_1 and 2 x_2, plus what mixes them."""

    @nn.compact
    def __call__(self, x, t, y):
        return t * (x @ jnp.array([[3.0, 0.0], [1.0, 2.0]]))


def test_the_divergence_is_read():
    rng, rho = np.random.default_rng(0), np.array([0.6, 0.0], np.float32)
    rows = rng.normal(size=(2000, 2)).astype(np.float32)
    job = flow.FlowFit(Diagonal(), 8, 100, 1e-3)
    nats = flow._read(job, {}, flow.Ends(rows, rows, rows), rho, jax.random.key(0))
    wanted = -0.5 * np.log(1 - 0.6**2) - (3 + 2) / 2  # the mean of t is 1/2
    assert abs(np.mean(nats) - wanted) < 0.02
    assert np.std(nats) < 0.3  # of what mixes the coordinates, over random directions


@pytest.fixture(scope="module")
def bivariate():
    x, y = sample(BENCHMARK["1v1-normal-0.75"], 3000)
    seen = []
    return mi.flow_matching(x**3, y, steps=200, on_progress=lambda *told: seen.append(told)), seen


def test_a_gaussian_copula_is_found_at_once(bivariate):
    result, _ = bivariate
    assert abs(result.value_nats - (-0.5 * np.log(1 - 0.75**2))) < 0.05


def test_the_result_says_that_it_is_no_bound(bivariate):
    result, seen = bivariate
    assert str(result).startswith(f"flow matching reads {result.value_bits:.3f} bits (not a bound)")
    assert "nothing is certified" in str(result)
    assert result.interval is result.lower_bits is result.upper_bits is None
    assert "K" not in dict(result._rows())
    assert [step for step, *_ in seen] == [100, 200]
    assert seen[0][2].endswith("on validation")


@pytest.mark.slow
@pytest.mark.compiles
def test_a_view_without_a_density_does_not_move():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    result = mi.flow_matching(labels, rng.normal(size=2000), steps=100, width=4)
    assert abs(result.value_bits) < 0.05


def test_the_view_with_fewer_columns_moves():
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(400, 3)), rng.normal(size=(400, 1))
    for x, y in ((wide, narrow), (narrow, wide)):
        ends, rho = flow._ends(split([(x, y)])[0], x.shape[1], y.shape[1])
        assert ends[0].x.shape == (240, 1) == (240, len(rho))
        assert ends[0].y.shape == (240, 2 * 3 + 1)  # all that critics read of the other view


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (lambda r: r.integers(0, 3, 400), lambda r: r.integers(0, 9, (400, 2)), "only 3 different values in 240 rows"),
        (lambda r: r.integers(0, 3, 400), lambda r: twice(r.normal(size=400)), "function of its other columns"),
        (lambda r: np.ones(400), lambda r: r.integers(0, 3, 400), "all columns of x are constant"),
        (lambda r: r.normal(size=(600, 257)), lambda r: r.integers(0, 3, 600), "257 columns, more than 256"),
    ],
)
def test_without_a_density_of_either_view_it_refuses(x, y, message):
    rng = np.random.default_rng(0)
    with pytest.raises(mi.InputError, match=message):
        mi.flow_matching(x(rng), y(rng))


def twice(column):
    return np.stack([column, 2 * column + 1], axis=1)


@pytest.mark.parametrize(("option", "value"), [("width", 0), ("steps", 1.5), ("batch_size", 0), ("learning_rate", 0.0)])
def test_options_have_limits(option, value):
    with pytest.raises(mi.InputError, match=option):
        mi.flow_matching(np.arange(200.0), np.arange(200.0), **{option: value})


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 6, 10])
def test_the_stair_is_found(bits):
    x, y = sample(Transformed(Gaussian(20, bits * np.log(2)), CUBE, CUBE), 10_000)
    assert abs(mi.flow_matching(x, y).value_bits - bits) < 0.1


@pytest.mark.slow
def test_dependence_that_no_gaussian_copula_has_is_learned():
    rng = np.random.default_rng(0)
    y = rng.normal(size=20_000)
    x = 2 * np.abs(y) + rng.normal(size=20_000)  # uncorrelated with y

    def density(x):
        return integrate.quad(lambda y: 2 * stats.norm.pdf(y) * stats.norm.pdf(x - 2 * y), 0, 10)[0]

    entropy, _ = integrate.quad(lambda x: -density(x) * np.log2(density(x)), -6, 16)
    truth = entropy - stats.norm.entropy() / np.log(2)
    assert abs(mi.flow_matching(x, y).value_bits - truth) < 0.06


@pytest.mark.slow
def test_independent_views_hold_nothing():
    x, y = sample(MultivariateNormal.dense(5, 5, 0.0), 10_000)
    assert abs(mi.flow_matching(x, y).value_bits) < 0.05
