"""CDP, all three attributes shared: H(C) = 6 bits.

python -m mirigor_jax.main --config=configs/cdp.py                     3 minutes on 2 cores: I >= 5.9 of 6 bits
python -m mirigor_jax.main --config=configs/cdp.py:pairing=color       2 bits; also digit, position, color+digit, none
python -m mirigor_jax.main --config=configs/cdp.py:mi=3.3              3.3 bits, by one symmetric channel an attribute
python -m mirigor_jax.main --config=configs/cdp.py:k=2                 in-training <= log2(3) bits, post-training 6
python -m mirigor_jax.main --config=configs/cdp.py:encoder=resnet50,scale=paper    the paper's, for accelerators
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: pairing, mi (bits), k (K_Tr), k_est (K_Est), encoder, size, seed, scale (laptop or paper)."""
    args = common.parse_arg(
        arg, pairing="all", mi=float, k=64, k_est=2048, encoder="resnet18", size=64, seed=0, scale="laptop"
    )
    config = common.base()
    config.seed = args.seed
    config.data.size = args.size
    config.data.pairing = args.pairing
    config.data.mi = args.mi
    config.encoder.name = args.encoder
    config.train.k = args.k
    config.estimate.k = args.k_est
    # Every K_Tr up to 200 sees the same 20,000 pairs or so; small batches take a smaller rate.
    config.train.steps = max(100, 20_000 // max(args.k, 1))
    config.train.checkpoint_every = max(50, config.train.steps // 20)
    config.train.learning_rate = 5e-4 if args.k < 16 else 4e-3
    if args.scale == "paper":
        config.encoder.width = 64
        config.head.hidden = (512,)
        config.head.features = 128
        config.train.steps *= 10
    elif args.scale != "laptop":
        raise InputError(f"unknown scale '{args.scale}'; choose laptop or paper")
    return config
