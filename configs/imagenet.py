"""ImageNet by SimCLR's augmentations: ResNet-50 at 224², K_Tr = 1,024, for accelerators.

python -m mirigor_jax.plan --config=configs/imagenet.py --topology=v5e:2x2    fits it, and how fast? No data needed
python -m mirigor_jax.main --config=configs/imagenet.py                       TFDS's imagenet2012, which you download
python -m mirigor_jax.main --config=configs/imagenet.py:pairing=class         same-class pairs, H(C) = 9.97 bits
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Arguments: pairing, k (K_Tr), k_est (K_Est), encoder, size, seed."""
    args = common.parse_arg(arg, pairing="simclr", k=1024, k_est=4096, encoder="resnet50", size=224, seed=0)
    config = common.base()
    common.on_set(config, "imagenet1k")
    config.update_from_flattened_dict(common.at_scale("paper"))
    config.update_from_flattened_dict(common.at_batch_size(args.k, 100 * 1_281_167))
    config.train.learning_rate = 1e-3 * args.k / 1024
    config.seed = args.seed
    config.data.pairing = args.pairing
    config.data.size = args.size
    config.update_from_flattened_dict(common.encoder(args.encoder, config))
    config.features.fit, config.features.validation = 100_000, 10_000  # of the training images; tested on all of TFDS's
    config.estimate.k = args.k_est
    return config
