"""mi.compare_many and the order in mi.compare: the bet behind it, its words, and its refusals."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from test_usable import CLASSES, clusters

from mirigor_jax import mi
from mirigor_jax.errors import InputError
from mirigor_jax.mi.confidence import Interval
from mirigor_jax.mi.families import BoundedLinear
from mirigor_jax.mi.order import Bet
from mirigor_jax.mi.usable import Division, fit_on, read_unseen
from mirigor_jax.mi.usable_fit import bends_of, minorant
from mirigor_jax.mi.usable_results import PairOrder, UsableInformation, UsableOrder

H = clusters(CLASSES, 1)
NOISY = H + 2 * np.random.default_rng(7).normal(size=H.shape)


@pytest.fixture(scope="module")
def order():
    return mi.compare_many({"clear": H, "noisy": NOISY, "again": H.copy()}, CLASSES)


def test_the_clear_encoder_is_proven_to_hold_more(order):
    assert [(pair.a, pair.b, pair.larger) for pair in order.pairs] == [
        ("clear", "noisy", "clear"),
        ("clear", "again", None),
        ("noisy", "again", "again"),
    ]
    first = order.pair("noisy", "clear")
    assert first.at_twice_the_norm
    assert first.interval.lower_bits < first.difference_bits < first.interval.upper_bits
    assert first.difference_bits == pytest.approx(
        order.encoders["clear"].value_bits - order.encoders["noisy"].value_bits, abs=1e-9
    )
    assert order.encoders["clear"].lower_bits == mi.usable_information(H, CLASSES).lower_bits


def test_an_encoder_and_its_copy_are_not_told_apart(order):
    same = order.pair("clear", "again")
    assert (same.difference_bits, same.rows_needed, same.at_twice_the_norm) == (0, None, False)
    assert same.verdict == "clear and again are not told apart"


def test_its_words_are_those_of_its_pairs(order):
    text = str(order)
    for words in (
        "480 unseen rows, at 95 % confidence for all orders together",
        "certified: clear > noisy (clear - noisy = ",
        "clear and again are not told apart",
        f"noisy: ‖w_k‖ ≤ {order.encoders['noisy'].norm:.3g}",
    ):
        assert words in text
    known = json.loads(json.dumps(order.to_dict()))
    assert known["pairs"][0]["verdict"] == "certified: clear > noisy"
    assert known["encoders"]["noisy"]["value_bits"] == order.encoders["noisy"].value_bits
    assert "certified: again &gt; noisy" in order._repr_html_()
    assert [label.get_text() for label in order.figure().axes[0].get_yticklabels()] == ["clear", "again", "noisy"]


def test_a_bet_that_reaches_half_of_its_target_needs_twice_the_rows(monkeypatch):
    """The rule of thumb would say fewer rows than were read, because it knows nothing of the other's best probe."""
    monkeypatch.setattr(Bet, "_least_capital", lambda bet, *_: bet.target / 2)
    order = mi.compare_many({"clear": H, "noisy": NOISY}, CLASSES)
    [pair] = order.pairs
    assert (pair.larger, pair.rows_needed) == (None, 2 * order.rows)


def test_progress_counts_the_encoders_and_then_the_pairs():
    told = []
    mi.compare_many({"clear": H, "noisy": NOISY}, CLASSES, on_progress=lambda *now: told.append(now))
    assert [(step, steps) for step, steps, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0][2].startswith("clear: ")
    assert told[-1][2] == "certified: clear > noisy"


def of_values(values, *, told, twice):
    """An order of encoders with these values: differences above `told` are proven, those above `twice` also at twice
    the norm."""
    nothing = np.zeros(0)
    encoders = {
        name: UsableInformation(
            family="linear", value_bits=value, lower_bits=value - 0.0304, upper_bits=value + 0.0904, kl_upper_bits=3.0,
            confidence=0.95, entropy_bits=3.322, frequencies={}, norm=1.0 + at, reach=9.0, largest_loss_nats=30.0 + at,
            rows=nothing.astype(int), pointwise_bits=nothing, predicted=nothing, prediction_entropy_bits=nothing,
        )
        for at, (name, value) in enumerate(values.items())
    }  # fmt: skip
    pairs = []
    for a, b in combinations(values, 2):
        gap = values[a] - values[b]
        larger = None if abs(gap) <= told else a if gap > 0 else b
        needed = None if larger or gap == 0 else round(1000 * (told / abs(gap)) ** 2)
        pairs.append(PairOrder(a, b, gap, Interval(gap - 0.01, gap + 0.01, "rows"), larger, abs(gap) > twice, needed))
    return UsableOrder(encoders, tuple(pairs), 0.95, 1000)


@pytest.fixture(scope="module")
def twenty():
    """Ten steps of 0.1 bits, each of two encoders 0.03 bits apart. 0.05 bits are proven, 0.12 at twice the norm."""
    values = {f"e{at}{which}": 2.9 - 0.1 * at - 0.03 * (which == "y") for at in range(10) for which in "xy"}
    shuffled = np.random.default_rng(0).permutation(list(values))
    return of_values({str(name): values[name] for name in shuffled}, told=0.05, twice=0.12)


def test_the_sentence_of_twenty_encoders_counts_and_summarizes(twenty):
    text = str(twenty)
    # Of the differences of neighboring steps, 0.1, 0.1, 0.07 and 0.13, only the last is above 0.12.
    assert "for 180 of the 190 pairs of encoders it is certified which holds more, for 153 of them even if" in text
    assert "Level 1: e0x, e0y; level 2: e1x, e1y; " in text
    assert "10 pairs are not told apart; nearest to a proof are " in text
    assert text.count("(about 2,778 unseen rows needed)") == 3
    assert "The norms are 1 to 20; the largest possible log-loss of a row is 30 to 49 nats." in text
    assert len(text) < 1200


