"""A run folder: which config it belongs to, and which process works in it."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from mirigor_jax import starting
from mirigor_jax.errors import InputError
from mirigor_jax.runs.folder import RunFolder, provenance
from mirigor_jax.runs.lock import LockedError

MINE, OTHER = ConfigDict({"seed": 0}), ConfigDict({"seed": 1})


def test_of_two_commands_started_together_one_has_the_folder():
    """Repeated a hundred times, in separate processes."""
    script = Path(__file__).with_name("claims.py")
    done = subprocess.run([sys.executable, script, "100"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mixed 0" in done.stdout


def test_a_second_command_is_told_who_holds_the_folder_and_since_when(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(MINE), pytest.raises(LockedError) as raised, folder.claimed(MINE):
        pass
    who = rf"\(process {os.getpid()} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(f"another process is at work in '{folder}' {who}", str(raised.value))
    with folder.claimed(MINE):  # and let go
        pass


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_is_kept(tmp_path, make):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "run").mkdir()
    make(tmp_path / "thesis.tex", tmp_path / "run" / ".lock")
    with (
        pytest.raises(InputError, match=r"\.lock' is a link, or no file; remove it"),
        RunFolder(tmp_path / "run").claimed(MINE),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_lock_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="no file"), RunFolder(tmp_path).lock():
        pass


def test_a_link_to_nothing_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"), RunFolder(tmp_path).lock():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_other_config_is_refused_and_a_foreign_folder_keeps_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(MINE):
        pass
    with pytest.raises(InputError, match=r"by another config \(seed differ\)"), folder.claimed(OTHER):
        pass
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 0}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(InputError, match="holds files but no run"), RunFolder(tmp_path / "photos").claimed(MINE):
        pass
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_notes_of_a_stage_name_what_its_numbers_depend_on(monkeypatch):
    jax.devices()  # JAX has started by now, and does not read the made-up flag
    monkeypatch.setattr(starting, "cpu_features", lambda: {"sse", "avx2", "avx512f", "fma"})
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=b")
    noted = provenance()
    assert noted["instructions"] == ["avx2", "avx512f", "fma"]
    assert noted["xla_flags"] == "--xla_a=b"
    assert noted["cores"] >= 1
