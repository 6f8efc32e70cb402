"""Does a small training batch limit what the encoder holds? After Lee et al. 2023, Fig. 4: CDP, H(C) = 6 bits.

python -m mirigor_jax.main --config=configs/studies/batch_size.py                28 runs on a laptop
python -m mirigor_jax.main --config=configs/studies/batch_size.py:scale=paper    the paper's widths, every K_Tr
python -m mirigor_jax.main --config=configs/studies/batch_size.py --config.study.only=3/28    the third run alone

It should print an in-training MI below log2(2K-1), and from K = 8 on a post-training MI of about 6 bits and an accuracy
of at least 96 %. At K = 2 both may be lower.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument

ARGUMENTS = {
    "scale": common.SCALE,
    "encoders": common.ENCODERS,
    "k": argument(
        None,
        "Pairs in a training batch, K_Tr.",
        kind=int,
        several=True,
        none="this study's own list at the given scale",
    ),
    "pairs": common.PAIRS,
    "rate": argument(None, "Learning rate.", kind=float, none="chosen by K_Tr: lower for small batches"),
    "seeds": common.seeds(3, "ResNet-18"),
}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each encoder, K_Tr and seed. All runs see the same number of pairs."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("batch_size", args.scale)
    paper = args.scale == "paper"
    batch_sizes = args.k or ((2, 4, 8, 16, 32, 64, 128, 256) if paper else (2, 4, 8, 16, 32, 128, 256))
    pairs = args.pairs or (204_800 if paper else 20_480)  # a multiple of every K_Tr, so all runs see the same number
    rate = {} if args.rate is None else {"train.learning_rate": args.rate}
    config.study.cells = tuple(
        {
            "name": f"{encoder}-k={k}-seed={seed}",
            "run": {**common.encoder(encoder, config.run), "seed": seed, **common.at_batch_size(k, pairs), **rate},
        }
        for encoder in args.encoders
        for k in batch_sizes
        for seed in range(args.seeds if encoder == "resnet18" else 1)
    )
    return config
