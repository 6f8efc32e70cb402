"""Do estimators of I(e(X);Y) follow the noise of the images? After Gosch 2020, appendix D.1, Tables 6 and 7.

python -m mirigor_jax.main --config=configs/studies/label_noise.py                        a laptop: narrow critics
python -m mirigor_jax.main --config=configs/studies/label_noise.py:shares=0,epochs=64     four times the training
python -m mirigor_jax.main --config=configs/studies/label_noise.py:scale=paper            critics of width 512

It trains a LeNet-5 at each share of noisy pixels, and critics of each layer and the label. It should print values near
the usable information of the layer without noise, and near 0 if all pixels are noise.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument
from mirigor_jax.settings import Invertible, of_key

# Scale → the keys of every fit, and the default of `shares`. The paper does not say how large its batches were.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "shares": (0.0, 0.5, 1.0), "train_images": 20_000, "train_k": 32, "train_steps": 300, "train_rate": 2e-3,
        "images": 8000, "width": 256, "k": 128, "rate": 5e-4, "epochs": 16, "mlp_steps": 200,
    },
    "paper": {
        "shares": tuple(i / 10 for i in range(11)), "train_images": 30_000, "train_k": 32, "train_steps": 23_438,
        "train_rate": 5e-4, "images": 40_000, "width": 512, "k": 128, "rate": 1e-4, "epochs": 200, "mlp_steps": 20_000,
    },
}  # fmt: skip
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Images, critics and epochs: a laptop's, or the paper's."),
    "shares": argument(None, "Shares of noisy pixels.", kind=float, several=True, least=0, most=1, none="the scale's"),
    "seeds": common.seeds(3, "each share"),
    "epochs": argument(None, "Epochs of the critics' training.", kind=int, least=1, none="the scale's"),
    "source": replace(of_key("source", kind=Invertible), key=""),
}


def get_config(arg: str = "") -> ConfigDict:
    """A fit for each share of noise and each seed. A laptop measures an MLP's usable information at share 0 only."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("label_noise", args.scale)
    own = dict(SCALES[args.scale])
    usual = own.pop("shares")
    shares = usual if args.shares is None else args.shares
    own["epochs"] = own["epochs"] if args.epochs is None else args.epochs
    for name, value in (("shares", tuple(shares)), ("epochs", own["epochs"])):
        ARGUMENTS[name].check(name, value)
    config.study.fits = tuple(
        {
            "name": f"share={share:g}-seed={seed}",
            "source": args.source,
            "size": 28,
            "share": share,
            "seed": seed,
            "families": ("linear", "mlp") if args.scale == "paper" or share == 0 else ("linear",),
            **own,
        }
        for seed in range(args.seeds)
        for share in shares
    )
    return config
