"""Autoencoders whose encoders are trained to hold Gaussian V-information of images, and what probes read off them.

An encoder e and a decoder φ minimize |x - φ(e(x))|², which maximizes the information about the image x that decoders of
φ's family can use in e(x).

Source: Gosch 2020, section 5.1, eq. 15, and appendices C.3 and D.5.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key
from scipy.special import entr

from mirigor_jax import mi, models
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.mlp import Network, adam, fit_mlp
from mirigor_jax.progress import Progress
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.settings import Evaluate
from mirigor_jax.softmax import Probe, class_posterior, fit_linear
from mirigor_jax.studies.rows import Row

Spec = Mapping[str, Any]
Pixels = Float[np.ndarray | Array, "n s s c"]
Batch = tuple[Float[Array, "n s s c"], Key[Array, ""]]  # images and the key of dropout

BATCH = 128
DECODER_STEPS, ENCODER_STEPS = 10, 1  # in turn, of an alternating training
SHIFT = 4  # pixels: the largest shift of an augmented image
PATIENCE = 500  # steps without a gain on validation, after which the non-linear probe is not fitted on
CHUNK = 1000  # images that are encoded at once


class PixelMLP(nn.Module):
    """(n, s, s, c) images → (n, 100) features: two hidden layers of 300 units with ReLU and dropout .5."""

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], train: bool) -> Float[Array, "n 100"]:
        return Network(100, (300, 300), (0.5, 0.5), "relu")(x.reshape(len(x), -1), not train)


class ResNet18(nn.Module):
    """(n, s, s, c) images → (n, 8 width) features, of images with three channels; a gray channel is repeated."""

    width: int
    stem: str

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], train: bool) -> Float[Array, "n d"]:
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        return models.build("resnet18", width=self.width, stem=self.stem, dtype="float32")(x, train)


class Setup(NamedTuple):
    """How an encoder and its decoder are trained, and the non-linear probe that judges the encoder.

    encoder: spec → the module. hidden, activation: of the non-linear decoder, whose layers have no dropout.
    learning_rate, encoder_decay, decoder_decay: of Adam, which has the weight decay in its gradient.
    augmented: whether training images are flipped and shifted at random.
    probe: options of `fit_mlp`.
    """

    encoder: Callable[[Spec], nn.Module]
    hidden: tuple[int, ...]
    activation: Any
    learning_rate: float
    encoder_decay: float
    decoder_decay: float
    augmented: bool
    probe: dict[str, Any]


# A fit's `encoder` → how it is trained, as Gosch 2020, C.3 and C.2, has it.
SETUPS: dict[str, Setup] = {
    "MLP": Setup(
        lambda spec: PixelMLP(),
        (300, 300),
        "relu",
        2.5e-4,
        1e-5,
        1e-5,
        augmented=False,
        probe={"hidden": (300, 300), "dropout": (0.0, 0.0), "weight_decay": 1e-5},
    ),
    "ResNet-18": Setup(
        lambda spec: ResNet18(spec["width"], spec["stem"]), (512, 512, 512), "elu", 1e-4, 1e-4, 1e-5, True, probe={}
    ),
}


@dataclass(frozen=True)
class Job:
    """An encoder, a decoder and their optimizers. augmented: as in `Setup`."""

    encoder: nn.Module
    decoder: Network
    encoder_rates: tuple[float, float]
    decoder_rates: tuple[float, float]
    augmented: bool


class Trained(NamedTuple):
    """A network's parameters and the state of its optimizer."""

    params: Any
    opt: Any


class State(NamedTuple):
    """A training: its steps, both networks, and the statistics of the encoder's BatchNorm layers."""

    step: Array
    encoder: Trained
    decoder: Trained
    statistics: Any


class Part(NamedTuple):
    """Images with channel-wise mean 0 and standard deviation 1 over the training images, and their classes."""

    x: Pixels
    labels: Int[np.ndarray, " n"]

    @property
    def rows(self) -> Float[np.ndarray, "n d"]:
        return np.asarray(self.x).reshape(len(self.x), -1)


