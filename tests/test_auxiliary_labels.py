"""The study `auxiliary_labels`: its labels are independent of the class, and its tables show what its fits measured."""

import ast
import json
import math

import numpy as np
import pytest
from small import IMAGES, image_set, options

from mirigor_jax import config_files
from mirigor_jax.main import main
from mirigor_jax.runs.job import parse
from mirigor_jax.studies import auxiliary_labels, auxiliary_stages, grid
from mirigor_jax.studies.auxiliary_labels import LABELINGS, PAPER, RANDOM, ROTATION, STAGES, UNTRAINED

CONFIG = "--config=configs/studies/auxiliary_labels.py"


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """The plug-in I(A;B) in bits, by a loop over the cells."""
    total = 0.0
    for x in set(a.tolist()):
        for y in set(b.tolist()):
            joint = np.mean((a == x) & (b == y))
            if joint:
                total += joint * math.log2(joint / np.mean(a == x) / np.mean(b == y))
    return total


def test_information_between_labels_is_that_of_the_table_and_its_ends_hold_for_independent_rows():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=4000)
    flipped = np.where(rng.random(4000) < 0.5, rng.integers(3, size=4000), y)
    rows = np.arange(0, 4000, 4)
    for pretext in (rng.integers(5, size=4000), flipped, y):
        found = auxiliary_stages.label_information((pretext, y), (pretext[rows], y[rows]))
        assert found["table_bits"] == pytest.approx(mutual_information(pretext, y), abs=1e-9)
        # Corrected for bias, a value may be below 0.
        assert found["mi_lower_bits"] <= max(found["mi_bits"], 0.0) <= found["mi_upper_bits"]
        assert found["mi_rows"] == 1000
    # I(y;y) = log2 3; with half of the labels redrawn, 1/6 + 1/2 stay.
    assert found["mi_bits"] == pytest.approx(math.log2(3), abs=0.01)
    p = np.full((3, 3), 1 / 18) + np.eye(3) / 6
    truth = float((p * np.log2(9 * p)).sum())
    of_flipped = auxiliary_stages.label_information((flipped, y), (flipped[rows], y[rows]))
    assert of_flipped["mi_lower_bits"] < truth < of_flipped["mi_upper_bits"]


@pytest.mark.parametrize("labeling", [ROTATION, RANDOM])
def test_neither_labeling_has_information_about_the_class(garments, tmp_path, labeling):
    config, *_ = config_files.parse([f"{CONFIG}:seeds=1,nets=resnet18"])
    name = {words: name for name, words in LABELINGS.items()}[labeling]
    settings = next(cell["run"] for cell in config.study.cells if f"-{name}-" in cell["name"])
    own = {key: settings[key] for key in ("data.pairing", "data.corrupted") if key in settings}
    command = image_set(garments, tmp_path, *options({"data.rotations": True, "data.images": 300} | own))
    job = parse(config_files.parse(command)[0])
    found = auxiliary_stages.independence(job)
    attributes = job.images.sets["train"].attributes
    pretext = attributes[:, job.images.names.index(settings["data.pairing"])]
    assert len(pretext) == 1200
    assert found["table_bits"] == pytest.approx(mutual_information(pretext, attributes[:, 0]), abs=1e-9)
    assert found["mi_rows"] == 720  # 800 images, of which a tenth is for validation
    assert found["mi_lower_bits"] == 0.0
    if labeling == ROTATION:
        assert found["table_bits"] == pytest.approx(0.0, abs=1e-12)  # each image is there at all four turns
    else:
        assert 0.0 < found["table_bits"] < 3 * 9 / (2 * 1200 * math.log(2))  # the bias of a table without information


