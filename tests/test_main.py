"""The whole job through `main`: shipped configs shrunk, resumed, re-estimated, and given wrong input."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats
from small import cdp, options, quick_environment, report

from mirigor_jax import config_files, encoding, fitting, kinds, mi
from mirigor_jax.config_files import flatten
from mirigor_jax.errors import InputError
from mirigor_jax.files import read_rows
from mirigor_jax.history import TrainingHistory
from mirigor_jax.main import main
from mirigor_jax.mi import fit
from mirigor_jax.mi.confidence import BATCHES, PAIRS
from mirigor_jax.runs import job, renamed, schema
from mirigor_jax.runs.features import encode_split, load
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.starting import EIGEN, choose_convolutions

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def finished(cdp_run, tmp_path_factory) -> Path:
    """A finished run, for this file's tests alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    shutil.copytree(cdp_run, folder)
    return folder


def test_a_run_leaves_its_report_and_says_what_it_does(cdp_run, finished):
    report = json.loads((finished / "report.json").read_text())
    estimate = report["estimate"]
    assert report["truth"] == {"entropy_bits": 1.0, "mutual_information_bits": 1.0, "shared": ["color"]}
    assert set(report["linear"]) == {"color", "digit", "position", "all"}
    assert (report["in_training"]["k"], report["in_training"]["steps"]) == (8, 6)
    assert report["in_training"]["ceiling_bits"] == pytest.approx(np.log2(15))
    assert report["in_training"]["mi_bits"] <= report["in_training"]["ceiling_bits"]
    info_nce, nt_xent = estimate["curve"].values()
    assert estimate["info_nce_bits"] == info_nce["at"]["64"]["bits"] <= estimate["ceiling_bits"] == 6.0
    assert estimate["nt_xent_bits"] == nt_xent["at"]["32"]["bits"]
    assert 0.0 <= estimate["lower_bits"] <= estimate["value_bits"] <= estimate["upper_bits"] == 1.0
    for curve in (info_nce, nt_xent):
        assert {k: reading["batches"] for k, reading in curve["at"].items()} == {"16": 8, "32": 4, "64": 2}
    assert report["estimates"] == {"color": estimate}
    assert report["run"]["config"] == json.loads((finished / "config.json").read_text())
    assert {p.name for p in (finished / "figures").glob("*.png")} == {
        "pairs.png", "training.png", "bars.png", "critic.png", "linear.png", "usable.png", "hardest.png"
    }  # fmt: skip
    text = (cdp_run.parent / "stdout").read_text()
    # It went to a pipe, so each job printed its last line alone; but how long the whole run takes is always said.
    for phrase in ("run folder:", "expect about", "6 of 6 steps  in ", "in-training I", "H(C)", "report.md"):
        assert phrase in text
    for stage in ("train", "encode", "estimate", "evaluate"):
        assert text.count(f"\n  {stage}: done in ") == 1
    assert " so far" not in text
    assert not re.search(r" \d+ (s|min) left", text)


def test_a_real_report_has_the_schemas_fields_and_the_values_of_the_batches(finished):
    written = json.loads((finished / "report.json").read_text())
    result = schema.read(schema.ImageReport, written)
    assert json.loads(json.dumps(asdict(result))) == written  # nothing else is in it
    itself, batches = result.estimate, np.load(finished / "estimates" / "color" / "batches.npz")
    assert batches.files == ["16", "32", "64"]
    for k, reading in itself.info_nce.at.items():
        values, interval = batches[str(k)], reading.interval
        assert reading.bits == pytest.approx(values.mean(), abs=1e-12)
        assert reading.bits == pytest.approx((interval.lower_bits + interval.upper_bits) / 2)
        if len(values) == 8:  # enough for an interval of their own
            assert interval.kind == BATCHES
            expected = stats.t.interval(0.95, 7, values.mean(), values.std(ddof=1) / math.sqrt(8))
            assert (interval.lower_bits, interval.upper_bits) == pytest.approx(expected)
        else:
            assert interval.kind == PAIRS
            assert 0.01 < interval.upper_bits - interval.lower_bits < 0.5
        other = itself.curve["nt_xent"].at[k]
        assert other.interval.kind == BATCHES
        assert (reading.ceiling_bits, other.ceiling_bits) == (math.log2(k), math.log2(2 * k - 1))


