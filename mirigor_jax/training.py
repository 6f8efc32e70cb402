"""Contrastive training of an encoder f_e and a projection head f_p: `train`, its state, its step and its optimizers."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8

from mirigor_jax import fields, fitting, memory, objectives, parallel
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.preprocess import image_keys, views
from mirigor_jax.data.training_data import TrainingData, pairing_of, population_of, told_apart, training_data
from mirigor_jax.errors import InputError
from mirigor_jax.history import Row, TrainingHistory, in_training_bits, note
from mirigor_jax.models.heads import MLP
from mirigor_jax.objectives import Objective
from mirigor_jax.settings import Data, Head, Images, Train

Metrics = dict[str, Array]

Progress = Callable[[int, int, str], None]  # (step, number of steps, note)
Advance = Callable[["TrainState"], tuple["TrainState", Metrics]]  # draws a batch and takes a step
Abstract = tuple[Any, dict[str, Any], Any]  # shapes, dtypes, layouts of (state, batch, resident images)

FIRST_WEIGHTS = 0  # folded into the root key for the initial weights
DECODER_LAYERS = {"linear": 0, "mlp": 3}  # hidden layers
AUGMENTING, OF_OBJECTIVE = 2, 3  # folded into the root key for augmentations, and for an objective's draws


@struct.dataclass
class TrainState:
    """Everything that a step updates.

    step: int32 scalar. Steps taken so far.
    params: {"encoder", "head"}, and "decoder" if the objective needs one.
    batch_stats: the encoder's running BatchNorm statistics; {} without BatchNorm.
    opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def encoder_variables(self) -> dict[str, Any]:
        """The encoder's current variables, as `encoder.apply` takes them."""
        return {"params": self.params["encoder"], "batch_stats": self.batch_stats}


@struct.dataclass
class SlowTrainState(TrainState):
    """The state of a training with a slow copy. It is a class of its own because other checkpoints have no such field.

    slow: {"encoder", "head"}. A moving average of their params.
    """

    slow: Any


def check_parts(k: int, accumulate: int) -> None:
    """Raises InputError if a device's k pairs cannot be split into `accumulate` equal parts."""
    if accumulate < 1 or k % accumulate:
        raise InputError(f"accumulate={accumulate} does not divide a device's {k} pairs; choose a divisor of {k}")


def check_pairs(k: int, objective: Objective, name: str, features: int) -> None:
    """Raises InputError if k pairs are too few for the objective of that name, if its head has so many outputs."""
    each = objective.pairs_per_output
    if k < each * features:
        fewer = f", or lower head.features to {k // each}" if k >= each else ""
        raise InputError(
            f"k={k}: objective='{name}' needs {each} pairs for each of the head's outputs, and "
            f"head.features={features}; raise it to {each * features}{fewer}"
        )


def check_size(objective: Objective, size: int) -> None:
    """Raises InputError if the objective cannot cut images of size×size pixels into its patches."""
    if objective.patch:
        objectives.patches_across(size, objective.patch)


