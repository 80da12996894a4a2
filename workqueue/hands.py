"""All tasks that a worker has in its hands, and those that it had when a connection was lost.

    take ──► held ──► begin ──► runs ──► acknowledge ──► gone; its acknowledgement may not have arrived yet
               │                  │
               │                  └── waits for its copy to be confirmed; after a second, without holding a place
               └── given back

When a connection is lost, the broker gives all of it out again. What was only held is forgotten. What runs goes on,
and is expected to come again: then its acknowledgement goes to the new delivery. What was acknowledged a moment before
is expected too: if it comes, it is acknowledged again instead of being run again. A delivery is taken for one of these
only when it cannot be another: see `_recognize`.

Any thread may call this.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker

from workqueue.connection import Channel
from workqueue.deliveries import Delivery, Outcome

PARKED_AFTER_SECONDS = 1.0  # what waits for its copy for longer holds no place any more
MOST_PARKED = 1000
REMEMBERED = 1000  # deliveries that are expected to come again
SUSPECTS = 10  # redelivered tasks in a row; more of them come from a crash of the broker, not from dead workers


class Hands:
    def __init__(self, prefetch_count: int, heartbeat_seconds: int, on_return: Callable[[Delivery], None]) -> None:
        """`on_return(delivery)` is told, on a connection's thread, of a task that was finished here before and came
        again, and is acknowledged now."""
        self._prefetch_count = prefetch_count
        self._forget_after = 3 * heartbeat_seconds + 30  # by then a broker has given out what a lost link had
        self._on_return = on_return
        self._guard = threading.RLock()
        self._held: SimpleQueue[Delivery] = SimpleQueue()
        self._in_hand: dict[Delivery, None] = {}
        self._acknowledged: deque[Delivery] = deque(maxlen=REMEMBERED)
        self._expected: dict[bytes, list[Delivery]] = {}
        self._place = 0  # the number of the consumer of now
        self._limit = 0  # its prefetch
        self._redelivered_in_a_row = 0
        self._may_ask = True  # not a quorum queue with a single active consumer

    # A task's way

    def take(self, channel: Channel, method: Any, properties: BasicProperties, body: bytes) -> None:
        """A delivery has come. On the connection's thread."""
        delivery = Delivery(channel, method.delivery_tag, method.redelivered, properties, body, self._place)
        with self._guard:
            earlier = self._recognize(delivery)
            if earlier is None:
                in_a_row = self._redelivered_in_a_row = self._redelivered_in_a_row + 1 if delivery.redelivered else 0
                delivery.suspect = 0 < in_a_row <= max(SUSPECTS, self._prefetch_count)
                self._in_hand[delivery] = None
                self._held.put(delivery)
                return
            earlier.channel, earlier.tag, earlier.place = channel, delivery.tag, self._place
            earlier.lost = False
        if earlier.settled_at:
            channel.basic_ack(earlier.tag)
            self._remember(earlier)
            if not earlier.reported:
                self._on_return(earlier)

    def next(self) -> Delivery:
        """The next one that is held; waits for it. It may be given back until `begin` says yes."""
        return self._held.get()

    def begin(self, delivery: Delivery) -> bool:
        """Whether it is still ours, and runs from now on."""
        with self._guard:
            delivery.begun = delivery in self._in_hand
            return delivery.begun

    def wait_for_copy(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Whether a copy of it is to be published. Not if its connection was lost: it comes again as it is."""
        with self._guard:
            delivery.outcome = outcome
            if delivery.channel.is_open:
                delivery.waits_since = time.monotonic()
                return True
            self._in_hand.pop(delivery, None)
            self._forget(delivery)
            return False

    def acknowledge(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Whether it could be; if not, its connection was lost, and it is acknowledged when it comes again."""
        with self._guard:
            if self._in_hand.pop(delivery, self) is self:  # given back meanwhile
                return False
            delivery.settled(outcome)
            if not delivery.channel.is_open:
                return False
            delivery.channel.basic_ack(delivery.tag)
            self._remember(delivery)
            return True

    def _remember(self, delivery: Delivery) -> None:
        if delivery.key:
            self._acknowledged.append(delivery)

    def give_back_held(self) -> None:
        """What nobody has begun."""
        for delivery in self._drop_held():
            delivery.channel.basic_nack(delivery.tag)

    def give_back_waiting(self) -> int:
        """What waits for its copy in vain. Returns how many there were."""
        with self._guard:
            waiting = [delivery for delivery in self._in_hand if delivery.waits_since]
            for delivery in waiting:
                del self._in_hand[delivery]
                delivery.channel.basic_nack(delivery.tag)
        return len(waiting)

    def _drop_held(self) -> list[Delivery]:
        with self._guard:
            with suppress(Empty):
                while True:
                    self._held.get_nowait()
            held = [delivery for delivery in self._in_hand if not delivery.begun]
            for delivery in held:
                del self._in_hand[delivery]
            return held

    # A lost connection

    def lose(self) -> list[Delivery]:
        """The connection is lost. Returns what goes on without it, and did not before."""
        with self._guard:
            self._drop_held()
            self._limit = self._redelivered_in_a_row = 0
            for delivery in self._in_hand:
                self._expect(delivery)
            uncertain = [d for d in self._acknowledged if d.channel.acknowledgements.may_come_back(d.tag)]
            self._acknowledged.clear()
            keys = [delivery.key for delivery in uncertain]
            for delivery in uncertain:
                # of two messages that are equal, nobody can say which has arrived
                if delivery.key not in self._expected and keys.count(delivery.key) == 1:
                    delivery.reported = True
                    self._expect(delivery)
            self._forget_old()
            lost = [delivery for delivery in self._in_hand if not delivery.lost]
            for delivery in lost:
                delivery.lost = True
            return lost

    def _expect(self, delivery: Delivery) -> None:
        if delivery.key:
            known = self._expected.setdefault(delivery.key, [])
            known[:] = [other for other in known if not other.reported and other is not delivery] + [delivery]

    def _forget(self, delivery: Delivery) -> None:
        if delivery.key and delivery in self._expected.get(delivery.key, []):
            self._expected[delivery.key].remove(delivery)

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key, known in list(self._expected.items()):
            known[:] = [d for d in known if not d.reported or now - d.settled_at < self._forget_after]
            if not known or len(self._expected) > REMEMBERED:
                del self._expected[key]

    def _recognize(self, delivery: Delivery) -> Delivery | None:
        """The lost delivery that this one repeats, if that is certain.

        What runs here was never acknowledged: any delivery of an equal message may have its acknowledgement. What was
        acknowledged, if in vain, comes again soon, redelivered, and its message is the only one of its kind.
        """
        if not self._expected or delivery.key is None:
            return None
        known = self._expected.get(delivery.key, [])
        if not delivery.redelivered:
            known[:] = [other for other in known if not other.reported]  # there is another one of its kind
            return None
        while known:
            other = known.pop(0)
            if not other.reported or time.monotonic() - other.settled_at < self._forget_after:
                return other
        return None

    def claim_back(self, channel: Channel, queue: str) -> None:
        """Asks for what still runs here, or is finished, before another worker begins it again."""
        for _ in range(self.in_hand + self.awaited if self._may_ask else 0):
            try:
                found = channel.basic_get(queue)
            except ChannelClosedByBroker as error:
                self._may_ask = "basic.get" not in error.reply_text
                raise
            if found is None:
                break
            self.take(channel, *found)
        if 0 < self._prefetch_count < self.in_hand:
            self.give_back_held()

    # Places

    @property
    def in_hand(self) -> int:
        return len(self._in_hand)

    @property
    def running(self) -> int:
        with self._guard:
            return sum(1 for delivery in self._in_hand if delivery.begun and not delivery.waits_since)

    @property
    def awaited(self) -> int:
        """Tasks that are finished here, and have to come again to be acknowledged."""
        with self._guard:
            return sum(1 for known in self._expected.values() for delivery in known if not delivery.reported)

    def room(self) -> int | None:
        """The prefetch of the consumer that there should be now; 0 is unlimited. None if the one of now is right.

        A place is taken by whatever runs, also for a connection that was lost. What waits for its copy takes none.
        """
        if self._prefetch_count == 0:
            return None if self._limit else 0
        with self._guard:
            now = time.monotonic()
            parked = {d for d in self._in_hand if d.waits_since and now - d.waits_since > PARKED_AFTER_SECONDS}
            if len(parked) > MOST_PARKED:
                return None
            here = [d for d in self._in_hand if d.place == self._place and d.channel.is_open]
            elsewhere = len(self._in_hand) - len(here) - len(parked.difference(here))
            if self._prefetch_count - elsewhere <= self._limit - len(parked.intersection(here)):
                return None
            return max(0, self._prefetch_count - len(self._in_hand) + len(parked)) or None

    def consumer_starts(self, limit: int) -> None:
        """With a prefetch of `limit`; 0 is unlimited."""
        self._place += 1
        self._limit = limit or 2**31

    def consumer_stops(self) -> None:
        self._limit = 0
