"""Files of a local disk or in a bucket, each written at one stroke.

A reader, or the next start after a kill, sees the old one or the new one. Process 0 writes; in the others nothing is
written.
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

AnyPath: TypeAlias = Path | epath.Path  # of a local disk, or of a bucket
Announce: TypeAlias = Callable[[str], None]  # is told the digest of a file before it takes its place


def to_path(text: str) -> AnyPath:
    """The path that a user names: a local one, or gs://BUCKET/….

    Raises InputError for other schemes, no bucket, and where what reads buckets is not installed; and as `local_path`.
    """
    scheme, remote, rest = text.partition("://")
    if not remote:
        return local_path(text)
    if scheme != "gs" or not rest.strip("/"):
        raise InputError(f"'{text}' is no path; give a local one, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"'{text}' is in a bucket, which takes gcsfs: pip install -e '.[gcs]'")
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # other processes write there too
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # which logs what it raises
    os.environ["EPATH_USE_TF"] = "false"  # or etils reads by TensorFlow wherever that is installed
    return epath.Path(text)


def local_path(text: str) -> Path:
    """The path of a local disk that a user names, ~ and ~USER as a shell has them.

    Raises InputError for a user who is none, and for a name that no file can have.
    """
    try:
        path = Path(text).expanduser()
        path.is_file()
    except (RuntimeError, OSError) as error:
        raise InputError(f"'{text}' is no path ({describe(error)}); give the path of a file or folder") from None
    return path


def io_errors(path: AnyPath) -> type[Exception]:
    """What is raised where `path` can't be read or written: of a bucket also its client's and its credentials' own."""
    return OSError if isinstance(path, Path) else Exception


def describe(error: Exception) -> str:
    """Why it was raised, in one line."""
    if message := getattr(error, "strerror", None):
        return message
    # The client's own words are the URL that it asked for.
    missing = isinstance(error, FileNotFoundError)
    return "no such bucket or file" if missing else " ".join([type(error).__name__, *str(error).split()])


def digest_file(file: AnyPath | IO[bytes]) -> str:
    """The CRC-32 and the size of a file, which is open or not: enough against damage, not against a forger."""
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
    """What `digest_file` gives of a file with this text."""
    return digest_file(io.BytesIO(text.encode()))


def open_file(path: AnyPath) -> IO[bytes]:
    """The file of that path, opened for reading; of a bucket, all that it holds."""
    return path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_bytes())


def _write_atomically(path: AnyPath, write: Callable[[IO[bytes]], Any], announce: Announce | None = None) -> None:
    import jax  # which the processes that only read images start without

    if jax.process_index() > 0:
        return
    if not isinstance(path, Path):
        whole = io.BytesIO()
        write(whole)
        if announce is not None:
            announce(digest_file(whole))
        path.write_bytes(whole.getvalue())  # an object is there once it is whole
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
    """Write strict JSON to `path`, atomically, as `json_text` has it."""
    write_text(path, json_text(value), announce)


def json_text(value: Any) -> str:
    """A file of strict JSON: NaN and infinities become null, arrays and tuples lists."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value as strict JSON has it: None for NaN and infinities, lists for arrays and tuples, dicts for records."""
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
    """Write one line of JSON a row to `path`, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows), announce)


def read_rows(path: AnyPath) -> list[dict[str, Any]]:
    """The rows of such a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_arrays(path: AnyPath, arrays: dict[str, np.ndarray], announce: Announce | None = None) -> None:
    """Write an .npz to `path`, atomically."""
    _write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays), announce)


def read_arrays(path: AnyPath) -> Any:
    """The array of an .npy; of an .npz its arrays by their names, each read when it is asked for.

    Raises InputError for what is no whole array of numbers or strings, and OSError where there is no file.
    """
    return outside.open_arrays(path)


def write_figure(path: AnyPath, figure: Any) -> None:
    """Write a matplotlib Figure to `path`, atomically."""
    _write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def set_aside(path: AnyPath) -> AnyPath:
    """Rename a file or a folder to .damaged-NAME beside it, in the place of an earlier one; returns that."""
    target = path.with_name(f".damaged-{path.name}")
    if target.exists():
        if target.is_dir():
            remove_tree(target)
        else:
            target.unlink()
    path.rename(target)
    return target


def remove_tree(path: AnyPath) -> None:
    """Remove a folder and all that is in it."""
    epath.Path(path).rmtree()
