"""What do estimates and certificates say as images become harder to read? CDP with background, clutter, blur and noise.

python -m mirigor_jax.main --config=configs/studies/nuisance.py                22 runs on a laptop, images of 32 pixels
python -m mirigor_jax.main --config=configs/studies/nuisance.py:seeds=3        three seeds of each
python -m mirigor_jax.main --config=configs/studies/nuisance.py:scale=paper    the paper's widths, images of 64 pixels

Trains an encoder for each nuisance and strength, on images of that strength, and measures it on such images. The pairs
share color, digit and position, 6 bits, at every strength. No certified end may pass them; an estimate may.
"""

from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument
from mirigor_jax.studies.nuisance import NONE

# Scale → its settings: the images' side, pairs of the training, and steps of the critics of NWJ and the anchor.
SIZES: dict[str, dict[str, int]] = {
    "laptop": {"side": 32, "pairs": 6400, "steps": 500, "images": 2048},
    "paper": {"side": 64, "pairs": 204_800, "steps": 3000, "images": 8192},
}
ARGUMENTS = {
    "scale": common.SCALE,
    "nuisances": argument(("mixing", "clutter", "blur", "noise", "jitter"), "Nuisances, as settings of data.cdp."),
    "strengths": argument((0.25, 0.5, 0.75, 1.0), "Strengths of each nuisance besides 0.", above=0, most=1),
    "pairs": common.PAIRS,
    "seeds": common.seeds(1),
}


def get_config(arg: str = "") -> ConfigDict:
    """A run and a fit for each nuisance, strength and seed, and for images without any of them but the background."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("nuisance", args.scale)
    ARGUMENTS["strengths"].check("strengths", tuple(args.strengths))
    own = SIZES[args.scale]
    config.run.data.size = own["side"]
    if args.scale == "laptop":
        config.run.features.update({"fit": 4096, "validation": 1024, "test": 4096})
        config.run.estimate.update({"steps": 200, "k_curve": (64, 256)})
    training = common.at_batch_size(64, args.pairs or own["pairs"])
    cells: list[tuple[str, float, dict[str, Any]]] = [(NONE, 0.0, {})]
    for nuisance in args.nuisances:
        # The background's weight is not 0 without a nuisance, so it alone has runs at 0.
        strengths = (0.0, *args.strengths) if config.run.data.cdp[nuisance] else args.strengths
        cells += [(nuisance, strength, {f"data.cdp.{nuisance}": strength}) for strength in strengths]
    named = [
        (NONE if nuisance == NONE else f"{nuisance}={strength:g}", nuisance, strength, settings)
        for nuisance, strength, settings in cells
    ]
    config.study.cells = tuple(
        {"name": f"{name}-seed={seed}", "run": {"seed": seed, **training, **settings}}
        for name, _, _, settings in named
        for seed in range(args.seeds)
    )
    config.study.fits = tuple(
        {
            "name": f"{name}-seed={seed}",
            "run": f"{name}-seed={seed}",
            "nuisance": nuisance,
            "strength": strength,
            "seed": seed,
            "steps": own["steps"],
            "images": own["images"],
        }
        for name, nuisance, strength, _ in named
        for seed in range(args.seeds)
    )
    return config
