"""The load, from what the live view knows: counts of the queues by passive declares, and heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Collection

from view.model import State

from scaling import retries
from scaling.rule import Load

FRESH_SECONDS = 5.0  # a waiting time that was told longer ago says nothing of now


class Observer:
    """Knows since when tasks have been ready, what has come into the retry queues, and when."""

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._ready_since: float | None = None
        self._retries: dict[str, retries.Waiting] = {}  # by the delay's text: "5s"

    def load(self, state: State, ours: Collection[str], now: float) -> Load | None:
        """None where it is not known; `ours` are the names of our workers that take tasks."""
        if not state["queues"]["known"]:
            self._retries.clear()
            self._ready_since = None
            return None
        ready = state["queues"]["ready"] or 0
        self._ready_since = (self._ready_since or now) if ready else None
        rows = [row for row in state["workers"]["rows"] if row["worker"] in ours]
        return Load(
            ready=ready,
            due=self._due(state["queues"]["retry"], now),
            running=sum(len(row["running"]) + row["more"] for row in rows),
            waited=self._waited(state["waited"], now),
            seconds=self._seconds(state["workers"]["took"], [task["age"] for row in rows for task in row["running"]]),
        )

    def _waited(self, told: tuple[float, float] | None, now: float) -> float | None:
        """Of the task that was started last, in seconds; of the next one, if none has been started for so long."""
        seconds, ago = told or (0.0, float("inf"))
        found = [seconds] if ago <= FRESH_SECONDS else []
        if self._ready_since is not None:
            found.append(min(ago, now - self._ready_since))
        return max(found, default=None)

    def _seconds(self, took: float | None, ages: list[float]) -> float | None:
        """That a task takes: as long as the last ones did, or as those that run have by now."""
        age = sum(ages) / len(ages) if ages else 0.0
        return max(took, age) if took is not None else age if age > self._wait else None

    def _due(self, counts: list[tuple[str, int]], now: float) -> int:
        """Tasks that come back while one that waits now may wait."""
        for name, count in counts:
            self._retries[name] = retries.counted(self._retries.get(name), float(name.removesuffix("s")), count, now)
        return sum(retries.due(waiting, now + self._wait) for waiting in self._retries.values())
