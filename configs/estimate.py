"""Measure the encoder of a finished run again, with another pairing, K or sample, without training it again.

python -m mirigor_jax.main --config=configs/estimate.py --config.restore=runs/cdp --config.pairing=color
python -m mirigor_jax.main --config=configs/estimate.py:pairing=all,k_est=1024,seed=1 --config.restore=runs/cdp

The result goes to RUN/estimates/NAME, beside the earlier estimates, and into RUN's report.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults
from mirigor_jax.settings import Restore, of_key

ARGUMENTS = {
    "pairing": of_key("pairing", kind=Restore),
    "mi": of_key("mi", kind=Restore),
    "k_est": of_key("k", kind=Restore),
    "seed": of_key("seed", kind=Restore),
}


def get_config(arg: str = "") -> ConfigDict:
    """The settings that differ from the run's. The user must give the run's folder as config.restore."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = defaults("restore")
    config.update({"pairing": args.pairing, "mi": args.mi, "k": args.k_est, "seed": args.seed})
    return config
