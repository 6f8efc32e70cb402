"""LeNet-5 on images with salt-and-pepper noise, and what each of its layers holds about the class.

After Gosch 2020, appendix D.1. Critics and probes see the same rows, none of which the encoder has seen. The rows that
critics are read on are among those that probes are read on.
"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mirigor_jax import mi, models
from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.encoding import encode
from mirigor_jax.errors import InputError
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.heads import MLP
from mirigor_jax.progress import show_progress
from mirigor_jax.runs import usable
from mirigor_jax.runs.folder import RunFolder
from mirigor_jax.studies import label_critics
from mirigor_jax.studies.label_critics import Part, Parts, Reading
from mirigor_jax.studies.rows import Row
from mirigor_jax.training import train

# The paper's name of a layer → the encoder's stage.
LAYERS = {"L0": "L0", "L1": "L1", "L2": "prelogits"}
# Family of probes → the options of its fit, by their keys in a spec.
OPTIONS: dict[str, tuple[str, ...]] = {"linear": (), "mlp": ("mlp_steps",)}
VALIDATION, TEST = 0.1, 0.3  # shares of the rows that choose a critic's epoch, and that read it
FEATURES, ROWS = "features.npz", "layers.jsonl"

Spec = Mapping[str, Any]


class Images(NamedTuple):
    """The images that train the encoder, and others, with their classes."""

    trained: ImageSet
    others: UInt8[np.ndarray, "n s s 3"]
    classes: Int[np.ndarray, " n"]


def make(spec: Spec, runs: Mapping[str, RunFolder], folder: RunFolder) -> list[Row]:
    """Train a LeNet-5 at one share of noise, and measure each of its layers. Returns a row for each layer.

    spec: source and size (of the images), share (of noisy pixels), seed; of the encoder: train_images, train_k (pairs
        a batch), train_steps, train_rate; images (that the encoder has not seen); families (of probes) and mlp_steps;
        of the critics: width, k (pairs a batch), rate, epochs.
    runs: not used; the study trains no runs.
    folder: keeps the features, and the rows of the layers that are finished.
    Raises InputError if the source has too few images, and as the training, the critics and the probes do.
    """
    del runs
    folder.mend(partial(_measure, spec, folder))
    return folder.rows(ROWS)


def _measure(spec: Spec, folder: RunFolder) -> None:
    """Measure the layers that the folder lacks."""
    if not folder.exists(FEATURES):
        folder.write_arrays(FEATURES, _features(spec))
    arrays = folder.arrays(FEATURES)
    rows = folder.rows(ROWS)
    for layer in [*LAYERS][len(rows) :]:
        print(f"  layer {layer}:", flush=True)
        rows.append(_row(spec, layer, arrays[layer], arrays["classes"]) | {"accuracy": float(arrays["accuracy"])})
        folder.write_rows(ROWS, rows)


def images_of(spec: Spec) -> Images:
    """The noisy images of a fit. Raises InputError if the source has too few, or no labels."""
    sets = labeled(spec["source"], size=spec["size"], noise=spec["share"], seed=spec["seed"])
    if not sets["train"].names:
        raise InputError(f"source='{spec['source']}' has no labels to learn and to measure; give a labeled set")
    rng, number = np.random.default_rng(spec["seed"]), spec["images"]
    order = rng.permutation(len(sets["train"]))
    trained, left = np.split(order, [spec["train_images"]])
    unseen = [sets["train"].take(np.sort(left)), sets["validation"], sets["test"]]
    whole = sum(map(len, unseen))
    if len(trained) < spec["train_images"] or whole < number:
        raise InputError(
            f"train_images={spec['train_images']:,} and images={number:,}: '{spec['source']}' has "
            f"{len(order):,} training images, and {whole:,} others are then left; ask for fewer"
        )
    chosen = np.sort(rng.permutation(whole)[:number])
    firsts = np.cumsum([0, *map(len, unseen)])
    own = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in itertools.pairwise(firsts)]
    return Images(
        sets["train"].take(np.sort(trained)),
        np.concatenate([part.read(rows) for part, rows in zip(unseen, own, strict=True)]),
        np.concatenate([part.attributes[rows, 0] for part, rows in zip(unseen, own, strict=True)]),
    )


def _features(spec: Spec) -> dict[str, np.ndarray]:
    """Train the encoder. Returns the features of the other images by layer, their classes, and its accuracy on them."""
    images, encoder = images_of(spec), models.build("lenet5", size=spec["size"])
    head = MLP((), images.trained.sizes[0], encoder.dtype)
    with show_progress("train", "steps") as on_progress:
        state, _ = train(
            encoder,
            images.trained,
            pairing="class",
            objective="cross_entropy",
            k=spec["train_k"],
            steps=spec["train_steps"],
            seed=spec["seed"],
            learning_rate=spec["train_rate"],
            warmup_steps=0,
            weight_decay=0.0,
            head=head,
            on_progress=on_progress,
        )
    features = {}
    for layer, stage in LAYERS.items():
        frozen = FrozenEncoder(encoder, state.encoder_variables, stage=stage)
        with show_progress(f"encode {layer}", "rows") as on_progress:
            features[layer] = encode(encoder, frozen, images.others, on_progress=on_progress)
    logits: Any = head.apply({"params": state.params["head"]}, features["L2"])
    accuracy = np.mean(np.asarray(logits).argmax(axis=1) == images.classes)
    return {**features, "classes": images.classes, "accuracy": np.asarray(accuracy)}


def _row(spec: Spec, layer: str, h: Float[np.ndarray, "n d"], classes: Int[np.ndarray, " n"]) -> Row:
    """What critics and probes read from a layer. Bits."""
    split = parts_of(classes, row_keys(len(classes)), validation=VALIDATION, test=TEST)
    parts, frequencies = Parts(*(Part(h[rows], classes[rows]) for rows in split)), np.bincount(classes) / len(classes)
    readings: dict[str, Reading] = {}
    for name in label_critics.CRITICS:
        training = label_critics.training_of(name, spec["width"], k=spec["k"], learning_rate=spec["rate"])
        with show_progress(name, "epochs") as on_progress:
            readings |= label_critics.fit(
                parts, frequencies, training, epochs=spec["epochs"], seed=spec["seed"], on_progress=on_progress
            )
    probes: Row = {}
    for family in spec["families"]:
        options = {key: spec[key] for key in OPTIONS[family]}
        with usable.show_progress(3) as on_progress:
            found = mi.usable_information(h, classes, family=family, **options, on_progress=on_progress)
        probes[family] = {
            "value": found.value_bits,
            "lower": found.lower_bits,
            "upper": found.upper_bits,
            "warnings": list(found.warnings),
        }
        print(f"  {found.sentence}", flush=True)
    return {
        **{key: spec[key] for key in ("share", "seed", "epochs", "width", "images")},
        "layer": layer,
        "features": h.shape[1],
        # Only whole batches are read.
        "rows": {name: len(rows) // spec["k"] * spec["k"] for name, rows in zip(Parts._fields, split, strict=True)},
        "entropy_bits": float(-frequencies @ np.log2(frequencies)),
        "estimates": {name: asdict(reading) | {"curve": reading.curve.tolist()} for name, reading in readings.items()},
        "usable": probes,
    }
