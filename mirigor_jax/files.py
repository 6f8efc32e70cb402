"""Files on a local disk or in a bucket, each written atomically.

A reader always sees the whole old file or the whole new one, also after a kill. Only process 0 writes; in other
processes the writing functions do nothing.
"""

import dataclasses
import importlib.util
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

import fsspec
import numpy as np
from etils import epath

from mirigor_jax import outside
from mirigor_jax.errors import InputError

AnyPath: TypeAlias = Path | epath.Path  # on a local disk, or in a bucket
Announce: TypeAlias = Callable[[str], None]  # called with the new file's digest before it replaces the old one


def to_path(text: str) -> AnyPath:
    """The path that a user names: a local one, or gs://BUCKET/….

    Raises InputError for other schemes, for a missing bucket name, if gcsfs is not installed, and as `local_path` does.
    """
    scheme, remote, rest = text.partition("://")
    if not remote:
        return local_path(text)
    if scheme != "gs" or not rest.strip("/"):
        raise InputError(f"'{text}' is no path; give a local one, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"'{text}' is in a bucket, which takes gcsfs: pip install -e '.[gcs]'")
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # other processes write to the bucket too
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises
    os.environ["EPATH_USE_TF"] = "false"  # otherwise etils reads by TensorFlow if that is installed
    return epath.Path(text)


def local_path(text: str) -> Path:
    """The local path that a user names, with ~ and ~USER expanded.

    Raises InputError for an unknown USER, and for a name that no file can have.
    """
    try:
        path = Path(text).expanduser()
        path.is_file()
    except (RuntimeError, OSError) as error:
        raise InputError(f"'{text}' is no path ({describe(error)}); give the path of a file or folder") from None
    return path


def io_errors(path: AnyPath) -> type[Exception]:
    """The type of errors in reading or writing `path`: for a bucket, also those of its client and its credentials."""
    return OSError if isinstance(path, Path) else Exception


def describe(error: Exception) -> str:
    """The reason for an error in reading or writing, in one line."""
    if message := getattr(error, "strerror", None):
        return message
    # The client's own message is just the URL that it asked for.
    missing = isinstance(error, FileNotFoundError)
    return "no such bucket or file" if missing else " ".join([type(error).__name__, *str(error).split()])


def digest_file(file: AnyPath | IO[bytes]) -> str:
    """The CRC-32 and the size of a file, given by path or open. They reveal damage, but not deliberate changes."""
    if isinstance(file, Path | epath.Path):
        with open_file(file) as opened:
            return digest_file(opened)
    file.seek(0)
    crc = size = 0
    while chunk := file.read(2**20):
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    file.seek(0)
    return f"crc32:{crc:08x}:{size}"


def digest_text(text: str) -> str:
    """The digest that `digest_file` gives for a file with this text."""
    return digest_file(io.BytesIO(text.encode()))


def open_file(path: AnyPath) -> IO[bytes]:
    """Open a file for reading bytes; a file in a bucket is first read whole into memory."""
    return path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_bytes())


def _write_atomically(path: AnyPath, write: Callable[[IO[bytes]], Any], announce: Announce | None = None) -> None:
    import jax  # here, because processes that only read images don't need it

    if jax.process_index() > 0:
        return
    if not isinstance(path, Path):
        whole = io.BytesIO()
        write(whole)
        if announce is not None:
            announce(digest_file(whole))
        path.write_bytes(whole.getvalue())  # a bucket shows an object only when it is whole
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            write(file)
        if announce is not None:
            announce(digest_file(draft))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str, announce: Announce | None = None) -> None:
    """Write text to `path`, atomically."""
    _write_atomically(path, lambda file: file.write(text.encode()), announce)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write bytes to `path`, atomically."""
    _write_atomically(path, lambda file: file.write(data))


def write_json(path: AnyPath, value: Any, announce: Announce | None = None) -> None:
    """Write `json_text(value)` to `path`, atomically."""
    write_text(path, json_text(value), announce)


def json_text(value: Any) -> str:
    """The text of a strict JSON file: NaN and infinities become null; arrays and tuples become lists."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's types: None for NaN and infinities, lists for arrays and tuples, dicts for dataclasses."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_rows(path: AnyPath, rows: list[dict[str, Any]], announce: Announce | None = None) -> None:
    """Write one line of JSON for each row to `path`, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows), announce)


def read_rows(path: AnyPath) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; [] if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_arrays(path: AnyPath, arrays: dict[str, np.ndarray], announce: Announce | None = None) -> None:
    """Write an .npz to `path`, atomically."""
    _write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays), announce)


def read_arrays(path: AnyPath) -> Any:
    """The array of an .npy, or the arrays of an .npz by name, each read when it is asked for.

    Raises InputError if the file does not hold whole arrays of numbers or strings, and OSError if there is no file.
    """
    return outside.open_arrays(path)


def write_figure(path: AnyPath, figure: Any) -> None:
    """Write a matplotlib Figure to `path`, atomically."""
    _write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def set_aside(path: AnyPath) -> AnyPath:
    """Rename a file or folder to .damaged-NAME in its own folder, replacing an earlier one. Returns the new path."""
    target = path.with_name(f".damaged-{path.name}")
    if target.exists():
        if target.is_dir():
            remove_tree(target)
        else:
            target.unlink()
    path.rename(target)
    return target


def remove_tree(path: AnyPath) -> None:
    """Remove a folder and everything in it."""
    epath.Path(path).rmtree()
