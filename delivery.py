"""A message in the hands of a worker, and what the worker remembers of it when the connection it came by is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tasks import Task

Outcome = tuple[str, dict[str, Any]]
"""The event that tells how a delivery ended, and its details; an empty name for an end that needs no line."""

REMEMBERED = 1000  # deliveries


@dataclass(eq=False)
class Delivery:
    """One delivery. `channel` and `tag` say what to acknowledge; only the thread of the connection uses them."""

    channel: BlockingChannel
    tag: int
    redelivered: bool
    properties: BasicProperties
    body: bytes
    suspect: bool = False  # it may have ended the worker that had it before: see Retry.count_redelivery
    task: Task | None = None
    outcome: Outcome | None = None

    @cached_property
    def key(self) -> tuple[Any, ...] | None:
        """What tells that a redelivered task is one we had before, if anything does.

        The counts are part of it: a copy for another attempt has the id and the body of the original, and must run.
        """
        if not self.properties.message_id:
            return None
        counts = tuple(self.counted(name) for name in ("x-attempts", "x-deliveries", "x-replays"))
        return (self.properties.message_id, self.properties.timestamp, counts, blake2b(self.body).digest())

    @property
    def attempt(self) -> int:
        """1 for the first time that a handler gets this task."""
        return self.counted("x-attempts") + 1

    def counted(self, name: str) -> int:
        """The header `name` if it is a count, else 0."""
        value = (self.properties.headers or {}).get(name)
        return value if isinstance(value, int) and value > 0 else 0

    def fields(self) -> dict[str, Any]:
        """What every event of a task carries."""
        message_id: str | bytes | None = self.properties.message_id  # pika leaves what is not UTF-8 as bytes
        return {
            "id": self.task.id if self.task else None,
            "task": self.task.task if self.task else None,
            "difficulty": self.task.difficulty if self.task else None,
            "message_id": message_id.decode(errors="backslashreplace") if isinstance(message_id, bytes) else message_id,
            "attempt": self.attempt,
            "redelivered": self.redelivered or self.counted("x-deliveries") > 0,
        }


class LostDeliveries:
    """Tasks that run or are finished here, and that the broker delivers again all the same.

    It does so when a connection is lost before an acknowledgement got through. Recognized, they are acknowledged
    instead of being run twice.
    """

    def __init__(self, prefetch_count: int) -> None:
        self._lost: dict[tuple[Any, ...], Delivery] = {}
        # The broker hands out no more than `prefetch_count` that it has not seen acknowledged, so that no more than
        # the last so many acknowledgements can be on their way.
        self._acknowledged: deque[Delivery] = deque(maxlen=prefetch_count or REMEMBERED)

    def acknowledged(self, delivery: Delivery) -> None:
        """To be called after each acknowledgement, which may not arrive. Only the key is kept, not the body."""
        if delivery.key:
            delivery.body, delivery.task, delivery.outcome = b"", None, ("", {})
            self._acknowledged.append(delivery)

    def connection_lost(self, unsettled: Iterable[Delivery]) -> None:
        for delivery in (*self._acknowledged, *unsettled):
            if delivery.key:
                self._lost[delivery.key] = delivery
        self._acknowledged.clear()
        while len(self._lost) > REMEMBERED:
            del self._lost[next(iter(self._lost))]

    def known(self, delivery: Delivery) -> Delivery | None:
        """The lost delivery that `delivery` repeats, if any; it is forgotten here."""
        return self._lost.pop(delivery.key, None) if self._lost and delivery.redelivered and delivery.key else None

    def forget(self, delivery: Delivery) -> None:
        if delivery.key:
            self._lost.pop(delivery.key, None)
