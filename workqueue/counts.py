"""How often a task was begun and never settled: a task that ends its worker must not end all of them in turn.

The broker tells that a delivery is redelivered, and not why. It may have been held by a worker that was told to stop,
or that lost its link; then it is as good as new. Or a worker has begun it, and died of it. So a worker that begins a
redelivered task leaves a mark first, and takes it away when the task is settled:

    redelivered ──► mark it ──► run it ──► settle it ──► remove the marks
                       ▲          ├── the worker dies: the mark stays
                       └──────────┴── the link is lost, the worker lives: its mark is removed when it is back

The marks of a task are messages in a queue of their own, named after it, which keeps the task in its place in the work
queue. What the broker itself counts would not do: it counts what was only held, too.

A worker that dies takes all that it runs along. So what has one attempt left waits for others of its kind: the one
that ends its worker is alone when it is counted out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pika import BasicProperties, DeliveryMode

from config import Settings
from workqueue.connection import Channel, Connection
from workqueue.deliveries import Delivery
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.messages import Message
from workqueue.publisher import Publisher

MARKED_WITHIN_SECONDS = 5.0  # a broker that takes no message for longer holds up no task: it runs unmarked
BACK_WITHIN_SECONDS = 2.0  # a worker that has only lost its link is back by then, and has removed its marks
MARKS = {
    "x-queue-type": "classic",
    "x-expires": 24 * 60 * 60 * 1000,
}  # marks that nobody needs any more are gone in a day
NEVER_BEGUN = nullcontext(0)
MARK = Message(b"", BasicProperties(delivery_mode=DeliveryMode.Persistent))


class Counts:
    """For one worker; any of its threads may call `begun` and `settled`."""

    def __init__(self, settings: Settings, copies: Publisher, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._copies = copies
        self._note = note
        self._guard = threading.Lock()
        self._last_attempt = threading.Lock()
        self._channel: Channel | None = None
        self._allowed = True
        self._slow = False  # a mark was not confirmed in time, and none was since
        self._marked: dict[Delivery, None] = {}  # begun here and not settled
        self._to_remove: list[str] = []  # queues of marks, when there is a connection again
        # what may be begun once only is marked the first time: redelivered does not mean begun
        self._from_the_first = settings.delivery_limit == 1

    def begun(self, delivery: Delivery) -> AbstractContextManager[int]:
        """Until it is settled. How often it was begun before; marks that it is begun once more."""
        return self._counted(delivery) if delivery.suspect or self._from_the_first else NEVER_BEGUN

    @contextmanager
    def _counted(self, delivery: Delivery) -> Iterator[int]:
        count, limit = self._count(delivery), self._settings.delivery_limit
        alone = 0 < count == limit - 1
        if alone:
            self._last_attempt.acquire()
        try:
            if alone:  # with the answer, the acknowledgement of the one before is out of our hands
                count = self._count(delivery)
            if count >= limit:
                time.sleep(BACK_WITHIN_SECONDS)
                count = self._count(delivery)
            if count < limit:
                self._mark(delivery)
            yield count
        finally:
            if alone:
                self._last_attempt.release()

    def settled(self, delivery: Delivery) -> None:
        """Removes its marks, in the background: if that comes to nothing, they expire. Does not wait."""
        if not (delivery.suspect or delivery in self._marked):
            return
        self._marked.pop(delivery, None)
        channel = self._channel
        if channel and channel.is_open:
            channel.queue_delete_later(self._queue(delivery))
        else:
            self._to_remove.append(self._queue(delivery))

    def connected(self, connection: Connection) -> None:
        """Again: what still runs here has not ended its worker."""
        alive, self._marked = self._marked, {}
        to_remove, self._to_remove = self._to_remove, []
        for delivery in alive:
            try:
                channel = self._open(connection)
                if found := channel.basic_get(self._queue(delivery)):
                    channel.basic_ack(found[0].delivery_tag)
            except (*FAILURES, BrokerError):  # somebody else has settled it, and removed the marks
                continue
        for queue in to_remove:
            self._open(connection).queue_delete_later(queue)

    def _count(self, delivery: Delivery) -> int:
        """A delivery that is redelivered was begun once without a mark, if we do not know better."""
        try:
            channel = self._open(delivery.channel.connection)
            answer = channel.queue_declare(self._queue(delivery), durable=True, arguments=MARKS)
        except (*FAILURES, BrokerError) as error:
            if getattr(error, "reply_code", 0) == 403 and self._allowed:
                self._allowed = False
                self._note(f"tasks that end their workers are not counted: {explain(error, self._settings)}")
            return 0
        here = sum(1 for other in list(self._marked) if other.identity == delivery.identity)  # of equal messages
        return max(0, int(answer.message_count) - here) + (not self._from_the_first)

    def _mark(self, delivery: Delivery) -> None:
        marked = threading.Event()

        def on_settled(message: Message, outcome: str) -> None:
            self._slow = False
            marked.set()

        self._marked[delivery] = None
        self._copies.publish(self._queue(delivery), MARK, on_settled, once=True)
        until = time.monotonic() + MARKED_WITHIN_SECONDS
        while not (self._slow or marked.wait(0.1)):
            self._slow = self._copies.blocked or time.monotonic() > until

    def _queue(self, delivery: Delivery) -> str:
        return f"{self._settings.task_queue}.begun.{delivery.identity.hex()}"

    def _open(self, connection: Connection) -> Channel:
        """A channel on the connection of the deliveries, which is not held up when the broker takes no messages."""
        with self._guard:
            if self._channel is None or not self._channel.is_open:
                self._channel = connection.channel()
            return self._channel
