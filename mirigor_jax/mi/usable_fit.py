"""Families of linear probes with bounded weights, and the least loss in such a family, certified from below. Nats.

A family V holds the classifiers q(c|h) = softmax(log p + z W), with z = T(h) of norm <= reach, and every column w_k of
W of norm <= `norm`. W = 0 gives p itself. The map T, the norm and the reach do not depend on the rows that give an end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from mirigor_jax import parallel
from mirigor_jax.numerics import CHUNK

FAR = 1e12  # standard deviations. Farther values count as this far, so that no map of them overflows
MAX_STEPS = 3000  # of one descent
CHECKED = 25  # steps between two looks at the gap
HIGHEST = "highest"  # accelerators' default precision of products is too coarse for the gap


@dataclass(frozen=True)
class LinearFamily:
    """The probes softmax(log p + z W) on z = (clipped (h - mean) / scale @ root, constant), all |w_k| <= norm.

    log_p: log p(c).
    mean, scale: of each column of h. A value is at most FAR after both.
    root: the map of the standardized columns.
    clip: norm to which longer mapped rows are shortened.
    constant: the last coordinate of every z, so that W can hold biases.
    norm: the largest norm of a column of W.
    """

    log_p: Float[np.ndarray, " c"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    root: Float[np.ndarray, "d d"]
    clip: float
    constant: float
    norm: float

    @property
    def reach(self) -> float:
        """The largest norm of z."""
        return float(np.hypot(self.clip, self.constant))

    @property
    def largest_losses(self) -> Float[np.ndarray, " c"]:
        """The most that -log q(c|h) can be for each class, over the family and over all h.

        -log q(c|h) = log sum_j p_j exp((w_j - w_c) z) - log p_c <= 2 norm reach - log p_c.
        """
        return 2 * self.norm * self.reach - self.log_p

    def map(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        """z = T(h) in float64."""
        z = np.empty((len(h), len(self.root) + 1))
        z[:, -1] = self.constant
        for first in range(0, len(h), CHUNK):
            part = slice(first, first + CHUNK)
            z[part, :-1] = clipped(standardized(h[part], self.mean, self.scale) @ self.root, self.clip)
        return z

    def losses(
        self, z: Float[np.ndarray, "n e"], classes: Int[np.ndarray, " n"], weights: Float[np.ndarray, "e c"]
    ) -> Float[np.ndarray, " n"]:
        """-log q(c|h) of each row."""
        return row_losses(self.log_p + z @ weights, classes)


def row_losses(scores: Float[np.ndarray, "n c"], classes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The log-loss of each row, for class scores before the softmax."""
    top = scores.max(axis=1)
    return np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top - scores[np.arange(len(scores)), classes]


