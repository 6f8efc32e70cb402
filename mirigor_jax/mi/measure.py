"""I(h_X;h_Y) of pairs with known classes: `measure` makes an estimate and its certificate from representations.

Runs on images or features, `estimate_labels`, `compare` and `monitor` all use it, each with pairs of its own. A linear
probe, and critics that start from its posterior, are fitted on the fit part. Validation chooses the probe's penalty,
the critics' step and the certificate. The test part is read once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import entr

from mirigor_jax import checks, settings, softmax
from mirigor_jax.data.attribute_classes import AttributeClasses
from mirigor_jax.data.draws import PREQUENTIAL, fresh_pairs, parts_of
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import Evaluation, OnProgress, in_batches
from mirigor_jax.mi import fit
from mirigor_jax.mi.by_attribute import AttributeCritic, AttributeProbes, critic_rows, fit_attributes
from mirigor_jax.mi.certificates import mix_posterior
from mirigor_jax.mi.certify import (
    CERTIFICATES,
    LEAST_PAIRS,
    Classified,
    HeldOut,
    batch_rows,
    certify,
    common_frequencies,
    most_bits,
    shown,
    value_ceiling_bits,
)
from mirigor_jax.mi.confidence import BATCHES, PAIRS, interval_of
from mirigor_jax.mi.critics import CosineCritic, PosteriorCritic, Scorer
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.mi.gaussian import center_and_spread, squash
from mirigor_jax.mi.prequential import Block, balanced
from mirigor_jax.mi.read import independent_values, mean_scores, pair_values, read_by_sums
from mirigor_jax.mi.results import LabelEstimate, Reading, verdict
from mirigor_jax.mi.rows import hashes
from mirigor_jax.mi.values import info_nce_of_sums
from mirigor_jax.refits import doublings, refits

BATCH, STEPS, EVAL_EVERY = 256, 1000, 50  # pairs a step of the fit, largest number of steps, steps between evaluations
WHOLE = 4096  # largest number of pairs a batch for which the score matrix is held whole
MIXING = 1e-3  # weight of the uniform distribution in the posterior that critics start from
L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # penalties that the linear probe tries; validation chooses one
FIRST = 3 / 16  # share of each class's rows that are before the first block of the prequential certificate
# Largest number of rows for the prequential certificate. With 20,000 rows, the lower end from the test part alone is
# about 0.1 bits below the estimate; three times as many pairs would only reduce this to 0.06 bits.
MOST_ROWS = 20_000
INNER = CosineCritic((128,), 64)  # learns the difference between the posterior's scores and the best ones


@dataclass(frozen=True)
class HeldOutPairs:
    """Fresh independent pairs of representations with their classes, and single rows to judge a classifier on.

    x, y: row i of both is a pair. c_x, c_y: their classes, from 0.
    rows, c: independent representations and their classes. They may be of the pairs' images.
    stratified: whether the number of rows of each class was fixed rather than drawn.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n d"]
    c_x: Int[np.ndarray, " n"]
    c_y: Int[np.ndarray, " n"]
    rows: Float[np.ndarray, "m d"]
    c: Int[np.ndarray, " m"]
    stratified: bool

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "HeldOutPairs":
        """Apply the function to all representations."""
        return replace(self, x=function(self.x), y=function(self.y), rows=function(self.rows))

    def without(self, copies: Bool[np.ndarray, " m"]) -> "HeldOutPairs":
        """Leave out these of `rows`, and the pairs that they are in.

        Raises InputError if no row of a class is left.
        """
        if not copies.any():
            return self
        if lost := np.setdiff1d(self.c, self.c[~copies]).size:
            raise InputError(
                f"all test rows of {lost} classes are copies of rows outside of the test part; drop copies"
            )
        copied = hashes(self.rows[copies])
        kept = ~(np.isin(hashes(self.x), copied) | np.isin(hashes(self.y), copied))
        pairs = {name: getattr(self, name)[kept] for name in ("x", "y", "c_x", "c_y")}
        return replace(self, **pairs, rows=self.rows[~copies], c=self.c[~copies])

    @property
    def images(self) -> tuple[Float[np.ndarray, "m d"], Int[np.ndarray, " m"]]:
        """Representations of the part with their classes, for choices that need no independence."""
        if self.stratified:
            return self.rows, self.c
        return np.concatenate([self.x, self.y]), np.concatenate([self.c_x, self.c_y])