def test_the_estimate_is_its_certificate_s_own_statistic(finished):
    """Validation chooses it. The estimate is never below its own lower end, and all certificates stand beside it."""
    itself = schema.read(schema.ImageReport, json.loads((finished / "report.json").read_text())).estimate
    assert set(itself.certificates) == {"posterior", "classifier", "infonce"}
    chosen = itself.certificates[itself.certificate]
    assert itself.statistic == mi.CERTIFICATES[itself.certificate].heading
    assert (itself.value_bits, itself.lower_bits, itself.interval) == (
        chosen.value_bits,
        chosen.lower_bits,
        chosen.interval,
    )
    for certified in itself.certificates.values():
        assert 0 < certified.lower_bits < certified.value_bits
        assert certified.interval.lower_bits <= certified.value_bits <= certified.interval.upper_bits
    assert itself.certificates["classifier"].counts["images"] == itself.certificates["posterior"].counts["pairs"] == 128


@pytest.mark.slow
def test_a_run_whose_settings_and_estimate_are_of_an_older_version_is_restored(finished, tmp_path, capsys):
    """Its keys and estimate.json have their older names. The estimates from the kept critic with the head's
    architecture are the same, and so are those of a new fit."""
    folder, values = tmp_path / "older", report(finished)
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    for old, new in renamed.CONFIG_KEYS.items():
        section, _, name = new.partition(".")
        if section == "estimate":
            config[section][old.partition(".")[2]] = config[section].pop(name)
    del config["estimate"]["estimators"]
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    older = {"name": "color", "strict_bits": 0.1, "paper_bits": 0.2, "curve": [], "routes": {}}
    (folder / "estimates" / "color" / "estimate.json").write_text(json.dumps(older))
    (folder / "report.json").write_text(json.dumps({"name": "older", "estimate": older, "estimates": {"color": older}}))

    assert main(["--config=configs/estimate.py:pairing=color,k_est=32", f"--config.restore={folder}"]) == 0
    assert "estimate color: of an older version, made again" in capsys.readouterr().out
    contents = report(folder)
    assert set(contents["estimates"]) == {"color", "color-k=32"}
    for name in ("value_bits", "info_nce_bits", "nt_xent_bits", "max_info_nce_bits", "lower_bits"):
        assert contents["estimate"][name] == pytest.approx(values["estimate"][name], abs=1e-5)  # on eight devices
    fits = [contents_of["estimate"]["fit"] for contents_of in (contents, values)]
    histories = [fit.pop("history") for fit in fits]
    assert fits[0] == fits[1]
    for name in ("step", "fit_bits", "validation_bits"):
        assert histories[0][name] == pytest.approx(histories[1][name], abs=1e-5)
    kept, first = (read_rows(f / "estimates" / "color" / "fit.jsonl") for f in (folder, finished))
    assert kept == first  # no step of the head's critic was taken again
    assert main(cdp(f"--workdir={folder}")) == 0  # and by its own command


MINE = """
from dataclasses import replace
from mirigor_jax import config_files, mi

def get_config(arg=""):
    mi.ESTIMATORS["mine_too"] = lambda: replace(mi.ESTIMATORS["dv"](), name="mine_too", heading="Mine")
    vowed = mi.Certified(0.995, 0.99, mi.Interval(0.991, 0.999, "what was said"), {"vows": 3})
    mi.CERTIFICATES["vow"] = mi.Certificate(
        "vow", "a vow", lambda *given: vowed, lambda counts: f"{counts['vows']} vows"
    )
    config, _ = config_files.load_config("configs/cdp.py")
    config.estimate.estimators = ("info_nce_symmetric", "mine_too")
    return config
"""


