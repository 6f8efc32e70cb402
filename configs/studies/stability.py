"""Does an estimate settle as the training goes on, and with the number of rows? A question left by Lee et al. 2023.

python -m mirigor_jax.main --config=configs/studies/stability.py                 Fashion-MNIST on a laptop
python -m mirigor_jax.main --config=configs/studies/stability.py:steps=320       another training: two budgets
python -m mirigor_jax.main --config=configs/studies/stability.py:scale=paper     CIFAR-10, a ResNet-50 of width 64

It should print I_class and usable information with their certified ends at four steps of each training, and of the last
encoder for several numbers of rows. With four times as many rows, the ends should be about twice as near to each other.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.fields import argument

PARTS = 16  # of a training: the encoder is kept after each, and measured after some of them
MEASURED = (1, 4, 8, PARTS)
SHARES = (1 / 16, 1 / 4, 1.0)
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "set": "fashion",
        "steps": 640,
        "run": {
            "data.images": 12_000, "encoder.width": 8, "train.k": 64, "features.fit": 4000,
            "features.validation": 1000, "features.unseen": 4000, "estimate.k": 128, "evaluate.l2": (1e-4, 1e-2),
        },
    },
    "paper": {
        "set": "cifar10",
        "steps": 40_000,
        "run": {"data.images": 30_000, "encoder.name": "resnet50", "features.fit": 10_000, "estimate.k": 512},
    },
}  # fmt: skip
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Images, encoder and training: a laptop's, or larger ones, as papers have."),
    "steps": argument(
        None, "Steps of each training, a multiple of 16.", kind=int, least=PARTS, none="the scale's"
    ),
    "seeds": common.seeds(3),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """A training for each seed, and a fit that measures its encoder at four steps and on several numbers of rows."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("stability", args.scale)
    scale = SCALES[args.scale]
    steps = scale["steps"] if args.steps is None else args.steps
    ARGUMENTS["steps"].check("steps", steps)
    every, left = divmod(steps, PARTS)
    if left:
        raise InputError(f"steps={steps}: expected a multiple of {PARTS}")
    training = {"train.steps": steps, "train.checkpoint_every": every, "train.keep_every": every}
    common.on_set(config.run, scale["set"])
    config.run.update_from_flattened_dict(scale["run"] | common.SAME_CLASS | training)
    config.study.cells = tuple(
        {"name": f"steps={steps}-seed={seed}", "run": {"seed": seed}} for seed in range(args.seeds)
    )
    config.study.fits = tuple(
        {
            "name": cell["name"],
            "run": cell["name"],
            "steps": tuple(every * parts for parts in MEASURED),
            "shares": SHARES,
        }
        for cell in config.study.cells
    )
    return config
