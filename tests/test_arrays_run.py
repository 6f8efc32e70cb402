"""Estimates of arrays in files, through `main`: which files are read or refused, how runs resume, and the output."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_figures import by_label, texts, visible_words

from mirigor_jax import mi
from mirigor_jax.data import array_files
from mirigor_jax.files import plain
from mirigor_jax.main import main
from mirigor_jax.mi import Estimate, picture
from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import BATCHES, FOLDS, Interval
from mirigor_jax.mi.results import Reading
from mirigor_jax.runs import report
from mirigor_jax.runs.schema import ArrayEntry, ArrayReport, Run, Truth, read

CONFIG = "--config=configs/arrays.py"


def pairs(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Normal pairs of correlation 0.95, of which I(X;Y) = -log2(1 - 0.95^2) / 2 = 1.68 bits."""
    x, noise = np.random.default_rng(0).standard_normal((2, n))
    return x, 0.95 * x + np.sqrt(1 - 0.95**2) * noise


def make_estimate(name: str = "info_nce_symmetric", **changes) -> Estimate:
    certified = Certified(1.5911, 1.4239, Interval(1.4412, 1.741, BATCHES), {"k": 5, "batches": 16})
    fields = {
        "name": name, "value_bits": 1.6214, "kind": "lower bound", "k": 80, "ceiling_bits": 6.3219,
        "interval": Interval(1.5012, 1.7416, FOLDS), "lower_bits": 1.4239, "upper_bits": None, "confidence": 0.95,
        "certificate": "infonce", "verdict": "bounded", "pairs": 80, "seed_bits": (1.61, 1.59, 1.63),
        "note": "biased down", "certificates": {"infonce": certified},
    }  # fmt: skip
    return Estimate(**fields | changes)


