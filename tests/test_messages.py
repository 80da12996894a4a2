"""What a copy of a message carries along: headers byte for byte, and nothing that would refuse, expire or divert it."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import time
import uuid
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab.nodes import ROOT
from lab.waiting import until
from pika import BasicProperties
from pika.exceptions import ConnectionClosedByBroker
from pika.frame import Header
from programs import Bench

from workqueue.connection import Channel
from workqueue.messages import (
    MOST_COUNTED,
    DoesNotFit,
    Message,
    check_fits,
    copied,
    count_of,
    header_size,
    sent_now,
    unique_id,
)
from workqueue.values import Headers, encode_table

FRAME = 131_072  # what RabbitMQ and pika agree on, when nothing else is set


def test_the_header_of_now_is_of_now_each_time() -> None:
    """Encoded once for many messages, and for no more than those of its millisecond."""
    until_then, seen = time.monotonic() + 0.05, set()
    while time.monotonic() < until_then:
        before = time.time_ns() // 1_000_000
        headers = sent_now()
        assert before <= headers["timestamp_in_ms"] <= time.time_ns() // 1_000_000
        seen.add(headers["timestamp_in_ms"])
        pieces: list[bytes] = []
        encode_table(pieces, dict(headers))
        assert b"".join(pieces)[4:] == headers.encoded  # what pika makes of it
    assert len(seen) > 10


def long(kind: bytes, content: bytes) -> bytes:
    """A value with a length of four bytes: a string, bytes, a table or an array."""
    return kind + len(content).to_bytes(4, "big") + content


def field(name: str | bytes, value: bytes) -> bytes:
    encoded = name if isinstance(name, bytes) else name.encode()
    return bytes([len(encoded)]) + encoded + value


def nested(kind: bytes, depth: int) -> bytes:
    value = long(kind, b"")
    for _ in range(depth):
        value = long(kind, field("a", value) if kind == b"F" else value)
    return value


def on_the_wire(properties: BasicProperties) -> bytes:
    return b"".join(properties.encode())


def read(encoded: bytes) -> Headers:
    """What pika makes of the properties of a message with these headers."""
    wire = b"\x20\x00" + len(encoded).to_bytes(4, "big") + encoded
    headers = BasicProperties().decode(wire).headers
    assert isinstance(headers, Headers)
    return headers


KINDS: dict[str, tuple[bytes, Any]] = {
    "true": (b"t\x01", True),
    "false": (b"t\x00", False),
    "signed 8": (b"b\xfe", -2),
    "unsigned 8": (b"B\xfe", 254),
    "signed 16": (b"s\xff\xfe", -2),
    "unsigned 16": (b"u\xff\xfe", 65534),
    "signed 32": (b"I\xff\xff\xff\xfe", -2),
    "unsigned 32": (b"i\xff\xff\xff\xfe", 2**32 - 2),
    "signed 64": (b"l" + b"\xff" * 7 + b"\xfe", -2),
    "the greatest signed 64": (b"l\x7f" + b"\xff" * 7, 2**63 - 1),
    "float": (b"f" + struct.pack(">f", 0.5), 0.5),
    "double": (b"d" + struct.pack(">d", 19.99), 19.99),
    "a double beyond 64 bits": (b"d" + struct.pack(">d", 1e300), 1e300),
    "decimal": (b"D\x02" + struct.pack(">i", -1999), Decimal("-19.99")),
    "a decimal with 255 places": (b"D\xff" + struct.pack(">i", 7), Decimal("7e-255")),
    "string": (long(b"S", "é".encode()), "é"),
    "a string that is not UTF-8": (long(b"S", b"\xff\x00"), b"\xff\x00"),
    "bytes": (long(b"x", b"abc"), b"abc"),
    "time stamp": (b"T" + (1_764_000_000).to_bytes(8, "big"), datetime.fromtimestamp(1_764_000_000, UTC)),
    "a time stamp in milliseconds": (b"T" + (1_764_000_000_000).to_bytes(8, "big"), None),
    "a time stamp beyond all": (b"T" + b"\xff" * 8, None),
    "void": (b"V", None),
    "table": (long(b"F", field("a", b"B\x01") + field("b", b"V")), {"a": 1, "b": None}),
    "array": (long(b"A", b"B\x01" + long(b"S", b"x")), [1, "x"]),
    "a time stamp beyond all in an array": (long(b"A", b"T" + b"\xff" * 8), [None]),
    "an empty table": (long(b"F", b""), {}),
    "an empty array": (long(b"A", b""), []),
}
DEEP = {
    f"{name} in {depth}": nested(kind, depth)
    for name, kind in {"tables": b"F", "arrays": b"A"}.items()
    for depth in (100, 1_000, 15_000)
}


@pytest.mark.parametrize(("value", "meaning"), KINDS.values(), ids=KINDS)
def test_a_value_can_be_read_as_what_it_means(value: bytes, meaning: Any) -> None:
    headers = read(field("before", b"B\x01") + field("odd", value) + field("after", b"B\x02"))
    assert headers == {"before": 1, "odd": meaning, "after": 2}
    assert type(headers["odd"]) is type(meaning)


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
def test_what_is_nested_deeply_is_no_danger_to_its_reader(value: bytes) -> None:
    encoded = field("odd", value) + field("after", b"B\x02")
    headers = read(encoded)
    assert headers["after"] == 2
    assert len(repr(headers)) < 1000
    assert on_the_wire(BasicProperties(headers=headers)).endswith(encoded)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("__setitem__", ("b", 1)),
        ("__delitem__", ("a",)),
        ("__ior__", ({"b": 1},)),
        ("update", ({"b": 1},)),
        ("setdefault", ("b", 1)),
        ("pop", ("a",)),
        ("popitem", ()),
        ("clear", ()),
    ],
)
def test_headers_that_were_received_cannot_be_changed_in_place(method: str, arguments: tuple[Any, ...]) -> None:
    """The change would be seen by whoever reads them, and not be published."""
    headers = read(field("a", b"B\x01"))
    with pytest.raises(TypeError):
        getattr(headers, method)(*arguments)
    assert headers == {"a": 1}


def test_headers_that_were_received_can_be_copied_and_sent_to_another_process() -> None:
    headers = read(field("a", b"B\x01"))
    for again in (deepcopy(headers), pickle.loads(pickle.dumps(headers))):
        assert (again, again.encoded) == (headers, headers.encoded)


# Any table

STEERING = ["CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-deduplication-header"]
STEERING += [f"x-{which}-death-{what}" for which in ("first", "last") for what in ("reason", "queue", "exchange")]

OURS = ("x-attempts", *STEERING)
NAMES = (st.binary(max_size=255) | st.text(max_size=20).map(str.encode)).filter(
    lambda name: (
        not name.startswith((b"x-first-death-", b"x-last-death-")) and name.decode(errors="replace") not in OURS
    )
)
NUMBERS = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "T": 8, "D": 5, "V": 0}


def values(real_numbers: bool) -> st.SearchStrategy[bytes]:
    """Any value on the wire. RabbitMQ refuses a float that is no number, from whoever sends it, and kinds U and L are
    not its own."""
    sizes = {**NUMBERS, **({} if real_numbers else {"f": 4, "d": 8, "U": 2, "L": 8})}
    plain = [
        st.builds(bytes.__add__, st.just(kind.encode()), st.binary(min_size=size, max_size=size))
        for kind, size in sizes.items()
    ]
    plain += [
        st.floats(allow_nan=False, allow_infinity=False).map(lambda number: b"d" + struct.pack(">d", number)),
        st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda number: b"f" + struct.pack(">f", number)),
        st.binary(max_size=300).map(lambda content: long(b"S", content)),
        st.binary(max_size=300).map(lambda content: long(b"x", content)),
    ]
    return st.recursive(
        st.one_of(plain),
        lambda inner: (
            tables(inner).map(lambda table: long(b"F", table))
            | st.lists(inner, max_size=4).map(lambda items: long(b"A", b"".join(items)))
        ),
        max_leaves=10,
    )


def tables(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Any table, two fields of one name among them."""
    return st.lists(st.builds(field, NAMES, inner), max_size=5).map(b"".join)


