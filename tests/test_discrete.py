"""Information measures of discrete variables: loops over the definitions, and hard cases for the certified ends."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import rel_entr

from mirigor_jax import mi
from mirigor_jax.errors import InputError
from mirigor_jax.mi import discrete
from mirigor_jax.mi.confidence import largest_mean, relative_entropy_limit


def gate(rule) -> np.ndarray:
    """The table of X, Y = rule(X, Z), Z for fair and independent bits X and Z, as in appendix A of Gosch 2020."""
    table = np.zeros((2, 2, 2))
    for x, z in itertools.product((0, 1), repeat=2):
        table[x, rule(x, z), z] = 0.25
    return table


XOR, OR = gate(lambda x, z: x ^ z), gate(lambda x, z: x | z)
NOISY_XOR = 0.9 * XOR + 0.1 * XOR[:, ::-1]
FAIR = np.full((2, 2, 2), 1 / 8)
ZIPF = (1 / np.arange(1, 101)) / np.sum(1 / np.arange(1, 101))


def random_table(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A table of which about a third of the cells are empty."""
    rng = np.random.default_rng(seed)
    table = rng.exponential(size=shape) * (rng.random(shape) < 0.67)
    return table / table.sum()


def entropy_loop(p: np.ndarray) -> float:
    return sum(-one * math.log2(one) for one in p.ravel().tolist() if one > 0)


def information_loop(p: np.ndarray) -> float:
    return sum(
        p[x, y] * math.log2(p[x, y] / (p[x].sum() * p[:, y].sum())) for x, y in np.ndindex(p.shape) if p[x, y] > 0
    )


def conditional_loop(p: np.ndarray) -> float:
    """I(X;Y|Z) as the mean over z of I of the table given z."""
    weights = p.sum(axis=(0, 1))
    return sum(weights[z] * information_loop(p[:, :, z] / weights[z]) for z in range(p.shape[2]) if weights[z] > 0)


def interaction_loop(p: np.ndarray) -> float:
    """I(X;Z) - I(X;Z|Y), equation 3 of Gosch 2020."""
    return information_loop(p.sum(axis=1)) - conditional_loop(p.transpose(0, 2, 1))


def all_by_loops(p: np.ndarray) -> dict[str, float]:
    if p.ndim == 1:
        return {"H(X)": entropy_loop(p)}
    if p.ndim == 2:
        singles = {"H(X)": entropy_loop(p.sum(axis=1)), "H(Y)": entropy_loop(p.sum(axis=0))}
        return {**singles, "H(X,Y)": entropy_loop(p), "I(X;Y)": information_loop(p)}
    return {
        "H(X)": entropy_loop(p.sum(axis=(1, 2))),
        "H(Y)": entropy_loop(p.sum(axis=(0, 2))),
        "H(Z)": entropy_loop(p.sum(axis=(0, 1))),
        "H(X,Y,Z)": entropy_loop(p),
        "I(X;Y)": information_loop(p.sum(axis=2)),
        "I(X;Z)": information_loop(p.sum(axis=1)),
        "I(Y;Z)": information_loop(p.sum(axis=0)),
        "I(X;Y|Z)": conditional_loop(p),
        "I(X;Z|Y)": conditional_loop(p.transpose(0, 2, 1)),
        "I(Y;Z|X)": conditional_loop(p.transpose(1, 2, 0)),
        "I(X;Y;Z)": interaction_loop(p),
    }


