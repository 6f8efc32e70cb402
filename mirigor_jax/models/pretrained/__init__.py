"""Public checkpoints → frozen encoders.

`load` takes .safetensors, .npz and the index of a sharded checkpoint; if torch is installed, also torch's own files
(.pth, .pt, .ckpt, .bin, …). A file's format is told by its content. hf:OWNER/NAME is a model on the Hugging Face Hub.
To convert a checkpoint:

python -m mirigor_jax.models.pretrained CHECKPOINT.pth ENCODER.safetensors
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
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
from mirigor_jax.models import takes_any_size
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.models.pretrained.fetching import CONFIGS, checkpoint
from mirigor_jax.models.pretrained.finding import Found, find, plain
from mirigor_jax.models.pretrained.layouts import LAYOUTS, UNSUPPORTED, Layout
from mirigor_jax.models.pretrained.reading import read_tensors, some
from mirigor_jax.models.vit import ViT, resample
from mirigor_jax.outside import read_text

# Transform → the axes of its result; None is an axis of one entry.
AXES: dict[str, tuple[int | None, ...] | None] = {
    "same": None,
    "flat": None,  # after all axes were made one
    "conv": (2, 3, 1, 0),
    "dense": (1, 0),
    "pointwise": (1, 0),  # after the axes h and w of a convolution of 1×1 were left out
    "token": (None, None, 0),
    "tokens": (None, 0, 1),
}
# Name of an activation in configs of timm and transformers → its name in `ViT.mlp`.
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
MOST_SIDE = 4096  # pixels. The largest side of an encoder's images


def load(
    path: str | Path, *, layout: str | None = None, place: str | None = None, size: int | None = None
) -> FrozenEncoder:
    """Load the encoder in a public checkpoint.

    path: of a file; or hf:OWNER/NAME[@REVISION][:FILE], a model on the Hugging Face Hub, see `fetching.checkpoint`.
    layout: a name in LAYOUTS. None: the keys in the checkpoint tell it.
    place: where the encoder is in the file, such as "state_dict_ema", "teacher" or "state_dict/momentum_encoder". None:
        wherever there is one; a UserWarning says which was taken if there are several.
    size: pixels. The side of the images that the encoder will get. None: the side that the checkpoint was trained on.
        A ViT's position embeddings are interpolated to another side; `FrozenEncoder.resized` then says so. A ResNet
        takes images of any side.
    Raises InputError if the file is missing, cut off, or of an unknown format or layout, if it holds more than tensors
    and settings, if a parameter is missing, unexpected, of the wrong shape or not finite, if the encoder can't take
    images of this side, and as `checkpoint` does.
    """
    path = checkpoint(path)
    frozen = _build(path, *_recognize(path, layout, place))
    if size in (None, frozen.size) or takes_any_size(frozen.encoder):
        return frozen
    return _at_size(path, frozen, size)


def _at_size(path: Path, frozen: FrozenEncoder, size: int) -> FrozenEncoder:
    """The encoder for images of another side. Raises InputError if it is no ViT, or if patches don't tile the side."""
    encoder = frozen.encoder
    if not isinstance(encoder, ViT):
        raise InputError(f"'{path}' takes images of {frozen.size} pixels, not {size}; give that size")
    resized = encoder.clone(size=size)
    try:
        resized.check()
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    params = dict(frozen.variables["params"])
    side = size // encoder.patch
    said = f"'{path}' was trained on images of {frozen.size} pixels, and gets {size}: its "
    if encoder.position == "rotary":
        said += f"rotary position embeddings are those of {side}×{side} patches"
    else:
        params["pos_embed"] = resample(params["pos_embed"], side)
        old = encoder.size // encoder.patch
        said += f"position embeddings of {old}×{old} patches are interpolated to {side}×{side} (bicubic, as in timm)"
    return replace(frozen, encoder=resized, variables=frozen.variables | {"params": params}, resized=said)


