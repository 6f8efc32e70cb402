"""Which loss trains the best encoder? After Lee et al. 2023, Table III.

python -m mirigor_jax.main --config=configs/studies/objectives.py                  5 runs on a laptop, Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/objectives.py:set=cifar10      the paper's sets: cifar10, ...
python -m mirigor_jax.main --config=configs/studies/objectives.py:set=imagenet100 --config.run.data.classes=file:PATH
python -m mirigor_jax.main --config=configs/studies/objectives.py:set=imagenet1k

It should print the linear accuracy and I_class of the encoders trained by SimCLR, decoupled, SupCon, same-class
contrastive and cross-entropy losses.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.studies.objectives import LOSSES

ARGUMENTS = {
    "set": common.SET,
    "encoder": common.ENCODER,
    "pairs": common.PAIRS,
    "seeds": common.seeds(1),
}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each loss and each seed."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("objectives", "laptop" if args.set == "fashion" else "paper")
    common.on_set(config.run, args.set, args.pairs)
    usual = "resnet18" if args.set == "fashion" else "resnet50"
    config.run.update_from_flattened_dict(common.encoder(args.encoder or usual, config.run))
    config.study.cells = tuple(
        {
            "name": f"{args.set}-{loss}-seed={seed}",
            "run": {"data.pairing": pairing, "train.objective": objective, "seed": seed},
            "tags": {"set": args.set, "case": title},
        }
        for loss, (pairing, objective, title) in LOSSES.items()
        for seed in range(args.seeds)
    )
    return config
