"""A worker with a handler for tests:  handlers_queues.py NAME [flags of worker.py ...]"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, Reject, Task


def record(task: Task, attempt: Attempt) -> None:
    """Writes down that it ran, and how that is to end is the task's name."""
    with Path("ran").open("a") as ran:
        ran.write(f"{task.id}\n")
    time.sleep(task.difficulty)
    if task.task == "fail":
        raise RuntimeError("no luck")
    if task.task == "reject":
        raise Reject("never going to work")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
