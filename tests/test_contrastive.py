"""NT-Xent, InfoNCE and uniformity against optax, plain loops and closed-form gradients, on one device and several."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy.spatial.distance import pdist

from mirigor_jax import parallel
from mirigor_jax.errors import InputError
from mirigor_jax.mi import contrastive, values
from mirigor_jax.mi.contrastive import (
    FUSED_ROWS,
    fused_is_faster,
    info_nce_from_embeddings,
    nt_xent,
    nt_xent_mi,
    uniformity,
)


def value_and_gradients(loss, *z, **options):
    """The loss's value, and its gradients in all its arguments."""
    return jax.jit(jax.value_and_grad(partial(loss, **options), argnums=tuple(range(len(z)))))(*z)


def embeddings(k: int, d: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, d)), rng.normal(size=(k, d))


def nt_xent_by_loop(z_x, z_y, temperature):
    """Lee et al. 2023, Eq. 2–3, term by term."""
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_x, z_y)]
    k, total = len(z_x), 0.0
    for view in (0, 1):
        itself, other = unit[view], unit[1 - view]
        for i in range(k):
            within = sum(math.exp(itself[i] @ itself[j] / temperature) for j in range(k) if j != i)
            across = sum(math.exp(itself[i] @ other[j] / temperature) for j in range(k))
            total -= math.log(math.exp(itself[i] @ other[i] / temperature) / (within + across))
    return total / (2 * k)


def nt_xent_by_hand(z_x, z_y, temperature):
    """(Loss, its gradients in z_x and z_y) from the whole softmax matrix, in float64."""
    z = np.concatenate([z_x, z_y]).astype(np.float64)
    n, norm = len(z), np.linalg.norm(z, axis=1, keepdims=True)
    unit, positive = z / norm, np.roll(np.arange(n), n // 2)
    scores = unit @ unit.T / temperature
    np.fill_diagonal(scores, -np.inf)
    top = scores.max(axis=1, keepdims=True)
    softmax = np.exp(scores - top)
    total = softmax.sum(axis=1, keepdims=True)
    loss = np.mean(top + np.log(total)) - np.mean(scores[np.arange(n), positive])
    softmax /= total
    slope = (softmax + softmax.T) @ unit - 2 * unit[positive]
    slope -= np.sum(slope * unit, axis=1, keepdims=True) * unit
    return loss, np.split(slope / (n * temperature * norm), 2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 3, 20])
def test_nt_xent_is_the_papers_loss(block):
    z_x, z_y = embeddings(7)
    ours = jax.jit(partial(nt_xent, block=block))
    for temperature in (0.1, 1.0):
        expected = nt_xent_by_loop(z_x, z_y, temperature)
        np.testing.assert_allclose(ours(jnp.array(z_x), jnp.array(z_y), temperature), expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 4, 5])
def test_nt_xent_and_its_gradient_are_optax_s(block):
    z = tuple(map(jnp.array, embeddings(6, seed=1)))

    def peer(z_x, z_y):
        return jnp.mean(optax.losses.ntxent(jnp.concatenate([z_x, z_y]), jnp.tile(jnp.arange(6), 2), 0.2))

    ours, gradients = value_and_gradients(nt_xent, *z, temperature=0.2, block=block)
    with jax.numpy_rank_promotion("allow"):
        theirs, expected = value_and_gradients(peer, *z)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(gradients, expected, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 3])
def test_nt_xent_gradient_in_temperature_is_the_slope(block):
    z_x, z_y = embeddings(5, seed=2)
    _, (_, _, slope) = value_and_gradients(nt_xent, jnp.array(z_x), jnp.array(z_y), jnp.array(0.3), block=block)
    rise = nt_xent_by_loop(z_x, z_y, 0.3 + 1e-6) - nt_xent_by_loop(z_x, z_y, 0.3 - 1e-6)
    np.testing.assert_allclose(slope, rise / 2e-6, rtol=1e-7)