def stage_rows(labeling: str, values: dict[str, tuple[float, ...]], fit_accuracy: float = 1.0) -> list[dict]:
    """Rows of fits: stage → its linear accuracy at each seed. The other measures follow from it."""
    return [
        {
            "run": f"{labeling}-{seed}", "net": "resnet18", "labeling": labeling, "seed": seed, "stage": stage,
            "accuracy": value, "nmi": value, "usable_bits": 3 * value, "usable_lower_bits": 3 * value - 0.1001,
            "usable_upper_bits": 3 * value + 0.2001, "unseen_rows": 4500, "entropy_bits": 3.0,
            "js_largest_bits": 2.4 * value, "js_bits": 2.1 * value, "fit_accuracy": fit_accuracy - 0.01 * seed,
            "held_out_accuracy": 0.25, "table_bits": 0.002, "mi_bits": 0.001, "mi_lower_bits": 0.0,
            "mi_upper_bits": 0.1 + 0.01 * seed, "mi_rows": 500,
        }
        for stage, of in values.items()
        for seed, value in enumerate(of)
    ]  # fmt: skip


def test_the_section_shows_the_fits_beside_the_paper_and_leaves_out_what_was_not_memorized():
    learned = stage_rows(ROTATION, {"B0": (0.5, 0.6), "prelogits": (0.7, 0.8)})
    forgotten = stage_rows(RANDOM, {"B0": (0.5, 0.4), "prelogits": (0.2, 0.1)}, 0.955)
    made = auxiliary_labels.section([*learned, *forgotten])
    lines = [line.strip("| ").split(" | ") for line in made.text.splitlines() if line.startswith("| ")]
    assert ["resnet18", ROTATION, "2", "99.50 ± 0.71", "25.00 ± 0.00", "0.0020 ± 0.0000", "0.0010 ± 0.0000",
            "[0.000, 0.110]", "500"] in lines  # fmt: skip
    assert "less than 95% of the random labels are memorized: random labels-1." in made.text
    accuracies = [line for line in lines if line[0] == ROTATION]
    assert ["55.00 ± 7.07", "75.00 ± 7.07"] in [[line[1], line[-1]] for line in accuracies]
    assert ["0.44 ± 0.06", "0.60 ± 0.06"] in [[line[1], line[-1]] for line in accuracies]  # 2.4 · 0.55 / 3
    assert ["1.650 ± 0.212 [1.399, 2.001]", "2.250 ± 0.212 [1.999, 2.601]"] in [[x[1], x[-1]] for x in accuracies]
    assert [RANDOM, "50.00", "–", "–", "–", "–", "20.00"] in lines  # one seed is left
    assert [f"{ROTATION}, the paper's", "41.65", "52.51", "55.96", "57.48", "56.80", "51.04"] in lines
    accuracy, usable = made.figures["auxiliary_labels"].axes
    of_rotation = next(line for line in accuracy.lines if line.get_label() == ROTATION)
    assert of_rotation.get_xydata().tolist() == [[0, pytest.approx(55)], [5, pytest.approx(75)]]
    of_random = next(line for line in usable.lines if line.get_label() == RANDOM)
    assert of_random.get_ydata().tolist() == pytest.approx([1.5, 0.6])
    nothing = auxiliary_labels.section(stage_rows(RANDOM, {"B0": (0.5,)}, 0.3))
    assert nothing.figures == {}


