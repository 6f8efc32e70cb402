"""Signals and memory. Processes are test_processes.py's; steps are mapped in their own tests."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from mirigor_jax import parallel


@pytest.fixture
def started():
    """A process that is alone, with the handler that was there put back."""
    before = signal.getsignal(signal.SIGTERM)
    parallel.start()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("started")
def test_sigterm_waits_for_the_step_in_hand_where_there_are_steps_and_for_nothing_else():
    assert not parallel.stop_asked()
    with parallel.finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        assert parallel.stop_asked()
    with pytest.raises(parallel.Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    parallel.start()
    assert not parallel.stop_asked()  # of the next job


HELD = """
import numpy as np
from mirigor_jax import memory

def held():
    np.ones(2**26)
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

given_back = held()
memory.keep_freed_memory()
assert held() - given_back > 400, (given_back, held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_on_cpus():
    subprocess.run([sys.executable, "-c", HELD], check=True)
