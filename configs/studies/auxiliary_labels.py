"""Does mutual information with the class explain a pretext task? After Gosch 2020, section 4, Tables 1 and 8.

python -m mirigor_jax.main --config=configs/studies/auxiliary_labels.py                Fashion-MNIST on a laptop
python -m mirigor_jax.main --config=configs/studies/auxiliary_labels.py:scale=paper    CIFAR-10, 182 epochs, width 64

ResNet-18, and the same network without skip connections, are trained to tell the four turns of every image, or random
labels of the turned images. Neither label has information about the class: it should print I(Y';Y) = 0 for both. The
later stages should hold more usable information about the class after rotations than an untrained encoder's, and less
after random labels.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument
from mirigor_jax.studies.auxiliary_labels import LABELINGS

# The paper's sizes are those of appendix C.2: 45,000 images at four turns.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "run": {
            "data.source": "fashion_mnist", "data.size": 14, "encoder.width": 8,
            "features.validation": 1500, "features.test": 3000, "features.unseen": 3000, "estimate.k": 256,
            "train.checkpoint_every": 100,
        },
        "images": 500,
        "epochs": {"rotation": 24, "random": 48},
        "k": {"rotation": 64, "random": 64},
        "learning_rate": {"rotation": 0.05, "random": 0.05},
        "critic": {"width": 512, "k": 128, "learning_rate": 5e-4, "epochs": 10},
    },
    "paper": {
        "run": {
            "data.source": "tfds:cifar10", "data.size": 32, "encoder.width": 64, "estimate.k": 1024,
            "features.validation": None, "features.test": None, "train.checkpoint_every": 2000,
        },
        "images": 45_000,
        "epochs": {"rotation": 182, "random": 182},
        "k": {"rotation": 256, "random": 64},
        "learning_rate": {"rotation": 0.1, "random": 0.01},
        "critic": {"width": 512, "k": 512, "learning_rate": 5e-4, "epochs": 1000},
    },
}  # fmt: skip
SHARED: dict[str, Any] = {
    "data.rotations": True,
    "encoder.stem": "cifar",
    "head.hidden": (),
    "train.objective": "cross_entropy",
    "train.optimizer": "sgd",
    "train.schedule": "steps",
    "train.drops": (91 / 182, 137 / 182),
    "train.warmup_steps": 0,
    "train.weight_decay": 0.0,
    "features.fit": None,
    "estimate.estimators": ("info_nce_symmetric",),
    "estimate.k_curve": (64,),
    "estimate.steps": 50,  # of the critic for the pretext labels, which is not the question
    "estimate.nt_xent_k": 64,
    "evaluate.metrics": False,
}
# Labeling → the settings that make it.
LABELS: dict[str, dict[str, Any]] = {
    "rotation": {"data.pairing": "rotation"},
    "random": {"data.pairing": "corrupted", "data.corrupted": 1.0},
    "untrained": {"data.pairing": "rotation", "train.steps": 0},
}
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Images, encoders and epochs: a laptop's, or the paper's."),
    "nets": replace(common.ENCODERS, default=("resnet18", "plainnet18")),
    "seeds": common.seeds(3),
    "images": argument(
        None, "Training images, before they are turned.", kind=int, least=1, none="as many as the scale has"
    ),
    "times": argument(1.0, "Factor of the trainings' epochs, to compare budgets.", above=0),
}


def get_config(arg: str = "") -> ConfigDict:
    """For each seed and network a run for each labeling, and a fit that measures the stages of its encoder."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("auxiliary_labels", args.scale)
    scale = SCALES[args.scale]
    images = args.images or scale["images"]
    config.run.update_from_flattened_dict(SHARED | scale["run"] | {"data.images": images})
    config.study.cells = tuple(
        {
            "name": f"{net}-{labeling}-seed={seed}",
            "run": {
                "seed": seed,
                "data.seed": seed,
                "encoder.name": net,
                **_training(scale, labeling, args.times * images),
                **LABELS[labeling],
            },
            "tags": {"net": net, "labeling": words},
        }
        for seed in range(args.seeds)
        for net in args.nets
        for labeling, words in LABELINGS.items()
    )
    config.study.fits = tuple(
        {"name": cell["name"], "run": cell["name"], **cell["tags"], **scale["critic"]} for cell in config.study.cells
    )
    return config


def _training(scale: dict[str, Any], labeling: str, images: float) -> dict[str, Any]:
    """The settings of a training that sees so many images in an epoch at four turns. Each pair gives two images."""
    if labeling not in scale["epochs"]:
        return {}
    k = scale["k"][labeling]
    steps = round(scale["epochs"][labeling] * 4 * images / (2 * k))
    return {"train.k": k, "train.steps": steps, "train.learning_rate": scale["learning_rate"][labeling]}
