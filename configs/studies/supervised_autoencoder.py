"""Does reconstruction help a pretext task? After Gosch 2020, section 5.2, Fig. 7, Tables 3 and 4.

python -m mirigor_jax.main --config=configs/studies/supervised_autoencoder.py                Fashion-MNIST on a laptop
python -m mirigor_jax.main --config=configs/studies/supervised_autoencoder.py:scale=paper    CIFAR-10, width 64

An encoder learns the turn of every image, or random labels, and with weight λ that a linear or a non-linear decoder can
reconstruct the image. By the paper, some reconstruction helps rotations, and random labels the more it counts.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument
from mirigor_jax.studies.auxiliary_labels import RANDOM, ROTATION
from mirigor_jax.studies.supervised_autoencoder import BOTH, LINEAR, NO_DECODER, NON_LINEAR

# The paper's λ is of images whose channels have variance 1. pixel_variance is that of the source's images on [-1, 1],
# the scale of train.reconstruction.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "run": {
            "data.source": "fashion_mnist", "data.size": 14, "encoder.width": 8,
            "features.validation": 1000, "features.test": 2000, "features.unseen": 2000, "estimate.k": 256,
            "evaluate.mlp_steps": 500,
        },
        "nets": ("resnet18",),
        "images": 250,
        "pixel_variance": 0.397,
        "epochs": {ROTATION: 16, RANDOM: 40},
        "k": {ROTATION: 64, RANDOM: 64},
        "learning_rate": {ROTATION: 0.05, RANDOM: 0.05},
        "critic": {"width": 512, "k": 128, "learning_rate": 5e-4, "epochs": 10},
    },
    "paper": {
        "run": {
            "data.source": "tfds:cifar10", "data.size": 32, "encoder.width": 64, "estimate.k": 1024,
            "features.validation": None, "features.test": None,
        },
        "nets": ("resnet18", "plainnet18"),
        "images": 45_000,
        "pixel_variance": 0.252,
        "epochs": {ROTATION: 182, RANDOM: 182},
        "k": {ROTATION: 256, RANDOM: 64},
        "learning_rate": {ROTATION: 0.1, RANDOM: 0.01},
        "critic": {"width": 512, "k": 512, "learning_rate": 5e-4, "epochs": 1000},
    },
}  # fmt: skip
SHARED: dict[str, Any] = {
    "data.rotations": True,
    "encoder.stem": "cifar",
    "head.hidden": (),
    "train.objective": "supervised_autoencoder",
    "train.optimizer": "sgd",
    "train.schedule": "steps",
    "train.drops": (91 / 182, 137 / 182),
    "train.warmup_steps": 0,
    "train.weight_decay": 0.0,
    "features.fit": None,
    "features.checkpoint": "best",
    "estimate.estimators": ("info_nce_symmetric",),
    "estimate.k_curve": (64,),
    "estimate.steps": 50,  # of the critic for the pretext labels, which is not the question
    "estimate.nt_xent_k": 64,
    # The turns of an image are neighboring rows, but of the fit part alone. The other parts have each image once.
    "estimate.rows": "independent",
    "evaluate.classes": "class",
    "evaluate.metrics": True,
}
# Labels → the settings that make them.
LABELS: dict[str, dict[str, Any]] = {
    ROTATION: {"data.pairing": "rotation"},
    RANDOM: {"data.pairing": "corrupted", "data.corrupted": 1.0},
}
DECODERS = {NO_DECODER: "linear", LINEAR: "linear", NON_LINEAR: "mlp"}  # in tables → train.decoder
# (the labels that a training learns, its labels in tables, decoder, λ). Without a pretext task, labels are of no use.
CASES = (
    (ROTATION, ROTATION, NO_DECODER, 0.0),
    *((ROTATION, ROTATION, decoder, weight) for decoder in (LINEAR, NON_LINEAR) for weight in (0.25, 1.0)),
    *((ROTATION, BOTH, decoder, None) for decoder in (LINEAR, NON_LINEAR)),
    (RANDOM, RANDOM, NO_DECODER, 0.0),
    *((RANDOM, RANDOM, LINEAR, weight) for weight in (0.25, 1.0)),
)
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Images, encoders and epochs: a laptop's, or the paper's."),
    "nets": replace(common.ENCODER, default=None, several=True, none="the scale's"),
    "seeds": common.seeds(3),
    "images": argument(
        None, "Training images, before they are turned.", kind=int, least=1, none="as many as the scale has"
    ),
    "times": argument(1.0, "Factor of the trainings' epochs, to compare budgets.", above=0),
}


def get_config(arg: str = "") -> ConfigDict:
    """For each seed and network a run for each case, and a fit that measures what it learned."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("supervised_autoencoder", args.scale)
    scale = SCALES[args.scale]
    images = args.images or scale["images"]
    config.run.update_from_flattened_dict(SHARED | scale["run"] | {"data.images": images})
    cells, fits = [], []
    for seed in range(args.seeds):
        for net in args.nets or scale["nets"]:
            for learned, labeling, decoder, weight in CASES:
                name = "-".join([net, _word(labeling), _word(decoder), f"weight={weight}", f"seed={seed}"])
                epoch = round(4 * images / (2 * scale["k"][learned]))  # each pair gives two images
                tags = {"net": net, "labeling": labeling, "decoder": decoder, "weight": weight}
                run = {
                    "seed": seed,
                    "data.seed": seed,
                    "encoder.name": net,
                    "train.k": scale["k"][learned],
                    "train.steps": round(args.times * scale["epochs"][learned]) * epoch,
                    "train.checkpoint_every": epoch,
                    "train.learning_rate": scale["learning_rate"][learned],
                    "train.decoder": DECODERS[decoder],
                    "train.reconstruction": weight and weight / scale["pixel_variance"],
                    **LABELS[learned],
                }
                cells.append({"name": name, "run": run, "tags": tags})
                critic = scale["critic"] if labeling != ROTATION and decoder != NON_LINEAR else {}
                fits.append({"name": name, "run": name, "epoch": epoch, **tags, **critic})
    config.study.cells, config.study.fits = tuple(cells), tuple(fits)
    return config


def _word(text: str) -> str:
    """A word of a table, as a part of a run's name."""
    return {NO_DECODER: "none"}.get(text, text.split()[0])
