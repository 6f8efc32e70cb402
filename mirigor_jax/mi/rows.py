"""Checks that rows look like independent draws, which intervals and certificates assume. Findings are in words.

An order is allowed: rows may be sorted by a class, or by a column of one view. One view may be a time series if the
rows of the other are independent draws given it. Two things contradict independence: in both views, neighboring rows
are still correlated after a fit to the other view is subtracted; or rows are copies of each other. Where y is predicted
from x, no order is allowed: neighboring rows must not be correlated in either view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.spatial import cKDTree
from scipy.special import ndtri

from mirigor_jax.errors import InputError
from mirigor_jax.mi.gaussian import center_and_spread, squash
from mirigor_jax.mi.results import Estimate, FlowEstimate, LabelEstimate
from mirigor_jax.mi.usable_results import GaussianVInformation, UsableInformation
from mirigor_jax.settings import Arrays, Rows

E = TypeVar("E", Estimate, FlowEstimate, GaussianVInformation, LabelEstimate, UsableInformation)

MOST_ROWS = 16384  # largest number of rows in which neighbors are compared
MOST_COLUMNS = 64  # largest number of columns of a view that are compared
# (lag, mean correlation): rows up to the lag apart that correlate so much, as in series or videos, are not independent.
LAGS = ((1, 0.1), (2, 0.1), (8, 0.06), (32, 0.03), (128, 0.015))
LEAST_Z = 6.0  # standard errors that the mean correlation must reach too
EXPLAINED = 0.02  # a normal score's residual of this standard deviation or less is only the fit's own error
ANCHOR = 32  # the nearest neighbor's distance is judged by that of the 32nd
COPY = 1e-7  # a neighbor is a copy if one so near has at most this probability
CLUSTER = 4  # mean number of rows beside a copy above which there may be clusters instead
FEW = 0.05  # share of the test rows: up to it copies are left out; more of them contradict independence
TEST = "test"  # the word for the test rows in messages
REFERENCE = 2048  # rows in which the 32nd neighbor is looked for
FOLDS = 5  # folds that a fit is checked on
RIDGE = 1e-8  # penalty of the fit, for columns of unit length
DIRECTIONS = 24  # directions into which rows are projected to find copies


@dataclass(frozen=True)
class Findings:
    """The doubts about rows as a sample of independent draws.

    contradiction: why they are not independent draws, in words; empty if no check says so.
    copies: for each test row, whether to leave it out because it is a copy of a row of another part.
    warnings: further doubts about the data, in words.
    """

    contradiction: str
    copies: Bool[np.ndarray, " t"]
    warnings: tuple[str, ...]

    def applied_to(self, result: E) -> E:
        """The result with these warnings. If there is a contradiction, its interval and certificate are withheld."""
        result = replace(result, warnings=(*result.warnings, *self.warnings))
        return result.withheld(self.contradiction) if self.contradiction else result

    @classmethod
    def of(
        cls,
        contradiction: str,
        copies: Bool[np.ndarray, " t"],
        warnings: Sequence[str],
        rows: Rows,
        part: str = TEST,
    ) -> "Findings":
        """The findings. If the caller states that rows are independent, only the warnings are left.

        rows: the caller's statement. part: as in `check_labeled`.
        Raises InputError if rows is not a word of `Rows`.
        """
        if rows not in ("checked", "independent"):
            raise InputError(f"rows = {rows!r}: expected 'checked', or 'independent' to state that they are")
        if rows == "independent":
            return cls("", np.zeros_like(copies), tuple(warnings))
        if copies.any() and not contradiction:
            left_out = f"{copies.sum():,} of {len(copies):,} {part} rows are copies of other rows and were left out"
            return cls("", copies, (left_out, *warnings))
        return cls(contradiction, np.zeros_like(copies), tuple(warnings))


def check_pairs(
    x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], test: Int[np.ndarray, " t"], rows: Rows = Arrays.rows
) -> Findings:
    """Check pairs of rows, in the order in which they were given.

    x, y: row i of both is a pair. test: indices of the test rows. rows: the caller's statement.
    Raises InputError as `Findings.of` does.
    """
    contradiction, copies, warnings = _of_pairs(x, y, test)
    return Findings.of(contradiction, copies, [*_functions(x, y), *warnings], rows)


def check_regression(
    x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], test: Int[np.ndarray, " t"], rows: Rows = Arrays.rows
) -> Findings:
    """Check rows of which y is predicted from x, in the order in which they were given.

    Means over rows, such as a variance or a squared error, vary more if the rows of x alone, or of y alone, resemble
    their neighbors. So this is a contradiction here, also if the order explains it, as that of sorted rows does.
    x, y, test, rows, and errors: as in `check_pairs`.
    """
    contradiction, copies, warnings = _of_pairs(x, y, test)
    at = _stretches(len(x))
    for name, view in (("x", x), ("y", y)):
        if not contradiction and (lag := _resemble(_columns(view[at], at), at=at)):
            contradiction = f"rows up to {lag} apart resemble each other in {name}"
    return Findings.of(contradiction, copies, warnings, rows)


def check_values(values: Float[np.ndarray, " t"], rows: Rows = Arrays.rows) -> Findings:
    """Check numbers whose mean is of interest, one of each test row, in the rows' order.

    rows, and errors: as in `check_pairs`.
    """
    lag = _resemble(_scores(values[:, None]), at=np.arange(len(values)))
    contradiction = f"the values of test rows up to {lag} apart resemble each other" if lag else ""
    return Findings.of(contradiction, np.zeros(len(values), bool), (), rows)


def _of_pairs(
    x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], test: Int[np.ndarray, " t"]
) -> tuple[str, Bool[np.ndarray, " t"], list[str]]:
    """(why pairs are not independent draws, the test rows that are copies, warnings about columns)."""
    copies, contradiction = _copied(np.hstack([x, y]), test)
    warnings = [*_sentinels(x, "x"), *_sentinels(y, "y")]
    counting = [_counting(view) for view in (x, y)]
    growing = [_growing(view) for view in (x, y)]
    if all(map(len, growing)):
        contradiction = (
            f"column {growing[0][0]} of x and column {growing[1][0]} of y are both sorted: each rises, or falls, from "
            "every row to the next"
        )
    else:
        warnings += [
            f"column {c} of {name} counts the rows" for name, cs in zip("xy", counting, strict=True) for c in cs
        ]
    at = _stretches(len(x))
    a, b = (_columns(view[at], at) for view in (x, y))
    if not contradiction and (lag := _resemble(_unexplained(a, b, at), _unexplained(b, a, at), at=at)):
        contradiction = (
            f"rows up to {lag} apart resemble each other in x beyond what y explains and in y beyond what x explains"
        )
    return contradiction, copies, warnings


def check_labeled(
    h: Float[np.ndarray, "n d"],
    classes: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " t"],
    rows: Rows = Arrays.rows,
    part: str = TEST,
) -> Findings:
    """Check representations with classes, in the order in which they were given.

    classes: of each row, from 0. test: indices of the test rows. rows: the caller's statement.
    part: the word for the test rows in messages, such as "unseen".
    Raises InputError as `Findings.of` does.
    """
    copies, contradiction = _copied(h, test, part)
    warnings: list[str] = []
    frequencies = np.bincount(classes) / len(classes)
    in_order = np.mean(np.diff(classes) != 0) < 0.5 * (1 - np.sum(frequencies**2))
    if (counting := _counting(h)) and in_order and not contradiction:
        contradiction = f"column {counting[0]} of the representations counts the rows, which are in an order of classes"
    elif counting:
        warnings.append(f"column {counting[0]} of the representations counts the rows")
    at = _stretches(len(h))
    a = _columns(h[at], at)
    counts = np.bincount(classes[at])
    means = np.zeros((len(counts), a.shape[1]))
    np.add.at(means, classes[at], a / counts[classes[at]][:, None])
    within = a - means[classes[at]]
    codes = np.random.default_rng(0).normal(size=(len(counts), 8))[classes[at]]
    codes = codes - codes.mean(axis=0)
    if not contradiction and (lag := _resemble(within, _unexplained(codes, a, at), at=at)):
        contradiction = (
            f"rows up to {lag} apart resemble each other within their class, and are of one class more often than the "
            "representations explain"
        )
    return Findings.of(contradiction, copies, warnings, rows, part)


def check_copies(images: Float[np.ndarray, "n d"], test: Int[np.ndarray, " t"], rows: Rows = Arrays.rows) -> Findings:
    """Check only whether test rows are copies of others, for images in an order without meaning.

    images: small versions of the images, one a row. test, rows, and errors: as in `check_pairs`.
    """
    # A pixel takes too few values to judge distances by, so random directions mix the pixels.
    directions = np.random.default_rng(0).normal(size=(images.shape[1], DIRECTIONS))
    copies, contradiction = _copied(images.astype(np.float64) @ directions, test)
    return Findings.of(contradiction, copies, (), rows)


# neighbors


def _stretches(n: int) -> Int[np.ndarray, " m"]:
    """Rows to look at: all if they are few, otherwise eight evenly spaced stretches of neighbors."""
    if n <= MOST_ROWS:
        return np.arange(n)
    starts = np.linspace(0, n - MOST_ROWS // 8, 8).astype(int)
    return (starts[:, None] + np.arange(MOST_ROWS // 8)).ravel()


def _columns(view: Float[np.ndarray, "m d"], at: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m c"]:
    """A view's columns as normal scores.

    If there are too many, these are the columns whose neighboring rows resemble each other most, and the directions of
    most variance.
    """
    scores = _scores(view[:, _some(view.shape[1], 8 * MOST_COLUMNS)])
    # If most rows of a column share a value, the few others may be neighbors by chance.
    apart = (np.abs(scores - np.median(scores, axis=0)) > 1e-9).sum(axis=0)
    varied = scores[:, apart > 3 * np.sqrt(len(scores))]
    if varied.shape[1] <= MOST_COLUMNS:
        return varied
    most = np.argsort(-_likeness(varied, at).max(axis=0), kind="stable")[: MOST_COLUMNS // 2]
    directions = np.linalg.eigh(varied.T @ varied)[1][:, ::-1][:, : MOST_COLUMNS // 2]
    return np.hstack([varied[:, most], _scores(varied @ directions)])


def _scores(columns: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "m c"]:
    """Normal scores of mean 0; ties share one score."""
    scores = np.empty(columns.shape)
    for column, score in zip(columns.T, scores.T, strict=True):
        _, which, counts = np.unique(column, return_inverse=True, return_counts=True)
        score[:] = ndtri((np.cumsum(counts) - 0.5 * counts) / len(column))[which]
    return scores - scores.mean(axis=0)


def _likeness(columns: Float[np.ndarray, "m c"], at: Int[np.ndarray, " m"]) -> Float[np.ndarray, "l c"]:
    """For each lag of LAGS, each column's mean correlation of rows up to that lag apart; 0 if that may be chance."""
    spread = columns.std(axis=0)
    columns = columns / np.where(spread > 0, spread, 1)
    sums, counts, results = np.zeros(columns.shape[1]), 0, []
    far = min(max(lag for lag, _ in LAGS), len(at) // 4)
    ends = dict(LAGS)
    for lag in range(1, far + 1):
        neighbors = at[lag:] - at[:-lag] == lag
        sums += np.einsum("i,ij,ij->j", neighbors.astype(float), columns[lag:], columns[:-lag])
        counts += int(neighbors.sum())
        if lag in ends:
            mean = sums / max(counts, 1)
            found = (mean >= ends[lag]) & (mean * np.sqrt(counts) >= LEAST_Z)
            results.append(np.where(found, mean, 0.0))
    return np.stack(results + [np.zeros_like(sums)] * (len(LAGS) - len(results)))


def _resemble(*views: Float[np.ndarray, "m _"], at: Int[np.ndarray, " m"]) -> int | None:
    """The smallest lag of LAGS up to which rows resemble each other in every view; None if there is none."""
    each = [_likeness(_with_directions(view), at).max(axis=1, initial=0) > 0 for view in views]
    return next((lag for (lag, _), found in zip(LAGS, np.all(each, axis=0), strict=True) if found), None)


def _with_directions(residual: Float[np.ndarray, "m c"]) -> Float[np.ndarray, "m e"]:
    """Columns and their directions of most variance, in which a weak pattern that many columns share stands out."""
    residual, spread = residual - residual.mean(axis=0), residual.std(axis=0)
    residual = residual[:, spread > EXPLAINED] / spread[spread > EXPLAINED]
    variances, directions = np.linalg.eigh(residual.T @ residual)
    most = [at for at in np.argsort(-variances)[:8] if variances[at] > 1e-6 * variances[-1]]
    return np.hstack([residual, residual @ directions[:, most]])


def _unexplained(
    target: Float[np.ndarray, "m c"], given: Float[np.ndarray, "m e"], at: Int[np.ndarray, " m"]
) -> Float[np.ndarray, "m c"]:
    """The residual of the target after a least-squares fit to functions of `given`.

    The functions are linear functions of all columns, piecewise linear functions of the columns that resemble their
    neighbors most (such as one that rows are sorted by), and random waves in the directions of most variance. There are
    at most an eighth as many functions as rows, so that they cannot follow a series along its rows.
    """
    m, rng = len(given), np.random.default_rng(0)
    if given.shape[1] == 0:
        return target
    given = np.hstack([given, _scores(np.mean(given**2, axis=1, keepdims=True))])  # rows may be sorted by their length
    room = int(np.clip(m // 32, 2, 96))
    likeness = _likeness(given, at).max(axis=0)
    first = np.argsort(-likeness, kind="stable")
    knots = int(np.clip(2 * room // len(first[:8]), 3, 24))
    steps = [_hats(given[:, c], knots) for c in first[:8]]
    directions = np.linalg.eigh(given.T @ given)[1][:, ::-1]
    core = np.hstack([given[:, first[:4]], given @ directions[:, :4]])
    core = core / np.maximum(core.std(axis=0), 1e-9)
    waves = core @ rng.normal(size=(core.shape[1], room)) * rng.choice([0.3, 0.7, 1.5], room)
    waves = np.cos(waves + rng.uniform(0, 2 * np.pi, waves.shape[1]))
    linear = np.hstack([np.ones((m, 1)), given[:, first[: room // 2]], given @ directions[:, : room // 2]])
    basis = np.hstack([linear, *steps, waves, core**2])
    left = target - _fitted(basis, target, basis)
    ordered = np.diff(given, axis=0)
    if np.any(np.all(ordered >= 0, axis=0) | np.all(ordered <= 0, axis=0)):
        return left  # rows are sorted by a column, which is allowed
    # A fit that only follows the rows fails on a stretch that was left out of it. It explains nothing, so it is undone.
    stretch = int(np.clip(m // 16, 16, 64))
    fold = rng.permutation(-(-m // stretch))[np.arange(m) // stretch] % FOLDS
    variance = np.maximum(target.var(axis=0), 1e-12)
    inside = 1 - np.mean(left**2, axis=0) * m / (m - basis.shape[1]) / variance
    outside = np.zeros_like(inside)
    for functions in (linear, basis):
        foreign = np.empty_like(target)
        for number in range(FOLDS):
            own = fold == number
            foreign[own] = target[own] - _fitted(functions[~own], target[~own], functions[own])
        outside = np.maximum(outside, 1 - np.mean(foreign**2, axis=0) / variance)
    return np.where((inside > 0.3) & (outside < 0.05), target, left)


def _fitted(
    basis: Float[np.ndarray, "m b"], target: Float[np.ndarray, "m c"], at: Float[np.ndarray, "o b"]
) -> Float[np.ndarray, "o c"]:
    """Fit the target by the basis with least squares, and evaluate the fit at other values of the basis."""
    scale = np.maximum(np.linalg.norm(basis, axis=0), 1e-12)
    scaled = basis / scale
    weights = np.linalg.solve(scaled.T @ scaled + RIDGE * np.eye(basis.shape[1]), scaled.T @ target)
    return at / scale @ weights


def _hats(column: Float[np.ndarray, " m"], count: int) -> Float[np.ndarray, "m _"]:
    """A basis of piecewise linear functions of a column, with knots at its quantiles."""
    knots = np.unique(np.quantile(column, np.linspace(0, 1, max(count, 2))))
    if len(knots) < 2:
        return column[:, None]
    return np.stack([np.interp(column, knots, unit) for unit in np.eye(len(knots))], axis=1)


# copies


def _some(count: int, most: int) -> Int[np.ndarray, " m"]:
    """At most `most` indices of rows or columns out of `count`, evenly spaced."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(int)


def hashes(rows: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
    """A 64-bit hash of each row's values."""
    odd: Any = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64) * 2 + 1
    bits: Any = (rows.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
    hashes: Any = np.sum((bits ^ (bits >> 29)) * odd[None, :], axis=1, dtype=np.uint64)
    return np.asarray(hashes)


def _copied(
    rows: Float[np.ndarray, "n d"], test: Int[np.ndarray, " t"], part: str = TEST
) -> tuple[Bool[np.ndarray, " t"], str]:
    """(which test rows have a copy outside of their part, the contradiction if these are not few).

    part: as in `check_labeled`.
    """
    others = np.setdiff1d(np.arange(len(rows)), test)
    copies = _repeats(rows, test, others) | _near_repeats(rows, test, others)
    few = copies.sum() <= max(1, FEW * len(test))
    found = f"{copies.sum():,} of {len(test):,} {part} rows are copies, or nearly, of rows outside of the {part} part"
    return copies, "" if few else found


def _repeats(
    rows: Float[np.ndarray, "n d"], test: Int[np.ndarray, " t"], others: Int[np.ndarray, " o"]
) -> Bool[np.ndarray, " t"]:
    """Which test rows equal others, unless draws of a discrete distribution would do so too.

    Columns of such draws have few values, or multiples of a step almost without gaps. Or rows that agree in one column
    differ in others.
    """
    _, which, counts = np.unique(hashes(rows), return_inverse=True, return_counts=True)
    repeated = np.isin(which[test], which[others])
    if not repeated.any() or len(counts) <= np.sqrt(len(rows)):
        return np.zeros(len(test), bool)
    own = np.zeros(len(rows), bool)
    for column in rows.T[_some(rows.shape[1], MOST_COLUMNS)]:
        values, value, occurrences = np.unique(column, return_inverse=True, return_counts=True)
        if len(values) > 0.5 * len(counts) and not _is_dense(values):
            own |= occurrences[value] <= 2 * counts[which]
    return repeated & own[test]


def _is_dense(values: Float[np.ndarray, " v"]) -> bool:
    """Whether ascending values are multiples of their smallest step, with few of the multiples missing."""
    steps = np.diff(values)
    counts = steps / max(steps.min(initial=np.inf), 1e-12)
    return bool(np.all(np.abs(counts - np.rint(counts)) < 1e-3) and counts.mean() < 5)


def _near_repeats(
    rows: Float[np.ndarray, "n d"], test: Int[np.ndarray, " t"], others: Int[np.ndarray, " o"]
) -> Bool[np.ndarray, " t"]:
    """Which test rows have a neighbor that is too near to be chance, judged by the distances of farther neighbors.

    In d dimensions the 128th neighbor is 4^(1/d) times as far as the 32nd. A neighbor within t times the 32nd's
    distance has a probability of at most 32 t^d. Columns with repeated values are left out.
    """
    none, rng = np.zeros(len(test), bool), np.random.default_rng(0)
    looked_at = _some(len(rows), REFERENCE)
    columns = _some(rows.shape[1], 4 * MOST_COLUMNS)
    distinct = np.array([len(np.unique(column)) for column in rows[np.ix_(looked_at, columns)].T])
    columns = columns[distinct > 0.5 * len(looked_at)]
    if len(others) <= 4 * ANCHOR or not len(columns):
        return none
    varied = squash(rows[:, columns], *center_and_spread(rows[np.ix_(looked_at, columns)]))
    if varied.shape[1] > DIRECTIONS:
        varied = varied @ rng.normal(size=(varied.shape[1], DIRECTIONS)) / np.sqrt(varied.shape[1])
    tested, far = varied[test], rng.permutation(others)[:REFERENCE]
    anchor, beyond = _far(varied[far], tested).T
    known = (anchor > 0) & (beyond > anchor)
    if not known.any():
        return none
    dimension = np.log(4) / np.log(np.where(known, beyond / np.where(known, anchor, 1), 2))
    # The dimension is limited to the rows' median and to ten. It is too large for a row far from all others, because
    # these are about equally far from it.
    dimension = np.minimum(dimension, min(10, np.median(dimension[known])))
    typical = np.minimum(anchor, np.median(anchor[known]))
    with np.errstate(divide="ignore"):
        shrunk = np.log(_nearest(varied[others], tested) / np.where(known, typical, 1))
    copies = known & (np.log(ANCHOR * len(others) / len(far)) + dimension * shrunk < np.log(COPY))
    if copies.any():
        # Few places with many rows at each are clusters, not copies.
        some = np.flatnonzero(copies)[:256]
        at_place = cKDTree(varied[others]).query_ball_point(tested[some], typical[some] / 10, return_length=True)
        places = len(rows) * copies.mean() * np.mean(1 / (1 + at_place))
        if np.mean(at_place) > CLUSTER and places <= np.sqrt(len(rows)):
            return none
    return copies


def _far(rows: Float[np.ndarray, "m d"], of: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t 2"]:
    """Distances from each row of `of` to the 32nd and the 128th nearest of `rows`."""
    places, squares = [ANCHOR - 1, 4 * ANCHOR - 1], np.sum(rows**2, axis=1)
    results = []
    for at in range(0, len(of), 1024):
        block = of[at : at + 1024]
        distances = np.sum(block**2, axis=1)[:, None] + squares - 2 * block @ rows.T
        results.append(np.partition(distances, places, axis=1)[:, places])
    return np.sqrt(np.maximum(np.concatenate(results), 0))


def _nearest(rows: Float[np.ndarray, "m d"], of: Float[np.ndarray, "t d"]) -> Float[np.ndarray, " t"]:
    """Distance from each row of `of` to its nearest of `rows`, looked for among those near it in four directions.

    A copy is near in every direction, so a few directions are enough to find it.
    """
    few = np.random.default_rng(0).normal(size=(rows.shape[1], 4)) if rows.shape[1] > 4 else np.eye(rows.shape[1])
    candidates = np.asarray(cKDTree(rows @ few).query(of @ few, k=8)[1])
    return np.min(np.linalg.norm(rows[candidates] - of[:, None], axis=2), axis=1)


# columns


def _counting(view: Float[np.ndarray, "n d"]) -> list[int]:
    """Columns that number the rows; some numbers may be missing."""
    steps = np.diff(view, axis=0)
    steps = steps * np.sign(steps[:1])
    least = steps.min(axis=0)
    counts = steps / np.where(least > 0, least, 1)
    whole = np.all(np.abs(counts - np.rint(counts)) < 1e-3, axis=0)
    return [int(c) for c in np.flatnonzero((least > 0) & whole & (counts.mean(axis=0) < 4))]


def _growing(view: Float[np.ndarray, "n d"]) -> list[int]:
    """Columns that rise from each row to the next, or fall."""
    steps = np.diff(view, axis=0)
    return [int(c) for c in np.flatnonzero(np.all(steps > 0, axis=0) | np.all(steps < 0, axis=0))]


def _functions(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"]) -> list[str]:
    """A warning if a column of x is a monotonic function of a column of y."""

    def ranked(view: Float[np.ndarray, "n d"]) -> tuple[list[int], Float[np.ndarray, "n _"]]:
        columns = [c for c in range(view.shape[1]) if len(np.unique(view[:, c])) > 0.9 * len(view)][:512]
        scores = _scores(view[:, columns]) if columns else np.empty((len(view), 0))
        return columns, scores / np.maximum(np.linalg.norm(scores, axis=0), 1e-12)

    (of_x, a), (of_y, b) = ranked(x), ranked(y)
    same = np.argwhere(np.abs(a.T @ b) > 1 - 1e-9)
    if not len(same):
        return []
    i, j = same[0]
    more = f", and {len(same) - 1:,} more" if len(same) > 1 else ""
    return [
        f"column {of_x[i]} of x is a function of column {of_y[j]} of y{more}: I(X;Y) is at least the column's entropy, "
        "which is infinite for continuous numbers"
    ]


def _sentinels(view: Shaped[np.ndarray, "n d"], name: str) -> list[str]:
    """Warnings about columns in which many rows have one value that is far from all others."""
    messages = []
    for c in range(view.shape[1]):
        values, counts = np.unique(view[:, c], return_counts=True)
        for at in {0, len(values) - 1}:
            rest = view[view[:, c] != values[at], c]
            if not max(5, 0.005 * len(view)) <= counts[at] < 0.5 * len(view):
                continue
            low, high = np.percentile(rest, [25, 75])
            if high > low and not low - 10 * (high - low) <= values[at] <= high + 10 * (high - low):
                messages.append(
                    f"{values[at]:g} stands in {counts[at]:,} of {len(view):,} rows of column {c} of {name}, far from "
                    "all others: a mark for missing values? drop those rows"
                )
    return messages
