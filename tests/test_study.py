"""Studies through `main`: shrunk configs, interruptions, shared studies, and the contents of tables and figures."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small import batch_size, estimate_entry, image_report, quick_environment, reading
from small import study as a_study

import mirigor_jax.kinds  # noqa: F401  first, because its table keeps the `run` that tests here replace
from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs import images
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse, re_estimated
from mirigor_jax.runs.schema import ImageReport, Truth
from mirigor_jax.studies import certified, grid, infomin_strength, infomin_tasks
from mirigor_jax.studies.rows import TASKS
from mirigor_jax.studies.table import STUDIES

pytestmark = pytest.mark.compiles

CELLS = ("resnet18-k=2-seed=0", "resnet18-k=4-seed=0")


def read(folder: Path) -> dict:
    """The contents of study.json without times."""
    report = json.loads((folder / "study.json").read_text())
    for row in report["rows"]:
        del row["seconds"]
    return report


def replay(real: Path, names: list[str]):
    """A function that replaces `run` and takes no time: it claims and locks the folder, and copies a real run's files.

    The report has the settings of its own config. names: gets the name of each run.
    """

    def run(config, name, workdir, *watch):
        names.append(name)
        RunFolder(Path(workdir)).claim(config)
        with RunFolder(Path(workdir)).lock():
            run_config = shutil.ignore_patterns("config.json", "manifest.json", ".lock")
            shutil.copytree(real, workdir, dirs_exist_ok=True, ignore=run_config)
            path = Path(workdir) / "report.json"
            report = json.loads(path.read_text())
            report["run"]["config"] = json.loads(config.to_json())
            report["estimate"]["info_nce_bits"] += config.train.k / 100
            path.write_text(json.dumps(report))

    return run


@pytest.fixture(scope="module")
def finished(cdp_run, tmp_path_factory) -> Path:
    """A study of two replayed runs, done without interruption."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "run", replay(cdp_run, []))
        assert main(batch_size(folder)) == 0
    return folder


@pytest.fixture
def replayed(cdp_run, monkeypatch) -> list[str]:
    """Replace runs by replayed ones, which take no time. Returns the list of the names of runs."""
    names: list[str] = []
    monkeypatch.setattr(images, "run", replay(cdp_run, names))
    return names


def test_the_table_is_what_the_runs_reports_say(finished):
    text, report = (finished / "study.md").read_text(), read(finished)
    assert (report["runs"], report["finished"], report["missing"], report["failures"]) == (2, 2, [], {})
    assert "2 of 2 runs finished." in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| resnet18")]
    assert len(lines) == 2
    for name, row, line in zip(CELLS, report["rows"], lines, strict=True):
        run = json.loads((finished / name / "report.json").read_text())
        estimate, k = run["estimate"], run["run"]["config"]["train"]["k"]
        assert (name, k * run["run"]["config"]["train"]["steps"]) == (f"resnet18-k={k}-seed=0", 12)
        assert row["info_nce_bits"] == estimate["info_nce_bits"]
        floor = math.floor(1000 * estimate["lower_bits"]) / 1000
        assert line == [
            "resnet18",
            str(k),
            "1",
            "1.000",
            f"{run['in_training']['mi_bits']:.3f}",
            f"{np.log2(2 * k - 1):.3f}",
            f"{estimate['nt_xent_bits']:z.3f}",
            "≈ 6",
            f"{estimate['info_nce_bits']:z.3f}",
            f"{estimate['value_bits']:.3f}",
            f"[{floor:.3f}, 1.000]",
            f"{100 * run['linear']['all']:.2f}",
            "96.0–99.8",
        ]
    assert (finished / "figures" / "batch_size.png").is_file()


