"""Losses without negatives: against loops of the papers' formulas, on eight devices, and the target network."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mirigor_jax import models, objectives, parallel, siamese, training
from mirigor_jax.errors import InputError
from mirigor_jax.models.heads import MLP
from mirigor_jax.training import train

K, D = 12, 3
RNG = np.random.default_rng(0)
# Coordinates with different means and spreads, some below VICReg's 1, and correlated ones.
Z_X, Z_Y = (RNG.normal(size=(K, D)) @ RNG.normal(size=(D, D)) * [0.3, 1.0, 2.0] + [1.0, -2.0, 0.0] for _ in "xy")
SLOW_X, SLOW_Y = RNG.normal(size=(2, K, D))
WEIGHTS, REDUNDANCY, TEMPERATURE = (3.0, 5.0, 2.0), 0.2, 0.3


def barlow_twins_by_loop(x, y):
    """Zbontar et al. 2021, Eq. 1 and 2, with BatchNorm's 1e-5."""
    loss = 0.0
    for i in range(D):
        for j in range(D):
            a, b = x[:, i] - x[:, i].mean(), y[:, j] - y[:, j].mean()
            c = sum(a * b) / math.sqrt(sum(a * a) + K * 1e-5) / math.sqrt(sum(b * b) + K * 1e-5)
            loss += (1 - c) ** 2 if i == j else REDUNDANCY * c**2
    return loss


def vicreg_by_loop(x, y):
    """Bardes et al. 2022, algorithm 1."""
    invariance = sum((x[b, j] - y[b, j]) ** 2 for b in range(K) for j in range(D)) / (K * D)
    variance = covariance = 0.0
    for z in (x, y):
        cov = sum(np.outer(row - z.mean(axis=0), row - z.mean(axis=0)) for row in z) / (K - 1)
        variance += sum(max(0.0, 1 - math.sqrt(cov[j, j] + 1e-4)) for j in range(D)) / D
        covariance += sum(cov[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D
    return WEIGHTS[0] * invariance + WEIGHTS[1] * variance + WEIGHTS[2] * covariance


def byol_by_loop(x, y):
    """Grill et al. 2020, Eq. 2, for both orders of the views."""
    loss = 0.0
    for q, z in ((x, SLOW_Y), (y, SLOW_X)):
        for b in range(K):
            loss += 2 - 2 * q[b] @ z[b] / np.linalg.norm(q[b]) / np.linalg.norm(z[b])
    return loss / K


def assignments_by_loop(scores):
    """Caron et al. 2020, Eq. 3 to 5: Q (prototypes × rows) has equal sums of rows, then of columns, three times."""
    q = np.exp(scores.T / 0.05)
    q /= q.sum()
    for _ in range(3):
        for p in range(D):
            q[p] /= q[p].sum() * D
        for b in range(K):
            q[:, b] /= q[:, b].sum() * K
    return (q * K).T


def swav_by_loop(x, y, assignments=None):
    """Caron et al. 2020, Eq. 1 and 2. assignments: those of x and y; None: by Sinkhorn."""
    q_x, q_y = assignments or (assignments_by_loop(x), assignments_by_loop(y))
    loss = 0.0
    for scores, q in ((x, q_y), (y, q_x)):
        for b in range(K):
            p = np.exp(scores[b] / TEMPERATURE) / sum(np.exp(scores[b] / TEMPERATURE))
            loss -= sum(q[b] * np.log(p))
    return loss / (2 * K)


COSINES = tuple(np.tanh(z / 4) for z in (Z_X, Z_Y))
# Name → (loss of two views, the loop, the views).
BY_LOOP = {
    "barlow_twins": (partial(siamese.barlow_twins, redundancy=REDUNDANCY), barlow_twins_by_loop, (Z_X, Z_Y)),
    "vicreg": (partial(siamese.vicreg, weights=WEIGHTS), vicreg_by_loop, (Z_X, Z_Y)),
    "byol": (lambda x, y: siamese.byol(x, y, jnp.array(SLOW_X), jnp.array(SLOW_Y)), byol_by_loop, (Z_X, Z_Y)),
    "swav": (partial(siamese.swav, temperature=TEMPERATURE), swav_by_loop, COSINES),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BY_LOOP)
def test_values_and_slopes_are_the_loop_s(name):
    loss, by_loop, views = BY_LOOP[name]
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(*z)))(jnp.stack([jnp.array(z) for z in views]))
    np.testing.assert_allclose(value, by_loop(*views), rtol=1e-12)
    if name == "swav":  # no gradient passes through the assignments
        by_loop = partial(swav_by_loop, assignments=tuple(map(assignments_by_loop, views)))
    for seed in (1, 2):
        direction = np.random.default_rng(seed).normal(size=(2, K, D))
        rise = by_loop(*(views + 1e-6 * direction)) - by_loop(*(views - 1e-6 * direction))
        np.testing.assert_allclose(np.vdot(gradient, direction), rise / 2e-6, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_no_gradient_passes_through_the_target_network():
    slopes = jax.jit(jax.grad(siamese.byol, argnums=(2, 3)))(*map(jnp.array, (Z_X, Z_Y, SLOW_X, SLOW_Y)))
    np.testing.assert_array_equal(slopes, 0.0)


@pytest.mark.usefixtures("float64")
def test_prototypes_are_directions_and_share_the_rows_more_evenly_than_the_nearest_ones():
    rows = np.random.default_rng(3).normal(np.array([0.5, 0, 0, 0, 0]), size=(2000, 5))
    prototypes = np.diag([1.0, 2.0, 3.0, 4.0, 5.0])[:4]
    cosines = rows[:, :4] / np.linalg.norm(rows, axis=1)[:, None]
    found = siamese.Prototypes(4).apply({"params": {"prototypes": jnp.array(prototypes)}}, jnp.array(rows))
    np.testing.assert_allclose(found, cosines, rtol=1e-12)
    assigned = np.asarray(siamese.sinkhorn(jnp.array(cosines)))
    np.testing.assert_allclose(assigned.sum(axis=1), 1, rtol=1e-12)
    nearest = np.bincount(cosines.argmax(axis=1), minlength=4) / 2000
    assert np.abs(assigned.mean(axis=0) - 1 / 4).max() < 0.09 < 0.14 < np.abs(nearest - 1 / 4).max()


@pytest.mark.parametrize("name", BY_LOOP)
def test_losses_are_finite_in_float32_if_a_view_is_constant(name):
    loss, _, views = BY_LOOP[name]
    ones = jnp.ones((K, D), jnp.bfloat16)
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(ones, jnp.array(views[1], jnp.float32))
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(one, np.float32)).all() for one in slopes)


