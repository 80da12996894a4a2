"""What errors of AMQP mean to people, and whether trying again can help. Nothing else decides that."""

from __future__ import annotations

import errno
import logging
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from config import SettingError, Settings, mask

# pika logs each failure with a traceback before it raises; the programs say the same in one line
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)

FAILURES = (AMQPError, AMQPConnectorException, OSError, SettingError)
"""What can be raised between us and a broker; pika's time-outs are no AMQPError."""

TIMED_OUT = os.strerror(errno.ETIMEDOUT)
IN_FEW_WORDS = {  # where a line a try has to fit a terminal
    "Connection reset by peer": "connection reset",
    "Transport endpoint is not connected": "connection reset",
    "Transport indicated EOF": "connection closed",
    "Name or service not known": "unknown host",
    "Temporary failure in name resolution": "no name server",
}
NO_ADDRESS = "this machine has no way to that address"
REFUSES_CERTIFICATE = re.compile("ALERT_.*(CERTIFICATE|UNKNOWN_CA)")


class BrokerError(Exception):
    """Something between us and the broker, which may pass; the message is one line for people."""

    exit_code = 3
    brief = ""  # the same in a few words, for who tries again and again
    where = ""  # the masked URL, where nobody answers

    def __str__(self) -> str:
        return super().__str__() or "the broker has gone"


class Refused(BrokerError):
    """The broker, or its certificate, does not let us in; trying again will not help."""


class Misconfigured(BrokerError):
    """A queue that cannot be used as the settings say; trying again will not help."""

    exit_code = 2


class Stopped(Exception):
    """We were told to stop while we waited for a broker."""


class Broken(BrokerError):
    """Something is wrong with this process; trying again will not help."""

    exit_code = 1


HOPELESS = (Refused, Misconfigured, Broken)


@dataclass(frozen=True)
class _Failure:
    """An error of pika's or of the system's, and what is needed to put it into words."""

    error: BaseException
    code: int  # AMQP's reply code; 0 if the broker said nothing
    text: str
    where: str
    settings: Settings

    @property
    def reason(self) -> str:
        """The broker's words without its code: PRECONDITION_FAILED - this is what is left."""
        return self.text.partition(" - ")[2] or self.text


def explain(error: BaseException, settings: Settings, url: str = "") -> BrokerError:
    """What an error means to people; `url` if it came from connecting there."""
    if isinstance(error, BrokerError):
        return error
    where = ",".join(mask(known) for known in ([url] if url else settings.rabbitmq_urls))
    root = _root(error)
    if isinstance(root, RecursionError | MemoryError) or (isinstance(root, OSError) and root.errno == errno.EBADF):
        return Broken(f"this process cannot go on, perhaps for what a handler has done to it ({root})")
    text = str(getattr(error, "reply_text", "") or innermost(error))
    failure = _Failure(error, getattr(error, "reply_code", 0), text, where, settings)
    for rule in _OF_A_CHANNEL if isinstance(error, ChannelClosedByBroker) else _OF_A_CONNECTION:
        if explained := rule(failure):
            return explained
    if failure.code:
        return BrokerError(f"the broker closed the channel or the connection: {text}")
    if url:
        unreachable = BrokerError(f"no broker answers at {where} ({text}): is it running, and RABBITMQ_URL right?")
        unreachable.brief, unreachable.where = f"no broker ({IN_FEW_WORDS.get(text, text)})", where
        return unreachable
    return BrokerError(f"the connection to the broker is lost ({text})")


# A channel that the broker closed


def _other_arguments(failure: _Failure) -> BrokerError | None:
    clash = re.search("inequivalent arg '(.+?)' for queue '(.+?)'", failure.text)
    if not clash:
        return None
    argument, queue = clash.groups()
    settings = failure.settings
    kinds = " or ".join(kind for kind in ("classic", "quorum", "existing") if kind != settings.queue_type)
    ways = f"choose another TASK_QUEUE, set QUEUE_TYPE to {kinds}, or delete the queue when it is empty"
    if queue.startswith(f"{settings.task_queue}.retry."):
        ways = "it is of an earlier version: delete it when it is empty, or choose another TASK_QUEUE or RETRY_DELAYS"
    return Misconfigured(
        f"queue {queue!r} exists with another {argument!r} ({failure.text.partition(': ')[2]}): {ways}"
    )


def _held_by_another(failure: _Failure) -> BrokerError | None:
    if failure.code == 403 and "in exclusive use" in failure.text:
        return BrokerError(f"another consumer has the queue for itself ({failure.reason})")
    if failure.code == 405 and "basic.get" in failure.text:
        return BrokerError(f"only the consumer of this queue is given tasks ({failure.reason})")
    if failure.code == 405:
        return BrokerError(f"another connection has the queue for itself ({failure.reason})")
    return None


