"""`estimate`, the mutual information of two arrays in one call.

It splits the pairs, fits a critic, reads the test part once and certifies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mirigor_jax import checks
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress
from mirigor_jax.mi import fit, read
from mirigor_jax.mi.certify import HeldOut, certify
from mirigor_jax.mi.confidence import BATCHES, interval_of
from mirigor_jax.mi.critics import BilinearCritic, CosineCritic, JointCritic, ResidualCritic, SeparableCritic
from mirigor_jax.mi.estimators import ESTIMATORS, Estimator, resolve
from mirigor_jax.mi.gaussian import features, gaussian_copula_embeddings, normal_scores
from mirigor_jax.mi.results import Estimate, Estimates, Reading
from mirigor_jax.mi.rows import Findings, Rows, check_pairs
from mirigor_jax.settings import Arrays

LEAST = 110  # fewest pairs: enough for one default batch in the fit part, and eight batches of two in the test part
FOLDS = 10  # of the jackknife
WHOLE = 4096  # largest number of pairs a batch for which the score matrix is held whole
BATCH = 1024  # pairs a batch of the certificate if the test part has more than WHOLE
ENTRIES = 2**25  # largest number of scores held at once
TRUSTS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)  # shares of the Gaussian copula that critics may start from
TINY = 1e-150  # columns of smaller numbers are scaled up, because reciprocals of their differences overflow

CRITICS: dict[str, nn.Module] = {
    "joint": JointCritic((32, 32)),
    "separable": SeparableCritic((64, 64), 32),
    "bilinear": BilinearCritic(),
    "cosine": CosineCritic((64,), 32),
}


def estimate(
    x: Any,
    y: Any,
    *,
    estimator: str | Estimator = "info_nce_symmetric",
    critic: str | nn.Module = Arrays.critic,
    k: int | None = None,
    negatives: str = "in-batch",
    batch_size: int = Arrays.batch_size,
    steps: int = 3000,
    learning_rate: float = 6e-3,
    weight_decay: float = 1e-2,
    base: bool = True,
    num_critics: int = Arrays.seeds,
    seed: int = Arrays.seed,
    confidence: float = Arrays.confidence,
    rows: Rows = Arrays.rows,
    on_progress: OnProgress | None = None,
) -> Estimate:
    """Estimate I(X;Y) of n independent pairs of rows, with an interval, and a certificate if the estimator is a bound.

    The pairs are split 60 : 20 : 20 into three disjoint parts, by random numbers that depend on a row's number alone.
    The critic is fitted on the first part, the second (validation) chooses its step, and the third (test) is read once.

        print(mi.estimate(x, y))

    Args:
        x: (n, dx) or (n,) numbers, an array of any framework. n is 110 at least.
        y: (n, dy) or (n,) numbers. Row i is the partner of x's row i.
        estimator: a name in `ESTIMATORS`, or an `Estimator` such as `mi.estimators.smile(tau=1.0)`.
        critic: a name in `CRITICS`, or a module that has their method `scores`.
        k: pairs a batch when the test part is read, at least 2. None: the whole test part, up to 4,096 pairs.
        negatives: the y that the fit scores x_i against: "in-batch" (all others of the batch), "derange" (one other) or
            "shuffle" (one of the batch, perhaps y_i itself).
        batch_size: pairs a step of the fit.
        steps: largest number of steps of the fit. It ends earlier if validation stops improving.
        learning_rate: AdamW's rate at the first step, above 0. It decays by a cosine over `steps`.
        weight_decay: AdamW's, at least 0.
        base: whether the critic starts from the log density ratio of a Gaussian copula, times a factor from 0 to 1 that
            validation chooses, and learns the difference from it.
        num_critics: number of critics, at least 1. The value is that of their averaged scores.
        seed: seeds the critics' parameters and the batches.
        confidence: in [0.5, 1). Confidence of the interval (a t-interval: by a delete-a-fold jackknife, or over
            batches for k above 4,096) and of the certificate (`info_nce_lower_bits` of the same critics;
            for lower bounds only).
        rows: "checked": if rows look dependent, as neighbors in a series or many copies do, the interval and the
            certificate are withheld; a few copies are left out. "independent": you state that rows are independent
            draws, whatever they look like.
        on_progress: called as on_progress(step, steps, note) at every evaluation on validation.

    Returns:
        The `Estimate`, in bits.

    Raises:
        InputError: the arrays do not allow an estimate, or an option is out of its limits.
    """
    return estimate_all(
        [(x, y)],
        estimators=[estimator],
        critic=critic,
        k=k,
        negatives=negatives,
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        base=base,
        num_critics=num_critics,
        seed=seed,
        confidence=confidence,
        rows=rows,
        on_progress=on_progress,
    )[0][0]


def estimate_all(
    pairs: Sequence[tuple[Any, Any]],
    *,
    estimators: Sequence[str | Estimator] = ("info_nce_symmetric",),
    critic: str | nn.Module = Arrays.critic,
    k: int | None = None,
    negatives: str = "in-batch",
    batch_size: int = Arrays.batch_size,
    steps: int = 3000,
    learning_rate: float = 6e-3,
    weight_decay: float = 1e-2,
    base: bool = True,
    num_critics: int = Arrays.seeds,
    seed: int = Arrays.seed,
    confidence: float = Arrays.confidence,
    rows: Rows = Arrays.rows,
    on_progress: OnProgress | None = None,
) -> Estimates:
    """Estimate I(X;Y) of every data set by every estimator, and fit all critics at once.

        print(mi.estimate_all([(x, y)], estimators=["nwj", mi.estimators.smile(tau=1.0)]))

    Args:
        pairs: data sets (x, y), as `estimate` takes them, all of the same shapes.
        estimators: names in `ESTIMATORS`, or `Estimator` objects.
        critic, k, negatives, batch_size, steps, learning_rate, weight_decay: as in `estimate`, the same for all.
        base, num_critics, seed, confidence, rows, on_progress: likewise.

    Returns:
        `Estimates`: its item [i][j] is the `Estimate` of pairs[i] by estimators[j].

    Raises:
        InputError: as `estimate` does, or the data sets have different shapes.
    """
    chosen = [resolve(estimator) for estimator in estimators]
    inner = _critic(critic, chosen, negatives)
    _check_options(
        {"batch_size": batch_size, "steps": steps, "num_critics": num_critics},
        learning_rate,
        weight_decay,
        confidence,
        seed,
    )
    sets = split(pairs, rows)
    fitted_on, tested_on = (len(sets[0].x[part]) for part in (0, 2))
    if batch_size > fitted_on:
        raise InputError(f"batch_size = {batch_size} exceeds the {fitted_on:,} pairs of the fit part; lower it")
    reading = _Reading(_check_k(k, tested_on, chosen), num_critics, confidence)

    estimates: dict[tuple[int, int], Estimate] = {}
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, estimator in enumerate(chosen):
        groups.setdefault((estimator.needs_u, estimator.within_views), []).append(index)
    for (_, within_views), indices in groups.items():
        based = base and not within_views  # the base can only score x against y
        fit_config = fit.FitConfig(
            critic=ResidualCritic(inner, sets[0].rank) if based else inner,
            estimators=tuple(chosen[index] for index in indices),
            negatives=cast("fit.Negatives", negatives),
            batch_size=batch_size,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            trusts=TRUSTS if based else (),
        )
        group = _estimate_group(fit_config, sets, reading, based=based, seed=seed, on_progress=on_progress)
        estimates |= {(d, indices[e]): result for (d, e), result in group.items()}
    return Estimates(tuple(tuple(estimates[d, e] for e in range(len(chosen))) for d in range(len(sets))))


@dataclass(frozen=True)
class _Reading:
    """How fitted critics are read: pairs a batch, number of critics (their scores are averaged), confidence."""

    k: int
    num_critics: int
    confidence: float


def _check_options(
    counts: dict[str, int], learning_rate: float, weight_decay: float, confidence: float, seed: int
) -> None:
    for name, value in counts.items():
        checks.whole(name, value, 1)
    checks.above_zero("learning_rate", learning_rate)
    checks.not_negative("weight_decay", weight_decay, "0.01")
    checks.confidence(confidence)
    checks.seed(seed)


def split(pairs: Sequence[tuple[Any, Any]], rows: Rows = Arrays.rows) -> list["Split"]:
    """Split every data set into its parts. Raises InputError if one cannot be split, or if their shapes differ."""
    samples = [_arrays(x, y) for x, y in pairs]
    if len(shapes := {(x.shape, y.shape) for x, y in samples}) != 1:
        raise InputError(f"data sets have shapes {sorted(shapes)}: expected one shape; estimate the others separately")
    # The split depends on the rows' numbers alone, so all data sets share it.
    keys = row_keys(len(samples[0][0]))
    fitted, validation, test = parts_of(np.zeros(len(keys), int), keys)
    findings = [check_pairs(x, y, test, rows) for x, y in samples]
    left = test[~np.any([one.copies for one in findings], axis=0)]
    # Batches follow the order of the keys, so the order of the rows has no influence.
    order = [part[np.argsort(keys[part])] for part in (fitted, validation, left)]
    return [Split.of(x, y, order, found) for (x, y), found in zip(samples, findings, strict=True)]


def _check_k(k: int | None, tested_on: int, estimators: Sequence[Estimator]) -> int:
    """k, or its default for None. Raises InputError if the test part or an estimator does not allow it."""
    k = min(tested_on, WHOLE) if k is None else checks.whole("k", k, 2)
    if not 2 <= k <= tested_on:
        raise InputError(
            f"k = {k:,}: expected from 2 to the {tested_on:,} pairs of the test part; lower it, or give None"
        )
    if k > WHOLE and (whole := [estimator.name for estimator in estimators if estimator.from_sums is None]):
        able = " and ".join(name for name in ESTIMATORS if resolve(name).from_sums is not None)
        raise InputError(f"k = {k:,}: beyond {WHOLE:,} only {able} are read, not {', '.join(whole)}; lower it")
    return k


def _estimate_group(
    fit_config: fit.FitConfig,
    sets: Sequence["Split"],
    reading: _Reading,
    *,
    based: bool,
    seed: int,
    on_progress: OnProgress | None,
) -> dict[tuple[int, int], Estimate]:
    """Fit all critics of a group at once. Returns the estimate of data set d by the group's estimator e at (d, e)."""
    estimates, count = {}, reading.num_critics
    parts = ([split.rows(part, based) for split in sets] for part in range(3))
    fit_part, validation, test = (fit.Pairs(*(np.stack(view) for view in zip(*part, strict=True))) for part in parts)
    members = np.indices((len(sets), len(fit_config.estimators), count)).reshape(3, -1).astype(np.int32)
    roots = np.random.SeedSequence(seed).generate_state(count) >> 1
    critic_job = fit.CriticJob(members[0], members[1], roots[members[2]].astype(np.int32))
    params, _ = fit.fit_critics(fit_config, fit_part, validation, critic_job, on_progress)
    for at in range(0, members.shape[1], count):
        d, e = int(members[0, at]), int(members[1, at])
        critics = jax.tree.map(lambda leaf, at=at: leaf[at : at + count], params)
        held_out = [(np.asarray(part.x[d]), np.asarray(part.y[d])) for part in (validation, test)]
        result = _read(fit_config, fit_config.estimators[e], critics, (held_out[0], held_out[1]), reading)
        estimates[d, e] = sets[d].findings.applied_to(result)
    return estimates


