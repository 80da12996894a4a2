"""A worker whose handler writes down what it runs, and obeys the name of the task:  handlers_copies.py NAME [flags]"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, Reject, Task


def obey(task: Task, attempt: Attempt) -> None:
    with Path("runs").open("a") as runs:
        runs.write(f"{task.id} {attempt.number} {time.time()}\n")
    time.sleep(task.difficulty)
    if task.task == "reject":
        raise Reject("never going to work")
    if task.task == "fail" or (task.task == "fail once" and attempt.number == 1):
        raise RuntimeError("no luck")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
