"""What a device's memory holds, and what a compiled step needs of it."""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax

from mirigor_jax import starting


def memory_bytes() -> int:
    """What a device has for arrays: what its allocator may take, or the machine's memory where it doesn't say."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needed_bytes(compiled: Any) -> int:
    """What one device needs to run the program: arguments, results not in their place, temporaries, and its code."""
    m = compiled.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + results + m.temp_size_in_bytes + m.generated_code_size_in_bytes


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def compile_within(compile: Callable[[], Any]) -> tuple[Any, int]:
    """(the compiled program, the bytes that a device needs for it); (None, those) where the compiler found too few.

    XLA:TPU gives up on what does not fit, and says how much that is.
    """
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        match = re.search(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGTP]?)", str(error))
        return None, int(float(match[1]) * 1024 ** _UNITS[match[2]]) if match else 0
    return compiled, needed_bytes(compiled)


def give_back_freed_memory() -> None:
    """Hand back what `starting.keep_freed_memory` has kept: now and then, as it is kept in ever more pieces."""
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class _Mallinfo2(ctypes.Structure):
    """glibc's counts of its heap, in bytes where they aren't of blocks."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


_has_set_aside = False


def set_fragments_aside(least: int = 1024) -> None:
    """Have the C library (glibc) no longer look for memory among the fragments that compiling leaves behind.

    All threads share one arena (`starting.keep_freed_memory`), which holds some 30,000 free fragments after a training
    step was compiled. A step's arrays were looked for among them while the other threads waited, which took an eighth
    of a small network's step and more of a wide one's. So each fragment is allocated for good, its pages given back to
    the system before. What is allocated later comes from the heap's end. It takes a tenth of a second.
    To be called while no step runs: what one frees meanwhile would be set aside, too. Only a process's first call does
    it: each touches pages that are then never given back, 16 MiB for a small program.
    least: bytes. Of a fragment that is set aside.
    """
    global _has_set_aside
    if _has_set_aside or not starting.keeps_freed_memory:
        return
    _has_set_aside = True
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # glibc before 2.33
        return
    libc.mallinfo2.restype = _Mallinfo2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.malloc_trim(0)
    end = libc.malloc(libc.mallinfo2().fordblks + 1)  # larger than every fragment: behind them all
    size = 2**26
    while end is not None and size >= least:
        block = libc.malloc(size)
        if block is None or block > end:
            libc.free(block)
            size = size * 9 // 10
    libc.free(end)
