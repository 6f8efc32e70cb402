"""Rank encoders of your own: which holds most information about the classes, and is the difference proven?

python -m mirigor_jax.main --config=configs/rank.py:encoders='FOLDER/*.pth' --config.run.data.source=folder:IMAGES
python -m mirigor_jax.main --config=configs/rank.py:encoders='features:FOLDER/*.npz'    arrays h and labels in each
python -m mirigor_jax.main --config=configs/rank.py:paths=FILE --config.run.data.source=tfds:cifar10

FILE has one line for each encoder, name,path or name,path,layout. The path leads to a checkpoint, or is features:FILE,
or hf:REPO, a model on the Hugging Face Hub. encoders= takes hf:REPO too.
--config.study.sources=FOLDER adds the finished runs of another study, such as quality, if it measured the same images.
It should print every metric of every encoder, with I_class at most H(C), which encoders are proven to hold more usable
information, and how each metric is correlated with linear accuracy. rank.html shows this in a browser: a table that
sorts, a plot of any two metrics, and the proven order. The same command again continues after a stop.
"""

import common
from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.fields import argument
from mirigor_jax.settings import of_key

ARGUMENTS = {
    "encoders": argument(
        None,
        "Checkpoints, models on the Hugging Face Hub as hf:REPO, or files of features as features:PATH; a path may "
        "have * and ? in place of letters.",
        several=True,
        none="those of paths",
    ),
    "paths": common.PATHS,
    "k_est": of_key("estimate.k", 1024),
    "size": of_key("data.size", None),
    "seed": common.SEED,
}


def get_config(arg: str = "") -> ConfigDict:
    """A run for each encoder. All measure the same images. Without encoders and paths there are none."""
    args = common.parse_arg(arg, ARGUMENTS)
    config = common.study("rank", "laptop")
    common.evaluate_images(config.run, args.k_est)
    config.run.seed = args.seed
    config.run.encoder.name = ""  # no encoder is trained
    config.run.data.update({"source": "", "pairing": "class", "size": args.size})
    config.run.evaluate.classes = "class"
    cells = common.found(args.encoders or ())
    named = common.listed(args.paths) if args.paths else {}
    if twice := cells.keys() & named.keys():
        raise InputError(f"{args.paths}: encoders= gives the name '{min(twice)}' too; choose another name")
    config.study.cells = tuple({"name": name, "run": chosen} for name, chosen in (cells | named).items())
    return config
