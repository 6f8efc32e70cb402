"""The train step: one device against eight, the optimisers, the encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mirigor_jax import configuration, parallel, train
from mirigor_jax.errors import InputError
from mirigor_jax.models.resnet import STAGES, make_encoder


def tiny(*overrides: str):
    shrunk = ["--config.encoder.width=4", "--config.data.size=32", "--config.train.k=8", "--config.train.steps=5"]
    return configuration.parse(["--config=configs/cdp.py", *shrunk, *overrides])[0]


def images(k: int, size: int = 32):
    rng = np.random.default_rng(0)
    return {view: rng.integers(0, 256, (k, size, size, 3), dtype=np.uint8) for view in ("x", "y")}


def steps(config, devices: int, count: int):
    mesh = parallel.make_mesh(config.train.k, jax.devices()[:devices])
    step, _ = train.make_step(config, mesh)
    state = parallel.replicate(train.init_state(config, jax.random.key(0)), mesh)
    metrics = {}
    for _ in range(count):
        state, metrics = step(state, parallel.shard(images(config.train.k), mesh), None)
    return jax.tree.map(np.asarray, (state, metrics))


def assert_close(ours, theirs, tolerance):
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
        other = dict(jax.tree_util.tree_leaves_with_path(theirs))[path]
        assert np.abs(leaf - other).max() <= tolerance * max(np.abs(other).max(), 1e-30), jax.tree_util.keystr(path)


@pytest.mark.usefixtures("float64", "shallow")
def test_eight_devices_train_as_one_in_float64():
    # SGD's update is the gradient itself: parameters that agree after two steps had gradients that agree.
    config = tiny("--config.encoder.dtype=float64", "--config.train.optimizer=sgd", "--config.train.warmup_steps=1")
    assert_close(steps(config, 8, 2), steps(config, 1, 2), 1e-6)


@pytest.mark.usefixtures("shallow")
def test_eight_devices_give_one_s_loss_and_statistics_in_float32():
    (state_8, metrics_8), (state_1, metrics_1) = (steps(tiny(), n, 1) for n in (8, 1))
    np.testing.assert_allclose(metrics_8["loss_nats"], metrics_1["loss_nats"], rtol=1e-5)
    assert_close(state_8.batch_stats, state_1.batch_stats, 1e-5)


@pytest.mark.usefixtures("shallow")
def test_a_step_moves_every_parameter_and_only_counts_once():
    config = tiny("--config.train.warmup_steps=0")
    before = jax.tree.map(np.asarray, train.init_state(config, jax.random.key(0)))
    after, metrics = steps(config, 1, 1)
    assert after.step == 1
    assert np.isfinite(metrics["loss_nats"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimizers_decay_matrices_alone_and_follow_the_schedule(name):
    optimizer = train.make_optimizer(name, learning_rate=0.1, steps=10, warmup_steps=2, weight_decay=0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    state, seen = optimizer.init(params), []
    for _ in range(10):
        updates, state = optimizer.update(zero, state, params)
        seen.append(float(jnp.abs(updates["kernel"]).max()))
        np.testing.assert_array_equal(updates["bias"], 0.0)
    assert seen[0] == 0.0  # warm-up starts at rate 0
    assert max(seen) > 0.0
    assert seen[-1] < max(seen)  # and falls at the end


def test_unknown_optimizer_is_named():
    with pytest.raises(InputError, match=r"'adam'.*adamw"):
        train.make_optimizer("adam", learning_rate=1.0, steps=1, warmup_steps=0, weight_decay=0.0)


# Parameters of the published networks without their classifier (torchvision), at width 64 with the imagenet stem.
PUBLISHED = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


@pytest.mark.parametrize("name", STAGES)
def test_encoders_have_the_published_shape(name):
    encoder = make_encoder(name, width=64, stem="imagenet", dtype="float32")
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    if name in PUBLISHED:
        assert count == PUBLISHED[name]
    else:
        shortcuts = sum(
            np.prod(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                jax.eval_shape(
                    lambda: make_encoder(
                        name.replace("plainnet", "resnet"), width=64, stem="imagenet", dtype="float32"
                    ).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
                )["params"]
            )
            if "shortcut" in jax.tree_util.keystr(path)
        )
        assert count == PUBLISHED[name.replace("plainnet", "resnet")] - shortcuts


@pytest.mark.parametrize(("stem", "size", "side"), [("imagenet", 64, 16), ("cifar", 32, 32)])
def test_stems_downsample_as_published(stem, size, side):
    encoder = make_encoder("resnet18", width=4, stem=stem, dtype="float32")
    _, shapes = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), jnp.zeros((2, size, size, 3)), train=False, capture_intermediates=True
        )
    )
    stages = shapes["intermediates"]
    assert stages["stage1_block1"]["__call__"][0].shape == (2, side, side, 4)
    assert stages["stage4_block2"]["__call__"][0].shape == (2, side // 8, side // 8, 32)


def test_plain_blocks_have_no_skip():
    # With every kernel at zero a residual block passes its input on, a plain one gives the norm's bias: zero.
    for name, passes in (("resnet18", True), ("plainnet18", False)):
        encoder = make_encoder(name, width=4, stem="cifar", dtype="float32")
        x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
        variables = encoder.init(jax.random.key(0), x, train=False)

        def blank(path, leaf):
            inside = "conv" in jax.tree_util.keystr(path)
            return jnp.zeros_like(leaf) if inside else leaf

        variables = jax.tree_util.tree_map_with_path(blank, variables)
        assert bool(jnp.any(encoder.apply(variables, x, train=False) != 0)) == passes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compute_dtype_leaves_parameters_in_float32(dtype):
    encoder = make_encoder("resnet18", width=4, stem="cifar", dtype=dtype)
    variables = encoder.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert encoder.apply(variables, jnp.ones((2, 32, 32, 3)), train=False).dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet19"}, "resnet19.*resnet18"),
        ({"stem": "vit"}, "vit.*imagenet"),
        ({"dtype": "fp16"}, "fp16.*bfloat16"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_unknown_encoders_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        make_encoder(**{"name": "resnet18", "width": 16, "stem": "imagenet", "dtype": "float32"} | change)


@pytest.mark.usefixtures("shallow")
def test_batch_norm_statistics_are_the_global_batch_s():
    # The running mean after one step is 0.1 of the batch mean (momentum 0.9), over all devices' images.
    config = tiny()
    state, _ = steps(config, 8, 1)
    encoder = make_encoder(**config.encoder)
    variables = train.init_state(config, jax.random.key(0)).params["encoder"]
    x = train.normalize(jnp.concatenate([*map(jnp.asarray, images(8).values())]), "float32")
    stem = jax.lax.conv_general_dilated(
        x, variables["stem"]["kernel"], (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["mean"], 0.1 * jnp.mean(stem, (0, 1, 2)), atol=1e-5)
    assert encoder.width == 4


def test_lars_is_optax_s_layerwise_rate():
    optimizer = train.make_optimizer("lars", learning_rate=1.0, steps=100, warmup_steps=0, weight_decay=0.0)
    params = {"kernel": 3.0 * jnp.ones((2, 2))}
    gradients = {"kernel": jnp.full((2, 2), 7.0)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # trust ratio 0.001·‖w‖/‖g‖ makes the step 0.001·‖w‖ long, whatever the gradient's size (You et al. 2017)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.001 * 6.0, rtol=1e-5)