def read_images(spec: Spec) -> dict[str, Part]:
    """The parts train, validation and test of `spec["source"]`; `spec["images"]` of train, drawn by `spec["seed"]`.

    Of images whose channels are all equal, one channel is kept. Raises InputError if there are too few images.
    """
    sets = labeled(spec["source"], size=spec["size"])
    sizes = {"train": spec["images"], "validation": spec["validation"], "test": spec["test"]}
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, (name, size) in enumerate(sizes.items()):
        if size > len(sets[name]):
            raise InputError(f"{spec['source']} has {len(sets[name]):,} {name} images: expected {size:,}; ask for less")
        rows = np.sort(np.random.default_rng([spec["seed"], number]).permutation(len(sets[name]))[:size])
        parts[name] = sets[name].read(rows).astype(np.float32), sets[name].attributes[rows, 0]
    if all(np.array_equal(x[..., :1], x[..., at : at + 1]) for x, _ in parts.values() for at in (1, 2)):
        parts = {name: (x[..., :1], labels) for name, (x, labels) in parts.items()}
    train = parts["train"][0]
    mean, scale = (each.reshape(1, 1, 1, -1) for each in (train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))))
    return {name: Part((x - mean) / scale, labels) for name, (x, labels) in parts.items()}


def job_of(spec: Spec, pixels: int) -> Job:
    """The networks that a spec describes, for images of so many numbers."""
    setup = SETUPS[spec["encoder"]]
    hidden = DECODERS[spec["decoder"]](setup)
    return Job(
        encoder=setup.encoder(spec),
        decoder=Network(pixels, hidden, (0.0,) * len(hidden), setup.activation),
        encoder_rates=(setup.learning_rate, setup.encoder_decay),
        decoder_rates=(setup.learning_rate, setup.decoder_decay),
        augmented=setup.augmented,
    )


# A fit's `decoder` → its hidden layers.
DECODERS: dict[str, Callable[[Setup], tuple[int, ...]]] = {
    "linear": lambda setup: (),
    "non-linear": lambda setup: setup.hidden,
}


def start(job: Job, key: Key[Array, ""], images: Float[Array, "n s s c"]) -> State:
    """The state before any step."""
    encoder_key, decoder_key = jax.random.split(key)
    variables = dict(job.encoder.init(encoder_key, images[:1], False))
    encoder = variables.pop("params")
    h: Any = job.encoder.apply({"params": encoder, **variables}, images[:1], False)
    decoder = job.decoder.init(decoder_key, h)["params"]
    networks = (encoder, job.encoder_rates), (decoder, job.decoder_rates)
    first, second = (Trained(params, adam(*rates).init(params)) for params, rates in networks)
    return State(jnp.zeros((), jnp.int32), first, second, variables)


def _loss(encoder: Any, decoder: Any, job: Job, statistics: Any, batch: Batch) -> tuple[Float[Array, ""], Any]:
    """(mean squared error of a pixel, the encoder's new statistics), in training mode."""
    x, key = batch
    h, statistics = job.encoder.apply(
        {"params": encoder, **statistics}, x, True, rngs={"dropout": key}, mutable=list(statistics)
    )
    decoded: Any = job.decoder.apply({"params": decoder}, h)
    return jnp.mean((decoded - x.reshape(len(x), -1)) ** 2), statistics


def _updated(network: Trained, rates: tuple[float, float], gradients: Any) -> Trained:
    updates, opt = adam(*rates).update(gradients, network.opt, network.params)
    return Trained(optax.apply_updates(network.params, updates), opt)


def _gradients(job: Job, state: State, batch: Batch, of: int | tuple[int, int]) -> tuple[Any, Any]:
    """(gradients, the encoder's new statistics). of: 0 for the encoder, 1 for the decoder."""
    found: tuple[Any, Any] = jax.grad(_loss, of, has_aux=True)(
        state.encoder.params, state.decoder.params, job, state.statistics, batch
    )
    return found


def _decoder_step(job: Job, state: State, batch: Batch) -> State:
    gradients, statistics = _gradients(job, state, batch, 1)
    return state._replace(decoder=_updated(state.decoder, job.decoder_rates, gradients), statistics=statistics)


def _encoder_step(job: Job, state: State, batch: Batch) -> State:
    gradients, statistics = _gradients(job, state, batch, 0)
    return state._replace(encoder=_updated(state.encoder, job.encoder_rates, gradients), statistics=statistics)


def _joint_step(job: Job, state: State, batch: Batch) -> State:
    (of_encoder, of_decoder), statistics = _gradients(job, state, batch, (0, 1))
    encoder = _updated(state.encoder, job.encoder_rates, of_encoder)
    decoder = _updated(state.decoder, job.decoder_rates, of_decoder)
    return state._replace(encoder=encoder, decoder=decoder, statistics=statistics)


