"""worker.py with the handler that all contestants have:  ours.py [flags of worker.py ...]"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from recorder import Recorder

import worker
from tasks import Attempt, Task

record = Recorder()


def handle(task: Task, attempt: Attempt) -> None:
    record(task.payload["sent"] if task.payload else 0.0)


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], handle=handle))
