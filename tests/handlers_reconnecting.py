"""Workers for tests of lost connections:  handlers_reconnecting.py NAME [flags of worker.py ...]

Each handler writes what it began and what it finished into a file of the current folder.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, Task


def _write(name: str, line: object) -> None:
    with Path(name).open("a") as file:
        file.write(f"{line}\n")


def record(task: Task, attempt: Attempt) -> None:
    """Takes `difficulty` seconds."""
    _write("begun", task.id)
    time.sleep(task.difficulty)
    _write("finished", task.id)


def fail(task: Task, attempt: Attempt) -> None:
    _write("begun", task.id)
    raise RuntimeError("no luck")


def busy(task: Task, attempt: Attempt) -> None:
    """Pure Python for `difficulty` seconds."""
    _write("begun", task.id)
    until = time.monotonic() + task.difficulty
    while time.monotonic() < until:
        sum(range(1000))


def count_resources(task: Task, attempt: Attempt) -> None:
    """Threads and file descriptors of this worker."""
    _write("resources", f"{threading.active_count()} {len(os.listdir('/proc/self/fd'))}")


def without_name_server(task: Task, attempt: Attempt) -> None:
    """Never called."""


if __name__ == "__main__":
    if sys.argv[1] == "without_name_server":
        import socket

        def never_answers(*arguments: object, **named: object) -> list[object]:
            time.sleep(3600)
            return []

        socket.getaddrinfo = never_answers  # type: ignore[assignment]
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
