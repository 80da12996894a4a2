"""What a worker with --events publishes: its events, and a heartbeat a second.

The heartbeat says all that who watches has to know of now, whatever was missed before. What it counts is what was told
up to its number: those who watch add what comes after it, and take the next one in place of their sum.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from config import Settings
from workqueue.broadcast import HEARTBEAT, Broadcast
from workqueue.deliveries import Delivery
from workqueue.hands import Hands
from workqueue.streams import MOST_SHOWN

INTERVAL_SECONDS = 1.0
MOST_RUNNING = 50  # tasks that a heartbeat tells of one by one
TOTALS = {
    "task_completed": "completed",
    "task_retried": "retried",
    "task_dead": "dead",
    "task_lost_connection": "lost",
}


class Publication:
    """For one run of a worker, which began at `started_at` (in seconds of time.monotonic()).

    `beat` is called for a heartbeat, on a thread of its own: once a second, and `at_once`.
    """

    def __init__(
        self,
        settings: Settings,
        hands: Hands,
        stopping: Callable[[], bool],
        started_at: float,
        beat: Callable[[], None],
    ) -> None:
        self.connected = False
        self._settings = settings
        self._hands = hands
        self._stopping = stopping
        self._started_at = started_at
        self._beat = beat
        self._second = 0
        self._worker = self._run_id = self._until_second = ""
        self._totals = dict.fromkeys(TOTALS, 0)
        self._wanted = threading.Event()

    def start(self, worker: str, run: str, note: Callable[[str], None]) -> None:
        self._worker, self._run_id = json.dumps(worker), run
        self.broadcast = Broadcast(self._settings, worker, note, self.at_once)
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def at_once(self) -> None:
        self._wanted.set()

    def add(
        self, event: str, seq: int, now: int, up: float, delivery: Delivery | None, details: dict[str, Any]
    ) -> dict[str, Any]:
        """In the order of the numbers; `now` in microseconds since the epoch. Does not wait. Returns the event's own
        members."""
        if event in self._totals:
            self._totals[event] += 1
        elif event == HEARTBEAT:
            details = self._members()
        if delivery is None or self.broadcast.wanted:
            try:
                line = self._line(event, seq, now, up, delivery, details)
            except (TypeError, ValueError):  # a handler's progress may be anything
                self.broadcast.dropped += 1
            else:
                self.broadcast.add((seq, event, line), delivery.number if delivery else 0)
        return details

    def _line(
        self, event: str, seq: int, now: int, up: float, delivery: Delivery | None, details: dict[str, Any]
    ) -> str:
        """What json.dumps makes, in a fraction of its time."""
        second = now // 1_000_000
        if second != self._second:
            self._second, self._until_second = second, f'"worker": {self._worker}, "time": "{utc(second)}'
        line = (
            f'{{"event": "{event}", {self._until_second}.{now % 1_000_000:06d}+00:00", "run": "{self._run_id}", '
            f'"seq": {seq}, "up": {up:.6f}{delivery.members() if delivery else ""}'
        )
        for name, value in details.items():
            line += f', "{name}": {value if type(value) is float and math.isfinite(value) else _json(value)}'
        return line + "}"

    def _run(self) -> None:
        while True:
            self._wanted.wait(INTERVAL_SECONDS)
            self._wanted.clear()
            self._beat()

    def _members(self) -> dict[str, Any]:
        running = self._hands.at_work()
        return {
            "queue": self._settings.task_queue,
            "interval": INTERVAL_SECONDS,
            "state": self._state(working=bool(running)),
            "prefetch": self._settings.prefetch_count,
            "concurrency": self._settings.concurrency,
            "held": self._hands.held,
            **{name: self._totals[event] for event, name in TOTALS.items()},
            "running": [self._shown(delivery) for delivery in running[:MOST_RUNNING]],
            "more": max(0, len(running) - MOST_RUNNING),
            "dropped": self.broadcast.dropped,
        }

    def _state(self, working: bool) -> str:
        if self._stopping():
            return "stopping"
        if not self.connected:
            return "reconnecting"
        return "working" if working else "waiting"

    def _shown(self, delivery: Delivery) -> dict[str, Any]:
        fields = delivery.fields()
        done, total = map(_number, delivery.progress or (None, None))
        return {
            **{name: _cut(fields[name]) for name in ("delivery", "id", "task", "difficulty", "attempt")},
            "since": round(delivery.begun_at - self._started_at, 6),
            "done": done,
            "total": total,
        }


def _cut(value: Any) -> Any:
    return value[:MOST_SHOWN] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """None for what a handler has given as its progress, and is no number for everybody."""
    return value if type(value) in (int, float) and abs(value) < 2**63 else None


def _json(value: Any) -> str:
    return json.dumps(_cut(value), allow_nan=False)


def utc(seconds: int) -> str:
    """Seconds since the epoch as RFC 3339, for a fraction and `+00:00` to follow."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
