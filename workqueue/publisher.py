"""Publishing with confirms, and going on when the connection is lost: for the sender's tasks and the workers' copies.

    publish(message)  ──►  to send  ──►  sent, no answer yet  ──►  settled: "confirmed", "returned" or "refused"
                             ▲                  │
                             └── channel ended, or refused for now

A publisher that waits for each confirm is idle for most of its time; one that never waits does not know what arrived.
This one has many on their way. What was not answered when a channel ended is published again, the very same message.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from config import Settings
from workqueue.confirms import Confirms
from workqueue.connection import Channel, Connection
from workqueue.dialing import backoff, dial
from workqueue.errors import FAILURES, HOPELESS, BrokerError, Stopped, explain, innermost
from workqueue.messages import Message

OnSettled = Callable[[Message, str], None]
ANSWER_SECONDS = 1.0  # that an answer may take, asked for at the last moment
SHUTDOWN = 320  # the broker's code for an end that is nobody's fault
CLOSED_BY_BROKER = (ChannelClosedByBroker, ConnectionClosedByBroker)


@dataclass(eq=False, slots=True)
class _Sent:
    queue: str
    message: Message
    on_settled: OnSettled
    once: bool = False  # it is not to be tried again when it is refused
    wanted: Callable[[], bool] = lambda: True
    again: bool = False  # it was handed to a broker before
    alone: bool = False  # the broker has ended a channel for it: what is on its way beside it would be sent twice
    delays: Iterator[float] | None = None  # before it is sent again


class Publisher:
    """Opens its connection when the first message comes. `publish` may be called from any thread.

    `on_settled(message, outcome)` is called once a message, on a thread of the publisher's: it must not wait. What is
    refused is tried again until nothing has been confirmed for `patience` seconds: a quorum queue without a leader
    refuses for a moment, a full queue until somebody consumes. So is connecting. `note` gets lines for people,
    `on_failure` what ends the publisher for good.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        declare: Callable[[Channel, Settings], None],
        note: Callable[[str], None],
        patience: float = math.inf,
    ) -> None:
        self._settings = settings
        self._name = name
        self._declare = declare
        self._note = note
        self._patience = patience
        self._forever = patience == math.inf
        self.on_failure: Callable[[BrokerError], None] = lambda error: None
        self._guard = threading.RLock()
        self._to_send: deque[_Sent] = deque()
        self._sent: dict[_Sent, None] = {}  # oldest first
        self._refused: list[_Sent] = []  # to be sent again, at `_again_at`
        self._again_at = 0.0
        self._channel: Channel | None = None
        self._one_by_one = False  # to find the one that the broker ends the channel for
        self._failing_since = 0.0  # nothing was confirmed since then, though we tried; 0 if all is well
        self._delays = self._backoff()
        self._attention = threading.Event()
        self._waking = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self.blocked = False  # the broker takes nothing, for want of memory or disk
        self.error: BrokerError | None = None
        self.published = 0
        """Messages handed to a broker at least once."""

    # For any thread

    def publish(
        self,
        queue: str,
        message: Message,
        on_settled: OnSettled,
        once: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`once`: what is refused is not tried again. `wanted` is asked before it is sent: if not, it is dropped, and
        nobody is told. Raises what has ended the publisher."""
        if self.error:
            raise self.error
        self._to_send.append(_Sent(queue, message, on_settled, once, wanted))
        if self._thread is None:
            with self._guard:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                    self._thread.start()
        channel = self._channel
        if channel and not self._waking:  # one wake-up for many messages
            self._waking = True
            channel.connection.submit(self._send)
            if channel is not self._channel:  # it has ended, and with it the call, it may be
                self._waking = False

    def close(self, timeout: float | None = None) -> None:
        """Returns when all is settled and the connection is closed, or after `timeout` seconds.

        Raises what has ended the publisher.
        """
        self._closing = True
        if timeout is not None:  # what no broker has got is not on its way
            with self._guard:
                self._to_send = deque(sent for sent in self._to_send if sent.again)
        self._attention.set()
        if self._thread and not (timeout is not None and self._all_settled()):
            self._ended.wait(timeout)  # not join(): interrupted once, a second join returns at once
        if self.error:
            raise self.error

    def abandon(self) -> int:
        """Nothing is sent from now on. Returns how many messages were handed to a broker at least once."""
        with self._guard:
            self._to_send.clear()
            return self.published

    # On the connection's thread

    def _send(self) -> None:
        self._waking = False
        with self._guard:
            channel = self._channel
            while channel and not channel.connection.blocked and self._to_send and not self._must_wait():
                sent = self._to_send.popleft()
                if not sent.wanted():
                    continue
                self._sent[sent] = None
                self.published += not sent.again
                sent.again = True
                message = sent.message
                channel.basic_publish(
                    "", sent.queue, message.body, message.properties, True, partial(self._on_answer, sent)
                )

    def _must_wait(self) -> bool:
        """Whether the next one must not be on its way together with what is."""
        first = next(iter(self._sent), None)
        return first is not None and (self._one_by_one or first.alone or self._to_send[0].alone)

    def _on_answer(self, sent: _Sent, outcome: str) -> None:
        if outcome == Confirms.LOST:  # the publisher's thread takes it back
            return
        with self._guard:
            if sent not in self._sent:
                return
            del self._sent[sent]
            if outcome == Confirms.CONFIRMED:
                self._works()
            settled = outcome == Confirms.CONFIRMED or not self._try_again(sent, outcome)
            one_by_one, self._one_by_one = self._one_by_one, self._one_by_one and bool(self._to_send)
        if settled:
            self._settle(sent, outcome)
        if self._to_send and (one_by_one or sent.alone or not self._sent):
            self._send()

    def _settle(self, sent: _Sent, outcome: str) -> None:
        sent.on_settled(sent.message, outcome)
        if self._closing:
            self._attention.set()

    def _works(self) -> None:
        if self._failing_since:
            self._failing_since = 0.0
            self._delays = self._backoff()

    def _backoff(self) -> Iterator[float]:
        return backoff(most=10.0 if self._forever else 1.0)

    def _failing_for(self) -> float:
        """Seconds for which nothing has worked; starts to count with the first call."""
        self._failing_since = self._failing_since or time.monotonic()
        return time.monotonic() - self._failing_since

    def _try_again(self, sent: _Sent, outcome: str) -> bool:
        """Whether it is put aside, to be sent again later."""
        if sent.once or self._failing_for() > self._patience:
            return False
        if not self._forever and outcome not in (Confirms.REFUSED, Confirms.RETURNED):
            return False
        if not self._refused:
            sent.delays = sent.delays or self._backoff()
            delay = next(sent.delays)
            self._again_at = time.monotonic() + delay
            if self._forever:
                self._note(f"cannot put a task into {sent.queue} ({outcome}): trying again in {delay:.1f} s")
        self._refused.append(sent)
        self._attention.set()
        return True

    # On the publisher's thread

    def _run(self) -> None:
        try:
            while not (self._all_settled() or self.error):
                with self._connect() as connection:
                    self._use(connection)
        except BrokerError as error:
            self._fail(error)
        except BaseException as error:  # a thread that dies must not leave anybody waiting
            self._fail(BrokerError(f"the publisher has ended: {error!r}"))
        self._ended.set()

    def _all_settled(self) -> bool:
        with self._guard:
            return self._closing and not (self._to_send or self._sent or self._refused)

    def _fail(self, error: BrokerError) -> None:
        self.error = error
        self._channel = None
        self.on_failure(error)

    def _pause(self, seconds: float | None) -> None:
        self._attention.wait(seconds)
        self._attention.clear()

    def _connect(self) -> Connection:
        """Tries for as long as there is patience. Raises BrokerError."""
        said = False
        self._failing_for()
        while True:
            try:
                connection = dial(self._settings, self._name, note=self._note)
                connection.interrupted = partial(self._gives_up, connection)
                connection.on_blocked = self._say_blocked
                return connection
            except HOPELESS:
                raise
            except BrokerError as error:
                failure = error
            delay = next(self._delays)
            if self._failing_for() + delay > self._patience:
                raise failure
            if not said and self._patience > 1:
                said = True
                trying = "trying on" if self._forever else f"trying for {self._patience:g} s"
                self._note(f"{failure.brief or failure}; {trying}")
            self._pause(delay)

    def _out_of_patience(self) -> bool:
        return self._failing_since > 0 and self._failing_for() > self._patience + ANSWER_SECONDS

    def _gives_up(self, connection: Connection) -> bool:
        return self._out_of_patience() and not connection.blocked

    def _say_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if blocked:
            self._note("The broker is out of memory or disk and takes no tasks: waiting until it does.")
        else:
            self._note("The broker takes tasks again.")
            self._send()

    def _use(self, connection: Connection) -> None:
        """Publishes over one connection, on one channel after another, until it ends or all is settled."""
        while connection.is_open and not (self._all_settled() or self.error):
            channel: Channel | None = None
            failure: BrokerError | None = None
            away = False
            try:
                channel = self._open(connection)
                self._serve(channel)
            except (*FAILURES, BrokerError) as error:
                failure, away = explain(error, self._settings), connection.is_open
            except Stopped:
                raise BrokerError("the broker takes connections, but does not answer") from None
            if channel and channel.reason:
                failure = explain(channel.reason, self._settings)
            self._take_back(channel)
            if isinstance(failure, HOPELESS):
                raise failure
            if failure and away:
                self._wait_for_queue(failure)
        if not (self._all_settled() or self.error):
            self._note(f"Connection lost ({innermost(connection.reason or BrokerError())}): connecting again.")
            self._failing_for()
            self._pause(next(self._delays))

    def _open(self, connection: Connection) -> Channel:
        channel = connection.channel()
        self._declare(channel, self._settings)
        channel.confirm_delivery()
        # In an alarm, what is published first stays in the connection, and arrives in the end even if that is lost
        # meanwhile. So the first is a message for no queue.
        channel.publish_and_wait("", b"")
        return channel

    def _wait_for_queue(self, failure: BrokerError) -> None:
        """A queue's node is away, say: the connection is open, and what was asked for was refused."""
        delay = next(self._delays)
        if self._failing_for() + delay > self._patience:
            raise failure
        if self._forever:
            self._note(f"{failure}; trying again in {delay:.1f} s")
        self._attention.clear()  # the end of the channel has set it
        self._pause(delay)

    def _serve(self, channel: Channel) -> None:
        if not (self._to_send or self._refused):
            self._works()
        channel.on_end = self._attention.set
        self._channel = channel
        channel.connection.submit(self._send)
        while channel.is_open and not (self._all_settled() or self.error):
            self._pause(max(0.0, self._again_at - time.monotonic()) if self._refused else None)
            if self._refused and time.monotonic() >= self._again_at:
                self._find_queues(channel)
                with self._guard:
                    self._to_send.extendleft(reversed(self._refused))
                    self._refused.clear()
                    anew = not self._sent
                    self._channel = None if anew else channel
                if anew:  # a quorum queue that was full, or has lost its leader, may go on to refuse this channel
                    channel.close()
                    return
                channel.connection.submit(self._send)

    def _find_queues(self, channel: Channel) -> None:
        """One of them may be gone, and is declared; or its node is away, and failing says so."""
        self._declare(channel, self._settings)
        if self._forever:
            for queue in {sent.queue for sent in self._refused}:
                channel.queue_declare(queue, passive=True)

    def _take_back(self, channel: Channel | None) -> None:
        """What a channel leaves unanswered when it ends is sent again; but not what the broker ended it for."""
        with self._guard:
            self._channel = None
            unanswered = [sent for sent in self._sent if not sent.once]
            self._sent.clear()
            reason = channel.reason if channel else None
            by_broker = isinstance(reason, CLOSED_BY_BROKER) and reason.reply_code != SHUTDOWN
            if not (by_broker and len(unanswered) == 1):
                self._to_send.extendleft(reversed(unanswered))
                self._one_by_one = self._one_by_one or by_broker
                return
        (culprit,) = unanswered
        culprit.alone = True
        outcome = str(getattr(reason, "reply_text", reason))
        if not (self._forever and self._try_again(culprit, outcome)):
            self._note(f"Refused: {culprit.message.label}: {outcome}")
            self._settle(culprit, Confirms.REFUSED)
