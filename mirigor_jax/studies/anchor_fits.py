"""Fits of critics, by many estimators, to pairs whose mutual information is known.

The pairs are Gaussians, or a frozen encoder's features of CDP images whose attributes pass through a channel. The
critics of one fit start alike, are fitted on the same pairs and read on the same pairs, so that only their losses and
their values differ.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.data.channels import Channel, channels
from mirigor_jax.data.draws import class_index, joint_values, rows_of_classes, rows_of_pairs
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.population import GeneratedPopulation, Read
from mirigor_jax.errors import InputError
from mirigor_jax.fitting import in_batches
from mirigor_jax.mi import estimators, fit, scoring
from mirigor_jax.mi.critics import SeparableCritic
from mirigor_jax.mi.distributions import Discrete, Distribution, Gaussian
from mirigor_jax.mi.estimators import Estimator
from mirigor_jax.mi.read import read_scores, symmetric_info_nce
from mirigor_jax.progress import show_progress
from mirigor_jax.runs.features import encode, freeze
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import parse
from mirigor_jax.studies.rows import Row

INFO_NCE, ANCHOR = "InfoNCE", "anchor"
# Name in tables → estimator. All anchors but one differ from ANCHOR (log score, ν = 1) in one thing.
ESTIMATORS: dict[str, Estimator] = {
    INFO_NCE: estimators.info_nce_symmetric(),
    ANCHOR: estimators.anchor(),
    "anchor, ν = 0.1": estimators.anchor(nu=0.1),
    "anchor, ν = 10": estimators.anchor(nu=10.0),
    "anchor, Brier": estimators.anchor(rule=scoring.brier),
    "anchor, spherical": estimators.anchor(rule=scoring.spherical),
    "Jensen–Shannon": estimators.js(),
    "KL": estimators.f_divergence("kl"),
    "reverse KL": estimators.f_divergence("reverse_kl"),
    "Hellinger": estimators.f_divergence("hellinger"),
    "Pearson": estimators.f_divergence("pearson"),
    "NWJ": estimators.nwj(),
}
# Also a name in tables, but of no fit: InfoNCE with the true log density ratio as its critic, which is the best.
PERFECT = "InfoNCE of the true density ratio"
CRITIC = SeparableCritic((64,), 32)
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
SCORES = 2**22  # largest number of scores that PERFECT is computed from
IMPOSSIBLE = -1e4  # nats: the log density ratio of pairs that cannot occur
SPARE = 5.0  # spare images of a class, in standard deviations of (its images − the pairs that need one)

Spec = Mapping[str, Any]
Rows = Float[np.ndarray, "n d"]


class Sample(NamedTuple):
    """Pairs whose mutual information is known.

    bits: the mutual information.
    fit, validation, test: (x, y) of the pairs of each part. Those of validation and test are independent.
    distribution: has the density ratio of the test pairs.
    of: the arguments of this ratio: for Gaussians the test pairs, for CDP the one-hot classes of their images.
    """

    bits: float
    fit: tuple[Rows, Rows]
    validation: tuple[Rows, Rows]
    test: tuple[Rows, Rows]
    distribution: Distribution
    of: tuple[Rows, Rows]


def gaussians(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Sample]:
    """Pairs of standard normal vectors of `spec["dimension"]` coordinates, one sample for each of `spec["bits"]`."""
    samples = []
    ends = np.cumsum([spec["pairs"], spec["validation"]])
    for number, bits in enumerate(spec["bits"]):
        gaussian = Gaussian(spec["dimension"], bits * math.log(2))
        key = jax.random.fold_in(jax.random.key(spec["seed"]), number)
        x, y = (np.split(np.asarray(v), ends) for v in gaussian.sample(key, int(ends[-1]) + spec["test"]))
        fitted, validation, test = zip(x, y, strict=True)
        samples.append(Sample(bits, fitted, validation, test, gaussian, test))
    return samples


def cdp(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Sample]:
    """Features of CDP images by the encoder of the run `spec["run"]`, one sample for each of `spec["bits"]`.

    The channel acts on attributes alone: whatever the channel, each view's attributes are uniform, and its image is
    drawn from one distribution given its attributes. So the images are encoded once for all samples. Pairs of the fit
    are drawn by class from `spec["images"]` images, again and again. Of the other pairs, a second view is an image of
    the attributes that the channel draws, and each image is in at most one pair of a sample.
    """
    parts, images = _encoded(spec, runs[spec["run"]], folder)
    center, scale = parts["fit"]["h"].mean(axis=0, keepdims=True), parts["fit"]["h"].std(axis=0, keepdims=True)
    h = {name: (part["h"] - center) / np.where(scale > 0, scale, 1) for name, part in parts.items()}

    samples = []
    for number, bits in enumerate(spec["bits"]):
        rng = np.random.default_rng((spec["seed"], number))
        pairing = channels(images.names, images.names, images.sizes, Channel(bits))
        classes = pairing.classes(parts["fit"]["attributes"])
        words = rng.integers(2**32, size=(spec["pairs"], 8), dtype=np.uint32)
        fit_rows = rows_of_pairs(class_index(classes, pairing.joint()), classes, words)
        fit_x, fit_y = (h["fit"][rows] for rows in fit_rows)
        held_out, one_hot = {}, np.eye(pairing.num_classes, dtype=np.float32)
        for part in ("validation", "test"):
            first, second = (parts[f"{part}_{view}"]["attributes"] for view in "xy")
            drawn = pairing.partner(first, rng.random(first.shape))
            wanted, there = (joint_values(a, range(len(images.sizes)), images.sizes) for a in (drawn, second))
            held_out[part] = h[f"{part}_x"], h[f"{part}_y"][rows_of_classes(wanted, there, rng)]
            of = one_hot[pairing.classes(first)], one_hot[pairing.classes(drawn)]
        samples.append(
            Sample(bits, (fit_x, fit_y), held_out["validation"], held_out["test"], Discrete(pairing.joint()), of)
        )
    return samples


def _encoded(spec: Spec, run: RunFolder, folder: RunFolder) -> tuple[dict[str, dict[str, np.ndarray]], GeneratedImages]:
    """Features and attributes of fresh images, by part and view, and the generator of the images.

    They are kept beside the fit's folder, for all fits of this seed. Each part and view has a seed of its own, in a
    stream that no part of a run has.
    """
    if (config := run.config()) is None or not run.exists("report.json"):
        raise InputError(f"the run '{run}', which gives the encoder, is not finished; give the study's own command")
    job = parse(ConfigDict(config))
    images = cast(GeneratedPopulation, job.images).data
    sizes = {"fit": spec["images"]}
    for part in ("validation", "test"):
        spare = math.ceil(SPARE * math.sqrt(2 * spec[part] * math.prod(images.sizes)))
        sizes |= {f"{part}_x": spec[part], f"{part}_y": spec[part] + spare}
    first = len(sizes) * spec["seed"]
    splits: dict[str, tuple[Read, int]] = {
        part: (partial(images.images, seed=first + number), size) for number, (part, size) in enumerate(sizes.items())
    }
    kept = RunFolder(folder.path.parent / f"features-seed={spec['seed']}")
    with kept.lock(wait=True):
        if not all(kept.exists(f"{part}.npz") for part in splits):
            mesh = parallel.make_mesh(job.config.features.batch_size)
            encode(job, freeze(job, run, mesh), splits, kept, mesh)
        return {part: kept.arrays(f"{part}.npz") for part in splits}, images


# A fit's `data` → its samples: (an entry of study.fits, a cell's name → its run folder, the fit's folder) → samples.
DATA: dict[str, Callable[[Spec, Mapping[str, RunFolder], RunFolder], list[Sample]]] = {
    "Gaussian": gaussians,
    "CDP": cdp,
}


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Fit a critic for each true MI and each estimator, and read it. Returns a row for each, and for PERFECT.

    spec: name, data (a key of DATA), bits (the true MI of each sample), estimators (keys of ESTIMATORS), pairs,
        validation and test (pairs of each part), batch_size and steps (of the fit), k (pairs a batch when critics are
        read), seed; for Gaussians dimension; for CDP run (the cell that gives the encoder) and images (of the fit).
    runs: a cell's name → its run folder. folder: the fit's own.
    Raises InputError as the fits do, and if the run that gives the encoder is not finished.
    """
    samples, names = DATA[spec["data"]](spec, runs, folder), spec["estimators"]
    values = _fitted(samples, spec)
    same = {key: spec[key] for key in ("data", "k", "batch_size", "seed")}
    rows = []
    for number, sample in enumerate(samples):
        found = [(name, ESTIMATORS[name].kind, values[number, at]) for at, name in enumerate(names)]
        found.append((PERFECT, "lower bound", perfect_bits(sample.distribution, *sample.of, spec["k"])))
        rows += [
            {**same, "bits": sample.bits, "estimator": name, "kind": kind, "value_bits": value}
            for name, kind, value in found
        ]
    return rows


