"""The shrunk CDP run, told to stop at random moments by SIGTERM and Ctrl-C in turn, and continued by the same command.

    python tests/stops.py TRIALS FOLDER [SECONDS]

SECONDS: the latest moment. Prints of each the moment, the exit code and the time until then; exits with 1 if a code is
another than 143 and 130, or 0 where it was finished, if there was a traceback, or if it took more than a step and the
grace.
"""

import signal
import subprocess
import sys
import time

import numpy as np
from small import cdp

SLACK_S = 15.0  # beyond the grace, for a step and a busy machine


def main(trials: int, folder: str, latest_s: float = 20.0) -> int:
    from mirigor_jax import stopping

    rng, failed = np.random.default_rng(0), 0
    command = [sys.executable, "-m", "mirigor_jax.main", *cdp(f"--workdir={folder}", "--config.train.steps=300")]
    for trial in range(trials):
        number = (signal.SIGTERM, signal.SIGINT)[trial % 2]
        delay = 0.2 + rng.uniform(0, latest_s)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(delay)
            began = time.monotonic()
            process.send_signal(number)
            out, errors = process.communicate()
        took, where = time.monotonic() - began, (out.strip().splitlines() or ["imports"])[-1].strip()
        right = process.returncode in (128 + number, 0) and took < stopping.GRACE_S + SLACK_S
        right &= "Traceback" not in errors and "ignored in" not in errors
        failed += not right
        print(f"{delay:5.1f} s  {signal.Signals(number).name}  code {process.returncode}  after {took:4.1f} s  {where}")
        if not right:
            print(errors)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])))