def test_interrupted_twice_the_study_ends_with_the_same_table(finished, replayed, tmp_path, monkeypatch, capsys):
    folder, stops = tmp_path / "study", list(CELLS)
    whole = images.run

    def interrupted(config, name, workdir, *watch):
        if stops and stops[0] == name:
            RunFolder(Path(workdir)).claim(config)
            stops.pop(0)
            raise KeyboardInterrupt
        whole(config, name, workdir, *watch)

    monkeypatch.setattr(images, "run", interrupted)
    assert main(batch_size(folder)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert main(batch_size(folder)) == 130
    assert main(batch_size(folder)) == 0
    assert replayed == list(CELLS)
    assert read(folder) == read(finished)
    assert (folder / "study.md").read_text() == (finished / "study.md").read_text()


def test_a_deleted_run_alone_is_redone(finished, replayed, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    assert main(batch_size(folder)) == 0
    assert replayed == []
    shutil.rmtree(folder / CELLS[1])
    assert main(batch_size(folder)) == 0
    assert replayed == [CELLS[1]]
    assert read(folder) == read(finished)


def test_a_run_of_another_process_is_left_to_it_and_tried_again(finished, replayed, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    first = folder / CELLS[0]
    first.mkdir(parents=True)
    config, *_ = config_files.parse(batch_size(folder))
    RunFolder(first).claim(grid.cells_of(config, RunFolder(folder))[0].config)
    shutil.move(first, tmp_path / "run")
    RunFolder(folder).claim(config)
    shutil.move(tmp_path / "run", first)
    with RunFolder(first).lock():
        assert main(batch_size(folder)) == 0
    output = capsys.readouterr().out
    assert f"1 of 2 runs finished; missing: {CELLS[0]}." in (folder / "study.md").read_text()
    assert "another process is running it: tried again later" in output
    assert "another process is running it: skipped" in output
    assert replayed == [CELLS[0], CELLS[1], CELLS[0]]

    # It lets go while we are at the other run.
    shutil.rmtree(folder / CELLS[1])
    lock = RunFolder(first).lock()
    lock.__enter__()
    whole = images.run

    def run(config, name, workdir, *watch):
        whole(config, name, workdir, *watch)
        lock.__exit__(None, None, None)

    monkeypatch.setattr(images, "run", run)
    assert main(batch_size(folder)) == 0
    assert read(folder) == read(finished)


def test_a_run_that_another_process_finished_meanwhile_is_not_run_again(finished, replayed, tmp_path, monkeypatch):
    folder, whole = tmp_path / "study", images.run

    def run(config, name, workdir, *watch):
        whole(config, name, workdir, *watch)
        shutil.copytree(finished / CELLS[1], folder / CELLS[1])

    monkeypatch.setattr(images, "run", run)
    assert main(batch_size(folder)) == 0
    assert replayed == [CELLS[0]]
    assert read(folder) == read(finished)


def test_processes_write_the_table_one_after_the_other(finished, replayed, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    lock = RunFolder(folder).lock()
    lock.__enter__()
    threading.Timer(0.5, lock.__exit__, (None, None, None)).start()
    assert main(batch_size(folder)) == 0


@pytest.mark.parametrize("error", [InputError("too few pairs"), RuntimeError("out of memory\nat 0x1")])
def test_a_failed_run_is_listed_and_the_others_go_on(error, replayed, tmp_path, monkeypatch, capsys):
    folder, whole = tmp_path / "study", images.run

    def fail_first(config, name, workdir, *watch):
        if name == CELLS[0]:
            raise error
        whole(config, name, workdir, *watch)

    monkeypatch.setattr(images, "run", fail_first)
    assert main(batch_size(folder)) == 2
    assert "1 of 2 runs failed" in capsys.readouterr().err
    message = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert read(folder)["failures"] == {CELLS[0]: message}
    text = (folder / "study.md").read_text()
    assert f"1 of 2 runs finished; missing: {CELLS[0]}." in text
    assert f"- {CELLS[0]} failed: {message}" in text
    assert [row["cell"] for row in read(folder)["rows"]] == [CELLS[1]]


def test_runs_that_share_a_fault_share_its_message(replayed, tmp_path, monkeypatch, capsys):
    def fail(config, name, workdir, *watch):
        raise InputError("no such data set")

    monkeypatch.setattr(images, "run", fail)
    assert main(batch_size(tmp_path / "study")) == 2
    said = capsys.readouterr().err
    assert said.count("no such data set") == 1
    assert f"failed: as {CELLS[0]}" in said
    assert read(tmp_path / "study")["failures"] == dict.fromkeys(CELLS, "InputError: no such data set")
    text = (tmp_path / "study" / "study.md").read_text()
    assert text.count("no such data set") == 1
    assert f"- {CELLS[0]}, {CELLS[1]} failed: InputError: no such data set" in text


def test_a_run_is_finished_once_it_has_every_estimate_that_is_wanted(finished):
    cell = grid.Cell(CELLS[0], RunFolder(finished / CELLS[0]), None)
    assert grid.finished(cell, [])
    assert grid.finished(cell, [{"pairing": "color"}])  # its own
    assert grid.finished(cell, [{"pairing": "color"}, {"pairing": "all"}]) is None
    assert grid.finished(grid.Cell("none", RunFolder(finished / "none"), None), []) is None


def test_a_re_estimate_is_named_after_what_differs():
    run_config = shipped("batch_size")[0].config
    config, name = re_estimated(run_config, pairing="color", seed=3, k=64, k_curve=(8, 16), checkpoint="best")
    assert name == "color-seed=3-checkpoint=best-k=64-k_curve=8+16"
    assert (config.data.pairing, config.seed, config.estimate.k) == ("color", 3, 64)
    assert (list(config.estimate.k_curve), config.features.checkpoint) == ([8, 16], "best")
    assert (run_config.data.pairing, run_config.seed, run_config.estimate.k) == ("all", 0, 2048)
    with pytest.raises(KeyError):
        re_estimated(run_config, kk=64)


def test_studies_are_among_the_shipped_configs():
    known = config_files.shipped_configs()
    elsewhere = {"rank": "configs/rank.py", "patches": "configs/studies/binary_patches.py"}
    assert {elsewhere.get(name, f"configs/studies/{name}.py") for name in STUDIES} <= set(known)
    assert "configs/common.py" not in known


def test_a_study_registered_in_a_config_file_has_its_table_and_its_tags(cdp_run, tmp_path, monkeypatch):
    """The study's two runs and its claim are from before cells had tags. A third run is another study's."""
    monkeypatch.setattr(images, "run", replay(cdp_run, []))
    program = """
import common
from matplotlib.figure import Figure
from mirigor_jax.studies.table import STUDIES, Study
def table(rows):
    return " ".join(f"{row['color']}: {row['bits']:.2f}" for row in rows)
def row(done, folder):
    return {"bits": done.estimate.info_nce_bits}
STUDIES["mine"] = Study(row, table, lambda rows: {"mine": Figure()}, {"mine": "My picture."}, tags=("color",))
def get_config(arg):
    config = common.study("mine", "laptop")
    config.study.cells = tuple({"name": f"k={k}", "run": {"train.k": k}, TAGS} for k in (2, 4))
    return config
"""
    old, mine, folder = tmp_path / "old.py", tmp_path / "mine.py", tmp_path / "run"
    old.write_text(program.replace(', tags=("color",)', "").replace("TAGS", "").replace("row['color']", "row['cell']"))
    mine.write_text(program.replace("TAGS", '"tags": {"color": f"red-{k}"}'))
    remaining = dict(STUDIES)
    try:
        assert main([f"--config={old}", f"--workdir={folder}"]) == 0
        assert "k=2: " in (folder / "study.md").read_text()
        assert main([f"--config={mine}", f"--workdir={folder}"]) == 0
        text, rows = (folder / "study.md").read_text(), read(folder)["rows"]
        assert f"red-2: {rows[0]['bits']:.2f} red-4: {rows[1]['bits']:.2f}" in text
        assert "![mine](figures/mine.png)\n\nMy picture." in text
        # Of a study that another one reads, the rows have the tags.
        more = [f"--config={mine}", f"--config.study.sources={folder}", f"--workdir={tmp_path / 'more'}"]
        assert main([*more, "--config.study.only=1/4"]) == 0
        assert [row["color"] for row in read(tmp_path / "more")["rows"]] == ["red-2", "red-2", "red-4"]
        mine.write_text(program.replace("TAGS", ""))
        with pytest.raises(InputError, match="k=2: study mine needs a tag 'color' of each cell"):
            grid.cells_of(config_files.parse([f"--config={mine}"])[0], RunFolder(tmp_path / "x"))
    finally:
        STUDIES.clear()
        STUDIES.update(remaining)


def test_one_run_of_a_study_for_job_arrays(finished, replayed, tmp_path, capsys):
    folder = tmp_path / "study"
    assert main(batch_size(folder, "--config.study.only=2/2")) == 0
    assert replayed == [CELLS[1]]
    assert "1 of 2 runs finished" in (folder / "study.md").read_text()
    assert main(batch_size(folder, "--config.study.only=1/2")) == 0
    assert read(folder) == read(finished)
    for wrong in ("3/2", "0/2", "1/3", "one", "1"):
        assert main(batch_size(folder, f"--config.study.only={wrong}")) == 2
        assert re.search(r"study.only='.*': this study has 2 runs; give 1/2", capsys.readouterr().err)
    names = [config_files.parse(batch_size(folder, *more))[1] for more in ((), ("--config.study.only=1/2",))]
    assert names[0] == names[1]


BAD = {
    "other settings": (["--config.run.evaluate.l2=(0.1,)"], "made by another config.*run.evaluate.l2"),
    "unknown study": (["--config.study.name=batchsize"], "unknown study 'batchsize'; choose one of .*batch_size"),
    "no study to read": (
        ["--config.study.sources=nowhere"],
        r"'nowhere' is no study's folder; run that study first \(no study.json there\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_study_that_cannot_start_says_why_in_one_line(case, finished, capsys):
    arguments, message = BAD[case]
    before = (finished / "config.json").read_text()
    assert main(batch_size(finished, *arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert (finished / "config.json").read_text() == before


def test_an_unknown_key_of_a_cell_is_named(tmp_path, capsys):
    mine = tmp_path / "studies" / "mine.py"
    mine.parent.mkdir()
    shutil.copy("configs/common.py", tmp_path / "common.py")  # from the folder above
    cell = {"name": "a", "run": {"train.stps": 3}}
    mine.write_text(
        "import common\ndef get_config(arg):\n    config = common.study('batch_size', 'laptop')\n"
        f"    config.study.cells = ({cell},)\n    return config\n"
    )
    assert main([f"--config={mine}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "a: unknown config key 'train.stps'; did you mean train.steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def shipped(name: str, arguments: str = "") -> list[grid.Cell]:
    config, *_ = config_files.parse([f"--config=configs/studies/{name}.py:{arguments}"])
    return grid.cells_of(config, RunFolder(Path("x")))


@pytest.mark.parametrize(("scale", "runs", "pairs"), [("laptop", 28, 20_480), ("paper", 32, 204_800)])
def test_every_batch_size_sees_as_many_pairs(scale, runs, pairs):
    cells = shipped("batch_size", f"scale={scale}")
    assert len({cell.name for cell in cells}) == runs
    assert {cell.config.train.k * cell.config.train.steps for cell in cells} == {pairs}
    assert {cell.config.encoder.width for cell in cells} == ({None} if scale == "laptop" else {64})
    parse(cells[0].config)


def test_infomin_tasks_trains_on_every_pairing_and_estimates_every_task():
    cells = shipped("infomin_tasks")
    trained = {(cell.config.encoder.name, cell.config.data.pairing) for cell in cells}
    assert trained == {(e, t) for e in ("resnet18", "resnet50") for t in TASKS}
    config, *_ = config_files.parse(["--config=configs/studies/infomin_tasks.py"])
    names = [re_estimated(cells[0].config, **asked)[1] for asked in config.study.estimates]
    assert names == list(TASKS)
    # The run's own pairing is its own estimate, not another one of that name.
    assert re_estimated(cells[0].config, pairing="color")[0] == cells[0].config


def test_infomin_strength_varies_one_augmentation_at_a_time():
    cells = [cell.config.data for cell in shipped("infomin_strength")]
    on = [tuple(name for name, strength in data.augment.items() if strength) for data in cells]
    alone = [data.augment[names[0]] for data, names in zip(cells, on, strict=True) if len(names) == 1]
    assert (on.count(("jitter",)), on.count(("crop",)), len(cells)) == (8, 8, 22)
    assert [sorted(set(part)) for part in (alone[:8], alone[8:])] == [alone[:8], alone[8:]]
    assert [data.pairing for data in cells].count("simclr") == 17
    for cell, names in zip(shipped("infomin_strength"), on, strict=True):
        family, strength = cell.tags["family"], cell.tags["strength"]
        data = cell.config.data
        assert family == ("class and all" if data.pairing == "class+simclr" else names[0] if len(names) == 1 else "all")
        assert strength == (data.augment[names[0]] if len(names) == 1 else pytest.approx(data.augment.crop / 0.92))
    for cell in shipped("infomin_strength")[::8]:
        parse(cell.config)


def strength_row(family: str, strength: float, best: str) -> dict:
    """A row whose InfoNCE is 9 - strength, and whose accuracies are 0.75 for the task `best` and 0.5 for the others."""
    data = {"pairing": "simclr"}
    config = {"encoder": {"name": "resnet18"}, "train": {"k": 64, "steps": 320}, "seed": 0, "data": data}
    names = ("nt_xent_bits", "value_bits", "lower_bits")
    entry = estimate_entry(**dict.fromkeys(names, 1.0), info_nce_bits=9 - strength, upper_bits=None)
    accuracies = {task: 0.5 + (task == best) / 4 for task in TASKS}
    done = image_report(config, {"simclr": entry}, truth=Truth(), in_training=None, linear=accuracies)
    return {"family": family, "strength": strength, **infomin_strength.row(done, Path())}


def test_the_best_strength_of_every_task_is_told():
    rows = [
        strength_row("jitter", 0.5, "color"),
        strength_row("jitter", 1.0, "digit"),
        strength_row("crop", 0.3, "all"),
    ]
    lines = [line for line in infomin_strength.table(rows).splitlines() if line.startswith(("| jitter", "| crop"))]
    assert lines[0].startswith("| jitter | 0.5 | 8.500 | 1.000 | ≥ 1.000 | **75.00** | 50.00 | **50.00** | **50.00** |")
    assert "| 50.00 | **75.00** |" in lines[1]
    above = infomin_strength.picture(rows).axes[0]
    joined = {
        line.get_label(): line.get_xydata().tolist() for line in above.lines if not line.get_label().startswith("_")
    }
    assert joined["color"] == [[8.5, 75.0], [8.0, 50.0]]


def infomin_row(pairing: str, seed: int) -> dict:
    """A row of recognizable numbers: task number t, trained on pairing number p, has 10 p + t in accuracy and bits."""
    at = {task: 10 * TASKS.index(pairing) + number + seed for number, task in enumerate(TASKS)}
    return {
        "encoder": "resnet18",
        "pairing": pairing,
        "accuracy": {task: value / 100 for task, value in at.items()},
        "estimates": {
            task: {
                "value_bits": value / 100,
                "lower_bits": value / 200,
                "upper_bits": 2.0,
                "entropy_bits": 2.0,
                "nt_xent_bits": 1.0,
            }
            for task, value in at.items()
        },
    }


def test_infomin_cells_stand_where_they_belong():
    rows = [infomin_row(pairing, seed) for pairing in TASKS for seed in (0, 2)]
    text = infomin_tasks.table(rows)
    accuracy, information = text.split("| I_class, bits |")
    assert "| color | 1.00 ± 1.41 | 11.00 ± 1.41 | 21.00 ± 1.41 | 31.00 ± 1.41 |" in accuracy
    assert "| position | 3.00 ± 1.41 | 13.00 ± 1.41 | 23.00 ± 1.41 | 33.00 ± 1.41 |" in accuracy
    # Lower ends are the least of the seeds', rounded down.
    assert "| digit | 0.020 ± 0.014 in [0.005, 2.000] | 0.120 ± 0.014 in [0.055, 2.000]" in information
    left, right = infomin_tasks.picture(rows).axes[:2]
    at = {text.get_position(): text.get_text() for text in left.texts}
    assert at[(1, 2)] == "13.0"  # across: digit in training; up: the task position
    assert {text.get_position(): text.get_text() for text in right.texts}[(1, 2)] == "6.5\n≥ 0.060"


def test_an_infomin_study_half_done_leaves_its_missing_cells_white():
    left = infomin_tasks.picture([infomin_row("digit", 0)]).axes[0]
    assert sorted(text.get_position() for text in left.texts) == [(1, task) for task in range(4)]


def test_redraws_of_a_bank_certify_where_nothing_is_and_fresh_images_do_not():
    rng = np.random.default_rng(1)
    classes = rng.integers(64, size=4096)
    noise = certified.trap(rng.normal(size=(4096, 8)).astype(np.float32), classes, 64, 0.95)
    assert {row["bank"] for row in noise} == {64, 256, 1024}
    assert all(row["redrawn_bits"] > 5.99 for row in noise)
    assert all(row["fresh_bits"] == 0 for row in noise)
    # An encoder that does tell the classes: fresh images prove it once the bank holds every class, shuffled ones don't.
    telling = (100 * np.eye(64)[classes] + rng.normal(size=(4096, 64))).astype(np.float32)
    last = {row["shuffled"]: row for row in certified.trap(telling, classes, 64, 0.95) if row["bank"] == 1024}
    # No error in 3,072 images: u = 1 - 0.05^(1/3072), and 6 - F(u) - F(2u) of Fano's F.
    u = 1 - 0.05 ** (1 / 3072)
    fano = sum(-e * np.log2(e) - (1 - e) * np.log2(1 - e) + e * np.log2(63) for e in (u, 2 * u))
    assert last[False]["fresh_bits"] == pytest.approx(6 - fano, abs=1e-9)
    assert last[True]["fresh_bits"] == 0
    assert last[True]["redrawn_bits"] > 5.99


def certified_report(nt_xent_bits: float, lower_bits: float, entropy_bits: float = 6.0) -> ImageReport:
    def curve(heading: str, kind: str, bits: float, most: float | None) -> Curve:
        return Curve(heading, kind, 256, {k: reading(bits, max_bits=most) for k in (64, 256)})

    estimate = estimate_entry(
        name="certified", info_nce_bits=5.0, nt_xent_bits=nt_xent_bits,
        lower_bits=lower_bits, upper_bits=entropy_bits, entropy_bits=entropy_bits,
        curve={"info_nce_symmetric": curve("InfoNCE", "lower bound", 5.0, 5.5),
               "nt_xent": curve("NT-Xent estimate", "not a bound", nt_xent_bits, None)},
        certificates={"classifier": Certified(2.0, 1.0, None, {}), "posterior": Certified(5.9, lower_bits, None, {})},
    )  # fmt: skip
    config = {"encoder": {"name": "resnet18"}, "data": {"pairing": "all"}, "train": {"k": 64, "steps": 9}, "seed": 0}
    truth = Truth(entropy_bits)
    return image_report(config, {"certified": estimate}, in_training=None, truth=truth, linear={"all": 1.0})


@pytest.mark.parametrize(
    ("paper", "lower", "outside", "expected"),
    [
        (6.0031, 5.98, "above", "**above, by 0.003**"),
        (5.5, 5.72, "below", "**below, by 0.220**"),
        (5.99, 5.98, "", "within"),
        (6.0004, 5.98, "", "within"),
    ],
)
def test_where_nt_xent_leaves_the_certified_interval(paper, lower, outside, expected, tmp_path):
    row = {"cell": "a", **certified.row(certified_report(paper, lower), tmp_path)}
    assert row["outside"] == outside
    assert (row["value_bits"], row["certificates"]) == (5.9871, {"classifier": 1.0, "posterior": lower})
    assert f"| {expected} |" in certified.table([row])
    drawn = certified.draw([row])
    assert set(drawn) == {"certified", "reach"}
    rings = next(x for x in drawn["certified"].axes[0].lines if x.get_label().startswith("outside of"))
    assert list(rings.get_xdata()) == ([pytest.approx(6 - paper)] if outside else [])
    short = {line.get_label().partition(",")[0]: line.get_xdata()[0] for line in drawn["certified"].axes[0].lines[:4]}
    assert short == {
        "certificate: class posterior": pytest.approx(6 - lower),
        "certificate: classifier": 5.0,
        "InfoNCE at the largest K": 1.0,
        "NT-Xent estimate": pytest.approx(6 - paper),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_real_interruptions_and_two_real_processes(tmp_path, monkeypatch):
    """The study stops twice in the middle of training. Then two processes at once train every run exactly once."""
    folder, real, stops = tmp_path / "study", RunFolder.write_rows, [1, 2]

    def stop_after_some(folder, name, rows):
        real(folder, name, rows)
        if name == "metrics.jsonl" and stops and len(rows) >= stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    assert main(batch_size(tmp_path / "whole")) == 0
    report = read(tmp_path / "whole")
    assert (report["runs"], report["finished"], [row["cell"] for row in report["rows"]]) == (2, 2, list(CELLS))
    for row, k in zip(report["rows"], (2, 4), strict=True):
        assert row["in_training_bits"] <= row["ceiling_bits"] == pytest.approx(np.log2(2 * k - 1))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_rows", stop_after_some)
        assert [main(batch_size(folder)) for _ in range(3)] == [130, 130, 0]
    assert read(folder) == report

    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "mirigor_jax.main", *batch_size(shared)]
    both = [subprocess.Popen(command, env=quick_environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("compiling the train step") for text in output) == 2
    assert read(shared)["missing"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_the_shrunk_studies_end_to_end(tmp_path, finished):
    """infomin_tasks, then certified on two other studies and an untrained encoder. Re-estimates train nothing."""
    tasks = "configs/studies/infomin_tasks.py:encoders=resnet18,pairs=128"
    assert main(a_study(tasks, tmp_path / "tasks")) == 0
    rows = {row["pairing"]: row for row in read(tmp_path / "tasks")["rows"]}
    run = json.loads((tmp_path / "tasks" / "resnet18-digit-seed=0" / "report.json").read_text())
    assert set(run["estimates"]) == set(TASKS)
    assert rows["digit"]["estimates"]["color"]["value_bits"] == run["estimates"]["color"]["value_bits"]

    strength = "configs/studies/infomin_strength.py:pairs=128"
    assert main(a_study(strength, tmp_path / "strength", "--config.study.only=17/22")) == 0
    [row] = read(tmp_path / "strength")["rows"]
    assert (row["cell"], row["family"], row["upper_bits"]) == ("simclr-seed=0", "all", None)

    replayed = tmp_path / "replayed"
    shutil.copytree(finished, replayed)
    sources = f"--config.study.sources={replayed},{tmp_path / 'tasks'}"
    before = {path: path.stat().st_mtime_ns for path in replayed.glob("*/train/summary.json")}
    # Its encoders are not what its configs say: a checkpoint that does not fit is a failure that stops nobody else.
    assert main(a_study("configs/studies/certified.py:k=256", tmp_path / "certified", sources)) == 2
    report = read(tmp_path / "certified")
    assert report["runs"] == 7
    assert {row["cell"] for row in report["rows"]} == {"untrained", *(f"tasks/resnet18-{t}-seed=0" for t in TASKS)}
    assert set(report["failures"]) == {f"replayed/{cell}" for cell in CELLS}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    untrained = report["rows"][0]
    assert list(untrained["info_nce"]) == ["32", "64", "256"]
    assert all(point["redrawn_bits"] > 3.9 for point in untrained["trap"])
    assert {path.stem for path in (tmp_path / "certified" / "figures").glob("*.png")} == {"certified", "reach", "trap"}


@pytest.mark.slow
def test_a_cell_in_float64_leaves_the_next_one_as_it_is(tmp_path):
    config = tmp_path / "two.py"
    config.write_text(
        "from mirigor_jax import config_files\n"
        "def get_config(arg=''):\n"
        "    config, _ = config_files.load_config('configs/studies/batch_size.py:encoders=lenet5,pairs=12,seeds=1')\n"
        "    first = {'encoder.name': 'lenet5', 'encoder.width': None, 'encoder.dtype': 'float64', 'train.k': 2}\n"
        "    first['train.steps'] = 2\n"
        "    second = first | {'encoder.dtype': 'float32'}\n"
        "    config.study.cells = ({'name': 'double', 'run': first}, {'name': 'single', 'run': second})\n"
        "    return config\n"
    )
    command = [option for option in a_study(str(config), tmp_path / "study") if "encoder.width" not in option]
    assert main(command) == 0
    h = {name: np.load(tmp_path / "study" / name / "features" / "fit.npz")["h"] for name in ("double", "single")}
    assert {name: x.dtype.name for name, x in h.items()} == {"double": "float64", "single": "float32"}
