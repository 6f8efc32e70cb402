"""Post-training MI estimation: fit a critic on the frozen representation, read the test part once, certify.

Critic, probe, calibration and the certificate's route are chosen on validation; the test part enters nothing but the
values reported.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mirigor_jax import fitting, parallel, probes
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data import augment
from mirigor_jax.data.pairing import AnyPairing, ByClass, SameImage
from mirigor_jax.encode import encode_pairs
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, read_rows, replace_arrays, replace_json, replace_rows
from mirigor_jax.mi import certify as choice
from mirigor_jax.mi import fit
from mirigor_jax.mi.certificates import Certificate, classifier_lower_bits
from mirigor_jax.mi.confidence import t_interval
from mirigor_jax.mi.critics import CosineCritic
from mirigor_jax.mi.read import in_batches as cut_batches
from mirigor_jax.mi.read import mean_scores
from mirigor_jax.mi.results import Estimate, reach_bits, verdict
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.progress import Progress
from mirigor_jax.watch import UNWATCHED_STAGE, Stage

WITHIN_BATCH = P(None, parallel.AXIS)  # (batches, pairs, …) with every batch's pairs spread over the devices

Features = dict[str, dict[str, np.ndarray]]


def check(config: ConfigDict, pairing: AnyPairing, pairs: int, validation: int) -> None:
    """Raises InputError where so many pairs to test and to validate on can't give an estimate or a certificate.

    Nor where the batches don't divide over the devices of several processes.
    """
    e = config.estimate
    if pairs < e.k:
        raise InputError(
            f"{pairs} test pairs cannot fill one batch of k_est={e.k}; lower it, or raise features.test; of a set of "
            "images give more of the rarest class, or leave rare classes out (data.classes)"
        )
    if not 0.5 <= e.confidence < 1:
        raise InputError(f"estimate.confidence={e.confidence} is not in [0.5, 1); 0.95 is usual")
    law = None if isinstance(pairing, SameImage) or not pairing.exact else pairing.law
    if law is not None and len(law) > 1 and classifier_lower_bits(0, pairs, law, e.confidence) == 0:
        raise InputError(
            f"{pairs} test pairs are too few for a certificate over {len(law)} classes: even a classifier "
            "without errors would prove nothing; raise features.test to some thousands"
        )
    if pairing.num_classes != 1 and pairs < choice.LEAST_PAIRS:
        raise InputError(f"{pairs} test pairs are too few for a certificate; raise features.test to some thousands")
    if pairing.num_classes != 1 and validation < choice.LEAST_PAIRS:
        raise InputError(
            f"{validation} validation pairs are too few to choose on; raise features.validation, or give images"
        )
    make_mesh(config, pairs, validation)


def batch_sizes(config: ConfigDict, pairs: int) -> list[int]:
    """The K at which so many test pairs are read: the run's own, the paper's, and smaller ones for the curve."""
    e = config.estimate
    return sorted({e.k, *(k for k in (e.paper_k, *e.curve) if k <= pairs)})


def make_mesh(config: ConfigDict, pairs: int, validation: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices that every batch size of the stage divides over, with so many pairs to test and to validate on.

    Raises InputError where several processes would have to leave devices idle.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {*batch_sizes(config, pairs), config.estimate.fit_k, _validation_k(config, validation, len(devices))}
    try:
        return parallel.make_mesh(math.gcd(*sizes), devices)
    except InputError:
        raise InputError(
            f"batches of {', '.join(map(str, sorted(sizes)))} pairs (estimate.k, paper_k, fit_k, curve; validation) do "
            f"not all divide over {len(devices)} devices; use multiples of {len(devices)}"
        ) from None


def _validation_k(config: ConfigDict, pairs: int, devices: int) -> int:
    """Pairs of a validation batch: as in the test, or what there are, spread evenly over the devices."""
    return config.estimate.k if config.estimate.k <= pairs else max(pairs // devices * devices, min(pairs, devices))


def _critic(config: ConfigDict) -> tuple[CosineCritic, optax.GradientTransformation]:
    critic = CosineCritic(tuple(config.head.hidden), config.head.features)
    return critic, optax.adam(optax.cosine_decay_schedule(config.estimate.learning_rate, config.estimate.steps))


def init_critic(config: ConfigDict, h: Any, key: jax.Array) -> fitting.CriticState:
    """The critic before its first step, for representations like h (k, d)."""
    return fit.init_critic(*_critic(config), h, key)


def streams(config: ConfigDict) -> bool:
    """Whether the critic is fitted on fresh images, as it must be where an image's views are the pair."""
    return config.estimate.stream or config.data.pairing == "simclr"


