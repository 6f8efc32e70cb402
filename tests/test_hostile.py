"""Hostile and damaged input: a file is read correctly or refused in one line; it runs and writes nothing."""

import gzip
import io
import os
import re
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hostile import LABELS, NAMES, PIXELS, READERS, ROWS, Case, bombs, corpus, idx, image, npy, npz, torch_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import user_environment

from mirigor_jax import files
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.errors import InputError, shown
from mirigor_jax.main import main

ADVICE = ("allow_pickle", "weights_only", "max_header_size", "MemoryError")


def refusal(case: Case) -> str | None:
    """The reader's error message, or None if it reads the file. Any error but InputError is a defect and is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what folders leave out
            READERS[case.reader](case.path)
    except InputError as error:
        return str(error)
    return None


def contents(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every path under `root` → (mode, size, modification time), which show whether it was changed."""
    paths = [Path(where, name) for where, folders, files in os.walk(root) for name in (*folders, *files)]
    return {str(path): (stat := path.lstat(), (stat.st_mode, stat.st_size, stat.st_mtime_ns))[1] for path in paths}


def check(cases: list[Case]) -> Counter[str]:
    """Check that each reader refuses its files as it should. Returns reader → number of refused files."""
    counts: Counter[str] = Counter()
    for case in cases:
        try:
            words = refusal(case)
        except Exception as error:
            raise AssertionError(f"{case} ends in {type(error).__name__}: {str(error)[:300]}") from error
        assert case.refused is None or case.refused == (words is not None), (case, words)
        if words is not None:
            assert words.isprintable(), case
            assert not any(advice in words for advice in ADVICE), (case, words)
            counts[case.reader] += 1
    return counts


def test_the_corpus_is_read_rightly_or_refused_in_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "file").touch()
    cases = [*corpus(tmp_path)]
    before = contents(tmp_path)
    counts = check(cases)
    assert contents(tmp_path) == before
    assert not (tmp_path / "ran").exists()
    assert len({case.path for case in cases if case.refused}) >= 150
    assert counts.keys() == READERS.keys()


@pytest.mark.slow
def test_torch_s_files_run_nothing_and_are_refused_in_our_words(tmp_path):
    """The files declare gigabytes, or dictionaries of a trillion entries, or contain code of every kind."""
    pytest.importorskip("torch")
    cases = [*torch_files(tmp_path)]
    before = contents(tmp_path)
    check(cases)
    assert contents(tmp_path) == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_corpus_takes_less_than_a_gigabyte(tmp_path):
    """The process may map only one GiB more than it has after all imports."""
    pytest.importorskip("torch")
    (tmp_path / "gone" / "file").mkdir(parents=True)
    script = (
        "import resource, sys, pathlib, warnings\n"
        "from hostile import corpus, torch_files\n"
        "from test_hostile import check\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "cases = [*corpus(root), *torch_files(root)]\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "limit = int(status['VmSize'].split()[0]) * 1024 + 2**30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "before = int(dict(l.split(':', 1) for l in open('/proc/self/status'))['VmHWM'].split()[0])\n"
        "print(sum(check(cases).values()))\n"
        "after = int(dict(l.split(':', 1) for l in open('/proc/self/status'))['VmHWM'].split()[0])\n"
        "print('peak MiB above', (after - before) / 1024)\n"
    )
    environment = user_environment() | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 150
    print(done.stdout)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """The file with bits flipped, bytes set, its end cut off, or a piece repeated or moved; or other bytes instead."""
    places = st.integers(0, len(good) - 1)
    a, b, c = sorted((draw(places), draw(places), draw(places)))
    kind = draw(st.sampled_from(["flip", "cut", "set", "repeat", "move", "other"]))
    if kind == "flip":
        whole = bytearray(good)
        for at, bit in draw(st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8)):
            whole[at] ^= 1 << bit
        return bytes(whole)
    return {
        "cut": good[:a],
        "set": good[:a] + bytes(draw(st.lists(st.sampled_from([0, 1, 127, 128, 255]), max_size=4))) + good[a + 4 :],
        "repeat": good[:b] + good[a:b][:4096] + good[b:],
        "move": good[:a] + good[b:c] + good[a:b] + good[c:],
        "other": draw(st.binary(max_size=200)),
    }[kind]


