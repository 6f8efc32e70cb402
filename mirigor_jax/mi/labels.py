"""I_class, the information that two images of one class share through their representations, with a certificate.

Everything here takes representations and labels alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import entr

from mirigor_jax import checks, settings
from mirigor_jax.data.attribute_classes import AttributeClasses, are_many, of_table
from mirigor_jax.data.draws import TEST, VALIDATION, fresh_pairs, parts_of, row_keys
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress
from mirigor_jax.mi import api
from mirigor_jax.mi.certify import DEPLETION_SHARE, LEAST_PAIRS
from mirigor_jax.mi.confidence import interval_of
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.mi.labeled import classes_of, representations_of
from mirigor_jax.mi.measure import STEPS, WHOLE, HeldOutPairs, Measured, Options, Parts, measure
from mirigor_jax.mi.order import compare_many
from mirigor_jax.mi.results import Comparison, Estimate, LabelEstimate
from mirigor_jax.mi.rows import Rows, check_labeled


def estimate_labels(
    h: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = settings.Arrays.seed,
    num_critics: int = settings.Arrays.seeds,
    steps: int = STEPS,
    confidence: float = settings.Arrays.confidence,
    tolerance_bits: float = settings.Estimate.tolerance_bits,
    rows: Rows = settings.Arrays.rows,
    on_progress: OnProgress | None = None,
) -> LabelEstimate:
    """Estimate I_class, the I(h_X;h_Y) of same-class pairs, with a certificate, H(C), and NMI = I_class / H(C).

    The estimate is about a population: its class frequencies are exactly those of `labels`, and its images are
    independent given their class. The rows must be a sample of it, without copies or two views of one image.
    Rows are split 60 : 20 : 20 within classes, by random numbers that depend on a row's number alone. A linear probe,
    and critics that start from its posterior, are fitted on the first part. The second part (validation) chooses the
    probe's penalty, the critics' step and the certificate. The third (test) is read once. The classes of its pairs are
    independent draws with the population's frequencies, and each row is in one pair at most. The pairs do not use all
    test rows, so that no class runs out of rows; the fewer rows a class has, the fewer pairs there are.
    With at most 20,000 rows, and without copies among them, the prequential certificate also reads rows of the fit
    part: probes are refitted after N, 2N, 4N, ... rows, and predict only later rows. So it reads three to four times as
    many pairs as the test part has. The encoder must not have seen any of the rows.
    No certificate reads validation, which chooses the best of them. The value is the point estimate of the chosen
    certificate's lower bound of I_class, such as Donsker and Varadhan's. The lower end is the lower confidence limit of
    the same bound, so the value is never below it. The upper end is H(C). `info_nce` holds InfoNCE at K for comparison.

        print(mi.estimate_labels(h, labels))

    Args:
        h: (n, d) numbers, an array of any framework. At least 10 rows of every class.
        labels: (n,) integers, strings or bools. The class of each row. Or (n, a): a column for each attribute; a class
            is then a combination of their values. Of more than 64 classes, each attribute has a linear probe, and the
            class posterior is the product of theirs; no critic is fitted.
        k: pairs a batch at which InfoNCE is read, at least 2. None: all test pairs, up to 4,096.
        seed: seeds the pairs and the critics.
        num_critics: number of critics, at least 1. The test part is read by their averaged scores.
        steps: largest number of steps of the fit. It ends earlier if validation stops improving.
        confidence: in [0.5, 1). Confidence of the intervals and of the certificates.
        tolerance_bits: bits. The widest certified interval for which the verdict is "certified".
        rows: "checked": if rows look dependent given their class, as neighbors in a video or many copies do, the
            interval and the certificate are withheld; a few copies are left out. "independent": you state that rows
            are independent draws, whatever they look like.
        on_progress: called as on_progress(step, steps, note) at every evaluation on validation.

    Returns:
        The `LabelEstimate`, in bits.

    Raises:
        InputError: lengths differ, values are NaN or not numbers, there is only one class, a class has too few rows,
            or an option is out of its limits.

    Source: Lee et al. 2023, §III-A (same-class sampling), Theorems III.1 and III.2; Poole et al. 2019, eq. 10.
    """
    design = Design.of(labels, seed, confidence)
    [representations] = representations_of([h], labels)
    options = Options(design.check_k(k), seed, num_critics, steps, confidence, tolerance_bits, on_progress)
    return _measure(design, [representations], rows, options)[0].estimate


def compare(
    h_a: Any,
    h_b: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = settings.Arrays.seed,
    num_critics: int = settings.Arrays.seeds,
    steps: int = STEPS,
    confidence: float = settings.Arrays.confidence,
    tolerance_bits: float = settings.Estimate.tolerance_bits,
    rows: Rows = settings.Arrays.rows,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare two encoders: whose InfoNCE (a lower bound of I_class) and whose usable information are larger?

    For InfoNCE each encoder has its own critics. Both share the split, the pairs and the batches. No upper end of
    I_class below H(C) is known, so only usable information can be proven to be larger. `usable` is the result of
    `compare_many` for the encoders "A" and "B".

        print(mi.compare(h_a, h_b, labels))

    Args:
        h_a: (n, d) numbers. Encoder A's representations.
        h_b: (n, e) numbers. Encoder B's representations of the same images, in the same order.
        labels: as in `estimate_labels`. The class of each image.
        k, seed, num_critics, steps, confidence, tolerance_bits, rows, on_progress: as in `estimate_labels`.

    Returns:
        The `Comparison`: both estimates, their paired difference with its interval, and `usable`, in bits.

    Raises:
        InputError: as `estimate_labels` does.
    """
    design = Design.of(labels, seed, confidence)
    both = representations_of([h_a, h_b], labels)
    options = Options(design.check_k(k), seed, num_critics, steps, confidence, tolerance_bits, on_progress)
    a, b = _measure(design, both, rows, options)
    nats = a.pair_nats - b.pair_nats
    return Comparison(
        a.estimate,
        b.estimate,
        difference_bits=float(nats.mean()) / math.log(2),
        interval=interval_of(nats, confidence, a.kind_of_nats),
        k=a.estimate.k,
        max_info_nce_bits=max_info_nce_bits(a.estimate.k, design.frequencies),
        confidence=confidence,
        usable=compare_many({"A": h_a, "B": h_b}, labels, confidence=confidence, rows=rows),
    )