@pytest.mark.slow
def test_an_estimator_and_a_certificate_of_a_config_file_are_in_its_runs(finished, tmp_path):
    """They work on a finished run's encoder and features."""
    folder = tmp_path / "mine"
    shutil.copytree(
        finished,
        folder,
        ignore=shutil.ignore_patterns("config.json", "manifest.json", "estimate.json", "report.*", ".lock"),
    )
    config = json.loads((finished / "config.json").read_text())
    config["estimate"]["estimators"] = ["info_nce_symmetric", "mine_too"]
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(MINE)
    command = [f"--config={tmp_path / 'mine.py'}", *cdp(f"--workdir={folder}")[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "mirigor_jax.main", *command],
        env=quick_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report, real = (
        schema.read(schema.ImageReport, json.loads((f / "report.json").read_text())) for f in (folder, finished)
    )
    itself = report.estimate
    assert (itself.certificate, itself.statistic, itself.value_bits, itself.lower_bits) == ("vow", "a vow", 0.995, 0.99)
    assert itself.interval == mi.Interval(0.991, 0.999, "what was said")
    assert "(vow certificate, 3 vows)" in itself.conclusions[0]
    assert itself.info_nce.quoted.bits == pytest.approx(real.estimate.info_nce.quoted.bits, abs=1e-5)
    assert itself.nt_xent_bits is None
    assert (itself.curve["mine_too"].heading, itself.curve["mine_too"].k) == ("Mine", 64)
    assert set(itself.curve["mine_too"].at) == {16, 32, 64}
    assert "| post-training MI, Mine |" in (folder / "report.md").read_text()
    assert "| vow, the chosen one | 0.995 bits | 0.990 bits | 3 vows |" in (folder / "report.md").read_text()


def test_in_training_mi_is_eq_4_of_the_logged_loss(finished):
    for row in read_rows(finished / "train" / "metrics.jsonl"):
        assert row["mi_bits"] == pytest.approx((np.log(15) - row["loss_nats"]) / np.log(2))


def test_parts_are_disjoint_images_of_the_same_distribution(finished):
    parts = load(RunFolder(finished / "features"))
    rows = [parts["fit"]["h"], *(parts[p][f"h_{v}"] for p in ("validation", "test") for v in "xy")]
    assert [len(h) for h in rows] == [512, 64, 64, 128, 128]
    assert len(np.unique(np.concatenate(rows), axis=0)) == sum(map(len, rows))
    np.testing.assert_array_equal(parts["test"]["labels_x"][:, 0], parts["test"]["labels_y"][:, 0])
    assert np.any(parts["test"]["labels_x"][:, 1] != parts["test"]["labels_y"][:, 1])


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_again_changes_nothing(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.npz")}
    values = report(finished)
    assert main(cdp(f"--workdir={finished}")) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 4
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.npz")} == before
    assert report(finished) == values


@pytest.mark.slow
def test_killed_in_every_stage_the_run_ends_with_the_same_values(finished, tmp_path):
    """SIGKILL comes in the middle of each stage, once a file chosen by a seed exists. The same command continues."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "mirigor_jax.main", *cdp(f"--workdir={folder}")]
    environment = quick_environment()  # those of the finished run
    moments = {
        "train": f"train/{rng.integers(2, 5)}",
        "encode": f"features/{rng.choice(['fit.npz', 'validation.npz'])}",
        "estimate": "estimates/color/fit.jsonl",
        "evaluate": "stages.json",  # of the stage before: the probes come next
        "report": f"figures/{rng.choice(['pairs.png', 'bars.png', 'critic.png'])}",
    }
    killed, output = [], ""
    for stage, path in moments.items():
        before = (folder / path).stat().st_mtime_ns if (folder / path).exists() else None
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                if (folder / path).exists() and (folder / path).stat().st_mtime_ns != before:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
            output += process.communicate()[0]
        killed.append((stage, process.returncode))
    assert killed == [(stage, -signal.SIGKILL) for stage in moments]
    assert "train continues from step" in output
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert report(folder) == report(finished)


def test_a_draft_that_a_kill_left_behind_is_not_read(tmp_path):
    """The kill comes after a shard's draft but before its rename, or after the shards but before their joint file."""

    def read(start, stop):
        rows = np.arange(start, stop)
        return {"image": rows[:, None, None, None].astype(np.uint8) * np.ones((1, 2, 2, 3), np.uint8), "labels": rows}

    def encode_mean(images, view, row):
        return images.mean((1, 2, 3)).astype(np.float32)[:, None]

    sizes = {"num_examples": 80, "batch_size": 2, "threads": 0, "workers": 0}
    shards = tmp_path / "fit.shards"
    shards.mkdir()
    (shards / ".000000000000.npz.123").write_bytes(b"half of it")
    encode_split(encode_mean, read, RunFolder(tmp_path), "fit", **sizes)
    np.testing.assert_array_equal(np.load(tmp_path / "fit.npz")["h"][:, 0], np.arange(80))
    assert not shards.exists()


def test_a_run_killed_while_its_folder_was_claimed_goes_on(tmp_path):
    config, *_ = config_files.parse(cdp())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.123").write_text('{"half": ')
    RunFolder(tmp_path / "run").claim(config)
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.usefixtures("undrawn")
def test_a_kill_between_a_result_and_its_note_loses_the_note_alone(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "stages.json").unlink()
    assert main(cdp(f"--workdir={folder}")) == 0
    assert report(folder) == report(finished)


@pytest.mark.usefixtures("undrawn")
def test_the_picture_of_the_training_has_its_own_ceiling_and_entropy(finished, tmp_path, monkeypatch):
    folder, drawn, figure = tmp_path / "run", [], TrainingHistory.figure

    def draw(history, **levels):
        drawn.append(figure(history, **levels))
        return drawn[-1]

    shutil.copytree(finished, folder)
    stages = json.loads((folder / "stages.json").read_text())
    (folder / "stages.json").write_text(json.dumps({name: stages[name] for name in stages if name != "report"}))
    monkeypatch.setattr(TrainingHistory, "figure", draw)
    assert main(cdp(f"--workdir={folder}")) == 0
    levels = {line.get_label().split()[0]: line.get_ydata()[0] for line in drawn[0].axes[1].lines[2:]}
    assert levels == {"ceiling": pytest.approx(np.log2(15)), "H(C)": 1.0}


def test_two_processes_do_not_share_a_run(finished, capsys):
    with RunFolder(finished).lock():
        assert main(cdp(f"--workdir={finished}")) == 2
    assert "another process is at work" in capsys.readouterr().err


@pytest.mark.slow
def test_training_resumed_from_any_checkpoint_is_training_uninterrupted(finished, tmp_path, monkeypatch):
    folder = tmp_path / "resumed"
    real = RunFolder.write_rows
    stops = [2, 4]

    def stop_after_some(folder, name, rows):
        real(folder, name, rows)
        if name == "metrics.jsonl" and len(rows) in stops:
            stops.remove(len(rows))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_rows", stop_after_some)
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: first)
        assert main(cdp(f"--workdir={folder}")) == 130
        assert main(cdp(f"--workdir={folder}")) == 130
        assert main(cdp(f"--workdir={folder}")) == 0
    theirs = [row["loss_nats"] for row in read_rows(finished / "train" / "metrics.jsonl")]
    np.testing.assert_allclose(
        [row["loss_nats"] for row in read_rows(folder / "train" / "metrics.jsonl")], theirs, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("undrawn")
def test_a_finished_encoder_is_re_estimated_without_training(finished, capsys, monkeypatch):
    traced = []

    def counted(function):
        def traces(*args, **options):  # a step's body runs when it is traced
            traced.append(function.__name__)
            return function(*args, **options)

        return traces

    for module, name in ((encoding, "encode_step"), (fit, "estimate_step"), (fitting, "fit_chunk")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    estimate = report(finished)["estimates"]["color"]
    again = ["--config=configs/estimate.py:pairing=none,k_est=32", f"--config.restore={finished}"]
    assert main(again) == 0
    assert "train" not in capsys.readouterr().out.replace(str(finished), "").split("H(C)")[0]
    contents = report(finished)
    other = contents["estimates"]["none-k=32"]
    assert contents["estimates"]["color"] == contents["estimate"] == estimate
    assert (other["k"], other["upper_bits"], other["lower_bits"], other["shared"]) == (32, 0.0, 0.0, [])
    assert sorted(traced) == ["encode_step", "estimate_step", "fit_chunk"]  # once each
    assert main(again) == 0  # finished: skipped
    assert report(finished) == contents


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["simclr", "color+simclr"])
def test_augmented_views_are_estimated_and_plain_images_evaluated(tmp_path, pairing):
    command = cdp(f"--config.data.pairing={pairing}", "--config.estimate.extra_pairings=('color',)")
    assert main([*command, f"--workdir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    plain, augmented = (
        dict(np.load(folder / "features" / "test.npz")) for folder in (tmp_path, tmp_path / "estimates" / pairing)
    )
    assert set(report["estimates"]) == {pairing, "color"}
    if pairing == "simclr":
        np.testing.assert_array_equal(augmented["labels_x"], augmented["labels_y"])
        assert report["truth"] == {"entropy_bits": None, "mutual_information_bits": None, "shared": ["the image"]}
        assert (report["estimate"]["upper_bits"], report["estimate"]["certificate"]) == (None, "infonce")
    else:
        assert report["estimate"]["upper_bits"] == pytest.approx(1.0)  # two colors
    # The evaluation's images are independent and as rendered.
    population = job.parse(config_files.parse(cdp())[0]).images
    drawn = population.pairs(population.pairing("none"), "test")(0, 128)
    np.testing.assert_array_equal(plain["labels_y"], drawn["attributes_y"])
    assert not np.allclose(plain["h_x"], augmented["h_x"])
    again = tmp_path / "again"
    shutil.copytree(tmp_path, again, ignore=shutil.ignore_patterns("again"))
    before = dict(np.load(again / "estimates" / pairing / "features" / "validation.npz"))
    for part in ("estimates", "report.json", "features"):
        (shutil.rmtree if (again / part).is_dir() else Path.unlink)(again / part)
    assert main([*command, f"--workdir={again}"]) == 0
    after = np.load(again / "estimates" / pairing / "features" / "validation.npz")
    np.testing.assert_array_equal(before["h_x"], after["h_x"])


@pytest.mark.slow
def test_a_streamed_estimate_fits_on_fresh_images(finished):
    arguments = ["--config.stream=true", "--config.steps=4", "--config.name=streamed"]
    assert main(["--config=configs/estimate.py", f"--config.restore={finished}", *arguments]) == 0
    streamed = report(finished)["estimates"]["streamed"]
    assert streamed["fit"]["steps"] == 4
    assert streamed["k"] == 64


@pytest.mark.slow
def test_an_untrained_encoder_certifies_little_where_redrawn_pairs_would_certify_all(tmp_path):
    """A random encoder's rows are all distinct, so a redrawn bank has I = H(C); fresh images show the true I."""
    arguments = [a for a in cdp(f"--workdir={tmp_path / 'untrained'}") if "pairing" not in a and "colors" not in a]
    sizes = ["--config.train.steps=0", "--config.features.test=512", "--config.estimate.k=256"]
    assert main([*arguments, *sizes]) == 0
    contents = report(tmp_path / "untrained")
    estimate = contents["estimate"]
    assert contents["in_training"] is None
    assert estimate["upper_bits"] == 6.0
    assert all(certified["lower_bits"] < 4.0 for certified in estimate["certificates"].values())
    assert estimate["lower_bits"] <= estimate["value_bits"] < 4.0
    assert estimate["info_nce_bits"] < estimate["max_info_nce_bits"] - 0.5
    assert estimate["verdict"] == "bounded"
    bank = load(RunFolder(tmp_path / "untrained" / "features"))["test"]
    assert len(np.unique(bank["h_x"], axis=0)) == len(bank["h_x"])  # the trap is there to fall into


BAD = {
    "no config": (["--workdir=x"], "give one --config"),
    "missing config": (["--config=configs/cpd.py"], "no config file 'configs/cpd.py'.*configs/cdp.py"),
    "unknown key": (cdp("--config.train.stps=3"), "unknown config key 'train.stps'; did you mean train.steps"),
    "unknown room": (cdp("--config.trian.k=3"), "unknown config key 'trian.k'; did you mean.*train.k"),
    "unknown argument": (["--config=configs/cdp.py:paring=all"], "unknown config argument 'paring=all'.*pairing="),
    "wrong type": (["--config=configs/cdp.py:k=two"], "k=two is not of type int"),
    "wrong type of key": (cdp("--config.train.steps=few"), "few"),
    "stray argument": (cdp("extra"), "unexpected argument 'extra'"),
    "unknown attribute": (cdp("--config.data.pairing=colors"), "unknown attribute 'colors'.*color"),
    "K below 2": (cdp("--config.train.k=1"), "train.k=1.*at least 2"),
    "odd size": (cdp("--config.data.size=33"), "image size 33.*even"),
    "tiny size": (cdp("--config.data.size=16"), "image size 16.*32"),
    "MI beyond the alphabet": (cdp("--config.data.mi=1.5"), "mi=1.5 bits.*0 to 1"),
    "background folder missing": (cdp("--config.data.cdp.background=folder:nowhere"), "nowhere"),
    "IDX file missing": (cdp("--config.data.cdp.glyphs=idx:nowhere-images-idx3-ubyte"), "nowhere-images-idx3-ubyte"),
    "restore nothing": (["--config=configs/estimate.py", "--config.restore=nowhere"], "'nowhere' is not a run folder"),
    "test part below K": (cdp("--config.estimate.k=256"), "128 test pairs.*k_est=256"),
    "test part below the certificate": (
        cdp("--config.data.pairing=all", "--config.features.test=4", "--config.estimate.k=4"),
        "4 test pairs are too few for a certificate over 32 classes",
    ),
    "unknown optimizer": (cdp("--config.train.optimizer=adam"), "'adam'.*adamw"),
    "unknown encoder": (["--config=configs/cdp.py:encoder=resnet19"], "'resnet19'.*resnet18"),
    "negative seed": (cdp("--config.seed=-1"), "seed=-1"),
    "no critic step": (cdp("--config.estimate.steps=0"), "estimate.steps=0: expected at least 1"),
    "endless chunk": (cdp("--config.estimate.eval_every=0"), "estimate.eval_every=0: expected at least 1"),
    "estimator that there is not": (
        cdp("--config.estimate.estimators=('info_nce_symmetric','mien')"),
        "estimate.estimators: unknown estimator 'mien'",
    ),
    "estimators without the main one": (
        cdp("--config.estimate.estimators=('nt_xent',)"),
        "expected 'info_nce_symmetric', which the critic is fitted by",
    ),
    "estimator of two critics": (
        cdp("--config.estimate.estimators=('info_nce_symmetric','flo')"),
        "'flo' needs a second critic",
    ),
    "K of the curve": (cdp("--config.estimate.k_curve=(0,)"), "estimate.k_curve=.*0.*: expected at least 2"),
    "penalty": (cdp("--config.evaluate.l2=(-1.0,)"), "evaluate.l2=.*-1.0.*: expected at least 0"),
    "temperature": (cdp("--config.train.temperature=0.0"), "train.temperature=0.0: expected a number above 0"),
    "parts of a batch": (cdp("--config.train.accumulate=3"), "train.accumulate=3 does not divide a device's"),
    "no such residence": (cdp("--config.data.resident=some"), "data.resident='some'.*auto, always or never"),
    "nothing to hold": (cdp("--config.data.resident=always"), "there is nothing to hold.*data.images=N"),
    "too few images": (cdp("--config.data.images=1"), "of 2 classes have none of the 1 rows .*give more images"),
    "no image": (cdp("--config.data.images=0"), "data.images=0: expected at least 1"),
    "rate": (cdp("--config.train.learning_rate=nan"), "train.learning_rate=nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[case]
    root = Path(config_files.__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    assert (root / "configs").is_dir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not list(tmp_path.rglob("*")), "nothing may be written"


def test_broken_files_are_named(tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    background = f"--config.data.cdp.background=folder:{folder}"
    assert main(cdp(background, f"--workdir={tmp_path / 'run'}")) == 2
    assert str(folder) in capsys.readouterr().err  # empty
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    assert main(cdp(background, f"--workdir={tmp_path / 'run'}")) == 2
    assert "broken.png" in capsys.readouterr().err
    idx = tmp_path / "train-images-idx3-ubyte"
    idx.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]))
    assert main(cdp(f"--config.data.cdp.glyphs=idx:{idx}", f"--workdir={tmp_path / 'run'}")) == 2
    assert idx.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_config_is_not_touched(finished, capsys):
    before = (finished / "config.json").read_text()
    assert main(cdp(f"--workdir={finished}", "--config.train.steps=7", "--config.seed=1")) == 2
    error = capsys.readouterr().err
    assert "seed" in error
    assert "train.steps" in error
    assert "another" in error
    assert (finished / "config.json").read_text() == before


def test_a_folder_of_other_files_is_not_touched(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(cdp(f"--workdir={tmp_path}")) == 2
    assert "holds files but no run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(cdp(f"--workdir={blocked / 'run'}")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_restoring_a_run_without_a_checkpoint_says_so(tmp_path, capsys):
    config, *_ = config_files.parse(cdp())
    RunFolder(tmp_path / "run").claim(config)
    restore = ["--config=configs/estimate.py", f"--config.restore={tmp_path / 'run'}"]
    assert main(restore) == 2
    assert "no checkpoint in" in capsys.readouterr().err
    (tmp_path / "run" / "train" / "3").mkdir(parents=True)
    assert main(restore) == 2
    assert "is not finished" in capsys.readouterr().err


@pytest.mark.slow
def test_the_name_of_an_estimate_is_not_used_twice(finished, capsys):
    restore = f"--config.restore={finished}"
    assert main(["--config=configs/estimate.py:k_est=16", restore, "--config.name=mine"]) == 0
    before = report(finished)["estimates"]["mine"]
    assert main(["--config=configs/estimate.py:k_est=32", restore, "--config.name=mine"]) == 2
    assert "estimate.k" in capsys.readouterr().err
    assert report(finished)["estimates"]["mine"] == before


def test_help_names_the_shipped_configs(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert "configs/cdp.py" in output
    assert "configs/estimate.py" in output


CORES = {"avx2": "flags\t: sse avx avx2 fma", "avx512": "flags\t: avx avx2 avx512f avx512bw", "arm": "Features : neon"}


@pytest.mark.parametrize(
    ("cores", "given", "left"),
    [
        ("avx2", "", EIGEN),
        ("avx2", "--xla_dump_to=x", f"--xla_dump_to=x {EIGEN}"),
        ("avx2", f"{EIGEN},-reduce", f"{EIGEN},-reduce"),
        ("avx512", "--xla_dump_to=x", "--xla_dump_to=x"),
        ("avx2", "flags.txt", "flags.txt"),
        ("arm", "", ""),
    ],
)
def test_convolutions_are_eigens_on_cores_without_avx_512(cores, given, left, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CORES[cores])
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.12.0.1")
    choose_convolutions(tmp_path / "cpuinfo")
    assert os.environ["XLA_FLAGS"] == left


def test_the_installed_jax_knows_the_flag_and_an_unseen_one_is_not_given_it(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CORES["avx2"])
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": EIGEN}, check=True)
    monkeypatch.setenv("XLA_FLAGS", "")
    for release in ("0.9.2", "0.13.0", "1.0", "head"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, release=release: release)
        choose_convolutions(tmp_path / "cpuinfo")
        assert os.environ["XLA_FLAGS"] == ""


def test_default_folders_are_named_after_the_command():
    assert config_files.parse(["--config=configs/cdp.py"])[1] == "cdp"
    assert config_files.parse(["--config=configs/cdp.py:k=2,pairing=color"])[1] == "cdp-k=2,pairing=color"
    assert config_files.parse(["--config=configs/cdp.py", "--config.seed=3"])[1] == "cdp-seed=3"
    long, longer = (config_files.parse(cdp(*more))[1] for more in ((), ("--config.seed=1",)))
    assert len(long) <= 100
    assert long != longer


def test_configs_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common.py").write_text("def base(): return 1 / 0")  # a stranger's common.py is not ours
    config, *_ = config_files.parse(["--config=configs/cdp.py:mi=3.3,k_est=512,seed=7,size=48"])
    assert (config.data.mi, config.estimate.k, config.seed, config.data.size) == (3.3, 512, 7, 48)
    mine = tmp_path / "mine.py"
    mine.write_text("import common\ndef get_config(arg): return common.base()")
    with pytest.raises(
        InputError, match="raises ZeroDivisionError in line 2"
    ):  # a config of one's own imports the common.py beside it
        config_files.parse([f"--config={mine}"])


def test_none_is_a_value_of_every_key_that_may_be_none():
    names = ("encoder.width", "encoder.remat", "features.fit", "evaluate.classes", "data.epsilon.color", "data.size")
    config = config_files.parse(["--config=configs/cdp.py:scale=paper", *options(dict.fromkeys(names))])[0]
    values = flatten(config)
    assert {name: values[name] for name in names} == dict.fromkeys(names)
    again = ["--config.encoder.width=None", "--config.encoder.width=4"]
    assert config_files.parse(["--config=configs/cdp.py", *again])[0].encoder.width == 4
    assert config_files.parse(["--config=configs/cdp.py", *again[::-1]])[0].encoder.width is None
    study = config_files.parse(
        ["--config=configs/studies/batch_size.py:scale=paper", "--config.run.encoder.width=None"]
    )
    assert study[0].run.encoder.width is None
    with pytest.raises(InputError, match=r"None"):
        config_files.parse(["--config=configs/cdp.py", "--config.train.k=None"])


def test_a_kind_of_run_registered_in_a_config_file_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kinds, "RUN_KINDS", dict(kinds.RUN_KINDS))
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from ml_collections import ConfigDict\n"
        "from mirigor_jax.kinds import RUN_KINDS, RunKind\n"
        "def run(config, name, workdir, monitoring):\n"
        "    print(f'{name} in {workdir}: {config.answer}')\n"
        "RUN_KINDS['mine'] = RunKind(run, is_watched=False)\n"
        "def get_config(arg):\n"
        "    return ConfigDict({'kind': arg or 'mine', 'answer': 42})\n"
    )
    assert main([f"--config={mine}", f"--workdir={tmp_path}"]) == 0
    assert f"mine in {tmp_path}: 42" in capsys.readouterr().out
    assert main([f"--config={mine}", "--profile"]) == 2
    assert "a job of kind mine has none" in capsys.readouterr().err
    assert main([f"--config={mine}:mien"]) == 2
    known = "images, restore, layers, arrays, study, invertible, high_mi, mine"
    assert f"unknown kind 'mien'; choose one of {known}" in capsys.readouterr().err
    monkeypatch.setattr(kinds.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="a job of kind arrays runs in one process"):
        kinds.run(config_files.parse(["--config=configs/arrays.py"])[0], "run", None)


def test_k_of_the_paper_and_epsilon_one_by_one():
    config, *_ = config_files.parse(["--config=configs/cdp.py:k=2", "--config.data.epsilon.color=0.1"])
    assert (config.train.k, config.train.steps) == (2, 10_000)
    pairing = job.parse(config).pairing
    assert pairing.epsilon == (0.1, 0.0, 0.0)
    with pytest.raises(InputError, match="epsilon"):
        job.parse(config_files.parse(["--config=configs/cdp.py:mi=3.3", "--config.data.epsilon.color=0.1"])[0])


@pytest.mark.slow
def test_a_training_that_diverges_says_what_to_do(tmp_path, capsys):
    diverging = ["--config.train.optimizer=sgd", "--config.train.learning_rate=1e30", "--config.train.warmup_steps=0"]
    assert main(cdp(*diverging, f"--workdir={tmp_path / 'run'}")) == 2
    assert re.search(r"train\.learning_rate=1e\+30: the training loss is (nan|inf) at step", capsys.readouterr().err)
