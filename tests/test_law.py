"""Dependent attributes: laws, their draws, and the exact MI of pairs against counts of draws."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import small
from scipy.stats import chisquare

from mirigor_jax import config_files, mi
from mirigor_jax.data import cdp, law, pairing
from mirigor_jax.data.attributes import AttributeSpace
from mirigor_jax.data.channels import Channel
from mirigor_jax.data.draws import random_words
from mirigor_jax.errors import InputError
from mirigor_jax.main import main
from mirigor_jax.mi.certify import Classified, HeldOut, shown
from mirigor_jax.mi.measure import partner_posterior
from mirigor_jax.runs import job

NAMES = ("color", "digit", "position")


def any_law(seed, sizes, zeros=0):
    rng = np.random.default_rng(seed)
    table = rng.exponential(size=sizes) ** 2
    table.ravel()[rng.choice(table.size, zeros, replace=False)] = 0
    return law.of_table(table, sizes)


# Law, text of the pairing, and channel.
CASES = {
    "linked and equal": (law.linked((4, 4, 4), 0, 1, 0.7), "all", None),
    "linked and noisy": (law.linked((4, 3, 2), 2, 0, 0.9), "color+position", Channel(epsilon={"color": 0.2})),
    "impossible values": (any_law(1, (4, 3, 4), zeros=20), "color+digit", None),
    "a dialed MI": (any_law(2, (2, 3, 4)), "all", Channel(mi_bits=1.25)),
    "one noisy attribute of a table": (any_law(3, (3, 2, 5)), "digit", Channel(epsilon={"digit": 0.3})),
}


def space(the_law):
    values = tuple(tuple(map(str, range(m))) for m in the_law.sizes)
    return AttributeSpace("images", NAMES, values, law=the_law, main=NAMES, is_generated=True, shows_attributes=True)


def paired(case):
    the_law, text, channel = CASES[case]
    options = {} if channel is None else channel._asdict()
    return pairing.parse(text, space(the_law), **options)


def drawn(pair, n, seed=0):
    """Attributes of both views of n pairs."""
    words = random_words(seed, 0, 0, 2 * n)
    x = pair.law.draw(words[::2, 0])
    return x, pair.partner(x, words[1::2, :3] / 2.0**32)


def counted_bits(x, y, sizes):
    """Plug-in MI of all attributes of both views, with Miller and Madow's correction."""
    x, y = (np.ravel_multi_index(view.T, sizes) for view in (x, y))
    counts = np.zeros((math.prod(sizes),) * 2)
    np.add.at(counts, (x, y), 1)

    def nats(p):
        p = p[p > 0]
        return -np.sum(p * np.log(p)) + (len(p) - 1) / (2 * len(y))

    p = counts / len(y)
    return (nats(p.sum(1)) + nats(p.sum(0)) - nats(p.ravel())) / math.log(2)


@pytest.mark.parametrize("case", CASES)
def test_the_exact_mi_is_that_of_drawn_pairs(case):
    pair = paired(case)
    assert pair.mutual_information_bits == pytest.approx(counted_bits(*drawn(pair, 200_000), pair.sizes), abs=0.01)
    joint = pair.joint()
    of_table = mi.discrete.of_table(joint)["I(X;Y)"].value_bits
    assert pair.mutual_information_bits == pytest.approx(of_table, abs=1e-9)
    assert joint.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(joint.sum(axis=1), pair.frequencies, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_classes_of_drawn_pairs_follow_the_joint(case):
    pair = paired(case)
    x, y = map(pair.classes, drawn(pair, 100_000, seed=1))
    joint = pair.joint()
    counts = np.zeros_like(joint)
    np.add.at(counts, (x, y), 1)
    assert not counts[joint == 0].any()
    assert chisquare(counts[joint > 0], 100_000 * joint[joint > 0]).pvalue > 1e-3


def test_a_dial_sets_the_mi_up_to_the_entropy():
    the_law = any_law(2, (2, 3, 4))
    entropy = pairing.parse("all", space(the_law)).entropy_bits
    p = np.array(the_law.probabilities)
    assert entropy == pytest.approx(-np.sum(p * np.log2(p)))
    for bits in (0.0, 0.3, 2.0, entropy):
        made = pairing.parse("all", space(the_law), mi_bits=bits)
        assert made.mutual_information_bits == pytest.approx(bits, abs=1e-9)
    with pytest.raises(InputError, match=r"can share 0 to 3\."):
        pairing.parse("all", space(the_law), mi_bits=entropy + 0.01)


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.35, 0.6, 0.85])
def test_all_of_the_entropy_can_be_asked_for(strength):
    """The entropy of a law is a rounded sum: 4 bits may be 4 - 1e-15."""
    linked = space(law.linked((4, 4, 4), 0, 1, strength))
    assert pairing.parse("color+position", linked, mi_bits=4.0).exact
    for seed in range(20):
        zeros = space(any_law(seed, (3, 3, 2), zeros=7))
        made = pairing.parse("all", zeros)
        assert pairing.parse("all", zeros, mi_bits=made.entropy_bits).exact


