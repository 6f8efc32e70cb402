"""Memory. Processes are test_processes.py's; steps are mapped in their own tests."""

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


FRAGMENTS = """
import ctypes
from mirigor_jax import memory, starting

libc = ctypes.CDLL(None)
if hasattr(libc, "mallinfo2"):
    def fragments():
        libc.mallinfo2.restype = memory._Mallinfo2
        counts = libc.mallinfo2()
        return counts.fordblks - counts.keepcost

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

    memory.set_fragments_aside()  # malloc is not ours to set: nothing happens
    starting.keep_freed_memory()
    blocks = [b"1" * (4_000 + 16 * i) for i in range(20_000)]
    kept = blocks[::2]
    contents = [block[:1] + block[-1:] for block in kept]
    del blocks
    before, then = fragments(), resident()
    assert before > 800 * 2**20, before
    memory.set_fragments_aside()
    assert fragments() < before / 20, (before, fragments())
    assert resident() < then - 600, (then, resident())
    assert [block[:1] + block[-1:] for block in kept] == contents
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_fragments_are_set_aside_and_their_pages_given_back():
    subprocess.run([sys.executable, "-c", FRAGMENTS], check=True)


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
