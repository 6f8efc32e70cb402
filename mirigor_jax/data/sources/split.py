"""Train, validation and test sets from a source's parts, and the choice of classes."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mirigor_jax.data.attributes import AttributeSpace
from mirigor_jax.data.draws import parts_of
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import local_path
from mirigor_jax.outside import read_text

VALIDATION_SHARE = 0.1  # of the training images, if the source has a test part but no validation part


class ImageSets(dict[str, ImageSet]):
    """Sets of images by the names of their parts.

    is_split: whether all three parts were split off from one set; pairings then have its class frequencies.
    validates_on_training: whether the validation part was split off from the set's own training part.
    turns: number of copies of each image in the training part, one for each turn.
    """

    turns = 1

    def __init__(self, sets: Mapping[str, ImageSet], *, is_split: bool, validates_on_training: bool):
        super().__init__(sets)
        self.is_split = is_split
        self.validates_on_training = validates_on_training

    @property
    def whole(self) -> AttributeSpace | None:
        """The attributes of the set that all parts were split off from; pairings are made from them.

        None: the set has a test part of its own.
        """
        if not self.is_split:
            return None
        held_out = (np.repeat(self[name].attributes, self.turns, axis=0) for name in ("validation", "test"))
        rows = [self["train"].attributes, *held_out]
        return replace(self["test"].space, rows=np.concatenate(rows))


def three(spec: str, parts: dict[str, Part], class_names: Sequence[str]) -> ImageSets:
    """Make the train, validation and test sets of a source's parts.

    A missing part is split off from the training part: in each class, it gets the images with the smallest keys.
    Without a test part, the validation part becomes the test part. Raises InputError if there is no train part.
    """
    if "train" not in parts:
        raise InputError(f"{spec} has no train part, but {', '.join(parts) or 'none'}: give one")
    parts = dict(parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")  # as is usual for ImageNet

    def images(name: str, part: Part) -> ImageSet:
        names, columns = (("class",), part.classes[:, None]) if class_names else ((), part.classes[:, None][:, :0])
        values = (tuple(class_names),) if class_names else ()
        return ImageSet(f"{name} part of {spec}", names, values, columns.astype(np.int32), part.read)

    whole = parts["train"]
    shares = {"test": 0.0, "validation": 0.0 if "validation" in parts else VALIDATION_SHARE} if "test" in parts else {}
    rows = dict(zip(("train", "validation", "test"), parts_of(whole.classes, whole.keys, **shares), strict=True))
    sets = {
        name: images(name, parts[name]) if name in parts and name != "train" else images(name, whole).take(of_part)
        for name, of_part in rows.items()
    }
    return ImageSets(sets, is_split="test" not in parts, validates_on_training="validation" not in parts)


def choose(classes: str, names: Sequence[str]) -> list[int]:
    """Numbers of the chosen classes, ascending. Raises InputError for an unknown class."""
    if classes == "all":
        return [*range(len(names))]
    if not names:
        raise InputError(f"classes={classes!r}, but the images have no labels: set classes=all")
    halves = {"first-half": [*range(len(names) // 2)], "second-half": [*range(len(names) // 2, len(names))]}
    if classes in halves:
        return halves[classes]
    asked = classes.split("+")
    if classes.startswith("file:"):
        lines = read_text(local_path(classes[5:]), f"classes={classes!r}").splitlines()
        # In lists of ImageNet's classes, words follow the WordNet number.
        asked = [line.strip() if line.strip() in names else line.split()[0] for line in lines if line.strip()]
    numbers = {name: number for number, name in enumerate(names)}
    numbers = {str(number): number for number in range(len(names))} | numbers
    for name in asked or [""]:
        if name not in numbers:
            near = difflib.get_close_matches(name[:100], names, n=3) or [*names[:3], "..."]
            asked_for = f"classes={shown(repr(classes))}: no class {shown(repr(name))}"
            raise InputError(f"{asked_for} among the {len(names)}: {', '.join(near)}")
    return sorted({numbers[name] for name in asked})


def of_classes(images: ImageSet, chosen: list[int]) -> ImageSet:
    """The images of the chosen classes, whose numbers now start from 0."""
    number = np.full(images.sizes[0], -1, np.int32)
    number[chosen] = np.arange(len(chosen))
    classes = number[images.attributes[:, 0]]
    remaining = images.take(np.flatnonzero(classes >= 0))
    names = tuple(images.value_names[0][c] for c in chosen)
    return ImageSet(images.title, images.names, (names,), classes[classes >= 0, None], remaining.read)
