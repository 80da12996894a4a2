"""Publishing many messages fast and safely: up to a window of them unconfirmed at once.

A publisher that waits for each confirm is idle for most of its time; one that never waits does not know what arrived.
This one keeps up to `window` messages on their way, and settles each when the broker answers for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from pika import BasicProperties, URLParameters
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import Basic

from broker import (
    BrokerError,
    Connection,
    Message,
    Misconfigured,
    Refused,
    backoff,
    declare_task_queue,
    explain,
    innermost,
    open_connection,
)
from config import Settings


class Publisher:
    """Publishes with confirms, up to `window` unconfirmed at once, and survives the loss of its connection.

    `publish` is called by one thread and waits while the window is full. The connection lives on another, which calls
    `on_settled(label, outcome)` once a message: "confirmed", "returned" (there is no such queue) or "refused". What
    was not confirmed when a connection died is published again, the very same message; so is what was refused, until
    nothing has been confirmed for CONNECT_TIMEOUT_SECONDS: a quorum queue without a leader refuses for a moment, a
    full queue until somebody consumes. `note` gets lines for people.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        window: int,
        on_settled: Callable[[str, str], None],
        note: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._name = name
        self._on_settled = on_settled
        self._note = note
        self._room = threading.Semaphore(window)
        self._inbox: deque[Message] = deque()  # filled by publish(), emptied by the connection's thread
        self._unconfirmed: dict[int, Message] = {}  # by delivery tag, oldest first
        self._again: deque[Message] = deque()  # to be published again
        self._refused: list[Message] = []  # waiting for that
        self._refused_since = 0.0  # no confirm since then; 0 if all is well
        self._returned: set[str] = set()
        self.published = 0
        """Messages handed to a broker at least once."""
        self._one_by_one = False
        self._next_tag = 1
        self._give_up_at = 0.0
        self._connection: Connection | None = None
        self._channel: Any = None
        self._delays = backoff(most=1.0)
        self._connection_guard = threading.Lock()
        self._wake_pending = False
        self._no_more = False
        self._error: Exception | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def publish(self, message: Message) -> None:
        """Hands over one message; waits while `window` of them are unconfirmed. Raises what ended the publisher."""
        self._room.acquire()
        if self._error:
            raise self._error
        self._inbox.append(message)
        self._wake()

    def close(self, timeout: float | None = None) -> None:
        """Returns when every message is settled, or after `timeout` seconds. Raises what ended the publisher."""
        self._no_more = True
        self._wake()
        self._ended.wait(timeout)  # not join(): interrupted once, a second join returns at once
        if self._error:
            raise self._error

    def _wake(self) -> None:
        if not self._wake_pending:
            self._wake_pending = True
            with self._connection_guard:
                if self._connection:
                    self._connection.ioloop.add_callback_threadsafe(self._publish_more)

    # All below runs on the connection's thread.

    def _run(self) -> None:
        try:
            while not (self._all_settled() or self._error):
                self._serve_one_connection()
                if not (self._all_settled() or self._error):
                    time.sleep(next(self._delays))
        except Exception as error:
            self._error = error
        if self._error:
            self._room.release(1_000_000)  # let publish() see it
        self._ended.set()

    def _all_settled(self) -> bool:
        return self._no_more and not (self._unconfirmed or self._again or self._refused or self._inbox)

    def _serve_one_connection(self) -> None:
        """Connects, publishes, and returns when all is settled, or the connection is gone, or all is given up."""
        usable = self._parameters_that_work()
        usable.blocked_connection_timeout = None  # a sender waits as long as it takes, and says so
        connection = Connection(
            usable,
            on_open_callback=self._open_channel,
            on_open_error_callback=self._on_connection_gone,
            on_close_callback=self._on_connection_gone,
        )
        with self._connection_guard:
            self._connection = connection
        try:
            opened_at = time.monotonic()
            connection.ioloop.start()
            if time.monotonic() - opened_at > self._settings.connect_timeout_seconds:
                self._give_up_at = 0.0  # it was idle for long: its end is news, and not one more failure
        finally:
            with self._connection_guard:
                self._connection = self._channel = None
            connection.ioloop.close()

    def _parameters_that_work(self) -> URLParameters:
        """Tries for CONNECT_TIMEOUT_SECONDS to connect and to declare the queue. Raises BrokerError."""
        self._give_up_at = self._give_up_at or time.monotonic() + self._settings.connect_timeout_seconds
        while True:
            try:
                connection, usable = open_connection(self._settings, self._name)
                with connection:
                    declare_task_queue(connection.channel(), self._settings)
                return usable
            except (AMQPError, OSError, BrokerError) as error:
                failure = explain(error, self._settings)
                delay = next(self._delays)
                if isinstance(failure, (Refused, Misconfigured)) or time.monotonic() + delay > self._give_up_at:
                    raise failure from None
                time.sleep(delay)

    def _open_channel(self, connection: Connection) -> None:
        connection.add_on_connection_blocked_callback(
            lambda *_: self._note("The broker is out of memory or disk and takes no tasks: waiting until it does.")
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._note("The broker takes tasks again."))
        connection.channel(on_open_callback=self._start_publishing)

    def _start_publishing(self, channel: Any) -> None:
        channel.add_on_close_callback(self._on_channel_gone)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(ack_nack_callback=self._on_confirm)
        self._channel = channel
        self._next_tag = 1
        self._publish_more()

    def _publish_more(self) -> None:
        self._wake_pending = False
        if self._channel is None or self._connection is None or self._error:
            return
        queue = self._settings.task_queue
        with self._connection.in_one_write():
            while (self._again or self._inbox) and not (self._one_by_one and self._unconfirmed):
                if self._again:
                    message = self._again.popleft()
                else:
                    message = self._inbox.popleft()
                    self.published += 1
                self._unconfirmed[self._next_tag] = message
                self._next_tag += 1
                self._channel.basic_publish("", queue, message.body, message.properties, mandatory=True)
        if self._all_settled() and self._connection.is_open:
            self._connection.close()

    def _on_return(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        # a returned message is confirmed like any other, right after it was returned
        self._returned.add(str(properties.message_id))

    def _on_confirm(self, frame: Any) -> None:
        """Settles the message of one delivery tag, or with `multiple` all up to it."""
        method = frame.method
        if isinstance(method, Basic.Ack):  # the broker works
            self._give_up_at = self._refused_since = 0.0
            self._delays = backoff(most=1.0)
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))
        for tag in tags:
            message = self._unconfirmed.pop(tag)
            if isinstance(method, Basic.Nack):
                self._on_refusal(message)
            elif message.properties.message_id in self._returned:
                self._returned.remove(message.properties.message_id)
                self._settle(message, "returned")
            else:
                self._settle(message, "confirmed")
        self._publish_more()

    def _on_refusal(self, message: Message) -> None:
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._settings.connect_timeout_seconds:
            self._settle(message, "refused")
            return
        if not self._refused and self._connection:
            self._connection.ioloop.call_later(next(self._delays), self._publish_refused)
        self._refused.append(message)

    def _publish_refused(self) -> None:
        self._again.extend(self._refused)
        self._refused.clear()
        self._publish_more()

    def _settle(self, message: Message, outcome: str) -> None:
        if not self._again:
            self._one_by_one = False
        try:
            self._on_settled(message.label, outcome)
        except Exception as error:  # raised through pika, it would pass for a lost connection
            self._give_up(error)
        self._room.release()

    def _on_channel_gone(self, channel: Any, reason: Exception) -> None:
        """The broker objects to one of the unconfirmed messages (too large, say) and does not tell which: publish
        them again one by one, and the one that closes the channel on its own is refused."""
        self._channel = None
        if not isinstance(reason, ChannelClosedByBroker):
            return
        if reason.reply_code == 403:
            self._give_up(explain(reason, self._settings))
            return
        if len(self._unconfirmed) == 1:
            (message,) = self._unconfirmed.values()
            self._unconfirmed.clear()
            self._note(f"Refused: {message.label}: {reason.reply_text}")
            self._settle(message, "refused")
        else:
            self._take_back_unconfirmed()
            self._one_by_one = True
        if self._connection:
            self._connection.channel(on_open_callback=self._start_publishing)

    def _on_connection_gone(self, connection: Connection, reason: BaseException) -> None:
        self._channel = None
        if not (self._all_settled() or self._error):
            self._take_back_unconfirmed()
            self._note(f"Connection lost ({innermost(reason)}): connecting again.")
        connection.ioloop.stop()

    def _give_up(self, error: Exception) -> None:
        self._error = error
        if self._connection and self._connection.is_open:
            self._connection.close()

    def _take_back_unconfirmed(self) -> None:
        self._again.extendleft(reversed(self._unconfirmed.values()))
        self._again.extend(self._refused)
        self._unconfirmed.clear()
        self._refused.clear()
        self._returned.clear()
