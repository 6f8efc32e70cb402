"""An encoder for any labeled images, and how much of their class it holds: same-class or SimCLR pairs.

python -m mirigor_jax.main --config=configs/images.py                               Fashion-MNIST, H(C) = 3.322 bits
python -m mirigor_jax.main --config=configs/images.py:pairing=simclr                the same set by augmentations alone
python -m mirigor_jax.main --config=configs/images.py:data=tfds:cifar10,size=32     see `labeled` in data/sources/
python -m mirigor_jax.main --config=configs/images.py:data=folder:PATH,size=64
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: data, size (pixels), pairing, k (K_Tr), k_est (K_Est), encoder, width, steps, seed."""
    args = common.parse_arg(
        arg,
        data="fashion_mnist",
        size=int,
        pairing="class",
        k=128,
        k_est=1024,
        encoder="resnet18",
        width=int,
        steps=1500,
        seed=0,
    )
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
