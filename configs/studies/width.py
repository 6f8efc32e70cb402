"""Do width and depth of the encoder change how its information goes with accuracy? A question left by Lee et al. 2023.

python -m mirigor_jax.main --config=configs/studies/width.py                 Fashion-MNIST, narrow ResNet-18 and 34
python -m mirigor_jax.main --config=configs/studies/width.py:steps=600       four times the training
python -m mirigor_jax.main --config=configs/studies/width.py:scale=paper     CIFAR-10, also ResNet-50, width 16 to 256

It should print, for each encoder and width, I_class and usable information with their certified ends, and linear
accuracy, which should rise together with the width. None of them can exceed what the classes hold, H(C).
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument

# Scale → its set of images, its grid, and the keys of every run. `data.images` leaves out training images, on which
# usable information is then measured.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "set": "fashion",
        "encoders": ("resnet18", "resnet34"),
        "widths": (1, 4, 16),
        "steps": (150,),
        "run": {
            "data.images": 12_000, "train.k": 64, "features.fit": 4000, "features.validation": 1000,
            "features.test": 5000, "features.unseen": 3000, "estimate.k": 256, "evaluate.l2": (1e-4, 1e-2),
        },
    },
    "paper": {
        "set": "cifar10",
        "encoders": ("resnet18", "resnet34", "resnet50"),
        "widths": (16, 32, 64, 128, 256),
        "steps": (39_062,),
        "run": {"data.images": 40_000},
    },
}  # fmt: skip
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Images, encoders and widths: a laptop's, or larger ones, as papers have."),
    "encoders": replace(common.ENCODERS, default=None, none="the scale's"),
    "widths": argument(
        None, "Channels of the first stage.", kind=int, several=True, least=1, none="the scale's"
    ),
    "steps": argument(None, "Steps of each training.", kind=int, several=True, least=1, none="the scale's"),
    "seeds": common.seeds(3),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """A run for each seed, encoder, width and number of steps."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("width", args.scale)
    scale = SCALES[args.scale]
    common.on_set(config.run, scale["set"])
    config.run.update_from_flattened_dict(scale["run"] | common.SAME_CLASS)
    grid = {name: tuple(args[name] or scale[name]) for name in ("encoders", "widths", "steps")}
    for name in ("widths", "steps"):
        ARGUMENTS[name].check(name, grid[name])
    config.study.cells = tuple(
        {
            "name": f"{encoder}-width={width}-steps={steps}-seed={seed}",
            "run": {
                **common.encoder(encoder, config.run),
                "encoder.width": width,
                "train.steps": steps,
                "train.checkpoint_every": max(50, steps // 20),
                "seed": seed,
            },
        }
        for seed in range(args.seeds)
        for encoder in grid["encoders"]
        for width in grid["widths"]
        for steps in grid["steps"]
    )
    return config
