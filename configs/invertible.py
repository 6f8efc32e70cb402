"""Does MI make a good representation? Invertible encoders, whose MI can't change: Lee et al. 2023, §IV-B.

python -m mirigor_jax.main --config=configs/invertible.py                                      a laptop: Fashion-MNIST
python -m mirigor_jax.main --config=configs/invertible.py:source=tfds:mnist,scale=paper    30 layers of 512, on MNIST

Should print: InfoNCE rises though the true MI is the same throughout; with it the linear accuracy rises, or falls where
the encoders hide the class from a linear classifier. After Tschannen et al. 2020, section 3.1.
"""

import common
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mirigor_jax.errors import InputError


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: source (a labeled set, as data.source of an image run), scale (laptop or paper), steps, seed."""
    args = common.parse_arg(arg, source="fashion_mnist", scale="laptop", steps=1200, seed=0)
    config = ConfigDict()
    config.kind = "invertible"
    config.source = args.source
    config.size = placeholder(int)  # pixels; None: the set's own
    config.objectives = ("critic", "infonce", "adversarial")  # the encoders as they are; trained; trained to hide, too
    config.layers = 8
    config.hidden = (256, 256)
    if args.scale == "paper":
        config.update({"layers": 30, "hidden": (512, 512)})
    elif args.scale != "laptop":
        raise InputError(f"unknown scale '{args.scale}'; choose laptop or paper")
    config.k = 256
    config.steps = args.steps
    config.record_every = 100
    config.learning_rate = 3e-4
    config.adversarial_weight = 20.0  # nats for all that a linear classifier can tell of the class
    config.ridge = 1.0  # of that classifier
    config.probed = 10_000  # training images that the linear evaluation is fitted to
    config.l2 = (1e-4, 1e-3, 1e-2)
    config.seed = args.seed
    return config
