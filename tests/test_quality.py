"""The studies on sets of images: correlations against scipy and the paper's own, rows, tables and configs."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small import estimate_entry, image_report

from mirigor_jax import config_files
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.runs.schema import EstimateEntry, ImageReport
from mirigor_jax.studies import cases, grid, negatives, objectives, quality, rank

# What Lee et al. 2023 print below Tables IV-IX: Pearson's ρ and Kendall's τ of every column with accuracy.
PRINTED = {
    "cifar10-temperatures": ((0.035, -0.218, 0.046, -0.367, -0.041, 0.634),
                             (0.067, -0.067, 0.138, -0.067, -0.067, 0.467)),
    "imagenet100-temperatures": ((0.250, -0.173, 0.247, -0.672, 0.085, 0.805),
                                 (-0.067, 0.333, -0.067, -0.200, 0.067, 0.467)),
    "resnet50s-imagenet100": ((-0.197, 0.381, -0.200, None, 0.510, 0.967), (0.159, 0.092, 0.159, None, 0.233, 0.883)),
    "resnet50s-imagenet1k": ((0.012, 0.213, 0.007, None, 0.535, 0.943), (0.250, -0.033, 0.250, None, 0.233, 0.617)),
    "vits-imagenet100": ((-0.442, 0.623, -0.444, None, 0.727, 0.975), (-0.026, 0.308, -0.026, None, 0.513, 0.821)),
    "vits-imagenet1k": ((-0.360, 0.546, -0.360, None, 0.790, 0.979), (-0.055, 0.418, -0.055, None, 0.600, 0.891)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_the_papers_tables_have_the_correlations_that_the_paper_prints(name):
    """Our correlations of the typed numbers, with the sign turned for ↓, equal the paper's up to its three decimals."""
    rows = [row for row in quality.paper().values() if row["table"] == name]
    by_metric = rank.correlations(rows)
    for ours, *printed in zip(quality.PAPERS.values(), *PRINTED[name], strict=True):
        one = by_metric[ours]
        assert (one is None) == (printed[0] is None)
        if one:
            assert (one.pearson, one.kendall) == pytest.approx(printed, abs=0.004)


def test_the_papers_tables_are_whole():
    tables = [row["table"] for row in quality.paper().values()]
    assert [tables.count(name) for name in PRINTED] == [6, 6, 16, 16, 13, 11]


CONFIG = {
    "data": {"pairing": "class"},
    "train": {"objective": "simclr", "temperature": 0.5},
    "estimate": {"nt_xent_k": 3},
    "seed": 4,
}


def finished(
    folder: Path, *, strict: float, accuracy: float, spread: float = 0.0, views: bool = True, **changes
) -> ImageReport:
    """A run's report, and the files in its folder that `row` reads: eight batches at K = 2 and 4, two at K = 16."""
    classes = np.tile([[0, 2], [0, 1], [1, 0], [1, 0], [1, 1]], (2, 1))
    (folder / "features").mkdir(parents=True)
    (folder / "estimates" / "class").mkdir(parents=True)
    np.savez(folder / "features" / "test.npz", labels=classes)
    wave = spread * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    batches = {"2": 0 * wave, "4": strict + wave, "16": np.array([strict, strict])}
    np.savez(folder / "estimates" / "class" / "batches.npz", **batches)
    bits = {"value_bits": strict + 0.01, "lower_bits": strict - 0.1006, "nt_xent_bits": strict + 0.1}
    numbers = {**bits, "k": 16, "entropy_bits": 1.0}
    estimates = {"class": estimate_entry(info_nce_bits=strict, **numbers)}
    if views:
        estimates["simclr"] = estimate_entry(info_nce_bits=7.0, **numbers)
    measured = dict.fromkeys(("class_alignment", "class_uniformity", "class_tolerance", "knn_accuracy"), 0.25)
    metrics, linear = measured | {"class_contrastive_loss_nats": 1.5}, {"class": accuracy, "corrupted": 0.1}
    return image_report(CONFIG, estimates, **{"metrics": metrics, "linear": linear, **changes})


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """b differs from a by the same amount in every batch, the third encoder is noisy, d was tested on other images."""
    cells = {
        "a": {"strict": 0.9, "accuracy": 0.8},
        "b": {"strict": 0.7, "accuracy": 0.9},
        "resnet50s-imagenet100-swav": {"strict": 0.65, "accuracy": 0.7, "spread": 0.5, "views": False},
        "d": {"strict": 1.2, "accuracy": 0.5},
    }
    results = [
        {"cell": name, **quality.row(finished(tmp_path / name, **numbers), tmp_path / name)}
        for name, numbers in cells.items()
    ]
    results[-1]["test"] = "others"
    return results


