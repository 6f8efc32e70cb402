"""Tables, folders, images and IDX files as people have them: each is read rightly, or refused in one helpful line."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import encoder

from mirigor_jax import config_files, models
from mirigor_jax.data import array_files
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError
from mirigor_jax.models.frozen import FrozenEncoder
from mirigor_jax.runs.job import Job, parse

ROWS = np.random.default_rng(0).normal(size=(20, 2)).round(3)
LINES = [f"{a},{b}" for a, b in ROWS.tolist()]
INDEXED = [f"{i},{line}" for i, line in enumerate(LINES)]
LEFT_OUT = "its first column has no title and counts the rows; it is left out"


def told(read, *arguments):
    """(the result of `read`, its warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = read(*arguments)
    return result, [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (LINES, None),
        (["a,b", *LINES], None),
        (["0,1", *LINES], "its first line, '0,1', is taken for a header"),
        (["a,2020", *LINES], "its first line, 'a,2020', is taken for a header"),
        ([",a,b", *INDEXED], LEFT_OUT),
        ([",0,1", *INDEXED], LEFT_OUT),
        (["Unnamed: 0,a,b", *INDEXED], LEFT_OUT),
    ],
)
def test_headers_and_indexes_of_tables_are_no_samples(tmp_path, lines, warned):
    (tmp_path / "x.csv").write_text("\n".join(lines))
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    np.testing.assert_array_equal(read, ROWS)
    assert said == ([f"x='{tmp_path}/x.csv': {warned}"] if warned else [])


@pytest.mark.parametrize("header", [["id,a,b"], []])
def test_a_titled_column_that_counts_the_rows_is_kept_and_said(tmp_path, header):
    (tmp_path / "x.csv").write_text("\n".join([*header, *INDEXED]))
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    np.testing.assert_array_equal(read, np.column_stack([np.arange(20), ROWS]))
    assert said == [f"x='{tmp_path}/x.csv': its first column counts the rows; leave it out if it is an index"]


def test_a_first_line_of_whole_numbers_above_whole_numbers_is_a_sample_and_said(tmp_path):
    (tmp_path / "x.csv").write_text("0,1\n3,1\n2,2\n")
    read, said = told(array_files.read, f"{tmp_path}/x.csv", "x")
    assert read.tolist() == [[0, 1], [3, 1], [2, 2]]
    assert len(said) == 1
    assert "is taken for a sample; delete it if it is a header" in said[0]


TABLES = {
    "x\n0,53\n-0,27\n": r"line 2 has 2 cells, but the header has 1; a decimal comma\? write decimal points",
    "a,b\nr1,0.5,0.3\n": "line 2 has 3 cells, but the header has 2; row names\\? give their column a title",
    "a,b,c\n1,2\n": "line 2 has 2 cells, but the header has 3; give as many",
    "NA,1\n2,3\n4,5\n": "1 value is missing, the first in line 1, column 1; drop those rows",
    "a,b\nNA,1\n2,3\n": "1 value is missing, the first in line 2, column 1",
    "a,b\n1,1\n2,nan\n4,\n": "2 values are missing, the first in line 3, column 2",
    "a\n1\n\n2\n": "1 value is missing, the first in line 3;",
    "a;b\n1;2\n": "separated by semicolons; give commas",
    "a;b\n1,5;2,5\n": "separated by semicolons; give commas between cells, and points in numbers",
    "a\tb\n1\t2\n": "separated by tabs",
    "a b\n1 2\n3 4\n": "separated by spaces",
    'a\n"1,000"\n': "line 2, '1,000' is no number; write thousands without commas",
    "a\n1_0\n": "line 2, '1_0' is no number",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_that_is_none_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=TABLES[text]) as error:
        array_files.read(f"{tmp_path}/x.csv", "x")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"x='{tmp_path}/x.csv' cannot be read: ")


LABELS = {
    "l\n0\n0\n\n1\n": "1 label is missing, the first in line 4",
    "NA\n0\n1\n": "1 label is missing, the first in line 1",
    "a;b\n0;1\n1;1\n": "separated by semicolons",
    "a,b,c\n1,0,0\n0,1,0\n0,0,1\n": r"one-hot\? give their argmax",
    ".5\n.25\n": "no whole numbers, the first, 0.5, at row 0; a regression target",
}


@pytest.mark.parametrize("text", LABELS)
def test_labels_that_are_none_are_refused_with_their_line(tmp_path, text):
    (tmp_path / "y.csv").write_text(text)
    with pytest.raises(InputError, match=LABELS[text]):
        array_files.read_labels(f"{tmp_path}/y.csv")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"{10**21 + i % 2}" for i in range(6)], ["1" + 21 * "0", "1" + 20 * "0" + "1"]),
        ([",label", *(f"{i},{'ab'[i % 2]}" for i in range(6))], ["a", "b"]),
        (["tumor", "none", "glioma"] * 2, ["glioma", "none", "tumor"]),
    ],
)
def test_labels_of_a_table_are_kept_apart(tmp_path, lines, expected):
    (tmp_path / "y.csv").write_text("\n".join(lines))
    read, said = told(array_files.read_labels, f"{tmp_path}/y.csv")
    assert len(read) == 6
    assert sorted(set(read)) == expected
    assert said == ([] if lines[0] != ",label" else [f"labels='{tmp_path}/y.csv': {LEFT_OUT}"])


