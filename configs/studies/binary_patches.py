"""What do estimators, critics and the certificate show of 2 to 10 known bits? After the benchmark of Lee & Rhee 2024.

python -m mirigor_jax.main --config=configs/studies/binary_patches.py                on a laptop: 32 pixels
python -m mirigor_jax.main --config=configs/studies/binary_patches.py:scale=paper    the paper's encoder, 64 pixels

It trains an encoder for each number of bits, on images of binary patches, and reads InfoNCE at K from 64 to 65,536. The
certified end should stay within 0.15 bits of the truth, and InfoNCE below log2 K. Then it fits critics of four kinds
and several widths to the same pairs by InfoNCE, NWJ and the anchor, without the classes.
"""

from typing import Any

import common
from ml_collections import ConfigDict

from mirigor_jax.config_files import flatten, load_config
from mirigor_jax.fields import argument

ARGUMENTS = {
    "scale": common.SCALE,
    "bits": argument((2, 4, 6, 8, 10), "Bits that the views of each run share.", least=1, most=16),
    "k": argument((64, 256, 1024, 4096, 16_384, 65_536), "Pairs a batch at which InfoNCE is read.", least=2),
    "widths": argument(None, "Widths of the critics.", kind=int, several=True, least=1, none="the scale's"),
    "steps": argument(None, "Largest number of steps of the critics.", kind=int, least=1, none="the scale's"),
    "seeds": common.seeds(1),
}
# Scale → what the critics are fitted to, and how.
CRITICS: dict[str, dict[str, Any]] = {
    "laptop": {"pairs": 8192, "steps": 1000, "widths": (16, 64)},
    "paper": {"pairs": 32_768, "steps": 5000, "widths": (64, 256, 1024)},
}
FIT = 12_288  # images, so that NT-Xent's critic finds images of each of 1,024 classes


def get_config(arg: str = "") -> ConfigDict:
    """A run and a fit for each number of bits and each seed; the test part is as large as the largest batch."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("patches", args.scale)
    size = 64 if args.scale == "paper" else 32
    run, _ = load_config(f"configs/patches.py:scale={args.scale},size={size},k_est={max(args.k)}")
    config.run.update_from_flattened_dict(flatten(run))
    config.run.estimate.estimators = ("info_nce_symmetric", "nt_xent")
    config.run.estimate.k_curve = tuple(k for k in args.k if k < max(args.k))
    config.run.features.update({"fit": FIT, "test": max(args.k)})
    config.study.cells = tuple(
        {"name": f"bits={bits}-seed={seed}", "run": {"data.patches.bits": bits, "seed": seed}, "tags": {}}
        for bits in args.bits
        for seed in range(args.seeds)
    )
    critics = CRITICS[args.scale]
    critics |= {"widths": tuple(args.widths or critics["widths"]), "steps": args.steps or critics["steps"]}
    config.study.fits = tuple({"name": cell["name"], "run": cell["name"], **critics} for cell in config.study.cells)
    return config
