"""What the last stage of an encoder holds about the class, after a training on a pretext task and on reconstruction.

After Gosch 2020, section 5.2 and appendix C.4.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.checkpoint import Checkpoints
from mirigor_jax.data.preprocess import normalize
from mirigor_jax.errors import InputError
from mirigor_jax.runs.features import trained_state
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, parse
from mirigor_jax.runs.schema import ImageReport, read
from mirigor_jax.runs.steps import decoder_of
from mirigor_jax.studies.auxiliary_stages import CLASS, critic_values, pretext_accuracies
from mirigor_jax.studies.label_critics import Part, Parts
from mirigor_jax.studies.rows import Row, usable_ends

Spec = Mapping[str, Any]


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Read what a run measured, and measure its pretext task, its reconstruction and its NMI. Returns one row.

    spec: run (its name), net, labeling, decoder and weight (for its row), and epoch (the steps of one). If it has
        epochs, a critic estimates the NMI; see `auxiliary_stages.critic_values` for what it takes.
    runs: name → folder of a finished run, with `evaluate.classes=class` and the metrics.
    folder: of no use.
    The row's fields are None if they do not apply: accuracies on the pretext task if nothing was trained on it,
    `reconstruction` without a decoder, NMI without a critic.
    Raises InputError if the run is not finished, and as `label_critics.fit` does.
    """
    run = runs[spec["run"]]
    if (run_config := run.config()) is None or not run.exists("report.json"):
        raise InputError(f"the run '{run}' is not finished; give the study's own command")
    job, done = parse(ConfigDict(run_config)), read(ImageReport, run.read("report.json"))
    usable, config = done.usable, job.config
    assert usable is not None  # the set has labels
    pretext = {"fit_accuracy": None, "held_out_accuracy": None}
    if job.objective.needs_classes:
        pretext = pretext_accuracies(job, run)
    with Checkpoints((run / "train").path) as checkpoints:
        chosen = checkpoints.best
    assert chosen is not None  # the run read it
    found: Row = {"js_largest_bits": None, "js_bits": None}
    if "epochs" in spec:
        found = critic_values(spec, _parts(job, run), job.images.task(CLASS).frequencies, config.seed)
    return [
        {
            **{name: spec[name] for name in ("run", "net", "labeling", "decoder", "weight")},
            "seed": config.seed,
            "chosen_epoch": chosen / spec["epoch"],
            "last_epoch": config.train.steps / spec["epoch"],
            "linear_accuracy": done.metrics["linear_accuracy"],
            "mlp_accuracy": done.metrics["mlp_accuracy"],
            **usable_ends(done),
            "entropy_bits": usable.entropy_bits,
            "unseen_rows": sum(usable.rows.values()),
            **pretext,
            "reconstruction": reconstruction(job, run),
            **found,
        }
    ]


def reconstruction(job: Job, run: RunFolder) -> float | None:
    """The squared error of a test image's pixel by the run's decoder; None if it has none.

    Pixels count in units in which the training images have variance 1 in each channel, as in the paper.
    """
    decoder = decoder_of(job, job.objective)
    if decoder is None:
        return None
    mesh = parallel.make_mesh(job.config.train.k)
    state = trained_state(job, run / "train", mesh, which=job.config.features.checkpoint)
    h = (run / "features").arrays("test.npz")["h"]
    decoded: Any = decoder.apply({"params": state.params["decoder"]}, jnp.asarray(h))
    parts = job.images.parts(job.pairing)
    pixels = {name: parts[name][0](0, parts[name][1])["image"] for name in ("fit", "test")}
    return standardized_error(np.asarray(decoded).reshape(pixels["test"].shape), pixels["test"], pixels["fit"])


def standardized_error(
    decoded: Float[np.ndarray, "n s s 3"],
    images: UInt8[np.ndarray, "n s s 3"],
    training_images: UInt8[np.ndarray, "m s s 3"],
) -> float:
    """The mean of (decoded - image)² / variance, with the variance of a channel over the training images.

    decoded: on the scale [-1, 1] of images that are normalized.
    """
    truth, known = (
        np.asarray(normalize(jnp.asarray(each), "float32"), np.float64) for each in (images, training_images)
    )
    return float(np.mean((decoded - truth) ** 2 / known.var(axis=(0, 1, 2))))


def _parts(job: Job, run: RunFolder) -> Parts:
    """The features and the classes of the run's images."""
    classes, folder = job.images.task(CLASS), run / "features"
    arrays = {name: folder.arrays(f"{name}.npz") for name in Parts._fields}
    return Parts(*(Part(arrays[name]["h"], classes.classes(arrays[name]["labels"])) for name in Parts._fields))