def check_used(objective: Objective, name: str, given: Mapping[str, Any]) -> None:
    """Raises InputError for an option that is not at its default, and that the objective of that name does not use.

    given: option → value, of `train`'s options that some objectives alone use.
    """
    used = {option: option in objective.uses for option in objectives.SETTINGS}
    used["decoder"] = objective.needs_decoder
    used["decoder_width"] = objective.needs_decoder and bool(DECODER_LAYERS.get(given["decoder"]))
    for option, value in given.items():
        if value != getattr(Train, option) and not used[option]:
            raise InputError(f"{option}={value} has no effect on objective='{name}' as it is given; leave it out")


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    resident_images: UInt8[Array, "n s s 3"] | None,
    *,
    encoder: nn.Module,
    head: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    decoder: nn.Module | None = None,
    accumulate: int = Train.accumulate,
    augmentation: Augmentation | None = None,
    seed: int = Images.seed,
) -> tuple[TrainState, Metrics]:
    """Take one training step on this device's shard of the global batch; gradients are averaged over axis "data".

    batch: this device's k pairs. Each of the objective's views, such as "x" and "y", is uint8 images (k, s, s, 3), or
        int32 rows (k,) of resident_images. Each of the objective's labels is int32 (k,).
    resident_images: the images that every device holds; None if batches contain the images.
    decoder: features (n, d) → pixels (n, 3s²), if the objective needs it; None: it does not.
    accumulate: number of parts in which the pairs go through the encoder, one part after the other. The loss is still
        that of the whole batch, with all its negatives. Only BatchNorm sees one part at a time; each part updates its
        running statistics. With the encoder's `axis_name`, BatchNorm's statistics span the parts of all devices.
    augmentation: applied to each view separately, before the objective's transform, with new draws at every step.
    seed: of the root key, from which augmentations and the objective's draws come.
    Returns the new state and {"loss_nats", "gradient_norm"}.
    Raises InputError if accumulate does not divide k.
    Source: Lee et al. 2023, Fig. 3 (top) and Eq. 2–3; in parts, Gao et al. 2021 (GradCache), §3.
    """
    k, num_views = batch["x"].shape[0], len(objective.views)
    check_parts(k, accumulate)

    def keys_for(purpose: int) -> list[Key[Array, " k"]]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), state.step)
        first = k * lax.axis_index(parallel.AXIS)
        return [image_keys(jax.random.fold_in(key, view), first, k) for view in range(num_views)]

    keys = None if augmentation is None else _in_parts(keys_for(AUGMENTING), accumulate)
    targets = objective.prepare(batch, partial(keys_for, OF_OBJECTIVE))
    shown = None if objective.transform is None else _in_parts(targets, accumulate)
    parts = Part(_in_parts([batch[name] for name in objective.views], accumulate), keys, shown)
    modules: Any = {"encoder": encoder, "head": head, "decoder": decoder, "objective": objective}
    embed = partial(embed_views, resident_images=resident_images, augmentation=augmentation, **modules)

    def by_view(rows: Float[Array, "a m ..."]) -> Float[Array, "v k ..."]:
        """Each of the a parts holds all its images' first views, then their second views, and so on."""
        last = rows.shape[2:]
        return jnp.moveaxis(rows.reshape(accumulate, num_views, -1, *last), 1, 0).reshape(num_views, k, *last)

    def loss_of(outputs: Outputs) -> Float[Array, ""]:
        pixels = {"decoded": outputs.decoded, "images": outputs.images}
        given = {name: by_view(rows) for name, rows in pixels.items() if rows is not None}
        return objective.loss(*by_view(outputs.z), *targets, **given)

    if isinstance(state, SlowTrainState):
        targets = (*targets, *by_view(_slow_outputs(embed, state, parts)))

    learn = gradients_at_once if accumulate == 1 else gradients_in_parts
    loss, gradients, batch_stats = learn(embed, loss_of, state.params, state.batch_stats, parts)
    loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), parallel.AXIS)
    new_state = apply_gradients(state, gradients, batch_stats, optimizer, objective)
    return new_state, {"loss_nats": loss, "gradient_norm": optax.tree.norm(gradients)}


class Part(NamedTuple):
    """The m images, of all views, that go through the encoder together. In a step, each array has a leading part axis.

    images: uint8 (m, s, s, 3), or their rows (m,) in resident_images.
    keys: (m,). A key for each image's augmentations; None without augmentation.
    targets: (m, …). An argument of the objective's transform for each image; None without a transform.
    """

    images: Array
    keys: Any
    targets: Any


class Outputs(NamedTuple):
    """What the loss gets of m images. In a step, each array has a leading part axis.

    z: (m, f). The head's outputs, at least float32.
    decoded: (m, s, s, 3). The decoder's outputs, at least float32; None without a decoder.
    images: (m, s, s, 3). What the decoder should find: the images before the transform; None without a decoder.
    """

    z: Float[Array, "m f"]
    decoded: Float[Array, "m s s 3"] | None = None
    images: Float[Array, "m s s 3"] | None = None


