"""How much two images of a class tell about each other through their representations: I_class, with a certificate.

Representations and labels are all it takes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import signature
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Float, Int, Shaped
from scipy.special import entr

from mirigor_jax import fitting, parallel, softmax
from mirigor_jax.data.draws import fresh_pairs, split_in_classes
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import OnProgress
from mirigor_jax.mi import api, fit
from mirigor_jax.mi.certificates import mix_posterior
from mirigor_jax.mi.certify import DEPLETION_SHARE, LEAST_PAIRS, Classified, HeldOut, batch_rows, certify, most_bits
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.mi.critics import CosineCritic, PosteriorCritic
from mirigor_jax.mi.estimators import max_info_nce_bits
from mirigor_jax.mi.gaussian import squash
from mirigor_jax.mi.read import in_batches, independent_values, mean_scores
from mirigor_jax.mi.results import Comparison, Estimate, LabelEstimate, verdict
from mirigor_jax.mi.values import info_nce_symmetric

BATCH = 256  # pairs a step of the fit
EVAL_EVERY, PATIENCE = 50, 300  # steps between evaluations on validation; without a gain, to the end of the fit
WHOLE = 4096  # pairs whose score matrix is held at once, unless K asks for more
MIXING = 1e-3  # of the uniform distribution in the posterior that critics start from
LEAST_ROWS = 10  # of a class: two of them are then test rows
L2 = (1e-4, 1e-3, 1e-2, 1e-1)  # penalties that the probe chooses from


def estimate_labels(
    h: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = 0,
    num_critics: int = 1,
    steps: int = 1000,
    confidence: float = 0.95,
    tolerance_bits: float = 0.1,
    on_progress: OnProgress | None = None,
) -> LabelEstimate:
    """Estimate I_class = I(h_X;h_Y) of representations under same-class pairing, certified, with H(C) and NMI.

    The population has the classes' frequencies exactly as in `labels`, and its images are independent given their
    class; rows must be a sample of it (no two views of one image, no copies).
    Rows are split at random within classes, 60 : 20 : 20. A linear probe, and critics that start from its posterior,
    are fitted on the first part; the second (validation) chooses their penalty, their stop and the certificate; the
    third (test) is read once. Its pairs have independent classes of those frequencies, and each row is in one pair at
    most. So that classes do not run out of rows, there are fewer pairs than half the rows; the fewer rows a class has,
    the fewer pairs.
    The value is InfoNCE, its t-interval is over pairs, the lower end is the best certificate's on validation,
    and the upper end is H(C).

        print(mi.estimate_labels(h, labels))

    Args:
        h: (n, d) numbers, an array of any framework. 10 rows of every class at least.
        labels: (n,) integers, strings or bools. The class of each row.
        k: pairs of a batch when the test part is read, at least 2. None: all test pairs, up to 4,096.
        seed: of the split, the pairs and the critics.
        num_critics: critics that are fitted, at least 1. The value is that of their averaged scores.
        steps: most steps of the fit, which ends early once validation gains no more.
        confidence: in [0.5, 1). Of the t-interval and of the certificates.
        tolerance_bits: bits. The interval's width up to which the verdict is "certified".
        on_progress: called as on_progress(step, steps, note) at every evaluation on validation.

    Returns:
        The `LabelEstimate`, in bits.

    Raises:
        InputError: lengths differ, values are NaN or of another dtype, there is one class only, a class has too few
            rows, or an option is out of its limits.

    Source: Lee et al. 2023, §III-A (same-class sampling), Theorems III.1 and III.2; Poole et al. 2019, eq. 10.
    """
    design = Design.of(labels, seed, confidence)
    (rows,) = _representations([h], labels)
    options = _Options(design.check_k(k), seed, num_critics, steps, confidence, tolerance_bits, on_progress)
    result, _ = _measure(design, rows, options)
    return result


def compare(
    h_a: Any,
    h_b: Any,
    labels: Any,
    *,
    k: int | None = None,
    seed: int = 0,
    num_critics: int = 1,
    steps: int = 1000,
    confidence: float = 0.95,
    tolerance_bits: float = 0.1,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare two encoders: is A's I_class larger than B's? By InfoNCE on the same test pairs.

    Each encoder has its own critic; the split, the pairs and the batches are shared.

        print(mi.compare(h_a, h_b, labels))

    Args:
        h_a: (n, d) numbers. Encoder A's representations.
        h_b: (n, e) numbers. Encoder B's of the same images, in the same order.
        labels: (n,) integers, strings or bools. The class of each image.
        k, seed, num_critics, steps, confidence, tolerance_bits, on_progress: as in `estimate_labels`.

    Returns:
        The `Comparison`: both estimates, and their paired difference with its interval, in bits.

    Raises:
        InputError: as `estimate_labels` does.
    """
    design = Design.of(labels, seed, confidence)
    both = _representations([h_a, h_b], labels)
    options = _Options(k := design.check_k(k), seed, num_critics, steps, confidence, tolerance_bits, on_progress)
    (a, values_a), (b, values_b) = (_measure(design, h, options) for h in both)
    difference = (values_a - values_b) / math.log(2)
    t_lower, t_upper = t_interval(difference, confidence)
    most = max_info_nce_bits(k, design.frequencies)
    return Comparison(a, b, float(difference.mean()), t_lower, t_upper, k, most, confidence)


