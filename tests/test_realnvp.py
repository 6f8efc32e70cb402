"""RealNVP against a numpy loop, its inverse, and the log-determinant of its Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax.models.realnvp import RealNVP

ENCODER = RealNVP(layers=4, hidden=(16,))
forward = jax.jit(ENCODER.apply)
inverse = jax.jit(lambda variables, z: ENCODER.apply(variables, z, method="inverse"))


def weights(d: int) -> dict:
    """Random values for all parameters, also biases and last layers, so scales and shifts have an effect."""
    rng = np.random.default_rng(d)
    shapes = jax.eval_shape(lambda: ENCODER.init(jax.random.key(0), jnp.zeros((1, d))))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), shapes)


def rows(d: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, d)), jnp.float32)


@pytest.mark.parametrize("d", [6, 7])
def test_it_is_its_formula(d):
    variables, expected = weights(d), np.array(rows(d), np.float64)
    log_det = np.zeros(len(expected))
    for i in range(4):
        moved, fixed = slice(i % 2, None, 2), slice(1 - i % 2, None, 2)
        first, last = (variables["params"][f"couplings_{i}"][f"Dense_{j}"] for j in (0, 1))
        h = np.maximum(expected[:, fixed] @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]
        s, t = np.split(h, 2, axis=1)
        s = 0.5 * np.tanh(s)  # four layers move each entry twice, by e at most
        expected[:, moved] = expected[:, moved] * np.exp(s) + t
        log_det += s.sum(axis=1)
    z, ours = forward(variables, rows(d))
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours, log_det, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("d", [6, 7])
def test_the_inverse_undoes_it_and_log_det_is_the_jacobians(d):
    variables, x = weights(d), rows(d)
    z, log_det = forward(variables, x)
    assert np.abs(np.asarray(z) - x).max() > 1  # far from the identity
    assert np.abs(log_det).min() > 0.1
    np.testing.assert_allclose(inverse(variables, z), x, atol=1e-4)
    of = jax.vmap(jax.jacfwd(lambda row: forward(variables, row[None])[0][0]))(x)
    np.testing.assert_allclose(np.linalg.slogdet(np.asarray(of, np.float64))[1], log_det, atol=1e-4)


def test_untrained_it_is_the_identity():
    x = rows(7)
    z, log_det = forward(jax.jit(ENCODER.init)(jax.random.key(0), x), x)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(log_det, np.zeros(5))
