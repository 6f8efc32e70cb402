"""What each stage of an encoder holds about the class, after a training on labels that hold nothing about it.

After Gosch 2020, section 4 and appendix C.2.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from mirigor_jax import parallel, training
from mirigor_jax.config_files import defaults
from mirigor_jax.data.image_set import ROTATIONS
from mirigor_jax.errors import InputError
from mirigor_jax.mi import discrete
from mirigor_jax.progress import show_progress
from mirigor_jax.runs import layers
from mirigor_jax.runs.features import trained_state
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.runs.job import Job, parse
from mirigor_jax.runs.schema import LayersReport, read
from mirigor_jax.studies import label_critics
from mirigor_jax.studies.label_critics import Part, Parts
from mirigor_jax.studies.rows import Row

CLASS = "class"  # the attribute that encoders are evaluated on
CRITICS = "critics.jsonl"
MI = "I(X;Y)"  # the name of a pair's mutual information in `discrete`
OF_LAYERS = ("stage", "accuracy", "nmi", "usable_bits", "usable_lower_bits", "usable_upper_bits", "unseen_rows")

Spec = Mapping[str, Any]
Labels = Int[np.ndarray, " n"]


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Measure every stage of a run's encoder. Returns a row for each stage.

    spec: run (its name), net and labeling (words for its rows), and of the critics width, k (pairs a batch),
        learning_rate and epochs.
    runs: name → folder of a finished run that was trained on the classes of its pairing, with `data.rotations`.
    folder: keeps the stages' features and measurements (`layers`), and the critics' values.
    Raises InputError if the run is not finished, and as `layers.run` and `label_critics.fit` do.
    """
    run = runs[spec["run"]]
    if (run_config := run.config()) is None or not run.exists("report.json"):
        raise InputError(f"the run '{run}' is not finished; give the study's own command")
    config = defaults("layers")
    # The turns of an image are neighboring rows, but of the fit part alone. The other parts have each image once.
    config.update({"restore": str(run), "pairing": CLASS, "rows": "independent"})
    layers.run(config, "", str(folder / "layers"))
    report = read(LayersReport, (folder / "layers").read("layers.json"))
    job = parse(ConfigDict(run_config))
    folder.mend(lambda: _fit_critics(spec, job, folder))
    values = {row["stage"]: row for row in folder.rows(CRITICS)}
    words = {name: spec[name] for name in ("run", "net", "labeling")}
    of_run = {**pretext_accuracies(job, run), **independence(job), "entropy_bits": report.layers[0].entropy_bits}
    seed = job.config.seed
    return [
        {**words, "seed": seed, **of_run, **{name: getattr(layer, name) for name in OF_LAYERS}} | values[layer.stage]
        for layer in report.layers
    ]


def pretext_accuracies(job: Job, run: RunFolder) -> Row:
    """The share of images whose pretext label the trained head finds: of the training images, and of test images.

    The network is in evaluation mode, with BatchNorm's running statistics, from the checkpoint that the run measures.
    job: of the run in the folder `run`.
    """
    classes, head_config = job.pairing.by_class, job.config.head
    assert classes is not None  # the run was trained on them
    which = job.config.features.checkpoint
    state = trained_state(job, run / "train", parallel.make_mesh(job.config.train.k), which=which)
    head = training.default_head(job.encoder(), job.objective, tuple(head_config.hidden), head_config.features)
    result = {}
    for name, part in (("fit", "fit"), ("held_out", "test")):
        arrays = (run / "features").arrays(f"{part}.npz")
        logits: Any = head.apply({"params": state.params["head"]}, jnp.asarray(arrays["h"]))
        found = np.asarray(logits).argmax(axis=1)
        result[f"{name}_accuracy"] = float(np.mean(found == classes.classes(arrays["labels"])))
    return result


