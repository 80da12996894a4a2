"""What is told from outside the events: where the data comes from, and what the broker says of the queues."""

from __future__ import annotations

from dataclasses import dataclass, field

from view.events import Event, whole


@dataclass
class Source:
    """Where the data comes from."""

    queue: str
    kind: str  # live or replay
    where: str  # the masked URL, or the file
    dead_queue: str
    dead_command: str  # what lists the dead letters
    broker: str = ""  # RabbitMQ 4.3.6
    started: float = 0.0  # seconds since 1970, when the model's clock showed 0
    note: str = ""  # of a replay: its speed and date


@dataclass
class Sample:
    """What was so in one second; None is not known."""

    at: float
    done: int  # in all, while we watched
    ready: int | None


@dataclass
class Queues:
    """What the broker says of them. None: not known, or there is no such queue."""

    at: float = float("-inf")
    exists: bool | None = None
    ready: int | None = None
    consumers: int | None = None
    dead: int | None = None
    retry: dict[str, int] = field(default_factory=dict)  # by the delay's text: "5s"
    trouble: str = ""


def recorded(event: Event, now: float) -> Queues:
    """What a recording says of the queues."""

    def count(name: str) -> int | None:
        return whole(event, name) if event.get(name) is not None else None

    retry = event.get("retry")
    return Queues(
        at=now,
        exists=event.get("exists") is True,
        ready=count("ready"),
        consumers=count("consumers"),
        dead=count("dead"),
        retry={str(name)[:20]: whole(retry, name) for name in list(retry)[:10]} if isinstance(retry, dict) else {},
    )
