"""Labeled image sets: every source gives the same images and sets, and errors name the faulty input."""

import gzip
import io
import math
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.stats import binomtest, chisquare, entropy, kstest

from mirigor_jax.data.draws import parts_of, row_keys
from mirigor_jax.data.pairing import same_class
from mirigor_jax.data.sources import table as sources
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError

NAMES = ("ant", "bee", "cat", "dog")
N, TESTED = 80, 20


def pixels(n, first=0):
    """Gray images that all differ: image i is noise, and its corner pixel has the value i."""
    images = np.random.default_rng(first).integers(0, 256, (n, 8, 8), np.uint8)
    images[:, 0, 0] = first + np.arange(n)
    return images


CLASSES = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [30, 20, 20, 10]))
TRAIN, TEST = (pixels(N), CLASSES), (pixels(TESTED, N), np.arange(TESTED) % 4)


def write_idx(path, array):
    array = np.asarray(array, np.uint8)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_folder(root, images, classes, names=NAMES):
    for i, (image, c) in enumerate(zip(images, classes, strict=True)):
        (root / names[c]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[c] / f"{i}.png")


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def numbers_of(part):
    return part.read(np.arange(len(part)))[:, 0, 0, 0]


class Insects(tfds.core.GeneratorBasedBuilder):
    """A set of our own in TFDS's form. It takes encoded files, because encoding would need TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "aid": tfds.features.ClassLabel(num_classes=100),
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "species": tfds.features.ClassLabel(names=NAMES),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "species"))

    def _split_generators(self, manager):
        nobody_knows = TEST[0], np.full(TESTED, -1)
        parts = {"train": TRAIN, "validation": TEST, "test": nobody_knows}
        return {name: self._generate_examples(*part) for name, part in parts.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield i, {"image": png(image), "species": label, "aid": i}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.builder("insects", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(params=["idx", "ours", "keras", "medmnist", "folder", "tfds"])
def source(request, tmp_path, tfds_dir):
    """(Arguments of `labeled`, names of the classes), for the same images from every source."""
    arrays = {
        "ours": ("images", "labels", "images_test", "labels_test"),
        "keras": ("x_train", "y_train", "x_test", "y_test"),
        "medmnist": ("train_images", "train_labels", "test_images", "test_labels"),
    }
    if request.param == "idx":
        for prefix, (images, labels) in {"train": TRAIN, "t10k": TEST}.items():
            write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
            write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
        return {"spec": f"idx:{tmp_path}"}, ("0", "1", "2", "3")
    if request.param == "folder":
        write_folder(tmp_path / "train", *TRAIN)
        write_folder(tmp_path / "val", *TEST)
        return {"spec": f"folder:{tmp_path}", "size": 8}, NAMES
    if request.param == "tfds":
        return {"spec": "tfds:insects", "tfds_dir": tfds_dir}, NAMES
    values = TRAIN[0], np.array(NAMES)[TRAIN[1]], TEST[0][..., None], np.array(NAMES)[TEST[1]][:, None]
    np.savez(tmp_path / "set.npz", **dict(zip(arrays[request.param], values, strict=True)))
    return {"spec": f"npz:{tmp_path}/set.npz"}, NAMES


def test_every_source_gives_the_same_images(source):
    arguments, names = source
    sets = labeled(**arguments)
    every, classes = np.concatenate([TRAIN[0], TEST[0]]), np.concatenate([TRAIN[1], TEST[1]])
    seen = []
    for part in sets.values():
        assert (part.names, part.value_names, part.sizes) == (("class",), (names,), (4,))
        rows = np.random.default_rng(1).permutation(len(part))
        images = part.read(rows)
        numbers = images[:, 0, 0, 0]
        np.testing.assert_array_equal(images, np.repeat(every[numbers][..., None], 3, axis=3))
        np.testing.assert_array_equal(part.attributes[rows, 0], classes[numbers])
        seen.append(sorted(numbers))
    assert seen[2] == list(range(N, N + TESTED))
    assert sorted(seen[0] + seen[1]) == list(range(N))
    # A tenth of each class is held out.
    assert np.bincount(sets["validation"].attributes[:, 0]).tolist() == [3, 2, 2, 1]
    assert "tensorflow" not in sys.modules


def test_a_folder_without_parts_is_split_by_names_alone(tmp_path):
    images = pixels(200)
    write_folder(tmp_path / "a", images, np.repeat([0, 1], [150, 50]))
    write_folder(tmp_path / "b", images[:, ::-1], np.repeat([0, 1], [150, 50]))
    parts = [labeled(f"folder:{tmp_path}/{name}", size=8, seed=seed) for seed, name in enumerate("ab")]
    counts = {name: np.bincount(part.attributes[:, 0]).tolist() for name, part in parts[0].items()}
    assert counts == {"train": [90, 30], "validation": [30, 10], "test": [30, 10]}
    numbers = []
    for name, part in parts[0].items():
        itself = part.read(np.arange(len(part)))
        np.testing.assert_array_equal(itself[:, ::-1], parts[1][name].read(np.arange(len(part))))
        numbers.extend(itself[:, 0, 0, 0])
    assert sorted(numbers) == list(range(200))


def test_a_set_without_parts_is_split_as_the_library_splits_rows(tmp_path):
    """Rows' numbers alone determine the split, at any seed and noise. The frequencies are those of all rows."""
    counts = (41, 33, 78)  # a fifth of none of them is a whole number
    classes = np.random.default_rng(3).permutation(np.repeat(np.arange(3), counts))
    np.savez(tmp_path / "a.npz", images=pixels(len(classes)), labels=classes)
    sets = labeled(f"npz:{tmp_path}/a.npz", seed=4)
    for part, rows in zip(sets.values(), parts_of(classes, row_keys(len(classes))), strict=True):
        assert sorted(numbers_of(part)) == rows.tolist()
    for name, shares in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert np.abs(np.bincount(sets[name].attributes[:, 0]) - shares * np.array(counts)).max() < 1
    assert sets.is_split
    frequencies = same_class(sets.whole, lambda a: a[:, 0], 3, shared=("class",)).frequencies
    np.testing.assert_allclose(frequencies, np.array(counts) / sum(counts), atol=1e-12)
    turned = labeled(f"npz:{tmp_path}/a.npz", rotations=True)  # of training images all four turns, of the others one
    np.testing.assert_array_equal(np.bincount(turned.whole.rows[:, 0]), 4 * np.array(counts))
    some = labeled(f"npz:{tmp_path}/a.npz", classes="0+2")
    np.testing.assert_array_equal(np.bincount(some.whole.rows[:, 0]), [41, 78])
    np.savez(tmp_path / "b.npz", images=pixels(80), labels=CLASSES, images_test=TEST[0], labels_test=TEST[1])
    tested = labeled(f"npz:{tmp_path}/b.npz")
    assert (tested.is_split, tested.whole) == (False, None)  # the set has its own test part


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_held_out_images_are_from_anywhere_in_the_source(tmp_path, kind):
    """They are not the first ones, because sets are often in the order of recording or of names."""
    n = 250
    images = np.repeat(np.arange(n, dtype=np.uint8), 64).reshape(n, 8, 8)
    if kind == "npz":
        np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(n, int))
    else:
        write_folder(tmp_path, images, np.zeros(n, int))
    sets = labeled(f"npz:{tmp_path}/a.npz" if kind == "npz" else f"folder:{tmp_path}", size=8)
    name_order = np.argsort(np.argsort([str(i) for i in range(n)]))
    place = name_order if kind == "folder" else np.arange(n)
    for name in ("test", "validation"):
        numbers = numbers_of(sets[name])
        assert len(numbers) == 0.2 * n
        assert kstest(place[numbers] / n, "uniform").pvalue > 1e-3


