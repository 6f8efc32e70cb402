"""The train step: one device against eight, the optimizers, the encoders."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mirigor_jax import config_files, memory, objectives, parallel, stopping, training
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pairing import SameImage
from mirigor_jax.data.preprocess import normalize
from mirigor_jax.data.training_data import TrainingData
from mirigor_jax.errors import InputError
from mirigor_jax.files import read_rows
from mirigor_jax.models.heads import MLP
from mirigor_jax.models.resnet import STAGES, make_encoder
from mirigor_jax.runs.features import frozen_variables, trained_state
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, without_images
from mirigor_jax.runs.steps import init_state, make_train_step
from mirigor_jax.runs.train import train

pytestmark = pytest.mark.compiles


def tiny(*overrides: str, num_classes: int | None = None) -> Job:
    shrunk = ["--config.encoder.width=4", "--config.data.size=32", "--config.train.k=8", "--config.train.steps=5"]
    config = config_files.parse(["--config=configs/cdp.py", *shrunk, *overrides])[0]
    return without_images(config, SameImage(), num_classes)


def images(k: int, size: int = 32):
    """Noise that gets brighter from pair to pair, so all devices have different statistics."""
    rng, brightest = np.random.default_rng(0), np.linspace(32, 256, k).reshape(k, 1, 1, 1)
    return {view: rng.integers(0, brightest, (k, size, size, 3)).astype(np.uint8) for view in ("x", "y")}


def start(job):
    return jax.jit(partial(init_state, job))(jax.random.key(0))


def steps(job, devices: int, count: int):
    mesh = parallel.make_mesh(job.config.train.k, jax.devices()[:devices])
    step, _ = make_train_step(job, mesh)
    state = parallel.place(start(job), mesh)
    metrics = {}
    for _ in range(count):
        state, metrics = step(state, parallel.shard(images(job.config.train.k), mesh), None)
    return jax.tree.map(np.asarray, (state, metrics))


def assert_close(ours, theirs, tolerance):
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
        other = dict(jax.tree_util.tree_leaves_with_path(theirs))[path]
        assert np.abs(leaf - other).max() <= tolerance * max(np.abs(other).max(), 1e-30), jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.usefixtures("float64", "shallow")
def test_eight_devices_train_as_one_in_float64():
    # SGD's update is the gradient itself: parameters that agree after two steps had gradients that agree.
    job = tiny("--config.encoder.dtype=float64", "--config.train.optimizer=sgd", "--config.train.warmup_steps=1")
    assert_close(steps(job, 8, 2), steps(job, 1, 2), 1e-6)


@pytest.mark.usefixtures("shallow")
@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["all", "class+simclr"])
def test_eight_devices_give_one_s_loss_and_statistics_in_float32(pairing):
    job = tiny(f"--config.data.pairing={pairing}")
    (state_8, metrics_8), (state_1, metrics_1) = (steps(job, n, 1) for n in (8, 1))
    np.testing.assert_allclose(metrics_8["loss_nats"], metrics_1["loss_nats"], rtol=1e-5)
    assert_close(state_8.batch_stats, state_1.batch_stats, 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_step_moves_every_parameter_and_only_counts_once():
    job = tiny("--config.train.warmup_steps=0")
    before = jax.tree.map(np.asarray, start(job))
    after, metrics = steps(job, 1, 1)
    assert after.step == 1
    assert np.isfinite(metrics["loss_nats"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved


class Pixels(nn.Module):
    """An encoder without parameters that returns the images unchanged."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, train):
        self.variable("batch_stats", "none", jnp.zeros, ())
        return images.reshape(len(images), -1)


class Scale(nn.Module):
    @nn.compact
    def __call__(self, h):
        return self.param("scale", nn.initializers.ones, ()) * h


ROTATION = objectives.make("rotation", temperature=1.0, embedding_noise=1.0, num_classes=None, axis_name=None)


