"""Events as data, and as lines of JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from workqueue.deliveries import About
from workqueue.streams import MOST_SHOWN

Told = tuple[int, str, int, float, About | None, dict[str, Any]]
"""An event: its number, its name, when it was (in microseconds since the epoch), how long the program was up then (in
seconds), what task it is about, if any, and what else it says."""


class Lines:
    """Makes lines of what one run of a program tells: what json.dumps makes, in a fraction of its time. Texts are cut
    after `most` characters."""

    def __init__(self, worker: str, run: str, most: int | None = MOST_SHOWN) -> None:
        self._most = most
        self._worker = json.dumps(worker)
        self._run = run
        self._second = -1
        self._until_second = self._of_task = ""
        self._about: About | None = None  # what `_of_task` was made of: the events of a task often follow each other

    def line(self, told: Told) -> str:
        """Raises whatever comes of what JSON does not have."""
        seq, event, now, up, about, details = told
        second = now // 1_000_000
        if second != self._second:
            self._second, self._until_second = second, f'"worker": {self._worker}, "time": "{utc(second)}'
        if about is not self._about:
            self._about, self._of_task = about, _members(about, self._most) if about else ""
        line = (
            f'{{"event": "{event}", {self._until_second}.{now % 1_000_000:06d}+00:00", "run": "{self._run}", '
            f'"seq": {seq}, "up": {up:.6f}{self._of_task}'
        )
        for name, value in details.items():
            quick = type(value) is float and math.isfinite(value)
            line += f', "{name}": {value if quick else _json(value, self._most)}'
        return line + "}"


def _members(about: About, most: int | None) -> str:
    number, id, task, difficulty, message_id, attempt, redelivered = about
    return (
        f', "delivery": {number}, "id": {id if type(id) is int else _json(id, most)}, "task": {_json(task, most)}, '
        f'"difficulty": {"null" if difficulty is None else difficulty}, '
        f'"message_id": {"null" if message_id is None else quoted(message_id)}, "attempt": {attempt}, '
        f'"redelivered": {"true" if redelivered else "false"}'
    )


def _json(value: Any, most: int | None) -> str:
    return quoted(value[:most]) if type(value) is str else json.dumps(value, allow_nan=False)


def utc(seconds: int) -> str:
    """Seconds since the epoch as RFC 3339, for a fraction and `+00:00` to follow."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
