"""What the programs show people, and other programs: text or JSON lines, harmless to a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

MOST_SHOWN = 200  # characters of a task's text in a line for people
MOST_CELLS = 30  # of a progress bar
MOST_STARS = 10
MOST_LINES = 20  # tasks that a sender names on a terminal, before it draws a bar instead
MOST_FAILURES = 10  # of a kind that a sender names one by one


class OutputClosed(Exception):
    """Standard output takes no more: its reader is gone, or the disk is full."""


def harmless(text: str, most: int = MOST_SHOWN) -> str:
    """`text` in one line of at most `most` characters, with escapes for what could move a cursor, ring a bell or
    turn letters round."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def fill_missing_streams() -> None:
    """Opens what the caller has closed of the three standard streams, so that no connection gets one of their numbers.

    A missing standard output stays one that cannot be written to.
    """
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if stream == 2 else os.O_RDONLY)


def say(line: str) -> None:
    """Writes a line to standard output at once, whole, so that lines of several processes never mix.

    Straight to the file descriptor: nothing is buffered that an abrupt end could lose. Raises OutputClosed.
    """
    left = f"{line}\n".encode(getattr(sys.stdout, "encoding", None) or "utf-8", "backslashreplace")
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError as error:
        raise OutputClosed(f"standard output is gone ({error.strerror})") from None


def note(line: str) -> None:
    """Writes a line about the program, or the lines of a traceback, to standard error, if that can be written to."""
    lines = [harmless(part, most=1000) for part in line.splitlines()]
    with suppress(OSError):
        os.write(2, "".join(f"{part}\n" for part in lines).encode(errors="backslashreplace"))


def stars(difficulty: float) -> str:
    """A star a point, and the number where stars do not tell it."""
    count = min(math.ceil(min(difficulty, MOST_STARS + 1)), MOST_STARS)
    return "⭐" * count if count == difficulty > 0 else f"{'⭐' * count} {difficulty:g}".strip()


def bar(done: float, total: float) -> str:
    """`[█  ] 1/3s`: a cell a second, or MOST_CELLS of them."""
    cells = math.ceil(min(total, MOST_CELLS))
    full = min(cells, int(cells * done / total)) if done < total else cells
    return f"[{'█' * full}{' ' * (cells - full)}] {done:g}/{total:g}s"


class WorkerOutput:
    """The lines of one worker: `event("task_started", id=1, task="…", …)` as the text of the tutorial, or as JSON."""

    def __init__(self, worker: str, log_format: str, quiet: bool = False, several_at_once: bool = False) -> None:
        self._worker = worker
        self._json = log_format == "json"
        self._quiet = quiet
        self._several_at_once = several_at_once

    def event(self, event: str, **details: Any) -> None:
        """Writes one event. `quiet` leaves out those of single tasks. Raises OutputClosed."""
        if self._quiet and event.startswith("task_"):
            return
        if self._json:
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            say(json.dumps({"event": event, "worker": self._worker, "time": time, **details}))
        else:
            say(self._text(event, details))

    def note(self, line: str) -> None:
        note(f"[{self._worker}] {line}")

    def _text(self, event: str, details: dict[str, Any]) -> str:
        who = f"[{harmless(self._worker)}]"
        # with several tasks at once, each line says which
        name = harmless(str(details.get("task") or "a message that is no task"))
        which = f" ({name})" if self._several_at_once else ""
        reason = harmless(str(details.get("error", "")))
        match event:
            case "worker_ready":
                prefetch = details["prefetch"] or "unlimited"
                return f"🚀 {who} Waiting for tasks in {details['queue']} (prefetch {prefetch})"
            case "task_started":
                return f"📥 {who} Received task: {name}\n   {who} Difficulty: {stars(details['difficulty'])}"
            case "task_progress":
                return f"   {who} Progress: {bar(details['done_seconds'], details['total_seconds'])}{which}"
            case "task_completed":
                return f"   {who} ✅ Task completed!{which}"
            case "task_retried":
                return f"   {who} 🔁 Task failed: {reason}; again in {details['delay_seconds']:g} s{which}"
            case "task_dead":
                return f"   {who} 💀 Task given up: {name}: {reason}; it is in {details['queue']}"
            case "task_lost_connection":
                return f"   {who} 🔌 Connection lost during a task; it will be delivered again: {name}"
            case "worker_stopped":
                return f"👋 {who} Stopped; tasks completed: {details['completed']}"
        raise ValueError(event)


class SendReport:
    """What a send prints: a line a task, or for a bulk send on a terminal a progress bar, and a closing line."""

    def __init__(self, quiet: bool, bulk: bool, total: int | None) -> None:
        """`total` is the number of tasks, where it is known."""
        self.confirmed = 0
        self._failed: Counter[str] = Counter()
        self._quiet = quiet
        self._draws = bulk and not quiet and os.isatty(1)
        self._total = total
        self._bar: Progress | None = None

    def settled(self, label: str, outcome: str) -> None:
        """Counts one task, and says so. Called on the publisher's thread. Raises OutputClosed."""
        if outcome == "confirmed":
            self.confirmed += 1
            if self._draws and (self._total or self.confirmed) > MOST_LINES:
                self._advance_bar()
            elif not self._quiet:
                say(f"Sent: {label}")
        else:
            self._failed[outcome] += 1
            if self._failed[outcome] <= MOST_FAILURES:
                self.note(f"Not delivered, {outcome}: {label}")

    def _advance_bar(self) -> None:
        if self._bar is None:
            self._bar = _progress_bar(self._total)
            self._bar.start()
        if self.confirmed % 100 == 0:
            self._bar.update(self._bar.task_ids[0], completed=self.confirmed)

    def note(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            note(line)

    def close(self, sent: int) -> None:
        """Prints the closing line, `8 tasks sent, 8 confirmed`; where there is no standard output, as an error."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.confirmed)
            self._bar.stop()
        unknown = sent - self.confirmed - self._failed.total()
        counts = {**self._failed, "not confirmed": unknown} if unknown else self._failed
        failures = "".join(f", {count} {outcome}" for outcome, count in counts.items())
        line = f"{sent} task{'s' if sent != 1 else ''} sent, {self.confirmed} confirmed{failures}"
        try:
            say(line)
        except OutputClosed:
            note(line)


def _progress_bar(total: int | None) -> Progress:
    """A bar with count, rate and time. rich is imported only here, where it draws."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} tasks/s")

    progress = Progress("Sending", BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
    progress.add_task("", total=total)
    return progress
