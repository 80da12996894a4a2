"""Publishes a worker's events for whoever watches, over a connection and by a thread of its own.

    event ──► buffer ──► every 100 ms, one message a name ──► exchange task_queue.events ──► queues of those who watch
                 │
                 └─ is full, since the broker is slow: the oldest is dropped, and counted

Only this thread waits for the broker, and nothing of this is raised anywhere else: a worker's tasks do not notice.

Nobody watches most of the time. So the heartbeat is published as `mandatory`: while the broker returns it, no queue is
bound, and the events of tasks are left out. Those that happen between a heartbeat and the broker's answer are kept
until it is known, so that who begins to watch misses none after the first heartbeat.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from pika import BasicProperties, DeliveryMode
from pika.exceptions import ChannelClosedByBroker

from config import Settings
from workqueue.connection import Channel, Connection
from workqueue.dialing import backoff, dial
from workqueue.errors import FAILURES, BrokerError, Stopped, explain
from workqueue.queues import declare_events_exchange, events_exchange

HEARTBEAT = "worker_heartbeat"
PROGRESS = "task_progress"
GATHER_SECONDS = 0.1  # many events in a message cost a fifth of what they cost one by one
MOST_KEPT = 10_000  # events in the buffer
MESSAGE_BYTES = 256 * 1024  # at most, but for a longer event
REFUSED, ANOTHER_KIND = 403, 406
PROPERTIES = BasicProperties(content_type="application/x-ndjson", delivery_mode=DeliveryMode.Transient)
# of messages that are published together: a task begins before it ends
ORDER = ("worker_ready", "task_started", PROGRESS, "task_lost_connection")


Item = tuple[int, str, str]
"""An event: its number, its name, and all of it as JSON."""


class Broadcast:
    """For one run of a worker. `note` gets lines for people; `on_connect` is called when a heartbeat is wanted."""

    def __init__(
        self, settings: Settings, worker: str, note: Callable[[str], None], on_connect: Callable[[], None]
    ) -> None:
        self.dropped = 0  # events that had no room in the buffer, or were in it when the connection was lost
        self._settings = settings
        self._name = f"{worker} events"
        self._exchange = events_exchange(settings)
        self._note = note
        self._on_connect = on_connect
        self._guard = threading.Lock()
        self._buffer: deque[Item] = deque()
        self._progress: dict[int, tuple[Item, int]] = {}  # the last one of each task, and how many it stands for
        self._connected = False
        self._watched = False
        self._asking = False  # a heartbeat is in the buffer, or was not answered yet
        self._returned = False  # the last heartbeat
        self._over = False
        self._delays = backoff()
        self._close_by = math.inf  # in seconds of time.monotonic()
        self._wake = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="events", daemon=True).start()

    # For any thread

    @property
    def wanted(self) -> bool:
        """Whether events of tasks are. Of the worker's own, all are."""
        return self._watched or self._asking

    def add(self, item: Item, delivery: int) -> None:
        """In the order of their numbers; `delivery` is 0 for the worker's own. Does not wait."""
        _, event, _ = item
        if self._over or (event == HEARTBEAT and not self._connected):
            return
        with self._guard:
            if event == PROGRESS:  # it may come thousands of times a second: the last one of a while will do
                _, count = self._progress.pop(delivery, (None, 0))
                self._progress[delivery] = item, count + 1
            else:
                self._buffer.append(item)
            if len(self._buffer) + len(self._progress) > MOST_KEPT:
                self._drop_oldest()
            if not delivery:
                self._asking |= event == HEARTBEAT
                self._wake.set()

    def close(self, seconds: float) -> None:
        """Publishes what is left, if that is done in so many seconds."""
        self._close_by = time.monotonic() + seconds
        self._wake.set()
        self._ended.wait(seconds)

    def _drop_oldest(self) -> None:
        if self._buffer:
            self._buffer.popleft()
        else:
            del self._progress[next(iter(self._progress))]
        self.dropped += 1

    # On the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    with dial(self._settings, self._name, self._out_of_time) as connection:
                        self._use(connection)
                        break
                except (*FAILURES, BrokerError) as error:
                    if isinstance(error, ChannelClosedByBroker) and error.reply_code in (REFUSED, ANOTHER_KIND):
                        self._note(f"no events are published: {explain(error, self._settings)}")
                        break
                self._lose()
                self._pause(next(self._delays))
        except Stopped:
            pass  # out of time
        except BaseException as error:  # whatever it was, the tasks are worth more
            self._note(f"no events are published any more: {error!r}")
        self._over = True
        self._lose()
        self._ended.set()

    @property
    def _closing(self) -> bool:
        return self._close_by < math.inf

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._close_by

    def _pause(self, seconds: float | None) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _use(self, connection: Connection) -> None:
        """Publishes until the worker ends. Raises what ends the channel."""
        channel = self._open(connection)
        self._delays = backoff()
        self._connected = True
        self._on_connect()
        while True:
            closing = self._closing
            self._publish_all(channel, self._take())
            if closing:
                return
            self._pause(GATHER_SECONDS if self._watched else None)
            if channel.reason:
                raise channel.reason

    def _open(self, connection: Connection) -> Channel:
        channel = connection.channel()
        try:
            declare_events_exchange(channel, self._settings)
        except ChannelClosedByBroker as error:
            if error.reply_code != REFUSED:
                raise
            channel = connection.channel()
            try:  # one that an operator has made will do
                declare_events_exchange(channel, self._settings, passive=True)
            except ChannelClosedByBroker:
                raise error from None
        channel.on_end = self._wake.set
        channel.on_return = self._on_return
        return channel

    def _on_return(self) -> None:
        self._returned = True

    def _take(self) -> list[Item]:
        with self._guard:
            items = list(self._buffer)
            if self._progress:
                items = sorted([*items, *(_of_several(*found) for found in self._progress.values())])
            self._buffer.clear()
            self._progress.clear()
        return items

    def _lose(self) -> None:
        """The connection: when there is one again, the next heartbeat tells all that matters."""
        with self._guard:
            self._connected = self._asking = False
            if self._watched:
                self.dropped += sum(map(_of_a_task, self._buffer)) + len(self._progress)
            self._leave_out_tasks()

    # What is published is what came before a heartbeat, the heartbeat, and so on. Who watches takes a heartbeat for
    # all that came before it.

    def _publish_all(self, channel: Channel, items: list[Item]) -> None:
        group: list[Item] = []
        for item in items:
            if item[1] == HEARTBEAT:
                self._publish_group(channel, group)
                group = []
                self._ask(channel, item)
            else:
                group.append(item)
        self._publish_group(channel, group)

    def _ask(self, channel: Channel, heartbeat: Item) -> None:
        """Publishes it, and learns whether anybody watches. Nothing more is on its way to a broker that is slow, until
        it has answered."""
        self._returned = False
        self._publish(channel, HEARTBEAT, [heartbeat[2]])
        channel.basic_qos(0)  # when this is answered, all that was published is there, or has come back
        self._heed_answer(watched=not self._returned)

    def _heed_answer(self, watched: bool) -> None:
        with self._guard:
            self._asking = any(event == HEARTBEAT for _, event, _ in self._buffer)  # then it is asked again
            if watched or self._asking:
                self._watched = watched
            else:
                self._leave_out_tasks()

    def _leave_out_tasks(self) -> None:
        kept = [item for item in self._buffer if not _of_a_task(item) and item[1] != HEARTBEAT]
        self._buffer = deque(kept)
        self._progress.clear()
        self._watched = False

    def _publish_group(self, channel: Channel, items: list[Item]) -> None:
        lines: dict[str, list[str]] = {event: [] for event in ORDER}
        for item in items:
            if self._watched or not _of_a_task(item):
                lines.setdefault(item[1], []).append(item[2])
        for event, of_the_event in lines.items():
            self._publish(channel, event, of_the_event)

    def _publish(self, channel: Channel, event: str, lines: Iterable[str]) -> None:
        message: list[str] = []
        size = 0
        for line in lines:
            if size + len(line) > MESSAGE_BYTES and message:
                self._send(channel, event, message)
                message, size = [], 0
            message.append(line)
            size += len(line) + 1
        if message:
            self._send(channel, event, message)

    def _send(self, channel: Channel, event: str, lines: list[str]) -> None:
        body = "\n".join(lines).encode()
        channel.basic_publish(self._exchange, event, body, PROPERTIES, mandatory=event == HEARTBEAT)


def _of_a_task(item: Item) -> bool:
    return item[1].startswith("task_")


def _of_several(item: Item, count: int) -> Item:
    """Says how many before it were left out, so that nobody misses them."""
    seq, event, line = item
    return item if count == 1 else (seq, event, f'{line[:-1]}, "skipped": {count - 1}}}')
