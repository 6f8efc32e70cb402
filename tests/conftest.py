"""Give every test eight host devices, and checks of shapes and types."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shared cache, because many tests, and processes that tests start, compile the same steps.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# Each worker gets cores of its own. If two workers share all cores, XLA's threads wait for one another, and tests take
# three times as long.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)

import jax
import jaxtyping
import numpy as np
from matplotlib.figure import Figure
from small import QUICK_FLAGS, cdp, quick_environment

flags = [os.environ.get("XLA_FLAGS", ""), QUICK_FLAGS, "--xla_force_host_platform_device_count=8"]
os.environ["XLA_FLAGS"] = " ".join(flags)

jaxtyping.install_import_hook("mirigor_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest  # noqa: E402  the hook must come before anything imports mirigor_jax

from mirigor_jax.starting import choose_convolutions  # noqa: E402

choose_convolutions()


def pytest_collection_modifyitems(items):
    """Put the tests of the shared run first: one worker begins with them, so the others need not wait for the run."""
    items.sort(key=lambda item: "cdp_run" not in item.fixturenames)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Turn LLVM's optimizations off for tests that mostly compile: those that are quick or marked `compiles`."""
    computes = item.get_closest_marker("slow") and not item.get_closest_marker("compiles")
    jax.config.update("jax_disable_most_optimizations", not computes)


@pytest.fixture(scope="session")
def cdp_run(tmp_path_factory) -> Path:
    """Folder of a finished run of the shrunk CDP job, run in its own process on one device, without test settings.

    The file `stdout` beside the folder has its output. All workers read the same run: copy it before you change it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, printed = root / "cdp", root / "stdout"
    command = [sys.executable, "-W", "error", "-m", "mirigor_jax.main", *cdp(f"--workdir={folder}")]
    with open(root / "cdp.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until closed
        if not printed.exists():
            done = subprocess.run(command, env=quick_environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Make reports without drawing their figures into files, which takes longer than the rest of a report."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(b"undrawn"))


@pytest.fixture
def garments(tmp_path):
    """A file of 800 small images of four classes, with 400 test images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for ending, n in (("", 800), ("_test", 400)):
        labels = np.arange(n) % 4
        images = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
        images[np.arange(n), 2 * labels] += 150  # a bright row, whose place is the class
        arrays |= {f"images{ending}": images, f"labels{ending}": labels}
    np.savez(tmp_path / "set.npz", **arrays)
    return f"npz:{tmp_path / 'set.npz'}"


@pytest.fixture
def float64():
    """Enable float64 for the test's own computations."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shallow(monkeypatch):
    """Give resnet18 two stages of one block each: the same code, which compiles in a tenth of the time."""
    from mirigor_jax.models import resnet

    monkeypatch.setitem(resnet.STAGES, "resnet18", ((1, 1), "basic"))
