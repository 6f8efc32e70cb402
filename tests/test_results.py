"""The results of `mi`: sentences, dictionaries for JSON, tables for notebooks and figures show the same numbers."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from mirigor_jax.mi.certify import Certified
from mirigor_jax.mi.confidence import BATCHES, FOLDS, PAIRS, ROWS, Interval
from mirigor_jax.mi.results import Comparison, Estimate, Estimates, LabelEstimate, Reading
from mirigor_jax.mi.usable_results import PairOrder, UsableInformation, UsableOrder

AT_K = Reading(1.25, 10, Interval(1.125, 1.375, BATCHES), np.log2(80), 1.9)
ESTIMATE = Estimate(
    name="smile", value_bits=1.5, kind="not a bound", k=80, ceiling_bits=np.inf, interval=None, lower_bits=None,
    upper_bits=None, confidence=0.95, certificate=None, verdict="not-a-bound", pairs=80, seed_bits=(1.4, 1.7),
    info_nce=AT_K, note="x", warnings=("a < b & c",),
)  # fmt: skip
CERTIFIED = {"infonce": Certified(1.5, 1.23456, Interval(1.25, 1.75, BATCHES), {"k": 8, "batches": 10})}
BOUND = dataclasses.replace(
    ESTIMATE, name="nwj", kind="lower bound", lower_bits=1.23456, certificate="infonce", verdict="bounded",
    interval=Interval(1.25, 1.75, FOLDS), certificates=CERTIFIED, warnings=(),
)  # fmt: skip
LABELS = LabelEstimate(**vars(BOUND) | {"name": "InfoNCE on disjoint batches", "upper_bits": 2.0}, entropy_bits=2.0)
OTHER = dataclasses.replace(
    LABELS, value_bits=1.0, interval=Interval(0.75, 1.25, BATCHES), info_nce=dataclasses.replace(AT_K, bits=0.875)
)
USABLE = UsableInformation(
    family="linear", value_bits=1.25, lower_bits=1.0625, upper_bits=1.4375, kl_upper_bits=1.5, confidence=0.95,
    entropy_bits=2.0, frequencies={"a": 0.25, "b": 0.75}, norm=2.5, reach=1.5, largest_loss_nats=9.0,
    rows=np.arange(3), pointwise_bits=np.array([1.5, 1.0, -0.5]), predicted=np.array(["a", "b", "b"]),
    prediction_entropy_bits=np.array([0.5, 0.25, 1.0]), warnings=("c",),
)  # fmt: skip
TOLD = PairOrder("A", "B", 0.25, Interval(0.125, 0.375, ROWS), "A", at_twice_the_norm=True, rows_needed=None)
ORDER = UsableOrder({"A": USABLE, "B": dataclasses.replace(USABLE, value_bits=1.0)}, (TOLD,), 0.95, 3)
COMPARISON = Comparison(LABELS, OTHER, 0.375, Interval(0.25, 0.5, PAIRS), 80, 1.9, 0.95, ORDER)
RESULTS = {
    "estimate": ESTIMATE,
    "bound": BOUND,
    "labels": LABELS,
    "comparison": COMPARISON,
    "usable information": USABLE,
    "order": ORDER,
    "estimates": Estimates(((ESTIMATE, BOUND), (BOUND, ESTIMATE))),
}


class Table(HTMLParser):
    """Parses HTML to the text of a table's cells, row by row, and of paragraphs. Every tag must be closed."""

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


@pytest.mark.parametrize(
    "kind",
    [Estimate, LabelEstimate, Comparison, Reading, Certified, Interval, UsableInformation, PairOrder, UsableOrder],
)
def test_every_field_is_explained(kind):
    text = " ".join(base.__doc__ for base in kind.__mro__ if base.__module__ == kind.__module__)
    for field in dataclasses.fields(kind):
        assert re.search(rf"\b{field.name}\b[^:.]*: ", text), field.name


