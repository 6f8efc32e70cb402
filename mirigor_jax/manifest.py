"""Digests of the files that a run wrote, in a manifest.json in its folder. They reveal damaged files.

A file without an entry, such as one that an older version wrote, is not checked. Only process 0 uses the manifest.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mirigor_jax.errors import InputError
from mirigor_jax.files import AnyPath, describe, digest_file, digest_text, io_errors, write_json

NAME = "manifest.json"


class DamagedError(InputError):
    """A file, or a checkpoint, is not as the run wrote it."""

    def __init__(self, path: str, file: str | None = None):
        """path: the damaged file, or the folder of the damaged checkpoint. file: the damaged file in that folder."""
        super().__init__(
            f"'{file or path}' is damaged: it is not as the run wrote it; remove '{path}', and give the run's own "
            "command again"
        )
        self.path, self.file = path, file or path

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """How pickle rebuilds the error when a job sends it to its other processes."""
        return type(self), (self.path, self.file)


class Manifest:
    """The digests of the files in one run folder.

    The manifest notes a new digest before the new file replaces the old one, and keeps the old digest until then. So
    after a kill between the two steps, the file that is there still has an entry.
    """

    def __init__(self, root: AnyPath):
        self.root = root
        self._known: dict[str, list[str]] | None = None  # the entries while the folder is held; None: read each time
        self._lock = threading.Lock()  # another thread notes checkpoints

    @property
    def is_held(self) -> bool:
        """Whether this process is the only one that writes in the folder."""
        return self._known is not None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this context, this process must be the only one that writes in the folder."""
        self._known = self._read()
        try:
            yield
        finally:
            self._known = None

    @contextlib.contextmanager
    def writing(self, path: AnyPath) -> Iterator[Callable[[str], None]]:
        """A context in which a file is written.

        It yields a function. Call that with the new file's digest before the new file replaces the old one.
        """
        name, told = self._name(path), []

        def announce(digest: str) -> None:
            told.append(digest)
            with self._lock:
                known = self._entries()
                known[name] = list(dict.fromkeys([digest, *known.get(name, [])]))
                self._write(known)

        yield announce
        with self._lock:
            if told and self._known is not None:
                self._known[name] = told  # the next write to the manifest drops the old file's digest

    def note_tree(self, folder: AnyPath) -> None:
        """Note the digests of all files in a finished folder, and forget those of sibling folders that are gone."""
        digests = {self._name(path): [digest_file(path)] for path in sorted(folder.rglob("*")) if path.is_file()}
        beside = f"{self._name(folder.parent)}/"
        there = {f"{beside}{path.name}/" for path in folder.parent.iterdir()}
        with self._lock:
            known = {
                name: value
                for name, value in self._entries().items()
                if not name.startswith(beside)
                or "/" not in name.removeprefix(beside)
                or f"{beside}{name.removeprefix(beside).partition('/')[0]}/" in there
            }
            self._write(known | digests)

    def forget(self, path: AnyPath) -> None:
        """Drop the entries of a file, or of a folder, that was removed."""
        name = self._name(path)
        with self._lock:
            known = self._entries()
            kept = {key: value for key, value in known.items() if key != name and not key.startswith(f"{name}/")}
            if len(kept) < len(known):
                self._write(kept)

    def has(self, path: AnyPath, digest: str) -> bool:
        """Whether the manifest has this digest for the file of that path."""
        return digest in self._entries().get(self._name(path), [])

    def check(self, path: AnyPath, file: IO[bytes]) -> None:
        """Raises DamagedError if the open file is not the one that the run wrote to `path`."""
        known = self._entries().get(self._name(path))
        if known and digest_file(file) not in known:
            raise DamagedError(str(path))

    def damaged_in(self, folder: AnyPath) -> str | None:
        """The first file of a folder that is missing, or is not as the run wrote it; None if all are intact."""
        inside = f"{self._name(folder)}/"
        for name, known in sorted(self._entries().items()):
            path = self.root / name
            if name.startswith(inside) and not (path.is_file() and digest_file(path) in known):
                return str(path)
        return None

    def _name(self, path: AnyPath) -> str:
        return path.relative_to(self.root).as_posix()

    def _entries(self) -> dict[str, list[str]]:
        return self._read() if self._known is None else self._known

    def _read(self) -> dict[str, list[str]]:
        path = self.root / NAME
        try:
            if not path.exists():
                return {}
            text = path.read_bytes()
        except io_errors(path) as error:
            raise InputError(
                f"run folder '{self.root}' cannot be read ({describe(error)}); give one that can be read"
            ) from error
        try:
            contents: dict[str, Any] = json.loads(text)
            files = contents["files"]
            if digest_text(json.dumps(files)) == contents["digest"]:
                return files
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError(f"'{path}' is damaged; remove it to go on with files that are not checked")

    def _write(self, files: dict[str, list[str]]) -> None:
        if self._known is not None:
            self._known = files
        files = dict(sorted(files.items()))
        write_json(self.root / NAME, {"files": files, "digest": digest_text(json.dumps(files))})


def steps_in(folder: AnyPath) -> list[int]:
    """The steps of the complete checkpoints in a local folder, the newest first; empty for a bucket."""
    if not isinstance(folder, Path) or not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir()), reverse=True)