def _alternating_step(job: Job, state: State, batch: Batch) -> State:
    """A step of the decoder alone, or in DECODER_STEPS + ENCODER_STEPS steps the last ones of the encoder alone."""
    of_decoder = state.step % (DECODER_STEPS + ENCODER_STEPS) < DECODER_STEPS
    return lax.cond(of_decoder, partial(_decoder_step, job), partial(_encoder_step, job), state, batch)


def _encoder_steps_in_turn(steps: int) -> int:
    rounds, rest = divmod(steps, DECODER_STEPS + ENCODER_STEPS)
    return rounds * ENCODER_STEPS + max(0, rest - DECODER_STEPS)


# A fit's `scheme` → (a step of it, a function from a number of its steps to that of the steps that train the encoder).
SCHEMES: dict[str, tuple[Callable[[Job, State, Batch], State], Callable[[int], int]]] = {
    "decoder": (_decoder_step, lambda steps: 0),
    "alternating": (_alternating_step, _encoder_steps_in_turn),
    "joint": (_joint_step, lambda steps: steps),
}


@partial(jax.jit, static_argnums=(0, 1))
def train_epoch(job: Job, scheme: str, state: State, images: Float[Array, "n s s c"], key: Key[Array, ""]) -> State:
    """One step of the scheme on each batch of the images in random order; the last n mod BATCH images are left out."""
    batches = len(images) // BATCH
    order_key, augment_key, dropout_key = jax.random.split(key, 3)
    rows = jax.random.permutation(order_key, len(images))[: batches * BATCH].reshape(batches, BATCH)

    def step(state: State, at: tuple[Array, Array, Array]) -> tuple[State, None]:
        x = images[at[0]]
        x = _augmented(x, at[1]) if job.augmented else x
        state = SCHEMES[scheme][0](job, state, (x, at[2]))
        return state._replace(step=state.step + 1), None

    augment_keys, dropout_keys = (jax.random.split(one, batches) for one in (augment_key, dropout_key))
    return lax.scan(step, state, (rows, augment_keys, dropout_keys))[0]


