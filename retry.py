"""What becomes of a task that could not be finished: another attempt later, or the dead queue.

Each way out is the same: publish a copy to the next queue, wait until the broker has confirmed it, and only then let
the original be acknowledged. A fault in between leaves two of it, never none. All of this runs on the work thread
that had the task, so that a worker takes no more while it cannot put aside what failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import broker
from config import Settings
from delivery import Delivery, Outcome


class DeliveryLost(Exception):
    """The connection of a delivery is gone before the task was put aside: it will be delivered again as it is."""


class DeliveryLimit(Exception):
    """The task was handed out too often without being settled: it may be what ends its workers."""


def described(error: BaseException) -> dict[str, str]:
    """An error of a handler in words that can be encoded, whatever it raised."""
    try:
        words = str(error)
    except Exception:
        words = "an error that cannot be put into words"
    return {"error": words.encode(errors="backslashreplace").decode(), "error_type": type(error).__name__}


class Retry:
    """The ways out, for one work thread of the worker `name`. `note` gets lines for people."""

    def __init__(self, settings: Settings, name: str, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._name = name
        self._note = note
        self._publisher = broker.CopyPublisher(settings, name)

    def close(self) -> None:
        """To be called before the thread runs a handler or waits: see CopyPublisher."""
        self._publisher.close()

    def later(self, delivery: Delivery, error: BaseException) -> Outcome:
        """Into the retry queue of the next delay, or after the last one into the dead queue."""
        if delivery.attempt > len(self._settings.retry_delays):
            return self.never(delivery, error)
        delay = self._settings.retry_delays[delivery.attempt - 1]
        headers = {"x-attempts": delivery.attempt, "x-deliveries": None}
        self._move(delivery, self._settings.retry_queue(delay), headers)
        return "task_retried", {**described(error), "delay_seconds": delay}

    def never(self, delivery: Delivery, error: BaseException) -> Outcome:
        """Into the dead queue, with headers that say why, who, when and after how many attempts."""
        headers = {
            "x-error": described(error)["error"][:1000],
            "x-error-type": described(error)["error_type"],
            "x-worker": self._name,
            "x-failed-at": datetime.now(UTC).isoformat(timespec="seconds"),
            "x-attempts": delivery.attempt,
        }
        queue = self._settings.dead_queue
        self._move(delivery, queue, headers)
        return "task_dead", {**described(error), "queue": queue}

    def count_redelivery(self, delivery: Delivery) -> Outcome | None:
        """Settles a redelivered task that must not run now; None if it may run.

        A quorum queue counts how often it handed out a task. A classic queue does not, and would hand a task that
        kills its worker to one after the other: so a copy that carries the count takes the task's place, at the end
        of the queue. After a crash of the broker, though, a classic queue calls all that it holds redelivered: the
        worker asks this only for the first few in a row.
        """
        counted_by_broker = delivery.counted("x-delivery-count")
        deliveries = counted_by_broker or delivery.counted("x-deliveries") + 1
        if deliveries >= self._settings.delivery_limit:
            return self.never(delivery, DeliveryLimit(f"handed out {deliveries} times and never settled"))
        if counted_by_broker:
            return None
        self._move(delivery, self._settings.task_queue, {"x-deliveries": deliveries})
        return "", {}

    def _move(self, delivery: Delivery, queue: str, headers: dict[str, Any]) -> None:
        """Publishes a copy to `queue`, and returns when it is confirmed. Raises DeliveryLost."""
        message = broker.copied(delivery.body, delivery.properties, headers)
        delays = broker.backoff()
        while True:
            try:
                return self._publisher.publish(queue, message)
            except (broker.Refused, broker.Misconfigured):
                raise
            except broker.BrokerError as error:
                if not delivery.channel.is_open:
                    raise DeliveryLost from None
                delay = next(delays)
                self._note(f"cannot put a task into {queue}: {error}; trying again in {delay:.1f} s")
                time.sleep(delay)
