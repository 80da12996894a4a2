"""A worker with a handler for tests:  handlers.py NAME [flags of worker.py ...]"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, PutDown, Reject, Task


def cpu_bound(task: Task, attempt: Attempt) -> None:
    """Pure Python for `difficulty` seconds: never sleeps, never lets go of the interpreter by itself."""
    until = time.monotonic() + task.difficulty
    while time.monotonic() < until:
        sum(range(1000))


def fail(task: Task, attempt: Attempt) -> None:
    raise RuntimeError(f"no luck with {task.task}")


def fail_once(task: Task, attempt: Attempt) -> None:
    marker = Path(f"failed-{task.id}")
    if not marker.exists():
        marker.touch()
        raise RuntimeError("not at first")


def fail_unspeakably(task: Task, attempt: Attempt) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    if task.task == "long":
        raise RuntimeError("x" * 1_000_000)
    if task.task == "escapes":
        raise RuntimeError("\x1b[2J")
    raise Unspeakable if task.task == "unspeakable" else RuntimeError(os.fsdecode(b"\xff"))


def reject(task: Task, attempt: Attempt) -> None:
    raise Reject("never going to work")


def put_down(task: Task, attempt: Attempt) -> None:
    """Goes on until its worker stops; a short one puts down its work without a reason."""
    while task.task == "long" and not attempt.stopping:
        time.sleep(0.01)
    raise PutDown("half of it is done")


def leave(task: Task, attempt: Attempt) -> None:
    sys.exit("a handler that ends the program")


def kill_worker(task: Task, attempt: Attempt) -> None:
    """What a segmentation fault or the out-of-memory killer does."""
    if task.task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