class Seen:
    """An objective that keeps its arguments: z (2, k, d), or (4, k, d) with negatives, and targets (2, k)."""

    def __init__(self, **options):
        self.z = self.classes = np.zeros(0)
        self.objective = objectives.Objective(self.loss, **options)

    def loss(self, *z_and_targets):
        views = len(self.objective.views)
        jax.debug.callback(self.keep, z_and_targets[:views], z_and_targets[views:])
        return jnp.mean(z_and_targets[0] * z_and_targets[1])

    def keep(self, z, classes):
        self.z, self.classes = np.stack(z), np.array(classes)

    def step(self, number, batch, **options):
        optimizer = optax.sgd(0.0)
        params = {"encoder": {}, "head": {"scale": jnp.ones(())}}
        state = training.TrainState(jnp.asarray(number), params, {"none": jnp.zeros(())}, optimizer.init(params))
        fixed = {"encoder": Pixels(), "head": Scale(), "objective": self.objective, "optimizer": optimizer}
        step = partial(training.train_step, **fixed, **options)
        mapped = parallel.map_step(step, parallel.make_mesh(1), (parallel.REPLICATED,) * 3, parallel.REPLICATED)
        jax.block_until_ready(mapped(state, batch, None))
        jax.effects_barrier()
        return self.z


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_view_is_augmented_by_itself_and_anew_at_every_step(accumulate):
    image = images(4)["x"]

    def seen(number: int, seed: int = 0):
        """The views x and y of one batch; both views of a pair come from one image."""
        augmentation = Augmentation(crop=0.5, flip=0.0, jitter=0.0, gray=0.0, blur=0.0)
        options = {"accumulate": accumulate, "augmentation": augmentation, "seed": seed}
        return Seen().step(number, {"x": image, "y": image}, **options)

    first, second = seen(0), seen(1)
    assert np.abs(first[0] - first[1]).max(axis=1).min() > 0.1
    assert np.abs(first - second).max(axis=2).min() > 0.1
    np.testing.assert_array_equal(first, seen(0))
    assert np.abs(first - seen(0, seed=1)).max(axis=2).min() > 0.1
    plain = np.asarray(normalize(jnp.asarray(image), "float32")).reshape(4, -1)
    assert np.all(first.min(axis=2) >= plain.min(axis=1)[None] - 1e-5)  # a crop shows nothing that is not there


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_view_is_turned_by_itself_and_anew_at_every_step_by_its_class(accumulate):
    k, rotations = 256, []
    batch = images(k, size=4)
    for number in (0, 1):
        seen = Seen(prepare=ROTATION.prepare, transform=ROTATION.transform)
        z = seen.step(number, batch, accumulate=accumulate).reshape(2, k, 4, 4, 3)
        for view, z_of_view, classes in zip(("x", "y"), z, seen.classes, strict=True):
            expected = np.stack([np.rot90(*of) for of in zip(batch[view], classes, strict=True)])
            np.testing.assert_allclose(z_of_view, expected / 127.5 - 1, atol=1e-5)
        rotations += [*seen.classes]
    counts = np.array([np.bincount(view_rotations, minlength=4) for view_rotations in rotations])
    assert np.all(np.abs(counts - k / 4) < 4 * np.sqrt(k * 3 / 16)), counts
    # Of two that are independent, a quarter agrees.
    agree = [np.mean(rotations[a] == rotations[b]) for a, b in ((0, 1), (0, 2), (1, 3), (0, 3))]
    assert np.all(np.abs(np.array(agree) - 0.25) < 4 * np.sqrt(3 / 16 / k)), agree


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pairs_and_negatives_keep_their_places(accumulate):
    batch = dict(zip(("n_y", "y", "x", "n_x"), images(32, size=4)["x"].reshape(4, 8, 4, 4, 3), strict=True))
    z = Seen(needs_negatives=True).step(0, batch, accumulate=accumulate)
    for seen, name in zip(z, ("x", "y", "n_x", "n_y"), strict=True):
        np.testing.assert_allclose(seen, batch[name].reshape(8, -1) / 127.5 - 1, atol=1e-6)


