"""What a recording tells: who worked on which task, and when; and what happened to workers meanwhile.

All times are seconds since the first task was started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from replay.stage import KILLED

Event = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A task at a worker, from its start to its end there. `taken`: since when the worker held it."""

    task: int
    worker: int
    taken: float
    start: float
    end: float
    done: bool  # or lost, with its worker
    again: bool  # it had been handed out before


@dataclass
class Worker:
    name: str
    since: float = 0.0  # ready
    killed: float | None = None
    returned: float | None = None  # when its task was back in the queue


@dataclass
class Run:
    """One batch, with one prefetch."""

    prefetch: int
    tasks: dict[int, float]  # seconds that each task takes, by its number
    workers: list[Worker]
    pieces: list[Piece] = field(default_factory=list)

    @property
    def makespan(self) -> float:
        return max(piece.end for piece in self.pieces)

    @property
    def work(self) -> float:
        """Seconds that one worker would need for all of it."""
        return sum(self.tasks.values())

    def lane(self, worker: int) -> list[Piece]:
        return [piece for piece in self.pieces if piece.worker == worker]

    def busy_until(self, worker: int) -> float:
        return max((piece.end for piece in self.lane(worker)), default=self.workers[worker].since)

    def held(self, worker: int, at: float) -> list[int]:
        """The numbers of the tasks that a worker had in its hands and had not done."""
        return [piece.task for piece in self.lane(worker) if piece.taken <= at < piece.end]

    def queued(self, at: float) -> list[int]:
        """Those that nobody had."""
        taken = {piece.task for piece in self.pieces if piece.taken <= at and (piece.done or at < self.back(piece))}
        return [task for task in self.tasks if task not in taken]

    def back(self, piece: Piece) -> float:
        """When a task that was lost with its worker was in the queue again."""
        returned = self.workers[piece.worker].returned
        return piece.end if returned is None else returned


@dataclass(frozen=True)
class Recording:
    broker: str
    date: datetime
    command: str
    runs: list[Run]


def read(path: Path) -> Recording:
    """A recording of compare.py (`--json`), or of the live view (`--record`)."""
    header, *events = [json.loads(line) for line in path.read_text().splitlines()]
    date = datetime.fromisoformat(header.get("date") or header["time"])
    if header["event"] == "comparison" if "event" in header else False:
        queues = {run["queue"]: run["prefetch"] for run in header["runs"]}
    else:
        queues = {header["queue"]: 1}
    runs = [run_of(events_on(events, queue), prefetch) for queue, prefetch in queues.items()]
    return Recording(header["broker"], date, header["command"], runs)


def events_on(events: Iterable[Event], queue: str) -> list[Event]:
    """The events of workers of this queue, and those that name no worker's run, in the order of their times."""
    events = list(events)
    runs = {event["run"] for event in events if event["event"] == "worker_ready" and event["queue"] == queue}
    return sorted((event for event in events if event.get("run", "") in {*runs, ""}), key=moment)


def moment(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def run_of(events: list[Event], prefetch: int) -> Run:
    starts = [event for event in events if event["event"] == "task_started"]
    origin = moment(starts[0])
    ready = {event["worker"]: moment(event) - origin for event in events if event["event"] == "worker_ready"}
    names = sorted(ready, key=by_number)
    workers = [Worker(name, max(0.0, ready[name])) for name in names]
    tasks = {event["id"]: event["difficulty"] for event in starts}
    run = Run(prefetch, dict(sorted(tasks.items())), workers)
    note_kills(run, events, origin)
    ends = {
        (event["run"], event["delivery"]): moment(event) - origin
        for event in events
        if event["event"] == "task_completed"
    }
    for event in starts:
        worker = names.index(event["worker"])
        start = moment(event) - origin
        end = ends.get((event["run"], event["delivery"]))
        gone = workers[worker].killed
        if end is None and gone is None:
            raise ValueError(f"{event['worker']} has not done task {event['id']}")
        # without a limit all tasks are handed out as they are sent
        taken = start if prefetch else 0.0
        stop = end if end is not None else gone or start
        ends.pop((event["run"], event["delivery"]), None)
        run.pieces.append(Piece(event["id"], worker, taken, start, stop, end is not None, event["redelivered"]))
    if ends:
        raise ValueError(f"{len(ends)} tasks are done that nobody has started")
    return run


def note_kills(run: Run, events: list[Event], origin: float) -> None:
    """The first count after a kill that has one more task ready says when the task was back."""
    ready = None
    waiting: Worker | None = None
    for event in events:
        if event["event"] == KILLED:
            waiting = next(worker for worker in run.workers if worker.name == event["worker"])
            waiting.killed = moment(event) - origin
        elif event["event"] == "queue_counted":
            if waiting and ready is not None and event["ready"] > ready:
                waiting.returned, waiting = moment(event) - origin, None
            ready = event["ready"]


def by_number(name: str) -> tuple[str, int]:
    """Worker-2 comes before Worker-10."""
    number = re.search("[0-9]+$", name)
    return (name[: number.start()], int(number[0])) if number else (name, 0)
