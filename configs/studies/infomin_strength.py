"""Does accuracy peak at one strength of augmentation, and at one MI? On CDP, after Lee et al. 2023, Fig. 5.

python -m mirigor_jax.main --config=configs/studies/infomin_strength.py               22 runs on a laptop
python -m mirigor_jax.main --config=configs/studies/infomin_strength.py:scale=paper   the paper's encoder, ResNet-50

Trains with color jitter alone, with random resized crops alone, with all of SimCLR's augmentations, and on same-class
pairs with all of them at rising strength. It should print an MI that falls as the strength rises. Accuracies may peak
at any strength, or not at all.
"""

import common
from ml_collections import ConfigDict

ARGUMENTS = {
    "scale": common.SCALE,
    "encoder": common.ENCODER,
    "pairs": common.PAIRS,
    "seeds": common.seeds(1),
}
JITTER = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
CROP = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
OF_ALL = (0.0, 0.25, 0.5, 0.75, 1.0)


def get_config(arg: str = "") -> ConfigDict:
    """A run for each augmentation, strength and seed."""
    args = common.parse_arg(arg, ARGUMENTS)
    paper = args.scale == "paper"
    config = common.study("infomin_strength", args.scale)
    usual = "resnet50" if paper else "resnet18"
    config.run.update_from_flattened_dict(common.encoder(args.encoder or usual, config.run))
    # The critic of SimCLR pairs draws new views and encodes them in every step.
    config.run.estimate.update({"batch_size": 256, "steps": 1500 if paper else 300, "eval_every": 50})
    full = dict(config.run.data.augment)
    joint_strengths = {s: {name: s * strength for name, strength in full.items()} for s in OF_ALL}
    none = joint_strengths[0.0]
    cells = (
        *((f"jitter={s:g}", "simclr", {**none, "jitter": s}, "jitter", s) for s in JITTER),
        *((f"crop={s:g}", "simclr", {**none, "crop": s}, "crop", s) for s in CROP),
        ("simclr", "simclr", full, "all", 1.0),
        *(
            (f"class+simclr={s:g}", "class+simclr", strengths, "class and all", s)
            for s, strengths in joint_strengths.items()
        ),
    )
    settings = common.at_batch_size(64, args.pairs or (204_800 if paper else 20_480))
    config.study.cells = tuple(
        {
            "name": f"{name}-seed={seed}",
            "run": {
                "data.pairing": pairing,
                **{f"data.augment.{key}": float(value) for key, value in strengths.items()},
                "seed": seed,
                **settings,
            },
            "tags": {"family": family, "strength": strength},
        }
        for name, pairing, strengths, family, strength in cells
        for seed in range(args.seeds)
    )
    return config