def _not_allowed(failure: _Failure) -> BrokerError | None:
    if failure.code != 403:
        return None
    ways = "grant the permission"
    declares = failure.settings.queue_type != "existing"
    if declares and not re.search("(read|write) access|to exchange", failure.text):
        ways += ", or set QUEUE_TYPE=existing, which declares nothing"
    return Refused(f"{failure.where} does not allow this ({failure.text}): {ways}")


def _no_queue(failure: _Failure) -> BrokerError | None:
    if failure.code != 404:
        return None
    if re.search("is down or inaccessible|process is stopped|no.?majority|not available", failure.text):
        return BrokerError(f"the queue's node is away ({failure.reason})")
    if failure.settings.queue_type == "existing" and "no queue" in failure.text:
        return Misconfigured(f"{failure.reason}: make it, or set QUEUE_TYPE=classic")
    return None


def _stream(failure: _Failure) -> BrokerError | None:
    queue = re.search("queue '(.+?)' in vhost", failure.text)
    if not (queue and re.search("rabbit_stream_queue|by stream queues", failure.text)):
        return None
    return Misconfigured(
        f"queue {queue[1]!r} is a stream, which does not give each task to one worker: choose another TASK_QUEUE"
    )


def _too_long(failure: _Failure) -> BrokerError | None:
    if "delivery acknowledgement" not in failure.text:
        return None
    return BrokerError(
        f"a task ran for longer than the broker waits for its acknowledgement ({failure.reason}): "
        "raise consumer_timeout in rabbitmq.conf, or make the tasks smaller"
    )


# Connecting


def _bad_credentials(failure: _Failure) -> BrokerError | None:
    # pika takes every end of a connection at this stage for a refusal; RabbitMQ says so when it is one
    if not (isinstance(failure.error, ProbableAuthenticationError) and _said_by_broker(failure)):
        return None
    return Refused(f"{failure.where} refused the user name or the password: set them in RABBITMQ_URL")


def _bad_virtual_host(failure: _Failure) -> BrokerError | None:
    if not (isinstance(failure.error, ProbableAccessDeniedError) and _said_by_broker(failure)):
        return None
    reason = "".join(re.findall(r"[A-Z_]+ - (.+)['\"]", str(failure.error))) or failure.text
    if re.search("is down$|limit .*is reached$", reason):
        return BrokerError(f"no connection to {failure.where} for now ({reason})")
    return Refused(f"{failure.where} refused the virtual host ({reason}): set it as the path of RABBITMQ_URL")


def _said_by_broker(failure: _Failure) -> bool:
    return "ConnectionClosedByBroker" in str(failure.error)


def _bad_certificate(failure: _Failure) -> BrokerError | None:
    root = _root(failure.error)
    if isinstance(root, ssl.SSLCertVerificationError):
        why = root.verify_message
        return Refused(f"the certificate of {failure.where} is not trusted ({why}): set TLS_CA_FILE")
    if REFUSES_CERTIFICATE.search(failure.text):  # after the handshake, pika has only this text of it
        return Refused(f"{failure.where} refused our certificate ({failure.text}): set TLS_CERT_FILE and TLS_KEY_FILE")
    if isinstance(root, ssl.SSLError):
        return BrokerError(f"{failure.where} does not speak TLS as we do ({failure.text})")
    return None


def _unusable_files(failure: _Failure) -> BrokerError | None:
    # TLS files were whole when we started: now they are being written anew
    return BrokerError(f"no TLS for now: {failure.error}") if isinstance(failure.error, SettingError) else None


def _forced(failure: _Failure) -> BrokerError | None:
    if failure.code != 320:
        return None
    ended = BrokerError(f"the broker ended the connection ({failure.reason})")
    ended.brief = "the broker ended the connection"  # it is being stopped, or somebody closed it there
    return ended


_Rule = Callable[[_Failure], BrokerError | None]
_OF_A_CHANNEL: tuple[_Rule, ...] = (_other_arguments, _stream, _held_by_another, _not_allowed, _too_long, _no_queue)
_OF_A_CONNECTION: tuple[_Rule, ...] = (
    _stream,
    _bad_credentials,
    _bad_virtual_host,
    _bad_certificate,
    _forced,
    _unusable_files,
)


def _root(error: BaseException) -> BaseException:
    """pika wraps what happened in the errors of its phases, some of which hold several."""
    parts = (*error.args, getattr(error, "exception", None), *getattr(error, "exceptions", ())[-1:])
    inner = [part for part in parts if isinstance(part, BaseException)]
    return _root(inner[0]) if inner else error


def innermost(error: BaseException) -> str:
    """The plain words inside pika's nested exceptions: "Connection refused" rather than three class names."""
    error = _root(error)
    if isinstance(error, (AMQPConnectorStackTimeout, ConnectionOpenAborted, TimeoutError)):
        return TIMED_OUT
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        return NO_ADDRESS
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ConnectionClosedByBroker):
        return str(error.reply_text)
    words: list[str] = re.findall(r"'([^']+)'", str(error)) or [str(error) or type(error).__name__]
    return words[-1]
