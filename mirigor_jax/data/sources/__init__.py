"""Labelled sets of images from outside: SOURCES reads each format; here sets are split in parts and cut to classes."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.pairing import rank_in_class
from mirigor_jax.data.sources.features import read_features
from mirigor_jax.data.sources.folders import read_folder
from mirigor_jax.data.sources.idx import read_idx_folder
from mirigor_jax.data.sources.npz import read_npz
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.data.sources.tfds import read_tfds
from mirigor_jax.errors import InputError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of the images, and of what is then left, where a source has no such part
NOISE_STREAM, CORRUPTION_STREAM = 100, 200  # far from those that pairs are drawn from


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


def _source(spec: str, size: int | None, tfds_dir: str | None) -> tuple[dict[str, Part], Sequence[str]]:
    """The parts that a source has, by name, and the names of its classes; none where it has no labels."""
    kind, _, argument = spec.partition(":")
    complete = spec == "fashion_mnist" if kind == "fashion_mnist" else bool(argument)
    if kind not in SOURCES or not complete:
        raise InputError(
            f"unknown image set {spec!r}: use tfds:NAME, folder:PATH, idx:PATH, npz:PATH, "
            "fashion_mnist or features:PATH"
        )
    return SOURCES[kind](argument, size, tfds_dir)


def _read_fashion_mnist(
    argument: str, size: int | None, tfds_dir: str | None = None
) -> tuple[dict[str, Part], Sequence[str]]:
    """Debian's where it is installed, else TFDS's."""
    del argument
    if FASHION_MNIST.is_dir():
        return read_idx_folder(str(FASHION_MNIST), size)[0], FASHION
    try:
        return read_tfds("fashion_mnist", size, tfds_dir)
    except InputError as error:
        raise InputError(f"{error}; or, on Debian and Ubuntu, `apt-get install dataset-fashion-mnist`") from None


# Readers, of what stands behind the kind and a colon, the images' size, and where TFDS keeps its sets: a source's parts
# by name, and its classes' names.
SOURCES: dict[str, Callable[[str, int | None, str | None], tuple[dict[str, Part], Sequence[str]]]] = {
    "features": read_features,
    "tfds": read_tfds,
    "folder": read_folder,
    "idx": read_idx_folder,
    "npz": read_npz,
    "fashion_mnist": _read_fashion_mnist,
}


def _three(spec: str, parts: dict[str, Part], class_names: Sequence[str]) -> dict[str, ImageSet]:
    """Train, validation and test: the source's own, or of each training class the images with the smallest keys."""
    if "train" not in parts:
        raise InputError(f"{spec} has no train part, but {', '.join(parts) or 'none'}: give one")
    parts = dict(parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")  # as ImageNet's is used

    def images(name: str, part: Part) -> ImageSet:
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
