"""The first stage of a run: train the encoder on pairs that are new, streamed, or drawn of images that devices hold."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from mirigor_jax import memory, parallel
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.population import Read
from mirigor_jax.errors import InputError
from mirigor_jax.mi.contrastive import nt_xent_mi
from mirigor_jax.monitoring import UNWATCHED, UNWATCHED_STAGE, Stage, Watch
from mirigor_jax.progress import duration
from mirigor_jax.runs import loop
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job
from mirigor_jax.runs.steps import init_state, make_train_step

HELD_SHARE = 4  # a quarter of a device's memory at most is spent on holding images


def train_stage(job: Job, folder: RunFolder, watch: Watch = UNWATCHED) -> None:
    """Train into train/, or skip what is finished there."""
    t, path = job.config.train, folder / "train"
    watched = watch.of(folder.path, path.path)
    with folder.stage("train", path.exists("summary.json")) as work:
        if not work:
            if watch.tensorboard:
                watched.rows(path.rows("metrics.jsonl"))
            return
        mesh = parallel.make_mesh(t.k)
        parts = job.images.parts(job.pairing)
        images = sum(n if name == "fit" else 2 * n for name, (_, n) in parts.items())

        def expect(seconds_a_step: float, steps: int) -> None:
            training, encoding = steps * seconds_a_step, images * seconds_a_step / (2 * t.k) / 3
            print(
                f"  expect about {duration(training + encoding + 30)}: training {duration(training)}, encoding "
                f"{duration(encoding)}, critic, probes and figures half a minute; {mesh.size} of {jax.device_count()} "
                f"{jax.devices()[0].device_kind} devices",
                flush=True,
            )

        read, held = training_pairs(job)
        train(job, path, read, mesh, held=held, on_rate=expect, watch=watched)
        _summarise(job, path)


def training_pairs(job: Job) -> tuple[Read, UInt8[np.ndarray, "n s s 3"] | None]:
    """How training reads its pairs, and the images that the devices hold for it where they do; says which."""
    config, population = job.config, job.images
    found, wanted = population.training(job.pairing), config.data.resident
    classes = job.classes if job.objective.needs_classes else None
    if found is None:
        print("  training images: every one new, streamed", flush=True)
        fresh = population.pairs(job.pairing, "train")

        def rendered(start: int, stop: int) -> dict[str, np.ndarray]:
            batch = fresh(start, stop)
            if classes is not None:
                batch |= {f"c_{view}": classes.classes(batch[f"attributes_{view}"]) for view in ("x", "y")}
            return batch

        return rendered, None
    images, rows = found
    negatives = population.negatives() if job.objective.needs_negatives else None
    sets = [images] if negatives is None else [images, negatives[0]]
    n, limit = sum(map(len, sets)), parallel.from_main(memory.memory_bytes) // HELD_SHARE
    needed = n * images.read(np.arange(1)).nbytes
    holds = wanted == "always" or (wanted == "auto" and needed <= limit)
    print(
        f"  training images: {n:,}, {needed / 2**20:,.0f} MiB, {'held by each device' if holds else 'streamed'} "
        f"(data.resident={wanted}; auto holds up to {limit / 2**20:,.0f} MiB)",
        flush=True,
    )
    of_images = None if classes is None else classes.classes(images.attributes)

    def drawn(start: int, stop: int) -> dict[str, np.ndarray]:
        of = rows(start, stop)
        batch = of if holds else {view: images.read(chosen) for view, chosen in of.items()}
        if of_images is not None:
            batch = batch | {f"c_{view}": of_images[chosen] for view, chosen in of.items()}
        if negatives is not None:
            more, draw = negatives
            for view, chosen in draw(start, stop).items():
                batch[view] = len(images) + chosen if holds else more.read(chosen)
        return batch

    return drawn, np.concatenate([one.read(np.arange(len(one))) for one in sets]) if holds else None


def train(
    job: Job,
    folder: RunFolder,
    read: Callable[[int, int], dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    held: UInt8[np.ndarray, "n s s 3"] | None = None,
    on_rate: Callable[[float, int], None] = lambda seconds, steps: None,
    watch: Stage = UNWATCHED_STAGE,
) -> None:
    """Train to `train.steps`, from the newest checkpoint in `folder` where there is one.

    read: (start, stop) → pairs {"x", "y"} of images, or of rows of `held`, the images that the devices shall hold. For
    a labelled objective also the classes {"c_x", "c_y"}, int32; with `data.negatives` also {"n_x", "n_y"}.
    Writes checkpoints and metrics.jsonl (step, loss_nats and, where the objective bounds it, mi_bits). on_rate: told
    once how many seconds a step takes, and how many steps are to come. watch: of the rows, and of some steps.
    Raises InputError when the loss is no longer finite, where the step needs more memory than there is, and as
    `make_train_step` does.
    """
    t, k = job.config.train, job.config.train.k
    bounds_mi, ceiling = job.objective.bounds_mi, math.log2(2 * k - 1)
    step, arguments = make_train_step(job, mesh, 0 if held is None else len(held))
    abstract_state, abstract_batch, _ = arguments

    def begin() -> Any:
        init = jax.jit(partial(init_state, job), out_shardings=parallel.layout(abstract_state))
        return init(jax.random.fold_in(jax.random.key(job.config.seed), 0))

    def place(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        return parallel.shard({name: batch[name] for name in abstract_batch}, mesh)

    @contextlib.contextmanager
    def steps_from(first: int) -> Iterator[loop.Advance]:
        iterator = iter(
            batches(
                read,
                batch_size=k,
                first=first,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                threads=job.config.data.threads,
                workers=job.config.data.workers,
                place=place,
            )
        )
        print("  compiling the train step", flush=True)
        compiled = compile_within_memory(job.config, step, arguments, mesh)
        on_device = None if held is None else parallel.place(held, mesh)
        began = time.monotonic()
        with watch.traced(compiled) as traced:

            def advance(state: Any, i: int, size: int) -> tuple[Any, Any]:
                nonlocal began
                batch = next(iterator)
                with jax.transfer_guard("disallow"):  # a hidden copy would stall the accelerator at every step
                    state, metrics = traced(state, batch, on_device)
                if i == first:
                    jax.block_until_ready(state)
                    began = time.monotonic()
                elif i == first + 5:
                    on_rate((time.monotonic() - began) / 5, t.steps - i)
                return state, metrics["loss_nats"]

            yield advance

    def in_bits(loss: float) -> float:
        """The in-training MI; without one, what orders checkpoints as the loss does."""
        return (nt_xent_mi(loss, k) if bounds_mi else -loss) / math.log(2)

    def mean_loss(rows: Sequence[loop.Row], last: int) -> float:
        return float(np.mean([row["loss_nats"] for row in rows[-last:]] or [0.0]))

    def row(done: int, loss_nats: Any) -> loop.Row:
        loss = float(loss_nats)
        if not math.isfinite(loss):
            raise InputError(f"the training loss is {loss} at step {done}; lower train.learning_rate={t.learning_rate}")
        return {"loss_nats": loss} | ({"mi_bits": in_bits(loss)} if bounds_mi else {})

    def note(rows: Sequence[loop.Row]) -> str:
        recent = mean_loss(rows, 20)
        in_training = f"in-training I {in_bits(recent):.2f} bits (ceiling {ceiling:.2f})"
        return in_training if bounds_mi else f"loss {recent:.3f} nats"

    task = loop.Task(
        label="train",
        steps=t.steps,
        save_every=t.checkpoint_every,
        begin=begin,
        like=abstract_state,
        open=steps_from,
        row=row,
        score=lambda rows: in_bits(mean_loss(rows, 50)),
        note=note,
    )
    loop.drive(task, folder, "metrics.jsonl", folder.path, watch)


def compile_within_memory(config: ConfigDict, step: Any, arguments: tuple[Any, Any, Any], mesh: Mesh) -> Any:
    """The compiled step. Raises InputError where it needs more than a device has, with what would fit."""
    compiled, needed = memory.compile_within(lambda: step.lower(*arguments).compile())
    available = memory.memory_bytes()
    if compiled is None or needed > available:
        state, _, held = arguments
        fixed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((state, held)))
        raise InputError(too_large(config, mesh.size, needed, available, fixed))
    return compiled


def too_large(config: ConfigDict, devices: int, needed: int, available: int, fixed: int) -> str:
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


def _summarise(job: Job, path: RunFolder) -> None:
    """The end of a training, for the stages behind it and for the report."""
    t, rows = job.config.train, path.rows("metrics.jsonl")
    last = rows[-max(1, len(rows) // 10) :]
    summary = {
        "objective": t.objective,
        "num_classes": job.num_classes,
        "k": t.k,
        "steps": t.steps,
    }
    for name in rows[0].keys() - {"step"} if rows else ():
        summary[name] = float(np.mean([row[name] for row in last]))
    if "mi_bits" in summary:
        summary["ceiling_bits"] = math.log2(2 * t.k - 1)
    path.write("summary.json", summary)
