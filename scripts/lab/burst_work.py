"""The handler of the workers of burst.py: a moment of work, then a line in the file of what is done."""

from __future__ import annotations

import os
import time

from tasks import Attempt, Task, handles


@handles("burst")
def work(task: Task, attempt: Attempt) -> None:
    started = time.time()
    time.sleep(float(os.environ["BURST_SECONDS"]))
    with open(os.environ["BURST_FILE"], "ab", buffering=0) as file:
        file.write(f"{task.id} {started} {attempt.redelivered:d}\n".encode())