def test_the_bound_is_at_as_many_pairs_as_its_loss_had(tmp_path):
    """Classes of four and six images make five pairs, so an anchor has nine candidates at any larger K."""
    done = finished(tmp_path, strict=0.5, accuracy=0.5)
    done = replace(done, run=replace(done.run, config=CONFIG | {"estimate": {"nt_xent_k": 256}}))
    gap = math.log((math.exp(4) - 1) / 4) - 1 + 4 / (math.exp(4) - 1)
    bound_nats = quality.row(done, tmp_path)["metrics"]["bound_nats"]
    assert bound_nats == pytest.approx(1.5 + math.log(1 / (2 / 5 * 9)) + gap)


def test_a_row_reads_both_pairings_the_class_and_the_batches(rows):
    first, third = rows[0]["metrics"], rows[2]["metrics"]
    assert (rows[0]["accuracy"], first["class_bits"], first["simclr_bits"], first["class_nt_xent_bits"]) == (
        0.8,
        0.9,
        7,
        1,
    )
    assert (first["class_lower_bits"], first["class_alignment"], first["mlp_nmi"]) == (0.9 - 0.1006, 0.25, None)
    assert (third["simclr_bits"], third["simclr_lower_bits"]) == (None, None)
    assert rows[0]["batches"] == {"k": 4, "info_nce_bits": [0.9] * 8}
    # Least frequency 2/5, five candidates, an interval of width 4.
    gap = math.log((math.exp(4) - 1) / 4) - 1 + 4 / (math.exp(4) - 1)
    assert first["bound_nats"] == pytest.approx(1.5 + math.log(1 / (2 / 5 * 5)) + gap)
    assert rows[0]["test"] == rows[1]["test"] == rows[2]["test"]
    assert rows[2]["paper"]["accuracy"] == pytest.approx(0.9252)
    assert rows[0]["paper"] is None
    json.dumps(rows)


def test_a_run_of_few_batches_is_compared_with_none(rows, tmp_path):
    done = finished(tmp_path / "few", strict=0.8, accuracy=0.85)
    np.savez(tmp_path / "few" / "estimates" / "class" / "batches.npz", **{"16": np.full(7, 0.8)})
    few = {"cell": "few", **quality.row(done, tmp_path / "few")}
    assert few["batches"] is None
    assert rank.neighbors([rows[0], few, rows[1]]) == []


def test_a_run_that_was_not_measured_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x' has no estimate `class`, or no metrics; give it evaluate.metrics=True"):
        quality.row(finished(tmp_path / "x", strict=1.0, accuracy=1.0, metrics={}), tmp_path / "x")


def test_neighbors_in_the_ranking_are_compared_on_the_same_batches(rows):
    [first, second] = rank.neighbors(rows)  # none of d, which is first
    assert (first["a"], first["b"], second["b"]) == ("a", "b", "resnet50s-imagenet100-swav")
    assert (first["k"], first["difference_bits"], first["accuracy"]) == pytest.approx((4, 0.2, -0.1))
    wave = 0.05 - 0.5 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    interval = stats.t.interval(0.95, 7, wave.mean(), wave.std(ddof=1) / math.sqrt(8))
    assert (second["t_lower_bits"], second["t_upper_bits"]) == pytest.approx(interval)


