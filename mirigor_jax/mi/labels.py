"""How much two images of a class tell about each other through their representations: I_class, with a certificate.

Representations and labels are all it takes. `certify`, the choice among the three certificates, serves any pairing
whose classes' law is known.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Shaped
from scipy.special import entr, logsumexp

from mirigor_jax import fitting, parallel, softmax
from mirigor_jax.data.pairing import by_class, fresh_pairs, rank_in_class
from mirigor_jax.errors import InputError
from mirigor_jax.mi import arrays, certificate, fit
from mirigor_jax.mi.bounds import info_nce_symmetric
from mirigor_jax.mi.certificate import Certificate, Estimate
from mirigor_jax.mi.critics import CosineCritic

BATCH = 256  # pairs a step of the fit
LOOK, PATIENCE = 50, 300  # steps between looks at validation; without a gain, to the end of the fit
WHOLE = 4096  # pairs whose score matrix is held at once, unless K asks for more
MIXING = 1e-3  # of the uniform law in the posterior that critics start from
LEAST_ROWS = 10  # of a class: two of them are then test rows
LEAST_PAIRS = 16  # in the test part and in validation: two to a batch, for eight batches
RUN_OUT = 0.1  # share of the risk that goes to a class running out of rows: a quarter more pairs than with 0.01
L2 = (1e-4, 1e-3, 1e-2, 1e-1)  # penalties that the probe chooses from


@dataclass(frozen=True)
class HeldOut:
    """Fresh representations: n independent pairs with their classes, m independent rows with theirs, and scores.

    The rows may be of the pairs' images. stratified: how many of them each class has was fixed, not drawn.
    scores: of disjoint batches of the pairs.
    """

    h_x: Float[np.ndarray, "n d"]
    h_y: Float[np.ndarray, "n d"]
    c_x: Int[np.ndarray, " n"]
    c_y: Int[np.ndarray, " n"]
    h: Float[np.ndarray, "m d"]
    c: Int[np.ndarray, " m"]
    scores: Float[np.ndarray, "b k k"]
    stratified: bool = False


def routes(
    part: HeldOut,
    validation: HeldOut,
    probe: softmax.LinearProbe,
    joint: Float[np.ndarray, "c c"],
    confidence: float,
) -> dict[Certificate, dict[str, Any]]:
    """Every certificate that applies to fresh pairs whose classes have law p(c, c') = joint, and what it rests on.

    The probe is the posterior and the classifier; a classifier certifies only where the views share their class.
    validation: what InfoNCE's batches are chosen on. Scores are those of a critic that has not seen either part.
    """
    q_x, q_y = softmax.class_posterior(probe, part.h_x), softmax.class_posterior(probe, part.h_y)
    lower = certificate.posterior_lower_bits(q_x, q_y, part.c_x, part.c_y, joint, confidence)
    found: dict[Certificate, dict[str, Any]] = {"posterior": {"lower_bits": lower, "pairs": len(q_x)}}
    if _exact(joint):
        errors, images, law = int(np.sum(probe.logits(part.h).argmax(axis=1) != part.c)), len(part.c), joint.diagonal()
        if part.stratified:
            images = stratified_trials(errors, np.bincount(part.c, minlength=len(law)), law, confidence)
        lower = certificate.classifier_lower_bits(errors, images, law, confidence)
        found["classifier"] = {"lower_bits": lower, "errors": errors, "images": images}
    found["infonce"] = info_nce_route(validation.scores, part.scores, confidence)
    return found


def info_nce_route(
    validation: Float[np.ndarray, "b k k"], scores: Float[np.ndarray, "c m m"], confidence: float
) -> dict[str, Any]:
    """The certificate that needs no class, and what it rests on: `certificate.info_nce_lower_bits`."""
    info_nce = certificate.info_nce_lower_bits(validation, scores, confidence)
    return {"lower_bits": info_nce.lower_bits, "k": info_nce.k, "batches": info_nce.batches}


def certify(
    validation: HeldOut,
    test: HeldOut,
    probe: softmax.LinearProbe,
    joint: Float[np.ndarray, "c c"],
    confidence: float,
) -> tuple[Certificate, dict[Certificate, dict[str, Any]]]:
    """(route, all routes on test): the route is the best on validation, and test has no say in it."""
    rehearsed = routes(validation, validation, probe, joint, confidence)
    route = max(rehearsed, key=lambda name: rehearsed[name]["lower_bits"])
    return route, routes(test, validation, probe, joint, confidence)


def stratified_trials(
    errors: int, counts: Int[np.ndarray, " c"], law: Float[np.ndarray, " c"], confidence: float
) -> int:
    """How many draws from `law` limit the error rate as `errors` in counts[c] rows of each class c do, or less tightly.

    Clopper-Pearson's limit holds for the mean rate over independent trials of unequal rates: their sum is less spread
    than a binomial. Where counts are not in law's proportions, the rate is at most max law_c n / counts_c times that.
    Source: Hoeffding 1956, Theorem 5.
    """
    n = int(counts.sum())
    limit = certificate.clopper_pearson_upper(errors, n, confidence) * float(np.max(law * n / counts))
    draws = range(n, errors, -1)
    return next((m for m in draws if certificate.clopper_pearson_upper(errors, m, confidence) >= limit), max(errors, 1))


def _exact(joint: Float[np.ndarray, "c c"]) -> bool:
    """Whether both views always have the same class."""
    return bool(np.all(joint == np.diag(joint.diagonal())))


def batch_rows(test_pairs: int, validation_pairs: int) -> int:
    """Pairs to a score matrix of `HeldOut`: sixteen matrices or more, of at most 1,024 pairs.

    Fewer, where validation's could not be cut into the eight batches that a certificate takes.
    """
    most = min(1024, max(2, test_pairs // 16), validation_pairs)
    return next((size for size in range(most, 2, -1) if validation_pairs // size * (size // 2) >= 8), 2)


def in_batches(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "b k d"]:
    """Disjoint batches of k rows; the rows left over are not used."""
    return rows[: len(rows) // k * k].reshape(-1, k, rows.shape[1])


@partial(jax.jit, static_argnames="critic")
def mean_scores(
    critic: nn.Module, params: Any, x: Float[Array | np.ndarray, "b k d"], y: Float[Array | np.ndarray, "b k d"]
) -> Float[Array, "b k k"]:
    """Scores of all pairs of each batch, averaged over stacked critics: one critic, no worse than their mean."""

    def batch(pair):
        scores = jax.vmap(lambda p: critic.apply({"params": p}, *pair, method="scores"))(params)
        return jnp.mean(scores, axis=0)

    return lax.map(batch, (x, y))


class PosteriorCritic(nn.Module):
    """score = trust · log Σ_c q(c|x) q(c|y) / p(c) + gain · inner(x, y): starts at the density ratio if q is right.

    The last `classes` columns of x and y are q(c|·) / √p(c) of a classifier; `inner` reads the others.
    Source: Lee et al. 2023, §III-A: p(x, y) = Σ_c p(c) p(x|c) p(y|c).
    """

    inner: nn.Module
    classes: int

    @nn.compact
    def scores(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        trust = self.param("trust", nn.initializers.constant(1.0), (), x.dtype)
        gain = self.param("gain", nn.initializers.constant(0.1), (), x.dtype)
        known = jnp.log(x[:, -self.classes :] @ y[:, -self.classes :].T)
        return trust * known + gain * self.inner.scores(x[:, : -self.classes], y[:, : -self.classes])


def pair_values(scores: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """What each pair adds to strict InfoNCE, as an anchor and as the others' candidate; nats. Their mean is the value.

    Both directions are averaged. Deviations from the mean are the pairs' influence on it, to first order in 1/k.
    Source: Poole et al. 2019, eq. 10; Jaeckel 1972 (infinitesimal jackknife).
    """
    scores = scores.astype(np.float64)
    of_x, of_y = logsumexp(scores, axis=1), logsumexp(scores, axis=0)
    anchor = math.log(len(scores)) + scores.diagonal() - 0.5 * (of_x + of_y)
    chosen_y = np.exp(scores - of_x[:, None]).sum(axis=0)  # how often y_i is taken for a partner
    chosen_x = np.exp(scores - of_y[None, :]).sum(axis=1)
    return anchor + 1 - 0.5 * (chosen_x + chosen_y)


def independent_values(scores: Float[np.ndarray, "b k k"]) -> Float[np.ndarray, " v"]:
    """Values whose mean is strict InfoNCE at k, for its t-interval: of batches where there are eight, else of pairs.

    With pairs for values no second batch is needed, so that k can be as large as the sample.
    """
    values = np.stack([pair_values(batch) for batch in scores])
    return values.mean(axis=1) if len(values) >= 8 else values.ravel()


@dataclass(frozen=True, kw_only=True)
class LabelEstimate(Estimate):
    """The Estimate of I_class = I(h_X;h_Y), X and Y independent images of a class C ~ p(c).

    entropy_bits: H(C), the most it can be. routes: every certificate's lower end on the test part, and its counts.
    """

    entropy_bits: float
    routes: dict[Certificate, dict[str, Any]]

    @property
    def nmi(self) -> float:
        """I_class / H(C), as the estimate has it. Source: Lee et al. 2023; Gosch 2020 (normalised MI)."""
        return self.value_bits / self.entropy_bits

    @property
    def nmi_lower(self) -> float:
        """What I_class / H(C) is at least, as certified."""
        return (self.lower_bits or 0.0) / self.entropy_bits

    def __str__(self) -> str:
        floor = certificate.round_down(self.nmi_lower)
        return (
            f"{super().__str__()} Of H(C) = {self.entropy_bits:.3f} bits that is {self.nmi:.3f}, at least {floor:.3f}."
        )


@dataclass(frozen=True)
class Comparison:
    """Two encoders' strict InfoNCE at the same K on the same test pairs, a less b; bits.

    `t_*`: the paired t-interval of the difference, for these two critics. reach_bits: the most any encoder shows at K.
    """

    a: LabelEstimate
    b: LabelEstimate
    difference_bits: float
    t_lower_bits: float
    t_upper_bits: float
    k: int
    reach_bits: float
    confidence: float

    @property
    def larger(self) -> str | None:
        """The encoder whose bound is larger, "A" or "B"; None where the data cannot tell."""
        return "A" if self.t_lower_bits > 0 else "B" if self.t_upper_bits < 0 else None

    @property
    def saturated(self) -> bool:
        """Whether both show, to 0.05 bits, all that can be shown at K."""
        return min(self.a.value_bits, self.b.value_bits) > self.reach_bits - 0.05

    def __str__(self) -> str:
        found = f"{self.larger}'s is larger" if self.larger else "the data cannot tell which is larger"
        sentence = (
            f"At K = {self.k:,} strict InfoNCE reads {self.a.value_bits:.3f} bits for A and {self.b.value_bits:.3f} "
            f"for B: {found} (A - B = {self.difference_bits:z.3f}, paired {100 * self.confidence:.6g} % t-interval "
            f"[{self.t_lower_bits:z.3f}, {self.t_upper_bits:z.3f}]). This compares two lower bounds of I_class, each "
            "by its own critic, not the two I_class."
        )
        if self.saturated:
            sentence += (
                f" Both are at the {self.reach_bits:.3f} bits that are the most to be seen at this K"
                f" (H(C) = {self.a.entropy_bits:.3f}): labels and K tell them apart no further."
            )
        return sentence


def estimate_labels(
    h: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    steps: int = 1000,
    confidence: float = 0.95,
    tolerance_bits: float = 0.1,
    report: fitting.Report | None = None,
) -> LabelEstimate:
    """I_class = I(h_X;h_Y) of representations h (n, d) under same-class pairing, certified, with H(C) and NMI.

    labels: (n,) integers, strings or bools; both from any framework. The population meant has the classes' frequencies
    exactly as in `labels`, and images independent given their class; rows must be a sample of it (no two views of one
    image, no copies).
    Rows are split at random within classes, 60 : 20 : 20. A linear probe, and critics starting from its posterior, are
    fitted on the first part; their penalty and stop, and the certificate's route, are chosen on the second; the third
    is read once. Its pairs have independent classes from those frequencies, and each row is in one pair at most; so
    that classes do not run out of rows, pairs are fewer than rows would allow, the more so the fewer rows a class has.
    The value is strict InfoNCE at k pairs (None: all test pairs, up to 4,096) of the averaged scores of `seeds`
    critics; its t-interval is over pairs. The lower end is the best route's of `certify`; the upper end is H(C).
    seed: of split, pairs and critics. steps: most of the fit. tolerance_bits: the width up to which an interval counts
    as certified. report: called as report(step, steps, note) at every look at validation.
    Raises InputError for what cannot be estimated: lengths that differ, NaN, other dtypes, one class, few rows, k.
    Source: Lee et al. 2023, §III-A (same-class sampling), Theorems III.1 and III.2; Poole et al. 2019, eq. 10.

        print(mi.estimate_labels(h, labels))
    """
    design = _Design.of(labels, seed, confidence)
    (rows,) = _representations([h], labels)
    k = design.check_k(k)
    found, _ = _measure(design, rows, k, seed, seeds, steps, confidence, tolerance_bits, report)
    return found


def compare(
    h_a: Any,
    h_b: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    steps: int = 1000,
    confidence: float = 0.95,
    tolerance_bits: float = 0.1,
    report: fitting.Report | None = None,
) -> Comparison:
    """Is encoder A's I_class larger than B's? Their strict InfoNCE on the same test pairs, and the paired difference.

    h_a: (n, d), h_b: (n, e), row i of both the same image, of class labels[i]. Each has its own critic; everything else
    is shared and as in `estimate_labels`, whose arguments and errors these are.
    """
    design = _Design.of(labels, seed, confidence)
    both = _representations([h_a, h_b], labels)
    k = design.check_k(k)
    (a, of_a), (b, of_b) = (
        _measure(design, h, k, seed, seeds, steps, confidence, tolerance_bits, report) for h in both
    )
    difference = (of_a - of_b) / math.log(2)
    t_lower, t_upper = certificate.t_interval(difference, confidence)
    reach = certificate.reach_bits(k, design.law)
    return Comparison(a, b, float(difference.mean()), t_lower, t_upper, k, reach, confidence)


def monitor(
    apply: Callable[[Any, Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    num_batches: int | None = None,
    **options: Any,
) -> Callable[[Any], Estimate]:
    """A function params → Estimate for a training loop: how much does the encoder know by now?

    apply: (params, images) → representations (n, d); jitted here, once. batches: of (images_x, images_y), two views
    each, which `estimate` measures, or of (images, labels), which `estimate_labels` does; options are theirs.
    The first num_batches (None: all) are read here and kept, so that every call reads the same images, by the same
    split and seed, and only the parameters change. Give images that training does not see.

        know = mi.monitor(lambda params, x: model.apply(params, x), validation_batches)
        for step in ...: print(know(state.params))

    Raises InputError where the batches end early; its result raises it for representations that are not (n, d).
    """
    kept = list(islice(batches, num_batches))
    if len(kept) < (num_batches or 1):
        raise InputError(f"the iterator gave {len(kept)} batches, expected {num_batches or 'some'}; give a fresh one")
    encode = jax.jit(apply)

    def represent(params: Any, view: int) -> np.ndarray:
        parts = []
        for batch in kept:
            h = encode(params, batch[view])
            if h.ndim != 2 or len(h) != len(batch[view]):
                raise InputError(
                    f"apply gave shape {h.shape} for {len(batch[view])} images: expected (n, d); pool or flatten it"
                )
            parts.append(np.asarray(h))
        return np.concatenate(parts)

    if np.ndim(kept[0][1]) == 1:
        labels = np.concatenate([np.asarray(batch[1]) for batch in kept])
        return lambda params: estimate_labels(represent(params, 0), labels, **options)
    return lambda params: arrays.estimate(represent(params, 0), represent(params, 1), **options)


@dataclass(frozen=True)
class _Design:
    """Which rows are fitted on, chosen on and read, by labels and seed alone: the same for every encoder.

    pairs: rows of (validation, test), their classes independent draws from `law`.
    """

    classes: Int[np.ndarray, " n"]
    law: Float[np.ndarray, " c"]
    fit: Int[np.ndarray, " f"]
    validation: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]
    pairs: tuple[Int[np.ndarray, "_ 2"], Int[np.ndarray, "_ 2"]]

    @classmethod
    def of(cls, labels: Any, seed: int, confidence: float) -> "_Design":
        names, classes, counts = np.unique(_labels(labels), return_inverse=True, return_counts=True)
        if not 0.5 <= confidence < 1:
            raise InputError(f"confidence = {confidence}: expected in [0.5, 1); 0.95 is usual")
        if len(names) < 2:
            raise InputError(f"labels hold {len(names)} class: H(C) is 0, and so is I_class; give two classes or more")
        least = int(counts.argmin())
        rare = f"class {names[least].item()!r} has {counts[least]} rows"
        if counts[least] < LEAST_ROWS:
            raise InputError(f"{rare}, expected {LEAST_ROWS} or more of every class; drop or merge rare classes")
        rng = np.random.default_rng(seed)
        rows = by_class(np.arange(len(classes)), classes, rng)
        place = (rank_in_class(classes[rows]) + 0.5) / counts[classes[rows]]
        part = np.searchsorted([0.6, 0.8], place)
        fitted, validation, test = (rows[part == i] for i in range(3))
        law, risk = counts / len(classes), RUN_OUT * (1 - confidence)
        pairs = fresh_pairs(validation, classes, law, risk, rng), fresh_pairs(test, classes, law, risk, rng)
        if (fewest := min(map(len, pairs))) < LEAST_PAIRS:
            raise InputError(
                f"{rare}: only {fewest} test pairs can be drawn without running out, expected {LEAST_PAIRS}; give "
                "more rows of every class, or drop or merge rare classes"
            )
        return cls(classes, law, fitted, validation, test, pairs)

    def check_k(self, k: int | None) -> int:
        """k, or its default."""
        tested = len(self.pairs[1])
        k = min(tested, WHOLE) if k is None else k
        if not 2 <= k <= tested:
            raise InputError(
                f"k = {k:,}: the test part has {tested:,} pairs, K must be from 2 to that; lower it, or None"
            )
        return k


def _labels(labels: Any) -> Shaped[np.ndarray, " n"]:
    array = np.from_dlpack(labels) if hasattr(labels, "__dlpack__") and not hasattr(labels, "__array__") else labels
    array = np.asarray(array)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.ravel()):
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "biuUS":
        raise InputError(
            f"labels are of dtype {array.dtype}, shape {array.shape}: expected (n,) integers, strings or bools"
        )
    return array


def _representations(several: list[Any], labels: Any) -> list[Float[np.ndarray, "n _"]]:
    found = [arrays.as_rows(h, "h") for h in several]
    for h in found:
        if len(h) != len(labels):
            raise InputError(
                f"h has {len(h):,} rows and labels {len(labels):,}: expected as many, row i of both an image"
            )
    return found


def _measure(
    design: _Design,
    h: Float[np.ndarray, "n d"],
    k: int,
    seed: int,
    seeds: int,
    steps: int,
    confidence: float,
    tolerance_bits: float,
    report: fitting.Report | None,
) -> tuple[LabelEstimate, Float[np.ndarray, " v"]]:
    """The estimate, and the independent values that its own is the mean of, in nats."""
    warnings = _warnings(design, h)
    h, classes, law = arrays.squash(h, h[design.fit]).astype(np.float32), design.classes, design.law
    probe = softmax.fit_linear(
        h[design.fit],
        classes[design.fit],
        len(law),
        l2=L2,
        validation_features=h[design.validation],
        validation_labels=classes[design.validation],
    )
    q = certificate.mix_posterior(softmax.class_posterior(probe, h), MIXING) / np.sqrt(law)[None, :]
    inputs = np.hstack([h, q.astype(np.float32)])
    critic = PosteriorCritic(CosineCritic((128,), 64), len(law))
    params = _fit_critics(critic, design, inputs, seed, seeds, steps, report)

    def scores(critics: Any, part: int, size: int) -> Float[np.ndarray, "b k k"]:
        x, y = (in_batches(inputs[rows], size) for rows in design.pairs[part].T)
        return np.asarray(mean_scores(critic, critics, x, y))

    def held_out(part: int) -> HeldOut:
        (x, y), rows = design.pairs[part].T, (design.validation, design.test)[part]
        size = batch_rows(len(design.pairs[1]), len(design.pairs[0]))
        return HeldOut(
            h[x], h[y], classes[x], classes[y], h[rows], classes[rows], scores(params, part, size), stratified=True
        )

    paid = confidence + RUN_OUT * (1 - confidence)
    route, found = certify(held_out(0), held_out(1), probe, np.diag(law), paid)

    def values(critics: Any) -> Float[np.ndarray, " v"]:
        return independent_values(scores(critics, 1, k))

    own = values(params)
    alone = [values(jax.tree.map(lambda x, s=s: x[s : s + 1], params)).mean() for s in range(seeds)]
    t_lower, t_upper = certificate.t_interval(own / math.log(2), confidence)
    entropy = float(entr(law).sum()) / math.log(2)
    lower = found[route]["lower_bits"]
    result = LabelEstimate(
        name="same-class InfoNCE",
        value_bits=float(own.mean()) / math.log(2),
        kind="lower bound",
        k=k,
        ceiling_bits=math.log2(k),
        t_lower_bits=t_lower,
        t_upper_bits=t_upper,
        lower_bits=lower,
        upper_bits=entropy,
        confidence=confidence,
        certificate=route,
        # The other routes do without K, so that no K limits what they can show.
        verdict=certificate.verdict(
            lower, entropy, tolerance_bits, certificate.reach_bits(k, law) if route == "infonce" else math.inf
        ),
        pairs=len(design.pairs[1]) // k * k,
        seed_bits=tuple(float(value) / math.log(2) for value in alone),
        warnings=warnings,
        entropy_bits=entropy,
        routes=found,
    )
    return result, own


def _warnings(design: _Design, h: Float[np.ndarray, "n d"]) -> tuple[str, ...]:
    said, tested = [], len(design.test)
    order = np.concatenate([design.fit, design.validation, design.test])
    if repeated := arrays.repeated_rows(h[order], len(h) - tested):
        said.append(
            f"{repeated:,} of {tested:,} test rows stand in the fit or validation part too; unless the representation "
            "is discrete they are no fresh images, and neither estimate nor certificate is to be trusted"
        )
    if 4 * len(design.pairs[1]) < tested // 2:
        said.append(
            f"classes have few rows: {len(design.pairs[1]):,} pairs from {tested:,} test rows; more rows of the rarest "
            "classes would give more, and a better certificate"
        )
    return tuple(said)


def _fit_critics(
    critic: PosteriorCritic,
    design: _Design,
    inputs: Float[np.ndarray, "n d"],
    seed: int,
    seeds: int,
    steps: int,
    report: fitting.Report | None,
) -> Any:
    """Parameters of `seeds` critics, stacked, fitted at once on redrawn pairs; the best of validation, or the start."""
    if seeds < 1 or steps < 1:
        raise InputError(f"seeds = {seeds}, steps = {steps}: expected 1 or more")
    pairs = design.pairs[0]
    validation = tuple(in_batches(inputs[rows], min(len(pairs), 2 * BATCH)) for rows in pairs.T)
    bank = fit.make_bank(inputs[design.fit], design.classes[design.fit], np.diag(design.law))
    roots = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(seeds))
    start, chunk = _programs(critic, steps)
    state, done, best_step = start(validation, roots), 0, np.zeros(seeds, int)
    while done < steps and done - best_step.max() < PATIENCE:
        state, looked = chunk(state, bank, validation, roots)
        done, best_step = done + LOOK, np.asarray(state.best_step)
        if report is not None:
            bits = float(np.mean(looked["validation_nats"])) / math.log(2)
            report(min(done, steps), steps, f"strict InfoNCE {bits:z.3f} bits on validation")
    return jax.device_get(state.best_params)


@lru_cache(maxsize=8)
def _programs(critic: PosteriorCritic, steps: int) -> tuple[Any, Any]:
    """(start, chunk) of all critics at once; kept, so that a second call need not compile."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def bound(params, x, y):
        return info_nce_symmetric(critic.apply({"params": params}, x, y, method="scores"))

    def step(state, frozen, bank, key):
        x, y = fit.draw_pairs(frozen, bank, key, k=BATCH, axis_name=parallel.AXIS)
        value, gradients = jax.value_and_grad(bound)(state.params, x, y)
        return fitting.update(state, optimizer, jax.tree.map(jnp.negative, gradients)), value

    def validate(params, x, y):
        return (lax.map(lambda pair: bound(params, *pair), (x, y)),)

    def start(validation, root):
        params = critic.init(root, validation[0][0, :2], validation[1][0, :2], method="scores")["params"]
        best = jnp.mean(validate(params, *validation)[0])
        return fitting.fresh(params, optimizer, best.dtype)._replace(best_nats=best)

    def chunk(state, bank, validation, root):
        keys = jax.random.split(jax.random.fold_in(root, state.step + 1), LOOK)
        return fitting.fit_chunk(state, {}, bank, validation, keys, step=step, validate=validate, streamed=False)

    # One device: a step is too small to share, and the device's draws are then the same anywhere.
    mesh, shared = parallel.make_mesh(1), parallel.REPLICATED
    every_start, every_chunk = jax.vmap(start, in_axes=(None, 0)), jax.vmap(chunk, in_axes=(0, None, None, 0))
    return (
        parallel.map_step(every_start, mesh, (shared, shared), shared),
        parallel.map_step(every_chunk, mesh, (shared,) * 4, (shared, shared), donate=(0,)),
    )
