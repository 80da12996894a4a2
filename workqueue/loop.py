"""The loop of a connection's thread, which other threads hand calls to, and how they wait for what comes of them.

any thread ── submit(call) ──► calls ──► make_calls, on the loop's thread
     └── wait_for(future) ◄── settle(future, answer) ──┘
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pika.adapters.select_connection import IOLoop

from workqueue.errors import Stopped

CHECK_SECONDS = 0.1  # how often a blocked caller looks whether it was told to stop
SILENT_SECONDS = 10.0  # for which a broker may say nothing before that is told

T = TypeVar("T")
Call = Callable[[], Any]


def never() -> bool:
    return False


def wait_for(future: Future[T], interrupted: Callable[[], bool], on_silence: Callable[[], None] = lambda: None) -> T:
    """The result. Raises Stopped as soon as `interrupted` says so, and whatever the future holds. `on_silence` is
    called once, if that takes longer than SILENT_SECONDS."""
    silent_at = time.monotonic() + SILENT_SECONDS
    while True:
        try:
            return future.result(CHECK_SECONDS)
        except TimeoutError:
            if future.done():
                return future.result()
            if interrupted():
                future.cancel()
                raise Stopped from None
            if time.monotonic() > silent_at:
                silent_at = math.inf
                on_silence()


def settle(future: Future[Any], answer: Any, error: BaseException | None = None) -> None:
    with suppress(InvalidStateError):  # nobody waits any more
        if error:
            future.set_exception(error)
        else:
            future.set_result(answer)


class Loop(IOLoop):
    """pika's loop, which other threads wake once for many calls."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Call] = SimpleQueue()
        self._asleep = False
        super().__init__()

    def submit(self, call: Call) -> None:
        """From any thread, and from a signal handler."""
        self.calls.put(call)
        if self._asleep:
            self._asleep = False
            # not pika's add_callback_threadsafe: a signal may come while its lock is held, and its handler would wait
            with suppress(OSError, AttributeError):  # the loop has ended
                self._poller._w_interrupt.send(b"X")  # type: ignore[attr-defined]

    def _get_remaining_interval(self) -> float | None:
        self._asleep = True  # pika asks this right before it sleeps
        if self.calls.empty():
            return super()._get_remaining_interval()  # type: ignore[misc,no-any-return]
        self._asleep = False
        return 0

    def make_calls(self, patience: float) -> None:
        """Makes the calls of other threads; if there is none, those that come within `patience` seconds."""
        with suppress(Empty):
            call = self.calls.get(timeout=patience) if patience else self.calls.get_nowait()
            for _ in range(self.calls.qsize()):  # what comes meanwhile has to wait, so that the socket has its turn
                call()
                call = self.calls.get_nowait()
            call()