def test_the_table_tells_encoders_correlations_neighbors_and_the_paper(rows):
    text = quality.table(rows)
    information, pairs, probed, correlated, compared, beside = (part.splitlines() for part in text.split("## ")[1:])
    assert [part[0] for part in (information, pairs, probed)] == ["Information", "Pairs of representations", "Probes"]
    lines = information[4:8]
    assert [line.split(" | ")[0] for line in lines] == ["| b", "| a", "| resnet50s-imagenet100-swav", "| d"]
    assert lines[0].startswith("| b | 90.00 | 0.710 | 0.700 | 0.599 | 0.800 | 0.710 | 7.000 |")
    assert lines[2].startswith("| resnet50s-imagenet100-swav | 70.00 | 0.660 | 0.650 | 0.549 | 0.750 | – | – |")
    assert pairs[2] == (
        "| encoder | accuracy, % | alignment, class ↓ | uniformity, class ↓ | tolerance, class ↑ | "
        "contrastive loss, class, nats ↓ | bound of supervised loss, nats ↓ |"
    )
    assert "H(C) is 1.000 bits" in text
    assert "I_class by InfoNCE is above H(C) for d." in text
    [line] = [line for line in correlated if line.startswith("| I_class, NT-Xent ↑ | 4 |")]
    assert "0.634 to 0.979" in line
    assert "0.467 to 0.891" in line
    [line] = [line for line in correlated if line.startswith("| alignment, class ↓")]
    assert line == "| alignment, class ↓ | – | – | -0.442 to 0.250 | – | -0.067 to 0.250 |"
    assert "| a | b | 0.200 [0.200, 0.200] | a | -10.00 |" in compared
    assert any("the data cannot tell | +20.00 |" in line for line in compared)
    assert any(
        "70.00 / 92.52 | 0.250 / 0.725 | 0.250 / -1.937 | 0.250 / 0.643 | – / – | – / 8.544" in x for x in beside
    )


def test_a_panel_a_metric_shows_every_encoder(rows):
    figure = rank.draw(rows)["metrics"]
    panels = {ax.get_title(loc="left").partition(":")[0]: ax for ax in figure.axes if ax.get_title(loc="left")}
    assert "alignment, class ↓" not in panels  # all alike
    points = panels["I_class, InfoNCE ↑"].lines[0].get_xydata()
    assert points.tolist() == [[0.9, 80.0], [0.7, 90.0], [0.65, 70.0], [1.2, 50.0]]
    assert rank.draw(rows[:2]) == {}


def test_a_share_is_in_percent_where_its_title_says_so(rows):
    for row, share in zip(rows, (0.75, 0.5, 0.25, 0.125), strict=True):
        row["metrics"]["knn_accuracy"] = share
    panels = {ax.get_title(loc="left").partition(":")[0]: ax for ax in rank.draw(rows)["metrics"].axes}
    points = panels["kNN accuracy, % ↑"].lines[0].get_xydata()
    assert points[:, 0].tolist() == [75.0, 50.0, 25.0, 12.5]
    [plot] = re.findall(r'<script type="application/json">(.*?)</script>', rank.page_text(rows, "", None))
    [column] = [one for one in json.loads(plot)["columns"] if one["title"] == "kNN accuracy, % ↑"]
    assert (column["texts"], column["values"]) == (["50.00", "75.00", "25.00", "12.50"], [50.0, 75.0, 25.0, 12.5])


def two_estimates(value: float, lower: float, classes: int) -> dict[str, EstimateEntry]:
    class_estimate = estimate_entry(value_bits=value, lower_bits=lower, entropy_bits=math.log2(classes))
    return {"class": class_estimate, "simclr": estimate_entry(info_nce_bits=6.0)}


