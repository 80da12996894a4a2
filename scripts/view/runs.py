"""One run of one worker, as its events tell it.

    snapshot 40   started 41   completed 42   progress 44      43 never came: it is missed
    └──────────── what is true: the snapshot, and what is later than it ───────────┘

A heartbeat is a snapshot, and wins over whatever is older. What is later is added to it, in any order: a delivery has
a number of its own, and one that has ended does not begin again. So nothing here can count wrong for longer than until
the next heartbeat, whatever is lost, late or twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from view.events import ENDINGS, HEARTBEAT, Event, maybe, number, text, whole

SILENT_INTERVALS = 3  # heartbeats that fail to come before a worker is called silent
QUIET_INTERVALS = 1.6  # before it is said how long ago the last one was
GONE_SECONDS = 30.0  # a silent worker is shown for so long
STOPPED_SECONDS = 5.0  # and one that has said good-bye
CLOCK_DRIFT = 0.0001  # seconds a second between two machines' clocks
MOST_RUNNING = 50  # tasks of a run that are kept
MOST_LATER = 5000  # events of a run that are kept until its next snapshot

COUNTS = ("completed", "retried", "dead", "lost")
AWAY = ("stopped", "stopping", "reconnecting", "starting")  # their consumers may be gone, or not there yet


@dataclass
class Running:
    """A task that runs. `since` is in the run's own seconds."""

    id: str
    task: str
    difficulty: float
    attempt: int
    since: float
    done: float | None = None
    total: float | None = None


@dataclass
class Window:
    """The numbers between two snapshots, and how many of them came."""

    after: int
    upto: int
    seen: int


@dataclass
class Run:
    id: str
    worker: str
    watched_since: float  # when our watching began, by our clock
    heard: float = 0.0
    offset: float = float("inf")  # our clock less the run's, for what comes without delay
    lag: float = 0.0  # how much later than that the last heartbeat came
    interval: float = 0.0  # between heartbeats; 0 before the first
    state: str = "starting"
    stopped: float | None = None  # when it said so
    prefetch: int = 0
    concurrency: int = 1
    held: int = 0
    dropped: int = 0
    more: int = 0  # tasks that run and are not listed
    seq: int = 0  # of the snapshot
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    first_counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))  # before we watched
    is_back: bool = False  # after it had been given up
    tasks: dict[int, Running] = field(default_factory=dict)  # of the snapshot, by delivery
    later: dict[int, Event] = field(default_factory=dict)  # by seq
    windows: list[Window] = field(default_factory=list)

    def apply(self, event: Event, now: float) -> tuple[int, int]:
        """Returns how many events are known by now to be missed, and of how many."""
        self.worker = text(event, "worker") or self.worker
        self.heard = now
        shift = now - number(event, "up")
        self.offset = min(self.offset, shift)
        name, seq = event["event"], whole(event, "seq")
        if name == HEARTBEAT:
            self.offset = min(self.offset + CLOCK_DRIFT * (self.interval or 1.0), shift)
            self.lag = shift - self.offset
            return self._snapshot(event, seq, now) if seq > self.seq else (0, 0)
        if name == "worker_stopped":
            self.state, self.stopped = "stopped", now
        if name == "worker_ready":
            self.prefetch = whole(event, "prefetch")
            if not self.interval:
                self.state = "waiting"
        if seq > self.seq:
            if len(self.later) < MOST_LATER:
                self.later[seq] = event
        else:
            for window in self.windows:
                window.seen += window.after < seq <= window.upto
        return 0, 0

    def _snapshot(self, event: Event, seq: int, now: float) -> tuple[int, int]:
        self.interval = min(max(number(event, "interval"), 0.1), 60.0)
        self.state = text(event, "state")[:20]
        self.stopped = None
        self.prefetch, self.concurrency = whole(event, "prefetch"), whole(event, "concurrency")
        self.held, self.dropped, self.more = whole(event, "held"), whole(event, "dropped"), whole(event, "more")
        self.counts = {name: whole(event, name) for name in COUNTS}
        if not self.seq and not self.is_back and number(event, "up") > now - self.watched_since:
            self.first_counts = dict(self.counts)  # it is older than our watching
        listed = event.get("running")
        rows = [row for row in (listed if isinstance(listed, list) else [])[:MOST_RUNNING] if isinstance(row, dict)]
        self.tasks = {whole(row, "delivery"): running(row, number(row, "since")) for row in rows}
        seen = 1 + sum(number <= seq for number in self.later)
        self.later = {number: event for number, event in self.later.items() if number > seq}
        if self.seq:
            self.windows.append(Window(self.seq, seq, seen))
        self.seq = seq
        if len(self.windows) <= 2:  # what is late may still come
            return 0, 0
        oldest = self.windows.pop(0)
        return max(0, oldest.upto - oldest.after - oldest.seen), oldest.upto - oldest.after

    def forget_windows(self) -> None:
        """Nobody listened for a while: what did not come is not missed."""
        self.windows.clear()

    # What is so now

    def total(self, name: str) -> int:
        """Of one of COUNTS: the snapshot's, and what has ended since."""
        since = {whole(event, "delivery") for event in self.later.values() if ENDINGS.get(event["event"]) == name}
        return self.counts[name] + len(since)

    def running(self) -> list[Running]:
        """The tasks that run, oldest first."""
        found = dict(self.tasks)
        for seq in sorted(self.later):
            event = self.later[seq]
            delivery = whole(event, "delivery")
            if event["event"] == "task_started":
                found[delivery] = running(event, number(event, "up"))
            elif event["event"] == "task_progress" and delivery in found:
                found[delivery].done, found[delivery].total = maybe(event, "done"), maybe(event, "total")
            elif event["event"] in ENDINGS:
                found.pop(delivery, None)
        return sorted(found.values(), key=lambda task: task.since)

    def age(self, task: Running, now: float) -> float:
        return max(0.0, now - self.offset - task.since)

    def quiet(self, now: float, connected_at: float) -> float:
        """Seconds of silence, as far as we have listened."""
        return max(0.0, now - max(self.heard, connected_at)) if self.interval else 0.0

    def heard_as(self, now: float, connected_at: float) -> str:
        """The state that it told, or `silent` or `quiet`."""
        if self.stopped is None and self.interval:
            quiet = self.quiet(now, connected_at)
            if quiet > SILENT_INTERVALS * self.interval:
                return "silent"
            if quiet > QUIET_INTERVALS * self.interval:
                return "quiet"
        return self.state

    def seen_as(self, now: float, connected_at: float) -> str:
        """The same, where what it told of its tasks since says more: the snapshot may be older."""
        state = self.heard_as(now, connected_at)
        if state in ("working", "waiting"):
            return "working" if self.more or self.running() else "waiting"
        return state

    def is_gone(self, now: float, connected_at: float) -> bool:
        if self.stopped is not None:
            return now - self.stopped > STOPPED_SECONDS
        return self.quiet(now, connected_at) > max(GONE_SECONDS, SILENT_INTERVALS * self.interval)


def running(row: dict[str, Any], since: float) -> Running:
    """A task as a snapshot or `task_started` tells it."""
    attempt = max(1, whole(row, "attempt"))
    found = Running(text(row, "id"), text(row, "task"), number(row, "difficulty"), attempt, since)
    found.done, found.total = maybe(row, "done"), maybe(row, "total")
    return found
