"""Public checkpoints → frozen encoders.

`load` takes .safetensors and .npz; if torch is installed, also .pth, .pt, .torch and .tar. To convert one of these:

python -m mirigor_jax.models.pretrained CHECKPOINT.pth ENCODER.safetensors
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import read_arrays, write_bytes
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.pretrained.layouts import LAYOUTS, Layout
from mirigor_jax.outside import check_unpacks

AXES = {"same": None, "conv": (2, 3, 1, 0), "dense": (1, 0)}
SHOWN = 4  # largest number of keys or faults that a message lists
LONGEST = 1000  # characters of a key
MOST_ENTRIES = 20_000  # in all dictionaries of a file together
MOST_SIDE = 4096  # pixels. The largest side of an encoder's images


def load(path: str | Path, *, layout: str | None = None) -> FrozenEncoder:
    """Load the encoder in a public checkpoint.

    layout: a name in LAYOUTS. None: the keys in the checkpoint tell it.
    Raises InputError if the file is missing, truncated, or of an unknown format or layout, if it holds more than
    tensors, and if a parameter is missing, unexpected or of the wrong shape.
    """
    return _build(Path(path), _recognize(Path(path), layout))


def convert(path: str | Path, converted: str | Path) -> FrozenEncoder:
    """Load a checkpoint, then write its state dict to `converted` (.safetensors) with the same keys.

    Returns the loaded encoder.
    Raises InputError as `load` does, if `converted` exists, and if its name does not end in .safetensors.
    """
    converted = Path(converted)
    if converted.suffix != ".safetensors":
        raise InputError(f"'{converted}' is to be a .safetensors file; name it so")
    if converted.exists():
        raise InputError(f"'{converted}' exists already; remove it or choose another name")
    match = _recognize(Path(path), None)
    pretrained = _build(Path(path), match)
    # safetensors writes an array's memory as it is, so a transposed array must be copied into C order first.
    arrays = {key: np.asarray(array, order="C") for key, array in match.state.items()}
    write_bytes(converted, safetensors.numpy.save(arrays))
    return pretrained


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by key. A key in nested dictionaries is joined by `/`: "OUTER/INNER/KEY".

    Raises InputError if the file is missing, truncated or of another format, or if it holds more than tensors.
    """
    if path.suffix not in READERS:
        raise InputError(f"'{path}' is no checkpoint by its name; known are {', '.join(READERS)}")
    if not os.path.isfile(path):  # also False for a name that no file can have
        raise InputError(f"there is no checkpoint '{path}'; give the path of a file")
    try:
        tensors = READERS[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each library raises several types for a damaged file
        raise _refused(path, _reason(error)) from None
    if long := [key for key in tensors if len(key) > LONGEST]:
        raise InputError(f"'{path}' is no checkpoint: a key has {len(long[0]):,} characters, and {LONGEST} is enough")
    return tensors


def _refused(path: Path, reason: str) -> InputError:
    return InputError(
        f"'{path}' is truncated, or not a {path.suffix} file of tensors alone ({reason}); nothing in it was run. "
        "If it holds more than tensors and you trust it, save its state dict alone and give that file"
    )


def _reason(error: Exception) -> str:
    """The error in our words: torch's own message suggests to turn off its checks, which would run the file's code."""
    text = str(error)
    if match := re.search(r"GLOBAL:? ([\w.]+)", text):
        return f"it holds {shown(match[1])}"
    return type(error).__name__ if "weights_only" in text or "pickle" in text else f"{type(error).__name__}: {text}"


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = read_arrays(path)
        if isinstance(loaded, np.ndarray):
            raise InputError("it is one array without a name")
        with loaded:
            return dict(loaded)
    except InputError as error:
        raise _refused(path, str(error)) from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading '{path}' takes torch: pip install 'mirigor-jax[torch]', or convert it once where torch is, "
            f"with python -m mirigor_jax.models.pretrained {path} {path.stem}.safetensors"
        ) from error

    size, entries = path.stat().st_size, count()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            check_unpacks(sum(info.file_size for info in file.infolist()), size, f"'{path}'")

    def arrays(node: Any, outer: str) -> Iterator[tuple[str, np.ndarray]]:
        for key, value in node.items():
            if next(entries) > MOST_ENTRIES:  # a dictionary may contain itself
                raise InputError(f"'{path}' is no checkpoint: it has over {MOST_ENTRIES:,} entries")
            if isinstance(value, dict):
                yield from arrays(value, f"{outer}{key}/")
            elif isinstance(value, torch.Tensor):
                if value.layout != torch.strided:
                    raise InputError(f"'{path}': {outer}{key} is a sparse tensor; save its .to_dense()")
                if value.numel() * value.element_size() > size:
                    raise InputError(f"'{path}': {outer}{key} has shape {tuple(value.shape)}, and the file is shorter")
                value = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
                yield f"{outer}{key}", value.numpy()

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise InputError(f"'{path}' holds a {type(loaded).__name__}, not a dictionary of tensors; save a state dict")
    return dict(arrays(loaded, ""))


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": safetensors.numpy.load_file,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".torch": _read_torch,
    ".tar": _read_torch,
}


