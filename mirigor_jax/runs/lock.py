"""The lock of a run folder: its file .lock. The process at work locks it; the system unlocks it when that ends."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path

from mirigor_jax.errors import InputError
from mirigor_jax.files import describe


class LockedError(InputError):
    """Another process is at work in a run folder."""


def take_lock(folder: Path, stack: contextlib.ExitStack, wait: bool) -> None:
    """Hold folder/.lock until the stack is left. The file names this process.

    The file is removed on leaving if it is new and the folder is not claimed.
    wait: whether to wait for another process that holds the lock; otherwise LockedError is raised.
    Raises InputError if there can be no lock.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, is_new = _locked(path, wait)
    except BlockingIOError:
        raise LockedError(
            f"another process is at work in '{folder}'{_holder(path)}; wait for it, or give another --workdir"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"'{path}' is a link, or no file; remove it, and give the command again") from None
        raise InputError(
            f"run folder '{folder}' cannot be written ({describe(error)}); give another --workdir"
        ) from error
    stack.callback(os.close, descriptor)
    stack.callback(_let_go, path, descriptor, is_new)
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with contextlib.suppress(OSError):  # on a full disk the file names no holder
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """(descriptor of the locked file, whether the file is new). Raises BlockingIOError if another process holds it."""
    while True:
        # These flags follow no link to another file, and wait for no pipe.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor, is_new = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, is_new = os.open(path, flags), False
            except FileNotFoundError:
                continue
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OSError(errno.ELOOP, "a link, or no file")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                print(f"waiting for another process at work in '{path.parent}'{_holder(path)}", flush=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The former holder may have removed the file meanwhile, and another process may hold a new one of its name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                    return descriptor, is_new
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _let_go(path: Path, descriptor: int, is_new: bool) -> None:
    """Empty the lock file. Remove it if it is new and the folder has no config.json, as after a refused command."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        if is_new and not (path.parent / "config.json").exists():
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """The holder of the lock and the time since, in brackets; "" if the file does not tell."""
    try:
        holder = json.loads(path.read_text())
        return f" (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # an older version wrote it, or the lock was just taken
        return ""
