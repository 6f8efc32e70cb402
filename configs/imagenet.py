"""Train ResNet-50 on ImageNet with SimCLR's augmentations, at 224² with 1,024 pairs a batch, on accelerators.

python -m mirigor_jax.plan --config=configs/imagenet.py --topology=v5e:2x2    does it fit, how fast is it? Reads no data
python -m mirigor_jax.main --config=configs/imagenet.py                       you must download TFDS's imagenet2012
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
    """A run on ImageNet, with a learning rate in proportion to the batch."""
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
    # Both are drawn from the training images; the test images are all of TFDS's validation split.
    config.features.fit, config.features.validation = 100_000, 10_000
    config.estimate.k = args.k_est
    return config
