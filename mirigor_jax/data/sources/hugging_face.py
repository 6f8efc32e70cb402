"""The reader of data sets on the Hugging Face Hub: tables in Parquet, or folders of images.

The parts, the columns and the names of the classes are those that the library `datasets` sees: the repository's card
(README.md) and the schema of its Parquet files say them, or else names of files and folders.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fsspec.utils import glob_translate

from mirigor_jax import hub
from mirigor_jax.data.sources.decode import choose_side, decoded
from mirigor_jax.data.sources.folders import PARTS, PHOTOGRAPHS, part_of_files
from mirigor_jax.data.sources.parts import Part, numbered
from mirigor_jax.errors import InputError, shown
from mirigor_jax.hub import Repository
from mirigor_jax.outside import check_fits, read_text
from mirigor_jax.settings import HuggingFace

# Split's name → the part that it is. Splits of other names are left out.
SPLITS = {name: part for part, names in PARTS.items() for name in names}
CARD = "README.md"
CONVERTED = "refs/convert/parquet"  # the branch in which the Hub keeps Parquet files of most data sets
IMAGE, CLASS, BINARY, INTEGER, TEXT, OTHER = "image", "class", "binary", "integer", "text", "other"
Files = dict[str, list[str]]  # part → its files


@dataclass(frozen=True)
class Column:
    """A column of a table.

    kind: IMAGE, CLASS (numbers of classes), BINARY, INTEGER, TEXT or OTHER.
    class_names: the names of the classes, for CLASS.
    """

    kind: str
    class_names: tuple[str, ...] = ()


def read_hf(
    argument: str, size: int | None, *, image: str | None = HuggingFace.image, label: str | None = HuggingFace.label
) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a data set on the Hub, from its Parquet files, or else from its folders of images.

    argument: "OWNER/NAME", and optionally "@REVISION" (a branch, a tag or a commit) and ":CONFIG" (its configuration).
    image, label: the columns. None: the only one of its kind, or the one named `image` or `label`. label "": no labels.
    The splits train, validation and test become the parts of these names; val, valid and dev are validation too.
    Raises InputError as `hub.repository` does, if there are several configurations and none is named, if there are
    neither Parquet files nor images, and if a column is missing, ambiguous or of another kind.
    """
    name = f"{hub.PREFIX}{argument}"
    found = hub.repository(name, "dataset")
    card = _card(found)
    config, files = _files_of(name, found, card)
    side = choose_side(name, None, None, size)
    if not any(file.endswith(".parquet") for several in files.values() for file in several):
        if (image, label) != (None, None):
            raise InputError(
                f"'{name}' has folders of images and no columns: leave out data.hf.image and data.hf.label"
            )
        return _read_images(name, found, files, side)
    return _read_tables(name, found, files, side, _Asked(image, label, _described(card, config)))


def hf_commit(argument: str) -> str:
    """The hash of the commit that a data set's name has today. Raises InputError as `hub.repository` does."""
    return hub.commit_of(f"{hub.PREFIX}{argument}", "dataset")


def _card(found: Repository) -> Mapping[str, Any]:
    """The YAML at the head of the repository's card; empty if there is none."""
    if CARD not in found.files:
        return {}
    path = found.fetch([CARD]) / CARD
    read_text(path, f"{CARD} of '{found.name}'")  # which checks its size
    try:
        return hub.card(path)
    except Exception as error:  # YAML's errors are of many types
        raise InputError(
            f"{CARD} of '{found.name}' is no card ({type(error).__name__}): give another revision"
        ) from None


