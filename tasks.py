"""Tasks: what one is, how it travels as JSON, the demo batch, and the simulated work. Knows no broker."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class BadTask(ValueError):
    """A message body that is no task; the message says why."""


class Reject(Exception):
    """Raised by a handler for a task that no further attempt can save: it is dead at once."""


class PutDown(Exception):
    """Raised by a handler that sees `attempt.stopping`: the task is given back at once, and this is no attempt."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task, as its handler sees it."""

    number: int = 1  # 1 for the first
    message_id: str | None = None  # the same for every attempt: what makes repeated work recognizable
    redelivered: bool = False  # it was delivered before, so that it may have been begun before
    progress: Callable[[float, float], None] = lambda done, total: None  # (done, total), in any unit
    told_to_stop: Callable[[], bool] = lambda: False

    @property
    def stopping(self) -> bool:
        """Whether the worker was told to stop, so that long work should put down where it is."""
        return self.told_to_stop()


@dataclass(frozen=True)
class Task:
    """A piece of work. On the wire: `{"id": 1, "task": "Process image resize", "difficulty": 3}`, in UTF-8."""

    id: int | str
    task: str
    difficulty: float
    payload: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # members that this version does not know

    def encode(self) -> bytes:
        payload = {} if self.payload is None else {"payload": self.payload}
        members = {"id": self.id, "task": self.task, "difficulty": self.difficulty, **payload, **self.extra}
        return _ENCODER.encode(members).encode()

    @classmethod
    def decode(cls, body: bytes) -> Task:
        """The task in a message body. Raises BadTask, and nothing else, for any other bytes."""
        try:
            members = _DECODER.decode(text := body.decode())
            if "\\u" in text:  # half of a surrogate pair can be written as an escape, but is no character
                json.dumps(members, ensure_ascii=False).encode()
        except BadTask:
            raise
        except RecursionError:
            raise BadTask("nested too deeply") from None
        except UnicodeError as error:
            raise BadTask(f"not text in UTF-8: {error}") from None
        except ValueError as error:
            raise BadTask(f"not JSON: {error}") from None
        if not isinstance(members, dict):
            raise BadTask(f"a task is a JSON object, this is {_kind(members)}")
        for name in ("id", "task", "difficulty"):
            if name not in members:
                raise BadTask(f"has no {name!r}")
        checked = {name: members.pop(name, None) for name in _MEMBERS}
        for name, (is_valid, wanted) in _MEMBERS.items():
            if not is_valid(checked[name]):
                raise BadTask(f"{name!r} is {_kind(checked[name])}: it must be {wanted}")
        return cls(**checked, extra=members)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadTask(f"has {name[:40]!r} twice")
            seen.add(name)
    return members


def _no_constant(word: str) -> None:
    raise BadTask(f"{word} is not JSON")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _is_difficulty(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


_MEMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda value: isinstance(value, int | str) and not isinstance(value, bool), "an integer or a string"),
    "task": (lambda value: isinstance(value, str) and value != "", "a non-empty string"),
    "difficulty": (_is_difficulty, "a finite number, 0 or more"),
    "payload": (lambda value: value is None or isinstance(value, dict), "an object"),
}
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_no_constant)

DEMO_BATCH = (
    Task(1, "Process image resize", 3),
    Task(2, "Send email notification", 1),
    Task(3, "Generate PDF report", 5),
    Task(4, "Clear cache", 1),
    Task(5, "Generate invoice", 2),
    Task(6, "Sync product catalogue", 4),
    Task(7, "Send order confirmation", 1),
    Task(8, "Update stock levels", 2),
)


def generate(count: int, seed: str | None = None, max_difficulty: int = 5) -> Iterator[Task]:
    """`count` tasks with ids from 1 and difficulties from 1 to `max_difficulty`; the same ones for the same seed.

    With `max_difficulty` 0 they are no-ops of difficulty 0.
    """
    names = [task.task for task in DEMO_BATCH]
    dice = random.Random(seed)
    for number in range(1, count + 1):
        yield Task(number, dice.choice(names), dice.randint(min(1, max_difficulty), max_difficulty))


Handler = Callable[[Task, Attempt], None]
"""Returns: the task is done. Raises Reject: it is dead. PutDown: see there. Anything else: it gets another attempt."""

HANDLERS: dict[str, Handler] = {}


def handles(name: str) -> Callable[[Handler], Handler]:
    """Has the function below it do the tasks called `name`, for a worker that is given its module."""

    def register(handler: Handler) -> Handler:
        if name in HANDLERS:
            raise ValueError(f"{name!r} has two handlers")
        HANDLERS[name] = handler
        return handler

    return register


def simulate(task: Task, attempt: Attempt, seconds_per_difficulty: float) -> None:
    """The handler of the tutorial: sleeps in proportion to the difficulty, and then does as the payload says:
    `{"fails": 2}` fails the first two attempts, `{"fails": "always"}` all of them, `{"rejects": true}` rejects.

    Work of more than a second reports its progress after every second and at its end.
    """
    total = task.difficulty * seconds_per_difficulty
    start, done = time.monotonic(), 0.0
    while done < total:
        done = min(done + 1.0, total)
        time.sleep(max(0.0, start + done - time.monotonic()))
        if total > 1:
            attempt.progress(done, total)
    payload = task.payload or {}
    if payload.get("rejects") is True:
        raise Reject("its payload says so")
    fails = payload.get("fails", 0)
    if fails == "always" or (isinstance(fails, int) and attempt.number <= fails):
        raise RuntimeError(f"attempt {attempt.number} fails, as its payload says")
