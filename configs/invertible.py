"""Does MI make a good representation? Train invertible encoders, which can't change the MI: Lee et al. 2023, §IV-B.

python -m mirigor_jax.main --config=configs/invertible.py                                      a laptop: Fashion-MNIST
python -m mirigor_jax.main --config=configs/invertible.py:source=tfds:mnist,scale=paper    30 layers of 512, on MNIST

It should print an InfoNCE estimate that rises, though the true MI is the same throughout. Linear accuracy and usable
information rise with it, but fall if the encoders are trained to hide the class from a linear classifier. Unlike the
MI, both can change under an invertible map. After Tschannen et al. 2020, section 3.1.
"""

from dataclasses import replace

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults
from mirigor_jax.settings import Invertible, of_key

ARGUMENTS = {
    "source": of_key("source", kind=Invertible),
    "scale": replace(common.SCALE, meaning="Coupling layers: a laptop's 8 of width 256, or the paper's 30 of 512."),
    "steps": of_key("steps", kind=Invertible),
    "seed": of_key("seed", kind=Invertible),
}


def get_config(arg: str = "") -> ConfigDict:
    """A run that trains invertible encoders by each of three objectives."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = defaults("invertible")
    config.source = args.source
    config.steps = args.steps
    config.seed = args.seed
    if args.scale == "paper":
        config.layers = 30
        config.hidden = (512, 512)
    return config
