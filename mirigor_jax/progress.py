"""Progress lines of a long job: step, rate, time left, and a note."""

import time

from mirigor_jax.fitting import OnProgress


def duration(seconds: float) -> str:
    """Words for a duration: 75 → '1 min 15 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class Progress:
    """Prints a line at most every `interval` seconds, and one at the end.

    Rates count from the first update, which comes after compilation.
    """

    def __init__(self, label: str, total: int, unit: str, *, interval: float = 5.0):
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self._first: tuple[int, float] | None = None
        self._printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        if now - self._printed < self.interval and done < self.total:
            return
        self._printed = now
        first, since = self._first
        line = f"  {self.label:9s} {done:>{len(str(self.total))},} of {self.total:,} {self.unit}"
        if done > first and now > since:
            rate = (done - first) / (now - since)
            line += f"  {rate:,.1f}/s" if rate < 100 else f"  {rate:,.0f}/s"
            line += f"  {duration((self.total - done) / rate)} left" if done < self.total else ""
        print(f"{line}  {note}".rstrip(), flush=True)


def show_progress(label: str, unit: str) -> OnProgress:
    """An `on_progress` that prints the lines of a `Progress`. The total may change on the way."""
    progress = Progress(label, 0, unit)

    def show(done: int, total: int, note: str) -> None:
        progress.total = total
        progress.update(done, note)

    return show
