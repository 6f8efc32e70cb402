"""Single bits flipped in the files of a run, and what its command then makes of them.

    python tests/bit_flips.py FOLDER PATTERN FLIPS [ARGUMENT ...]

FOLDER: of a run, which is copied for each flip. PATTERN: of the files in it, of which each flip takes one.
ARGUMENT: of the command; each flip ends identical (the same values), fallen back (the same, and a line names the file)
or refused (one line, code 2), or else the exit code is 1.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small import report

from mirigor_jax.main import main as run_command

GOOD = {"identical", "fallen back", "refused"}


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def outcome(command: Callable[[Path], list[str]], folder: Path, expected: dict) -> str:
    """What the command makes of the folder."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = run_command(command(folder))
    except BaseException:
        return f"traceback: {traceback.format_exc()}"
    if code == 2:
        lines = errors.getvalue().strip().splitlines()
        return "refused" if len(lines) == 1 and lines[0].startswith("error: ") else f"many lines: {lines}"
    if code != 0:
        return f"code {code}"
    if report(folder) != expected:
        return "garbage"
    return "fallen back" if "is damaged" in out.getvalue() else "identical"


def trial(
    folder: Path,
    pattern: str,
    flips: int,
    command: Callable[[Path], list[str]],
    expected: dict,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> Counter[str]:
    """How often each outcome was met. prepare: of each copy, after the flip."""
    rng, found = np.random.default_rng(0), Counter[str]()
    for _ in range(flips):
        with tempfile.TemporaryDirectory() as root:
            copy = Path(root) / "run"
            shutil.copytree(folder, copy)
            files = sorted(path for path in copy.glob(pattern) if path.is_file() and path.stat().st_size)
            flip(files[rng.integers(len(files))], rng)
            prepare(copy)
            found[outcome(command, copy, expected)] += 1
    return found


def main(folder: str, pattern: str, flips: str, *arguments: str) -> int:
    source = Path(folder)
    found = trial(source, pattern, int(flips), lambda copy: [*arguments, f"--workdir={copy}"], report(source))
    for what, times in found.most_common():
        print(f"{times:4d}  {what}")
    return 0 if found.keys() <= GOOD else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
