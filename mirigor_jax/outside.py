"""Safe reading of untrusted files: only regular files are opened, and no code in them is run.

Before memory is allocated, the size that a file declares is checked against the file and this machine's memory.
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

FREE = 2**28  # bytes that any file may unpack to, however tightly it is packed
PACKED = 100  # times: a file that unpacks to more than FREE and by more than this is refused; images unpack by about 10
MOST_HEADER = 10_000  # bytes of an .npy's header; that of an array of numbers has 118
MOST_TEXT = 2**24  # bytes of a list in a text file
KINDS = "biufcSU"  # kinds of dtype that are read
SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special(mode: int) -> str | None:
    """The kind of a special file with this `st_mode`, whose reading may never end; None for files and folders."""
    return next((name for test, name in SPECIAL if test(mode)), None)


def check_regular(path: Path | epath.Path) -> None:
    """Raises InputError for FIFOs, sockets and devices, and OSError if the path does not exist."""
    if isinstance(path, Path) and (kind := special(path.stat().st_mode)):
        raise InputError(f"'{path}' is {kind}, which is not read; give the path of a file")


def check_fits(num_bytes: int, what: str) -> None:
    """Raises InputError if the bytes exceed this machine's memory. what: the start of the message."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise InputError(f"{what} takes {num_bytes / 2**30:,.1f} GiB, and this machine has {memory / 2**30:.1f} GiB")


def check_unpacks(num_bytes: int, packed: int, what: str) -> None:
    """Raises InputError if a file unpacks to more than FREE bytes and PACKED times its size, or exceeds the memory.

    num_bytes: the unpacked size.
    packed: bytes of the file.
    what: the start of the message.
    """
    if num_bytes > max(FREE, PACKED * packed):
        raise InputError(
            f"{what} unpacks to {num_bytes:,} bytes of {packed:,}, over {PACKED} times as many: if it is right, save "
            "it unpacked (numpy.savez; gunzip)"
        )
    check_fits(num_bytes, what)


def read_bytes(path: Path | epath.Path, *, times: int) -> bytes:
    """The bytes of a whole file. Raises InputError for a special file and for one that exceeds this machine's memory.

    times: the memory that the parsed content takes, as a multiple of the file's size.
    """
    check_regular(path)
    if isinstance(path, Path):
        check_fits(times * path.stat().st_size, f"the content of '{path}'")
    return path.read_bytes()


def read_text(path: Path, what: str) -> str:
    """The text of a list that a user wrote. what: the setting that names the file, for messages.

    Raises InputError if the file can't be read, is not UTF-8, or is longer than MOST_TEXT.
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
    """An .npz that checks each array when it is asked for, before memory is allocated for the array."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, own_fid=True, allow_pickle=False)
        self.unpacked: dict[str, int] = {}  # name → bytes of each array that was asked for

    def __getitem__(self, key: str) -> np.ndarray:
        """The array. Raises KeyError if the name is unknown; InputError if it is damaged, too large, or no array."""
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
                member.read(1)  # zipfile checks the CRC at the end of the data
        except InputError:
            raise
        except Exception as error:  # zipfile and zlib raise several types for a damaged file
            raise InputError(f"{what} is damaged ({type(error).__name__}): save it again") from None
        return array


def open_arrays(path: Path | epath.Path) -> Any:
    """The array of an .npy, or the `Archive` of an .npz, which the caller closes.

    Raises InputError if the file is damaged, of another format, pickled or a sparse matrix. If it can't be opened, the
    error is that of `path.open`.
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
    """The arrays of an open .npz; closing them closes the file.

    Raises InputError if the file is damaged, or holds a sparse matrix.
    """
    try:
        archive = Archive(file)
    except Exception as error:
        raise InputError(f"it is no whole .npz ({type(error).__name__}): save it again by numpy.savez") from None
    if {"data", "format", "shape"} <= {*archive.files}:
        archive.close()
        raise InputError("it is a sparse matrix of SciPy: save its .toarray()")
    return archive


def _read_npy(file: IO[bytes], size: int, what: str) -> np.ndarray:
    """The array of an open .npy of `size` bytes. Raises InputError if it is not a whole array of numbers or strings."""
    shape, dtype, begin = _read_header(file, what)
    if dtype.hasobject:
        raise InputError(
            f"{what} holds pickled objects, which are not read, since they may contain code: save .astype(str) of "
            "names, and .astype(float) of numbers"
        )
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
    # Python cannot make a string of code points above this one.
    if dtype.kind == "U" and np.any(array.reshape(-1).astype(dtype.newbyteorder("=")).view(np.uint32) > 0x10FFFF):
        raise InputError(f"{what} is damaged: its strings are none; save it again")
    return array


def _read_header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape and the dtype in an .npy's header, and the byte at which its values begin."""
    major = file.read(8)[6:7]
    length = file.read({b"\1": 2, b"\2": 4}.get(major, 0))  # version 3 is only for records
    if not 0 < int.from_bytes(length, "little") <= MOST_HEADER:
        raise InputError(f"{what} is no array of numbers by its header: save one by numpy.save")
    header = length + file.read(int.from_bytes(length, "little"))
    read = np.lib.format.read_array_header_1_0 if major == b"\1" else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(io.BytesIO(header))
    except Exception:  # NumPy's own message suggests allow_pickle, which would run any code in the file
        raise InputError(f"{what} has a damaged header: save it again by numpy.save") from None
    return shape, dtype, 8 + len(header)