@pytest.mark.slow
def test_turns_come_after_the_augmentation():
    # A flip from left to right leaves rows of one color as they are, but not what is turned by 90° before it.
    rows = np.broadcast_to(np.arange(0, 256, 32, np.uint8)[:, None, None], (64, 8, 8, 3))
    seen = Seen(prepare=ROTATION.prepare, transform=ROTATION.transform)
    augmentation = Augmentation(crop=0.0, flip=1.0, jitter=0.0, gray=0.0, blur=0.0)
    z = seen.step(0, {"x": rows, "y": rows}, augmentation=augmentation).reshape(2, 64, 8, 8, 3)
    for image, quarters in zip(z.reshape(-1, 8, 8, 3), seen.classes.ravel(), strict=True):
        np.testing.assert_allclose(image, np.rot90(rows[0], quarters) / 127.5 - 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name",
    ["supcon", "decoupled", "anchor", "cross_entropy", "rotation", "negatives", "supervised_autoencoder", "masked"],
)
def test_eight_devices_in_parts_learn_every_objective_as_one_device_at_once(name):
    batch = images(16, size=4)
    if name in ("supcon", "cross_entropy", "supervised_autoencoder"):
        batch |= dict(zip(("c_x", "c_y"), np.random.default_rng(1).integers(0, 3, (2, 16)), strict=True))
    more = {"negatives": True} if name == "negatives" else {"patch": 2}
    if name == "negatives":
        n_x, n_y = images(32, size=4)["x"].reshape(2, 16, 4, 4, 3)
        name, batch = "simclr", batch | {"n_x": n_x, "n_y": n_y}
    head = MLP((8,), 4, "float64")
    options = {"temperature": 0.5, "embedding_noise": 0.5, "num_classes": 4, "axis_name": parallel.AXIS, **more}
    objective = objectives.make(name, **options)
    decoder = training.make_decoder(Pixels("float64"), objective, 4, name="mlp", width=8)
    modules = {"head": head} | ({} if decoder is None else {"decoder": decoder})
    params = {"encoder": {}} | {
        part: module.init(jax.random.key(0), jnp.zeros((1, 48)))["params"] for part, module in modules.items()
    }

    def after_a_step(devices, accumulate):
        optimizer = optax.sgd(1.0)  # whose update is the gradient itself
        step = partial(
            training.train_step,
            encoder=Pixels("float64"),
            **modules,
            objective=objective,
            optimizer=optimizer,
            accumulate=accumulate,
        )
        mesh = parallel.make_mesh(16, jax.devices()[:devices])
        specs = (parallel.REPLICATED, parallel.SHARDED, parallel.REPLICATED)
        state = training.TrainState(jnp.zeros((), int), params, {"none": jnp.zeros(())}, optimizer.init(params))
        state, metrics = parallel.map_step(step, mesh, specs, parallel.REPLICATED)(state, batch, None)
        return jax.tree.map(np.asarray, (state.params, metrics))

    one = after_a_step(1, 1)
    assert one[1]["gradient_norm"] > 1e-3
    assert_close(after_a_step(8, 2), one, 1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimizers_decay_matrices_alone_and_follow_the_schedule(name):
    optimizer = training.make_optimizer(name, learning_rate=0.1, steps=10, warmup_steps=2, weight_decay=0.1)
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


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimizers_without_decay_leave_what_has_no_gradient(name):
    optimizer = training.make_optimizer(name, learning_rate=0.1, steps=10, warmup_steps=0, weight_decay=0.0)
    params = {"kernel": jnp.ones((2, 2))}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0.0)


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_falls_to_a_tenth_at_each_drop(warmup):
    """SGD's first update after k steps of gradient 1 is -rate, if the momentum's memory is taken off."""
    shares, steps = (0.5, 137 / 182), 182
    optimizer = training.make_optimizer(
        "sgd", learning_rate=0.1, steps=steps, warmup_steps=warmup, weight_decay=0.0, schedule="steps", drops=shares
    )
    params = {"bias": jnp.ones(1)}
    state, rates, memory = optimizer.init(params), [], 0.0
    for _ in range(steps):
        updates, state = optimizer.update({"bias": jnp.ones(1)}, state, params)
        memory = 0.9 * memory + 1.0
        rates.append(-float(updates["bias"][0]) / (1 + 0.9 * memory))  # Nesterov: gradient + 0.9 of the memory
    expected = [0.1 * i / warmup for i in range(warmup)] + [0.1] * (91 - warmup) + [0.01] * 46 + [0.001] * 45
    # The 92nd update, that of step 91 from 0, is the first after epoch 91.
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-9)


