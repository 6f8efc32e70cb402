"""Train encoders that cannot change mutual information on an estimate of it: only the estimate changes.

X and Y are the top and the bottom half of an image, and a RealNVP encodes each. These maps are invertible, so
I(g_x(X); g_y(Y)) = I(X; Y) at every step. After Tschannen et al. 2020, section 3.1, which Lee et al. 2023 discuss in
section IV-B. Everything runs on one device.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Int, UInt8

from mirigor_jax import mi, probes
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.errors import InputError
from mirigor_jax.mi.values import info_nce
from mirigor_jax.models.realnvp import RealNVP
from mirigor_jax.monitoring import NO_STAGE_MONITOR, StageMonitor
from mirigor_jax.progress import show_progress
from mirigor_jax.runs import loop, usable
from mirigor_jax.runs.folder import RunFolder

Part = dict[str, Any]  # x, y: uint8 (n, d), (n, e), the pixels of the halves; labels: (n,)
Row = dict[str, int | float]
CHECKED = 4  # images at which `measure` computes the Jacobian
NOISE = 2**31  # `encoded` folds this number and up into the key for its noise; training steps fold smaller numbers
ORDER = "order.json"
READ = (("train", "x"), ("validation", "x"), ("test", "x"), ("test", "y"))  # the halves that are measured


class Objective(NamedTuple):
    """How the encoders are trained.

    moves: whether the encoders learn; if not, only the critic does.
    adversarial: whether the encoders also learn to hide the class.
    """

    moves: bool
    adversarial: bool


OBJECTIVES = {
    "critic": Objective(moves=False, adversarial=False),
    "infonce": Objective(moves=True, adversarial=False),
    "adversarial": Objective(moves=True, adversarial=True),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    k: images a step.
    adversarial_weight: weight in nats of the R² of the classifier from which the encoders hide the class.
    ridge: penalty of that classifier, a ridge regression.
    """

    encoder: RealNVP
    num_classes: int
    k: int
    learning_rate: float
    adversarial_weight: float
    ridge: float
    seed: int


class State(NamedTuple):
    """State of a training. params: `x` and `y`, the encoders' parameters, and `critic`, a bilinear critic's matrix."""

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: optax.OptState


def halves(images: UInt8[np.ndarray, "n s s 3"]) -> dict[str, UInt8[np.ndarray, "n _"]]:
    """The flattened pixels of the top (x) and bottom (y) halves. A pixel becomes the mean of its three colors."""
    gray = images.mean(axis=3).round().astype(np.uint8)
    middle = gray.shape[1] // 2
    return {"x": gray[:, :middle].reshape(len(gray), -1), "y": gray[:, middle:].reshape(len(gray), -1)}


def halves_of(images: ImageSet) -> Part:
    """The halves and the classes of all images, in random order, so the first n are a random sample."""
    order = np.random.default_rng(0).permutation(len(images))
    return halves(images.read(order)) | {"labels": images.attributes[order, 0]}


def dequantize(key: Array, pixels: UInt8[Array, "n d"]) -> Float[Array, "n d"]:
    """(pixel + u) / 128 - 1, with u uniform in [0, 1).

    The result has a density. It is as informative as the pixels, because rounding down recovers them.
    Source: Theis et al. 2016, section 3.1.
    """
    return (pixels + jax.random.uniform(key, pixels.shape)) / 128 - 1


def init_state(settings: Settings, dims: tuple[int, int]) -> State:
    """The state before training: encoders that are identities, and a critic whose scores are all 0.

    dims: number of pixels of the top and the bottom half.
    """
    params: dict[str, Any] = {
        view: settings.encoder.init(jax.random.key(i + 2 * settings.seed), jnp.zeros((1, d)))["params"]
        for i, (view, d) in enumerate(zip("xy", dims, strict=True))
    }
    params["critic"] = jnp.zeros(dims)
    return State(jnp.zeros((), jnp.int32), params, optax.adam(settings.learning_rate).init(params))


