"""Memory. Processes are test_processes.py's; steps are mapped in their own tests."""

import platform
import subprocess
import sys

import pytest

HELD = """
import numpy as np
from mirigor_jax import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

def held():
    np.ones(2**26)
    return resident()

given_back = held()
memory.keep_freed_memory()
kept = held()
assert kept - given_back > 400, (given_back, kept)
memory.give_back_freed_memory()
assert kept - resident() > 400, (kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_on_cpus():
    subprocess.run([sys.executable, "-c", HELD], check=True)
