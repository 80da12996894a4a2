"""All tasks that a worker has in its hands, and those that it had when a connection was lost.

    take ──► held ──► begin ──► runs ──► acknowledge ──► gone; its acknowledgement may not have arrived yet
               │                  │
               │                  ├── waits for its copy to be confirmed; after a second, without holding a place
               └── given back ◄───┘ put down

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
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker

from workqueue.connection import Channel
from workqueue.deliveries import Delivery, Retry, Settled

PARKED_AFTER_SECONDS = 1.0  # what waits for its copy for longer holds no place any more
MOST_PARKED = 1000
REMEMBERED = 1000  # deliveries that are expected to come again
CLAIM_SECONDS = 0.1  # before it is asked again for what has not come back; then twice as long, up to a second
MOST_CLAIMS = 5  # what is finished and has not come back by then is with another worker, or had arrived
SUSPECTS = 10  # redelivered tasks in a row; more of them come from a crash of the broker, not from dead workers


class Hands:
    def __init__(self, prefetch_count: int, heartbeat_seconds: int, on_return: Callable[[Delivery], None]) -> None:
        """`on_return(delivery)` is told, on a connection's thread, of a task that was finished here before and came
        again, and is acknowledged now."""
        self._prefetch_count = prefetch_count
        self._forget_after = 3 * heartbeat_seconds + 30  # by then a broker has given out what a lost link had
        self._on_return = on_return
        self.on_settled: Callable[[Delivery], None] = lambda delivery: None  # on any thread: it must not wait
        self._guard = threading.RLock()
        self._held: SimpleQueue[Delivery] = SimpleQueue()
        self._in_hand: dict[Delivery, None] = {}
        self._not_begun: dict[Delivery, None] = {}
        self._numbers = count(1)
        self._acknowledged: deque[Delivery] = deque(maxlen=REMEMBERED)
        self._expected: dict[bytes, list[Delivery]] = {}
        self._place = 0  # the number of the consumer of now
        self._limit = 0  # its prefetch
        self._redelivered_in_a_row = 0
        self._claims = 0  # since a connection was lost
        self._claim_at = 0.0
        self._may_ask = True  # not a quorum queue with a single active consumer

    # A task's way

    def take(self, channel: Channel, method: Any, properties: BasicProperties, body: bytes) -> None:
        """A delivery has come. On the connection's thread."""
        delivery = Delivery(channel, method.delivery_tag, method.redelivered, properties, body, self._place)
        with self._guard:
            if self._has_come_again(delivery):
                return
            delivery.number = next(self._numbers)
            in_a_row = self._redelivered_in_a_row = self._redelivered_in_a_row + 1 if delivery.redelivered else 0
            delivery.suspect = 0 < in_a_row <= max(SUSPECTS, self._prefetch_count)
            self._in_hand[delivery] = self._not_begun[delivery] = None
            self._held.put(delivery)

    def next(self) -> Delivery:
        """The next one that is held; waits for it. It may be given back until `begin` says yes."""
        return self._held.get()

    def begin(self, delivery: Delivery) -> bool:
        """Whether it is still ours, and runs from now on. Without the guard, for which many threads would queue."""
        return self._not_begun.pop(delivery, self) is None

    def wait_for_copy(self, delivery: Delivery, outcome: Settled) -> bool:
        """Whether a copy of it is to be published. Not if its connection was lost: it comes again as it is."""
        with self._guard:
            delivery.outcome = outcome
            if delivery.channel.is_open:
                delivery.waits_since = time.monotonic()
                return True
            self._in_hand.pop(delivery, None)
            self._forget(delivery)
            return False

    def waits_for_copy(self, delivery: Delivery) -> bool:
        """Still: it was not given back, nor lost for good. On the publisher's threads."""
        return delivery in self._in_hand

    def acknowledge(self, delivery: Delivery, outcome: Settled, report: Callable[[Delivery], None]) -> None:
        """And calls `report`. If its connection is lost, it is acknowledged, and reported, when it comes again."""
        delivery.identity  # noqa: B018  # takes its time: not under the guard
        with self._guard:
            if delivery not in self._in_hand:  # given back meanwhile
                return
            channel, tag = delivery.channel, delivery.tag
            delivery.settled(outcome)
            self.on_settled(delivery)
            if not channel.is_open:
                del self._in_hand[delivery]
                self._expect(delivery)  # nobody may have said yet that it is lost
                return
            delivery.reported = True  # in a moment, and by nobody else, though it may come again before
            self._remember(delivery)
        channel.basic_ack(tag)  # may wake the connection's thread, which may want the guard
        report(delivery)
        self._in_hand.pop(delivery, None)  # only now: a worker that stops waits for what is in hand

    def _remember(self, delivery: Delivery) -> None:
        """Until its acknowledgement is known to have arrived."""
        known = self._acknowledged
        while known and not known[0].channel.acknowledgements.may_come_back(known[0].tag):
            known.popleft()
        if delivery.key:
            known.append(delivery)

    def give_back_held(self) -> None:
        """What nobody has begun."""
        for delivery in self._drop_held():
            delivery.channel.basic_nack(delivery.tag)

    def give_back(self, delivery: Delivery) -> None:
        """What was put down. If its connection is lost, or ends before this is said, the broker has it anyway."""
        with self._guard:
            self._in_hand.pop(delivery, None)
            self._forget(delivery)
            self.on_settled(delivery)  # it has not ended this worker: no mark of it stays
        delivery.channel.basic_nack(delivery.tag)

    def give_back_waiting(self) -> int:
        """What waits for its copy in vain. Returns how many there were."""
        with self._guard:
            waiting = [delivery for delivery in list(self._in_hand) if delivery.waits_since]
            for delivery in waiting:
                del self._in_hand[delivery]
                if isinstance(delivery.outcome, Retry):  # it has not ended this worker: no mark of it stays
                    self.on_settled(delivery)
                delivery.channel.basic_nack(delivery.tag)
        return len(waiting)

    def _drop_held(self) -> list[Delivery]:
        with self._guard:
            with suppress(Empty):
                while True:
                    self._held.get_nowait()
            held = []
            with suppress(KeyError):  # a work thread has begun the last one
                while True:
                    delivery, _ = self._not_begun.popitem()
                    del self._in_hand[delivery]
                    held.append(delivery)
            return held[::-1]

    # A lost connection

    def lose(self) -> list[Delivery]:
        """The connection is lost. Returns what goes on without it, and did not before."""
        with self._guard:
            equal = {delivery.key for delivery in self._drop_held()}
            self._limit = self._redelivered_in_a_row = self._claims = 0
            self._claim_at = 0.0
            unsettled = [delivery for delivery in list(self._in_hand) if not delivery.settled_at]
            for delivery in unsettled:
                self._expect(delivery)
                if delivery.waits_since and not delivery.key:  # it comes again, and nobody can tell that it is this one
                    del self._in_hand[delivery]
            uncertain = [d for d in self._acknowledged if d.channel.acknowledgements.may_come_back(d.tag)]
            self._acknowledged.clear()
            keys = [delivery.key for delivery in uncertain]
            for delivery in uncertain:
                # of two messages that are equal, nobody can say which has arrived
                alone = delivery.unique and delivery.key not in equal and keys.count(delivery.key) == 1
                if alone and delivery.key not in self._expected:
                    delivery.reported = True
                    self._expect(delivery)
            self._forget_old()
            lost = [delivery for delivery in unsettled if not delivery.lost]
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
            known[:] = [d for d in known if not d.settled_at or now - d.settled_at < self._forget_after]
            if not known or len(self._expected) > REMEMBERED:
                del self._expected[key]

    def _has_come_again(self, delivery: Delivery) -> bool:
        """If so, the new delivery is the one to be acknowledged: now, if the task is finished."""
        with self._guard:
            earlier = self._recognize(delivery)
            if earlier is None:
                return False
            earlier.channel, earlier.tag, earlier.place = delivery.channel, delivery.tag, self._place
            earlier.lost = False
            earlier.suspect = True  # another worker may have begun it meanwhile, and left marks
            if earlier.settled_at:
                earlier.channel.basic_ack(earlier.tag)
                self._remember(earlier)
                self.on_settled(earlier)
                if not earlier.reported:
                    self._on_return(earlier)
            return True

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
        """Asks for what still runs here, or is finished, before another worker begins it again. Gives back all else.

        May be called again and again: what has not come back is asked for less and less often.
        """
        if time.monotonic() < self._claim_at or not self._may_ask:
            return
        others = []
        for _ in range(self._missing()):
            try:
                found = channel.basic_get(queue)
            except ChannelClosedByBroker as error:
                self._may_ask = "basic.get" not in error.reply_text
                raise
            if found is None:
                break
            method, properties, body = found
            if not self._has_come_again(Delivery(channel, method.delivery_tag, method.redelivered, properties, body)):
                others.append(method.delivery_tag)
        for tag in others:
            channel.basic_nack(tag)
        self._claims += 1
        self._claim_at = time.monotonic() + min(1.0, CLAIM_SECONDS * 2**self._claims)
        if self._claims >= MOST_CLAIMS:
            with self._guard:
                for known in self._expected.values():
                    known[:] = [delivery for delivery in known if not delivery.settled_at]

    def _missing(self) -> int:
        """How many are to be claimed. Of what was acknowledged most has arrived: it is asked for at the end only."""
        with self._guard:
            return sum(not d.reported or self._claims > 0 for known in self._expected.values() for d in known)

    # Places

    @property
    def in_hand(self) -> int:
        return len(self._in_hand)

    @property
    def held(self) -> int:
        """Those that are not begun."""
        return len(self._not_begun)

    def at_work(self) -> list[Delivery]:
        """Those whose handlers run, oldest first."""
        begun = [d for d in list(self._in_hand) if d.begun_at and not d.outcome]
        return sorted(begun, key=lambda delivery: delivery.begun_at)

    @property
    def busy(self) -> bool:
        """Whether there is more in hand than what waits for its copy, for long."""
        with self._guard:
            return not all(_is_parked(delivery) for delivery in list(self._in_hand))

    @property
    def running(self) -> int:
        with self._guard:
            return sum(1 for d in list(self._in_hand) if d not in self._not_begun and not d.waits_since)

    @property
    def awaited(self) -> int:
        """Tasks that are finished here, and whose acknowledgement is not known to have arrived: it is on its way, or
        they have to come again. Those that have not come for long are with another worker."""
        with self._guard:
            since = max(0.0, time.monotonic() - self._forget_after)
            on_their_way = sum(d.channel.acknowledgements.may_come_back(d.tag) for d in self._acknowledged)
            return on_their_way + sum(d.settled_at > since for known in self._expected.values() for d in known)

    def room(self) -> int | None:
        """The prefetch of the consumer that there should be now; 0 is unlimited. None if the one of now is right.

        A place is taken by whatever runs, also for a connection that was lost. What waits for its copy takes none.
        """
        if self._prefetch_count == 0:
            return None if self._limit else 0
        with self._guard:
            parked = {d for d in list(self._in_hand) if _is_parked(d)}
            if len(parked) > MOST_PARKED:
                return None
            here = [d for d in list(self._in_hand) if d.place == self._place and d.channel.is_open]
            elsewhere = len(self._in_hand) - len(here) - len(parked.difference(here))
            if self._prefetch_count - elsewhere <= self._limit - len(parked.intersection(here)):
                return None
            return max(0, self._prefetch_count - len(self._in_hand) + len(parked)) or None

    def consumer_starts(self, limit: int, name: str) -> str:
        """With a prefetch of `limit`; 0 is unlimited. Returns its tag: a new one, as long as deliveries of an earlier
        consumer are in hand, since RabbitMQ would count those, or their acknowledgements, for the new one."""
        self._place += 1
        self._limit = limit or 2**31
        with self._guard:
            return f"{name}.{self._place}" if any(d.channel.is_open for d in list(self._in_hand)) else name

    def consumer_stops(self) -> None:
        self._limit = 0


def _is_parked(delivery: Delivery) -> bool:
    return 0 < delivery.waits_since < time.monotonic() - PARKED_AFTER_SECONDS
