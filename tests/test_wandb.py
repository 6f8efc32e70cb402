"""--wandb in offline mode: what is in the files that it wrote."""

import json
import os
import struct
import subprocess
import sys

import pytest
from small import cdp, quick_environment, report

from mirigor_jax import parallel, wandb_run
from mirigor_jax.errors import InputError
from mirigor_jax.files import read_rows
from mirigor_jax.monitoring import Monitoring


def test_what_it_takes_is_said(monkeypatch):
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--wandb takes a package .*: pip install -e '\.\[wandb\]'"):
        Monitoring(wandb=True)


def test_without_the_flag_nothing_is_opened(tmp_path):
    with Monitoring().opened(tmp_path, {}) as opened:
        assert opened == Monitoring()
    assert not list(tmp_path.iterdir())


def test_a_process_beside_the_first_opens_nothing_and_reads_rows_as_it_does(tmp_path, monkeypatch):
    """Reading rows is shared by all processes: one that left it out would wait for ever."""
    monkeypatch.setattr(wandb_run, "check_installed", lambda: None)
    monkeypatch.setattr(parallel, "from_main", lambda make: None)
    with Monitoring(wandb=True).opened(tmp_path, {}) as opened:
        assert opened.sent_to is None
        assert opened.draws
    assert not Monitoring().draws
    assert not list(tmp_path.iterdir())


BLOCK, HEADER, FILE_HEADER = 2**15, 7, 7


def chunks(data):
    """The records of a .wandb file, which has the format of LevelDB's logs after a header of seven bytes."""
    at, whole = FILE_HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is too short for a record
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def sent(folder):
    """(rows of training as (name, value), the summary, the ids of the runs) of all offline runs in a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, summary, ids = [], {}, set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for data in chunks(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            values = [("/".join(item.nested_key) or item.key, item.value_json) for item in record.history.item]
            rows += [(name, json.loads(value)) for name, value in values if name.startswith("train/")]
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            summary |= {name: json.loads(value) for name, value in values if name.startswith("figures/")}
    return rows, summary, ids


@pytest.mark.slow
def test_a_run_that_is_started_twice_sends_its_rows_once_and_changes_no_number(tmp_path):
    pytest.importorskip("wandb")
    environment = {**quick_environment(), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    job = [sys.executable, "-m", "mirigor_jax.main", *cdp("--config.train.steps=12")]
    subprocess.run([*job, f"--workdir={plain}"], env=environment, check=True)
    for _ in range(2):
        subprocess.run([*job, f"--workdir={watched}", "--wandb"], env=environment, check=True)
    assert report(watched) == report(plain)
    assert not (plain / "wandb").exists()
    rows, summary, ids = sent(watched)
    stored = read_rows(watched / "train" / "metrics.jsonl")
    for name in stored[0]:
        values = [value for key, value in rows if key == f"train/{name}"]
        assert values == pytest.approx([row[name] for row in stored])
    assert len(ids) == 1
    assert summary["estimate/value_bits"] == report(watched)["estimate"]["value_bits"]
    assert any(key.startswith("figures/") for key in summary)


def test_without_a_login_the_fix_is_said(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with (
        pytest.raises(InputError, match=r"refused the run \(No API key .*WANDB_MODE=offline, or leave out"),
        Monitoring(wandb=True).opened(tmp_path, {}),
    ):
        pass
