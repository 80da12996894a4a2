"""Messages: what is published, and the copy of a message that goes to another queue."""

from __future__ import annotations

import os
import random
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pika import BasicProperties, DeliveryMode

from workqueue.values import Headers

MOST_COUNTED = 1_000_000_000
"""What a header counts is never taken for more: one more than this is still a number of 32 bits."""


_dice = random.Random()
os.register_at_fork(after_in_child=_dice.seed)  # or it would draw the same


class DoesNotFit(ValueError):
    """The properties of a message are larger than one frame, for which RabbitMQ would close the connection."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is published; `label` names it to people."""

    body: bytes
    properties: BasicProperties
    label: str = ""


def unique_id() -> str:
    """A random UUID. uuid4() makes a system call for each, at which other threads take over: 5 % of a sender's rate."""
    return str(uuid.UUID(int=_dice.getrandbits(128), version=4))


def sent_now() -> Headers:
    """The header `timestamp_in_ms`, RabbitMQ's own name for it; encoded once a millisecond."""
    return _sent_at(time.time_ns() // 1_000_000)


@lru_cache(maxsize=1)
def _sent_at(milliseconds: int) -> Headers:
    return Headers.of({"timestamp_in_ms": milliseconds})


def count_of(properties: BasicProperties, name: str) -> int:
    """The header `name` as a count, from 0 to MOST_COUNTED; 0 if it is none. Anybody may have sent anything in it."""
    value = (properties.headers or {}).get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return min(max(value, 0), MOST_COUNTED)


# Copies

# Headers that tell a broker what to do with the message, or that it writes itself. In a copy they would speak of the
# message it was made of. Names of headers are case-sensitive.
_STEERING = frozenset(
    (
        b"CC",  # further queues to put it into
        b"BCC",
        b"x-death",  # RabbitMQ 3.10 takes a retry for a cycle if the message has died before, and drops it
        b"x-delivery-count",  # written by a quorum queue when it hands the message out
        b"x-acquired-count",
        b"x-deduplication-header",  # a plugin drops what is in the queue already: a copy, beside its original
    )
)
_STEERING_PREFIXES = (b"x-first-death-", b"x-last-death-")

# Not among them: `expiration` and `delivery_mode`, which could lose the copy; `user_id`, which the broker refuses if
# it is not the user of our own connection; `cluster_id`, which AMQP reserves.
_COPIED = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)
_PSEUDO_QUEUE = "amq.rabbitmq.reply-to"  # RabbitMQ refuses it from a channel that does not consume replies from it

_CUT_FIRST = ("x-error", "x-error-type")


def copied(body: bytes, properties: BasicProperties, headers: dict[str, Any], frame_max: int = 0) -> Message:
    """The same message for another queue: persistent, with more headers, or less of them where one is None, and
    without what would expire, divert or refuse it. All other headers stay as they were, byte for byte.

    Where the copy would be too large for frames of `frame_max` bytes (0: of any size), the words of an error that
    `headers` adds are cut. Raises DoesNotFit if that is not enough.
    """
    for name in _CUT_FIRST:
        message = Message(body, _properties(properties, headers))
        excess = header_size(message) - frame_max
        if frame_max == 0 or excess <= 0:
            return message
        if isinstance(words := headers.get(name), str):
            # without the header, if nothing would be left of it
            headers = {**headers, name: words.encode()[:-excess].decode(errors="ignore") or None}
    message = Message(body, _properties(properties, headers))
    check_fits(message, frame_max)
    return message


def _properties(original: BasicProperties, headers: dict[str, Any]) -> BasicProperties:
    values: dict[str, Any] = {name: getattr(original, name) for name in _COPIED}
    if values["reply_to"] == _PSEUDO_QUEUE:
        values["reply_to"] = None
    added = {name: value for name, value in headers.items() if value is not None}
    if original.headers is not None or added:
        values["headers"] = Headers.of(original.headers).changed(
            added,
            lambda name: (
                name in _STEERING or name.startswith(_STEERING_PREFIXES) or name.decode(errors="replace") in headers
            ),
        )
    return BasicProperties(**values, delivery_mode=DeliveryMode.Persistent)


# Frames

_FRAME = 8  # type, channel and size before, a mark after
_BEFORE_PROPERTIES = 12  # class, weight, size of the body


def header_size(message: Message) -> int:
    """The size in bytes of the frame that carries a message's properties. Unlike a body, they cannot be split."""
    return _FRAME + _BEFORE_PROPERTIES + sum(map(len, message.properties.encode()))


def check_fits(message: Message, frame_max: int) -> None:
    """Raises DoesNotFit if the properties need a frame of more than `frame_max` bytes (0: any size will do)."""
    if 0 < frame_max < (size := header_size(message)):
        raise DoesNotFit(f"its properties need a frame of {size} bytes, and the broker takes {frame_max}")
