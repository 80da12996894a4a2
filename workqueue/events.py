"""What a worker shows people, and other programs: the text of the tutorial, or JSON lines."""

from __future__ import annotations

import atexit
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any
from uuid import uuid4

from config import Settings
from workqueue.broadcast import HEARTBEAT
from workqueue.deliveries import Delivery
from workqueue.errors import BrokerError
from workqueue.hands import Hands
from workqueue.lines import utc
from workqueue.publication import Publication
from workqueue.streams import OutputClosed, harmless, note, say

STARTED = time.monotonic()  # the process, about
LAST_SECONDS = 0.5  # how long a worker that ends waits until the last events are published
MOST_CELLS = 30  # of a progress bar
MOST_STARS = 10


def stars(difficulty: float) -> str:
    """A star a point, and the number where stars do not tell it."""
    count = min(math.ceil(min(difficulty, MOST_STARS + 1)), MOST_STARS)
    return "⭐" * count if count == difficulty > 0 else f"{'⭐' * count} {difficulty:g}".strip()


def bar(done: float, total: float, unit: str = "s") -> str:
    """`[█  ] 1/3s`: a cell a second, or MOST_CELLS of them."""
    cells = max(1, math.ceil(min(total, MOST_CELLS)))
    full = min(cells, int(cells * done / total)) if done < total else cells
    return f"[{'█' * full}{' ' * (cells - full)}] {done:g}/{total:g}{unit}"


