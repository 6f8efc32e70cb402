"""What is set before JAX is imported: caches, convolutions and memory, unless the environment says otherwise."""

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"  # convolutions by Eigen, not by YNNPACK
KNOWS_EIGEN = ((0, 10), (0, 13))  # releases of jaxlib, the second excluded: one without the flag would end the process


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles in the user's cache folder, unless the environment says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mirigor_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def choose_convolutions(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Have XLA convolve by Eigen on x86 cores without AVX-512, which trains a narrow ResNet 1.6 times as fast there.

    A choice that the user's own XLA_FLAGS make stays.
    """
    from importlib.metadata import version  # as a command is not to wait for it before signals are heard

    flags, release = os.environ.get("XLA_FLAGS", ""), version("jaxlib")
    known, end = KNOWS_EIGEN
    if EIGEN.partition("=")[0] in flags or not known <= tuple(map(int, release.split(".")[:2])) < end:
        return
    features = cpuinfo.read_text() if cpuinfo.is_file() else ""
    if "avx2" in features and "avx512f" not in features:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


def keep_freed_memory() -> None:
    """Where JAX will run on CPUs have the C library (glibc) keep what a step frees for the next one.

    To hand it back, and have the system clear it anew, takes a fifth of a small network's step. To be called before
    there is a thread: the arena of its own that each has hands its memory back all the same, so that all share one.
    """
    if sys.platform == "linux" and _is_for_cpus():
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-8, 1)  # M_ARENA_MAX
            mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large array
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's free end stays


def _is_for_cpus() -> bool:
    """Whether JAX will run on CPUs, as far as can be told before it starts: asked for, or no accelerator's plugin."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked.split(",")[0] == "cpu"
    tpu = importlib.util.find_spec("libtpu") and any(any(Path("/dev").glob(name)) for name in ("accel*", "vfio/[0-9]*"))
    return not (tpu or importlib.util.find_spec("jax_plugins"))