def _read(
    fit_config: fit.FitConfig,
    estimator: Estimator,
    params: Any,
    held_out: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    reading: _Reading,
) -> Estimate:
    """Read the test part once by fitted critics. held_out: (x, y) of validation, and (x, y) of test."""
    (validation, test), k = held_out, reading.k
    x, y = _batches(test, k)
    scores, info_nce = None, None
    if k <= WHOLE:
        scores, u = read.read_scores(fit_config, params, x, y)
        folds = min(FOLDS, k // 2)
        each_nats, value, without = (np.asarray(v, np.float64) for v in read.read(estimator, scores, u, folds))
        interval = read.jackknife_interval(float(value), without, reading.confidence)
        if estimator.from_sums is None and not estimator.within_views:
            info_nce = _info_nce(scores, reading)
    else:
        each_nats, values = _read_by_sums(fit_config, estimator, params, (x, y), reading.num_critics)
        value, interval = values.mean(), interval_of(values, reading.confidence, BATCHES)
    bits = 1 / math.log(2)
    result = Estimate(
        name=estimator.name,
        value_bits=float(value) * bits,
        kind=estimator.kind,
        k=k,
        ceiling_bits=estimator.ceiling_at(k) * bits,
        interval=interval,
        lower_bits=None,
        upper_bits=None,
        confidence=reading.confidence,
        certificate=None,
        verdict="not-a-bound",
        pairs=len(x) * k,
        seed_bits=tuple(float(v) * bits for v in each_nats),
        info_nce=info_nce,
        note=estimator.note,
    )
    if estimator.kind != "lower bound":
        return result
    # The certificate chooses its own K, so it gets the scores of batches as large as memory allows.
    size = min(len(test[0]), WHOLE if len(test[0]) <= WHOLE else BATCH)
    if scores is None or k != size:
        scores, _ = read.read_scores(fit_config, params, *_batches(test, size))
    rehearsal, _ = read.read_scores(fit_config, params, *_batches(validation, min(size, len(validation[0]))))
    parts = [HeldOut(np.asarray(every).mean(axis=0)) for every in (rehearsal, scores)]
    certificate, certificates = certify(parts[0], parts[1], None, reading.confidence)
    chosen = certificates[certificate]
    lower_bits = chosen.lower_bits
    if estimator.from_sums is not None and k >= chosen.counts["k"]:
        # InfoNCE at a larger K is larger in expectation. A lower end above it is chance, and the smaller of them holds.
        lower_bits = min(lower_bits, max(0.0, result.value_bits))
    return replace(result, lower_bits=lower_bits, certificate=certificate, certificates=certificates, verdict="bounded")


def _info_nce(scores: Float[Array, "s b k k"], reading: _Reading) -> Reading:
    """InfoNCE of the critics' averaged scores, to stand beside another estimator's value."""
    nats = np.asarray(read.symmetric_info_nce(jnp.mean(scores, axis=0)), np.float64)
    interval = interval_of(nats, reading.confidence, BATCHES)
    return Reading(float(nats.mean()) / math.log(2), len(nats), interval, math.log2(reading.k), None)


def _batches(part: tuple[np.ndarray, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint batches of `size` rows of x and of y: all, or as many as have ENTRIES scores if matrices are held."""
    count = min(len(part[0]) // size, max(ENTRIES // size**2, 1) if size <= WHOLE else len(part[0]))
    x, y = (rows[: count * size].reshape(count, size, -1) for rows in part)
    return x, y


def _read_by_sums(
    fit_config: fit.FitConfig,
    estimator: Estimator,
    params: Any,
    batches: tuple[np.ndarray, np.ndarray],
    num_critics: int,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " b"]]:
    """(each critic's mean over batches, the averaged critic's value of each batch), in nats, without a score matrix."""
    assert estimator.from_sums is not None  # `_check_k` refuses the others
    alone = [jax.tree.map(lambda leaf, s=s: leaf[s : s + 1], params) for s in range(num_critics)]
    *each, values = (
        np.asarray(read.read_by_sums(fit_config, estimator.from_sums, critic["f"], *batches), np.float64)
        for critic in [*(alone if num_critics > 1 else []), params]
    )
    return np.mean(each or [values], axis=1), values


def _critic(critic: str | nn.Module, estimators: Sequence[Estimator], negatives: str) -> nn.Module:
    if isinstance(critic, str):
        if critic not in CRITICS:
            raise InputError(f"unknown critic '{critic}'; choose one of {', '.join(CRITICS)}")
        critic = CRITICS[critic]
    if negatives not in ("in-batch", "derange", "shuffle"):
        raise InputError(f"unknown negatives '{negatives}'; choose one of in-batch, derange, shuffle")
    for estimator in estimators:
        estimator.check(critic, negatives)
    return critic


def _arrays(x: Any, y: Any) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n q"]]:
    x, y = as_rows(x, "x"), as_rows(y, "y")
    if len(x) != len(y):
        raise InputError(
            f"x has {len(x):,} rows and y has {len(y):,}: expected equal numbers, as row i of both is a pair"
        )
    if len(x) < LEAST:
        raise InputError(f"{len(x)} pairs are too few to split into fit, validation and test parts; {LEAST} at least")
    return x, y


def as_rows(values: Any, name: str, *, as_they_are: bool = False) -> Float[np.ndarray, "n d"]:
    """Rows in float64, from any framework.

    as_they_are: False: a column of integers beyond 2^53 (such as nanoseconds since 1970) is shifted, and a column of
        tiny numbers (such as 1e-310) is scaled, because float64 cannot hold the one or divide by the other. Neither
        changes mutual information.
    Raises InputError unless the values are (n, d) or (n,) numbers that are finite in float32.
    """
    array = checks.to_numpy(values, name)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}: expected (n, d), one row a sample; reshape to (n, -1)")
    whole = array.dtype.kind in "iu" and array.size > 0
    if whole and not as_they_are and max(-int(array.min()), int(array.max())) > 2**53:
        array = (array - array.min(axis=0, keepdims=True)).astype(np.uint64)  # a wrapped difference wraps back
    array = array.astype(np.float64)
    checks.finite(array, name)
    if as_they_are or not array.size:
        return array
    largest = np.max(np.abs(array), axis=0, keepdims=True)
    tiny = (largest > 0) & (largest < TINY)
    return np.ldexp(array, np.where(tiny, -np.frexp(largest)[1], 0)) if tiny.any() else array


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a data set (fit, validation, test) as critics read them.

    x, y: each part's rows. base_x, base_y: each part's factors of the density ratio that critics start from.
    findings: signs that the rows are not independent draws.
    """

    x: tuple[Float[np.ndarray, "_ p"], ...]
    y: tuple[Float[np.ndarray, "_ q"], ...]
    base_x: tuple[Float[np.ndarray, "_ r"], ...]
    base_y: tuple[Float[np.ndarray, "_ r"], ...]
    findings: Findings

    @property
    def rank(self) -> int:
        return self.base_x[0].shape[1]

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "n p"],
        y: Float[np.ndarray, "n q"],
        order: Sequence[Int[np.ndarray, " _"]],
        findings: Findings,
    ) -> "Split":
        """Cut x and y into parts and make them what critics read. order: the rows of each part."""
        raw_x, raw_y = ([rows[part] for part in order] for rows in (x, y))
        constants = [
            f"{constant} of {parts[0].shape[1]} columns of {name} are constant"
            for name, parts in (("x", raw_x), ("y", raw_y))
            if (constant := int(np.sum(np.ptp(parts[0], axis=0) == 0)))
        ]
        findings = replace(findings, warnings=(*constants, *findings.warnings))
        scores_x, scores_y = normal_scores(raw_x), normal_scores(raw_y)
        base_x, base_y = gaussian_copula_embeddings(scores_x, scores_y)
        return cls(features(scores_x, raw_x), features(scores_y, raw_y), base_x, base_y, findings)

    def rows(self, part: int, based: bool) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.x[part], self.y[part]
        return (np.hstack([x, self.base_x[part]]), np.hstack([y, self.base_y[part]])) if based else (x, y)