def convert(
    path: str | Path, converted: str | Path, *, layout: str | None = None, place: str | None = None
) -> FrozenEncoder:
    """Load a checkpoint, then write its state dict to `converted` (.safetensors) with the same keys.

    path, layout, place: see `load`. If `place` is given, only the encoder's own keys are written.
    Returns the loaded encoder.
    Raises InputError as `load` does, if `converted` exists, and if its name does not end in .safetensors.
    """
    path, converted = checkpoint(path), Path(converted)
    if converted.suffix != ".safetensors":
        raise InputError(f"'{converted}' is to be a .safetensors file; name it so")
    if converted.exists():
        raise InputError(f"'{converted}' exists already; remove it or choose another name")
    name, found, others = _recognize(path, layout, place)
    pretrained = _build(path, name, found, others)
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

    Keys may be of several layouts that normalize their images differently, or have modules with other fields. Then a
    config of timm or transformers beside the file chooses. Raises InputError if there is none, or if it is of none of
    the layouts.
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
    fits = _as_said_beside(path, fits)
    untold = ["how its images were normalized"] if len({(each.mean, each.std) for each in fits.values()}) > 1 else []
    if len({each.fields for each in fits.values()}) > 1:
        untold += ["its " + ", ".join(dict.fromkeys(field for each in fits.values() for field, _ in each.fields))]
    if untold:
        known = "; ".join(f"{name} ({each.source})" for name, each in fits.items())
        raise InputError(f"the keys of '{path}' don't tell {' and '.join(untold)}; name its layout: {known}")
    if others:
        warnings.warn(
            f"'{path}' holds {1 + len(others)} encoders: that in {_where(found.place)} is taken; choose the one in "
            f"{some([_where(other) for other in others])} by its place",
            stacklevel=3,
        )
    return next(iter(fits)), found, others


def _as_said_beside(path: Path, fits: Mapping[str, Layout]) -> dict[str, Layout]:
    """The layouts that agree with the configs beside the checkpoint; all if there is one or none says anything.

    Raises InputError if none agrees.
    """
    if len({(each.mean, each.std, each.fields) for each in fits.values()}) == 1:
        return dict(fits)
    way, activation = _said_beside(path)
    agree = {
        name: each
        for name, each in fits.items()
        if (way is None or np.allclose((each.mean, each.std), way, atol=1e-3))
        and (activation is None or activation == _activation(each))
    }
    if not agree:
        said = ([] if way is None else [f"mean and std {way}"]) + ([] if activation is None else [activation])
        raise InputError(
            f"the config beside '{path}' says {' and '.join(said)}, and no layout of its keys has that "
            f"({', '.join(fits)}); name the one to take all the same"
        )
    return agree


def _activation(layout: Layout) -> str:
    return dict(layout.fields).get("mlp", "gelu")


