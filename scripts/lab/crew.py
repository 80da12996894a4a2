"""Real workers on a queue of their own: started, watched, ended, and the queue deleted, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import sender
from config import Settings
from tasks import Task
from workqueue.confirms import Confirms
from workqueue.connection import Connection
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, Stopped, explain
from workqueue.streams import note

WORKER = Path(__file__).resolve().parent.parent.parent / "worker.py"
LOOK_SECONDS = 0.1  # how often we look whether we were told to stop
PATIENCE_SECONDS = 20.0  # how long nothing may happen, beyond the longest task
BLOCKED_SECONDS = 5.0  # the same, where the broker has said that it takes nothing
END_SECONDS = 10.0  # how long a worker has to end, and a broker to delete a queue

Event = dict[str, Any]


class CrewError(Exception):
    """Something that spoils a run; the message is one line for people."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Member:
    """A worker process, and what it says."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], events: SimpleQueue[Event]) -> None:
        self.name = name
        self.ready = False
        self._events = events
        self._last_words: deque[str] = deque(maxlen=20)
        pipe = subprocess.PIPE
        # a group of its own: a Ctrl-C is ours, and we end the workers
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, process_group=0
        )
        assert self.process.stdout
        assert self.process.stderr
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._heard), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._last_words.append), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[str], take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                take(line.strip())

    def _heard(self, line: str) -> None:
        with suppress(ValueError):
            self._events.put(json.loads(line))

    def check(self) -> None:
        """Raises CrewError if the process has ended."""
        code = self.process.poll()
        if code is None:
            return
        self._threads[1].join(1)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        said = f": {self._last_words[-1]}" if self._last_words else ""
        raise CrewError(f"{self.name} has ended ({how}){said}", code if code in (2, 3) else 1)

    def end(self, at_once: bool) -> None:
        """`at_once` is for one that may be in a task; one that is not ready yet must not leave half a declaration."""
        self.process.send_signal(signal.SIGKILL if at_once and self.ready else signal.SIGTERM)

    def gone(self) -> None:
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(END_SECONDS)


class Crew:
    """So many workers on a new queue, all of them ready. A context: at its end nothing is left of them.

    `paces`: seconds for a point of difficulty, of each worker. `interrupted` is asked all the time: when it says yes,
    the methods raise Stopped. They raise CrewError for what spoils the run, BrokerError when the connection is lost.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        paces: Sequence[float],
        prefetch: int,
        interrupted: Callable[[], bool],
    ) -> None:
        queue = f"{settings.task_queue}.compare-{uuid.uuid4().hex[:8]}"
        # one of our own has to be declared
        kind = "classic" if settings.queue_type == "existing" else settings.queue_type
        self.settings = replace(settings, task_queue=queue, queue_type=kind)
        self.queue = queue
        self.paces = paces
        self.prefetch = prefetch
        self.events: list[Event] = []
        self.names = [f"Worker-{number}" for number in range(1, len(paces) + 1)]
        self._connection = connection
        self._interrupted = interrupted
        self._arriving: SimpleQueue[Event] = SimpleQueue()
        self._members: list[Member] = []
        self._completed = 0
        self._heard_at = 0.0

    def __enter__(self) -> Crew:
        try:
            for name, pace in zip(self.names, self.paces, strict=True):
                self._members.append(Member(name, self._command(name), self._environment(pace), self._arriving))
                # one after the other: RabbitMQ deals tasks out in the order in which they began to consume
                self._watch(lambda: self._members[-1].ready, f"{name} to be ready")
        except BaseException:
            self._close(at_once=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(at_once=kind is not None)

    def _command(self, name: str) -> list[str]:
        return [sys.executable, str(WORKER), "--id", name, "--queue", self.queue, "--prefetch", str(self.prefetch)]

    def _environment(self, pace: float) -> dict[str, str]:
        # no further attempts, and so no retry queues
        ours = {"CONCURRENCY": "1", "RETRY_DELAYS": "", "LOG_FORMAT": "json", "QUEUE_TYPE": self.settings.queue_type}
        return {**os.environ, **ours, "SECONDS_PER_DIFFICULTY": repr(pace), "PYTHONIOENCODING": "utf-8"}

    def work(self, tasks: Sequence[Task]) -> None:
        """Publishes the tasks, in their order, and returns when they are done."""
        outcomes: list[str] = []
        channel = self._connection.channel()
        channel.confirm_delivery()
        for task in tasks:
            message = sender.message(task)
            channel.basic_publish("", self.queue, message.body, message.properties, True, outcomes.append)
        longest = max((task.difficulty for task in tasks), default=0) * max(self.paces)
        self._watch(lambda: len(outcomes) == len(tasks), "the broker to take the tasks", longest)
        self._check_connection()  # lost with it, they are all answered, too
        channel.close()
        if refused := [outcome for outcome in outcomes if outcome != Confirms.CONFIRMED]:
            raise CrewError(f"the broker did not take {len(refused)} of {len(tasks)} tasks: {refused[0]}")
        self._watch(lambda: self._completed == len(tasks), "all tasks to be done", longest)

    def _watch(self, condition: Callable[[], bool], what: str, longest: float = 0.0) -> None:
        """Returns when the condition holds, which is asked whenever something has happened."""
        self._heard_at = time.monotonic()
        while not self._take_events(condition):
            if self._interrupted():
                raise Stopped
            self._check_connection()
            for member in self._members:
                member.check()
            quiet = time.monotonic() - self._heard_at
            if quiet > BLOCKED_SECONDS and self._connection.blocked:
                raise CrewError("the broker is out of memory or disk, and takes no tasks")
            if quiet > longest + PATIENCE_SECONDS:
                raise CrewError(f"nothing has happened for {longest + PATIENCE_SECONDS:g} s: waited for {what}")

    def _check_connection(self) -> None:
        if not self._connection.is_open:
            raise explain(self._connection.reason or BrokerError(), self.settings)

    def _take_events(self, condition: Callable[[], bool]) -> bool:
        with suppress(Empty):
            self._take(self._arriving.get(timeout=LOOK_SECONDS))
            while True:
                self._take(self._arriving.get_nowait())
        return condition()

    def _take(self, event: Event) -> None:
        self._heard_at = time.monotonic()
        self.events.append(event)
        name, who = event["event"], event["worker"]
        if name == "worker_ready":
            next(member for member in self._members if member.name == who).ready = True
        self._completed += name == "task_completed"
        if name in ("task_retried", "task_dead", "task_lost_connection"):
            raise CrewError(
                f"{who} could not complete a task ({name}): {event.get('error', 'the connection was lost')}"
            )

    # The end

    def _close(self, at_once: bool) -> None:
        for member in self._members:
            member.end(at_once)
        for member in self._members:
            member.gone()
        with suppress(Empty):
            while not at_once:
                self._take(self._arriving.get_nowait())
        delete_queues(self.settings)


def delete_queues(settings: Settings) -> None:
    """Over a connection of its own: one that has published stands still in an alarm. Says so where that fails."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            with dial(settings, "compare.py", lambda: time.monotonic() > deadline) as connection:
                channel = connection.channel()
                for queue in (settings.task_queue, settings.dead_queue):
                    channel.queue_delete(queue)
            return
        except (*FAILURES, BrokerError, Stopped) as error:
            if time.monotonic() > deadline:
                why = str(error) or "the broker does not answer"
                how = f"scripts/drop_queues.py --queue {settings.task_queue}"
                note(f"compare.py: a queue may be left ({why}): delete it with {how}")
                return
            time.sleep(LOOK_SECONDS)
