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

from mirigor_jax import fitting
from mirigor_jax.errors import InputError
from mirigor_jax.mi import fit, read
from mirigor_jax.mi.certificates import info_nce_lower_bits
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.mi.critics import BasedCritic, BilinearCritic, CosineCritic, JointCritic, SeparableCritic
from mirigor_jax.mi.estimators import ESTIMATORS, Estimator
from mirigor_jax.mi.gaussian import features, gaussian_base, normal_scores
from mirigor_jax.mi.results import Estimate

PARTS = (0.6, 0.2)  # of the pairs for the fit and for validation; the rest is the test part
LEAST = 110  # pairs: a default batch to fit on, and eight batches of two to certify by
FOLDS = 10  # of the jackknife
WHOLE = 4096  # pairs whose score matrix is held at once
BATCH = 1024  # pairs a batch of the certificate's, where there are more than WHOLE
ENTRIES = 2**25  # scores held at once

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
    base: start from the Gaussian copula's density ratio, and learn what that lacks (`gaussian_base`).
    seeds: critics fitted each; the estimate is that of their averaged scores. seed: of the split, critics and batches.
    confidence: of the interval (a delete-a-fold jackknife's t-interval) and of the certificate, `info_nce_lower_bits`
    of the same scores, which only lower bounds get.
    report: called as report(step, steps, note) at every look at validation.
    Raises InputError for what cannot be estimated, naming it.
    """
    chosen = [resolve(estimator) for estimator in estimators]
    inner = _critic(critic, chosen, negatives)
    numbers = {"batch_size": batch_size, "steps": steps, "seeds": seeds, "learning_rate": learning_rate}
    if bad := [f"{name} = {value}" for name, value in numbers.items() if not 0 < value < math.inf]:
        raise InputError(f"{', '.join(bad)}: expected above 0")
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence = {confidence}: expected in [0.5, 1); 0.95 is usual")
    sets = _split(pairs, seed)
    fitted_on, tested_on = (len(sets[0].x[part]) for part in (0, 2))
    if batch_size > fitted_on:
        raise InputError(f"batch_size = {batch_size} exceeds the {fitted_on:,} pairs of the fit part; lower it")
    k = _check_k(k, tested_on, chosen)

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
        group = _estimate_group(recipe, sets, based, k=k, seeds=seeds, seed=seed, confidence=confidence, report=report)
        found |= {(d, indices[e]): one for (d, e), one in group.items()}
    return [[found[d, e] for e in range(len(chosen))] for d in range(len(sets))]


def _split(pairs: Sequence[tuple[Any, Any]], seed: int) -> list["Split"]:
    """Every data set's parts; InputError where one is no data set, or they have not one shape."""
    samples = [_arrays(x, y) for x, y in pairs]
    if len(shapes := {(x.shape, y.shape) for x, y in samples}) != 1:
        raise InputError(f"data sets have shapes {sorted(shapes)}: expected the same of all; estimate the others apart")
    return [Split.of(x, y, seed) for x, y in samples]


def _check_k(k: int | None, tested_on: int, estimators: Sequence[Estimator]) -> int:
    """k, or its default."""
    k = min(tested_on, WHOLE) if k is None else k
    if not 2 <= k <= tested_on:
        raise InputError(
            f"k = {k:,}: expected from 2 to the {tested_on:,} pairs of the test part; lower it, or give None"
        )
    if k > WHOLE and any(not one.name.startswith("info_nce") for one in estimators):
        raise InputError(f"k = {k:,}: beyond {WHOLE:,} only info_nce and info_nce_symmetric are read; lower it")
    return k


def _estimate_group(
    recipe: fit.Recipe,
    sets: Sequence["Split"],
    based: bool,
    *,
    k: int,
    seeds: int,
    seed: int,
    confidence: float,
    report: fitting.Report | None,
) -> dict[tuple[int, int], Estimate]:
    """The estimates of data set d by the recipe's estimator e, at (d, e), fitted all at once."""
    found = {}
    parts = ([one.rows(part, based) for one in sets] for part in range(3))
    fit_part, validation, test = (fit.Pairs(*(np.stack(view) for view in zip(*part, strict=True))) for part in parts)
    members = np.indices((len(sets), len(recipe.estimators), seeds)).reshape(3, -1).astype(np.int32)
    roots = np.random.SeedSequence(seed).generate_state(seeds) >> 1
    member = fit.Member(members[0], members[1], roots[members[2]].astype(np.int32))
    params, _ = fit.fit_members(recipe, fit_part, validation, member, report)
    for at in range(0, members.shape[1], seeds):
        d, e = int(members[0, at]), int(members[1, at])
        own = jax.tree.map(lambda leaf, at=at: leaf[at : at + seeds], params)
        held_out = [(np.asarray(part.x[d]), np.asarray(part.y[d])) for part in (validation, test)]
        one = _read(recipe, recipe.estimators[e], own, held_out[0], held_out[1], k, seeds, confidence)
        found[d, e] = replace(one, warnings=sets[d].warnings)
    return found


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
        scores, u = read.read_scores(recipe, params, x, y)
        folds = min(FOLDS, k // 2)
        seed_nats, value, without = (np.asarray(v, np.float64) for v in read.read(estimator, scores, u, folds))
        interval = read.jackknife_interval(float(value), without, confidence)
    else:
        critics = [jax.tree.map(lambda leaf, s=s: leaf[s : s + 1], params) for s in range(seeds)] if seeds > 1 else []
        *each, values = (
            np.asarray(read.read_info_nce(recipe, estimator.anchors, one, x, y), np.float64)
            for one in [*critics, params]
        )
        seed_nats = np.mean(each or [values], axis=1)
        value, interval = values.mean(), t_interval(values, confidence)
    if estimator.kind == "lower bound":
        if scores is None or k != size:
            scores, _ = read.read_scores(recipe, params, *batches(test, size))
        rehearsal, _ = read.read_scores(recipe, params, *batches(validation, min(size, len(validation[0]))))
        averaged = [np.asarray(of_seeds).mean(axis=0) for of_seeds in (rehearsal, scores)]
        certified = info_nce_lower_bits(averaged[0], averaged[1], confidence)
    elif scores is not None and estimator.anchors != "all":
        bound = float(np.mean(read.strict_info_nce(jnp.mean(scores, axis=0)))) / math.log(2)
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


@lru_cache
def _named(name: str) -> Estimator:
    return ESTIMATORS[name]()


def resolve(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, by its defaults, or the given one."""
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
class Split:
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
    def of(cls, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"], seed: int) -> "Split":
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
        scores_x, scores_y = normal_scores(raw_x), normal_scores(raw_y)
        base_x, base_y = gaussian_base(scores_x, scores_y)
        return cls(features(scores_x, raw_x), features(scores_y, raw_y), base_x, base_y, tuple(warnings))

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
