"""An encoder for any labeled images, and how much of their class it holds: same-class or SimCLR pairs.

python -m mirigor_jax.main --config=configs/images.py                               Fashion-MNIST, H(C) = 3.322 bits
python -m mirigor_jax.main --config=configs/images.py:pairing=simclr                the same set by augmentations alone
python -m mirigor_jax.main --config=configs/images.py:data=tfds:cifar10,size=32     see `labeled` in data/sources/
python -m mirigor_jax.main --config=configs/images.py:data=folder:PATH,size=64
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
    """A run on a labeled set: an encoder is trained on it, and measured by its classes and by augmentations."""
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
