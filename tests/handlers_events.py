"""A worker with a handler for tests of events:  handlers_events.py NAME [flags of worker.py ...]"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

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


class Odd(dict[str, int]):
    def items(self) -> NoReturn:
        raise LookupError("nothing can be had of it")


def odd(task: Task, attempt: Attempt) -> None:
    """Progress that JSON has no words for, each told by itself, for `difficulty` seconds."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values = (deep, float("nan"), 1 + 2j, 10**5000, Odd(x=1), float("inf"))
    for done in values:
        attempt.progress(done, 1)  # type: ignore[arg-type]
        time.sleep(task.difficulty / len(values))


def fork(task: Task, attempt: Attempt) -> None:
    """Children that tell of the progress, while other tasks do."""
    for number in range(50):
        child = os.fork()
        attempt.progress(number, 50)
        if not child:
            os._exit(0)
        give_up_at = time.monotonic() + 10
        while not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.001)
            if time.monotonic() > give_up_at:
                os.kill(child, signal.SIGKILL)
                os.write(2, b"a child stood still\n")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