def _files_of(name: str, found: Repository, card: Mapping[str, Any]) -> tuple[str, Files]:
    """The configuration that the name has, and the files of each of its parts. Raises InputError as `read_hf` does."""
    asked = hub.parse(name).part
    configs = {str(one.get("config_name", "default")): one for one in _dicts(card.get("configs"))}
    data = _of_one_kind([file for file in found.files if _is_data(file)])
    if not data:
        raise InputError(
            f"'{name}' has neither Parquet files nor images; give {_bare(found)}@{CONVERTED}, if the Hub has converted "
            "it, or unpack its files and give folder:PATH"
        )
    if not configs:
        inside = [file for file in data if file.startswith(f"{asked}/")] if asked else data
        if not inside:
            folders = sorted({file.partition("/")[0] for file in data if "/" in file})
            raise InputError(f"'{name}' has no configuration '{asked}'; its folders are {_some(folders)}")
        return asked, _by_names(inside, asked)
    default = next((key for key, one in configs.items() if one.get("default") is True), None)
    default = default or ("default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else None)
    chosen = asked or default
    if chosen not in configs:
        fix = f"give {found.name}:CONFIG with one of {_some([*configs])}"
        raise InputError(f"'{name}' has {'no' if asked else 'several'} configuration{'' if asked else 's'}; {fix}")
    return chosen, _declared(name, configs[chosen], data)


def _declared(name: str, config: Mapping[str, Any], data: Sequence[str]) -> Files:
    """The files of each split that a configuration of the card declares."""
    root = str(config.get("data_dir") or "").strip("/")
    inside = [file for file in data if file.startswith(f"{root}/")] if root else list(data)
    declared = config.get("data_files")
    if declared is None:
        return _by_names(inside, root)
    if isinstance(declared, Mapping):
        declared = [{"split": split, "path": path} for split, path in declared.items()]
    if not isinstance(declared, list) or not all(isinstance(one, Mapping) for one in declared):
        declared = [{"split": "train", "path": declared}]
    splits: Files = {}
    for one in declared:
        paths = one.get("path")
        patterns = [os.path.join(root, str(path)) for path in (paths if isinstance(paths, list) else [paths])]
        known = re.compile("|".join(map(glob_translate, patterns)))
        matched = [file for file in inside if known.match(file)]
        if matched:
            splits.setdefault(str(one.get("split", "train")), []).extend(matched)
    if not splits:
        raise InputError(f"'{name}': its card names files that the repository does not have; give another revision")
    return _parts(splits)


def _by_names(files: Sequence[str], root: str) -> Files:
    """The files by the splits that their paths say, without the folder `root`.

    A word in the name of a Parquet file says it, or else one in the nearest folder. Of images, a whole folder's name
    says it, since classes have names of any words. Without any split, all files are for training.
    """
    splits: Files = {}
    for file in files:
        splits.setdefault(_split_of(file.removeprefix(root).strip("/").split("/")), []).append(file)
    if len(splits) > 1:
        splits.pop("", None)
    return _parts(splits)


def _split_of(path: Sequence[str]) -> str:
    if path[-1].endswith(".parquet"):
        words = [word for part in reversed(path) for word in re.split(r"[^a-z]+", part.lower())]
    else:
        words = [folder.lower() for folder in path[:-1]]
    return next((word for word in words if word in SPLITS), "")


def _parts(splits: Files) -> Files:
    """The files of the parts. The only split is for training if its name says nothing else."""
    parts: Files = {}
    for split, files in splits.items():
        if part := SPLITS.get(split, "train" if len(splits) == 1 else ""):
            parts.setdefault(part, []).extend(files)
    return parts


def _is_data(file: str) -> bool:
    hidden = any(part.startswith((".", "__")) for part in file.split("/"))
    return not hidden and os.path.splitext(file)[1].lower() in {".parquet", *PHOTOGRAPHS}


def _of_one_kind(files: Sequence[str]) -> list[str]:
    """The Parquet files, or if there are none, the images: a repository may show pictures beside its tables."""
    return [file for file in files if file.endswith(".parquet")] or list(files)


def _read_images(name: str, found: Repository, files: Files, side: int) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of folders of images. The folder of an image in its part's folder is its class."""
    folder = found.fetch([file for several in files.values() for file in several])
    classes: dict[str, dict[str, list[str]]] = {}
    roots = {part: _root(several, part) for part, several in files.items()}
    for part, several in files.items():
        of_part = classes.setdefault(part, {})
        for file in several:
            label, slash, _ = file.removeprefix(roots[part]).partition("/")
            of_part.setdefault(label if slash else "", []).append(os.fspath(folder / file))
    names = sorted({label for of_part in classes.values() for label in of_part if label})
    if not names and any(re.search(r"(?:^|/)metadata\.(?:csv|jsonl|parquet)$", file) for file in found.files):
        raise InputError(
            f"the labels of '{name}' are in a metadata file, which is not read; give {_bare(found)}@{CONVERTED}"
        )
    parts = {}
    for part, of_part in classes.items():
        by_class = [of_part.get(label, []) for label in names or [""]]
        if not any(by_class):
            raise InputError(f"the {part} part of '{name}' has no folder of a class; the others have {_some(names)}")
        parts[part] = part_of_files(folder / roots[part], by_class, side)
    return parts, [shown(label) for label in names]


def _root(files: Sequence[str], part: str) -> str:
    """The folder of a part, with a slash at its end: the one whose name says the split, or else that of all files."""
    folders = os.path.commonpath([os.path.dirname(file) for file in files]).split("/")
    depth = next((i for i, folder in enumerate(folders, 1) if SPLITS.get(folder.lower()) == part), len(folders))
    return "".join(f"{folder}/" for folder in folders[:depth] if folder)


@dataclass(frozen=True)
class _Asked:
    """image, label: the columns that the user names. described: the columns that the card describes, by name."""

    image: str | None
    label: str | None
    described: Mapping[str, Column]


def _read_tables(
    name: str, found: Repository, files: Files, side: int, asked: _Asked
) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of Parquet files. Encoded images are held in memory, and decoded when they are read."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"'{name}' has Parquet files, which take pyarrow: pip install -e '.[hf]'") from None

    folder = found.fetch([file for several in files.values() for file in several])
    with _whole(name):
        opened = {part: [pq.ParquetFile(folder / file) for file in several] for part, several in files.items()}
        schema = opened[next(iter(opened))][0].schema_arrow
    columns = _columns(schema) | {key: one for key, one in asked.described.items() if key in schema.names}
    columns |= _in_schema(schema)
    image, label = _image_column(name, columns, asked.image), _label_column(name, columns, asked.label)
    num_bytes = sum(_bytes_of(file, image) for several in opened.values() for file in several)
    check_fits(num_bytes, f"the column {image} of '{name}'")
    images, labels = {}, {}
    for part, several in opened.items():
        with _whole(name):
            images[part], labels[part] = _encoded(several, image), _values(several, label)
        if isinstance(images[part], str):
            raise InputError(f"'{name}': the column {image} holds {images[part]}, expected images; name another one")
    named = columns[label].class_names if label else ()
    values = _known(name, label, labels, named)
    parts = {}
    for part, column in images.items():
        classes = np.zeros(len(column), np.int32)
        if label:
            if (missing := _missing(labels[part], named)).all():  # as in the test part of a competition
                continue
            if missing.any():
                raise InputError(
                    f"'{name}': {missing.sum():,} rows of the {part} part have no {label}: name another one"
                )
            classes = np.searchsorted(values, labels[part].astype(values.dtype)).astype(np.int32)
        parts[part] = numbered(classes, decoded(partial(_fetch, f"{name} {part}", column), len(column), side))
    return parts, named or tuple(shown(str(value)) for value in values.tolist())


@contextmanager
def _whole(name: str) -> Iterator[None]:
    """Within this context, an error of pyarrow becomes an InputError: a file is damaged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many types for a damaged file
        reason = " ".join([type(error).__name__, *str(error).split()])
        raise InputError(
            f"a Parquet file of '{name}' is damaged ({shown(reason, 200)}): give another revision, or remove the file "
            "from the cache of huggingface_hub"
        ) from None


def _columns(schema: Any) -> dict[str, Column]:
    """The columns of a table by name, as far as their types tell."""
    import pyarrow as pa

    def kind(type_: Any) -> str:
        if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
            return IMAGE
        binary = pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
        text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
        whole = pa.types.is_integer(type_) or pa.types.is_boolean(type_)
        return BINARY if binary else TEXT if text else INTEGER if whole else OTHER

    return {field.name: Column(kind(field.type)) for field in schema}


def _in_schema(schema: Any) -> dict[str, Column]:
    """The columns that the library `datasets` has described in the schema of a Parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {name: one for name, one in features.items() if isinstance(one, dict) and name in schema.names}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    kinds = {"Image": IMAGE, "ClassLabel": CLASS}
    return {
        name: Column(kinds[one["_type"]], tuple(map(str, one.get("names") or ())))
        for name, one in named.items()
        if one.get("_type") in kinds
    }


def _described(card: Mapping[str, Any], config: str) -> dict[str, Column]:
    """The columns of images and classes that a card describes, for one configuration."""
    infos = _dicts(card.get("dataset_info"))
    info = next((one for one in infos if str(one.get("config_name", "default")) == config), None)
    columns = {}
    for one in _dicts((info or (infos[0] if len(infos) == 1 else {})).get("features")):
        kind = one.get("dtype")
        if kind == "image":
            columns[str(one.get("name"))] = Column(IMAGE)
        elif isinstance(kind, Mapping) and isinstance(of_class := kind.get("class_label"), Mapping):
            names = of_class.get("names")
            # YAML has the names as a list, or as {"0": NAME, …}.
            ordered = [names[key] for key in sorted(names, key=int)] if isinstance(names, Mapping) else names or ()
            columns[str(one.get("name"))] = Column(CLASS, tuple(map(str, ordered)))
    return columns


def _image_column(name: str, columns: Mapping[str, Column], asked: str | None) -> str:
    _check_known(name, "image", columns, asked)
    if asked:
        return asked
    known = _of(columns, IMAGE) or _of(columns, BINARY)
    if not known:
        raise InputError(f"'{name}' has the columns {_some([*columns])}, and none of images; give another data set")
    return _only(name, "image", known)


def _label_column(name: str, columns: Mapping[str, Column], asked: str | None) -> str:
    """The column of the classes; "" if the images have no labels."""
    _check_known(name, "label", columns, asked)
    if asked is not None:
        if asked and columns[asked].kind not in (CLASS, INTEGER, TEXT):
            raise InputError(f"data.hf.label='{asked}' of '{name}' holds neither numbers nor text; name another column")
        return asked
    known = _of(columns, CLASS)
    others = _of(columns, INTEGER) + _of(columns, TEXT)
    if known or "label" in others:
        return _only(name, "label", known or ["label"])
    if others:
        raise InputError(
            f"'{name}' does not say which column has the classes; give --config.data.hf.label= with one of "
            f"{_some(others)}, or '' for images without labels"
        )
    return ""


def _check_known(name: str, what: str, columns: Mapping[str, Column], asked: str | None) -> None:
    if asked and asked not in columns:
        raise InputError(f"data.hf.{what}='{asked}' is no column of '{name}'; it has {_some([*columns])}")


def _only(name: str, what: str, known: Sequence[str]) -> str:
    """The only one of the columns, or the one that is named as usual."""
    if len(known) > 1 and what not in known:
        raise InputError(
            f"'{name}' has several columns of {what}s; give --config.data.hf.{what}= with one of {_some(known)}"
        )
    return what if what in known else known[0]


def _of(columns: Mapping[str, Column], kind: str) -> list[str]:
    return [name for name, column in columns.items() if column.kind == kind]


def _bytes_of(file: Any, column: str) -> int:
    """Bytes of a column of a Parquet file, unpacked."""
    total = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group)
        chunks = (rows.column(i) for i in range(rows.num_columns))
        total += sum(chunk.total_uncompressed_size for chunk in chunks if _is_part(chunk.path_in_schema, column))
    return total


