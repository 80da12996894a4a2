"""Takes tasks from the work queue, runs each, and acknowledges it when it is done.

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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import takewhile
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
from delivery import Delivery, LostDeliveries, Outcome
from output import OutputClosed, WorkerOutput, fill_missing_streams, note
from retry import DeliveryLost, Retry

LASTING_SECONDS = 5  # a connection that held for so long worked, though it delivered nothing
SUSPECTS = 10  # redelivered tasks in a row; more of them come from a crash of the broker, not from dead workers
SHORT_SECONDS = 0.001  # a task that takes less is waited for, which is quicker than to be woken for it
TICK_SECONDS = 0.1  # how long the main thread waits for the broker before it looks at everything else

Handler = Callable[[tasks.Task, tasks.Progress], None]

EXAMPLES = """examples:
  python worker.py                                  a task at a time, till Ctrl-C
  python worker.py --burst                          until the queue is empty
  python worker.py --concurrency 10 --prefetch 20   ten at once, ten more in hand
  for i in {1..5}; do python worker.py & done       five workers

exit codes:
  0 stopped as told         1 stopped at once, or the output was lost
  2 wrong flag or setting, or a queue that cannot be used
  3 the broker refused us
"""


class Stopped(BaseException):
    """Raised by a signal to end an attempt to connect, the one thing that need not be finished."""


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
        self.woken = False  # the main thread looks into `finished`, or is about to
        # the main thread's own:
        self.unsettled: dict[Delivery, None] = {}  # in `todo`, running, or in `finished`; in the order they came
        self.lost = LostDeliveries(settings.prefetch_count)
        self.completed = 0
        self.redelivered_in_a_row = 0
        self.delays = broker.backoff()
        self.busy_at = 0.0

    # The main thread: connect, consume, settle

    def run(self) -> int:
        """Works until a signal, or with `burst` until the queue is empty. Returns the exit code.

        Raises BrokerError where trying again cannot help, and OutputClosed.
        """
        for _ in range(self.settings.concurrency):
            Thread(target=self.work, daemon=True).start()
        with suppress(Stopped):
            self.connect_and_consume()
        exit_code = 0
        if self.unsettled:
            exit_code = 1
            self.output.note("no broker to acknowledge to: what runs is finished, and will be delivered again")
        while self.unsettled:
            time.sleep(TICK_SECONDS)
            self.settle_finished()
        self.output.event("worker_stopped", completed=self.completed)
        return exit_code

    def connect_and_consume(self) -> None:
        while not self.stopping:
            connected_at = time.monotonic()
            try:
                self.connecting = True
                with broker.connect(self.settings, self.name) as self.connection:
                    self.connecting = False
                    connected_at = time.monotonic()
                    channel = self.connection.channel()
                    broker.declare_queues(channel, self.settings)
                    self.consume(channel)
                return
            except (broker.Refused, broker.Misconfigured):
                raise
            except broker.BrokerError as error:
                self.connecting = False
                if self.connection:
                    self.lose_deliveries()
                if time.monotonic() - connected_at > LASTING_SECONDS:
                    self.delays = broker.backoff()
                delay = next(self.delays)
                self.output.note(f"{error}; connecting again in {delay:.1f} s")
                self.wait(delay)

    def consume(self, channel: BlockingChannel) -> None:
        """Takes deliveries until a signal, or with `burst` until the queue is empty, and settles all of them."""
        self.redelivered_in_a_row = 0
        channel.basic_qos(prefetch_count=self.settings.prefetch_count)
        channel.add_on_cancel_callback(self.on_cancelled_by_broker)
        while not self.stopping:
            channel.basic_consume(self.settings.task_queue, self.on_delivery, consumer_tag=self.name)
            self.output.event("worker_ready", queue=self.settings.task_queue, prefetch=self.settings.prefetch_count)
            self.busy_at = time.monotonic()
            while not (self.stopping or (self.burst and self.nothing_to_do(channel))):
                self.pump(channel)
            channel.basic_cancel(self.name)  # pika gives back what was still on its way to us
            for held in self.take_back_held():
                channel.basic_nack(held.tag, requeue=True)
            while self.unsettled:
                self.pump(channel)
            if self.stopping:
                return
            # What was given back on its way to us may not be counted as ready yet; whoever asks for it gets it.
            method, properties, body = channel.basic_get(self.settings.task_queue)
            if method is None:
                return
            self.on_delivery(channel, method, properties or BasicProperties(), body or b"")
            while self.unsettled:
                self.pump(channel)

    def pump(self, channel: BlockingChannel) -> None:
        """Lets pika read, write and answer heartbeats for a moment, then settles what the work threads finished."""
        channel.connection.process_data_events(time_limit=TICK_SECONDS)
        broker.raise_if_closed(channel, self.settings)
        self.settle_finished(SHORT_SECONDS if self.unsettled else 0)

    def on_delivery(self, channel: BlockingChannel, method: Any, properties: BasicProperties, body: bytes) -> None:
        self.delays = broker.backoff()  # this connection works: after its loss, the first attempts come quickly
        self.redelivered_in_a_row = self.redelivered_in_a_row + 1 if method.redelivered else 0
        suspect = 0 < self.redelivered_in_a_row <= max(SUSPECTS, self.settings.prefetch_count)
        delivery = Delivery(channel, method.delivery_tag, method.redelivered, properties, body, suspect)
        earlier = self.lost.known(delivery)
        if earlier is None:
            self.unsettled[delivery] = None
            self.todo.put(delivery)
        else:
            # This task runs or is finished here already. What we owed to the lost delivery goes to this one.
            earlier.channel, earlier.tag = channel, delivery.tag
            self.unsettled.pop(earlier, None)
            self.unsettled[earlier] = None
            if earlier.outcome:
                self.settle([earlier])

    def on_cancelled_by_broker(self, frame: Any) -> None:
        raise broker.BrokerError("the broker cancelled the consumer, as it does when the queue is deleted")

    def settle_finished(self, patience: float = 0) -> None:
        """Settles what the work threads have finished; if that is nothing, what they finish within `patience`."""
        self.woken = True  # for as long as it waits here
        finished = emptied(self.finished, patience)
        self.woken = False
        finished += emptied(self.finished)
        self.settle([delivery for delivery in finished if delivery in self.unsettled])
        if self.failure:
            raise self.failure

    def settle(self, finished: list[Delivery]) -> None:
        """Acknowledges what is done with, over the channel that it came by, and only then says so.

        If that channel is gone, `lost` knows the delivery and its outcome, until the broker delivers it again.
        """
        self.acknowledge({delivery for delivery in finished if delivery.outcome and delivery.channel.is_open})
        for delivery in finished:
            del self.unsettled[delivery]
            if delivery.outcome is None:  # could not be put aside, and has to run again
                self.lost.forget(delivery)
                if delivery.channel.is_open:
                    delivery.channel.basic_nack(delivery.tag, requeue=True)
            elif delivery.channel.is_open:
                event, details = delivery.outcome
                if event:
                    self.completed += event == "task_completed"
                    self.output.event(event, **delivery.fields(), **details)
                self.lost.acknowledged(delivery)

    def acknowledge(self, done: set[Delivery]) -> None:
        """With one frame for the oldest, up to the first that is not done; the others one by one."""
        first = list(takewhile(done.__contains__, self.unsettled))
        if first:
            first[-1].channel.basic_ack(first[-1].tag, multiple=True)
        for delivery in done.difference(first):
            delivery.channel.basic_ack(delivery.tag)

    def nothing_to_do(self, channel: BlockingChannel) -> bool:
        """Whether nothing is in hand, nothing has come for a moment, and the queue is empty."""
        if self.unsettled:
            self.busy_at = time.monotonic()
        return time.monotonic() - self.busy_at > TICK_SECONDS and broker.ready_tasks(channel, self.settings) == 0

    def take_back_held(self) -> list[Delivery]:
        """Takes from `todo` what no work thread has begun."""
        held = emptied(self.todo)
        for delivery in held:
            del self.unsettled[delivery]
        return held

    def lose_deliveries(self) -> None:
        """After the loss of a connection: forgets what was only held, and waits only for what still runs."""
        self.connection = None
        self.take_back_held()
        self.lost.connection_lost(self.unsettled)
        for delivery in self.unsettled:
            self.output.event("task_lost_connection", **delivery.fields())
        self.unsettled = {delivery: None for delivery in self.unsettled if not delivery.outcome}

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(min(TICK_SECONDS, seconds))
            self.settle_finished()

    def on_signal(self, number: int, frame: object) -> None:
        """The first SIGTERM or SIGINT stops gracefully, a second one at once."""
        if self.stopping:
            note(f"[{self.name}] stopped at once: what was running is given back")
            os._exit(1)  # the socket closes with the process, and the broker takes back what it had delivered
        self.stopping = True
        if self.connecting:
            raise Stopped
        if self.unsettled:
            note(f"[{self.name}] stopping when what runs is done; once more to give it back")

    # A work thread: run handlers

    def work(self) -> None:
        retry = Retry(self.settings, self.name, self.output.note)
        while True:
            try:
                delivery = self.todo.get(timeout=1)
            except Empty:
                retry.close()
                continue
            try:
                delivery.outcome = self.attempt(delivery, retry)
            except DeliveryLost:
                pass
            except Exception as error:
                self.failure = error
            self.finished.put(delivery)
            if not self.woken:
                self.woken = True
                with suppress(ConnectionWrongStateError):  # without a connection, the main thread looks by itself
                    if self.connection:
                        self.connection.add_callback_threadsafe(lambda: None)

    def attempt(self, delivery: Delivery, retry: Retry) -> Outcome:
        """Runs the handler; whatever comes of it, the task is safe to acknowledge when this returns."""
        try:
            delivery.task = tasks.Task.decode(delivery.body)
        except tasks.BadTask as error:
            return retry.never(delivery, error)
        if delivery.suspect and (outcome := retry.count_redelivery(delivery)):
            return outcome
        retry.close()
        self.output.event("task_started", **delivery.fields())
        started = time.monotonic()
        try:
            self.handle(delivery.task, partial(self.report_progress, delivery))
        except OutputClosed:
            raise
        except tasks.Reject as error:
            return retry.never(delivery, error)
        except BaseException as error:  # SystemExit too: a task must not end its worker
            self.output.note(traceback.format_exc())
            return retry.later(delivery, error)
        return "task_completed", {"seconds": round(time.monotonic() - started, 6)}

    def report_progress(self, delivery: Delivery, done: float, total: float) -> None:
        self.output.event("task_progress", **delivery.fields(), done_seconds=done, total_seconds=total)


def emptied(queue: SimpleQueue[Delivery], patience: float = 0) -> list[Delivery]:
    """Takes all that is in the queue; if that is nothing, what comes within `patience` seconds."""
    taken = []
    with suppress(Empty):
        taken.append(queue.get(timeout=patience))
        while True:
            taken.append(queue.get_nowait())
    return taken


def main(argv: list[str] | None = None, handle: Handler | None = None) -> int:
    fill_missing_streams()
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


if __name__ == "__main__":
    sys.exit(main())