def test_a_folder_may_have_all_three_parts(tmp_path):
    for name, first in (("train", 0), ("val", 50), ("test", 100)):
        write_folder(tmp_path / name, pixels(10, first), np.zeros(10, int))
    sets = labeled(f"folder:{tmp_path}", size=8)
    numbers = {name: sorted(part.read(np.arange(10))[:, 0, 0, 0]) for name, part in sets.items()}
    assert numbers == {name: [*range(n, n + 10)] for name, n in (("train", 0), ("validation", 50), ("test", 100))}


def test_the_middle_is_resized_smoothly(tmp_path):
    """A ramp's pixels are its values at their centers. Stripes average out, which needs antialiasing."""
    write_folder(tmp_path / "train", pixels(1), [0])
    folder = tmp_path / "test" / "ant"
    folder.mkdir(parents=True)
    ramp = np.tile(np.arange(200, dtype=np.uint8), (64, 1))  # its middle is columns 68 to 131
    Image.fromarray(ramp).save(folder / "0.png")
    Image.fromarray(ramp.T).save(folder / "1.png")
    large = np.zeros((512, 512), np.uint8)
    large[:256] = 200
    Image.fromarray(large).save(folder / "2.jpg", quality=95)
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).save(folder / "3.png")
    images = labeled(f"folder:{tmp_path}", size=8)["test"].read(np.arange(4))
    centers = np.broadcast_to((68 + 8 * np.arange(8) + 3.5)[None, :, None], (8, 8, 3))
    np.testing.assert_allclose(images[0], centers, atol=0.51)
    np.testing.assert_allclose(images[1], centers.swapaxes(0, 1), atol=0.51)
    np.testing.assert_allclose(images[2, [0, 2, 5, 7]].mean(axis=(1, 2)), [200, 200, 0, 0], atol=3)
    np.testing.assert_allclose(images[3][:, 1:-1].astype(int), 127, atol=5)