def _augmented(x: Float[Array, "n s s c"], key: Key[Array, ""]) -> Float[Array, "n s s c"]:
    """Images flipped at random and cut at random from a frame of SHIFT pixels. Source: He et al. 2016, section 4.2."""
    flip_key, shift_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=(len(x), 1, 1, 1))
    x = jnp.where(flips, x[:, :, ::-1], x)
    framed = jnp.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), constant_values=x.min())
    corners = jax.random.randint(shift_key, (len(x), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, corner: lax.dynamic_slice(image, (*corner, 0), x.shape[1:]))(framed, corners)


@partial(jax.jit, static_argnums=0)
def _encode(job: Job, state: State, x: Float[Array, "n s s c"]) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """(features, squared error of each image), not in training mode."""
    h: Any = job.encoder.apply({"params": state.encoder.params, **state.statistics}, x, False)
    decoded: Any = job.decoder.apply({"params": state.decoder.params}, h)
    return h, jnp.sum((decoded - x.reshape(len(x), -1)) ** 2, axis=1)


def encode(job: Job, state: State, x: Pixels) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """(features, squared error of each image), in chunks."""
    found = [jax.device_get(_encode(job, state, x[at : at + CHUNK])) for at in range(0, len(x), CHUNK)]
    h, errors = (np.concatenate(each) for each in zip(*found, strict=True))
    return h, errors


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Train an encoder with a decoder, and measure it. Returns one row.

    spec: name, source and size (of the images), encoder (a key of SETUPS, or "pixels": the images themselves), seed,
        images, validation and test (images of each part), probe_steps (most steps of the non-linear probe), families
        (of Gaussian V-information, at the end of training); for ResNet-18 width and stem. An encoder that is trained
        has decoder (a key of DECODERS), scheme (a key of SCHEMES), pretraining and epochs (of the decoder alone, and of
        the scheme), and measured (epochs after which it is measured). Another has random weights.
    runs, folder: of no use.
    The row has the spec, `losses`: the squared error of a test image's pixel, after each epoch from 0, and `points`:
    what `measure` returns, after each measured epoch. An encoder without a decoder has one point and no losses.
    Raises InputError if there are too few images, or if a training diverges.
    """
    parts = read_images(spec)
    row: Row = {**spec, "pixels": parts["test"].rows.shape[1]}
    images, root = jax.device_put(parts["train"].x), jax.random.key(spec["seed"])
    if "decoder" not in spec:
        features = {name: part.rows for name, part in parts.items()}
        if spec["encoder"] in SETUPS:
            job = job_of({**spec, "decoder": "linear"}, row["pixels"])
            state = start(job, jax.random.fold_in(root, 0), images)
            features = {name: encode(job, state, part.x)[0] for name, part in parts.items()}
        found = measure(features, parts, spec, spec["families"])
        return [{**row, "losses": [], "points": [{"epoch": 0, "encoder_steps": 0, **found}]}]
    job = job_of(spec, row["pixels"])
    state = start(job, jax.random.fold_in(root, 0), images)
    total = spec["pretraining"] + spec["epochs"]
    with Progress(spec["name"], total, "epochs") as progress:
        for epoch in range(spec["pretraining"]):
            state = train_epoch(job, "decoder", state, images, jax.random.fold_in(root, 1 + epoch))
            progress.update(epoch + 1, "decoder alone")
        state = state._replace(step=jnp.zeros_like(state.step))
        losses: list[float] = []
        points = []
        for epoch in range(spec["epochs"] + 1):
            _, errors = encode(job, state, parts["test"].x)
            losses.append(float(errors.mean()) / row["pixels"])
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"{spec['name']}: the squared error is {losses[-1]} after epoch {epoch}; lower the rate"
                )
            if epoch in spec["measured"]:
                features = {name: encode(job, state, part.x)[0] for name, part in parts.items()}
                encoder_steps = SCHEMES[spec["scheme"]][1](int(state.step))
                found = measure(features, parts, spec, spec["families"] if epoch == spec["epochs"] else ())
                own = found["total_bits"] - float(errors.mean()) / math.log(2)
                points.append({"epoch": epoch, "encoder_steps": encoder_steps, "own_bits": own, **found})
            if epoch < spec["epochs"]:
                state = train_epoch(job, spec["scheme"], state, images, jax.random.fold_in(root, 1 + total + epoch))
                progress.update(spec["pretraining"] + epoch + 1, f"squared error {losses[-1]:.4f} of a test pixel")
    return [{**row, "losses": losses, "points": points}]


def measure(
    features: Mapping[str, Float[np.ndarray, "n d"]],
    parts: Mapping[str, Part],
    spec: Spec,
    families: Sequence[str],
) -> dict[str, Any]:
    """What probes, usable information and Gaussian V-information say of these features. Accuracies are in 0..1.

    Probes are fitted on train, chosen on validation and read on test. The other two are read on test images alone.
    families: of Gaussian V-information.
    """
    classes = int(parts["train"].labels.max()) + 1
    labels, x = parts["test"].labels, parts["test"].rows
    given = features["train"], parts["train"].labels, classes
    judged = features["validation"], parts["validation"].labels
    setup = SETUPS.get(spec["encoder"], SETUPS["MLP"])
    probes: dict[str, Probe] = {
        "linear": fit_linear(*given, l2=Evaluate.l2, validation_features=judged[0], validation_labels=judged[1]),
        "mlp": fit_mlp(
            *given,
            validation_features=judged[0],
            validation_labels=judged[1],
            max_steps=spec["probe_steps"],
            patience=PATIENCE,
            seed=spec["seed"],
            **setup.probe,
        ),
    }
    found: dict[str, Any] = {}
    entropy = float(entr(np.bincount(labels) / len(labels)).sum())
    for name, probe in probes.items():
        posterior = class_posterior(probe, features["test"])
        loss = -np.log(np.maximum(posterior[np.arange(len(labels)), labels], np.finfo(float).tiny)).mean()
        found[f"{name}_accuracy"] = float(np.mean(posterior.argmax(axis=1) == labels))
        found[f"{name}_bits"] = (entropy - float(loss)) / math.log(2)
    usable = mi.usable_information(features["test"], labels)
    found |= {"usable_bits": usable.value_bits, "usable_lower_bits": usable.lower_bits}
    found |= {"usable_upper_bits": usable.upper_bits}
    found["total_bits"] = float(x.var(axis=0, ddof=1).sum()) / math.log(2)
    for family in families:
        found[f"gaussian_{family}_bits"] = mi.gaussian_v_information(features["test"], x, family=family).value_bits
    return found
