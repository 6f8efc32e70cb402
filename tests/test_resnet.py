"""The encoders' arithmetic: convolution and pooling as CPUs do them against XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mirigor_jax.models.convolution import convolution, max_pool

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def lax_convolution(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST)


def our_convolution(x, kernel, strides, padding):
    return convolution(x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST, lhs_dilation=(1, 1))


@partial(jax.jit, static_argnums=0)
def value_and_gradients(f, *arguments):
    """f's value, and the gradients of its arguments where the value's own is cos(0), cos(1), …"""
    y, pull_back = jax.vjp(f, *arguments)
    return y, *pull_back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 2), (3, 3), 1, 1),  # stage 4 at 64²
        ((4, 4), (3, 3), 2, 1),  # and the way into it: only the gradient of the input would be slow
        ((1, 1), (3, 3), 1, 1),
        ((5, 5), (3, 3), 2, 1),
        ((6, 6), (7, 7), 2, 3),
        ((2, 9), (3, 5), (1, 2), ((1, 1), (2, 1))),
        ((2, 2), (1, 1), 2, 0),
        ((8, 8), (3, 3), 1, 1),
    ],
)
def test_convolution_is_lax_s(shape, kernel, stride, padding):
    x, w = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((3, *shape, 4), (*kernel, 4, 6)))
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    pads = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
    ours, theirs = (
        value_and_gradients(lambda x, w, f=f: f(x, w, strides, pads), x, w) for f in (our_convolution, lax_convolution)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(("platform", "own"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_leave_xla_s_convolution_and_windows(platform, own):
    def small(x, w):
        y = our_convolution(max_pool(x), w, (1, 1), ((1, 1), (1, 1)))
        return jnp.sum(y * y)

    x, w = jnp.zeros((2, 4, 4, 4)), jnp.zeros((3, 3, 4, 4))
    text = jax.jit(jax.grad(small, (0, 1))).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" not in text) == own
    assert ("stablehlo.select_and_scatter" not in text) == own
    assert ("stablehlo.dot_general" in text) == own


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 4), (1, 5)])
def test_max_pool_is_the_windows_maximum_and_its_gradient_goes_there(height, width):
    # All values differ, and are below zero, so that a border of zeros would show.
    x = -1.0 - np.random.default_rng(0).permutation(2 * height * width * 3).reshape(2, height, width, 3)
    y, gradient = value_and_gradients(max_pool, jnp.asarray(x, jnp.float32))
    cotangent = np.cos(np.arange(y.size)).reshape(y.shape)
    expected = np.zeros(x.shape)
    assert y.shape == (2, -(-height // 2), -(-width // 2), 3)
    for n, i, j, c in np.ndindex(*y.shape):
        rows, columns = slice(max(0, 2 * i - 1), 2 * i + 2), slice(max(0, 2 * j - 1), 2 * j + 2)
        window = x[n, rows, columns, c]
        assert y[n, i, j, c] == window.max()
        expected[n, rows, columns, c] += cotangent[n, i, j, c] * (window == window.max())
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
