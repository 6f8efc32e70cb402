"""Monitoring of a run beyond the lines that it prints: TensorBoard's event files, Weights & Biases, traces of steps.

Process 0 writes them, and they do not affect results. Only this file uses TensorBoard and JAX's profiler.
"""

import importlib.util
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from mirigor_jax import parallel, wandb_run
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, write_bytes

EVENTS = "events.out.tfevents"  # TensorBoard reads files of this name; ours end in the step of their last row


@dataclass(frozen=True)
class StageMonitor:
    """Monitoring of one stage.

    events: the folder of its event files; None: write none.
    trace: the folder of its trace; None: trace nothing.
    send: sends rows to Weights & Biases; None: send none.
    """

    events: AnyPath | None = None
    trace: AnyPath | None = None
    send: Callable[[Sequence[dict[str, Any]]], None] | None = None

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Bring the event files, and Weights & Biases, up to date with all rows so far.

        rows: {"step": …, NAME: VALUE, …}, in the order of their steps.
        New rows go to a new file, and old files stay, so TensorBoard draws no row twice. Files with steps beyond the
        last row are removed: a killed run leaves them if it continues from an earlier checkpoint.
        """
        if not parallel.is_main():
            return
        if self.send is not None:
            self.send(rows)
        if self.events is None:
            return
        files = {int(path.suffix[1:]): path for path in self.events.glob(f"{EVENTS}.*")}
        last = rows[-1]["step"] if rows else -1
        for step in [step for step in files if step > last]:
            files.pop(step).unlink()
        if new := [row for row in rows if row["step"] > max(files, default=-1)]:
            write_bytes(self.events / f"{EVENTS}.{last:012d}", _events(new))

    @contextmanager
    def traced(self, step: Callable[..., Any], *, skip: int = 2, calls: int = 3) -> Iterator[Callable[..., Any]]:
        """Yield `step`, wrapped so that some of its calls are traced.

        skip: calls before the trace begins, which compile or warm up. calls: number of calls to trace.
        """
        if self.trace is None or not parallel.is_main():
            yield step
            return
        trace, count = self.trace, itertools.count()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing every Python call takes longer than the steps
        with tempfile.TemporaryDirectory() as folder, ExitStack() as tracing:

            def write() -> None:
                jax.profiler.stop_trace()
                for file in Path(folder).glob("plugins/profile/*/*"):
                    write_bytes(trace / file.name, file.read_bytes())
                print(f"  trace: {trace}", flush=True)

            def call(*args: Any) -> Any:
                i = next(count)
                if i == skip:
                    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
                    tracing.callback(write)  # also if the stage ends before the last call to trace
                with jax.profiler.StepTraceAnnotation(trace.name, step_num=i):
                    result = step(*args)
                if i == skip + calls - 1:
                    jax.block_until_ready(result)
                    tracing.close()
                return result

            yield call


@dataclass(frozen=True)
class Monitoring:
    """The monitoring that a user asked for. Raises InputError if it takes a package that is not installed.

    sent_to: the open run of Weights & Biases, by `opened`.
    """

    tensorboard: bool = False
    profile: bool = False
    wandb: bool = False
    sent_to: wandb_run.WandbRun | None = None

    def __post_init__(self) -> None:
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("--tensorboard takes a package that is not installed: pip install -e '.[tensorboard]'")
        if self.wandb:
            wandb_run.check_installed()

    @contextmanager
    def opened(self, run: AnyPath, config: Mapping[str, Any]) -> Iterator["Monitoring"]:
        """Yield this monitoring with an open run of Weights & Biases if it is asked for; the report is sent at the end.

        run: the run's folder. config: its settings.
        """
        with ExitStack() as stack:
            opened: list[wandb_run.WandbRun] = []  # on process 0 alone; if it is refused, every process hears it
            if self.wandb:
                parallel.from_main(lambda: opened.append(stack.enter_context(wandb_run.wandb_run(run, config))))
            yield replace(self, sent_to=opened[0]) if opened else self

    @property
    def draws(self) -> bool:
        """Whether rows go anywhere; the same on every process, because all take part in reading rows of a file."""
        return self.tensorboard or self.wandb

    def of(self, run: AnyPath, stage: AnyPath) -> StageMonitor:
        """The monitoring of one stage. run: the run's folder. stage: the folder in it that the stage writes to."""
        name = stage.relative_to(run).as_posix()
        events, trace = run / "tensorboard" / name, run / "profile" / "plugins" / "profile" / name.replace("/", "-")
        send = None if self.sent_to is None else partial(self.sent_to.rows, name)
        return StageMonitor(events if self.tensorboard else None, trace if self.profile else None, send)


NO_MONITORING, NO_STAGE_MONITOR = Monitoring(), StageMonitor()


def _events(rows: Sequence[dict[str, Any]]) -> bytes:
    """The bytes of an event file with a scalar for each value of each row, at the present time."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    whole = io.BytesIO()
    writer = RecordWriter(whole)
    now = time.time()
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for row in rows:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        writer.write(Event(wall_time=now, step=row["step"], summary=Summary(value=values)).SerializeToString())
    return whole.getvalue()
