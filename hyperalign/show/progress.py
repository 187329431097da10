"""Progress of a command, with rate and time left: bars on a terminal, a plain line now and then elsewhere.

The library reports `(stage, done, total)` and knows nothing of this. A finished stage leaves one line behind.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from hyperalign.show.words import clean, duration

__all__ = ["Display", "on_stderr"]


class Display:
    """Shows what a command is doing, on the console it is given; a context, so that a bar never stays behind."""

    def __init__(self, console: Console, *, every: float = 10.0) -> None:
        """Show on `console`; where that is no terminal, a line at most `every` so many seconds."""
        self._console = console
        self._every = every
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._since = self._told = self._last = time.monotonic()
        self._done = self._total = 0

    def __enter__(self) -> "Display":
        """Begin to show."""
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, whatever has happened."""
        if self._console.is_terminal:  # before version 15 rich leaves an empty line for bars that were never shown
            self._bars.stop()

    def say(self, message: str) -> None:
        """Show one line that stays."""
        self._console.print(Text(clean(message)), soft_wrap=True)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` things of `stage` are done; a total of 0 is not known yet."""
        now = time.monotonic()
        if stage != self._stage or done < self._done:
            self._begin(stage, done, total, now)
        self._done, self._total = done, total
        rate = self._rate(now)
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None, rate=rate)
        if total and done >= total:
            self._finish(done, now)
        elif not self._console.is_terminal and now - self._told >= self._every:
            self._told = now
            self.say(self._line(done, total, rate, now))

    def _begin(self, stage: str, done: int, total: int, now: float) -> None:
        self._stage, self._told = stage, now
        self._since = self._last if done else now  # a stage that first reports when something is done began earlier
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(clean(stage), total=total or None, completed=done, rate="")

    def _finish(self, done: int, now: float) -> None:
        """Leave one line behind."""
        spent = now - self._since
        took = f" in {duration(spent)}" if spent >= 0.1 else ""
        one = self._total == 1
        rate = "" if one else self._rate(now)
        self.say(f"{self._stage}: {'done' if one else f'{done:,}'}{took}{rate and ', ' + rate}")
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._stage, self._done, self._last = None, "", 0, now

    def _line(self, done: int, total: int, rate: str, now: float) -> str:
        line = f"{self._stage}: {done:,}" + (f" of {total:,}" if total else "") + (rate and f", {rate}")
        left = (total - done) * (now - self._since) / done if total and done else 0.0
        return line + (f", {duration(left)} left" if left else "")

    def _rate(self, now: float) -> str:
        """Things per second since the stage began; nothing to say in its first instant."""
        spent = now - self._since
        if spent < 0.1 or not self._done:
            return ""
        rate = self._done / spent
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def on_stderr(*, quiet: bool = False) -> Display:
    """A display on stderr, to be used as a context; a quiet one shows nothing."""
    return Display(Console(stderr=True, highlight=False, quiet=quiet))
