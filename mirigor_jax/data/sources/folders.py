"""The reader of folders of image files, with one folder for each class."""

import hashlib
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from mirigor_jax.data.sources.decode import choose_side, decoded
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.errors import InputError, listed, shown
from mirigor_jax.files import describe, local_path
from mirigor_jax.outside import special

PHOTOGRAPHS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
# The last word of the name of a part's folder, in any case; "set", "images" or "data" may follow it.
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
MORE_WORDS = ("set", "images", "data")
# Names under which file managers leave copies of files; those of notebooks, as all hidden names, begin with a dot.
COPIES = ("__MACOSX", "@eaDir")
CHECKPOINT = "-checkpoint"  # a notebook adds it to the name of a file that it copies


def read_folder(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a folder. Each part has one folder for each class, or images without classes.

    Parts have names as in PARTS. A single folder around the parts, or around the classes, is passed through.
    Warns about what is passed over. Raises InputError if a part has no image, if two folders are of one part, if there
    are parts but none for training, and if classes of two parts are the same folder by a link.
    """
    root = local_path(argument)
    if not root.is_dir():
        raise InputError(f"image folder {root} is not a folder: give one that holds a folder of images for each class")
    side = choose_side(f"folder:{argument}", None, None, size)
    passed_over: Counter[str] = Counter()
    folders = _parts(_inner(root), passed_over)
    classes = {part: _class_folders(folder, passed_over) for part, folder in folders.items()}
    for part, other in combinations(folders, 2):
        if both := sorted({*classes[part].values()} & {*classes[other].values()}):
            raise InputError(f"{part} and {other} of {root} both link to {both[0]}: give each part images of its own")
    class_names = sorted({name for of_part in classes.values() for name in of_part})
    parts = {}
    for part, folder in folders.items():
        own = [os.path.join(folder, name) if name in classes[part] else None for name in class_names]
        by_class = _images(own or [os.fspath(folder)], passed_over)
        if not any(by_class):
            kinds = f" (it has {_counts(passed_over)})" if passed_over else ""
            raise InputError(
                f"image folder {folder} holds no image{kinds}: give one with {', '.join(sorted(PHOTOGRAPHS))}"
            )
        if own:
            _count_beside(folder, passed_over)
        parts[part] = part_of_files(folder, by_class, side)
    _tell(root, passed_over)
    _tell_nested(root, folders["train"], classes["train"])
    return parts, [shown(name) for name in class_names]


def part_of_files(folder: Path, by_class: Sequence[Sequence[str]], side: int) -> Part:
    """The part of a set whose images are files.

    folder: the images' paths relative to it decide which images of the part are split off for validation and test.
    by_class: the paths of each class, or of the only class if the images have no labels.
    side: pixels. The side of the decoded images.
    """
    paths = [path for several in by_class for path in several]
    keys = [hashlib.sha256(os.fsencode(os.path.relpath(path, folder))).digest()[:8] for path in paths]
    numbers = np.repeat(np.arange(len(by_class), dtype=np.int32), [*map(len, by_class)])
    read = decoded(partial(_fetch_files, paths), len(paths), side)
    return Part(numbers, read, np.frombuffer(b"".join(keys), np.uint64))


def _parts(folder: Path, passed_over: Counter[str]) -> dict[str, Path]:
    """Part → its folder. Only "train", this folder, if its folders are classes.

    Folders with names as in PARTS are parts if they hold folders, or if there are no other folders.
    Raises InputError if two folders are of one part, and if there are parts but none for training.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for path in _subfolders(folder):
        part = _part_of(path.name)
        found.setdefault(part, []).append(path) if part else others.append(path.name)
    nested = all(_subfolders(path) for several in found.values() for path in several)
    if not found or (others and not nested) or ("train" not in found and (others or not nested)):
        return {"train": folder}
    if several := next((several for several in found.values() if len(several) > 1), None):
        names = listed([path.name for path in several])
        raise InputError(f"image folder {folder} has {names}, which are one part: keep one, or join them")
    if "train" not in found:
        names = listed([path.name for [path] in found.values()])
        raise InputError(f"image folder {folder} has {names}, but no part for training: name one train")
    if others:
        passed_over[f"folders beside the parts ({listed(sorted(others), 5)})"] += len(others)
    _count_beside(folder, passed_over)
    return {part: _inner(found[part][0], part) for part in PARTS if part in found}


def _part_of(name: str) -> str | None:
    """The part that a folder's name means; None if it means none. "seg_train" and "Training Set" are of training."""
    words = re.findall(r"[a-z]+", name.lower())
    while len(words) > 1 and words[-1] in MORE_WORDS:
        words.pop()
    return next((part for part, names in PARTS.items() if words and words[-1] in names), None)


def _inner(folder: Path, part: str | None = None) -> Path:
    """The folder inside, if it is the only one, no image is beside it, and it holds classes or parts.

    part: of the folder. A folder inside with the name of another part is kept as it is.
    """
    while True:
        inside = _subfolders(folder)
        if len(inside) != 1 or inside[0].is_symlink() or _part_of(inside[0].name) not in (None, part):
            return folder
        within = _subfolders(inside[0])
        if not (len(within) > 1 or any(_part_of(path.name) == "train" for path in within)):
            return folder
        if any(
            _kind(entry) in ("image", "link") for entry in _entries(os.fspath(folder)) if not os.path.isdir(entry.path)
        ):
            return folder
        folder = inside[0]


def _subfolders(folder: Path) -> list[Path]:
    """The folders inside that are not hidden, sorted; links to folders are among them."""
    entries = _entries(os.fspath(folder))
    return sorted(Path(entry.path) for entry in entries if not _is_idle(entry.name) and os.path.isdir(entry.path))


def _count_beside(folder: Path, passed_over: Counter[str]) -> None:
    """Count the files that are beside the folders of classes or parts."""
    for entry in _entries(os.fspath(folder)):
        if _is_idle(entry.name):
            _count_hidden(entry, passed_over)
        elif not os.path.isdir(entry.path):
            kind = _kind(entry)
            passed_over["images beside the folders" if kind in ("image", "link") else kind] += 1


def _tell_nested(root: Path, folder: Path, classes: Mapping[str, str]) -> None:
    """Warn if the classes hold folders alone, and one of them several: perhaps these are the classes."""
    inside = {name: _subfolders(Path(path)) for name, path in classes.items()}
    own = any(_kind(entry) in ("image", "link") for path in classes.values() for entry in _entries(path))
    if inside and all(inside.values()) and not own and max(map(len, inside.values())) > 1:
        names = listed([f"{name}/{path.name}" for name, paths in inside.items() for path in paths], 4)
        warnings.warn(
            shown(
                f"image folder {root}: its classes {listed(sorted(classes), 4)} hold folders alone ({names}); if those "
                f"are the classes, move them up into {folder}",
                1000,
            ),
            stacklevel=3,
        )


def photographs(folder: Path) -> list[str]:
    """Paths of all images in the folder and its subfolders, also hidden ones. Warns about files that it leaves out."""
    passed_over: Counter[str] = Counter()
    [paths] = _images([os.fspath(folder)], passed_over, hidden=True) if folder.is_dir() else [[]]
    _tell(folder, passed_over)
    return paths


def _class_folders(folder: Path, passed_over: Counter[str]) -> dict[str, str]:
    """Each class's name → the real path of its folder. Circular links and links to other classes are left out."""
    root = os.path.join(os.path.realpath(folder), "")
    entries = [entry for entry in _entries(os.fspath(folder)) if not _is_idle(entry.name) and os.path.isdir(entry.path)]
    classes: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
        real = os.path.realpath(entry.path)
        if entry.is_symlink() and _is_read(os.path.join(real, ""), root, classes.values()):
            passed_over["links to folders that are read already"] += 1
        else:
            classes[entry.name] = real
    return classes


def _is_read(real: str, root: str, known: Iterable[str]) -> bool:
    """Whether the target of a link contains the root, or is inside a known folder."""
    return root.startswith(real) or any(real.startswith(os.path.join(folder, "")) for folder in known)


def _images(folders: Sequence[str | None], passed_over: Counter[str], *, hidden: bool = False) -> list[list[str]]:
    """Paths of the images in each folder and its subfolders, sorted. A file with links to it is listed once, as itself.

    folders: None stands for a folder without images.
    passed_over: this function adds the number of files that it leaves out, by kind.
    hidden: whether names that begin with a dot count.
    """
    images: list[list[str]] = [[] for _ in folders]
    links: list[tuple[str, list[str]]] = []
    for folder, several in zip(folders, images, strict=True):
        for entry in _walk(folder, passed_over, hidden) if folder else ():
            kind = _kind(entry)
            if kind == "link":
                links.append((entry.path, several))
            elif kind == "image":
                several.append(entry.path)
            else:
                passed_over[kind] += 1
    known = {os.path.realpath(path) for several in images for path in several} if links else set()
    for path, several in sorted(links, key=lambda link: link[0]):
        if (real := os.path.realpath(path)) in known:
            passed_over["links to images that are read already"] += 1
        else:
            known.add(real)
            several.append(path)
    return [sorted(several) for several in images]


def _walk(folder: str, passed_over: Counter[str], hidden: bool = True) -> Iterator[os.DirEntry]:
    """All entries but folders, in this folder and its subfolders. Links to folders are not followed.

    passed_over: counts the entries that are left out if `hidden` is False: hidden ones, and copies of notebooks.
    """
    folders = [folder]
    while folders:
        entries = _entries(folders.pop())
        names = {entry.name for entry in entries}
        for entry in entries:
            if not hidden and _is_idle(entry.name):
                _count_hidden(entry, passed_over)
                continue
            stem, ending = os.path.splitext(entry.name)
            if not hidden and stem.endswith(CHECKPOINT) and stem.removesuffix(CHECKPOINT) + ending in names:
                passed_over["copies of notebooks"] += 1
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
    """Whether the name is hidden, or one under which notebooks and file managers leave copies of files."""
    return name.startswith(".") or name in COPIES


def _count_hidden(entry: os.DirEntry, passed_over: Counter[str]) -> None:
    """Count a hidden file, or the files in a hidden folder."""
    is_folder = entry.is_dir(follow_symlinks=False)
    passed_over["hidden files"] += sum(1 for _ in _walk(entry.path, passed_over)) if is_folder else 1


def _kind(entry: os.DirEntry) -> str:
    """An entry's kind: "image", "link" (to an image), or the name in messages of a kind that is passed over."""
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
    if ending in PHOTOGRAPHS:
        return "link" if is_link else "image"
    return f"{shown(ending, 12)} files" if ending else "files without a suffix"


def _tell(folder: Path, passed_over: Counter[str]) -> None:
    if passed_over:
        warnings.warn(shown(f"image folder {folder}: left out {_counts(passed_over)}", 1000), stacklevel=3)


def _counts(passed_over: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.items()))


def _fetch_files(paths: list[str], rows: np.ndarray) -> Iterator[tuple[str, str]]:
    return ((paths[row], paths[row]) for row in rows)