def good_files() -> dict[str, tuple[str, bytes]]:
    """Name → (reader, content) of one good file of each kind."""
    config = b"from ml_collections import ConfigDict\ndef get_config(arguments):\n    return ConfigDict({'a': 1})\n"
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "ppm": "PPM"}
    return {
        "x.npy": ("x", npy(ROWS)),
        "x.csv": ("x", "\n".join(f"{a},{b}" for a, b, _ in ROWS.tolist()).encode()),
        "images.npz": ("npz", npz(images=PIXELS, labels=LABELS)),
        "features.npz": ("features", npz(h=ROWS, labels=LABELS.astype(str))),
        "idx": ("idx", idx(PIXELS)),
        "idx.gz": ("idx", gzip.compress(idx(PIXELS))),
        "a.safetensors": ("tensors", safetensors.numpy.save({"a": ROWS})),
        "a.npz": ("tensors", npz(a=ROWS)),
        "config.py": ("config", config),
        **{f"a.{ending}": ("folder", image(kind)) for ending, kind in kinds.items()},
    }


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", good_files())
def test_damaged_files_are_read_or_refused(tmp_path, name, count):
    reader, good = good_files()[name]
    path = tmp_path / "a" / name
    path.parent.mkdir()
    given_path = str(tmp_path if reader == "folder" else path)
    path.write_bytes(good)
    assert refusal(Case(reader, given_path)) is None
    refused = 0

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(damaged(good))
    def read(data: bytes) -> None:
        nonlocal refused
        path.write_bytes(data)
        refused += check([Case(reader, given_path, None)])[reader]

    read()
    assert refused >= count // 10
    assert {Path(entry).name for entry in contents(tmp_path)} == {"a", name}


def test_a_flipped_bit_of_an_archive_is_found(tmp_path):
    """NumPy's own reader stops before it compares the checksum."""
    good, rng = npz(images=PIXELS, labels=LABELS), np.random.default_rng(0)
    start = good.find(PIXELS.tobytes())
    for at in (start + rng.integers(PIXELS.size, size=40)).tolist():
        (tmp_path / "a.npz").write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        with pytest.raises(InputError, match="array 'images' is damaged"):
            labeled(f"npz:{tmp_path}/a.npz")


def test_what_is_declared_takes_no_memory(tmp_path):
    cases = [*bombs(tmp_path)]
    assert len(cases) >= 9
    for case in cases:
        tracemalloc.start()
        refusal(case)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24, (case, peak)


