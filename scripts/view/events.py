"""From the bytes of a message to events that can be relied on. Anybody may publish there: nothing is taken on trust."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

HEARTBEAT = "worker_heartbeat"
OF_WORKERS = (HEARTBEAT, "worker_ready", "worker_stopped")
ENDINGS = {
    "task_completed": "completed",
    "task_retried": "retried",
    "task_dead": "dead",
    "task_lost_connection": "lost",
}
OF_TASKS = ("task_started", "task_progress", *ENDINGS)
DECIDED = "autoscale_decision"  # of autoscale.py: how many workers there are to be, and why
COUNTED = "queue_counted"  # the viewer's own, in a recording: what the queues held
LONGEST_TEXT = 200  # characters of any text that is kept
LARGEST_BODY = 2**20  # bytes

Event = dict[str, Any]


def read(body: bytes) -> tuple[list[Event], int]:
    """The events of a message, a line each, and how many of its lines are none."""
    if len(body) > LARGEST_BODY:
        return [], 1
    found: list[Event] = []
    bad = 0
    for line in body.splitlines():
        event = one(line)
        if event is not None:
            found.append(event)
        elif line.strip():
            bad += 1
    return found, bad


def one(line: bytes) -> Event | None:
    """The event of a line, or None if it is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    if event["event"] == COUNTED:
        return event
    known = isinstance(event.get("run"), str) and isinstance(event.get("worker"), str) and whole(event, "seq") > 0
    return event if known and len(event["run"]) <= LONGEST_TEXT and maybe(event, "up") is not None else None


def whole(event: Event, name: str) -> int:
    """A count; 0 where there is none."""
    value = event.get(name)
    return value if type(value) is int and 0 <= value < 2**53 else 0


def maybe(event: Event, name: str) -> float | None:
    """A number that is not negative, if it is one."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 2**53 and math.isfinite(value) else None


def number(event: Event, name: str) -> float:
    """The same; 0 where there is none."""
    return maybe(event, name) or 0.0


def text(event: Event, name: str) -> str:
    """Text of LONGEST_TEXT characters at most; an id may be a number."""
    value = event.get(name)
    return "" if value is None or isinstance(value, dict | list) else str(value)[:LONGEST_TEXT]


def moment(event: Event) -> float | None:
    """The event's `time`, in seconds since 1970."""
    try:
        return datetime.fromisoformat(str(event["time"])).timestamp()
    except (KeyError, ValueError, OverflowError, OSError):
        return None
