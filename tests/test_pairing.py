import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency, chisquare

from mirigor_jax.data import pairing as pairings
from mirigor_jax.data.attributes import AttributeSpace, uniform
from mirigor_jax.data.augmentation import Augmentation
from mirigor_jax.data.channels import ChannelPairing
from mirigor_jax.data.pairing import parse, same_class
from mirigor_jax.errors import InputError

CDP = uniform(("color", "digit", "position"), (4, 4, 4))
UNEQUAL = ChannelPairing(("a", "b", "c", "d"), (2, 3, 5, 4), (0.11, 0.3, 0.0, 0.75))


def draw(pairing, n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, pairing.sizes, (n, len(pairing.sizes)), dtype=np.int32)
    return x, pairing.partner(x, rng.random(x.shape))


def information_bits(joint):
    """Mutual information of a table of probabilities, in bits."""
    p, q = joint.sum(1), joint.sum(0)
    cells = itertools.product(range(len(p)), range(len(q)))
    return sum(joint[i, j] * math.log2(joint[i, j] / (p[i] * q[j])) for i, j in cells if joint[i, j] > 0)


@pytest.mark.parametrize(
    ("text", "shared", "bits"),
    [
        ("all", ("color", "digit", "position"), 6),
        ("none", (), 0),
        ("digit", ("digit",), 2),
        ("position+color", ("color", "position"), 4),
    ],
)
def test_a_shared_subset_shares_its_entropy(text, shared, bits):
    pairing = parse(text, CDP)
    assert pairing.shared == shared
    assert pairing.exact
    assert pairing.entropy_bits == pairing.mutual_information_bits == bits
    assert pairing.num_classes == 2**bits


def test_channel_information_is_that_of_the_joint_law():
    joint = UNEQUAL.joint()
    assert joint.shape == (30, 30) == (UNEQUAL.num_classes,) * 2
    np.testing.assert_allclose(joint.sum(0), 1 / 30, rtol=1e-12)
    np.testing.assert_allclose(joint.sum(1), 1 / 30, rtol=1e-12)
    assert UNEQUAL.mutual_information_bits == pytest.approx(information_bits(joint), abs=1e-12)
    assert UNEQUAL.entropy_bits == pytest.approx(math.log2(30), abs=1e-12)
    assert not UNEQUAL.exact
    assert UNEQUAL.shared == ("a", "b", "c")


def test_binary_symmetric_channel_of_the_textbooks():
    assert parse("a", uniform(["a"], [2]), epsilon={"a": 0.11}).mutual_information_bits == pytest.approx(
        0.50008, abs=1e-5
    )


def test_nothing_shared_is_one_class():
    pairing = parse("none", CDP)
    x, _ = draw(pairing, 5)
    assert pairing.joint().tolist() == [[1.0]]
    assert pairing.classes(x).tolist() == [0] * 5


def test_classes_count_every_combination_once():
    every = np.array(list(itertools.product(*map(range, UNEQUAL.sizes))), np.int32)
    classes = UNEQUAL.classes(every)
    assert np.bincount(classes).tolist() == [4] * 30  # "d" is not shared
    assert len(np.unique(np.c_[classes, every[:, 3]], axis=0)) == len(every)


def test_classes_share_their_entropy_as_frequent_as_they_are():
    counts = [8, 1, 3, 2, 4, 2]  # of class 2·c + a
    frequencies = np.array(counts) / 20
    rows = np.repeat([[a, b, c] for c in range(3) for a, b in ((0, 3), (1, 0))], counts, axis=0).astype(np.int32)
    space = AttributeSpace("set", ("a", "b", "c"), (("a0", "a1"), tuple("0123"), tuple("xyz")), rows)
    pairing = parse("c+a", space)
    assert pairing.num_classes == 6
    np.testing.assert_allclose(pairing.common_frequencies, frequencies, rtol=1e-12)
    assert pairing.upper_bits == pytest.approx(information_bits(pairing.joint()), abs=1e-12)
    assert pairing.entropy_bits == pytest.approx(-sum(p * math.log2(p) for p in frequencies), abs=1e-12)
    every = np.array(list(itertools.product(range(2), range(4), range(3))), np.int32)
    assert pairing.classes(every).tolist() == [2 * c + a for a, _, c in every.tolist()]


