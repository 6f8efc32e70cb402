"""Generated pairs in files for any framework, with a card that names their exact MI and says how to read them.

FORMATS has one writer for each format. A writer gets blocks of pairs, so the memory for images does not depend on the
number of pairs. All files are made in a hidden folder that gets its name once everything is written, so a killed export
leaves no folder under that name.
"""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

import mirigor_jax
from mirigor_jax import checks, fields, settings
from mirigor_jax.data.draws import EXPORT
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.pairing import ByClass, Pairing
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import describe, json_text, plain, to_path

BLOCK_BYTES = 2**25  # of the images that are held at once
SHARD = 50_000  # pairs of a file of ArrayRecord
VIEWS = ("x", "y")
PARTS = {"train": "", "test": "_test"}  # part → the ending of its arrays' names in an .npz
PROGRAM = "python -m mirigor_jax.data.cdp"
OF_A_RUN = ("seed", "data.seed", "data.size", "data.pairing", "data.mi")  # settings of a run that an export takes too
KEYWORDS = {"data.seed": "data_seed"}  # of `cdp.export`; the others are the last part of the setting's key


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs to write.

    images: the generator.
    pairing: the joint distribution of the views' attributes; its views have classes.
    seed: of the pairs.
    counts: part → its number of pairs. The parts are consecutive ranges of one stream, so they share no image.
    on_progress: called as on_progress(done, all, note) after each block.
    """

    images: GeneratedImages
    pairing: ByClass
    seed: int
    counts: Mapping[str, int]
    on_progress: Callable[[int, int, str], None] | None

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """A name of each class: the values of the attributes that the views share."""
        images, law = self.images, self.images.law
        rows = np.indices(images.sizes, np.int32).reshape(len(images.sizes), -1).T
        rows = rows if law is None else rows[law.possible(range(len(images.sizes)))]
        _, first = np.unique(self.pairing.classes(rows), return_index=True)
        columns = [a for a, name in enumerate(images.names) if name in self.pairing.shared]
        return tuple(", ".join(images.value_names[a][row[a]] for a in columns) or "all" for row in rows[first].tolist())

    def blocks(self, part: str, *, note: str = "") -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Blocks of a part: (row of the block's first pair, its arrays).

        The arrays are `x`, `y` uint8 (k, s, s, 3), `attributes_x`, `attributes_y` int32 (k, a), and `labels_x`,
        `labels_y` int64 (k,), the classes of the two views.
        """
        before = 0
        for name, count in self.counts.items():
            if name == part:
                break
            before += count
        size = max(1, BLOCK_BYTES // (2 * 3 * self.images.size**2))
        for start in range(0, self.counts[part], size):
            stop = min(start + size, self.counts[part])
            block = self.pairing.draw(self.images, self.seed, EXPORT, before + start, before + stop)
            for view in VIEWS:
                block[f"labels_{view}"] = self.pairing.classes(block[f"attributes_{view}"]).astype(np.int64)
            yield start, block
            if self.on_progress is not None:
                self.on_progress(before + stop, sum(self.counts.values()), f"{part} {note}".rstrip())


def write(
    folder: str | os.PathLike[str],
    images: GeneratedImages,
    pairing: Pairing,
    *,
    seed: int,
    pairs: int = settings.Export.pairs,
    test: int = settings.Export.test,
    format: str = settings.Export.format,
    made_by: Mapping[str, Any],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write pairs of generated images to a new folder, and a card: card.json, and README.md for people.

    The pairs come from a stream of their own, which no run uses. An encoder that was trained on an export can thus be
    tested on the images of a run.

    folder: the folder to make, on a local disk. It may exist if it is empty.
    images: the generator.
    pairing: the joint distribution of two views; its MI must be known.
    seed: of the pairs.
    pairs, test: number of pairs of the parts `train` and `test`. If test is 0, there is no test part.
    format: a name in FORMATS.
    made_by: how the set is made: `command`, `settings`. The card holds it.
    on_progress: called as on_progress(done, all, note) after each block of pairs.
    Returns the contents of card.json. `mi_bits` and `entropy_bits` are I(X;Y) and H(C), exact, in bits.
    Raises InputError if the folder is not empty or can't be written, for a format that is unknown or lacks its package,
    for numbers of pairs out of their limits, and for a pairing whose MI is not known.
    """
    fields.check(settings.Export, {"format": format, "pairs": pairs, "test": test})
    checks.seed(seed)
    by_class = pairing.by_class
    if by_class is None or pairing.truth_bits is None:
        raise InputError(
            f"a pairing that shares {' and '.join(pairing.shared) or 'nothing'} with augmented views has no known MI: "
            "export a pairing without simclr, and augment the images in your own program"
        )
    target, writer = _new_folder(folder), FORMATS[format]
    counts = {"train": pairs, "test": test} if test else {"train": pairs}
    data = Pairs(images, by_class, seed, counts, on_progress)
    card = _card(data, writer, format, made_by)
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        writer.write(draft, data)
        (draft / "README.md").write_text(_readme(card, writer), encoding="utf-8")
        (draft / "card.json").write_text(json_text(card), encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({describe(error)}): give a folder with room for it") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return card


def _new_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder to make. Raises InputError if it exists and is not an empty folder, or is in a bucket."""
    if not os.fspath(folder):
        raise InputError("give the folder to write, such as --out=cdp_pairs")
    target = to_path(os.fspath(folder))
    if not isinstance(target, Path):
        raise InputError(f"'{folder}' is in a bucket: give a local folder, and copy it there")
    target = Path(os.path.abspath(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{shown(str(target))} exists and is not an empty folder: give another one, or move it away")
    return target


def _card(data: Pairs, writer: "Writer", format: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    images, pairing = data.images, data.pairing
    return plain(
        {
            "title": f"Pairs of the {images.title} with known mutual information",
            "mi_bits": pairing.truth_bits,
            "entropy_bits": pairing.entropy_bits,
            "shared": pairing.shared,
            "num_classes": pairing.num_classes,
            "class_names": data.class_names,
            "attributes": dict(zip(images.names, images.value_names, strict=True)),
            "law": None if images.law is None else images.law.table,
            "image_size": images.size,
            "parts": data.counts,
            "format": format,
            "source": writer.source,
            "made_by": {"package": "mirigor_jax", "version": mirigor_jax.__version__, **made_by},
        }
    )


def _readme(card: Mapping[str, Any], writer: "Writer") -> str:
    made, side = card["made_by"], card["image_size"]
    parts = " and ".join(f"{count:,} pairs of the part `{part}`" for part, count in card["parts"].items())
    lines = [
        f"# {card['title']}",
        "",
        f"{parts}, two views x and y of {side} × {side} pixels each.",
        "",
        f"- I(X;Y) = {card['mi_bits']!r} bits, exact.",
        f"- H(C) = {card['entropy_bits']!r} bits, exact: the entropy of the class of the view x.",
        f"- The views share: {', '.join(card['shared']) or 'nothing'}. Each combination of these values that can occur",
        f"  is a class; there are {card['num_classes']:,}, and `class_names` in card.json lists them in order.",
        "",
        "I(X;Y) and H(C) are those of the distribution that the pairs were drawn from. The pairs are independent, and",
        "no image is in two of them. The attributes of an image, whose values are numbered from 0 in this order:",
        "",
        *(f"- {name}: {', '.join(values)}" for name, values in card["attributes"].items()),
        "",
        "## Read it",
        "",
        writer.reading.strip(),
        "",
        "`card.json` holds all this for programs.",
        "",
        "## How it was made",
        "",
        f"By mirigor_jax {made['version']}:",
        "",
        "```",
        made["command"],
        "```",
        "",
        "```json",
        json.dumps(made["settings"], indent=2, ensure_ascii=False),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _write_npz(folder: Path, data: Pairs) -> None:
    """pairs.npz. Its members are written one after the other, so each view is drawn in a pass of its own."""
    side, columns = data.images.size, len(data.images.names)
    with zipfile.ZipFile(folder / "pairs.npz", "w", allowZip64=True) as archive:
        for part, ending in PARTS.items():
            if part not in data.counts:
                continue
            n = data.counts[part]
            # Labels and attributes take a thousandth of the memory of the images, and are held whole.
            labels = {view: np.empty(n, np.int64) for view in VIEWS}
            attributes = {view: np.empty((n, columns), np.int32) for view in VIEWS}
            for view in VIEWS:
                with _member(archive, f"images{_view(view)}{ending}") as file:
                    _write_header(file, np.dtype(np.uint8), (n, side, side, 3))
                    for start, block in data.blocks(part, note=f"view {view}"):
                        file.write(block[view].tobytes())
                        labels[view][start : start + len(block[view])] = block[f"labels_{view}"]
                        attributes[view][start : start + len(block[view])] = block[f"attributes_{view}"]
            for name, arrays in (("labels", labels), ("attributes", attributes)):
                for view, array in arrays.items():
                    with _member(archive, f"{name}{_view(view)}{ending}") as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)


def _view(view: str) -> str:
    """The ending of a view's names: the names of view x are those that a reader of single images looks for."""
    return "" if view == "x" else f"_{view}"


def _member(archive: zipfile.ZipFile, name: str) -> io.BufferedIOBase:
    # A ZipInfo is dated 1980, so exports of equal pairs are equal files.
    return cast(io.BufferedIOBase, archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True))


def _write_header(file: io.BufferedIOBase, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_folder(folder: Path, data: Pairs) -> None:
    """x/PART/CLASS/ROW.png, y/PART/CLASS/ROW.png, and pairs.csv with a line for each pair."""
    names, digits = data.images.names, len(str(len(data.class_names) - 1))
    folders = [f"{c:0{digits}d} {name}".replace("/", "_") for c, name in enumerate(data.class_names)]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        columns = [f"{name}_{view}" for view in VIEWS for name in ("class", *names)]
        lines.writerow(["part", "row", *VIEWS, *columns])
        for part, n in data.counts.items():
            for view in VIEWS:
                for name in folders:
                    (folder / view / part / name).mkdir(parents=True)
            for start, block in data.blocks(part):
                for i in range(len(block["x"])):
                    paths, values = [], []
                    for view in VIEWS:
                        label = int(block[f"labels_{view}"][i])
                        path = f"{view}/{part}/{folders[label]}/{start + i:0{len(str(n - 1))}d}.png"
                        (folder / path).write_bytes(_png(block[view][i]))
                        paths.append(path)
                        values += [label, *block[f"attributes_{view}"][i].tolist()]
                    lines.writerow([part, start + i, *paths, *values])
    for empty in folder.glob("*/*/*"):
        if not any(empty.iterdir()):
            empty.rmdir()  # of a class that no image has, as in a small part


def _rows(block: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A block's pairs, one dict each: `image`, `label`, each attribute; and with _y those of the view y."""
    for i in range(len(block["x"])):
        row: dict[str, Any] = {}
        for view in VIEWS:
            row[f"image{_view(view)}"] = _png(block[view][i])
            row[f"label{_view(view)}"] = int(block[f"labels_{view}"][i])
            values = block[f"attributes_{view}"][i].tolist()
            row |= {f"{name}{_view(view)}": value for name, value in zip(names, values, strict=True)}
        yield row


def _write_array_record(folder: Path, data: Pairs) -> None:
    """cdp/1.0.0/, a set as TFDS prepares it, without TensorFlow."""
    import tensorflow_datasets as tfds  # imported here, since the import is slow

    images, ends = data.images, [_view(view) for view in VIEWS]
    form = tfds.features
    features: dict[str, Any] = {}
    for end in ends:
        features[f"image{end}"] = form.Image(shape=(images.size, images.size, 3), encoding_format="png")
        features[f"label{end}"] = form.ClassLabel(names=[f"{c} {name}" for c, name in enumerate(data.class_names)])
        for name, values in zip(images.names, images.value_names, strict=True):
            features[f"{name}{end}"] = form.ClassLabel(names=list(values))
    place = folder / "cdp" / "1.0.0"
    place.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="cdp", version=tfds.core.Version("1.0.0"), data_dir=os.fspath(place), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=form.FeaturesDict(features), supervised_keys=("image", "label")
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=SHARD, file_format="array_record")
    writer.initialize_splits([*data.counts])
    for part in data.counts:
        for _, block in data.blocks(part):
            # TFDS takes encoded files; to encode arrays it would need TensorFlow.
            rows = _rows(block, images.names)
            files = [{k: io.BytesIO(v) if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
            writer.add_examples({part: files})
    writer.close_splits([*data.counts])


def _write_parquet(folder: Path, data: Pairs) -> None:
    """train.parquet and test.parquet, with a group of rows for each block."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("format='parquet' takes pyarrow: pip install -e '.[parquet]'") from None
    for part in data.counts:
        writer = None
        try:
            for _, block in data.blocks(part):
                table = pa.Table.from_pylist([*_rows(block, data.images.names)])
                writer = writer or pq.ParquetWriter(folder / f"{part}.parquet", table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


@dataclass(frozen=True)
class Writer:
    """A format.

    write: (folder, the pairs) → None; writes all files but the card.
    source: the folder as this package's `data.source` reads it, relative to the folder. "": no source reads it.
    reading: how to read it, as Markdown.
    """

    write: Callable[[Path, Pairs], None]
    source: str
    reading: str


FORMATS: dict[str, Writer] = {
    "npz": Writer(
        _write_npz,
        "npz:pairs.npz",
        """
`pairs.npz` holds `images` uint8 (n, s, s, 3), `labels` int64 (n,) and `attributes` int32 (n, a) of the view x of the
part train; `images_y` and so on are those of the view y. The names of the part test end in `_test`: `images_test`,
`images_y_test`.

```python
import numpy as np

with np.load("pairs.npz") as arrays:
    x, y, labels = arrays["images"], arrays["images_y"], arrays["labels"]
```

mirigor_jax reads the view x: `--config.data.source=npz:pairs.npz`.
""",
    ),
    "folder": Writer(
        _write_folder,
        "folder:x",
        """
`x/PART/CLASS/ROW.png` is the view x of a pair, and `y/PART/CLASS/ROW.png` its view y. With a noisy channel the two may
have different classes. `pairs.csv` has a line for each pair, with both paths, classes and attributes.

```python
import csv

with open("pairs.csv", newline="", encoding="utf-8") as file:
    pairs = list(csv.DictReader(file))  # pairs[0]["x"] is the path of an image
```

`torchvision.datasets.ImageFolder("x/train")` reads the view x. So does mirigor_jax: `--config.data.source=folder:x`,
with `--config.data.size=` the side of the images.
""",
    ),
    "array_record": Writer(
        _write_array_record,
        "tfds:cdp",
        """
The folder is a data_dir of TFDS. Each example has `image`, `label` and the attributes of the view x; `image_y` and so
on are those of the view y. No TensorFlow is needed.

```python
import grain
import tensorflow_datasets as tfds

source = tfds.data_source("cdp", data_dir=".", split="train")  # source[0]["image"] is an array (s, s, 3)
batches = grain.MapDataset.source(source).shuffle(seed=0).batch(64)
```

mirigor_jax reads the view x: `--config.data.source=tfds:cdp --config.data.tfds_dir=.`.
""",
    ),
    "parquet": Writer(
        _write_parquet,
        "",
        """
`PART.parquet` has a row for each pair: `image`, a PNG file, `label` and the attributes of the view x; `image_y` and so
on are those of the view y.

```python
import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

row = pq.read_table("train.parquet").slice(0, 1).to_pylist()[0]
x = np.asarray(Image.open(io.BytesIO(row["image"])))
```
""",
    ),
}


def known() -> dict[str, fields.Setting]:
    """The settings of an export by flag: its own, and those of a run on images that it takes, by their keys there."""
    of_runs = fields.settings_of(settings.Images)
    taken = [key for key in of_runs if key in OF_A_RUN or key.startswith(("data.cdp.", "data.epsilon."))]
    return fields.settings_of(settings.Export) | {key: of_runs[key] for key in taken}


def main(export: Callable[..., Mapping[str, Any]], argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0; 2 after one line on stderr for bad input; 130 after Ctrl-C.

    export: `cdp.export`.
    argv: the arguments; None: those of the process, which SIGTERM then ends with code 143, without half an export.
    """
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if {"-h", "--help"} & {*argv}:
        print(_help(), end="")
        return 0
    # Imported here, since JAX comes with them, which takes a second.
    from mirigor_jax.config_files import pop_flags
    from mirigor_jax.progress import show_progress, verbosely

    try:
        rest, options = pop_flags(list(argv), verbose=bool)
        values = _parsed(rest)
        folder = values.pop("out")
        given: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            if section == "data.epsilon":
                given.setdefault("epsilon", {})[name] = value
            else:
                given[KEYWORDS.get(key, name)] = value
        made_by = shlex.join([*PROGRAM.split(), *rest])
        with verbosely(options["verbose"]), show_progress("export", "pairs") as on_progress:
            card = export(folder, **given, command=made_by, on_progress=on_progress)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{folder}: {' + '.join(f'{n:,} {part}' for part, n in card['parts'].items())} pairs as {card['format']}")
    print(f"I(X;Y) = {card['mi_bits']:.6g} bits, H(C) = {card['entropy_bits']:.6g} bits; README.md says how to read it")
    return 0


def _parsed(argv: Sequence[str]) -> dict[str, Any]:
    """The values that the arguments give, by flag. Raises InputError for an unknown flag or a wrong value."""
    flags, values = known(), {"out": settings.Export.out}
    for argument in argv:
        flag, equals, text = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") and equals and flag in flags):
            raise InputError(f"unexpected argument '{argument}': use --FLAG=VALUE, with a flag of {', '.join(flags)}")
        setting = flags[flag]
        try:
            value: Any = tuple(map(setting.kind, text.split("+"))) if setting.several else setting.kind(text)
        except ValueError:
            raise InputError(f"--{argument.removeprefix('--')} is not of type {setting.kind.__name__}") from None
        setting.check(flag, value)
        values[flag] = value
    return values


def _help() -> str:
    lines = [
        f"{PROGRAM} --out=FOLDER [--FLAG=VALUE ...]",
        "",
        "Writes CDP pairs of known mutual information to files for any framework.",
        "  --verbose",
        "      Print all progress lines also if stdout is no terminal.",
    ]
    for flag, setting in known().items():
        default = "+".join(map(str, setting.default)) if setting.several else setting.default
        choices = f" ({fields.either(setting.choices)})" if setting.choices else ""
        limits = f" ({setting.limits})" if setting.limits else ""
        lines += [f"  --{flag}={default}", *textwrap.wrap(
            f"{setting.meaning}{choices}{limits}", 80, initial_indent="      ", subsequent_indent="      "
        )]  # fmt: skip
    return "\n".join(lines) + "\n"
