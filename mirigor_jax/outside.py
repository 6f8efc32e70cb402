"""Files from outside: only regular ones are opened, and nothing in them is run.

What a file declares is checked against what it holds, and against this machine, before any memory is taken for it.
"""

import io
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

from mirigor_jax.errors import InputError, shown

FREE = 2**28  # bytes that a file may unpack to without a question
PACKED = 100  # times: what is larger than that, and was packed tighter, is refused; images and features pack to a tenth
MOST_HEADER = 10_000  # bytes of an .npy; one of numbers has 118
MOST_TEXT = 2**24  # bytes of a list that a user writes
KINDS = "biufcSU"  # of arrays' values
SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special(mode: int) -> str | None:
    """What a path of this `st_mode` is, if reading it may never end; None for files and folders."""
    return next((name for test, name in SPECIAL if test(mode)), None)


def check_regular(path: Path | epath.Path) -> None:
    """Raises InputError for FIFOs, sockets and devices, and OSError where there is nothing."""
    if isinstance(path, Path) and (kind := special(path.stat().st_mode)):
        raise InputError(f"'{path}' is {kind}, which is not read; give the path of a file")


def check_fits(num_bytes: int, what: str) -> None:
    """Raises InputError for more bytes than this machine has memory. what: the start of the message."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise InputError(f"{what} takes {num_bytes / 2**30:,.1f} GiB, and this machine has {memory / 2**30:.1f} GiB")


def check_unpacks(num_bytes: int, packed: int, what: str) -> None:
    """Raises InputError for a file that unpacks to far more than it is. what: the start of the message."""
    if num_bytes > max(FREE, PACKED * packed):
        raise InputError(
            f"{what} unpacks to {num_bytes:,} bytes of {packed:,}, over {PACKED} times as many: if it is right, save "
            "it unpacked (numpy.savez; gunzip)"
        )
    check_fits(num_bytes, what)


def read_bytes(path: Path | epath.Path, *, times: int) -> bytes:
    """The whole file. times: how much more memory its content takes. Raises InputError as the checks do."""
    check_regular(path)
    if isinstance(path, Path):
        check_fits(times * path.stat().st_size, f"what '{path}' holds")
    return path.read_bytes()


def read_text(path: Path, what: str) -> str:
    """The text of a list that a user wrote. what: the setting that names it, for messages.

    Raises InputError if it can't be read, is no UTF-8, or is too long.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror}); give the path of a text") from None
    except UnicodeDecodeError:
        raise InputError(f"{what} is no text of UTF-8; give one") from None
    if len(data) > MOST_TEXT:
        raise InputError(f"{what} has over {MOST_TEXT:,} bytes; give a list")
    return text


class Archive(np.lib.npyio.NpzFile):
    """An .npz of which each array is checked when it is asked for, and before memory is taken for it."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, own_fid=True, allow_pickle=False)
        self.unpacked: dict[str, int] = {}  # bytes of what was asked for

    def __getitem__(self, key: str) -> np.ndarray:
        """The array. Raises KeyError if there is none, and InputError if it is damaged, too large or no array."""
        assert self.zip is not None
        assert self.fid is not None
        members = {name.removesuffix(".npy"): name for name in self.zip.namelist()}
        info, what = self.zip.getinfo(members[key.removesuffix(".npy")]), f"array '{shown(key)}'"
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{what} is encrypted, or packed as NumPy doesn't: save it by numpy.savez")
        self.unpacked[info.filename] = info.file_size
        check_unpacks(sum(self.unpacked.values()), self.fid.seek(0, io.SEEK_END), f"its {what}, with those before,")
        try:
            with self.zip.open(info) as member:
                array = _read_npy(member, info.file_size, what)
                member.read(1)  # at its end zipfile compares the sum over all bytes
        except InputError:
            raise
        except Exception as error:  # zipfile and zlib have half a dozen kinds for a damaged file
            raise InputError(f"{what} is damaged ({type(error).__name__}): save it again") from None
        return array


def open_arrays(path: Path | epath.Path) -> Any:
    """The array of an .npy, or the `Archive` of an .npz, which is to be closed.

    Raises InputError if it is damaged, of another format, pickled or a sparse matrix, and as `path` does if it can't be
    opened.
    """
    check_regular(path)
    file: IO[bytes] = path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_bytes())
    try:
        start, size = file.read(6), file.seek(0, io.SEEK_END)
        file.seek(0)
        if start[:2] == b"PK":
            return open_archive(file)
        if not start:
            raise InputError("it is empty: save an array of numbers by numpy.save")
        if start != np.lib.format.MAGIC_PREFIX:
            raise InputError(
                "it is no NumPy file, or holds pickled objects, which are not read: save arrays of numbers"
            )
        check_fits(size, "it")
        with file:
            return _read_npy(file, size, "it")
    except BaseException:
        file.close()
        raise


def open_archive(file: IO[bytes]) -> Archive:
    """The arrays of an open .npz, which is closed with them. Raises InputError if it is damaged, or a sparse matrix."""
    try:
        archive = Archive(file)
    except Exception as error:
        raise InputError(f"it is no whole .npz ({type(error).__name__}): save it again by numpy.savez") from None
    if {"data", "format", "shape"} <= {*archive.files}:
        archive.close()
        raise InputError("it is a sparse matrix of SciPy: save its .toarray()")
    return archive


def _read_npy(file: IO[bytes], size: int, what: str) -> np.ndarray:
    """The array of the .npy that the file is, `size` bytes long. Raises InputError where it is none, and of numbers."""
    shape, dtype, begin = _read_header(file, what)
    if dtype.hasobject:
        raise InputError(f"{what} holds pickled objects, which are not read: save an array of numbers")
    if dtype.kind not in KINDS or not dtype.itemsize:
        bfloat16 = "; bfloat16, as NumPy saves it: save .astype(numpy.float32)" if dtype.str == "|V2" else ""
        raise InputError(f"{what} is of dtype {shown(str(dtype), 80)}, not of numbers or strings{bfloat16}")
    if min(shape, default=1) < 0 or len(shape) > 32 or (shape and shape[0] and not math.prod(shape)):
        raise InputError(f"{what} has shape {shown(str(shape), 80)}: save an array that has values")
    if (expected := begin + math.prod(shape) * dtype.itemsize) != size:
        raise InputError(
            f"{what} is damaged: with shape {shown(str(shape), 80)} of {dtype} it has {expected:,} bytes, and there "
            f"are {size:,}; save it again"
        )
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    # Python makes no string of other code points.
    if dtype.kind == "U" and np.any(array.reshape(-1).astype(dtype.newbyteorder("=")).view(np.uint32) > 0x10FFFF):
        raise InputError(f"{what} is damaged: its strings are none; save it again")
    return array


def _read_header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype that an .npy declares, and where its values begin."""
    major = file.read(8)[6:7]
    length = file.read({b"\1": 2, b"\2": 4}.get(major, 0))  # a later version is of records alone
    if not 0 < int.from_bytes(length, "little") <= MOST_HEADER:
        raise InputError(f"{what} is no array of numbers by its header: save one by numpy.save")
    header = length + file.read(int.from_bytes(length, "little"))
    read = np.lib.format.read_array_header_1_0 if major == b"\1" else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(io.BytesIO(header))
    except Exception:  # NumPy's own words advise to unpickle it, which runs whatever code the file holds
        raise InputError(f"{what} has a damaged header: save it again by numpy.save") from None
    return shape, dtype, 8 + len(header)
