"""Progress of a long job: what is done, at which rate, and the time left.

At a terminal a long job prints a line every few seconds. Elsewhere, as in a file or a pipe, it prints only its last
line, which says what was done and in how long, unless the command has the flag --verbose. Only this file decides which.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mirigor_jax.fitting import OnProgress

_verbose = False  # whether the command has the flag --verbose; only `verbosely` sets it
_entered: list["Progress"] = []  # the innermost comes last, and it alone speaks without being told anything


@contextmanager
def verbosely(asked: bool) -> Iterator[None]:
    """Within this context, and if it is asked for, all progress lines are printed, whatever stdout is."""
    global _verbose
    before, _verbose = _verbose, _verbose or asked
    try:
        yield
    finally:
        _verbose = before


def is_shown() -> bool:
    """Whether all progress lines are printed, not only the last line of each job."""
    return _verbose or sys.stdout.isatty()


def duration(seconds: float) -> str:
    """Words for a duration: 75 → '1 min 15 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class Progress:
    """The progress of one job. It prints a line at most every `interval` seconds, and one at the end.

    label: the job. total, unit: how many of which things are to be done; left out of a job that cannot be counted.
    As a context manager it also says, every `interval` seconds in which it is told nothing, for how long the job has
    been going on, and when a job ends that was not counted and took so long, it says how long.
    Rates count from the first update, which comes after compilation.
    """

    def __init__(self, label: str, total: int = 0, unit: str = "", *, interval: float = 5.0):
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self._began = self._printed = self._heard = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._last = 0
        self._state, self._note, self._is_told = f"  {label}: ", "", False
        self._over = threading.Event()
        self._speaker: threading.Thread | None = None

    def update(self, done: int, note: str = "") -> None:
        """Say that so many things are done. Fewer than before: another job of the same label has begun."""
        now = time.monotonic()
        if self._first is not None and done < self._last:
            self._began, self._first = self._heard, None
        if self._first is None:
            self._first = (done, now)
        self._last, self._heard, self._note, self._is_told = done, now, note, True
        self._state = f"  {self.label:9s} {done:>{len(str(self.total))},} of {self.total:,} {self.unit}  "
        if done < self.total and not (is_shown() and now - self._printed >= self.interval):
            return
        self._printed = now
        first, since = self._first
        facts = [f"in {duration(now - self._began)}"] if done >= self.total else []
        if done > first and now > since:
            rate = (done - first) / (now - since)
            facts += [_in_words(rate), *([f"{duration((self.total - done) / rate)} left"] if done < self.total else [])]
        _say(self._state + "  ".join([*facts, note]))

    def end(self, note: str = "") -> None:
        """Say that a job which cannot be counted is done, and in how long. note: what else there is to say of it."""
        self._is_told = True
        _say(f"{self._state}done in {duration(time.monotonic() - self._began)}{note}")

    def __enter__(self) -> "Progress":
        _entered.append(self)
        if is_shown():
            self._speaker = threading.Thread(target=self._speak, daemon=True)
            self._speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        _entered.remove(self)
        if self._speaker is not None:
            self._speaker.join()
        now = time.monotonic()
        if _entered:
            _entered[-1]._heard = now
        if error is None and not self._is_told and now - self._began >= self.interval:
            self.end()

    def _speak(self) -> None:
        """Say for how long the job has been going on whenever it has told nothing for `interval` seconds."""
        while not self._over.wait(max(0.0, self._heard + self.interval - time.monotonic())):
            now = time.monotonic()
            if _entered[-1:] != [self]:
                self._heard = now  # the job within this one speaks
            elif now - self._heard >= self.interval:
                self._heard = self._printed = now
                _say(f"{self._state}{duration(now - self._began)} so far  {self._note}")


@contextmanager
def show_progress(label: str, unit: str) -> Iterator[OnProgress]:
    """Yield an `on_progress` that prints the lines of a `Progress`. The total may change on the way."""
    with Progress(label, 0, unit) as progress:

        def show(done: int, total: int, note: str) -> None:
            progress.total = total
            progress.update(done, note)

        yield show


def _in_words(rate: float) -> str:
    if rate < 0.1:
        return f"{60 * rate:.1f}/min"
    return f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def _say(line: str) -> None:
    """Print a line by one write, so that lines of several threads do not mix."""
    sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()
