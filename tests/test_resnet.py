"""The encoders' arithmetic: our convolution and pooling for CPUs against XLA's, dtypes, rematerialization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mirigor_jax import parallel
from mirigor_jax.models.convolution import convolution, max_pool
from mirigor_jax.models.resnet import STAGES, make_encoder

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def lax_convolution(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST)


def our_convolution(x, kernel, strides, padding):
    return convolution(x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST, lhs_dilation=(1, 1))


@partial(jax.jit, static_argnums=0)
def value_and_gradients(f, *arguments):
    """f's value, and its arguments' gradients if the gradient of the value is cos(0), cos(1), …"""
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
        ((9, 12), (3, 3), 2, 1),
        ((9, 12), (3, 3), (1, 2), ((2, 0), (0, 2))),
        ((9, 12), (1, 1), (1, 2), 0),
        ((17, 20), (7, 7), 2, 3),  # the stem
        ((17, 20), (7, 4), 2, ((0, 5), (2, 1))),
        ((20, 17), (5, 7), (2, 3), 0),
    ],
)
@pytest.mark.parametrize("images", [3, 16])
@pytest.mark.parametrize("features", [6, 32])
def test_convolution_is_lax_s(shape, kernel, stride, padding, images, features):
    sizes = (images, *shape, 4), (*kernel, 4, features)
    x, w = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in sizes)
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    pads = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
    ours, theirs = (
        value_and_gradients(lambda x, w, f=f: f(x, w, strides, pads), x, w) for f in (our_convolution, lax_convolution)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 8, 8, 64, 64), (40, 7, 13, 80, 64), (1, 63, 65, 64, 72)])
def test_a_large_3x3_convolution_is_lax_s_in_fewer_products(shape):
    *images, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((*images, inputs), (3, 3, inputs, outputs)))
    ours, theirs = (
        partial(value_and_gradients, lambda x, w, f=f: f(x, w, (1, 1), ((1, 1), (1, 1))))
        for f in (our_convolution, lax_convolution)
    )
    assert ("stablehlo.convolution" in jax.jit(ours).lower(x, w).as_text()) is False
    for mine, other in zip(ours(x, w), theirs(x, w), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * np.abs(other).max())
    aside = ((2, 0), (0, 2))  # the shape is the same, the pixels are others
    x, w = jnp.array(x), jnp.array(w)
    np.testing.assert_allclose(
        our_convolution(x, w, (1, 1), aside), lax_convolution(x, w, (1, 1), aside), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(("platform", "itself"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_leave_xla_s_convolution_and_windows(platform, itself):
    def small(x, w):
        y = our_convolution(max_pool(x), w, (1, 1), ((1, 1), (1, 1)))
        return jnp.sum(y * y)

    x, w = jnp.zeros((2, 4, 4, 4)), jnp.zeros((3, 3, 4, 4))
    text = jax.jit(jax.grad(small, (0, 1))).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" not in text) == itself
    assert ("stablehlo.select_and_scatter" not in text) == itself
    assert ("stablehlo.dot_general" in text) == itself


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


def test_the_dtype_follows_the_hardware_unless_named(monkeypatch):
    def built(dtype):
        return make_encoder("resnet18", width=4, stem="imagenet", dtype=dtype).dtype

    assert built("auto") == "float32"
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert built("auto") == "bfloat16"
        assert built("float32") == "float32"


def test_half_precision_averages_in_float32(monkeypatch):
    # Representations that were rounded to bfloat16 could take 128 values between 1 and 2, and distinct images coincide.
    monkeypatch.setitem(STAGES, "resnet18", ((), "basic"))
    encoder = make_encoder("resnet18", width=4, stem="imagenet", dtype="bfloat16")
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    h, _ = jax.jit(partial(encoder.init_with_output, train=False))(jax.random.key(0), x)
    assert h.dtype == jnp.float32
    assert np.any(h != h.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_rematerialized_blocks_train_the_same_parameters_and_keep_less_for_the_gradient(monkeypatch):
    monkeypatch.setitem(STAGES, "resnet18", ((2,), "basic"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16, 16, 3)))
    results, kept_bytes, trees = [], [], []
    for remat in (False, True):
        encoder = make_encoder("resnet18", width=4, stem="cifar", dtype="float64", remat=remat)
        variables = jax.jit(partial(encoder.init, train=False))(jax.random.key(0), x[:1])

        def loss(params, encoder=encoder, variables=variables):
            h, updates = encoder.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(h * h), updates

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
        trees.append(jax.tree.map(jnp.shape, variables))
        pull_back = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p, has_aux=True)[1], variables["params"])
        kept_bytes.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back)))
    assert trees[0] == trees[1]
    for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-10, atol=1e-10)
    assert kept_bytes[1] < 0.6 * kept_bytes[0], kept_bytes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depths", [(2,), (1, 1)])
def test_folded_norms_train_as_batch_norms_do(depths, dtype, monkeypatch):
    # As on TPUs, against as elsewhere: features, running statistics, and gradients of parameters and images.
    monkeypatch.setitem(STAGES, "resnet50", (depths, "bottleneck"))
    with jax.enable_x64(dtype == "float64"):
        encoder = make_encoder("resnet50", width=8, stem="cifar", dtype=dtype, axis_name=parallel.AXIS)
        # So few that no rounding puts one on the other side of ReLU's corner, where its gradient jumps.
        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), dtype)
        variables = jax.jit(partial(encoder.init, train=False))(jax.random.key(0), x[:1])
        variables = jax.tree.map(lambda leaf: leaf + jnp.linspace(-0.3, 0.3, leaf.size).reshape(leaf.shape), variables)

        def step(params, x):
            def features(params, x):
                return encoder.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])

            (h, updates), pull_back = jax.vjp(features, params, x)
            weights = jnp.cos(jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape)
            in_params, in_images = pull_back((weights, jax.tree.map(jnp.zeros_like, updates)))
            return h, in_images, lax.psum((updates, in_params), parallel.AXIS)

        specs = (parallel.SHARDED, parallel.SHARDED, parallel.REPLICATED)
        results = []
        for platform in ("cpu", "tpu"):
            monkeypatch.setattr(parallel, "platform", lambda platform=platform: platform)
            mesh = parallel.make_mesh(2, jax.devices()[:2])
            results.append(
                parallel.map_step(step, mesh, (parallel.REPLICATED, parallel.SHARDED), specs)(variables["params"], x)
            )
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    plain, folded = map(jax.tree_util.tree_leaves_with_path, results)
    for (path, expected), (_, value) in zip(plain, folded, strict=True):
        error = np.abs(value - expected).max() / np.abs(expected).max()
        assert error <= tolerance, (jax.tree_util.keystr(path), error)
    assert any(np.any(expected != value) for (_, expected), (_, value) in zip(plain, folded, strict=True))
