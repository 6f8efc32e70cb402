"""Start two processes with different configs on the same new folder, again and again.

    python tests/claims.py [STARTS]

Prints how often each process got the folder, and how often a folder had the other's config. In the latter case the exit
code is 1.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from mirigor_jax.errors import InputError
from mirigor_jax.runs.folder import RunFolder


def claim(process: int, root: Path, starts: int, barrier, results) -> None:
    """Claim every folder at the same time as the other process does.

    Puts (process, whether it got the folder, whether the folder had the other's config) into `results`.
    """
    config = ConfigDict({"seed": process})
    for start in range(starts):
        folder = RunFolder(root / str(start))
        had = mixed = False
        barrier.wait()
        try:
            with folder.claimed(config):
                had = True
                (folder.path / f"work-of-{process}").touch()
                mixed = json.loads((folder.path / "config.json").read_text())["seed"] != process
        except InputError:
            pass
        barrier.wait()
        mixed |= had and json.loads((folder.path / "config.json").read_text())["seed"] != process
        mixed |= len(list(folder.path.glob("work-of-*"))) > 1
        results.put((process, had, mixed))


def main(starts: int) -> int:
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    with tempfile.TemporaryDirectory() as root:
        processes = [
            spawn.Process(target=claim, args=(process, Path(root), starts, barrier, results)) for process in (0, 1)
        ]
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in range(2 * starts)]
        for process in processes:
            process.join()
    had = [sum(had for process, had, _ in found if process == i) for i in (0, 1)]
    mixed = sum(mixed for *_, mixed in found)
    print(f"{starts} starts: had by the first {had[0]}, by the second {had[1]}, mixed {mixed}")
    return 0 if mixed == 0 and sum(had) == starts else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
