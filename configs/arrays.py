"""Mutual information of two arrays: several estimators side by side, in one table and one picture.

python -m mirigor_jax.main --config=configs/arrays.py --config.x=x.npy --config.y=y.npy
python -m mirigor_jax.main --config=configs/arrays.py:seeds=3,estimators=nwj+anchor --config.x=x.csv --config.y=y.csv
python -m mirigor_jax.main --config=configs/arrays.py --config.x=h.npz:features --config.labels=h.npz:labels

Prints each estimator's value in bits, whether it is a bound, its interval and what is certified of I(X;Y); with
labels instead of y, the same of I(h_X;h_Y) for two samples of one class.
"""

import common
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Bounds and estimators that are none, to be seen side by side.
ESTIMATORS = ("info_nce_symmetric", "nwj", "js_nwj", "mine", "smile", "anchor")


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: estimators (joined by +), critic, k (pairs a batch in the test), steps, seeds (how many), seed."""
    args = common.parse_arg(arg, estimators="+".join(ESTIMATORS), critic="joint", k=int, steps=int, seeds=1, seed=0)
    config = ConfigDict()
    config.kind = "arrays"
    # Paths of .npy, .npz (PATH:NAME for one array of several) or .csv files, a row a sample; y or labels.
    config.x = placeholder(str)
    config.y = placeholder(str)
    config.labels = placeholder(str)
    config.estimators = tuple(args.estimators.split("+"))
    config.critic = args.critic
    config.k = placeholder(int)
    config.batch_size = 64
    config.steps = placeholder(int)
    config.seeds = args.seeds
    config.seed = args.seed
    config.confidence = 0.95
    config.rows = "checked"  # or "independent", to state that they are
    config.k, config.steps = args.k, args.steps  # None: the library's own choice
    return config
