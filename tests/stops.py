"""Interrupt runs of every kind at random moments, continue each by the same command, and compare the reports.

    python tests/stops.py TRIALS FOLDER [KIND ...]

TRIALS: number of interruptions of each kind of run, by SIGKILL, SIGTERM and Ctrl-C in turn. FOLDER: the folder to work
in. Prints the moment of each interruption, the exit code and the time until the exit. Its own exit code is 1 if a code
is not -9, 143 or 130 (or 0 for a run that was finished), if there was a traceback, if a stop took longer than a step
and the grace, or if a report differs from that of the uninterrupted run.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small import batch_size, cdp, encoder, image_set, report

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SLACK_S = 15.0  # beyond the grace, for a step and a busy machine


def write_data(folder: Path) -> None:
    """Write images, features and arrays of two classes for the runs to read."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    h = (rng.normal(size=(600, 4)) + 3 * labels[:, None]).astype(np.float32)
    images = np.clip(rng.integers(0, 128, (600, 16, 16, 3)) + 90 * labels[:, None, None, None], 0, 255)
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels)
    np.savez(folder / "features.npz", h=h, labels=labels)
    np.save(folder / "x.npy", h)
    np.save(folder / "labels.npy", labels)


def commands(data: Path) -> dict[str, Callable[[Path], list[str]]]:
    """Kind of run → the function that gives the command for a folder."""
    invertible = {"layers": 2, "hidden": "(8,)", "k": 16, "steps": 40, "record_every": 10, "objectives": "('critic',)"}
    arrays = ["--config=configs/arrays.py", f"--config.x={data}/x.npy"]
    return {
        "cdp": lambda folder: cdp(f"--workdir={folder}", "--config.train.steps=60"),
        "images": lambda folder: image_set(f"npz:{data}/images.npz", folder),
        "simclr": lambda folder: image_set(f"npz:{data}/images.npz", folder, pairing="simclr"),
        "features": lambda folder: encoder(f"features:{data}/features.npz", folder),
        "arrays": lambda folder: [*arrays, f"--config.y={data}/labels.npy", f"--workdir={folder}"],
        "labels": lambda folder: [*arrays, f"--config.labels={data}/labels.npy", f"--workdir={folder}"],
        "study": lambda folder: batch_size(folder),
        "invertible": lambda folder: [
            "--config=configs/invertible.py",
            f"--config.source=npz:{data}/images.npz",
            *(f"--config.{key}={value}" for key, value in invertible.items()),
            f"--workdir={folder}",
        ],
    }


def results(folder: Path) -> dict[str, dict]:
    """The report of the run, or of each run of the study, without fields that differ from run to run."""
    return {path.parent.name * (path.parent != folder): report(path.parent) for path in folder.glob("**/report.json")}


def interrupted(command: list[str], number: signal.Signals, delay: float) -> tuple[bool, bool]:
    """Send the signal after so many seconds. Returns (whether the run stopped correctly, whether it had ended)."""
    from mirigor_jax import stopping

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=delay)
            took = 0.0
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            process.send_signal(number)
            out, errors = process.communicate()
            took = time.monotonic() - began
    where = (out.strip().splitlines() or ["imports"])[-1].strip()
    stopped = -number if number == signal.SIGKILL else 128 + number
    right = process.returncode in (stopped, 0) and took < stopping.GRACE_S + SLACK_S
    right &= "Traceback" not in errors and "ignored in" not in errors
    print(
        f"{delay:5.1f} s  {number.name}  code {process.returncode}  after {took:4.1f} s  {where}",
        "" if right else f"\n{errors}",
        flush=True,
    )
    return right, process.returncode == 0


def trial(kind: str, command: Callable[[Path], list[str]], trials: int, root: Path) -> bool:
    """Interrupt runs of a kind so many times. Returns whether all stopped correctly and all reports are the same."""
    rng, right, done, run = np.random.default_rng(0), True, 0, 0
    program = [sys.executable, "-m", "mirigor_jax.main", "--verbose"]  # its last line says where it is stopped
    began = time.monotonic()
    subprocess.run([*program, *command(root / "whole")], check=True, capture_output=True)
    seconds, expected = 0.9 * (time.monotonic() - began), results(root / "whole")
    print(f"{kind}: {seconds:.1f} s without interruption", flush=True)
    while done < trials:
        folder, finished = root / str(run), False
        while not finished:
            number = SIGNALS[done % len(SIGNALS)] if done < trials else signal.SIGTERM
            delay = rng.uniform(0.2, seconds) if done < trials else 3600.0
            ok, finished = interrupted([*program, *command(folder)], number, delay)
            right &= ok
            done += not finished
        same = bool(expected) and results(folder) == expected
        print(f"{kind}: the report is {'the same' if same else 'ANOTHER'} after {done} interruptions", flush=True)
        right &= same
        run += 1
    return right


def main(trials: int, folder: str, *kinds: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs in the background ignore
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    write_data(root)
    chosen = {kind: command for kind, command in commands(root).items() if kind in kinds or not kinds}
    wrong = [kind for kind, command in chosen.items() if not trial(kind, command, trials, root / kind)]
    print(f"wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
