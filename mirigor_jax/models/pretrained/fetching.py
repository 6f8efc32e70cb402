"""The file of a checkpoint: a path, or the weights of a model on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from mirigor_jax import hub
from mirigor_jax.errors import InputError
from mirigor_jax.files import local_path

INDEX = ".index.json"
CONFIGS = ("config.json", "preprocessor_config.json")  # which say how a model's images are normalized
# Endings of the files of weights, the best first: the first kind that a repository has is taken. In each kind, the file
# that timm and transformers read is taken; else there must be one.
KINDS = (
    (r"\.safetensors", "model.safetensors"),
    (rf"\.safetensors{re.escape(INDEX)}", f"model.safetensors{INDEX}"),
    (r"\.bin|\.pth?|\.ckpt|\.npz", "pytorch_model.bin"),
    (rf"\.bin{re.escape(INDEX)}", f"pytorch_model.bin{INDEX}"),
)
SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
STATES = re.compile(r"(?:.*/)?(?:optimizer|scheduler|scaler|training_args|rng_state\w*)\.\w+")  # of a trainer


def checkpoint(path: str | Path) -> Path:
    """The local file of a checkpoint.

    path: a path; or hf:OWNER/NAME of a model on the Hub, hf:OWNER/NAME@REVISION, hf:OWNER/NAME:FILE for one file of
        several. Its files are downloaded into huggingface_hub's cache, with the configs beside them.
    Raises InputError as `hub.repository` does, and if the model has no file of weights or several.
    """
    name = os.fspath(path)
    if not hub.is_hub(name):
        return local_path(name)
    found = hub.repository(name, "model")
    file = _weights(name, hub.parse(name).part, found.files)
    beside = [os.path.join(os.path.dirname(file), config) for config in CONFIGS]
    names = [file, *(config for config in beside if config in found.files)]
    if file.endswith(INDEX):
        stem, ending = os.path.splitext(file.removesuffix(INDEX))
        names += [shard for shard in found.files if re.fullmatch(rf"{re.escape(stem)}-.*{re.escape(ending)}", shard)]
    return found.fetch(names) / file


def _weights(name: str, asked: str, files: tuple[str, ...]) -> str:
    """The file of weights among a model's files. asked: the file that the user names, or ""."""
    if asked:
        if asked not in files:
            raise InputError(f"'{name}': the model has no file '{asked}'; give {hub.of_files('a FILE', files)}")
        return asked
    for ending, usual in KINDS:
        known = [file for file in files if re.search(rf"(?:{ending})$", file)]
        known = [file for file in known if not SHARD.fullmatch(file) and not STATES.fullmatch(file)]
        if usual in known or len(known) == 1:
            return usual if usual in known else known[0]
        if known:
            raise InputError(
                f"'{name}': several files may hold the encoder; give {hub.of_files(f'{name}:FILE', known)}"
            )
    raise InputError(f"'{name}': the model has no file of weights that is known (.safetensors, .bin, .pth, …)")