def monitor(
    apply: Callable[[Any, Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    num_batches: int | None = None,
    **options: Any,
) -> Callable[[Any], Estimate]:
    """Make a function params → Estimate that measures the encoder inside a training loop.

    The batches are read here and kept. Every call then uses the same images, split and seed, and only the parameters
    change. Give images that training does not see.

        measure = mi.monitor(lambda params, x: model.apply(params, x), validation_batches)
        for step in ...: print(measure(state.params))

    Args:
        apply: (params, images) → representations (n, d). It is jitted here, once.
        batches: pairs (images_x, images_y) of two views, for `estimate`; or pairs (images, labels), for
            `estimate_labels`. Labels are (n,) of any kind, or (n, 1) or (n, a) integers, strings or bools with rows
            of another shape than the images.
        num_batches: number of batches to read. None: all.
        options: keyword arguments of `estimate` or `estimate_labels`, `on_progress` among them.

    Returns:
        The function. Its result is an `Estimate`, or a `LabelEstimate` if there are labels.

    Raises:
        InputError: there are fewer batches than `num_batches`, or none. The function raises it if representations are
            not (n, d), and if the estimate does.
        TypeError: the estimate has no such option.
    """
    cached = list(islice(batches, num_batches))
    if len(cached) < (num_batches or 1):
        raise InputError(f"the iterator gave {len(cached)} batches, expected {num_batches or 'some'}; give a fresh one")
    has_labels = _are_labels(*cached[0])
    signature(estimate_labels if has_labels else api.estimate).bind(None, None, **options)
    encode = jax.jit(apply)

    def represent(params: Any, view: int) -> np.ndarray:
        parts = []
        for batch in cached:
            h = encode(params, batch[view])
            if h.ndim != 2 or len(h) != len(batch[view]):
                raise InputError(
                    f"apply gave shape {h.shape} for {len(batch[view])} images: expected (n, d); pool or flatten it"
                )
            parts.append(np.asarray(h))
        return np.concatenate(parts)

    if has_labels:
        labels = _concatenated([batch[1] for batch in cached])
        return lambda params: estimate_labels(represent(params, 0), labels, **options)
    return lambda params: api.estimate(represent(params, 0), represent(params, 1), **options)


def _are_labels(images: Any, second: Any) -> bool:
    """Whether the second array of a batch has labels of the images, not another view of them."""
    shape = np.shape(second)
    if len(shape) != 2 or shape[1:] == np.shape(images)[1:]:
        return len(shape) == 1
    columns = checks.columns_of_labels(second)
    return shape[1] == 1 or columns is None or columns.dtype.kind not in "fc"


def _concatenated(batches: Sequence[Any]) -> Shaped[np.ndarray, "..."]:
    """The labels of all batches. Raises InputError as `checks.labels` does."""
    several = [columns for labels in batches if (columns := checks.columns_of_labels(labels)) is not None]
    if len(several) == len(batches):
        return np.concatenate([columns.astype(object) for columns in several])
    return checks.joined_labels([checks.labels(labels, f"labels of batch {i}") for i, labels in enumerate(batches)])


@dataclass(frozen=True)
class Design:
    """The rows of each part and the held-out pairs. They depend on labels, seed and confidence, not on the encoder.

    classes: of each row, from 0.
    frequencies: p(c).
    fit, validation, test: the rows of each part.
    pairs: (validation's, test's) pairs of rows. Their classes are independent draws from `frequencies`.
    attributes: how many classes are made of attributes; None for few classes, and for labels without attributes.
    """

    classes: Int[np.ndarray, " n"]
    frequencies: Float[np.ndarray, " c"]
    fit: Int[np.ndarray, " f"]
    validation: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]
    pairs: tuple[Int[np.ndarray, "_ 2"], Int[np.ndarray, "_ 2"]]
    attributes: AttributeClasses | None

    @classmethod
    def of(cls, labels: Any, seed: int, confidence: float) -> "Design":
        checks.confidence(confidence)
        checks.seed(seed)
        given = classes_of(labels)
        classes, values = given.classes, given.attributes
        fitted, validation, test = parts_of(classes, row_keys(len(classes)))
        frequencies, risk = np.bincount(classes) / len(classes), DEPLETION_SHARE * (1 - confidence)

        def fresh(rows: Int[np.ndarray, " m"], stream: int) -> Int[np.ndarray, "p 2"]:
            rng = np.random.default_rng([seed, stream])
            return rows[fresh_pairs(np.arange(len(rows)), classes[rows], frequencies, risk, rng)]

        pairs = fresh(validation, VALIDATION), fresh(test, TEST)
        if (fewest := min(map(len, pairs))) < LEAST_PAIRS:
            raise InputError(
                f"{given.rare}: only {fewest} test pairs can be drawn before a class runs out, expected {LEAST_PAIRS}; "
                "give more rows of every class, or drop or merge rare classes"
            )
        many = values is not None and are_many(*values.shape)
        made = of_table(values, frequencies) if many and values is not None else None
        return cls(classes, frequencies, fitted, validation, test, pairs, made)

    def check_k(self, k: int | None) -> int:
        """k, or its default for None. Raises InputError if the test part has too few pairs for it."""
        tested = len(self.pairs[1])
        k = min(tested, WHOLE) if k is None else checks.whole("k", k, 1)
        if not 2 <= k <= tested:
            raise InputError(
                f"k = {k:,}: expected from 2 to the {tested:,} pairs of the test part; lower it, or give None"
            )
        return k


def _measure(
    design: Design, several: Sequence[Float[np.ndarray, "n _"]], stated: Rows, options: Options
) -> list[Measured]:
    """Measure several encoders' representations of the same images on the same rows. stated: see `check_labeled`."""
    findings = [check_labeled(h, design.classes, design.test, stated) for h in several]
    copies = np.any([found.copies for found in findings], axis=0)

    def held_out(h: np.ndarray, rows: Int[np.ndarray, " m"], pairs: Int[np.ndarray, "p 2"]) -> HeldOutPairs:
        (x, y), classes = pairs.T, design.classes
        return HeldOutPairs(h[x], h[y], classes[x], classes[y], h[rows], classes[rows], stratified=True)

    results = []
    for h, found in zip(several, findings, strict=True):
        parts = Parts(
            fit=h[design.fit],
            fit_classes=design.classes[design.fit],
            validation=held_out(h, design.validation, design.pairs[0]),
            test=held_out(h, design.test, design.pairs[1]).without(copies),
            joint=np.diag(design.frequencies) if design.attributes is None else design.attributes,
            upper_bits=float(entr(design.frequencies).sum()) / math.log(2),
            risk=DEPLETION_SHARE * (1 - options.confidence),
            one_sample=not copies.any(),  # if test rows have copies, rows of the fit part may have some too
        )
        measured = measure(parts, replace(options, k=min(options.k, len(parts.test.x)), warnings=_few_rows(design)))
        results.append(replace(measured, estimate=found.applied_to(measured.estimate)))
    return results


def _few_rows(design: Design) -> tuple[str, ...]:
    tested = len(design.test)
    if 4 * len(design.pairs[1]) >= tested // 2:
        return ()
    return (
        f"classes have few rows: {len(design.pairs[1]):,} pairs from {tested:,} test rows; more rows of the rarest "
        "classes would give more, and a better certificate",
    )
