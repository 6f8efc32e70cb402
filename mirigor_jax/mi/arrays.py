"""How much information do two arrays share? The whole answer in one call: split, fit, read once, certify."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.special import ndtri

from mirigor_jax import fitting
from mirigor_jax.errors import InputError
from mirigor_jax.mi import certificate, fit
from mirigor_jax.mi.bounds import ESTIMATORS, Estimator
from mirigor_jax.mi.certificate import Estimate
from mirigor_jax.mi.critics import BasedCritic, BilinearCritic, CosineCritic, JointCritic, SeparableCritic

PARTS = (0.6, 0.2)  # of the pairs for the fit and for validation; the rest is the test part
LEAST = 110  # pairs: a default batch to fit on, and eight batches of two to certify by
FOLDS = 10  # of the jackknife
WHOLE = 4096  # pairs whose score matrix is held at once
BATCH = 1024  # pairs a batch of the certificate's, where there are more than WHOLE
ENTRIES = 2**25  # scores held at once
RANK = 256  # most canonical directions that a critic starts from

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
    critic: str | nn.Module = "joint",
    k: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    confidence: float = 0.95,
    **fitting: Any,
) -> Estimate:
    """I(X;Y) of n independent pairs of rows, with its interval, and a certificate where the estimator allows one.

    x, y: (n, dx) and (n, dy), or (n,), of numbers from any framework. The pairs are split into disjoint parts: the
    critic is fitted on the first, its step chosen on the second, and the third is read once. estimator: a name of
    `ESTIMATORS`, or what one of its builders made. The other arguments are `estimate_all`'s; InputError as it raises.

        print(mi.estimate(x, y))
    """
    fitting |= {"critic": critic, "k": k, "seeds": seeds, "seed": seed, "confidence": confidence}
    return estimate_all([(x, y)], estimators=[estimator], **fitting)[0][0]


def estimate_all(
    pairs: Sequence[tuple[Any, Any]],
    *,
    estimators: Sequence[str | Estimator] = ("info_nce_symmetric",),
    critic: str | nn.Module = "joint",
    k: int | None = None,
    negatives: str = "in-batch",
    batch_size: int = 64,
    steps: int = 3000,
    learning_rate: float = 6e-3,
    weight_decay: float = 1e-2,
    base: bool = True,
    seeds: int = 1,
    seed: int = 0,
    confidence: float = 0.95,
    report: fitting.Report | None = None,
) -> list[list[Estimate]]:
    """Every estimator on every data set, `estimates[i][j]` of pairs[i] by estimators[j], fitted all at once.

    pairs: data sets (x, y) of equal shapes. critic: a name of `CRITICS`, or a module with their `scores`.
    k: pairs that are each other's candidates when the test part is read (K_Est); None: all of them, up to 4,096.
    negatives, batch_size, steps, learning_rate, weight_decay: of the fit, which stops early by validation.
    base: start from the Gaussian copula's density ratio, and learn what that lacks (`_gaussian_base`).
    seeds: critics fitted each; the estimate is that of their averaged scores. seed: of the split, critics and batches.
    confidence: of the interval (a delete-a-fold jackknife's t-interval) and of the certificate, `info_nce_lower_bits`
    of the same scores, which only lower bounds get.
    report: called as report(step, steps, note) at every look at validation.
    Raises InputError for what cannot be estimated, naming it.
    """
    chosen = [_resolve(estimator) for estimator in estimators]
    inner = _critic(critic, chosen, negatives)
    numbers = {"batch_size": batch_size, "steps": steps, "seeds": seeds, "learning_rate": learning_rate}
    if bad := [f"{name} = {value}" for name, value in numbers.items() if not 0 < value < math.inf]:
        raise InputError(f"{', '.join(bad)}: expected above 0")
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence = {confidence}: expected in [0.5, 1); 0.95 is usual")
    samples = [_arrays(x, y) for x, y in pairs]
    if len(shapes := {(x.shape, y.shape) for x, y in samples}) != 1:
        raise InputError(f"data sets have shapes {sorted(shapes)}: expected the same of all; estimate the others apart")
    sets = [_Split.of(x, y, seed) for x, y in samples]
    fitted_on, tested_on = (len(sets[0].x[part]) for part in (0, 2))
    if batch_size > fitted_on:
        raise InputError(f"batch_size = {batch_size} exceeds the {fitted_on:,} pairs of the fit part; lower it")
    k = min(tested_on, WHOLE) if k is None else k
    if not 2 <= k <= tested_on:
        raise InputError(
            f"k = {k:,}: expected from 2 to the {tested_on:,} pairs of the test part; lower it, or give None"
        )
    if k > WHOLE and any(not one.name.startswith("info_nce") for one in chosen):
        raise InputError(f"k = {k:,}: beyond {WHOLE:,} only info_nce and info_nce_symmetric are read; lower it")

    found: dict[tuple[int, int], Estimate] = {}
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, one in enumerate(chosen):
        groups.setdefault((one.needs_u, one.anchors == "all"), []).append(index)
    for (_, all_anchors), indices in groups.items():
        based = base and not all_anchors  # the base scores x against y alone
        recipe = fit.Recipe(
            critic=BasedCritic(inner, sets[0].rank) if based else inner,
            estimators=tuple(chosen[index] for index in indices),
            negatives=cast("fit.Negatives", negatives),
            batch_size=batch_size,
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        parts = ([one.rows(part, based) for one in sets] for part in range(3))
        fitting, validation, test = (fit.Pairs(*(np.stack(view) for view in zip(*part, strict=True))) for part in parts)
        members = np.indices((len(sets), len(indices), seeds)).reshape(3, -1).astype(np.int32)
        roots = np.random.SeedSequence(seed).generate_state(seeds) >> 1
        member = fit.Member(members[0], members[1], roots[members[2]].astype(np.int32))
        params, _ = fit.fit_members(recipe, fitting, validation, member, report)
        for at in range(0, members.shape[1], seeds):
            d, e = int(members[0, at]), indices[members[1, at]]
            own = jax.tree.map(lambda leaf, at=at: leaf[at : at + seeds], params)
            held_out = [(np.asarray(part.x[d]), np.asarray(part.y[d])) for part in (validation, test)]
            read = _read(recipe, chosen[e], own, held_out[0], held_out[1], k, seeds, confidence)
            found[d, e] = replace(read, warnings=sets[d].warnings)
    return [[found[d, e] for e in range(len(chosen))] for d in range(len(sets))]


def _read(
    recipe: fit.Recipe,
    estimator: Estimator,
    params: Any,
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    k: int,
    seeds: int,
    confidence: float,
) -> Estimate:
    """The Estimate of fitted critics: the test part's one reading."""

    def batches(part: tuple[np.ndarray, np.ndarray], size: int) -> list[np.ndarray]:
        count = min(len(part[0]) // size, max(ENTRIES // size**2, 1) if size <= WHOLE else len(part[0]))
        return [rows[: count * size].reshape(count, size, -1) for rows in part]

    x, y = batches(test, k)
    # The certificate chooses its own K, so what it gets is scored in batches as large as memory lets them be.
    size = min(len(test[0]), WHOLE if len(test[0]) <= WHOLE else BATCH)
    scores, certified, bound = None, None, None
    if k <= WHOLE:
        scores, u = fit.read_scores(recipe, params, x, y)
        folds = min(FOLDS, k // 2)
        seed_nats, value, without = (np.asarray(v, np.float64) for v in fit.read(estimator, scores, u, folds))
        interval = jackknife_interval(float(value), without, confidence)
    else:
        critics = [jax.tree.map(lambda leaf, s=s: leaf[s : s + 1], params) for s in range(seeds)] if seeds > 1 else []
        *each, values = (
            np.asarray(fit.read_info_nce(recipe, estimator.anchors, one, x, y), np.float64)
            for one in [*critics, params]
        )
        seed_nats = np.mean(each or [values], axis=1)
        value, interval = values.mean(), certificate.t_interval(values, confidence)
    if estimator.kind == "lower bound":
        if scores is None or k != size:
            scores, _ = fit.read_scores(recipe, params, *batches(test, size))
        rehearsal, _ = fit.read_scores(recipe, params, *batches(validation, min(size, len(validation[0]))))
        averaged = [np.asarray(of_seeds).mean(axis=0) for of_seeds in (rehearsal, scores)]
        certified = certificate.info_nce_lower_bits(averaged[0], averaged[1], confidence)
    elif scores is not None and estimator.anchors != "all":
        bound = float(np.mean(fit.strict_info_nce(jnp.mean(scores, axis=0)))) / math.log(2)
    ceiling = estimator.ceiling(2 * k - 2 if estimator.anchors == "all" else k - 1)
    bits = 1 / math.log(2)
    return Estimate(
        name=estimator.name,
        value_bits=float(value) * bits,
        kind=estimator.kind,
        k=k,
        ceiling_bits=math.inf if ceiling is None else ceiling * bits,
        t_lower_bits=interval[0] * bits,
        t_upper_bits=interval[1] * bits,
        lower_bits=None if certified is None else certified.lower_bits,
        upper_bits=None,
        confidence=confidence,
        certificate=None if certified is None else "infonce",
        verdict="not-a-bound" if certified is None else "bounded",
        pairs=len(x) * k,
        seed_bits=tuple(float(v) * bits for v in seed_nats),
        bound_bits=bound,
        note=estimator.note,
    )


def jackknife_interval(value: float, without: Float[np.ndarray, " folds"], confidence: float) -> tuple[float, float]:
    """t-interval of a value from its values without each fold of the sample; infinite for a single fold.

    Source: Quenouille 1956; Tukey 1958 (the jackknife).
    """
    if (folds := len(without)) < 2:
        return -math.inf, math.inf
    error = math.sqrt((folds - 1) / folds * np.sum((without - without.mean()) ** 2))
    half = float(stats.t.ppf((1 + confidence) / 2, folds - 1)) * error
    return value - half, value + half


@lru_cache
def _named(name: str) -> Estimator:
    return ESTIMATORS[name]()


def _resolve(estimator: str | Estimator) -> Estimator:
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise InputError(f"unknown estimator '{estimator}'; choose of {', '.join(ESTIMATORS)}")
    return _named(estimator)


def _critic(critic: str | nn.Module, estimators: Sequence[Estimator], negatives: str) -> nn.Module:
    if isinstance(critic, str):
        if critic not in CRITICS:
            raise InputError(f"unknown critic '{critic}'; choose of {', '.join(CRITICS)}")
        critic = CRITICS[critic]
    if negatives not in ("in-batch", "derange", "shuffle"):
        raise InputError(f"unknown negatives '{negatives}'; choose of in-batch, derange, shuffle")
    for one in estimators:
        if one.anchors == "all" and not isinstance(critic, CosineCritic):
            raise InputError(f"{one.name} scores rows of one view against each other; it needs critic='cosine'")
        if one.anchors == "all" and negatives != "in-batch":
            raise InputError(f"{one.name} takes its negatives from the batch; negatives='{negatives}' is not for it")
    return critic


def _arrays(x: Any, y: Any) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n q"]]:
    x, y = as_rows(x, "x"), as_rows(y, "y")
    if len(x) != len(y):
        raise InputError(f"x has {len(x):,} rows and y has {len(y):,}: expected as many, row i of both a pair")
    if len(x) < LEAST:
        raise InputError(f"{len(x)} pairs are too few to split into fit, validation and test parts; {LEAST} at least")
    return x, y


def as_rows(values: Any, name: str) -> Float[np.ndarray, "n d"]:
    """Rows in float64, from any framework."""
    array = np.from_dlpack(values) if hasattr(values, "__dlpack__") and not hasattr(values, "__array__") else values
    array = np.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 too, which NumPy alone does not know
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} is of dtype {array.dtype}: expected numbers (float, int or bool); encode it first")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}: expected (n, d), one row a sample; reshape to (n, -1)")
    array = array.astype(np.float64)
    if bad := array.size - np.count_nonzero(np.isfinite(array)):
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"{name} has {bad:,} NaN or infinite values, the first at [{row}, {column}]; drop those rows")
    return array


