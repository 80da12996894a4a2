"""The source that watches a broker: events from a queue of its own, and counts of the queues, by passive declares.

    <queue>.events ──► ours: all heartbeats ────────────────► read as they come
                   └─► ours: task events, the newest 10 ────► 10 at most every TICK_SECONDS, however many there are

Nothing is taken from the work queue. Heartbeats alone tell all counts; the events of single tasks are wanted as long as
a person could read them, and where there are more the broker drops the oldest, at no cost for us.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from config import Settings
from view.events import DECIDED, OF_TASKS, OF_WORKERS, read
from view.facts import Queues
from view.model import Model
from view.recording import Recorder
from workqueue.connection import Channel, Connection
from workqueue.dialing import backoff, dial
from workqueue.errors import FAILURES, BrokerError, Misconfigured, Refused, Stopped, explain

TICK_SECONDS = 0.25
COUNT_SECONDS = 0.5  # between two counts of the work queue
OTHERS_SECONDS = 1.0  # of the dead queue and the retry queues
MISSING_SECONDS = 2.0  # a queue that is not there is looked for again; RabbitMQ logs each look
BIND_SECONDS = 5.0  # somebody may have deleted the exchange
LINGER_SECONDS = 0.2  # what comes within is read together
SAMPLE = 10  # messages; each has several events
MOST_HEARTBEATS = 5000  # that the broker keeps for us
MOST_RECORDED = 100_000
MOST_UNREAD = 200_000  # messages that have come and are not read: oldest are dropped
OWN_QUEUE = {"x-queue-type": "classic", "x-overflow": "drop-head"}


class Live:
    def __init__(
        self, settings: Settings, model: Model, recorder: Recorder | None = None, name: str = "watch.py"
    ) -> None:
        self.settings = settings
        self.name = name
        self.model = model
        self.recorder = recorder
        self.stopping = threading.Event()
        self.failure: BaseException | None = None  # what ends the view
        self.attempts = 0  # to connect, that have failed
        self._came: deque[bytes] = deque(maxlen=MOST_UNREAD)
        self._to_ack: deque[int] = deque(maxlen=1)  # the newest of the sample
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def now(self) -> float:
        return time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.ident:
            self._thread.join(2.0)

    def _run(self) -> None:
        try:
            self._connect_again_and_again()
        except Stopped:
            pass
        except BaseException as error:
            self.failure = error

    def _connect_again_and_again(self) -> None:
        delays = backoff(most=1.0)
        ever_connected = False
        while not self.stopping.is_set():
            try:
                with dial(self.settings, self.name, self.stopping.is_set) as connection:
                    delays, ever_connected = backoff(most=1.0), True
                    self._watch(connection)
            except (*FAILURES, BrokerError) as error:
                failure = explain(error, self.settings)
                if isinstance(failure, Refused) and not ever_connected:
                    raise failure from None
                self.attempts += 1
                self.model.lost(str(failure))
            self.stopping.wait(next(delays))

    def _watch(self, connection: Connection) -> None:
        self._came.clear()
        self._to_ack.clear()
        connection.linger = LINGER_SECONDS
        about = connection.server_properties
        broker = f"{about.get('product', 'a broker')} {about.get('version', '')}".strip()
        subscription = self._subscribe(connection)
        counter = Counter(connection, self.settings)
        if self.recorder:
            self.recorder.begin(broker)
        self.model.connected(self.now(), broker)
        count_at = bind_at = self.now()
        bind_at += BIND_SECONDS
        while not self.stopping.is_set():
            if not connection.is_open or (subscription and not subscription.is_open):
                raise (
                    (subscription and subscription.reason) or connection.reason or BrokerError("the channel has ended")
                )
            if self.now() >= count_at:
                count_at = self.now() + COUNT_SECONDS
                self._count(counter)
            if self.now() >= bind_at and subscription:
                bind_at = self.now() + BIND_SECONDS
                subscription.bind()
            self._read()
            if subscription:
                subscription.acknowledge()
            self.model.tick(self.now())
            self.stopping.wait(TICK_SECONDS)

    def _subscribe(self, connection: Connection) -> Subscription | None:
        """None where we may not, or the exchange is another's: the queues can be counted all the same."""
        try:
            subscription = Subscription(connection, self.settings, self._came, self._to_ack, self.recorder is not None)
            subscription.bind()
        except ChannelClosedByBroker as error:
            self.model.no_events = str(explain(error, self.settings))
            return None
        self.model.no_events = ""
        return subscription

    def _count(self, counter: Counter) -> None:
        queues = counter.count(self.now(), self.model.delays)
        self.model.count(queues)
        if self.recorder:
            self.recorder.count(queues)

    def _read(self) -> None:
        """What has come since the last time."""
        for _ in range(len(self._came)):
            body = self._came.popleft()
            events, bad = read(body)
            self.model.receive(events, bad, self.now())
            if self.recorder:
                self.recorder.write(body)
        if self.recorder:
            self.recorder.flush()