def test_the_levels_follow_the_proofs_alone():
    chain = of_values({"a": 2.0, "b": 1.96, "c": 1.92, "d": 1.88}, told=0.05, twice=1.0)
    assert chain.levels == (("a", "b"), ("c", "d"))  # b and c are not told apart, but a > c and b > d
    assert of_values({"a": 2.0, "b": 1.99}, told=0.05, twice=1.0).levels == (("a", "b"),)
    cycle = [PairOrder(a, b, 0.1, None, a, False, None) for a, b in (("a", "b"), ("b", "c"), ("c", "a"))]
    assert replace(of_values({"a": 2.0, "b": 1.96, "c": 1.92}, told=9, twice=9), pairs=tuple(cycle)).levels == (
        ("a", "b", "c"),
    )


def test_the_table_of_twenty_encoders_has_a_row_for_each(twenty):
    header, rows = twenty.table()
    assert [row[0] for row in rows[:4]] == ["e0x", "e0y", "e1x", "e1y"]
    first = dict(zip(header, rows[0], strict=True))
    assert [first[name] for name in ("usable bits", "at least, 95 %", "at most, 95 %")] == ["2.900", "2.869", "2.991"]
    assert [first[name] for name in ("level", "certified above", "certified below")] == ["1", "18", "0"]
    assert [row[-1] for row in rows[:3]] == ["e0y", "e0x", "e1y"]
    assert twenty._repr_html_().count("<tr>") == 21


def test_the_figure_of_twenty_encoders_marks_every_pair_once(twenty):
    ends, triangle = twenty.figure().axes
    assert [label.get_text() for label in ends.get_yticklabels()][:2] == ["e0x", "e0y"]
    marks = {line.get_label(): {tuple(map(int, at)) for at in line.get_xydata()} for line in triangle.lines}
    assert {name: len(at) for name, at in marks.items()} == {
        "certified, even if the column's probes\nmay have twice the norm": 153,
        "certified": 27,
        "not told apart": 10,
    }
    assert marks["not told apart"] == {(2 * at + 1, 2 * at) for at in range(10)}  # (column, row)
    assert len(set.union(*marks.values())) == 190


@pytest.mark.slow
def test_a_comparison_has_the_order_beside_the_difference_of_infonce():
    result = mi.compare(H, NOISY, CLASSES, steps=20, num_critics=1)
    assert result.usable.pair("A", "B").larger == "A"
    assert "certified: A > B" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["usable"]["pairs"][0]["larger"] == "A"


def test_the_capital_is_below_the_bet_that_it_stands_for():
    rng = np.random.default_rng(0)
    bets, largest_a, largest = np.exp(rng.uniform(-8, 2, 10_000)), *rng.uniform(0.1, 60, (2, 10_000))
    a, losses = rng.uniform(size=10_000) * largest_a, rng.uniform(size=10_000) * largest
    weight = rng.uniform(0.3, 3, 10_000)
    bet = np.minimum(bets, 0.9 / (weight * largest_a))
    scaled = bet * weight / (1 - bet * weight * a)
    gain = np.log1p(-bet * weight * a) + minorant(losses, scaled, bends_of(scaled, largest))[0]
    assert np.all(gain <= np.log1p(bet * weight * (losses - a)) + 1e-12)


def read_of(h, division, rows, *, norm=None):
    probe = fit_on(h, division, "linear")
    if norm is not None:
        family = replace(probe.family, norm=norm)
        weights = probe.weights * min(1, norm / np.linalg.norm(probe.weights, axis=0).max())
        probe = BoundedLinear(family, weights)
    return read_unseen(h, division, rows, probe, 0.95)


def test_a_norm_that_is_too_small_proves_anything_but_not_at_twice_the_norm():
    """The same encoder twice, but the second family's norm is far too small for it."""
    division = Division.of(CLASSES, False)
    classes = CLASSES[division.unseen]
    full = read_of(H, division, division.unseen)
    found = []
    for share in (0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        small = read_of(H, division, division.unseen, norm=share * full.probe.family.norm)
        proof = Bet.of(full, small, CLASSES[division.validation], classes, 0.025).proof(full, small, classes)
        found.append((proof.proven, proof.at_twice_the_norm))
    assert found[0] == (True, True)
    assert (True, False) in found
    assert found[-1] == (False, False)
    assert (False, True) not in found


def test_rows_that_are_dependent_or_seen_prove_no_order():
    walk = np.cumsum(np.random.default_rng(0).normal(size=(800, 4)), axis=0)
    classes = np.sort(CLASSES)
    dependent = mi.compare_many({"A": clusters(classes, 1), "B": walk}, classes)
    seen = mi.compare_many({"A": H, "B": NOISY}, CLASSES, seen=True)
    for result, reason in ((dependent, "the ends are withheld"), (seen, "the encoder has seen all rows")):
        assert [(pair.larger, pair.interval) for pair in result.pairs] == [(None, None)]
        assert reason in str(result)
        assert result.figure().axes


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ({"A": H}, "encoders holds 1: expected two or more, by name"),
        ({"A": H, "B": H[:-1]}, "h has 799 rows and labels 800: expected one label a row"),
    ],
)
def test_a_bad_argument_is_one_line(encoders, message):
    with pytest.raises(InputError) as error:
        mi.compare_many(encoders, CLASSES)
    assert str(error.value).startswith(message)
