"""A training stops if it is no longer finite, says so in one line, and keeps the last finite state."""

import contextlib
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirigor_jax import encoding, fitting, mi, probes, softmax, training
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.errors import InputError
from mirigor_jax.objectives import make
from mirigor_jax.runs import loop
from mirigor_jax.runs.folder import RunFolder

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
LABELS = np.arange(200) % 2
H = (X + 4 * LABELS[:, None]).astype(np.float32)


def task(growth, row=lambda step, loss: {"loss_nats": float(loss)}, **options):
    """A task whose weight grows by a factor at every step, and whose loss does not depend on the weight."""

    @contextlib.contextmanager
    def steps(first):
        yield lambda state, step, size: ({"weight": state["weight"] * growth}, jnp.float32(1.0))

    like = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    settings = {
        "label": "train",
        "steps": 4,
        "save_every": 2,
        "begin": lambda: {"weight": jnp.ones(3, jnp.float32)},
        "like": {"weight": like},
        "open": steps,
        "score": lambda rows: 0.0,
        "note": lambda rows: "",
        "learned": lambda state: state,
        "rate": "train.learning_rate=1",
        "row": row,
    }
    return loop.Task(**settings | options)


def drive(task, path):
    folder = RunFolder(path)
    return loop.drive(task, folder, "rows.jsonl", folder / "checkpoints")


def test_weights_that_diverge_at_an_update_are_not_saved(tmp_path):
    tmp_path.joinpath("run").mkdir()
    message = r"train.learning_rate=1: 'train' diverged by its last update, of step 4.* checkpoint of step 2 is kept"
    with pytest.raises(InputError, match=message) as error:
        drive(task(jnp.float32(1e12)), tmp_path / "run")
    assert "\n" not in str(error.value)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.last == 2
        state = checkpoints.restore(2, task(1.0).like)
    np.testing.assert_allclose(state["weight"], 1e24, rtol=1e-6)


def test_a_loss_that_diverges_says_what_is_kept(tmp_path):
    def row(step, loss):
        return training.read_row(
            step,
            {"loss_nats": math.nan if step == 3 else 1.0, "gradient_norm": 1.0},
            k=4,
            objective=make("simclr", temperature=0.1, num_classes=None, axis_name=None),
            learning_rate=0.5,
        )

    with pytest.raises(InputError, match=r"training loss is nan at step 3.*; the checkpoint of step 2 is kept"):
        drive(task(1.0, row), tmp_path)


@pytest.mark.parametrize(
    ("step", "loss", "norm", "message"),
    [
        (
            7,
            math.inf,
            1.0,
            "learning_rate=0.5: the training loss is inf at step 7, .* grew too large; lower it",
        ),
        (7, 1.0, math.nan, "the training loss is 1 at step 7, its gradient's norm nan, as updates grew too large"),
        (1, math.nan, math.nan, "at step 1, .* before any update: check temperature and encoder"),
    ],
)
def test_a_step_s_loss_and_gradient_are_finite(step, loss, norm, message):
    objective = make("simclr", temperature=0.1, num_classes=None, axis_name=None)
    with pytest.raises(InputError, match=message):
        training.read_row(step, {"loss_nats": loss, "gradient_norm": norm}, k=4, objective=objective, learning_rate=0.5)


def test_a_critic_s_fit_ends_at_the_first_evaluation_that_is_not_finite():
    seen = []
    message = r"learning_rate=1e\+30: the critic of info_nce_symmetric diverged by step 100 .* lower it"
    with pytest.raises(InputError, match=message):
        mi.estimate(X, X + 1, learning_rate=1e30, steps=300, on_progress=lambda *each: seen.append(each))
    assert not seen


@pytest.mark.parametrize(
    ("fit_nats", "validation_nats", "message"),
    [
        ([1.0, math.nan], [1.0, math.nan], "learning_rate=2: b diverged by step 50 "),
        (
            [1.0, 1.0],
            [math.inf, 1.0],
            r"a diverged at its last update, by step 50 .*\(.* best at step 10\)",
        ),
    ],
)
def test_the_fit_that_diverged_is_named(fit_nats, validation_nats, message):
    seen = {"fit_nats": jnp.array(fit_nats), "validation_nats": jnp.array(validation_nats)}
    with pytest.raises(InputError, match=message):
        fitting.check_finite(seen, ["a", "b"], 50, 2.0, 10)
    fitting.check_finite(jax.tree.map(jnp.zeros_like, seen), ["a", "b"], 50, 2.0, 10)


def test_the_mlp_s_fit_ends_where_it_diverges():
    options = {"validation_features": H, "validation_labels": LABELS, "hidden": (4,), "dropout": (0.0,)}
    with pytest.raises(InputError, match=r"learning_rate=1e\+30: the MLP probe diverged by step 100 .*lower it"):
        probes.fit_mlp(H, LABELS, 2, learning_rate=1e30, max_steps=300, **options)


def test_a_linear_fit_that_diverges_is_named(monkeypatch):
    broken = np.full((1, 2, 2), np.nan, np.float32), np.zeros((1, 2), np.float32)
    monkeypatch.setattr(softmax, "_fit_path", lambda: lambda *_, **__: broken)
    with pytest.raises(InputError, match=r"linear probe's weights at l2 = 0.001 are not finite.*larger penalties"):
        probes.fit_linear(H, LABELS, 2, l2=[1e-3], validation_features=H, validation_labels=LABELS)


def test_whether_a_tree_is_finite_is_asked_of_its_floats():
    assert fitting.is_finite({"step": jnp.int32(1), "w": jnp.ones(2)})
    assert fitting.is_finite({})
    assert not fitting.is_finite({"step": jnp.int32(1), "w": (jnp.ones(2), jnp.array([1.0, jnp.inf]))})


class Mean(nn.Module):
    """An encoder that returns each image's mean over its pixels, but NaN for black images."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train, stages=False):
        mean = jnp.mean(x, axis=(1, 2))
        return jnp.where(mean == -1, jnp.nan, mean)


def test_an_encoder_whose_features_are_not_finite_is_named():
    images = np.full((20, 4, 4, 3), 7, np.uint8)
    options = {"batch_size": 8, "devices": jax.devices()[:1]}
    assert encoding.encode(Mean(), {"params": {}}, images, **options).shape == (20, 3)
    for bad in (3, 12, 19):
        images[bad] = 0
        with pytest.raises(InputError, match=f"stage encode: .*features are not finite, first those of image {bad}: "):
            encoding.encode(Mean(), {"params": {}}, images, **options)
        images[bad] = 7
