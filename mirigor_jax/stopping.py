"""SIGTERM and Ctrl-C stop a job at any moment: a step under way finishes first; elsewhere the job stops at once.

Python runs a signal's handler only when it next runs a line of Python, and a library that was running may swallow the
exception that the handler raises. So a thread watches: it sends the signal again, and ends a process that goes on.
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
AGAIN_S = 2.0  # seconds from one signal of the watcher to the next
GRACE_S = 10.0  # seconds until the watcher ends a process that goes on outside any step or save
_asked: int | None = None  # the signal that came
_imports = False  # whether `importing` is entered, so that a stop ends the process at once
_finishing = 0  # number of contexts that make a stop wait
_saves: set[object] = set()  # saves under way in other threads
_to_the_end = False  # whether the watcher may end the process
_over = False  # whether the work within `honored` has ended
_again = False  # whether the next signal comes from the watcher
_swallowed = False  # whether Python ignored the exception that the handler raised


class Stopped(BaseException):
    """SIGTERM came, as it does before a preemption. Not an Exception, because nothing failed."""


@contextlib.contextmanager
def honored(*, to_the_end: bool = False) -> Iterator[None]:
    """Within this context, SIGTERM raises Stopped and Ctrl-C raises KeyboardInterrupt.

    If the exception has no effect, the process is ended with code 143 or 130. A signal that the process ignores stays
    ignored. In other threads than the main one this context does nothing, as Python gives them no signals.
    to_the_end: whether the process ends right after this context. Signals are then ignored once it is left, so the exit
        code stays. Otherwise, as in a notebook, the process is never ended; the watcher only repeats the signal.
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
        heard()  # a signal of the watcher may still be on its way
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if to_the_end else handler)
        os.close(reader)
        _asked = _asked if to_the_end else None  # a later job in this process must not see it


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within this context, a signal ends a command at once.

    Nothing is lost yet, and modules that are being imported swallow or change the exception that a handler raises.
    """
    global _imports
    _imports = _to_the_end
    try:
        yield
    finally:
        _imports = False


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Within this context, such as a step or a save, a stop waits until its end. A second Ctrl-C does not wait."""
    global _finishing
    _finishing += 1
    try:
        yield
    finally:
        _finishing -= 1


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Within this context, entered in another thread, the watcher does not end the process."""
    save = object()
    _saves.add(save)
    try:
        yield
    finally:
        _saves.discard(save)


def heard() -> None:
    """The work of this context has ended: neither the watcher nor another signal raises in it from now on."""
    global _over
    _over = True


def asked() -> int | None:
    """The signal that told this process to stop; None if none did."""
    return _asked


def check() -> None:
    """Stop if a signal came. Raises Stopped or KeyboardInterrupt."""
    if _asked is not None:
        stop()


def stop() -> NoReturn:
    """Stop this process; each process of a job calls this when one of them is told to. Raises as `check` does."""
    raise KeyboardInterrupt if _asked == signal.SIGINT else Stopped


def number_of(error: BaseException) -> int | None:
    """The signal that the exception stands for; None for any other exception."""
    if isinstance(error, Stopped):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def said(number: int) -> str:
    """The message for the user after a stop by that signal."""
    stopped = "\ninterrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    return f"{stopped}; the same command goes on from here"


def _ask(number: int, frame: Any) -> None:
    """The handler of both signals."""
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
    """The hook for exceptions that Python cannot raise, such as those in a callback of the garbage collector."""
    global _swallowed
    if _asked is not None and number_of(ignored.exc_value) == _asked:
        _swallowed = True
    else:
        sys.__unraisablehook__(ignored)


def leave(code: int) -> NoReturn:
    """End the process and its workers without Python's cleanup, in which running libraries crash (code -11)."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()
    os._exit(code)


def leave_after(code: int) -> NoReturn:
    """End the process of a command with this code; after a stop, without Python's cleanup."""
    if asked() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        leave(code)
    sys.exit(code)


def _end(number: int) -> NoReturn:
    os.write(2, f"{said(number)}\n".encode())
    leave(128 + number)


def _watch(reader: int) -> None:
    """Wait for a signal, then send it to the main thread again and again. Return when `reader` is at its end."""
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
