"""The health file: how a supervisor sees that a worker goes on, whether it has a broker, and how long a task has run.

The main thread writes it, once a second at most and never for a task: a worker that is stuck has an old file.
deploy/health.py reads it. Moments are of time.monotonic(), which all processes of a machine share and nobody sets.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable

from workqueue.connection import Connection
from workqueue.hands import Hands

INTERVAL_SECONDS = 1.0


class Health:
    def __init__(self, file: str, worker: str, hands: Hands, note: Callable[[str], None]) -> None:
        """`note` gets a line for people when the file cannot be written; the worker goes on."""
        self.connection: Connection | None = None  # the last one that tasks could be taken from
        self._file = file
        self._worker = worker
        self._hands = hands
        self._note = note
        self._next = 0.0 if file else math.inf
        self._was_connected = False
        self._since = time.monotonic()  # for how long it has had a broker, or none
        self._fails = False

    def beat(self) -> None:
        """The caller goes on. It counts for the main thread only: others go on also when that is stuck."""
        now = time.monotonic()
        if now < self._next or threading.current_thread() is not threading.main_thread():
            return
        self._next = now + INTERVAL_SECONDS
        connected = self.connection is not None and self.connection.is_open
        if connected != self._was_connected:
            self._was_connected, self._since = connected, now
        running = self._hands.at_work()
        task_since = running[0].begun_at if running else None
        state = {"worker": self._worker, "at": now, "connected": connected, "since": self._since}
        self._write(json.dumps({**state, "task_since": task_since}))

    def beating(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """`asked`, for who calls it again and again while it waits for the broker."""

        def ask() -> bool:
            self.beat()
            return asked()

        return ask

    def _write(self, text: str) -> None:
        beside = f"{self._file}.{os.getpid()}"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, self._file)  # whoever reads it sees all of it
            self._fails = False
        except OSError as error:
            if not self._fails:
                self._fails = True
                self._note(f"cannot write HEALTH_FILE {self._file!r}: {error.strerror}; works on without")
