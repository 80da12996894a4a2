"""What both programs need of AMQP: connecting, declaring the queues, publishing a message with a confirm.

A connection belongs to one thread: `connect` gives the calling thread one of its own.
"""

from __future__ import annotations

import copy
import errno
import logging
import os
import random
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pika.data
from pika import BasicProperties, BlockingConnection, DeliveryMode, SelectConnection, SSLOptions, URLParameters
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)
from pika.heartbeat import HeartbeatChecker

from config import Settings, mask, tls_context

BLOCKED_SECONDS = 30.0  # how long a worker's publish waits on a broker that is out of memory or disk before it says so

ONE_WRITE = 2**16  # bytes that are held back at most, to be written together

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


def _decode_value_or_none(encoded: bytes, offset: int) -> tuple[Any, int]:
    """One value of a header. What pika cannot decode would end the connection, and so every worker in turn."""
    try:
        return _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError, RecursionError):
        kind, rest = encoded[offset : offset + 1], offset + 1
        if kind == b"T":  # a time stamp that is out of bounds, such as one in milliseconds
            return None, rest + 8
        if kind in (b"F", b"A"):  # a table or an array nested too deeply
            return None, rest + 4 + int.from_bytes(encoded[rest : rest + 4], "big")
        raise


_decode_value = pika.data.decode_value
pika.data.decode_value = _decode_value_or_none


# Connecting


class _SignsOfLife(HeartbeatChecker):
    """pika looks for a sign of life every heartbeat + 5 s, so that a dead link is noticed after twice that. RabbitMQ
    sends two in every heartbeat: looking once in each is enough, and notices within two."""

    def _start_check_timer(self) -> None:
        self._check_interval = self._timeout  # type: ignore[attr-defined]  # the stubs leave out what is private
        super()._start_check_timer()  # type: ignore[misc]


class Connection(SelectConnection):
    """pika's connection, which notices a dead link within two heartbeats, and can write many messages at once."""

    _held_back: bytearray | None = None

    @contextmanager
    def in_one_write(self) -> Iterator[None]:
        """What is published in the block goes out together: by itself, pika makes three system calls a message."""
        self._held_back = bytearray()
        try:
            yield
        finally:
            held_back, self._held_back = self._held_back, None
            self._write(held_back)

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        if self._held_back is None:
            super()._output_marshaled_frames(marshaled_frames)  # type: ignore[misc]
            return
        for frame in marshaled_frames:
            self._held_back += frame
            if len(self._held_back) > ONE_WRITE:
                held_back, self._held_back = self._held_back, bytearray()
                self._write(held_back)

    def _write(self, data: bytearray) -> None:
        if data:
            super()._output_marshaled_frames([bytes(data)])  # type: ignore[misc]

    def _create_heartbeat_checker(self) -> HeartbeatChecker | None:
        heartbeat = self.params.heartbeat
        return _SignsOfLife(self, heartbeat) if isinstance(heartbeat, int) and heartbeat else None


def parameters(settings: Settings, url: str, name: str) -> URLParameters:
    """How to connect to `url`; `name` is what RabbitMQ's own pages show. What the URL says itself wins."""
    result = URLParameters(url)
    if result.heartbeat is None:
        result.heartbeat = settings.heartbeat_seconds
    if result.blocked_connection_timeout is None:
        result.blocked_connection_timeout = BLOCKED_SECONDS
    if result.ssl_options:
        # the host's name as it was given, not the address that we try, is what the certificate must be for
        result.ssl_options = SSLOptions(tls_context(settings), server_hostname=result.host)
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
        connection, _ = open_connection(settings, name)
        try:
            yield connection
        finally:
            with suppress(AMQPError, OSError):
                connection.close()
    except (AMQPError, OSError) as error:
        raise explain(error, settings) from None


def open_connection(settings: Settings, name: str) -> tuple[BlockingConnection, URLParameters]:
    """A connection, and the parameters that led to it. Raises BrokerError."""
    failures = []
    for url in settings.rabbitmq_urls:
        try:
            for usable in _addresses(parameters(settings, url, name)):
                try:
                    return BlockingConnection(usable, _impl_class=Connection), usable  # type: ignore[arg-type]
                except (AMQPError, AMQPConnectorException, OSError) as error:  # pika's time-outs are no AMQPError
                    failures.append(explain(error, settings, url))
                    if isinstance(failures[-1], Refused):
                        raise failures[-1] from None
                    if _TIMED_OUT not in str(failures[-1]) and (alert := _tls_alert(usable)):
                        raise explain(alert, settings, url) from None
        except socket.gaierror as error:
            failures.append(explain(error, settings, url))
    raise next((failure for failure in failures if _NO_ADDRESS not in str(failure)), failures[-1])


def _addresses(named: URLParameters) -> Iterator[URLParameters]:
    """The same parameters for each address that the host's name stands for.

    pika would try them all by itself, but tell only of the last: of ::1, say, where a machine does not use that, and
    not of the password that was refused at 127.0.0.1.
    """
    for *_, (address, *_) in socket.getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM):
        usable = copy.copy(named)
        usable.host = str(address)
        yield usable


def _tls_alert(usable: URLParameters) -> ssl.SSLError | None:
    """What a broker that refuses our certificate says, if it does.

    With TLS 1.3 it says so after our side of the handshake; when pika has written by then, the end of the connection
    may be all that it sees. Here nothing is written, and the reason can be read.
    """
    if not usable.ssl_options:
        return None
    try:
        with (
            socket.create_connection((usable.host, usable.port), usable.socket_timeout) as plain,
            usable.ssl_options.context.wrap_socket(plain, server_hostname=usable.ssl_options.server_hostname) as link,
        ):
            link.settimeout(1.0)
            link.recv(1)
    except OSError as error:
        return error if isinstance(error, ssl.SSLError) and _REFUSES_CERTIFICATE.search(str(error)) else None
    return None


