"""Is InfoNCE an estimator of MI, and what does an anchor class change? After Ryu et al. 2025.

python -m mirigor_jax.main --config=configs/studies/anchor.py                  on a laptop: CDP and Fashion-MNIST
python -m mirigor_jax.main --config=configs/studies/anchor.py:scale=paper      wider encoders, more pairs, more steps

It trains an encoder on CDP images, freezes it, and fits critics to its features of pairs of 1 to 6 bits, and to
Gaussians of the same MI. It should print, at K = 64, that InfoNCE's mean error is several times the anchor's, and that
most of it remains with the true density ratio. Then it trains encoders of Fashion-MNIST with and without the anchor;
their accuracies should be alike.
"""

from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import flatten, load_config
from mirigor_jax.fields import argument
from mirigor_jax.studies.anchor import TRAININGS
from mirigor_jax.studies.anchor_fits import ANCHOR, ESTIMATORS, INFO_NCE

ARGUMENTS = {
    "scale": common.SCALE,
    "bits": argument((1, 2, 3, 4, 5, 6), "True mutual information of the samples.", kind=float, least=0, unit="bits"),
    "k": argument(
        (64, 2048),
        "Pairs in a batch. At the first of them, every estimator is fitted; at the others, InfoNCE and the anchor.",
        least=2,
        unit="pairs",
    ),
    "pairs": argument(
        None, "Pairs that critics are fitted on, of each true MI.", kind=int, least=2, none="the scale's"
    ),
    "images": argument(None, "CDP images that these pairs are drawn from.", kind=int, least=64, none="the scale's"),
    "test": argument(None, "Independent test pairs; half as many validate.", kind=int, least=16, none="the scale's"),
    "steps": argument(None, "Most steps of a fit.", kind=int, least=1, none="the scale's"),
    "seeds": common.seeds(3, "each fit and each training"),
    "train_pairs": common.PAIRS,
}
DIMENSION = 20  # of the Gaussians
ENCODER = "encoder"  # the run that gives the features
# Scale → the defaults of the arguments of this name, and `most`: most pairs in a batch of a fit.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "pairs": 48_000, "images": 8192, "test": 4096, "steps": 2000, "most": 256, "train_pairs": 38_400
    },
    "paper": {
        "pairs": 200_000, "images": 65_536, "test": 16_384, "steps": 10_000, "most": 2048, "train_pairs": None
    },
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """A run that trains an encoder, fits on its features and on Gaussians, and two trainings for each seed."""
    args = common.parse_arg(arg, ARGUMENTS)
    sizes = {name: args.get(name) or usual for name, usual in SCALES[args.scale].items()}
    config = common.study("anchor", args.scale)
    common.on_set(config.run, "fashion", sizes["train_pairs"])
    config.run.data.pairing = "simclr"
    config.run.estimate.extra_pairings = ("class",)
    config.run.estimate.steps = 200  # of the critic of SimCLR pairs, which the question doesn't need
    config.run.evaluate.metrics = False
    config.study.cells = (
        {
            "name": ENCODER,
            "run": _differing(config.run, load_config(f"configs/cdp.py:scale={args.scale}")[0]),
            "tags": _tags("CDP", "the encoder of the fits"),
        },
        *(
            {
                "name": f"fashion-{name}-seed={seed}",
                "run": {"train.objective": objective, "seed": seed},
                "tags": _tags("fashion", words),
            }
            for name, (objective, words) in TRAININGS.items()
            for seed in range(args.seeds)
        ),
    )
    of_data = {
        "Gaussian": {"dimension": DIMENSION},
        "CDP": {"run": ENCODER, "images": sizes["images"]},
    }
    config.study.fits = tuple(
        {
            "name": f"{data}-k={k}-seed={seed}",
            "data": data,
            "bits": tuple(args.bits),
            "estimators": tuple(ESTIMATORS) if k == args.k[0] else (INFO_NCE, ANCHOR),
            "pairs": sizes["pairs"],
            "validation": sizes["test"] // 2,
            "test": sizes["test"],
            "k": k,
            "batch_size": min(k, sizes["most"]),
            "steps": sizes["steps"],
            "seed": seed,
            **own,
        }
        for k in args.k
        for data, own in of_data.items()
        for seed in range(args.seeds)
    )
    return config


def _tags(name: str, words: str) -> dict[str, str]:
    return {"set": name, "case": words}


def _differing(run: ConfigDict, other: ConfigDict) -> dict[str, Any]:
    """The settings by which another run differs from the study's runs."""
    mine = flatten(run)
    return {key: value for key, value in flatten(other).items() if value != mine[key]}
