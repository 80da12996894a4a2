"""What a worker with --events publishes: its events, and a heartbeat a second.

The heartbeat says all that who watches has to know of now, whatever was missed before. What it counts is what was told
up to its number: those who watch add what comes after it, and take the next one in place of their sum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from config import Settings
from workqueue.broadcast import Broadcast
from workqueue.deliveries import Delivery
from workqueue.hands import Hands

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
        self._totals = dict.fromkeys(TOTALS, 0)
        self._wanted = threading.Event()

    def start(self, worker: str, run: str, note: Callable[[str], None]) -> None:
        self.broadcast = Broadcast(self._settings, worker, run, note, self.at_once)
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def at_once(self) -> None:
        self._wanted.set()

    def wants(self, event: str, delivery: Delivery | None) -> bool:
        """Counts it, and says whether it is to be published. In the order of the numbers."""
        if event in self._totals:
            self._totals[event] += 1
        return delivery is None or self.broadcast.wanted

    def _run(self) -> None:
        while True:
            self._wanted.wait(INTERVAL_SECONDS)
            self._wanted.clear()
            self._beat()

    def snapshot(self) -> dict[str, Any]:
        """A heartbeat's own members."""
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
        number, id, task, difficulty, _, attempt, _ = delivery.about()
        done, total = map(_number, delivery.progress or (None, None))
        return {
            "delivery": number,
            "id": id,
            "task": task,
            "difficulty": difficulty,
            "attempt": attempt,
            "since": round(delivery.begun_at - self._started_at, 6),
            "done": done,
            "total": total,
        }


def _number(value: Any) -> Any:
    """None for what a handler has given as its progress, and is no number for everybody."""
    return value if type(value) in (int, float) and abs(value) < 2**63 else None
