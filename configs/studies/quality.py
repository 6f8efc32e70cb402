"""Which metric ranks encoders as linear accuracy does? After Lee et al. 2023, Tables I, II and IV-IX.

python -m mirigor_jax.main --config=configs/studies/quality.py                     20 runs on a laptop, Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/quality.py:set=cifar10-temperatures                      Table IV
python -m mirigor_jax.main --config=configs/studies/quality.py:set=imagenet100-temperatures                  Table V
python -m mirigor_jax.main --config=configs/studies/quality.py:set=resnet50s,paths=FILE                      Table VI
python -m mirigor_jax.main --config=configs/studies/quality.py:set=resnet50s,data=imagenet1k,paths=FILE      Table VII
python -m mirigor_jax.main --config=configs/studies/quality.py:set=vits,paths=FILE                           Table VIII

FILE lists the paper's encoders, one a line, as for configs/rank.py, which ranks encoders of your own. If
mirigor_jax/studies/paper_quality.csv has a name, the report shows the paper's numbers beside ours. ImageNet-100 takes
its classes from --config.run.data.classes=file:PATH.

It should print every metric of every encoder, with I_class at most H(C), the correlation of each metric with linear
accuracy, with its interval, and which encoders are proven to hold more usable information. Encoders of Fashion-MNIST
train on 12,000 images, so that 58,000 stay unseen: 48,000 of the training part, and the test part. The order is proven
on 60 % of these unseen images; the probes are fitted on all other encoded images.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.fields import argument

# Number of training images, out of 60,000. No encoder sees the other 48,000, so usable information is measured on them
# and on the test images.
TRAINED_ON = 12_000
SMALL_NET = {"train.learning_rate": 1e-3}
# Encoder → the settings of its own, on Fashion-MNIST. All share those of common.SETS["fashion"].
FASHION: dict[str, dict[str, Any]] = {
    "supervised": {"data.pairing": "class", "train.objective": "cross_entropy"},
    "supervised-lenet5": {
        "data.pairing": "class",
        "train.objective": "cross_entropy",
        "encoder.name": "lenet5",
        **SMALL_NET,
    },
    "supcon": {"data.pairing": "simclr", "train.objective": "supcon"},
    "class": {"data.pairing": "class"},
    "class-lenet5": {"data.pairing": "class", "encoder.name": "lenet5", **SMALL_NET},
    "class-mlp": {"data.pairing": "class", "encoder.name": "mlp", **SMALL_NET},
    "class-vit": {
        "data.pairing": "class",
        "encoder.name": "vit_ti",
        "data.size": 32,  # four patches of 16²
        "train.learning_rate": 5e-4,
    },
    "class-simclr": {"data.pairing": "class+simclr"},
    "simclr-t=0.1": {"data.pairing": "simclr"},
    "simclr-t=0.3": {"data.pairing": "simclr", "train.temperature": 0.3},
    "simclr-t=0.5": {"data.pairing": "simclr", "train.temperature": 0.5},
    "simclr-weak": {"data.pairing": "simclr", "data.augment.crop": 0.2, "data.augment.jitter": 0.1},
    "simclr-strong": {"data.pairing": "simclr", "data.augment.crop": 0.95, "data.augment.jitter": 1.0},
    "simclr-mlp": {"data.pairing": "simclr", "encoder.name": "mlp", **SMALL_NET},
    "decoupled": {"data.pairing": "simclr", "train.objective": "decoupled"},
    "rotation": {"data.pairing": "class", "train.objective": "rotation"},
    "random-labels": {"data.pairing": "corrupted", "data.corrupted": 1.0, "train.objective": "cross_entropy"},
    "untrained": {"data.pairing": "class", "train.steps": 0},
}
TEMPERATURES = {"cifar10-temperatures": (0.1, 0.3, 0.5), "imagenet100-temperatures": (0.1, 0.2, 0.3)}
ARGUMENTS = {
    "set": argument(
        "fashion",
        "Encoders to compare: fashion trains twenty, a temperature set six; resnet50s and vits are checkpoints.",
        choices=("fashion", *TEMPERATURES, "resnet50s", "vits"),
    ),
    "data": argument("imagenet100", "Images that resnet50s and vits are measured on.", choices=tuple(common.SETS)),
    "paths": replace(common.PATHS, meaning="File that lists the encoders, one a line; resnet50s and vits need it."),
    "pairs": common.PAIRS,
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each encoder of the set."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("quality", "laptop" if args.set == "fashion" else "paper")
    run = config.run
    run.seed = args.seed
    cells: dict[str, dict[str, Any]]
    if args.set == "fashion":
        common.on_set(run, "fashion", args.pairs)
        run.data.images = TRAINED_ON
        cells = FASHION | _small_batches((args.pairs or 76_800) // 4)
    elif args.set in TEMPERATURES:
        common.on_set(run, args.set.partition("-")[0], args.pairs)
        run.data.pairing = "simclr"
        cells = {
            f"{args.set}-{encoder}-t={t:g}": {"encoder.name": encoder, "train.temperature": t}
            for encoder in ("resnet18", "resnet50")
            for t in TEMPERATURES[args.set]
        }
    else:
        common.on_set(run, args.data)
        run.data.pairing = "class"
        if not args.paths:
            raise InputError("give paths=FILE with a line for each encoder: name,path or name,path,layout")
        cells = common.listed(args.paths, f"{args.set}-{args.data}-")
    run.evaluate.classes = "class"
    config.study.cells = tuple({"name": name, "run": overrides} for name, overrides in cells.items())
    return config


def _small_batches(pairs: int) -> dict[str, dict[str, Any]]:
    """Two runs with small batches. They see fewer pairs than the others because they take longer for each pair."""
    return {
        f"{pairing}-k={k}": {"data.pairing": pairing, **common.at_batch_size(k, pairs)}
        for pairing, k in (("class", 2), ("simclr", 8))
    }
