"""A task in the hands of a worker, and the ways in which an attempt at it can end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b
from typing import Any
from uuid import UUID

from pika import BasicProperties

from tasks import Attempt, Task
from workqueue.connection import Channel
from workqueue.messages import count_of

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

    def headers(self, delivery: Delivery, worker: str) -> dict[str, Any]:
        return {"x-attempts": delivery.attempt}

    def event(self) -> tuple[str, dict[str, Any]]:
        about = {"error": self.problem.words, "error_type": self.problem.kind}
        return "task_retried", {**about, "delay_seconds": self.delay_seconds}


@dataclass(frozen=True)
class Dead:
    """No further attempt can help."""

    problem: Problem
    queue: str

    def headers(self, delivery: Delivery, worker: str) -> dict[str, Any]:
        """Why, who, when, and after how many attempts."""
        return {
            "x-error": self.problem.words,
            "x-error-type": self.problem.kind,
            "x-worker": worker,
            "x-failed-at": datetime.now(UTC).isoformat(timespec="seconds"),
            "x-attempts": delivery.attempt,
        }

    def event(self) -> tuple[str, dict[str, Any]]:
        return "task_dead", {"error": self.problem.words, "error_type": self.problem.kind, "queue": self.queue}


Outcome = Done | Retry | Dead


@dataclass(eq=False)
class Delivery:
    """One task in hand. `channel` and `tag` say what to acknowledge; both are new when the task comes again."""

    channel: Channel
    tag: int
    redelivered: bool
    properties: BasicProperties
    body: bytes
    place: int = 0  # the consumer, by number, whose prefetch it counts for
    suspect: bool = False  # it may have ended the worker that had it before: see counts.py
    task: Task | None = None
    outcome: Outcome | None = None
    waits_since: float = 0.0  # for its copy to be confirmed
    settled_at: float = 0.0
    reported: bool = False
    lost: bool = False  # its connection is gone, and that was said

    @cached_property
    def identity(self) -> bytes:
        """The same for each delivery of a message, and for messages that are equal.

        The counts are part of it: a copy for another attempt has the id and the body of the original, and must run.
        """
        counts = [count_of(self.properties, name) for name in ("x-attempts", "x-replays")]
        about = f"{self.properties.message_id!r} {self.properties.timestamp} {counts}".encode(errors="replace")
        return blake2b(self.body, key=blake2b(about, digest_size=32).digest(), digest_size=16).digest()

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
            event("task_progress", **self.fields(), done=done, total=total)

        return Attempt(self.attempt, self.message_id, self.redelivered, progress, stopping)

    def settled(self, outcome: Outcome) -> None:
        """What it needed is done: what is left is its acknowledgement, for which what it carried is not kept."""
        self.outcome, self.settled_at, self.waits_since = outcome, time.monotonic(), 0.0
        self.identity  # noqa: B018  # made of the body
        self.body = b""
        if self.task:
            self.task = replace(self.task, payload=None, extra={})

    def fields(self) -> dict[str, Any]:
        """What every event of a task carries."""
        return {
            "id": self.task.id if self.task else None,
            "task": self.task.task if self.task else None,
            "difficulty": self.task.difficulty if self.task else None,
            "message_id": self.message_id,
            "attempt": self.attempt,
            "redelivered": self.redelivered,
        }