ANCHOR = make_estimate(
    "anchor", kind="plug-in", value_bits=1.9004, interval=None, ceiling_bits=np.inf, lower_bits=None, certificate=None,
    verdict="not-a-bound", info_nce=Reading(1.6001, 1, None, 6.3219, None), certificates={}, note="off either way",
    warnings=("3 test pairs repeat",),
)  # fmt: skip
WILD = Interval(-1e6, 1e6, FOLDS)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with x and y as .npy, .npz and .csv."""
    monkeypatch.chdir(tmp_path)
    x, y = pairs()
    np.save("x.npy", x)
    np.savez("y.npz", other=np.zeros((3, 2)), y=y[:, None])
    np.savetxt("y.csv", y, header="y", comments="", fmt="%.17g")
    return tmp_path


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """The arguments of each call of `mi.estimate_all`, which returns made-up estimates."""
    calls = []

    def estimate_all(pairs, *, estimators, on_progress, **options):
        calls.append({"pairs": pairs, "estimators": list(estimators), **options})
        on_progress(1, 9, "0.5 bits on validation")
        return [[make_estimate(name) for name in estimators] for _ in pairs]

    monkeypatch.setattr(mi, "estimate_all", estimate_all)
    return calls


def test_what_a_file_holds_is_read(folder):
    values = np.arange(6.0).reshape(3, 2)
    np.save("a.npy", values.astype(np.float16))
    np.savez("one.npz", anything=values)
    np.savez("two.npz", x=values, other=values[:, 0], names=np.array(["a", "b"]))
    Path("header.csv").write_text("left,right\n0,1\n\n2,3\n4,5\n")
    Path("plain.csv").write_text('\ufeff"0","1"\r\n2, 3\r\n4,5e0\r\n')
    for source in ("a.npy", "one.npz", "two.npz", "two.npz:x", str(folder / "two.npz:x"), "header.csv"):
        np.testing.assert_array_equal(array_files.read(source, "x"), values)
    with pytest.warns(UserWarning, match="plain.csv': its first line, '0,1', is taken for a sample; delete it if"):
        np.testing.assert_array_equal(array_files.read("plain.csv", "x"), values)
    np.testing.assert_array_equal(array_files.read("two.npz:other", "x"), values[:, :1])
    np.testing.assert_array_equal(array_files.read_labels("two.npz:other"), [0, 2, 4])
    assert array_files.read_labels("two.npz:other").dtype == np.int64
    np.testing.assert_array_equal(array_files.read_labels("two.npz:names"), ["a", "b"])


BAD = {  # what is written, and the one line that says what is wrong with it
    "nowhere.npy": (None, r"x='nowhere.npy' cannot be read \(No such file or directory\); give the path"),
    "folder.npy": (lambda path: path.mkdir(), r"x='folder.npy' cannot be read \(Is a directory\)"),
    "x.txt": ("1\n2\n", "x='x.txt' is of an unknown format; save it as one of .npy, .npz, .csv"),
    "words.csv": ("a,b\n1,2\n3,four\n", "x='words.csv'.*line 3, .*'four'.*give numbers"),
    "titles.csv": ("a,b\nunit,unit\n1,2\n", "x='titles.csv'.*line 2, .*'unit'"),
    "gap.csv": ("1,2\n3,\n", "x='gap.csv'.*line 2"),
    "ragged.csv": ("a,b\n1,2\n\n3,4,5\n", "x='ragged.csv'.*line 4 has 3 cells, but line 2 has 2"),
    "header.csv": ("a,b\n", r"x='header.csv' has shape \(0,\).*a row for each sample"),
    "latin.csv": (b"1,2\n\xff,3\n", "x='latin.csv' cannot be read: it is no text of UTF-8"),
    "objects.npy": (np.array([{}, None], object), "x='objects.npy'.*pickled objects"),
    "text.npy": ("1 2 3\n", "x='text.npy'.*no NumPy file"),
    "cut.npy": (b"\x93NUMPY\x01\x00", "x='cut.npy' cannot be read"),
    "cut.npz": (b"PK\x03\x04 and no more", "x='cut.npz' cannot be read"),
    "nothing.npy": (b"", "x='nothing.npy' cannot be read"),
    "images.npy": (np.zeros((4, 2, 2)), r"x='images.npy' has shape \(4, 2, 2\).*flatten.*reshape\(len\(a\), -1\)"),
    "number.npy": (np.array(1.0), r"x='number.npy' has shape \(\).*a row for each sample"),
    "empty.npy": (np.zeros((0, 3)), r"x='empty.npy' has shape \(0, 3\)"),
    "two.npz": (
        {"a": np.ones(3), "b": np.ones(3)},
        "x='two.npz'.*no array 'x' among its a, b; pick one by two.npz:NAME",
    ),
    "few.npy": (np.zeros(3), "x has 3 rows and y has 400"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_exit_code_2(name, folder, capsys):
    content, message = BAD[name]
    path = folder / name
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content:
        content(path)
    assert main([CONFIG, f"--config.x={name}", "--config.y=y.npz", "--workdir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (folder / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --config.x=FILE and either --config.y=FILE or --config.labels=FILE"),
        (("--config.x=x.npy",), "give --config.x=FILE and either"),
        (("--config.x=x.npy", "--config.y=y.npz", "--config.labels=x.npy"), "give --config.x=FILE and either"),
        (
            ("--config.x=x.npy", "--config.labels=x.npy"),
            "labels='x.npy' has 400 values that are no whole numbers",
        ),
        (
            ("--config.x=x.npy", "--config.labels=y.npz:other"),
            r"labels='y.npz:other' are of shape \(3, 2\): .*give one column",
        ),
        (("--config.x=x.npy", "--config.y=y.npz", "--config.estimators=()"), r"estimators=\(\).*nwj"),
        (("--config.x=x.npy", "--config.y=y.npz", "--config.estimators=nce"), "unknown estimator 'nce'.*info_nce"),
        (("--config.x=x.npy", "--config.y=y.npz:z"), "no array 'z' among its other, y"),
    ],
)
def test_a_bad_command_is_one_line_and_exit_code_2(arguments, message, folder, capsys):
    assert main([CONFIG, *arguments, "--workdir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_run_ends_with_table_report_and_figure_and_is_not_done_twice(folder, capsys):
    command = [f"{CONFIG}:estimators=info_nce_symmetric+smile,steps=100", "--config.x=x.npy", "--config.y=y.npz"]
    assert main(command) == 0
    output = capsys.readouterr().out
    run = next((folder / "runs").iterdir())
    assert run.name == "arrays-estimators=info_nce_symmetric+smile,steps=100-x=x.npy-y=y.npz"
    report = json.loads((run / "report.json").read_text())
    assert list(report["estimates"]) == ["info_nce_symmetric", "smile"]
    assert report["estimate"] == report["estimates"]["info_nce_symmetric"]
    assert report["truth"] == {"entropy_bits": None, "mutual_information_bits": None, "shared": []}
    for name, estimate in report["estimates"].items():
        assert estimate == json.loads((run / "estimates" / name / "estimate.json").read_text())
        entry = read(ArrayEntry, estimate)
        assert plain(entry) == estimate
        assert entry.interval.kind == FOLDS
        assert entry.interval.lower_bits < entry.value_bits < entry.interval.upper_bits
        assert (entry.certificates == {}) == (entry.info_nce is not None) == (name == "smile")
        assert estimate["value_bits"] == pytest.approx(1.68, abs=0.6)  # rows stayed paired: shuffled they read 0
        assert f"{estimate['value_bits']:.3f}" in output
        assert f"{estimate['value_bits']:.3f}" in (run / "report.md").read_text()
    assert (run / "figures" / "estimators.png").stat().st_size > 10_000
    assert "figures/estimators.png" in (run / "report.md").read_text()
    assert report["run"]["config"]["sha256"].keys() == {"x", "y"}
    assert "100 of 100 steps" in output

    modified = {path: path.stat().st_mtime_ns for path in run.glob("estimates/*/*")}
    (run / "report.json").unlink()
    assert main(command) == 0
    assert "estimate: finished before, skipped" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.glob("estimates/*/*")} == modified
    assert json.loads((run / "report.json").read_text()) == report


def test_the_config_reaches_the_library_and_what_is_missing_alone_is_done(folder, asked):
    command = [f"{CONFIG}:seeds=3,seed=7,k=50,critic=separable", "--config.x=x.npy", "--workdir=run"]
    estimators = ["nwj", "mine", "anchor", "nwj"]
    command += [f"--config.estimators={tuple(estimators)}", "--config.confidence=0.9", "--config.batch_size=32"]
    assert main([*command, "--config.y=y.npz"]) == 0
    (first,) = asked
    np.testing.assert_array_equal(first.pop("pairs"), [[column[:, None] for column in pairs()]])
    assert first == {
        "estimators": ["nwj", "mine", "anchor"], "critic": "separable", "k": 50, "batch_size": 32,
        "num_critics": 3, "seed": 7, "confidence": 0.9, "rows": "checked",
    }  # fmt: skip
    (folder / "run/estimates/mine/estimate.json").unlink()
    assert main([*command, "--config.y=y.csv"]) == 0  # the same numbers from another file
    assert [call["estimators"] for call in asked] == [["nwj", "mine", "anchor"], ["mine"]]


def test_what_a_table_passes_over_is_written_into_the_report(folder, asked):
    x, _ = pairs()
    lines = [f"{i},{row}" for i, row in enumerate(x.tolist())]
    Path("x.csv").write_text("\n".join([",a", *lines]))
    with pytest.warns(UserWarning, match="it is left out"):
        assert main(["--config=configs/arrays.py", "--config.x=x.csv", "--config.y=y.csv", "--workdir=run"]) == 0
    note = "x='x.csv': its first column has no title and counts the rows; it is left out"
    assert json.loads(Path("run/report.json").read_text())["run"]["notes"] == [note]
    assert f"- note: {note}" in Path("run/report.md").read_text()
    assert asked[0]["pairs"][0][0].shape == (400, 1)


def test_other_data_under_the_same_name_are_refused(folder, asked, capsys):
    command = [CONFIG, "--config.x=x.npy", "--config.y=y.npz", "--workdir=run"]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    np.save("x.npy", pairs()[0] + 1e-9)
    capsys.readouterr()
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "error: 'run' was made from other data (sha256.x differ); give another --workdir\n"
    )
    assert main([*command, "--config.steps=5"]) == 2
    assert "'run' was made by another config (sha256.x, steps differ)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before
    assert len(asked) == 1


def test_a_command_that_failed_leaves_the_folder_to_the_corrected_one(folder, monkeypatch, request):
    command = [CONFIG, "--config.x=x.npy", "--config.y=y.npz", "--workdir=run"]
    assert main([*command, "--config.k=5000"]) == 2
    request.getfixturevalue("asked")
    assert main(command) == 0


@pytest.mark.slow
def test_labels_instead_of_y(folder, capsys):
    """Two classes three standard deviations either side of 0: a classifier hardly errs, and H(C) = 1 bit."""
    labels = np.repeat([0.0, 1.0], 300)
    h = np.random.default_rng(0).normal(6 * labels[:, None] - 3, 1.0, (600, 2))
    np.savez("h.npz", x=h, labels=labels)
    assert main([f"{CONFIG}:seeds=2,steps=100", "--config.x=h.npz", "--config.labels=h.npz", "--workdir=run"]) == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["truth"]["entropy_bits"] == 1.0
    assert report["estimates"] == {"labels": report["estimate"]}
    expected = mi.usable_information(h, labels).to_dict()
    assert report["usable"]["rows"] == {"x": len(expected["rows"])}
    for name in ("value_bits", "lower_bits", "upper_bits", "sentence", "warnings"):
        assert report["usable"][name] == expected[name]
    with (folder / "run" / "evaluate" / "pvi.csv").open() as file:
        assert [int(line.split(",")[1]) for line in list(file)[1:]] == expected["rows"]
    assert (folder / "run" / "figures" / "usable.png").exists()
    assert 0.4 < report["estimate"]["lower_bits"] <= report["estimate"]["value_bits"]
    assert report["estimate"]["lower_bits"] <= report["estimate"]["upper_bits"] == 1.0
    assert report["estimate"]["info_nce"]["bits"] == pytest.approx(1, abs=0.1)
    assert len(report["estimate"]["seed_bits"]) == 2
    output = capsys.readouterr().out
    assert "H(C) = 1.000" in output
    assert f"[{np.floor(1000 * report['estimate']['lower_bits']) / 1000:.3f}, 1.000]" in output
    assert "the chosen one" in Path("run/report.md").read_text()


def make_report(*estimates: Estimate) -> ArrayReport:
    results = {
        estimate.name: ArrayEntry(
            **vars(estimate),
            value_nats=estimate.value_nats,
            mean_bits=estimate.mean_bits,
            spread_bits=estimate.spread_bits,
            sentence="So.",
        )
        for estimate in estimates
    }
    run = Run(
        seconds={"estimate": 9.87}, devices="1 × cpu", peak_memory_gib=1.0, versions={"jax": "0"}, revision=None,
        stages={}, config={"kind": "arrays"}, seed=7,
    )  # fmt: skip
    itself = results[estimates[0].name]
    return ArrayReport(name="arrays", workdir="runs/arrays", truth=Truth(), estimate=itself, estimates=results, run=run)


@pytest.mark.parametrize(
    "form", [partial(report.markdown, form=report.ARRAY_FORM), partial(report.table, form=report.ARRAY_FORM)]
)
def test_every_number_stands_under_its_name(form):
    shown = [
        " ".join(line.replace("|", " ").split()) for line in form(make_report(make_estimate(), ANCHOR)).splitlines()
    ]
    for line in (
        "estimator kind bits interval certified InfoNCE ceiling mean ± std",
        "info_nce_symmetric lower bound 1.621 [1.501, 1.742] ≥ 1.423 – 6.322 1.610 ± 0.020",
        "anchor plug-in 1.900 – – 1.600 – 1.610 ± 0.020",
    ):
        assert line in shown
    text = " ".join(shown)
    for phrase in (
        "K = 80 of 80 test pairs",
        "the interval is jackknife over folds of pairs",
        "each at 95 %",
        "the same critics",
        "3 seeds",
        "3 test pairs repeat",
    ):
        assert phrase in text


def test_columns_without_a_number_are_left_out():
    text = report.table(make_report(make_estimate(seed_bits=(1.6,))), report.ARRAY_FORM)
    assert "InfoNCE" not in text.replace("info_nce", "")
    assert "±" not in text
    assert max(map(len, report.table(make_report(make_estimate(), ANCHOR), report.ARRAY_FORM).splitlines())) <= 100


DRAWN = {
    "one": [make_estimate()],
    "labels": [make_estimate("labels", upper_bits=1.7)],
    "two": [make_estimate(), ANCHOR],
    "ten": [make_estimate(f"info_nce_{i}") for i in range(5)] + [ANCHOR] * 5,
    "wild": [make_estimate(interval=WILD), make_estimate("mine", value_bits=np.nan)],
}


@pytest.mark.parametrize("name", DRAWN)
def test_words_of_the_figure_are_apart(name):
    figure = picture.estimators(DRAWN[name], true_bits=1.68)
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in visible_words(figure)}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    for text, other in itertools.combinations(boxes, 2):
        assert not boxes[text].overlaps(boxes[other]), (text, other)


def test_the_figure_shows_the_numbers():
    estimates = [
        make_estimate(upper_bits=1.7, interval=Interval(1.4, 1.7416, FOLDS)),
        ANCHOR,
        make_estimate("nwj", value_bits=1.55, interval=WILD),
    ]
    figure = picture.estimators(estimates, true_bits=1.68)
    (ax,) = figure.axes
    drawn = by_label(ax)
    bounds, others = drawn["lower bound, interval"], drawn["not a bound, interval"]
    np.testing.assert_allclose(bounds.lines[0].get_xydata(), [(1.6214, 0), (1.55, 2)])
    np.testing.assert_allclose(others.lines[0].get_xydata(), [(1.9004, 1)])
    assert to_hex(bounds.lines[0].get_color()) != to_hex(others.lines[0].get_color())
    np.testing.assert_allclose(bounds.lines[2][0].get_segments()[0], [(1.4, 0), (1.7416, 0)])
    band, no_end = drawn["certified at 95 %: MI is in here"]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((1.4239, 1.7))
    assert no_end.get_x() + no_end.get_width() == pytest.approx(ax.get_xlim()[1])
    np.testing.assert_allclose(drawn["InfoNCE of the same critic"].get_xdata(), [np.nan, 1.6001, np.nan])
    np.testing.assert_allclose(sorted(set(drawn["each seed"].get_xdata())), [1.59, 1.61, 1.63])
    assert drawn["true MI = 1.680 bits"].get_xdata()[0] == 1.68
    assert (
        -1 < ax.get_xlim()[0] < ax.get_xlim()[1] < 3
    )  # the wild interval leaves the others to be seen; the ceilings are outside
    assert {"nwj\nlower bound", "anchor\nplug-in", "1.621\n≥ 1.423\nceiling 6.3", "1.900"} <= set(texts(figure))
    assert "ceiling" not in drawn
    assert "ceiling" in by_label(picture.estimators([make_estimate(ceiling_bits=1.63)]).axes[0])
