"""What does an encoder learn if the views share one attribute? CDP, four tasks: Lee et al. 2023, Figs. 6 and 7.

python -m mirigor_jax.main --config=configs/studies/infomin_tasks.py               a laptop: 8 runs, 3 re-estimates each
python -m mirigor_jax.main --config=configs/studies/infomin_tasks.py:scale=paper   the paper's widths
python -m mirigor_jax.main --config=configs/studies/infomin_tasks.py --config.run.data.cdp.jitter=0.4    harder digits

The tasks are to tell color, digit, position, or all three. It should print a high accuracy and an I_class (MI of
same-class pairs) equal to H(C) for a task if the training pairs shared its attributes: on the diagonal of the table,
and for all four tasks if the pairs shared all attributes.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.studies.rows import TASKS

ARGUMENTS = {
    "scale": common.SCALE,
    "encoders": common.ENCODERS,
    "pairs": common.PAIRS,
    "seeds": common.seeds(1),
}
PAIRS = {"resnet18": 20_480, "resnet50": 40_960}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each encoder, pairing and seed, and for each run an estimate by each pairing."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("infomin_tasks", args.scale)
    # Even an untrained encoder tells digits apart that keep their place. Digits that move have to be learned.
    config.run.data.cdp.jitter = 0.2
    paper = args.scale == "paper"
    config.study.cells = tuple(
        {
            "name": f"{encoder}-{pairing}-seed={seed}",
            "run": {
                **common.encoder(encoder, config.run),
                "data.pairing": pairing,
                "seed": seed,
                # If the pairs share the digit alone, training is slow, and slower still with a narrow ResNet-50.
                **common.at_batch_size(64, args.pairs or (204_800 if paper else PAIRS[encoder])),
            },
        }
        for encoder in args.encoders
        for pairing in TASKS
        for seed in range(args.seeds)
    )
    config.study.estimates = tuple({"pairing": task} for task in TASKS)
    return config