@settings(database=None, deadline=None, max_examples=300)
@given(tables(values(real_numbers=False)))
def test_any_headers_go_out_again_as_they_came(encoded: bytes) -> None:
    received = BasicProperties(headers=read(encoded))
    assert on_the_wire(received) == b"\x20\x00" + len(encoded).to_bytes(4, "big") + encoded
    copy = copied(b"", received, {"x-attempts": 1}).properties
    assert set(fields(copy)) >= set(fields(received))
    assert copy.headers
    assert copy.headers["x-attempts"] == 1


@settings(database=None, deadline=None, max_examples=300)
@given(st.binary() | tables(values(real_numbers=False)).map(lambda encoded: encoded[:-1]))
def test_no_bytes_at_all_raise(encoded: bytes) -> None:
    assert on_the_wire(BasicProperties(headers=read(encoded))).endswith(encoded)
    copied(b"", BasicProperties(headers=read(encoded)), {"x-attempts": 1})


def fields(properties: BasicProperties) -> list[tuple[bytes, bytes]]:
    headers = properties.headers
    assert isinstance(headers, Headers)
    return list(headers.fields())


# Through a broker


def put(channel: Channel, queue: str, message: Message) -> None:
    """Publishes, with a confirm."""
    assert channel.publish_and_wait(queue, message.body, message.properties) == "confirmed"