@dataclass(frozen=True)
class _Split:
    """Three disjoint parts of a data set (fit, validation, test) as critics read them, and what to warn of."""

    x: tuple[Float[np.ndarray, "_ p"], ...]
    y: tuple[Float[np.ndarray, "_ q"], ...]
    base_x: tuple[Float[np.ndarray, "_ r"], ...]
    base_y: tuple[Float[np.ndarray, "_ r"], ...]
    warnings: tuple[str, ...]

    @property
    def rank(self) -> int:
        return self.base_x[0].shape[1]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], seed: int) -> "_Split":
        order = np.random.default_rng(seed).permutation(len(x))
        cuts = np.cumsum([int(share * len(x)) for share in PARTS]).tolist()
        raw_x, raw_y = (np.split(rows[order], cuts) for rows in (x, y))
        warnings = []
        for name, parts in (("x", raw_x), ("y", raw_y)):
            if constant := int(np.sum(np.ptp(parts[0], axis=0) == 0)):
                warnings.append(f"{constant} of {parts[0].shape[1]} columns of {name} are constant")
        if repeated := repeated_rows(np.hstack([x, y])[order], cuts[1]):
            warnings.append(
                f"{repeated:,} of {len(x) - cuts[1]:,} test pairs stand in the fit or validation part too; unless the "
                "data are discrete they are no fresh samples, and neither estimate nor certificate is to be trusted"
            )
        scores_x, scores_y = _normal_scores(raw_x), _normal_scores(raw_y)
        base_x, base_y = _gaussian_base(scores_x, scores_y)
        return cls(_features(scores_x, raw_x), _features(scores_y, raw_y), base_x, base_y, tuple(warnings))

    def rows(self, part: int, based: bool) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.x[part], self.y[part]
        return (np.hstack([x, self.base_x[part]]), np.hstack([y, self.base_y[part]])) if based else (x, y)