def standardized(
    h: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """(h - mean) / scale in float64, with values beyond FAR shortened to it."""
    return np.clip((h - mean) / scale, -FAR, FAR)


def clipped(z: Float[np.ndarray, "n d"], most: float) -> Float[np.ndarray, "n d"]:
    """The rows, each shortened to the norm `most` if it is longer."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return z * np.minimum(1, most / np.maximum(norms, np.finfo(np.float64).tiny))


def bends_of(bets: Float[np.ndarray, " c"], largest: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """For each bet and largest loss, the largest loss at which `minorant` may leave log(1 + bet loss).

    Two conditions bound it: e^a - 1 <= a + 1 / bet, so that log(1 + bet loss) is convex in W up to a; and the minorant
    at the largest loss is at most log(1 + bet loss). In between it is then below too: the difference of the two rises
    from 0 at a and falls at most once.
    """

    def holds(bends: np.ndarray) -> np.ndarray:
        convex = np.expm1(bends) <= bends + 1 / bets
        return convex & (minorant(largest, bets, bends)[0] <= np.log1p(bets * largest))

    low, high = np.full(bets.shape, 1e-9), np.minimum(largest, 500.0)
    for _ in range(32):  # the bend is then too small by 1e-7 at most
        middle = (low + high) / 2
        fits = holds(middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low


def minorant(losses: Any, bets: Any, bends: Any) -> tuple[Any, Any]:
    """A function of the loss that is at most log(1 + bet loss) and convex in W, and its derivative.

    It is log(1 + bet loss) up to the loss `bend`, and then log(e^loss - 1), scaled and shifted to go on smoothly. psi
    of a softmax's log-loss is convex in the logits if and only if psi'' / psi' >= -1 / (e^loss - 1); log(e^loss - 1)
    is the function with equality. A class's weight belongs in its bet: the minorant of a weighted loss would not be
    convex for weights below 1.
    losses, bets, bends: arrays of one shape.
    """
    np_: Any = jnp if isinstance(losses, jax.Array) else np
    slope = bets * -np_.expm1(-bends) / (1 + bets * bends)
    above = np_.maximum(losses, bends)
    tail = above - bends + np_.log1p(-np_.exp(-above)) - np_.log1p(-np_.exp(-bends))
    value = np_.log1p(bets * np_.minimum(losses, bends)) + slope * tail
    return value, np_.where(losses <= bends, bets / (1 + bets * losses), slope / -np_.expm1(-above))


class Problem(NamedTuple):
    """Minimize the mean over rows of weight * loss, or of `minorant` / bet, over all W with |w_k| <= norm.

    z: (n, e). classes: of each row.
    log_p: log p(c).
    weights: of each row, above 0.
    norm: the largest norm of a column of W.
    bet, bends: each row's minorant has the bet `bet * weight` and this bend. A bet of 0 stands for the loss itself, so
        that one program solves both problems.
    """

    z: Float[np.ndarray | Array, "n e"]
    classes: Int[np.ndarray | Array, " n"]
    log_p: Float[np.ndarray | Array, " c"]
    weights: Float[np.ndarray | Array, " n"]
    norm: float | Float[np.ndarray | Array, ""]
    bet: float | Float[np.ndarray | Array, ""]
    bends: Float[np.ndarray | Array, " n"]

    @classmethod
    def of_mean_loss(
        cls,
        z: Float[np.ndarray, "n e"],
        classes: Int[np.ndarray, " n"],
        log_p: Float[np.ndarray, " c"],
        weights: Float[np.ndarray, " n"],
        norm: float,
    ) -> "Problem":
        """The problem of the loss itself."""
        return cls(z, classes, log_p, weights, norm, 0.0, np.ones(len(z)))


@dataclass(frozen=True)
class Minimum:
    """A problem's least value, bracketed: lowest <= minimum <= value. weights: the W that has the value."""

    value: float
    lowest: float
    weights: Float[np.ndarray, "e c"]

    @property
    def gap(self) -> float:
        return self.value - self.lowest


def minimize(
    problem: Problem, *, tolerance: float, start: Float[np.ndarray, "e c"] | None = None, max_steps: int = MAX_STEPS
) -> Minimum:
    """Solve a problem, and certify its least value from below.

    The descent moves in the eigenvectors of z'z, scaled by the eigenvalues; a rotation keeps every norm. It runs in
    float32, and goes on in float64 if the gap is then above the tolerance. `lowest` holds whatever the descent returns:
    the objective is convex, so its tangent at any W is below it, and the tangent's minimum over the family is
    value - sum_k (g_k w_k + norm |g_k|). The tangent is computed in float64.
    tolerance: the gap at which the descent ends.
    start: W to start from. None: zeros.
    max_steps: largest number of steps in each precision.
    Source: Frank & Wolfe 1956 (the gap); Beck & Teboulle 2009 (FISTA); O'Donoghue & Candès 2015 (restarts).
    """
    z = np.asarray(problem.z, np.float64)
    scales, rotation = np.linalg.eigh(z.T @ z / len(z))
    # the multiple of the mean outweighs float32's rounding
    scales = np.maximum(scales, 0) + 1e-6 * (scales.mean() or 1.0)
    rotated = problem._replace(z=z @ rotation, classes=np.asarray(problem.classes, np.int32))
    weights = np.zeros((z.shape[1], len(problem.log_p))) if start is None else rotation.T @ start
    best, highest = Minimum(np.inf, -np.inf, weights), -np.inf
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            given = jax.tree.map(jnp.asarray, _cast((rotated, scales, weights, tolerance), dtype))
            weights = np.asarray(_compiled(_descend, "max_steps")(*given, max_steps=max_steps), np.float64)
        found = bracket(rotated, weights)
        best = min(best, found, key=lambda one: one.value)
        highest = max(highest, found.lowest)
        if best.value - highest <= tolerance:
            break
    return Minimum(best.value, highest, rotation @ best.weights)


def bracket(problem: Problem, weights: Float[np.ndarray, "e c"]) -> Minimum:
    """A problem's value at these weights, shortened to its norm if necessary, and a lower limit of its least value."""
    weights = weights / np.maximum(1, np.linalg.norm(weights, axis=0) / problem.norm)
    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, _cast((problem, weights), np.float64))
        value, lowest = map(float, _compiled(_bracket)(*given))
    return Minimum(value, lowest, weights)


def _cast(tree: Any, dtype: type) -> Any:
    """The tree with its floats of this dtype; the classes stay integers."""
    return jax.tree.map(lambda leaf: leaf if np.asarray(leaf).dtype.kind == "i" else np.asarray(leaf, dtype), tree)


