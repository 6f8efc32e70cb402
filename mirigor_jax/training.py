"""Contrastive training of encoder f_e and projection head f_p: the state, the step for one device, the optimizers."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8

from mirigor_jax import parallel
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.data.preprocess import image_keys, turn, views
from mirigor_jax.errors import InputError
from mirigor_jax.objectives import Objective

Metrics = dict[str, Array]

AUGMENTING, TURNING = 2, 3  # what the root key is folded with for the augmentations, and the turns, in training


@struct.dataclass
class TrainState:
    """What changes from step to step. params: {"encoder", "head"}; batch_stats: the encoder's running statistics."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def check_parts(k: int, accumulate: int) -> None:
    """Raises InputError where a device's k pairs don't divide into that many parts."""
    if accumulate < 1 or k % accumulate:
        raise InputError(f"accumulate={accumulate} does not divide a device's {k} pairs; choose a divisor of {k}")


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    held: UInt8[Array, "n s s 3"] | None,
    *,
    encoder: nn.Module,
    head: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> tuple[TrainState, Metrics]:
    """One update on this device's shard of the global batch; gradients are averaged over axis "data".

    batch: {"x", "y"}: this device's positive pairs, uint8 (k, s, s, 3), or their rows (k,) in `held`, the images that
    every device holds; {"c_x", "c_y"}, their classes (k,), where the objective is labelled; {"n_x", "n_y"}, more
    images or rows, where it has negatives of their own. BatchNorm sees the global batch where the encoder names the
    axis, negatives of any kind with it.
    accumulate: parts that the pairs go through the encoder in, one after the other. Loss and negatives are the whole
    batch's all the same; BatchNorm alone sees a part at a time, and folds each into its running statistics.
    augmentation: of every view by itself, drawn anew at every step from the seed. So are the objective's turns, which
    come after it.
    Raises InputError where accumulate does not divide k.
    Source: Lee et al. 2023, Fig. 3 (top) and Eq. 2–3; in parts, Gao et al. 2021 (GradCache), §3.
    """
    k, names = batch["x"].shape[0], views_of(objective)
    check_parts(k, accumulate)

    def in_parts(*of_views):
        parts = jnp.stack(of_views).reshape(len(names), accumulate, k // accumulate, *of_views[0].shape[1:])
        return jnp.moveaxis(parts, 0, 1).reshape(accumulate, -1, *parts.shape[3:])

    def keys_for(purpose):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), state.step)
        first = k * lax.axis_index(parallel.AXIS)
        return [image_keys(jax.random.fold_in(key, view), first, k) for view in range(len(names))]

    keys = None if augmentation is None else in_parts(*keys_for(AUGMENTING))
    classes: Sequence[Array | None] = () if objective.negatives else (batch.get("c_x"), batch.get("c_y"))
    turns = None
    if objective.turns:
        classes = [jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(of_view) for of_view in keys_for(TURNING)]
        turns = in_parts(*classes)
    parts = in_parts(*(batch[name] for name in names)), keys, turns

    def embed(params, batch_stats, part):
        variables = {"params": params["encoder"], "batch_stats": batch_stats}
        images, keys, turns = part
        images = views(images if held is None else held[images], keys, encoder.dtype, augmentation)
        images = images if turns is None else turn(images, turns)
        h, updates = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        z = head.apply({"params": params["head"]}, h)
        return z.astype(jnp.promote_types(z.dtype, jnp.float32)), updates.get("batch_stats", {})

    def loss_of(z):
        """z: (accumulate, 2k/accumulate, f), in each part the x before the y; with negatives 4k, and these last."""
        of_views = jnp.moveaxis(z.reshape(accumulate, len(names), -1, z.shape[-1]), 1, 0)
        return objective.loss(*of_views.reshape(len(names), k, -1), *classes)

    def in_one(params):
        z, batch_stats = embed(params, state.batch_stats, jax.tree.map(lambda x: x[0], parts))
        return loss_of(z[None]), batch_stats

    def forward(batch_stats, part):
        z, batch_stats = embed(state.params, batch_stats, part)
        return batch_stats, z

    def backward(gradients, part_and_dz):
        part, dz = part_and_dz
        # In training z depends on the part's own statistics, so which running ones go in is of no account.
        _, pull_back = jax.vjp(lambda params: embed(params, state.batch_stats, part)[0], state.params)
        return jax.tree.map(jnp.add, gradients, *pull_back(dz)), None

    if accumulate == 1:
        (loss, batch_stats), gradients = jax.value_and_grad(in_one, has_aux=True)(state.params)
    else:
        batch_stats, z = lax.scan(forward, state.batch_stats, parts)
        loss, dz = jax.value_and_grad(loss_of)(z)
        gradients, _ = lax.scan(backward, jax.tree.map(jnp.zeros_like, state.params), (parts, dz))
    loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), parallel.AXIS)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    new_state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)
    return new_state, {"loss_nats": loss, "gradient_norm": optax.tree.norm(gradients)}


def over_mesh(encoder: nn.Module, mesh: Mesh) -> nn.Module:
    """The encoder whose batch statistics are of the images on all devices of the mesh, if it takes any."""
    # XLA:CPU runs these collectives on one device too, and fuses less around them.
    return encoder.clone(axis_name=parallel.AXIS) if mesh.size > 1 and hasattr(encoder, "axis_name") else encoder


def views_of(objective: Objective) -> tuple[str, ...]:
    """What of a batch goes through the encoder, in order."""
    return ("x", "y", "n_x", "n_y") if objective.negatives else ("x", "y")


def init_state(
    encoder: nn.Module, head: nn.Module, optimizer: optax.GradientTransformation, size: int, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step, for images of size²; its encoder is the untrained one."""
    encoder_key, head_key = jax.random.split(key)
    images = jnp.zeros((2, size, size, 3), encoder.dtype)
    variables = encoder.init(encoder_key, images, train=False)
    h = encoder.apply(variables, images, train=False)
    params = {"encoder": variables["params"], "head": head.init(head_key, h)["params"]}
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def make_optimizer(
    name: str, *, learning_rate: float, steps: int, warmup_steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW, SGD (Nesterov 0.9) or LARS with linear warm-up and cosine decay; biases and norms are not decayed.

    Raises InputError for another name.
    """
    warmup = max(0, min(warmup_steps, steps - 1))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(1, steps))

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    builders = {
        "adamw": lambda: optax.adamw(schedule, weight_decay=weight_decay, mask=matrices),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, matrices), optax.sgd(schedule, momentum=0.9, nesterov=True)
        ),
        "lars": lambda: optax.lars(
            schedule, weight_decay=weight_decay, weight_decay_mask=matrices, trust_ratio_mask=matrices, momentum=0.9
        ),
    }
    if name not in builders:
        raise InputError(f"optimizer='{name}' is unknown; choose one of {', '.join(builders)}")
    return builders[name]()
