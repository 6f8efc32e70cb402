"""What `mi` returns: sentences, dictionaries for JSON, tables for notebooks and figures of the same numbers."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from mirigor_jax.mi.results import Comparison, Estimate, Estimates, LabelEstimate

ESTIMATE = Estimate(
    name="smile", value_bits=1.5, kind="not a bound", k=80, ceiling_bits=np.inf, t_lower_bits=-np.inf,
    t_upper_bits=np.inf, lower_bits=None, upper_bits=None, confidence=0.95, certificate=None, verdict="not-a-bound",
    pairs=80, seed_bits=(1.4, 1.7), bound_bits=1.25, note="x", warnings=("a < b & c",),
)  # fmt: skip
BOUND = dataclasses.replace(
    ESTIMATE, name="nwj", kind="lower bound", lower_bits=1.23456, certificate="infonce", verdict="bounded",
    t_lower_bits=1.25, t_upper_bits=1.75, warnings=(),
)  # fmt: skip
LABELS = LabelEstimate(
    **vars(BOUND) | {"upper_bits": 2.0}, entropy_bits=2.0, certificates={"infonce": {"lower_bits": 1.23456, "k": 8}}
)
OTHER = dataclasses.replace(LABELS, value_bits=1.0, t_lower_bits=0.75, t_upper_bits=1.25)
COMPARISON = Comparison(LABELS, OTHER, 0.5, 0.25, 0.75, 80, 1.9, 0.95)
RESULTS = {
    "estimate": ESTIMATE,
    "bound": BOUND,
    "labels": LABELS,
    "comparison": COMPARISON,
    "estimates": Estimates(((ESTIMATE, BOUND), (BOUND, ESTIMATE))),
}


class Table(HTMLParser):
    """The text of an HTML table's cells, row by row, and of the paragraphs; every tag must be closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.rows, self.notes = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.notes.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "p":
            self.notes[-1] += data
        else:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_frozen_and_has_its_four_forms(name):
    result = RESULTS[name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.k = 1
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    rows = Table(result._repr_html_()).rows
    assert len({len(row) for row in rows}) == 1
    assert isinstance(result.figure(), Figure)
    assert re.search(r"bits", str(result))


@pytest.mark.parametrize("kind", [Estimate, LabelEstimate, Comparison])
def test_every_field_is_explained(kind):
    text = " ".join(base.__doc__ for base in kind.__mro__ if base.__module__ == kind.__module__)
    for field in dataclasses.fields(kind):
        assert re.search(rf"\b{field.name}\b[^:.]*: ", text), field.name


def test_a_dictionary_has_the_fields_what_follows_from_them_and_null_for_what_is_infinite():
    result = ESTIMATE.to_dict()
    assert result.keys() == vars(ESTIMATE).keys() | {"value_nats", "mean_bits", "spread_bits", "sentence"}
    assert (result["ceiling_bits"], result["t_lower_bits"], result["lower_bits"]) == (None, None, None)
    assert (result["seed_bits"], result["sentence"]) == ([1.4, 1.7], str(ESTIMATE))
    assert result["value_nats"] == pytest.approx(1.5 * np.log(2))
    assert LABELS.to_dict().keys() - BOUND.to_dict().keys() == {"entropy_bits", "certificates", "nmi", "nmi_lower"}
    of_both = COMPARISON.to_dict()
    assert (of_both["a"], of_both["larger"], of_both["saturated"]) == (LABELS.to_dict(), "A", False)


def test_a_table_has_the_numbers_under_their_headings():
    table = Table(BOUND._repr_html_())
    row = dict(zip(*table.rows, strict=True))
    assert (row["estimator"], row["kind"], row["bits"], row["K"]) == ("nwj", "lower bound", "1.500", "80")
    assert (row["t-interval, 95 %"], row["certified, 95 %"]) == ("[1.250, 1.750]", "≥ 1.234")  # rounded down
    assert table.notes == [str(BOUND)]
    assert Table(ESTIMATE._repr_html_()).notes[1] == "a < b & c"  # escaped
    row = dict(zip(*Table(LABELS._repr_html_()).rows, strict=True))
    assert (row["certified, 95 %"], row["NMI"]) == ("[1.234, 2.000]", "0.750, ≥ 0.617")
    header, a, b, difference = Table(COMPARISON._repr_html_()).rows
    assert [row[header.index("bits")] for row in (a, b, difference)] == ["1.500", "1.000", "0.500"]


def test_estimates_are_rows_of_data_sets_by_estimators():
    estimates = RESULTS["estimates"]
    assert (len(estimates), estimates[0][1], estimates[1][1]) == (2, BOUND, ESTIMATE)
    assert [result.name for row in estimates for result in row] == ["smile", "nwj", "nwj", "smile"]
    assert str(estimates).splitlines()[2] == f"data set 1: {BOUND}"
    assert str(Estimates(((BOUND,),))) == str(BOUND)
    assert estimates.to_dict()["estimates"][1][0] == BOUND.to_dict()
    assert [row[1] for row in Table(estimates._repr_html_()).rows[1:]] == ["smile", "nwj", "nwj", "smile"]


def test_the_figure_of_a_comparison_has_both_encoders():
    (axes,) = COMPARISON.figure().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A\nlower bound", "B\nlower bound"]
