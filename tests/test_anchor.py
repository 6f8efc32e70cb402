"""The study `anchor`: its samples have the mutual information that it says, and its numbers are those of its fits."""

import ast
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from small import IMAGES, image_report

from mirigor_jax import config_files
from mirigor_jax.data import cdp
from mirigor_jax.data.draws import random_words, rows_of_classes
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi.distributions import Discrete, Gaussian
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.runs.renamed import current
from mirigor_jax.studies import anchor, anchor_fits, grid
from mirigor_jax.studies.anchor_fits import ANCHOR, ESTIMATORS, INFO_NCE, PERFECT
from mirigor_jax.studies.table import STUDIES, Fits, Section, Study

CONFIG = "--config=configs/studies/anchor.py"


def test_each_row_is_drawn_once_and_is_of_the_class_that_is_wanted():
    rng = np.random.default_rng(0)
    classes, wanted = rng.permutation(np.repeat(np.arange(5), 40)), rng.integers(5, size=90)
    rows = rows_of_classes(wanted, classes, rng)
    np.testing.assert_array_equal(classes[rows], wanted)
    assert len(set(rows)) == 90
    # In a class, every row is as likely as the others to be among the first that are drawn.
    first = [rows_of_classes(np.zeros(4, int), classes, np.random.default_rng(seed)) for seed in range(500)]
    counts = np.bincount(np.concatenate(first), minlength=200)[classes == 0]
    assert stats.chisquare(counts).pvalue > 1e-3
    with pytest.raises(InputError, match="class 3 has too few of the 200 rows for 41 draws"):
        rows_of_classes(np.full(41, 3), classes, rng)


def test_info_nce_of_the_true_density_ratio_is_short_by_what_k_costs():
    """5.18 of 6 bits at K = 64, by the exact sum over binomials; Gaussians by a loop."""
    rng = np.random.default_rng(0)
    classes = rng.integers(64, size=(64 * 64, 1))
    one_hot = np.eye(64, dtype=np.float32)[classes[:, 0]]
    exact = max_info_nce_bits(64, np.full(64, 1 / 64))
    assert exact == pytest.approx(5.18, abs=0.005)
    found = anchor_fits.perfect_bits(Discrete.same_class(64), one_hot, one_hot, 64)
    assert found == pytest.approx(exact, abs=0.03)
    gaussian = Gaussian(2, 1.0)
    x, y = map(np.asarray, gaussian.sample(jax.random.key(0), 12))
    terms = []
    for batch in (range(6), range(6, 12)):
        ratio = {(i, j): float(gaussian.log_ratio(x[i : i + 1], y[j : j + 1])[0]) for i in batch for j in batch}
        for i in batch:
            for sums in ([ratio[i, j] for j in batch], [ratio[j, i] for j in batch]):
                terms.append(math.log(6) + ratio[i, i] - math.log(sum(map(math.exp, sums))))
    assert anchor_fits.perfect_bits(gaussian, x, y, 6) == pytest.approx(np.mean(terms) / math.log(2), rel=1e-5)


SPEC = {
    "name": "a", "data": "CDP", "bits": (2.0, 6.0), "estimators": (INFO_NCE, ANCHOR), "k": 32, "batch_size": 32,
    "steps": 600, "seed": 1, "run": "encoder", "images": 2048, "pairs": 4096, "validation": 512, "test": 1024,
}  # fmt: skip
RUNS = {"encoder": RunFolder(Path("x"))}


@pytest.fixture
def shown(monkeypatch):
    """Encode every CDP image to its attributes, one-hot, and some noise, instead of by an encoder."""
    images, parts = cdp.make(size=32), {}
    sizes = {"fit": 2048, "validation_x": 512, "validation_y": 1800, "test_x": 1024, "test_y": 2900}
    for number, (part, size) in enumerate(sizes.items()):
        attributes, _ = images.draw(random_words(number, 7, 0, size))
        one_hot = np.concatenate([np.eye(4)[column] for column in attributes.T], axis=1)
        noise = 0.1 * np.random.default_rng(number).normal(size=one_hot.shape)
        parts[part] = {"h": (one_hot + noise).astype(np.float32), "attributes": attributes}
    monkeypatch.setattr(anchor_fits, "_encoded", lambda *_: (parts, images))


