"""Faults at one exact moment of a worker, which no outside force can hit: the worker runs in this process, on a real
broker, and a fault is put where it hurts."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab.waiting import until
from pika import BlockingConnection
from pika.adapters.blocking_connection import BlockingChannel
from programs import Bench

import broker
import config
from output import WorkerOutput
from tasks import Progress, Task
from worker import Worker

BODY = json.dumps({"id": 1, "task": "x", "difficulty": 0}).encode()


def cut(connection: BlockingConnection) -> None:
    """Cuts the link of a connection of this process."""
    connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]


@contextmanager
def running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, handle: Callable[[Task], None], burst: bool = False, **settings: str
) -> Iterator[Worker]:
    """A worker on a thread; at the end it is told to stop, and must."""
    for name, value in bench.environment(**settings).items():
        monkeypatch.setenv(name, value)
    loaded = config.load()

    def handler(task: Task, progress: Progress) -> None:
        handle(task)

    worker = Worker(loaded, handler, WorkerOutput("Worker-here", "text"), "Worker-here", burst)
    thread = threading.Thread(target=worker.run, name="worker", daemon=True)
    thread.start()
    until(lambda: worker.connection is not None and worker.connection.is_open, "the worker to connect")
    yield worker
    worker.stopping = True
    thread.join(10)
    assert not thread.is_alive(), "the worker does not stop"


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """The worker of this process writes to the real standard output."""


def test_an_acknowledgement_that_fails_leaves_nothing_to_wait_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link breaks while the acknowledgement is written, and another consumer does the task."""
    original = BlockingChannel.basic_ack
    other_done = threading.Event()
    broken = threading.Event()

    def other_consumer() -> None:
        with bench.broker.channel() as channel:

            def take(channel: BlockingChannel, method: Any, properties: Any, body: bytes) -> None:
                original(channel, method.delivery_tag)
                other_done.set()

            channel.basic_consume(bench.queue, take, arguments={"x-priority": 10})
            ready.set()
            for _ in range(200):
                channel.connection.process_data_events(0.05)
                if other_done.is_set():
                    return

    ready = threading.Event()

    def acknowledge(self: BlockingChannel, delivery_tag: int = 0, multiple: bool = False) -> None:
        if threading.current_thread().name == "worker" and not broken.is_set():
            broken.set()
            threading.Thread(target=other_consumer, daemon=True).start()
            ready.wait()
            cut(self.connection)
        original(self, delivery_tag, multiple)

    monkeypatch.setattr(BlockingChannel, "basic_ack", acknowledge)
    with running(bench, monkeypatch, lambda task: None):
        bench.publish(BODY)
        until(other_done.is_set, "another consumer to do the task")
    assert bench.ready() == 0


