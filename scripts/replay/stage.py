"""A run that is recorded: real workers on the work queue, the live view beside them, and what is done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from lab.crew import Event, Member
from lab.nodes import ROOT
from lab.waiting import until
from view.facts import Queues, Source
from view.live import Live
from view.model import Model
from view.recording import Recorder, now

import config
from config import Settings
from tasks import Task
from workqueue.connection import Connection
from workqueue.dialing import dial

PATIENCE_SECONDS = 120.0  # for a machine that others use as well
KILLED = "worker_killed"


class Notes(Recorder):
    """A recording in which also stands what a worker cannot tell of itself."""

    def killed(self, worker: str) -> None:
        self._line({"event": KILLED, "worker": worker, "time": now()})


class Stage:
    """A context: at its end nothing is left of the workers, and the recording is whole."""

    def __init__(self, settings: Settings, path: Path, command: str) -> None:
        self.settings = settings
        self._events: list[Event] = []
        self._arriving: SimpleQueue[Event] = SimpleQueue()
        self._members: dict[str, Member] = {}
        self._path = path
        self._recorder = Notes(str(path), settings.task_queue, command)
        where = ",".join(config.mask(url) for url in settings.rabbitmq_urls)
        source = Source(settings.task_queue, "live", where, settings.dead_queue, "scripts/dead_letters.py list")
        source.started = time.time() - time.monotonic()
        self.model = Model(source, time.monotonic())
        self._live = Live(settings, self.model, self._recorder)

    def __enter__(self) -> Stage:
        self._live.start()
        until(lambda: self.model.connected_at is not None, "the live view to be connected", PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members.values():
            member.end(at_once=False)
        for member in self._members.values():
            member.gone()
        time.sleep(1.0)  # the last counts
        self._live.stop()
        self._recorder.close()
        complete(self._path, self._taken())

    def start(self, *names: str) -> None:
        """Starts workers, all at the same time."""
        environment = {**self._environment(), "LOG_FORMAT": "json", "CONCURRENCY": "1"}
        for name in names:
            command = [sys.executable, str(ROOT / "worker.py"), "--id", name, "--prefetch", "1", "--events"]
            self._members[name] = Member(name, command, environment, self._arriving)

    def ready(self, *names: str) -> None:
        """Starts them one after the other, and returns when all are known to the live view."""
        for number, name in enumerate(names, start=1):
            self.start(name)
            self.wait("worker_ready", number)
        until(lambda: len(self.state()["workers"]["rows"]) >= len(names), "the view to know them", PATIENCE_SECONDS)
        time.sleep(1.5)  # from its first heartbeat that is wanted a worker publishes all events

    def send(self, tasks: Iterable[Task]) -> None:
        command = [sys.executable, str(ROOT / "sender.py"), "--file", "-", "--quiet"]
        lines = b"\n".join(task.encode() for task in tasks)
        subprocess.run(command, input=lines, env=self._environment(), check=True, stdout=subprocess.DEVNULL)

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        ours = {
            "RABBITMQ_URL": ",".join(settings.rabbitmq_urls),
            "TASK_QUEUE": settings.task_queue,
            "QUEUE_TYPE": settings.queue_type,
            "SECONDS_PER_DIFFICULTY": repr(settings.seconds_per_difficulty),
        }
        return {**os.environ, **ours}

    def wait(self, event: str, count: int = 1, **members: Any) -> None:
        """Until so many events of that name have come, with these members."""

        def matching() -> int:
            return sum(each["event"] == event and members.items() <= each.items() for each in self._taken())

        until(lambda: matching() >= count, f"{count} {event} with {members}", PATIENCE_SECONDS)

    def _taken(self) -> list[Event]:
        try:
            while True:
                self._events.append(self._arriving.get_nowait())
        except Empty:
            return self._events

    def kill(self, name: str) -> None:
        """Ends a worker as a crash would, and has the recording say when its task was back in the queue."""
        with dial(self.settings, "pictures.py") as connection:
            look = counter(connection, self.settings.task_queue)
            _, consumers = look()
            self._members[name].process.send_signal(signal.SIGKILL)
            self._recorder.killed(name)
            # not with `until`: it looks less often, and a task does not stay long in a queue where somebody waits
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (found := look())[1] >= consumers and time.monotonic() < deadline:
                pass
            self._recorder.count(Queues(exists=True, ready=found[0], consumers=found[1]))

    def state(self) -> dict[str, Any]:
        return self.model.state(self._live.now())


def complete(path: Path, printed: Iterable[Event]) -> None:
    """Adds what workers have printed before they knew that somebody watches. All in the order of its time."""
    header, *lines = path.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    known = {(event.get("run"), event.get("seq")) for event in events}
    events += [event for event in printed if (event["run"], event["seq"]) not in known]
    events.sort(key=lambda event: str(event["time"]))
    path.write_text("".join(f"{line}\n" for line in (header, *(json.dumps(event) for event in events))))


def counter(connection: Connection, queue: str) -> Callable[[], tuple[int, int]]:
    """Asks for the ready messages and the consumers of a queue."""
    channel = connection.channel()

    def look() -> tuple[int, int]:
        found = channel.queue_declare(queue, passive=True)
        return int(found.message_count), int(found.consumer_count)

    return look
