"""SOURCES: every source of images by its name in `data.source`, whether it generates images or reads them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mirigor_jax import fields
from mirigor_jax.data import cdp, patches
from mirigor_jax.data.generated import GeneratedImages
from mirigor_jax.data.image_set import ROTATIONS, ImageSet
from mirigor_jax.data.population import STREAMS, FinitePopulation, GeneratedPopulation, Population
from mirigor_jax.data.sources.features import read_features
from mirigor_jax.data.sources.folders import read_folder
from mirigor_jax.data.sources.hugging_face import hf_commit, read_hf
from mirigor_jax.data.sources.idx import read_idx_folder
from mirigor_jax.data.sources.noise import noise_images
from mirigor_jax.data.sources.npz import read_npz
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.data.sources.split import ImageSets, choose, of_classes, three
from mirigor_jax.data.sources.tfds import read_tfds
from mirigor_jax.errors import InputError
from mirigor_jax.settings import Data, Features

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # folder of Debian's package
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OWN, NOISES = "own", ("uniform", "gaussian")  # negatives: the training images, or noise
# Value of `evaluate.seen` → the parts whose images a given encoder was trained or chosen on. The part `unseen` holds
# the training images beyond `data.images`; this run does not train on them, but whoever trained the given encoder may
# have.
SEEN_PARTS = {"train": ("fit", "unseen"), "all": ("fit", "validation", "test", "unseen"), "none": ()}
NOISE_STREAM, CORRUPTION_STREAM = 100, 200  # far above the streams of pairs


@dataclass(frozen=True)
class Request:
    """A run's request to its source.

    seed: of the run's draws.
    data_seed: of the source's own draws, which all parts of a run share.
    size: pixels. The side of the images. None: their own side.
    parts: part → its number of images, or of pairs for a generated `validation` or `test`. None: the whole set, or for
        `train`, new images for every batch.
    depletion_risk: see `FinitePopulation`.
    knobs: source's name → its further settings.
    classes, rotations, noise, corrupted: for finite sets, see `labeled`.
    negatives: the source of separate negatives, see `_negatives`; "": the batch's other pairs.
    unseen: number of training images to keep of those that `parts` leaves out of `train`. None: all.
    """

    seed: int
    data_seed: int
    size: int | None
    parts: Mapping[str, int | None]
    depletion_risk: float
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: str = Data.classes
    rotations: bool = Data.rotations
    noise: float = Data.noise
    corrupted: float = Data.corrupted
    negatives: str = Data.negatives
    unseen: int | None = Features.unseen


@dataclass(frozen=True)
class GeneratedSource:
    """A source that generates images.

    make: (size=, seed=, **knobs) → the images. If the source has an argument, `make` takes it first, by position.
    argument: the name, in messages, of the argument in "NAME:ARGUMENT". "": the source has none.
    """

    is_generated: ClassVar[bool] = True
    holds_features: ClassVar[bool] = False
    is_file: ClassVar[bool] = False
    commit: ClassVar[None] = None
    make: Callable[..., GeneratedImages]
    argument: str = ""

    @property
    def knobs(self) -> dict[str, Any]:
        """The source's further settings, with their defaults."""
        return _keywords(self.make)

    def images(self, spec: str, *, size: int, seed: int, knobs: Mapping[str, Any]) -> GeneratedImages:
        """The images that `spec` names. Raises InputError as `make` does."""
        options = [spec.partition(":")[2]] if self.argument else []
        return self.make(*options, size=size, seed=seed, **knobs)

    def population(self, spec: str, request: Request) -> Population:
        """The run's population. Raises InputError as `make` does."""
        if request.size is None:
            raise InputError(f"size=None: images of '{spec}' are rendered at a size; give one, 64 for the paper's CDP")
        knobs = request.knobs.get(spec.partition(":")[0], {})
        images = self.images(spec, size=request.size, seed=request.data_seed, knobs=knobs)
        sizes = {name: n for name, n in request.parts.items() if name != "train" and n is not None}
        return GeneratedPopulation(images, request.seed, sizes, request.parts["train"])


