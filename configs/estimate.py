"""Re-estimate a finished run's encoder, with another pairing, K or sample, without training it again.

python -m mirigor_jax.main --config=configs/estimate.py --config.restore=runs/cdp --config.pairing=color
python -m mirigor_jax.main --config=configs/estimate.py:pairing=all,k_est=1024,seed=1 --config.restore=runs/cdp

The result goes to RUN/estimates/NAME, beside the earlier ones, and into RUN's report.
"""

import common
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: pairing, mi (bits), k_est (K_Est), seed (of images, pairs and critic); what is not given is RUN's."""
    args = common.parse_arg(arg, pairing=str, mi=float, k_est=int, seed=int)
    config = ConfigDict()
    config.kind = "restore"
    config.restore = ""
    config.name = ""  # of the folder in RUN/estimates; made from the arguments when empty
    config.pairing = placeholder(str)
    config.mi = placeholder(float)
    config.k = placeholder(int)
    config.k_curve = placeholder(tuple)  # further K to read the test part at
    config.seed = placeholder(int)
    config.test = placeholder(int)  # pairs
    config.steps = placeholder(int)  # of the critic
    config.stream = placeholder(bool)  # fit on freshly rendered images, with the encoder in the step
    config.checkpoint = placeholder(str)  # last or best
    config.rows = placeholder(str)  # independent: images are independent draws, whatever was found of them
    config.update({"pairing": args.pairing, "mi": args.mi, "k": args.k_est, "seed": args.seed})
    return config