@dataclass(frozen=True)
class _Match:
    """A state dict as a layout reads it. used: key → (path in the Flax tree, transform)."""

    layout: str
    state: dict[str, np.ndarray]
    used: dict[str, tuple[str, str]]
    ignored: tuple[str, ...]
    unexpected: tuple[str, ...]


def _match(name: str, layout: Layout, state: dict[str, np.ndarray]) -> _Match:
    """The keys of the state dict that the layout uses, those that it ignores, and those that it doesn't know."""
    inside = layout.architecture
    used = {}
    for key in state:
        for pattern, path, transform in inside.rules:
            if match := re.fullmatch(layout.prefix + pattern, key):
                path = re.sub(r"(\d+)\+1", lambda number: str(int(number[1]) + 1), match.expand(path))
                used[key] = (path, transform)
                break
    left = (*layout.beside, *(layout.prefix + pattern for pattern in inside.ignored))
    rest = [key for key in state if key not in used]
    ignored = tuple(key for key in rest if any(re.fullmatch(pattern, key) for pattern in left))
    return _Match(name, state, used, ignored, tuple(key for key in rest if key not in ignored))


def _recognize(path: Path, layout: str | None) -> _Match:
    """The layout and the state dict with the most used keys; among equals, those with the fewest unknown keys.

    Raises InputError if layouts that are equal in both normalize their images differently, since keys don't tell which
    one made the checkpoint.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"unknown layout '{layout}'; choose one of {', '.join(LAYOUTS)}")
    tensors = read_tensors(path)
    matches = []
    for name in LAYOUTS if layout is None else [layout]:
        for where in (*(f"{where}/" for where in LAYOUTS[name].where), ""):
            inside = {key.removeprefix(where): array for key, array in tensors.items() if key.startswith(where)}
            state = {key: array for key, array in inside.items() if "/" not in key}
            matches.append(_match(name, LAYOUTS[name], state))
    fit = [(len(match.used), -len(match.unexpected)) for match in matches]
    best = matches[fit.index(max(fit))]
    if not best.used:
        known = f"any known layout ({', '.join(LAYOUTS)})" if layout is None else f"the layout {layout}"
        raise InputError(f"the keys of '{path}' are not of {known}; it holds {_some(list(tensors)) or 'nothing'}")
    tied = {match.layout: LAYOUTS[match.layout] for match, of in zip(matches, fit, strict=True) if of == max(fit)}
    if len({(candidate.mean, candidate.std) for candidate in tied.values()}) > 1:
        known = "; ".join(f"{name} ({candidate.source})" for name, candidate in tied.items())
        raise InputError(f"the keys of '{path}' don't tell how its images were normalized; name its layout: {known}")
    return best


def _build(path: Path, match: _Match) -> FrozenEncoder:
    layout = LAYOUTS[match.layout]
    leaves, faults = {}, []
    for key, (leaf, transform) in match.used.items():
        array, axes = match.state[key], AXES[transform]
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            faults.append(f"{key} has dtype {array.dtype}")
        elif not array.size:
            faults.append(f"{key} has shape {array.shape}, and no value")
        elif axes is not None and array.ndim != len(axes):
            faults.append(f"{key} has shape {array.shape}, not {len(axes)} axes")
        elif leaf in leaves:
            faults.append(f"{key} gives {leaf} a second time")
        else:
            leaves[leaf] = array if axes is None else array.transpose(axes)
    if faults:
        raise InputError(f"'{path}' is no {match.layout} checkpoint: {_some(faults)}")
    try:
        encoder, size = layout.architecture.encoder({leaf: array.shape for leaf, array in leaves.items()})
    except InputError as error:
        raise InputError(f"'{path}' ({match.layout} layout): {error}") from error
    if size > MOST_SIDE:
        raise InputError(f"'{path}' ({match.layout} layout) is of images of {size:,} pixels a side, over {MOST_SIDE:,}")
    expected = _shapes(encoder, size)
    for key, (leaf, transform) in match.used.items():
        if leaf not in expected:
            faults.append(f"{key} is unexpected")
        elif leaves[leaf].shape != expected[leaf]:
            axes = AXES[transform]
            shape = expected[leaf] if axes is None else tuple(expected[leaf][axes.index(i)] for i in range(len(axes)))
            faults.append(f"{key} has shape {match.state[key].shape}, not {shape}")
    faults += [f"nothing gives {leaf}" for leaf in expected if leaf not in leaves]
    faults += [f"{key} is unexpected" for key in match.unexpected]
    if faults:
        raise InputError(f"'{path}' is no {type(encoder).__name__} in {match.layout} layout: {_some(faults)}")
    tree = {tuple(leaf.split("/")): jnp.asarray(array, jnp.float32) for leaf, array in leaves.items()}
    return FrozenEncoder(
        encoder,
        unflatten_dict(tree),
        layout.mean,
        layout.std,
        size=size,
        layout=match.layout,
        used=tuple(match.used),
        ignored=match.ignored,
    )


@cache
def _shapes(encoder: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of the encoder's parameters and statistics, by path."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images)
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(variables).items()}


def _some(items: list[str]) -> str:
    more = f", … ({len(items)} in all)" if len(items) > SHOWN else ""
    return ", ".join(shown(item) for item in items[:SHOWN]) + more
