"""What can be proven of the encoders of the other studies, where the literature's number cannot be right, and a trap.

python -m mirigor_jax.main --config=configs/studies/certified.py                a laptop
python -m mirigor_jax.main --config=configs/studies/certified.py:scale=paper    of the two studies at scale=paper
python -m mirigor_jax.main --config=configs/studies/certified.py --config.study.sources=FOLDER,FOLDER

Re-estimates every finished run of these folders, and an untrained encoder, at K up to 65,536: RUN/estimates/certified.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument

ARGUMENTS = {
    "scale": common.SCALE,
    "k": argument(65_536, "The largest K_Est, and how many test pairs there are.", least=2, unit="pairs"),
}
CURVE = (64, 256, 1024, 4096, 16_384)


def get_config(arg: str = "") -> ConfigDict:
    """One untrained run, and an estimate of it and of the other studies' runs."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("certified", args.scale)
    suffix = "" if args.scale == "laptop" else f"-scale={args.scale}"
    config.study.sources = f"runs/studies-batch_size{suffix},runs/studies-infomin_tasks{suffix}"
    config.study.cells = ({"name": "untrained", "run": {"train.steps": 0}},)
    curve = tuple(k for k in CURVE if k < args.k)
    config.study.estimates = ({"name": "certified", "k": args.k, "test": args.k, "k_curve": curve},)
    return config
