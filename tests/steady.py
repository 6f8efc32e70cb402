"""Watch the memory and open files of a long training and of a long estimation, every few seconds.

    python tests/steady.py FOLDER [MINUTES]

Both run at once, each on one core. Prints a line a minute. The exit code is 1 if a run ended early, or if its memory or
its open files grew by more than 2 % after a sixth of the time.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from small import cdp, options

EVERY_S = 5.0
GROWTH = 0.02


def used(process: int) -> tuple[float, int]:
    """(The process's resident memory in MiB, its number of open files)."""
    status = Path(f"/proc/{process}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024, len(os.listdir(f"/proc/{process}/fd"))


def main(folder: str, minutes: float = 30.0) -> int:
    root, endless = Path(folder), 10**7
    train = {"train.steps": endless, "train.k": 32, "train.checkpoint_every": 200}
    # A checkpoint every few seconds: each costs 20 KiB that TensorStore's count of what it wrote does not free.
    estimate = {"train.steps": 1, "estimate.steps": endless, "estimate.eval_every": 4000}
    commands = {
        name: cdp(f"--workdir={root}/{name}", *options(settings))
        for name, settings in {"training": train, "estimation": estimate}.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    jobs, seen = {}, {name: [] for name in commands}
    for name, command in commands.items():
        with (root / f"{name}.log").open("w") as log:
            arguments = [sys.executable, "-m", "mirigor_jax.main", *command]
            jobs[name] = subprocess.Popen(arguments, stdout=log, stderr=log)
    began, right = time.monotonic(), True
    while (passed := time.monotonic() - began) < 60 * minutes:
        time.sleep(EVERY_S)
        for name, job in jobs.items():
            if job.poll() is not None:
                print(f"{name} ended with code {job.returncode}")
                return 1
            seen[name].append(used(job.pid))
        if int(passed / 60) < int((time.monotonic() - began) / 60):
            now = (f"{name} {rows[-1][0]:.0f} MiB, {rows[-1][1]} files" for name, rows in seen.items())
            print(f"{passed / 60:4.1f} min", *now, sep="  ", flush=True)
    for name, job in jobs.items():
        job.send_signal(signal.SIGTERM)
        job.wait()
        rows = seen[name]
        window = max(1, len(rows) // 12)
        first, last = (
            [median(column) for column in zip(*part, strict=True)]
            for part in (rows[2 * window : 3 * window], rows[-window:])
        )
        growth = [after / before - 1 for before, after in zip(first, last, strict=True)]
        print(
            f"{name}: memory {first[0]:.0f} to {last[0]:.0f} MiB ({growth[0]:+.2%}), open files {first[1]:.0f} to "
            f"{last[1]:.0f}; code {job.returncode}"
        )
        right &= max(growth) <= GROWTH and job.returncode == 143
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
