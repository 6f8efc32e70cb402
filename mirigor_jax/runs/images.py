"""A run on images or on their features: train, encode, estimate, evaluate, report.

Each stage reads the folder of the stage before and skips finished work, so a first run, a resumed run and a re-estimate
use the same code.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import metrics, parallel
from mirigor_jax.config_files import flatten
from mirigor_jax.data import augment
from mirigor_jax.data.pairing import PAIRINGS, shares_image
from mirigor_jax.data.population import Features
from mirigor_jax.data.preprocess import image_keys
from mirigor_jax.drawing import Figure
from mirigor_jax.errors import InputError
from mirigor_jax.history import TrainingHistory
from mirigor_jax.metrics import picture
from mirigor_jax.monitoring import NO_MONITORING, Monitoring
from mirigor_jax.progress import Progress, show_progress
from mirigor_jax.runs import figures, report, usable
from mirigor_jax.runs.estimate import both_views, estimate_stage, finished_estimate, linear_accuracy
from mirigor_jax.runs.features import encode_stage, load, own_features
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import PARTS, UNSEEN, Job, estimate_name, parse, precision
from mirigor_jax.runs.schema import EstimateEntry, InTraining, Truth, read
from mirigor_jax.runs.train import train_stage

SHOWN = 100  # folded into the root key for the augmentations in pictures


def run(config: ConfigDict, name: str, workdir: str | None, monitoring: Monitoring = NO_MONITORING) -> None:
    """Run or resume a config, and write its report. Raises InputError if the user has to correct something."""
    folder = RunFolder.at(workdir or f"runs/{name}")
    print(f"run folder: {folder}", flush=True)
    with precision(config):
        job = parse(config)
        with folder.claimed(job.config), monitoring.opened(folder.path, flatten(job.config)) as opened:
            folder.mend(partial(_stages, job, folder, opened))


def _stages(job: Job, folder: RunFolder, monitoring: Monitoring) -> None:
    if not job.has_pretrained_encoder:
        train_stage(job, folder, monitoring)
    estimate_stage(job, folder, job.name, own_features(job, folder), folder, monitoring=monitoring)
    for other in job.others:
        add_estimate(job.config, other, folder, other.name, folder, monitoring=monitoring)
    evaluate_stage(job, folder, monitoring)
    parallel.from_main(write_report, job, folder)


def add_estimate(
    run_config: ConfigDict,
    job: Job,
    folder: RunFolder,
    name: str,
    timing_folder: RunFolder,
    *,
    monitoring: Monitoring = NO_MONITORING,
) -> None:
    """Make another estimate of a run's encoder, in estimates/`name`.

    run_config: the run's config. job: the job of the estimate's config. folder: the run's folder.
    timing_folder: the folder whose stages.json counts the time.
    Raises InputError if `name` is the run's own estimate, but the config differs from the run's.
    """
    config = job.config
    if name == estimate_name(run_config):
        if flatten(config) | {"estimate.extra_pairings": ()} != flatten(run_config) | {"estimate.extra_pairings": ()}:
            raise InputError(f"estimates/{name} is the run's own; give the new one another name by --config.name=NAME")
        return
    target = folder / "estimates" / name
    target.claim(config)
    features = target / "features"
    if job.augmentation is None:
        same = ("seed", "features.fit", "features.checkpoint")
        if job.images.pairs_features and flatten(config.features) == flatten(run_config.features):
            features = folder / "features"  # features of single images serve every pairing
        elif all(flatten(config)[key] == flatten(run_config)[key] for key in same):
            parallel.from_main(_share_fit_part, folder / "features", features)
    estimate_stage(job, folder, name, features, timing_folder, monitoring=monitoring)


def _share_fit_part(there: RunFolder, here: RunFolder) -> None:
    if there.exists("fit.npz") and not here.exists("fit.npz"):
        here.write_arrays("fit.npz", there.arrays("fit.npz"))


def evaluate_stage(job: Job, folder: RunFolder, monitoring: Monitoring = NO_MONITORING) -> None:
    """Evaluate the frozen features of unaugmented images.

    It fits a linear probe for every task, measures usable information, and computes the metrics if asked for.
    """
    done = folder.exists("evaluate/linear.json")
    unseen = usable.is_measured(job) and job.images.unseen() is not None
    parts = (*PARTS, UNSEEN) if unseen else PARTS
    if job.augmentation is not None or not (done or _has_parts(folder / "features", parts)):
        plain = job.without_augmentation()
        encode_stage(
            plain,
            folder,
            folder / "features",
            folder,
            augmentation=None,
            monitoring=monitoring,
            done=done,
            unseen=unseen,
        )
    for each in (job, *job.others):  # the metrics need the views of each
        views = folder / f"estimates/{each.name}/features"
        wanted = not done and job.config.evaluate.metrics and each.pairing.needs_encoder_in_step
        if wanted and not _has_parts(views):
            augmentation = each.augmentation
            encode_stage(each, folder, views, folder, augmentation=augmentation, monitoring=monitoring, done=False)
    with folder.stage("evaluate", done) as work:
        if work:
            parallel.from_main(_evaluate, job, folder, load(folder / "features"))


def _has_parts(features: RunFolder, parts: Sequence[str] = PARTS) -> bool:
    return all(features.exists(f"{part}.npz") for part in parts)


def _evaluate(job: Job, folder: RunFolder, features: Features) -> None:
    accuracies = {}
    for task in job.images.tasks:
        with Progress(f"linear probe of {task}"):
            accuracies[task] = linear_accuracy(job, features, job.images.task(task))
        print(f"  {task}: {100 * accuracies[task]:.2f} % of test images", flush=True)
    if usable.is_measured(job):
        usable.measure(job, folder)
    if job.config.evaluate.metrics:
        folder.write("evaluate/metrics.json", _metrics(job, folder, features).values)
    folder.write("evaluate/linear.json", accuracies)


def _metrics(job: Job, folder: RunFolder, features: Features) -> metrics.Evaluation:
    """Compute every metric."""
    config, classes = job.config, job.evaluated_classes
    parts: Features = {name: {} for name in PARTS}
    if classes is not None:
        for name in PARTS:
            h, labels = both_views(features[name], classes)
            parts[name] |= {"h": h, "labels": labels}
    else:
        plain = features["test"]
        parts["test"]["h"] = plain["h"] if "h" in plain else np.concatenate([plain["h_x"], plain["h_y"]])
    for each in (job, *job.others):
        if each.pairing.needs_encoder_in_step:
            view_features = (folder / "estimates" / each.name / "features").arrays("test.npz")
            parts["test"] |= {name: view_features[name] for name in ("h_x", "h_y")}
    with show_progress("metrics", "computed") as on_progress:
        options = metrics.Options(
            l2=tuple(config.evaluate.l2),
            temperature=config.train.temperature,
            k=config.estimate.nt_xent_k,
            mlp_steps=config.evaluate.mlp_steps,
            seed=config.seed,
            on_progress=on_progress,
        )
        return metrics.evaluate_parts(parts, options)


def write_report(job: Job, folder: RunFolder) -> None:
    """Collect the results of the stages in the folder, and write report.json, report.md and the figures."""
    config, pairing = job.config, job.pairing
    estimates = {}
    for name in (estimate.path.parent.name for estimate in folder.matches("estimates/*/estimate.json")):
        if (file := finished_estimate(folder / "estimates" / name)) is not None:
            estimates[name] = file
        else:
            print(f"estimate {name}: of an older version, left out; configs/estimate.py makes it again", flush=True)
    parts = {
        "truth": Truth(pairing.entropy_bits, pairing.truth_bits, tuple(pairing.shared)),
        "in_training": _in_training(job, folder),
        "estimate": estimates[job.name],
        "estimates": estimates,
        "linear": folder.read("evaluate/linear.json"),
        "measured": _measured(job, estimates),
        "metrics": folder.read("evaluate/metrics.json") or {},
        "usable": usable.finished(folder),
    }
    report.publish(config, folder, parts, _draw(job, folder, parts), report.IMAGE_FORM, notes=job.notes)


def _measured(job: Job, estimates: dict[str, EstimateEntry]) -> dict[str, str | None]:
    """The names of the estimates shown beside the metrics of `class` and of `augmentation`; None if there is none."""
    run_name = [job.name] if job.pairing.num_classes not in (None, 1) and job.augmentation is None else []
    usual = [text for text in PAIRINGS if text in estimates and job.images.pairing(text).num_classes not in (None, 1)]
    candidates = [name for name in (job.config.evaluate.classes, *run_name, *usual) if name in estimates]
    return {"class": next(iter(candidates), None), "augmentation": next(filter(shares_image, estimates), None)}


def _in_training(job: Job, folder: RunFolder) -> InTraining | None:
    """The end of the training, if there is one and its loss corresponds to an MI."""
    summary = None if job.has_pretrained_encoder else folder.read("train/summary.json")
    return read(InTraining, summary) if summary and "mi_bits" in summary else None


def _draw(job: Job, folder: RunFolder, parts: dict[str, Any]) -> dict[str, Figure]:
    population = job.images
    with Progress("rendering the pictured pairs"):
        drawn = {} if job.holds_features else {"pairs": _pair_sheet(job)}
    # The accuracy of guessing the most frequent class.
    chance = {task: float(population.task(task).frequencies.max()) for task in population.tasks}
    drawn |= {
        "bars": figures.bars(parts["truth"], parts["in_training"], parts["estimate"], parts["usable"]),
        "critic": figures.critic(parts["estimate"]),
    }
    if parts["metrics"]:
        drawn["metrics"] = picture.evaluation(parts["metrics"])
    drawn |= usable.drawn(folder, parts["usable"])
    if parts["linear"]:
        drawn["linear"] = figures.linear(parts["linear"], chance)
    rows = folder.rows("train/metrics.jsonl")
    if rows and "mi_bits" in rows[0]:
        levels = {"entropy_bits": job.pairing.entropy_bits, "true_bits": job.pairing.truth_bits}
        drawn["training"] = TrainingHistory.of(rows, job.config.train.k).figure(**levels)
    return drawn


def _pair_sheet(job: Job) -> Figure:
    population = job.images
    pairs = population.pairs(job.pairing, "train")(0, 12)
    if job.augmentation is not None:
        for first, view in ((0, "x"), (12, "y")):
            keys = image_keys(jax.random.fold_in(jax.random.key(job.config.seed), SHOWN), first, 12)
            seen = augment.augment(jnp.asarray(pairs[view]), keys, job.augmentation)
            pairs[view] = np.asarray(jnp.round(255 * seen)).astype(np.uint8)
    captions = [
        [
            ", ".join(names[v] for names, v in zip(population.value_names, row, strict=True))
            for row in pairs[f"attributes_{view}"]
        ]
        for view in ("x", "y")
    ]
    return figures.pair_sheet(pairs["x"], pairs["y"], *captions, shared=job.pairing.shared)