def leave_one_out_r2(z: Float[Array, "k d"], classes: Float[Array, "k c"], ridge: float) -> Float[Array, ""]:
    """Leave-one-out R² (at most 1) of a ridge regression of the classes on z.

    z: representations; the function standardizes its columns over the batch.
    classes: one-hot classes.
    ridge: the penalty divided by k.
    A regression on all other images predicts each image, so overfitting does not count. The diagonal of the hat matrix
    gives all these predictions at once (Allen 1974).
    """
    z = (z - jnp.mean(z, axis=0, keepdims=True)) / (jnp.std(z, axis=0, keepdims=True) + 1e-3)
    centered = classes - jnp.mean(classes, axis=0, keepdims=True)
    gram, identity = jnp.matmul(z, z.T, precision="highest"), jnp.eye(len(z))
    # I - H = penalty (gram + penalty I)^-1, with H the hat matrix. The residual of an image that is left out is its
    # residual in the full regression divided by its diagonal entry of I - H; the penalty cancels.
    inverse = cho_solve(cho_factor(gram + ridge * len(z) * identity), identity)
    residuals = inverse @ centered / jnp.diagonal(inverse)[:, None]
    return 1 - jnp.sum(residuals**2) / jnp.sum(centered**2)


def train_step(state: State, part: Part, *, settings: Settings, objective: Objective) -> tuple[State, Float[Array, ""]]:
    """Make one update on k images of the part. Returns the new state and the InfoNCE of these images, in nats.

    The seed and the step determine the images. The update raises InfoNCE by encoders and a bilinear critic (van den
    Oord et al. 2018, Eq. 3). Adversarial encoders also lower the leave-one-out R² of the class on the top half, to 0.
    """
    row_key, *noise_keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), state.step), 3)
    rows = jax.random.randint(row_key, (settings.k,), 0, len(part["labels"]))
    views = {view: dequantize(key, part[view][rows]) for view, key in zip("xy", noise_keys, strict=True)}
    classes = jax.nn.one_hot(part["labels"][rows], settings.num_classes)

    def loss(params):
        z = {view: settings.encoder.apply({"params": params[view]}, x)[0] for view, x in views.items()}
        z = z if objective.moves else lax.stop_gradient(z)
        nats = info_nce(z["x"] @ params["critic"] @ z["y"].T)
        r2 = jnp.maximum(leave_one_out_r2(z["x"], classes, settings.ridge), 0) if objective.adversarial else 0.0
        return settings.adversarial_weight * r2 - nats, nats

    gradients, nats = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optax.adam(settings.learning_rate).update(gradients, state.opt_state)
    return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), nats


@partial(jax.jit, static_argnames="encoder")
def encode(
    params: dict[str, Any], x: Float[Array, "n d"], *, encoder: RealNVP
) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, ""]]:
    """Representations, log |det J| at each row in nats, and the largest |g⁻¹(g(x)) − x|."""
    apply: Any = partial(encoder.apply, {"params": params})
    z, log_det = apply(x)
    back = apply(z, method="inverse")
    return z, log_det, jnp.max(jnp.abs(back - x))


@partial(jax.jit, static_argnames="encoder")
def jacobians(params: dict[str, Any], x: Float[Array, "n d"], *, encoder: RealNVP) -> Float[Array, "n d d"]:
    """The Jacobian at each row, by forward differentiation. `measure` checks the encoder's log-determinants with it."""
    return lax.map(jax.jacfwd(lambda row: encoder.apply({"params": params}, row[None])[0][0]), x)


