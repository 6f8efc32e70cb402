"""Sets made of a source's parts: train, validation and test, and some of their classes."""

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

VALIDATION_SHARE = 0.1  # of the training images of a source whose maker has set a test part aside


class ImageSets(dict[str, ImageSet]):
    """Sets of images by the names of their parts.

    is_split: whether all three were split off one set, whose frequencies of classes are then what counts.
    turns: how often the training part has each of its images.
    """

    turns = 1

    def __init__(self, sets: Mapping[str, ImageSet], *, is_split: bool):
        super().__init__(sets)
        self.is_split = is_split

    @property
    def whole(self) -> AttributeSpace | None:
        """What pairings of that one set are made of; None if the test part is its maker's own."""
        if not self.is_split:
            return None
        held_out = (np.repeat(self[name].attributes, self.turns, axis=0) for name in ("validation", "test"))
        rows = [self["train"].attributes, *held_out]
        return replace(self["test"].space, rows=np.concatenate(rows))


def three(spec: str, parts: dict[str, Part], class_names: Sequence[str]) -> ImageSets:
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
    shares = {"test": 0.0, "validation": 0.0 if "validation" in parts else VALIDATION_SHARE} if "test" in parts else {}
    rows = dict(zip(("train", "validation", "test"), parts_of(whole.classes, whole.keys, **shares), strict=True))
    sets = {
        name: images(name, parts[name]) if name in parts and name != "train" else images(name, whole).take(of_part)
        for name, of_part in rows.items()
    }
    return ImageSets(sets, is_split="test" not in parts)


def choose(classes: str, names: Sequence[str]) -> list[int]:
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
        lines = read_text(local_path(classes[5:]), f"classes={classes!r}").splitlines()
        # Lists of ImageNet's classes have words behind the WordNet number.
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
    """The images of these classes, numbered anew."""
    number = np.full(images.sizes[0], -1, np.int32)
    number[chosen] = np.arange(len(chosen))
    classes = number[images.attributes[:, 0]]
    remaining = images.take(np.flatnonzero(classes >= 0))
    names = tuple(images.value_names[0][c] for c in chosen)
    return ImageSet(images.title, images.names, (names,), classes[classes >= 0, None], remaining.read)