def test_laws_of_classes_are_those_of_the_joint_law():
    for pairing in (UNEQUAL, parse("color+digit", CDP), parse("none", CDP)):
        np.testing.assert_allclose(pairing.frequencies, pairing.joint().sum(axis=1), rtol=1e-12)


def test_drawn_pairs_follow_the_joint_law():
    n = 300_000
    x, y = draw(UNEQUAL, n)
    observed = np.zeros((30, 30))
    np.add.at(observed, (UNEQUAL.classes(x), UNEQUAL.classes(y)), 1)
    possible = UNEQUAL.joint() > 0
    assert observed[~possible].sum() == 0
    assert chisquare(observed[possible], n * UNEQUAL.joint()[possible]).pvalue > 0.01
    for a, (m, epsilon) in enumerate(zip(UNEQUAL.sizes, UNEQUAL.epsilon, strict=True)):
        assert chisquare(np.bincount(y[:, a], minlength=m)).pvalue > 0.01
        assert binomtest(int((x[:, a] != y[:, a]).sum()), n, epsilon).pvalue > 0.01


def test_unshared_attributes_are_independent_and_shared_ones_equal():
    x, y = draw(parse("digit", CDP), 50_000)
    assert (x[:, 1] == y[:, 1]).all()
    for a, b in [(0, 0), (2, 2), (0, 1), (1, 2), (2, 0)]:
        assert chi2_contingency(np.histogram2d(x[:, a], y[:, b], bins=4)[0]).pvalue > 0.01


def test_extreme_uniforms_stay_in_the_alphabet():
    x = np.zeros((2, 4), np.int32)
    uniforms = np.array([[0.0] * 4, [1 - 2**-53] * 4])
    assert UNEQUAL.partner(x, uniforms).tolist() == [[1, 2, 0, 3], [0, 0, 0, 0]]
    assert UNEQUAL.partner(x, uniforms).dtype == np.int32


def test_alphabets_of_one_value():
    pairing = parse("all", uniform(["a", "b"], [1, 4]))
    x, y = draw(pairing, 10)
    assert pairing.mutual_information_bits == 2
    assert pairing.shared == ("b",)
    assert (x == y).all()


def test_asking_for_information_gives_it():
    asked = np.linspace(0, 6, 25)
    pairings = [parse("all", CDP, mi_bits=bits) for bits in asked]
    np.testing.assert_allclose([p.mutual_information_bits for p in pairings], asked, atol=1e-9)
    assert all(len(set(p.epsilon)) == 1 for p in pairings)
    assert (np.diff([p.epsilon[0] for p in pairings]) < 0).all()
    assert pairings[0].shared == ()
    assert pairings[-1].exact


