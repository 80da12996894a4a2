"""Who works on which task, and when: as it should be for a prefetch, and as it was in a real run. Knows no broker."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A task at a worker. Tasks are numbered from 1, workers from 0; seconds from the start of the first task."""

    task: int
    worker: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Schedule:
    """All bars of one batch, in the order of their starts."""

    workers: int
    bars: tuple[Bar, ...]

    @property
    def makespan(self) -> float:
        return max((bar.end for bar in self.bars), default=0.0)

    def lane(self, worker: int) -> list[Bar]:
        return [bar for bar in self.bars if bar.worker == worker]

    def idle(self, worker: int) -> float:
        """Seconds in which this worker did nothing, while others were not done."""
        return self.makespan - sum(bar.seconds for bar in self.lane(worker))

    @property
    def idleness(self) -> list[float]:
        return [self.idle(worker) for worker in range(self.workers)]

    @property
    def counts(self) -> list[int]:
        """Tasks of each worker."""
        return [len(self.lane(worker)) for worker in range(self.workers)]


def predicted(difficulties: Sequence[float], paces: Sequence[float], prefetch: int) -> Schedule:
    """What a prefetch makes of a batch that is published while all workers wait for it.

    `paces` are the seconds that each worker takes for a point of difficulty. The broker deals tasks out in turn, to
    all who hold less than `prefetch` (0: to all). From then on, whoever has done one gets the next.
    """
    count = len(paces)
    dealt = min(len(difficulties), prefetch * count) if prefetch else len(difficulties)
    free = [0.0] * count  # when each worker is done with what it holds
    ends: list[tuple[float, int]] = []  # of tasks, each of which lets its worker have another
    bars = []
    for index, difficulty in enumerate(difficulties):
        handed_out, worker = (0.0, index % count) if index < dealt else heapq.heappop(ends)
        start = max(handed_out, free[worker])
        free[worker] = start + difficulty * paces[worker]
        heapq.heappush(ends, (free[worker], worker))
        bars.append(Bar(index + 1, worker, start, free[worker]))
    return Schedule(count, tuple(sorted(bars, key=lambda bar: (bar.start, bar.task))))


def measured(events: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Schedule:
    """What workers of these names have done, by their own events; the ids of their tasks are numbers from 1."""
    started: dict[tuple[str, int], float] = {}
    bars = []
    for event in events:
        key, time = (event["worker"], event.get("id", 0)), datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "task_started":
            started[key] = time
        elif event["event"] == "task_completed":
            bars.append(Bar(key[1], names.index(key[0]), started[key], time))
    origin = min(started.values(), default=0.0)
    moved = (Bar(bar.task, bar.worker, bar.start - origin, bar.end - origin) for bar in bars)
    return Schedule(len(names), tuple(sorted(moved, key=lambda bar: (bar.start, bar.task))))


def list_scheduling(difficulties: Sequence[float], paces: Sequence[float]) -> float:
    """The makespan when each task in turn goes to whoever is free first, in seconds."""
    return predicted(difficulties, paces, prefetch=1).makespan


def nice_step(seconds: float, most: int) -> float:
    """A round number of seconds that divides an axis of so many seconds into `most` parts at most."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if seconds <= step * factor * most:
                return step * factor
        step *= 10


def name_of(prefetch: int) -> str:
    """What handing out tasks with a prefetch is called."""
    return {0: "round-robin", 1: "fair dispatch"}.get(prefetch, f"prefetch {prefetch}")
