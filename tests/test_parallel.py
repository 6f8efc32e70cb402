"""Memory of devices. test_processes.py tests processes, and the tests of each step its mapping."""

import os
import platform
import subprocess
import sys

import pytest

HELD = """
from concurrent.futures import ThreadPoolExecutor
from resource import RUSAGE_SELF, getrusage

from mirigor_jax import starting

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

def held():
    b"1" * 2**29
    return resident()

given_back = held()
starting.keep_freed_memory()
kept = held()
assert kept - given_back > 400, (given_back, kept)

from mirigor_jax import memory

def faults(pool):
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(10):
        pool.submit(lambda: [b"1" * 2**20 for _ in range(200)]).result()
    return getrusage(RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as pool:
    faults(pool)
    assert faults(pool) < 1_000  # 512,000 pages are written
memory.give_back_freed_memory()
assert kept - resident() > 100, (kept, resident())  # JAX is there now, too
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_on_cpus():
    subprocess.run([sys.executable, "-c", HELD], check=True)


STEPS = """
import statistics
from resource import RUSAGE_SELF, getrusage

from mirigor_jax import memory, starting

starting.keep_freed_memory()
memory.run_in_calling_thread()

import jax
import jax.numpy as jnp

@jax.jit
def step(x):  # the matrix is 100 MiB
    return jnp.cos(x[:, None] + jnp.arange(25 * 2.0**10)) @ jnp.ones(25 * 2**10)

def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    step(jnp.arange(2.0**10)).block_until_ready()
    return getrusage(RUSAGE_SELF).ru_minflt - before

# A step writes 25,600 pages. Now and then its block is new, because a small block lies in the old one.
assert statistics.median(faults() for _ in range(21)) < 100
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_steps_blocks_of_over_64_mib_are_kept_on_cpus():
    subprocess.run([sys.executable, "-c", STEPS], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


THREADS = """
import sys, threading
from mirigor_jax import main, starting
starting.keep_freed_memory = lambda: print(threading.active_count())
sys.argv = ["main", "--help"]
main.main()
"""


def test_a_command_sets_memory_before_it_has_a_second_thread():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "1"