def test_two_drops_at_one_step_divide_the_rate_twice():
    options = {"learning_rate": 1.0, "steps": 8, "warmup_steps": 0, "weight_decay": 0.0}
    optimizer = training.make_optimizer("sgd", **options, schedule="steps", drops=(0.5, 0.52))
    params = {"bias": jnp.zeros(1)}
    state, sizes = optimizer.init(params), []
    for _ in range(8):
        updates, state = optimizer.update({"bias": jnp.ones(1)}, state, params)
        sizes.append(float(updates["bias"][0]))
    assert sizes[4] / sizes[3] == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "steps", "drops": (1.5,)}, r"drops=\(1.5,\)"),
        ({"schedule": "cosine", "drops": (0.5,)}, r"drops=\(0.5,\) are of schedule='steps'; leave them out"),
        ({"schedule": "steps", "drops": (0.5,), "warmup_steps": 5}, "step 4, is within the warm-up of 5 steps"),
        ({"schedule": "steps", "drops": (0.01, 0.5)}, "step 0, is within the warm-up of 0 steps"),
    ],
)
def test_drops_that_cannot_be_are_told(options, message):
    usual = {"learning_rate": 1.0, "steps": 9, "warmup_steps": 0, "weight_decay": 0.0}
    with pytest.raises(InputError, match=message):
        training.make_optimizer("sgd", **(usual | options))


def test_unknown_optimizer_is_named():
    with pytest.raises(InputError, match=r"'adam'.*adamw"):
        training.make_optimizer("adam", learning_rate=1.0, steps=1, warmup_steps=0, weight_decay=0.0)


# Parameters of the published networks without their classifier (torchvision), at width 64 with the imagenet stem.
PUBLISHED = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


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


@pytest.mark.slow
def test_plain_blocks_have_no_skip(monkeypatch):
    # With every kernel at zero a residual block passes its input on, a plain one gives the norm's bias: zero.
    for name, passes in (("resnet18", True), ("plainnet18", False)):
        monkeypatch.setitem(STAGES, name, ((1,), STAGES[name][1]))
        encoder = make_encoder(name, width=4, stem="cifar", dtype="float32")
        x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
        variables = jax.jit(partial(encoder.init, train=False))(jax.random.key(0), x)

        def blank(path, leaf):
            inside = "conv" in jax.tree_util.keystr(path)
            return jnp.zeros_like(leaf) if inside else leaf

        variables = jax.tree_util.tree_map_with_path(blank, variables)
        assert bool(jnp.any(jax.jit(partial(encoder.apply, train=False))(variables, x) != 0)) == passes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compute_dtype_leaves_parameters_in_float32(dtype):
    encoder = make_encoder("resnet18", width=4, stem="cifar", dtype=dtype)
    start = partial(encoder.init_with_output, train=False, capture_intermediates=True)
    _, variables = jax.eval_shape(start, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    maps = variables.pop("intermediates")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert maps["stage4_block2"]["__call__"][0].dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet19"}, "resnet19.*resnet18"),
        ({"stem": "vit"}, "vit.*imagenet"),
        ({"dtype": "fp16"}, "fp16.*bfloat16"),
        ({"width": 0}, "width=0: expected at least 1"),
    ],
)
def test_unknown_encoders_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        make_encoder(**{"name": "resnet18", "width": 16, "stem": "imagenet", "dtype": "float32"} | change)


def stem_maps(job, pixels):
    """The input of the stem's BatchNorm for these images in the first step."""
    kernel = start(job).params["encoder"]["stem"]["kernel"]
    x = normalize(jnp.asarray(pixels), "float32")
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=dimensions)


