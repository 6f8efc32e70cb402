"""The folder of a run: its claim by a config, its lock, the notes of its stages, and its files."""

import contextlib
import csv
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from mirigor_jax import memory, parallel, starting
from mirigor_jax.config_files import flatten
from mirigor_jax.drawing import Figure
from mirigor_jax.errors import InputError
from mirigor_jax.files import (
    AnyPath,
    describe,
    digest_text,
    io_errors,
    json_text,
    open_file,
    set_aside,
    to_path,
    write_arrays,
    write_figure,
    write_json,
    write_rows,
    write_text,
)
from mirigor_jax.manifest import NAME as MANIFEST
from mirigor_jax.manifest import DamagedError, Manifest
from mirigor_jax.outside import open_archive
from mirigor_jax.progress import Progress
from mirigor_jax.runs.lock import take_lock
from mirigor_jax.runs.renamed import current

PACKAGES = ("mirigor-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Settings that may change when a run or a study is continued, as they do not affect results.
RESOURCES = ("data.threads", "data.workers", "data.resident")
# Name or suffix of a damaged file → the file that marks its stage as finished, which is removed with it.
OF_EVALUATION = ("metrics.json", "usable.json", "pvi.csv")
MARKERS = {**dict.fromkeys(OF_EVALUATION, "linear.json"), "batches.npz": "estimate.json", ".jsonl": "summary.json"}
# Instructions of x86 processors, as Linux names them, that decide how XLA convolves and multiplies.
INSTRUCTIONS = {"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"}
SAME_NUMBERS = (
    "The same config gives the same numbers, bit for bit, on as many devices of the same kind, with as many CPU cores, "
    "the same CPU instructions, XLA flags and versions. Elsewhere sums are rounded in another order: a training's "
    "first loss is the same within 1e-6 of itself, an estimate of the same features within 1e-3, and a training's "
    "later steps drift apart, as far as those of other seeds."
)
T = TypeVar("T")
# Keys that may differ when a command continues a folder. Paths of arrays may differ: the digest of the contents counts.
FREE = (*RESOURCES, *(f"run.{name}" for name in RESOURCES), "study.only", "x", "y", "labels")


@dataclass(frozen=True)
class RunFolder:
    """A folder of a run, of a stage or of a study. Every process reads the files of process 0; only process 0 writes.

    manifest: the manifest of the run, which every file read is checked against; by default the folder's own.
    """

    path: AnyPath
    manifest: Manifest = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.manifest is None:
            object.__setattr__(self, "manifest", Manifest(self.path))

    @classmethod
    def at(cls, text: str) -> "RunFolder":
        """The folder at a path or URL that a user gives. Raises InputError as `files.to_path` does."""
        return cls(to_path(text))

    def __truediv__(self, name: str) -> "RunFolder":
        return RunFolder(self.path / name, self.manifest)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return parallel.from_main((self.path / name).exists)

    def matches(self, pattern: str) -> list["RunFolder"]:
        """The files and folders that match the pattern, sorted by name."""
        names = parallel.from_main(_names_of, self.path, pattern)
        return [self / name for name in names]

    def read(self, name: str) -> Any:
        """The contents of a JSON file; None if it does not exist. Raises DamagedError if the file is damaged."""
        return parallel.from_main(self._read, name, json.load, None)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a .jsonl file; empty if it does not exist. Raises DamagedError as `read` does."""
        return parallel.from_main(self._read, name, _rows, [])

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file. Raises InputError if it does not exist, and DamagedError as `read` does."""
        arrays = parallel.from_main(self._read, name, _arrays, None)
        if arrays is None:
            raise InputError(f"no '{self.path / name}'; give the run's own command again")
        return arrays

    def _read(self, name: str, parse: Callable[[IO[bytes]], T], otherwise: T) -> T:
        path = self.path / name
        if not path.exists():
            return otherwise
        for attempt in range(3):
            with open_file(path) as file:
                damage: Exception
                try:
                    self.manifest.check(path, file)
                except DamagedError as error:
                    damage = error
                else:
                    try:
                        return parse(file)
                    except Exception as error:  # zipfile, NumPy and json raise a dozen types for a damaged file
                        damage = error
                # If another process is at work, it may have replaced the file since the manifest was read.
                if self.manifest.is_held or attempt == 2:
                    raise DamagedError(str(path)) from damage
        raise AssertionError

    def write(self, name: str, value: Any) -> None:
        """Write strict JSON, as `files.write_json` does."""
        with self.manifest.writing(self.path / name) as announce:
            write_json(self.path / name, value, announce)

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write a .jsonl file."""
        with self.manifest.writing(self.path / name) as announce:
            write_rows(self.path / name, rows, announce)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write an .npz file."""
        with self.manifest.writing(self.path / name) as announce:
            write_arrays(self.path / name, arrays, announce)

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a .csv file."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        with self.manifest.writing(self.path / name) as announce:
            write_text(self.path / name, text.getvalue(), announce)

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a .csv file by its header; empty if it does not exist. Raises DamagedError as `read` does."""
        return parallel.from_main(self._read, name, _table, [])

    def mend(self, stages: Callable[[], None]) -> None:
        """Run the stages. If one meets a damaged file, set the file aside and run them again, which makes it anew.

        Raises DamagedError if the same file is damaged again.
        """
        met: set[str] = set()
        while True:
            try:
                return stages()
            except DamagedError as damaged:
                if damaged.path in met:
                    raise
                met.add(damaged.path)
                parallel.from_main(self.set_aside, damaged)

    def set_aside(self, damaged: DamagedError) -> None:
        """Rename the damaged file, and remove the file that marks its stage as finished. Only process 0 calls this."""
        path = self.manifest.root / os.path.relpath(damaged.path, str(self.manifest.root))
        marker = "summary.json" if path.name.isdigit() else MARKERS.get(path.name) or MARKERS.get(path.suffix)
        try:
            if marker is not None:
                (path.parent / marker).unlink(missing_ok=True)
            kept = set_aside(path)
            self.manifest.forget(path)
        except io_errors(path) as error:
            raise InputError(f"{damaged} ({describe(error)})") from error
        print(
            f"'{damaged.file}' is damaged: it is not as the run wrote it; kept as '{kept}', and made again", flush=True
        )

    def write_figures(self, figures: dict[str, Figure]) -> None:
        """Write each figure to figures/NAME.png."""
        with Progress("figures", len(figures), "drawn") as progress:
            for number, (name, figure) in enumerate(figures.items(), 1):
                write_figure(self.path / "figures" / f"{name}.png", figure)
                progress.update(number)

    def claim(self, config: ConfigDict) -> None:
        """Claim the folder for this config: write config.json, or check that it is equal. The caller holds the lock.

        Raises InputError if another config made the folder (the message names the keys that differ), if the folder
        holds other files, or if it cannot be written.
        """
        parallel.from_main(_claim, self, config)

    @contextlib.contextmanager
    def claimed(self, config: ConfigDict, *, wait: bool = False) -> Iterator[None]:
        """Lock the folder and claim it for this config, so that only one of two commands gets it."""
        with self.lock(wait=wait):
            self.claim(config)
            yield

    def config(self) -> dict[str, Any] | None:
        """The config that claimed the folder, with today's names of the settings; None if there is none.

        Raises InputError if it cannot be read, or is not as it was written.
        """
        return parallel.from_main(_read_config, self)

    def give_up(self) -> None:
        """Undo a claim that led to no result, so that a corrected command may claim the folder."""
        for name in ("stages.json", "config.json", MANIFEST):
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder for all processes of this job.

        wait: if another job holds it, wait for that job; otherwise raise LockedError.
        The lock ends with the process. A folder in a bucket has no lock, as a lock there would outlive its process.
        Raises InputError if the folder cannot be made or locked, or if its .lock is a link or not a file.
        """
        with contextlib.ExitStack() as stack:
            if isinstance(self.path, Path):
                parallel.from_main(take_lock, self.path, stack, wait)
            if self.manifest.root == self.path:
                parallel.from_main(_hold, self.manifest, stack)
            yield

    @contextlib.contextmanager
    def stage(self, name: str, done: bool) -> Iterator[bool]:
        """A context for one stage. It yields whether there is work, and notes time and machine in stages.json.

        done: whether the stage is finished. The time of interrupted runs adds up; a killed run leaves no note.
        """
        if done:
            print(f"{name}: finished before, skipped", flush=True)
            yield False
            return
        print(f"{name}:", flush=True)
        start = time.monotonic()
        try:
            with Progress(name) as progress:
                yield True
                progress.end()
        finally:
            if parallel.is_main():  # another process may have failed, so the processes exchange nothing here
                self._note(name, time.monotonic() - start)
            memory.give_back_freed_memory()

    def _note(self, name: str, seconds: float) -> None:
        try:
            stages = self._read("stages.json", json.load, None) or {}
        except DamagedError:  # only notes are lost
            stages = {}
        before = stages.get(name, {"seconds": 0.0, "peak_memory_gib": 0.0})
        # The peak memory of the process so far. macOS counts it in bytes, Linux in KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
        stages[name] = {
            "seconds": round(before["seconds"] + seconds, 2),
            "peak_memory_gib": round(max(before["peak_memory_gib"], peak), 3),
            **provenance(),
        }
        self.write("stages.json", stages)


def _hold(manifest: Manifest, stack: contextlib.ExitStack) -> None:
    stack.enter_context(manifest.held())


def _names_of(folder: AnyPath, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def _rows(file: IO[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file]


def _table(file: IO[bytes]) -> list[dict[str, str]]:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    rows = list(csv.DictReader(text))
    text.detach()  # who opened the file closes it
    return rows


def _arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    with open_archive(file) as archive:
        return dict(archive)


def _claim(itself: RunFolder, config: ConfigDict) -> None:
    folder, mine = itself.path, json.loads(config.to_json())
    try:
        is_claimed = (folder / "config.json").is_file()
        others = folder.is_dir() and any(p.name[0] != "." and p.name != MANIFEST for p in folder.iterdir())
    except io_errors(folder) as error:
        raise InputError(f"run folder '{folder}' cannot be read ({describe(error)}); give another --workdir") from error
    # The command that wrote a config.json writes it again if it is damaged.
    if is_claimed and not itself.manifest.has(folder / "config.json", digest_text(json_text(mine))):
        here, there = flatten(current(mine)), flatten(_read_config(itself) or {})
        differ = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k) and k not in FREE)
        if differ:
            other = "from other data" if all(k.startswith("sha256.") for k in differ) else "by another config"
            raise InputError(f"'{folder}' was made {other} ({', '.join(differ)} differ); give another --workdir")
    elif others and not is_claimed:
        raise InputError(f"'{folder}' holds files but no run (no config.json); give another --workdir")
    try:
        itself.write("config.json", mine)
    except io_errors(folder) as error:
        raise InputError(
            f"run folder '{folder}' cannot be written ({describe(error)}); give another --workdir"
        ) from error


def _read_config(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.path / "config.json"
    try:
        config = folder._read("config.json", json.load, None) if path.is_file() else None
        if config is not None and not isinstance(config, dict):
            raise ValueError("it is no table of settings")
        return None if config is None else current(config)
    except DamagedError:
        raise InputError(
            f"'{path}' is damaged: it is not as the run wrote it; give the run's own command, which writes it again"
        ) from None
    except (io_errors(path), ValueError) as error:
        raise InputError(f"'{path}' is no readable config ({error}); give another run folder") from error


def digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's type, shape and bytes."""
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def provenance() -> dict[str, Any]:
    """This process: its command, devices, cores, instructions, XLA flags, versions, revision."""
    return {
        "command": starting.command(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "cores": _cores(),
        "instructions": sorted(starting.cpu_features() & INSTRUCTIONS),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {package: _version(package) for package in PACKAGES},
        "revision": _revision(),
    }


def _cores() -> int:
    """Number of CPU cores that this process may use. On CPUs, XLA splits its sums by this number."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def _revision() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed wheel, or without git."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
