"""The study `width`: its grid, its tables and its picture, and a run of it through the command."""

import ast
import json

import numpy as np
import pytest
from scipy import stats
from small import IMAGES, estimate_entry, image_report

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import grid, width

CONFIG = "--config=configs/studies/width.py"


def study_rows(accuracies: dict[tuple[str, int], tuple[float, ...]]) -> list[dict]:
    """Rows of the study: (encoder, width) → the accuracy at each seed. The other measures rise with it."""
    return [
        {
            "encoder": encoder, "width": size, "features": 8 * size, "steps": 150, "seed": seed,
            "entropy_bits": 3.0, "value_bits": 2 * accuracy, "upper_bits": 3.0,
            "lower_bits": 2 * accuracy - 0.1001, "usable_bits": 3 * accuracy**2,
            "usable_lower_bits": 3 * accuracy**2 - 0.2001, "usable_upper_bits": 3 * accuracy**2 + 0.0001,
            "accuracy": accuracy,
        }
        for (encoder, size), of in accuracies.items()
        for seed, accuracy in enumerate(of)
    ]  # fmt: skip


ACCURACIES = {
    ("resnet18", 1): (0.5, 0.6), ("resnet18", 4): (0.7, 0.8), ("resnet34", 1): (0.45, 0.5), ("resnet34", 4): (0.9, 0.8)
}  # fmt: skip


def test_the_table_has_means_and_the_outermost_ends_over_the_seeds():
    text = width.table(study_rows(ACCURACIES))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    # 2 · 0.5 - 0.1001 is rounded down, 3 · 0.6² + 0.0001 up.
    assert ["resnet18", "1", "8", "150", "2", "55.00 ± 7.07", "1.100 ± 0.141", "[0.899, 3.000]", "0.915 ± 0.233",
            "[0.549, 1.081]"] in lines  # fmt: skip
    assert ["resnet34", "4", "32"] in [line[:3] for line in lines]


def test_correlations_with_accuracy_are_scipy_s_over_the_runs_of_each_encoder_and_over_all():
    rows = study_rows(ACCURACIES)
    text = width.table(rows)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = {(line[0], line[1]): line[2:] for line in lines if line[0] == "usable information"}
    assert found.keys() == {("usable information", kind) for kind in ("resnet18", "resnet34", "all")}
    for kind in ("resnet18", "resnet34", "all"):
        of = [row for row in rows if kind in (row["encoder"], "all")]
        x, y = (np.array([row[name] for row in of]) for name in ("usable_bits", "accuracy"))
        number, pearson, kendall = found["usable information", kind]
        assert number == str(len(of))
        assert float(pearson.split()[0]) == pytest.approx(stats.pearsonr(x, y)[0], abs=6e-4)
        assert float(kendall.split()[0]) == pytest.approx(stats.kendalltau(x, y)[0], abs=6e-4)
    assert "have no correlation" in width.table(rows[:2])


def test_the_picture_has_a_line_for_each_encoder_and_ends_for_each_width():
    figure = width.picture(study_rows(ACCURACIES))
    mi, usable, accuracy = figure.axes
    for ax, factor in ((mi, 2.0), (accuracy, 100.0)):
        line = next(one for one in ax.lines if one.get_label() == "resnet18, 150 steps")
        assert line.get_ydata().tolist() == pytest.approx([0.55 * factor, 0.75 * factor])
    ends = [path.vertices[:, 1].tolist() for one in usable.collections for path in one.get_paths()]
    assert ends[0] == pytest.approx([3 * 0.25 - 0.2001, 3 * 0.36 + 0.0001])
    unmeasured = [{**row, **dict.fromkeys(("usable_bits", "usable_lower_bits", "usable_upper_bits"))}
                  for row in study_rows(ACCURACIES)]  # fmt: skip
    assert "| – | – |" in width.table(unmeasured)
    width.picture(unmeasured)