def make_step(
    config: ConfigDict, mesh: Mesh, features: Any, pairing: AnyPairing, frozen: FrozenEncoder | None = None
) -> tuple[Any, tuple[Any, Any, Any, Any, Any]]:
    """The mapped chunk of critic steps (state donated), and the abstract (state, frozen, batch, validation, keys).

    The batch is a Bank of cached features or, where there is a `frozen` encoder to represent them, a batch of images
    {"x", "y"} a step. features: the standardised parts, or their shapes. Returns (state, metrics) when called.
    """
    e, streamed, critic, optimizer = config.estimate, frozen is not None, *_critic(config)
    h, h_x = (
        jax.ShapeDtypeStruct(features[part][name].shape, jax.dtypes.canonicalize_dtype(features[part][name].dtype))
        for part, name in (("fit", "h"), ("validation", "h_x"))
    )
    tree: Any = {}
    if frozen is not None:
        _, augmentation = augment.parse(config.data.pairing, config.data.augment.to_dict())
        views: Any = partial(encode_pairs, **frozen.options, augmentation=augmentation)
        column = jax.ShapeDtypeStruct(h.shape[1:], h.dtype)
        tree = {"encoder": frozen.variables, "mean": column, "scale": column}
    else:
        views = partial(fit.draw_pairs, k=e.fit_k, axis_name=parallel.AXIS)
    step = partial(fit.estimate_step, views=views, critic=critic, optimizer=optimizer, axis_name=parallel.AXIS)
    chunk = partial(fitting.fit_chunk, step=step, validate=_bounds(config), streamed=streamed)
    replicated, layout = parallel.REPLICATED, WITHIN_BATCH if streamed else parallel.REPLICATED
    specs = (replicated, replicated, layout, WITHIN_BATCH, replicated)
    mapped = parallel.map_step(chunk, mesh, specs, (replicated, replicated), donate=(0,))

    steps, validation_k = min(e.eval_every, e.steps), _validation_k(config, h_x.shape[0], mesh.size)
    state = jax.eval_shape(partial(init_critic, config), jax.ShapeDtypeStruct((2, h.shape[1]), h.dtype), _key(config))
    batch = _abstract_bank(h, pairing.num_classes or 1)
    if streamed:
        images = jax.ShapeDtypeStruct((steps, e.fit_k, config.data.size, config.data.size, 3), jnp.uint8)
        batch = {"x": images, "y": images}
    held_out = jax.ShapeDtypeStruct((h_x.shape[0] // validation_k, validation_k, h_x.shape[1]), h_x.dtype)
    keys = jax.eval_shape(partial(_keys, config), jnp.arange(steps))
    validation = parallel.abstract((held_out, held_out), mesh, WITHIN_BATCH)
    state, tree, keys = parallel.abstract((state, tree, keys), mesh)
    return mapped, (state, tree, parallel.abstract(batch, mesh, layout), validation, keys)


def _abstract_bank(h: Any, classes: int) -> Any:
    def of(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    index = of((classes,), jnp.int32)
    return fit.Bank(h, of(h.shape[:1], jnp.int32), index, index, of((classes, classes), h.dtype))


def _key(config: ConfigDict) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def _keys(config: ConfigDict, steps: jax.Array) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, _key(config)))(steps)


def make_read(config: ConfigDict, mesh: Mesh) -> Any:
    """The mapped reading of held-out batches, (params, h_x, h_y) → (strict, paper's form), nats of each batch."""
    replicated = parallel.REPLICATED
    specs = (replicated, WITHIN_BATCH, WITHIN_BATCH)
    return parallel.map_step(_bounds(config), mesh, specs, (replicated, replicated))


def _bounds(config: ConfigDict) -> Any:
    critic, _ = _critic(config)
    return partial(fit.bounds, critic=critic, axis_name=parallel.AXIS)


def in_batches(pairs: dict[str, np.ndarray], k: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(h_x, h_y) of disjoint batches of k pairs, (m, k, d) each, on the mesh; the pairs left over are not used."""
    m = len(pairs["h_x"]) // k
    cut = [pairs[name][: m * k].reshape(m, k, -1) for name in ("h_x", "h_y")]
    h_x, h_y = parallel.place(cut, mesh, WITHIN_BATCH)
    return h_x, h_y


def scaling(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the fit part's columns, 1 for constant ones."""
    mean, scale = features["fit"]["h"].mean(axis=0), features["fit"]["h"].std(axis=0)
    return mean, np.where(scale > 0, scale, 1).astype(scale.dtype)


def standardize(features: Features, mean: np.ndarray, scale: np.ndarray) -> Features:
    """Every part's representations, shifted and scaled column by column."""

    def one(name: str, x: np.ndarray) -> np.ndarray:
        return (x - mean) / scale if name in ("h", "h_x", "h_y") else x

    return {split: {name: one(name, x) for name, x in arrays.items()} for split, arrays in features.items()}


def fit_critic(
    config: ConfigDict,
    features: Features,
    pairing: AnyPairing,
    folder: AnyPath,
    mesh: Mesh,
    *,
    streamed: tuple[FrozenEncoder, Any, Callable[[int], grain.IterDataset]] | None = None,
    watch: Stage = UNWATCHED_STAGE,
) -> tuple[Any, dict[str, Any]]:
    """Fit the critic on the fit part (or on streamed images), keep the best by validation.

    features: standardised. streamed: the encoder, the frozen tree of `encode.encode_pairs`, and from a first batch on
    this process's part of batches of fit_k pairs.
    watch: of fit.jsonl's rows, and of a chunk of steps.
    Returns its parameters and {"steps", "best_step", "k", "history"}; goes on from `folder`'s checkpoint.
    """
    e = config.estimate
    chunk, (abstract, *_) = make_step(config, mesh, features, pairing, None if streamed is None else streamed[0])
    held_out = features["validation"]
    validation = in_batches(held_out, _validation_k(config, len(held_out["h_x"]), mesh.size), mesh)
    frozen, batch, iterator = {}, None, None
    if streamed:
        frozen = parallel.place(streamed[1], mesh)
    else:
        assert not isinstance(pairing, SameImage)
        classes = pairing.classes(features["fit"]["labels"])
        batch = parallel.place(fit.make_bank(features["fit"]["h"], classes, pairing.joint()), mesh)
    path = folder / "fit.jsonl"
    with Checkpoints(folder / "critic") as checkpoints, watch.traced(chunk, skip=1, calls=1) as chunk:
        done = checkpoints.last or 0
        if streamed:
            iterator = iter(streamed[2](done))
        if done:
            state = checkpoints.restore(done, abstract)
        else:
            like = jnp.zeros((2, validation[0].shape[2]), validation[0].dtype)
            init = partial(init_critic, config, like, _key(config))
            state = jax.jit(init, out_shardings=parallel.layout(abstract))()
        rows = parallel.from_main(lambda: [row for row in read_rows(path) if row["step"] <= done])
        watch.rows(rows)
        progress = Progress("estimate", e.steps, "steps")
        while done < e.steps:
            size = min(e.eval_every, e.steps - done)
            keys = _keys(config, jnp.arange(done, done + size))
            if iterator is not None:
                several = [next(iterator) for _ in range(size)]
                batch = {view: np.stack([b[view] for b in several]) for view in ("x", "y")}
                batch = parallel.shard(batch, mesh, WITHIN_BATCH)
            keys = parallel.place(keys, mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = chunk(state, frozen, batch, validation, keys)
            done += size
            metrics = jax.device_get(metrics)
            bits = {name.replace("nats", "bits"): float(x) / math.log(2) for name, x in metrics.items()}
            rows.append({"step": done, **bits})
            progress.update(done, f"strict InfoNCE {bits['validation_bits']:.3f} bits on validation")
            replace_rows(path, rows)
            watch.rows(rows)
            checkpoints.save(done, state, mi_bits=bits["validation_bits"])
            if parallel.stop_asked():
                raise parallel.Stopped
        history = {name: [row[name] for row in rows] for name in ("step", "fit_bits", "validation_bits")}
        best_step = int(state.best_step)
    return state.best_params, {"steps": e.steps, "best_step": best_step, "k": e.fit_k, "history": history}


def read_curve(
    config: ConfigDict, params: Any, test: dict[str, np.ndarray], pairing: AnyPairing, mesh: Mesh
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The test part at every K, in bits: strict InfoNCE with its t-interval over disjoint batches, the paper's form.

    Also each K's batches by themselves, with which another encoder's of the same pairs can be compared.
    """
    read = make_read(config, mesh)
    law = None if isinstance(pairing, SameImage) or not pairing.exact else pairing.law
    rows, batches = [], {}
    for k in batch_sizes(config, len(test["h_x"])):
        strict, paper = (np.asarray(x, np.float64) / math.log(2) for x in read(params, *in_batches(test, k, mesh)))
        t_lower, t_upper = t_interval(strict, config.estimate.confidence)
        batches[str(k)] = strict
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
    return rows, batches


def both_views(pairs: dict[str, np.ndarray], pairing: ByClass) -> tuple[np.ndarray, np.ndarray]:
    """(representations, classes) of all images of a part, of the pairs' first views and then of their second."""
    if "h" in pairs:
        return pairs["h"], pairing.classes(pairs["labels"])
    h, attributes = (np.concatenate([pairs[f"{name}_x"], pairs[f"{name}_y"]]) for name in ("h", "labels"))
    return h, pairing.classes(attributes)


def fit_probe(config: ConfigDict, features: Features, pairing: ByClass) -> probes.LinearProbe:
    """The linear probe of the shared attributes' class, fitted on the fit part, chosen on validation."""
    h, classes = both_views(features["validation"], pairing)
    return probes.fit_linear(
        features["fit"]["h"],
        pairing.classes(features["fit"]["labels"]),
        pairing.num_classes,
        l2=tuple(config.evaluate.l2),
        validation_features=h,
        validation_labels=classes,
    )


def certify(
    config: ConfigDict, params: Any, features: Features, pairing: AnyPairing, confidence: float
) -> tuple[Certificate | None, dict[Certificate, dict[str, Any]]]:
    """`mi.certify` of the fitted critic and the class probe: (route, all routes on test).

    Where no attribute is shared, I = 0 needs no certificate; where the views share their image, there is InfoNCE's.
    """
    if pairing.num_classes == 1:
        return None, {}
    critic, _ = _critic(config)
    stacked = jax.tree.map(lambda x: x[None], jax.device_get(params))
    size = choice.batch_rows(len(features["test"]["h_x"]), len(features["validation"]["h_x"]))

    def scores(pairs: dict[str, np.ndarray]) -> np.ndarray:
        x, y = (cut_batches(pairs[view], size) for view in ("h_x", "h_y"))
        return np.asarray(mean_scores(critic, stacked, x, y))

    if isinstance(pairing, SameImage):
        found = choice.info_nce_route(scores(features["validation"]), scores(features["test"]), confidence)
        return "infonce", {"infonce": found}

    probe = fit_probe(config, features, pairing)

    def held_out(part: str) -> choice.HeldOut:
        pairs = features[part]
        h_x, h_y = pairs["h_x"], pairs["h_y"]
        q_x, q_y = probes.class_posterior(probe, h_x), probes.class_posterior(probe, h_y)
        c_x, c_y = pairing.classes(pairs["labels_x"]), pairing.classes(pairs["labels_y"])
        # One image of each pair: the two share their class, so their errors are not independent trials.
        return choice.HeldOut(q_x, q_y, c_x, c_y, probe.logits(h_x).argmax(axis=1), c_x, scores(pairs))

    return choice.certify(held_out("validation"), held_out("test"), pairing.joint(), confidence)


def estimate(
    config: ConfigDict,
    name: str,
    features: Features,
    pairing: AnyPairing,
    folder: AnyPath,
    mesh: Mesh,
    *,
    risk: float = 0.0,
    streamed: tuple[FrozenEncoder, Callable[[int], grain.IterDataset]] | None = None,
    watch: Stage = UNWATCHED_STAGE,
) -> None:
    """Write `folder`/estimate.json: the Estimate of I(h_X;h_Y) under `pairing`, and what it rests on.

    Beside it batches.npz: for each K the strict InfoNCE of every batch of the test part, in bits.
    risk: the probability with which pairs are not independent, which the certificate pays for.
    streamed: the frozen encoder and batches of fit_k pairs of images, to fit the critic on instead of the fit
    part's representations. watch: as `fit_critic` takes it.
    """
    e = config.estimate
    mean, scale = scaling(features)
    features = standardize(features, mean, scale)
    images = None
    if streamed:
        frozen, dataset = streamed
        images = frozen, {"encoder": frozen.variables, "mean": mean, "scale": scale}, dataset
    params, fitted = fit_critic(config, features, pairing, folder, mesh, streamed=images, watch=watch)
    curve, batches = read_curve(config, params, features["test"], pairing, mesh)
    at = {row["k"]: row for row in curve}
    own, paper_k = at[e.k], e.paper_k if e.paper_k in at else e.k
    if not parallel.is_main():
        return
    route, found = certify(config, params, features, pairing, e.confidence + risk)
    lower = found[route]["lower_bits"] if route else 0.0
    upper = pairing.mutual_information_bits
    result = Estimate(
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
    replace_arrays(folder / "batches.npz", batches)
    replace_json(
        folder / "estimate.json",
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
