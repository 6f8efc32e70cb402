"""The reader of IDX files, the format of MNIST."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mirigor_jax.data.sources.parts import Part, parts_from_arrays
from mirigor_jax.errors import InputError


def read_idx_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """The parts of the folder of MNIST's four files. Raises InputError as `read_labeled_idx` does."""
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = Path(argument).expanduser() / f"{prefix}-images-idx3-ubyte"
        arrays[part] = read_labeled_idx(path if path.exists() else path.with_name(f"{path.name}.gz"))
    return parts_from_arrays(f"idx:{argument}", arrays, size)


def read_labeled_idx(path: Path) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, " n"]]:
    """Images of an IDX file and the labels beside it: of X-images-idx3-ubyte[.gz], X-labels-idx1-ubyte[.gz].

    Raises InputError as `read_idx` does, and if the two files don't belong together.
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
    """The array of unsigned bytes in an IDX file (the format of MNIST), gzipped or not.

    Raises InputError if the file is missing, of another format, or not as long as its header says.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        raise InputError(f"no IDX file {path}: give the path of one, such as train-images-idx3-ubyte.gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise InputError(f"IDX file {path} cannot be read ({error.strerror}): give the path of one") from None
    if data[:3] != b"\0\0\x08":
        raise InputError(
            f"{path} is not an IDX file of bytes: it begins with {data[:3].hex(' ') or 'nothing'}, not 00 00 08"
        )
    header = 4 + 4 * data[3] if len(data) > 3 else 8
    shape = np.frombuffer(data[4:header].ljust(header - 4, b"\0"), ">u4").tolist()
    if len(data) != (expected := header + math.prod(shape)):
        raise InputError(f"{path} is damaged: expected {expected} bytes, found {len(data)}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