def test_an_attribute_at_its_limit_is_not_shared():
    linked = space(law.linked((4, 4, 4), 0, 1, 0.5))
    with pytest.raises(InputError, match=r"epsilon of 'color' is 0\.75, where it is not shared: leave it out"):
        pairing.parse("all", linked, epsilon={"color": 0.75})
    assert pairing.parse("all", space(any_law(0, (4, 4, 4))), mi_bits=0.0).mutual_information_bits == 0


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3), (2, 6), (5, 2)])
def test_linked_attributes_are_the_parts_of_one_number(sizes):
    u = (np.arange(600_000) + 0.5) / 600_000
    common = np.zeros(sizes)
    np.add.at(common, tuple((u * m).astype(int) for m in sizes), 1 / len(u))
    table = law.linked((*sizes, 3), 0, 1, 0.25).table
    np.testing.assert_allclose(table.sum(axis=2), 0.25 * common + 0.75 / common.size, atol=1e-9)
    np.testing.assert_allclose(table, table.sum(axis=2, keepdims=True) / 3 * np.ones(3), atol=1e-12)
    swapped = law.linked((3, *sizes), 2, 1, 0.25).table
    np.testing.assert_allclose(swapped, np.moveaxis(table, 2, 0), atol=1e-12)


@pytest.fixture(scope="module")
def plain():
    return cdp.make(size=32)


def test_images_show_the_law(tmp_path, plain):
    """The attributes of images follow the table; the sample's correlation is that of the dial."""
    images = replace(plain, law=law.parse("color+digit=0.8", plain.names, plain.sizes))
    attributes = images.images(0, 4000)["attributes"]
    assert np.mean(attributes[:, 0] == attributes[:, 1]) == pytest.approx(0.85, abs=0.02)
    assert chisquare(np.bincount(attributes[:, 2])).pvalue > 1e-3
    table = np.zeros((4, 4, 4))
    table[0, 1, 2], table[3, 3, 3] = 3, 1
    np.save(tmp_path / "law.npy", table)
    by_table = replace(plain, law=law.of_table(table, plain.sizes))
    for images in (by_table, cdp.make(size=32, law=f"npy:{tmp_path}/law.npy")):
        rows, counts = np.unique(images.images(0, 4000)["attributes"], axis=0, return_counts=True)
        np.testing.assert_array_equal(rows, [[0, 1, 2], [3, 3, 3]])
        assert counts[0] == pytest.approx(3000, abs=120)
    pair = pairing.parse("all", images.space)
    assert pair.entropy_bits == pytest.approx(0.8112781, abs=1e-7)
    assert pair.num_classes == 2
    batch = pair.draw(images, 0, 5, 0, 64)
    np.testing.assert_array_equal(batch["attributes_x"], batch["attributes_y"])
    assert (batch["x"] != batch["y"]).any()
    # A finite set of these images is paired by the same classes.
    finite = images.finite(0, 1, 500)
    x, y = pair.rows(finite.space)(random_words(0, 9, 0, 300))
    np.testing.assert_array_equal(finite.attributes[x], finite.attributes[y])