def objectives_rows() -> list[dict]:
    def row(case, seed, accuracy):
        report = image_report({"seed": seed}, two_estimates(3.0, 2.5, 10), linear={"class": accuracy})
        return {"set": "cifar10", "case": case, **cases.row(report, Path("x"))}

    return [row("SimCLR", 0, 0.9), row("SimCLR", 1, 0.92), row("class", 0, 0.95)]


def test_objectives_stand_beside_the_papers():
    rows = objectives_rows()
    text = objectives.table(rows)
    assert "| SimCLR | 2 | 91.00 ± 1.41 | 93.0 | 3.000 ± 0.000 | [2.500, 3.322] | 6.000 ± 0.000 |" in text
    assert "| class | 1 | 95.00 | 93.1 | 3.000 | [2.500, 3.322] | 6.000 |" in text
    assert "| best known, unsupervised |  |  | 94.1 |  |  |  |" in text
    left = cases.picture(rows, objectives.PAPER["cifar10"]).axes[0]
    ours, paper = (line.get_xydata().tolist() for line in left.lines)
    assert ours == [[0, 90.0], [0, 92.0], [1, 95.0]]
    assert paper == [[0, 93.0], [2, 94.1], [1, 93.1], [3, 96.0]]
    others = [row | {"set": "fashion"} for row in rows]
    assert "| class | 1 | 95.00 | – |" in objectives.table(others)
    assert "best known, unsupervised |" not in objectives.table(others)


def test_negatives_are_called_by_what_they_are():
    rows = []
    tags = [cell.tags for cell in shipped("negatives", "others=x/photo,seeds=1")]
    for phrase, accuracy in zip(tags, (0.8, 0.81, 0.82, 0.7, 0.7, 0.7, 0.7), strict=True):
        report = image_report({"seed": 0}, two_estimates(1.0, 0.9, 5), linear={"class": accuracy})
        rows.append(phrase | cases.row(report, Path("x")))
    text = negatives.table(rows)
    assert {row["set"] for row in rows} == {"fashion"}
    assert "| D, of the same batch | 1 | 80.00 | – | 1.000 | [0.900, 2.322] | 6.000 |" in text
    assert "| the other half of the classes | 1 | 82.00 |" in text
    assert "| photo | 1 | 70.00 |" in text
    assert [point[1] for point in cases.picture(rows, {}).axes[0].lines[0].get_xydata()] == [80, 81, 82, 70, 70, 70, 70]


def test_every_negatives_cell_is_a_run(images, tmp_path):
    (tmp_path / "photo").mkdir()
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "photo" / "a.png")
    more = (f"--config.run.data.source={images}", "--config.run.estimate.k=32")
    cells = shipped("negatives", f"others={tmp_path / 'photo'},seeds=1", *more)
    known = {spec for spec, _ in negatives.NEGATIVES.values()}
    assert {cell.config.data.negatives for cell in cells} == {*known, f"folder:{tmp_path / 'photo'}"}
    for cell in cells:
        population = parse(cell.config).images
        assert population.sets["train"].sizes == (2,)
        assert (population.negatives() is None) == (cell.config.data.negatives == "")
    for name, pairs in (("cifar10", 25_000_000), ("cifar100", 25_000_000)):
        config = shipped("negatives", f"set={name}")[0].config
        assert (config.data.source, config.data.classes) == (f"tfds:{name}", "first-half")
        assert config.train.k * config.train.steps == pytest.approx(pairs, rel=1e-3)


def shipped(name: str, arguments: str = "", *more: str) -> list[grid.Cell]:
    config, *_ = config_files.parse([f"--config=configs/studies/{name}.py:{arguments}", *more])
    return grid.cells_of(config, RunFolder(Path("x")))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("images") / "images.npz"
    labels = np.repeat(np.arange(4), 400)
    np.savez(path, images=rng.integers(256, size=(1600, 28, 28), dtype=np.uint8), labels=labels)
    return f"npz:{path}"


