"""The reader of features that were computed elsewhere; they take the place of images."""

from collections.abc import Sequence

from mirigor_jax import checks
from mirigor_jax.data.sources.npz import named_arrays
from mirigor_jax.data.sources.parts import Part, classes_of_parts, numbered
from mirigor_jax.errors import InputError
from mirigor_jax.hub import path_of
from mirigor_jax.numerics import compact


def read_features(argument: str, size: int | None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read features (n, d), of any framework, and their labels from an .npz. Their rows take the place of images.

    Raises InputError for missing arrays or labels, wrong shapes or dtypes, and features that are not finite.
    """
    del size
    path = path_of(argument)
    endings = {"train": "", "validation": "_validation", "test": "_test"}
    names = {part: ((f"h{ending}", f"labels{ending}"),) for part, ending in endings.items()}
    arrays = named_arrays(f"features:{path}", path, names, "h, labels and, if there are any, h_test, labels_test")
    for part, (h, labels) in arrays.items():
        if h.ndim != 2 or h.dtype.kind != "f" or h.shape[1] != arrays["train"][0].shape[1]:
            raise InputError(
                f"features:{path} has {part} h of dtype {h.dtype}, shape {h.shape}: expected floats (n, d)"
            )
        if labels is None:
            raise InputError(f"features:{path}: {len(h):,} {part} rows of h and no labels: expected one for each")
        checks.finite(h, f"features:{path}: {part} h")
    classes, class_names = classes_of_parts(f"features:{path}", arrays)
    parts = {part: numbered(classes[part], compact(h).__getitem__) for part, (h, _) in arrays.items()}
    return parts, class_names
