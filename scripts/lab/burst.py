"""A burst of tasks, worked off by autoscale.py and by a fixed number of workers: how long they wait, and whether each
is done once.

    python scripts/lab/burst.py                  3,000 tasks of 0.1 s: a fixed 2, then 1 to 10, then 1 to 10 with kills

On the broker of RABBITMQ_URL, in queues of its own, which are deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from _environment import ROOT

from lab.waiting import until

LAB = Path(__file__).resolve().parent
WORK = ("--handlers", "burst_work")  # looked for in LAB


class Burst:
    """One burst on a queue of its own, and the program whose workers do it."""

    def __init__(self, command: Sequence[str], folder: Path, count: int, seconds: float, **settings: str) -> None:
        self.count = count
        self.queue = f"burst-{uuid.uuid4().hex[:8]}"
        self._done, self._out, self._file = (folder / f"{self.queue}.{end}" for end in ("done", "out", "jsonl"))
        self._done.touch()
        effects = folder / f"{self.queue}.effects"
        effects.mkdir()
        self._environment = {**os.environ, **settings, "TASK_QUEUE": self.queue, "LOG_FORMAT": "json"}
        self._environment |= {"CONCURRENCY": "1", "BURST_SECONDS": str(seconds), "BURST_FILE": str(self._done)}
        self._environment["BURST_EFFECTS"] = str(effects)
        self._environment.pop("PREFETCH_COUNT", None)
        with self._out.open("wb") as out:
            self.program = subprocess.Popen(
                command, cwd=LAB, env=self._environment, stdin=subprocess.DEVNULL, stdout=out
            )
        until(lambda: self.events("worker_ready"), "the first worker", 30)
        tasks = ({"id": n, "task": "burst", "difficulty": 0} for n in range(1, count + 1))
        self._file.write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
        self.sent_at = time.time()
        self._call("sender.py", "--file", str(self._file), "--quiet")

    def _call(self, program: str, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / program), *arguments]
        subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL)

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = self._out.read_text().splitlines(keepends=True)
        return [found for line in lines if line.endswith("\n") and (found := json.loads(line))["event"] == event]

    def runs(self) -> list[tuple[int, float, bool]]:
        """That came to their end: the task's number, when it was started, whether it was not yet done."""
        rows = (line.split() for line in self._done.read_text().splitlines())
        return [(int(number), float(started), first == "1") for number, started, first in rows]

    @property
    def left(self) -> int:
        return self.count - len({number for number, *_ in self.runs()})

    @property
    def workers(self) -> int:
        """That there are to be now, of autoscale.py."""
        return int(self.events("autoscale_decision")[-1]["workers"])

    @property
    def most_workers(self) -> int:
        return max((event["workers"] for event in self.events("autoscale_decision")), default=2)

    @property
    def waits(self) -> list[float]:
        """From being sent to being started, in seconds; shortest first."""
        return sorted(started - self.sent_at for _, started, _ in self.runs())

    @property
    def run_again(self) -> int:
        """Runs that found their task done: its worker had been killed before it could acknowledge that."""
        return len(self.runs()) - len({number for number, *_ in self.runs()})

    @property
    def twice(self) -> int:
        """Tasks that had their effect more than once."""
        return sum(count > 1 for count in Counter(number for number, _, first in self.runs() if first).values())

    def children(self) -> list[int]:
        """The processes of its workers."""
        command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = (line.split(maxsplit=2) for line in listed.splitlines())
        return [int(pid) for pid, ppid, args in rows if int(ppid) == self.program.pid and "leashed.py" in args]

    def kill_one(self) -> None:
        if children := self.children():
            with suppress(ProcessLookupError):
                os.kill(random.choice(children), signal.SIGKILL)

    def work_off(self, kill_every: float = 0.0, within: float = 600.0) -> int:
        """Until all tasks are done. Returns how many workers were killed meanwhile."""
        killed, kill_at, end = 0, time.monotonic() + kill_every, time.monotonic() + within
        while self.left and time.monotonic() < end:
            if kill_every and time.monotonic() > kill_at:
                kill_at += kill_every
                self.kill_one()
                killed += 1
            time.sleep(0.1)
        return killed

    def stop(self) -> int:
        """The exit code of the program."""
        self.program.terminate()
        code = self.program.wait()
        self._call("scripts/drop_queues.py")
        return code

    def row(self) -> str:
        waits = self.waits
        middle, last = waits[len(waits) // 2], waits[-1]
        return (
            f"{self.most_workers} workers; {self.left} lost, {self.twice} done twice, {self.run_again} run again; "
            f"waited {sum(waits) / len(waits):.1f} s on average, {middle:.1f} s in the middle, {last:.1f} s at most"
        )


def scaled(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/autoscale.py"), *flags, "--", *WORK]


def fixed(count: int) -> list[str]:
    return [str(ROOT / "scripts/workers.sh"), str(count), "--quiet", *WORK]


def main() -> int:
    parser = argparse.ArgumentParser(prog="burst.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--tasks", metavar="N", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--seconds", metavar="S", type=float, default=0.1, help="of a task (default: %(default)s)")
    parser.add_argument("--kill-every", metavar="S", type=float, default=2.0, help="default: %(default)s")
    arguments = parser.parse_args()
    well = True
    with tempfile.TemporaryDirectory() as folder:
        for title, command, kill_every in (
            ("a fixed 2", fixed(2), 0.0),
            ("1 to 10", scaled(), 0.0),
            ("1 to 10, killed", scaled(), arguments.kill_every),
        ):
            burst = Burst(command, Path(folder), arguments.tasks, arguments.seconds)
            try:
                print(f"{title}: {measured(burst, kill_every)}", flush=True)
            finally:
                well &= burst.stop() == 0 and burst.left == 0
    return 0 if well else 1


def measured(burst: Burst, kill_every: float) -> str:
    killed = burst.work_off(kill_every)
    done_at = time.time()
    words = f"{burst.row()}; {killed} killed"
    if not burst.events("autoscale_decision"):
        return words
    until(lambda: burst.workers == 1, "one worker", 60)
    return f"{words}; back to 1 after {time.time() - done_at:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
