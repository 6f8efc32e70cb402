"""Contrastive training of encoder f_e and projection head f_p: the step for one device, and the loop around it."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from mirigor_jax import models, objectives, parallel
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data import augment
from mirigor_jax.data.augment import Augmentation
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.preprocess import image_keys, turn, views
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, read_rows, replace_rows
from mirigor_jax.mi.contrastive import nt_xent_mi
from mirigor_jax.models.heads import MLP
from mirigor_jax.objectives import Objective
from mirigor_jax.plan import hlo
from mirigor_jax.progress import Progress
from mirigor_jax.watch import UNWATCHED_STAGE, Stage

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
        raise InputError(f"train.accumulate={accumulate} does not divide a device's {k} pairs; choose a divisor of {k}")


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
    k, names = batch["x"].shape[0], _views(objective)
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


def _views(objective: Objective) -> tuple[str, ...]:
    """What of a batch goes through the encoder, in order."""
    return ("x", "y", "n_x", "n_y") if objective.negatives else ("x", "y")


def make_encoder(config: ConfigDict, axis_name: str | None = None) -> nn.Module:
    """The encoder that the config names: a ResNet, a vision transformer of the images' size, LeNet-5 or an MLP.

    axis_name: see `resnet.make_encoder`. Raises InputError where none is named, and as `models.build` does.
    """
    e = config.encoder
    if not e.name:
        raise InputError(
            "no encoder is given: name a checkpoint by --config.encoder.path, features by "
            "--config.data.source=features:FILE, or an encoder to train by --config.encoder.name"
        )
    return models.build(
        e.name,
        size=config.data.size,
        width=e.width,
        stem=e.stem,
        dtype=e.dtype,
        remat=e.remat,
        axis_name=axis_name,
    )


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
        raise InputError(f"unknown train.optimizer '{name}'; choose one of {', '.join(builders)}")
    return builders[name]()


def make_objective(config: ConfigDict, num_classes: int | None) -> Objective:
    """What the config trains for. num_classes, and what is raised: see `objectives.make`."""
    train = config.train
    return objectives.make(
        train.objective,
        temperature=train.temperature,
        num_classes=num_classes,
        axis_name=parallel.AXIS,
        negatives=bool(config.data.negatives),
    )


def _parts(
    config: ConfigDict, objective: Objective, axis_name: str | None
) -> tuple[nn.Module, nn.Module, optax.GradientTransformation]:
    train = config.train
    optimizer = make_optimizer(
        train.optimizer,
        learning_rate=train.learning_rate,
        steps=train.steps,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
    )
    encoder = make_encoder(config, axis_name if train.global_batch_norm else None)
    head = MLP(tuple(config.head.hidden), objective.outputs or config.head.features, encoder.dtype)
    return encoder, head, optimizer


def init_state(config: ConfigDict, key: Array, num_classes: int | None = None) -> TrainState:
    """The state before the first step; also the untrained encoder, which no number of classes makes another."""
    encoder, head, optimizer = _parts(config, make_objective(config, num_classes or 2), None)
    encoder_key, head_key = jax.random.split(key)
    images = jnp.zeros((2, config.data.size, config.data.size, 3), encoder.dtype)
    variables = encoder.init(encoder_key, images, train=False)
    h = encoder.apply(variables, images, train=False)
    params = {"encoder": variables["params"], "head": head.init(head_key, h)["params"]}
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def make_step(
    config: ConfigDict, mesh: Mesh, held: int = 0, num_classes: int | None = None
) -> tuple[Any, tuple[Any, Any, Any]]:
    """The compiled-for-`mesh` train step (state donated), and the abstract (state, batch, held images) it takes.

    held: how many images the devices hold, of which batches then are rows; 0 for batches of images.
    num_classes: that images can have; None where they have no labels.
    Raises InputError for an objective that there is not, or that needs labels.
    """
    objective = make_objective(config, num_classes)
    # XLA:CPU runs the collectives of BatchNorm on one device too, and fuses less around them.
    encoder, head, optimizer = _parts(config, objective, parallel.AXIS if mesh.size > 1 else None)
    step = partial(
        train_step,
        encoder=encoder,
        head=head,
        objective=objective,
        optimizer=optimizer,
        accumulate=config.train.accumulate,
        augmentation=augment.parse(config.data.pairing, config.data.augment.to_dict())[1],
        seed=config.seed,
    )
    mapped = parallel.map_step(
        step,
        mesh,
        (parallel.REPLICATED, parallel.SHARDED, parallel.REPLICATED),
        (parallel.REPLICATED, parallel.REPLICATED),
        donate=(0,),
    )
    state = jax.eval_shape(partial(init_state, config, num_classes=num_classes), jax.random.key(0))
    k, shape = config.train.k, (config.data.size, config.data.size, 3)
    view = jax.ShapeDtypeStruct((k,), jnp.int32) if held else jax.ShapeDtypeStruct((k, *shape), jnp.uint8)
    images = jax.ShapeDtypeStruct((held, *shape), jnp.uint8) if held else None
    batch = dict.fromkeys(_views(objective), view)
    if objective.labelled:
        batch |= dict.fromkeys(("c_x", "c_y"), jax.ShapeDtypeStruct((k,), jnp.int32))
    batch = parallel.abstract(batch, mesh, parallel.SHARDED)
    return mapped, (parallel.abstract(state, mesh), batch, parallel.abstract(images, mesh))


def frozen_variables(
    config: ConfigDict, folder: AnyPath, mesh: Mesh, *, which: str = "last", num_classes: int | None = None
) -> dict[str, Any]:
    """The trained encoder of a run as a frozen tree {"params", "batch_stats"}, from its last or best checkpoint.

    num_classes: what it was trained with. Raises InputError where there is no checkpoint, and as `make_step` does.
    """
    _, (abstract_state, *_) = make_step(config, mesh, num_classes=num_classes)
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.last if which == "last" else checkpoints.best
        if step is None:
            raise InputError(f"no checkpoint in '{folder}'; run the training to its end first")
        state = checkpoints.restore(step, abstract_state)
    return {"params": state.params["encoder"], "batch_stats": state.batch_stats}


def _compile(config: ConfigDict, step: Any, arguments: tuple[Any, Any, Any], mesh: Mesh) -> Any:
    """The compiled step. Raises InputError where it needs more than a device has, with what would fit."""
    compiled, needed = hlo.compile_within(lambda: step.lower(*arguments).compile())
    available = parallel.memory_bytes()
    if compiled is None or needed > available:
        state, _, held = arguments
        fixed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((state, held)))
        raise InputError(_too_large(config, mesh.size, needed, available, fixed))
    return compiled


def _too_large(config: ConfigDict, devices: int, needed: int, available: int, fixed: int) -> str:
    """What to say of a step that needs so many bytes a device, `fixed` of them whatever the batch: the rest grows with
    the pairs that go through the encoder at once.
    """
    k, accumulate = config.train.k, config.train.accumulate
    share = (available - fixed) / max(needed - fixed, 1)
    unit = devices * accumulate
    fewer = int(k * share) // unit * unit if share < 1 else 0  # where the compiler didn't say what it needs
    parts = [n for n in range(accumulate + 1, k // devices + 1) if (k // devices) % n == 0 and n * share >= accumulate]
    advice = [f"train.k={fewer}"] if fewer >= 2 else []
    advice += [f"train.accumulate={parts[0]} with the same negatives"] if parts and 0 < share < 1 else []
    what = " or ".join(advice) or "a smaller encoder or smaller images"
    return (
        f"train.k={k} needs {needed / 2**30:.2f} GiB on each device, which has {available / 2**30:.2f}; "
        f"{what} should fit (the rest is taken to grow with the batch)"
    )


def train(
    config: ConfigDict,
    folder: AnyPath,
    read: Callable[[int, int], dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    held: UInt8[np.ndarray, "n s s 3"] | None = None,
    num_classes: int | None = None,
    on_rate: Callable[[float, int], None] = lambda seconds, steps: None,
    watch: Stage = UNWATCHED_STAGE,
) -> None:
    """Train to `config.train.steps`, from the newest checkpoint in `folder` where there is one.

    read: (start, stop) → pairs {"x", "y"} of images, or of rows of `held`, the images that the devices shall hold.
    num_classes: that images can have; None where they have no labels. For a labelled objective `read` also gives the
    classes {"c_x", "c_y"}, int32; with `data.negatives` the images, or rows, {"n_x", "n_y"}.
    Writes checkpoints and metrics.jsonl (step, loss_nats and, where the objective bounds it, mi_bits). on_rate: told
    once how many seconds a step takes, and how many steps are to come. watch: of the rows, and of some steps.
    Raises InputError when the loss is no longer finite, where the step needs more memory than there is, and as
    `make_step` does.
    """
    k, steps, rate = config.train.k, config.train.steps, config.train.learning_rate
    ceiling = math.log2(2 * k - 1)
    bounds_mi = make_objective(config, num_classes).bounds_mi
    step, (abstract_state, *abstract) = make_step(config, mesh, 0 if held is None else len(held), num_classes)
    folder.mkdir(parents=True, exist_ok=True)

    def place(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        return parallel.shard({name: batch[name] for name in abstract[0]}, mesh)

    with contextlib.ExitStack() as entered:
        checkpoints = entered.enter_context(Checkpoints(folder))
        start = checkpoints.last or 0
        if checkpoints.last == steps:
            return
        iterator = iter(
            batches(
                read,
                batch_size=k,
                first=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                threads=config.data.threads,
                workers=config.data.workers,
                place=place,
            )
        )
        if checkpoints.last is not None:
            state = checkpoints.restore(start, abstract_state)
            print(f"  train continues from step {start:,} of {steps:,}", flush=True)
        else:
            start_state = partial(init_state, config, num_classes=num_classes)
            init = jax.jit(start_state, out_shardings=parallel.layout(abstract_state))
            state = init(jax.random.fold_in(jax.random.key(config.seed), 0))
        rows = parallel.from_main(lambda: [row for row in read_rows(folder / "metrics.jsonl") if row["step"] <= start])
        watch.rows(rows)
        print("  compiling the train step", flush=True)
        compiled = _compile(config, step, (abstract_state, *abstract), mesh)
        compiled = entered.enter_context(watch.traced(compiled))
        on_device = None if held is None else parallel.place(held, mesh)
        progress = Progress("train", steps, "steps")
        began = time.monotonic()
        pending: Metrics = {}

        def in_bits(loss: float) -> float:
            """The in-training MI; without one, what orders checkpoints as the loss does."""
            return (nt_xent_mi(loss, k) if bounds_mi else -loss) / math.log(2)

        def mean_loss(steps: int) -> float:
            return float(np.mean([row["loss_nats"] for row in rows[-steps:]] or [0.0]))

        def record(metrics: Metrics) -> None:
            loss = float(jax.device_get(metrics["loss_nats"]))
            done = len(rows) + 1
            if not math.isfinite(loss):
                raise InputError(f"the training loss is {loss} at step {done}; lower train.learning_rate={rate}")
            rows.append({"step": done, "loss_nats": loss} | ({"mi_bits": in_bits(loss)} if bounds_mi else {}))
            recent = mean_loss(20)
            in_training = f"in-training I {in_bits(recent):.2f} bits (ceiling {ceiling:.2f})"
            progress.update(done, in_training if bounds_mi else f"loss {recent:.3f} nats")

        def save(step: int, candidate: bool = True) -> None:
            """candidate: for the best, which must not depend on when a run is stopped."""
            nonlocal pending
            if pending:
                record(pending)
            pending = {}
            replace_rows(folder / "metrics.jsonl", rows)
            watch.rows(rows)
            checkpoints.save(step, state, mi_bits=in_bits(mean_loss(50)) if candidate else -math.inf)

        # The order matters: save, then draw a batch, then step; and read the metrics of the step before only when the
        # next one is under way, so that the accelerator never waits for Python.
        with parallel.finishing_steps():
            for i in range(start, steps + 1):
                due = i == steps or (i > start and i % config.train.checkpoint_every == 0)
                if due:
                    save(i)
                if parallel.stop_asked():
                    if not due and i > start:
                        save(i, candidate=False)
                    raise parallel.Stopped
                if i == steps:
                    break
                batch = next(iterator)
                with jax.transfer_guard("disallow"):  # a hidden copy would stall the accelerator at every step
                    state, metrics = compiled(state, batch, on_device)
                    if pending:
                        record(pending)
                    pending = metrics
                if i == start:
                    jax.block_until_ready(state)
                    began = time.monotonic()
                elif i == start + 5:
                    on_rate((time.monotonic() - began) / 5, steps - i)
