"""Several real processes of one job: they get one process's numbers, stop together, and others continue them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import RESNET, cdp, quick_environment

from mirigor_jax import config_files, parallel
from mirigor_jax.errors import InputError

pytestmark = pytest.mark.slow

SHORT = ("--config.train.checkpoint_every=3", "--config.features.test=136")  # a last batch of 8
JOB = tuple(cdp(*SHORT, encoder=RESNET))
ENDLESS = tuple(cdp(*SHORT, "--config.train.steps=1000000"))  # of a LeNet, which is compiled at once


GATHER = """
import sys
import numpy as np
from mirigor_jax import parallel

process = int(sys.argv[2])
parallel.start(sys.argv[1], 3, process)
rows = slice(8 * process // 3, 8 * (process + 1) // 3)
for whole in (np.arange(8) + 2**40, np.arange(48.0).reshape(8, 2, 3), np.arange(8) % 3 == 0, np.eye(8, dtype=np.uint8)):
    found = parallel.gather_rows(whole[rows], 8)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole)
assert parallel.from_main(lambda: (process, "é")) == (0, "é")
"""


def test_rows_of_every_kind_and_words_arrive_whole():
    port = free_port()
    command = [sys.executable, "-c", GATHER, f"localhost:{port}"]
    assert codes([subprocess.Popen([*command, str(i)]) for i in range(3)]) == [0, 0, 0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(
    count: int, folder: Path, *arguments: str, job: tuple[str, ...] = JOB, last: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """Start a job of `count` processes with one device each. last: arguments for the last process alone."""
    port, started = free_port(), []
    for i in range(count):
        peers = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={i}"] if count > 1 else []
        peers += last if i == count - 1 else ()
        command = [sys.executable, "-m", "mirigor_jax.main", *job, *arguments, *peers, f"--workdir={folder}"]
        log = folder.with_suffix(f".{i}.log").open("w")
        with on_all_cores():
            started.append(
                subprocess.Popen(command, env=quick_environment(), stdout=log, stderr=subprocess.STDOUT, text=True)
            )
    return started


@contextlib.contextmanager
def on_all_cores() -> Iterator[None]:
    """Allow all cores, because processes that wait for one another take twice as long on the test worker's one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def codes(processes: list[subprocess.Popen], timeout: float = 400) -> list[int]:
    until = time.monotonic() + timeout
    try:
        return [process.wait(until - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.parent.glob(f"{folder.name}.*.log"))]


def run(count: int, folder: Path, *arguments: str) -> dict:
    assert codes(start(count, folder, *arguments)) == [0] * count, logs(folder)
    return numbers(folder)


def numbers(folder: Path) -> dict[str, float]:
    """Every number of the report, without the fields that differ from run to run."""
    report = json.loads((folder / "report.json").read_text())
    for name in ("run", "workdir", "name"):
        del report[name]
    return {name: x for name, x in flat(report).items() if isinstance(x, int | float)}


def check_alike(found: dict[str, float], expected: dict[str, float]) -> None:
    """All numbers are equal up to rounding. An accuracy counts images, and one that is almost a tie may turn."""
    image = 1.01 / (2 * 136)
    for name in found.keys() | expected.keys():
        most = image if "linear" in name or "accuracy" in name else 1e-3
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=most), name


def flat(value, name: str = "") -> dict:
    """Dotted path → leaf, for all leaves of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {name: value} if not items else {k: v for key, x in items for k, v in flat(x, f"{name}.{key}").items()}


def test_two_processes_end_with_the_numbers_of_one(tmp_path):
    """In training and encoding each view has its own key, so it doesn't matter which process has an image."""
    augmented = "--config.data.pairing=color+simclr"
    check_alike(run(2, tmp_path / "run", augmented), run(1, tmp_path / "one", augmented))
    first, *others = logs(tmp_path / "run")
    assert "linear accuracy" in first
    assert not any("encode" in other for other in others)  # process 0 alone reports


