"""Must the decoder of an autoencoder be of the family that will read the representation? After Gosch 2020, section 5.1.

python -m mirigor_jax.main --config=configs/studies/v_infomax.py                    on a laptop: Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/v_infomax.py:scale=paper        MNIST by TFDS
python -m mirigor_jax.main --config=configs/studies/v_infomax.py:encoders=ResNet-18    with scale=paper, CIFAR-10

It trains encoders to hold Gaussian V-information of images for a linear and for a non-linear decoder, in turn with the
decoder and jointly, and measures what linear and non-linear probes find in them. By the paper, the decoder of a probe's
own family should give the encoder that this probe reads best, and the non-linear decoder the lower error.
"""

from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.fields import argument
from mirigor_jax.studies.v_infomax_fits import DECODERS, SETUPS

ARGUMENTS = {
    "scale": common.SCALE,
    "encoders": argument(("MLP",), "Encoders to train: MLP, ResNet-18, or both by MLP+ResNet-18."),
    "images": argument(None, "Training images.", kind=int, least=128, none="the scale's"),
    "epochs": argument(
        None, "Epochs of each training; its encoder is measured after a quarter and after all.", kind=int, least=4,
        none="the scale's",
    ),
    "seeds": common.seeds(3, "each training"),
}  # fmt: skip
# Scale → what its trainings of an encoder share, and the epochs of each scheme.
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "laptop": {
        "MLP": {
            "source": "fashion_mnist", "size": 28, "images": 5000, "validation": 2000, "test": 5000,
            "probe_steps": 500, "pretraining": 16, "epochs": {"joint": 48, "alternating": 48},
        },
        "ResNet-18": {
            "source": "fashion_mnist", "size": 28, "images": 2000, "validation": 1000, "test": 4000,
            "probe_steps": 500, "pretraining": 0, "epochs": {"joint": 32}, "width": 8, "stem": "imagenet",
        },
    },
    "paper": {
        "MLP": {
            "source": "tfds:mnist", "size": 28, "images": 54_000, "validation": 6000, "test": 10_000,
            "probe_steps": 20_000, "pretraining": 150, "epochs": {"alternating": 400, "joint": 400},
        },
        "ResNet-18": {
            "source": "tfds:cifar10", "size": 32, "images": 45_000, "validation": 5000, "test": 10_000,
            "probe_steps": 20_000, "pretraining": 200, "epochs": {"alternating": 50}, "width": 64, "stem": "cifar",
        },
    },
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """A training for each encoder, scheme, decoder and seed; for each encoder and seed random weights; the pixels."""
    args = common.parse_arg(arg, ARGUMENTS)
    common.at_scale(args.scale)
    config = common.study("v_infomax", args.scale)
    # A fit of the MLP family takes longer than a training on a laptop.
    families = ("linear", "mlp") if args.scale == "paper" else ("linear",)
    fits: list[dict[str, Any]] = []
    if unknown := set(args.encoders) - SETUPS.keys():
        raise InputError(f"encoders={min(unknown)}: expected {' or '.join(SETUPS)}")
    for encoder in args.encoders:
        sizes = SCALES[args.scale][encoder]
        given = {key: value for key, value in sizes.items() if key not in ("epochs", "pretraining")}
        given["images"] = args.images or sizes["images"]
        if not fits:
            fits.append({"name": "pixels", "encoder": "pixels", **given, "seed": 0, "families": ()})
        for seed in range(args.seeds):
            shared = {"encoder": encoder, **given, "seed": seed}
            fits.append({"name": f"{encoder}-random-seed={seed}", **shared, "families": families})
            for scheme, usual in sizes["epochs"].items():
                epochs = args.epochs or usual
                own = {"scheme": scheme, "pretraining": sizes["pretraining"], "epochs": epochs}
                own["measured"] = (epochs // 4, epochs)
                own["families"] = families
                fits += [
                    {"name": f"{encoder}-{scheme}-{decoder}-seed={seed}", "decoder": decoder, **own, **shared}
                    for decoder in DECODERS
                ]
    config.study.fits = tuple(fits)
    return config
