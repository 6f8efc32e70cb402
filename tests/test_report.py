"""Every number of a run reaches the reader with its unit, and the files survive a crash."""

import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small import estimate_entry, image_report

from mirigor_jax.errors import InputError
from mirigor_jax.mi.results import Curve
from mirigor_jax.runs import report, schema
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.schema import EstimateEntry, History, ImageReport, Truth


def make_report(**changes) -> ImageReport:
    """A run on all three attributes, with a second estimate of the digit. The changes apply to both estimates."""
    entry = estimate_entry(**changes)
    own = {"name": "digit", "value_bits": 1.9902, "statistic": "class posterior", "info_nce_bits": 1.9713}
    digit = estimate_entry(**changes | own)
    return image_report(estimates={"all": entry, "digit": digit})


def lines(text: str) -> list[str]:
    """Lines without Markdown's bars and the tables' alignment. A wrapped line is joined to the line before it."""
    joined = []
    for line in text.replace("|", " ").splitlines():
        if line.startswith(" " * 20) and joined:
            joined[-1] += line
        else:
            joined.append(line)
    return [" ".join(line.split()) for line in joined]


FORM = report.IMAGE_FORM
BOTH = pytest.mark.parametrize("form", [partial(report.markdown, form=FORM), partial(report.table, form=FORM)])


@BOTH
def test_every_number_has_its_unit_and_its_kind(form):
    shown = lines(form(make_report()))
    for expected in (
        "H(C) 6.000 bits entropy of the class (color, digit, position)",
        "true MI, I(X;Y) 3.300 bits exact; no encoder can exceed it",
        "in-training MI 5.790 bits not a bound; K = 64, ceiling 6.989 bits",
        "post-training MI, NT-Xent estimate 6.001 bits not a bound; K = 256, ceiling 8.997 bits",
        "post-training MI, InfoNCE 5.971 bits lower bound; K = 2048, ceiling 11.000 bits",
        "I(h_X;h_Y), estimate 5.987 bits lower bound: classifier",
        "its interval [5.956, 5.996] bits Clopper-Pearson of the classifier's errors, 95 %",
        "I(h_X;h_Y) lies in [5.962, 6.000] bits certified; classifier certificate at 95 %",
        "estimate digit 1.990 bits lower bound, class posterior; in [5.962, 6.000] bits at 95 %: certified",
        "linear accuracy, color 100.00 % on test images",
        "linear accuracy, digit 99.95 % on test images",
        "linear accuracy, all 50.00 % on test images",
    ):
        assert expected in shown
    assert not any(line.startswith("estimate all") for line in shown)  # the run's own is not listed twice
    assert any("time: train 72.0 s, encode 20.1 s, total 92.2 s" in line for line in shown)


@BOTH
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"verdict": "bounded", "certificate": "posterior", "lower_bits": 2.9713, "confidence": 0.9},
            "I(h_X;h_Y) lies in [2.971, 6.000] bits bounded; posterior certificate at 90 %",
        ),
        (
            {"verdict": "k-limited", "certificate": None, "lower_bits": None},
            "I(h_X;h_Y) lies in [–, 6.000] bits k-limited; no certificate",
        ),
        (
            {"verdict": "certified", "certificate": None, "lower_bits": 0.0, "upper_bits": -1e-9},
            "I(h_X;h_Y) lies in [0.000, 0.000] bits certified; needs no certificate",
        ),
        (
            {"verdict": "not-a-bound", "certificate": None, "lower_bits": None, "upper_bits": None},
            "I(h_X;h_Y) lies in [–, –] bits not-a-bound; no certificate",
        ),
    ],
)
def test_each_verdict(form, changes, expected):
    assert expected in lines(form(make_report(**changes)))


@BOTH
def test_what_was_not_measured_is_not_mentioned(form):
    entry = estimate_entry(interval=None, certificate=None)
    bare = image_report(estimates={"all": entry}, linear={}, in_training=None, truth=Truth())
    shown = "\n".join(line for line in lines(form(bare)) if not line.startswith("K "))
    for absent in (
        "in-training",
        "inear",
        "its interval",
        "H(C)",
        "true MI",
        "digit",
        "None",
        "nan",
        "inf]",
        ", estimate",
    ):
        assert absent not in shown


def test_table_fits_a_terminal_and_ends_with_the_path():
    run = replace(make_report().run, seconds={f"stage{i}": 1234.5 for i in range(9)})
    text = report.table(replace(make_report(), run=run), FORM)
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[-1] == "report: runs/cdp/report.md, report.html"