def _in_parts(views_of_batch: Sequence[Array], accumulate: int) -> Array:
    """One (k, …) array a view → (accumulate, views·k/accumulate, …); each part holds one view after the other."""
    k = len(views_of_batch[0])
    parts = jnp.stack(views_of_batch).reshape(
        len(views_of_batch), accumulate, k // accumulate, *views_of_batch[0].shape[1:]
    )
    return jnp.moveaxis(parts, 0, 1).reshape(accumulate, -1, *parts.shape[3:])


Embed = Callable[[Any, Any, Part], tuple[Outputs, Any]]  # (params, batch_stats, part) → (outputs, batch_stats)
LossOf = Callable[[Outputs], Float[Array, ""]]  # of outputs with a leading part axis
Learned = tuple[Float[Array, ""], Any, Any]  # (loss, its gradient with respect to the parameters, running statistics)


def embed_views(
    params: Any,
    batch_stats: Any,
    part: Part,
    *,
    resident_images: UInt8[Array, "n s s 3"] | None,
    encoder: nn.Module,
    head: nn.Module,
    decoder: nn.Module | None,
    objective: Objective,
    augmentation: Augmentation | None,
) -> tuple[Outputs, Any]:
    """The outputs for a part's images, and the updated running statistics of the encoder."""
    variables = {"params": params["encoder"], "batch_stats": batch_stats}
    images = part.images if resident_images is None else resident_images[part.images]
    x = shown = views(images, part.keys, encoder.dtype, augmentation)
    if objective.transform is not None:
        shown = objective.transform(x, part.targets)
    h, updates = encoder.apply(variables, shown, train=True, mutable=["batch_stats"])
    z = _output(head, params["head"], h)
    if "on_top" in params:
        assert objective.on_top is not None
        z = _output(objective.on_top, params["on_top"], z)
    outputs = Outputs(z)
    if decoder is not None:
        outputs = Outputs(z, _output(decoder, params["decoder"], h).reshape(x.shape), lax.stop_gradient(x))
    return outputs, updates.get("batch_stats", {})


def _output(module: nn.Module, params: Any, h: Float[Array, "m d"]) -> Float[Array, "m f"]:
    out: Any = module.apply({"params": params}, h)
    return out.astype(jnp.promote_types(out.dtype, jnp.float32))


