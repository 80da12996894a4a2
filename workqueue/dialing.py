"""From RABBITMQ_URL to an open connection: which broker, which address, how long, and what to say when none answers."""

from __future__ import annotations

import copy
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError

from pika import SSLOptions, URLParameters

from config import Settings, tls_context
from workqueue.connection import Connection
from workqueue.errors import FAILURES, NO_ADDRESS, REFUSES_CERTIFICATE, TIMED_OUT, BrokerError, Refused, explain
from workqueue.loop import never, wait_for
from workqueue.streams import fill_missing_streams

_last_good: list[str] = []  # the URL that answered last is tried first: another may be frozen, and cost its time-out


def dial(
    settings: Settings,
    name: str,
    interrupted: Callable[[], bool] = never,
    note: Callable[[str], None] = lambda line: None,
) -> Connection:
    """A connection to the first broker of RABBITMQ_URL that answers; `name` is what RabbitMQ's own pages show, `note`
    gets lines for people.

    Raises BrokerError, and Stopped as soon as `interrupted` says so: on a thread of its own, since a name server or a
    broker that does not answer holds up whoever asks.
    """
    fill_missing_streams()  # a handler may have closed them
    future: Future[Connection] = Future()

    def attempt() -> None:
        try:
            connection = _first_that_answers(settings, name)
        except BaseException as error:
            if not future.cancelled():
                future.set_exception(error)
            return
        try:
            future.set_result(connection)
        except InvalidStateError:  # nobody waits any more
            connection.close()

    threading.Thread(target=attempt, name="dialing", daemon=True).start()
    connection = wait_for(future, interrupted)
    connection.interrupted, connection.note = interrupted, note
    return connection


def backoff(first: float = 0.1, most: float = 10.0) -> Iterator[float]:
    """Seconds to wait before each further attempt: doubling up to `most`, and jittered, so that workers that lost
    their broker together do not come back together."""
    while True:
        yield first * random.uniform(0.5, 1.0)
        first = min(first * 2, most)


def parameters(settings: Settings, url: str, name: str) -> URLParameters:
    """How to connect to `url`. What the URL says itself wins. Raises SettingError where TLS files are not whole."""
    result = URLParameters(url)
    if result.heartbeat is None:
        result.heartbeat = settings.heartbeat_seconds
    if result.ssl_options:
        # the host's name as it was given, not the address that we try, is what the certificate must be for
        result.ssl_options = SSLOptions(tls_context(settings), server_hostname=result.host)
    patience = settings.connect_timeout_seconds / len(settings.rabbitmq_urls)
    result.socket_timeout = result.stack_timeout = patience
    # a blocked connection that is given up leaves behind what it was to publish: the broker takes it in the end
    result.blocked_connection_timeout = None
    result.client_properties = {"connection_name": name}
    return result


def _first_that_answers(settings: Settings, name: str) -> Connection:
    failures: list[BrokerError] = []
    for url in sorted(settings.rabbitmq_urls, key=lambda url: url not in _last_good):
        try:
            for usable in _addresses(parameters(settings, url, name)):
                try:
                    connection = Connection(usable)
                    _last_good[:] = [url]
                    return connection
                except FAILURES as error:
                    failures.append(_explained(error, settings, url, usable))
        except (OSError, UnicodeError, *FAILURES) as error:  # the host's name, or TLS files
            failures.append(explain(error, settings, url))
    raise next((failure for failure in failures if NO_ADDRESS not in str(failure)), failures[-1])


def _addresses(named: URLParameters) -> Iterator[URLParameters]:
    """The same parameters for each address that the host's name stands for.

    pika would try them all by itself, but tell only of the last: of ::1, say, where a machine does not use that, and
    not of the password that was refused at 127.0.0.1.
    """
    for *_, (address, *_) in socket.getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM):
        usable = copy.copy(named)
        usable.host = str(address)
        yield usable


def _explained(error: BaseException, settings: Settings, url: str, usable: URLParameters) -> BrokerError:
    """Raises it at once where the broker has refused us."""
    failure = explain(error, settings, url)
    if not isinstance(failure, Refused) and TIMED_OUT not in str(failure) and (alert := _tls_alert(usable)):
        failure = explain(alert, settings, url)
    if isinstance(failure, Refused):
        raise failure from None
    return failure


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
        return error if isinstance(error, ssl.SSLError) and REFUSES_CERTIFICATE.search(str(error)) else None
    return None