def test_a_study_in_four_processes_has_the_runs_and_the_table_of_one(tmp_path):
    set_by_runs = ("--config.train.", "--config.encoder.")
    shrunk = (a.replace("--config.", "--config.run.") for a in JOB[1:] if not a.startswith(set_by_runs))
    # Five processes compile every step, a LeNet's soonest.
    job = ("--config=configs/studies/batch_size.py:encoders=lenet5,k=4+8,pairs=24,seeds=1", *shrunk)
    results = []
    for count in (1, 4):
        folder = tmp_path / str(count)
        assert codes(start(count, folder, job=job)) == [0] * count, logs(folder)
        table = json.loads((folder / "study.json").read_text())
        assert (table["finished"], table["missing"], table["failures"]) == (2, [], {})
        rows = {f"{row['cell']}: {name}": x for row in table["rows"] for name, x in flat(row).items()}
        runs = {
            f"{row['cell']} {name}": x for row in table["rows"] for name, x in numbers(folder / row["cell"]).items()
        }
        shown = {name: x for name, x in rows.items() if isinstance(x, int | float) and "seconds" not in name}
        results.append(runs | shown)
    one, four = results
    check_alike(four, one)


def test_one_told_to_stop_stops_all_at_the_same_step_and_another_number_goes_on(tmp_path):
    folder = tmp_path / "run"
    processes = start(2, folder, job=ENDLESS)
    await_training(folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes, 60) == [143, 143]
    last = max(int(path.name) for path in (folder / "train").iterdir() if path.name.isdigit())
    rows = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [*range(1, last + 1)]
    again = start(1, folder, job=ENDLESS)
    await_training(folder, again)
    assert f"train continues from step {last:,} of" in logs(folder)[0]
    again[0].send_signal(signal.SIGTERM)
    assert codes(again, 60) == [143]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_one_ends_the_others_and_the_restart_goes_on(tmp_path, killed):
    folder = tmp_path / "run"
    processes = start(2, folder, job=ENDLESS)
    await_training(folder, processes)
    processes[killed].kill()
    killed_at = time.monotonic()
    assert codes(processes, 60)[1 - killed] not in (0, None)
    assert time.monotonic() - killed_at < 2 * parallel.PATIENCE_S
    message = logs(folder)[1 - killed]
    assert re.search(
        r"[Tt]ask[ :/]*1|unhealthy .*\n1" if killed else r"another task died|coordination service", message
    )
    again = start(2 - killed, folder, job=ENDLESS)
    await_training(folder, again)
    assert "train continues from step" in logs(folder)[0]
    again[0].send_signal(signal.SIGTERM)
    assert codes(again, 60) == [143] * (2 - killed)


def await_training(folder: Path, processes: list[subprocess.Popen]) -> None:
    """Wait until a checkpoint exists and the training has gone on after it."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert all(process.poll() is None for process in processes), logs(folder)
        saved = [path for path in folder.glob("train/*") if path.name.isdigit()]
        if saved and re.search(r"train +[\d,]+ of", folder.with_suffix(".0.log").read_text()):
            return
        time.sleep(0.2)
    raise AssertionError(logs(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.k=9", "a batch of 9 does not divide over 2 devices"),
        ("features.batch_size=63", "a batch of 63 does not divide over 2 devices"),
        (
            "estimate.k=65",
            "batches of 16, 32, 64, 65 pairs (estimate.k, nt_xent_k, k_curve, batch_size; validation) do",
        ),
    ],
)
def test_wrong_input_is_told_once_and_ends_all(tmp_path, change, message):
    processes = start(2, tmp_path / "run", f"--config.{change}")
    assert codes(processes, 120) == [2, 2]
    assert message in logs(tmp_path / "run")[0]
    assert not (tmp_path / "run").exists()


def test_one_that_fails_alone_ends_the_others(tmp_path):
    processes = start(2, tmp_path / "run", last=("--config.train.k=9",))
    assert processes[1].wait(120) != 0
    failed_at = time.monotonic()
    assert codes(processes, 60)[0] != 0
    assert time.monotonic() - failed_at < 2 * parallel.PATIENCE_S
    assert "a batch of 9 does not divide over 2 devices" in logs(tmp_path / "run")[1]


def test_peers_are_given_together():
    rest, peers, *_ = config_files.split_job_flags(
        ["--config=x", "--coordinator=a:1", "--processes=2", "--process=0", "--workdir=y"]
    )
    assert rest == ["--config=x", "--workdir=y"]
    assert peers == {"coordinator": "a:1", "processes": 2, "process": 0}
    with pytest.raises(InputError, match="--processes=two is not a number"):
        config_files.split_job_flags(["--processes=two"])