def monitor(
    apply: Callable[[Any, Any], Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    num_batches: int | None = None,
    **options: Any,
) -> Callable[[Any], Estimate]:
    """Make a function params → Estimate for a training loop: how much does the encoder know by now?

    The batches are read here and kept, so that every call reads the same images by the same split and seed, and only
    the parameters change. Give images that training does not see.

        know = mi.monitor(lambda params, x: model.apply(params, x), validation_batches)
        for step in ...: print(know(state.params))

    Args:
        apply: (params, images) → representations (n, d). Jitted here, once.
        batches: (images_x, images_y), two views each, which `estimate` measures; or (images, labels), which
            `estimate_labels` measures.
        num_batches: how many are read. None: all.
        options: those of `estimate`, or of `estimate_labels`; their `on_progress` too.

    Returns:
        The function; its result is an `Estimate`, or a `LabelEstimate` if there are labels.

    Raises:
        InputError: the batches end early. The function raises it if representations are not (n, d), and as the
            estimate does.
        TypeError: the estimate has no such option.
    """
    cached = list(islice(batches, num_batches))
    if len(cached) < (num_batches or 1):
        raise InputError(f"the iterator gave {len(cached)} batches, expected {num_batches or 'some'}; give a fresh one")
    has_labels = np.ndim(cached[0][1]) == 1
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
        labels = np.concatenate([np.asarray(batch[1]) for batch in cached])
        return lambda params: estimate_labels(represent(params, 0), labels, **options)
    return lambda params: api.estimate(represent(params, 0), represent(params, 1), **options)


@dataclass(frozen=True)
class Design:
    """Which rows are fitted on, chosen on and read, by labels and seed alone: the same for every encoder.

    pairs: rows of (validation, test), their classes independent draws from `frequencies`.
    """

    classes: Int[np.ndarray, " n"]
    frequencies: Float[np.ndarray, " c"]
    fit: Int[np.ndarray, " f"]
    validation: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]
    pairs: tuple[Int[np.ndarray, "_ 2"], Int[np.ndarray, "_ 2"]]

    @classmethod
    def of(cls, labels: Any, seed: int, confidence: float) -> "Design":
        if not 0.5 <= confidence < 1:
            raise InputError(f"confidence = {confidence}: expected in [0.5, 1); 0.95 is usual")
        classes, rare = classes_of(labels)
        rng = np.random.default_rng(seed)
        fitted, validation, test = split_in_classes(classes, rng)
        frequencies, risk = np.bincount(classes) / len(classes), DEPLETION_SHARE * (1 - confidence)
        pairs = (
            fresh_pairs(validation, classes, frequencies, risk, rng),
            fresh_pairs(test, classes, frequencies, risk, rng),
        )
        if (fewest := min(map(len, pairs))) < LEAST_PAIRS:
            raise InputError(
                f"{rare}: only {fewest} test pairs can be drawn without running out, expected {LEAST_PAIRS}; give "
                "more rows of every class, or drop or merge rare classes"
            )
        return cls(classes, frequencies, fitted, validation, test, pairs)

    def check_k(self, k: int | None) -> int:
        """k, or its default."""
        tested = len(self.pairs[1])
        k = min(tested, WHOLE) if k is None else k
        if not 2 <= k <= tested:
            raise InputError(
                f"k = {k:,}: the test part has {tested:,} pairs, K must be from 2 to that; lower it, or None"
            )
        return k


