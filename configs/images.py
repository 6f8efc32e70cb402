"""Train an encoder on labeled images, by same-class or SimCLR pairs, and measure how much it knows about their class.

python -m mirigor_jax.main --config=configs/images.py                               Fashion-MNIST, H(C) = 3.322 bits
python -m mirigor_jax.main --config=configs/images.py:pairing=simclr                the same set, by augmentations alone
python -m mirigor_jax.main --config=configs/images.py:data=tfds:cifar10,size=32     a set from TFDS
python -m mirigor_jax.main --config=configs/images.py:data=folder:PATH,size=64         your images: a folder a class
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.settings import of_key

ARGUMENTS = {
    "data": of_key("data.source", "fashion_mnist"),
    "size": of_key("data.size", None),
    "pairing": of_key("data.pairing", "class"),
    "k": of_key("train.k", 128),
    "k_est": of_key("estimate.k", 1024),
    "encoder": of_key("encoder.name"),
    "width": of_key("encoder.width"),
    "steps": of_key("train.steps", 1500),
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """A run that trains an encoder on a labeled set and measures its I_class and I_SimCLR."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.base()
    config.seed = args.seed
    config.data.source = args.data
    config.data.size = args.size
    config.data.pairing = args.pairing
    config.data.augment.update(common.GARMENTS)
    config.update_from_flattened_dict(common.encoder(args.encoder, config))
    config.encoder.width = args.width
    config.train.k = args.k
    config.train.steps = args.steps
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 50
    common.evaluate_images(config, args.k_est)
    return config
