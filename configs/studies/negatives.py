"""Must negatives come from the data? SimCLR with negatives from elsewhere: Lee et al. 2023, appendix C and Table X.

python -m mirigor_jax.main --config=configs/studies/negatives.py              12 runs on a laptop, half of Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/negatives.py:set=cifar10,others=PATH+PATH             Table X (a)
python -m mirigor_jax.main --config=configs/studies/negatives.py:set=cifar100,others=PATH+PATH            Table X (b)

Positive pairs come from D, the first half of the set's classes; `others` are folders of images, such as PACS's four. It
should print the linear accuracy on D for each source of negatives. In the paper, the other half of the classes is the
best source.
"""

from pathlib import Path

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument
from mirigor_jax.settings import of_key
from mirigor_jax.studies.negatives import NEGATIVES

ARGUMENTS = {
    "set": common.SET,
    "others": argument(None, "Folders of images that negatives are drawn from too.", several=True, none="no others"),
    "encoder": of_key("encoder.name"),
    "pairs": common.PAIRS,
    "seeds": common.seeds(2),
}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each source of negatives and each seed."""
    args = common.parse_arg(arg, ARGUMENTS)
    laptop = args.set == "fashion"
    config = common.study("negatives", "laptop" if laptop else "paper")
    common.on_set(config.run, args.set, args.pairs or (38_400 if laptop else None))
    config.run.update_from_flattened_dict(common.encoder(args.encoder, config.run))
    config.run.data.size = 32  # every source of negatives, CDP images too, can have this size
    config.run.data.pairing = "simclr"
    config.run.data.classes = "first-half"
    config.run.estimate.extra_pairings = ("class",)
    config.run.evaluate.metrics = False
    others = {Path(path).name: (f"folder:{path}", Path(path).name) for path in args.others or ()}
    config.study.cells = tuple(
        {
            "name": f"{args.set}-{name}-seed={seed}",
            "run": {"data.negatives": spec, "seed": seed},
            "tags": {"set": args.set, "case": title},
        }
        for name, (spec, title) in (NEGATIVES | others).items()
        for seed in range(args.seeds)
    )
    return config
