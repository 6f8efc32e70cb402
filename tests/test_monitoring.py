"""Event files as TensorBoard itself reads them, and traces as Perfetto does."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small import cdp, quick_environment, report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirigor_jax import config_files, kinds
from mirigor_jax import monitoring as watching
from mirigor_jax.errors import InputError
from mirigor_jax.files import read_rows
from mirigor_jax.monitoring import Monitoring, StageMonitor


def scalars(folder: Path) -> list[dict[str, float]]:
    """The rows that TensorBoard draws, in TensorBoard's order."""
    result = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    by_name = {name: result.Scalars(name) for name in result.Tags()["scalars"]}
    return [
        {"step": points[0].step, **{name: point.value for name, point in zip(by_name, points, strict=True)}}
        for points in zip(*by_name.values(), strict=True)
    ]


def trace_events(folder: Path) -> list[dict]:
    assert list(folder.glob("*.xplane.pb"))  # XProf's
    return json.loads(gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes()))["traceEvents"]


def rows(last: int, offset: float = 0.0) -> list[dict[str, float]]:
    return [{"step": i, "loss_nats": i / 4 + offset, "mi_bits": -i / 2 + offset} for i in range(1, last + 1)]


def test_every_row_is_drawn_once(tmp_path):
    stage = StageMonitor(events=tmp_path / "train")
    stage.rows([])
    for last in (3, 3, 5, 6):
        stage.rows(rows(last))
        assert scalars(tmp_path / "train") == rows(last)


def test_rows_behind_the_checkpoint_that_a_killed_run_continues_from_are_drawn_anew(tmp_path):
    stage = StageMonitor(events=tmp_path)
    for last in (2, 4, 6):
        stage.rows(rows(last))
    stored_rows = rows(3)  # of the file of steps 3 and 4, too
    stage.rows(stored_rows)
    assert scalars(tmp_path) == stored_rows
    stage.rows(stored_rows + rows(8, 0.5)[3:])
    assert scalars(tmp_path) == stored_rows + rows(8, 0.5)[3:]
    stage.rows([])  # from the start
    stage.rows(rows(1, 0.25))
    assert scalars(tmp_path) == rows(1, 0.25)


@pytest.mark.parametrize(("made", "traced"), [(8, [2, 3, 4]), (5, [2, 3, 4]), (4, [2, 3]), (2, [])])
def test_a_few_steps_are_traced_by_name(tmp_path, made, traced):
    double, folder = jax.jit(lambda x: 2 * x), tmp_path / "profile" / "train"
    with StageMonitor(trace=folder).traced(double) as step:
        x = jnp.ones(3)
        for _ in range(made):
            x = step(x)
    assert x[0] == 2.0**made
    if not traced:
        assert not folder.exists()
        return
    named = [event for event in trace_events(folder) if event.get("name") == "train"]
    assert sorted(int(event["args"]["step_num"]) for event in named) == traced


def test_after_a_step_that_fails_another_stage_can_be_traced(tmp_path):
    for name in ("one", "two"):
        watched = StageMonitor(trace=tmp_path / name).traced(lambda x: 1 / x, skip=0)
        with pytest.raises(ZeroDivisionError), watched as step:
            step(0)
        assert trace_events(tmp_path / name)


def test_nothing_is_done_where_nobody_asked(tmp_path):
    stage = Monitoring().of(tmp_path, tmp_path / "train")
    double = jax.jit(lambda x: 2 * x)
    stage.rows(rows(2))
    with stage.traced(double) as step:
        assert step is double
    assert not list(tmp_path.iterdir())


def test_each_stage_is_called_after_its_folder(tmp_path):
    stage = Monitoring(tensorboard=True, profile=True).of(tmp_path, tmp_path / "estimates" / "color")
    assert stage.events == tmp_path / "tensorboard" / "estimates" / "color"
    assert stage.trace == tmp_path / "profile" / "plugins" / "profile" / "estimates-color"


def test_flags_are_told_from_the_configs_arguments():
    given = ["--config=x", "--profile", "--processes=2", "--verbose", "--workdir=y"]
    rest, peers, watched, verbose = config_files.split_job_flags(given)
    assert verbose
    assert not config_files.split_job_flags(rest).verbose
    assert rest == ["--config=x", "--workdir=y"]
    assert peers == {"coordinator": None, "processes": 2, "process": None}
    assert watched == {"tensorboard": False, "profile": True, "wandb": False}


def test_what_cannot_be_watched_is_told(tmp_path, monkeypatch):
    arguments = ["--config=configs/arrays.py", f"--workdir={tmp_path / 'run'}"]
    config, name, workdir, _ = config_files.parse(arguments)
    with pytest.raises(InputError, match="--tensorboard, --wandb and --profile"):
        kinds.run(config, name, workdir, Monitoring(profile=True))
    monkeypatch.setattr(watching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[tensorboard\]'"):
        Monitoring(tensorboard=True)


@pytest.mark.slow
def test_a_watched_run_that_was_killed_draws_its_rows_once_and_changes_no_number(tmp_path):
    shrunk = cdp("--config.train.steps=12")
    job = [sys.executable, "-W", "error", "-m", "mirigor_jax.main", *shrunk]
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    subprocess.run([*job, f"--workdir={plain}"], env=quick_environment(), check=True)
    command = [*job, f"--workdir={watched}", "--tensorboard", "--profile"]
    with subprocess.Popen(command, env=quick_environment()) as process:
        while not (watched / "train" / "7").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command, env=quick_environment(), check=True)
    assert report(watched) == report(plain)
    drawn = {"train": "train/metrics.jsonl", "estimates/color": "estimates/color/fit.jsonl"}
    for stage, path in drawn.items():
        stored_rows = read_rows(watched / path)
        assert scalars(watched / "tensorboard" / stage) == [pytest.approx(row, rel=1e-6) for row in stored_rows]
    steps = {"train": "train_step", "features": "encode_step", "estimates-color": "fit_chunk"}
    for stage, step in steps.items():
        events = trace_events(watched / "profile" / "plugins" / "profile" / stage)
        named = [event for event in events if event.get("name") == stage]
        assert len(named) == (1 if stage == "estimates-color" else 3)
        assert any(step in str(event.get("name")) for event in events)
    assert not (plain / "tensorboard").exists()
    subprocess.run([*job, f"--workdir={plain}", "--tensorboard"], env=quick_environment(), check=True)
    for stage in drawn:  # finished before, so that the rows alone are left to draw
        assert scalars(plain / "tensorboard" / stage) == scalars(watched / "tensorboard" / stage)
    assert os.listdir(plain / "tensorboard" / "train") == ["events.out.tfevents.000000000012"]