def test_independent_attributes_are_as_without_a_law(plain):
    uniform = cdp.make(size=32, law=np.ones((4, 4, 4)))
    for text, options in (("all", {}), ("color+digit", {"mi_bits": 1.5}), ("none", {}), ("position", {})):
        one, other = (pairing.parse(text, images.space, **options) for images in (plain, uniform))
        for name in ("num_classes", "entropy_bits", "mutual_information_bits", "certificates", "exact", "shared"):
            assert (
                getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9)
                if name.endswith("bits")
                else (getattr(one, name) == getattr(other, name))
            )
        np.testing.assert_allclose(one.joint(), other.joint(), atol=1e-12)


def test_class_probabilities_of_y_follow_bayes_rule():
    """p(h|c) is a table; the probe's posterior is at p(c) of x, and the partner's at p(c') of y."""
    rng = np.random.default_rng(0)
    given, joint = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(9)).reshape(3, 3)
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    q_x, q_y = ((p[:, None] * given / (p @ given)).T for p in (p_x, p_y))
    np.testing.assert_allclose(partner_posterior(q_x, joint), q_y)
    same = np.diag(p_x)
    assert partner_posterior(q_x, same) is q_x


@pytest.mark.slow
def test_certificates_hold_for_a_dependent_law_behind_channels():
    """400 certificates at 95 % of features whose MI is exact: classes that a lossy channel shows."""
    pair = pairing.parse("all", space(law.linked((3, 3, 2), 0, 1, 0.6)), epsilon={"color": 0.15, "position": 0.1})
    joint, rng = pair.joint(), np.random.default_rng(5)
    c = len(joint)
    given = 0.9 * np.eye(c) + 0.1 * rng.dirichlet(np.ones(c), c)  # p(h|class)
    truth = mi.discrete.of_table(given.T @ joint @ given)["I(X;Y)"].value_bits
    p_x = joint.sum(axis=1)
    posterior = (p_x[:, None] * given / (p_x @ given)).T  # of a perfect probe that was fitted on x
    draws = np.cumsum(given, axis=1)
    lower, value = {"posterior": [], "infonce": []}, []
    for seed in range(400):
        x, y = drawn(pair, 256, seed=seed + 10)
        c_x, c_y = pair.classes(x), pair.classes(y)
        h_x, h_y = (np.sum(rng.random(256)[:, None] > draws[view], axis=1).clip(max=c - 1) for view in (c_x, c_y))
        q_x, q_y = posterior[h_x], partner_posterior(posterior[h_y], joint)
        w = joint / np.outer(p_x, joint.sum(axis=0))
        scores = np.log(q_x @ w @ q_y.T).astype(np.float32).reshape(1, 256, 256)
        part = HeldOut(scores, Classified(q_x, q_y, c_x, c_y, h_x, c_x, False))
        for name, result in shown(part, part, joint, 0.95).items():
            lower[name].append(result.lower_bits)
            if name == "posterior":
                value.append(result.value_bits)
    for ends in lower.values():
        assert len(ends) == 400
        assert np.mean(np.array(ends) <= truth) >= 0.95
        assert np.mean(ends) > 0.4 * truth  # not vacuous
    assert np.mean(value) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform", r"expected independent, NAME\+NAME=STRENGTH"),
        ("color+digit", "expected independent"),
        ("color+shape=0.5", "unknown attribute 'shape'; name two of color, digit, position"),
        ("color+digit+position=0.5", "3 attributes are named"),
        ("color=0.5", "1 attributes are named"),
        ("color+color=0.5", "linked with itself"),
        ("color+digit=1.5", r"strength 1.5, expected 0 \(independent\) to 1"),
        ("color+digit=nan", "strength nan"),
        ("npy:nowhere.npy", "nowhere.npy cannot be read"),
    ],
)
def test_wrong_laws_are_told(text, message):
    with pytest.raises(InputError, match=message):
        cdp.make(size=32, law=text)


