"""Takes tasks from the work queue, one at a time, runs each, and acknowledges it when it is done.

The main thread owns the connection: it takes deliveries, and settles them. Work threads run the handlers, so that
heartbeats are answered however long a task takes. A delivery goes to a work thread through the queue `todo`, and comes
back through `finished`.

What keeps a task safe: it is acknowledged only when its handler has returned, or when a copy of it is confirmed in
another queue. Whatever ends before that leaves the task with the broker, which delivers it again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from pika import BasicProperties, BlockingConnection
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ConnectionWrongStateError

import broker
import config
import tasks
from config import Settings
from output import OutputClosed, WorkerOutput, note

TICK_SECONDS = 0.1  # how long the main thread waits for the broker before it looks at the flags
REMEMBERED = 1000  # finished tasks whose acknowledgement may not have arrived

Handler = Callable[[tasks.Task, tasks.Progress], None]
Outcome = tuple[str, dict[str, Any]]
"""The event that tells how a delivery ended, and its details; an empty name for an end that needs no line."""


class Stopped(BaseException):
    """Raised by a signal to end an attempt to connect, the only thing that is not worth finishing."""


@dataclass(eq=False)
class Delivery:
    """A message in the hands of this worker."""

    channel: BlockingChannel  # channel and tag say what to acknowledge
    tag: int
    redelivered: bool
    properties: BasicProperties
    body: bytes
    task: tasks.Task | None = None
    outcome: Outcome | None = None

    @property
    def key(self) -> tuple[str, bytes] | None:
        """What tells that a delivery is one we had before, if anything does."""
        return (self.properties.message_id, self.body) if self.properties.message_id else None

    def header(self, name: str) -> int:
        """A header that counts; 0 where it is missing or is no count."""
        value = (self.properties.headers or {}).get(name)
        return value if isinstance(value, int) and value > 0 else 0

    @property
    def attempt(self) -> int:
        return self.header("x-attempts") + 1

    def fields(self) -> dict[str, Any]:
        """What every event of a task carries."""
        return {
            "id": self.task.id if self.task else None,
            "task": self.task.task if self.task else None,
            "difficulty": self.task.difficulty if self.task else None,
            "message_id": self.properties.message_id,
            "attempt": self.attempt,
            "redelivered": self.redelivered or self.header("x-deliveries") > 0,
        }


class Worker:
    def __init__(
        self, settings: Settings, handle: Handler, output: WorkerOutput, name: str, burst: bool = False
    ) -> None:
        self.settings = settings
        self.handle = handle
        self.output = output
        self.name = name
        self.burst = burst
        self.todo: SimpleQueue[Delivery] = SimpleQueue()
        self.finished: SimpleQueue[Delivery] = SimpleQueue()
        self.failure: Exception | None = None  # what a work thread met that ends the worker
        self.connection: BlockingConnection | None = None
        self.connecting = False
        self.stopping = False
        self.completed = 0
        self.busy_at = 0.0
        self.unsettled: set[Delivery] = set()  # held in todo, running, or back in finished
        self.acknowledged: deque[Delivery] = deque(maxlen=settings.prefetch_count or REMEMBERED)
        self.lost: dict[tuple[str, bytes], Delivery] = {}
        self.delays = broker.backoff()

    # The main thread: connect, consume, settle

    def run(self) -> int:
        """Consumes until a signal, or with `burst` until the queue is empty. Returns the exit code.

        Raises BrokerError where trying again cannot help, and OutputClosed.
        """
        for _ in range(self.settings.concurrency):
            Thread(target=self.work, daemon=True).start()
        with suppress(Stopped):
            self.connect_and_consume()
        exit_code = 1 if self.unsettled else 0
        if self.unsettled:
            self.output.note("No broker to acknowledge to: finishing what runs; it will be delivered again.")
        while self.unsettled:
            time.sleep(TICK_SECONDS)
            self.settle_finished()
        self.output.event("worker_stopped", completed=self.completed)
        return exit_code

    def connect_and_consume(self) -> None:
        while not self.stopping:
            try:
                self.connecting = True
                with broker.connect(self.settings, self.name) as self.connection:
                    self.connecting = False
                    self.consume(self.connection.channel())
                return
            except (broker.Refused, broker.Misconfigured):
                raise
            except broker.BrokerError as error:
                self.connecting = False
                self.lose_deliveries()
                self.wait_to_connect(error)

    def consume(self, channel: BlockingChannel) -> None:
        """Takes deliveries over one connection until a signal, or with `burst` until the queue is empty."""
        broker.declare_queues(channel, self.settings)
        channel.basic_qos(prefetch_count=self.settings.prefetch_count)
        channel.add_on_cancel_callback(self.on_cancelled_by_broker)
        while True:
            self.busy_at = time.monotonic()
            channel.basic_consume(self.settings.task_queue, self.on_delivery, consumer_tag=self.name)
            self.delays = broker.backoff()
            self.output.event("worker_ready", queue=self.settings.task_queue, prefetch=self.settings.prefetch_count)
            while not (self.stopping or (self.burst and self.nothing_to_do(channel))):
                self.pump(channel)
            channel.basic_cancel(self.name)  # pika gives back deliveries that were on their way to us
            self.give_back_held(channel)
            while self.unsettled:
                self.pump(channel)
            if self.stopping or broker.ready_tasks(channel, self.settings) == 0:
                return

    def pump(self, channel: BlockingChannel) -> None:
        """Lets pika read, write and answer heartbeats for a moment, then settles what the work threads finished."""
        assert self.connection
        self.connection.process_data_events(time_limit=TICK_SECONDS)
        self.settle_finished()
        if self.failure:
            raise self.failure
        broker.raise_if_closed(channel, self.settings)

    def on_delivery(self, channel: BlockingChannel, method: Any, properties: BasicProperties, body: bytes) -> None:
        delivery = Delivery(channel, method.delivery_tag, method.redelivered, properties, body)
        earlier = self.lost.pop(delivery.key, None) if delivery.redelivered and delivery.key else None
        if earlier is None:
            self.unsettled.add(delivery)
            self.todo.put(delivery)
            return
        # We had this task when its connection was lost: it is finished, or still runs. It is not run twice, what we
        # owe the lost delivery now goes to this one.
        earlier.channel, earlier.tag = channel, delivery.tag
        self.unsettled.add(earlier)
        if earlier.outcome:
            self.settle(earlier)

    def on_cancelled_by_broker(self, frame: Any) -> None:
        """The queue was deleted, or its node is gone: pika only tells, so treat it as a lost connection."""
        raise broker.BrokerError("the broker cancelled the consumer: was the queue deleted?")

    def settle_finished(self) -> None:
        while True:
            try:
                delivery = self.finished.get_nowait()
            except Empty:
                return
            if delivery in self.unsettled:
                self.settle(delivery)

    def settle(self, delivery: Delivery) -> None:
        """Acknowledges a delivery whose outcome is known, over the channel that it came by, and then says so."""
        if delivery.outcome and delivery.channel.is_open:
            delivery.channel.basic_ack(delivery.tag)
            self.acknowledged.append(delivery)
            event, details = delivery.outcome
            self.completed += event == "task_completed"
            if event:
                self.output.event(event, **delivery.fields(), **details)
        self.unsettled.discard(delivery)

    def nothing_to_do(self, channel: BlockingChannel) -> bool:
        """Whether nothing is in hand, nothing has come for a moment, and the queue is empty."""
        if self.unsettled:
            self.busy_at = time.monotonic()
        return time.monotonic() - self.busy_at > TICK_SECONDS and broker.ready_tasks(channel, self.settings) == 0

    def give_back_held(self, channel: BlockingChannel) -> None:
        """Returns to the broker what no work thread has begun."""
        for delivery in self.take_back_held():
            channel.basic_nack(delivery.tag, requeue=True)

    def take_back_held(self) -> list[Delivery]:
        held = []
        while True:
            try:
                held.append(self.todo.get_nowait())
            except Empty:
                self.unsettled.difference_update(held)
                return held

    def lose_deliveries(self) -> None:
        """Remembers, when a connection is lost, what the broker will deliver again though it runs or is finished here.

        That includes the last acknowledgements: they may not have reached the broker.
        """
        self.take_back_held()
        for delivery in self.acknowledged:
            delivery.outcome = ("", {})
        for delivery in [*self.acknowledged, *self.unsettled]:
            if delivery.key:
                self.lost[delivery.key] = delivery
        while len(self.lost) > REMEMBERED:
            del self.lost[next(iter(self.lost))]
        self.acknowledged.clear()
        for delivery in self.unsettled:
            self.output.event("task_lost_connection", **delivery.fields())

    def wait_to_connect(self, error: broker.BrokerError) -> None:
        delay = next(self.delays)
        self.output.note(f"{error}; connecting again in {delay:.1f} s")
        until = time.monotonic() + delay
        while not self.stopping and time.monotonic() < until:
            time.sleep(min(TICK_SECONDS, delay))
            self.settle_finished()

    def on_signal(self, number: int, frame: object) -> None:
        """The first SIGTERM or SIGINT stops gracefully, a second one at once."""
        if self.stopping:
            note(f"[{self.name}] Stopped at once: what was running is given back.")
            os._exit(1)  # the socket closes with the process, and the broker takes back what it had delivered
        self.stopping = True
        if self.connecting:
            raise Stopped

    # A work thread: run handlers

    def work(self) -> None:
        while True:
            delivery = self.todo.get()
            try:
                delivery.outcome = self.attempt(delivery)
            except Exception as error:
                self.failure = error
            self.finished.put(delivery)
            self.wake_main_thread()

    def wake_main_thread(self) -> None:
        with suppress(ConnectionWrongStateError):  # while there is no connection, it looks into `finished` by itself
            if self.connection:
                self.connection.add_callback_threadsafe(lambda: None)

    def attempt(self, delivery: Delivery) -> Outcome | None:
        """Runs the handler, and sees a failed task safely to another queue. Returns None where that was in vain."""
        try:
            delivery.task = tasks.Task.decode(delivery.body)
        except tasks.BadTask as error:
            return self.give_up(delivery, error)
        self.output.event("task_started", **delivery.fields())
        started = time.monotonic()
        try:
            self.handle(delivery.task, partial(self.report_progress, delivery))
        except OutputClosed:
            raise
        except tasks.Reject as error:
            return self.give_up(delivery, error)
        except BaseException as error:  # SystemExit too: a task must not end its worker
            self.output.note(traceback.format_exc())
            return self.try_again(delivery, error)
        return "task_completed", {"seconds": round(time.monotonic() - started, 6)}

    def report_progress(self, delivery: Delivery, done: float, total: float) -> None:
        self.output.event("task_progress", **delivery.fields(), done_seconds=done, total_seconds=total)

    def try_again(self, delivery: Delivery, error: BaseException) -> Outcome | None:
        """Puts a failed task into the retry queue of its next delay, or gives it up after the last."""
        if delivery.attempt > len(self.settings.retry_delays):
            return self.give_up(delivery, error)
        delay = self.settings.retry_delays[delivery.attempt - 1]
        if not self.move(delivery, self.settings.retry_queue(delay), {"x-attempts": delivery.attempt}):
            return None
        return "task_retried", {"error": str(error), "error_type": type(error).__name__, "delay_seconds": delay}

    def give_up(self, delivery: Delivery, error: BaseException) -> Outcome | None:
        """Puts a task into the dead queue, with headers that say why, who, when and after how many attempts."""
        headers = {
            "x-error": str(error)[:1000],
            "x-error-type": type(error).__name__,
            "x-worker": self.name,
            "x-failed-at": datetime.now(UTC).isoformat(timespec="seconds"),
            "x-attempts": delivery.attempt,
        }
        if not self.move(delivery, self.settings.dead_queue, headers):
            return None
        return "task_dead", {"error": str(error), "error_type": type(error).__name__, "queue": self.settings.dead_queue}

    def move(self, delivery: Delivery, queue: str, headers: dict[str, Any]) -> bool:
        """Publishes a copy to `queue` and waits for the confirm; only then may the original be acknowledged.

        False if the original is lost meanwhile: then it will be delivered again.
        """
        message = broker.copy(delivery.body, delivery.properties, headers)
        for delay in broker.backoff():
            try:
                broker.publish_confirmed(self.settings, self.name, queue, message)
                return True
            except (broker.Refused, broker.Misconfigured):
                raise
            except broker.BrokerError as error:
                if not delivery.channel.is_open:
                    return False
                self.output.note(f"Cannot put a task into {queue}: {error}; trying again in {delay:.1f} s")
                time.sleep(delay)
        return False


def main(argv: list[str] | None = None, handle: Handler | None = None) -> int:
    arguments = parse(argv)
    try:
        settings = config.load(
            {
                "TASK_QUEUE": ("--queue", arguments.queue),
                "PREFETCH_COUNT": ("--prefetch", arguments.prefetch),
                "CONCURRENCY": ("--concurrency", arguments.concurrency),
            }
        )
    except config.SettingError as error:
        note(f"worker.py: {error}")
        return 2
    handle = handle or partial(tasks.simulate, seconds_per_difficulty=settings.seconds_per_difficulty)
    output = WorkerOutput(arguments.id, settings.log_format, arguments.quiet, settings.concurrency > 1)
    worker = Worker(settings, handle, output, arguments.id, arguments.burst)
    signal.signal(signal.SIGTERM, worker.on_signal)
    signal.signal(signal.SIGINT, worker.on_signal)
    try:
        return worker.run()
    except broker.BrokerError as error:
        output.note(str(error))
        return error.exit_code
    except OutputClosed as error:
        output.note(f"{error}: stopped, and what was running is given back")
        return 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="worker.py",
        description="Take tasks from the work queue and run them. Start as many workers as you like.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prefetch", metavar="N", help="unacknowledged tasks to hold, instead of PREFETCH_COUNT")
    parser.add_argument("--concurrency", metavar="N", help="tasks to run at once, instead of CONCURRENCY")
    parser.add_argument("--id", metavar="NAME", type=worker_name, help="this worker's name (default: Worker-<random>)")
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    parser.add_argument("--burst", action="store_true", help="stop when the queue is empty")
    parser.add_argument("--quiet", action="store_true", help="print no line per task")
    arguments = parser.parse_args(argv)
    arguments.id = arguments.id or f"Worker-{uuid.uuid4().hex[:8]}"
    return arguments


def worker_name(text: str) -> str:
    if not text or not text.isprintable() or len(text.encode()) > config.LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{text!r} is not a printable name of 1 to {config.LONGEST_NAME} bytes")
    return text


EXAMPLES = """examples:
  python worker.py                                  one task at a time, until Ctrl-C
  python worker.py --burst                          until the queue is empty
  python worker.py --concurrency 10 --prefetch 20   ten tasks at once, ten more in hand
  for i in {1..5}; do python worker.py & done       five workers

exit codes: 0 stopped as told, 1 stopped at once or output lost, 2 wrong use or queue, 3 broker refused us
"""

if __name__ == "__main__":
    sys.exit(main())
