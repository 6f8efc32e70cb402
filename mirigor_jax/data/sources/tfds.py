"""The reader of image sets prepared by TFDS."""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mirigor_jax.data.sources.decode import choose_side, decoded
from mirigor_jax.data.sources.parts import Part, numbered
from mirigor_jax.errors import InputError, shown

# TFDS needs TensorFlow to prepare most sets, but not to read them.
NEEDS = "run `pip install tensorflow`, which nothing else needs, then"


def open_set(name: str, tfds_dir: str | None, *, prepare: bool = False) -> tuple[Any, str, str]:
    """TFDS's builder of an image set, and the names of its image and label features.

    tfds_dir: folder of the prepared sets. None: TFDS's own.
    prepare: whether TFDS may download and prepare a missing set, which mostly takes TensorFlow.
    Raises InputError for an unknown set, for a set without images, and if the set is missing and not to be prepared.
    """
    import tensorflow_datasets as tfds  # imported here, since the import is slow

    try:
        builder = tfds.builder(name, data_dir=tfds_dir)
        if prepare and not builder.is_prepared():
            builder = tfds.builder(name, data_dir=tfds_dir, file_format="array_record")
    except Exception as error:  # raised for an unknown name, and for damaged files
        reason = shown(str(error).partition("\n")[0] or type(error).__name__, 300)
        raise InputError(f"TFDS cannot find {shown(name)!r} ({reason}): see tfds.list_builders()") from None
    if prepare:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        place = f" --data_dir={tfds_dir}" if tfds_dir else ""
        raise InputError(
            f"TFDS set {name!r} is not prepared in {builder.data_dir}: {NEEDS} "
            f"`tfds build {name} --file_format=array_record{place}`"
        )
    image, label = builder.info.supervised_keys or ("image", "label")
    features = builder.info.features
    if image not in features or not isinstance(features[image], tfds.features.Image):
        raise InputError(f"TFDS set {name!r} has {', '.join(features)} but no image: name an image set")
    return builder, image, label


def open_part(name: str, builder: Any, part: str, decoders: dict[str, Any] | None = None) -> Any:
    """The examples of a part, with random access. Raises InputError if the set's file format has none."""
    try:
        return builder.as_data_source(part, decoders=decoders)
    except NotImplementedError:
        raise InputError(
            f"TFDS set {name!r} in {builder.data_dir} is of a format without random access: {NEEDS} "
            f"`tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record`"
        ) from None


def read_tfds(name: str, size: int | None, *, tfds_dir: str | None = None) -> tuple[dict[str, Part], Sequence[str]]:
    """Read the parts of a prepared set, without TensorFlow.

    Raises InputError as `open_set` and `open_part` do, and if the set is damaged.
    """
    import tensorflow_datasets as tfds

    builder, image, label = open_set(name, tfds_dir)
    features = builder.info.features
    has_labels = label in features and isinstance(features[label], tfds.features.ClassLabel)
    height, width = features[image].shape[:2]
    side = choose_side(f"tfds:{name}", height, width, size)

    parts = {}
    for part in ("train", "validation", "test"):
        if part not in builder.info.splits:
            continue
        source = open_part(name, builder, part, {image: tfds.decode.SkipDecoding()})
        try:
            if has_labels and source[0][label] < 0:  # the test part of a competition has no labels
                continue
            classes = np.array([example[label] for example in source] if has_labels else [0] * len(source), np.int32)
        except Exception as error:
            raise InputError(
                f"TFDS set {name!r} in {builder.data_dir} is damaged ({type(error).__name__}): prepare it again"
            ) from None
        fetch = partial(_fetch_records, f"tfds:{name} {part}", source, image)
        parts[part] = numbered(classes, decoded(fetch, len(source), side))
    return parts, tuple(features[label].names) if has_labels else ()


def _fetch_records(title: str, source: Any, image: str, rows: np.ndarray) -> Iterator[tuple[str, io.BytesIO]]:
    for row, example in zip(rows, source.__getitems__(rows.tolist()), strict=True):
        yield f"{title} row {row}", io.BytesIO(example[image])
