"""Everything that speaks AMQP for both programs: connecting, declaring the queues, publishing with confirms.

A connection belongs to one thread. `connect` gives the calling thread one of its own; `Publisher` keeps its
connection on a thread of its own, so that heartbeats flow whatever the program that publishes is doing.
"""

from __future__ import annotations

import logging
import random
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pika
from pika import BasicProperties, BlockingConnection, DeliveryMode, SelectConnection, URLParameters
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)

from config import Settings, mask

BLOCKED_SECONDS = 30.0  # how long a worker's publish waits on a broker that is out of memory or disk before it says so

# pika logs each failure with a traceback before it raises; the programs say the same in one line
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


class BrokerError(Exception):
    """Something between us and the broker, which may pass; the message is one line for people."""

    exit_code = 3


class Refused(BrokerError):
    """The broker, or its certificate, does not let us in; trying again will not help."""


class Misconfigured(BrokerError):
    """A queue that cannot be used as the settings say; trying again will not help."""

    exit_code = 2


# Connecting


def parameters(settings: Settings, url: str, name: str) -> URLParameters:
    """How to connect to `url`; `name` is what RabbitMQ's own pages show. What the URL says itself wins."""
    result = URLParameters(url)
    if result.heartbeat is None:
        result.heartbeat = settings.heartbeat_seconds
    if result.blocked_connection_timeout is None:
        result.blocked_connection_timeout = BLOCKED_SECONDS
    patience = settings.connect_timeout_seconds / len(settings.rabbitmq_urls)
    result.socket_timeout = result.stack_timeout = patience
    result.client_properties = {"connection_name": name}
    return result


@contextmanager
def connect(settings: Settings, name: str) -> Iterator[BlockingConnection]:
    """A connection to the first broker of RABBITMQ_URL that answers, closed at the end of the block.

    Whatever pika raises in the block leaves it as a BrokerError.
    """
    try:
        connection, _ = _first_that_answers(settings, name)
        try:
            yield connection
        finally:
            with suppress(AMQPError, OSError):
                connection.close()
    except (AMQPError, OSError) as error:
        raise explain(error, settings) from None


def _first_that_answers(settings: Settings, name: str) -> tuple[BlockingConnection, str]:
    """A connection, and the URL it leads to."""
    failure = BrokerError("no broker")
    for url in settings.rabbitmq_urls:
        try:
            return BlockingConnection(parameters(settings, url, name)), url
        except (AMQPError, OSError) as error:
            failure = explain(error, settings, url)
            if isinstance(failure, Refused):
                break
    raise failure from None


def backoff(first: float = 0.1, most: float = 10.0) -> Iterator[float]:
    """Seconds to wait before each further attempt: doubling up to `most`, and jittered, so that workers that lost
    their broker together do not come back together."""
    while True:
        yield first * random.uniform(0.5, 1.0)
        first = min(first * 2, most)


