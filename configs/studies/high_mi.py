"""What do estimators show at 2.5 to 30 nats? After Gosch 2020, section 3, Figs. 1-3 and 10-13.

python -m mirigor_jax.main --config=configs/studies/high_mi.py                        a laptop: layers of 64
python -m mirigor_jax.main --config=configs/studies/high_mi.py:scale=paper            layers of 512, 1,000 epochs

It should print NWJ values near log N at 30 nats if negatives come from a random permutation, and from N = 256 on values
above log N if no negative is a positive pair. mi.estimate should stay below its ceiling, and its certified lower end
below the truth.
"""

from dataclasses import replace
from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import defaults, did_you_mean
from mirigor_jax.errors import InputError
from mirigor_jax.fields import argument
from mirigor_jax.settings import HighMi, of_key

TOP = 30.0  # nats
JS = ("js", "js_nwj", "nwj")
REGULARIZED = {"dropout": (0.5, 0.3, 0.2), "weight_decay": 2.5e-5}
RATES = (1e-4, 2.5e-4, 5e-4)
ARGUMENTS = {
    "scale": replace(common.SCALE, meaning="Critics, batches and epochs: a laptop's, or the paper's."),
    "only": argument(None, "Names of the trainings to make.", kind=str, several=True, none="all of the scale"),
    "seed": of_key("seed", kind=HighMi),
}


def get_config(arg: str = "") -> ConfigDict:
    """A training for each estimator, batch size, kind of negatives and critic."""
    args = common.parse_arg(arg, ARGUMENTS)
    common.at_scale(args.scale)
    config = defaults("high_mi")
    config.seed = args.seed
    cells = _laptop() if args.scale == "laptop" else _paper()
    chosen = args.only or tuple(cells)
    if unknown := set(chosen) - cells.keys():
        raise InputError(
            f"only={min(unknown)}: no training of {args.scale} scale; {did_you_mean(min(unknown), [*cells])}"
        )
    config.study.cells = tuple({"name": name, "run": cells[name]} for name in chosen)
    config.run.update({"seeds": 3} if args.scale == "laptop" else {"epochs": 1000})
    return config


def _laptop() -> dict[str, dict[str, Any]]:
    """Cells at one rate. Critics have one hidden layer of 64, regularized ones three, and wide ones two of 128."""

    mine = {"estimator": "mine", "levels": (2.5, 5.0, 10.0, TOP)}
    js = {"estimator": "js", "readers": JS}
    deep = {"hidden": (64, 64, 64), "levels": (2.5, 10.0, 20.0, TOP), "epochs": 60}
    every = {"negatives": "in-batch", "k": 64, "levels": (2.5, 10.0, TOP), "epochs": 12}
    one = {"levels": (TOP,)}
    return {
        **{f"nwj-shuffle-{k}": one | {"k": k, "epochs": 120, "doublings": 1} for k in (64, 128, 256, 512, 1024)},
        **{f"nwj-derange-{k}": one | {"k": k, "negatives": "derange"} for k in (64, 256, 1024)},
        **{f"mine-shuffle-{k}": mine | {"k": k} for k in (64, 256, 1024)},
        "js-shuffle-levels": js | {"levels": (2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 20.0, TOP)},
        "nwj-in-batch": every,
        "mine-in-batch": every | {"estimator": "mine"},
        "js-in-batch": every | js,
        "js-shuffle-regularized": js | deep | REGULARIZED,
        "nwj-shuffle-levels": {"seeds": 1},
        "nwj-derange-levels": {"negatives": "derange", "seeds": 1},
        "mine-shuffle-wide-64": mine | one | {"k": 64, "hidden": (128, 128), "epochs": 40},
    }


def _paper() -> dict[str, dict[str, Any]]:
    """Cells of the paper's Figs. 1 to 3 and 10 to 13, with derangements beside its permutations."""
    wide, small = {"hidden": (512, 512)}, {"hidden": (64,)}
    mine = {"estimator": "mine", "learning_rate": 1e-4}
    js = {"estimator": "js", "readers": JS}
    cells: dict[str, dict[str, Any]] = {}
    for activation in ("elu", "relu"):
        for negatives in ("shuffle", "derange"):
            both = {"activation": activation, "negatives": negatives}
            end = f"{negatives}-{activation}"
            for k in (1024, 256, 32_768):
                cells[f"fig1-mine-{k}-{end}"] = mine | wide | both | {"k": k}
            cells[f"fig1d-mine-512-{end}"] = mine | small | both
            for rate in RATES:
                at = both | {"learning_rate": rate}
                cells[f"fig2a-nwj-512-{rate:g}-{end}"] = wide | at
                cells[f"fig3-js-512-{rate:g}-{end}"] = js | small | at
                cells[f"fig3-js-regularized-{rate:g}-{end}"] = js | {"hidden": (512, 512, 512)} | REGULARIZED | at
                cells[f"fig13-js-512-{rate:g}-{end}"] = js | wide | at
            for power in range(6, 16):
                one = {"k": 2**power, "levels": (TOP,), "seeds": 3}
                cells[f"fig2b-nwj-{2**power}-{end}"] = wide | both | one
        for name, critic in (("64", small), ("512-512", wide)):
            every = {"negatives": "in-batch", "k": 64, "activation": activation, "learning_rate": 1e-4}
            cells[f"fig10-mine-{name}-{activation}"] = mine | critic | every
            cells[f"fig11-nwj-{name}-{activation}"] = critic | every
            cells[f"fig12-js-{name}-{activation}"] = js | critic | every
        deep = {"hidden": (1024, 1024, 1024), "levels": (2.5,), "seeds": 3, "activation": activation}
        cells[f"footnote7-nwj-{activation}"] = deep
    return cells