@pytest.mark.parametrize("bits", [0.0, 1e-6, 0.3, 3.0, math.log2(2) + math.log2(3) + math.log2(16)])
def test_asking_for_information_of_unequal_alphabets(bits):
    pairing = parse("a+b+d", uniform("abcd", [2, 3, 5, 16]), mi_bits=bits)
    assert pairing.mutual_information_bits == pytest.approx(bits, abs=1e-9)
    redrawn = [epsilon * m / (m - 1) for epsilon, m in zip(pairing.epsilon, pairing.sizes, strict=True)]
    np.testing.assert_allclose(redrawn, [redrawn[0], redrawn[0], 1, redrawn[0]], atol=1e-12)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("colors", {}, "unknown attribute 'colors'.*color.*digit.*position"),
        ("color+", {}, "unknown attribute ''"),
        ("all", {"mi_bits": 6.1}, r"mi=6.1 .*'all' can share 0 to 6"),
        ("color+digit", {"mi_bits": 4.5}, r"mi=4.5 .*can share 0 to 4"),
        ("all", {"mi_bits": -0.1}, "mi=-0.1"),
        ("all", {"mi_bits": math.nan}, "mi=nan"),
        ("all", {"epsilon": {"shape": 0.1}}, "unknown attribute 'shape'"),
        ("all", {"epsilon": {"color": 0.8}}, r"'color' is 0.8, expected 0 to 0.75.*rises again"),
        ("all", {"epsilon": {"color": -0.1}}, "'color' is -0.1"),
        ("digit", {"epsilon": {"color": 0.1}}, "'digit' does not share it"),
        ("all", {"epsilon": {"color": 0.1}, "mi_bits": 3.0}, "mi=3 and epsilon of color"),
    ],
)
def test_bad_requests_are_explained(text, options, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text, CDP, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "options", "answers"),
    [
        ("all", {}, (6.0, 6.0, "posterior classifier infonce", False)),
        ("all", {"mi_bits": 3.3}, (3.3, 3.3, "posterior infonce", False)),
        ("none", {}, (0.0, 0.0, "", False)),
        ("class", {}, (6.0, 6.0, "posterior classifier infonce", False)),
        ("color+simclr", {}, (None, 2.0, "posterior classifier infonce", False)),
        ("simclr", {}, (None, None, "infonce", True)),
    ],
)
def test_a_pairing_answers_what_is_known_of_it(text, options, answers):
    pairing = parse(text, CDP, **options)
    truth, upper, certificates, in_step = answers
    assert (pairing.truth_bits, pairing.upper_bits) == (pytest.approx(truth), pytest.approx(upper))
    assert (pairing.certificates, pairing.needs_encoder_in_step) == (tuple(certificates.split()), in_step)
    assert (pairing.augmentation is not None) == text.endswith("simclr")
    assert isinstance(pairing, pairings.Pairing)
    assert (pairing.by_class is None) == in_step
    assert in_step or isinstance(pairing.by_class, pairings.ByClass)


def test_the_truth_of_images_that_need_not_show_their_class_is_unknown():
    rows = np.repeat(np.arange(4), 5)[:, None].astype(np.int32)
    pairing = parse("class", AttributeSpace("set", ("class",), (tuple("abcd"),), rows))
    assert (pairing.truth_bits, pairing.upper_bits) == (None, 2.0)


def test_simclr_augments_what_stands_before_it_and_shares_the_image_alone():
    strengths = Augmentation(crop=0.5, flip=0.0)
    for text, shared in (("simclr", ("the image",)), ("color+digit+simclr", ("color", "digit"))):
        pairing = parse(text, CDP, augmentation=strengths)
        assert (pairing.shared, pairing.augmentation) == (shared, strengths)
    assert parse("simclr", CDP).augmentation == Augmentation()
    assert parse("color", CDP, augmentation=strengths).augmentation is None
    assert [pairings.shares_image(text) for text in ("simclr", "color+simclr", "all")] == [True, False, False]


def halves(space):
    """The pairing whose views share the half of their colors, and no digit or position."""
    return same_class(space, lambda attributes: attributes[:, 0] // 2, 2, shared=("half of the colors",))


def test_a_pairing_of_one_s_own_is_one_entry(monkeypatch):
    """On generated images its views are independent given the class, and each view is distributed as any image."""
    monkeypatch.setitem(pairings.PAIRINGS, "halves", halves)
    pairing = parse("halves", CDP)
    assert (pairing.truth_bits, pairing.shared) == (1.0, ("half of the colors",))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (40_000, 3), dtype=np.int32)
    y = pairing.partner(x, rng.random(x.shape))
    assert (x[:, 0] // 2 == y[:, 0] // 2).all()
    expected = np.where(np.equal.outer([0, 0, 1, 1], [0, 0, 1, 1]), 5000, 0)
    observed = np.histogram2d(x[:, 0], y[:, 0], bins=4)[0]
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 0.01
    assert chisquare(np.bincount(y @ [16, 4, 1], minlength=64)).pvalue > 0.01
    assert parse("halves+simclr", CDP).truth_bits is None
    with pytest.raises(InputError, match="'halves' has no use for mi_bits and epsilon"):
        parse("halves", CDP, mi_bits=0.5)
