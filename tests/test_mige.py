"""MIGE: its scores against the paper's formula in NumPy, its gradient against known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import norm

from mirigor_jax import mi, models, objectives
from mirigor_jax.errors import InputError
from mirigor_jax.mi.mige import LEAST_EIGENVALUE, NEIGHBORS, WIDTH, _normal_scores, spectral_score
from mirigor_jax.models.heads import MLP
from mirigor_jax.training import train


def ssge_by_loop(x, base):
    """Shi et al. 2018, Eq. 5 and theorem 2, with all rows as landmarks, and every coefficient shrunk."""
    n, m = x.shape
    squares = np.array([[np.sum((one - other) ** 2) for other in x] for one in x])
    width = np.median(squares) / 2
    kernel = np.exp(-squares / (2 * width))
    values, vectors = np.linalg.eigh(kernel)
    kept = values**2 > LEAST_EIGENVALUE * values[-1] ** 2
    result, threshold = np.zeros_like(x), 2 * np.log(kept.sum() * m)
    for value, vector in zip(values[kept], vectors.T[kept], strict=True):
        psi = np.sqrt(n) / value * kernel @ vector
        for j in range(m):
            slope = np.sqrt(n) / value * (-(x[:, j, None] - x[None, :, j]) / width * kernel) @ vector
            terms = -(slope + base[:, j] * psi)
            z_squared = terms.mean() ** 2 / (terms.var() / n)
            result[:, j] += terms.mean() * max(0, 1 - threshold / z_squared) * psi
    return result


@pytest.mark.usefixtures("float64")
def test_the_spectral_score_is_the_paper_s_with_shrunk_coefficients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) + 2 * rng.choice([-1, 1], (60, 1))
    for base in (np.zeros_like(x), -x / 5):
        by_loop = ssge_by_loop(x, base)
        assert np.abs(by_loop).max() > 0.1
        found = spectral_score(jnp.asarray(x), jnp.asarray(base), landmarks=60)
        np.testing.assert_allclose(found, by_loop, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_columns_are_mapped_to_normal_ones_by_a_rising_map_whose_slopes_are_known():
    rng = np.random.default_rng(1)
    rows = np.stack([np.exp(rng.normal(size=2000)), rng.uniform(size=2000)], axis=1)
    scores, slopes = map(np.asarray, jax.jit(_normal_scores)(jnp.asarray(rows)))
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(np.mean(scores**4, axis=0), 3, atol=0.7)
    for column in (0, 1):
        order = np.argsort(rows[:, column])[100:-100]
        x, u, slope = rows[order, column], scores[order, column], slopes[order, column]
        assert (slope > 0).all()
        # A rise is the integral of the slopes.
        np.testing.assert_allclose(np.sum((slope[1:] + slope[:-1]) / 2 * np.diff(x)), u[-1] - u[0], rtol=1e-3)


def test_tied_values_have_the_map_s_slopes_and_constant_columns_have_none():
    """A column of −1, 0 and 1 in equal shares, whose median is its middle value, and two constant columns."""
    n = 60
    x = np.stack([np.arange(n) % 3 - 1, np.full(n, 1e-25), np.full(n, 0.1)], axis=1).astype(np.float32)
    scores, slopes = map(np.asarray, jax.jit(_normal_scores)(x))
    quantiles = np.quantile(x[:, 0], (np.arange(n) + 0.5) / n)
    above, below = np.minimum(np.arange(n) + NEIGHBORS, n - 1), np.maximum(np.arange(n) - NEIGHBORS, 0)
    widths = np.maximum(WIDTH * (quantiles[above] - quantiles[below]) / (above - below), 1e-2 * x[:, 0].std() + 1e-6)
    for at in (0, 1):  # the values −1 and 0
        z = (x[at, 0] - quantiles) / widths
        slope = np.mean(norm.pdf(z) / widths) / norm.pdf(norm.ppf(np.mean(norm.cdf(z))))
        np.testing.assert_allclose(slopes[at::3, 0], slope, rtol=1e-3)
    np.testing.assert_array_equal(scores[:, 1:], 0)
    np.testing.assert_array_equal(slopes[:, 1:], 0)
    y = np.random.default_rng(2).normal(size=(n, 2)).astype(np.float32) + x[:, :1]
    gradient = np.asarray(jax.jit(jax.grad(mi.mige))(x, y))
    np.testing.assert_array_equal(gradient[:, 1:], 0)
    assert (np.abs(gradient[1::3, 0]) > 1e-6).mean() > 0.9  # of the rows at 0
    assert np.isfinite(gradient).all()


def test_the_noise_is_new_at_each_step_for_each_view_and_for_each_image(monkeypatch):
    """Noise a thousand times as long as the embeddings, read where MIGE reads them; the loss compiles fast."""
    read = []

    def recorded(x, y, *, axis_name):
        jax.debug.callback(lambda x, y: read.extend(np.asarray(one) / 1000 for one in (x, y)), x, y)
        return jnp.mean(x * y)

    monkeypatch.setattr(objectives, "mige", recorded)
    images = np.random.default_rng(3).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    options = {"objective": "mige", "k": 32, "steps": 2, "embedding_noise": 1000.0, "head": MLP((), 2)}
    one = jax.local_devices()[:1]
    state, _ = train(models.build("mlp"), (images, np.arange(40) % 2), pairing="class", devices=one, **options)
    jax.block_until_ready(state)
    noise = np.stack(read)
    assert noise.shape == (4, 32, 2)  # two views at two steps
    np.testing.assert_allclose(noise.std(axis=1), 1, atol=0.4)
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.5  # 64 numbers: 4 standard errors


def test_rows_that_can_t_be_used_are_named():
    rows = jnp.zeros((10, 3))
    with pytest.raises(InputError, match="x has 10 rows and y has 9: expected one row of y"):
        mi.mige(rows, rows[:9])
    with pytest.raises(InputError, match=r"10 pairs of 6 columns: MIGE needs at least 12; give more pairs \(train.k"):
        mi.density_ratio_gradients(rows, rows)


def gaussian(rho, key, n):
    """Pairs of coordinates with correlations rho, rotated: I = −½ Σ log(1 − rho²)."""
    a, e, *turns = (jax.random.normal(one, (n, len(rho))) for one in jax.random.split(key))
    turns = [jnp.linalg.qr(jax.random.normal(jax.random.key(i), (len(rho), len(rho))))[0] for i in (8, 9)]
    rho = rho[None, :]
    return a @ turns[0], (rho * a + jnp.sqrt(1 - rho**2) * e) @ turns[1]


def lognormal(rho, key, n):
    """Each coordinate's exponential, not rotated: the same I."""
    a, e = (jax.random.normal(one, (n, len(rho))) for one in jax.random.split(key))
    rho = rho[None, :]
    return jnp.exp(a), jnp.exp(rho * a + jnp.sqrt(1 - rho**2) * e)