@pytest.mark.parametrize(("mode", "expected"), [("RGBA", (9, 80, 200)), ("P", (9, 80, 200)), ("1", 255), ("LA", 80)])
def test_every_kind_of_pixel_becomes_rgb(tmp_path, mode, expected):
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (5, 5), (9, 80, 200)) if mode in ("RGBA", "P") else Image.new("L", (5, 5), 80)
    image = image.quantize(4) if mode == "P" else Image.new("1", (5, 5), 1) if mode == "1" else image.convert(mode)
    image.save(tmp_path / "a" / "0.png")
    assert (labeled(f"folder:{tmp_path}", size=5)["train"].read(np.arange(1)) == expected).all()


def test_arrays_are_resized_where_asked(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((30, 8, 8), 7, np.uint8), labels=np.zeros(30, int))
    np.savez(tmp_path / "b.npz", images=np.full((30, 8, 6, 3), (1, 2, 3), np.uint8), labels=np.zeros(30, int))
    for name, value in (("a", 7), ("b", (1, 2, 3))):
        images = labeled(f"npz:{tmp_path}/{name}.npz", size=12)["test"].read(np.arange(3))
        assert images.shape == (3, 12, 12, 3)
        assert (images == value).all()
    with pytest.raises(InputError, match=r"not square .* give the size"):
        labeled(f"npz:{tmp_path}/b.npz")