@dataclass(frozen=True)
class Parts:
    """Representations of three disjoint parts of one population, and the known facts about its pairs.

    fit, fit_classes: single representations and their classes; every class occurs.
    validation, test: held-out pairs.
    joint: p(c, c') of the classes of a pair; or, of many classes, how they are made of attributes.
    upper_bits: a known upper bound of I(h_X;h_Y).
    risk: a bound of the probability that the test pairs depend on each other. The certificate's confidence is raised
        by it.
    one_sample: whether fit, validation and test are one sample, without copies, that the encoder has not seen. The
        prequential certificate then reads rows of `fit` too.
    """

    fit: Float[np.ndarray, "f d"]
    fit_classes: Int[np.ndarray, " f"]
    validation: HeldOutPairs
    test: HeldOutPairs
    joint: Float[np.ndarray, "c c"] | AttributeClasses
    upper_bits: float
    risk: float = 0.0
    one_sample: bool = False

    @cached_property
    def frequencies(self) -> Float[np.ndarray, " c"]:
        """p(c) of one view."""
        return self.joint.frequencies if isinstance(self.joint, AttributeClasses) else self.joint.sum(axis=1)

    @cached_property
    def common_frequencies(self) -> Float[np.ndarray, " c"] | None:
        """p(c) of the class that both views always share; None if their classes may differ."""
        return common_frequencies(self.joint)

    def squashed(self) -> "Parts":
        """The parts with shorter tails: a one-to-one map of each column, by the fit part's quartiles, in float64."""
        by = center_and_spread(self.fit.astype(np.float64))

        def tame(h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
            return _tamed(h, by)

        return replace(self, fit=tame(self.fit), validation=self.validation.mapped(tame), test=self.test.mapped(tame))


@dataclass(frozen=True)
class Options:
    """How the parts are measured; the names are those of `estimate_labels`.

    k: pairs a batch at which InfoNCE is read.
    steps: largest number of steps of the fit. batch_size: pairs a step of the fit.
    warnings: of the estimate, from the caller.
    """

    k: int
    seed: int = settings.Arrays.seed
    num_critics: int = settings.Arrays.seeds
    steps: int = STEPS
    confidence: float = settings.Arrays.confidence
    tolerance_bits: float = settings.Estimate.tolerance_bits
    on_progress: OnProgress | None = None
    batch_size: int = BATCH
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """The estimate, and the values behind it.

    read: K → (InfoNCE of the test part at K pairs a batch, each batch's own value in bits).
    pair_nats: independent values, for a paired comparison. Their mean is InfoNCE at the estimate's k.
    kind_of_nats: whether they are values of batches or of pairs, as in `Interval.kind`.
    best_step: the largest of the steps that validation chose for the critics.
    history: every evaluation of the fit.
    """

    estimate: LabelEstimate
    read: Callable[[int], tuple[Reading, Float[np.ndarray, " b"]]]
    pair_nats: Float[np.ndarray, " v"]
    kind_of_nats: str
    best_step: int
    history: tuple[Evaluation, ...]


def measure(parts: Parts, options: Options) -> Measured:
    """Fit on the fit part, choose on validation, then read and certify on the test part.

    Validation chooses the certificate. The value is the point estimate of the certificate's lower bound of I. The lower
    end is the lower confidence limit of the same bound, so the value is never below it. InfoNCE at k is reported too.
    Raises InputError as the fits and the certificates do.
    Source: Lee et al. 2023, §III-A (same-class sampling), Theorems III.1 and III.2.
    """
    blocks = _blocks(parts, options)
    parts = parts.squashed()
    model = _fit(parts, options, blocks)
    size = batch_rows(len(parts.test.x), len(parts.validation.x))
    # The blocks' pairs are drawn separately, so a class may run out of rows there too.
    paid = options.confidence + parts.risk * (2 if blocks[1] else 1)
    certificate, certificates = certify(*model.held_out(parts, size), parts.joint, paid)
    chosen, frequencies = certificates[certificate], parts.common_frequencies
    seed_bits: tuple[float, ...] = (chosen.value_bits,)
    if options.num_critics > 1:
        alone = (model.alone(one).held_out(parts, size) for one in range(options.num_critics))
        seed_bits = tuple(
            shown(test, validation, parts.joint, paid)[certificate].value_bits for validation, test in alone
        )
    read = _Reader(model.scorer, model.fitted.params, model.test, frequencies, options.confidence)
    pair_nats = read.pair_nats(options.k)
    most = most_bits(certificates, size, frequencies)
    estimate = LabelEstimate(
        name=CERTIFICATES[certificate].heading,
        value_bits=chosen.value_bits,
        kind="lower bound",
        k=options.k,
        ceiling_bits=value_ceiling_bits(certificate, chosen, options.k),
        interval=chosen.interval,
        lower_bits=chosen.lower_bits,
        upper_bits=parts.upper_bits,
        confidence=options.confidence,
        certificate=certificate,
        verdict=verdict(chosen.lower_bits, parts.upper_bits, options.tolerance_bits, most),
        pairs=len(parts.test.x),
        seed_bits=seed_bits,
        info_nce=read(options.k)[0],
        certificates=certificates,
        warnings=options.warnings,
        entropy_bits=float(entr(parts.frequencies).sum()) / math.log(2),
    )
    kind = read.kind(options.k, pair_nats)
    return Measured(estimate, read, pair_nats, kind, model.fitted.best_step, model.fitted.history)


@dataclass(frozen=True)
class _Model:
    """The fitted probe and critics, and the held-out pairs' views (x, y) in the form that the critics read.

    blocks: as from `_blocks`.
    """

    probe: softmax.LinearProbe | AttributeProbes
    scorer: Scorer
    fitted: fit.Fitted
    validation: tuple[Float[np.ndarray, "n _"], ...]
    test: tuple[Float[np.ndarray, "n _"], ...]
    blocks: tuple[tuple[Block, ...], tuple[Block, ...]]

    def alone(self, critic: int) -> "_Model":
        """The model with only one of its critics."""
        params = jax.tree.map(lambda leaf: leaf[critic : critic + 1], self.fitted.params)
        return replace(self, fitted=self.fitted._replace(params=params))

    def held_out(self, parts: Parts, size: int) -> tuple[HeldOut, HeldOut]:
        """(validation, test) as the models see them, scored in matrices of `size` pairs."""

        def scores(views: tuple[np.ndarray, ...]) -> Float[np.ndarray, "b k k"]:
            return np.asarray(mean_scores(self.scorer, self.fitted.params, *(in_batches(view, size) for view in views)))

        validation, test = (
            replace(seen(part, self.probe, scores(views), parts.joint), blocks=blocks)
            for part, views, blocks in zip(
                (parts.validation, parts.test), (self.validation, self.test), self.blocks, strict=True
            )
        )
        return validation, test


def _fit(parts: Parts, options: Options, blocks: tuple[tuple[Block, ...], tuple[Block, ...]]) -> _Model:
    for name in ("num_critics", "steps", "batch_size"):
        checks.whole(name, getattr(options, name), 1)
    checks.not_negative("tolerance_bits", options.tolerance_bits, "0.1")
    if isinstance(parts.joint, AttributeClasses):
        return _fit_attributes(parts, parts.joint, options)
    chosen_on, classes = parts.validation.images
    probe = softmax.fit_linear(
        parts.fit,
        parts.fit_classes,
        len(parts.joint),
        l2=L2,
        validation_features=chosen_on,
        validation_labels=classes,
    )
    inputs = _Inputs(probe, parts.joint, parts.common_frequencies is None)
    critic = PosteriorCritic(INNER, len(parts.joint), sided=inputs.sided)
    validation, test = (tuple(map(inputs, (part.x, part.y))) for part in (parts.validation, parts.test))
    fitted = fit.fit_by_class(
        fit.ClassFit(critic, options.batch_size, options.steps, min(EVAL_EVERY, options.steps)),
        fit.make_bank(inputs(parts.fit), parts.fit_classes, parts.joint),
        validation,
        seed=options.seed,
        num_critics=options.num_critics,
        on_progress=options.on_progress,
    )
    return _Model(probe, Scorer(critic), fitted, validation, test, blocks)


def _fit_attributes(parts: Parts, classes: AttributeClasses, options: Options) -> _Model:
    """The model of many classes: a probe of each attribute, and the critic that their posteriors give.

    No critic is fitted: of 2^d classes, the fit part has too few images of each to draw pairs from.
    """
    if options.num_critics > 1:
        raise InputError(
            f"num_critics = {options.num_critics}: of {len(classes.values):,} classes, told apart by their attributes, "
            "no critic is fitted; give 1"
        )
    chosen_on, of_them = parts.validation.images
    probes = fit_attributes(
        parts.fit,
        classes.values[parts.fit_classes],
        classes.sizes,
        l2=L2,
        validation_features=chosen_on,
        validation_attributes=classes.values[of_them],
    )
    validation, test = (
        tuple(critic_rows(probes.posteriors(h), classes, MIXING) for h in (part.x, part.y))
        for part in (parts.validation, parts.test)
    )
    scorer, params = Scorer(AttributeCritic(classes.sizes)), {"trust": np.ones(1, np.float32)}
    batch = min(len(validation[0]), 2 * options.batch_size)
    scores = mean_scores(scorer, params, *(in_batches(view, batch) for view in validation))
    nats = float(np.mean([values.mean() for values in map(pair_values, np.asarray(scores))]))
    fitted = fit.Fitted(params, 0, (Evaluation(0, nats, nats),))
    return _Model(probes, scorer, fitted, validation, test, ((), ()))


def _blocks(parts: Parts, options: Options) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The blocks of the prequential certificate: (to rehearse it on validation, to certify); both empty without one.

    It needs parts that are one sample, and a class that both views share. A share FIRST of each class's rows in `fit`
    and `test` is left out of the pairs, which are drawn from the other rows. The first block's probe is fitted on that
    share alone. It must not see the other rows that are in no pair: their class counts would reveal how often each
    class is among the pairs. Every probe's penalty and temperature are chosen on validation, whose rows are in no
    certified pair.
    """
    p, held, none = parts.common_frequencies, parts.validation, ((), ())
    if p is None or isinstance(parts.joint, AttributeClasses) or not parts.one_sample:
        return none
    if len(parts.fit) + len(parts.test.c) + len(held.c) > MOST_ROWS:
        return none
    # The centers and spreads are those of validation alone: on certified rows, the map would depend on these rows.
    by = center_and_spread(held.rows.astype(np.float64))
    rows = np.concatenate([parts.fit, parts.test.rows])
    c = np.concatenate([parts.fit_classes, parts.test.c])
    rng = np.random.default_rng([options.seed, PREQUENTIAL])
    others, _, first = parts_of(c, rng.random(len(c)), validation=0.0, test=FIRST)
    pairs = others[fresh_pairs(np.arange(len(others)), c[others], p, parts.risk, rng)]
    if len(pairs) < LEAST_PAIRS:
        return none
    order, read = np.concatenate([rng.permutation(first), pairs.ravel()]), len(first)
    starts = [start + (start - read) % 2 for start in doublings(read, len(order))]  # no pair is cut
    x, c_x = _tamed(rows, by)[order], c[order]
    validation = held.mapped(lambda h: _tamed(h, by))
    probes = refits(x, c_x, len(p), starts, l2=L2, validation_features=validation.rows, validation_labels=validation.c)
    rehearsed, certified = [], []
    for probe, start, end in zip(probes, starts, [*starts[1:], len(order)], strict=True):
        one = balanced(probe, validation.rows, p)
        certified.append(Block.of(one, x[start::2], x[start + 1 :: 2], c_x[start::2], (end - start) // 2))
        own = Block.of(one, validation.x, validation.y, validation.c_x, 0)
        rehearsed.append(own.resized(certified[-1]))
    return tuple(rehearsed), tuple(certified)


def _tamed(h: Float[np.ndarray, "n d"], by: tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]) -> Any:
    """Rows with shorter tails, in float32. Each column is mapped one-to-one, by its center and spread in `by`."""
    return squash(h.astype(np.float64), *by).astype(np.float32)


@dataclass(frozen=True)
class _Inputs:
    """The map from representations to the rows that critics read: it appends scaled class posteriors.

    The inner product of two rows' scaled posteriors is the density ratio that they give.
    sided: whether x and y need columns of their own, because the classes of a pair may differ.
    """

    probe: softmax.LinearProbe
    joint: Float[np.ndarray, "c c"]
    sided: bool

    def __call__(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n _"]:
        p_x, p_y = self.joint.sum(axis=1), self.joint.sum(axis=0)
        q = softmax.class_posterior(self.probe, h)
        columns = [h, mix_posterior(q, MIXING) / np.sqrt(p_x)[None, :]]
        if self.sided:
            # Σ q(c|x) p(c,c') / (p(c) p(c')) q(c'|y): x brings q(c|x) / √p(c), and y the rest.
            q_y = mix_posterior(partner_posterior(q, self.joint), MIXING)
            columns.append(q_y @ (self.joint / np.outer(np.sqrt(p_x), p_y)).T)
        return np.hstack(columns).astype(np.float32)


def partner_posterior(q: Float[np.ndarray, "n c"], joint: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "n c"]:
    """Class probabilities of views y, by Bayes' rule, from those of a probe that was fitted on views x.

    q: (n, c). The probe's class probabilities, at the class frequencies p(c) of x.
    joint: p(c, c'). The frequencies p(c') of y differ from p(c) if channels change a law that isn't uniform.
    """
    p_x, p_y = joint.sum(axis=1), joint.sum(axis=0)
    if np.allclose(p_x, p_y, rtol=1e-9, atol=0):
        return q
    weighted = q * (p_y / p_x)[None, :]
    return weighted / weighted.sum(axis=1, keepdims=True)


def seen(
    part: HeldOutPairs,
    probe: softmax.LinearProbe | AttributeProbes,
    scores: Float[np.ndarray, "b k k"],
    joint: Float[np.ndarray, "c c"] | AttributeClasses,
) -> HeldOut:
    """The probe's and the critics' outputs for a part.

    scores: the critics' averaged scores of its pairs. joint: p(c, c') of the pairs' classes.
    """
    if isinstance(joint, AttributeClasses):
        assert isinstance(probe, AttributeProbes)  # both come from the same attributes
        of_views = probe.posteriors(part.x), probe.posteriors(part.y)
        predicted = joint.index(probe.predicted(part.rows))
        return HeldOut(scores, Classified(*of_views, part.c_x, part.c_y, predicted, part.c, part.stratified))
    assert isinstance(probe, softmax.LinearProbe)
    q_x, q_y = softmax.class_posterior(probe, part.x), partner_posterior(softmax.class_posterior(probe, part.y), joint)
    predicted = probe.logits(part.rows).argmax(axis=1)
    return HeldOut(scores, Classified(q_x, q_y, part.c_x, part.c_y, predicted, part.c, part.stratified))


@dataclass(frozen=True)
class _Reader:
    """InfoNCE of the fitted critics' averaged scores on the test pairs, at any K."""

    scorer: Scorer
    params: Any
    test: tuple[Float[np.ndarray, "n _"], ...]
    common_frequencies: Float[np.ndarray, " c"] | None
    confidence: float
    known: dict[int, Float[np.ndarray, " v"]] = field(default_factory=dict)  # results so far, by K

    def pair_nats(self, k: int) -> Float[np.ndarray, " v"]:
        """Independent values with InfoNCE at k as their mean: one a batch if there are eight or more, else one a pair.

        Values of pairs need no second batch, so k can be as large as the sample. For k above WHOLE there is always one
        value a batch, however few batches there are.
        """
        if k not in self.known:
            self.known[k] = self._read(*(in_batches(view, k) for view in self.test))
        return self.known[k]

    def _read(self, x: Float[np.ndarray, "b k d"], y: Float[np.ndarray, "b k d"]) -> Float[np.ndarray, " v"]:
        if x.shape[1] > WHOLE:
            return np.asarray(read_by_sums(self.scorer, info_nce_of_sums, self.params, x, y), np.float64)
        one_at_a_time = zip(x[:, None], y[:, None], strict=True)
        return independent_values(np.asarray(mean_scores(self.scorer, self.params, *pair))[0] for pair in one_at_a_time)

    def kind(self, k: int, values: Float[np.ndarray, " v"]) -> str:
        """Whether these values at k are of batches or of pairs, as in `Interval.kind`."""
        return BATCHES if len(values) == len(self.test[0]) // k else PAIRS

    def __call__(self, k: int) -> tuple[Reading, Float[np.ndarray, " b"]]:
        values, batches = self.pair_nats(k), len(self.test[0]) // k
        frequencies = self.common_frequencies
        reading = Reading(
            bits=float(values.mean()) / math.log(2),
            batches=batches,
            interval=interval_of(values, self.confidence, self.kind(k, values)),
            ceiling_bits=math.log2(k),
            max_bits=None if frequencies is None else max_info_nce_bits(k, frequencies),
        )
        return reading, values.reshape(batches, -1).mean(axis=1) / math.log(2)