def encoded(
    params: dict[str, Any], parts: Mapping[str, Part], settings: Settings, name: str, view: str
) -> tuple[Float[Array, "n d"], Float[Array, "n e"], Float[Array, " n"], Float[Array, ""]]:
    """Add noise to one of the halves in READ, the same noise at every call, and encode it.

    Returns the noisy half, followed by the results of `encode`.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), NOISE + READ.index((name, view)))
    half = dequantize(key, jnp.asarray(parts[name][view]))
    return half, *encode(params[view], half, encoder=settings.encoder)


def unseen(
    params: dict[str, Any], parts: Mapping[str, Part], settings: Settings
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """(representations, classes) of the top halves of all images that no encoder was trained or chosen on."""
    names = ("validation", "test")
    h = [np.asarray(encoded(params, parts, settings, name, "x")[1]) for name in names]
    return np.concatenate(h), np.concatenate([parts[name]["labels"] for name in names])


def measure_usable(params: dict[str, Any], parts: Mapping[str, Part], settings: Settings) -> Row:
    """Measure the usable information of the class in the encoded top half, on images that training has not seen.

    Returns usable_bits, and unless they are withheld usable_lower_bits and usable_upper_bits; see
    `mi.UsableInformation`. It takes 20 CPU seconds on 16,000 rows of 392 columns.
    """
    with usable.show_progress(3) as on_progress:
        result = mi.usable_information(*unseen(params, parts, settings), on_progress=on_progress)
    values = {name: getattr(result, f"{name}_bits") for name in ("value", "lower", "upper")}
    ends = {f"usable_{name}_bits": bits for name, bits in values.items() if name != "value" and bits is not None}
    return {"usable_bits": values["value"], **ends}


def order(
    first: dict[str, Any], last: dict[str, Any], parts: Mapping[str, Part], settings: Settings, steps: int
) -> dict[str, Any]:
    """Prove which of two encoders of the top half holds more usable information of the class, on the same unseen rows.

    first, last: the parameters at step 0 and at step `steps`.
    Returns the fields of a `PairOrder`, its verdict, and the number of rows and the confidence of the `UsableOrder`.
    """
    (h_first, labels), (h_last, _) = (unseen(params, parts, settings) for params in (first, last))
    with show_progress("order", "encoders and pairs") as on_progress:
        result = mi.compare_many({"step 0": h_first, f"step {steps:,}": h_last}, labels, on_progress=on_progress)
    [pair] = result.to_dict()["pairs"]
    return {**pair, "rows": result.rows, "confidence": result.confidence}


def measure(params: dict[str, Any], parts: Mapping[str, Part], settings: Settings, l2: Sequence[float]) -> Row:
    """Measure the encoders and the critic on test images. Returns a row with these values:

    held_out_bits: InfoNCE at K = k of the critic in training, the mean over disjoint batches.
    accuracy: a linear probe's accuracy on the top half, 0..1.
    log_det_nats: the sum of both encoders' log |det J|, the mean over images.
    log_det_error_nats: the largest difference between log |det J| and slogdet of the Jacobian, at a few images.
    inverse_error: the largest |g⁻¹(g(x)) − x| of all pixels, which are in −1..1.
    """
    z, k, checks = {}, settings.k, []
    for name, view in READ:
        half, z[name, view], log_det, inverse_error = encoded(params, parts, settings, name, view)
        if name == "test":
            of = np.asarray(jacobians(params[view], half[:CHECKED], encoder=settings.encoder), np.float64)
            difference = np.abs(np.linalg.slogdet(of)[1] - np.asarray(log_det[:CHECKED])).max()
            checks.append((float(jnp.mean(log_det)), float(difference), float(inverse_error)))
    pairs = (z["test", view][: len(z["test", view]) // k * k] for view in "xy")
    batches = tuple(of.reshape(-1, k, of.shape[1]) for of in pairs)
    nats = lax.map(lambda batch: info_nce(batch[0] @ params["critic"] @ batch[1].T), batches)
    probe = probes.fit_linear(
        z["train", "x"],
        parts["train"]["labels"],
        settings.num_classes,
        l2=l2,
        validation_features=z["validation", "x"],
        validation_labels=parts["validation"]["labels"],
    )
    log_dets, differences, inverse_errors = zip(*checks, strict=True)
    return {
        "held_out_bits": float(jnp.mean(nats)) / math.log(2),
        "accuracy": probes.accuracy(probe, z["test", "x"], parts["test"]["labels"]),
        "log_det_nats": sum(log_dets),
        "log_det_error_nats": max(differences),
        "inverse_error": max(inverse_errors),
    }


def train(
    parts: Mapping[str, Part],
    folder: RunFolder,
    name: str,
    settings: Settings,
    *,
    steps: int,
    record_every: int,
    usable_every: int,
    probed: int,
    l2: Sequence[float],
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> None:
    """Train by the named objective, from the newest checkpoint in `folder` if there is one.

    parts: train, validation and test.
    name: key of OBJECTIVES.
    record_every: steps between two records and checkpoints.
    usable_every: steps between two records with usable information, a multiple of record_every. The first and the last
        record have it, too.
    probed: number of training images that the linear probe is fitted on; the encoders train on all.
    l2: penalties that the probe chooses from.
    monitor: shows the records, and traces some steps.
    Writes records.jsonl: at the start, every `record_every` steps and at the end a row of `measure`, with `step` and
    with `train_bits`, the mean InfoNCE of the batches since the last record; some records also have the values of
    `measure_usable`. If the encoders learn, it then writes order.json, the `order` of the first and the last one.
    Raises InputError if the loss diverges.
    """
    train_part = {key: jnp.asarray(value) for key, value in parts["train"].items()}
    read = {**parts, "train": {key: value[:probed] for key, value in parts["train"].items()}}
    dims = parts["train"]["x"].shape[1], parts["train"]["y"].shape[1]
    objective, unmoved = OBJECTIVES[name], Row()
    compiled = jax.jit(partial(train_step, settings=settings, objective=objective), donate_argnums=0)
    begin = jax.jit(partial(init_state, settings, dims))
    folder.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def steps_from(first: int) -> Iterator[loop.Advance]:
        with monitor.traced(compiled) as step:
            yield lambda state, done, size: step(state, train_part)

    def record(done: int, state: State, nats: Sequence[Any]) -> Row:
        train_bits = float(np.mean(nats)) / math.log(2) if nats else 0.0
        if not math.isfinite(train_bits):
            raise InputError(f"InfoNCE is {train_bits} at step {done}; lower learning_rate={settings.learning_rate}")
        return {"train_bits": train_bits, **measure(state.params, read, settings, l2), **usable_values(done, state)}

    def usable_values(done: int, state: State) -> Row:
        if done % usable_every and done != steps:
            return {}
        if objective.moves or not unmoved:
            values = measure_usable(state.params, read, settings)
            if objective.moves:
                return values
            unmoved.update(values)  # encoders that do not learn are measured once
        return unmoved

    def note(rows: Sequence[Row]) -> str:
        return f"{rows[-1]['held_out_bits']:.2f} bits held out, accuracy {100 * rows[-1]['accuracy']:.1f} %"

    task = loop.Task(
        label=name,
        steps=steps,
        save_every=record_every,
        begin=begin,
        like=begin(),
        open=steps_from,
        evaluate=record,
        score=lambda rows: rows[-1]["held_out_bits"],
        note=note,
        learned=lambda state: state.params,
        rate=f"learning_rate={settings.learning_rate}",
    )
    state, _ = loop.drive(task, folder, "records.jsonl", folder, monitor)
    if objective.moves:
        folder.write(ORDER, order(begin().params, state.params, read, settings, steps))


def finished(folder: RunFolder, name: str, steps: int) -> bool:
    """Whether `train` has come to its end in this folder. name, steps: as in `train`."""
    rows = folder.rows("records.jsonl")
    return bool(rows) and rows[-1]["step"] == steps and (not OBJECTIVES[name].moves or folder.read(ORDER) is not None)


def correlation(rows: Sequence[Row]) -> float | None:
    """Pearson's correlation of held-out InfoNCE and accuracy over training; None if one of them is constant.

    It leaves out the first row, because the critic has learned nothing then.
    """
    estimate, accuracy = (np.array([row[name] for row in rows[1:]]) for name in ("held_out_bits", "accuracy"))
    if len(estimate) < 2 or np.ptp(estimate) == 0 or np.ptp(accuracy) == 0:
        return None
    return float(np.corrcoef(estimate, accuracy)[0, 1])