@dataclass(frozen=True)
class FiniteSource:
    """A source that reads a finite set of images, or of features in place of images.

    read: (argument, size or None, **knobs) → (its parts by name, at least `train`; the names of its classes, none if it
        has no labels).
    argument: the name, in messages, of the argument in "NAME:ARGUMENT". "": the source has none.
    holds_features: whether its rows are features.
    is_file: whether the argument is the path of a file; runs on files of different content are then different.
    shows_attributes: whether every image shows its class; the MI of same-class pairs is then known.
    commit: argument → the hash of the commit that it names today; runs on different commits are then different. None:
        the source has no commits.
    """

    is_generated: ClassVar[bool] = False
    read: Callable[..., tuple[dict[str, Part], Sequence[str]]]
    argument: str = "PATH"
    holds_features: bool = False
    is_file: bool = False
    shows_attributes: bool = False
    commit: Callable[[str], str] | None = None

    @property
    def knobs(self) -> dict[str, Any]:
        """The source's settings, which are the reader's keyword arguments, with their defaults."""
        return _keywords(self.read)

    def population(self, spec: str, request: Request) -> Population:
        """The run's population. Raises InputError as `labeled` does."""
        sets = _sets(spec, request, request.classes)
        whole = sets.whole
        for stream, name in enumerate(("train", "fit", "validation", "test")):
            images, limit = sets["train" if name == "fit" else name], request.parts[name]
            turns = sets.turns if name == "train" else 1  # rows of one image, which are taken or left out together
            few = limit is not None and limit < len(images) // turns
            rng = np.random.default_rng([request.data_seed, stream])
            order = rng.permutation(len(images) // turns)
            if few and name == "train" and left_out_is_unseen(request.negatives):
                left_out = np.sort(order[limit:][: request.unseen])
                once = turns * left_out + rng.integers(turns, size=len(left_out))  # turns of one image are dependent
                sets |= {"unseen": images.take(once)} if len(left_out) else {}
            rows = (turns * order[:limit, None] + np.arange(turns)[None, :]).reshape(-1)
            sets[name] = images.take(rows) if few else images
        if request.negatives:
            sets["negatives"] = _negatives(spec, request, sets["train"])
        split = sets.validates_on_training
        return FinitePopulation(sets, request.seed, request.depletion_risk, self.shows_attributes, whole, split)


Source = GeneratedSource | FiniteSource


def find(spec: str) -> Source:
    """The source that "NAME" or "NAME:ARGUMENT" names.

    Raises InputError if it is unknown, if its argument is missing, and if it takes none.
    """
    name, _, argument = spec.partition(":")
    source = SOURCES.get(name)
    if source is None or bool(argument) != bool(source.argument):
        *usual, last = (f"{name}:{source.argument}" if source.argument else name for name, source in SOURCES.items())
        raise InputError(f"unknown image set {spec!r}: use {', '.join(usual)} or {last}")
    return source


def left_out_is_unseen(negatives: str) -> bool:
    """Whether training never sees the training images that a limit of their number leaves out.

    If the negatives come from a set of images, training may see the left-out image itself as a negative.
    negatives: see `Request`.
    """
    return negatives in ("", OWN, *NOISES)


def holds_features(spec: str) -> bool:
    """Whether the source that "NAME:ARGUMENT" names holds features instead of images."""
    source = SOURCES.get(spec.partition(":")[0])
    return source is not None and source.holds_features


def content_of(spec: str) -> str:
    """The path of the file that a source reads, for the digest that identifies a run's data. "": it reads no file."""
    name, _, path = spec.partition(":")
    return path if name in SOURCES and SOURCES[name].is_file else ""


def commit_of(spec: str) -> str:
    """The hash of the commit of the repository that a source reads, which identifies a run's data. "": it reads none.

    Raises InputError if the repository can't be found.
    """
    name, _, argument = spec.partition(":")
    commit = SOURCES[name].commit if name in SOURCES else None
    return "" if commit is None else commit(argument)


def labeled(
    spec: str,
    *,
    size: int | None = None,
    classes: str = Data.classes,
    rotations: bool = Data.rotations,
    noise: float = Data.noise,
    corrupted: float = Data.corrupted,
    seed: int = Data.seed,
    **knobs: Any,
) -> ImageSets:
    """Read the disjoint parts `train`, `validation` and `test` of a set of images. Their first attribute is `class`.

    Without a validation and a test part, each class is split 60 : 20 : 20 into training, validation and test images. A
    validation part without a test part becomes the test part. With a test part but no validation part, a tenth of each
    class's training images are for validation.
    spec: "tfds:NAME": a set that TFDS has prepared in tfds_dir (None: TFDS's own folder), read without TensorFlow;
        "folder:PATH": one folder for each class, in PATH or in its parts (such as PATH/train and PATH/test, in any
        case), or images without labels; "idx:PATH": a folder with MNIST's four files, or EMNIST's or QMNIST's;
        "fashion_mnist": Debian's files, or else TFDS's; "npz:PATH": arrays with names as in NPZ_NAMES, `labels` are
        optional; "features:PATH": an .npz of h (n, d) and labels (n,), and optionally h_test and so on; "hf:REPO": a
        data set on the Hugging Face Hub, see `hugging_face.read_hf`. The PATH of an .npz may be hf:REPO:FILE.
    size: pixels. The shorter side is resized to it (bilinear, antialiased), then the central square is cut out. None:
        the images' own side, if all are square and of one size. Gray images become RGB.
    classes: "all", "first-half", "second-half", "file:PATH" (one class in each line), or names or numbers joined by
        "+".
    rotations: whether images are turned, with an attribute `rotation`: training images at all four turns, each other
        image at one.
    noise: share of salt-and-pepper pixels.
    corrupted: above 0, there is an attribute `corrupted`: the class, redrawn with this probability.
    seed: of rotations, noise and corruption.
    knobs: settings of the source, such as tfds_dir.
    Raises InputError for an unknown spec, knob or class, for a share outside 0 to 1, for files that can't be found or
    read, and for sets that are not prepared. A broken image raises it when it is read; the message names the image and
    counts the broken images of its part.
    """
    fields.check(Data, {"size": size, "noise": noise, "corrupted": corrupted})
    source = find(spec)
    if isinstance(source, GeneratedSource):
        raise InputError(f"{spec!r} generates images, expected a finite set: give one, such as folder:PATH")
    if useless := sorted(knobs.keys() - source.knobs):
        raise InputError(f"{spec!r} has no use for {', '.join(useless)}: leave it out")
    parts, class_names = source.read(spec.partition(":")[2], size, **knobs)
    sets = three(spec, parts, class_names)
    chosen = choose(classes, class_names)
    if chosen != list(range(len(class_names))):
        sets.update({name: of_classes(images, chosen) for name, images in sets.items()})
    sets.turns = len(ROTATIONS) if rotations else 1
    for stream, (name, images) in enumerate(sets.items()):
        if rotations:
            images = images.rotated() if name == "train" else images.rotated_once(seed)
        if noise:
            images = images.with_salt_and_pepper(noise, seed, NOISE_STREAM + stream)
        if corrupted:
            images = images.with_random_labels(corrupted, seed, CORRUPTION_STREAM + stream)
        sets[name] = images
    return sets


def _sets(spec: str, request: Request, classes: str) -> ImageSets:
    return labeled(
        spec,
        size=request.size,
        classes=classes,
        rotations=request.rotations,
        noise=request.noise,
        corrupted=request.corrupted,
        seed=request.data_seed,
        **request.knobs.get(spec.partition(":")[0], {}),
    )


def _negatives(spec: str, request: Request, images: ImageSet) -> ImageSet:
    """The set of images that `request.negatives` names.

    "own": the training images; "classes:…": other classes of the same source; "uniform" or "gaussian": noise; else a
    source. Raises InputError as `labeled` does.
    """
    name, (kind, _, argument) = request.negatives, request.negatives.partition(":")
    if name == OWN:
        return images
    if kind == "classes":
        return _sets(spec, request, argument)["train"]
    size = images.read(np.arange(1)).shape[1]
    if name in NOISES:
        return noise_images(name, count=len(images), size=size, seed=request.data_seed)
    source, knobs = find(name), request.knobs.get(kind, {})
    if isinstance(source, GeneratedSource):
        made = source.images(name, size=size, seed=request.data_seed, knobs=knobs)
        return made.finite(request.seed, STREAMS["negatives"], len(images))
    if name == spec:
        return _sets(spec, request, "all")["train"]
    return labeled(name, size=size, seed=request.data_seed, **knobs)["train"]


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's keyword-only parameters with their defaults, without size and seed, which every source has."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("size", "seed")}


def _read_fashion_mnist(
    argument: str, size: int | None, *, tfds_dir: str | None = None
) -> tuple[dict[str, Part], Sequence[str]]:
    """Read Debian's Fashion-MNIST if it is installed, or else TFDS's."""
    del argument
    if FASHION_MNIST.is_dir():
        return read_idx_folder(str(FASHION_MNIST), size)[0], FASHION
    try:
        return read_tfds("fashion_mnist", size, tfds_dir=tfds_dir)
    except InputError as error:
        raise InputError(f"{error}; or, on Debian and Ubuntu, `apt-get install dataset-fashion-mnist`") from None


# Name before the colon in `data.source` → source.
SOURCES: dict[str, Source] = {
    "cdp": GeneratedSource(cdp.make),
    "patches": GeneratedSource(patches.make),
    "tfds": FiniteSource(read_tfds, argument="NAME"),
    "folder": FiniteSource(read_folder),
    "idx": FiniteSource(read_idx_folder),
    "npz": FiniteSource(read_npz, is_file=True),
    "fashion_mnist": FiniteSource(_read_fashion_mnist, argument=""),
    "features": FiniteSource(read_features, holds_features=True, is_file=True),
    "hf": FiniteSource(read_hf, argument="REPO", commit=hf_commit),
}
