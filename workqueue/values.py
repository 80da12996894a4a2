"""Headers of a message that go out again exactly as they came in.

A header value has a kind (one letter) and its bytes. pika makes a Python value of it, and what it makes cannot always
be made back into the same bytes: a double of 19.99 becomes the integer 19, an unsigned byte goes out as a signed
32-bit number, and a float cannot be encoded at all. Worse, a time stamp in milliseconds or a table in a table in a
table ... raises, which ends the connection: the broker then gives the message to the next worker, and ends that too.

So the decoder of tables is replaced here. It keeps the bytes of all headers, and makes Python values only for reading:
the kind and the length of a value tell where the next one starts, whatever is inside. Importing this module is enough.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pika.data

DEEPEST = 50  # tables and arrays nested deeper than this are not made readable, so that nothing recurses for long

_LENGTH = struct.Struct(">I")
_NUMBERS = {
    kind.encode(): struct.Struct(">" + layout)
    for kind, layout in {
        **{"t": "?", "b": "b", "B": "B", "U": "h", "s": "h", "u": "H", "I": "i", "i": "I"},
        **{"l": "q", "L": "q", "f": "f", "d": "d", "T": "Q", "D": "Bi"},
    }.items()
}
_ENDS = {b"V": 1, **{kind: 1 + number.size for kind, number in _NUMBERS.items()}}  # bytes from the kind to the end
_WITH_LENGTH = frozenset((b"S", b"x", b"A", b"F"))
_SPECIAL: dict[bytes, Callable[..., Any]] = {
    b"T": lambda seconds: datetime.fromtimestamp(seconds, UTC),
    b"D": lambda decimals, digits: Decimal(digits).scaleb(-decimals),
}


SHORT_BYTES = 64  # of headers that are read once for many messages


class Headers(dict[str, Any]):
    """The headers of a message, for reading, made from `encoded`: an AMQP table as on the wire, without its length.

    What cannot be read is None: a time stamp beyond the year 9999, what is nested too deeply. Names and strings that
    are not UTF-8 are bytes. When the headers are published again, `encoded` is what goes out; that is why they cannot
    be changed. `changed` makes new ones.
    """

    __slots__ = ("encoded",)

    def __init__(self, encoded: bytes = b"") -> None:
        super().__init__(_table(encoded, 0, len(encoded), 0))
        self.encoded = encoded

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Headers:
        """Headers of any mapping. Raises what pika does for a value that it cannot encode."""
        if isinstance(values, Headers):
            return values
        pieces: list[bytes] = []
        _encode_table(pieces, values or {})
        return cls(b"".join(pieces)[_LENGTH.size :])

    def changed(self, add: Mapping[str, Any], leave_out: Callable[[bytes], bool]) -> Headers:
        """New headers: `add` (in place of what has the same name), and those that `leave_out(name)` is false for.

        What is kept, is kept byte for byte, even where two headers have one name.
        """
        replaced = {name.encode() for name in add}
        kept = [field for name, field in self.fields() if name not in replaced and not leave_out(name)]
        # the new ones first: the last one that was received may be of a kind that nobody here knows the length of
        return Headers(b"".join((Headers.of(add).encoded, *kept)))

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """For each header its name, and all its bytes: length of the name, name, kind and value."""
        encoded, at, limit = self.encoded, 0, len(self.encoded)
        while at < limit:
            name_ends = at + 1 + encoded[at]
            ends = _end_of_value(encoded, name_ends, limit)
            yield encoded[at + 1 : name_ends], encoded[at:ends]
            at = ends

    def __reduce__(self) -> tuple[type[Headers], tuple[bytes]]:
        return Headers, (self.encoded,)


def _read_only(self: Headers, *_: Any, **__: Any) -> None:
    raise TypeError("headers of a message cannot be changed: use changed(), or make a dict of them")


for _method in ("__setitem__", "__delitem__", "__ior__", "update", "setdefault", "pop", "popitem", "clear"):
    setattr(Headers, _method, _read_only)


def _end_of_value(encoded: bytes, at: int, limit: int) -> int:
    """Where the value whose kind stands at `at` ends. One of unknown kind takes all that is left."""
    kind = encoded[at : at + 1]
    if kind in _ENDS:
        return at + _ENDS[kind]
    if kind in _WITH_LENGTH:
        return at + 5 + int.from_bytes(encoded[at + 1 : at + 5], "big")
    return limit


def _table(encoded: bytes, at: int, limit: int, depth: int) -> dict[Any, Any]:
    result = {}
    while at < limit:
        name_ends = at + 1 + encoded[at]
        ends = _end_of_value(encoded, name_ends, limit)
        result[_text(encoded[at + 1 : name_ends])] = _value(encoded, name_ends, ends, depth)
        at = ends
    return result


def _array(encoded: bytes, at: int, limit: int, depth: int) -> list[Any]:
    result = []
    while at < limit:
        ends = _end_of_value(encoded, at, limit)
        result.append(_value(encoded, at, ends, depth))
        at = ends
    return result


def _value(encoded: bytes, at: int, ends: int, depth: int) -> Any:
    """What a value means in Python; None if nothing can be made of it."""
    kind = encoded[at : at + 1]
    if kind == b"S":
        return _text(encoded[at + 5 : ends])
    if kind in _NUMBERS:
        try:
            numbers = _NUMBERS[kind].unpack(encoded[at + 1 : ends])
            return _SPECIAL[kind](*numbers) if kind in _SPECIAL else numbers[0]
        except (struct.error, ValueError, OverflowError, OSError):  # cut off; a time stamp out of bounds
            return None
    if kind == b"x":
        return encoded[at + 5 : ends]
    if kind in _WITH_LENGTH and depth < DEEPEST:
        return (_table if kind == b"F" else _array)(encoded, at + 5, ends, depth + 1)
    return None


def _text(encoded: bytes) -> str | bytes:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


# In pika's place


def decode_table(encoded: bytes, offset: int) -> tuple[Headers, int]:
    """The table at `offset`, and where it ends."""
    starts = offset + _LENGTH.size
    ends = starts + _LENGTH.unpack_from(encoded, offset)[0]
    table = encoded[starts:ends]
    return (_short(table) if len(table) <= SHORT_BYTES else Headers(table)), ends


@lru_cache(maxsize=64)
def _short(table: bytes) -> Headers:
    """What a sender publishes within a millisecond has the same headers, which nobody can change."""
    return Headers(table)


def encode_table(pieces: list[bytes], table: Any) -> int:
    """Appends the table to `pieces`. Returns its size in bytes."""
    if not isinstance(table, Headers):
        return _encode_table(pieces, table)
    pieces += (_LENGTH.pack(len(table.encoded)), table.encoded)
    return _LENGTH.size + len(table.encoded)


_encode_table = pika.data.encode_table
pika.data.encode_table = encode_table
pika.data.decode_table = decode_table  # type: ignore[assignment]  # Headers is a dict, of names that may be bytes
