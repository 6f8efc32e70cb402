"""How much MI can be certified, when is the NT-Xent estimate proven wrong, and what do reused test images "prove"?

python -m mirigor_jax.main --config=configs/studies/certified.py                batch_size and infomin_tasks
python -m mirigor_jax.main --config=configs/studies/certified.py:scale=paper    the same two, run at scale=paper
python -m mirigor_jax.main --config=configs/studies/certified.py --config.study.sources=FOLDER,FOLDER

Re-estimates every finished run of the studies batch_size and infomin_tasks, and an untrained encoder, at K up to
65,536. Run these two studies first. The results go to RUN/estimates/certified.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.fields import argument

ARGUMENTS = {
    "scale": common.SCALE,
    "k": argument(65_536, "Largest K_Est, which is also the number of test pairs.", least=2, unit="pairs"),
}
CURVE = (64, 256, 1024, 4096, 16_384)


def get_config(arg: str = "") -> ConfigDict:
    """One run with an untrained encoder, and an estimate for it and for each finished run of the other studies."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("certified", args.scale)
    suffix = "" if args.scale == "laptop" else f"-scale={args.scale}"
    config.study.sources = f"runs/studies-batch_size{suffix},runs/studies-infomin_tasks{suffix}"
    config.study.cells = ({"name": "untrained", "run": {"train.steps": 0}},)
    curve = tuple(k for k in CURVE if k < args.k)
    config.study.estimates = ({"name": "certified", "k": args.k, "test": args.k, "k_curve": curve},)
    return config
