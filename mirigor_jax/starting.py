"""Process settings made before JAX is imported: caches, convolutions and memory. The environment overrides them.

This module imports neither JAX nor NumPy.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"  # convolutions by Eigen, not by YNNPACK
# jaxlib ends the process if it does not know a flag. Releases from the first up to, not including, the second know this
# one: 0.10.2 and 0.12.0 were tried, and a test tries the installed release.
KNOWS_EIGEN = ((0, 10), (0, 13))

ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")  # in /dev: TPUs; GPUs of NVIDIA, AMD, and in WSL

keeps_freed_memory = False  # whether `keep_freed_memory` has set malloc


def command() -> str | None:
    """The command line of this process, if it is this package's own; None if other Python code calls the package."""
    for place, word in enumerate(sys.orig_argv):
        if word == "mirigor_jax.main":
            return shlex.join(["python", "-m", word, *sys.orig_argv[place + 1 :]])
        if Path(word).name == "mirigor":
            return shlex.join(["mirigor", *sys.orig_argv[place + 1 :]])
    return None


def keep_compiled_programs() -> None:
    """Make JAX keep compiled programs in the user's cache folder, unless the environment names another folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mirigor_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def choose_convolutions(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Make XLA convolve by Eigen on x86 cores that have AVX2 but not AVX-512.

    On these cores a narrow ResNet trains 1.6 times as fast; a wide one trains 1.4 times as fast and encodes at 0.87 of
    the rate. XLA_FLAGS are left alone if they set this flag or name a file of flags.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = bool(flags) and not flags.startswith("-")
    if is_file or EIGEN.partition("=")[0] in flags or not _knows_eigen():
        return
    features = cpu_features(cpuinfo)
    if "avx2" in features and "avx512f" not in features:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


def _knows_eigen() -> bool:
    from importlib.metadata import PackageNotFoundError, version  # takes 40 ms, during which no signal is handled

    try:
        release = re.match(r"(\d+)\.(\d+)", version("jaxlib"))
    except PackageNotFoundError:
        return False
    first, end = KNOWS_EIGEN
    return release is not None and first <= (int(release[1]), int(release[2])) < end


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The feature flags of an x86 processor as Linux names them, such as avx2; empty if `cpuinfo` lists none."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def keep_freed_memory() -> None:
    """If JAX will run on CPUs, make the C library (glibc) keep the memory that a step frees for the next step.

    Otherwise glibc returns it to the system, which clears it again; that takes a fifth of a small network's step.
    glibc gives each new thread a heap of its own, in parts of 64 MiB, and takes any larger block from the system each
    time. A step's largest block is often larger. Only the main thread's heap has no such limit, so
    `memory.run_in_calling_thread` moves the programs to the main thread. One heap for all threads would also avoid the
    limit, but the threads would wait for each other: compiling then takes 1.4 times as long.
    MALLOC_* and glibc.malloc in GLIBC_TUNABLES in the environment override this.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    is_set |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not is_set and _is_for_cpus():
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large array
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the free end of the main heap stays
            mallopt(-2, 2**26)  # M_TOP_PAD: the free end of the other heaps stays, too
            global keeps_freed_memory
            keeps_freed_memory = True


def _is_for_cpus() -> bool:
    """Whether JAX will probably run on CPUs: JAX_PLATFORMS asks for them, or there is no plugin or no accelerator."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked.split(",")[0] == "cpu"
    has_plugin = any(map(importlib.util.find_spec, ("libtpu", "jax_plugins")))
    return not (has_plugin and any(any(Path("/dev").glob(name)) for name in ACCELERATORS))