def classes_of(spec: str) -> tuple[list[str], dict[str, list[int]]]:
    """(names of the classes, the number of images of each class in each part)."""
    parts = labeled(spec, size=4)
    names = list(parts["train"].value_names[0])
    return names, {
        name: np.bincount(part.attributes[:, 0], minlength=len(names)).tolist() for name, part in parts.items()
    }


def fill(root: Path, *folders: str, count: int = 10) -> None:
    """Write so many images into each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4), i % 256, np.uint8)).save(root / folder / f"{i}.png")


def under(*parts: str, classes: str = "ab") -> list[str]:
    return [f"{part}/{name}" for part in parts for name in classes]


TESTED = {"train": [9, 9], "validation": [1, 1], "test": [10, 10]}
SPLIT = {"train": [6, 6], "validation": [2, 2], "test": [2, 2]}
THREE = {"train": [10, 10], "validation": [10, 10], "test": [10, 10]}
FOLDERS = {
    "Training, Testing": (under("Training", "Testing"), TESTED),
    "valid": (under("train", "valid"), TESTED),
    "dev": (under("train", "dev"), TESTED),
    "upper case": (under("TRAIN", "TEST", "Val"), THREE),
    "sets": (under("training_set", "test_set"), TESTED),
    "data": (under("data/train", "data/test"), TESTED),
    "twice": (under("seg_train/seg_train", "seg_test/seg_test"), TESTED),
    "images in parts": (under("train/images", "test/images"), TESTED),
    "images": (under("images"), SPLIT),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_parts_and_classes_are_found_under_their_usual_names(tmp_path, case):
    folders, counts = FOLDERS[case]
    fill(tmp_path, *folders)
    found, said = told(classes_of, f"folder:{tmp_path}")
    assert found == (["a", "b"], counts)
    assert said == []


def test_classes_may_have_the_names_of_parts(tmp_path):
    fill(tmp_path, "train", "car", "test")
    assert classes_of(f"folder:{tmp_path}")[0] == ["car", "test", "train"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (under("train", "val", "valid"), r"has val, valid, which are one part: keep one, or join them"),
        (under("Test", "valid"), r"has Test, valid, but no part for training: name one train"),
    ],
)
def test_parts_that_are_none_are_refused(tmp_path, folders, message):
    fill(tmp_path, *folders)
    with pytest.raises(InputError, match=message):
        classes_of(f"folder:{tmp_path}")


def test_what_a_folder_passes_over_is_counted_and_said(tmp_path):
    fill(tmp_path, *under("train", "test"), "extra/c")
    for name in ("train/0.png", "train/a/x.gif", "train/a/y.heic", "train/b/.DS_Store", "notes.txt", "train/b/README"):
        (tmp_path / name).write_bytes(b"x")
    found, [said] = told(classes_of, f"folder:{tmp_path}")
    assert found == (["a", "b"], TESTED)
    for count in ("1 .gif files", "1 .heic files", "1 .txt files", "1 files without a suffix", "1 hidden files",
                  "1 folders beside the parts (extra)", "1 images beside the folders"):  # fmt: skip
        assert count in said
    (tmp_path / "round").symlink_to("round")  # a link to itself
    assert told(classes_of, f"folder:{tmp_path}")[0] == (["a", "b"], TESTED)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "a" / "x.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image \(it has 1 .heic files\): give one with .bmp"):
        classes_of(f"folder:{tmp_path}/empty")


def test_folders_inside_classes_are_said_to_be_perhaps_the_classes(tmp_path):
    fill(tmp_path, "a/abbey", "a/airport", "b/bar")
    (names, _), [said] = told(classes_of, f"folder:{tmp_path}")
    assert names == ["a", "b"]
    assert "its classes a, b hold folders alone (a/abbey, a/airport, b/bar); if those are the classes" in said


GRAY = np.tile(np.array([0, 257, 65280, 65535], np.uint16), (4, 1))
SHOWN = {
    "16-bit.png": (Image.fromarray(GRAY), [0, 1, 254, 255]),
    "16-bit.tif": (Image.fromarray(GRAY), [0, 1, 254, 255]),
    "1-bit.png": (Image.fromarray(GRAY > 300), [0, 0, 255, 255]),
    "1-bit.pbm": (Image.fromarray(GRAY > 300), [0, 0, 255, 255]),
    "photograph.jfif": (Image.new("RGB", (4, 4), (90, 90, 90)), [90] * 4),
    "clear.png": (Image.new("RGBA", (4, 4), (200, 30, 90, 0)), [255] * 4),
    "half clear.png": (Image.new("LA", (4, 4), (55, 128)), [155] * 4),
}


@pytest.mark.parametrize("name", SHOWN)
def test_pixels_of_every_depth_and_opacity_become_8_bits(tmp_path, name):
    image, expected = SHOWN[name]
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / name, {".jfif": "JPEG", ".pbm": "PPM"}.get(Path(name).suffix))
    read = labeled(f"folder:{tmp_path}", size=4)["train"].read(np.arange(1))
    np.testing.assert_array_equal(read[0, 0], np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_arrays_of_1_and_16_bits_are_scaled_and_others_refused(tmp_path):
    for name, images, level in (("a", GRAY, [0, 1, 254, 255]), ("b", GRAY > 300, [0, 0, 255, 255])):
        np.savez(tmp_path / f"{name}.npz", images=np.tile(images, (10, 1, 1)), labels=np.zeros(10, int))
        read = labeled(f"npz:{tmp_path}/{name}.npz")["train"].read(np.arange(1))
        assert read[0, 0, :, 1].tolist() == level
    np.savez(tmp_path / "c.npz", images=np.zeros((9, 3, 4, 4), np.uint8), labels=np.zeros(9, int))
    with pytest.raises(InputError, match=r"expected uint8 .*; save .transpose\(0, 2, 3, 1\)"):
        labeled(f"npz:{tmp_path}/c.npz")


def idx(array: np.ndarray, code: int = 8, dtype: str = "u1") -> bytes:
    return bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(dtype).tobytes()


DIGITS = np.arange(40) % 4
IMAGES = idx(np.repeat(DIGITS, 16).reshape(40, 4, 4))
OF_QMNIST = idx(np.stack([DIGITS, *np.full((7, 40), 9)], axis=1), 12, ">i4")
IDX = {
    "{}-images-idx3-ubyte": "{}-labels-idx1-ubyte",
    "emnist-letters-{}-images-idx3-ubyte.gz": "emnist-letters-{}-labels-idx1-ubyte.gz",
    "{}-images.idx3-ubyte": "{}-labels.idx1-ubyte",
    "qmnist-{}-images-idx3-ubyte": "qmnist-{}-labels-idx2-int.gz",
}


@pytest.mark.parametrize("images", IDX)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_found_under_the_names_of_every_set(tmp_path, images, zipped):
    """Their content tells whether they are gzipped, not their names."""
    for part in ("train", "test" if "-{}" in images else "t10k"):
        for name, content in ((images, IMAGES), (IDX[images], OF_QMNIST if "idx2" in IDX[images] else idx(DIGITS))):
            (tmp_path / name.format(part)).write_bytes(gzip.compress(content) if zipped else content)
    sets = labeled(f"idx:{tmp_path}")
    assert {name: len(part) for name, part in sets.items()} == {"train": 36, "validation": 4, "test": 40}
    for part in sets.values():
        assert part.value_names == (("0", "1", "2", "3"),)
        np.testing.assert_array_equal(part.attributes[:, 0], part.read(np.arange(len(part)))[:, 0, 0, 0])


def test_idx_files_of_several_sets_or_none_are_listed(tmp_path):
    with pytest.raises(InputError, match=r"no IDX file of training images in .*; it holds nothing"):
        labeled(f"idx:{tmp_path}")
    for name in ("digits", "letters"):
        (tmp_path / f"emnist-{name}-train-images-idx3-ubyte").write_bytes(IMAGES)
        (tmp_path / f"emnist-{name}-train-labels-idx1-ubyte").write_bytes(idx(DIGITS))
    with pytest.raises(
        InputError, match=r"images of 2 sets: give one, as idx:.*/emnist-digits-, idx:.*/emnist-letters-$"
    ):
        labeled(f"idx:{tmp_path}")
    sets, [said] = told(labeled, f"idx:{tmp_path}/emnist-letters-")
    assert said.endswith("has no file of a test part: it is split off from emnist-letters-train-images-idx3-ubyte")
    assert [len(part) for part in sets.values()] == [24, 8, 8]
    with pytest.raises(InputError, match=r"no IDX file .*/nothing, and no images of IDX in .* begin so"):
        labeled(f"idx:{tmp_path}/nothing")


def test_a_job_keeps_for_its_report_what_its_files_pass_over(tmp_path, monkeypatch):
    """The files of a folder, and the keys of a checkpoint that no encoder has."""
    fill(tmp_path / "set", "a", "b", count=300)
    (tmp_path / "set" / "a" / ".hidden.png").touch()
    (tmp_path / "x.pth").touch()
    given = FrozenEncoder(models.build("mlp", size=16), {}, ignored=tuple(f"head.{i}" for i in range(7)))
    monkeypatch.setattr(Job, "public_encoder", lambda job: given)
    more = (f"--config.encoder.path={tmp_path}/x.pth", "--config.data.size=16")
    config = config_files.parse(encoder(f"folder:{tmp_path}/set", tmp_path, *more))[0]
    job, said = told(parse, config)
    counted = f"image folder {tmp_path}/set: left out 1 hidden files"
    assert said == [counted]
    keys = f"encoder '{tmp_path}/x.pth': 7 keys are ignored: head.0, head.1, head.2, head.3, head.4, … (7 in all)"
    assert job.notes == (counted, keys)
    assert job.of(config).notes == job.notes
