"""The reader of IDX files, the format of MNIST."""

import gzip
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from mirigor_jax.data.sources.parts import Part, parts_from_arrays
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import describe, local_path
from mirigor_jax.outside import check_fits, check_regular, check_unpacks

CHUNK = 2**20  # bytes that are unpacked at once
MOST_AXES = 32  # of an array


def read_idx_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a folder with MNIST's four files. Raises InputError as `read_labeled_idx` does."""
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = local_path(argument) / f"{prefix}-images-idx3-ubyte"
        arrays[part] = read_labeled_idx(path if path.exists() else path.with_name(f"{path.name}.gz"))
    return parts_from_arrays(f"idx:{argument}", arrays, size)


def read_labeled_idx(path: Path) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, " n"]]:
    """Read the images of an IDX file, and their labels.

    path: the file of images, X-images-idx3-ubyte[.gz]. The labels are in X-labels-idx1-ubyte[.gz] beside it.
    Raises InputError as `read_idx` does, and if the two arrays don't match.
    """
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    images, labels = read_idx(path), read_idx(beside)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path} holds an array of shape {images.shape} and {beside} of {labels.shape}, expected images (n, h, w) "
            "and labels (n,): name the images' file as MNIST does, PREFIX-images-idx3-ubyte, with its labels beside it"
        )
    return images, labels


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read the array of unsigned bytes in an IDX file (the format of MNIST), gzipped or not.

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


def _read_body(path: Path, data: io.BufferedIOBase, size: int, packed: bool) -> UInt8[np.ndarray, "..."]:
    """Read the array. Memory is allocated only if the file's size fits its header. size: bytes of the file."""
    start = data.read(4)
    if start[:3] != b"\0\0\x08":
        raise InputError(
            f"{path} is not an IDX file of bytes: it begins with {start[:3].hex(' ') or 'nothing'}, not 00 00 08"
        )
    header = 4 + 4 * start[3] if len(start) > 3 else 8
    sides = data.read(header - 4)
    shape = np.frombuffer(sides.ljust(header - 4, b"\0"), ">u4").tolist()
    count, found = math.prod(shape), len(start) + len(sides)
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
            return array.reshape(shape)
    found = found if packed else size
    there = "more" if found > header + count and packed else found
    raise InputError(f"{path} is damaged: expected {header + count} bytes, found {there}; fetch it again")