def gradients_at_once(embed: Embed, loss_of: LossOf, params: Any, batch_stats: Any, parts: Part) -> Learned:
    """The loss, its gradients and the running statistics for a batch of one part."""

    def loss(params):
        outputs, new_stats = embed(params, batch_stats, jax.tree.map(lambda x: x[0], parts))
        return loss_of(jax.tree.map(lambda rows: rows[None], outputs)), new_stats

    (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, gradients, new_stats


def gradients_in_parts(embed: Embed, loss_of: LossOf, params: Any, batch_stats: Any, parts: Part) -> Learned:
    """The loss of the whole batch, its gradients and the running statistics, with one part in memory at a time.

    A first pass embeds all parts; a second pass embeds each part again for its gradient.
    Source: Gao et al. 2021 (GradCache), §3.
    """

    def forward(batch_stats, part):
        outputs, batch_stats = embed(params, batch_stats, part)
        return batch_stats, outputs

    def backward(gradients, part_and_slopes):
        part, slopes = part_and_slopes
        # In training, outputs depend on the part's own statistics, so any running statistics may go in.
        _, pull_back = jax.vjp(lambda params: embed(params, batch_stats, part)[0], params)
        return jax.tree.map(jnp.add, gradients, *pull_back(slopes)), None

    new_stats, outputs = lax.scan(forward, batch_stats, parts)
    loss, slopes = jax.value_and_grad(loss_of)(outputs)
    gradients, _ = lax.scan(backward, jax.tree.map(jnp.zeros_like, params), (parts, slopes))
    return loss, gradients, new_stats


def _slow_outputs(embed: Embed, state: SlowTrainState, parts: Part) -> Float[Array, "a m f"]:
    """The outputs of the slow encoder and head, whose BatchNorms use the statistics of each part."""

    def outputs(part: Part) -> Float[Array, "m f"]:
        return embed(state.slow, state.batch_stats, part)[0].z

    return lax.map(outputs, parts)


def apply_gradients(
    state: TrainState,
    gradients: Any,
    batch_stats: Any,
    optimizer: optax.GradientTransformation,
    objective: Objective,
) -> TrainState:
    """The state after one update by the optimizer, with the new running statistics and the new slow copy."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params, more = optax.apply_updates(state.params, updates), {}
    if isinstance(state, SlowTrainState):
        assert objective.slow_share is not None
        new = 1 - objective.slow_share(state.step)
        more["slow"] = {name: optax.incremental_update(params[name], old, new) for name, old in state.slow.items()}
    return replace(state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, **more)


def over_mesh(encoder: nn.Module, mesh: Mesh) -> nn.Module:
    """The encoder with BatchNorm statistics over all devices of the mesh; the encoder itself if it has no BatchNorm."""
    # On one device, XLA:CPU would run the collectives all the same, and fuse less around them.
    return encoder.clone(axis_name=parallel.AXIS) if mesh.size > 1 and hasattr(encoder, "axis_name") else encoder


def init_state(
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    size: int,
    key: Key[Array, ""],
    *,
    objective: Objective,
    decoder: nn.Module | None = None,
) -> TrainState:
    """The state before the first step: initial weights for images of size×size pixels, drawn from `key`."""
    encoder_key, head_key = jax.random.split(key)
    images = jnp.zeros((2, size, size, 3), encoder.dtype)
    h, variables = encoder.init_with_output(encoder_key, images, train=False)
    z, of_head = head.init_with_output(head_key, h)
    params = {"encoder": variables["params"], "head": of_head["params"]}
    slow = jax.tree.map(jnp.copy, params)
    if objective.on_top is not None:
        params["on_top"] = objective.on_top.init(jax.random.fold_in(head_key, 2), z)["params"]
    if decoder is not None:
        params["decoder"] = decoder.init(jax.random.fold_in(head_key, 1), h)["params"]
    parts = jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params)
    return TrainState(*parts) if objective.slow_share is None else SlowTrainState(*parts, slow)


def make_optimizer(
    name: str,
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int,
    weight_decay: float,
    schedule: str = Train.schedule,
    drops: Sequence[float] = Train.drops,
) -> optax.GradientTransformation:
    """AdamW, SGD (Nesterov momentum 0.9) or LARS, with linear warm-up and decay of the learning rate.

    name: "adamw", "sgd" or "lars".
    learning_rate: the largest one, reached after `warmup_steps`.
    weight_decay: of matrices and kernels only, not of biases and normalization parameters.
    schedule: "cosine": the rate decays to 0 at `steps`. "steps": it is divided by 10 after each of `drops`.
    drops: shares of `steps`, for schedule="steps" alone.
    Raises InputError for another name or schedule, for shares that are not between 0 and 1 or given for "cosine", and
    for a drop within the warm-up.
    """
    fields.check(Train, {"optimizer": name, "schedule": schedule})
    rate = _decay(schedule, learning_rate, steps, max(0, min(warmup_steps, steps - 1)), drops)

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    builders = {
        "adamw": lambda: optax.adamw(rate, weight_decay=weight_decay, mask=matrices),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, matrices), optax.sgd(rate, momentum=0.9, nesterov=True)
        ),
        "lars": lambda: optax.lars(
            rate, weight_decay=weight_decay, weight_decay_mask=matrices, trust_ratio_mask=matrices, momentum=0.9
        ),
    }
    return builders[name]()


def _decay(schedule: str, learning_rate: float, steps: int, warmup: int, drops: Sequence[float]) -> optax.Schedule:
    if schedule == "cosine":
        if tuple(drops) != Train.drops:
            raise InputError(f"drops={tuple(drops)} are of schedule='steps'; leave them out for 'cosine'")
        return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(1, steps))
    shares = tuple(drops)
    fields.check(Train, {"drops": shares})
    at = Counter(round(share * steps) for share in shares)
    if steps and at and min(at) <= warmup:
        raise InputError(
            f"drops={shares} of {steps} steps: the first, at step {min(at)}, is within the warm-up of {warmup} steps; "
            "drop later, or warm up for fewer steps"
        )
    falls = optax.piecewise_constant_schedule(learning_rate, {step: 0.1**times for step, times in at.items()})
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    return lambda step: jnp.where(step < warmup, rise(step), falls(step)) if warmup else falls(step)


def train(
    encoder: nn.Module,
    source: Any,
    *,
    pairing: str = Data.pairing,
    objective: str = Train.objective,
    k: int = Train.k,
    steps: int = Train.steps,
    seed: int = Images.seed,
    optimizer: str = Train.optimizer,
    learning_rate: float = Train.learning_rate,
    warmup_steps: int = Train.warmup_steps,
    weight_decay: float = Train.weight_decay,
    schedule: str = Train.schedule,
    drops: Sequence[float] = Train.drops,
    temperature: float = Train.temperature,
    embedding_noise: float = Train.embedding_noise,
    decoder: str = Train.decoder,
    decoder_width: int = Train.decoder_width,
    reconstruction: float | None = Train.reconstruction,
    masked: float = Train.masked,
    patch: int = Train.patch,
    redundancy: float = Train.redundancy,
    vicreg_weights: tuple[float, ...] = Train.vicreg_weights,
    target_decay: float = Train.target_decay,
    prototypes: int = Train.prototypes,
    head: nn.Module | None = None,
    augmentation: Augmentation | None = None,
    accumulate: int = Train.accumulate,
    global_batch_norm: bool = Train.global_batch_norm,
    resident_images: str = Data.resident,
    devices: Sequence[jax.Device] | None = None,
    threads: int = Data.threads,
    workers: int = Data.workers,
    on_progress: Progress | None = None,
) -> tuple[TrainState, TrainingHistory]:
    """Train an encoder on pairs of images, in memory, on all available devices.

    encoder: a module from `models.build`, or one of your own like it.
    source: `cdp.make(...)`, whose images are new at every step; an ImageSet; a pair (images uint8 (n, s, s, 3), labels
        (n,)); images alone, for pairing="simclr"; or a population.
    pairing: which two images are a pair. "all", "class", or attributes joined by "+": images that share these;
        "none": independent images; "simclr": two augmented views of one image. "+simclr" at the end, as in
        "class+simclr", augments each view.
    objective: a name in OBJECTIVES.
    k: pairs in a batch, on all devices together.
    steps: number of updates.
    seed: of the initial weights and of every draw.
    optimizer: "adamw", "sgd" or "lars".
    learning_rate, warmup_steps, weight_decay, schedule, drops: see `make_optimizer`.
    temperature: of the contrastive losses.
    embedding_noise: standard deviation of the noise that objective="mige" adds to embeddings of length 1.
    decoder, decoder_width: of objective="supervised_autoencoder" and "masked", see `make_decoder`.
    reconstruction: weight λ that objective="supervised_autoencoder" gives to the squared error of a pixel on the scale
        [-1, 1], beside cross-entropy. None: there is no cross-entropy (λ = ∞), and images need no labels.
    masked, patch: the share of the patches that objective="masked" hides, and their side in pixels.
    redundancy: weight λ that objective="barlow_twins" gives to the squared correlations of different coordinates.
    vicreg_weights: weights λ, μ and ν that objective="vicreg" gives to invariance, variance and covariance.
    target_decay: share of the target network of objective="byol" that stays at the first update.
    prototypes: number of prototypes of objective="swav".
    head: the projection head. None: an MLP with one hidden layer of 128 units and as many outputs as the objective
        needs, or 64 if it takes any number.
    augmentation: the strengths, for a pairing with simclr. None: SimCLR's.
    accumulate, global_batch_norm: see `make_step`.
    resident_images: whether the devices hold a finite set of images: "always", "never", or "auto" (if it fits).
    devices: the devices to use. None: all of `jax.devices()`.
    threads, workers: threads and processes that read batches ahead; see `pipeline.batches`.
    on_progress: called as on_progress(step, steps, note) after every step.
    Returns the final state, which `encode` takes, and the history of the loss. The same arguments give the same
    numbers, and a run with these settings gives them too.
    Raises InputError if arguments don't go together, if one has no effect, if a step doesn't fit into memory, or if the
        training diverges.

        state, history = mj.train(encoder, mj.cdp.make(size=64), k=64, steps=300, seed=0)
    """
    fields.check(Train, {"k": k})
    population = population_of(source, seed)
    pairs = pairing_of(population, pairing, augmentation)
    classes = told_apart(population, pairs)
    num_classes = None if classes is None else classes.num_classes
    options: dict[str, Any] = {
        "temperature": temperature,
        "embedding_noise": embedding_noise,
        "reconstruction": reconstruction,
        "masked": masked,
        "patch": patch,
        "redundancy": redundancy,
        "vicreg_weights": vicreg_weights,
        "target_decay": target_decay,
        "prototypes": prototypes,
    }
    made = objectives.make(objective, **options, steps=steps, num_classes=num_classes, axis_name=parallel.AXIS)
    check_used(made, objective, {**options, "decoder": decoder, "decoder_width": decoder_width})
    check_size(made, population.side)
    to_pixels = make_decoder(encoder, made, population.side, name=decoder, width=decoder_width)
    labels = classes if made.needs_classes else None
    data = training_data(population, pairs, classes=labels, negatives=made.needs_negatives, resident=resident_images)
    mesh, size = parallel.make_mesh(k, devices), population.side
    updates = make_optimizer(
        optimizer,
        learning_rate=learning_rate,
        steps=steps,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        schedule=schedule,
        drops=drops,
    )
    modules: tuple[Any, Any, Any] = (encoder, head or default_head(encoder, made), updates)
    step, arguments = make_step(
        *modules,
        made,
        mesh=mesh,
        k=k,
        size=size,
        decoder=to_pixels,
        accumulate=accumulate,
        augmentation=pairs.augmentation,
        seed=seed,
        resident_images=0 if data.resident_images is None else len(data.resident_images),
        global_batch_norm=global_batch_norm,
    )
    compiled = compile_step(step, arguments, mesh, k=k, accumulate=accumulate)
    advance = stepper(compiled, data, arguments, mesh, threads=threads, workers=workers)
    state = first_state(*modules, size, seed=seed, like=arguments[0], objective=made, decoder=to_pixels)
    read = partial(read_row, k=k, objective=made, learning_rate=learning_rate)

    def tell(rows: list[Row]) -> None:
        if on_progress is not None:
            on_progress(len(rows), steps, note(rows, k))

    state, rows = take_steps(advance, state, steps, read, tell)
    if not fitting.is_finite(state.encoder_variables):
        raise InputError(
            f"learning_rate={learning_rate}: training diverged at its last update, of step {steps}: the loss was "
            "finite, and weights are not; lower it"
        )
    return state, TrainingHistory.of(rows, k)


def take_steps(
    advance: Advance,
    state: TrainState,
    steps: int,
    read: Callable[[int, Any], Row],
    on_row: Callable[[list[Row]], None],
) -> tuple[TrainState, list[Row]]:
    """Take `steps` steps; return the last state and one row for each step.

    As in a run, the metrics of a step are read while the next step computes, so the accelerator never waits for Python.
    read: (step, its metrics) → its row.
    on_row: called with all rows so far after each new row.
    """
    rows: list[Row] = []
    pending: Any = None

    def read_pending() -> None:
        if pending is not None:
            rows.append(read(*pending))
            on_row(rows)

    for step in range(1, steps + 1):
        state, metrics = advance(state)
        read_pending()
        pending = step, metrics
    read_pending()
    return state, rows


def default_head(
    encoder: Any, objective: Objective, hidden: tuple[int, ...] = Head.hidden, features: int = Head.features
) -> MLP:
    """The projection head: an MLP with as many outputs as the objective needs, or `features` if it takes any number."""
    return MLP(hidden, objective.outputs or features, encoder.dtype)


def make_decoder(
    encoder: Any,
    objective: Objective,
    size: int,
    *,
    name: str = Train.decoder,
    width: int = Train.decoder_width,
) -> MLP | None:
    """The decoder, features → 3·size² pixels in the encoder's dtype; None if the objective needs none.

    size: pixels. The images' side.
    name: "linear": an affine map. "mlp": three hidden layers of `width` units with ELU.
    Raises InputError for another name or width.
    Source: Gosch 2020, Table 2 and appendix C.3.
    """
    fields.check(Train, {"decoder": name, "decoder_width": width})
    return MLP((width,) * DECODER_LAYERS[name], 3 * size**2, encoder.dtype, "elu") if objective.needs_decoder else None


def make_step(
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    mesh: Mesh,
    k: int,
    size: int,
    decoder: nn.Module | None = None,
    accumulate: int = Train.accumulate,
    augmentation: Augmentation | None = None,
    seed: int = Images.seed,
    resident_images: int = 0,
    global_batch_norm: bool = Train.global_batch_norm,
) -> tuple[Any, Abstract]:
    """`train_step` mapped over the mesh, and its abstract arguments (state, batch, resident images).

    The step donates the state that it is called with.
    k: pairs in the global batch.
    size: pixels. The images' side.
    decoder, accumulate, augmentation, seed: see `train_step`.
    resident_images: number of images that the devices hold; batches are then rows of these. 0: batches contain images.
    global_batch_norm: whether BatchNorm's statistics span the images of all devices, or only each device's own.
    """
    spanning = over_mesh(encoder, mesh) if global_batch_norm else encoder
    step = partial(
        train_step,
        encoder=spanning,
        head=head,
        objective=objective,
        optimizer=optimizer,
        decoder=decoder,
        accumulate=accumulate,
        augmentation=augmentation,
        seed=seed,
    )
    in_specs = (parallel.REPLICATED, parallel.SHARDED, parallel.REPLICATED)
    mapped = parallel.map_step(step, mesh, in_specs, (parallel.REPLICATED, parallel.REPLICATED), donate=(0,))
    modules: Any = (encoder, head, optimizer, size)
    state = jax.eval_shape(partial(init_state, *modules, objective=objective, decoder=decoder), jax.random.key(0))
    shape, n = (size, size, 3), resident_images
    view = jax.ShapeDtypeStruct((k,), jnp.int32) if n else jax.ShapeDtypeStruct((k, *shape), jnp.uint8)
    images = jax.ShapeDtypeStruct((n, *shape), jnp.uint8) if n else None
    label = jax.ShapeDtypeStruct((k,), jnp.int32)
    batch = dict.fromkeys(objective.views, view) | dict.fromkeys(objective.labels, label)
    batch = parallel.abstract(batch, mesh, parallel.SHARDED)
    return mapped, (parallel.abstract(state, mesh), batch, parallel.abstract(images, mesh))


def first_state(
    encoder: nn.Module,
    head: nn.Module,
    optimizer: optax.GradientTransformation,
    size: int,
    *,
    seed: int,
    like: Any,
    objective: Objective,
    decoder: nn.Module | None = None,
) -> TrainState:
    """The state before the first step, created on the devices. like: the abstract state that `make_step` returns."""
    start = jax.jit(
        partial(init_state, encoder, head, optimizer, size, objective=objective, decoder=decoder),
        out_shardings=parallel.layout(like),
        compiler_options=parallel.quick_compilation(runs_once=True),
    )
    return start(jax.random.fold_in(jax.random.key(seed), FIRST_WEIGHTS))


def compile_step(step: Any, arguments: Abstract, mesh: Mesh, *, k: int, accumulate: int, prefix: str = "") -> Any:
    """Compile the step. Raises InputError, with settings that fit, if it needs more memory than a device has.

    step, arguments: as `make_step` returns them.
    prefix: text that the message puts before the names `k` and `accumulate`, such as "train.".
    """
    compiled, needed = memory.compile_within(lambda: step.lower(*arguments).compile())
    available = memory.memory_bytes()
    if compiled is None or needed > available:
        state, _, images = arguments
        fixed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((state, images)))
        fit = what_fits(k, accumulate, mesh.size, (available - fixed) / max(needed - fixed, 1), prefix)
        raise InputError(
            f"{prefix}k={k} needs {needed / 2**30:.2f} GiB on each device, which has {available / 2**30:.2f}; "
            f"{fit} should fit (if all memory but that of the state and the resident images grows with the batch)"
        )
    return compiled


def what_fits(k: int, accumulate: int, devices: int, share: float, prefix: str = "") -> str:
    """Advice for a step that is too large. share: the available part of the memory that grows with the pairs."""
    unit = devices * accumulate
    fewer = int(k * share) // unit * unit if share < 1 else 0  # >= 1: the compiler gave no number
    parts = [n for n in range(accumulate + 1, k // devices + 1) if (k // devices) % n == 0 and n * share >= accumulate]
    advice = [f"{prefix}k={fewer}"] if fewer >= 2 else []
    advice += [f"{prefix}accumulate={parts[0]} with the same negatives"] if parts and 0 < share < 1 else []
    return " or ".join(advice) or "a smaller encoder or smaller images"


def stepper(
    step: Callable[..., Any], data: TrainingData, arguments: Abstract, mesh: Mesh, *, first: int = 0, **reading: int
) -> Advance:
    """A function state → (state, metrics) that draws the next batch, places it on the devices and takes a step.

    step, arguments: as `make_step` returns them; the step may be compiled.
    first: the number of the first batch.
    reading: `threads` and `workers`, see `pipeline.batches`.
    """
    _, abstract_batch, _ = arguments

    def place(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        return parallel.shard({name: batch[name] for name in abstract_batch}, mesh)

    iterator = iter(
        batches(
            data.read,
            batch_size=abstract_batch["x"].shape[0],
            first=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            place=place,
            **reading,
        )
    )
    images = None if data.resident_images is None else parallel.place(data.resident_images, mesh)

    def advance(state: TrainState) -> tuple[TrainState, Metrics]:
        batch = next(iterator)
        with jax.transfer_guard("disallow"):  # a hidden copy would stall the accelerator at every step
            return step(state, batch, images)

    return advance


def read_row(step: int, metrics: dict[str, Any], *, k: int, objective: Objective, learning_rate: float) -> Row:
    """A row of the history from a step's metrics. Raises InputError if the loss or its gradient is not finite."""
    loss, norm = float(metrics["loss_nats"]), float(metrics["gradient_norm"])
    if not (math.isfinite(loss) and math.isfinite(norm)):
        # A loss is computed before its update, so the first step's loss is that of the initial weights.
        first, later = "before any update: check temperature and encoder", "as updates grew too large; lower it"
        raise InputError(
            f"learning_rate={learning_rate}: the training loss is {loss:g} at step {step}, its gradient's norm "
            f"{norm:g}, {first if step == 1 else later}"
        )
    return {"step": step, "loss_nats": loss} | ({"mi_bits": in_training_bits(loss, k)} if objective.bounds_mi else {})
