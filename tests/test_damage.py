"""Files that changed after the run wrote them: the run names and never uses them; it makes them again or falls back."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from bit_flips import FILES, GOOD, flip, flips_of
from small import cdp, report

from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.manifest import DamagedError
from mirigor_jax.runs import loop
from mirigor_jax.runs.folder import RunFolder

ARRAYS = {"h": np.arange(12.0).reshape(4, 3), "labels": np.array([0, 1, 0, 1])}
ROWS = [{"step": step, "loss_nats": 1 / step} for step in range(1, 9)]


@pytest.mark.parametrize("kind", ["arrays", "rows", "read"])
def test_a_flipped_bit_is_found_in_every_kind_of_file(tmp_path, kind):
    folder, rng = RunFolder(tmp_path), np.random.default_rng(0)
    (folder / "features").write_arrays("fit.npz", ARRAYS)
    folder.write_rows("metrics.jsonl", ROWS)
    folder.write("estimate.json", {"bits": 1.5})
    name = {"arrays": "features/fit.npz", "rows": "metrics.jsonl", "read": "estimate.json"}[kind]
    getattr(folder, kind)(name)
    whole = (tmp_path / name).read_bytes()
    for _ in range(40):
        flip(tmp_path / name, rng)
        with pytest.raises(DamagedError, match=rf"'{tmp_path / name}' is damaged"):
            getattr(RunFolder(tmp_path), kind)(name)
        (tmp_path / name).write_bytes(whole)
    getattr(folder, kind)(name)


def test_a_kill_before_or_after_a_file_takes_its_place_leaves_a_file_that_is_known(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write("summary.json", {"steps": 1})
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "summary.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        for steps in (2, 3):
            with pytest.raises(KeyboardInterrupt):
                folder.write("summary.json", {"steps": steps})
    assert RunFolder(tmp_path).read("summary.json") == {"steps": 1}
    folder.write("summary.json", {"steps": 4})
    assert RunFolder(tmp_path).read("summary.json") == {"steps": 4}


def test_a_folder_without_a_manifest_is_of_an_older_version_and_not_checked(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write("estimate.json", {"bits": 1.5})
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "estimate.json").write_text('{"bits": 2}')
    assert RunFolder(tmp_path).read("estimate.json") == {"bits": 2}
    (tmp_path / "estimate.json").write_text('{"bits": ')
    with pytest.raises(DamagedError):  # what can't be read is no traceback there either
        RunFolder(tmp_path).read("estimate.json")


def test_a_damaged_manifest_is_named(tmp_path):
    RunFolder(tmp_path).write("estimate.json", {"bits": 1.5})
    rng, whole = np.random.default_rng(0), (tmp_path / "manifest.json").read_bytes()
    for _ in range(40):
        flip(tmp_path / "manifest.json", rng)
        with pytest.raises(InputError, match=r"manifest\.json' is damaged; remove it"):
            RunFolder(tmp_path).read("estimate.json")
        (tmp_path / "manifest.json").write_bytes(whole)


def test_a_manifest_that_cannot_be_read_is_named_in_one_line(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    told = pytest.raises(InputError, match=r"cannot be read \(Is a directory\); give one that can")
    with told, RunFolder(tmp_path).lock():
        pass


def fitted(folder: RunFolder, steps: int = 8) -> tuple[np.ndarray, list]:
    """Run a trivial fit that saves every two steps."""

    @contextlib.contextmanager
    def steps_from(first):
        yield lambda state, step, size: ({"w": state["w"] * 1.5 + step}, {"loss": state["w"][0]})

    task = loop.Task(
        label="toy",
        steps=steps,
        save_every=2,
        begin=lambda: {"w": jnp.arange(4.0)},
        like={"w": jnp.zeros(4)},
        open=steps_from,
        row=lambda step, metrics: {"loss": float(metrics["loss"])},
        score=lambda rows: rows[-1]["loss"] if rows else 0.0,
        note=lambda rows: "",
        learned=lambda state: state,
        rate="learning_rate=1",
    )
    state, rows = loop.drive(task, folder, "metrics.jsonl", folder)
    return np.asarray(state["w"]), rows


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The fit after its sixth step."""
    folder = tmp_path_factory.mktemp("fits") / "interrupted"
    fitted(RunFolder(folder), steps=6)
    return folder


