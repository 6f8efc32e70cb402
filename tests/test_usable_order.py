"""mi.compare_many and the order in mi.compare: the bet behind it, its words, and its refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_usable import CLASSES, clusters

from mirigor_jax import mi
from mirigor_jax.errors import InputError
from mirigor_jax.mi.families import BoundedLinear
from mirigor_jax.mi.order import Bet
from mirigor_jax.mi.usable import Division, fit_on, read_unseen
from mirigor_jax.mi.usable_fit import bends_of, minorant

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
    assert order.figure().axes[0].get_yticklabels()[0].get_text() == "noisy"


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
    for share in (0.01, 0.03, 0.06, 0.1, 0.2):
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
