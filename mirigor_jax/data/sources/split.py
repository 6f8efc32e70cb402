"""Sets made of a source's parts: train, validation and test, and some of their classes."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mirigor_jax.data.draws import rank_in_class
from mirigor_jax.data.image_set import ImageSet
from mirigor_jax.data.sources.parts import Part
from mirigor_jax.errors import InputError

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of the images, and of what is then left, where a source has no such part


def three(spec: str, parts: dict[str, Part], class_names: Sequence[str]) -> dict[str, ImageSet]:
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


def of_classes(images: ImageSet, chosen: list[int]) -> ImageSet:
    """The images of these classes, numbered anew."""
    number = np.full(images.sizes[0], -1, np.int32)
    number[chosen] = np.arange(len(chosen))
    classes = number[images.attributes[:, 0]]
    remaining = images.take(np.flatnonzero(classes >= 0))
    names = tuple(images.value_names[0][c] for c in chosen)
    return ImageSet(images.title, images.names, (names,), classes[classes >= 0, None], remaining.read)
