"""Progress lines: every few seconds at a terminal, and elsewhere the last one alone, unless --verbose asks for all."""

import ast
import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small import quick_environment

from mirigor_jax import metrics, progress
from mirigor_jax.main import main
from mirigor_jax.progress import Progress, duration, show_progress, verbosely

PACKAGE = Path(__file__).parents[1] / "mirigor_jax"
TICK = 0.05  # seconds between the lines of a `Progress` that speaks by itself


class Terminal(io.StringIO):
    """What a program prints to a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Stands for `time.monotonic`; the test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture(params=[io.StringIO, Terminal])
def stdout(request, monkeypatch) -> Callable[[], io.StringIO]:
    """Call it in the test, as pytest sets stdout itself when a test begins."""

    def replace() -> io.StringIO:
        monkeypatch.setattr(sys, "stdout", request.param())
        return sys.stdout

    return replace


def counted(clock: Clock, updates: list[tuple[float, int]], total: int) -> None:
    """Tell a `Progress` at each time, in seconds since its start, how many steps are done."""
    itself, began = Progress("train", total, "steps"), clock.now
    for at, done in updates:
        clock.now = began + at
        itself.update(done, f"loss {done}")


@pytest.mark.parametrize("verbose", [False, True])
def test_a_terminal_and_verbose_get_every_line_and_a_pipe_the_last_one(clock, stdout, verbose):
    printed = stdout()
    with verbosely(verbose):
        counted(clock, [(3, 1), (5, 11), (6, 21), (10, 61), (13, 101)], 101)
    lines = printed.getvalue().splitlines()
    last = "  train     101 of 101 steps  in 13 s  10.0/s  loss 101"
    if verbose or printed.isatty():
        assert lines == [
            "  train      11 of 101 steps  5.0/s  18 s left  loss 11",
            "  train      61 of 101 steps  8.6/s  5 s left  loss 61",
            last,
        ]
    else:
        assert lines == [last]


def test_verbose_ends_with_its_context(clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with verbosely(True), verbosely(False):
        assert progress.is_shown()
    assert not progress.is_shown()


def test_a_slow_rate_is_in_minutes_and_a_fast_one_without_a_fraction(clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    counted(clock, [(0, 0), (100, 2)], 4)
    counted(clock, [(0, 0), (10, 12_345)], 24_690)
    slow, fast = sys.stdout.getvalue().splitlines()
    assert slow == "  train     2 of 4 steps  1.2/min  1 min 40 s left  loss 2"
    assert "1,234/s  10 s left" in fast


def test_a_second_job_of_the_same_progress_counts_its_own_time(clock, monkeypatch):
    """Such as the fits of two groups of critics, which report to one `on_progress`."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with show_progress("critics", "steps") as told:
        for at, done, total in ((100.0, 10, 20), (130.0, 20, 20), (132.0, 5, 15), (134.0, 15, 15)):
            clock.now = at
            told(done, total, "bits")
    first, second = sys.stdout.getvalue().splitlines()
    assert first == "  critics   20 of 20 steps  in 30 s  0.3/s  bits"
    assert second == "  critics   15 of 15 steps  in 4 s  5.0/s  bits"


def test_what_cannot_be_counted_says_how_long_it_took_if_that_was_long(clock, stdout):
    printed = stdout()
    for seconds in (4.0, 6.0):
        with Progress("compiling"):
            clock.now += seconds
    with contextlib.suppress(ValueError), Progress("failing"):
        clock.now += 60
        raise ValueError
    assert printed.getvalue() == "  compiling: done in 6 s\n"


def test_a_stage_says_how_long_it_took_even_if_that_was_short(clock, stdout):
    printed = stdout()
    with Progress("encode") as stage:
        stage.end()
    with Progress("compiling") as work:
        clock.now += 75
        work.end(", 3 GiB")
    assert printed.getvalue() == "  encode: done in 0 s\n  compiling: done in 1 min 15 s, 3 GiB\n"


def wait_for(stdout: io.StringIO, phrase: str) -> None:
    until = time.monotonic() + 20
    while phrase not in stdout.getvalue():
        assert time.monotonic() < until, stdout.getvalue()
        time.sleep(TICK / 10)


def test_at_a_terminal_the_innermost_job_speaks_while_it_is_told_nothing(monkeypatch):
    printed = Terminal()
    monkeypatch.setattr(sys, "stdout", printed)
    with Progress("stage", interval=TICK) as stage:
        wait_for(printed, "  stage: 0 s so far\n")
        with Progress("metrics", 8, "computed", interval=TICK) as inner:
            inner.update(2, "kNN probe")
            printed.truncate(0)
            wait_for(printed, "  metrics   2 of 8 computed  0 s so far  kNN probe\n" * 2)
            assert "stage" not in printed.getvalue()
        printed.truncate(0)
        wait_for(printed, "  stage: 0 s so far\n")
        stage.end()
    whole = printed.getvalue()
    time.sleep(4 * TICK)
    assert printed.getvalue() == whole  # it is over
    assert whole.endswith("  stage: done in 0 s\n")


