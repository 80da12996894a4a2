"""A worker that drains by itself when whoever has started it is gone, in whatever way.

leashed.py FD [flags of worker.py ...]

FD is the end of a pipe that nothing is ever written to. Its other end is held by the one who owns this worker, and by
nobody else: when that process ends, also by `kill -9`, the pipe does, too. No process is asked for by its number, which
may be another's by then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)  # as for worker.py itself

import worker


class LeashedWorker(worker.Worker):
    leash = -1

    def run(self) -> int:
        threading.Thread(target=self.drain_when_nobody_owns_it, name="leash", daemon=True).start()
        return super().run()

    def drain_when_nobody_owns_it(self) -> None:
        os.read(self.leash, 1)
        if not self.told_at:  # a second signal would end it in mid-task
            self.output.note("whoever has started this worker is gone")
            self.on_signal(signal.SIGTERM, None)


def main() -> int:
    LeashedWorker.leash = int(sys.argv[1])
    os.set_inheritable(LeashedWorker.leash, False)
    setattr(worker, "Worker", LeashedWorker)  # noqa: B010  # a type, to mypy
    return worker.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
