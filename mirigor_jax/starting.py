"""What is set before JAX is imported: caches, convolutions and memory, unless the environment says otherwise.

Nothing here imports JAX or NumPy.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"  # convolutions by Eigen, not by YNNPACK
# jaxlib ends the process where it does not know a flag. Releases from the first up to the second know this one: 0.10.2
# and 0.12.0 were tried, and a test tries the one that is installed.
KNOWS_EIGEN = ((0, 10), (0, 13))

ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd", "dxg")  # in /dev: TPUs, GPUs of NVIDIA, AMD and in WSL

keeps_freed_memory = False  # whether `keep_freed_memory` has set malloc


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles in the user's cache folder, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mirigor_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def choose_convolutions(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Have XLA convolve by Eigen on x86 cores without AVX-512.

    There a narrow ResNet trains 1.6 times as fast; a wide one trains 1.4 times as fast and encodes at 0.87 of the rate.
    XLA_FLAGS that speak of it, or name a file of flags, stay as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = bool(flags) and not flags.startswith("-")
    if is_file or EIGEN.partition("=")[0] in flags or not _knows_eigen():
        return
    features = cpu_features(cpuinfo)
    if "avx2" in features and "avx512f" not in features:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


def _knows_eigen() -> bool:
    from importlib.metadata import PackageNotFoundError, version  # which takes 40 ms, in which no signal is heard

    try:
        release = re.match(r"(\d+)\.(\d+)", version("jaxlib"))
    except PackageNotFoundError:
        return False
    first, end = KNOWS_EIGEN
    return release is not None and first <= (int(release[1]), int(release[2])) < end


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What an x86 processor can do, in Linux's words, such as avx2; none where it isn't said."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def keep_freed_memory() -> None:
    """If JAX will run on CPUs, have the C library (glibc) keep the memory that a step frees for the next step.

    Otherwise the system takes it back and clears it anew, which takes a fifth of a small network's step.
    glibc gives each new thread a heap of its own, in parts of 64 MiB: a larger block comes from the system each time.
    A step's largest block is often larger. Only the main thread's heap has no such limit, so
    `memory.run_in_calling_thread` goes with this. One heap for all threads would do as well, but they would wait for
    each other: compiling then takes 1.4 times as long.
    MALLOC_* and GLIBC_TUNABLES in the environment override this.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    is_set |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not is_set and _is_for_cpus():
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large array
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the free end of the main heap stays
            mallopt(-2, 2**26)  # M_TOP_PAD: and so does that of the other heaps
            global keeps_freed_memory
            keeps_freed_memory = True


def _is_for_cpus() -> bool:
    """Whether JAX will run on CPUs, as far as can be told before it starts: asked for, or no plugin, or no device."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked.split(",")[0] == "cpu"
    has_plugin = any(map(importlib.util.find_spec, ("libtpu", "jax_plugins")))
    return not (has_plugin and any(any(Path("/dev").glob(name)) for name in ACCELERATORS))