def test_a_task_that_could_not_be_put_aside_runs_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gave up on its lost delivery, and the broker has delivered the task again before the worker knows that."""
    runs: list[int] = []
    reconnecting = threading.Event()
    publish, connect = broker.CopyPublisher.publish, broker.connect

    def slow_to_connect(settings: config.Settings, name: str) -> Any:
        if threading.current_thread().name == "worker" and runs and not reconnecting.is_set():
            reconnecting.set()
            until(lambda: not worker.finished.empty(), "the work thread to give up")
        return connect(settings, name)

    def fail_once(*arguments: Any) -> None:
        monkeypatch.setattr(broker.CopyPublisher, "publish", publish)
        assert worker.connection
        cut(worker.connection)
        reconnecting.wait()
        raise broker.BrokerError("just now there is no broker")

    monkeypatch.setattr(broker, "connect", slow_to_connect)
    monkeypatch.setattr(broker.CopyPublisher, "publish", fail_once)

    def handle(task: Task) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("at first")

    with running(bench, monkeypatch, handle) as worker:
        bench.publish_as_sender(BODY)
        until(lambda: worker.completed == 1, "the task to be done after all")
    assert bench.ready() == 0


def test_a_counted_copy_is_not_taken_for_its_original(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = broker.CopyPublisher.publish
    held = bench.broker.channel()

    def take_the_copy(self: Any, queue: str, message: broker.Message) -> None:
        publish(self, queue, message)
        if not taken:
            other = held.__enter__()
            until(lambda: other.basic_get(queue)[0], "the copy")
            taken.append(True)

    taken: list[bool] = []
    monkeypatch.setattr(broker.CopyPublisher, "publish", take_the_copy)
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
    bench.publish_as_sender(BODY)
    with bench.broker.channel() as channel:
        assert channel.basic_get(bench.queue)[0]  # a worker that dies with it
    until(lambda: bench.ready() == 1, "the task to be back")
    with running(bench, monkeypatch, lambda task: None) as worker:
        until(lambda: taken and not worker.unsettled and worker.lost._acknowledged, "the original to be acknowledged")
        first = worker.connection
        assert first
        cut(first)
        until(lambda: worker.connection not in (None, first), "the worker to be back")
        held.__exit__(None, None, None)
        until(lambda: worker.completed == 1, "the copy to be done")


def test_a_task_given_up_while_there_is_no_broker_runs_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    refused = threading.Event()
    publish, connect = broker.CopyPublisher.publish, broker.connect

    def connect_at_the_second_try(settings: config.Settings, name: str) -> Any:
        if threading.current_thread().name == "worker" and runs and not refused.is_set():
            refused.set()
            until(lambda: not worker.finished.empty(), "the work thread to give up")
            raise broker.BrokerError("not yet")
        return connect(settings, name)

    def fail_once(*arguments: Any) -> None:
        monkeypatch.setattr(broker.CopyPublisher, "publish", publish)
        assert worker.connection
        cut(worker.connection)
        refused.wait()
        raise broker.BrokerError("just now there is no broker")

    monkeypatch.setattr(broker, "connect", connect_at_the_second_try)
    monkeypatch.setattr(broker.CopyPublisher, "publish", fail_once)

    def handle(task: Task) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("at first")

    with running(bench, monkeypatch, handle) as worker:
        bench.publish_as_sender(BODY)
        until(lambda: worker.completed == 1, "the task to be done after all")
    assert bench.ready() == 0


def let_cross_the_cancellation(bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A task reaches the worker while it cancels its consumer, each of the next `count` times."""
    cancel = BlockingChannel.basic_cancel
    left = count

    def publish_and_cancel(self: BlockingChannel, consumer_tag: str) -> Any:
        nonlocal left
        if left:
            left -= 1
            with bench.broker.channel() as channel:
                channel.confirm_delivery()
                channel.basic_publish("", bench.queue, BODY)
        return cancel(self, consumer_tag)

    monkeypatch.setattr(BlockingChannel, "basic_cancel", publish_and_cancel)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_burst_does_not_end_while_a_task_that_it_gave_back_is_in_the_queue(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, queue_type: str
) -> None:
    """A task that crosses the cancellation is given back, and the broker counts it as ready only some time later."""
    let_cross_the_cancellation(bench, monkeypatch, 20)
    with running(bench, monkeypatch, lambda task: None, burst=True, QUEUE_TYPE=queue_type) as worker:
        until(lambda: worker.completed == 20, "all that crossed a cancellation to be done")
    assert bench.ready() == 0


def test_a_worker_told_to_stop_at_the_end_of_a_burst_does_not_consume_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes with the one more task that the worker asks for; as a redelivered one it is put back."""
    consume, get = BlockingChannel.basic_consume, BlockingChannel.basic_get
    consumers: list[bool] = []
    got: list[Any] = []

    def count_and_consume(self: BlockingChannel, *arguments: Any, **named: Any) -> str:
        consumers.append(True)
        return consume(self, *arguments, **named)

    def get_and_stop(self: BlockingChannel, queue: str) -> Any:
        found = get(self, queue)
        worker.stopping = True
        got.append(found[2])
        return found

    monkeypatch.setattr(BlockingChannel, "basic_consume", count_and_consume)
    monkeypatch.setattr(BlockingChannel, "basic_get", get_and_stop)
    let_cross_the_cancellation(bench, monkeypatch, 1)
    with running(bench, monkeypatch, lambda task: None, burst=True) as worker:
        until(lambda: got, "the worker to ask for one more task")
    assert got == [BODY]
    assert len(consumers) == 1
    assert bench.ready() == 1
