"""The folder of a run: whose it is, who is at work in it, what its stages took, and its files as process 0 has them."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mirigor_jax import parallel
from mirigor_jax.config_files import flatten
from mirigor_jax.errors import InputError
from mirigor_jax.files import (
    AnyPath,
    describe,
    io_errors,
    read_arrays,
    read_rows,
    to_path,
    write_arrays,
    write_figure,
    write_json,
)
from mirigor_jax.runs.renamed import current

PACKAGES = ("mirigor-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Settings that may change when a run or a study is continued, since no result depends on them; of arrays the content
# counts and not the path.
RESOURCES = ("data.threads", "data.workers", "data.resident")
FREE = (*RESOURCES, *(f"run.{name}" for name in RESOURCES), "study.only", "x", "y", "labels")


class LockedError(InputError):
    """Another process is at work in a run folder."""


@dataclass(frozen=True)
class RunFolder:
    """A folder of a run, of a stage or of a study. Every process reads what process 0 has; process 0 alone writes."""

    path: AnyPath

    @classmethod
    def at(cls, text: str) -> "RunFolder":
        """The folder that a user names. Raises InputError as `files.to_path` does."""
        return cls(to_path(text))

    def __truediv__(self, name: str) -> "RunFolder":
        return RunFolder(self.path / name)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return parallel.from_main((self.path / name).exists)

    def matches(self, pattern: str) -> list["RunFolder"]:
        """What is there of this pattern, in the order of the names."""
        names = parallel.from_main(_names_of, self.path, pattern)
        return [self / name for name in names]

    def read(self, name: str) -> Any:
        """What a JSON file holds; None where there is no file."""
        return parallel.from_main(_read_json, self.path / name)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a .jsonl file; none where there is no file."""
        return parallel.from_main(read_rows, self.path / name)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file."""
        return parallel.from_main(_read_npz, self.path / name)

    def write(self, name: str, value: Any) -> None:
        """Write strict JSON, as `files.write_json` does."""
        write_json(self.path / name, value)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write an .npz file."""
        write_arrays(self.path / name, arrays)

    def write_figures(self, figures: dict[str, Figure]) -> None:
        """Write each figure to figures/NAME.png."""
        for name, figure in figures.items():
            write_figure(self.path / "figures" / f"{name}.png", figure)

    def claim(self, config: ConfigDict) -> None:
        """Make the folder this config's own: write config.json, or find it equal there. To be called in its lock.

        Raises InputError where another config made it (naming the keys that differ), where it holds other files, or
        where it can't be written.
        """
        parallel.from_main(_claim, self.path, config)

    @contextlib.contextmanager
    def claimed(self, config: ConfigDict, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder as `lock` does, and make it this config's own as `claim` does: of two commands, one's."""
        with self.lock(wait=wait):
            self.claim(config)
            yield

    def config(self) -> dict[str, Any] | None:
        """The config that claimed the folder, under today's names; None if there is none.

        Raises InputError if it can't be read.
        """
        return parallel.from_main(_read_config, self.path)

    def give_up(self) -> None:
        """Undo a claim of which nothing came, so that a corrected command may have the folder."""
        for name in ("stages.json", "config.json"):
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder for all of a job's processes; LockedError where another job does, unless to wait for it.

        The lock goes with the process. In a bucket there is none: what would outlive a process that is gone.
        Raises InputError where the folder can't be made or locked, and where its .lock is a link or no file.
        """
        if not isinstance(self.path, Path):
            yield
            return
        with contextlib.ExitStack() as stack:
            parallel.from_main(_take_lock, self.path, stack, wait)
            yield

    @contextlib.contextmanager
    def stage(self, name: str, done: bool) -> Iterator[bool]:
        """Yields whether there is work; notes in stages.json what did it and how long.

        Time adds up over interrupted runs; a killed one leaves no note.
        """
        if done:
            print(f"{name}: finished before, skipped", flush=True)
            yield False
            return
        print(f"{name}:", flush=True)
        start = time.monotonic()
        try:
            yield True
        finally:
            if parallel.is_main():  # also where another process failed, so that nothing is exchanged here
                self._note(name, time.monotonic() - start)

    def _note(self, name: str, seconds: float) -> None:
        path = self.path / "stages.json"
        stages = _read_json(path) or {}
        before = stages.get(name, {"seconds": 0.0, "peak_memory_gib": 0.0})
        # The peak is of the process so far; macOS counts it in bytes, Linux in KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
        stages[name] = {
            "seconds": round(before["seconds"] + seconds, 2),
            "peak_memory_gib": round(max(before["peak_memory_gib"], peak), 3),
            **provenance(),
        }
        write_json(path, stages)


def _names_of(folder: AnyPath, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def _read_json(path: AnyPath) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _read_npz(path: AnyPath) -> dict[str, np.ndarray]:
    return dict(read_arrays(path))


def _claim(folder: AnyPath, config: ConfigDict) -> None:
    mine = json.loads(config.to_json())
    try:
        is_claimed = (folder / "config.json").is_file()
        others = folder.is_dir() and any(p.name[0] != "." for p in folder.iterdir())
    except io_errors(folder) as error:
        raise InputError(f"run folder '{folder}' cannot be read ({describe(error)}); give another --workdir") from error
    if is_claimed:
        here, there = flatten(current(mine)), flatten(_read_config(folder) or {})
        differ = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k) and k not in FREE)
        if differ:
            other = "from other data" if all(k.startswith("sha256.") for k in differ) else "by another config"
            raise InputError(f"'{folder}' was made {other} ({', '.join(differ)} differ); give another --workdir")
    elif others:
        raise InputError(f"'{folder}' holds files but no run (no config.json); give another --workdir")
    try:
        write_json(folder / "config.json", mine)
    except io_errors(folder) as error:
        raise InputError(
            f"run folder '{folder}' cannot be written ({describe(error)}); give another --workdir"
        ) from error


def _read_config(folder: AnyPath) -> dict[str, Any] | None:
    path = folder / "config.json"
    try:
        return current(json.loads(path.read_text())) if path.is_file() else None
    except (io_errors(path), ValueError) as error:
        raise InputError(f"'{path}' is no readable config ({error}); give another run folder") from error


def _take_lock(folder: Path, stack: contextlib.ExitStack, wait: bool) -> None:
    """Hold folder/.lock until the stack is left, and say there who does. A file that nothing came of goes again."""
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
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    os.ftruncate(descriptor, 0)
    os.pwrite(
        descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}).encode(), 0
    )


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """(the file that is held, whether it was made for this). Raises BlockingIOError where another process holds it."""
    while True:
        # No link is followed, to no file of anybody's, and no pipe is waited for.
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
            # Whoever held it may have removed it meanwhile, and another may hold the file of its name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                    return descriptor, is_new
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _let_go(path: Path, descriptor: int, is_new: bool) -> None:
    """Nobody holds it any more. A folder that the command was refused keeps nothing of it."""
    os.ftruncate(descriptor, 0)
    if is_new and not (path.parent / "config.json").exists():
        path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """Who holds the folder and since when, in brackets; nothing where that is not told."""
    try:
        holder = json.loads(path.read_text())
        return f" (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or just taken
        return ""


def digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's type, shape and bytes."""
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def provenance() -> dict[str, Any]:
    """What this process computes with: devices, versions of packages, the revision of this package."""
    return {
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "versions": {package: _version(package) for package in PACKAGES},
        "revision": _revision(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def _revision() -> str | None:
    """The commit of the checkout this package runs from; None for an installed wheel, or without git."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
