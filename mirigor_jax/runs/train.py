"""The first stage of a run: train the encoder on new pairs, on a streamed set, or on a set that the devices hold."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mirigor_jax import parallel, training
from mirigor_jax.data.training_data import TrainingData, training_data
from mirigor_jax.history import TrainingHistory, in_training_bits, note
from mirigor_jax.monitoring import NO_MONITORING, NO_STAGE_MONITOR, Monitoring, StageMonitor
from mirigor_jax.progress import Progress, duration
from mirigor_jax.runs import loop
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, under
from mirigor_jax.runs.steps import first_state, make_train_step


def train_stage(job: Job, folder: RunFolder, monitoring: Monitoring = NO_MONITORING) -> None:
    """Train the encoder and write to train/, or skip a training that is finished there."""
    t, path = job.config.train, folder / "train"
    monitor = monitoring.of(folder.path, path.path)
    with folder.stage("train", path.exists("summary.json")) as work:
        if not work:
            if monitoring.draws:
                monitor.rows(path.rows("metrics.jsonl"))
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

        train(job, path, job_training_data(job), mesh, on_rate=expect, monitor=monitor)
        _summarize(job, path)


def job_training_data(job: Job) -> TrainingData:
    """The data of the job's training, with the images that the devices hold for it. Prints a note about them."""
    objective = job.objective
    with Progress("reading the training images"):
        data = training_data(
            job.images,
            job.pairing,
            classes=job.classes if objective.needs_classes else None,
            negatives=objective.needs_negatives,
            resident=job.config.data.resident,
        )
    print(f"  training images: {data.note}", flush=True)
    return data


def train(
    job: Job,
    folder: RunFolder,
    data: TrainingData,
    mesh: Mesh,
    *,
    on_rate: Callable[[float, int], None] = lambda seconds, steps: None,
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> None:
    """Train to `train.steps`, from the newest checkpoint in `folder` if there is one.

    Writes checkpoints and metrics.jsonl: step, loss_nats and, if the objective's loss corresponds to an MI, mi_bits.
    on_rate: called once with the seconds that a step takes and the number of steps to come.
    monitor: shows the rows, and traces a few steps.
    Raises InputError if the loss, its gradient or the weights become non-finite, if the step needs more memory than
    there is, and as `make_train_step` does.
    """
    t, d, objective = job.config.train, job.config.data, job.objective
    with Progress("tracing the train step"):
        step, arguments = make_train_step(job, mesh, 0 if data.resident_images is None else len(data.resident_images))

    @contextlib.contextmanager
    def steps_from(first: int) -> Iterator[loop.Advance]:
        with Progress("compiling the train step"):
            compiled = training.compile_step(step, arguments, mesh, k=t.k, accumulate=t.accumulate, prefix="train.")
        with monitor.traced(compiled) as traced:
            take = training.stepper(traced, data, arguments, mesh, first=first, threads=d.threads, workers=d.workers)
            began = time.monotonic()

            def advance(state: Any, i: int, size: int) -> tuple[Any, Any]:
                nonlocal began
                state, metrics = take(state)
                if i == first:
                    jax.block_until_ready(state)
                    began = time.monotonic()
                elif i == first + 5:
                    on_rate((time.monotonic() - began) / 5, t.steps - i)
                return state, metrics

            yield advance

    def row(done: int, metrics: Any) -> loop.Row:
        with under("train."):
            return training.read_row(done, metrics, k=t.k, objective=objective, learning_rate=t.learning_rate)

    def score(rows: Sequence[loop.Row]) -> float:
        """The in-training MI of the last 50 rows; without one, their negative mean loss, in bits."""
        loss = float(np.mean([row["loss_nats"] for row in rows[-50:]] or [0.0]))
        return in_training_bits(loss, t.k) if objective.bounds_mi else -loss / math.log(2)

    task = loop.Task(
        label="train",
        steps=t.steps,
        save_every=t.checkpoint_every,
        keep_every=t.keep_every,
        begin=partial(first_state, job, arguments[0]),
        like=arguments[0],
        open=steps_from,
        row=row,
        score=score,
        note=lambda rows: note(rows, t.k),
        learned=lambda state: state.encoder_variables | {"head": state.params["head"]},
        rate=f"train.learning_rate={t.learning_rate}",
    )
    loop.drive(task, folder, "metrics.jsonl", folder, monitor)


def _summarize(job: Job, path: RunFolder) -> None:
    """Write summary.json, the end of the training, for the later stages and for the report."""
    t, history = job.config.train, TrainingHistory.of(path.rows("metrics.jsonl"), job.config.train.k)
    summary = {"objective": t.objective, "num_classes": job.num_classes, "k": t.k, "steps": t.steps, **history.ending()}
    if "mi_bits" in summary:
        summary["ceiling_bits"] = history.ceiling_bits
    path.write("summary.json", summary)
