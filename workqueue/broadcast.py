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
from collections.abc import Callable

from pika import BasicProperties, DeliveryMode
from pika.exceptions import ChannelClosedByBroker

from config import Settings
from workqueue.connection import Channel, Connection
from workqueue.dialing import backoff, dial
from workqueue.errors import FAILURES, BrokerError, Stopped, explain
from workqueue.lines import Lines, Told
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


class Broadcast:
    """For one run of a worker. `note` gets lines for people; `on_connect` is called when a heartbeat is wanted."""

    def __init__(
        self, settings: Settings, worker: str, run: str, note: Callable[[str], None], on_connect: Callable[[], None]
    ) -> None:
        self.dropped = 0  # events that had no room in the buffer, or were in it when the connection was lost
        self._lines = Lines(worker, run)
        self._settings = settings
        self._name = f"{worker} events"
        self._exchange = events_exchange(settings)
        self._note = note
        self._on_connect = on_connect
        self._guard = threading.RLock()
        self._buffer: deque[Told] = deque()
        self._progress: dict[int, tuple[Told, int]] = {}  # the last one of each task, and how many it stands for
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
        return self._asking or self._watched  # in this order: the second is set before the first ends

    def add(self, told: Told) -> None:
        """In the order of their numbers: by one thread at a time. Does not wait."""
        _, event, _, _, about, _ = told
        if self._over:
            return
        if about is None:
            self._add_own(told)
        elif event == PROGRESS:  # it may come thousands of times a second: the last one of a while will do
            with self._guard:
                _, count = self._progress.pop(about[0], (None, 0))
                self._progress[about[0]] = told, count + 1
        else:
            self._buffer.append(told)
        if len(self._buffer) + len(self._progress) > MOST_KEPT:
            self._drop_oldest()

    def _add_own(self, told: Told) -> None:
        with self._guard:
            if told[1] == HEARTBEAT:
                if not self._connected:
                    return
                self._asking = True
            self._buffer.append(told)
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Publishes what is left, if that is done in so many seconds."""
        self._close_by = time.monotonic() + seconds
        self._wake.set()
        self._ended.wait(seconds)

    def _drop_oldest(self) -> None:
        with self._guard:
            if self._buffer:
                self._buffer.popleft()
            elif self._progress:
                del self._progress[next(iter(self._progress))]
            else:  # all were taken meanwhile
                return
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

    def _take(self) -> list[Told]:
        with self._guard:
            told = [self._buffer.popleft() for _ in range(len(self._buffer))]
            progress = list(self._progress.values())
            self._progress.clear()
        return sorted([*told, *(_of_several(*last) for last in progress)]) if progress else told

    def _lose(self) -> None:
        """The connection: when there is one again, the next heartbeat tells all that matters."""
        with self._guard:
            self._connected = self._asking = False
            told = self._take()
            if self._watched:
                self.dropped += sum(about is not None for *_, about, _ in told)
            self._watched = False
            self._buffer.extendleft(each for each in told[::-1] if each[4] is None and each[1] != HEARTBEAT)

    # What is published is what came before a heartbeat, the heartbeat, and so on. Who watches takes a heartbeat for
    # all that came before it.

    def _publish_all(self, channel: Channel, told: list[Told]) -> None:
        begin = 0
        beats = [place for place, (_, event, *_) in enumerate(told) if event == HEARTBEAT]
        for end in beats:
            self._publish_group(channel, told[begin:end])
            self._ask(channel, told[end], once_more=end != beats[-1])
            begin = end + 1
        self._publish_group(channel, told[begin:])

    def _ask(self, channel: Channel, heartbeat: Told, once_more: bool) -> None:
        """Publishes it, and learns whether anybody watches. Nothing more is on its way to a broker that is slow, until
        it has answered."""
        self._returned = False
        self._publish_group(channel, [heartbeat])
        channel.basic_qos(0)  # when this is answered, all that was published is there, or has come back
        with self._guard:
            self._watched = not self._returned
            self._asking = once_more or any(event == HEARTBEAT for _, event, *_ in list(self._buffer))

    def _publish_group(self, channel: Channel, told: list[Told]) -> None:
        lines: dict[str, list[str]] = {event: [] for event in ORDER}
        for each in told:
            _, event, _, _, about, details = each
            if self._watched or about is None:
                try:
                    lines.setdefault(event, []).append(self._lines.line(each))
                except Exception:  # a handler's progress may be anything
                    with self._guard:
                        self.dropped += 1 + details.get("skipped", 0)
        for event, of_the_event in lines.items():
            self._publish(channel, event, of_the_event)

    def _publish(self, channel: Channel, event: str, lines: list[str]) -> None:
        if not lines:
            return
        body = "\n".join(lines).encode()
        if len(body) > MESSAGE_BYTES and len(lines) > 1:
            half = len(lines) // 2
            self._publish(channel, event, lines[:half])
            self._publish(channel, event, lines[half:])
        else:
            channel.basic_publish(self._exchange, event, body, PROPERTIES, mandatory=event == HEARTBEAT)


def _of_several(told: Told, count: int) -> Told:
    """Says how many before it were left out, so that nobody misses them."""
    seq, event, now, up, about, details = told
    return told if count == 1 else (seq, event, now, up, about, details | {"skipped": count - 1})