_REFUSES_CERTIFICATE = re.compile("ALERT_.*(CERTIFICATE|UNKNOWN_CA)")
_TIMED_OUT = os.strerror(errno.ETIMEDOUT)
_NO_ADDRESS = "this machine has no way to that address"


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
    where = ",".join(mask(known) for known in ([url] if url else settings.rabbitmq_urls))
    text = str(getattr(error, "reply_text", "") or innermost(error))
    code = getattr(error, "reply_code", 0)
    # pika takes every end of a connection at this stage for a refusal; RabbitMQ says so when it is one
    said_so = "ConnectionClosedByBroker" in str(error)
    if isinstance(error, ProbableAuthenticationError) and said_so:
        return Refused(f"{where} refused the user name or the password: set them in RABBITMQ_URL")
    if isinstance(error, ProbableAccessDeniedError) and said_so:
        reason = "".join(re.findall(r"[A-Z_]+ - (.+)['\"]", str(error))) or text
        if re.search("is down$|limit .*is reached$", reason):
            return BrokerError(f"no connection to {where} for now ({reason})")
        return Refused(f"{where} refused the virtual host ({reason}): set it as the path of RABBITMQ_URL")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"the certificate of {where} is not trusted ({error.verify_message}): set TLS_CA_FILE")
    if _REFUSES_CERTIFICATE.search(text):  # after the handshake, pika has only this text of it
        return Refused(f"{where} refused our certificate ({text}): set TLS_CERT_FILE and TLS_KEY_FILE")
    if isinstance(error, ssl.SSLError):
        return BrokerError(f"{where} does not speak TLS as we do ({text})")
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
    if isinstance(error, ChannelClosedByBroker) and "delivery acknowledgement" in text:
        return BrokerError(
            f"a task ran for longer than the broker waits for its acknowledgement ({text.partition(' - ')[2]}): "
            "raise consumer_timeout in rabbitmq.conf, or make the tasks smaller"
        )
    if isinstance(error, ChannelClosedByBroker) and code == 404 and settings.queue_type == "existing":
        return Misconfigured(f"{text.partition(' - ')[2]}: make it, or set QUEUE_TYPE=classic")
    if isinstance(error, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return BrokerError(f"the broker closed the channel or the connection: {text}")
    if url:
        return BrokerError(f"no broker answers at {where} ({text}): is it running, and RABBITMQ_URL right?")
    return BrokerError(f"the connection to the broker is lost ({text})")


def _other_ways(settings: Settings) -> str:
    return " or ".join(kind for kind in ("classic", "quorum", "existing") if kind != settings.queue_type)


def innermost(error: BaseException) -> str:
    """The plain words inside pika's nested exceptions: "Connection refused" rather than three class names."""
    while True:
        inner = [part for part in (*error.args, getattr(error, "exception", None)) if isinstance(part, BaseException)]
        if not inner:
            break
        error = inner[0]
    if isinstance(error, (AMQPConnectorStackTimeout, ConnectionOpenAborted, TimeoutError)):
        return _TIMED_OUT
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        return _NO_ADDRESS
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


_NOT_COPIED = dict.fromkeys(("CC", "BCC", "x-delivery-count"))


def copied(body: bytes, properties: BasicProperties, headers: dict[str, Any]) -> Message:
    """The same message for another queue: persistent, with more headers, or less of them where one is None, and
    without what would expire or divert it."""
    merged = {**(properties.headers or {}), **headers, **_NOT_COPIED}
    return Message(
        body,
        BasicProperties(
            content_type=properties.content_type,
            content_encoding=properties.content_encoding,
            headers={name: value for name, value in merged.items() if value is not None},
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


class CopyPublisher:
    """Publishes one message at a time, over a connection of its own, for the thread that made it.

    Of its own, since a broker that is out of memory or disk blocks connections that publish: the connection that
    acknowledges must not be one of them. It is opened when it is needed, and has to be closed before the thread does
    anything else for long, as nobody answers its heartbeats meanwhile.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._connection: BlockingConnection | None = None
        self._channel: BlockingChannel | None = None

    def publish(self, queue: str, message: Message) -> None:
        """Returns when the broker has confirmed it. Raises BrokerError; then it may or may not have arrived."""
        try:
            channel = self._channel or self._open()
            channel.basic_publish("", queue, message.body, message.properties, mandatory=True)
        except UnroutableError:
            self.close()  # to declare it anew, where we may
            if self._settings.queue_type != "existing":
                raise BrokerError(f"queue {queue!r} is gone") from None
            raise Misconfigured(f"there is no queue {queue!r}: make it, or set QUEUE_TYPE=classic") from None
        except NackError:
            raise BrokerError(f"queue {queue!r} refused a message") from None
        except (AMQPError, OSError) as error:
            self.close()
            raise explain(error, self._settings) from None

    def _open(self) -> BlockingChannel:
        self._connection, _ = open_connection(self._settings, self._name)
        channel = self._connection.channel()
        declare_queues(channel, self._settings)
        channel.confirm_delivery()
        self._channel = channel
        return channel

    def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection:
            with suppress(AMQPError, OSError):
                connection.close()