def classes_of(labels: Any) -> tuple[Int[np.ndarray, " n"], str]:
    """Each row's class in 0..c-1, and a sentence on the class with the fewest rows.

    labels: (n,) integers, strings or bools, from any framework.
    Raises InputError for other labels, for one class, and for a class of fewer than LEAST_ROWS rows.
    """
    names, classes, counts = np.unique(_labels(labels), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"labels hold {len(names)} class: H(C) is 0, and so is I_class; give two classes or more")
    least = int(counts.argmin())
    rare = f"class {names[least].item()!r} has {counts[least]} rows"
    if counts[least] < LEAST_ROWS:
        raise InputError(f"{rare}, expected {LEAST_ROWS} or more of every class; drop or merge rare classes")
    return classes, rare


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
    arrays = [api.as_rows(h, "h") for h in several]
    for h in arrays:
        if len(h) != len(labels):
            raise InputError(
                f"h has {len(h):,} rows and labels {len(labels):,}: expected as many, row i of both an image"
            )
    return arrays


@dataclass(frozen=True)
class _Options:
    """What `estimate_labels` is asked for, beside the representations; k has been checked."""

    k: int
    seed: int
    num_critics: int
    steps: int
    confidence: float
    tolerance_bits: float
    on_progress: OnProgress | None


def _measure(
    design: Design, h: Float[np.ndarray, "n d"], options: _Options
) -> tuple[LabelEstimate, Float[np.ndarray, " v"]]:
    """The estimate, and the independent values that its own is the mean of, in nats."""
    warnings = _warnings(design, h)
    h, k, frequencies = squash(h, h[design.fit]).astype(np.float32), options.k, design.frequencies
    probe = _fit_probe(design, h)
    q = mix_posterior(softmax.class_posterior(probe, h), MIXING) / np.sqrt(frequencies)[None, :]
    inputs = np.hstack([h, q.astype(np.float32)])
    critic = PosteriorCritic(CosineCritic((128,), 64), len(frequencies))
    params = _fit_critics(critic, design, inputs, options)

    def scores(critics: Any, part: int, size: int) -> Float[np.ndarray, "b k k"]:
        x, y = (in_batches(inputs[rows], size) for rows in design.pairs[part].T)
        return np.asarray(mean_scores(critic, critics, x, y))

    size = batch_rows(len(design.pairs[1]), len(design.pairs[0]))
    validation, test = (_held_out(design, h, probe, part, scores(params, part, size)) for part in range(2))
    paid = options.confidence + DEPLETION_SHARE * (1 - options.confidence)
    certificate, certificates = certify(validation, test, np.diag(frequencies), paid)

    def values(critics: Any) -> Float[np.ndarray, " v"]:
        return independent_values(scores(critics, 1, k))

    contributions = values(params)
    alone = [values(jax.tree.map(lambda x, s=s: x[s : s + 1], params)).mean() for s in range(options.num_critics)]
    t_lower, t_upper = t_interval(contributions / math.log(2), options.confidence)
    entropy = float(entr(frequencies).sum()) / math.log(2)
    lower = certificates[certificate]["lower_bits"]
    result = LabelEstimate(
        name="same-class InfoNCE",
        value_bits=float(contributions.mean()) / math.log(2),
        kind="lower bound",
        k=k,
        ceiling_bits=math.log2(k),
        t_lower_bits=t_lower,
        t_upper_bits=t_upper,
        lower_bits=lower,
        upper_bits=entropy,
        confidence=options.confidence,
        certificate=certificate,
        verdict=verdict(
            lower, entropy, options.tolerance_bits, most_bits(certificate, max_info_nce_bits(k, frequencies))
        ),
        pairs=len(design.pairs[1]) // k * k,
        seed_bits=tuple(float(value) / math.log(2) for value in alone),
        warnings=warnings,
        entropy_bits=entropy,
        certificates=certificates,
    )
    return result, contributions