def _is_part(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _encoded(files: Sequence[Any], column: str) -> Any:
    """The encoded images of a column: an array of bytes. Or a word for the column's type if it has no bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for file in files:
        values = file.read(columns=[column]).column(column)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, "bytes")
        if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
            return str(values.type)
        chunks += values.chunks
    return pa.chunked_array([chunk.cast(pa.large_binary()) for chunk in chunks], pa.large_binary())


def _values(files: Sequence[Any], column: str) -> np.ndarray:
    """The values of a column, with None for missing ones. An empty array if there is no such column."""
    if not column:
        return np.empty(0)
    lists = [file.read(columns=[column]).column(column).to_pylist() for file in files]
    return np.array([value for several in lists for value in several], object)


def _missing(values: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Whether each label is missing; -1 stands for a missing one if labels are numbers of classes."""
    return np.array([value is None or (bool(class_names) and value == -1) for value in values], bool)


def _known(name: str, label: str, labels: Mapping[str, np.ndarray], class_names: Sequence[str]) -> np.ndarray:
    """The sorted values of the labels, which are the classes. Raises InputError for a number without a class's name."""
    known = [value for several in labels.values() for value in several[~_missing(several, class_names)].tolist()]
    if not class_names:
        return np.unique(np.array(known)) if known else np.empty(0)
    if wrong := [value for value in known if not 0 <= value < len(class_names)]:
        raise InputError(f"'{name}': {label} {wrong[0]} is none of its {len(class_names)} classes: name another column")
    return np.arange(len(class_names))


def _fetch(title: str, column: Any, rows: np.ndarray) -> Iterator[tuple[str, io.BytesIO]]:
    for row in rows.tolist():
        yield f"{title} row {row}", io.BytesIO(column[row].as_py() or b"")


def _bare(found: Repository) -> str:
    return f"{hub.PREFIX}{found.repo}"


def _dicts(entry: Any) -> list[Mapping[str, Any]]:
    """The dictionaries in an entry of a card, which has one or a list of them."""
    entries = entry if isinstance(entry, list) else [entry]
    return [one for one in entries if isinstance(one, Mapping)]


def _some(names: Sequence[str]) -> str:
    return shown(", ".join(names), 300)
