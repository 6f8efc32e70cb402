"""Files of weights → arrays by key. The content tells a file's format; its name does not matter.

Nothing in a file is run. Torch's own files are read by torch's `weights_only` loader. The settings that trainers save
beside the weights (a namespace, a path, a NumPy scalar, …) become objects without content, see PASSED_OVER.
"""

import json
import os
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from mirigor_jax.errors import InputError, listed, shown
from mirigor_jax.files import read_arrays
from mirigor_jax.outside import check_unpacks, read_text

SHOWN = 4  # largest number of keys, files or faults that a message lists
LONGEST = 1000  # characters of a key
MOST_ENTRIES = 20_000  # in all dictionaries of a file together
MOST_HEADER = 10**8  # bytes of a .safetensors file's header, as its library has it
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # begins torch's files from before its version 1.6
AGAIN = "download it again"

# The start of a file that is no checkpoint → the sentence about it.
NO_CHECKPOINT = {
    rb"version https://git-lfs": "is a Git-LFS pointer, which only names the checkpoint; run git lfs pull where it is",
    rb"\s*<(?i:!doctype|html|head|\?xml|error)": "is a web page; open it in a browser to see what the server answered, "
    "and download the checkpoint itself",
    rb"(?:\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!)": "is compressed; unpack it and give a file inside",
    rb"\x89HDF": "is an HDF5 file, as Keras writes; no encoder in such files is known",
    rb"GGUF": "is a GGUF file, whose weights are quantized; give the checkpoint that it was made from",
    rb"\x93NUMPY": "is one array without a name; save the arrays of a state dict by numpy.savez",
}

# Modules → classes of the objects that trainers save beside the weights. Torch calls the stand-in of a class instead of
# the class. A stand-in does nothing, and no code of the class is imported.
_BUILTINS = "set frozenset slice complex range object bytearray list dict tuple str int float bool bytes"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_OBJECTS = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "typing": "Any Union",
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "numpy": "dtype ndarray bool_ int32 int64 float16 float32 float64",
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "scalar _reconstruct"),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"),
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode ValueNode",
    "ml_collections.config_dict.config_dict": "ConfigDict FrozenConfigDict FieldReference",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "torch.torch_version": "TorchVersion",
    **{
        f"{package}.callbacks.{module}": name
        for package in ("pytorch_lightning", "lightning.pytorch")
        for module, name in (
            ("model_checkpoint", "ModelCheckpoint"),
            ("early_stopping", "EarlyStopping"),
            ("lr_monitor", "LearningRateMonitor"),
        )
    },
}
_MAPPINGS = {
    **dict.fromkeys(("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"), "AttributeDict"),
    **dict.fromkeys(("lightning_fabric.utilities.data", "lightning.fabric.utilities.data"), "AttributeDict"),
    "easydict": "EasyDict",
    "addict.addict": "Dict",
    **dict.fromkeys(("yacs.config", "fvcore.common.config"), "CfgNode"),
    **dict.fromkeys(("mmcv.utils.config", "mmengine.config.config"), "ConfigDict"),
    "collections": "defaultdict",
}