def test_markdown_opens_with_the_headline_and_lists_the_rest():
    text = report.markdown(make_report(), FORM)
    assert text.startswith("# cdp\n\n**I(h_X;h_Y) is at least 5.962 bits.**\n")
    assert "\n- More test images narrow it.\n- A larger K does not.\n" in text
    assert text.count("at least 5.962 bits") == 1
    shown = lines(text)
    assert "classifier, the chosen one 5.987 bits 5.962 bits 0 errors, 4,096 images" in shown
    assert "infonce 5.801 bits 5.700 bits 512 k, 16 batches" in shown
    assert "256 32 5.805 [5.801, 5.809] 5.811 8.000 6.001 [5.997, 6.005] 8.997" in shown
    assert "8192 1 5.981 – – 13.000 6.000 – 14.000" in shown
    facts = {
        "- seed: 7",
        "- revision: abc123",
        "- devices: 1 × cpu, 2 CPU cores; peak memory 1.26 GiB",
        "- versions: jax 0.10.2",
    }
    assert facts <= set(shown)
    assert "No certificate applies." in report.markdown(make_report(certificates={}), FORM)


def test_markdown_tables_have_as_many_cells_as_headings():
    tables = [block for block in report.markdown(make_report(), FORM).split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_json_is_strict_and_comes_back(tmp_path):
    odd = History((0, 1), (np.inf, np.float32(0.5)), (0.2, np.nan))
    fit = estimate_entry().fit
    written = make_report(max_info_nce_bits=np.nan, fit=replace(fit, history=odd))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    report.write(RunFolder(tmp_path), written, FORM)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    read = schema.read(ImageReport, json.loads(text, parse_constant=refuse))
    plain = replace(fit, history=History((0, 1), (None, 0.5), (0.2, None)))
    assert read == make_report(max_info_nce_bits=None, fit=plain)
    assert "1 × cpu" in text  # readable by people too, not escaped


def test_a_report_read_back_reads_the_same(tmp_path):
    first = make_report()
    report.write(RunFolder(tmp_path), first, FORM)
    read = schema.read(ImageReport, json.loads((tmp_path / "report.json").read_text(encoding="utf-8")))
    assert report.markdown(read, FORM) == report.markdown(first, FORM)
    assert report.table(read, FORM) == report.table(first, FORM)


@pytest.mark.parametrize(("file", "others"), [("report.md", ["report.json"]), ("report.json", [])])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, file, others):
    report.write(RunFolder(tmp_path), make_report(), FORM)
    old = {name: (tmp_path / name).read_text(encoding="utf-8") for name in (file, *others)}
    replace = os.replace

    def crash(source, target):
        if Path(target).name == file:
            raise OSError("killed")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="killed"):
        report.write(RunFolder(tmp_path), make_report(info_nce_bits=1.0), FORM)
    # report.json, which says that the run is finished, is never newer than report.md
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in (file, *others)} == old
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "report.html", "report.json", "report.md"]


def test_pictures_that_exist_are_shown(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("pairs.png", "bars.png", "own.png", "bars.pdf"):
        (tmp_path / "figures" / name).touch()
    report.write(RunFolder(tmp_path), make_report(), FORM)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert shown == ["figures/bars.png", "figures/pairs.png", "figures/own.png"]
    assert "Fig. 4" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"strict_bits": 5.9}, r"EstimateEntry is of another version \(strict_bits\); make it again"),
        (
            {"curve": {"nt_xent": {"k": 256}}},
            r"EstimateEntry.curve.nt_xent is of another version \(at, heading, kind\)",
        ),
        ({"fit": None}, "EstimateEntry.fit is None: expected the fields of Fit"),
    ],
)
def test_an_estimate_of_other_fields_is_named(change, expected):
    with pytest.raises(InputError, match=expected):
        schema.read(EstimateEntry, asdict(estimate_entry()) | change)


def test_another_estimator_has_its_own_row_and_columns_without_what_it_lacks():
    entry = estimate_entry()
    smile = Curve(
        "SMILE",
        "not a bound",
        2048,
        {k: replace(x, bits=4.25, ceiling_bits=None, max_bits=None) for k, x in entry.info_nce.at.items()},
    )
    text = report.markdown(image_report(estimates={"all": replace(entry, curve=entry.curve | {"smile": smile})}), FORM)
    assert "post-training MI, SMILE 4.250 bits not a bound; K = 2048" in lines(text)
    header = next(line for line in text.splitlines() if line.startswith("| K | batches |"))
    assert header.endswith("| SMILE, bits | SMILE: interval |")