def explain(error: Exception, settings: Settings, url: str = "") -> BrokerError:
    """What an error of pika's means to people, and whether trying again can help; `url` if it came from connecting."""
    if isinstance(error, BrokerError):
        return error
    where = mask(url or ",".join(settings.rabbitmq_urls))
    text = str(getattr(error, "reply_text", "") or _innermost(error))
    code = getattr(error, "reply_code", 0)
    if isinstance(error, ProbableAuthenticationError):
        return Refused(f"{where} refused the user name or the password: set them in RABBITMQ_URL")
    if isinstance(error, ProbableAccessDeniedError) and "is down" not in text:
        return Refused(f"{where} refused the virtual host ({text}): set it as the path of RABBITMQ_URL")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"the certificate of {where} is not trusted: {error.verify_message}")
    if isinstance(error, ChannelClosedByBroker) and code == 403:
        return Refused(f"{where} does not allow this ({text}): grant the permission, or set QUEUE_TYPE=existing")
    if isinstance(error, ChannelClosedByBroker) and code == 405:
        return Misconfigured(f"another connection has the queue for itself ({text}): choose another TASK_QUEUE")
    if isinstance(error, ChannelClosedByBroker) and (
        clash := re.search("inequivalent arg '(.+?)' for queue '(.+?)'", text)
    ):
        argument, queue = clash.groups()
        return Misconfigured(
            f"queue {queue!r} exists with another {argument!r} ({text.partition(': ')[2]}): choose another TASK_QUEUE, "
            f"set QUEUE_TYPE to {_other_ways(settings)}, or delete the queue when it is empty"
        )
    if isinstance(error, ChannelClosedByBroker) and code == 404 and settings.queue_type == "existing":
        return Misconfigured(f"{text.partition(' - ')[2]}: make it, or set QUEUE_TYPE=classic")
    if isinstance(error, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return BrokerError(f"the broker closed the connection: {text}")
    if url:
        return BrokerError(f"no broker answers at {where} ({text})")
    return BrokerError(f"the connection to the broker is lost ({text})")


def _other_ways(settings: Settings) -> str:
    return " or ".join(kind for kind in ("classic", "quorum", "existing") if kind != settings.queue_type)


def _innermost(error: BaseException) -> str:
    """The plain words inside pika's nested exceptions: "Connection refused" rather than three class names."""
    while True:
        inner = [part for part in (*error.args, getattr(error, "exception", None)) if isinstance(part, BaseException)]
        if not inner:
            break
        error = inner[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words: list[str] = re.findall(r"'([^']+)'", str(error)) or [str(error) or type(error).__name__]
    return words[-1]


# Queues


def declare_task_queue(channel: BlockingChannel, settings: Settings) -> None:
    """Makes sure that the work queue exists: durable, so that it outlives a restart of the broker."""
    if settings.queue_type == "quorum":
        arguments = {
            **_QUORUM,
            "x-delivery-limit": settings.delivery_limit,
            **_dead_letters_to(settings.dead_queue, settings),
        }
        channel.queue_declare(settings.task_queue, durable=True, arguments=arguments)
    elif settings.queue_type == "classic":
        channel.queue_declare(settings.task_queue, durable=True)


def declare_queues(channel: BlockingChannel, settings: Settings) -> None:
    """Makes sure that the work queue, the dead queue and one retry queue a delay exist."""
    declare_task_queue(channel, settings)
    if settings.queue_type == "existing":
        return
    quorum = settings.queue_type == "quorum"
    # without a limit of its own, RabbitMQ 4 drops a dead task that has been looked at 20 times
    channel.queue_declare(
        settings.dead_queue, durable=True, arguments={**_QUORUM, "x-delivery-limit": 2**31} if quorum else None
    )
    for delay in settings.retry_delays:
        channel.queue_declare(
            settings.retry_queue(delay),
            durable=True,
            arguments={
                **(_QUORUM if quorum else {}),
                "x-message-ttl": round(delay * 1000),
                **_dead_letters_to(settings.task_queue, settings),
            },
        )


def raise_if_closed(channel: BlockingChannel, settings: Settings) -> None:
    """Raises BrokerError with the broker's reason if it has closed the channel, of which pika only keeps a note."""
    if not channel.is_open:
        reason = getattr(channel, "_closing_reason", None)
        raise explain(reason, settings) if reason else BrokerError("the broker closed the channel")


def ready_tasks(channel: BlockingChannel, settings: Settings) -> int:
    """Tasks in the work queue that are not in the hands of a worker."""
    return channel.queue_declare(settings.task_queue, passive=True).method.message_count


_QUORUM = {"x-queue-type": "quorum"}


def _dead_letters_to(queue: str, settings: Settings) -> dict[str, Any]:
    """Arguments of a queue that hands on what expires or is given up in it to `queue`."""
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
    if settings.queue_type == "quorum":  # hand over with a confirm; RabbitMQ wants the overflow rule with it
        arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    return arguments


# Publishing


@dataclass(frozen=True, slots=True)
class Message:
    """What is published; `label` names it to people."""

    body: bytes
    properties: BasicProperties
    label: str = ""


def copy(body: bytes, properties: BasicProperties, headers: dict[str, Any]) -> Message:
    """The same message for another queue, persistent, with more headers, and without what would expire or divert it."""
    kept = {name: value for name, value in (properties.headers or {}).items() if name not in ("CC", "BCC")}
    return Message(
        body,
        BasicProperties(
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            headers={**kept, **headers},
            delivery_mode=DeliveryMode.Persistent,
            priority=properties.priority,
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
            message_id=properties.message_id,
            timestamp=properties.timestamp,
            type=properties.type,
            app_id=properties.app_id,
        ),
    )


def publish_confirmed(settings: Settings, name: str, queue: str, message: Message) -> None:
    """Publishes one message to `queue` over a connection of its own, and returns when the broker has confirmed it.

    Of its own, since a broker that is out of memory or disk blocks connections that publish: the connection that
    acknowledges must not be one of them. Raises BrokerError; then the message may or may not have arrived.
    """
    with connect(settings, name) as connection:
        channel = connection.channel()
        declare_queues(channel, settings)  # somebody may have deleted it
        channel.confirm_delivery()
        try:
            channel.basic_publish("", queue, message.body, message.properties, mandatory=True)
        except UnroutableError:
            raise Misconfigured(f"there is no queue {queue!r}: make it, or set QUEUE_TYPE=classic") from None
        except NackError:
            raise BrokerError(f"queue {queue!r} refused a message") from None


class Publisher:
    """Publishes with confirms, up to `window` unconfirmed at once, and survives the loss of its connection.

    `publish` is called by one thread and waits while the window is full. The connection lives on another, which calls
    `on_settled(label, outcome)` once a message: "confirmed", "returned" (there is no such queue) or "refused". What
    was not confirmed when a connection died is published again, the very same message. `note` gets lines for people.
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
        self._again: deque[Message] = deque()  # unconfirmed on a connection or channel that is gone
        self._returned: set[str] = set()
        self.published = 0
        """Messages handed to a broker at least once."""
        self._one_by_one = False
        self._next_tag = 1
        self._give_up_at = 0.0
        self._connection: SelectConnection | None = None
        self._channel: Any = None
        self._connection_guard = threading.Lock()
        self._wake_pending = False
        self._no_more = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

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
        self._thread.join(timeout)
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
        except Exception as error:
            self._error = error
        if self._error:
            self._room.release(1_000_000)  # let publish() see it

    def _all_settled(self) -> bool:
        return self._no_more and not (self._unconfirmed or self._again or self._inbox)

    def _serve_one_connection(self) -> None:
        """Connects, publishes, and returns when all is settled, or the connection is gone, or all is given up."""
        usable = parameters(self._settings, self._url_that_answers(), self._name)
        usable.blocked_connection_timeout = None  # a sender waits as long as it takes, and says so
        connection = SelectConnection(
            usable,
            on_open_callback=self._open_channel,
            on_open_error_callback=self._on_connection_gone,
            on_close_callback=self._on_connection_gone,
        )
        with self._connection_guard:
            self._connection = connection
        try:
            connection.ioloop.start()
        finally:
            with self._connection_guard:
                self._connection = self._channel = None
            connection.ioloop.close()

    def _url_that_answers(self) -> str:
        """Tries for CONNECT_TIMEOUT_SECONDS to connect and to declare the queue. Raises BrokerError."""
        self._give_up_at = self._give_up_at or time.monotonic() + self._settings.connect_timeout_seconds
        delays = backoff(most=1.0)
        while True:
            try:
                connection, url = _first_that_answers(self._settings, self._name)
                declare_task_queue(connection.channel(), self._settings)
                connection.close()
                return url
            except (AMQPError, OSError, BrokerError) as error:
                failure = explain(error, self._settings)
                delay = next(delays)
                if isinstance(failure, (Refused, Misconfigured)) or time.monotonic() + delay > self._give_up_at:
                    raise failure from None
                time.sleep(delay)

    def _open_channel(self, connection: SelectConnection) -> None:
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
        self._give_up_at = 0.0
        self._next_tag = 1
        self._publish_more()

    def _publish_more(self) -> None:
        self._wake_pending = False
        if self._channel is None:
            return
        while (self._again or self._inbox) and not (self._one_by_one and self._unconfirmed):
            if self._again:
                message = self._again.popleft()
            else:
                message = self._inbox.popleft()
                self.published += 1
            self._unconfirmed[self._next_tag] = message
            self._next_tag += 1
            self._channel.basic_publish("", self._settings.task_queue, message.body, message.properties, mandatory=True)
        if self._all_settled() and self._connection and self._connection.is_open:
            self._connection.close()

    def _on_return(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        # a returned message is confirmed like any other, right after it was returned
        self._returned.add(str(properties.message_id))

    def _on_confirm(self, frame: Any) -> None:
        """Settles the message of one delivery tag, or with `multiple` all up to it."""
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
        for tag in tags:
            message = self._unconfirmed.pop(tag)
            outcome = "confirmed" if isinstance(method, pika.spec.Basic.Ack) else "refused"
            if message.properties.message_id in self._returned:
                self._returned.remove(message.properties.message_id)
                outcome = "returned"
            self._settle(message, outcome)
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

    def _on_connection_gone(self, connection: SelectConnection, reason: BaseException) -> None:
        self._channel = None
        if not self._all_settled():
            self._take_back_unconfirmed()
            self._note(f"Connection lost ({_innermost(reason)}): connecting again.")
        connection.ioloop.stop()

    def _give_up(self, error: Exception) -> None:
        self._error = error
        if self._connection:
            self._connection.ioloop.stop()

    def _take_back_unconfirmed(self) -> None:
        self._again.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._returned.clear()
