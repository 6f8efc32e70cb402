"""Writing a file at one stroke: a reader, or the next start after a kill, sees the old one or the new one.

Process 0 writes; in the others nothing is written.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            write(file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write text to `path`, atomically."""
    _replace(path, lambda file: file.write(text.encode()))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write bytes to `path`, atomically."""
    _replace(path, lambda file: file.write(data))


def replace_json(path: Path, value: Any) -> None:
    """Write strict JSON to `path`, atomically: NaN and infinities become null, arrays and tuples lists."""
    replace_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one line of JSON a row to `path`, atomically."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def replace_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz to `path`, atomically."""
    _replace(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
