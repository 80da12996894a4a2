"""Running sender.py and worker.py as the processes that users run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lab.nodes import ROOT, Broker
from lab.waiting import until
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker

import workqueue.values  # noqa: F401  # so that tests, too, can read any header
from workqueue.connection import Channel

DEFAULTS = {
    "QUEUE_TYPE": "classic",
    "CONCURRENCY": "1",
    "SECONDS_PER_DIFFICULTY": "0.1",
    "RETRY_DELAYS": "0.2,0.4",
    "DELIVERY_LIMIT": "20",
    "HEARTBEAT_SECONDS": "15",
    "CONNECT_TIMEOUT_SECONDS": "10",
    "LOG_FORMAT": "json",
}


def put(channel: Channel, queue: str, messages: Iterable[tuple[bytes, BasicProperties | None]]) -> None:
    """Publishes messages to a queue, and returns when all of them are in it."""
    channel.confirm_delivery()
    outcomes: list[str] = []
    all_of_them = list(messages)
    for body, properties in all_of_them:
        channel.basic_publish("", queue, body, properties, True, outcomes.append)
    until(lambda: len(outcomes) == len(all_of_them), "the confirms", 60)
    assert set(outcomes) <= {"confirmed"}, outcomes


class Program:
    """A running program, its output kept in files."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], **popen: Any) -> None:
        name = uuid.uuid4().hex[:8]
        self.stdout_path, self.stderr_path = folder / f"{name}.out", folder / f"{name}.err"
        with self.stdout_path.open("wb") as stdout, self.stderr_path.open("wb") as stderr:
            files = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, **popen}
            self.process = subprocess.Popen(command, env=environment, cwd=folder, **files)

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind that a worker has printed as JSON so far."""
        lines = self.stdout.splitlines(keepends=True)
        return [found for line in lines if line.endswith("\n") and (found := json.loads(line))["event"] == event]

    def wait_for(self, event: str, count: int = 1, seconds: float = 15.0) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]]:
            found = self.events(event)
            return found if len(found) >= count else []

        return until(enough, f"{count} {event} of {self.describe()}", seconds)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds:g} s: {self.describe()}") from None

    def describe(self) -> str:
        return f"{self.process.args!r}\n--- stdout\n{self.stdout[-2000:]}\n--- stderr\n{self.stderr[-2000:]}"


def copy_project(folder: Path) -> None:
    """A copy of what a user of the project needs, without what git ignores."""
    folders = ("workqueue", "scripts", "scripts/*", "examples", "examples/*", "lessons", "deploy", "docs")
    names = ("*.py", "*.yml", "*.md", "requirements*.txt", ".env.example", *(f"{folder}/*" for folder in folders))
    for path in (path for name in names for path in ROOT.glob(name)):
        if path.is_file():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


@dataclass
class Bench:
    """A broker, work queues of this test's own on it, and the programs that run on them."""

    broker: Broker
    queue: str
    folder: Path
    url: str
    programs: list[Program] = field(default_factory=list)

    @property
    def dead(self) -> str:
        return f"{self.queue}.dead"

    def environment(self, **settings: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PREFETCH_COUNT", "PYTHONUNBUFFERED")}
        return {**kept, **DEFAULTS, "RABBITMQ_URL": self.url, "TASK_QUEUE": self.queue, **settings}

    def start(self, program: str, *arguments: str, **settings: str) -> Program:
        return self.launch(program, list(arguments), settings)

    def launch(self, program: str, arguments: list[str], settings: dict[str, str], **popen: Any) -> Program:
        """Starts a program of the project; `popen` says what is to be special about its process."""
        interpreter = [sys.executable, "-W", "error"] if program.endswith(".py") else []
        command = [*interpreter, str(ROOT / program), *arguments]
        started = Program(command, self.folder, self.environment(**settings), **popen)
        self.programs.append(started)
        return started

    def worker(self, *arguments: str, **settings: str) -> Program:
        """A worker that is consuming."""
        worker = self.start("worker.py", *arguments, **settings)
        worker.wait_for("worker_ready")
        return worker

    def handling(self, handler: str, *arguments: str, **settings: str) -> Program:
        """A worker with the handler `handler` of handlers.py, consuming."""
        worker = self.start("tests/handlers.py", handler, *arguments, **settings)
        worker.wait_for("worker_ready")
        return worker

    def send(self, *arguments: str, **settings: str) -> str:
        """Sends, expects success, and returns what the sender printed."""
        sender = self.start("sender.py", *arguments, **settings)
        assert sender.wait(60) == 0, sender.describe()
        return sender.stdout

    def publish(self, body: bytes, properties: BasicProperties | None = None, queue: str = "") -> None:
        """Publishes as a client of another make does: declares the queue durable without arguments, no properties."""
        with self.broker.channel() as channel:
            channel.queue_declare(self.queue, durable=True)
            put(channel, queue or self.queue, [(body, properties)])

    def publish_as_sender(self, body: bytes) -> None:
        """Publishes with a message id, as sender.py does."""
        self.publish(body, BasicProperties(message_id=str(uuid.uuid4()), delivery_mode=2))

    def ready(self, queue: str = "") -> int:
        """Tasks that wait in a queue; those in the hands of a worker do not count. 0 if there is no such queue."""
        with self.broker.channel() as channel:
            try:
                return int(channel.queue_declare(queue or self.queue, passive=True).message_count)
            except ChannelClosedByBroker as error:
                if error.reply_code != 404:
                    raise
                return 0

    def take_all(self, queue: str = "") -> list[tuple[BasicProperties, bytes]]:
        """Removes and returns all that waits in a queue."""
        queue = queue or self.queue
        found: list[tuple[BasicProperties, bytes]] = []

        def take(channel: Channel, method: Any, properties: BasicProperties, body: bytes) -> None:
            found.append((properties, body))
            channel.basic_ack(method.delivery_tag)  # at once: a quorum queue lets 2000 be outstanding at most

        while self.ready(queue):
            with self.broker.channel() as channel:
                channel.basic_consume(queue, take, "take_all")
                answer = partial(channel.queue_declare, queue, passive=True)
                until(lambda answer=answer: answer().message_count == 0, f"all of {queue}", 60)  # type: ignore[misc]
                channel.basic_cancel("take_all")
        return found

    def take_dead(self, count: int, seconds: float = 15.0) -> list[tuple[BasicProperties, bytes]]:
        """Waits until `count` tasks are dead; removes and returns them."""
        until(lambda: self.ready(self.dead) >= count, f"{count} dead tasks", seconds)
        return self.take_all(self.dead)

    def close(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.process.kill()
            program.process.wait()
            if program.process.stdin:
                program.process.stdin.close()
        if self.broker.answers():
            names = [
                self.queue,
                self.dead,
                *(f"{self.queue}.retry.{delay}s" for delay in ("0.2", "0.4", "1", "5", "30")),
            ]
            with self.broker.channel() as channel:
                for name in names:
                    channel.queue_delete(name)