def test_a_dictionary_has_the_fields_what_follows_from_them_and_null_for_what_is_infinite():
    result = ESTIMATE.to_dict()
    assert result.keys() == vars(ESTIMATE).keys() | {"value_nats", "mean_bits", "spread_bits", "sentence"}
    assert (result["ceiling_bits"], result["interval"], result["lower_bits"]) == (None, None, None)
    assert result["info_nce"]["interval"] == {"lower_bits": 1.125, "upper_bits": 1.375, "kind": BATCHES}
    assert BOUND.to_dict()["certificates"] == {
        "infonce": {
            "value_bits": 1.5,
            "lower_bits": 1.23456,
            "interval": {"lower_bits": 1.25, "upper_bits": 1.75, "kind": BATCHES},
            "counts": {"k": 8, "batches": 10},
        }
    }
    assert (result["seed_bits"], result["sentence"]) == ([1.4, 1.7], ESTIMATE.sentence)
    assert result["value_nats"] == pytest.approx(1.5 * np.log(2))
    assert LABELS.to_dict().keys() - BOUND.to_dict().keys() == {"entropy_bits", "nmi", "nmi_lower"}
    of_both = COMPARISON.to_dict()
    assert (of_both["a"], of_both["larger"], of_both["saturated"]) == (LABELS.to_dict(), "A", False)


def test_a_table_has_the_numbers_under_their_headings():
    table = Table(BOUND._repr_html_())
    row = dict(zip(*table.rows, strict=True))
    assert (row["estimator"], row["kind"], row["bits"], row["K"]) == ("nwj", "lower bound", "1.500", "80")
    assert (row["interval, 95 %"], row["certified, 95 %"]) == ("[1.250, 1.750]", "≥ 1.234")  # rounded down
    assert (row["InfoNCE"], row["ceiling"]) == ("1.250", "–")
    assert table.notes == [str(BOUND)]
    table = Table(ESTIMATE._repr_html_())
    assert table.notes[1] == "a < b & c"  # escaped
    assert dict(zip(*table.rows, strict=True))["interval, 95 %"] == "–"
    row = dict(zip(*Table(LABELS._repr_html_()).rows, strict=True))
    assert (row["certified, 95 %"], row["NMI"]) == ("[1.234, 2.000]", "0.750, ≥ 0.617")
    header, a, b, difference = Table(COMPARISON._repr_html_()).rows
    assert [row[header.index("bits")] for row in (a, b)] == ["1.500", "1.000"]
    column = header.index("InfoNCE")
    assert [row[column] for row in (a, b, difference)] == ["1.250", "0.875", "0.375 [0.250, 0.500]"]
    assert "".join(difference[:column] + difference[column + 1 :]) == "A − B"


def test_a_sentence_says_what_the_value_is_and_what_stands_beside_it():
    assert str(BOUND).startswith("nwj at K = 80 reads 1.500 bits (lower bound), 1.550 ± 0.212 over 2 seeds")
    assert "InfoNCE at K = 80 1.250 bits; the MI is at least 1.234" in str(BOUND)
    assert str(LABELS).startswith("I_class by InfoNCE on disjoint batches reads 1.500 bits (lower bound)")
    assert str(dataclasses.replace(ESTIMATE, info_nce=None)).count("InfoNCE") == 0
    assert LABELS.info_nce_bits == 1.25


def test_a_comparison_is_of_infonce_at_one_k():
    assert COMPARISON.larger == "A"
    assert str(COMPARISON).startswith(
        "At K = 80 InfoNCE reads 1.250 bits for A and 0.875 for B: A's is larger (A - B = 0.375, paired 95 % interval "
        "[0.250, 0.500])."
    )
    for interval, larger in ((None, None), (Interval(-0.1, 0.5, PAIRS), None), (Interval(-0.5, -0.1, PAIRS), "B")):
        assert dataclasses.replace(COMPARISON, interval=interval).larger == larger
    assert "[–, –]" not in str(dataclasses.replace(COMPARISON, interval=None))
    assert dataclasses.replace(COMPARISON, max_info_nce_bits=0.9).saturated
    assert not dataclasses.replace(COMPARISON, max_info_nce_bits=0.95).saturated


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
