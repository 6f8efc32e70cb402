"""The files and comparisons that the benchmarks write, from made rows: nothing is measured."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirigor_jax.errors import InputError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "launch"))

from benchmark_rows import (  # noqa: E402
    OURS,
    Results,
    Row,
    compare,
    describe,
    machine,
    read,
    share_of_peak,
    show,
    write,
)

TORCH = "PyTorch 2.13.0, eager, channels last, float32, 1 thread"
CPUINFO = (
    "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 {}\npower management:\n\nprocessor\t: 1\n"
)


def results(*rows: Row, **changes: object) -> Results:
    return Results(machine(None, 1) | changes, list(rows))


@pytest.mark.parametrize(("feature", "avx512"), [("avx512f", True), ("avx512fish", False)])
def test_the_machine_is_described(tmp_path, monkeypatch, feature, avx512):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(feature))
    monkeypatch.setenv("XLA_FLAGS", "--some_flag=1")
    found = machine("NVIDIA H200", 2, tmp_path / "cpuinfo")
    assert (found["processor"], found["avx2"], found["avx512"]) == ("Some CPU @ 2 GHz", True, avx512)
    assert (found["accelerator"], found["devices"], found["xla_flags"]) == ("NVIDIA H200", 2, "--some_flag=1")
    text = describe(found)
    assert f"on 2 × NVIDIA H200, {found['cores']} cores of Some CPU @ 2 GHz ({'AVX-512' if avx512 else 'AVX2'})" in text
    assert f"jax {found['jax']}, jaxlib {found['jaxlib']}, Python {found['python']}" in text
    assert "XLA_FLAGS='--some_flag=1'" in text


def test_a_machine_whose_processor_is_in_no_file(tmp_path):
    found = machine(None, 1, tmp_path / "none")
    assert (found["avx2"], found["avx512"]) == (False, False)
    assert "on 1 × CPU, " in describe(found)


def test_what_is_written_is_read(tmp_path):
    written = results(Row("train", 30.0, "images/s", 20.0, TORCH), Row("gone", None, "MiB", note="ours: no 'x'\n"))
    write(tmp_path / "a.json", written)
    assert read(tmp_path / "a.json") == written
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["rows"][0] == {
        "name": "train",
        "ours": 30.0,
        "unit": "images/s",
        "peer": 20.0,
        "peer_name": TORCH,
        "note": None,
        "ratio": 1.5,
    }
    assert content["rows"][1]["ratio"] is None
    assert content["machine"].keys() >= {"processor", "avx2", "avx512", "cores", "accelerator", "jax", "jaxlib"}
    write(tmp_path / "none.json", results())
    assert read(tmp_path / "none.json") == results()


BAD = {
    "no JSON": "no JSON",
    "the form before there was a machine": '[{"name": "a", "ours": 1.0, "peer": null, "ratio": null, "unit": "s"}]',
    "no machine": '{"rows": []}',
    "a machine that is a word": '{"machine": "mine", "rows": []}',
    "a row that is a word": '{"machine": {}, "rows": ["a"]}',
    "rows that are a number": '{"machine": {}, "rows": 3}',
    "a row without a name": '{"machine": {}, "rows": [{"ours": 1.0, "unit": "s"}]}',
    "a number that is a word": '{"machine": {}, "rows": [{"name": "a", "ours": "1", "unit": "s"}]}',
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(f"{path} is no JSON of this benchmark")):
        read(path)


def test_rows_of_the_same_name_are_compared():
    then = results(Row("train", 30.0, "images/s", 20.0, TORCH), Row("old", 1.0, "MiB"), Row("idle", 0.0, "MiB"))
    now = results(Row("train", 45.0, "images/s", 25.0, TORCH), Row("idle", 1.0, "MiB"), Row("new", 1.0, "MiB"))
    header, train, idle, *lone = compare(now, then)
    assert header.split() == ["now", "/", "then", "ours", "peer", "ours", "by", "peer"]
    assert train.split() == ["train", "1.50", "1.25", "1.20", "images/s"]
    assert idle.split() == ["idle", "-", "-", "-", "MiB", "less", "is", "better"]
    assert lone == ["now only: new", "then only: old"]


def test_a_comparison_names_what_is_not_the_same():
    then = results(Row("train", 30.0, "images/s", 20.0, TORCH), processor="another", jax="0.1.0")
    now = results(Row("train", 30.0, "images/s", 20.0, "PyTorch 3"), processor="this one", jax="0.2.0")
    warning, software, _, train = compare(now, then)
    assert warning == "warning: the other run is of another machine: processor another then, this one now"
    assert software == "another setup: jax 0.1.0 then, 0.2.0 now"
    assert train.split()[:5] == ["train", "1.00", "-", "-", "images/s"]  # of what another peer did nothing follows
    assert train.endswith(f"another peer: {TORCH} then, PyTorch 3 now")


def test_a_peer_that_is_this_library_shows_no_drift():
    then = results(Row("fed", 30.0, "images/s", 20.0, f"{OURS}one device"))
    now = results(Row("fed", 60.0, "images/s", 40.0, f"{OURS}one device"))
    assert [*compare(now, then)][-1].split() == ["fed", "2.00", "2.00", "-", "images/s"]


def test_a_quick_run_beside_a_whole_one_is_said():
    then, now = results(quick=False), results(quick=True)
    assert next(compare(now, then)) == "another setup: quick False then, True now"


@pytest.mark.parametrize("script", ["benchmark.py", "benchmark_gpu.py"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, script):
    command = [sys.executable, ROOT / "launch" / script, f"--json={tmp_path}/none/a.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: can't write --json={tmp_path}/none/a.json: No such file")


def test_a_row_is_shown_with_its_peer_and_what_is_missing(capsys):
    show(Row("train", 1234.56, "images/s", 617.28, TORCH))
    show(Row("train", None, "images/s", note="ours: no GPU"))
    full, empty = capsys.readouterr().out.splitlines()
    assert full.split() == ["train", "2.00", "1,234.6", "617.3", "images/s", "peer:", *TORCH.split()]
    assert empty.split() == ["train", "-", "-", "-", "images/s", "ours:", "no", "GPU"]


def test_the_share_of_a_chips_peak():
    # 3 times 2 × 4.09e9 operations an image.
    assert share_of_peak("resnet50", 224, 989e12 / (6 * 4.09e9), "NVIDIA H200") == pytest.approx(100)
    assert share_of_peak("resnet18", 112, 989e12 / (6 * 1.81e9 / 4), "NVIDIA H100 80GB HBM3") == pytest.approx(100)
    assert share_of_peak("resnet50", 224, 756e12 / (6 * 4.09e9), "NVIDIA H100 PCIe") == pytest.approx(100)
    assert share_of_peak("resnet50", 224, 1.0, "another chip") is None
    assert share_of_peak("resnet50", 224, None, "NVIDIA H200") is None


@pytest.mark.parametrize("script", ["benchmark.py", "benchmark_gpu.py"])
def test_a_bad_file_to_compare_with_is_told_in_one_line(tmp_path, script):
    (tmp_path / "bad.json").write_text("[]")
    command = [sys.executable, ROOT / "launch" / script, f"--against={tmp_path}/bad.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: --against: {tmp_path}/bad.json is no JSON of this benchmark")


RACE = """
import os, sys, time
sys.path.insert(0, {launch!r})
import benchmark_gpu as gpu
from benchmark_steps import Peer