def test_broken_images_are_named_and_counted(tmp_path):
    write_folder(tmp_path / "train", pixels(100), np.arange(100) % 4)
    whole = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = tmp_path / "train" / "bee" / "cut.jpg"
    Image.fromarray(whole).save(file)
    file.write_bytes(file.read_bytes()[:-400])
    (tmp_path / "train" / "cat" / "empty.png").touch()
    (tmp_path / "train" / "cat" / "words.jpeg").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "train" / "dog" / "deep.tif")
    sets = labeled(f"folder:{tmp_path}", size=8)
    message = r"train/(bee|cat|dog)/\w+\.\w+ is a broken image .*, one of 4 among the 104 of its part: repair"
    with pytest.raises(InputError, match=message) as error:
        [part.read(np.arange(len(part))) for part in sets.values()]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        ("first-half", [0, 1]),
        ("second-half", [2, 3]),
        ("dog+ant", [0, 3]),
        ("1+3", [1, 3]),
        ("file:{}", [1, 2]),
        ("all", [0, 1, 2, 3]),
    ],
)
def test_a_subset_of_the_classes_is_numbered_anew(tmp_path, classes, chosen):
    (tmp_path / "list.txt").write_text("cat tabby, tabby cat\n\nbee\n")
    np.savez(tmp_path / "a.npz", images=TRAIN[0], labels=np.array(NAMES)[TRAIN[1]])
    sets = labeled(f"npz:{tmp_path}/a.npz", classes=classes.format(tmp_path / "list.txt"))
    numbers = np.concatenate([numbers_of(part) for part in sets.values()])
    assert sorted(numbers) == np.flatnonzero(np.isin(CLASSES, chosen)).tolist()
    for part in sets.values():
        assert part.value_names == (tuple(NAMES[c] for c in chosen),)
        np.testing.assert_array_equal(np.array(chosen)[part.attributes[:, 0]], CLASSES[numbers_of(part)])
        share = np.bincount(part.attributes[:, 0]) / len(part)
        assert part.same_class("class").entropy_bits == pytest.approx(entropy(share, base=2), abs=1e-12)


def flat(tmp_path, value=100, n=400, size=16):
    images = np.full((n, size, size, 3), value, np.uint8)
    np.savez(
        tmp_path / "flat.npz",
        images=images,
        labels=np.arange(n) % 4,
        images_test=images,
        labels_test=images[:, 0, 0, 0] % 4,
    )
    return f"npz:{tmp_path}/flat.npz"


def test_salt_and_pepper(tmp_path):
    spec = flat(tmp_path)
    sets = labeled(spec, noise=0.3, seed=1)
    images = sets["test"].read(np.arange(400))
    assert (images == images[..., :1]).all()  # a pixel at a time, not a channel
    gray = images[..., 0]
    for value, share in ((0, 0.15), (255, 0.15), (100, 0.7)):
        assert binomtest(int((gray == value).sum()), gray.size, share).pvalue > 1e-3
    hit = (gray != 100).reshape(400, -1)
    assert abs(np.corrcoef(hit[:-1].ravel(), hit[1:].ravel())[0, 1]) < 0.02  # every image has its own
    np.testing.assert_array_equal(sets["test"].read(np.array([7, 3, 7])), images[[7, 3, 7]])
    assert (labeled(spec, noise=0.3, seed=2)["test"].read(np.arange(9)) != images[:9]).any()
    assert (sets["train"].read(np.arange(9)) != images[:9]).any()
    assert (labeled(spec, noise=1.0)["test"].read(np.arange(9)) != 100).all()


