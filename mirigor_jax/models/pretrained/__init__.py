"""Public checkpoints → frozen encoders.

`load` takes .safetensors, .npz and the index of a sharded checkpoint; if torch is installed, also torch's own files
(.pth, .pt, .ckpt, .bin, …). A file's format is told by its content. To convert one:

python -m mirigor_jax.models.pretrained CHECKPOINT.pth ENCODER.safetensors
"""

import re
import warnings
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import write_bytes
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.pretrained.finding import Found, find, plain
from mirigor_jax.models.pretrained.layouts import LAYOUTS, UNSUPPORTED, Layout
from mirigor_jax.models.pretrained.reading import read_tensors, some

AXES = {"same": None, "conv": (2, 3, 1, 0), "dense": (1, 0)}
MOST_SIDE = 4096  # pixels. The largest side of an encoder's images


def load(path: str | Path, *, layout: str | None = None, place: str | None = None) -> FrozenEncoder:
    """Load the encoder in a public checkpoint.

    layout: a name in LAYOUTS. None: the keys in the checkpoint tell it.
    place: where the encoder is in the file, such as "state_dict_ema", "teacher" or "state_dict/momentum_encoder". None:
        wherever there is one; a UserWarning says which was taken if there are several.
    Raises InputError if the file is missing, cut off, or of an unknown format or layout, if it holds more than tensors
    and settings, and if a parameter is missing, unexpected, of the wrong shape or not finite.
    """
    return _build(Path(path), *_recognize(Path(path), layout, place))


def convert(
    path: str | Path, converted: str | Path, *, layout: str | None = None, place: str | None = None
) -> FrozenEncoder:
    """Load a checkpoint, then write its state dict to `converted` (.safetensors) with the same keys.

    layout, place: see `load`. If `place` is given, only the encoder's own keys are written.
    Returns the loaded encoder.
    Raises InputError as `load` does, if `converted` exists, and if its name does not end in .safetensors.
    """
    converted = Path(converted)
    if converted.suffix != ".safetensors":
        raise InputError(f"'{converted}' is to be a .safetensors file; name it so")
    if converted.exists():
        raise InputError(f"'{converted}' exists already; remove it or choose another name")
    name, found, others = _recognize(Path(path), layout, place)
    pretrained = _build(Path(path), name, found, others)
    # If the place is asked for, other encoders in the same dictionary must not be found again.
    keys = found.state if place is None else found.used
    # safetensors writes an array's memory as it is, so a transposed array must be copied into C order first.
    arrays = {key: np.asarray(found.state[key], order="C") for key in keys}
    write_bytes(converted, safetensors.numpy.save(arrays))
    return pretrained


def _where(place: str) -> str:
    return f"'{shown(place)}'" if place else "the file's own keys"


def _recognize(path: Path, layout: str | None, place: str | None) -> tuple[str, Found, tuple[str, ...]]:
    """The name of the checkpoint's layout, its encoder, and the places of further ones.

    Raises InputError if layouts that fit the encoder and its place normalize their images differently, since keys don't
    tell which one made the checkpoint.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"unknown layout '{layout}'; choose one of {', '.join(LAYOUTS)}")
    asked = {layout: LAYOUTS[layout]} if layout is not None else LAYOUTS
    tensors = read_tensors(path)
    found, others = find(tensors, dict.fromkeys(each.architecture for each in asked.values()), place)
    if found is None or found.unexpected:
        _check_supported(path, tensors)
    if found is None:
        known = f"any known layout ({', '.join(LAYOUTS)})" if layout is None else f"the layout {layout}"
        inside = "" if place is None else f" in '{place}'"
        raise InputError(
            f"the keys of '{path}'{inside} are not of {known}; it holds {some(list(tensors)) or 'nothing'}"
        )
    fits = {name: each for name, each in asked.items() if each.architecture is found.architecture}
    named = {name: each for name, each in fits.items() if _is_from(each, found)}
    fits = named or {name: each for name, each in fits.items() if layout is not None or each.place is None}
    if len({(each.mean, each.std) for each in fits.values()}) > 1:
        known = "; ".join(f"{name} ({each.source})" for name, each in fits.items())
        raise InputError(f"the keys of '{path}' don't tell how its images were normalized; name its layout: {known}")
    if others:
        warnings.warn(
            f"'{path}' holds {1 + len(others)} encoders: that in {_where(found.place)} is taken; choose the one in "
            f"{some([_where(other) for other in others])} by its place",
            stacklevel=3,
        )
    return next(iter(fits)), found, others


def _check_supported(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Raises InputError if the keys are of a family that is known by name alone."""
    for family, pattern in UNSUPPORTED.items():
        if any(re.fullmatch(rf"(?:.*[/.])?(?:{pattern})", plain(key)) for key in tensors):
            raise InputError(
                f"'{path}' holds {family}, which is not supported; encode your images by the code that it comes from, "
                "and give the features as features:FILE"
            )


