"""The study `rank`: correlations against scipy, the proven order, its files, and the lists of encoders."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mirigor_jax import config_files, mi
from mirigor_jax.main import main
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import grid, rank, rank_order


def test_correlations_and_their_bootstrap_are_scipys():
    rng = np.random.default_rng(0)
    x = rng.integers(4, size=12).astype(float)  # with ties
    y = 0.5 * x + rng.normal(size=12)
    correlation = rank.correlation(x, y, resamples=60, seed=3)
    assert correlation.n == 12
    assert correlation.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert correlation.kendall == pytest.approx(stats.kendalltau(x, y)[0])
    drawn = np.random.default_rng(3).integers(12, size=(60, 12))
    for of, interval in (
        (stats.pearsonr, correlation.pearson_interval),
        (stats.kendalltau, correlation.kendall_interval),
    ):
        values = [of(x[rows], y[rows])[0] for rows in drawn]
        assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_four_encoders_by_hand():
    """One of six pairs is reversed: τ = (5 - 1) / 6. Deviations (-1.5, -0.5, 0.5, 1.5) and (-1.5, 0.5, -0.5, 1.5)."""
    correlation = rank.correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert (correlation.pearson, correlation.kendall) == pytest.approx((4 / 5, 4 / 6))


def test_what_has_no_correlation_has_none():
    two, alike = np.array([1.0, 2.0]), np.ones(9)
    assert rank.correlation(two, two) is None
    assert rank.correlation(alike, np.arange(9.0)) is None
    assert rank.correlation(np.arange(9.0), alike) is None
    # Three encoders: most resamples are of two or of one, and these of one are left out.
    assert np.isfinite(rank.correlation(np.arange(3.0), np.array([0.0, 2.0, 1.0])).kendall_interval).all()


def test_the_bootstrap_intervals_cover():
    """For 20 normal encoders of correlation 0.6 (τ = 2/π asin 0.6), coverage is near 95 %, not far above."""
    rng, truth = np.random.default_rng(1), (0.6, 2 / math.pi * math.asin(0.6))
    hits, below = np.zeros(2), np.zeros(2)
    for _ in range(300):
        x, noise = rng.normal(size=(2, 20))
        correlation = rank.correlation(x, 0.6 * x + 0.8 * noise, resamples=200)
        for i, (lower, upper) in enumerate((correlation.pearson_interval, correlation.kendall_interval)):
            hits[i] += lower <= truth[i] <= upper
            below[i] += truth[i] < lower
    assert np.all(hits / 300 > 0.88)
    assert np.all(hits / 300 < 0.985)
    assert np.all(below / 300 > 0.005)


def test_an_order_comes_back_from_its_file_and_is_compared_with_accuracy(tmp_path):
    labels = np.tile(np.array(["a", "b"]), 200)
    rng = np.random.default_rng(0)
    sees = {name: scale * (labels == "b")[:, None] + rng.normal(size=(400, 2)) for name, scale in (("x", 4), ("y", 1))}
    order = mi.compare_many(sees, labels)
    again = rank_order.restored(json.loads(json.dumps(rank_order.stored(order))))
    assert (again.sentence, again.table(), again.pairs) == (order.sentence, order.table(), order.pairs)
    text = rank_order.text(again, {"x": 0.7, "y": 0.8}, {"z": "it was measured on other images"})
    assert "The encoder that holds more has the lower linear accuracy in 1 of the 1 certified pairs (x > y)." in text
    assert "(x > y). z is left out: it was measured on other images." in text
    assert "in none of the 1 certified pairs." in rank_order.text(again, {"x": 0.9, "y": 0.8}, {})


def cells(arguments: str) -> dict[str, dict]:
    config, *_ = config_files.parse([f"--config=configs/rank.py:{arguments}"])
    return {cell.name: cell.config for cell in grid.cells_of(config, RunFolder(Path("x")))}


def test_patterns_and_lists_name_encoders_by_their_files(tmp_path):
    for name in ("a/last.pth", "b/last.pth", "b/best.pt", "one.npz", "two.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = cells(f"encoders={tmp_path}/*/last.pth")
    assert {name: config.encoder.path for name, config in found.items()} == {
        "a-last": f"{tmp_path}/a/last.pth",
        "b-last": f"{tmp_path}/b/last.pth",
    }
    (tmp_path / "list").write_text("mine, /x/y.pth, vissl\n")
    found = cells(f"encoders=features:{tmp_path}/*.npz+{tmp_path}/b/best.pt,paths={tmp_path}/list")
    assert [*found] == ["one", "two", "best", "mine"]
    assert [config.data.source for config in found.values()] == [
        f"features:{tmp_path}/one.npz", f"features:{tmp_path}/two.npz", "", ""
    ]  # fmt: skip
    assert (found["mine"].encoder.path, found["mine"].encoder.layout) == ("/x/y.pth", "vissl")


BAD = {
    "": "the study rank has no runs; give its config's arguments, which --help lists",
    "encoders=no/*.pth": "no file matches 'no/*.pth'; give a path, or a pattern",
    "encoders=a.pth+a.*": "'a.pth' is matched twice; leave one out",
    "encoders=b.*": "some files differ only in their endings; name each in a list and give paths=LIST",
    "encoders=a.pth,paths=list": "list: encoders= gives the name 'a' too; choose another name",
    "paths=nowhere": "paths=nowhere cannot be read",
    "paths=twice": "twice: 'a,z' is not name,path or name,path,layout with a new name",
    "paths=short": "short: 'a' is not name,path",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_bad_list_of_encoders_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    config = Path("configs/rank.py").resolve()
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.pth": "", "b.pt": "", "b.pth": "", "list": "a,x", "twice": "a,x\na,z", "short": "a"}.items():
        Path(name).write_text(text)
    assert main([f"--config={config}:{arguments}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert BAD[arguments] in error


@pytest.mark.slow
def test_features_of_several_encoders_are_ranked(tmp_path, monkeypatch):
    """Three files of features that show the class to different degrees, and one with shuffled labels."""
    rng, labels = np.random.default_rng(0), np.repeat([3, 5, 7], 300)
    for name, scale in (("good", 30.0), ("fair", 3.0), ("bad", 0.5)):
        h = rng.normal(size=(900, 4)).astype(np.float32)
        h[:, :3] += scale * np.eye(3, dtype=np.float32).repeat(300, axis=0)
        np.savez(tmp_path / f"{name}.npz", h=h, labels=labels)
    (tmp_path / "paths").write_text(f"bad,features:{tmp_path}/bad.npz\n")
    shrunk = ("estimate.k=16", "estimate.nt_xent_k=8", "estimate.k_curve=(4,)", "estimate.batch_size=32",
              "estimate.steps=20", "estimate.eval_every=10", "evaluate.mlp_steps=50",
              "features.batch_size=64")  # fmt: skip
    chosen = f"encoders=features:{tmp_path}/good.npz+features:{tmp_path}/f*.npz,paths={tmp_path / 'paths'}"
    command = [f"--config=configs/rank.py:{chosen}", f"--workdir={tmp_path / 'x'}"]
    assert main([*command, *(f"--config.run.{key}" for key in shrunk)]) == 0
    report = json.loads((tmp_path / "x" / "study.json").read_text())["rows"]
    assert [row["cell"] for row in report] == ["good", "fair", "bad"]
    assert all(
        row["metrics"]["class_lower_bits"] <= row["entropy_bits"] == pytest.approx(math.log2(3)) for row in report
    )
    assert [row["metrics"]["simclr_bits"] for row in report] == [None] * 3
    assert len({row["test"] for row in report}) == 1
    text = (tmp_path / "x" / "study.md").read_text()
    assert "Neighbors in the order of I_class" in text
    assert (tmp_path / "x" / "figures" / "metrics.png").is_file()
    ordered = text.partition("## Which encoder is proven to hold more\n\n")[2]
    assert "good and fair are not told apart" in ordered  # on 540 rows
    assert "certified: good > bad" in ordered
    assert "has the lower linear accuracy in none of the 2 certified pairs." in ordered
    assert (tmp_path / "x" / "figures" / "usable_order.png").is_file()
    for row in report:
        lower, value, upper = (row["metrics"][f"usable_{name}bits"] for name in ("lower_", "", "upper_"))
        assert lower <= value <= upper <= row["entropy_bits"] + 0.5
    lines = list(csv.DictReader((tmp_path / "x" / "rank.csv").open()))
    accuracies = [float(line["linear_accuracy"]) for line in lines]
    assert accuracies == sorted((row["accuracy"] for row in report), reverse=True)
    values = {line["encoder"]: line for line in lines}
    for row in report:
        for name, value in row["metrics"].items():
            assert values[row["cell"]][name] == ("" if value is None else repr(value))
    page = (tmp_path / "x" / "rank.html").read_text()
    assert "good and fair are not told apart" in page
    assert page.count('<g tabindex="0"') == 3
    # The order comes from the study's folder if no run has changed.
    monkeypatch.setattr(mi, "compare_many", None)
    assert main([*command, *(f"--config.run.{key}" for key in shrunk)]) == 0
    assert (tmp_path / "x" / "study.md").read_text() == text
    monkeypatch.undo()

    # The metrics are about `evaluate.classes`, whatever the run's own pairing shares.
    source = f"--config.data.source=features:{tmp_path}/good.npz"
    shuffled = ("--config.data.pairing=corrupted", "--config.data.corrupted=1.0", "--config.evaluate.classes=class")
    command = ["--config=configs/encoder.py", source, *shuffled, f"--workdir={tmp_path / 'y'}"]
    assert main([*command, *(f"--config.{key}" for key in shrunk)]) == 0
    done = json.loads((tmp_path / "y" / "report.json").read_text())
    assert done["metrics"]["class_tolerance"] > 0.9
    assert done["metrics"]["linear_accuracy"] == 1.0