def test_wrong_tables_are_told(tmp_path):
    with pytest.raises(InputError, match=r"shape \(2, 2\), expected \(4, 4, 4\)"):
        law.of_table(np.ones((2, 2)), (4, 4, 4))
    for bad in (-1.0, np.nan, np.inf):
        table = np.ones((2, 2))
        table[0, 0] = bad
        with pytest.raises(InputError, match="expected probabilities"):
            law.of_table(table, (2, 2))
    with pytest.raises(InputError, match="expected probabilities"):
        law.of_table(np.zeros((2, 2)), (2, 2))
    for dtype in (str, complex):
        with pytest.raises(InputError, match="expected real numbers"):
            law.of_table(np.ones((2, 2)).astype(dtype), (2, 2))
    np.savez(tmp_path / "law.npz", a=np.ones((4, 4, 4)))
    with pytest.raises(InputError, match="is an archive; save the table alone"):
        cdp.make(size=32, law=f"npy:{tmp_path / 'law.npz'}")
    locked = space(law.linked((4, 4, 4), 0, 1, 1.0))
    with pytest.raises(InputError, match="impossible by the law"):
        pairing.parse("all", locked, mi_bits=1.0)
    assert pairing.parse("all", locked).entropy_bits == pytest.approx(4)
    noisy = pairing.parse("all", locked, epsilon={"position": 0.2})  # makes no impossible values
    assert noisy.num_classes == 16
    assert noisy.joint().sum() == pytest.approx(1)
    with pytest.raises(InputError, match="attributes of probability 0 by the law"):
        noisy.classes(np.array([[0, 1, 0]], np.int32))
    with pytest.raises(InputError, match="has a law of its attributes"):
        pairing.same_class(locked, lambda a: a[:, 0], 4, shared=("color",))


def parsed(*arguments):
    return job.parse(config_files.parse(small.cdp(*arguments))[0])


def test_a_run_knows_its_law(tmp_path):
    """The table's contents belong to the run, and a config whose classes may lack images to fit on is refused."""
    table = np.random.default_rng(0).exponential(size=(2, 4, 4)) + 0.2
    np.save(tmp_path / "law.npy", table)
    setting = f"--config.data.cdp.law=npy:{tmp_path}/law.npy"
    one = parsed(setting, "--config.data.epsilon.color=0.1")
    assert one.pairing.frequencies == pytest.approx(table.sum(axis=(1, 2)) / table.sum())
    np.save(tmp_path / "law.npy", table[::-1])
    other = parsed(setting, "--config.data.epsilon.color=0.1")
    assert one.config.sha256["law"] != other.config.sha256["law"]
    assert "law" not in parsed().config.get("sha256", {})
    with pytest.raises(InputError, match=r"the rarest of 8 classes .* features.fit=512 images; give"):
        parsed("--config.data.cdp.law=color+digit=0.97", "--config.data.pairing=color+digit")


@pytest.mark.slow
def test_a_run_on_dependent_attributes_behind_a_channel(tmp_path):
    """The views' class frequencies differ, and the certificate stays below the exact truth."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "law.npy", rng.exponential(size=(2, 4, 4)) * np.array([[[4.0]], [[1.0]]]) + 0.05)
    command = small.cdp(
        f"--config.data.cdp.law=npy:{tmp_path}/law.npy", "--config.data.epsilon.color=0.05",
        "--config.features.test=1024", "--config.train.steps=20", f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert main(command) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    table = np.load(tmp_path / "law.npy")
    p = table.sum(axis=(1, 2)) / table.sum()
    joint = p[:, None] * np.array([[0.95, 0.05], [0.05, 0.95]])
    assert abs(joint.sum(axis=0) - p).max() > 0.01
    truth = mi.discrete.of_table(joint)["I(X;Y)"].value_bits
    assert report["truth"]["mutual_information_bits"] == pytest.approx(truth, abs=1e-9)
    estimate = report["estimate"]
    assert 0.3 * truth < estimate["lower_bits"] <= truth
    assert estimate["upper_bits"] == pytest.approx(truth, abs=1e-9)