def _is_from(layout: Layout, found: Found) -> bool:
    """Whether the encoder is where this layout, and no other of its architecture, has it."""
    if layout.place is None or not re.fullmatch(layout.place, found.place):
        return False
    return layout.beside is None or any(re.fullmatch(layout.beside, plain(key)) for key in found.ignored)


def _build(path: Path, name: str, found: Found, others: tuple[str, ...]) -> FrozenEncoder:
    layout = LAYOUTS[name]
    leaves, faults = {}, []
    for key, (leaf, transform) in found.used.items():
        array, axes = found.state[key], AXES[transform]
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            faults.append(f"{key} has dtype {array.dtype}")
        elif not array.size:
            faults.append(f"{key} has shape {array.shape}, and no value")
        elif axes is not None and array.ndim != len(axes):
            faults.append(f"{key} has shape {array.shape}, not {len(axes)} axes")
        elif wrong := _wrong(array, leaf):
            faults.append(f"{key} holds {wrong}")
        elif leaf in leaves:
            faults.append(f"{key} gives {leaf} a second time")
        else:
            leaves[leaf] = array if axes is None else array.transpose(axes)
    if faults:
        raise InputError(f"'{path}' is no {name} checkpoint: {some(faults)}")
    parts, leaves = leaves, _joined(leaves)
    try:
        encoder, size = layout.architecture.encoder({leaf: array.shape for leaf, array in leaves.items()})
    except InputError as error:
        raise InputError(f"'{path}' ({name} layout): {error}") from error
    if size > MOST_SIDE:
        raise InputError(f"'{path}' ({name} layout) is of images of {size:,} pixels a side, over {MOST_SIDE:,}")
    expected = _shapes(encoder, size)
    for key, (leaf, transform) in found.used.items():
        whole = leaf.partition("[")[0]
        if whole not in expected:
            faults.append(f"{key} is unexpected")
            continue
        *first, last = expected[whole] or (1,)
        wanted = expected[whole] if whole == leaf else (*first, last // 3)
        if parts[leaf].shape != wanted:
            axes = AXES[transform]
            shape = wanted if axes is None else tuple(wanted[axes.index(i)] for i in range(len(axes)))
            faults.append(f"{key} has shape {found.state[key].shape}, not {shape}")
    faults += [f"nothing gives {leaf}" for leaf in expected if leaf not in leaves]
    faults += [f"{key} is unexpected" for key in found.unexpected]
    if faults:
        raise InputError(f"'{path}' is no {type(encoder).__name__} in {name} layout: {some(faults)}")
    tree = {tuple(leaf.split("/")): jnp.asarray(array, jnp.float32) for leaf, array in leaves.items()}
    return FrozenEncoder(
        encoder,
        unflatten_dict(tree),
        layout.mean,
        layout.std,
        size=size,
        layout=name,
        place=found.place,
        others=others,
        used=tuple(found.used),
        ignored=found.ignored,
    )


def _joined(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by path. Those of paths that end in [0], [1] and [2] are joined if they have one shape."""
    joined = {leaf: array for leaf, array in leaves.items() if not leaf.endswith("]")}
    for whole in dict.fromkeys(leaf[:-3] for leaf in leaves if leaf.endswith("]")):
        parts = [leaves[f"{whole}[{i}]"] for i in range(3) if f"{whole}[{i}]" in leaves]
        if len(parts) == 3 and len({part.shape for part in parts}) == 1:
            joined[whole] = np.concatenate(parts, axis=-1)
    return joined


def _wrong(array: np.ndarray, leaf: str) -> str:
    """The values in an array that no trained encoder has; "" if there are none."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite here, too
        array = array.astype(np.float32)
    if bad := int(array.size - np.isfinite(array).sum()):
        return f"NaN or infinity ({bad:,} of {array.size:,} values)"
    return "a negative variance" if leaf.endswith("/var") and array.min() < 0 else ""


@cache
def _shapes(encoder: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of the encoder's parameters and statistics, by path."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(partial(encoder.init, train=False), jax.random.key(0), images)
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(variables).items()}