@pytest.mark.slow
def test_quality_trains_enough_encoders_and_measures_all_alike(images):
    small = (f"--config.run.data.source={images}", "--config.run.estimate.k=32")
    cells = {cell.name: cell.config for cell in shipped("quality", "", *small)}
    assert len(cells) >= 16
    for config in cells.values():
        parse(config)
        assert {config.data.pairing, *config.estimate.extra_pairings} >= {"class", "simclr"}
        assert (config.evaluate.metrics, config.evaluate.classes) == (True, "class")
    same = {
        (tuple(sorted(c.features.items(), key=str)), c.estimate.k, c.estimate.batch_size, c.estimate.steps, c.seed)
        for c in cells.values()
    }
    assert len(same) == 1
    assert cells["untrained"].train.steps == 0
    assert {cells[f"simclr-t={t}"].train.temperature for t in (0.1, 0.3, 0.5)} == {0.1, 0.3, 0.5}
    assert {config.train.objective for config in cells.values()} == {
        "simclr", "supcon", "decoupled", "cross_entropy", "rotation"
    }  # fmt: skip
    seen = {name: config.train.k * config.train.steps for name, config in cells.items()}
    assert {seen.pop("untrained"), seen.pop("class-k=2"), seen.pop("simclr-k=8")} == {0, 19_200}
    assert set(seen.values()) == {76_800}
    config.evaluate.classes = "klass"
    with pytest.raises(InputError, match="unknown attribute"):
        parse(config)


def test_the_papers_encoders_have_the_names_of_its_tables(tmp_path):
    for table in ("cifar10-temperatures", "imagenet100-temperatures"):
        names = {cell.name for cell in shipped("quality", f"set={table}")}
        assert names == {name for name, row in quality.paper().items() if row["table"] == table}
    (tmp_path / "paths").write_text("swav, /x/swav.pth\n\nsimclr,/x/simclr.torch,vissl\nnew,features:h.npz\n")
    cells = shipped("quality", f"set=resnet50s,data=imagenet1k,paths={tmp_path / 'paths'}")
    assert [cell.name for cell in cells] == [f"resnet50s-imagenet1k-{name}" for name in ("swav", "simclr", "new")]
    assert [(c.config.encoder.path, c.config.encoder.layout, c.config.data.source) for c in cells] == [
        ("/x/swav.pth", None, "tfds:imagenet2012"),
        ("/x/simclr.torch", "vissl", "tfds:imagenet2012"),
        ("", None, "features:h.npz"),
    ]
    assert {cell.config.estimate.k for cell in cells} == {4096}


BAD = {
    "set=x": "config argument set=x: expected fashion, cifar10-temperatures",
    "set=vits": "give paths=FILE with a line for each encoder",
    "set=own": "config argument set=own: expected fashion, cifar10-temperatures",
    "set=vits,paths=short": "short: 'a' is not name,path",
    "set=vits,data=mnist,paths=short": "config argument data=mnist: expected fashion, cifar10",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_bad_list_of_encoders_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    config = Path("configs/studies/quality.py").resolve()
    monkeypatch.chdir(tmp_path)
    Path("twice").write_text("a,x\na,z\n")
    Path("short").write_text("a\n")
    assert main([f"--config={config}:{arguments}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert BAD[arguments] in error


@pytest.mark.parametrize("name", ["fashion", "cifar10", "imagenet100", "imagenet1k"])
def test_objectives_are_those_of_the_paper(name):
    cells = shipped("objectives", f"set={name},seeds=2")
    trained = [(cell.config.data.pairing, cell.config.train.objective) for cell in cells]
    assert set(trained) == {(pairing, objective) for pairing, objective, _ in objectives.LOSSES.values()}
    assert len(cells) == 10
    paper = objectives.PAPER.get(name, {})
    assert set(paper) <= {*(phrase for _, _, phrase in objectives.LOSSES.values()), cases.BEST_KNOWN}
    assert {cell.tags["set"] for cell in cells} == {name}
    assert bool(paper) == (name != "fashion")
    assert {cell.name.partition("-")[0] for cell in cells} == {name}
