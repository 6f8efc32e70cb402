"""Mutual information of two arrays: several estimators side by side, in one table and one picture.

python -m mirigor_jax.main --config=configs/arrays.py --config.x=x.npy --config.y=y.npy
python -m mirigor_jax.main --config=configs/arrays.py:seeds=3,estimators=nwj+anchor --config.x=x.csv --config.y=y.csv
python -m mirigor_jax.main --config=configs/arrays.py --config.x=h.npz:features --config.labels=h.npz:labels

Prints each estimator's value in bits, its interval, whether it is a bound, and the certified lower end of I(X;Y). With
labels instead of y it measures I(h_X;h_Y) of two samples of one class.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults
from mirigor_jax.settings import Arrays, of_key

ARGUMENTS = {name: of_key(name, kind=Arrays) for name in ("estimators", "critic", "k", "steps", "seeds", "seed")}


def get_config(arg: str = "") -> ConfigDict:
    """A measurement of two arrays. The user must give config.x, and config.y or config.labels."""
    config = defaults("arrays")
    config.update(common.parse_arg(arg, ARGUMENTS))
    return config
