"""Does post-training estimation work for encoders that no contrastive loss trained? After Lee et al. 2023, §V-A.

python -m mirigor_jax.main --config=configs/studies/others.py                a ResNet-18 of width 8 on Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/others.py:scale=paper    ResNet-50s on CIFAR-10, for an accelerator

It should print the linear accuracy, I_class and usable information of encoders trained by SimCLR, Barlow Twins, VICReg,
BYOL, SwAV and a masked autoencoder, beside an untrained one.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.studies.others import CASES

ARGUMENTS = {
    "scale": common.SCALE,
    "encoder": common.ENCODER,
    "pairs": common.PAIRS,
    "seeds": common.seeds(3),
}
# What a run on a laptop changes in a set's settings.
LAPTOP = {
    "encoder.width": 8,
    "data.images": 50_000,
    "features.fit": 8000,
    "features.validation": 2000,
    "features.unseen": 10_000,
    "estimate.steps": 100,
    "estimate.batch_size": 128,
}
# Name of a case → its settings: the target network follows faster in a short training.
OWN = {"laptop": {"byol": {"train.target_decay": 0.97}}, "paper": {}}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each case and each seed."""
    args = common.parse_arg(arg, ARGUMENTS)
    paper = args.scale == "paper"
    config = common.study("others", args.scale)
    common.on_set(config.run, "cifar10" if paper else "fashion", args.pairs or (None if paper else 51_200))
    usual = "resnet50" if paper else "resnet18"
    config.run.update_from_flattened_dict({} if paper else LAPTOP)
    config.run.update_from_flattened_dict(common.encoder(args.encoder or usual, config.run))
    config.run.data.pairing = "simclr"
    config.run.estimate.extra_pairings = ("class",)
    config.run.evaluate.metrics = False
    config.study.cells = tuple(
        {
            "name": f"{name}-seed={seed}",
            "run": {
                "train.objective": objective,
                "seed": seed,
                **({} if name != "untrained" else {"train.steps": 0}),
                **OWN[args.scale].get(name, {}),
            },
            "tags": {"set": config.run.data.source, "case": title},
        }
        for seed in range(args.seeds)
        for name, (objective, title) in CASES.items()
    )
    return config
