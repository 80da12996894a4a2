"""A task in the hands of a worker, and the ways in which an attempt at it can end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b
from typing import Any
from uuid import UUID

from pika import BasicProperties

from config import Settings
from tasks import Attempt, Task
from workqueue.connection import Channel
from workqueue.messages import Message, copied, count_of
from workqueue.streams import MOST_SHOWN

SENT_AT = "timestamp_in_ms"  # the header; a plugin of RabbitMQ's sets it, too
MOST_WORDS = 1000  # characters of an error that are kept


class DeliveryLimit(Exception):
    """The task was begun too often without being settled: it may be what ends its workers."""


@dataclass(frozen=True)
class Problem:
    """What an error was, in words. The error itself would keep alive all that its handler had in hand."""

    words: str
    kind: str

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """In words that can be encoded, whatever was raised."""
        try:
            words = str(error)[:MOST_WORDS].encode(errors="backslashreplace").decode()
        except BaseException:
            words = "an error that cannot be put into words"
        return cls(words, type(error).__name__)


@dataclass(frozen=True)
class Done:
    """The handler has returned."""

    seconds: float

    def event(self) -> tuple[str, dict[str, Any]]:
        return "task_completed", {"seconds": round(self.seconds, 6)}


@dataclass(frozen=True)
class Retry:
    """The handler has failed, and the task gets another attempt."""

    problem: Problem
    delay_seconds: float
    queue: str

    @classmethod
    def of(cls, error: BaseException, settings: Settings, attempt: int) -> Retry:
        delay = settings.retry_delays[attempt - 1]
        return cls(Problem.of(error), delay, settings.retry_queue(delay))

    def copy(self, delivery: Delivery, worker: str) -> Message:
        """Raises DoesNotFit."""
        return delivery.copied({"x-attempts": delivery.attempt})

    def event(self) -> tuple[str, dict[str, Any]]:
        about = {"error": self.problem.words, "error_type": self.problem.kind}
        return "task_retried", {**about, "delay_seconds": self.delay_seconds}


@dataclass(frozen=True)
class Dead:
    """No further attempt can help."""

    problem: Problem
    queue: str

    @classmethod
    def of(cls, error: BaseException, settings: Settings) -> Dead:
        return cls(Problem.of(error), settings.dead_queue)

    def copy(self, delivery: Delivery, worker: str) -> Message:
        """Says why, who, when, and after how many attempts. Raises DoesNotFit."""
        headers = {
            "x-error": self.problem.words,
            "x-error-type": self.problem.kind,
            "x-worker": worker,
            "x-failed-at": datetime.now(UTC).isoformat(timespec="seconds"),
            "x-attempts": delivery.attempt,
        }
        return delivery.copied(headers)

    def event(self) -> tuple[str, dict[str, Any]]:
        return "task_dead", {"error": self.problem.words, "error_type": self.problem.kind, "queue": self.queue}


@dataclass(frozen=True)
class GivenBack:
    """The handler has put it down half-way, since the worker stops: it is delivered again, and this was no attempt."""

    problem: Problem


Settled = Done | Retry | Dead
Outcome = Settled | GivenBack


About = tuple[int, int | str | None, str | None, float | None, str | None, int, bool]
"""What every event of a task carries: the values of ABOUT."""
ABOUT = ("delivery", "id", "task", "difficulty", "message_id", "attempt", "redelivered")


@dataclass(eq=False)
class Delivery:
    """One task in hand. `channel` and `tag` say what to acknowledge; both are new when the task comes again."""

    channel: Channel
    tag: int
    redelivered: bool
    properties: BasicProperties
    body: bytes
    place: int = 0  # the consumer, by number, whose prefetch it counts for
    number: int = 0  # 1, 2, ... of all that this worker was given
    suspect: bool = False  # it may have ended the worker that had it before: see counts.py
    task: Task | None = None
    begun_at: float = 0.0  # when its handler was called
    progress: tuple[float, float] | None = None  # done, total
    outcome: Settled | None = None
    waits_since: float = 0.0  # for its copy to be confirmed
    settled_at: float = 0.0
    reported: bool = False
    lost: bool = False  # its connection is gone, and that was said
    _about: About | None = None

    @cached_property
    def identity(self) -> bytes:
        """The same for each delivery of a message, and for messages that are equal.

        The counts are part of it: a copy for another attempt has the id and the body of the original, and must run.
        """
        counts = [count_of(self.properties, name) for name in ("x-attempts", "x-replays")]
        about = f"{self.properties.message_id!r} {self.properties.timestamp} {counts} {len(self.body)}"
        digest = blake2b(self.body, digest_size=16)
        digest.update(about.encode(errors="replace"))
        return digest.digest()

    @property
    def key(self) -> bytes | None:
        """The identity, where the sender gave the message one."""
        return self.identity if self.properties.message_id else None

    @property
    def unique(self) -> bool:
        """Whether its id is a UUID, which no other message has. Any other id may have been given to many."""
        with suppress(ValueError):
            return str(UUID(self.message_id or "")) == self.message_id
        return False

    @property
    def attempt(self) -> int:
        """1 for the first time that a handler gets this task."""
        return count_of(self.properties, "x-attempts") + 1

    @property
    def message_id(self) -> str | None:
        found: str | bytes | None = self.properties.message_id  # pika leaves what is not UTF-8 as bytes
        return found.decode(errors="backslashreplace") if isinstance(found, bytes) else found

    def for_handler(self, event: Callable[..., None], stopping: Callable[[], bool]) -> Attempt:
        """What a handler may know of this attempt; its progress becomes an event."""

        def progress(done: float, total: float) -> None:
            if self.settled_at:  # a thread of the handler's own that goes on after it has returned
                return
            self.progress = done, total
            event("task_progress", self, done=done, total=total)

        *_, message_id, attempt, redelivered = self.about()
        return Attempt(attempt, message_id, redelivered, progress, stopping)

    def copied(self, headers: dict[str, Any]) -> Message:
        """The same message, with more headers. Raises DoesNotFit."""
        return copied(self.body, self.properties, headers, self.channel.connection.frame_max)

    def waited(self, now: int) -> float | None:
        """Seconds since it was sent, where its sender says when that was, and it has waited for nothing else since;
        `now` in microseconds since the epoch."""
        headers = self.properties.headers or {}
        sent = headers.get(SENT_AT)
        if type(sent) is not int or "x-attempts" in headers or "x-replays" in headers:
            return None
        return max(0, now // 1000 - sent) / 1000

    def settled(self, outcome: Settled) -> None:
        """What it needed is done: what is left is its acknowledgement, for which the body is not kept."""
        self.outcome, self.settled_at, self.waits_since = outcome, time.monotonic(), 0.0
        self.identity  # noqa: B018  # made of the body
        self.body = b""

    def fields(self) -> dict[str, Any]:
        """What every event of a task carries."""
        fields = dict(zip(ABOUT, self.about(), strict=True))
        return fields | {"id": self.task.id, "task": self.task.task} if self.task else fields

    def about(self) -> About:
        """The same, with long texts cut, so that it may be kept for long."""
        if self._about:
            return self._about
        task, message_id, attempt = self.task, self.message_id, self.attempt
        if task is None:  # it may only be not known yet
            return self.number, None, None, None, message_id, attempt, self.redelivered
        id = task.id[:MOST_SHOWN] if isinstance(task.id, str) else task.id
        self._about = self.number, id, task.task[:MOST_SHOWN], task.difficulty, message_id, attempt, self.redelivered
        return self._about
