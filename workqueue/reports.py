"""What a worker has to say of its tasks, and who says it.

A work thread prints what it has done itself. What is settled on a thread that must not wait for whoever reads the
output (a copy was confirmed, a finished task came again, a line about copies) is printed by the main thread, in
`attend`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock

from workqueue.deliveries import Delivery
from workqueue.events import WorkerOutput


class Reports:
    def __init__(self, output: WorkerOutput) -> None:
        self.completed = 0
        self.on_attend: Callable[[], None] = lambda: None
        self._output = output
        self._guard = Lock()
        self._waiting: SimpleQueue[Delivery | str | None] = SimpleQueue()

    def now(self, delivery: Delivery) -> None:
        """Says how it ended. Raises OutputClosed."""
        if delivery.outcome is None:
            return
        delivery.reported = True
        event, details = delivery.outcome.event()
        if event == "task_completed":
            with self._guard:
                self.completed += 1
        self._output.event(event, delivery, **details)
        delivery.task = None  # its payload may be large, and the delivery is remembered for a while

    def later(self, delivery: Delivery) -> None:
        self._waiting.put(delivery)

    def note(self, line: str) -> None:
        """For people who look after the worker, from a thread that must not wait."""
        self._waiting.put(line)

    def wake(self) -> None:
        """Has `attend` return. From any thread, and from a signal handler."""
        self._waiting.put(None)

    def attend(self, seconds: float) -> None:
        """Says what others have to say; waits for it, or for `wake`, so many seconds. Raises OutputClosed."""
        self.on_attend()
        with suppress(Empty):
            what = self._waiting.get(timeout=seconds)
            while True:
                if isinstance(what, str):
                    self._output.note(what)
                elif what:
                    self.now(what)
                what = self._waiting.get_nowait()
