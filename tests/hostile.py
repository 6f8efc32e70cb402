"""Damaged and hostile files of every kind that the library reads. `corpus` writes them and runs nothing."""

import argparse
import gzip
import importlib
import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from PIL import Image

from mirigor_jax import config_files
from mirigor_jax.data import array_files, cdp
from mirigor_jax.data.sources.backgrounds import backgrounds
from mirigor_jax.data.sources.idx import read_idx
from mirigor_jax.data.sources.table import labeled
from mirigor_jax.models.pretrained import load, read_tensors

FAR = 2**44  # bytes that no machine has


class Payload:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Called:
    """An object whose unpickling calls a function with arguments."""

    def __init__(self, function, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Case(NamedTuple):
    """A path, the reader that gets it, and whether the reader must refuse it (None: it may or may not)."""

    reader: str
    path: str
    refused: bool | None = True


def _all_images(spec: str, **options) -> list[np.ndarray]:
    return [part.read(np.arange(len(part))) for part in labeled(spec, **options).values()]


READERS = {
    "x": lambda path: array_files.read(path, "x"),
    "labels": array_files.read_labels,
    "npz": lambda path: _all_images(f"npz:{path}"),
    "features": lambda path: _all_images(f"features:{path}"),
    "idx": lambda path: read_idx(Path(path)),
    "idx folder": lambda path: _all_images(f"idx:{path}"),
    "folder": lambda path: _all_images(f"folder:{path}", size=4),
    "background": lambda path: backgrounds(f"folder:{path}", count=2, size=8, seed=0),
    "classes": lambda path: labeled(f"npz:{Path(path).parent}/good.npz", classes=f"file:{path}"),
    "config": lambda path: config_files.parse([f"--config={path}"]),
    "tensors": lambda path: read_tensors(Path(path)),
    "checkpoint": lambda path: load(path),
    "size": lambda path: labeled(f"npz:{Path(path).parent}/good.npz", size=int(Path(path).suffix[1:])),
    "cdp size": lambda path: cdp.make(size=int(Path(path).suffix[1:])),
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text: str | dict, *, version: int = 1, body: bytes = b"") -> bytes:
    """An .npy file with this header."""
    text = (repr(text) if isinstance(text, dict) else text) + "\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1") + body


def declared(shape: object, descr: object = "<f8", body: bytes = bytes(64), **more) -> bytes:
    return header({"descr": descr, "fortran_order": False, "shape": shape, **more}, body=body)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz(**arrays: object) -> bytes:
    return zipped({f"{n}.npy": a if isinstance(a, bytes) else npy(np.asarray(a)) for n, a in arrays.items()})


def packed_zeros(mebibytes: int, start: bytes = b"", wbits: int = 31) -> bytes:
    """`start` and so many MiB of zeros, compressed, without the checksum at the end."""
    packer = zlib.compressobj(9, wbits=wbits)
    begin = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return begin + mebibytes * block


