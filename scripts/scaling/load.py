"""The load, from what the live view knows: counts of the queues by passive declares, and heartbeats of the workers."""

from __future__ import annotations

from collections.abc import Collection

from view.model import State

from scaling import retries
from scaling.rule import Load

FRESH_SECONDS = 5.0  # a waiting time that was told longer ago says nothing of now


class Observer:
    """Knows what has come into the retry queues, and when."""

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._retries: dict[str, retries.Waiting] = {}  # by the delay's text: "5s"

    def load(self, state: State, ours: Collection[str], now: float) -> Load | None:
        """None where it is not known; `ours` are the names of our workers that take tasks."""
        if not state["queues"]["known"]:
            self._retries.clear()
            return None
        waited = state["waited"]
        return Load(
            ready=state["queues"]["ready"] or 0,
            due=self._due(state["queues"]["retry"], now),
            running=sum(len(row["running"]) + row["more"] for row in state["workers"]["rows"] if row["worker"] in ours),
            waited=waited[0] if waited and waited[1] <= FRESH_SECONDS else None,
            seconds=state["workers"]["took"],
        )

    def _due(self, counts: list[tuple[str, int]], now: float) -> int:
        """Tasks that come back while one that waits now may wait."""
        for name, count in counts:
            self._retries[name] = retries.counted(self._retries.get(name), float(name.removesuffix("s")), count, now)
        return sum(retries.due(waiting, now + self._wait) for waiting in self._retries.values())
