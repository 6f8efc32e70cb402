"""Images from outside: labelled sets (TFDS, folders, IDX, npz), and backgrounds (procedural, photographs, TFDS)."""

import difflib
import gzip
import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image, ImageOps

from mirigor_jax.data.imageset import ImageSet
from mirigor_jax.data.pairing import random_words, rank_in_class
from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, failures, locate, read_arrays

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises of an image
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
NPZ_NAMES = {  # ours, Keras' and MedMNIST's
    "train": (("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")),
    "validation": (("images_validation", "labels_validation"), ("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("images_test", "labels_test"), ("x_test", "y_test"), ("test_images", "test_labels")),
}
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of the images, and of what is then left, where a source has no such part
NOISE_STREAM, CORRUPTION_STREAM = 100, 200  # far from those that pairs are drawn from

Read = Callable[[np.ndarray], np.ndarray]


class _Part(NamedTuple):
    """A part of a source: its images' classes (all 0 without labels), a reader of rows, and numbers to split it by.

    The numbers don't depend on anything that a user may set, so that no setting moves an image between parts.
    """

    classes: Int[np.ndarray, " n"]
    read: Read
    keys: Shaped[np.ndarray, " n"]


def labelled(
    spec: str,
    *,
    size: int | None = None,
    classes: str = "all",
    rotations: bool = False,
    noise: float = 0.0,
    corrupted: float = 0.0,
    seed: int = 0,
    tfds_dir: str | None = None,
) -> dict[str, ImageSet]:
    """The parts `train`, `validation` and `test` of a set of images, disjoint, their first attribute the `class`.

    spec: tfds:NAME, a set that TFDS has prepared in `tfds_dir` (None: its own place), read without TensorFlow;
        folder:PATH, a folder a class, itself or in PATH/train and PATH/test or val, or images without labels;
        idx:PATH, the folder of MNIST's four files; fashion_mnist, Debian's, else TFDS's;
        npz:PATH, arrays named as in NPZ_NAMES, `labels` left out where there are none;
        features:PATH, an .npz of h (n, d) and labels (n,), and h_test and so on if there are any: rows for images.
        Where there is no validation part, a tenth of each class's training images are; no test part, a fifth of all.
    size: pixels, to which the shorter side is resized (bilinear, antialiased) before the middle is cut out; None: their
        own, where all are square and of one size. Grey images become RGB.
    classes: all, first-half, second-half, file:PATH (one a line), or names or numbers joined by "+".
    rotations: also the attribute `rotation`: training images at all four turns, the others at one each.
    noise: share of salt-and-pepper pixels. corrupted: where above 0, also the attribute `corrupted`, the class redrawn
        with that probability. seed: of these.
    Raises InputError for another spec or class, a share outside 0 to 1, what can't be found or read, and sets that are
    not prepared; a broken image raises it when it is read, naming it and counting all of its part.
    """
    for name, share in (("noise", noise), ("corrupted", corrupted)):
        if not 0 <= share <= 1:
            raise InputError(f"{name}={share:g}: expected a share, 0 to 1")
    if size is not None and size < 1:
        raise InputError(f"image size {size}: expected 1 pixel or more")
    parts, class_names = _source(spec, size, tfds_dir)
    sets = _three(spec, parts, class_names)
    chosen = _chosen(classes, class_names)
    if chosen != list(range(len(class_names))):
        sets = {name: _of_classes(images, chosen) for name, images in sets.items()}
    for stream, (name, images) in enumerate(sets.items()):
        if rotations:
            images = images.turned() if name == "train" else images.turned_once(seed)
        if noise:
            images = images.salted(noise, seed, NOISE_STREAM + stream)
        if corrupted:
            images = images.corrupted(corrupted, seed, CORRUPTION_STREAM + stream)
        sets[name] = images
    return sets


def noise(kind: str, *, count: int, size: int, seed: int) -> ImageSet:
    """Images of independent bytes: "uniform", or "gaussian" of mean 127.5 and standard deviation 64, cut to 0 to 255.

    An image is a function of its row and the seed. Source: Lee et al. 2023, appendix C.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            rng = np.random.Generator(np.random.Philox(key=np.array([seed, row], np.uint64)))
            if kind == "uniform":
                image[:] = rng.integers(256, size=image.shape, dtype=np.uint8)
            else:
                image[:] = np.clip(np.rint(127.5 + 64 * rng.standard_normal(image.shape, np.float32)), 0, 255)
        return images

    return ImageSet(f"{kind} noise", (), (), np.zeros((count, 0), np.int32), read)


def backgrounds(kind: str, *, count: int, size: int, seed: int) -> UInt8[np.ndarray, "count rows size 3"]:
    """Strips that are `size` wide and taller than that: any `size` consecutive rows of one are a background.

    kind: "spectrum", procedural images with the 1/f amplitude of natural scenes (Field 1987);
        "folder:PATH", random crops of the photographs under PATH; "tfds:NAME", of the train split of a TFDS image set.
    Raises InputError for another kind, a folder that is missing, empty or holds a broken image, an unknown TFDS set.
    """
    rng = np.random.default_rng(seed)
    name, _, argument = kind.partition(":")
    if name == "spectrum" and not argument:
        return _spectrum(count, size, rng)
    if name == "folder" and argument:
        return _folder(Path(argument).expanduser(), count, size, rng)
    if name == "tfds" and argument:
        return _tfds(argument, count, size, rng)
    raise InputError(f"unknown background {kind!r}: use spectrum, folder:PATH or tfds:NAME")


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


def read_labelled_idx(path: Path) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, " n"]]:
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


def _source(spec: str, size: int | None, tfds_dir: str | None) -> tuple[dict[str, _Part], Sequence[str]]:
    """The parts that a source has, by name, and the names of its classes; none where it has no labels."""
    kind, _, argument = spec.partition(":")
    if spec == "fashion_mnist":
        if FASHION_MNIST.is_dir():
            return _read_idx_folder(str(FASHION_MNIST), size)[0], FASHION
        try:
            return _read_tfds(spec, size, tfds_dir)
        except InputError as error:
            raise InputError(f"{error}; or, on Debian and Ubuntu, `apt-get install dataset-fashion-mnist`") from None
    readers: dict[str, Callable[[str, int | None], tuple[dict[str, _Part], Sequence[str]]]] = {
        "features": _read_features,
        "tfds": partial(_read_tfds, tfds_dir=tfds_dir),
        "folder": _read_folder,
        "idx": _read_idx_folder,
        "npz": _read_npz,
    }
    if kind not in readers or not argument:
        raise InputError(
            f"unknown image set {spec!r}: use tfds:NAME, folder:PATH, idx:PATH, npz:PATH, "
            "fashion_mnist or features:PATH"
        )
    return readers[kind](argument, size)


def _three(spec: str, parts: dict[str, _Part], class_names: Sequence[str]) -> dict[str, ImageSet]:
    """Train, validation and test: the source's own, or of each training class the images with the smallest keys."""
    if "train" not in parts:
        raise InputError(f"{spec} has no train part, but {', '.join(parts) or 'none'}: give one")
    parts = dict(parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")  # as ImageNet's is used

    def images(name: str, part: _Part) -> ImageSet:
        names, columns = (("class",), part.classes[:, None]) if class_names else ((), part.classes[:, None][:, :0])
        values = (tuple(class_names),) if class_names else ()
        return ImageSet(f"{name} part of {spec}", names, values, columns.astype(np.int32), part.read)

    whole = parts["train"]
    order = np.lexsort((whole.keys, whole.classes))
    place = np.empty(len(order))
    place[order] = (rank_in_class(whole.classes[order]) + 0.5) / np.bincount(whole.classes)[whole.classes[order]]
    tested = 0.0 if "test" in parts else TEST_SHARE
    validated = tested if "validation" in parts else tested + VALIDATION_SHARE * (1 - tested)
    rows = {"train": place >= validated, "validation": (place >= tested) & (place < validated), "test": place < tested}
    return {
        name: images(name, parts[name])
        if name in parts and name != "train"
        else images(name, whole).take(np.flatnonzero(mask))
        for name, mask in rows.items()
    }


def _chosen(classes: str, names: Sequence[str]) -> list[int]:
    """Numbers of the classes asked for, ascending."""
    if classes == "all":
        return [*range(len(names))]
    if not names:
        raise InputError(f"classes={classes!r}, but the images have no labels: leave it at all")
    halves = {"first-half": [*range(len(names) // 2)], "second-half": [*range(len(names) // 2, len(names))]}
    if classes in halves:
        return halves[classes]
    asked = classes.split("+")
    if classes.startswith("file:"):
        try:
            lines = Path(classes[5:]).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"classes={classes!r} cannot be read ({error}): give a text of one class a line") from None
        # Lists of ImageNet's classes have words behind the WordNet number.
        asked = [line.strip() if line.strip() in names else line.split()[0] for line in lines if line.strip()]
    numbers = {name: number for number, name in enumerate(names)}
    numbers = {str(number): number for number in range(len(names))} | numbers
    for name in asked or [""]:
        if name not in numbers:
            near = difflib.get_close_matches(name, names, n=3) or [*names[:3], "..."]
            raise InputError(f"classes={classes!r}: no class {name!r} among the {len(names)}: {', '.join(near)}")
    return sorted({numbers[name] for name in asked})


def _of_classes(images: ImageSet, chosen: list[int]) -> ImageSet:
    number = np.full(images.sizes[0], -1, np.int32)
    number[chosen] = np.arange(len(chosen))
    classes = number[images.attributes[:, 0]]
    kept = images.take(np.flatnonzero(classes >= 0))
    names = tuple(images.value_names[0][c] for c in chosen)
    return ImageSet(images.title, images.names, (names,), classes[classes >= 0, None], kept.read)


def _read_tfds(name: str, size: int | None, tfds_dir: str | None) -> tuple[dict[str, _Part], Sequence[str]]:
    import tensorflow_datasets as tfds  # here, since it is slow and only this needs it

    try:
        builder = tfds.builder(name, data_dir=tfds_dir)
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"TFDS cannot find {name!r} ({reason}): see tfds.list_builders()") from None
    # TFDS prepares most sets by TensorFlow; reading goes without.
    needs = "run `pip install tensorflow`, which nothing else needs, then"
    if not builder.is_prepared():
        place = f" --data_dir={tfds_dir}" if tfds_dir else ""
        raise InputError(
            f"TFDS set {name!r} is not prepared in {builder.data_dir}: {needs} "
            f"`tfds build {name} --file_format=array_record{place}`"
        )
    image, label = builder.info.supervised_keys or ("image", "label")
    features = builder.info.features
    if image not in features or not isinstance(features[image], tfds.features.Image):
        raise InputError(f"TFDS set {name!r} has {', '.join(features)} but no image: name an image set")
    has_labels = label in features and isinstance(features[label], tfds.features.ClassLabel)
    height, width = features[image].shape[:2]
    side = _side(f"tfds:{name}", height, width, size)

    parts = {}
    for part in ("train", "validation", "test"):
        if part not in builder.info.splits:
            continue
        try:
            source: Any = builder.as_data_source(part, decoders={image: tfds.decode.SkipDecoding()})
        except NotImplementedError:
            raise InputError(
                f"TFDS set {name!r} in {builder.data_dir} is of a format without random access: {needs} "
                f"`tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record`"
            ) from None
        if has_labels and source[0][label] < 0:  # a competition's test part
            continue
        classes = np.array([example[label] for example in source] if has_labels else [0] * len(source), np.int32)
        fetch = partial(_fetch_records, f"tfds:{name} {part}", source, image)
        parts[part] = _numbered(classes, _decoded(fetch, len(source), side))
    return parts, tuple(features[label].names) if has_labels else ()


def _fetch_records(title: str, source: Any, image: str, rows: np.ndarray) -> Iterator[tuple[str, io.BytesIO]]:
    for row, example in zip(rows, source.__getitems__(rows.tolist()), strict=True):
        yield f"{title} row {row}", io.BytesIO(example[image])


def _read_folder(argument: str, size: int | None) -> tuple[dict[str, _Part], Sequence[str]]:
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise InputError(f"image folder {root} is not a folder: give one that holds a folder of images for each class")
    side = _side(f"folder:{argument}", None, None, size)
    names = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
    folders = {part: root / name for name, part in names.items() if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    found = [entry.name for folder in folders.values() for entry in os.scandir(folder) if entry.is_dir()]
    class_names = sorted({name for name in found if not name.startswith(".")})
    parts = {}
    for part, folder in folders.items():
        by_class = [_photographs(folder / name) for name in class_names] or [_photographs(folder)]
        paths = [path for several in by_class for path in several]
        if not paths:
            raise InputError(f"image folder {folder} holds no image: give one with {', '.join(sorted(PHOTOGRAPHS))}")
        keys = [hashlib.sha256(os.path.relpath(path, folder).encode()).digest()[:8] for path in paths]
        fetch = partial(_fetch_files, paths)
        classes = np.repeat(np.arange(len(by_class), dtype=np.int32), [*map(len, by_class)])
        parts[part] = _Part(classes, _decoded(fetch, len(paths), side), np.frombuffer(b"".join(keys), np.uint64))
    return parts, class_names


def _photographs(folder: Path) -> list[str]:
    """Paths of the images anywhere in it."""
    walked = os.walk(folder)
    return sorted(
        os.path.join(where, file)
        for where, _, files in walked
        for file in files
        if os.path.splitext(file)[1].lower() in PHOTOGRAPHS and not file.startswith(".")
    )


def _fetch_files(paths: list[str], rows: np.ndarray) -> Iterator[tuple[str, str]]:
    return ((paths[row], paths[row]) for row in rows)


def _read_idx_folder(argument: str, size: int | None) -> tuple[dict[str, _Part], Sequence[str]]:
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = Path(argument).expanduser() / f"{prefix}-images-idx3-ubyte"
        arrays[part] = read_labelled_idx(path if path.exists() else path.with_name(f"{path.name}.gz"))
    return _of_arrays(f"idx:{argument}", arrays, size)


def _arrays(
    title: str, path: AnyPath, names: Mapping[str, Sequence[tuple[str, str]]], expected: str
) -> dict[str, tuple[np.ndarray, Any]]:
    """Each part's rows and labels (None without) in a user's .npz, by the first of its pairs of names that is there."""
    arrays = {}
    try:
        with read_arrays(path) as file:
            for part, pairs in names.items():
                if found := next((pair for pair in pairs if pair[0] in file), None):
                    arrays[part] = file[found[0]], file.get(found[1])
            held = ", ".join(file)
    except (failures(path), ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{title} cannot be read ({error}): save arrays of numbers by numpy.savez") from None
    if "train" not in arrays:
        raise InputError(f"{title} holds {held}: expected {expected}")
    return arrays


def _read_npz(argument: str, size: int | None) -> tuple[dict[str, _Part], Sequence[str]]:
    path = locate(argument)
    arrays = _arrays(f"npz:{path}", path, NPZ_NAMES, "images, labels and, if there are any, images_test, ...")
    for part, (images, labels) in arrays.items():
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        if images.dtype != np.uint8 or not shaped or not len(images):
            raise InputError(
                f"npz:{path} has {part} images of dtype {images.dtype}, shape {images.shape}: expected uint8 (n, h, w) "
                "or (n, h, w, 3)"
            )
        if labels is not None and (labels.size != len(images) or labels.dtype.kind not in "biuUS"):
            raise InputError(
                f"npz:{path} has {part} labels of dtype {labels.dtype}, shape {labels.shape} for {len(images)} images: "
                "expected a whole number or a string for each"
            )
    if len({labels is None for _, labels in arrays.values()}) > 1:
        raise InputError(f"npz:{path} has labels for some of its parts only: give all or none")
    return _of_arrays(f"npz:{argument}", arrays, size)


def _read_features(argument: str, size: int | None) -> tuple[dict[str, _Part], Sequence[str]]:
    """Representations in place of images: whoever made them, they are read and paired in the same way."""
    del size
    path = locate(argument)
    endings = {"train": "", "validation": "_validation", "test": "_test"}
    names = {part: ((f"h{ending}", f"labels{ending}"),) for part, ending in endings.items()}
    arrays = _arrays(f"features:{path}", path, names, "h, labels and, if there are any, h_test, labels_test")
    for part, (h, labels) in arrays.items():
        if h.ndim != 2 or h.dtype.kind != "f" or h.shape[1] != arrays["train"][0].shape[1]:
            raise InputError(
                f"features:{path} has {part} h of dtype {h.dtype}, shape {h.shape}: expected floats (n, d)"
            )
        if labels is None or labels.shape != (len(h),) or labels.dtype.kind not in "biuUS":
            there = "no labels" if labels is None else f"labels of dtype {labels.dtype}, shape {labels.shape}"
            raise InputError(
                f"features:{path}: {len(h):,} {part} rows of h and {there}: expected an integer or a string for each"
            )
        if broken := int(np.sum(~np.isfinite(h).all(axis=1))):
            raise InputError(f"features:{path}: {broken:,} {part} rows have NaN or infinity: leave these out")
    values = np.unique(np.concatenate([labels for _, labels in arrays.values()]))
    classes = {part: np.searchsorted(values, labels).astype(np.int32) for part, (_, labels) in arrays.items()}
    parts = {part: _numbered(classes[part], h.astype(np.float32).__getitem__) for part, (h, _) in arrays.items()}
    return parts, tuple(map(str, values.tolist()))


def _of_arrays(title: str, arrays: dict[str, Any], size: int | None) -> tuple[dict[str, _Part], Sequence[str]]:
    """Parts of images held in memory, with labels of any kind or None."""
    known = [labels.ravel() for _, labels in arrays.values() if labels is not None]
    values = np.unique(np.concatenate(known)) if known else np.empty(0)
    parts = {}
    for part, (images, labels) in arrays.items():
        classes = np.zeros(len(images), int) if labels is None else np.searchsorted(values, labels.ravel())
        side = _side(title, images.shape[1], images.shape[2], size)
        parts[part] = _numbered(classes.astype(np.int32), partial(_look_up, images, side))
    return parts, tuple(map(str, values.tolist()))


def _look_up(images: np.ndarray, side: int, rows: np.ndarray) -> np.ndarray:
    chosen = images[rows].reshape(len(rows), *images.shape[1:3], -1)
    if chosen.shape[3] == 1:
        chosen = np.repeat(chosen, 3, axis=3)
    if chosen.shape[1:3] == (side, side):
        return chosen
    resized = np.empty((len(rows), side, side, 3), np.uint8)
    for image, one in zip(resized, chosen, strict=True):
        image[:] = _cut(Image.fromarray(one), side)
    return resized


def _numbered(classes: np.ndarray, read: Read) -> _Part:
    return _Part(classes, read, random_words(0, 0, 0, len(classes))[:, 0])


def _side(title: str, height: int | None, width: int | None, size: int | None) -> int:
    """Pixels of a side: `size`, or the images' own."""
    if size is not None:
        return size
    if height is None or height != width:
        raise InputError(f"the images of {title} are not square or not of one size: give the size to make them")
    return height


def _cut(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))


def _decode(file: Any, side: int) -> np.ndarray:
    with Image.open(file) as image:
        image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded no larger than resizing needs
        if image.mode[0] in "IF":  # Pillow would cut its values off at 255
            raise ValueError(f"its pixels are {image.mode}, not 8 bits")
        return _cut(image.convert("RGB"), side)


def _decoded(fetch: Callable[[np.ndarray], Iterator[tuple[str, Any]]], n: int, side: int) -> Read:
    """A reader of rows, decoded when they are read. fetch: rows → (name, file) of each; n: of how many rows."""

    def count_broken(rows: np.ndarray) -> int:
        return sum(_broken(file) for _, file in fetch(rows))

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), side, side, 3), np.uint8)
        for image, (name, file) in zip(images, fetch(rows), strict=True):
            try:
                image[:] = _decode(file, side)
            except BROKEN as error:
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    broken = sum(threads.map(count_broken, np.array_split(np.arange(n), -(-n // 64))))
                raise InputError(
                    f"{name} is a broken image ({error}), one of {broken:,} among the {n:,} of its part: repair or "
                    "remove them"
                ) from None
        return images

    return read


def _broken(file: Any) -> bool:
    try:
        _decode(file, 1)
    except BROKEN:
        return True
    return False


def _spectrum(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Luminance and two weaker opponent colours, each white noise over f^a, 0.8 <= a <= 1.5 (Tolhurst et al. 1992)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)).astype(np.float32)
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((count, 3, size, size), np.float32))
    fields = np.fft.irfft2(noise / frequency ** rng.uniform(0.8, 1.5, (count, 1, 1, 1)).astype(np.float32))
    fields /= fields.std(axis=(2, 3), keepdims=True)
    fields += rng.normal(0, 0.5, (count, 3, 1, 1))  # an image's own brightness and tint
    fields *= rng.uniform(25, 60, (count, 1, 1, 1))  # and contrast
    opponents = np.array([[1, 1, 1], [0.4, -0.4, 0], [0.2, 0.2, -0.4]], np.float32)
    images = np.clip(127.5 + np.moveaxis(fields, 1, 3) @ opponents, 0, 255).astype(np.uint8)
    # The transform made them periodic: continued below itself, an image has no seam.
    return np.concatenate([images, images[:, :-1]], axis=1)


def _crops(
    photographs: Iterator[Image.Image], number: int, count: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Strips half as tall again as wide, from anywhere in the photographs, at half to full scale, half mirrored."""
    rows = size * 3 // 2
    strips = np.empty((count, rows, size, 3), np.uint8)
    for share, photograph in zip(np.array_split(strips, number), photographs, strict=True):
        for strip in share:
            scale = rng.uniform(0.5, 1) * min(photograph.width / size, photograph.height / rows)
            width, height = scale * size, scale * rows
            left, top = rng.uniform(0, (photograph.width - width, photograph.height - height))
            crop = photograph.resize((size, rows), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
            strip[:] = np.asarray(crop)[:, :: rng.choice([-1, 1])]
    return strips


def _folder(root: Path, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in PHOTOGRAPHS)
    if not paths:
        problem = "holds no photograph" if root.is_dir() else "is not a folder"
        raise InputError(f"background folder {root} {problem}: give one with {', '.join(sorted(PHOTOGRAPHS))} files")

    def open_image(path: Path) -> Image.Image:
        try:
            with Image.open(path) as image:
                image.draft("RGB", (3 * size, 3 * size))  # a large JPEG is decoded no larger than crops need
                return image.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"background {path} is a broken image ({error}): repair or remove it") from None

    chosen = [paths[i] for i in rng.permutation(len(paths))[:count]]
    return _crops(map(open_image, chosen), len(chosen), count, size, rng)


def _tfds(name: str, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    import tensorflow_datasets as tfds  # here, since it is slow and only this needs it

    try:
        examples: Any = tfds.data_source(name, split="train")
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"TFDS has no data set {name!r}: see tfds.list_builders()") from None
    chosen = rng.permutation(len(examples))[:count].tolist()
    if "image" not in examples[chosen[0]]:
        raise InputError(f"TFDS set {name!r} has {', '.join(examples[chosen[0]])} but no 'image': name an image set")
    images = (Image.fromarray(examples[i]["image"].squeeze()).convert("RGB") for i in chosen)
    return _crops(images, len(chosen), count, size, rng)
