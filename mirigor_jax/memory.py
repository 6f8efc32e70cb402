"""The memory of a device, and the memory that a compiled step needs."""

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
    """Bytes that a device has for arrays: its allocator's limit, or the machine's memory if the device names none."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needed_bytes(compiled: Any) -> int:
    """Bytes that one device needs to run the program.

    They hold arguments, results that do not replace arguments, temporaries and the program's code.
    """
    m = compiled.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + results + m.temp_size_in_bytes + m.generated_code_size_in_bytes


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def compile_within(compile: Callable[[], Any]) -> tuple[Any, int]:
    """Compile a program: (the compiled program or None, the bytes that a device needs for it).

    XLA:TPU does not compile a program that needs more memory than there is. The program is then None, and the bytes
    come from XLA's message; they are 0 if the message does not state them.
    """
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        match = re.search(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGTP]?)", str(error))
        return None, int(float(match[1]) * 1024 ** _UNITS[match[2]]) if match else 0
    return compiled, needed_bytes(compiled)


def run_in_calling_thread() -> None:
    """If `starting.keep_freed_memory` has set malloc, make JAX run programs on CPUs in the thread that calls them.

    The main thread's heap keeps blocks of any size, the heaps of other threads only blocks up to 64 MiB. Without this,
    a training step of 128 images meets 25,600 page faults, which take a fifth of its time. Call this before JAX makes
    its first array.
    """
    if starting.keeps_freed_memory:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def give_back_freed_memory() -> None:
    """Give the system back the memory that `starting.keep_freed_memory` kept. Call it now and then: pieces pile up."""
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