NAMES = ("barlow_twins", "vicreg", "byol", "swav")


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_in_parts_take_the_two_steps_of_one_device_at_once(name):
    encoder, head, optimizer = models.build("mlp", dtype="float64"), MLP((8,), 4, "float64"), optax.sgd(0.1)
    noise = np.random.default_rng(1).integers(0, np.linspace(32, 256, 16)[:, None, None, None], (2, 16, 4, 4, 3))
    batch = dict(zip(("x", "y"), noise.astype(np.uint8), strict=True))
    made = objectives.make(name, temperature=0.5, num_classes=None, axis_name=parallel.AXIS, prototypes=6, steps=3)

    def after_two_steps(devices, accumulate):
        mesh = parallel.make_mesh(16, jax.devices()[:devices])
        modules = {"encoder": encoder, "head": head, "optimizer": optimizer}
        step, (like, *_) = training.make_step(**modules, objective=made, mesh=mesh, k=16, size=4, accumulate=accumulate)
        state = training.first_state(encoder, head, optimizer, 4, seed=0, like=like, objective=made)
        metrics = []
        for _ in range(2):
            state, found = step(state, parallel.shard(batch, mesh), None)
            metrics.append(jax.tree.map(np.asarray, found))
        return jax.tree.map(np.asarray, (state.params, getattr(state, "slow", None))), metrics

    one, eight = after_two_steps(1, 1), after_two_steps(8, 2)
    assert one[1][0]["gradient_norm"] > 1e-3
    assert one[1][1]["loss_nats"] != one[1][0]["loss_nats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), eight, one)


def test_the_share_that_stays_rises_to_one_along_a_cosine():
    for step, share in ((0, 0.9), (5, 0.95), (10, 1.0), (11, 1.0)):
        np.testing.assert_allclose(siamese.target_share(jnp.asarray(step), decay=0.9, steps=10), share, rtol=1e-6)


@pytest.mark.compiles
@pytest.mark.slow
def test_the_target_network_is_a_moving_average_and_other_objectives_have_none():
    images = np.random.default_rng(2).integers(0, 256, (32, 4, 4, 3)).astype(np.uint8)
    options = {"pairing": "simclr", "k": 8, "warmup_steps": 0, "devices": jax.local_devices()[:1]}
    encoder = models.build("mlp")

    def state_of(**more):
        return jax.tree.map(np.asarray, train(encoder, images, **options, **more)[0])

    start, end = (state_of(objective="byol", target_decay=0.75, steps=steps) for steps in (0, 1))
    assert set(end.params) == {"encoder", "head", "on_top"}
    assert set(end.slow) == {"encoder", "head"}
    for name in end.slow:
        jax.tree.map(np.testing.assert_array_equal, start.slow[name], start.params[name])
        expected = jax.tree.map(lambda slow, new: 0.75 * slow + 0.25 * new, start.slow[name], end.params[name])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), end.slow[name], expected)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), start.slow, end.slow))
    assert max(moved) > 1e-4
    plain = state_of(objective="simclr", steps=0)
    assert set(vars(plain)) == {"step", "params", "batch_stats", "opt_state"}  # as in older checkpoints
    assert set(plain.params) == {"encoder", "head"}
    # The encoder begins as it does with any other objective.
    jax.tree.map(np.testing.assert_array_equal, plain.params, {name: start.params[name] for name in plain.params})


def test_a_setting_that_the_objective_has_no_use_for_is_named():
    images = np.zeros((8, 4, 4, 3), np.uint8)
    for objective, setting in (("simclr", "redundancy"), ("byol", "prototypes"), ("swav", "target_decay")):
        value = {"redundancy": 0.1, "prototypes": 9, "target_decay": 0.5}[setting]
        with pytest.raises(InputError, match=f"^{setting}={value} has no effect on objective='{objective}'"):
            train(models.build("mlp"), images, pairing="simclr", objective=objective, k=4, **{setting: value})
    with pytest.raises(InputError, match="objective='vicreg' has no variance at k = 1"):
        siamese.vicreg(jnp.ones((1, 2)), jnp.ones((1, 2)), weights=WEIGHTS)
    with pytest.raises(InputError, match=r"vicreg_weights=\(1\.0, 2\.0\): expected three"):
        objectives.make("vicreg", temperature=0.1, num_classes=None, axis_name=None, vicreg_weights=(1.0, 2.0))
    with pytest.raises(InputError, match=r"target_decay=1\.0: expected at least 0 and below 1"):
        objectives.make("byol", temperature=0.1, num_classes=None, axis_name=None, target_decay=1.0)
