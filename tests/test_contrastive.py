"""NT-Xent and InfoNCE against optax, plain loops, and themselves over eight devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mirigor_jax import parallel
from mirigor_jax.mi import bounds
from mirigor_jax.mi.contrastive import info_nce_embeddings, nt_xent, nt_xent_mi


def embeddings(k: int, d: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, d)), rng.normal(size=(k, d))


def nt_xent_by_loop(z_x, z_y, temperature):
    """Lee et al. 2023, Eq. 2–3, term by term."""
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_x, z_y)]
    k, total = len(z_x), 0.0
    for view in (0, 1):
        own, other = unit[view], unit[1 - view]
        for i in range(k):
            within = sum(math.exp(own[i] @ own[j] / temperature) for j in range(k) if j != i)
            across = sum(math.exp(own[i] @ other[j] / temperature) for j in range(k))
            total -= math.log(math.exp(own[i] @ other[i] / temperature) / (within + across))
    return total / (2 * k)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("block", [None, 3])
def test_nt_xent_is_the_papers_loss(temperature, block):
    z_x, z_y = embeddings(7)
    ours = nt_xent(jnp.array(z_x), jnp.array(z_y), temperature, block=block)
    np.testing.assert_allclose(ours, nt_xent_by_loop(z_x, z_y, temperature), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 4])
def test_nt_xent_and_its_gradient_are_optax_s(block):
    z = tuple(map(jnp.array, embeddings(6, seed=1)))

    def peer(z_x, z_y):
        return jnp.mean(optax.losses.ntxent(jnp.concatenate([z_x, z_y]), jnp.tile(jnp.arange(6), 2), 0.2))

    ours, gradients = jax.value_and_grad(lambda *z: nt_xent(*z, 0.2, block=block), argnums=(0, 1))(*z)
    with jax.numpy_rank_promotion("allow"):
        theirs, expected = jax.value_and_grad(peer, argnums=(0, 1))(*z)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(gradients, expected, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_nt_xent_gradient_is_the_slope():
    z_x, z_y = map(jnp.array, embeddings(5, seed=2))
    direction = jnp.array(np.random.default_rng(3).normal(size=z_x.shape))
    slope = jnp.vdot(jax.grad(nt_xent)(z_x, z_y, 0.3), direction)
    step = 1e-6
    rise = (nt_xent(z_x + step * direction, z_y, 0.3) - nt_xent(z_x - step * direction, z_y, 0.3)) / (2 * step)
    np.testing.assert_allclose(slope, rise, rtol=1e-6)


def test_nt_xent_is_finite_where_scores_overflow():
    z = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss, gradient = jax.value_and_grad(nt_xent)(z, z, 1e-4)
    assert math.isclose(loss, 0.0, abs_tol=1e-6)
    assert jnp.all(jnp.isfinite(gradient))
    zero = jax.grad(nt_xent)(jnp.zeros((3, 2)), z, 0.1)
    assert jnp.all(jnp.isfinite(zero))


def test_estimate_never_passes_its_ceiling():
    # Embeddings that fit perfectly: the loss goes to 0, Eq. 4's estimate to log(2K−1).
    z = jnp.eye(8)
    assert nt_xent_mi(float(nt_xent(z, z, 0.01)), 8) == pytest.approx(math.log(15), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 4])
def test_info_nce_of_embeddings_is_that_of_their_scores(block):
    z_x, z_y = embeddings(9, seed=4)
    scores = z_x @ z_y.T
    by_loop = 0.0
    for i in range(9):
        for axis in (scores[i], scores[:, i]):
            by_loop += 0.5 * (scores[i, i] - math.log(sum(math.exp(s) for s in axis))) / 9
    ours = info_nce_embeddings(jnp.array(z_x), jnp.array(z_y), block=block)
    np.testing.assert_allclose(ours, math.log(9) + by_loop, rtol=1e-12)
    np.testing.assert_allclose(bounds.info_nce_symmetric(jnp.array(scores)), math.log(9) + by_loop, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("loss", [lambda x, y, **kw: nt_xent(x, y, 0.2, **kw), info_nce_embeddings])
@pytest.mark.parametrize("block", [None, 2])
def test_eight_devices_give_what_one_gives(loss, block):
    z = tuple(map(jnp.array, embeddings(24, seed=5)))
    expected = jax.value_and_grad(loss, argnums=(0, 1))(*z)

    def step(z_x, z_y):
        value, gradients = jax.value_and_grad(
            lambda x, y: loss(x, y, block=block, axis_name=parallel.AXIS), argnums=(0, 1)
        )(z_x, z_y)
        # Each device's rows get the gradient of the sum over devices of their means: eight times the mean's.
        return jax.lax.pmean(value, parallel.AXIS), jax.tree.map(lambda g: g / 8, gradients)

    mesh = parallel.make_mesh(24)
    assert mesh.size == 8
    value, gradients = parallel.map_step(step, mesh, (P("data"), P("data")), (P(), P("data")))(*z)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradients, expected[1], atol=1e-12)


def test_bfloat16_is_summed_in_float32():
    z_x, z_y = (jnp.array(z, jnp.bfloat16) for z in embeddings(256, 64, seed=6))
    exact = nt_xent(z_x.astype(jnp.float32), z_y.astype(jnp.float32), 0.5)
    ours = nt_xent(z_x, z_y, 0.5)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, atol=5e-3)