def _fit_probe(design: Design, h: Float[np.ndarray, "n d"]) -> softmax.LinearProbe:
    return softmax.fit_linear(
        h[design.fit],
        design.classes[design.fit],
        len(design.frequencies),
        l2=L2,
        validation_features=h[design.validation],
        validation_labels=design.classes[design.validation],
    )


def _held_out(
    design: Design,
    h: Float[np.ndarray, "n d"],
    probe: softmax.LinearProbe,
    part: int,
    scores: Float[np.ndarray, "b k k"],
) -> HeldOut:
    """Validation (part 0) or the test part (1) as the probe and the critics see it."""
    (x, y), rows, classes = design.pairs[part].T, (design.validation, design.test)[part], design.classes
    seen = Classified(
        q_x=softmax.class_posterior(probe, h[x]),
        q_y=softmax.class_posterior(probe, h[y]),
        c_x=classes[x],
        c_y=classes[y],
        predicted=probe.logits(h[rows]).argmax(axis=1),
        c=classes[rows],
        stratified=True,
    )
    return HeldOut(scores, seen)


def _warnings(design: Design, h: Float[np.ndarray, "n d"]) -> tuple[str, ...]:
    messages, tested = [], len(design.test)
    order = np.concatenate([design.fit, design.validation, design.test])
    if repeated := api.repeated_rows(h[order], len(h) - tested):
        messages.append(
            f"{repeated:,} of {tested:,} test rows stand in the fit or validation part too; unless the representation "
            "is discrete they are no fresh images, and neither estimate nor certificate is to be trusted"
        )
    if 4 * len(design.pairs[1]) < tested // 2:
        messages.append(
            f"classes have few rows: {len(design.pairs[1]):,} pairs from {tested:,} test rows; more rows of the rarest "
            "classes would give more, and a better certificate"
        )
    return tuple(messages)


def _fit_critics(critic: PosteriorCritic, design: Design, inputs: Float[np.ndarray, "n d"], options: _Options) -> Any:
    """Parameters of the critics, stacked, fitted at once on redrawn pairs; the best of validation, or the start."""
    count, steps, on_progress = options.num_critics, options.steps, options.on_progress
    if count < 1 or steps < 1:
        raise InputError(f"num_critics = {count}, steps = {steps}: expected 1 or more")
    pairs = design.pairs[0]
    validation = tuple(in_batches(inputs[rows], min(len(pairs), 2 * BATCH)) for rows in pairs.T)
    bank = fit.make_bank(inputs[design.fit], design.classes[design.fit], np.diag(design.frequencies))
    roots = jax.vmap(partial(jax.random.fold_in, jax.random.key(options.seed)))(jnp.arange(count))
    start, chunk = _programs(critic, steps)
    state, done, best_step = start(validation, roots), 0, np.zeros(count, int)
    while done < steps and done - best_step.max() < PATIENCE:
        state, looked = chunk(state, bank, validation, roots)
        done, best_step = done + EVAL_EVERY, np.asarray(state.best_step)
        if on_progress is not None:
            bits = float(np.mean(looked["validation_nats"])) / math.log(2)
            on_progress(min(done, steps), steps, f"InfoNCE {bits:z.3f} bits on validation")
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
        keys = jax.random.split(jax.random.fold_in(root, state.step + 1), EVAL_EVERY)
        return fitting.fit_chunk(state, {}, bank, validation, keys, step=step, validate=validate, streamed=False)

    # One device: a step is too small to share, and the device's draws are then the same anywhere.
    mesh, shared = parallel.make_mesh(1), parallel.REPLICATED
    every_start, every_chunk = jax.vmap(start, in_axes=(None, 0)), jax.vmap(chunk, in_axes=(0, None, None, 0))
    return (
        parallel.map_step(every_start, mesh, (shared, shared), shared),
        parallel.map_step(every_chunk, mesh, (shared,) * 4, (shared, shared), donate=(0,)),
    )
