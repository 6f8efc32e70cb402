"""SIGTERM and Ctrl-C, honored at every moment: after the step in hand where steps are taken, elsewhere at once.

Python hands a signal over when it next runs a line of Python, and what its handler raises may be swallowed by a library
that was at work. So a thread watches: it asks again, and ends a process that goes on all the same.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGAIN_S = 2.0  # from one asking to the next
GRACE_S = 10.0  # after which a process that neither stops nor finishes a step or a save is ended
_asked: int | None = None  # the signal that came
_imports = False
_finishing = 0  # contexts in which a stop waits
_saves: set[object] = set()  # under way in other threads
_to_the_end = False  # whether the process may be ended
_over = False  # whether what was to honor them is through
_again = False  # whether it is the watcher that asks
_swallowed = False  # whether what was raised is known to have been ignored


class Stopped(BaseException):
    """SIGTERM came, as before a preemption. No failure, so no Exception."""


@contextlib.contextmanager
def honored(*, to_the_end: bool = False) -> Iterator[None]:
    """Within, both signals are honored: by Stopped and KeyboardInterrupt, or else by an end with code 143 or 130.

    A signal that was ignored stays so, and other threads than the first do without, as Python gives them no signals.
    to_the_end: whether the process ends behind it, with the code that it then has: no signal changes that. Else, as in
        a notebook, nothing within ends it: it is asked again and again.
    """
    global _asked, _finishing, _swallowed, _to_the_end, _imports, _over
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _finishing, _swallowed, _over = None, 0, False, False
    _to_the_end = _imports = to_the_end  # until `importing` is left
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, _ask)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        _over = True  # so that the last asking, on its way, is heard by our handler and raises nothing
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if to_the_end else handler)
        os.close(reader)
        _asked = _asked if to_the_end else None  # of this job, and no later one's


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within, a stop ends a command at once: nothing is lost yet, and modules swallow or garble what is raised."""
    global _imports
    _imports = _to_the_end
    try:
        yield
    finally:
        _imports = False


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Within, as in a step or a save, a stop waits however long it takes. A second Ctrl-C doesn't."""
    global _finishing
    _finishing += 1
    try:
        yield
    finally:
        _finishing -= 1


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """What another thread does within is finished before the process is ended."""
    save = object()
    _saves.add(save)
    try:
        yield
    finally:
        _saves.discard(save)


def asked() -> int | None:
    """The signal by which this process was told to stop; None if it wasn't."""
    return _asked


def check() -> None:
    """Stop if that was asked for. Raises Stopped or KeyboardInterrupt."""
    if _asked is not None:
        stop()


def stop() -> NoReturn:
    """Stop this process, as all of a job's do when one of them is told to. Raises Stopped or KeyboardInterrupt."""
    raise KeyboardInterrupt if _asked == signal.SIGINT else Stopped


def number_of(error: BaseException) -> int | None:
    """The signal that the exception stands for; None for others."""
    if isinstance(error, Stopped):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def said(number: int) -> str:
    """What the user is told of a stop by that signal."""
    stopped = "\ninterrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    return f"{stopped}; the same command goes on from here"


def _ask(number: int, frame: Any) -> None:
    global _asked, _again
    is_second = _asked == number == signal.SIGINT and not _again
    _asked, _again = number, False
    if _over:
        return
    if _imports:
        _end(number)
    if not _finishing or is_second:
        check()


def _unraisable(ignored: Any) -> None:
    """What Python does with an exception in a callback that can't raise, as of its garbage collector."""
    global _swallowed
    if _asked is not None and number_of(ignored.exc_value) == _asked:
        _swallowed = True
    else:
        sys.__unraisablehook__(ignored)


def leave(code: int) -> NoReturn:
    """End the process with its workers, without Python's farewells: libraries at work crash in these (code -11)."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()
    os._exit(code)


def _end(number: int) -> NoReturn:
    os.write(2, f"{said(number)}\n".encode())
    leave(128 + number)


def _watch(reader: int) -> None:
    """Wait for a signal, then ask again and again. `reader` ends when there is nothing to watch any more."""
    global _swallowed, _again
    number, free_s, now = 0, 0.0, time.monotonic()
    while True:
        ready, _, _ = select.select([reader], [], [], 0.1 if number else None)
        if ready:
            came = os.read(reader, 1)
            if not came:
                return
            if not number and came[0] in SIGNALS:
                number, now = came[0], time.monotonic()
        if not number:
            continue
        last, now = now, time.monotonic()
        if _finishing or _saves:
            free_s = 0.0
            continue
        due = int(free_s / AGAIN_S)
        free_s += now - last
        if free_s > GRACE_S and _to_the_end:
            _end(number)
        if int(free_s / AGAIN_S) > due or _swallowed:
            _swallowed, _again = False, True
            signal.pthread_kill(threading.main_thread().ident or 0, number)
