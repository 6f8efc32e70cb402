"""Post-training MI estimation: fit a critic on the frozen representation, read the test part once, certify.

Critic, probe, calibration and the certificate's route are chosen on validation; the test part enters nothing but the
values reported.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mirigor_jax import parallel, probes
from mirigor_jax.data.pairing import ByClass, SameImage
from mirigor_jax.data.pipeline import batches
from mirigor_jax.data.population import Features
from mirigor_jax.mi import fit
from mirigor_jax.mi.certificates import Certificate
from mirigor_jax.mi.certify import HeldOut, batch_rows, certify, info_nce_route
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.mi.read import in_batches, mean_scores
from mirigor_jax.mi.results import Estimate, reach_bits, verdict
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.monitoring import UNWATCHED, UNWATCHED_STAGE, Stage, Watch
from mirigor_jax.runs import loop
from mirigor_jax.runs.features import encode_stage, freeze, load
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, batch_sizes, critic_mesh, validation_k
from mirigor_jax.runs.steps import (
    WITHIN_BATCH,
    critic_key,
    critic_keys,
    critic_of,
    init_critic,
    make_critic_step,
    make_read_step,
)


def estimate_stage(
    job: Job, folder: RunFolder, name: str, features: RunFolder, clock: RunFolder, *, watch: Watch = UNWATCHED
) -> None:
    """Encode what `features` lacks, then estimate into estimates/`name`. clock: the folder that counts the time."""
    target = folder / "estimates" / name
    watched, done = watch.of(folder.path, target.path), target.exists("estimate.json")
    encode_stage(job, folder, features, clock, augmentation=job.augmentation, watch=watch, done=done)
    with clock.stage("estimate", done) as work:
        if work:
            paired = job.images.paired(load(features), job.pairing)
            mesh = critic_mesh(job.config, len(paired["test"]["h_x"]), len(paired["validation"]["h_x"]))
            frozen = freeze(job, folder, mesh) if job.streams else None
            estimate(job, name, paired, target, mesh, frozen=frozen, watch=watched)
        elif watch.tensorboard:
            watched.rows(target.rows("fit.jsonl"))


def estimate(
    job: Job,
    name: str,
    features: Features,
    folder: RunFolder,
    mesh: Mesh,
    *,
    frozen: FrozenEncoder | None = None,
    watch: Stage = UNWATCHED_STAGE,
) -> None:
    """Write `folder`/estimate.json: the Estimate of I(h_X;h_Y) under the job's pairing, and what it rests on.

    Beside it batches.npz: for each K the strict InfoNCE of every batch of the test part, in bits.
    frozen: the encoder, if the critic is fitted on streamed images instead of the fit part's representations. watch:
    as `fit_critic` takes it.
    """
    e, pairing = job.config.estimate, job.pairing
    mean, scale = scaling(features)
    features = standardize(features, mean, scale)
    encoder = None if frozen is None else (frozen, mean, scale)
    params, fitted = fit_critic(job, features, folder, mesh, encoder=encoder, watch=watch)
    curve, of_batches = read_curve(job, params, features["test"], mesh)
    if not parallel.is_main():
        return
    # Pairs may depend on each other with this probability, which the certificate pays for.
    route, found = certify_critic(job, params, features, e.confidence + job.images.risk(pairing))
    at = {row["k"]: row for row in curve}
    own, paper_k = at[e.k], e.paper_k if e.paper_k in at else e.k
    result = _result(job, name, own, route, found[route]["lower_bits"] if route else 0.0)
    folder.write_arrays("batches.npz", of_batches)
    folder.write(
        "estimate.json",
        {
            **vars(result),
            "value_nats": result.value_nats,
            "entropy_bits": pairing.entropy_bits,
            "shared": list(pairing.shared),
            "strict_bits": own["strict_bits"],
            "paper_bits": at[paper_k]["paper_bits"],
            "paper_k": paper_k,
            "reach_bits": own["reach_bits"],
            "curve": curve,
            "routes": found,
            "fit": fitted,
        },
    )


def _result(job: Job, name: str, own: dict[str, Any], route: Certificate | None, lower: float) -> Estimate:
    """own: the row of the curve at the estimate's K. lower: the end that the route certifies."""
    e, upper = job.config.estimate, job.pairing.mutual_information_bits
    return Estimate(
        name=name,
        value_bits=own["strict_bits"],
        kind="lower bound",
        k=e.k,
        ceiling_bits=own["ceiling_bits"],
        t_lower_bits=own["t_lower_bits"],
        t_upper_bits=own["t_upper_bits"],
        lower_bits=lower,
        upper_bits=upper,
        confidence=e.confidence,
        certificate=route,
        # The other routes do without K, so that no K limits what they can show.
        verdict=verdict(
            lower, upper, e.tolerance_bits, own["reach_bits"] or own["ceiling_bits"] if route == "infonce" else math.inf
        ),
    )