def in_words(error: BaseException) -> str:
    """With its traceback, where that can be had."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # of the error's own making
        return f"{type(error).__name__}: an error that cannot be put into words\n"


class WorkerOutput:
    """The lines of one worker: `event("task_started", delivery, …)` as the text of the tutorial, or as JSON.

    Events are numbered in the order in which they are printed or published.

    Each line begins with the tutorial's words; the task's id, and what else helps to tell it apart, follows. On a
    terminal each worker has a colour of its own, and one that simulates, with the terminal to itself, draws its bar in
    one line.
    """

    def __init__(
        self,
        worker: str,
        log_format: str,
        quiet: bool = False,
        several_at_once: bool = False,
        simulates: bool = True,
    ) -> None:
        """`simulates`: progress is told in seconds."""
        self._worker = worker
        self._json = log_format == "json"
        self._quiet = quiet
        self._several_at_once = several_at_once
        self._simulates = simulates
        self._who = f"[{harmless(worker)}]"
        if colours_are_welcome():
            colour = COLOURS[sum(worker.encode()) % len(COLOURS)]
            self._who = f"\x1b[{colour}m{self._who}\x1b[0m"
        # what a handler of somebody's own prints in between would be wiped out
        self._redraws = simulates and not several_at_once and has_the_terminal_to_itself()
        self._drawn = False  # the last line is a bar
        self._said = ""
        self._run = uuid4().hex
        self._seq = 0
        self._order = Lock()
        self._published: Publication | None = None
        self._stopped = False
        os.register_at_fork(after_in_child=self._be_of_a_child)

    def publish(self, settings: Settings, hands: Hands, stopping: Callable[[], bool]) -> None:
        """From now on, events are published too, and with them a heartbeat a second."""
        self._published = Publication(settings, hands, stopping, STARTED, self._beat)
        self._published.start(self._worker, self._run, self.note)
        atexit.register(self._published.broadcast.close, LAST_SECONDS)

    def event(self, event: str, delivery: Delivery | None = None, **details: Any) -> None:
        """Tells one event, of a task if `delivery` is given. `quiet` prints none of these. Raises OutputClosed."""
        printed = self._json if event == HEARTBEAT else not (self._quiet and delivery)
        published = self._published
        if not (printed or published):
            return
        with self._order:
            if self._stopped and event == HEARTBEAT:
                return
            self._seq += 1
            watched = published if published and published.wants(event, delivery) else None
            if not (printed or watched):
                return
            now, up = time.time_ns() // 1000, time.monotonic() - STARTED
            if event == "task_started" and delivery:
                details["waited"] = delivery.waited(now)
            elif event == "task_progress" and self._simulates:
                details |= {"done_seconds": details["done"], "total_seconds": details["total"]}
            elif event == HEARTBEAT and watched:
                details = watched.snapshot()
            about = delivery.about() if delivery else None
            told = self._seq, event, now, up, about, details
            if watched:
                watched.broadcast.add(told)
            if printed and self._json:
                self._say_json(*told[:4], (delivery.fields() if delivery else {}) | details)
        if printed and not self._json:
            is_bar = event == "task_progress"
            text = self._text(event, (delivery.fields() if delivery else {}) | details)
            redrawn = is_bar and self._redraws
            say(f"{UP_AND_CLEAR if self._drawn else ''}{NO_WRAP}{text}{WRAP}" if redrawn else text)
            self._drawn = redrawn

    def _say_json(self, seq: int, event: str, now: int, up: float, fields: dict[str, Any]) -> None:
        moment = f"{utc(now // 1_000_000)}.{now % 1_000_000:06d}+00:00"
        envelope: dict[str, Any] = {"event": event, "worker": self._worker, "time": moment, "run": self._run}
        say(json.dumps({**envelope, "seq": seq, "up": round(up, 6), **fields}))

    def _beat(self) -> None:
        with suppress(OutputClosed):  # whoever has something to say notices it, too
            self.event(HEARTBEAT)

    def _be_of_a_child(self) -> None:
        """What a handler has forked may print its progress; it has none of the threads that hold a lock, or publish."""
        self._order = Lock()
        self._published = None

    def ready(self, settings: Settings) -> None:
        self._said = ""
        self.event("worker_ready", queue=settings.task_queue, prefetch=settings.prefetch_count)
        if self._published:
            self._published.connected = True
            self._published.at_once()

    def stopped(self, completed: int) -> None:
        if self._published:
            self._beat()
        self.event("worker_stopped", completed=completed)
        self._stopped = True

    def note(self, line: str) -> None:
        """For people who look after the worker, on standard error."""
        self._drawn = False
        note(f"[{self._worker}] {line}")

    def note_failure(self, failure: BrokerError, then: str) -> None:
        """In one line that fits a terminal; where nobody answers is said once."""
        if self._published:
            self._published.connected = False
        if failure.where != self._said:
            self._said = failure.where
            if failure.where:
                self.note(f"no broker at {failure.where}: is it running?")
        self.note(f"{failure.brief or failure}; {then}")

    def _text(self, event: str, details: dict[str, Any]) -> str:
        who = self._who
        name = harmless(str(details.get("task") or "a message that is no task"))
        number = harmless(str(details.get("id")), most=40)
        which = f"({name}, id: {number})" if self._several_at_once else f"(id: {number})"
        reason = harmless(str(details.get("error", "")))
        match event:
            case "worker_ready":
                prefetch = details["prefetch"] or "unlimited"
                return f"🚀 {who} Waiting for tasks in {details['queue']} (prefetch {prefetch})"
            case "task_started":
                difficulty = f"   {who} Difficulty: {stars(details['difficulty'])} {which}"
                return f"📥 {who} Received task: {name} (id: {number}{_repeated(details)})\n{difficulty}"
            case "task_progress":
                shown = bar(details["done"], details["total"], "s" if self._simulates else "")
                return f"   {who} Progress: {shown} {which}"
            case "task_completed":
                return f"   {who} ✅ Task completed! {which}"
            case "task_retried":
                return f"   {who} 🔁 Task failed: {reason}; again in {details['delay_seconds']:g} s {which}"
            case "task_dead":
                return f"   {who} 💀 Task given up: {name}: {reason}; it is in {details['queue']} {which}"
            case "task_lost_connection":
                return f"   {who} 🔌 Connection lost during a task; it will be delivered again: {name} {which}"
            case "worker_stopped":
                return f"👋 {who} Stopped; tasks completed: {details['completed']}"
        raise ValueError(event)


def _repeated(details: dict[str, Any]) -> str:
    attempt = f", attempt {details['attempt']}" if details["attempt"] > 1 else ""
    return attempt + (", again: it was delivered before" if details["redelivered"] else "")


# Terminals

COLOURS = (36, 33, 35, 32, 34, 93, 96, 92, 95, 94)  # of ANSI, that are read on light and on dark
UP_AND_CLEAR = "\x1b[A\r\x1b[2K"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"  # a bar of two rows could not be drawn again: it is cut at the edge


def colours_are_welcome() -> bool:
    """On a terminal that has them, unless NO_COLOR is set."""
    return os.isatty(1) and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def has_the_terminal_to_itself() -> bool:
    """Whether this is the program that somebody looks at: not one of several in the background of a shell."""
    if not (os.isatty(0) and os.isatty(1)) or os.environ.get("TERM", "dumb") == "dumb":
        return False
    with suppress(OSError):
        return os.tcgetpgrp(1) == os.getpgrp()
    return False