class _Object:
    """Stands for an object of a class in _OBJECTS. It takes any arguments and keeps none."""

    def __new__(cls, *arguments: Any) -> "_Object":
        return super().__new__(cls)

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Mapping:
    """Stands for a subclass of dict. Its objects become ordered dictionaries, the only ones that torch fills."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


PASSED_OVER: dict[str, type] = {
    f"{module}.{name}": stand_in
    for stand_in, table in ((_Object, _OBJECTS), (_Mapping, _MAPPINGS))
    for module, names in table.items()
    for name in names.split()
}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by key. A key in nested dictionaries is joined by `/`: "OUTER/INNER/KEY".

    path: a .safetensors or .npz file, one of torch's own, or the index of a sharded checkpoint, whatever its name.
    Raises InputError if the file is missing, cut off or of another format, or if it holds more than tensors and the
    settings in PASSED_OVER.
    """
    if os.path.isdir(path):
        raise InputError(f"'{path}' is a folder{_inside(path)}; give the path of a checkpoint in it")
    if not os.path.isfile(path):  # also False for a name that no file can have
        raise InputError(f"there is no checkpoint '{path}'; give the path of a file")
    if (part := re.search(r"-(\d{5})-of-(\d{5})\.", path.name)) and int(part[2]) > 1:
        index = sorted(path.parent.glob("*.index.json"))
        known = (
            f"give its index, {shown(str(index[0]))}" if index else "give its index, an .index.json beside all shards"
        )
        raise InputError(f"'{path}' is shard {int(part[1])} of {int(part[2])} of a checkpoint; give its index, {known}")
    if (text := _json(path)) is not None:
        return _read_shards(path, text)
    return _read(path)


def _inside(path: Path) -> str:
    names = sorted(name for name in os.listdir(path) if re.search(r"\.(safetensors|bin|pth?|ckpt|npz|json)$", name))
    return f" ({some(names)})" if names else ""


def _json(path: Path) -> Any:
    """The JSON in a text file. None if it is no JSON."""
    with path.open("rb") as file:
        start = file.read(8)
    # The first eight bytes of a .safetensors file are a number, which may begin as JSON does.
    if start.lstrip()[:1] != b"{" or int.from_bytes(start, "little") <= MOST_HEADER:
        return None
    try:
        return json.loads(read_text(path, f"'{path}'"))
    except (InputError, ValueError, RecursionError):
        return None


def _read_shards(path: Path, index: Any) -> dict[str, np.ndarray]:
    """The arrays of all shards that an index names. They lie beside it."""
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        raise InputError(f"'{path}' is JSON text without a weight_map, so no index; give the checkpoint beside it")
    shards = list(dict.fromkeys(map(str, where.values())))
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        file = path.parent / shard
        if os.path.basename(shard) != shard or not os.path.isfile(file):
            raise InputError(f"the index '{path}' names the shard {shown(shard)}, which is not beside it; download all")
        tensors |= _read(file)
    if missing := [key for key in where if key not in tensors]:
        raise InputError(
            f"the shards of '{path}' lack {some(missing)}, which the index lists; {AGAIN}, with all shards"
        )
    return tensors


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one file. Raises InputError as `read_tensors` does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    if not size:
        raise InputError(f"'{path}' is empty; {AGAIN}")
    for pattern, sentence in NO_CHECKPOINT.items():
        if re.match(pattern, start, re.DOTALL):
            raise InputError(f"'{path}' {sentence}")
    if start[257:262] == b"ustar":
        raise InputError(f"'{path}' is a tar archive{_members(path)}; unpack it and give a checkpoint in it")
    try:
        if start[:2] == b"PK":
            tensors = _read_zip(path)
        elif start.startswith(TORCH_MAGIC):
            tensors = _read_torch(path)
        elif start[:1] == b"\x80":
            raise InputError(
                f"'{path}' is a pickle that torch did not write, so it may be code; nothing in it was run. Save the "
                "state dict by torch.save or safetensors"
            )
        elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
            tensors = _read_safetensors(path)
        else:
            raise InputError(
                f"'{path}' is cut off, or no checkpoint: it is neither safetensors, .npz nor a file of torch; nothing "
                "in it was run"
            )
    except InputError:
        raise
    except Exception as error:  # each library raises several types for a damaged file
        raise _refused(path, _reason(error)) from None
    if long := [key for key in tensors if len(key) > LONGEST]:
        raise InputError(f"'{path}' is no checkpoint: a key has {len(long[0]):,} characters, and {LONGEST} is enough")
    return tensors


