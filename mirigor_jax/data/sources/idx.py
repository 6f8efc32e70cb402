"""The reader of IDX files, the format of MNIST."""

import gzip
import io
import math
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Integer, UInt8

from mirigor_jax.data.sources.parts import Part, parts_from_arrays
from mirigor_jax.errors import InputError, listed, shown
from mirigor_jax.files import describe, local_path
from mirigor_jax.outside import check_fits, check_regular, check_unpacks

CHUNK = 2**20  # bytes that are unpacked at once
MOST_AXES = 32  # of an array
DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4"}  # third byte of a file → the dtype of its values
# MNIST's names, with a set's name before them, and with the dots of some copies.
IMAGES = re.compile(r"(.*?)(train|t10k|test)[-_.]images[-_.]idx3[-_.]ubyte(\.gz)?", re.IGNORECASE)


def read_idx_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a folder with MNIST's four files, or with those of EMNIST, QMNIST and so on.

    argument: the folder, or FOLDER/PREFIX if it has the files of several sets. Without files of a test part, a warning
        says that one is split off.
    Raises InputError as `read_labeled_idx` does, and if there are no training images, or several sets.
    """
    path = local_path(argument)
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    if not folder.is_dir():
        raise InputError(f"idx:{argument} is not a folder: give one with files such as train-images-idx3-ubyte.gz")
    files = sorted(entry.name for entry in folder.iterdir())
    found: dict[str, dict[str, str]] = {}
    for name in files:  # a file without .gz comes before its copy with it
        if (match := IMAGES.fullmatch(name)) and name.startswith(prefix):
            part = "train" if match[2].lower() == "train" else "test"
            found.setdefault(match[1], {}).setdefault(part, name)
    if len(found) > 1:
        raise InputError(f"{folder} has images of {len(found)} sets: give one, as {_choices(folder, list(found))}")
    if not found and prefix:
        raise InputError(f"no IDX file {path}, and no images of IDX in {folder} begin so: give a folder of IDX files")
    names = next(iter(found.values()), {})
    if "train" not in names:
        there = listed(files, 10) or "nothing"
        raise InputError(
            f"no IDX file of training images in {folder}, such as train-images-idx3-ubyte.gz; it holds {there}"
        )
    if "test" not in names:
        warnings.warn(f"idx:{argument} has no file of a test part: it is split off from {names['train']}", stacklevel=2)
    arrays = {part: read_labeled_idx(folder / name) for part, name in names.items()}
    return parts_from_arrays(f"idx:{argument}", arrays, size)


def _choices(folder: Path, prefixes: list[str]) -> str:
    return listed([f"idx:{folder}/{prefix or 'train'}" for prefix in prefixes], 10)


def read_labeled_idx(path: Path) -> tuple[UInt8[np.ndarray, "n h w"], Integer[np.ndarray, " n"]]:
    """Read the images of an IDX file, and their labels.

    path: the file of images, X-images-idx3-ubyte[.gz]. The labels are in X-labels-idx1-ubyte[.gz] beside it, or in
        QMNIST's X-labels-idx2-int[.gz], whose first column is the class.
    Raises InputError as `read_idx` does, and if the two arrays don't match.
    """
    beside = _labels_of(path)
    images, labels = read_idx(path), read_idx(beside)
    if labels.ndim == 2 and labels.dtype.itemsize == 4:
        labels = labels[:, 0]
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path} holds an array of shape {images.shape} and {beside} of {labels.shape}, expected images (n, h, w) "
            "and labels (n,): name the images' file as MNIST does, PREFIX-images-idx3-ubyte, with its labels beside it"
        )
    return images, labels


def _labels_of(path: Path) -> Path:
    """The file of labels beside one of images; the usual one if there is none."""
    stem = path.name.removesuffix(".gz").replace("images", "labels")
    names = [stem.replace("idx3", "idx1"), stem.replace("idx3", "idx2").replace("ubyte", "int")]
    gz = (".gz", "") if path.name.endswith(".gz") else ("", ".gz")
    candidates = [path.with_name(f"{name}{ending}") for name in names for ending in gz]
    return next((each for each in candidates if each.exists()), candidates[0])


def read_idx(path: Path) -> Integer[np.ndarray, "..."]:
    """Read the array of bytes or integers in an IDX file (the format of MNIST), gzipped or not, whatever its name.

    Raises InputError if the file is missing, of another format, or not as long as its header says.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            size, packed = file.seek(0, io.SEEK_END), _begins(file) == b"\x1f\x8b"
            with gzip.GzipFile(fileobj=file) if packed else file as data:
                return _read_body(path, data, size, packed)
    except FileNotFoundError:
        raise InputError(f"no IDX file {path}: give the path of one, such as train-images-idx3-ubyte.gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"IDX file {path} cannot be read ({describe(error)}): give the path of one") from None


def _begins(file: IO[bytes]) -> bytes:
    file.seek(0)
    start = file.read(2)
    file.seek(0)
    return start


def _read_body(path: Path, data: io.BufferedIOBase, size: int, packed: bool) -> Integer[np.ndarray, "..."]:
    """Read the array. Memory is allocated only if the file's size fits its header. size: bytes of the file."""
    start = data.read(4)
    if start[:2] != b"\0\0" or len(start) < 3 or start[2] not in DTYPES:
        raise InputError(
            f"{path} is not an IDX file of bytes or integers: it begins with {start[:3].hex(' ') or 'nothing'}, not "
            "00 00 08 or 00 00 0c"
        )
    dtype = np.dtype(DTYPES[start[2]])
    header = 4 + 4 * start[3] if len(start) > 3 else 8
    sides = data.read(header - 4)
    shape = np.frombuffer(sides.ljust(header - 4, b"\0"), ">u4").tolist()
    count, found = math.prod(shape) * dtype.itemsize, len(start) + len(sides)
    if packed:
        check_unpacks(count, size, str(path))
    if found == header and (packed or size == header + count):
        if len(shape) > MOST_AXES or (shape and shape[0] and not count):
            raise InputError(f"{path} is damaged: its shape is {shown(str(tuple(shape)), 80)}; fetch it again")
        check_fits(count, f"the content of '{path}'")
        array = np.empty(count, np.uint8)
        while read := data.readinto(array.data[found - header :][:CHUNK]):
            found += read
        found += len(data.read(1))  # at the end gzip checks its CRC
        if found == header + count:
            return array.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    found = found if packed else size
    there = "more" if found > header + count and packed else found
    raise InputError(f"{path} is damaged: expected {header + count} bytes, found {there}; fetch it again")
