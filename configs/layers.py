"""Measure every layer of a finished run's encoder: which one holds most information about the class?

python -m mirigor_jax.main --config=configs/layers.py --config.restore=runs/cdp
python -m mirigor_jax.main --config=configs/layers.py:pairing=color,images=2000 --config.restore=runs/cdp

The images go through the encoder once. For every stage, in the order of depth, it prints I_class (the MI of same-class
pairs) with a certified lower end, usable information (the bits about the class that linear probes can use) with a
certified lower and upper end, NMI and linear accuracy. The results go to RUN/layers, or to --workdir.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults
from mirigor_jax.settings import Layers, of_key

ARGUMENTS = {name: of_key(name, kind=Layers) for name in ("pairing", "images", "seed", "confidence", "rows")}


def get_config(arg: str = "") -> ConfigDict:
    """The measurement of a run's stages. The user must give the run's folder as config.restore."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = defaults("layers")
    config.update(args)
    return config