@pytest.fixture
def stem_only(monkeypatch):
    """Make resnet18 consist of its stem and the global average, without blocks."""
    monkeypatch.setitem(STAGES, "resnet18", ((), "basic"))


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
@pytest.mark.parametrize("whole", [True, False])
def test_batch_norm_statistics_are_the_global_batch_s_or_each_device_s_own(whole):
    # Running statistics after one step are 0.1 of the batch's (momentum 0.9), the variance's from 1: of all devices'
    # images together, or of each device's pair alone, averaged.
    job = tiny(f"--config.train.global_batch_norm={whole}")
    state, _ = steps(job, 8, 1)
    views = images(8)
    seen = [[*views["x"], *views["y"]]] if whole else zip(views["x"], views["y"], strict=True)
    maps = [stem_maps(job, np.stack(pixels)) for pixels in seen]
    mean, variance = (np.mean([f(m, (0, 1, 2)) for m in maps], 0) for f in (np.mean, np.var))
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["mean"], 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["var"], 0.9 + 0.1 * variance, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
def test_parts_fold_their_own_statistics_one_after_the_other():
    job = tiny("--config.train.accumulate=2")
    state, _ = steps(job, 1, 1)
    views = images(8)
    running = 0.0
    for part in (slice(0, 4), slice(4, 8)):
        maps = stem_maps(job, np.concatenate([views["x"][part], views["y"][part]]))
        running = 0.9 * running + 0.1 * np.mean(maps, (0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["stem_norm"]["mean"], running, atol=1e-5)


class Frozen(nn.Module):
    """An encoder with a BatchNorm that ignores the batch, so only the loss joins the images."""

    encoder: nn.Module
    dtype: str

    def __call__(self, images, train):
        return self.encoder(images, train=False)


@pytest.mark.slow
@pytest.mark.usefixtures("float64", "stem_only")
def test_parts_give_the_whole_batch_s_loss_and_gradients(monkeypatch):
    real = Job.encoder
    monkeypatch.setattr(Job, "encoder", lambda job: Frozen(real(job), job.config.encoder.dtype))
    # SGD's first update is the gradient itself.
    common = ("--config.encoder.dtype=float64", "--config.train.optimizer=sgd", "--config.train.warmup_steps=0")
    whole, parts = (steps(tiny(f"--config.train.accumulate={n}", *common), 2, 1) for n in (1, 4))
    assert_close(parts, whole, 1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
def test_parts_need_less_memory():
    def temporaries(accumulate):
        job = tiny(f"--config.train.accumulate={accumulate}", "--config.train.k=32")
        step, abstract = make_train_step(job, parallel.make_mesh(1))
        return step.lower(*abstract).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)


@pytest.mark.usefixtures("stem_only")
@pytest.mark.parametrize("accumulate", [3, 0])
def test_parts_must_divide_a_device_s_pairs(accumulate):
    step, abstract = make_train_step(tiny(f"--config.train.accumulate={accumulate}"), parallel.make_mesh(1))
    with pytest.raises(InputError, match=rf"accumulate={accumulate} .* 8 pairs"):
        step.lower(*abstract)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("objective", ["simclr", "masked", "byol"])
def test_half_precision_keeps_parameters_statistics_gradients_and_loss_in_float32(monkeypatch, objective):
    def nt_xent(z_x, z_y, temperature, *, axis_name):
        assert z_x.dtype == z_y.dtype == jnp.float32  # before it is normalized
        return jnp.mean(z_x * z_y)

    monkeypatch.setattr(objectives, "nt_xent", nt_xent)
    # The momentum of SGD is made of gradients.
    options = ("--config.encoder.dtype=bfloat16", "--config.train.optimizer=sgd")
    job = tiny(*options, f"--config.train.objective={objective}")
    step, abstract = make_train_step(job, parallel.make_mesh(1))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(step, *abstract))}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