def repeated_rows(rows: Float[np.ndarray, "n d"], first_test: int) -> int:
    """How many rows from `first_test` on equal an earlier one, by a 64-bit hash of their bits."""
    generator = np.random.default_rng(0)
    odd: Any = generator.integers(0, 2**63, rows.shape[1], dtype=np.uint64) * 2 + 1
    bits: Any = (rows + 0.0).view(np.uint64)  # -0.0 is 0.0
    hashes: Any = np.sum((bits ^ (bits >> 29)) * odd[None, :], axis=1, dtype=np.uint64)
    return int(np.isin(hashes[first_test:], hashes[:first_test]).sum())


def _normal_scores(parts: Sequence[Float[np.ndarray, "_ d"]]) -> tuple[Float[np.ndarray, "_ d"], ...]:
    """Every column taken to a standard normal by the fit part's ranks: monotonic, so I stays."""
    scores = [np.empty(part.shape) for part in parts]
    for column in range(parts[0].shape[1]):
        values, counts = np.unique(parts[0][:, column], return_counts=True)
        normal = ndtri((np.cumsum(counts) - 0.5 * counts) / len(parts[0]))
        for score, part in zip(scores, parts, strict=True):
            score[:, column] = np.interp(part[:, column], values, normal)
    return tuple(scores)