def draw(table: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Counts of n rows of the table's distribution."""
    return rng.multinomial(n, table.ravel()).reshape(table.shape)


def test_the_exclusive_or_has_minus_one_bit_and_the_paper_s_table_of_it_is_that_of_or():
    xor, either = discrete.of_table(XOR), discrete.of_table(OR)
    assert xor["I(X;Y;Z)"].value_bits == pytest.approx(-1, abs=1e-12)
    assert xor["I(X;Z)"].value_bits == pytest.approx(0, abs=1e-12)
    assert xor["I(X;Z|Y)"].value_bits == pytest.approx(1, abs=1e-12)
    assert either["I(X;Y;Z)"].value_bits == pytest.approx(1.5 - 0.75 * math.log2(3) - 0.5, abs=1e-12)
    assert either["I(X;Y;Z)"].value_bits == pytest.approx(-0.189, abs=5e-4)
    copies = np.zeros((2, 2, 2))
    copies[0, 0, 0] = copies[1, 1, 1] = 0.5
    assert discrete.of_table(copies)["I(X;Y;Z)"].value_bits == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 4, 2), (1, 3, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_measures_of_tables_are_those_of_loops_over_the_definitions(seed, shape):
    p = random_table(seed, shape)
    result = discrete.of_table(np.float32(p) if seed == 2 else p.tolist())
    expected = all_by_loops(p)
    assert list(result.measures) == list(expected)
    assert {name: one.value_bits for name, one in result.measures.items()} == pytest.approx(expected, abs=1e-6)
    joint = list(result.measures.values())[len(shape) if len(shape) > 1 else 0]
    assert joint.value_bits == pytest.approx(stats.entropy(p.ravel(), base=2), abs=1e-6)
    if len(shape) == 2:
        nats = mi.distributions.Discrete(p).mutual_information()
        assert result["I(X;Y)"].value_bits == pytest.approx(nats / math.log(2), abs=1e-6)


def test_a_table_s_sum_may_be_off_by_rounding():
    p = random_table(0, (3, 4))
    assert all_by_loops(p) == pytest.approx(
        {name: one.value_bits for name, one in discrete.of_table(p * (1 + 5e-6)).measures.items()}, abs=1e-12
    )


def test_in_a_markov_chain_the_interaction_is_what_its_ends_share():
    p = random_table(1, (3, 4))[:, :, None] * np.random.default_rng(0).dirichlet(np.ones(3), 4)  # X -> Y -> Z
    result = discrete.of_table(p)
    assert result["I(X;Y;Z)"].value_bits == pytest.approx(result["I(X;Z)"].value_bits, abs=1e-12)
    assert result["I(X;Z)"].value_bits > 0.001


def test_plug_in_values_of_columns_are_those_of_the_table_of_counts():
    p = random_table(0, (3, 4, 2))
    rows = np.random.default_rng(0).choice(p.size, 200, p=p.ravel())
    x, y, z = np.unravel_index(rows, p.shape)
    counts = np.zeros(p.shape)
    np.add.at(counts, (x, y, z), 1)
    result = discrete.of_samples(x.tolist(), np.array(["a", "bb", "c", "d"])[y], z == 1)
    assert result == discrete.of_counts(counts)
    assert {k: one.plug_in_bits for k, one in result.measures.items()} == pytest.approx(all_by_loops(counts / 200))
    padded = np.zeros((5, 4, 2))
    padded[:3] = counts
    assert discrete.of_samples(x, y, z, sizes=(5, 4, 2)) == discrete.of_counts(padded)


def test_the_correction_is_the_mean_of_the_pseudo_values_of_samples_without_each_row():
    counts = draw(random_table(2, (3, 3, 2)), 25, np.random.default_rng(1))
    pseudo = np.zeros(11)
    for cell in np.ndindex(counts.shape):
        fewer = counts.astype(float)
        fewer[cell] -= 1
        if counts[cell]:
            of_all, without = (np.array(list(all_by_loops(one).values())) for one in (counts / 25, fewer / 24))
            pseudo += counts[cell] / 25 * (25 * of_all - 24 * without)
    found = [one.value_bits for one in discrete.of_counts(counts).measures.values()]
    assert found == pytest.approx(pseudo.tolist(), abs=1e-9)


def test_the_correction_leaves_less_bias_of_a_large_alphabet_than_miller_and_madow_s():
    rng, n = np.random.default_rng(0), 300
    jackknife, miller_madow = [], []
    for _ in range(60):
        counts = draw(ZIPF, n, rng)
        found = discrete.of_counts(counts)["H(X)"]
        jackknife.append(found.value_bits)
        miller_madow.append(found.plug_in_bits + (np.sum(counts > 0) - 1) / (2 * n * math.log(2)))
    truth = entropy_loop(ZIPF)
    assert abs(np.mean(jackknife) - truth) < 0.04 < 0.07 < truth - np.mean(miller_madow)


def tables_of(n: int, cells: int) -> np.ndarray:
    """All tables of counts with sum n, one a row."""
    bars = np.array(list(itertools.combinations(range(n + cells - 1), cells - 1)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=-1)
    edges[:, -1] = n + cells - 1
    return np.diff(edges) - 1


@pytest.mark.parametrize(("cells", "n"), [(2, 1), (2, 7), (2, 60), (3, 25), (4, 12)])
def test_the_limit_of_relative_entropy_holds_exactly_for_every_distribution(cells, n):
    counts, rng = tables_of(n, cells), np.random.default_rng(cells)
    for confidence in (0.5, 0.95):
        radius = relative_entropy_limit(cells, n, confidence)
        x = n * radius / (cells - 1)
        assert (cells - 1) * (1 - x + math.log(x)) == pytest.approx(math.log(1 - confidence), abs=1e-9)
        assert x > 1
        for p in [np.full(cells, 1 / cells), *rng.dirichlet(np.full(cells, 0.5), 20)]:
            outside = rel_entr(counts / n, p).sum(axis=1) > radius
            assert stats.multinomial.pmf(counts, n, p)[outside].sum() <= 1 - confidence
    assert relative_entropy_limit(1, 5, 0.95) == 0


def test_the_largest_mean_in_a_ball_of_relative_entropy_is_that_of_a_fine_grid():
    shares, scores = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, -1.0, 0.7, 1.5])
    grid = tables_of(80, 4) / 80
    for radius in (0.01, 0.1, 1.0):
        for sign in (1, -1):
            means = sign * grid @ scores
            largest = means[rel_entr(shares, grid).sum(axis=1) <= radius].max()
            limit = largest_mean(shares, sign * scores, radius)
            assert largest <= limit < largest + 0.05
    assert largest_mean(shares, np.full(4, 0.3), 0.5) == 0.3