def test_rotations_enlarge_training_and_turn_test_images_once(tmp_path):
    np.savez(tmp_path / "a.npz", images=TRAIN[0], labels=TRAIN[1], images_test=TEST[0], labels_test=TEST[1])
    plain, turned = (labeled(f"npz:{tmp_path}/a.npz", rotations=r) for r in (False, True))
    assert len(turned["train"]) == 4 * len(plain["train"])
    assert turned["test"].names == ("class", "rotation")
    for name, repeats in (("train", 4), ("validation", 1), ("test", 1)):
        part, n = turned[name], len(turned[name])
        originals = plain[name].read(np.arange(n) // repeats)
        classes, rotations = part.attributes.T
        np.testing.assert_array_equal(classes, plain[name].attributes[np.arange(n) // repeats, 0])
        rows = np.random.default_rng(0).permutation(n)
        for row, image in zip(rows, part.read(rows), strict=True):
            np.testing.assert_array_equal(
                image, np.asarray(Image.fromarray(originals[row]).rotate(90 * rotations[row]))
            )
    assert turned["train"].attributes[:, 1].tolist() == [0, 1, 2, 3] * len(plain["train"])
    counts = np.zeros((4, 4), int)
    np.add.at(counts, tuple(turned["test"].attributes.T), 1)
    assert counts.min() >= TESTED // 16
    assert counts.max() <= TESTED // 16 + 1
    pairing = turned["train"].same_class("class+rotation")
    share = np.bincount(plain["train"].attributes[:, 0]) / len(plain["train"])
    assert pairing.entropy_bits == pytest.approx(entropy(share, base=2) + 2, abs=1e-12)
    assert turned["train"].same_class("rotation").entropy_bits == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_corrupted_labels_stand_beside_the_true_ones(tmp_path, share):
    n = 6000
    np.savez(tmp_path / "a.npz", images=np.zeros((n, 1, 1), np.uint8), labels=np.repeat([0, 1, 2], [3000, 2000, 1000]))
    part = labeled(f"npz:{tmp_path}/a.npz", corrupted=share)["train"]
    assert (part.names, part.value_names[0]) == (("class", "corrupted"), part.value_names[1])
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(part.attributes.T), 1)
    expected = counts.sum(axis=1, keepdims=True) * (share / 3 + (1 - share) * np.eye(3))
    assert chisquare(counts, expected, axis=1).pvalue.min() > 1e-3


def test_images_without_labels_have_no_class_to_share(tmp_path):
    np.savez(tmp_path / "a.npz", images=TRAIN[0])
    (tmp_path / "images").mkdir()
    for i, image in enumerate(TRAIN[0]):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    for spec in (f"npz:{tmp_path}/a.npz", f"folder:{tmp_path}/images"):
        sets = labeled(spec, size=8)
        assert [part.attributes.shape for part in sets.values()] == [(48, 0), (16, 0), (16, 0)]
        assert sorted(np.concatenate([numbers_of(part) for part in sets.values()])) == list(range(N))
        assert sets["test"].same_class("none").entropy_bits == 0
        with pytest.raises(InputError, match=f"pairing 'class' needs labels, and the test part of {spec} has none"):
            sets["test"].same_class("class")
        with pytest.raises(InputError, match="no labels to corrupt"):
            labeled(spec, size=8, corrupted=0.5)
        with pytest.raises(InputError, match="no labels: set classes=all"):
            labeled(spec, size=8, classes="first-half")


def test_a_class_without_test_images_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=TRAIN[0], labels=TRAIN[1], images_test=TEST[0][:3], labels_test=[0, 1, 3])
    sets = labeled(f"npz:{tmp_path}/a.npz")
    with pytest.raises(InputError, match=r"1 of 4 classes have no image in the test part of .* \('2'\)"):
        sets["test"].same_class("class")
    assert sets["train"].same_class("class").num_classes == 4


def test_fashion_mnist_is_debians_or_else_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path / "none")
    with pytest.raises(InputError, match=r"tfds build fashion_mnist .*apt-get install dataset-fashion-mnist"):
        labeled("fashion_mnist", tfds_dir=str(tmp_path))
    monkeypatch.setattr(sources, "FASHION_MNIST", tmp_path)
    for prefix, n in (("train", 100), ("t10k", 20)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", np.zeros((n, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    assert labeled("fashion_mnist")["test"].value_names[0][9] == "Ankle boot"


@pytest.mark.skipif(not sources.FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_real_fashion_mnist():
    sets = labeled("fashion_mnist")
    assert {name: len(part) for name, part in sets.items()} == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert all(
        part.same_class("class").entropy_bits == pytest.approx(math.log2(10), abs=1e-12) for part in sets.values()
    )
    trousers = sets["test"].read(np.flatnonzero(sets["test"].attributes[:, 0] == 1)[:100]).mean(axis=(0, 3))
    assert trousers[14, 9:19].mean() > 4 * trousers[14, [0, 1, 2, 25, 26, 27]].mean()  # narrow, upright


def test_an_unprepared_set_comes_with_its_command(tmp_path, tfds_dir, monkeypatch):
    with pytest.raises(InputError, match=rf"`tfds build cifar10 --file_format=array_record --data_dir={tmp_path}`"):
        labeled("tfds:cifar10", tfds_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"'no_such_set'.* see tfds.list_builders"):
        labeled("tfds:no_such_set", tfds_dir=str(tmp_path))
    with pytest.raises(InputError, match="not_insects"):
        labeled("tfds:insects/not_insects", tfds_dir=tfds_dir)

    def refuse(self, *args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(Insects, "as_data_source", refuse)
    with pytest.raises(
        InputError, match=r"convert_format --dataset_version_dir=\S+insects/1.0.0 --out_file_format=arr"
    ):
        labeled("tfds:insects", tfds_dir=tfds_dir)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "photos",
            {},
            "unknown image set 'photos': use cdp, patches, tfds:NAME, .*, features:PATH or hf:REPO",
        ),
        ("npz:", {}, "unknown image set 'npz:'"),
        ("npz:{}/none.npz", {}, "none.npz cannot be read"),
        ("npz:{}/words.npz", {}, "words.npz cannot be read"),
        ("npz:{}/objects.npz", {}, "objects.npz cannot be read"),
        ("npz:{}/one.npy", {}, "one.npy cannot be read"),
        ("npz:{}/floats.npz", {}, r"train images of dtype float64, shape \(9, 4, 4\): expected uint8"),
        ("npz:{}/rows.npz", {}, r"shape \(9, 16\)"),
        ("npz:{}/short.npz", {}, "9 train rows, 8 labels: expected as many"),
        ("npz:{}/half.npz", {}, "labels for some of its parts only"),
        ("npz:{}/other.npz", {}, "holds a, b: expected images, labels"),
        ("npz:{}/good.npz", {"classes": "0+7"}, "no class '7' among the 3: 0, 1, 2"),
        ("npz:{}/good.npz", {"classes": ""}, "no class '' among"),
        ("npz:{}/good.npz", {"classes": "file:{}/none"}, "none' cannot be read"),
        ("npz:{}/good.npz", {"noise": 1.5}, "noise=1.5: expected 0 to 1"),
        ("npz:{}/good.npz", {"corrupted": -0.1}, "corrupted=-0.1: expected 0 to 1"),
        ("npz:{}/good.npz", {"size": 0}, "size=0: expected at least 1"),
        ("idx:{}", {}, "no IDX file .*train-images-idx3-ubyte.gz"),
        ("folder:{}/none", {"size": 8}, "none is not a folder"),
        ("folder:{}", {"size": 8}, "holds no image \\(it has .*\\): give one with .bmp, .jfif"),
        ("folder:{}", {}, "give the size"),
    ],
)
def test_bad_sets_are_explained(tmp_path, spec, options, message):
    images = np.zeros((9, 4, 4), np.uint8)
    saved = {
        "floats": {"images": images / 2.0, "labels": np.arange(9)},
        "rows": {"images": images.reshape(9, 16), "labels": np.arange(9)},
        "short": {"images": images, "labels": np.arange(8)},
        "half": {"images": images, "labels": np.arange(9), "images_test": images},
        "other": {"a": images, "b": images},
        "good": {"images": images, "labels": np.arange(9) % 3},
        "objects": {"images": np.array([None] * 3), "labels": np.arange(3)},
    }
    for name, arrays in saved.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.save(tmp_path / "one.npy", images)
    (tmp_path / "words.npz").write_text("no numbers")
    options = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=message) as error:
        labeled(spec.format(tmp_path), **options)
    assert "\n" not in str(error.value)
