"""A worker with a handler for tests of events:  handlers_events.py NAME [flags of worker.py ...]"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import worker
from tasks import Attempt, Task


def flood(task: Task, attempt: Attempt) -> None:
    """Tells of its progress as often as it can, for `difficulty` seconds; then writes down how often that was."""
    until, count = time.monotonic() + task.difficulty, 0
    while time.monotonic() < until:
        count += 1
        attempt.progress(count, 10**9)
    Path(f"flood-{task.id}").write_text(str(count))


def odd(task: Task, attempt: Attempt) -> None:
    """Progress that JSON has no words for."""
    for done in (float("nan"), 1 + 2j, 10**5000, float("inf")):
        attempt.progress(done, 1)  # type: ignore[arg-type]
    time.sleep(task.difficulty)


def fork(task: Task, attempt: Attempt) -> None:
    """Children that tell of the progress, while other tasks do."""
    for number in range(20):
        child = multiprocessing.get_context("fork").Process(target=attempt.progress, args=(number, 20))
        child.start()
        attempt.progress(number, 20)
        child.join(10)
        if child.exitcode != 0:
            child.kill()
            os.write(2, b"a child stood still\n")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
