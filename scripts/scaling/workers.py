"""Real workers, as children of this process: started, drained, and missed when they are gone.

Each is on a leash: a pipe whose other end only this process holds. However this process ends, they drain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEASHED = Path(__file__).with_name("leashed.py")
WELL_SECONDS = 3.0  # who lives for longer, has come up


@dataclass
class Worker:
    name: str
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    heard: bool = False  # it has told that it is there
    draining: bool = False

    @property
    def came_up(self) -> bool:
        return self.heard or time.monotonic() - self.started_at > WELL_SECONDS


@dataclass(frozen=True)
class Ended:
    """A worker that has ended; `told`: to drain."""

    name: str
    code: int
    told: bool
    came_up: bool

    @property
    def drained(self) -> bool:
        """Told to, and with nothing in hand: also one that was not yet up enough to hear the signal."""
        return self.told and (self.code == 0 or (self.code == -signal.SIGTERM and not self.came_up))

    @property
    def how(self) -> str:
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Workers:
    def __init__(self, flags: Sequence[str]) -> None:
        """`flags` of worker.py, for each of them."""
        self._flags = flags
        self._all: list[Worker] = []  # in the order of their starts
        self._series = uuid.uuid4().hex[:6]
        self._started = 0
        self._leash, self._our_end = os.pipe()  # the children inherit one end

    @property
    def active(self) -> list[str]:
        """The names of those that take tasks, or will."""
        return [worker.name for worker in self._all if not worker.draining]

    @property
    def alive(self) -> int:
        """With those that drain."""
        return len(self._all)

    def heard_of(self, names: Collection[str]) -> None:
        for worker in self._all:
            worker.heard |= worker.name in names

    def start(self, count: int) -> list[str]:
        return [self._start() for _ in range(count)]

    def _start(self) -> str:
        self._started += 1
        name = f"Worker-{self._series}-{self._started}"
        command = [sys.executable, str(LEASHED), str(self._leash), *self._flags, "--id", name]
        # a group of its own: a Ctrl-C is ours, and we drain the workers
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[self._leash], process_group=0)
        self._all.append(Worker(name, process))
        return name

    def drain(self, count: int, busy: Collection[str]) -> list[str]:
        """Tells so many to finish what runs and end: those that have nothing to do first, of them the newest."""
        active = [worker for worker in reversed(self._all) if not worker.draining]
        active.sort(key=lambda worker: worker.name in busy)
        for worker in active[:count]:
            self._drain(worker)
        return [worker.name for worker in active[:count]]

    def drain_all(self) -> None:
        for worker in self._all:
            if not worker.draining:
                self._drain(worker)

    def _drain(self, worker: Worker) -> None:
        """Once: a second signal would end it in mid-task."""
        worker.draining = True
        worker.process.send_signal(signal.SIGTERM)

    def end_at_once(self) -> None:
        """Those that drain already: a second signal has them give back what runs."""
        for worker in self._all:
            worker.process.send_signal(signal.SIGTERM)

    def ended(self) -> list[Ended]:
        """Those that have ended since the last time."""
        gone = [worker for worker in self._all if worker.process.poll() is not None]
        for worker in gone:
            self._all.remove(worker)
        return [Ended(w.name, w.process.returncode, w.draining, w.came_up) for w in gone]

    def close(self) -> None:
        """Lets go of the leash."""
        os.close(self._leash)
        os.close(self._our_end)
