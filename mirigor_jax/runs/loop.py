"""The resumable loop that fits encoders, critics, and the invertible encoders of a study step by step."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mirigor_jax import memory, parallel, stopping
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, remove_tree
from mirigor_jax.fitting import is_finite
from mirigor_jax.manifest import DamagedError, steps_in
from mirigor_jax.monitoring import NO_STAGE_MONITOR, StageMonitor
from mirigor_jax.progress import Progress
from mirigor_jax.runs.folder import RunFolder

GIVE_BACK_S = 60.0  # least seconds between two returns of freed memory, each after a save
Row = dict[str, Any]
Advance = Callable[[Any, int, int], tuple[Any, Any]]  # (state, step, number of steps) → (state, metrics on the devices)


@dataclass(frozen=True)
class Task:
    """A fit, in the parts that `drive` calls in order. Steps are counted from 0.

    label: first word of the progress lines, and the fit's name in messages.
    steps: the last step.
    save_every: steps from one save to the next, a multiple of the stride.
    begin: () → the state before the first step.
    like: shapes, dtypes and layout of a state, to restore a saved one.
    open: first step → a context that yields `advance`, which draws a batch and then steps.
    score: rows → a number; the checkpoint with the highest one is `best`.
    note: rows → words for the progress lines.
    learned: state → the part of it that must be finite when the state is saved.
    rate: the learning rate, in words for a message.
    row: (the step reached, metrics) → the row of one `advance`. None: rows come from `evaluate`.
    evaluate: (step, state, metrics since the last row) → the row of a save, the first one at step 0. None: rows come
        from `row`.
    stride: steps that one `advance` takes.
    keep_every: the checkpoints of the multiples of this step are kept; None: only the last two and the best.
    """

    label: str
    steps: int
    save_every: int
    begin: Callable[[], Any]
    like: Any
    open: Callable[[int], AbstractContextManager[Advance]]
    score: Callable[[Sequence[Row]], float]
    note: Callable[[Sequence[Row]], str]
    learned: Callable[[Any], Any]
    rate: str
    row: Callable[[int, Any], Row] | None = None
    evaluate: Callable[[int, Any, Sequence[Any]], Row] | None = None
    stride: int = 1
    keep_every: int | None = None


def drive(
    task: Task,
    folder: RunFolder,
    rows_file: str,
    checkpoints_folder: RunFolder,
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> tuple[Any, list[Row]]:
    """Take the task to its last step, from the newest checkpoint if there is one: (the last state, all rows).

    folder: the folder of the rows.
    rows_file: name of the .jsonl file with the rows. A second file keeps the rows of the save before.
    checkpoints_folder: the folder of the checkpoints.
    monitor: shows the rows.
    Raises Stopped or KeyboardInterrupt if the job is told to stop, InputError if the task diverges or if there are
    checkpoints but no rows, and the errors of the task's functions. A state that has diverged is not saved: the
    checkpoint before it stays.
    """
    whole = parallel.from_main(_whole_rows, folder, rows_file, checkpoints_folder, task.evaluate is not None)
    with (
        Checkpoints(checkpoints_folder.path, folder.manifest, keep_every=task.keep_every) as checkpoints,
        Progress(task.label, task.steps, "steps") as progress,
        contextlib.ExitStack() as entered,
    ):
        last = checkpoints.last
        if last and all(row["step"] != last for row in whole):  # in a bucket, no checkpoint is set aside
            raise _without_rows(folder, rows_file, checkpoints_folder)
        state = task.begin() if last is None else checkpoints.restore(last, task.like)
        rows = [row for row in whole if last is not None and row["step"] <= last]
        written = len(rows)
        monitor.rows(rows)
        if last == task.steps:
            return state, rows
        if last is not None:
            print(f"  {task.label} continues from step {last:,} of {task.steps:,}", flush=True)
        start = step = last or 0
        advance = entered.enter_context(task.open(start))
        pending: tuple[int, Any] | None = None  # the step reached, and its metrics, which are still on the devices
        since: list[Any] = []  # metrics since the last row
        saved, given_back = last, time.monotonic()

        def kept() -> str:
            return "no checkpoint was written" if saved is None else f"the checkpoint of step {saved:,} is kept"

        def read_metrics() -> None:
            nonlocal pending
            if pending is None:
                return
            reached, metrics = pending[0], jax.device_get(pending[1])
            pending = None
            if task.row is not None:
                try:
                    rows.append({"step": reached, **task.row(reached, metrics)})
                except InputError as error:
                    raise InputError(f"{error}; {kept()}") from None
            else:
                since.append(metrics)
            progress.update(reached, task.note(rows))

        def save(scheduled: bool) -> None:
            """scheduled: whether this is a regular save. Others cannot become `best`: it may not depend on a stop."""
            nonlocal saved, written, given_back
            read_metrics()
            # A step computes its metrics before its update, so an update that diverges shows only in the weights.
            if not is_finite(task.learned(state)):
                raise InputError(
                    f"{task.rate}: '{task.label}' diverged by its last update, of step {step:,}: weights are not "
                    f"finite, as updates grew too large; lower it; {kept()}"
                )
            if task.evaluate is not None:
                rows.append({"step": step, **task.evaluate(step, state, since)})
                since.clear()
            if written:
                folder.write_rows(_before(rows_file), rows[:written])
            folder.write_rows(rows_file, rows)
            written = len(rows)
            monitor.rows(rows)
            checkpoints.save(step, state, mi_bits=task.score(rows) if scheduled else -math.inf)
            if parallel.is_main():
                _forget_damaged(checkpoints_folder.path, start, step)
            saved = step
            if time.monotonic() - given_back > GIVE_BACK_S:
                memory.give_back_freed_memory()
                given_back = time.monotonic()

        # The order matters, and is the same for every task: save; stop if asked; draw a batch, then step; read the
        # metrics of the step before only when the next step is under way, so that no accelerator waits for Python.
        # A stop waits for the end of a single step, but not of a longer stride, which may take minutes. JAX tells
        # all processes of a job about a SIGTERM, but not about Ctrl-C.
        finishes = task.stride == 1 and jax.process_count() == 1
        entered.enter_context(stopping.finishing() if finishes else contextlib.nullcontext())
        while True:
            first = step == 0 and last is None and task.evaluate is not None
            due = step == task.steps or first or (step > start and step % task.save_every == 0)
            if due:
                save(scheduled=True)
            if parallel.stop_asked():
                # A task with `evaluate` has rows for regular saves only, so it continues from the last of these.
                if not due and step > start and task.evaluate is None:
                    save(scheduled=False)
                stopping.stop()
            if step == task.steps:
                return state, rows
            size = min(task.stride, task.steps - step)
            state, metrics = advance(state, step, size)
            read_metrics()
            step += size
            pending = step, metrics


def _before(rows_file: str) -> str:
    """The name of the file with the rows of the save before."""
    return f".{rows_file}.before"


def _whole_rows(folder: RunFolder, rows_file: str, checkpoints_folder: RunFolder, from_zero: bool) -> list[Row]:
    """The rows of the newest undamaged file. Checkpoints that are damaged, or newer than the rows, are set aside.

    from_zero: whether step 0 has a row, too.
    Raises InputError if there are checkpoints, but no rows that reach one of them.
    """
    rows: list[Row] = []
    for name in (rows_file, _before(rows_file)):
        try:
            rows = folder.rows(name)
        except DamagedError as damaged:
            folder.set_aside(damaged)
        if rows:
            break
    reached, whole = {row["step"] for row in rows} | (set() if from_zero else {0}), []
    steps = steps_in(checkpoints_folder.path)
    for step in steps:
        path = checkpoints_folder.path / str(step)
        if (file := folder.manifest.damaged_in(path)) is None:
            whole.append(step)
        else:
            folder.set_aside(DamagedError(str(path), file))
    newest = next((step for step in whole if step in reached), None)
    if whole and newest is None:
        raise _without_rows(folder, rows_file, checkpoints_folder)
    for step in whole:
        if newest is not None and step > newest:
            folder.set_aside(DamagedError(str(checkpoints_folder.path / str(step)), str(folder.path / rows_file)))
    return rows


def _without_rows(folder: RunFolder, rows_file: str, checkpoints_folder: RunFolder) -> InputError:
    return InputError(
        f"'{folder.path / rows_file}' is damaged or gone, and no rows before it reach a checkpoint; put it back, "
        f"or remove '{checkpoints_folder}' to begin anew"
    )


def _forget_damaged(folder: AnyPath, start: int, step: int) -> None:
    """Remove damaged checkpoints that were set aside, if the run has reached their steps again since `start`."""
    if isinstance(folder, Path):
        for path in folder.glob(".damaged-[0-9]*"):
            if start < int(path.name.removeprefix(".damaged-")) <= step:
                remove_tree(path)