def independence(job: Job) -> Row:
    """I(Y';Y) of the pretext label Y' and the class Y, in bits.

    `table_bits` is the mutual information of the joint table of all training images at all turns. The value and its
    ends are those of one random turn of each image of the set's training part, because the turns of one image are no
    independent rows. The training images are a random draw from that part.
    Source: Gosch 2020, section 4 (I(Y';Y) = 0).
    """
    config = ConfigDict(job.config.to_dict())
    config.data.images = None
    whole = _both_labels(parse(config))
    images = len(whole[0]) // len(ROTATIONS)
    rng = np.random.default_rng(job.config.seed)
    rows = len(ROTATIONS) * np.arange(images) + rng.integers(len(ROTATIONS), size=images)
    return label_information(_both_labels(job), tuple(labels[rows] for labels in whole))


def label_information(
    training: tuple[Labels, Labels], independent: tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]
) -> Row:
    """I(Y';Y) in bits: `table_bits` of the training rows' table, and `mi_bits` with certified ends of independent rows.

    training, independent: Y' and Y of each row, from 0.
    """
    sizes = [int(labels.max()) + 1 for labels in independent]
    counts = np.zeros(sizes)
    np.add.at(counts, training, 1)
    one = discrete.of_samples(*independent, sizes=sizes).measures[MI]
    return {
        "table_bits": discrete.of_table(counts / counts.sum()).measures[MI].value_bits,
        "mi_bits": one.value_bits,
        "mi_lower_bits": one.lower_bits,
        "mi_upper_bits": one.upper_bits,
        "mi_rows": len(independent[0]),
    }


def _both_labels(job: Job) -> tuple[Labels, Labels]:
    """Pretext label and class of each training image at each of its turns."""
    pretext, trained = job.pairing.by_class, job.images.training(job.pairing)
    assert pretext is not None  # the run was trained on them
    assert trained is not None  # only a set of images can be turned
    attributes = trained[0].attributes
    return pretext.classes(attributes), job.images.task(CLASS).classes(attributes)


def _fit_critics(spec: Spec, job: Job, folder: RunFolder) -> None:
    """Fit a Jensen–Shannon critic on each stage's features, unless the folder has its values."""
    stages, classes = folder / "layers", job.images.task(CLASS)
    columns = (stages / "features").read(layers.COLUMNS)
    done = folder.rows(CRITICS)
    left = [stage for stage in columns if stage not in {row["stage"] for row in done}]
    if not left:
        return
    arrays = {part: (stages / "features").arrays(f"{part}.npz") for part in Parts._fields}

    def of(part: str, own: slice) -> Part:
        h: Float[np.ndarray, "n d"] = arrays[part]["h"][:, own]
        return Part(h, classes.classes(arrays[part]["labels"]))

    for stage in left:
        parts = Parts(*(of(part, slice(*columns[stage])) for part in Parts._fields))
        done.append({"stage": stage, **critic_values(spec, parts, classes.frequencies, job.config.seed)})
        print(f"  {stage}: JS critic {done[-1]['js_bits']:.3f} bits on test images", flush=True)
        folder.write_rows(CRITICS, done)


def critic_values(spec: Spec, parts: Parts, frequencies: Float[np.ndarray, " c"], seed: int) -> Row:
    """What a Jensen–Shannon critic of features and classes reads: `js_largest_bits` and `js_bits`, see `Reading`.

    spec: of the critic width, k (pairs a batch), learning_rate and epochs.
    frequencies: of the classes. seed: of the critic's fit.
    Raises InputError as `label_critics.fit` does.
    """
    how = {"k": spec["k"], "learning_rate": spec["learning_rate"], "activation": "elu"}
    critic = label_critics.training_of("js", spec["width"], **how)
    options = {"epochs": spec["epochs"], "seed": seed}
    with show_progress("JS critic", "epochs") as on_progress:
        found = label_critics.fit(parts, frequencies, critic, **options, on_progress=on_progress)["js"]
    return {"js_largest_bits": found.largest, "js_bits": found.value}
