"""Information measures of one to three discrete variables: entropy, mutual, conditional and interaction information.

    from mirigor_jax import mi

    print(mi.discrete.of_table(table))  # of a joint distribution: exact
    print(mi.discrete.of_samples(x, y, z))  # of columns of labels: corrected for bias, with certified ends
    print(mi.discrete.of_counts(counts))  # the same, of a contingency table

A table has one axis for each variable: X, Y, Z. Every measure is a sum of entropies of some of the variables, each with
a factor: I(X;Y) = H(X) + H(Y) - H(X,Y). Interaction information is I(X;Y;Z) = I(X;Z) - I(X;Z|Y). It is below 0 if a
condition adds to what two variables share: -1 bit if Y is the exclusive or of two fair coins X and Z, and -0.189 bit if
Y is "X or Z". It is above 0 if they share it with the condition. Some authors use the other sign.

Sources: Cover & Thomas 2006, chapter 2; McGill 1954; Gosch 2020, eq. 3 and appendix A, whose table 5 "of an XOR gate"
is that of "or".
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.special import entr, xlog1py

from mirigor_jax import checks
from mirigor_jax.errors import InputError
from mirigor_jax.files import plain
from mirigor_jax.mi.confidence import largest_mean, relative_entropy_limit
from mirigor_jax.settings import Arrays
from mirigor_jax.tables import bits, down, ends, html, up

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # only drawing imports matplotlib

CELLS = 1_000_000  # largest number of cells of a table, which takes seconds
UNSEEN = 0.05  # largest share of the distribution that the rows may miss without a warning

Terms = dict[tuple[int, ...], int]  # axes of a table -> the factor of the entropy of their variables


@dataclass(frozen=True)
class Measure:
    """One information measure. Bits.

    name: such as "H(X)", "I(X;Y|Z)".
    value_bits: of a table, exact. Of rows, corrected for bias; it may be below 0 even if the measure can't be.
    plug_in_bits: that of the rows' own frequencies. Entropies are too low on average, mutual information too high.
    lower_bits, upper_bits: the measure lies between them at the result's confidence. Of a table, both are the value.
    """

    name: str
    value_bits: float
    plug_in_bits: float
    lower_bits: float
    upper_bits: float

    @property
    def shown_ends(self) -> str:
        """Both ends, rounded outwards."""
        return ends(down(self.lower_bits), up(self.upper_bits))


@dataclass(frozen=True)
class DiscreteInformation:
    """The information measures of one to three discrete variables.

    measures: name -> measure. Entropies come first, and the measure of all variables is the last.
    sizes: number of values of each variable: the lengths of the table's axes.
    rows: number of rows; None for a table of probabilities, whose measures are exact.
    confidence: probability with which the ends of one measure contain it; not that for all measures together.
    warnings: doubts about the data, in words.
    """

    measures: dict[str, Measure]
    sizes: tuple[int, ...]
    rows: int | None = None
    confidence: float = 1.0
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measure:
        """The measure of this name. Raises KeyError if there is none."""
        return self.measures[name]

    def __str__(self) -> str:
        """The sentence and the warnings."""
        return " ".join([self.sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    @property
    def sentence(self) -> str:
        """The last measure with its ends, what they suppose, and the other values, without the warnings."""
        *others, last = self.measures.values()
        size = " × ".join(f"{size:,}" for size in self.sizes)
        if self.rows is None:
            head = f"{last.name} is {bits(last.value_bits)} bits, exactly, of a table of {size} values."
        else:
            head = (
                f"{last.name} reads {bits(last.value_bits)} bits, corrected for bias (plug-in "
                f"{bits(last.plug_in_bits)}); the true value lies in {last.shown_ends} bits, certified at "
                f"{100 * self.confidence:.6g} % if the {self.rows:,} rows are independent and the variables have no "
                f"more than {size} values."
            )
        values = ", ".join(f"{one.name} = {bits(one.value_bits)}" for one in others)
        return f"{head} {values}." if values else head

    def to_dict(self) -> dict[str, Any]:
        """Every field and the sentence, for JSON."""
        return dict(plain({**vars(self), "sentence": self.sentence}))

    def figure(self) -> Figure:
        """A matplotlib Figure of each measure with its certified ends and its plug-in value."""
        from mirigor_jax.mi import picture

        return picture.discrete_information(self)

    def _repr_html_(self) -> str:
        """A table of a row for each measure, for notebooks."""
        if self.rows is None:
            header, rows = ["measure", "bits"], [[one.name, bits(one.value_bits)] for one in self.measures.values()]
        else:
            header = ["measure", "bits, corrected", f"certified, {100 * self.confidence:.6g} %", "plug-in"]
            rows = [
                [one.name, bits(one.value_bits), one.shown_ends, bits(one.plug_in_bits)]
                for one in self.measures.values()
            ]
        return html(header, rows, [self.sentence, *self.warnings])


def of_table(table: Any) -> DiscreteInformation:
    """Measure a joint distribution exactly.

    Args:
        table: (a,), (a, b) or (a, b, c) probabilities with sum 1, of any framework. Axes: X, Y, Z.

    Returns:
        `DiscreteInformation`, in bits, whose ends are the values.

    Raises:
        InputError: the table has no entries, too many, or more than three axes; an entry is below 0 or not finite; or
            their sum is not 1.

    Source: Shannon 1948; McGill 1954.
    """
    joint = _table(table, "probabilities with sum 1")
    total = float(joint.sum())
    if abs(total - 1) > 1e-5:
        raise InputError(
            f"table with sum {total:.6g}: expected probabilities with sum 1; divide it by its sum, or if it holds "
            "counts of rows, give it to of_counts"
        )
    joint = joint / total
    measures = {}
    for name, terms, _, _ in _measures(joint.shape):
        value = _bits(sum(factor * _entropy(_marginal(joint, axes)) for axes, factor in terms.items()))
        measures[name] = Measure(name, value, value, value, value)
    return DiscreteInformation(measures, joint.shape)


def of_counts(counts: Any, *, confidence: float = Arrays.confidence) -> DiscreteInformation:
    """Estimate the measures of a joint distribution from a contingency table of independent rows.

    The value is the jackknife's: n times the plug-in value, minus n - 1 times its mean without one row. Like Miller and
    Madow's correction it removes the bias of order 1/n, and for a large alphabet it leaves less bias.

    The ends hold at every number of rows and for every distribution on the table's cells, also if variables are
    independent or one is a function of another. They suppose only that rows are independent and that the table has
    every value that can occur. With this confidence the rows' frequencies p̂ have KL(p̂‖p) <= r, and r is little more
    than (cells - 1) / n (`relative_entropy_limit`). A measure is Σ a_T H(T) over sets T of variables, with factors a_T.
    For any distributions q_T it is E_p[-Σ a_T ln q_T] - Σ a_T KL(p_T‖q_T). With q_T near p̂_T, the ends use the exact
    range of the first term over all such p, and upper limits of the divergences. The price is width: in simulations,
    they were 2 to 9 times as far apart as those of a normal approximation for 4 to 16 cells, and 7 to 12 times for 100.
    If there are as many cells as rows, they say hardly anything.

    Args:
        counts: (a,), (a, b) or (a, b, c) numbers of rows, whole, with sum n >= 2. Axes: X, Y, Z.
        confidence: in [0.5, 1). Of the ends of each measure alone.

    Returns:
        `DiscreteInformation`, in bits. Rows are taken as independent; this is not checked.

    Raises:
        InputError: the table has no entries, too many, or more than three axes; an entry is no number of rows; there
            are fewer than two rows; or the confidence is out of its limits.

    Source: Zahl 1977 (jackknife); Agrawal 2020 (r); the ends follow from it as in `_certified` (not from a paper).
    """
    checks.confidence(confidence)
    table = _table(counts, "counts of rows")
    n = float(table.sum())
    if np.any(table != np.floor(table)) or n < 2:
        raise InputError(
            f"counts with sum {n:.6g}: expected whole numbers with sum 2 or more, the numbers of rows; give "
            "probabilities to of_table"
        )
    measures = {}
    for name, terms, least, most in _measures(table.shape):
        parts = [(_marginal(table, axes), factor) for axes, factor in terms.items()]
        lower, upper = _certified(table, terms, confidence)
        measures[name] = Measure(
            name,
            value_bits=_bits(sum(factor * _jackknife(part) for part, factor in parts)),
            plug_in_bits=_bits(sum(factor * _entropy(part / n) for part, factor in parts)),
            lower_bits=max(least, _bits(lower)),
            upper_bits=min(most, _bits(upper)),
        )
    return DiscreteInformation(measures, table.shape, int(n), confidence, tuple(_warnings(table)))


def of_samples(
    *columns: Any, sizes: Sequence[int] | None = None, confidence: float = Arrays.confidence
) -> DiscreteInformation:
    """Estimate the measures of one to three discrete variables from independent rows; see `of_counts`.

    Args:
        columns: (n,) labels of each variable, integers, strings or bools, of any framework. n >= 2.
        sizes: number of values that each variable can have, if the rows may lack some. The certified ends hold for
            variables of at most so many values. None: the numbers of values in the columns.
        confidence: in [0.5, 1). Of the ends of each measure alone.

    Returns:
        `DiscreteInformation`, in bits.

    Raises:
        InputError: there are no columns or more than three; a label is missing or is no class, such as 1.5; columns
            differ in length or are short; a size is too small; the table would have too many cells; or as `of_counts`.
    """
    if not 1 <= len(columns) <= 3:
        raise InputError(f"{len(columns)} columns: expected one to three, X, Y and Z")
    coded = [np.unique(checks.labels(c, name), return_inverse=True) for c, name in zip(columns, "XYZ", strict=False)]
    lengths = [len(codes) for _, codes in coded]
    if len(set(lengths)) > 1:
        raise InputError(f"columns of {', '.join(f'{n:,}' for n in lengths)} rows: expected the same number of each")
    seen = tuple(len(values) for values, _ in coded)
    given = seen if sizes is None else np.atleast_1d(np.asarray(sizes, object)).tolist()
    if len(given) != len(seen):
        raise InputError(f"sizes = {sizes}: expected {len(seen)}, one for each column")
    shape = tuple(
        checks.whole(f"sizes[{i}]", size, least) for i, (size, least) in enumerate(zip(given, seen, strict=True))
    )
    if math.prod(shape) > CELLS:
        raise InputError(f"a table of {shape} values has {math.prod(shape):,} cells: {_MOST}")
    if lengths[0] < 2:
        raise InputError(f"{lengths[0]} rows: expected 2 or more")
    cells = np.ravel_multi_index([codes for _, codes in coded], shape)
    return of_counts(np.bincount(cells, minlength=math.prod(shape)).reshape(shape), confidence=confidence)


_MOST = f"expected at most {CELLS:,}; merge rare values"


def _table(table: Any, what: str) -> Float[np.ndarray, "..."]:
    """The table as float64. Raises InputError unless it has one to three axes, and entries that are finite and >= 0."""
    array = checks.to_numpy(table, "table").astype(np.float64)
    if not 1 <= array.ndim <= 3 or array.size == 0:
        raise InputError(f"table of shape {array.shape}: expected one to three axes, for X, Y and Z, and some entries")
    if array.size > CELLS:
        raise InputError(f"table of shape {array.shape} has {array.size:,} cells: {_MOST}")
    bad = np.argwhere(~(np.isfinite(array) & (array >= 0)))
    if len(bad):
        at = tuple(bad[0].tolist())
        raise InputError(f"table has {array[at]:g} at {list(at)}: expected {what}, finite and not below 0")
    return array


def _measures(sizes: Sequence[int]) -> Iterator[tuple[str, Terms, float, float]]:
    """The name, the terms, and the least and the most bits possible of each measure of a table of this shape."""
    log_sizes = [math.log2(size) for size in sizes]
    for axis, most in enumerate(log_sizes):
        yield f"H({'XYZ'[axis]})", {(axis,): 1}, 0.0, most
    if len(sizes) == 1:
        return
    yield f"H({','.join('XYZ'[: len(sizes)])})", {tuple(range(len(sizes))): 1}, 0.0, sum(log_sizes)
    pairs = ((0, 1),) if len(sizes) == 2 else ((0, 1), (0, 2), (1, 2))
    for i, j in pairs:
        most = min(log_sizes[i], log_sizes[j])
        yield f"I({'XYZ'[i]};{'XYZ'[j]})", {(i,): 1, (j,): 1, (i, j): -1}, 0.0, most
    if len(sizes) == 2:
        return
    for i, j in pairs:
        k, most = 3 - i - j, min(log_sizes[i], log_sizes[j])
        yield f"I({'XYZ'[i]};{'XYZ'[j]}|{'XYZ'[k]})", {(i, k): 1, (j, k): 1, (0, 1, 2): -1, (k,): -1}, 0.0, most
    interaction: Terms = {(0,): 1, (1,): 1, (2,): 1, (0, 1): -1, (0, 2): -1, (1, 2): -1, (0, 1, 2): 1}
    yield "I(X;Y;Z)", interaction, -min(log_sizes), min(log_sizes)


def _marginal(table: Float[np.ndarray, "..."], axes: Sequence[int]) -> Float[np.ndarray, "..."]:
    """The table summed over all axes but these, which keep their places."""
    return table.sum(tuple(axis for axis in range(table.ndim) if axis not in axes), keepdims=True)


def _entropy(shares: Float[np.ndarray, "..."]) -> float:
    return float(entr(shares).sum())


def _jackknife(counts: Float[np.ndarray, "..."]) -> float:
    """The jackknife's entropy of counts with sum n, in nats: d(n) - Σ c d(c) / n, d(c) = c ln c - (c - 1) ln(c - 1).

    Row r's pseudo-value, n H - (n - 1) H without r, is d(n) - d(c_r), because H = ln n - Σ c ln c / n.
    """
    c = np.append(counts[counts > 0], counts.sum())
    step = np.log(c) - xlog1py(c - 1, -1 / c)  # d(c), without the difference of large numbers
    return float(step[-1] - c[:-1] @ step[:-1] / c[-1])


def _certified(counts: Float[np.ndarray, "..."], terms: Terms, confidence: float) -> tuple[float, float]:
    """(lower, upper) end of Σ factor H(T), in nats; see `of_counts`."""
    shares = _marginal(counts / counts.sum(), sorted({axis for axes in terms for axis in axes}))
    radius = relative_entropy_limit(shares.size, int(counts.sum()), confidence)
    score, below, above = np.zeros(shares.shape), 0.0, 0.0
    for axes, factor in terms.items():
        reference, distance = _reference(_marginal(shares, axes), radius)
        score = score - factor * np.log(reference)
        # The measure is the mean score minus factor times a divergence from 0 to distance.
        below += max(0, factor) * distance
        above += max(0, -factor) * distance
    p, values = shares.ravel(), score.ravel()
    return -largest_mean(p, -values, radius) - below, largest_mean(p, values, radius) + above


def _reference(shares: Float[np.ndarray, "..."], radius: float) -> tuple[Float[np.ndarray, "..."], float]:
    """(q, limit): a distribution q > 0, and a limit of KL(p‖q) over all p with KL(shares‖p) <= radius, in nats.

    q gives the unseen cells the share w together, and the others (1 - w) shares. Let r = p / shares on these, a(r) =
    r ln r - r + 1, b(r) = r - 1 - ln r, and u the mass that p has on the unseen cells. Then
    Σ shares b(r) + u = KL(shares‖p) <= radius. As a / b grows with r, and b(r) <= radius / shares of each cell,
    Σ shares a(r) <= slope (radius - u), where slope is a / b at a limit of r. So
    KL(p‖q) <= slope (radius - u) - u - (1 - u) ln(1 - w) + u ln(u unseen / w). This is convex in u, so at most the
    larger of its values at u = 0 and u = radius; the limit is that or more. w makes these equal, but is at most 0.5.
    """
    if shares.size == 1:
        return shares, 0.0
    seen = shares > 0
    unseen = int(np.sum(~seen))
    t = radius / float(shares[seen].min())
    r = 1 + t + math.sqrt(t * (t + 2))  # b(r) >= t, because b(r) >= (r - 1)² / 2r for r > 1
    slope = (r * math.log(r) - r + 1) / (r - 1 - math.log(r))
    if unseen == 0:
        return shares, slope * radius
    w = min(0.5, unseen * radius * math.exp(-slope - 1))
    limit = max(slope, math.log(radius * unseen / w) - 1) * radius - math.log1p(-w)
    return np.where(seen, (1 - w) * shares, w / unseen), limit


def _bits(nats: float) -> float:
    return nats / math.log(2) + 0.0  # 0, not -0


def _warnings(counts: Float[np.ndarray, "..."]) -> Iterator[str]:
    # The share of rows that are alone in their cell estimates the share of the distribution in empty cells (Good 1953).
    alone = float(np.sum(counts == 1) / counts.sum())
    if alone > UNSEEN:
        yield (
            f"{100 * alone:.3g} % of the rows have a combination of values that no other row has, so about as much of "
            "the distribution is unseen, and the corrections are too small; the certified ends hold all the same"
        )
