"""The reader of folders of image files, with one folder for each class."""

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from mirigor_jax.data.sources.decode import choose_side, decoded
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import describe, local_path
from mirigor_jax.outside import special

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# Images in these formats are not read; a warning counts them.
OTHERS = {".avif", ".eps", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".pdf", ".ps", ".psd", ".svg", ".tga"}


def read_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a folder. Each part has one folder for each class, or images without classes.

    Warns about the files that it leaves out. Raises InputError if a part has no image, and if classes of two parts are
    the same folder by a link.
    """
    root = local_path(argument)
    if not root.is_dir():
        raise InputError(f"image folder {root} is not a folder: give one that holds a folder of images for each class")
    side = choose_side(f"folder:{argument}", None, None, size)
    names = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
    folders = {part: root / name for name, part in names.items() if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    left_out: Counter[str] = Counter()
    classes = {part: _class_folders(folder, left_out) for part, folder in folders.items()}
    for part, other in combinations(folders, 2):
        if both := sorted({*classes[part].values()} & {*classes[other].values()}):
            raise InputError(f"{part} and {other} of {root} both link to {both[0]}: give each part images of its own")
    class_names = sorted({name for of_part in classes.values() for name in of_part})
    parts = {}
    for part, folder in folders.items():
        own = [os.path.join(folder, name) if name in classes[part] else None for name in class_names]
        by_class = _images(own or [os.fspath(folder)], left_out)
        paths = [path for several in by_class for path in several]
        if not paths:
            raise InputError(f"image folder {folder} holds no image: give one with {', '.join(sorted(PHOTOGRAPHS))}")
        keys = [hashlib.sha256(os.fsencode(os.path.relpath(path, folder))).digest()[:8] for path in paths]
        fetch = partial(_fetch_files, paths)
        numbers = np.repeat(np.arange(len(by_class), dtype=np.int32), [*map(len, by_class)])
        parts[part] = Part(numbers, decoded(fetch, len(paths), side), np.frombuffer(b"".join(keys), np.uint64))
    _tell(root, left_out)
    return parts, [shown(name) for name in class_names]


def photographs(folder: Path) -> list[str]:
    """Paths of all images in the folder and its subfolders, also hidden ones. Warns about files that it leaves out."""
    left_out: Counter[str] = Counter()
    [paths] = _images([os.fspath(folder)], left_out, hidden=True) if folder.is_dir() else [[]]
    _tell(folder, left_out)
    return paths


def _class_folders(folder: Path, left_out: Counter[str]) -> dict[str, str]:
    """Each class's name → the real path of its folder. Circular links and links to other classes are left out."""
    root = os.path.join(os.path.realpath(folder), "")
    entries = [entry for entry in _entries(os.fspath(folder)) if not _is_idle(entry.name) and entry.is_dir()]
    classes: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
        real = os.path.realpath(entry.path)
        if entry.is_symlink() and _is_read(os.path.join(real, ""), root, classes.values()):
            left_out["links to folders that are read already"] += 1
        else:
            classes[entry.name] = real
    return classes


def _is_read(real: str, root: str, known: Iterable[str]) -> bool:
    """Whether the target of a link contains the root, or is inside a known folder."""
    return root.startswith(real) or any(real.startswith(os.path.join(folder, "")) for folder in known)


def _images(folders: Sequence[str | None], left_out: Counter[str], *, hidden: bool = False) -> list[list[str]]:
    """Paths of the images in each folder and its subfolders, sorted. A file with links to it is listed once, as itself.

    folders: None stands for a folder without images.
    left_out: this function adds the number of files that it leaves out, by kind.
    hidden: whether names that begin with a dot count.
    """
    images: list[list[str]] = [[] for _ in folders]
    links: list[tuple[str, list[str]]] = []
    for folder, several in zip(folders, images, strict=True):
        for entry in _walk(folder, hidden) if folder else ():
            kind = _kind(entry)
            if kind == "link":
                links.append((entry.path, several))
            elif kind == "image":
                several.append(entry.path)
            elif kind:
                left_out[kind] += 1
    known = {os.path.realpath(path) for several in images for path in several} if links else set()
    for path, several in sorted(links, key=lambda link: link[0]):
        if (real := os.path.realpath(path)) in known:
            left_out["links to images that are read already"] += 1
        else:
            known.add(real)
            several.append(path)
    return [sorted(several) for several in images]


def _walk(folder: str, hidden: bool) -> Iterator[os.DirEntry]:
    """All entries but folders, in this folder and its subfolders. Links to folders are not followed."""
    folders = [folder]
    while folders:
        for entry in _entries(folders.pop()):
            if _is_idle(entry.name) and not hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                yield entry


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be read ({describe(error)}): leave it out") from None


def _is_idle(name: str) -> bool:
    """Whether the name is one under which notebooks and file managers leave copies of files."""
    return name.startswith(".") or name == "__MACOSX"


def _kind(entry: os.DirEntry) -> str:
    """An entry's kind: "image", "link" (to an image), the name in messages of a kind that is left out, or "" else."""
    ending = os.path.splitext(entry.name)[1].lower()
    is_link = entry.is_symlink()
    try:
        mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else os.stat(entry.path).st_mode
    except OSError:
        return "links that lead nowhere"
    if kind := special(mode):
        return f"{kind.split()[-1]}s"
    if stat.S_ISDIR(mode):
        return "links to folders"
    return ("link" if is_link else "image") if ending in PHOTOGRAPHS else f"{ending} files" if ending in OTHERS else ""


def _tell(folder: Path, left_out: Counter[str]) -> None:
    if left_out:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()))
        warnings.warn(shown(f"image folder {folder}: left out {counts}", 1000), stacklevel=3)


def _fetch_files(paths: list[str], rows: np.ndarray) -> Iterator[tuple[str, str]]:
    return ((paths[row], paths[row]) for row in rows)