def take(channel: Channel, queue: str) -> tuple[BasicProperties, bytes]:
    """The next message of a queue, which is then gone from it."""
    found = until(lambda: channel.basic_get(queue), "a message")
    assert found
    method, properties, body = found
    channel.basic_ack(method.delivery_tag)
    return properties, body


def there_and_back(bench: Bench, originals: list[BasicProperties], queue_type: str) -> None:
    """Publishes them, and a copy of what comes: the copy has to arrive with the very same headers and properties."""
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True, arguments={"x-queue-type": queue_type})
        channel.confirm_delivery()
        for original in originals:
            put(channel, bench.queue, Message(b"body", original))
            received, body = take(channel, bench.queue)
            received.delivery_mode = 2
            put(channel, bench.queue, copied(body, received, {}))
            again, body_again = take(channel, bench.queue)
            assert on_the_wire(again) == on_the_wire(received)
            assert body_again == b"body"


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_each_kind_of_header_comes_through_a_broker_twice(bench: Bench, queue_type: str) -> None:
    odd = [value for value, _ in KINDS.values()] + [nested(kind, 3_000) for kind in (b"F", b"A")]
    there_and_back(bench, [BasicProperties(headers=Headers(field("odd", value))) for value in odd], queue_type)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@settings(
    database=None,
    deadline=None,
    max_examples=8,
    phases=[Phase.generate],  # making the failing case smaller would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(batch=st.lists(tables(values(real_numbers=True)), min_size=15, max_size=25))
def test_any_headers_come_through_a_broker_twice(bench: Bench, queue_type: str, batch: list[bytes]) -> None:
    there_and_back(bench, [BasicProperties(headers=Headers(encoded)) for encoded in batch], queue_type)


SHORT: dict[str, Any] = {
    "255 bytes": "é" * 127 + "x",
    "not UTF-8": b"\xff\xfe",
    "empty": "",
    "a null byte": "a\0b",
}
STRINGS = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
PROPERTIES: list[dict[str, Any]] = [
    *({name: value} for name in STRINGS for value in SHORT.values()),
    *({"priority": number} for number in (0, 9, 255)),
    *({"timestamp": seconds} for seconds in (0, 1_764_000_000_000, 2**63, 2**64 - 1)),
    {"reply_to": "amq.rabbitmq.reply-to.g1h2.abc=="},
    {"headers": {}},
    {},
]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_each_property_comes_through_a_broker_twice(bench: Bench, queue_type: str) -> None:
    there_and_back(bench, [BasicProperties(**properties) for properties in PROPERTIES], queue_type)


REFUSED: list[dict[str, Any]] = [
    {"user_id": "somebody else"},
    {"expiration": "soon"},
    {"expiration": "-1"},
    {"reply_to": "amq.rabbitmq.reply-to"},
    {"headers": {"CC": "not an array"}},
    {"headers": {"BCC": 1}},
    {"headers": {"x-death": "not an array"}},
    {"headers": {"x-death": [1]}},
    {"delivery_mode": 77},
    {"cluster_id": "c"},
]


@pytest.mark.parametrize("properties", REFUSED, ids=str)
def test_a_copy_of_what_a_broker_refuses_is_taken(bench: Bench, properties: dict[str, Any]) -> None:
    """Not all brokers refuse all of it, and a message of another protocol may come with it all the same."""
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
        channel.confirm_delivery()
        put(channel, bench.queue, copied(b"body", BasicProperties(**properties), {"x-attempts": 1}))
        copy, _ = take(channel, bench.queue)
    assert copy == BasicProperties(headers={"x-attempts": 1}, delivery_mode=2)


# What steers brokers


@pytest.mark.parametrize("name", STEERING)
def test_a_header_by_which_brokers_steer_stays_behind(name: str) -> None:
    for value, _ in KINDS.values():
        original = BasicProperties(headers=read(field("a", b"B\x01") + field(name, value) + field("b", b"B\x02")))
        assert fields(copied(b"", original, {}).properties) == [
            (b"a", field("a", b"B\x01")),
            (b"b", field("b", b"B\x02")),
        ]


@pytest.mark.parametrize(
    "name", ["cc", "bcc", "X-Death", "x-deaths", "x-first-death", "x-delay", "x-received-from", "x-trace", "X-CC"]
)
def test_a_header_with_a_name_that_is_only_like_one_of_those_is_kept(name: str) -> None:
    original = BasicProperties(headers=read(field(name, b"B\x01")))
    assert fields(copied(b"", original, {}).properties) == [(name.encode(), field(name, b"B\x01"))]


def test_a_copy_is_not_taken_for_a_cycle_because_of_an_earlier_life(bench: Bench) -> None:
    """RabbitMQ 3.10 drops what has expired out of a queue before, when it expires and is to go there again."""
    retry = f"{bench.queue}.retry.0.2s"
    death: Any = {"queue": bench.queue, "reason": "expired", "exchange": "", "count": 1, "routing-keys": [bench.queue]}
    original = BasicProperties(headers={"x-death": [death]})
    back = {"x-message-ttl": 50, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": bench.queue}
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
        channel.queue_declare(retry, durable=True, arguments=back)
        channel.confirm_delivery()
        for attempt in (1, 2, 3):
            put(channel, retry, copied(b"body", original, {"x-attempts": attempt}))
            original, _ = take(channel, bench.queue)
            assert count_of(original, "x-attempts") == attempt


# Our own headers


def test_headers_are_added_replaced_and_removed() -> None:
    original = BasicProperties(headers=read(b"".join(field(name, b"B\x01") for name in "abcb")))
    copy = copied(b"", original, {"b": 2, "c": None, "d": "new", "e": None}).properties
    assert copy.headers == {"a": 1, "b": 2, "d": "new"}
    assert [name for name, _ in fields(copy)] == [b"b", b"d", b"a"]


def test_a_copy_without_headers_has_none() -> None:
    assert copied(b"", BasicProperties(), {"gone": None}).properties.headers is None


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (b"I\x00\x00\x00\x03", 3),
        (b"B\x03", 3),
        (b"l" + (2**63 - 1).to_bytes(8, "big"), MOST_COUNTED),
        (b"i" + b"\xff" * 4, MOST_COUNTED),
        (b"l" + b"\xff" * 8, 0),
        (b"I\x80\x00\x00\x00", 0),
        (b"t\x01", 0),
        (b"d" + struct.pack(">d", 3.0), 0),
        (b"d" + struct.pack(">d", float("inf")), 0),
        (b"D\x00" + struct.pack(">i", 3), 0),
        (long(b"S", b"3"), 0),
        (long(b"A", b"B\x03"), 0),
        (b"T" + (3).to_bytes(8, "big"), 0),
        (b"V", 0),
    ],
)
def test_whatever_a_count_holds_one_more_can_be_written(value: bytes, count: int) -> None:
    original = BasicProperties(headers=read(field("x-attempts", value)))
    assert count_of(original, "x-attempts") == count
    copy = copied(b"", original, {"x-attempts": count + 1}).properties
    assert read(field("x-attempts", b"I" + (count + 1).to_bytes(4, "big"))).encoded == fields(copy)[0][1]