def _members(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            return f" (of {shown(names.name)}, …)" if (names := archive.next()) else ""
    except (tarfile.TarError, OSError, ValueError):
        return ""


def _refused(path: Path, reason: str) -> InputError:
    return InputError(
        f"'{path}' is damaged, or holds more than tensors ({reason}); nothing in it was run. If it holds more and you "
        "trust it, save its state dict alone and give that file"
    )


def _reason(error: Exception) -> str:
    """The error in our words: torch's own message suggests to turn off its checks, which would run the file's code."""
    text = str(error)
    if match := re.search(r"GLOBAL:? ([\w.]+)", text):
        return f"it holds {shown(match[1])}"
    advises = any(word in text for word in ("weights_only", "pickle", "torch.load"))
    return type(error).__name__ if advises else f"{type(error).__name__}: {text}"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(begin - 8)
    end = begin
    try:
        entries = json.loads(header).values()
        end += max((entry["data_offsets"][1] for entry in entries if "data_offsets" in entry), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        pass  # if the header is whole, the library says what is wrong in it
    if size < end:
        raise InputError(f"'{path}' is cut off: it has {size:,} of {end:,} bytes; {AGAIN}")
    return safetensors.numpy.load_file(path)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"'{path}' is cut off: the list of contents at its end is missing; {AGAIN}")
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    names = [entry.filename for entry in entries]
    if any(re.fullmatch(r"[^/]*/constants\.pkl", name) for name in names):
        raise InputError(
            f"'{path}' is a program of TorchScript; save the state dict of what torch.jit.load returns, and give that"
        )
    if any(re.fullmatch(r"[^/]*/data\.pkl", name) for name in names):
        check_unpacks(sum(entry.file_size for entry in entries), path.stat().st_size, f"'{path}'")
        return _read_torch(path)
    if not all(name.endswith(".npy") for name in names):
        raise InputError(f"'{path}' is a zip archive (of {some(names)}); unpack it and give a checkpoint in it")
    try:
        with read_arrays(path) as arrays:
            return dict(arrays)
    except InputError as error:
        raise _refused(path, str(error)) from None


def _whole(path: Path) -> str:
    """The class of the object in one of torch's files if it is neither a dictionary nor a tensor, else "".

    The file's instructions are listed, not followed.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                [name] = [name for name in archive.namelist() if re.fullmatch(r"[^/]*/data\.pkl", name)]
                first = list(islice(pickletools.genops(archive.read(name)), 8))
        else:
            with path.open("rb") as file:
                for _ in range(3):  # the magic number, the version, and facts about the machine
                    for _ in pickletools.genops(file):
                        pass
                first = list(islice(pickletools.genops(file), 8))
    except Exception:  # a damaged file: torch's loader says so
        return ""
    for operation, argument, _ in first:
        if operation.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            known = name in ("collections.OrderedDict", *PASSED_OVER) or name.startswith("torch._utils.")
            return "" if known else name
        if operation.name.startswith("EMPTY"):
            return ""
    return ""


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading '{path}' takes torch: pip install -e '.[torch]', or convert it once where torch is, "
            f"with python -m mirigor_jax.models.pretrained {path} {path.stem}.safetensors"
        ) from error

    size, entries = path.stat().st_size, count()

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
                value = value.detach()
                if value.dtype == torch.bfloat16:  # which NumPy does not know
                    yield f"{outer}{key}", value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
                else:
                    yield f"{outer}{key}", value.numpy()

    if name := _whole(path):
        raise InputError(
            f"'{path}' is a whole pickled object ({shown(name)}), which only its own code can open; nothing in it was "
            "run. Open it there, and save its state dict: torch.save(model.state_dict(), PATH)"
        )
    with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in PASSED_OVER.items()]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise InputError(f"'{path}' holds a {type(loaded).__name__}, not a dictionary of tensors; save a state dict")
    return dict(arrays(loaded, ""))


def some(items: Sequence[str]) -> str:
    """The first items, and their number if there are more than SHOWN."""
    return listed(items, SHOWN)