def within(shares: np.ndarray, radius: float, rng: np.random.Generator, m: int) -> np.ndarray:
    """m distributions p with KL(shares‖p) = radius, in random directions, some of which keep zeros."""
    concentrations = rng.choice([0.05, 0.3, 1.0, 10.0], m)
    targets = np.stack([rng.dirichlet(np.full(shares.size, one)) for one in concentrations])
    targets[::2] = targets[::2] * (shares > 0) + 1e-12
    targets /= targets.sum(axis=1, keepdims=True)
    near, far = np.zeros(m), np.ones(m)
    for _ in range(40):
        middle = (near + far) / 2
        p = (1 - middle)[:, None] * shares + middle[:, None] * targets
        inside = rel_entr(shares, p).sum(axis=1) <= radius
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return (1 - near)[:, None] * shares + near[:, None] * targets


ATTACKED = {
    "independent": np.full((3, 3), 12),
    "a function": np.array([[40, 0], [0, 60], [3, 0]]),
    "sparse": draw(np.full((4, 4), 1 / 16), 20, np.random.default_rng(0)),
    "noisy XOR": draw(NOISY_XOR, 300, np.random.default_rng(0)),
    "a constant": np.array([[30], [20]]),
    "uniform": np.full(10, 20),
}


@pytest.mark.parametrize("name", ATTACKED)
def test_no_distribution_near_the_frequencies_has_a_measure_beyond_its_ends(name):
    counts, rng = ATTACKED[name], np.random.default_rng(3)
    n, result = counts.sum(), discrete.of_counts(counts)
    # A measure of fewer variables has a smaller ball of its own: tables with fewer axes test it.
    values = {key: [] for key in result.measures if set("XYZ"[: counts.ndim]) <= set(key)}
    for p in within(counts.ravel() / n, relative_entropy_limit(counts.size, n, 0.95), rng, 400):
        for key, value in all_by_loops(p.reshape(counts.shape)).items():
            values.get(key, []).append(value)
    for key, found in values.items():
        one, reached = result[key], max(found) - min(found)
        assert one.lower_bits - 1e-9 <= min(found)
        assert max(found) <= one.upper_bits + 1e-9
        assert one.upper_bits - one.lower_bits <= 5 * reached + 1e-9  # so they are not far too wide


@pytest.mark.parametrize("counts", [(98, 2), (95, 5, 0), (300, 40, 1, 0), (30, 30, 0, 0), (10, 0, 0)])
def test_the_reference_is_as_near_to_every_distribution_near_the_frequencies_as_it_says(counts):
    shares = np.array(counts) / np.sum(counts)
    radius = relative_entropy_limit(len(counts), int(np.sum(counts)), 0.95)
    reference, limit = discrete._reference(shares, radius)
    assert reference.sum() == pytest.approx(1)
    grid = tables_of({2: 2000, 3: 150, 4: 60}[len(counts)], len(counts))
    grid = grid / grid[0].sum()
    largest = rel_entr(grid[rel_entr(shares, grid).sum(axis=1) <= radius], reference).sum(axis=1).max()
    assert largest <= limit <= 3 * largest