def scaling(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the fit part's columns, 1 for constant ones."""
    mean, scale = features["fit"]["h"].mean(axis=0), features["fit"]["h"].std(axis=0)
    return mean, np.where(scale > 0, scale, 1).astype(scale.dtype)


def standardize(features: Features, mean: np.ndarray, scale: np.ndarray) -> Features:
    """Every part's representations, shifted and scaled column by column."""

    def one(name: str, x: np.ndarray) -> np.ndarray:
        return (x - mean) / scale if name in ("h", "h_x", "h_y") else x

    return {split: {name: one(name, x) for name, x in arrays.items()} for split, arrays in features.items()}


def pairs_in_batches(pairs: dict[str, np.ndarray], k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(h_x, h_y) of disjoint batches of k pairs, (m, k, d) each, on the mesh; the pairs left over are not used."""
    h_x, h_y = parallel.place([in_batches(pairs[name], k) for name in ("h_x", "h_y")], mesh, WITHIN_BATCH)
    return h_x, h_y


def fit_critic(
    job: Job,
    features: Features,
    folder: RunFolder,
    mesh: Mesh,
    *,
    encoder: tuple[FrozenEncoder, np.ndarray, np.ndarray] | None = None,
    watch: Stage = UNWATCHED_STAGE,
) -> tuple[Any, dict[str, Any]]:
    """Fit the critic on the fit part (or on streamed images), keep the best by validation.

    features: standardised. encoder: of streamed images, with the mean and scale of its representations.
    watch: of fit.jsonl's rows, and of a chunk of steps.
    Returns its parameters and {"steps", "best_step", "k", "history"}; goes on from `folder`'s checkpoint.
    """
    e = job.config.estimate
    chunk, (abstract, *_) = make_critic_step(job, mesh, features, None if encoder is None else encoder[0])
    held_out = features["validation"]
    validation = pairs_in_batches(held_out, validation_k(job.config, len(held_out["h_x"]), mesh.size), mesh)

    def begin() -> Any:
        like = jnp.zeros((2, validation[0].shape[2]), validation[0].dtype)
        init = partial(init_critic, job, like, critic_key(job))
        return jax.jit(init, out_shardings=parallel.layout(abstract))()

    @contextlib.contextmanager
    def steps_from(first: int) -> Iterator[loop.Advance]:
        frozen, draw = _data(job, features, mesh, encoder, first)
        with watch.traced(chunk, skip=1, calls=1) as traced:

            def advance(state: Any, done: int, size: int) -> tuple[Any, Any]:
                keys = critic_keys(job, jnp.arange(done, done + size))
                batch, keys = draw(size), parallel.place(keys, mesh)
                with jax.transfer_guard("disallow"):
                    return traced(state, frozen, batch, validation, keys)

            yield advance

    def row(done: int, metrics: Any) -> loop.Row:
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
        note=lambda rows: f"strict InfoNCE {score(rows):.3f} bits on validation",
    )
    state, rows = loop.drive(task, folder, "fit.jsonl", (folder / "critic").path, watch)
    history = {name: [row[name] for row in rows] for name in ("step", "fit_bits", "validation_bits")}
    return state.best_params, {"steps": e.steps, "best_step": int(state.best_step), "k": e.fit_k, "history": history}


def _data(
    job: Job,
    features: Features,
    mesh: Mesh,
    encoder: tuple[FrozenEncoder, np.ndarray, np.ndarray] | None,
    first: int,
) -> tuple[Any, Any]:
    """What the critic's steps are given: (the frozen tree, a function of so many steps → their batch)."""
    config, pairing = job.config, job.pairing
    if encoder is None:
        assert not isinstance(pairing, SameImage)
        classes = pairing.classes(features["fit"]["labels"])
        bank = parallel.place(fit.make_bank(features["fit"]["h"], classes, pairing.joint()), mesh)
        return {}, lambda size: bank
    iterator = iter(
        batches(
            job.images.pairs(pairing, "critic"),
            batch_size=config.estimate.fit_k,
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
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The test part at every K, in bits: strict InfoNCE with its t-interval over disjoint batches, the paper's form.

    Also each K's batches by themselves, with which another encoder's of the same pairs can be compared.
    """
    read, pairing = make_read_step(job, mesh), job.pairing
    law = None if isinstance(pairing, SameImage) or not pairing.exact else pairing.law
    rows, of_batches = [], {}
    for k in batch_sizes(job.config, len(test["h_x"])):
        nats = read(params, *pairs_in_batches(test, k, mesh))
        strict, paper = (np.asarray(x, np.float64) / math.log(2) for x in nats)
        t_lower, t_upper = t_interval(strict, job.config.estimate.confidence)
        of_batches[str(k)] = strict
        rows.append(
            {
                "k": k,
                "batches": len(strict),
                "strict_bits": float(strict.mean()),
                "t_lower_bits": t_lower,
                "t_upper_bits": t_upper,
                "ceiling_bits": math.log2(k),
                "paper_bits": float(paper.mean()),
                "paper_ceiling_bits": math.log2(2 * k - 1),
                "reach_bits": None if law is None else reach_bits(k, law),
            }
        )
    return rows, of_batches


def both_views(pairs: dict[str, np.ndarray], pairing: ByClass) -> tuple[np.ndarray, np.ndarray]:
    """(representations, classes) of all images of a part, of the pairs' first views and then of their second."""
    if "h" in pairs:
        return pairs["h"], pairing.classes(pairs["labels"])
    h, attributes = (np.concatenate([pairs[f"{name}_x"], pairs[f"{name}_y"]]) for name in ("h", "labels"))
    return h, pairing.classes(attributes)


def fit_probe(job: Job, features: Features, pairing: ByClass) -> probes.LinearProbe:
    """The linear probe of the shared attributes' class, fitted on the fit part, chosen on validation."""
    h, classes = both_views(features["validation"], pairing)
    return probes.fit_linear(
        features["fit"]["h"],
        pairing.classes(features["fit"]["labels"]),
        pairing.num_classes,
        l2=tuple(job.config.evaluate.l2),
        validation_features=h,
        validation_labels=classes,
    )


def certify_critic(
    job: Job, params: Any, features: Features, confidence: float
) -> tuple[Certificate | None, dict[Certificate, dict[str, Any]]]:
    """`certify` of the fitted critic and the class probe: (route, all routes on test).

    Where no attribute is shared, I = 0 needs no certificate; where the views share their image, there is InfoNCE's.
    """
    pairing = job.pairing
    if pairing.num_classes == 1:
        return None, {}
    critic, _ = critic_of(job)
    stacked = jax.tree.map(lambda x: x[None], jax.device_get(params))
    size = batch_rows(len(features["test"]["h_x"]), len(features["validation"]["h_x"]))

    def scores(pairs: dict[str, np.ndarray]) -> np.ndarray:
        x, y = (in_batches(pairs[view], size) for view in ("h_x", "h_y"))
        return np.asarray(mean_scores(critic, stacked, x, y))

    if isinstance(pairing, SameImage):
        found = info_nce_route(scores(features["validation"]), scores(features["test"]), confidence)
        return "infonce", {"infonce": found}

    probe = fit_probe(job, features, pairing)

    def held_out(part: str) -> HeldOut:
        pairs = features[part]
        h_x, h_y = pairs["h_x"], pairs["h_y"]
        q_x, q_y = probes.class_posterior(probe, h_x), probes.class_posterior(probe, h_y)
        c_x, c_y = pairing.classes(pairs["labels_x"]), pairing.classes(pairs["labels_y"])
        # One image of each pair: the two share their class, so their errors are not independent trials.
        return HeldOut(q_x, q_y, c_x, c_y, probe.logits(h_x).argmax(axis=1), c_x, scores(pairs))

    return certify(held_out("validation"), held_out("test"), pairing.joint(), confidence)
