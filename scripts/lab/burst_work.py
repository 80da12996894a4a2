"""The handler of the workers of burst.py: a moment of work, its effect, and a line in the file of what was run.

The effect is a file that can be made only once: who was killed between the effect and the acknowledgement has the task
run again, and then finds it done.
"""

from __future__ import annotations

import os
import time

from tasks import Attempt, Task, handles


@handles("burst")
def work(task: Task, attempt: Attempt) -> None:
    started = time.time()
    time.sleep(float(os.environ["BURST_SECONDS"]))
    effect = os.path.join(os.environ["BURST_EFFECTS"], str(task.id))
    try:
        os.close(os.open(effect, os.O_CREAT | os.O_EXCL))
        is_first = True
    except FileExistsError:
        is_first = False
    with open(os.environ["BURST_FILE"], "ab", buffering=0) as file:
        file.write(f"{task.id} {started} {is_first:d}\n".encode())
