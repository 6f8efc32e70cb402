"""Train and measure an encoder on images of binary patches: the two views share all bits, ten by default.

python -m mirigor_jax.main --config=configs/patches.py                 10 bits
python -m mirigor_jax.main --config=configs/patches.py:bits=16         16 bits
python -m mirigor_jax.main --config=configs/patches.py:mi=5            5 bits: every bit passes a noisy channel
python -m mirigor_jax.main --config=configs/patches.py:pairing=b1+b2   2 bits

Of more than 64 classes, each bit has a linear probe of its own, and the class posterior is their product.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.settings import of_key

ARGUMENTS = {
    "bits": of_key("data.patches.bits"),
    "pairing": of_key("data.pairing"),
    "mi": of_key("data.mi"),
    "k": of_key("train.k", 256),
    "encoder": of_key("encoder.name"),
    "size": of_key("data.size", 32),
    "scale": common.SCALE,
    "k_est": of_key("estimate.k"),
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """A run on images of patches, by InfoNCE alone: NT-Xent's critic needs images of each of 2^bits classes."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.base()
    config.seed = args.seed
    config.data.source = "patches"
    config.data.size = args.size
    config.data.patches.bits = args.bits
    config.data.pairing = args.pairing
    config.data.mi = args.mi
    config.features.update({"fit": 4096, "validation": 4096, "test": 8192})
    config.estimate.k = args.k_est
    config.estimate.estimators = ("info_nce_symmetric",)
    config.update_from_flattened_dict(common.at_scale(args.scale))
    config.update_from_flattened_dict(common.encoder(args.encoder, config))
    pairs = max(40_000, 150 * args.k) * (10 if args.scale == "paper" else 1)
    config.update_from_flattened_dict(common.at_batch_size(args.k, pairs))
    return config
