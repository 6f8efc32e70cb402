"""Post-training MI estimation: fit critics on the frozen representation, read the test part once, certify.

`mi.measure` measures pairs of known classes, as in `mi.estimate_labels`. A second critic has the projection head's
architecture; the NT-Xent estimate of Lee et al. 2023 reads it. It is the only critic if the views share no class, or if
the critic is fitted on streamed images. Validation chooses critic, probe, calibration and certificate; only the
reported values use the test part.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mirigor_jax import parallel, probes
from mirigor_jax.data.attribute_classes import AttributeClasses, are_many
from mirigor_jax.data.pairing import ByClass
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.population import Features
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import check_finite, in_batches
from mirigor_jax.mi import fit
from mirigor_jax.mi.by_attribute import AttributeProbes, fit_attributes
from mirigor_jax.mi.certify import (
    CERTIFICATES,
    Certified,
    HeldOut,
    batch_rows,
    certify,
    most_bits,
    value_ceiling_bits,
)
from mirigor_jax.mi.conclusions import conclusions
from mirigor_jax.mi.confidence import BATCHES, interval_of
from mirigor_jax.mi.critics import Scorer
from mirigor_jax.mi.estimators import MAIN, NT_XENT, Estimator
from mirigor_jax.mi.measure import HeldOutPairs, Options, Parts, measure, seen
from mirigor_jax.mi.measure import Measured as ByClassMeasured
from mirigor_jax.mi.read import mean_scores
from mirigor_jax.mi.results import Curve, Estimate, Reading, verdict
from mirigor_jax.mi.rows import Findings, Rows, check_copies, check_labeled
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.monitoring import NO_MONITORING, NO_STAGE_MONITOR, Monitoring, StageMonitor
from mirigor_jax.progress import Progress, show_progress
from mirigor_jax.runs import loop
from mirigor_jax.runs.features import encode_stage, freeze, load
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, batch_sizes, critic_mesh, quoted_k, under, validation_k
from mirigor_jax.runs.schema import EstimateEntry, Fit, History, read
from mirigor_jax.runs.steps import (
    WITHIN_BATCH,
    critic_key,
    critic_keys,
    critic_of,
    init_critic,
    make_critic_step,
    make_read_step,
    read_off_head,
    starts_from_posterior,
)

E = TypeVar("E", bound=Estimate)
SEEN = "the certificate is withheld, as the encoder has seen the test images; give images that it was not trained on"


@dataclass(frozen=True)
class Measured:
    """An estimate of a run's encoder, with the readings behind it.

    statistic: name of the statistic that gives the estimate.
    curve: the readings of each estimator at every K, by name; InfoNCE comes first.
    batch_bits: InfoNCE of every batch of the test part, by K, for comparison with another encoder.
    fit: the fit of the critic that InfoNCE reads.
    """

    estimate: Estimate
    statistic: str
    curve: dict[str, Curve]
    batch_bits: dict[int, np.ndarray]
    fit: Fit


def finished_estimate(folder: RunFolder) -> EstimateEntry | None:
    """The contents of estimate.json; None if there is none, or if another version wrote it."""
    result = folder.read("estimate.json")
    try:
        return None if result is None else read(EstimateEntry, result)
    except InputError:
        return None


def estimate_stage(
    job: Job,
    folder: RunFolder,
    name: str,
    features: RunFolder,
    timing_folder: RunFolder,
    *,
    monitoring: Monitoring = NO_MONITORING,
) -> None:
    """Encode the parts that `features` lacks, then write the estimate into estimates/`name`.

    The files are estimate.json, an `EstimateEntry`, and batches.npz, InfoNCE of every batch by K.
    features: the folder of the features. timing_folder: the folder whose stages.json counts the time.
    """
    target = folder / "estimates" / name
    monitor = monitoring.of(folder.path, target.path)
    # Studies read batches.npz, too. A damaged one is found here, where it can be made again.
    done = finished_estimate(target) is not None and target.exists("batches.npz") and bool(target.arrays("batches.npz"))
    encode_stage(job, folder, features, timing_folder, augmentation=job.augmentation, monitoring=monitoring, done=done)
    with timing_folder.stage("estimate", done) as work:
        if work:
            paired, findings = _without_copies(job, job.images.paired(load(features), job.pairing))
            mesh = critic_mesh(job.config, len(paired["test"]["h_x"]), len(paired["validation"]["h_x"]))
            frozen = freeze(job, folder, mesh) if job.streams else None
            measured = estimate(job, name, paired, target, mesh, frozen=frozen, monitor=monitor)
            if measured is not None:
                measured = replace(measured, estimate=certified(job, findings.applied_to(measured.estimate)))
                target.write_arrays("batches.npz", {str(k): bits for k, bits in measured.batch_bits.items()})
                target.write("estimate.json", dataclasses.asdict(entry(job, measured)))
        elif monitoring.draws:
            monitor.rows(target.rows("fit.jsonl"))


def certified(job: Job, estimate: E) -> E:
    """The estimate, without its certificate if the encoder was trained or chosen on the test images."""
    return estimate.of_seen_rows(SEEN) if "test" in job.seen_parts else estimate


def estimate(
    job: Job,
    name: str,
    features: Features,
    folder: RunFolder,
    mesh: Mesh,
    *,
    frozen: FrozenEncoder | None = None,
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> Measured | None:
    """Estimate I(h_X;h_Y) under the job's pairing. Returns None on all processes but the first.

    name: the estimate's name.
    features: fit, validation and test parts, the last two in pairs.
    folder: the folder for the fit's checkpoints and rows.
    frozen: the encoder, if the critic is fitted on streamed images instead of the fit part's representations.
    monitor: see `fit_critic`.
    """
    head = None
    if read_off_head(job):
        mean, scale = scaling(features)
        standardized = standardize_parts(features, mean, scale)
        encoder = None if frozen is None else (frozen, mean, scale)
        params, fitted = fit_critic(job, standardized, folder, mesh, encoder=encoder, monitor=monitor)
        head = HeadCritic(params, standardized, fitted, *read_curve(job, params, standardized["test"], mesh))
    if starts_from_posterior(job):
        # Every process computes this, though one would do: a process that waits for another gives up after half a
        # minute.
        measured = _by_posterior(job, name, features, {} if head is None else head.curve)
        return measured if parallel.is_main() else None
    assert head is not None  # without a posterior, InfoNCE reads this critic
    return _by_head(job, name, head) if parallel.is_main() else None


@dataclass(frozen=True)
class HeadCritic:
    """A fitted critic with the projection head's architecture, and the estimators' readings of it.

    features: the standardized features. curve, batch_bits: as in `Measured`.
    """

    params: Any
    features: Features
    fit: Fit
    curve: dict[str, Curve]
    batch_bits: dict[int, np.ndarray]


def joint_of(pairing: ByClass) -> Float[np.ndarray, "c c"] | AttributeClasses:
    """p(c, c') of the pairing's classes; or how they are made of attributes, if generated images have many of them."""
    by_attribute: Any = getattr(pairing, "by_attribute", None)  # a pairing of one's own need not have it
    made = by_attribute() if by_attribute and are_many(pairing.num_classes, len(pairing.shared)) else None
    return pairing.joint() if made is None else made


def class_parts(job: Job, features: Features) -> Parts:
    """Turn features, with validation and test in pairs, into the parts that `mi.measure` takes."""
    pairing = job.pairing.by_class
    assert pairing is not None  # `starts_from_posterior` guarantees it

    def held_out(part: str) -> HeldOutPairs:
        pairs = features[part]
        c_x, c_y = pairing.classes(pairs["labels_x"]), pairing.classes(pairs["labels_y"])
        if "h" in pairs:
            rows, c = pairs["h"], pairing.classes(pairs["labels"])
        else:  # only one image of each pair: the two share their class, so their errors are not independent trials
            rows, c = pairs["h_x"], c_x
        return HeldOutPairs(pairs["h_x"], pairs["h_y"], c_x, c_y, rows, c, stratified="h" in pairs)

    fit_part = features["fit"]
    upper = pairing.entropy_bits if pairing.upper_bits is None else pairing.upper_bits
    return Parts(
        fit_part["h"],
        pairing.classes(fit_part["labels"]),
        held_out("validation"),
        held_out("test"),
        joint_of(pairing),
        upper_bits=upper,
        risk=job.images.risk(pairing),
        one_sample=job.images.is_one_sample and not job.seen_parts,
    )


def _by_posterior(job: Job, name: str, features: Features, others: dict[str, Curve]) -> Measured:
    """The estimate for pairs of known classes. others: readings of the head's critic by the other estimators."""
    measured = measure_by_class(job, features)
    sizes = batch_sizes(job.config, measured.estimate.pairs)
    at, batch_bits = {}, {}
    with Progress("InfoNCE at several K"):
        for k in sizes:
            at[k], batch_bits[k] = measured.read(k)
    main = job.estimators[MAIN]
    curve = {MAIN: Curve(main.heading, main.kind, quoted_k(job.config, MAIN, sizes), at)} | others
    steps, fit_bits, validation_bits = zip(
        *((one.step, one.fit_nats / math.log(2), one.validation_nats / math.log(2)) for one in measured.history),
        strict=True,
    )
    history = History(steps, fit_bits, validation_bits)
    fitted = Fit(steps[-1], measured.best_step, job.config.estimate.batch_size, history)
    result = replace(measured.estimate, name=name)
    return Measured(result, measured.estimate.name, curve, batch_bits, fitted)


def measure_by_class(job: Job, features: Features) -> ByClassMeasured:
    """Measure pairs whose classes are known.

    If the images look dependent, or many are copies, the certificate and the interval are withheld. A few copies are
    left out, with a warning.

    features: fit, validation and test parts, the last two in pairs.
    """
    e = job.config.estimate
    with Progress("checking that the rows are independent"):
        parts, findings = _checked(class_parts(job, features), e.rows)
    _check_left(job, len(parts.test.x))
    with show_progress("critic", "steps") as on_progress:
        options = Options(
            k=e.k,
            seed=job.config.seed,
            steps=e.steps,
            batch_size=e.batch_size,
            confidence=e.confidence,
            tolerance_bits=e.tolerance_bits,
            on_progress=on_progress,
        )
        measured = measure(parts, options)
    return replace(measured, estimate=findings.applied_to(measured.estimate))


def _checked(parts: Parts, stated: Rows) -> tuple[Parts, Findings]:
    """Drop test images that are copies, and check whether the images look like independent draws.

    The parts keep the order of a set's images. Generated images are drawn independently and are not checked.
    stated: the setting estimate.rows.
    """
    held_out = (parts.validation, parts.test)
    if not parts.test.stratified:
        parts = replace(parts, one_sample=False)  # nobody has looked for copies
        return parts, Findings.of("", np.zeros(len(parts.test.c), bool), (), stated)
    h = np.concatenate([parts.fit, *(part.rows for part in held_out)])
    classes = np.concatenate([parts.fit_classes, *(part.c for part in held_out)])
    findings = check_labeled(h, classes, np.arange(len(h))[-len(parts.test.c) :], stated)
    # If test images are copies, images of the fit part may be copies too.
    one_sample = parts.one_sample and not findings.copies.any()
    return replace(parts, test=parts.test.without(findings.copies), one_sample=one_sample), findings


def _without_copies(job: Job, features: Features) -> tuple[Features, Findings]:
    """Drop test pairs of images that are copies of others, and check the images.

    This compares the images, as augmentations hide copies in the representations. For pairs by class without
    augmentation or streaming, `_checked` compares the representations instead. Without a certificate nothing is
    compared.
    """
    pairing = job.pairing
    apart = pairing.certificates and not starts_from_posterior(job)
    with Progress("looking for copies of test images"):
        compared = job.images.thumbnails(pairing, max(1, job.config.data.threads)) if apart else None
        if compared is None:
            return features, Findings.of("", np.zeros(0, bool), (), "checked")
        images, rows = compared
        tested = np.unique(rows)
        findings = check_copies(images, tested, job.config.estimate.rows)
    kept = ~np.isin(rows, tested[findings.copies]).any(axis=1)
    _check_left(job, int(kept.sum()))
    test = {key: x[kept] if key.endswith(("_x", "_y")) else x for key, x in features["test"].items()}
    return features | {"test": test}, findings


def _check_left(job: Job, pairs: int) -> None:
    if pairs < (k := job.config.estimate.k):
        raise InputError(f"estimate.k={k} exceeds the {pairs:,} test pairs that are left without copies; lower it")


def _by_head(job: Job, name: str, head: HeadCritic) -> Measured:
    """The estimate from the critic with the head's architecture, if it is the only critic."""
    e, upper, quoted = job.config.estimate, job.pairing.upper_bits, head.curve[MAIN].quoted
    # With the probability `risk`, pairs depend on each other. The certificate uses a higher confidence to cover it.
    paid = e.confidence + job.images.risk(job.pairing)
    with Progress("certificates"):
        certificate, certificates = certify_critic(job, head.params, head.features, paid)
    # Without a certificate the views are independent: I is 0, and the estimate is InfoNCE's.
    interval = quoted.interval and quoted.interval.positive_part
    chosen = certificates[certificate] if certificate else Certified(max(0.0, quoted.bits), 0.0, interval, {})
    parts = (len(head.features[part]["h_x"]) for part in ("test", "validation"))
    most = most_bits(certificates, batch_rows(*parts), job.pairing.common_frequencies)
    result = Estimate(
        name=name,
        value_bits=chosen.value_bits,
        kind=head.curve[MAIN].kind,
        k=e.k,
        ceiling_bits=value_ceiling_bits(certificate, chosen, e.k),
        interval=chosen.interval,
        lower_bits=chosen.lower_bits,
        upper_bits=upper,
        confidence=e.confidence,
        certificate=certificate,
        verdict=verdict(chosen.lower_bits, upper, e.tolerance_bits, most),
        pairs=len(head.features["test"]["h_x"]),
        info_nce=quoted,
        certificates=certificates,
    )
    statistic = CERTIFICATES[certificate].heading if certificate else head.curve[MAIN].heading
    return Measured(result, statistic, head.curve, head.batch_bits, head.fit)


def entry(job: Job, measured: Measured) -> EstimateEntry:
    """The entry of an estimate in estimate.json and report.json."""
    itself, pairing, info_nce = measured.estimate, job.pairing, measured.curve[MAIN]
    upper, quoted = itself.upper_bits, info_nce.quoted
    return EstimateEntry(
        name=itself.name,
        shared=tuple(pairing.shared),
        value_bits=itself.value_bits,
        statistic=measured.statistic,
        interval=itself.interval,
        k=info_nce.k,
        info_nce_bits=quoted.bits,
        ceiling_bits=quoted.ceiling_bits,
        max_info_nce_bits=quoted.max_bits,
        nt_xent_bits=measured.curve[NT_XENT].quoted.bits if NT_XENT in measured.curve else None,
        lower_bits=itself.lower_bits,
        upper_bits=upper,
        confidence=itself.confidence,
        certificate=itself.certificate,
        certificates=itself.certificates,
        verdict=itself.verdict,
        entropy_bits=pairing.entropy_bits,
        curve=measured.curve,
        fit=measured.fit,
        warnings=itself.warnings,
        conclusions=tuple(
            conclusions(
                itself,
                certificates=itself.certificates,
                shared_exactly=_same(upper, pairing.entropy_bits),
                tolerance_bits=job.config.estimate.tolerance_bits,
                curve=measured.curve,
                # If the classes pass through channels, InfoNCE exceeds neither the information they pass nor log2 k.
                max_info_nce_bits=min(math.inf if upper is None else upper, quoted.max_bits or math.log2(info_nce.k)),
            )
        ),
    )


def _same(upper_bits: float | None, entropy_bits: float | None) -> bool:
    """Whether the views share their class exactly."""
    if upper_bits is None or entropy_bits is None:
        return False
    return math.isclose(upper_bits, entropy_bits, abs_tol=1e-9)


def scaling(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of the fit part's representations; 1 if a column is constant."""
    mean, scale = features["fit"]["h"].mean(axis=0), features["fit"]["h"].std(axis=0)
    return mean, np.where(scale > 0, scale, 1).astype(scale.dtype)


def standardize_parts(features: Features, mean: np.ndarray, scale: np.ndarray) -> Features:
    """Subtract `mean` from the representations of every part and divide by `scale`, column by column."""

    def scaled(name: str, x: np.ndarray) -> np.ndarray:
        if name not in ("h", "h_x", "h_y"):
            return x
        result = (x - mean) / scale  # float64 if float32 cannot hold the features; float32 can hold the result
        return result.astype(jax.dtypes.canonicalize_dtype(result.dtype), copy=False)

    return {split: {name: scaled(name, x) for name, x in arrays.items()} for split, arrays in features.items()}


def pairs_in_batches(pairs: dict[str, np.ndarray], k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Split pairs into disjoint batches of k and place them on the mesh: (h_x, h_y), each (m, k, d).

    Leftover pairs are not used.
    """
    h_x, h_y = parallel.place([in_batches(pairs[name], k) for name in ("h_x", "h_y")], mesh, WITHIN_BATCH)
    return h_x, h_y


def fit_critic(
    job: Job,
    features: Features,
    folder: RunFolder,
    mesh: Mesh,
    *,
    encoder: tuple[FrozenEncoder, np.ndarray, np.ndarray] | None = None,
    monitor: StageMonitor = NO_STAGE_MONITOR,
) -> tuple[Any, Fit]:
    """Fit the critic on the fit part, or on streamed images, and keep the best one by validation.

    The fit continues from a checkpoint in `folder`, if there is one.
    features: standardized.
    encoder: (encoder, mean, scale) if images are streamed; mean and scale standardize its representations.
    monitor: shows the rows of fit.jsonl, and traces a chunk of steps.
    Returns the critic's parameters and a record of the fit.
    """
    e = job.config.estimate
    chunk, (abstract, *_) = make_critic_step(job, mesh, features, None if encoder is None else encoder[0])
    held_out = features["validation"]
    validation = pairs_in_batches(held_out, validation_k(job.config, len(held_out["h_x"]), mesh.size), mesh)

    def begin() -> Any:
        like = jnp.zeros((2, validation[0].shape[2]), validation[0].dtype)
        init = partial(init_critic, job, like, critic_key(job))
        options = parallel.quick_compilation(runs_once=True)
        return jax.jit(init, out_shardings=parallel.layout(abstract), compiler_options=options)()

    @contextlib.contextmanager
    def steps_from(first: int) -> Iterator[loop.Advance]:
        frozen, draw = _data(job, features, mesh, encoder, first)
        with monitor.traced(chunk, skip=1, calls=1) as traced:

            def advance(state: Any, done: int, size: int) -> tuple[Any, Any]:
                keys = critic_keys(job, jnp.arange(done, done + size))
                batch, keys = draw(size), parallel.place(keys, mesh)
                with jax.transfer_guard("disallow"):
                    return traced(state, frozen, batch, validation, keys)

            yield advance

    def row(done: int, metrics: Any) -> loop.Row:
        with under("estimate."):
            check_finite(metrics, ["the critic"], done, e.learning_rate)
        return {name.replace("nats", "bits"): float(x) / math.log(2) for name, x in metrics.items()}

    def score(rows: Sequence[loop.Row]) -> float:
        return rows[-1]["validation_bits"]

    task = loop.Task(
        label="estimate",
        steps=e.steps,
        stride=e.eval_every,
        save_every=e.eval_every,
        begin=begin,
        like=abstract,
        open=steps_from,
        row=row,
        score=score,
        note=lambda rows: f"InfoNCE {score(rows):.3f} bits on validation",
        learned=lambda state: state.params,
        rate=f"estimate.learning_rate={e.learning_rate}",
    )
    state, rows = loop.drive(task, folder, "fit.jsonl", folder / "critic", monitor)
    history = History(*(tuple(row[name] for row in rows) for name in ("step", "fit_bits", "validation_bits")))
    return state.best_params, Fit(e.steps, int(state.best_step), e.batch_size, history)


def _data(
    job: Job,
    features: Features,
    mesh: Mesh,
    encoder: tuple[FrozenEncoder, np.ndarray, np.ndarray] | None,
    first: int,
) -> tuple[Any, Any]:
    """The inputs of the critic's steps: (the frozen tree, a function from a number of steps to their batch).

    encoder: as in `fit_critic`. first: the step to start from.
    """
    config, pairing, by_class = job.config, job.pairing, job.pairing.by_class
    if encoder is None:
        if by_class is None:
            raise InputError("the pairing has no classes to pair features by; give --config.estimate.stream=True")
        classes = by_class.classes(features["fit"]["labels"])
        bank = parallel.place(fit.make_bank(features["fit"]["h"], classes, by_class.joint()), mesh)
        return {}, lambda size: bank
    iterator = iter(
        batches(
            job.images.pairs(pairing, "critic"),
            batch_size=config.estimate.batch_size,
            first=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
            workers=config.data.workers,
        )
    )

    def draw(size: int) -> Any:
        several = [next(iterator) for _ in range(size)]
        batch = {view: np.stack([b[view] for b in several]) for view in ("x", "y")}
        return parallel.shard(batch, mesh, WITHIN_BATCH)

    frozen, mean, scale = encoder
    return parallel.place({"encoder": frozen.variables, "mean": mean, "scale": scale}, mesh), draw


def read_curve(
    job: Job, params: Any, test: dict[str, np.ndarray], mesh: Mesh
) -> tuple[dict[str, Curve], dict[int, np.ndarray]]:
    """Read the head's critic on the test part at every K.

    Returns (the readings of each estimator, InfoNCE of every batch in bits by K).
    """
    read_step, pairing, confidence = make_read_step(job, mesh), job.pairing, job.config.estimate.confidence
    frequencies, estimators = pairing.common_frequencies, read_off_head(job)
    sizes = batch_sizes(job.config, len(test["h_x"]))
    at: dict[str, dict[int, Reading]] = {name: {} for name in estimators}
    batch_bits = {}
    with Progress("estimators at several K"):
        for k in sizes:
            nats = read_step(params, *pairs_in_batches(test, k, mesh))
            for (name, estimator), values in zip(estimators.items(), nats, strict=True):
                bits = np.asarray(values, np.float64) / math.log(2)
                at[name][k] = _reading(estimator, k, bits, confidence, frequencies)
                if name == MAIN:
                    batch_bits[k] = bits
    return {
        name: Curve(estimator.heading or name, estimator.kind, quoted_k(job.config, name, sizes), at[name])
        for name, estimator in estimators.items()
    }, batch_bits


def _reading(
    estimator: Estimator, k: int, bits: np.ndarray, confidence: float, frequencies: np.ndarray | None
) -> Reading:
    """One reading from the values of all batches.

    bits: the estimator's value for each batch. frequencies: p(c), if pairs share their class exactly.
    """
    return Reading(
        bits=float(bits.mean()),
        batches=len(bits),
        interval=interval_of(bits * math.log(2), confidence, BATCHES),
        ceiling_bits=None if estimator.candidates is None else math.log2(estimator.candidates(k)),
        max_bits=None if frequencies is None or estimator.max_bits is None else estimator.max_bits(k, frequencies),
    )


def both_views(pairs: dict[str, np.ndarray], pairing: ByClass) -> tuple[np.ndarray, np.ndarray]:
    """(representations, classes) of all images of a part; without single images, all first views, then all second."""
    if "h" in pairs:
        return pairs["h"], pairing.classes(pairs["labels"])
    h, attributes = (np.concatenate([pairs[f"{name}_x"], pairs[f"{name}_y"]]) for name in ("h", "labels"))
    return h, pairing.classes(attributes)


def fit_probe(job: Job, features: Features, pairing: ByClass) -> probes.LinearProbe | AttributeProbes:
    """The linear probe of the pairing's class, or those of its attributes if there are many classes.

    The fit part fits it, and validation chooses its penalty.
    """
    h, classes = both_views(features["validation"], pairing)
    fit_h, fit_classes = features["fit"]["h"], pairing.classes(features["fit"]["labels"])
    l2 = tuple(job.config.evaluate.l2)
    if isinstance(made := joint_of(pairing), AttributeClasses):
        of_fit, of_validation = made.values[fit_classes], made.values[classes]
        held_out = {"validation_features": h, "validation_attributes": of_validation}
        return fit_attributes(fit_h, of_fit, made.sizes, l2=l2, **held_out)
    held_out = {"validation_features": h, "validation_labels": classes}
    return probes.fit_linear(fit_h, fit_classes, pairing.num_classes, l2=l2, **held_out)


def linear_accuracy(job: Job, features: Features, pairing: ByClass) -> float:
    """Share of the test images whose class the linear probe of `fit_probe` predicts."""
    probe, (h, classes) = fit_probe(job, features, pairing), both_views(features["test"], pairing)
    if isinstance(probe, AttributeProbes):
        made = joint_of(pairing)
        assert isinstance(made, AttributeClasses)  # `fit_probe` fitted probes of the attributes
        return float(np.mean(made.index(probe.predicted(h)) == classes))
    return probes.accuracy(probe, h, classes)


def certify_critic(
    job: Job, params: Any, features: Features, confidence: float
) -> tuple[str | None, dict[str, Certified]]:
    """Certify with the fitted critic and, for pairs by class, a class probe.

    Returns (the name of the chosen certificate, the result of every certificate on the test part). If no attribute is
    shared, I = 0 needs no certificate. If the views share their image, they have no known class.
    """
    pairing = job.pairing
    if not pairing.certificates:
        return None, {}
    critic, _ = critic_of(job)
    stacked = jax.tree.map(lambda x: x[None], jax.device_get(params))
    size = batch_rows(len(features["test"]["h_x"]), len(features["validation"]["h_x"]))

    def scores(pairs: dict[str, np.ndarray]) -> np.ndarray:
        x, y = (in_batches(pairs[view], size) for view in ("h_x", "h_y"))
        return np.asarray(mean_scores(Scorer(critic), stacked, x, y))

    if (by_class := pairing.by_class) is None:
        validation, test = (HeldOut(scores(features[part])) for part in ("validation", "test"))
        return certify(validation, test, None, confidence)

    parts = class_parts(job, features)
    probe = fit_probe(job, features, by_class)
    validation, test = (
        seen(part, probe, scores(features[name]), parts.joint)
        for name, part in (("validation", parts.validation), ("test", parts.test))
    )
    return certify(validation, test, parts.joint, confidence)