@pytest.mark.parametrize("n", [2, 10, 60, 400])
def test_the_ends_of_an_entropy_hold_exactly_as_often_as_stated(n):
    ends = [discrete.of_counts([k, n - k], confidence=0.8)["H(X)"] for k in range(n + 1)]
    lower, upper = (np.array([getattr(one, name) for one in ends]) for name in ("lower_bits", "upper_bits"))
    for p in np.linspace(0, 1, 101):
        truth = entropy_loop(np.array([p, 1 - p]))
        holds = (lower <= truth + 1e-12) & (truth <= upper + 1e-12)
        assert stats.binom.pmf(np.arange(n + 1), n, p)[holds].sum() >= 0.8
    if n == 400:
        assert lower[200] > 0.98
        assert 0.2 < lower[40] < ends[40].value_bits < upper[40] < 0.65  # 0.469 bits


POPULATIONS = {
    "independent": np.full((3, 3), 1 / 9),
    "rare and independent": np.outer([0.9, 0.1], [0.8, 0.2]),
    "nearly independent": np.array([[0.275, 0.225], [0.225, 0.275]]),
    "moderate": random_table(5, (3, 4, 3)),
    "a function": np.eye(3) * np.array([0.7, 0.2, 0.1]),
    "no interaction": FAIR,
    "noisy XOR": NOISY_XOR,
    "sparse": np.outer(ZIPF[:10], ZIPF[:10]) / ZIPF[:10].sum() ** 2,
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_ends_hold_as_often_as_stated_in_simulations(name):
    p, rng = POPULATIONS[name], np.random.default_rng(7)
    truth = all_by_loops(p)
    repeats = 30
    for n in (20, 500):
        missed = dict.fromkeys(truth, 0)
        for _ in range(repeats):
            for key, one in discrete.of_counts(draw(p, n, rng), confidence=0.5).measures.items():
                missed[key] += not one.lower_bits - 1e-9 <= truth[key] <= one.upper_bits + 1e-9
        assert stats.binomtest(max(missed.values()), repeats, 0.5, alternative="greater").pvalue > 0.001


def test_the_upper_end_of_independent_variables_falls_as_the_rows_grow():
    upper = [discrete.of_counts(np.full((2, 2), n // 4))["I(X;Y)"].upper_bits for n in (1000, 10_000, 100_000)]
    assert upper[0] < 0.02
    assert upper[0] / upper[1] > 9  # as 1 / n; that of a normal approximation is 0 bits wide
    assert upper[1] / upper[2] > 9


def test_the_ends_of_very_few_rows_are_the_least_and_the_most_possible():
    measures = discrete.of_samples([0, 1], [0, 0], [1, 0], sizes=(2, 3, 4)).measures
    assert {name: (one.lower_bits, one.upper_bits) for name, one in measures.items()} == {
        "H(X)": (0, 1),
        "H(Y)": (0, math.log2(3)),
        "H(Z)": (0, 2),
        "H(X,Y,Z)": (0, math.log2(2) + math.log2(3) + math.log2(4)),
        "I(X;Y)": (0, 1),
        "I(X;Z)": (0, 1),
        "I(Y;Z)": (0, math.log2(3)),
        "I(X;Y|Z)": (0, 1),
        "I(X;Z|Y)": (0, 1),
        "I(Y;Z|X)": (0, math.log2(3)),
        "I(X;Y;Z)": (-1, 1),
    }


def test_the_ends_are_those_of_the_sizes_that_the_user_states():
    column = [0] * 200
    assert discrete.of_samples(column)["H(X)"].upper_bits == 0
    two, ten = (discrete.of_samples(column, sizes=[size])["H(X)"].upper_bits for size in (2, 10))
    assert 0.05 < two < ten < 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0.5, 0.4], r"table with sum 0.9: expected probabilities with sum 1; divide it .* of_counts"),
        ([[10, 2], [3, 15]], "table with sum 30: "),
        ([0, 0], "table with sum 0: "),
        ([0.5, -0.1, 0.6], r"table has -0.1 at \[1\]"),
        ([0.5, math.nan], r"table has nan at \[1\]"),
        ([3.0, math.inf], r"table has inf at \[1\]"),
        ([], r"table of shape \(0,\)"),
        (1.0, r"table of shape \(\)"),
        (np.ones((1, 1, 1, 1)), r"table of shape \(1, 1, 1, 1\): expected one to three axes"),
        (np.ones(1_000_001), "has 1,000,001 cells: expected at most 1,000,000"),
        ([[1], [1, 2]], "table is no array"),
        (["a", "b"], "table is of dtype <U1"),
    ],
)
def test_what_is_no_joint_table_is_an_error_of_one_line(table, message):
    with pytest.raises(InputError, match=message) as error:
        discrete.of_table(table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ([], {}, "0 columns: expected one to three"),
        ([[1, 2]] * 4, {}, "4 columns: expected one to three"),
        ([[1]], {}, "1 rows: expected 2 or more"),
        ([[]], {}, "0 rows: expected 2 or more"),
        ([[1, 2], [1, 2, 3]], {}, "columns of 2, 3 rows: expected the same number"),
        ([["a", None]], {}, "X has 1 missing values, the first at row 1"),
        ([[1, 2], [0.5, 1]], {}, "Y has 1 values that are no whole numbers"),
        ([[1, 2], [1, 2]], {"sizes": 2}, "sizes = 2: expected 2, one for each column"),
        ([[1, 2], [1, 2]], {"sizes": (2, 1)}, r"sizes\[1\] = 1: expected 2 or more"),
        ([[1, 2], [1, 2]], {"sizes": (2, 2.5)}, r"sizes\[1\] = 2.5: expected a whole number"),
        ([range(2000), range(2000)], {}, "has 4,000,000 cells: expected at most 1,000,000; merge rare values"),
        ([[1, 2]], {"confidence": 1.0}, "confidence = 1.0"),
    ],
)
def test_what_is_no_sample_is_an_error_of_one_line(columns, options, message):
    with pytest.raises(InputError, match=message) as error:
        discrete.of_samples(*columns, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("counts", [[1, 0], [0.5, 0.5], [1.5, 2]])
def test_what_is_no_number_of_rows_is_an_error(counts):
    with pytest.raises(InputError, match=r"expected whole numbers with sum 2 or more.* give probabilities to of_table"):
        discrete.of_counts(counts)


def test_a_result_warns_of_values_that_no_row_shows():
    identities = discrete.of_samples(range(50), [0, 1] * 25)
    assert "Warning: 100 % of the rows have a combination of values that no other row has" in str(identities)
    assert (identities["I(X;Y)"].lower_bits, identities["I(X;Y)"].upper_bits) == (0, 1)
    assert not discrete.of_samples([0, 1] * 25, [0, 0, 1, 1, 1] * 10).warnings


def test_a_result_is_a_sentence_a_table_json_and_a_picture():
    result = discrete.of_counts(draw(NOISY_XOR, 400, np.random.default_rng(0)), confidence=0.9)
    last = result["I(X;Y;Z)"]
    assert str(result).startswith(f"I(X;Y;Z) reads {last.value_bits:.3f} bits, corrected for bias (plug-in ")
    assert "certified at 90 % if the 400 rows are independent and the variables have no more than 2 × 2 × 2" in str(
        result
    )
    assert f"I(X;Z|Y) = {result['I(X;Z|Y)'].value_bits:.3f}" in str(result)
    lower, upper = (float(end) for end in last.shown_ends.strip("[]").split(", "))
    assert lower <= last.lower_bits <= lower + 0.001
    assert upper - 0.001 <= last.upper_bits <= upper
    assert result._repr_html_().count("<tr>") == 12
    as_json = json.loads(json.dumps(result.to_dict()))
    assert as_json["measures"]["I(X;Y;Z)"]["upper_bits"] == last.upper_bits
    assert as_json["sentence"] == result.sentence
    (ax,) = result.figure().axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(result.measures)
    (bars,) = ax.containers
    assert [bar.get_x() for bar in bars] == pytest.approx([one.lower_bits for one in result.measures.values()])
    (dots,) = (line for line in ax.lines if line.get_label() == "estimate, corrected for bias")
    assert dots.get_xdata().tolist() == [one.value_bits for one in result.measures.values()]

    exact = discrete.of_table(XOR)
    assert str(exact).startswith("I(X;Y;Z) is -1.000 bits, exactly, of a table of 2 × 2 × 2 values. H(X) = 1.000, ")
    assert exact._repr_html_().count("<th>") == 2
    assert not exact.figure().axes[0].containers
    assert str(discrete.of_table([0.5, 0.5])) == "H(X) is 1.000 bits, exactly, of a table of 2 values."