def shared_sign(center, key, n):
    """x and y are ±center plus noise, and share the sign alone, so I is at most log 2."""
    keys = jax.random.split(key, 3)
    sign = jax.random.rademacher(keys[0], (n, 1), jnp.float32)
    x, y = (sign * one[None, :] + jax.random.normal(k, (n, len(one))) for one, k in zip(center, keys[1:], strict=True))
    return x, y


def shared_sign_nats(norm_x, norm_y):
    """I of `shared_sign`, by quadrature over the coordinates along the centers, given that the sign is +."""
    nodes, weights = hermegauss(80)
    x, y = norm_x * (norm_x + nodes[:, None]), norm_y * (norm_y + nodes[None, :])
    ratio = np.logaddexp(x + y, -x - y) - np.logaddexp(x, -x) - np.logaddexp(y, -y) + np.log(2)
    return weights @ ratio @ weights / weights.sum() ** 2


def gradient(sample, parameters, n, seed=0):
    """MIGE's gradient of I with respect to the parameters of `sample`."""
    return -np.asarray(jax.grad(lambda p: mi.mige(*sample(p, jax.random.key(seed), n)))(parameters), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("d", [5, 20])
@pytest.mark.parametrize("sample", [gaussian, lognormal])
def test_the_gradient_is_within_5_percent_in_norm_and_direction(sample, d):
    rho = np.linspace(0.3, 0.9, d)
    found, truth = gradient(sample, jnp.asarray(rho, jnp.float32), 4000), rho / (1 - rho**2)
    # The length of the difference counts both errors, in norm and in direction.
    assert np.linalg.norm(found - truth) < 0.05 * np.linalg.norm(truth)


@pytest.mark.slow
def test_the_residual_mends_what_a_gaussian_gets_wrong():
    """At |center| = 2 the Gaussian of the same moments has 1.4 times the gradient's length."""
    center = jnp.zeros((2, 5)).at[:, 0].set(2.0)
    found = gradient(shared_sign, center, 16_000)[0]
    step = 1e-4
    truth = (shared_sign_nats(2 + step, 2) - shared_sign_nats(2 - step, 2)) / (2 * step)
    assert found[0] == pytest.approx(truth, rel=0.15)
    assert np.abs(found[1:]).max() < 0.15 * truth


@pytest.mark.slow
def test_devices_share_the_rows_of_all():
    x, y = gaussian(jnp.full(3, 0.8), jax.random.key(0), 64)
    keys = jax.random.split(jax.random.key(1), (2, 64))
    options = {"temperature": 0.1, "embedding_noise": 0.2, "num_classes": None}

    def loss(axis_name):
        return jax.value_and_grad(objectives.make("mige", axis_name=axis_name, **options).loss, argnums=(0, 1))

    value, slopes = jax.jit(loss(None))(x, y, *keys)
    parts = [one.reshape(2, 32, *one.shape[1:]) for one in (x, y, *keys)]
    values, in_parts = jax.jit(jax.vmap(loss("devices"), axis_name="devices"))(*parts)
    np.testing.assert_allclose(values, value, rtol=1e-4)
    for whole, part in zip(slopes, in_parts, strict=True):
        np.testing.assert_allclose(part.reshape(64, 3) / 2, whole, rtol=2e-3, atol=1e-5)
    assert value < -0.3  # −I of the noisy embeddings
    assert np.abs(slopes[0]).max() > 1e-3
