"""Contrastive training of encoder f_e and projection head f_p: the state, the step for one device, the optimizers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8

from mirigor_jax import parallel
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.data.preprocess import image_keys, views
from mirigor_jax.errors import InputError
from mirigor_jax.objectives import Objective

Metrics = dict[str, Array]

AUGMENTING, OF_OBJECTIVE = 2, 3  # what the root key is folded with for augmentations, and for what an objective draws


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
    resident_images: UInt8[Array, "n s s 3"] | None,
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

    batch: the objective's views, such as the positive pairs {"x", "y"}: uint8 images (k, s, s, 3), or their rows (k,)
        in resident_images; and the objective's labels, int32 (k,).
    resident_images: the images that every device holds; None if batches bring images.
    accumulate: parts that the pairs go through the encoder in, one after the other. Loss and negatives are the whole
        batch's all the same; BatchNorm alone sees a part at a time, and folds each into its running statistics.
    augmentation: of every view by itself, drawn anew at every step from the seed, before the objective's transform.
    BatchNorm sees the global batch if the encoder names the axis.
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
    modules: Any = {"encoder": encoder, "head": head, "objective": objective}
    embed = partial(embed_views, resident_images=resident_images, augmentation=augmentation, **modules)

    def loss_of(z: Float[Array, "a m f"]) -> Float[Array, ""]:
        """z: of each part the views one after the other."""
        by_view = jnp.moveaxis(z.reshape(accumulate, num_views, -1, z.shape[-1]), 1, 0)
        return objective.loss(*by_view.reshape(num_views, k, -1), *targets)

    learn = gradients_at_once if accumulate == 1 else gradients_in_parts
    loss, gradients, batch_stats = learn(embed, loss_of, state.params, state.batch_stats, parts)
    loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), parallel.AXIS)
    new_state = apply_gradients(state, gradients, batch_stats, optimizer)
    return new_state, {"loss_nats": loss, "gradient_norm": optax.tree.norm(gradients)}


class Part(NamedTuple):
    """Images of all views as they go through the encoder together, with a leading axis of parts in a step.

    images: uint8 (m, s, s, 3), or their rows (m,). keys: of each one's augmentations. targets: what the objective's
    transform is told. None if there is none.
    """

    images: Array
    keys: Any
    targets: Any


def _in_parts(of_views: Sequence[Array], accumulate: int) -> Array:
    """(k, …) of each view → (accumulate, views·k/accumulate, …): in each part the views one after the other."""
    k = len(of_views[0])
    parts = jnp.stack(of_views).reshape(len(of_views), accumulate, k // accumulate, *of_views[0].shape[1:])
    return jnp.moveaxis(parts, 0, 1).reshape(accumulate, -1, *parts.shape[3:])


Embed = Callable[[Any, Any, Part], tuple[Float[Array, "m f"], Any]]  # (params, batch_stats, part) → (z, batch_stats)
LossOf = Callable[[Float[Array, "a m f"]], Float[Array, ""]]
Learnt = tuple[Float[Array, ""], Any, Any]  # the loss, its gradient in the parameters, and the running statistics


def embed_views(
    params: Any,
    batch_stats: Any,
    part: Part,
    *,
    resident_images: UInt8[Array, "n s s 3"] | None,
    encoder: nn.Module,
    head: nn.Module,
    objective: Objective,
    augmentation: Augmentation | None,
) -> tuple[Float[Array, "m f"], Any]:
    """The head's outputs for a part's images, in float32 at least, and the encoder's running statistics after it."""
    variables = {"params": params["encoder"], "batch_stats": batch_stats}
    images = part.images if resident_images is None else resident_images[part.images]
    x = views(images, part.keys, encoder.dtype, augmentation)
    if objective.transform is not None:
        x = objective.transform(x, part.targets)
    h, updates = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
    z: Any = head.apply({"params": params["head"]}, h)
    return z.astype(jnp.promote_types(z.dtype, jnp.float32)), updates.get("batch_stats", {})


def gradients_at_once(embed: Embed, loss_of: LossOf, params: Any, batch_stats: Any, parts: Part) -> Learnt:
    """The loss and its gradients for a batch of one part."""

    def loss(params):
        z, new_stats = embed(params, batch_stats, jax.tree.map(lambda x: x[0], parts))
        return loss_of(z[None]), new_stats

    (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, gradients, new_stats


def gradients_in_parts(embed: Embed, loss_of: LossOf, params: Any, batch_stats: Any, parts: Part) -> Learnt:
    """The loss of the whole batch and its gradients while one part at a time is held: embed all, then embed again.

    Source: Gao et al. 2021 (GradCache), §3.
    """

    def forward(batch_stats, part):
        z, batch_stats = embed(params, batch_stats, part)
        return batch_stats, z

    def backward(gradients, part_and_dz):
        part, dz = part_and_dz
        # In training z depends on the part's own statistics, so which running ones go in is of no account.
        _, pull_back = jax.vjp(lambda params: embed(params, batch_stats, part)[0], params)
        return jax.tree.map(jnp.add, gradients, *pull_back(dz)), None

    new_stats, z = lax.scan(forward, batch_stats, parts)
    loss, dz = jax.value_and_grad(loss_of)(z)
    gradients, _ = lax.scan(backward, jax.tree.map(jnp.zeros_like, params), (parts, dz))
    return loss, gradients, new_stats


def apply_gradients(
    state: TrainState, gradients: Any, batch_stats: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after the optimizer's update, with these running statistics."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)


def over_mesh(encoder: nn.Module, mesh: Mesh) -> nn.Module:
    """The encoder whose batch statistics are of the images on all devices of the mesh, if it takes any."""
    # XLA:CPU runs these collectives on one device too, and fuses less around them.
    return encoder.clone(axis_name=parallel.AXIS) if mesh.size > 1 and hasattr(encoder, "axis_name") else encoder


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