def _fitted(samples: Sequence[Sample], spec: Spec) -> dict[tuple[int, int], float]:
    """(number of a sample, of an estimator) → its value of the test pairs, in bits. All critics are fitted at once."""
    chosen = tuple(ESTIMATORS[name] for name in spec["estimators"])
    fit_config = fit.FitConfig(
        critic=CRITIC,
        estimators=chosen,
        batch_size=spec["batch_size"],
        steps=spec["steps"],
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        eval_every=min(fit.FitConfig.eval_every, spec["steps"]),
    )
    numbers, at = np.indices((len(samples), len(chosen)), np.int32).reshape(2, -1)
    pairs, validation = (
        fit.Pairs(*(np.stack(view) for view in zip(*parts, strict=True)))
        for parts in ([sample.fit for sample in samples], [sample.validation for sample in samples])
    )
    critic_jobs = fit.CriticJob(numbers, at, np.full_like(at, spec["seed"]))
    with show_progress("critics", "steps") as on_progress:
        params, _ = fit.fit_critics(fit_config, pairs, validation, critic_jobs, on_progress)
    values = {}
    for critic, (number, estimator) in enumerate(zip(numbers, at, strict=True)):
        alone = jax.tree.map(lambda leaf, c=critic: leaf[c : c + 1], params)
        x, y = (in_batches(view, spec["k"]) for view in samples[number].test)
        (scores,), _ = read_scores(fit_config, alone, x, y)
        values[int(number), int(estimator)] = float(_mean(chosen[estimator], scores)) / math.log(2)
    return values


@partial(jax.jit, static_argnames="estimator")
def _mean(estimator: Estimator, scores: Float[Array, "b k k"]) -> Float[Array, ""]:
    """The estimator's mean value over batches, in nats."""
    return jnp.mean(lax.map(estimator.read, scores))


def perfect_bits(distribution: Distribution, x: Rows, y: Rows, k: int) -> float:
    """InfoNCE of the true density ratio on batches of k of these pairs, in bits: only K biases it."""
    batches = max(1, SCORES // k**2)

    @jax.jit
    def scores(x: Float[Array, "k dx"], y: Float[Array, "k dy"]) -> Float[Array, "k k"]:
        rows = lax.map(lambda row: distribution.log_ratio(jnp.broadcast_to(row, (k, row.size)), y), x)
        return jnp.maximum(rows, IMPOSSIBLE)

    every = jnp.stack([scores(*pair) for pair in zip(*(in_batches(v, k)[:batches] for v in (x, y)), strict=True)])
    return float(jnp.mean(symmetric_info_nce(every))) / math.log(2)
