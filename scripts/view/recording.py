"""Runs in a file, and from a file: a line that says what it is, then one event a line, as workers publish them.

Between them stands what the queues held, as `queue_counted`: events alone do not tell it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO

from view.events import COUNTED, Event, moment, one, text
from view.facts import Queues
from view.model import Model

FORMAT = 1
TICK_SECONDS = 0.25
MOST_SKIPPED = 3600.0  # seconds without an event that are waited for; clocks of workers may be set
APART_SECONDS = 2.0  # a worker's clock may be so far from ours; what is further is taken as of the last count


class Unusable(Exception):
    """A recording that cannot be written or read; the message is one line for people."""


class Recorder:
    def __init__(self, path: str, queue: str, command: str) -> None:
        """Raises Unusable."""
        self._path = path
        self._queue = queue
        self._command = command
        self._begun = False
        try:
            self._file: BinaryIO = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from None

    def begin(self, broker: str) -> None:
        """Once it is known what broker it is."""
        if not self._begun:
            self._begun = True
            header = {"recording": FORMAT, "broker": broker, "date": now(), "queue": self._queue}
            self._line({**header, "command": self._command})

    def count(self, queues: Queues) -> None:
        self._line(
            {
                "event": COUNTED,
                "time": now(),
                "exists": queues.exists,
                "ready": queues.ready,
                "consumers": queues.consumers,
                "dead": queues.dead,
                "retry": queues.retry,
            }
        )

    def write(self, body: bytes) -> None:
        """The lines of a message, as they came; what is no event is left out."""
        for line in body.splitlines():
            if one(line) is not None:
                self._write(line + b"\n")

    def flush(self) -> None:
        with self._trouble():
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _line(self, event: Event) -> None:
        self._write(json.dumps(event, ensure_ascii=False).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        with self._trouble():
            self._file.write(data)

    def _trouble(self) -> _Trouble:
        return _Trouble(self._path)


class _Trouble:
    """Turns an error of the file into one line."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise Unusable(f"{self._path}: {error.strerror}") from None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Replay:
    """The source that reads a recording, at `speed` times its pace; or the JSON lines that a worker has printed."""

    def __init__(self, path: str, speed: float) -> None:
        """Raises Unusable."""
        self._path = path
        self._speed = speed
        self.header: Event = {}
        self.first = self._look()  # the time of its first event, in seconds since 1970
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._clock = 0.0  # seconds of the recording, where it has ended or not begun
        self._begun_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)
        self.model: Model

    def _look(self) -> float:
        try:
            with open(self._path, "rb") as file:
                with suppress(ValueError, RecursionError):
                    header = json.loads(file.readline(2**20))
                    self.header = header if isinstance(header, dict) and "recording" in header else {}
                if self.header and self.header["recording"] != FORMAT:
                    raise Unusable(f"{self._path}: a recording of another format ({text(self.header, 'recording')})")
                file.seek(0)
                for event in events_of(file):
                    if (at := moment(event)) is not None:
                        return at
        except OSError as error:
            raise Unusable(f"{self._path}: {error.strerror}") from None
        raise Unusable(f"{self._path}: no recording: there is no event in it")

    def now(self) -> float:
        """Seconds since its first event."""
        if self._begun_at is None or self.ended.is_set():
            return self._clock
        return (time.monotonic() - self._begun_at) * self._speed

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.ident:
            self._thread.join(2.0)

    def run_through(self) -> None:
        """To its end, at once."""
        with open(self._path, "rb") as file:
            for event, at in paced(events_of(file), self.first):
                self.model.tick(at)
                self._take(event, at)
        self._end()

    def _run(self) -> None:
        self._begun_at = time.monotonic()
        try:
            with open(self._path, "rb") as file:
                for event, at in paced(events_of(file), self.first):
                    while at > self.now() and not self.stopping.is_set():
                        self.model.tick(self.now())
                        self.stopping.wait(min(TICK_SECONDS, (at - self.now()) / self._speed))
                    if self.stopping.is_set():
                        break
                    self._take(event, at)
            self._end()
        except BaseException as error:
            self.failure = error
        finally:
            self.ended.set()

    def _take(self, event: Event, at: float) -> None:
        if self.model.connected_at is None:
            self.model.connected(at, text(self.header, "broker") or "an unnamed broker")
        self._clock = max(self._clock, at)
        self.model.receive([event], 0, at)

    def _end(self) -> None:
        self.model.tick(self._clock)
        self.ended.set()


def events_of(file: BinaryIO) -> Iterator[Event]:
    while line := file.readline(2**20):
        event = one(line)
        if event is not None:
            yield event


def paced(events: Iterator[Event], first: float) -> Iterator[tuple[Event, float]]:
    """Each event with when it came, in seconds since the first, as far as that is known.

    The lines are in the order in which they came, but the times in them are of several machines. Counts of the queues
    have the time of the machine that recorded.
    """
    at = counted = 0.0
    has_counts = False
    for event in events:
        time_of = moment(event)
        if time_of is not None:
            told = time_of - first
            if event["event"] == COUNTED:
                has_counts, counted = True, max(counted, told)
                at = max(at, told)
            elif not has_counts or counted - APART_SECONDS <= told <= counted + APART_SECONDS:
                at = max(at, told if has_counts else min(told, at + MOST_SKIPPED))
        yield event, at