def test_what_is_not_there_is_counted_0() -> None:
    assert count_of(BasicProperties(), "x-attempts") == 0
    assert count_of(BasicProperties(headers={}), "x-attempts") == 0


# Frames


def filled(size: int, **properties: Any) -> BasicProperties:
    """Properties that need a frame of `size` bytes."""
    least = header_size(Message(b"", BasicProperties(headers={"fill": ""}, delivery_mode=2, **properties)))
    return BasicProperties(headers={"fill": "x" * (size - least)}, delivery_mode=2, **properties)


@pytest.mark.parametrize("room", [0, 3, 20, 30, 100, 500, 5000])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_the_words_of_an_error_are_cut_where_the_copy_would_not_fit(room: int, character: str) -> None:
    words = character * 1000
    ours = {"x-attempts": 1, "x-worker": "w"}
    without = header_size(copied(b"", BasicProperties(headers={}), ours))
    original = filled(FRAME - room - without + header_size(copied(b"", BasicProperties(headers={}), {})))
    cut = copied(b"", original, {**ours, "x-error": words}, FRAME).properties
    assert cut.headers
    assert original.headers
    left = str(cut.headers.get("x-error", ""))
    assert cut.headers == {**ours, **original.headers, **({"x-error": left} if left else {})}
    assert words.startswith(left)
    most = min(room - len(field("x-error", long(b"S", b""))), len(words.encode()))
    assert len(left) == max(0, most // len(character.encode()))
    assert header_size(Message(b"", cut)) <= FRAME


def test_a_copy_that_cannot_fit_says_so() -> None:
    original = filled(FRAME)
    assert copied(b"", original, {}, FRAME).properties == original
    for headers in ({"x-attempts": 1}, {"x-attempts": 1, "x-error": "words", "x-error-type": "ValueError"}):
        with pytest.raises(DoesNotFit, match=rf"{FRAME}"):
            copied(b"", original, headers, FRAME)
        copied(b"", original, headers)  # where frames may be of any size


def test_a_long_name_of_an_error_is_cut_as_well() -> None:
    headers = {"x-error": "words", "x-error-type": "E" * 200_000, "x-attempts": 1}
    made = copied(b"", BasicProperties(), headers, FRAME).properties
    assert made.headers
    assert set(made.headers) == {"x-error-type", "x-attempts"}


def test_what_fits_is_taken_by_a_broker(bench: Bench) -> None:
    original = filled(FRAME, message_id="m")
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
        channel.confirm_delivery()
        check_fits(Message(b"body", original), FRAME)
        put(channel, bench.queue, Message(b"body", original))
        received, body = take(channel, bench.queue)
        headers = {"fill": None, "filled": "x" * (FRAME - 300), "x-error": "e" * 1000}
        copy = copied(body, received, headers, FRAME)
        assert header_size(copy) == FRAME
        put(channel, bench.queue, copy)
        again, _ = take(channel, bench.queue)
    assert again == copy.properties


def test_more_does_not_fit(bench: Bench) -> None:
    check_fits(Message(b"", filled(FRAME)), FRAME)
    more = Message(b"", filled(FRAME + 9))  # RabbitMQ lets up to 8 bytes more pass
    check_fits(more, 0)
    with pytest.raises(DoesNotFit):
        check_fits(more, FRAME)
    with bench.broker.channel() as channel:
        channel.confirm_delivery()
        with pytest.raises(ConnectionClosedByBroker, match="501"):
            put(channel, bench.queue, more)


@given(st.integers(0, 300), st.booleans())
def test_the_size_of_a_header_is_that_of_its_frame(size: int, with_id: bool) -> None:
    properties = BasicProperties(headers={"fill": "x" * size}, message_id="m" if with_id else None)
    frame = Header(1, len(b"body"), properties).marshal()
    assert header_size(Message(b"body", properties)) == len(frame)


def test_an_id_is_a_random_uuid_also_in_a_forked_child() -> None:
    """None comes twice, of a million; a child does not draw what its parent draws."""
    drawn = {unique_id() for _ in range(1_000_000)}
    assert len(drawn) == 1_000_000
    assert {uuid.UUID(one).version for one in list(drawn)[:1000]} == {4}
    forked = "import os; from workqueue.messages import unique_id; unique_id(); os.fork(); print(unique_id())"
    run = subprocess.run([sys.executable, "-c", forked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(set(run.stdout.split())) == 2