@pytest.mark.slow
def test_at_a_size_scored_in_blocks_value_and_gradient_are_exact():
    z = [x.astype(np.float32) for x in embeddings(2048, 64, seed=3)]
    loss, gradients = value_and_gradients(nt_xent, *z, temperature=0.1)
    expected, slopes = nt_xent_by_hand(*z, 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, slopes, atol=1e-6 * np.abs(slopes).max())
    # 8 × 8 tiles, of which those below the diagonal repeat the others.
    assert re.findall(r"length=(\d+)", str(jax.make_jaxpr(partial(nt_xent, block=512))(*z, 0.1))) == ["36"]


@pytest.mark.parametrize("block", [None, 2])
def test_nt_xent_is_finite_where_scores_overflow(block):
    evaluate = jax.jit(jax.value_and_grad(partial(nt_xent, block=block), argnums=(0, 1)))
    z = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss, gradients = evaluate(z, z, 1e-4)
    assert math.isclose(loss, 0.0, abs_tol=1e-3)  # the last digit of scores of 1e4
    assert np.all(np.isfinite(gradients))
    # Anchors whose every score is far below the largest of their tile.
    far = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    expected, slopes = nt_xent_by_hand(z, far, 1e-2)
    loss, gradients = evaluate(z, far, 1e-2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes, atol=1e-4)
    _, zero = evaluate(jnp.zeros((3, 2)), z, 0.1)
    assert np.all(np.isfinite(zero))


def test_estimate_never_passes_its_ceiling():
    # Embeddings that fit perfectly: the loss goes to 0, Eq. 4's estimate to log(2K−1).
    z = jnp.eye(8)
    assert nt_xent_mi(float(jax.jit(nt_xent)(z, z, 0.01)), 8) == pytest.approx(math.log(15), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 4])
def test_info_nce_of_embeddings_is_that_of_their_scores(block):
    z_x, z_y = embeddings(9, seed=4)
    scores = z_x @ z_y.T
    by_loop = 0.0
    for i in range(9):
        for axis in (scores[i], scores[:, i]):
            by_loop += 0.5 * (scores[i, i] - math.log(sum(math.exp(s) for s in axis))) / 9
    np.testing.assert_allclose(values.info_nce_symmetric(jnp.array(scores)), math.log(9) + by_loop, rtol=1e-12)
    z = jnp.array(z_x), jnp.array(z_y)
    ours, gradients = value_and_gradients(info_nce_from_embeddings, *z, block=block)
    np.testing.assert_allclose(ours, math.log(9) + by_loop, rtol=1e-12)
    _, expected = value_and_gradients(lambda x, y: values.info_nce_symmetric(x @ y.T), *z)
    np.testing.assert_allclose(gradients, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [None, 4])
def test_uniformity_is_the_mean_over_pairs_of_distances(block):
    h, direction = embeddings(11, seed=5)

    def by_distance(h, t):
        return math.log(np.mean(np.exp(-t * pdist(h / np.linalg.norm(h, axis=1, keepdims=True)) ** 2)))

    for t in (2.0, 30.0):
        value, (gradient,) = value_and_gradients(uniformity, jnp.array(h), t=t, block=block)
        np.testing.assert_allclose(value, by_distance(h, t), rtol=1e-12)
        rise = by_distance(h + 1e-6 * direction, t) - by_distance(h - 1e-6 * direction, t)
        np.testing.assert_allclose(np.vdot(gradient, direction), rise / 2e-6, rtol=1e-6)


LOSSES = {
    "nt_xent": lambda x, y, t, **options: nt_xent(x, y, t, **options),
    "info_nce": lambda x, y, t, **options: info_nce_from_embeddings(x / t, y, **options),
    "uniformity": lambda x, y, t, **options: uniformity(jnp.concatenate([x / t, y]), **options),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "devices", "block"),
    [
        *((name, 8, block) for name in ("nt_xent", "info_nce") for block in (None, 2)),
        ("nt_xent", 3, 3),
        ("uniformity", 8, None),
    ],
)
def test_several_devices_give_what_one_gives(name, devices, block):
    arguments = *map(jnp.array, embeddings(24, seed=6)), jnp.array(0.3)
    check_devices(name, devices, arguments, value_and_gradients(LOSSES[name], *arguments), atol=1e-12, block=block)