def raises(case):
    raise ValueError("of two\\nlines")

def sleeps(case):
    time.sleep(600)

def exits(case):
    print("the last words", file=sys.stderr, flush=True)
    os._exit(3)

def works(case):
    return Peer(lambda: 8, "quick")

starts = {{"ours": {ours}, "raises": raises, "exits": exits, "missing": works, "works": works}}
gpu.CONTESTANTS = {{name: gpu.Contestant("jax", "no_such" if name == "missing" else "jax", start)
                   for name, start in starts.items()}}
gpu.PEERS, gpu.TINY, gpu.ROUNDS_S, gpu.LEAST_S, gpu.__file__ = tuple(starts)[1:], gpu.TINY[:1], 1, 1, __file__
gpu.main()
"""


def race(folder: Path, ours: str, seconds: int) -> dict[str, Row]:
    """Run made contestants, with `ours` as our function and so many seconds for the script. Returns name → row."""
    script = folder / "race.py"
    script.write_text(RACE.format(launch=str(ROOT / "launch"), ours=ours))
    command = [sys.executable, script, "--tiny", f"--seconds={seconds}", f"--json={folder}/a.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return {row.name.rpartition(" ")[2]: row for row in read(folder / "a.json").rows}


@pytest.mark.slow
def test_a_contestant_that_fails_ends_alone_with_the_reason_in_its_row(tmp_path):
    rows = race(tmp_path, "works", 600)
    assert rows["raises"].note == "raises: ValueError: of two lines"
    assert rows["exits"].note == "exits: its process ended with code 3: the last words"
    assert rows["missing"].note == "missing: no_such is not installed"
    assert rows["works"].note is None
    assert rows["works"].ratio > 0
    assert all(row.ours > 0 for row in rows.values())


@pytest.mark.slow
def test_a_contestant_that_takes_too_long_is_ended_and_no_other_is_started(tmp_path):
    start = time.monotonic()
    first, *others = race(tmp_path, "sleeps", 5).values()
    assert time.monotonic() - start < 60
    assert first.note.startswith("ours: not done after ")
    assert {row.note for row in others} == {"left out: the time of this encoder is spent"}