def _objective(problem: Problem, scores: Float[Array, "n c"]) -> tuple[Float[Array, ""], Float[Array, "n c"]]:
    """The objective at the scores z W, and its gradient in them."""
    logits = problem.log_p[None, :] + scores
    sums = logsumexp(logits, axis=1)
    hit = problem.classes[:, None] == jnp.arange(logits.shape[1])[None, :]
    losses = jnp.maximum(sums - jnp.sum(jnp.where(hit, logits, 0), axis=1), 0)
    values, slopes = minorant(losses, problem.bet * problem.weights, problem.bends)
    bets = problem.bet > 0
    unit = jnp.where(bets, problem.bet, 1)
    values = jnp.where(bets, values / unit, problem.weights * losses)
    slopes = jnp.where(bets, slopes / unit, problem.weights)
    residuals = (jnp.exp(logits - sums[:, None]) - hit) * slopes[:, None]
    return jnp.mean(values), residuals / len(scores)


@cache
def _compiled(function: Callable[..., Any], *static: str) -> Any:
    """`_bracket` or `_descend`, compiled for each shape. Compiling takes longer than most runs."""
    return jax.jit(function, static_argnames=static, compiler_options=parallel.quick_compilation())


def _bracket(problem: Problem, weights: Float[Array, "e c"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The objective at W, and the minimum over the family of its tangent at W."""
    with jax.default_matmul_precision(HIGHEST):
        value, residuals = _objective(problem, jnp.matmul(problem.z, weights))
        gradient = problem.z.T @ residuals
    gap = jnp.sum(gradient * weights) + problem.norm * jnp.sum(jnp.linalg.norm(gradient, axis=0))
    return value, value - gap


def _nearest(target: Float[Array, "e c"], scales: Float[Array, " e"], norm: Float[Array, ""]) -> Float[Array, "e c"]:
    """The W in the family that is nearest to the target in the norm sum_i scales_i x_i^2, column by column.

    Column x is scales y / (scales + v) for the v >= 0 at which it has the norm, or 0 if y is short enough. Newton's
    steps on 1 / |x(v)| rise to v from below.
    """

    def shrunk(v):
        return target * scales[:, None] / (scales[:, None] + v[None, :])

    def step(_, v):
        x = shrunk(v)
        square = jnp.maximum(jnp.sum(x**2, axis=0), jnp.finfo(x.dtype).tiny)
        slope = jnp.maximum(jnp.sum(x**2 / (scales[:, None] + v[None, :]), axis=0), jnp.finfo(x.dtype).tiny)
        return jnp.maximum(v + (jnp.sqrt(square) / norm - 1) * square / slope, 0)

    x = shrunk(lax.fori_loop(0, 8, step, jnp.zeros(target.shape[1], target.dtype)))
    return x / jnp.maximum(1, jnp.linalg.norm(x, axis=0) / norm)[None, :]


def _descend(
    problem: Problem,
    scales: Float[Array, " e"],
    start: Float[Array, "e c"],
    tolerance: Float[Array, ""],
    *,
    max_steps: int,
) -> Float[Array, "e c"]:
    """Accelerated projected descent in the norm of `scales`. It ends once the gap is within the tolerance."""
    # A softmax's Hessian is at most half the identity, and the minorant's slope at most the weight: no step needs more.
    stiffest = jnp.max(problem.weights) / 2
    slack = 8 * jnp.finfo(start.dtype).eps

    def step(_, carry):
        w, scores, last_w, last_scores, t, stiffness = carry
        next_t = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        ahead = (t - 1) / next_t
        y, y_scores = w + ahead * (w - last_w), scores + ahead * (scores - last_scores)
        value, residuals = _objective(problem, y_scores)
        gradient = problem.z.T @ residuals

        def stiffen(trial):
            stiffness = jnp.minimum(2 * trial[2], stiffest)
            new = _nearest(y - gradient / (stiffness * scales[:, None]), scales, problem.norm)
            new_scores = problem.z @ new
            move = new - y
            model = value + jnp.sum(gradient * move) + stiffness / 2 * jnp.sum(scales[:, None] * move**2)
            enough = _objective(problem, new_scores)[0] <= model + slack * jnp.abs(value)
            return new, new_scores, stiffness, enough | (stiffness >= stiffest)

        trial = y, y_scores, stiffness / 2, jnp.zeros((), bool)  # the first trial is at `stiffness`
        new, new_scores, stiffness, _ = lax.while_loop(lambda trial: ~trial[3], stiffen, trial)
        uphill = jnp.sum(gradient * (new - w)) > 0
        return new, new_scores, w, scores, jnp.where(uphill, 1.0, next_t).astype(t.dtype), stiffness * 0.95

    def unfinished(carry):
        count, gap, _ = carry
        return (count < max_steps) & (gap > tolerance)

    def run(carry):
        count, _, state = carry
        state = lax.fori_loop(0, CHECKED, step, state)
        value, lowest = _bracket(problem, state[0])
        return count + CHECKED, value - lowest, state

    with jax.default_matmul_precision(HIGHEST):
        scores = problem.z @ start
        one = jnp.ones((), start.dtype)
        state = start, scores, start, scores, one, stiffest / start.shape[1]
        return lax.while_loop(unfinished, run, (0, one * jnp.inf, state))[2][0]
