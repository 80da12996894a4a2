"""The runs that are recorded, each of them with what is done to its workers while they work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Settings
from replay.stage import Stage
from tasks import Task, generate

COMMAND = "scripts/pictures.sh"
TAKEOVER = (4, 4, 3, 2, 1, 1)  # difficulties
JOINING, JOINED = 40, 10  # tasks, and workers that join the first
WATCHED = 34  # tasks
REJECTED, FAILING = 4, 7  # the numbers of two of them


def takeover(settings: Settings, path: Path) -> None:
    """Three workers; one is killed in the middle of a task."""
    with Stage(settings, path, COMMAND) as stage:
        stage.ready("Anna", "Bert", "Cleo")
        stage.send(Task(number, f"Task {number}", each) for number, each in enumerate(TAKEOVER, start=1))
        stage.wait("task_started", id=2)
        time.sleep(1.5 * settings.seconds_per_difficulty)
        stage.kill("Bert")
        stage.wait("task_completed", len(TAKEOVER))


def joining(settings: Settings, path: Path) -> None:
    """One worker and a full queue; ten more come."""
    with Stage(settings, path, COMMAND) as stage:
        stage.ready("Worker-1")
        stage.send(generate(JOINING, "1", 3))
        stage.wait("task_completed")
        stage.start(*(f"Worker-{number}" for number in range(2, JOINED + 2)))
        stage.wait("task_completed", JOINING)


def watched(settings: Settings, path: Path, look: Callable[[dict[str, Any]], None]) -> None:
    """A task that fails once, one that is given up, and a worker that is killed; `look` sees the end of it."""
    with Stage(settings, path, COMMAND) as stage:
        stage.ready("Anna", "Bert", "Cleo", "Dora")
        stage.send(with_troubles(list(generate(WATCHED, "3"))))
        stage.wait("task_dead")
        time.sleep(8.0)
        stage.wait("task_started", 4, worker="Bert")
        time.sleep(0.5)
        stage.kill("Bert")
        time.sleep(4.3)
        look(stage.state())


def with_troubles(tasks: list[Task]) -> list[Task]:
    payloads: dict[int, dict[str, Any]] = {REJECTED: {"rejects": True}, FAILING: {"fails": 1}}
    return [replace(task, payload=payloads.get(number)) for number, task in enumerate(tasks, start=1)]