class Subscription:
    """Queues of ours on the exchange of the events: named by the server, gone with the connection, bounded."""

    def __init__(
        self, connection: Connection, settings: Settings, came: deque[bytes], to_ack: deque[int], whole: bool
    ) -> None:
        """`whole`: every event is wanted, for a recording."""
        self._exchange = f"{settings.task_queue}.events"
        self._channel = connection.channel()
        self._came = came
        self._to_ack = to_ack
        self._bindings: list[tuple[str, str]] = []  # queue and routing key
        if whole:
            self._consume(MOST_RECORDED, ("#",), sample=False)
        else:
            self._consume(MOST_HEARTBEATS, (*OF_WORKERS, DECIDED), sample=False)
            self._channel.basic_qos(SAMPLE)
            self._consume(SAMPLE, OF_TASKS, sample=True)

    @property
    def is_open(self) -> bool:
        return self._channel.is_open

    @property
    def reason(self) -> BaseException | None:
        return self._channel.reason

    def bind(self) -> None:
        """Also where it is bound already. Workers declare the exchange, too."""
        self._channel.exchange_declare(self._exchange, "topic", durable=True)
        for queue, key in self._bindings:
            self._channel.queue_bind(queue, self._exchange, key)

    def acknowledge(self) -> None:
        """Lets the broker send as many again: all of the sample in one call."""
        if self._to_ack:
            self._channel.basic_ack(self._to_ack.pop(), multiple=True)

    def _consume(self, most: int, keys: tuple[str, ...], sample: bool) -> None:
        declared = self._channel.queue_declare("", exclusive=True, arguments={**OWN_QUEUE, "x-max-length": most})
        queue = str(declared.queue)
        self._bindings += [(queue, key) for key in keys]

        def keep(channel: Channel, method: Any, properties: Any, body: bytes) -> None:
            self._came.append(body)
            if sample:
                self._to_ack.append(method.delivery_tag)

        self._channel.basic_consume(queue, keep, auto_ack=not sample)


class Counter:
    """Ready messages and consumers, as a passive declare tells them."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._channel: Channel | None = None
        self._look_again: dict[str, float] = {}  # when a queue that was missing is looked for, by its name
        self._others: dict[str, int] = {}  # messages in the other queues, by name
        self._others_at = 0.0

    def count(self, now: float, delays: Any = ()) -> Queues:
        """`delays`: of retry queues, beside those of the settings, in seconds."""
        settings = self._settings
        found = Queues(at=now)
        try:
            work = self._ask(settings.task_queue, now)
        except (Refused, Misconfigured) as error:
            found.trouble = str(error)
            return found
        found.exists = work is not None
        found.ready, found.consumers = work or (None, None)
        names = {settings.retry_queue(delay): delay for delay in sorted({*settings.retry_delays, *delays})}
        if now >= self._others_at:
            self._others_at = now + OTHERS_SECONDS
            for name in (settings.dead_queue, *names):
                self._count_other(name, now)
        found.dead = self._others.get(settings.dead_queue)
        found.retry = {f"{delay:g}s": self._others[name] for name, delay in names.items() if name in self._others}
        return found

    def _count_other(self, name: str, now: float) -> None:
        try:
            answer = self._ask(name, now)
        except BrokerError:
            answer = None
        if answer:
            self._others[name] = answer[0]
        else:
            self._others.pop(name, None)

    def _ask(self, name: str, now: float) -> tuple[int, int] | None:
        """None if there is no such queue. Raises BrokerError where it cannot be asked, but the connection holds."""
        if now < self._look_again.get(name, 0.0):
            return None
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        try:
            answer = self._channel.queue_declare(name, passive=True)
        except ChannelClosedByBroker as error:
            self._look_again[name] = now + MISSING_SECONDS
            if error.reply_code == 404 and "no queue" in error.reply_text:
                return None
            raise explain(error, self._settings) from None
        self._look_again.pop(name, None)
        return int(answer.message_count), int(answer.consumer_count)