def check_devices(name, devices, arguments, expected, atol, **options):
    """Check that so many devices get the expected loss and gradients."""

    def step(*arguments):
        mine = partial(LOSSES[name], axis_name=parallel.AXIS, **options)
        value, (g_x, g_y, g_t) = value_and_gradients(mine, *arguments)
        # Each device's rows get the gradient of the sum over devices of their means: as many times the mean's.
        return *jax.lax.pmean((value, g_t), parallel.AXIS), g_x / devices, g_y / devices

    mesh = parallel.make_mesh(len(arguments[0]), jax.devices()[:devices])
    assert mesh.size == devices
    mapped = parallel.map_step(step, mesh, (P("data"), P("data"), P()), (P(), P(), P("data"), P("data")))
    value, g_t, g_x, g_y = mapped(*arguments)
    np.testing.assert_allclose(value, expected[0], rtol=atol)
    for ours, one in zip((g_x, g_y, g_t), expected[1], strict=True):
        np.testing.assert_allclose(ours, one, rtol=atol, atol=atol)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_blockwise_program_holds_nothing_of_k_squared(loss):
    k, d = 65_536, 128
    z, t = jax.ShapeDtypeStruct((k, d), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(z, z, t).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * 2**30
    assert max(sizes(program)) <= 2 * k * d


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
def test_on_a_ring_no_device_holds_every_row(name):
    k, d = 4096, 16

    def step(x, y, t):
        return jax.grad(partial(LOSSES[name], block=16, axis_name=parallel.AXIS), argnums=(0, 1))(x, y, t)

    z, t = jax.ShapeDtypeStruct((k, d), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    mapped = parallel.map_step(step, parallel.make_mesh(k), (P("data"), P("data"), P()), (P("data"), P("data")))
    program = mapped.lower(z, z, t).compile()
    # A device's rows of both views are a quarter of one view's.
    assert max(sizes(program)) <= k * d / 4


def sizes(program):
    """The number of elements of every array in a compiled program."""
    return [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]", program.as_text())]


def test_a_block_has_rows_and_uniformity_a_pair():
    z = jnp.ones((3, 2))
    for loss in LOSSES.values():
        with pytest.raises(InputError, match=r"block=0 .* give 1 or more"):
            loss(z, z, 0.5, block=0)
    with pytest.raises(InputError, match="at least 2"):
        uniformity(z[:1])


@pytest.mark.slow
def test_blocks_work_inside_scan_checkpoint_and_vmap():
    z_x, z_y = (x.reshape(3, 8, 5).astype(np.float32) for x in embeddings(24, seed=7))

    @jax.checkpoint
    def loss(x, y):
        return nt_xent(x, y, 0.5, block=3)

    def total(x, y):
        scanned = jax.lax.scan(lambda sum_, pair: (sum_ + loss(*pair), None), jnp.zeros(()), (x, y))[0]
        return scanned + 2 * jnp.sum(jax.vmap(loss)(x, y))

    losses, gradients = zip(*(nt_xent_by_hand(*pair, 0.5) for pair in zip(z_x, z_y, strict=True)), strict=True)
    ours, slopes = value_and_gradients(total, z_x, z_y)
    np.testing.assert_allclose(ours, 3 * sum(losses), rtol=1e-6)
    np.testing.assert_allclose(slopes, 3 * np.stack(gradients, axis=1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block", [None, 100])
def test_bfloat16_is_summed_in_float32(block):
    z = tuple(jnp.array(z, jnp.bfloat16) for z in embeddings(256, 64, seed=6))
    ours, gradients = value_and_gradients(nt_xent, *z, temperature=0.5, block=block)
    exact, slopes = nt_xent_by_hand(*(np.asarray(x, np.float32) for x in z), 0.5)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, atol=5e-3)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert gradient.dtype == jnp.bfloat16
        error = np.asarray(gradient, np.float64) - slope
        assert np.linalg.norm(error) < 0.02 * np.linalg.norm(slope)


@pytest.fixture
def kernels(monkeypatch):
    """Make the losses use the kernels for GPUs, interpreted."""
    monkeypatch.setattr(contrastive, "_tile_size", lambda *_: 0)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("k", "d"), [(70, 5), (64, 16), (150, 20)])  # not whole blocks of anchors, partners; and whole
def test_kernels_give_nt_xent_and_its_gradient(k, d):
    z = [x.astype(np.float32) for x in embeddings(k, d, seed=8)]
    loss, gradients = value_and_gradients(nt_xent, *z, temperature=0.2)
    expected, slopes = nt_xent_by_hand(*z, 0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, slopes, atol=1e-5 * np.abs(slopes).max())


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_kernels_give_info_nce_and_uniformity():
    z_x, z_y = (x.astype(np.float32) for x in embeddings(130, 3, seed=9))
    value, gradients = value_and_gradients(info_nce_from_embeddings, z_x, z_y)
    expected, slopes = value_and_gradients(lambda x, y: values.info_nce_symmetric(x @ y.T), z_x, z_y)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes, atol=1e-5 * np.abs(slopes).max())
    distances = pdist(z_x / np.linalg.norm(z_x, axis=1, keepdims=True))
    np.testing.assert_allclose(uniformity(jnp.array(z_x)), math.log(np.mean(np.exp(-2 * distances**2))), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_kernels_stay_finite_where_scores_overflow():
    z, far = (jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, last]]) for last in (0.0, 0.1))
    expected, slopes = nt_xent_by_hand(z, far, 1e-2)
    loss, gradients = value_and_gradients(nt_xent, z, far, temperature=1e-2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes, atol=1e-4)
    assert all(np.all(np.isfinite(g)) for g in value_and_gradients(nt_xent, z, z, temperature=1e-4)[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("nt_xent", 3), ("nt_xent", 4), ("info_nce", 2)])