def zip_bomb(name: str, start: bytes, mebibytes: int) -> bytes:
    whole = bytearray(zipped({name: packed_zeros(mebibytes, start, wbits=-15)}))
    central = whole.rindex(b"PK\x01\x02")
    for method, size in ((8, 22), (central + 10, central + 24)):
        whole[method : method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        whole[size : size + 4] = struct.pack("<I", len(start) + mebibytes * 2**20)
    return bytes(whole)


def idx(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (9, 7), **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG that declares so many pixels and contains none."""
    whole = bytearray(image("PNG"))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


LABELS = np.arange(40) % 2
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 6), np.uint8)
ROWS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n"
NAMES = [
    "new\nline",
    "tab\t",
    "esc\x1b[31m",
    "100%s",
    "-rf",
    "sp ace",
    "$x^$",
    "ü",
    "\u202egnp",
    os.fsdecode(b"\xff\xfe"),
]
GOOD_CONFIG = (
    "from ml_collections import ConfigDict\ndef get_config(arguments):\n    return ConfigDict({'kind': 'x'})\n"
)


def arrays(root: Path) -> dict[str, tuple[bytes, bool | None]]:
    """Name → (content of an .npy file, whether it must be refused)."""
    objects = npy(np.array([Payload(root / "ran"), None], object))
    good = npy(ROWS)
    return {
        "good": (good, False),
        "empty": (b"", True),
        "magic": (good[:6], True),
        "cut header": (good[:40], True),
        "cut": (good[:-1], True),
        "longer": (good + b"\0", True),
        "twice": (good * 2, True),
        "version 9": (good[:6] + b"\x09\x00" + good[8:], True),
        "version 3": (good[:6] + b"\x03\x00" + good[8:], True),
        "long header": (header("{" + " " * 20_000 + "}", version=2), True),
        "endless header": (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"{", True),
        "nested header": (header("(" * 3000 + ")" * 3000), True),
        "signs header": (header("-" * 9000 + "1"), True),
        "call header": (header(f"__import__('os').mkdir({str(root / 'ran')!r})"), True),
        "list header": (header("[1, 2]"), True),
        "keys header": (header({"descr": "<f8", "shape": (2,)}), True),
        "terabytes": (declared((FAR // 8,)), True),
        "overflow": (declared((2**32, 2**32)), True),
        "overflow to 8": (declared((2**61 + 1,), body=bytes(8)), True),
        "negative": (declared((-1,)), True),
        "negatives": (declared((-2, -4)), True),
        "no columns": (declared((10**12, 0), body=b""), True),
        "axes": (declared((1,) * 70, body=bytes(8)), True),
        "float shape": (declared((2.0,)), True),
        "text shape": (declared("8"), True),
        "no width": (declared((10**12,), "<U0", body=b""), True),
        "wide": (declared((1,), "<U2000000000"), True),
        "objects": (objects, True),
        "object header": (declared((1,), "|O", body=pickle.dumps(Payload(root / "ran"))), True),
        "record": (declared((8,), [("a", "<f8")]), True),
        "record of objects": (declared((1,), [("a", "|O")], body=pickle.dumps(Payload(root / "ran"))), True),
        "subarray": (declared((1,), ("<f8", (8,))), True),
        "no dtype": (declared((8,), "nonsense"), True),
        "bfloat16": (declared((32,), "|V2"), True),
        "dates": (npy(np.zeros(8, "M8[s]")), True),
        "code points": (declared((2, 1), "<U1", body=b"\xff" * 8), True),
        "pickle": (pickle.dumps(Payload(root / "ran")), True),
        "pickle 0": (pickle.dumps(Payload(root / "ran"), protocol=0), True),
        "zeros": (bytes(4096), True),
        "html": (b"<!DOCTYPE html><title>404</title>", True),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", True),
    }


def archives(root: Path) -> dict[str, bytes]:
    """Contents of .npz files that `npz:`, `features:` and the readers of checkpoints must all refuse."""
    good = npz(images=PIXELS, labels=LABELS, h=ROWS)
    stored = npy(PIXELS)
    flipped = bytearray(good)
    flipped[200] ^= 1  # among the images' values
    encrypted = bytearray(good)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := good.find(mark, at + 1)) >= 0:
            encrypted[at + offset] |= 1
    lying = zipped({"images.npy": declared((FAR,), "|u1"), "labels.npy": npy(LABELS), "h.npy": declared((FAR, 1))})
    names = ("images", "h", "conv1.weight")
    return {
        "empty": b"",
        "nothing": zipped({}),
        "cut": good[: len(good) // 2],
        "start": b"PK\x03\x04 and no more",
        "end": good[:-30],
        "flipped": bytes(flipped),
        "encrypted": bytes(encrypted),
        "lying": lying,
        "text": zipped({"images.npy": b"no array", "h.npy": b"no array", "labels.npy": npy(LABELS)}),
        "folder": zipped({"images/": b"", "h/": b""}),
        "lzma": zipped({f"{name}.npy": stored for name in names}, zipfile.ZIP_LZMA),
        "bz2": zipped({f"{name}.npy": stored for name in names}, zipfile.ZIP_BZIP2),
        "objects": npz(**{name: npy(np.array([Payload(root / "ran")], object)) for name in names}, labels=LABELS),
        "pickles": zipped({f"{name}.npy": pickle.dumps(Payload(root / "ran")) for name in names}),
        "sparse": npz(data=ROWS, indices=LABELS, indptr=LABELS, format=np.bytes_(b"csr"), shape=(9, 9)),
        "array": npy(ROWS),
        "far": npz(**dict.fromkeys(names, declared((2**20, 2**20), "|u1")), labels=LABELS),
        "names": npz(**{"a\nb": ROWS, "\x1b[2J": ROWS}),
        "floats": npz(images=ROWS, h=LABELS, labels=LABELS),
        "labels of objects": npz(images=PIXELS, h=ROWS, labels=npy(np.array([Payload(root / "ran")] * 40, object))),
        "labels of code points": npz(images=PIXELS, h=ROWS, labels=declared((40,), "<U1", body=b"\xff" * 160)),
        "short labels": npz(images=PIXELS, h=ROWS, labels=LABELS[:3]),
        "no pixels": npz(images=declared((10**9, 0, 0), "|u1", body=b""), h=declared((10**9, 0), body=b"")),
        "wide pixels": npz(images=np.zeros((1, 5000, 5000), np.uint8), h=ROWS[:, :0], labels=[0]),
        "html": b"<!DOCTYPE html>",
    }


def configs(root: Path) -> dict[str, bytes]:
    ran = f"import os\nos.rmdir({str(root / 'gone')!r})\n"
    return {
        "syntax": b"def get_config(:\n",
        "binary": bytes(range(256)),
        "zeros": bytes(999),
        "latin": b"# \xff\n",
        "coding": b"# -*- coding: nonsense -*-\n",
        "empty": b"",
        "no function": b"x = 1\n",
        "no callable": b"get_config = 3\n",
        "raises": b"def get_config(arguments):\n    return 1 / 0\n",
        "raises at once": ran.encode(),
        "raises lines": b"raise ValueError('a\\nb\\x1b[2J')\n",
        "exits": b"raise SystemExit(0)\n",
        "imports": b"import no_such_module\n",
        "recurses": b"def get_config(arguments):\n    return get_config(arguments)\n",
        "none": b"def get_config(arguments):\n    pass\n",
        "dict": b"def get_config(arguments):\n    return {}\n",
        "no arguments": b"def get_config():\n    pass\n",
        "nested": b"x = " + b"(" * 5000 + b")" * 5000,
        "large": b"#" * 2**21,
    }


def put(root: Path, name: str, content: bytes) -> str:
    """Write a file under `root`, and return its path."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def corpus(root: Path) -> Iterator[Case]:
    """Write the files under `root`. Returns a case for each."""

    write = partial(put, root)
    (root / "lists").mkdir(parents=True)
    for name, (content, refused) in arrays(root).items():
        path = write(f"npy/{name}.npy", content)
        yield Case("x", path, refused)
        if refused:
            yield Case("labels", path)
            yield Case("npz", path)
    for name, content in archives(root).items():
        path = write(f"npz/{name}.npz", content)
        for reader in ("npz", "features", "checkpoint"):
            yield Case(reader, path, None if (name, reader) == ("flipped", "features") else True)
        yield Case("x", path, None if name in ("array", "floats", "short labels") else True)
    tables = {
        "cells": b"1,2\n3,x\n",
        "bytes": b"\xff\xfe1",
        "nul": b"1,\0\n2,3\n",
        "wide": b"1" * 200_000,
        "quote": b'"1,2\n3,4\n' * 9,
        "ragged": b"1,2\n3\n",
        "pickle": pickle.dumps(Payload(root / "ran")),
    }
    for name, content in tables.items():
        yield Case("x", write(f"csv/{name}.csv", content), None if name in ("wide", "nul") else True)
    yield from bombs(root)
    yield from _idx(write)
    yield from _images(root, write)
    for name, content in configs(root).items():
        yield Case("config", write(f"configs/{name}.py", content))
    yield Case("config", write("configs/lines\nand \x1b.py", b"1 +\n"))
    yield Case("config", write("configs/good", GOOD_CONFIG.encode()), False)  # by content, whatever it is called
    yield from (Case("config", path) for path in ("", ".", "/", "/dev/zero", "/dev/null", "x" * 5000, "\0", "a\nb"))
    yield from _checkpoints(root, write)
    yield from _special(root)
    good = write("lists/good.npz", npz(images=PIXELS, labels=LABELS))
    lists = {"bytes": b"\xff\xfe", "pickle": pickle.dumps(1), "long": b"0" * 2**25, "line": b"a" * 10**5}
    for name, content in lists.items():
        yield Case("classes", write(f"lists/{name}", content))
    yield from (Case("size", f"{good}.{size}") for size in (0, 4097, 10**6, 10**12))
    yield from (Case("cdp size", f"size.{size}") for size in (0, 33, 4096, 10**6, 10**12))
    yield from (Case(reader, "~no_such_user/x.npz") for reader in ("x", "npz", "folder", "idx folder", "background"))
    yield from (Case(reader, "x" * 5000 + ".npz") for reader in ("x", "npz", "features", "folder", "checkpoint"))


def bombs(root: Path) -> Iterator[Case]:
    """Files that unpack to 300 MiB or declare a TiB."""
    write = partial(put, root)
    start = declared((300, 2**10, 2**10), "|u1", body=b"")
    path = write("bombs/images.npz", zip_bomb("images.npy", start, 300))
    yield from (Case(reader, path) for reader in ("npz", "x", "checkpoint"))
    yield Case("idx", write("bombs/a-images-idx3-ubyte.gz", packed_zeros(300, idx(np.empty(0), (300, 2**10, 2**10)))))
    # A gigabyte behind a short array is not unpacked.
    yield Case("idx", write("bombs/b-images-idx3-ubyte.gz", packed_zeros(300, idx(np.zeros(4), (1, 2, 2)))))
    for name, content in {
        "npy": declared((FAR // 8,), body=b""),
        "csv": b"1,2\n",
        "npz": b"PK\x03\x04",
        "py": b"",
    }.items():
        path = Path(write(f"bombs/hole.{name}", content))
        os.truncate(path, len(content) + 2**40)
        yield Case("config" if name == "py" else "x", str(path))
    path = Path(write("bombs/hole-images-idx3-ubyte", idx(np.empty(0), (2**20, 2**10, 2**10))))
    os.truncate(path, 16 + 2**40)
    yield Case("idx", str(path))


def _idx(write) -> Iterator[Case]:
    good = idx(PIXELS)
    contents = {
        "good": (good, False),
        "packed": (gzip.compress(good), False),
        "empty": (b"", True),
        "short": (b"\0\0\x08", True),
        "cut": (good[:-1], True),
        "longer": (good + b"\0", True),
        "ints": (b"\0\0\x0c" + good[3:], True),
        "far": (idx(PIXELS, (2**32 - 1,) * 3), True),
        "axes": (idx(np.zeros(1), (1,) * 255), True),
        "no pixels": (idx(np.empty(0), (10**9, 0, 0)), True),
        "packed cut": (gzip.compress(good)[:-9], True),
        "packed flipped": (gzip.compress(good)[:-8] + bytes(8), True),
        "packed longer": (gzip.compress(good + b"\0"), True),
        "packed far": (gzip.compress(idx(PIXELS, (2**20, 2**20))), True),
        "gzip's start": (b"\x1f\x8b", True),
        "gzip of nothing": (gzip.compress(b""), True),
        "pickle": (pickle.dumps(1), True),
    }
    for name, (content, refused) in contents.items():
        yield Case("idx", write(f"idx/{name}-images-idx3-ubyte", content), refused)
    for name, images, labels in (("few", PIXELS, LABELS[:9]), ("flat", PIXELS.reshape(40, 36), LABELS)):
        for part in ("train", "t10k"):
            write(f"idx/{name}/{part}-images-idx3-ubyte", idx(images))
            path = write(f"idx/{name}/{part}-labels-idx1-ubyte", idx(labels))
        yield Case("idx folder", str(Path(path).parent))


def _images(root: Path, write) -> Iterator[Case]:
    contents = {
        "empty.png": b"",
        "words.jpg": b"no image",
        "pickle.png": pickle.dumps(Payload(root / "ran")),
        "postscript.png": POSTSCRIPT,
        "postscript.jpg": POSTSCRIPT.replace(b"%!PS", b"\xc5\xd0\xd3\xc6%!PS"),
        "gif.png": image("GIF"),
        "icon.png": image("ICO"),
        "jpeg2000.jpg": image("JPEG2000"),
        "pdf.png": image("PDF"),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "cut.png": image("PNG")[:-30],
        "cut.jpg": image("JPEG")[:-60],
        "cut.webp": image("WEBP")[:-20],
        "cut.tif": image("TIFF")[:60],
        "cut.bmp": image("BMP")[:-9],
        "cut.ppm": image("PPM")[:-9],
        "wide.png": huge_png(2**31 - 1, 2**31 - 1),
        "limit.png": huge_png(9460, 9460),
        "wide.ppm": b"P6 100000 100000 255\n" + bytes(99),
        "wide.bmp": image("BMP")[:18] + struct.pack("<ii", 10**5, 10**5) + image("BMP")[26:],
        "deep.tif": image("TIFF", "F"),
        "long.pgm": b"P2 " + b"9" * 10**5,
        "zero.ppm": b"P6 0 0 255\n",
    }
    for name, content in contents.items():
        for reader in ("folder", "background"):
            yield Case(reader, str(Path(write(f"images/{name}/a/{name}", content)).parent.parent))
    for number, name in enumerate(NAMES):
        write(f"names/{name}/{name}.png", image("PNG"))
        write(f"broken/{number}/{name}/{name}.png", b"no image")
        yield Case("folder", str(root / "broken" / str(number)))
    for i in range(9):
        for name in NAMES:
            write(f"names/{name}/{i}.png", image("PNG"))
    yield Case("folder", str(root / "names"), False)


def _checkpoints(root: Path, write) -> Iterator[Case]:
    weights = {"conv1.weight": np.ones((4, 3, 7, 7), np.float32)}
    good = safetensors.numpy.save(weights)
    text = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    contents = {
        "good": (good, False),
        "empty": (b"", True),
        "cut": (good[:-1], True),
        "longer": (good + b"\0", True),
        "far": (struct.pack("<Q", 2**63) + good[8:], True),
        "beyond": (struct.pack("<Q", len(text)) + text, True),
        "json": (struct.pack("<Q", 9) + b"[[[[[[[[[", True),
        "pickle": (pickle.dumps(Payload(root / "ran")), True),
        "html": (b"<!DOCTYPE html>", True),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", True),
    }
    for name, (content, refused) in contents.items():
        yield Case("tensors", write(f"checkpoints/{name}.safetensors", content), refused)
    keys = {
        "long": {"layer1." + "9" * 5000 + ".conv1.weight": np.ones(3)},
        "lines": {"a\nb\x1b[2J": np.ones(3)},
        "deep": {f"layer1.{10**9}.conv1.weight": np.ones((4, 4, 3, 3)), "conv1.weight": np.ones((4, 3, 7, 7))},
        "strings": {"conv1.weight": np.full((4, 3, 7, 7), "a")},
        "no values": {"blocks.0.norm1.weight": np.ones((0,)), "patch_embed.proj.weight": np.ones((10**9, 3, 0, 4))},
    }
    for name, arrays in keys.items():
        content = npz(**arrays)
        yield Case("checkpoint", write(f"checkpoints/{name}.npz", content))


def torch_files(root: Path) -> Iterator[Case]:
    """Files that torch writes, some of which it refuses to read."""
    import torch

    (root / "checkpoints").mkdir(exist_ok=True)
    for ending in ("pth", "pt", "tar"):
        for name, content in {
            "empty": b"",
            "pickle": pickle.dumps(Payload(root / "ran"), protocol=2),
            "list": pickle.dumps([1], protocol=2),
            "html": b"<!DOCTYPE html>",
            "zip": zipped(
                {"archive/data.pkl": pickle.dumps(Payload(root / "ran"), protocol=2), "archive/version": b"3"}
            ),
            "no zip": zipped({"a": b""})[:-9],
        }.items():
            yield Case("tensors", put(root, f"checkpoints/{name}.{ending}", content))
    one, many = torch.ones(1), {"a": torch.ones(3)}
    for _ in range(12):
        many = dict.fromkeys("abcdefghij", many)
    circle: dict = {}
    circle["a"] = circle
    for name, value in {
        "code": {"a": one, "b": Payload(root / "ran")},
        "module": torch.nn.Linear(2, 2),
        "sparse": {"a": torch.eye(3).to_sparse()},
        "one": one,
        "expanded": {"a": one.bfloat16().expand(2**40)},
        "many": many,
        "circle": circle,
        "settings with code": {"a": one, "b": argparse.Namespace(c=[Payload(root / "ran")])},
        "factory": {"a": one, "b": defaultdict(os.getcwd)},
        "evaluated": {"a": one, "b": Called(eval, f"__import__('os').mkdir({str(root / 'ran')!r})")},
        "attribute": {"a": one, "b": Called(getattr, {}, "clear")},
        "imported": {"a": one, "b": Called(importlib.import_module, "antigravity")},
        "settings": {"a": one, "b": argparse.Namespace(path=Path("x"), best=np.float64(1), parts={1})},
    }.items():
        path = root / "checkpoints" / f"torch {name}.pth"
        for zip_file in (False, True):
            old = path.with_suffix(".pth" if zip_file else ".old")
            torch.save(value, old, _use_new_zipfile_serialization=zip_file)
            yield Case("tensors", str(old), name != "settings")
        if name == "one":
            yield Case("tensors", put(root, "checkpoints/torch cut.pth", path.read_bytes()[:-40]))


def _special(root: Path) -> Iterator[Case]:
    """FIFOs, sockets, devices and links in place of ordinary files."""
    folder = root / "special"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the names of sockets are short
        listener.bind("socket")
        os.chdir(here)
    for name, target in {"zero": "/dev/zero", "loop": "loop", "nowhere": "gone", "dir": "."}.items():
        (folder / name).symlink_to(target)
    kinds = ("fifo", "socket", "zero", "loop", "nowhere", "dir")
    endings = {
        "npy": "x labels",
        "npz": "npz features checkpoint",
        "csv": "x",
        "py": "config",
        "safetensors": "checkpoint",
        "list": "classes",
        "gz": "idx",
    }
    for ending, readers in endings.items():
        for kind in kinds:
            path = folder / f"{kind}.{ending}"
            path.symlink_to(kind)
            yield from (Case(reader, str(path)) for reader in readers.split())
    (folder / "good.npz").write_bytes(npz(images=PIXELS, labels=LABELS))
    only = root / "only special" / "a"
    only.mkdir(parents=True)
    for kind in kinds:
        (only / f"{kind}.png").symlink_to(folder / kind)
    yield from (Case(reader, str(only.parent)) for reader in ("folder", "background"))
