"""ImageNet by SimCLR's augmentations: ResNet-50 at 224², K_Tr = 1,024, for accelerators.

python -m mirigor_jax.plan --config=configs/imagenet.py --topology=v5e:2x2    fits it, and how fast? No data needed
python -m mirigor_jax.main --config=configs/imagenet.py                       TFDS's imagenet2012, which you download
python -m mirigor_jax.main --config=configs/imagenet.py:pairing=class         same-class pairs, H(C) = 9.97 bits
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.settings import of_key

ARGUMENTS = {
    "pairing": of_key("data.pairing", "simclr"),
    "k": of_key("train.k", 1024),
    "k_est": of_key("estimate.k", 4096),
    "encoder": of_key("encoder.name", "resnet50"),
    "size": of_key("data.size", 224),
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """The run; its rate grows with the batch."""
    args = common.parse_arg(arg, ARGUMENTS)
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