def test_a_withheld_certificate_is_a_dash_and_has_no_whisker():
    rows = study_rows(ACCURACIES)
    withheld = [{**row, "lower_bits": None, "usable_lower_bits": None} if row["width"] == 1 else row for row in rows]
    text = width.table(withheld)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert ["1.100 ± 0.141", "–", "0.915 ± 0.233", "–"] in [line[6:] for line in lines]
    mi, usable, _ = width.picture(withheld).axes
    for ax in (mi, usable):
        assert sum(len(one.get_paths()) for one in ax.collections) == 2  # width 4 of both encoders


def test_a_row_has_the_encoder_of_its_run(tmp_path):
    config = {"encoder": {"name": "resnet34", "width": 4}, "train": {"steps": 150}, "seed": 2}
    done = image_report(config, {"class": estimate_entry(value_bits=2.5)}, linear={"class": 0.75})
    RunFolder(tmp_path / "features").write_arrays("test.npz", {"h": np.zeros((3, 32))})
    row = width.row(done, tmp_path)
    assert (row["encoder"], row["width"], row["features"], row["seed"]) == ("resnet34", 4, 32, 2)
    assert (row["value_bits"], row["lower_bits"], row["accuracy"]) == (2.5, 5.9623, 0.75)
    assert row["usable_bits"] is None


@pytest.mark.parametrize(("scale", "number"), [("laptop", 18), ("paper", 45)])
def test_the_shipped_study_has_a_run_for_each_encoder_width_and_seed(scale, number):
    config, *_ = config_files.parse([f"{CONFIG}:scale={scale}"])
    configs = grid.configs_of(config.run, config.study.cells)
    built = {(one.encoder.name, one.encoder.width, one.seed) for one in configs}
    assert len(built) == len(configs) == number
    assert {one.data.pairing for one in configs} == {"class"}
    assert {one.data.seed for one in configs} == {0}  # all encoders train on the same images
    longer, *_ = config_files.parse([f"{CONFIG}:steps=10+20,widths=2,encoders=plainnet18,seeds=1"])
    budgets = grid.configs_of(longer.run, longer.study.cells)
    assert [(one.encoder.name, one.encoder.width, one.train.steps) for one in budgets] == [
        ("plainnet18", 2, 10), ("plainnet18", 2, 20)
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"widths=\(0,\): expected at least 1"):
        config_files.parse([f"{CONFIG}:widths=0"])


SHRUNK = """
from mirigor_jax.config_files import load_config
def get_config(arg):
    config, _ = load_config("configs/studies/width.py:seeds=1,encoders=resnet18,widths=1+2,steps=4")
    config.run.update_from_flattened_dict(SMALL)
    return config
"""


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("shallow", "undrawn")
def test_the_shrunk_study_trains_encoders_of_two_widths(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for ending, n in (("", 800), ("_test", 400)):
        labels = np.arange(n) % 4
        images = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
        images[np.arange(n), 2 * labels] += 150
        arrays |= {f"images{ending}": images, f"labels{ending}": labels}
    np.savez(tmp_path / "set.npz", **arrays)
    small = {key: ast.literal_eval(value) for key, value in IMAGES.items()} | {
        "data.source": f"npz:{tmp_path / 'set.npz'}", "data.size": 8, "data.images": 300, "train.k": 16,
        "features.fit": None, "features.validation": None, "features.test": None, "features.unseen": 300,
        "estimate.k": 32,
    }  # fmt: skip
    (tmp_path / "shrunk.py").write_text(SHRUNK.replace("SMALL", repr(small)))
    assert main([f"--config={tmp_path / 'shrunk.py'}", f"--workdir={tmp_path / 'study'}"]) == 0
    rows = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert [(row["width"], row["features"]) for row in rows] == [(1, 2), (2, 4)]  # two stages: twice the width
    for row in rows:  # so narrow an encoder may give many images the same features; then no end is certified
        assert row["value_bits"] <= row["upper_bits"] == pytest.approx(2.0)
        if row["lower_bits"] is not None:
            assert row["lower_bits"] <= row["value_bits"]
        if row["usable_lower_bits"] is not None:
            assert row["usable_lower_bits"] <= row["usable_bits"] <= row["usable_upper_bits"]
    assert (tmp_path / "study" / "figures" / "width.png").exists()