def test_a_pipe_hears_nothing_in_between(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    with Progress("stage", interval=TICK) as stage:
        time.sleep(4 * TICK)
        stage.end()
    assert printed.getvalue() == "  stage: done in 0 s\n"


def test_durations_are_in_words():
    assert [duration(s) for s in (0.4, 59.6, 75.0, 3725.0)] == ["0 s", "1 min 00 s", "1 min 15 s", "1 h 2 min"]


def test_one_file_decides_and_one_place_asks_for_everything():
    """Only `progress` looks at what stdout is, and only commands call `verbosely`."""
    looking, asking = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                where = path.relative_to(PACKAGE).as_posix()
                looking |= {where} if name == "isatty" else set()
                asking |= {where} if name == "verbosely" else set()
    assert looking == {"progress.py"}
    assert asking == {"main.py", "plan/__main__.py", "data/export.py"}


def test_metrics_are_counted_and_the_mlp_s_fit_is_told_within_its_step():
    rng, told = np.random.default_rng(0), []
    labels = np.arange(60) % 2
    h = rng.normal(size=(60, 3)) + labels[:, None]
    only = ("rank_me", "knn_accuracy", "mlp_accuracy")
    found = metrics.evaluate(h, labels, only=only, mlp_steps=100, on_progress=lambda *each: told.append(each))
    done, totals, notes = zip(*told, strict=True)
    assert (done, {*totals}) == ((1, 2, 2, 3, 4, 5), {5})  # three metrics, two probes
    assert notes[0] == "RankMe ↑"
    assert re.fullmatch(r"mlp probe: 100 of 100 steps, log-loss \d\.\d{3} nats on validation", notes[2])
    assert found.values == metrics.evaluate(h, labels, only=only, mlp_steps=100).values


def arrays(folder: Path, *, labels: bool = False) -> list[str]:
    """Arguments of a run on arrays that takes seconds."""
    rng = np.random.default_rng(0)
    c = np.arange(400) % 2
    np.save(folder / "x.npy", (rng.normal(size=(400, 2)) + c[:, None]).astype(np.float32))
    np.save(folder / "y.npy", c if labels else rng.normal(size=(400, 2)).astype(np.float32))
    own = [f"--config.labels={folder / 'y.npy'}"] if labels else [f"--config.y={folder / 'y.npy'}"]
    own += [] if labels else ["--config.estimators=('nwj',)"]
    few = ["--config.k=16", "--config.seeds=1", "--config.steps=30"]
    return ["--config=configs/arrays.py", f"--config.x={folder / 'x.npy'}", *own, *few]


@pytest.mark.usefixtures("undrawn")
def test_verbose_is_no_setting_and_shows_the_lines_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PACKAGE.parent)
    given = arrays(tmp_path)
    monkeypatch.setattr(Progress, "__init__", partialmethod(Progress.__init__, interval=TICK))
    reports = []
    for flags in ([], ["--verbose"]):
        assert main([*given, *flags, f"--workdir={tmp_path / f'run{len(flags)}'}"]) == 0
        printed = capsys.readouterr().out
        assert "  critics   30 of 30 steps  in " in printed
        reports.append((printed.count("so far"), (tmp_path / f"run{len(flags)}" / "config.json").read_text()))
    assert reports[0][0] == 0 < reports[1][0]
    assert reports[0][1] == reports[1][1]


def printed_to_terminal(command: list[str]) -> list[str]:
    """The lines that the command prints to a terminal of its own."""
    ours, its = pty.openpty()
    with subprocess.Popen(command, env=quick_environment(), stdout=its, stderr=subprocess.STDOUT) as process:
        os.close(its)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so that the process has closed its end
                break
            if not part:
                break
            parts.append(part)
        assert process.wait() == 0, b"".join(parts)
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n").splitlines()


PROGRAM = """
import sys
from functools import partialmethod
from mirigor_jax import main, progress
progress.Progress.__init__ = partialmethod(progress.Progress.__init__, interval=0.05)
sys.exit(main.main(sys.argv[1:]))
"""
IN_BETWEEN = re.compile(r" (so far|left)(  |$)")  # of a line that does not say that something is done


# A job that cannot be counted, which says that it is done if that took longer than the interval.
SHORT = re.compile(r"  (?!estimate|usable)[^:]+: done in ")


def same_everywhere(line: str) -> str:
    """The line without what differs from run to run: durations, rates and the folder."""
    return re.sub(r"[\d.,]+( h| min| s|/s|/min|e)\b|run\d|  +", "", line)


@pytest.mark.slow
@pytest.mark.compiles
def test_a_pipe_gets_the_lines_of_a_terminal_without_those_in_between(tmp_path):
    given = [*arrays(tmp_path, labels=True), "--config.steps=200"]
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *given]
    terminal = printed_to_terminal([*command, f"--workdir={tmp_path / 'run1'}"])
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run2'}"],
        env=quick_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    pipe = done.stdout.splitlines()
    assert sum(bool(IN_BETWEEN.search(line)) for line in terminal) > 3
    assert not any(map(IN_BETWEEN.search, pipe))
    lasting = [
        [same_everywhere(line) for line in lines if not IN_BETWEEN.search(line) and not SHORT.match(line)]
        for lines in (terminal, pipe)
    ]
    assert lasting[0] == lasting[1]
    assert "\n  estimate: done in " in done.stdout
    assert "\n  critics   200 of 200 steps  in " in done.stdout
