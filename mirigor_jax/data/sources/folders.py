"""The reader of folders of image files, a folder a class."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mirigor_jax.data.sources.decode import choose_side, decoded
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.errors import InputError

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def read_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """The parts of a folder, each with a folder a class or with images alone. Raises InputError where one has none."""
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise InputError(f"image folder {root} is not a folder: give one that holds a folder of images for each class")
    side = choose_side(f"folder:{argument}", None, None, size)
    names = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
    folders = {part: root / name for name, part in names.items() if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    folder_names = [entry.name for folder in folders.values() for entry in os.scandir(folder) if entry.is_dir()]
    class_names = sorted({name for name in folder_names if not name.startswith(".")})
    parts = {}
    for part, folder in folders.items():
        by_class = [photographs(folder / name) for name in class_names] or [photographs(folder)]
        paths = [path for several in by_class for path in several]
        if not paths:
            raise InputError(f"image folder {folder} holds no image: give one with {', '.join(sorted(PHOTOGRAPHS))}")
        keys = [hashlib.sha256(os.path.relpath(path, folder).encode()).digest()[:8] for path in paths]
        fetch = partial(_fetch_files, paths)
        classes = np.repeat(np.arange(len(by_class), dtype=np.int32), [*map(len, by_class)])
        parts[part] = Part(classes, decoded(fetch, len(paths), side), np.frombuffer(b"".join(keys), np.uint64))
    return parts, class_names


def photographs(folder: Path, *, hidden: bool = False) -> list[str]:
    """Paths of the images anywhere in it; of those whose names begin with a dot only where asked."""
    walked = os.walk(folder)
    return sorted(
        os.path.join(where, file)
        for where, _, files in walked
        for file in files
        if os.path.splitext(file)[1].lower() in PHOTOGRAPHS and (hidden or not file.startswith("."))
    )


def _fetch_files(paths: list[str], rows: np.ndarray) -> Iterator[tuple[str, str]]:
    return ((paths[row], paths[row]) for row in rows)