def classes_of(h: np.ndarray) -> np.ndarray:
    """Color, digit and position that representations show, as one number."""
    return sum(weight * part.argmax(axis=1) for weight, part in zip((16, 4, 1), np.split(h, 3, axis=1), strict=True))


@pytest.mark.usefixtures("shown")
def test_the_channel_s_pairs_have_the_mutual_information_that_they_are_asked_for():
    """What the features show: each view is of one population, whatever the channel, and colors agree as they should."""
    for sample in anchor_fits.cdp(SPEC, RUNS, RUNS["encoder"]):
        assert sample.distribution.mutual_information() / math.log(2) == pytest.approx(sample.bits, abs=1e-9)
        joint = sample.distribution.joint
        for pairs in (sample.fit, sample.validation, sample.test):
            c_x, c_y = map(classes_of, pairs)
            for classes in (c_x, c_y):
                uniform = np.bincount(classes, minlength=64) / len(classes)
                assert np.abs(uniform - 1 / 64).max() < 5 * math.sqrt(1 / 64 / min(len(classes), 2048))
            assert np.mean(c_x == c_y) == pytest.approx(64 * joint[0, 0], abs=0.06)
            same_color = joint.reshape(4, 16, 4, 16).sum(axis=(1, 3)).trace()
            assert np.mean(c_x // 16 == c_y // 16) == pytest.approx(same_color, abs=0.06)
        for part in (sample.validation, sample.test):
            assert len(np.unique(part[1], axis=0)) == len(part[1])
        of_x, of_y = (one_hot.argmax(axis=1) for one_hot in sample.of)
        np.testing.assert_array_equal(of_x, classes_of(sample.test[0]))
        np.testing.assert_array_equal(of_y, classes_of(sample.test[1]))


@pytest.mark.slow
@pytest.mark.usefixtures("shown")
def test_an_anchor_passes_the_ceiling_under_which_info_nce_stays():
    rows = anchor_fits.make(SPEC, RUNS, RUNS["encoder"])
    bits = {(row["estimator"], row["bits"]): row["value_bits"] for row in rows}
    assert bits[INFO_NCE, 6.0] < bits[PERFECT, 6.0] + 0.1 < 5.0 == math.log2(32)
    assert bits[ANCHOR, 6.0] == pytest.approx(6.0, abs=0.4)
    assert bits[ANCHOR, 2.0] == pytest.approx(2.0, abs=0.3)


def rows_of(values: dict[str, dict[float, tuple[float, ...]]]) -> list[dict]:
    """Rows of fits: estimator → true MI → its value at each seed."""
    return [
        {
            **{"data": "CDP", "k": 64, "batch_size": 64, "estimator": name, "kind": "plug-in"},
            **{"bits": bits, "seed": seed, "value_bits": value},
        }
        for name, of in values.items()
        for bits, each in of.items()
        for seed, value in enumerate(each)
    ]


VALUES = {INFO_NCE: {2.0: (1.5, 1.7), 6.0: (5.0, 5.2)}, ANCHOR: {2.0: (2.1, 1.9), 6.0: (6.3, 5.9)}}


def test_errors_by_their_definitions():
    info_nce, anchored = (anchor.errors(rows_of({name: VALUES[name]})) for name in VALUES)
    assert (info_nce.bias, info_nce.error) == (pytest.approx(-0.65), pytest.approx(0.65))
    assert (anchored.bias, anchored.error) == (pytest.approx(0.05), pytest.approx((0.1 + 0.1 + 0.3 + 0.1) / 4))
    assert anchored.spread == pytest.approx(math.sqrt((0.02 + 0.08) / 2))  # variances of (2.1, 1.9) and (6.3, 5.9)
    assert anchor.errors(rows_of({ANCHOR: {2.0: (2.1,)}})).spread is None


def test_the_section_s_table_and_pictures_show_the_rows():
    made = anchor.section(rows_of(VALUES | {PERFECT: {2.0: (1.9, 1.9), 6.0: (5.2, 5.2)}}))
    lines = {line.split(" | ")[1]: line.strip("| ").split(" | ") for line in made.text.splitlines() if "| 64 |" in line}
    assert lines[ANCHOR] == ["64", ANCHOR, "plug-in", "2", "2.000", "6.100", "+0.050", "0.224", "0.150", "0.23"]
    assert lines[INFO_NCE][-1] == "1.00"
    (ax,) = made.figures["anchor"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn["anchor, plug-in, K = 64"] == [[2.0, 2.0], [6.0, pytest.approx(6.1)]]
    assert drawn["InfoNCE, fitted critic, K = 64"] == [[2.0, pytest.approx(1.6)], [6.0, pytest.approx(5.1)]]
    assert drawn[f"{PERFECT}, K = 64"] == [[2.0, pytest.approx(1.9)], [6.0, pytest.approx(5.2)]]
    (ax,) = made.figures["anchor_estimators"].axes
    assert ax.lines[0].get_xdata().tolist() == pytest.approx([0.65, 0.15, 0.45])


def training(case: str, seed: int, accuracy: float, usable: float | None) -> dict:
    lower, upper = (None, None) if usable is None else (usable - 0.0301, usable + 0.0101)
    return {
        "set": "fashion", "case": case, "seed": seed, "accuracy": accuracy, "value_bits": 2.0, "lower_bits": 1.9,
        "entropy_bits": 3.3, "simclr_bits": 4.0, "usable_bits": usable, "usable_lower_bits": lower,
        "usable_upper_bits": upper,
    }  # fmt: skip


def test_the_anchor_s_gain_is_told_seed_by_seed():
    (_, plain), (_, anchored) = anchor.TRAININGS.values()
    rows = [
        training(plain, 0, 0.80, 2.0),
        training(plain, 1, 0.82, 2.2),
        training(anchored, 1, 0.825, 2.15),
        training(anchored, 0, 0.81, 2.01),
    ]
    run = image_report({"seed": 0})
    encoder = {"set": "CDP", "case": "the encoder of the fits", **anchor.row(run, Path())}
    text = anchor.table([encoder, *rows])
    gains = "by 0.75 ± 0.35 points and usable information by -0.020 ± 0.042 bits, seed by seed"
    assert f"The anchor changes the accuracy {gains}" in text
    of_plain = next(line for line in text.splitlines() if line.startswith(f"| {plain} |"))
    assert of_plain.startswith(f"| {plain} | 2 | 81.00 ± 1.41 |")
    assert of_plain.endswith("| 2.100 ± 0.141 | [1.969, 2.211] |")  # ends rounded outward
    assert "encoder of the fits" not in text
    assert anchor.draw([encoder]) == {}
    accuracy, usable = anchor.draw([encoder, *rows])["anchor_training"].axes
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[80, 81], [82, 82.5]]
    drawn = [line.get_ydata().tolist() for line in usable.lines if "a line a seed" in line.get_label()]
    assert drawn == [[2.0, 2.01], [2.2, 2.15]]
    # With too few images for usable information, the accuracy alone is told.
    few = anchor.table([one | dict.fromkeys([key for key in one if "usable" in key]) for one in rows])
    assert "changes the accuracy by 0.75 ± 0.35 points, seed by seed" in few
    assert few.count("| – | – |") == 2


def test_the_shipped_study_fits_every_estimator_at_the_first_k_on_one_encoder_s_features():
    config, *_ = config_files.parse([f"{CONFIG}:k=64+2048,seeds=3"])
    cells = grid.cells_of(config, RunFolder(Path("x")))
    encoder, *trainings = [cell.config for cell in cells]
    plain, *_ = config_files.parse(["--config=configs/cdp.py"])
    assert config_files.flatten(encoder) == config_files.flatten(plain)
    assert [t.train.objective for t in trainings] == 3 * ["simclr"] + 3 * ["anchor"]
    assert len({(t.data.pairing, t.train.steps, t.train.k, t.train.temperature) for t in trainings}) == 1
    for training_config in trainings[::3]:
        parse(training_config)
    fits = {fit["name"]: fit for fit in config.study.fits}
    assert set(fits) == {f"{data}-k={k}-seed={s}" for data in ("Gaussian", "CDP") for k in (64, 2048) for s in range(3)}
    assert set(fits["CDP-k=64-seed=0"]["estimators"]) == set(ESTIMATORS)
    assert fits["CDP-k=2048-seed=0"]["estimators"] == (INFO_NCE, ANCHOR)
    assert {fit["run"] for fit in fits.values() if fit["data"] == "CDP"} == {cells[0].name}
    assert max(fit["k"] for fit in fits.values()) <= min(fit["test"] for fit in fits.values())


@pytest.fixture
def fitting(monkeypatch):
    """A study of no runs and two fits, which `made` names as they are made. Fit "bad" fails."""
    made = []

    def make(spec, runs, folder):
        if spec["name"] == "bad" and len(made) < 2:
            made.append("bad")
            raise InputError("too few pairs")
        made.append(spec["name"])
        return [{"value": spec["value"]}]

    def section(rows):
        return Section("Fits", f"values: {[row['value'] for row in rows]}", {"mine": Figure()})

    study = Study(lambda *_: {}, lambda rows: "", lambda rows: {}, {"mine": "Mine."}, fits=Fits(make, section))
    monkeypatch.setitem(STUDIES, "mine", study)
    return made


def own_study(folder: Path, *fits: str, name: str = "mine", cells: int = 0) -> list[str]:
    program = folder / "mine.py"
    runs = [{"name": f"run-{number}", "run": {}} for number in range(cells)]
    specs = [{"name": fit, "value": number} for number, fit in enumerate(fits)]
    program.write_text(
        f"import common\ndef get_config(arg):\n    config = common.study({name!r}, 'laptop')\n"
        f"    config.study.cells, config.study.fits = tuple({runs}), tuple({specs})\n    return config\n"
    )
    return [f"--config={program}", f"--workdir={folder / 'run'}"]


def test_fits_are_made_once_and_a_failed_one_is_made_by_the_next_command(fitting, tmp_path, capsys):
    command = own_study(tmp_path, "good", "bad")
    assert main(command) == 2
    assert "1 of 2 runs and fits failed" in capsys.readouterr().err
    text = (tmp_path / "run" / "study.md").read_text()
    assert "1 of 2 fits finished." in text
    assert "- fits/bad failed: InputError: too few pairs" in text
    assert "values: [0]" in text
    assert main(command) == 0
    assert fitting == ["good", "bad", "bad"]
    report = json.loads((tmp_path / "run" / "study.json").read_text())
    assert report["fits"] == {"asked": 2, "finished": 2, "rows": [{"value": 0}, {"value": 1}]}
    text = (tmp_path / "run" / "study.md").read_text()
    assert "## Fits\n\nvalues: [0, 1]\n\n![mine](figures/mine.png)\n\nMine." in text
    assert re.search(r"\d+ s in all, on \d × cpu\.", text)
    # A damaged fit is made again, and another process's fit is left to it.
    (tmp_path / "run" / "fits" / "good" / grid.FIT).write_text("{")
    with RunFolder(tmp_path / "run" / "fits" / "good").lock():
        assert main(command) == 0
    assert fitting == ["good", "bad", "bad"]
    assert "1 of 2 fits finished." in (tmp_path / "run" / "study.md").read_text()
    assert main(command) == 0
    assert fitting == ["good", "bad", "bad", "good"]


def test_a_job_of_one_run_makes_no_fits(fitting, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "_finish", lambda *_, **__: None)
    command = own_study(tmp_path, "good", cells=1)
    assert main([*command, "--config.study.only=1/1"]) == 0
    assert fitting == []
    assert "0 of 1 fits finished." in (tmp_path / "run" / "study.md").read_text()
    assert main(command) == 0
    assert fitting == ["good"]


def test_a_fit_that_another_process_has_finished_meanwhile_is_not_made_again(fitting, tmp_path, monkeypatch):
    def make(spec, runs, folder):
        fitting.append(spec["name"])
        RunFolder(folder.path.parent / "second").write(grid.FIT, {"seconds": 1, "devices": "1 × gpu", "rows": []})
        return [{"value": 3}]

    monkeypatch.setitem(
        STUDIES, "mine", Study(**vars(STUDIES["mine"]) | {"fits": Fits(make, lambda rows: Section("Fits", "", {}))})
    )
    assert main(own_study(tmp_path, "first", "second")) == 0
    assert fitting == ["first"]
    assert json.loads((tmp_path / "run" / "study.json").read_text())["fits"] == {
        "asked": 2,
        "finished": 2,
        "rows": [{"value": 3}],
    }
    assert "in all, on 1 × gpu, " in (tmp_path / "run" / "study.md").read_text()


def test_fits_of_a_study_that_makes_none_are_refused(tmp_path, capsys):
    assert main(own_study(tmp_path, "good", name="negatives")) == 2
    assert "study.fits: the study negatives fits no critics besides its runs; leave them out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


SHRUNK = """
from mirigor_jax.config_files import load_config
def get_config(arg):
    config, _ = load_config(
        "configs/studies/anchor.py:bits=1,k=16,pairs=400,images=256,test=64,steps=20,seeds=1,train_pairs=256"
    )
    small, (encoder, *_, anchor) = {"encoder.name": "lenet5", "encoder.width": None} | SMALL, config.study.cells
    config.study.cells = encoder, anchor
    for cell, own in zip(config.study.cells, (CDP, SET)):
        cell["run"] = cell["run"] | small | own
    return config
"""
OF_CDP = {
    "data.size": 32, "data.pairing": "color", "data.cdp.colors": 2, "data.cdp.digits": (2, 3), "train.k": 8,
    "train.steps": 6, "features.fit": 512, "features.validation": 64, "features.test": 128, "estimate.k": 64,
}  # fmt: skip
OF_SET = {"features.fit": 512, "features.validation": 256, "features.test": 512, "estimate.k": 32}


def test_a_study_of_an_older_version_has_no_fits_and_can_be_continued():
    older, *_ = config_files.parse(["--config=configs/studies/negatives.py"])
    config = json.loads(older.to_json())
    del config["study"]["fits"]
    assert current(config) == json.loads(older.to_json())


@pytest.mark.slow
@pytest.mark.compiles
def test_the_shrunk_study_end_to_end(tmp_path):
    """All but SimCLR's training, interrupted in its second fit; then a second start makes nothing again."""
    small = {key: ast.literal_eval(value) for key, value in IMAGES.items()}
    program = SHRUNK.replace("SMALL", repr(small)).replace("CDP", repr(OF_CDP)).replace("SET", repr(OF_SET))
    (tmp_path / "shrunk.py").write_text(program)
    command = [f"--config={tmp_path / 'shrunk.py'}", f"--workdir={tmp_path / 'study'}"]
    real, calls = anchor_fits.make, []

    def make(spec, runs, folder):
        calls.append(spec["name"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(spec, runs, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "anchor", Study(**vars(STUDIES["anchor"]) | {"fits": Fits(make, anchor.section)}))
        assert main(command) == 130
        assert main(command) == 0
        assert calls == ["Gaussian-k=16-seed=0", *2 * ["CDP-k=16-seed=0"]]
        assert main(command) == 0
        assert len(calls) == 3
    report = json.loads((tmp_path / "study" / "study.json").read_text())
    assert (report["finished"], report["fits"]["finished"]) == (2, 2)
    rows = report["fits"]["rows"]
    assert len(rows) == 2 * (len(ESTIMATORS) + 1)
    assert all(math.isfinite(row["value_bits"]) for row in rows)
    # One bank of features serves all fits of a seed.
    assert [path.name for path in (tmp_path / "study" / "fits").glob("features*")] == ["features-seed=0"]
    figures = {path.stem for path in (tmp_path / "study" / "figures").glob("*.png")}
    assert figures == {"anchor_training", "anchor", "anchor_estimators"}