def test_half_precision_changes_the_loss_by_less_than_2_percent():
    half, single = (
        steps(tiny(f"--config.encoder.dtype={dtype}"), 1, 1)[1]["loss_nats"] for dtype in ("bfloat16", "float32")
    )
    assert half != single
    np.testing.assert_allclose(half, single, rtol=0.02)


def streamed(read) -> TrainingData:
    return TrainingData(read, None, "")


def black_and_white(start, stop):
    """Black and white images in turn, with the color as class. From pair 64 on the classes are swapped."""
    number = np.arange(start, stop)
    pixels = np.broadcast_to((255 * (number % 2)).astype(np.uint8)[:, None, None, None], (len(number), 32, 32, 3))
    classes = ((number + (number >= 64)) % 2).astype(np.int32)
    return {"x": pixels, "y": pixels, "c_x": classes, "c_y": classes}


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
@pytest.mark.parametrize("objective", ["cross_entropy", "supervised_autoencoder", "byol"])
def test_stopped_at_any_step_a_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, objective):
    options = (f"objective={objective}", "steps=9", "checkpoint_every=4", "warmup_steps=0", "optimizer=sgd")
    job = tiny(*(f"--config.train.{one}" for one in options), num_classes=2)
    mesh = parallel.make_mesh(8, jax.devices()[:1])
    train(job, RunFolder(tmp_path / "whole"), streamed(black_and_white), mesh)

    polls = iter([*[False] * 3, True, True, *[False] * 2, True])  # at step 3, at once when it goes on, and at step 5
    monkeypatch.setattr(parallel, "stop_asked", lambda: next(polls, False))
    at = []
    for _ in range(3):
        with pytest.raises(stopping.Stopped):
            train(job, RunFolder(tmp_path / "stopped"), streamed(black_and_white), mesh)
        with Checkpoints(tmp_path / "stopped") as checkpoints:
            at.append((checkpoints.last, checkpoints.best))
    # Where a run was stopped doesn't make it the best, unless there is no other.
    assert at == [(3, 3), (3, 3), (5, 4)]
    train(job, RunFolder(tmp_path / "stopped"), streamed(black_and_white), mesh)
    for name in ("last", "best"):
        whole, stopped = (
            trained_state(job, RunFolder(tmp_path / run), mesh, which=name) for run in ("whole", "stopped")
        )
        jax.tree.map(np.testing.assert_array_equal, whole, stopped)
    assert read_rows(tmp_path / "whole" / "metrics.jsonl") == read_rows(tmp_path / "stopped" / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("stem_only")
def test_a_run_without_in_training_mi_keeps_its_loss_and_the_checkpoint_where_it_was_least(tmp_path, capsys):
    overrides = ("objective=cross_entropy", "steps=12", "checkpoint_every=4", "warmup_steps=0", "optimizer=sgd")
    job = tiny(*(f"--config.train.{one}" for one in overrides), num_classes=2)
    mesh = parallel.make_mesh(8, jax.devices()[:1])
    train(job, RunFolder(tmp_path), streamed(black_and_white), mesh)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [list(row) for row in rows] == [["step", "loss_nats"]] * 12
    losses = np.array([row["loss_nats"] for row in rows])
    assert f"loss {losses.mean():.3f} nats" in capsys.readouterr().out
    assert losses[7] < 0.5 * losses[0]  # the classes arrive with their images
    assert losses[8] > 2 * losses[0]
    running = [losses[:step].mean() for step in (4, 8, 12)]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == 4 * (1 + int(np.argmin(running)))
    frozen = frozen_variables(job, RunFolder(tmp_path), mesh)
    untrained = init_state(replace(job, num_classes=None), jax.random.key(0))  # as for an encoder alone
    assert jax.tree.map(jnp.shape, frozen["params"]) == jax.tree.map(jnp.shape, untrained.params["encoder"])


@pytest.mark.slow
def test_labeled_objectives_ask_for_classes_and_for_outputs_of_their_own():
    mesh = parallel.make_mesh(1)
    for name, outputs in (("cross_entropy", 10), ("rotation", 4), ("supcon", 64)):
        job = tiny(f"--config.train.objective={name}", num_classes=10)
        _, (state, batch, _) = make_train_step(job, mesh)
        assert state.params["head"]["Dense_1"]["bias"].shape == (outputs,)
        assert ("c_x" in batch, "c_y" in batch) == 2 * (name != "rotation",)
    with pytest.raises(InputError, match=r"objective='supcon' .* no labels"):
        make_train_step(tiny("--config.train.objective=supcon"), mesh)


def test_lars_is_optax_s_layerwise_rate():
    optimizer = training.make_optimizer("lars", learning_rate=1.0, steps=100, warmup_steps=0, weight_decay=0.0)
    params = {"kernel": 3.0 * jnp.ones((2, 2))}
    gradients = {"kernel": jnp.full((2, 2), 7.0)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # trust ratio 0.001·‖w‖/‖g‖ makes the step 0.001·‖w‖ long, whatever the gradient's size (You et al. 2017)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.001 * 6.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_batch_too_large_says_before_the_first_step_what_fits(tmp_path, monkeypatch):
    job, mesh = tiny("--config.train.k=512"), parallel.make_mesh(1, jax.devices()[:1])

    def needs(**changed) -> int:
        other = tiny(*(f"--config.train.{name}={value}" for name, value in changed.items()))
        step, abstract = make_train_step(other, mesh)
        return memory.needed_bytes(step.lower(*abstract).compile())

    def read(start, stop):
        raise AssertionError("no batch is read before it is known to fit")

    available = needs(k=512) // 3
    monkeypatch.setattr(memory, "memory_bytes", lambda: available)
    with pytest.raises(InputError, match=r"train\.k=512 needs .* GiB on each device") as raised:
        train(job, RunFolder(tmp_path), streamed(read), mesh)
    fewer, parts = (
        int(re.search(rf"train\.{name}=(\d+)\b(?! needs)", str(raised.value))[1]) for name in ("k", "accumulate")
    )
    # The advice is a straight line's: what it names fits, and not far below what there is.
    assert 0.7 * available < needs(k=fewer) <= 1.05 * available
    assert needs(k=512, accumulate=parts) <= 1.05 * available
    assert not list(tmp_path.glob("[0-9]*"))


@pytest.mark.parametrize("share", [-2.0, 0.0, 1e9])  # the last: a compiler that says nothing of what it needs
def test_where_no_batch_fits_none_is_named(share):
    assert training.what_fits(64, 1, 8, share) == "a smaller encoder or smaller images"


def test_what_the_compiler_itself_finds_too_large_is_said_in_the_same_line(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 31.50G of 15.75G hbm. Exceeded hbm capacity by 15.75G."
        )

    job, mesh = tiny("--config.train.k=64"), parallel.make_mesh(1, jax.devices()[:1])
    monkeypatch.setattr(memory, "memory_bytes", lambda: int(15.75 * 2**30))
    arguments = make_train_step(job, mesh)[1]
    with pytest.raises(
        InputError, match=r"train\.k=64 needs 31\.50 GiB .* has 15\.75; train\.k=31 or train\.accumulate=4"
    ):
        training.compile_step(SimpleNamespace(lower=refuse), arguments, mesh, k=64, accumulate=1, prefix="train.")


@pytest.mark.slow
def test_what_a_tpu_computes_otherwise_changes_nothing(monkeypatch):
    monkeypatch.setitem(STAGES, "resnet18", ((1, 1), "bottleneck"))
    job = tiny("--config.train.optimizer=sgd", "--config.train.warmup_steps=0")
    all_kept = steps(job, 1, 1)
    monkeypatch.setattr(parallel, "platform", lambda: "tpu")
    step, abstract = make_train_step(job, parallel.make_mesh(1, jax.devices()[:1]))
    assert "FoldedNorm" in step.lower(*abstract).as_text(debug_info=True)
    state, metrics = steps(job, 1, 1)
    np.testing.assert_allclose(metrics["loss_nats"], all_kept[1]["loss_nats"], rtol=1e-6)
    assert_close(state, all_kept[0], 1e-5)