def _features(
    scores: Sequence[Float[np.ndarray, "_ d"]], parts: Sequence[Float[np.ndarray, "_ d"]]
) -> tuple[Float[np.ndarray, "_ p"], ...]:
    """What critics read of a row: normal scores, robustly scaled values under asinh, and the length of the scores.

    Edges are straight in the values, tails are tame in the scores, and heavy-tailed laws couple lengths.
    """

    def rows(score, part):
        values = squash(part, parts[0])
        length = (np.mean(score**2, axis=1, keepdims=True) - 1) * math.sqrt(score.shape[1] / 2)
        return np.hstack([score, values, length]).astype(np.float32)

    return tuple(map(rows, scores, parts))


def squash(rows: Float[np.ndarray, "n d"], by: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n d"]:
    """Columns centred and scaled by the quartiles of the rows `by`, under asinh: one-to-one, and tails are tame."""
    low, centre, high = np.percentile(by, [25, 50, 75], axis=0)
    spread = (high - low) / 1.349
    spread = np.where(spread > 0, spread, by.std(axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    return 2 * np.arcsinh((rows - centre[None, :]) / spread[None, :] / 2)


def _gaussian_base(
    x: Sequence[Float[np.ndarray, "_ p"]], y: Sequence[Float[np.ndarray, "_ q"]]
) -> tuple[tuple[Float[np.ndarray, "_ r"], ...], tuple[Float[np.ndarray, "_ r"], ...]]:
    """u, v of every part with u·v the log density ratio of a Gaussian copula, where critics start from.

    In canonical coordinates (a, b) of correlations ρ it is Σ −½ log(1−ρ²) + (ρ a b − ½ ρ² (a² + b²)) / (1−ρ²).
    Directions come from the fit part. Their correlations come from the validation part, where a direction that was
    only fitted to noise shows none: each is shrunk by the more, the less it stands out of that part's own noise, and
    all by the factor under which that part's InfoNCE is best.
    Source: Hotelling 1936 (canonical correlations); Cover & Thomas 2006, theorem 8.4.1; James & Stein 1961 (shrinkage).
    """
    white_x, white_y = _whitening(x[0]), _whitening(y[0])
    left, _, right = np.linalg.svd(white_x.T @ (x[0].T @ y[0] / len(x[0])) @ white_y, full_matrices=False)
    a = [rows @ (white_x @ left[:, :RANK]) for rows in x]
    b = [rows @ (white_y @ right[:RANK].T) for rows in y]
    scale = np.sqrt(np.mean(a[1] ** 2, axis=0) * np.mean(b[1] ** 2, axis=0))
    seen = np.clip(np.mean(a[1] * b[1], axis=0) / np.where(scale > 0, scale, 1), 1e-6, 0.9999)
    seen = seen * np.maximum(0, 1 - 2 / (len(a[1]) * seen**2))

    def embed(rho: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gain = rho / (1 - rho**2)
        of_a = -0.5 * (np.log1p(-(rho**2)).sum() + rows_a**2 @ (rho * gain))[:, None]
        of_b = -0.5 * (rows_b**2 @ (rho * gain))[:, None]
        u = np.hstack([rows_a * np.sqrt(gain)[None, :], of_a, np.ones_like(of_a)])
        v = np.hstack([rows_b * np.sqrt(gain)[None, :], np.ones_like(of_b), of_b])
        return u.astype(np.float32), v.astype(np.float32)

    def validated(factor: float) -> float:
        u, v = embed(factor * seen, a[1][:500], b[1][:500])
        # The correlations were measured on these very rows: each must earn its place (Schwarz 1978).
        price = np.count_nonzero(factor * seen) * math.log(len(a[1])) / (2 * len(a[1]))
        return float(fit.strict_info_nce((u @ v.T)[None])[0]) - price

    best = max((1.0, 0.95, 0.8, 0.5, 0.0), key=validated)
    u, v = zip(*(embed(best * seen, *rows) for rows in zip(a, b, strict=True)), strict=True)
    return u, v


def _whitening(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d r"]:
    """Columns that take rows (of mean 0) to uncorrelated coordinates of variance 1, along the largest of variances."""
    n, d = rows.shape
    covariance = rows.T @ rows / n
    shrink = d / (n + d)  # the fewer rows, the less their covariance is believed
    values, vectors = np.linalg.eigh((1 - shrink) * covariance + shrink * np.trace(covariance) / d * np.eye(d))
    values, vectors = values[::-1][:RANK], vectors[:, ::-1][:, :RANK]
    return vectors / np.sqrt(np.maximum(values, 1e-12))[None, :]
