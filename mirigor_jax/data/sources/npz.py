"""The reader of .npz files of images and labels, with our, Keras' or MedMNIST's names of arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mirigor_jax.data.sources.decode import scaled
from mirigor_jax.data.sources.parts import Part, parts_from_arrays
from mirigor_jax.errors import InputError, shown
from mirigor_jax.files import AnyPath, describe, io_errors, read_arrays
from mirigor_jax.hub import path_of

NPZ_NAMES = {  # ours, Keras' and MedMNIST's
    "train": (("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")),
    "validation": (("images_validation", "labels_validation"), ("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("images_test", "labels_test"), ("x_test", "y_test"), ("test_images", "test_labels")),
}


def read_npz(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of an .npz with array names as in NPZ_NAMES. Pixels of 1 or 16 bits are scaled to 8.

    Raises InputError for other arrays.
    """
    path = path_of(argument)
    arrays = named_arrays(f"npz:{path}", path, NPZ_NAMES, "images, labels and, if there are any, images_test, ...")
    for part, (images, labels) in arrays.items():
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        pixels = scaled(images)
        if pixels is None or not shaped or not len(images):
            first = images.ndim == 4 and images.shape[1] in (1, 3)
            fix = "; save .transpose(0, 2, 3, 1)" if first and not shaped else ""
            fix += "; save them scaled to 0 to 255, .astype(numpy.uint8)" if pixels is None else ""
            raise InputError(
                f"npz:{path} has {part} images of dtype {images.dtype}, shape {images.shape}: expected uint8 (n, h, w) "
                f"or (n, h, w, 3){fix}"
            )
        arrays[part] = pixels, labels
    return parts_from_arrays(f"npz:{argument}", arrays, size)


def named_arrays(
    title: str, path: AnyPath, names: Mapping[str, Sequence[tuple[str, str]]], expected: str
) -> dict[str, tuple[np.ndarray, Any]]:
    """Read each part's rows and labels from a user's .npz. Labels are None if they are missing.

    title: the source, for messages.
    names: part → pairs of array names (rows, labels). The first pair with rows in the file is read.
    expected: the arrays that the message about a missing train part asks for.
    Raises InputError if the file can't be read, and if it has no train part.
    """
    arrays = {}
    try:
        loaded = read_arrays(path)
        if isinstance(loaded, np.ndarray):
            raise InputError("it is one array without a name")
        with loaded as file:
            for part, pairs in names.items():
                if keys := next((pair for pair in pairs if pair[0] in file), None):
                    arrays[part] = file[keys[0]], file.get(keys[1])
            contents = shown(", ".join(file), 500) or "nothing"
    except InputError as error:
        raise InputError(f"{title} cannot be read ({error}): save arrays of numbers by numpy.savez") from None
    except io_errors(path) as error:
        raise InputError(f"{title} cannot be read ({describe(error)}): give the path of an .npz") from None
    if "train" not in arrays:
        raise InputError(f"{title} holds {contents}: expected {expected}")
    return arrays