def test_the_paper_s_tables_have_a_number_for_each_stage():
    assert {labeling for _, labeling in PAPER} == {ROTATION, RANDOM, UNTRAINED}
    for nmi, accuracy in PAPER.values():
        assert len(nmi) == len(accuracy) == len(STAGES)
        assert 0 < min(nmi) < max(nmi) < 1 < min(accuracy)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_shipped_study_trains_each_labeling_and_measures_each_encoder(scale):
    config, *_ = config_files.parse([f"{CONFIG}:scale={scale},seeds=2"])
    configs = dict(zip((cell["name"] for cell in config.study.cells),
                       grid.configs_of(config.run, config.study.cells), strict=True))  # fmt: skip
    assert [*configs] == [fit["run"] for fit in config.study.fits] == [fit["name"] for fit in config.study.fits]
    assert len(configs) == 2 * 2 * 3
    first = {labeling: configs[f"plainnet18-{labeling}-seed=0"] for labeling in LABELINGS}
    assert first["untrained"].train.steps == 0
    for name in ("rotation", "random"):
        t = first[name].train
        assert (t.optimizer, t.schedule, t.objective) == ("sgd", "steps", "cross_entropy")
        assert [round(182 * share) for share in t.drops] == [91, 137]
        if scale == "paper":  # Gosch 2020, C.2: batches, rates, and 182 epochs of 45,000 images at four turns
            images, rate = {"rotation": (512, 0.1), "random": (128, 0.01)}[name]
            assert (2 * t.k, t.learning_rate) == (images, rate)
            assert t.steps == pytest.approx(182 * 180_000 / images, abs=1)
    assert first["random"].data.corrupted == 1.0
    assert {fit["width"] for fit in config.study.fits} == {512}
    longer, *_ = config_files.parse([f"{CONFIG}:scale={scale},seeds=1,times=4"])
    steps = [each.train.steps for each in grid.configs_of(longer.run, longer.study.cells)]
    plain = [each.train.steps for name, each in configs.items() if name.endswith("seed=0")]
    np.testing.assert_allclose(steps, 4 * np.array(plain), rtol=1e-4)


SHRUNK = """
from mirigor_jax.config_files import load_config
def get_config(arg):
    config, _ = load_config("configs/studies/auxiliary_labels.py:seeds=1,nets=resnet18")
    config.study.cells, config.study.fits = config.study.cells[1:2], config.study.fits[1:2]
    config.study.cells[0]["run"].update(SMALL)
    config.study.fits[0].update({"width": 16, "k": 32, "epochs": 2})
    return config
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("shallow", "undrawn")
def test_the_shrunk_study_memorizes_random_labels_and_measures_every_stage(garments, tmp_path):
    small = {key: ast.literal_eval(value) for key, value in IMAGES.items()} | {
        "data.source": garments, "data.size": 8, "data.images": 16, "encoder.width": 8, "train.k": 16,
        "train.steps": 160, "features.validation": None, "features.test": None, "features.unseen": 300,
        "estimate.k": 32,
    }  # fmt: skip
    (tmp_path / "shrunk.py").write_text(SHRUNK.replace("SMALL", repr(small)))
    command = [f"--config={tmp_path / 'shrunk.py'}", f"--workdir={tmp_path / 'study'}"]
    assert main(command) == 0
    report = json.loads((tmp_path / "study" / "study.json").read_text())
    rows = report["fits"]["rows"]
    assert [row["stage"] for row in rows] == ["B0", "B1", "B2", "prelogits"]
    assert rows[0]["fit_accuracy"] > 0.9  # 64 random labels are memorized
    assert rows[0]["held_out_accuracy"] < 0.5  # of four labels, drawn at random
    for row in rows:
        assert 0 <= row["usable_lower_bits"] <= row["usable_bits"] <= row["usable_upper_bits"] <= 2.001
        assert row["js_bits"] < 3
    text = (tmp_path / "study" / "study.md").read_text()
    assert "## What each stage holds" in text
    assert (tmp_path / "study" / "figures" / "auxiliary_labels.png").exists() == (rows[0]["fit_accuracy"] >= 0.95)
    with pytest.MonkeyPatch.context() as patch:  # a second start measures nothing again
        patch.setattr(auxiliary_stages, "pretext_accuracies", None)
        assert main(command) == 0
    # After the loss of the fit's record, its stages and critics are read again, not made.
    (tmp_path / "study" / "fits" / rows[0]["run"] / grid.FIT).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auxiliary_stages.label_critics, "fit", None)
        assert main(command) == 0
    again = json.loads((tmp_path / "study" / "study.json").read_text())["fits"]["rows"]
    assert again == rows
