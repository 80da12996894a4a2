"""How often a task was begun and never settled: a task that ends its worker must not end all of them in turn.

The broker tells that a delivery is redelivered, and not why. It may have been held by a worker that was told to stop,
or that lost its link; then it is as good as new. Or a worker has begun it, and died of it. So a worker that begins a
redelivered task leaves a mark first, and takes it away when the task is settled:

    redelivered ──► mark it ──► run it ──► settle it ──► remove the marks
                                  └── the worker dies: the mark stays

The marks of a task are messages in a queue of their own, named after it, which keeps the task in its place in the work
queue. What the broker itself counts would not do: it counts what was only held, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pika import BasicProperties, DeliveryMode

from config import Settings
from workqueue.connection import Channel, Connection
from workqueue.deliveries import Delivery
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.messages import Message
from workqueue.publisher import Publisher

MARKED_WITHIN_SECONDS = 1.0  # a broker that takes no message for longer holds up no task: it runs unmarked
MARKS = {
    "x-queue-type": "classic",
    "x-expires": 24 * 60 * 60 * 1000,
}  # marks that nobody needs any more are gone in a day
MARK = Message(b"", BasicProperties(delivery_mode=DeliveryMode.Persistent))


class Counts:
    """For the work threads of one worker."""

    def __init__(self, settings: Settings, copies: Publisher, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._copies = copies
        self._note = note
        self._guard = threading.Lock()
        self._channel: Channel | None = None
        self._allowed = True

    def begun(self, delivery: Delivery) -> int:
        """How often it was begun before; marks that it is begun once more."""
        marks = self._queue(delivery)
        try:
            channel = self._open(delivery.channel.connection)
            count = 1 + channel.queue_declare(marks, durable=True, arguments=MARKS).message_count
        except (*FAILURES, BrokerError) as error:
            if getattr(error, "reply_code", 0) == 403 and self._allowed:
                self._allowed = False
                self._note(f"tasks that end their workers are not counted: {explain(error, self._settings)}")
            return 0
        if count < self._settings.delivery_limit:
            marked = threading.Event()
            self._copies.publish(marks, MARK, lambda message, outcome: marked.set(), once=True)
            marked.wait(MARKED_WITHIN_SECONDS)
        return int(count)

    def settled(self, delivery: Delivery) -> None:
        """Removes its marks, in the background: if that comes to nothing, they expire."""
        channel = self._channel
        if channel and channel.is_open:
            channel.queue_delete_later(self._queue(delivery))

    def _queue(self, delivery: Delivery) -> str:
        return f"{self._settings.task_queue}.begun.{delivery.identity.hex()}"

    def _open(self, connection: Connection) -> Channel:
        """A channel on the connection of the delivery, which is not held up when the broker takes no messages."""
        with self._guard:
            if self._channel is None or not self._channel.is_open:
                self._channel = connection.channel()
            return self._channel
