"""What a sender shows people: a line a task, or a bar, and the closing line."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from workqueue.messages import Message
from workqueue.streams import OutputClosed, note, say, show

if TYPE_CHECKING:
    from rich.progress import Progress

MOST_LINES = 20  # tasks that a sender names on a terminal, before it draws a bar instead
MOST_ON_THEIR_WAY = 1_000_000  # at once: more would stand in memory for nothing, whatever the window allows
MOST_FAILURES = 10  # of a kind that a sender names one by one


class SendReport:
    """What a send prints: a line a task, or for a bulk send on a terminal a progress bar, and a closing line."""

    def __init__(self, quiet: bool, bulk: bool, total: int | None, window: int) -> None:
        """`total` is the number of tasks, where it is known. `window` tasks may be on their way, or wait to be told of:
        whoever reads slowly slows the sending, and not the answering of heartbeats."""
        self.confirmed = 0
        self.room: SimpleQueue[None] = SimpleQueue()  # a semaphore, in a third of its time
        for _ in range(min(window, MOST_ON_THEIR_WAY)):
            self.room.put(None)
        self.error: OutputClosed | None = None
        self._failed: Counter[str] = Counter()
        self._quiet = quiet
        self._draws = bulk and not quiet and os.isatty(1)
        self._total = total
        self._bar: Progress | None = None
        self._settled: SimpleQueue[tuple[Message, str] | None] = SimpleQueue()
        self._done = threading.Event()
        threading.Thread(target=self._tell, name="report", daemon=True).start()

    def settled(self, message: Message, outcome: str) -> None:
        """For the publisher, on a thread that must not wait."""
        if self._quiet and outcome == "confirmed":  # nothing to print, for which a thread would have to be woken
            self.confirmed += 1
            self.room.put(None)
        else:
            self._settled.put((message, outcome))

    def _tell(self) -> None:
        while settled := self._settled.get():
            message, outcome = settled
            try:
                self._count(message.label, outcome)
            except OutputClosed as error:
                self.error = error
            self.room.put(None)
        self._done.set()

    def _count(self, label: str, outcome: str) -> None:
        if outcome == "confirmed":
            self.confirmed += 1
            if self.error or self._quiet:
                return
            if self._draws and (self._total or self.confirmed) > MOST_LINES:
                self._advance_bar()
            else:
                say(f"Sent: {label}")
        else:
            self._failed[outcome] += 1
            if self._failed[outcome] <= MOST_FAILURES:
                self.note(f"Not delivered, {outcome}: {label}")

    def _lose(self, error: OutputClosed) -> None:
        self.error = error

    def finish(self) -> None:
        """Returns when all that was settled is told. Raises OutputClosed."""
        self._finish()
        if self.error:
            raise self.error

    def _finish(self) -> None:
        self._settled.put(None)
        self._done.wait()

    def _advance_bar(self) -> None:
        if self._bar is None:
            self._bar = _progress_bar(self._total, _Terminal(self._lose))
            self._bar.start()
        if self.confirmed % 100 == 0:
            self._bar.update(self._bar.task_ids[0], completed=self.confirmed)

    def note(self, line: str) -> None:
        if self._bar and not self.error:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            note(line)

    def close(self, sent: int) -> bool:
        """Prints the closing line, `8 tasks sent, 8 confirmed`; where there is no standard output, as an error.

        Returns whether all is well.
        """
        try:
            self._finish()
        except KeyboardInterrupt:  # what cannot be printed is given up within a second now
            self._done.wait()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.confirmed)
            self._bar.stop()
        unknown = sent - self.confirmed - self._failed.total()
        counts = {**self._failed, "not confirmed": unknown} if unknown else self._failed
        failures = "".join(f", {count} {outcome}" for outcome, count in counts.items())
        line = f"{sent} task{'s' if sent != 1 else ''} sent, {self.confirmed} confirmed{failures}"
        try:
            say(line)
        except (OutputClosed, KeyboardInterrupt):
            note(line)
        return self.error is None and self.confirmed == sent


class _Terminal(io.StringIO):
    """Standard output, for rich: a terminal that is gone, or stands still, ends no thread and holds up no stop."""

    def __init__(self, on_error: Callable[[OutputClosed], None]) -> None:
        super().__init__()
        self._on_error = on_error

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the stubs let it be set
        return getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            show(text)
        except OutputClosed as error:
            self._on_error(error)
        return len(text)


def _progress_bar(total: int | None, terminal: _Terminal) -> Progress:
    """A bar with count, rate and time. rich is imported only here, where it draws."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} tasks/s")

    columns = ("Sending", BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(file=terminal))
    progress.add_task("", total=total)
    return progress
