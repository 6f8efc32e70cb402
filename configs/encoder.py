"""Measure how much a public checkpoint, or features of your own, know about the classes of a labeled set.

python -m mirigor_jax.main --config=configs/encoder.py --config.encoder.path=X.pth --config.data.source=tfds:cifar10
python -m mirigor_jax.main --config=configs/encoder.py:size=224 --config.encoder.path=X --config.data.source=folder:PATH
python -m mirigor_jax.main --config=configs/encoder.py --config.data.source=features:FILE.npz    arrays h and labels
python -m mirigor_jax.main --config=configs/encoder.py:pairing=simclr …    pairs by augmentation instead of class

Prints I_class, the MI of same-class pairs (or I_SimCLR, that of two augmentations), with its certificate, alignment,
uniformity, tolerance, contrastive loss, and accuracies.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.settings import of_key

ARGUMENTS = {
    "pairing": of_key("data.pairing", "class"),
    "k_est": of_key("estimate.k", 1024),
    "size": of_key("data.size", None),
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """A run without training. The user must give config.encoder.path, or features as config.data.source."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.base()
    config.seed = args.seed
    config.data.source = ""
    config.encoder.name = ""  # no encoder is trained
    config.data.size = args.size
    config.data.pairing = args.pairing
    common.evaluate_images(config, args.k_est)
    return config