@pytest.mark.parametrize(
    ("pattern", "goes_on_from"), [("6/**/*", 4), ("metrics.jsonl", 4), ("4/**/*", 6), (".metrics.jsonl.before", 6)]
)
def test_a_fit_with_a_flipped_bit_goes_on_from_the_checkpoint_before(
    interrupted, tmp_path, capsys, pattern, goes_on_from
):
    state, rows = fitted(RunFolder(tmp_path / "whole"))
    rng = np.random.default_rng(1)
    for number in range(3):
        folder = tmp_path / str(number)
        shutil.copytree(interrupted, folder)
        files = sorted(path for path in folder.glob(pattern) if path.is_file() and path.stat().st_size)
        flip(files[rng.integers(len(files))], rng)
        capsys.readouterr()
        again, rows_again = fitted(RunFolder(folder))
        np.testing.assert_array_equal(again, state)
        assert rows_again == rows
        output = capsys.readouterr().out
        assert f"continues from step {goes_on_from} of 8" in output
        assert ("is damaged" in output) == (pattern != ".metrics.jsonl.before")


def test_a_fit_whose_checkpoints_are_all_damaged_begins_anew(interrupted, tmp_path, capsys):
    shutil.copytree(interrupted, tmp_path / "run")
    for step in ("4", "6"):
        files = sorted(path for path in (tmp_path / "run" / step).rglob("*") if path.is_file())
        flip(files[0], np.random.default_rng(0))
    assert fitted(RunFolder(tmp_path / "run"))[1] == fitted(RunFolder(tmp_path / "whole"))[1]
    assert "continues" not in capsys.readouterr().out


def test_a_fit_of_no_step_is_continued_too(tmp_path):
    assert fitted(RunFolder(tmp_path / "run"), steps=0)[1] == []
    assert fitted(RunFolder(tmp_path / "run"), steps=0)[1] == []


def test_a_checkpoint_that_was_made_again_is_no_longer_missed(interrupted, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(interrupted, folder.path)
    flip(next(path for path in sorted((folder.path / "6").rglob("*")) if path.is_file()), np.random.default_rng(0))
    fitted(folder, steps=12)
    assert not [*folder.path.glob(".damaged-*")]


def test_rows_that_do_not_reach_the_checkpoint_of_a_bucket_are_refused(interrupted, tmp_path, monkeypatch):
    shutil.copytree(interrupted, tmp_path / "run")
    flip(tmp_path / "run" / "metrics.jsonl", np.random.default_rng(0))
    monkeypatch.setattr(loop, "steps_in", lambda folder: [])
    with pytest.raises(InputError, match="no rows before it reach a checkpoint"):
        fitted(RunFolder(tmp_path / "run"))


def test_a_fit_without_its_rows_is_not_thrown_away(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "run")
    for name in ("metrics.jsonl", ".metrics.jsonl.before"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(InputError, match=r"no rows before it reach a checkpoint; put it back, or remove"):
        fitted(RunFolder(tmp_path / "run"))
    assert (tmp_path / "run" / "6").is_dir()


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_result_of_a_finished_run_is_made_again(cdp_run, tmp_path, capsys):
    """The damaged result is one of the evaluation, so neither the training nor a fit is repeated."""
    folder = tmp_path / "run"
    shutil.copytree(cdp_run, folder)
    (folder / "evaluate" / "linear.json").write_text('{"color": 1.0}')
    assert main(cdp(f"--workdir={folder}")) == 0
    output = capsys.readouterr().out
    assert "linear.json' is damaged: it is not as the run wrote it" in output
    assert "train: finished before, skipped" in output
    assert report(folder)["linear"] == pytest.approx(report(cdp_run)["linear"], abs=0.02)
    assert json.loads((folder / "evaluate" / ".damaged-linear.json").read_text()) == {"color": 1.0}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_run_with_a_flipped_bit_ends_identical_fallen_back_or_refused(tmp_path):
    """One of bit_flips.py's flips in files of each kind, in runs that were interrupted after the file was written."""
    whole = tmp_path / "whole"
    assert main(cdp(f"--workdir={whole}")) == 0
    for kind in FILES:
        found = flips_of(kind, 1, whole)
        assert found.keys() <= GOOD, (kind, found)
