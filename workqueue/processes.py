"""Signals, child processes of handlers, and the end of a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from workqueue.connection import Connection, making_sockets, open_connections
from workqueue.errors import BrokerError
from workqueue.events import in_words
from workqueue.streams import OutputClosed, hurry, note

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEFTOVERS_SECONDS = 2.0  # how long an ending process waits for what handlers have left running

ONE_SIGNAL_SECONDS = 0.01  # timeout(1), say, signals a process and then its group, and means to signal once

OnSignal = Callable[[int, FrameType | None], None]


def on_stop_signal(handle: OnSignal) -> None:
    """Has SIGTERM and SIGINT handled, in this process and not in those that handlers fork."""
    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    os.register_at_fork(before=_before_fork, after_in_parent=_go_on, after_in_child=_be_a_plain_child)


_blocked_before_fork: set[int] = set()  # guarded by making_sockets, as of which only one thread forks


def _before_fork() -> None:
    """What is sent to a child as soon as there is one waits until it has the handlers of a plain process."""
    making_sockets.acquire()
    _blocked_before_fork.update(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))


def _go_on() -> None:
    blocked = _blocked_before_fork.copy()
    _blocked_before_fork.clear()
    making_sockets.release()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _be_a_plain_child() -> None:
    """What a handler forks ends at a signal like any other process, and does not hold the link to the broker open."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for connection in _connections():
        connection.forget_socket()
    _go_on()  # and ends here, if it was sent one already: a KeyboardInterrupt would be ignored in here
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_another(told_at: float) -> bool:
    """Whether a signal of now is another one than that of `told_at` (time.monotonic())."""
    return time.monotonic() - told_at > ONE_SIGNAL_SECONDS


def end_if_another(told_at: float) -> None:
    if is_another(told_at):
        os._exit(1)


def end_at_once(line: str) -> None:
    """Ends the process with exit code 1. The broker takes back what it had delivered."""
    for connection in _connections():
        connection.abort()
    note(line)
    os._exit(1)


def run_to_the_end(run: Callable[[], int], say_why: Callable[[str], None]) -> int:
    """Runs a worker. What ends it becomes its last line, and its exit code, which is returned.

    Python waits for threads and child processes that handlers have left running. A worker does not wait for long.
    """
    exit_code = 1
    try:
        exit_code = run()
    except BrokerError as error:
        say_why(str(error))
        exit_code = error.exit_code
    except OutputClosed as error:
        say_why(f"{error}: stopped, and what was running is given back")
    except BaseException as error:  # SystemExit too, if it is what a thread has died of
        say_why(f"{in_words(error)}stopped, and what was running is given back")

    def leave() -> None:
        time.sleep(LEFTOVERS_SECONDS)
        hurry()
        note("what a handler has left running does not end: left without it")
        os._exit(exit_code)

    threading.Thread(target=leave, daemon=True).start()
    return exit_code


def _connections() -> list[Connection]:
    while True:
        with suppress(RuntimeError):  # another thread opens one just now
            return list(open_connections)