def test_kernels_on_several_devices_give_what_one_matrix_gives(request, name, devices):
    # 72 rows of both views a device: more than a block of partners.
    arguments = *(x.astype(np.float32) for x in embeddings(36 * devices, seed=10)), np.float32(0.5)
    expected = value_and_gradients(LOSSES[name], *arguments)
    request.getfixturevalue("kernels")
    check_devices(name, devices, arguments, expected, atol=3e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_kernels_work_inside_scan_and_vmap_and_on_bfloat16():
    z_x, z_y = (x.reshape(2, 70, 5).astype(np.float32) for x in embeddings(140, seed=11))
    expected, slopes = zip(*(nt_xent_by_hand(*pair, 0.5) for pair in zip(z_x, z_y, strict=True)), strict=True)
    step = jax.jit(jax.value_and_grad(partial(nt_xent, temperature=0.5), argnums=(0, 1)))
    for losses, gradients in (jax.lax.map(lambda pair: step(*pair), (z_x, z_y)), jax.vmap(step)(z_x, z_y)):
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
        np.testing.assert_allclose(gradients, np.stack(slopes, axis=1), atol=1e-6)
    loss, gradients = step(jnp.array(z_x[0], jnp.bfloat16), jnp.array(z_y[0], jnp.bfloat16))
    assert (loss.dtype, gradients[0].dtype) == (jnp.float32, jnp.bfloat16)
    assert np.linalg.norm(np.asarray(gradients[0], float) - slopes[0][0]) < 0.02 * np.linalg.norm(slopes[0][0])


def test_kernels_are_taken_where_they_were_measured_to_be_faster(monkeypatch):
    class H100:
        platform, compute_capability = "gpu", "9.0"

    large = jnp.zeros((FUSED_ROWS, 128))
    assert not fused_is_faster(large)
    monkeypatch.setattr(parallel, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [H100])
    assert fused_is_faster(large)
    assert not fused_is_faster(jnp.zeros((FUSED_ROWS, 129)))  # no room on the chip
    assert not fused_is_faster(large[1:])
    assert not fused_is_faster(large.astype(jnp.float16))
    with jax.default_matmul_precision("highest"):
        assert not fused_is_faster(large)
    monkeypatch.setattr(H100, "compute_capability", "8.0")
    assert not fused_is_faster(large)