def _said_beside(path: Path) -> tuple[tuple[list[float], list[float]] | None, str | None]:
    """((mean, standard deviation) of the images' channels, the MLPs' activation); None for what no config says.

    timm writes them into config.json; transformers writes the activation there, and the others into
    preprocessor_config.json.
    """
    way: tuple[list[float], list[float]] | None = None
    activation: str | None = None
    for name in CONFIGS:
        try:
            whole = json.loads(read_text(path.parent / name, name))
            config = whole.get("pretrained_cfg", whole)
            named = whole.get("vision_config", whole).get("hidden_act", whole.get("model_args", {}).get("act_layer"))
        except (InputError, ValueError, AttributeError, RecursionError):
            continue  # no such file, or of another program
        activation = ACTIVATIONS.get(str(named), activation)
        try:
            mean, std = ([float(x) for x in config.get(f"image_{word}", config.get(word))] for word in ("mean", "std"))
        except (ValueError, TypeError, AttributeError):
            continue
        way = (mean, std) if len(mean) == len(std) == 3 else way
    return way, activation


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
        array, axes = _array(found, key), AXES[transform]
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            faults.append(f"{key} has dtype {array.dtype}")
        elif not array.size:
            faults.append(f"{key} has shape {array.shape}, and no value")
        elif axes is not None and array.ndim != _num_axes(axes):
            faults.append(f"{key} has shape {array.shape}, not {_num_axes(axes)} axes")
        elif wrong := _wrong(array, leaf):
            faults.append(f"{key} holds {wrong}")
        else:
            for whole, part in _split(leaf, array if axes is None else _moved(array, axes)).items():
                if whole in leaves:
                    faults.append(f"{key} gives {whole} a second time")
                leaves[whole] = part
    if faults:
        raise InputError(f"'{path}' is no {name} checkpoint: {some(faults)}")
    leaves = _joined(leaves, layout.architecture.zeros)
    try:
        encoder, size = layout.architecture.encoder({leaf: array.shape for leaf, array in leaves.items()})
        if layout.fields:
            encoder = encoder.clone(**dict(layout.fields))
            encoder.check()
    except InputError as error:
        raise InputError(f"'{path}' ({name} layout): {error}") from error
    if size > MOST_SIDE:
        raise InputError(f"'{path}' ({name} layout) is of images of {size:,} pixels a side, over {MOST_SIDE:,}")
    expected = _shapes(encoder, size)
    for leaf, shape in expected.items():
        if leaf not in leaves and any(re.fullmatch(pattern, leaf) for pattern in layout.architecture.zeros):
            leaves[leaf] = np.zeros(shape, np.float32)
    for key, (leaf, transform) in found.used.items():
        names = _names(leaf)
        whole, _, count = _part(names[0])
        if whole not in expected:
            faults.append(f"{key} is unexpected")
            continue
        *first, last = expected[whole] or (1,)
        wanted = (*first, last * len(names) // count) if (len(names), count) != (1, 1) else expected[whole]
        shape, axes = _array(found, key).shape, AXES[transform]
        if axes is not None:
            wanted = tuple(wanted[axes.index(i)] for i in range(_num_axes(axes)))
        if shape != wanted:
            faults.append(f"{key} has shape {shape}, not {wanted}")
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


def _array(found: Found, key: str) -> np.ndarray:
    array, transform = found.state[key], found.used[key][1]
    if transform == "pointwise" and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0]
    return array.reshape(-1) if transform == "flat" else array


def _num_axes(axes: tuple[int | None, ...]) -> int:
    return sum(axis is not None for axis in axes)


def _moved(array: np.ndarray, axes: tuple[int | None, ...]) -> np.ndarray:
    array = array.transpose([axis for axis in axes if axis is not None])
    return np.expand_dims(array, [i for i, axis in enumerate(axes) if axis is None])


def _names(leaf: str) -> list[str]:
    """A path with {a,,b} is one for a, "" for a part that is left out, and one for b; another is itself."""
    before, brace, rest = leaf.partition("{")
    inside, _, after = rest.partition("}")
    return [before + name + after if name else "" for name in inside.split(",")] if brace else [leaf]


def _part(leaf: str) -> tuple[str, int, int]:
    """A path that ends in [i/n]: the path before that, i and n. Of another: the path, 0 and 1."""
    match = re.fullmatch(r"(.*)\[(\d+)/(\d+)\]", leaf)
    return (match[1], int(match[2]), int(match[3])) if match else (leaf, 0, 1)


def _split(leaf: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The array by path, or its parts along the last axis if the path names several."""
    names = _names(leaf)
    if len(names) == 1:
        return {leaf: array}
    parts = np.array_split(array, len(names), axis=-1) if array.ndim else [array] * len(names)
    return {name: part for name, part in zip(names, parts, strict=True) if name}


def _joined(leaves: dict[str, np.ndarray], zeros: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays by path. Parts, whose paths end in [i/n], are joined along the last axis if they have one shape.

    zeros: regexes of the paths of parts that are zero if they are absent.
    """
    joined: dict[str, np.ndarray] = {}
    parts: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for leaf, array in leaves.items():
        whole, i, count = _part(leaf)
        if count == 1:
            joined[whole] = array
        else:
            parts.setdefault((whole, count), {})[i] = array
    for (whole, count), found in parts.items():
        for i in range(count):
            if i not in found and any(re.fullmatch(pattern, f"{whole}[{i}/{count}]") for pattern in zeros):
                found[i] = np.zeros_like(next(iter(found.values())))
        if len(found) == count and len({part.shape for part in found.values()}) == 1:
            joined[whole] = np.concatenate([found[i] for i in range(count)], axis=-1)
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
