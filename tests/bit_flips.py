"""Flip single bits in the files of runs, and check how the same command then handles each folder.

    python tests/bit_flips.py FLIPS FOLDER [KIND ...]

FLIPS: number of flips for each kind of file. The script makes a small run in FOLDER and copies it for each flip. Each
flip must end identical (the same values), fallen back (the same values, and a line names the file) or refused (one
line, code 2). If one does not, the exit code is 1.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from small import cdp, report

from mirigor_jax.main import main as run_command
from mirigor_jax.runs.folder import RunFolder

GOOD = {"identical", "fallen back", "refused"}
RESULTS = ("features", "estimates", "evaluate", "report.json")
# The files that are read again, and what a run that was interrupted behind them lacks, so that they are read.
FILES = {
    "checkpoint": ("train/[0-9]*/**/*", ("train/summary.json", *RESULTS)),
    "rows": ("train/metrics.jsonl", ("train/summary.json", "report.json")),
    "summary": ("train/summary.json", RESULTS),
    "features": ("features/*.npz", ("estimates/color/estimate.json", "evaluate", "report.json")),
    "shards": ("features/fit.shards/*.npz", RESULTS[1:]),
    "critic": ("estimates/color/critic/**/*", ("estimates/color/estimate.json", "report.json")),
    "critic's rows": ("estimates/color/fit.jsonl", ("estimates/color/estimate.json", "report.json")),
    "batches": ("estimates/color/batches.npz", ("report.json",)),
    "estimate": ("estimates/color/estimate.json", ()),
    "evaluation": ("evaluate/*.json", ("report.json",)),
    "config": ("config.json", ("report.json",)),
    "stages": ("stages.json", ()),
    "manifest": ("manifest.json", ("report.json",)),
    "report": ("report.json", ()),
}


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def outcome(command: Callable[[Path], list[str]], folder: Path, expected: dict) -> str:
    """Run the command on the folder. Returns the name of the outcome."""
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
    """Outcome → how often it came about. prepare: function that changes each copy after the flip."""
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


def interrupt(folder: Path, missing: Sequence[str]) -> None:
    """Remove the files that an interrupted run would not have yet."""
    for name in missing:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def with_shards(folder: Path) -> None:
    """Change the folder to the moment when all shards of the part `fit` exist, but not the file that joins them."""
    run = RunFolder(folder)
    with run.lock():
        features = run / "features"
        (features / "fit.shards").write_arrays(f"{0:012d}.npz", features.arrays("fit.npz"))
        (folder / "features" / "fit.npz").unlink()
        run.manifest.forget(folder / "features" / "fit.npz")


def flips_of(kind: str, flips: int, whole: Path) -> Counter[str]:
    """Outcome → how often it came about, after flips in the files of one kind of a finished run."""
    pattern, missing = FILES[kind]
    with tempfile.TemporaryDirectory() as root:
        source = Path(root) / "source"
        shutil.copytree(whole, source)
        if kind == "shards":
            with_shards(source)
        return trial(
            source,
            pattern,
            flips,
            lambda copy: cdp(f"--workdir={copy}"),
            report(whole),
            lambda copy: interrupt(copy, missing),
        )


def main(flips: str, folder: str, *kinds: str) -> int:
    whole, right = Path(folder) / "whole", True
    assert run_command(cdp(f"--workdir={whole}")) == 0
    for kind in kinds or FILES:
        found = flips_of(kind, int(flips), whole)
        right &= found.keys() <= GOOD
        print(f"{kind}: " + ", ".join(f"{times} {what}" for what, times in found.most_common()), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
