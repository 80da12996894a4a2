"""A worker whose handler keeps its own record of what ran:  handlers_counting.py NAME [flags of worker.py ...]"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, Task


def record(task: Task, attempt: Attempt) -> None:
    """A line when it begins and one when it ends; in between `difficulty` seconds. "kill" ends the worker."""
    _note(f"begun {task.id}")
    if task.task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.difficulty)
    _note(f"done {task.id}")


def _note(line: str) -> None:
    with Path("record").open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