def fill(folder: Path, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(12):
        files.write_bytes(folder / f"{i}.png", png(np.full((4, 4), first + i, np.uint8)))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def seen(root: Path) -> list[int]:
    sets = labeled(f"folder:{root}", size=4)
    return sorted(np.concatenate([part.read(np.arange(len(part)))[:, 0, 0, 0] for part in sets.values()]).tolist())


def test_what_links_reach_twice_counts_once(tmp_path):
    root = tmp_path / "set"
    fill(root / "a")
    fill(root / "b", 100)
    once = [*range(12), *range(100, 112)]
    assert seen(root) == once
    (root / "again").symlink_to("a")  # a class
    (root / "round").symlink_to(".")
    (root / "up").symlink_to("..")
    (root / "b" / "7 again.png").symlink_to("7.png")  # an image of the same class, and of another
    (root / "a" / "8 of b.png").symlink_to("../b/8.png")
    (root / "a" / "deeper").symlink_to("../b")
    (root / "a" / "lost.png").symlink_to("nothing")
    os.mkfifo(root / "a" / "fifo.png")
    (root / "a" / "x.gif").write_bytes(b"GIF89a")
    with pytest.warns(UserWarning, match="left out") as told:
        assert seen(root) == once
    [message] = {str(warning.message) for warning in told}
    assert "\n" not in message
    for count in ("1 .gif files", "1 FIFOs", "1 links that lead nowhere", "1 links to folders",
                  "3 links to folders that are read already", "2 links to images that are read already"):  # fmt: skip
        assert count in message
    with pytest.warns(UserWarning, match="left out"):
        assert labeled(f"folder:{root}", size=4)["train"].value_names == (("a", "b"),)


def test_links_to_images_and_folders_elsewhere_are_read(tmp_path):
    fill(tmp_path / "elsewhere" / "x")
    fill(tmp_path / "store", 50)
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere" / "x")
    for i in range(12):
        (tmp_path / "set" / "b" / f"{i}.png").symlink_to(tmp_path / "store" / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen(tmp_path / "set") == [*range(12), *range(50, 62)]


def test_parts_that_are_links_to_each_other_are_refused(tmp_path):
    fill(tmp_path / "train" / "a")
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(InputError, match=r"train and validation of .* both link to .*a: give each part images of its"):
        seen(tmp_path)


def test_copies_that_notebooks_and_macs_leave_are_not_read(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "a" / ".ipynb_checkpoints", 30)
    fill(tmp_path / "a" / "b" / ".hidden" / "c", 90)
    fill(tmp_path / "__MACOSX" / "a", 60)
    for name in ("3-checkpoint.png", "new-checkpoint.png"):  # of the second there is no original
        files.write_bytes(tmp_path / "a" / name, png(np.full((4, 4), 200, np.uint8)))
    with pytest.warns(UserWarning, match="left out 1 copies of notebooks, 36 hidden files$"):
        assert seen(tmp_path) == [*range(12), 200]


def test_names_of_any_characters_are_shown_on_one_line(tmp_path):
    for name in NAMES:
        fill(tmp_path / name)
    values = labeled(f"folder:{tmp_path}", size=4)["train"].value_names[0]
    assert values == tuple(shown(name) for name in sorted(NAMES))
    assert all(name.isprintable() and name.encode() for name in values)
    assert {"new\\nline", "esc\\x1b[31m", "\\u202egnp", "\\udcff\\udcfe", "100%s", "-rf", "ü"} <= {*values}
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.where(LABELS, "x\ny", "\x1b[2J"))
    assert labeled(f"npz:{tmp_path}/a.npz")["train"].value_names == (("\\x1b[2J", "x\\ny"),)


def test_a_message_is_one_line_of_bounded_length():
    assert str(InputError("a\nb\r\x00\udcff é")) == "a\\nb\\r\\x00\\udcff é"
    assert len(shown("x" * 10**6)) == 200
    assert shown("x" * 200) == "x" * 200


CONFIGS = {
    "": r"no config file ''; the shipped configs are configs/",
    "{}": r"'.*' is no file; the shipped",
    "/dev/zero": r"'/dev/zero' is no file",
    "{}/syntax.py": r"syntax.py' is no Python: line 2, invalid syntax; repair it",
    "{}/raises.py": r"raises.py' raises ZeroDivisionError in line 3: division by zero; repair it",
    "{}/none.py": r"get_config of '.*none.py' returns a NoneType; return a ConfigDict",
    "{}/without.py": r"without.py' has no get_config; define get_config\(arguments\)",
    "{}/binary.py": r"binary.py' (raises|is no Python)",
}


@pytest.mark.parametrize("given", CONFIGS)
def test_a_config_of_anything_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, given):
    contents = {
        "syntax": b"x = 1\nx = = 2\n",
        "raises": b"\ndef get_config(arguments):\n    return 1 / 0\n",
        "none": b"def get_config(arguments):\n    pass\n",
        "without": b"x = 1\n",
        "binary": b"\x7fELF\x00\xff",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert main([f"--config={given.format(tmp_path)}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(f"error: .*{CONFIGS[given]}", error), error
    assert sorted(os.listdir(tmp_path)) == sorted(f"{name}.py" for name in contents)
