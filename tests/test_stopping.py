"""SIGTERM and Ctrl-C at every moment."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small import quick_environment

from mirigor_jax import main as command
from mirigor_jax import stopping

KINDS = [(signal.SIGTERM, stopping.Stopped, 143), (signal.SIGINT, KeyboardInterrupt, 130)]


@pytest.fixture(autouse=True)
def _heard():
    """Enable Ctrl-C, also for processes that tests start, because a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_signal_waits_for_the_step_in_hand_where_there_are_steps_and_for_nothing_else(number, error, code):
    before = signal.getsignal(number)
    with stopping.honored():
        assert stopping.asked() is None
        with stopping.finishing():
            os.kill(os.getpid(), number)
            assert stopping.asked() == number
        with pytest.raises(error):
            os.kill(os.getpid(), number)
        with pytest.raises(error):
            stopping.check()
    with stopping.honored():
        assert stopping.asked() is None  # of the next job
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with stopping.honored(), stopping.finishing():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_swallowed_is_asked_again(monkeypatch):
    monkeypatch.setattr(stopping, "AGAIN_S", 0.1)
    times = 0
    with stopping.honored():
        until = time.monotonic() + 20
        while times < 3 and time.monotonic() < until:
            try:
                if times == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            except stopping.Stopped:  # as a library does that expects no such exception
                times += 1
    assert times == 3


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_signal_in_a_callback_that_cannot_raise_is_asked_again_without_a_word(number, error, code, capsys):
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), number)

    def collect():
        collected = Collected()
        del collected
        time.sleep(1)  # AGAIN_S is longer

    with stopping.honored(), pytest.raises(error):
        collect()
    assert capsys.readouterr().err == ""


ENDED = """
import os, signal
from mirigor_jax import stopping
with stopping.honored(to_the_end=True):
    pass
os.kill(os.getpid(), signal.{})
"""


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_command_that_is_through_ends_with_its_own_code(number, error, code):
    done = subprocess.run([sys.executable, "-c", ENDED.format(number.name)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


CALLED = """
import hashlib, os, signal, threading, time
from mirigor_jax import stopping
stopping.GRACE_S = stopping.AGAIN_S = 0.1
began = time.perf_counter()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**17)
seconds = time.perf_counter() - began
threading.Timer(0.3, os.kill, (os.getpid(), signal.{})).start()
try:
    with stopping.honored():
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(2 / seconds * 2**17))  # two seconds in C, beyond the grace
except BaseException as error:
    print(type(error).__name__)
print("goes on", stopping.asked())
"""


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_slow_terminal_does_not_break_the_stop(number, error, code, monkeypatch, capsys):
    """The watcher repeats the signal, but not into the lines that tell the user about the stop."""
    said = stopping.said

    def slowly(number):
        time.sleep(0.5)
        return said(number)

    monkeypatch.setattr(stopping, "AGAIN_S", 0.1)
    monkeypatch.setattr(stopping, "said", slowly)
    monkeypatch.setattr(command, "_run", lambda argv: os.kill(os.getpid(), number))
    assert command.main([]) == code
    assert capsys.readouterr().err.endswith("the same command goes on from here\n")


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_program_that_calls_main_goes_on_after_a_stop(number, error, code):
    done = subprocess.run(
        [sys.executable, "-c", CALLED.format(number.name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, [error.__name__, "goes on None"])


def test_another_thread_s_job_leaves_the_first_one_s_signals_alone():
    def other():
        with stopping.honored():
            pass

    with stopping.honored():
        with stopping.finishing():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_stop_that_ends_by_another_exception_is_a_stop(number, error, code, monkeypatch, capsys):
    def run(argv):
        try:
            os.kill(os.getpid(), number)
        except BaseException as stopped:
            raise RuntimeError("INTERNAL: CpuCallback error") from stopped

    monkeypatch.setattr(command, "_run", run)
    assert command.main([]) == code
    assert capsys.readouterr().err.strip().endswith("the same command goes on from here")


STUCK = """
import hashlib, sys
from mirigor_jax import stopping
stopping.GRACE_S = 0.3
with stopping.honored(to_the_end=True):
    with stopping.importing():
        pass
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # in C, as a compilation is: it hears no signal
"""


@pytest.mark.parametrize(("number", "error", "code"), KINDS)
def test_a_process_that_cannot_hear_is_ended_after_its_grace(number, error, code):
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        time.sleep(1)  # until it is in C
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.decode().strip().endswith("the same command goes on from here")


@pytest.mark.slow
def test_a_run_is_stopped_at_any_moment(tmp_path):
    """Each signal comes at one random moment, and the report stays the same. stops.py tries all kinds of runs."""
    script = Path(__file__).with_name("stops.py")
    done = subprocess.run(
        [sys.executable, script, "3", tmp_path, "cdp"],
        env=quick_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
