"""Faults at one exact moment, which no outside force can hit: connections and workers run in this process, on a real
broker, and a fault is put where it hurts."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, put

import config
from tasks import Attempt, Task
from worker import Worker
from workqueue import connection as connections
from workqueue import wire
from workqueue.acknowledgements import Acknowledgements
from workqueue.connection import Channel, Connection
from workqueue.deliveries import Delivery
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, Stopped
from workqueue.events import WorkerOutput
from workqueue.hands import Hands
from workqueue.reports import Reports

BODY = json.dumps({"id": 1, "task": "x", "difficulty": 0}).encode()
ENDED = (*FAILURES, BrokerError)


@pytest.fixture(autouse=True)
def _quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """The worker of this process writes to the real standard output."""


@pytest.fixture
def settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    for name, value in bench.environment(HEARTBEAT_SECONDS="2").items():
        monkeypatch.setenv(name, value)
    return config.load()


@pytest.fixture
def connection(settings: config.Settings) -> Iterator[Connection]:
    with dial(settings, "test") as connection:
        yield connection


class Running:
    """A worker of this process, with its own record and the connections that it has had."""

    def __init__(self, settings: config.Settings, handle: Callable[[Task], None], burst: bool) -> None:
        self.runs: list[int | str] = []
        self.reported: list[str] = []
        self.code: int | None = None
        self.handle = handle
        self.worker = Worker(settings, self.run, WorkerOutput("Worker-here", "json"), "Worker-here", burst)
        self.worker.output.event = self.event  # type: ignore[method-assign]
        self.events: list[str] = []
        self.channels: list[Channel] = []

    def run(self, task: Task, attempt: Attempt) -> None:
        self.runs.append(task.id)
        self.handle(task)

    def event(self, event: str, delivery: object = None, **details: Any) -> None:
        self.events.append(event)

    def count(self, event: str) -> int:
        return self.events.count(event)


@contextmanager
def running(
    settings: config.Settings,
    monkeypatch: pytest.MonkeyPatch,
    handle: Callable[[Task], None] = lambda task: None,
    burst: bool = False,
) -> Iterator[Running]:
    """A worker on a thread; at the end it is told to stop, and must."""
    found = Running(settings, handle, burst)
    consume = Worker.consume

    def noted(self: Worker, connection: Connection) -> None:
        found.channels.append(connection)  # type: ignore[arg-type]
        consume(self, connection)

    monkeypatch.setattr(Worker, "consume", noted)

    def work() -> None:
        found.code = found.worker.run()

    thread = threading.Thread(target=work, name="worker", daemon=True)
    thread.start()
    yield found
    found.worker.stopping = True
    found.worker.reports.wake()
    thread.join(10)
    assert not thread.is_alive(), "the worker does not stop"


def publish(bench: Bench, body: bytes = BODY, message_id: str = "") -> None:
    bench.publish(body, BasicProperties(message_id=message_id or str(uuid.uuid4()), delivery_mode=2))


# Connections


def declared(bench: Bench, connection: Connection) -> Channel:
    channel = connection.channel()
    channel.queue_declare(bench.queue, durable=True, arguments={"x-queue-type": "classic"})
    return channel


def test_any_thread_may_call(bench: Bench, connection: Connection) -> None:
    """Channels of one connection, used by many threads at once, each of which gets its own answers."""
    channel = declared(bench, connection)
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            own = connection.channel()
            own.confirm_delivery()
            for _ in range(30):
                assert own.publish_and_wait(bench.queue, str(number).encode()) == "confirmed"
                assert channel.queue_declare(bench.queue, passive=True).message_count >= 0
            own.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert bench.ready() == 300


def test_get_alternates_between_something_and_nothing(bench: Bench, connection: Connection) -> None:
    channel = declared(bench, connection)
    channel.confirm_delivery()
    for number in range(50):
        assert channel.basic_get(bench.queue) is None
        channel.publish_and_wait(bench.queue, str(number).encode())
        found = channel.basic_get(bench.queue)
        assert found
        assert found[2] == str(number).encode()
        channel.basic_ack(found[0].delivery_tag)
    assert channel.basic_get(bench.queue) is None


def end_by_close(connection: Connection, channel: Channel) -> None:
    connection.close()


def end_by_cut(connection: Connection, channel: Channel) -> None:
    connection.abort()


def end_by_broker(connection: Connection, channel: Channel) -> None:
    with pytest.raises(ENDED, match="no queue"):
        channel.queue_declare("there is none", passive=True)


def end_by_failure(connection: Connection, channel: Channel) -> None:
    def fail() -> None:
        raise ZeroDivisionError("of a callback")

    connection.submit(fail)
    until(lambda: not connection.is_open, "the connection to end")
    assert isinstance(connection.reason, ZeroDivisionError)


ENDS = pytest.mark.parametrize("end", [end_by_close, end_by_cut, end_by_broker, end_by_failure])


@ENDS
def test_after_the_end_every_call_returns_or_raises_the_reason(
    bench: Bench, connection: Connection, end: Callable[[Connection, Channel], None]
) -> None:
    channel = declared(bench, connection)
    end(connection, channel)
    until(lambda: not channel.is_open, "the channel to end")
    for call in (
        lambda: channel.queue_declare(bench.queue, passive=True),
        lambda: channel.basic_qos(1),
        lambda: channel.basic_get(bench.queue),
        lambda: channel.publish_and_wait(bench.queue, b""),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011  # any, but always the same
            call()
        assert caught.value is channel.reason
    channel.basic_ack(1)
    channel.basic_nack(1)
    channel.close()


@pytest.mark.parametrize("end", [end_by_close, end_by_cut, end_by_failure])
def test_no_call_waits_for_a_connection_that_ends_in_the_same_moment(
    bench: Bench, settings: config.Settings, end: Callable[[Connection, Channel], None]
) -> None:
    for _ in range(15):
        with dial(settings, "test") as connection:
            channel = connection.channel()
            returned: list[int] = []

            def call(
                connection: Connection = connection, channel: Channel = channel, returned: list[int] = returned
            ) -> None:
                try:
                    while True:
                        connection.channel().basic_qos(1)
                        channel.basic_qos(1)
                except Exception:
                    returned.append(1)

            for _ in range(4):
                threading.Thread(target=call, daemon=True).start()
            time.sleep(0.01)
            end(connection, channel)
            until(lambda returned=returned: len(returned) == 4, "all calls to return", 5)  # type: ignore[misc]


def test_a_call_made_after_the_last_round_is_answered(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in line right before the thread ends, when the connection still counts as open."""
    with dial(settings, "test") as connection:
        on_end = connection._on_end
        opening = threading.Event()
        submit = connection.submit

        def end_late(wire: Any, reason: BaseException) -> None:
            opening.wait(5)
            on_end(wire, reason)

        def note(call: Any) -> None:
            submit(call)
            opening.set()

        monkeypatch.setattr(connection, "submit", note)
        submit(lambda: end_late(None, BrokerError("the end")))
        raised: list[BaseException] = []

        def open_channel() -> None:
            try:
                connection.channel()
            except BaseException as error:
                raised.append(error)

        threading.Thread(target=open_channel, daemon=True).start()
        until(lambda: raised, "the call to return", 5)
        assert "the end" in str(raised[0])


def test_close_flushes_acknowledgements(bench: Bench, settings: config.Settings) -> None:
    count = 10_000
    bench.send("--count", str(count), "--quiet")
    with dial(settings, "test") as connection:
        channel = connection.channel()
        got: list[int] = []
        channel.basic_consume(bench.queue, lambda _, method, *rest: got.append(method.delivery_tag))
        until(lambda: len(got) == count, "all deliveries", 30)
        for tag in got[::2] + got[1::2]:
            channel.basic_ack(tag)
    assert bench.ready() == 0


def test_close_returns_on_a_dead_link(bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 1.0)
    connection = dial(settings, "test")
    connection.submit(lambda: time.sleep(3))
    begun = time.monotonic()
    connection.close(1.0)
    assert time.monotonic() - begun < 2


def test_a_signal_handler_may_submit_whatever_it_interrupts(connection: Connection) -> None:
    """Pika's own way to wake its loop takes a lock, for which a handler would wait for ever."""
    calls: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: connection.submit(lambda: calls.append(1)))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        while len(calls) < 300:
            connection.submit(lambda: None)
        with connection._loop._poller._waking_mutex:  # type: ignore[attr-defined]
            seen = len(calls)
            until(lambda: len(calls) > seen + 10, "calls of the handler while the lock is held", 5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_heartbeats_go_on_while_the_main_thread_is_busy(bench: Bench, connection: Connection) -> None:
    channel = declared(bench, connection)
    until_then = time.monotonic() + 6
    while time.monotonic() < until_then:
        sum(range(1000))
    assert channel.queue_declare(bench.queue, passive=True)


def test_what_is_interrupted_raises_stopped_and_closes_soon(bench: Bench, settings: config.Settings) -> None:
    begun = time.monotonic()
    with pytest.raises(Stopped), dial(settings, "test", lambda: True) as connection:  # noqa: PT012
        channel = declared(bench, connection)
        connection.submit(lambda: time.sleep(3))
        channel.basic_qos(1)
    assert time.monotonic() - begun < 1.5


# Acknowledgements


class Script:
    """Acknowledgements, with a look at what may come back after each step."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bool]] = []
        self.later: list[Callable[[], None]] = []
        self.asked: list[Callable[[], None]] = []
        self.look: Callable[[], None] = lambda: None
        self.tested = Acknowledgements(self.write, lambda _, call: self.later.append(call), self.asked.append)

    def write(self, tag: int, multiple: bool) -> None:
        self.written.append((tag, multiple))
        self.look()


def test_an_acknowledgement_is_proven_only_by_an_answer_to_what_was_asked_after_it() -> None:
    script = Script()
    acks = script.tested
    for tag in range(1, 6):
        acks.delivered(tag)
    script.look = lambda: unproven.extend(tag for tag in range(1, 6) if not acks.may_come_back(tag))
    unproven: list[int] = []
    acks.add(1)
    acks.add(2)
    acks.write()
    assert script.written == [(2, True)]
    script.later.pop()()
    acks.add(4)
    acks.write()
    assert script.written == [(2, True), (4, False)]
    assert not unproven, "taken for proven while it is being written"
    assert [tag for tag in range(1, 6) if acks.may_come_back(tag)] == [1, 2, 3, 4, 5]
    script.asked.pop()()
    assert [tag for tag in range(1, 6) if acks.may_come_back(tag)] == [3, 4, 5]
    script.later.pop()()
    script.asked.pop()()
    assert [tag for tag in range(1, 6) if acks.may_come_back(tag)] == [3, 5]


def test_what_is_given_back_is_not_acknowledged_with_others() -> None:
    script = Script()
    acks = script.tested
    for tag in range(1, 4):
        acks.delivered(tag)
    acks.add(3)
    acks.add(1)
    acks.write()
    acks.drop(2)
    acks.add(2)
    acks.write()
    assert sorted(script.written) == [(1, True), (3, False)]


# Workers


def slow(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, before: Callable[[], None], times: int | None = None
) -> None:
    """Has `before` called at each call of a method of ours."""
    original = getattr(owner, name)
    left = [times]

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        if left[0] != 0:
            left[0] = left[0] - 1 if left[0] is not None else None
            before()
        return original(self, *arguments, **named)

    monkeypatch.setattr(owner, name, method)


def test_a_broker_that_goes_in_the_moment_of_connecting_is_no_broker(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine has taken the connection, and the process that was to take it is gone."""
    server = socket.create_server(("127.0.0.1", 0))
    connect = wire._Services.connect_socket

    def connect_and_go(self: Any, sock: Any, address: Any, on_done: Any) -> Any:
        def gone(error: Any) -> None:
            server.close()
            on_done(error)

        return connect(self, sock, address, gone)

    monkeypatch.setattr(wire._Services, "connect_socket", connect_and_go)
    url = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
    with pytest.raises(BrokerError, match="is it running"):
        dial(replace(settings, rabbitmq_urls=(url,)), "test")


def cut(found: Running) -> None:
    found.channels[-1].abort()  # type: ignore[attr-defined]


def test_no_task_begins_before_the_worker_says_that_it_is_ready(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bench)
    with running(settings, monkeypatch) as found:
        event = found.event

        def slow_to_say(name: str, delivery: object = None, **details: Any) -> None:
            if name == "worker_ready":
                time.sleep(0.3)
            event(name, delivery, **details)

        found.worker.output.event = slow_to_say  # type: ignore[assignment,method-assign]
        until(lambda: found.count("task_completed"), "the task")
    assert found.events[:2] == ["worker_ready", "task_started"]


@pytest.mark.parametrize("burst", [False, True])
def test_a_stop_between_the_end_of_a_task_and_its_acknowledgement_waits_for_it(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, burst: bool
) -> None:
    slow(monkeypatch, Channel, "basic_ack", lambda: time.sleep(0.3))
    publish(bench)

    def handle(task: Task) -> None:
        found.worker.stopping = True

    with running(settings, monkeypatch, handle, burst) as found:
        until(lambda: found.code is not None, "the worker to end")
    assert found.code == 0
    assert bench.ready() == 0
    assert found.count("task_completed") == 1


def test_acknowledgements_that_are_written_together_arrive_before_a_worker_ends(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection's thread writes them late, when the worker has nothing in hand any more."""
    slow(monkeypatch, Channel, "write_acknowledgements", lambda: time.sleep(0.05))
    for _ in range(20):
        publish(bench)
    with running(settings, monkeypatch, burst=True) as found:
        until(lambda: found.code is not None, "the worker to end", 30)
    assert bench.ready() == 0
    assert found.count("task_completed") == 20


def test_what_is_acknowledged_for_certain_is_not_kept_in_mind(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_at = time.monotonic() + 60
    with running(settings, monkeypatch) as found:
        for count, done in ((200, 200), (1, 201)):
            for _ in range(count):
                publish(bench)
            while found.count("task_completed") < done or found.worker.hands.awaited:
                assert time.monotonic() < give_up_at, "the tasks, and the proof of their acknowledgements"
                time.sleep(0.01)
        assert len(found.worker.hands._acknowledged) == 1, "the last one: the next would take its place"


@pytest.mark.parametrize("stopping", [False, True])
def test_a_task_that_ends_before_its_loss_is_noticed_is_not_run_again(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    finished = threading.Event()
    slow(monkeypatch, Hands, "lose", lambda: finished.wait(5) and time.sleep(0.2), 1)  # type: ignore[func-returns-value,arg-type]
    publish(bench)

    def handle(task: Task) -> None:
        if len(found.runs) == 1:
            found.worker.stopping = stopping
            cut(found)
            until(lambda: not found.channels[0].is_open, "the end of the connection")
            finished.set()

    with running(settings, monkeypatch, handle) as found:
        until(lambda: found.count("task_completed"), "the task")
    assert found.runs == [1]
    assert found.code == 0
    assert found.count("task_completed") == 1
    assert bench.ready() == 0


def test_a_task_that_ends_in_the_moment_in_which_it_comes_again_is_reported_once(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = threading.Event()
    recognize = Hands._recognize

    def noted(self: Hands, delivery: Delivery) -> Any:
        found = recognize(self, delivery)
        if found:
            again.set()
        return found

    class Slow:
        """A lock after whose release the connection's thread, or who claims, pauses."""

        def __init__(self) -> None:
            self.lock = threading.RLock()

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()
            if again.is_set() and threading.current_thread().name in ("connection", "worker"):
                time.sleep(0.3)

    monkeypatch.setattr(Hands, "_recognize", noted)
    slow(monkeypatch, Reports, "now", lambda: time.sleep(1.0), 1)
    publish(bench)

    def handle(task: Task) -> None:
        cut(found)
        again.wait(10)

    with running(settings, monkeypatch, handle) as found:
        found.worker.hands._guard = Slow()  # type: ignore[assignment]
        until(lambda: found.count("task_completed"), "the task")
        time.sleep(1.5)
    assert found.runs == [1]
    assert found.count("task_completed") == 1


def test_of_two_equal_messages_the_one_that_was_only_held_still_runs(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was acknowledged, and the broker's answer to that has not come when the link is cut."""
    monkeypatch.setattr("workqueue.acknowledgements.PROOF_SECONDS", 60)
    two_in_hand = config.load({"PREFETCH_COUNT": ("--prefetch", "2")})

    def handle(task: Task) -> None:
        if task.id == 2 and not cutting.is_set():
            cutting.set()
            until(lambda: found.worker.hands.in_hand == 2, "the second to be held")
            time.sleep(0.3)
            cut(found)
            until(lambda: found.count("task_lost_connection") == 1, "the worker to notice, while this one runs")
            monkeypatch.setattr("workqueue.acknowledgements.PROOF_SECONDS", 0.05)

    cutting = threading.Event()
    other = json.dumps({"id": 2, "task": "y", "difficulty": 0}).encode()
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
        messages = ((BODY, "same"), (other, "other"), (BODY, "same"))
        put(
            channel, bench.queue, [(body, BasicProperties(message_id=name, delivery_mode=2)) for body, name in messages]
        )
    with running(two_in_hand, monkeypatch, handle) as found:
        until(lambda: found.count("task_completed") >= 3, "all three")
    runs = Counter(found.runs)
    assert runs[2] == 1
    assert runs[1] >= 2, "the one that was held was taken for the one that was done"


def test_claiming_back_takes_nothing_else(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that ran when the link was lost is done by another worker, and others wait in the queue."""
    kept: list[int] = []

    def noted(self: Hands, channel: Channel, queue: str) -> None:
        claim_back(self, channel, queue)
        kept.append(len(self._not_begun))
        claimed.set()

    claim_back = Hands.claim_back
    claimed = threading.Event()
    bench.publish(BODY, BasicProperties(message_id="first", delivery_mode=2))

    def handle(task: Task) -> None:
        if len(found.runs) == 1:
            monkeypatch.setattr(Hands, "claim_back", noted)
            thief = threading.Thread(target=steal)
            thief.start()
            claimed.wait(10)
            thief.join()

    def steal() -> None:
        with bench.broker.channel() as channel:
            cut(found)
            stolen = until(lambda: channel.basic_get(bench.queue), "the lost task")
            assert stolen
            channel.basic_ack(stolen[0].delivery_tag)
            put(channel, bench.queue, [(BODY, BasicProperties(message_id=str(number))) for number in range(3)])

    slow(monkeypatch, Hands, "lose", lambda: time.sleep(0.5), 1)
    with running(settings, monkeypatch, handle) as found:
        until(lambda: len(found.runs) == 4, "all others to run")
    assert kept
    assert not any(kept)
    assert bench.ready() == 0


def let_cross_the_cancellation(bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """A task reaches the worker while it cancels its consumer, each of the next `count` times; returns what is left of
    them."""

    def publish_one() -> None:
        with bench.broker.channel() as channel:
            put(channel, bench.queue, [(BODY, BasicProperties(message_id=str(uuid.uuid4())))])

    # what our connection's thread does not read yet crosses the cancellation
    cancel = Channel.basic_cancel
    left = [count]

    def crossing(self: Channel, consumer_tag: str) -> None:
        if left[0] and consumer_tag in self._wire.consumer_tags:
            left[0] -= 1
            reading = threading.Event()
            self.connection.submit(lambda: reading.wait(5))
            publish_one()
            threading.Timer(0.1, reading.set).start()
        cancel(self, consumer_tag)

    monkeypatch.setattr(Channel, "basic_cancel", crossing)
    return left


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_burst_does_all_that_crosses_its_cancellation(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, queue_type: str
) -> None:
    """None of it lies in the queue when the worker ends."""
    bench.send("--task", "x", "--difficulty", "0", "--quiet", QUEUE_TYPE=queue_type)
    left = let_cross_the_cancellation(bench, monkeypatch, 3)
    slow(monkeypatch, Hands, "begin", lambda: time.sleep(0.3))
    with running(replace(settings, queue_type=queue_type), monkeypatch, burst=True) as found:
        until(lambda: found.code is not None, "the end of the burst", 30)
    assert found.code == 0
    assert left[0] < 3
    assert found.count("task_completed") == 1 + 3 - left[0]
    assert bench.ready() == 0


def test_what_crosses_the_cancellation_of_a_stop_is_given_back(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_cross_the_cancellation(bench, monkeypatch, 1)
    with running(settings, monkeypatch) as found:
        until(lambda: found.count("worker_ready"), "the worker")
    assert found.code == 0
    assert bench.ready() == 1 - found.count("task_completed")
    assert len(found.runs) == found.count("task_completed")


def test_what_is_published_without_a_callback_is_confirmed_like_all_else(bench: Bench, connection: Connection) -> None:
    channel = declared(bench, connection)
    channel.confirm_delivery()
    outcomes: list[str] = []
    for _ in range(3):
        channel.basic_publish("", bench.queue, b"nobody asks for its confirm")
    channel.basic_publish("", "no such queue", b"asked for", mandatory=True, on_confirm=outcomes.append)
    until(lambda: outcomes, "its outcome")
    assert outcomes == ["returned"], "it was given the confirm of another"
    assert channel.queue_declare(bench.queue, passive=True).message_count == 3, "the channel has lived through it"


def test_each_message_goes_where_its_publish_says_as_it_is(bench: Bench, connection: Connection) -> None:
    """Whatever was published before it, on whatever channel: queue, body in frames, properties, mandatory."""
    queues = [f"{bench.queue}.{letter}" for letter in "ab"]
    channels = [connection.channel() for _ in queues]
    returned = []
    channels[1].on_return = lambda: returned.append("from the second channel")
    for queue in queues:
        channels[0].queue_declare(queue, durable=True)
    frame = connection.frame_max
    bodies = [b"", b"x", b"y" * (frame - 8), b"z" * (frame - 7), bytes(3 * frame)]
    ways = list(product((0, 1), [*queues, f"{bench.queue}.none"], (False, True)))
    dice = random.Random(1)
    for number, body in enumerate(bodies):
        for which, queue, mandatory in dice.sample(ways, len(ways)):  # each way after each other, sooner or later
            properties = BasicProperties(message_id=f"{which} {queue} {mandatory}")
            channels[which].basic_publish("", queue, body, properties, mandatory)
        for channel in channels:
            channel.queue_declare(queues[0], passive=True)  # when this is answered, all is there
        for queue in queues:
            found = [channels[0].basic_get(queue) for _ in range(4)]
            assert sorted((each[1].message_id, each[2] == body) for each in found if each) == [
                (f"{which} {queue} {mandatory}", True) for which in (0, 1) for mandatory in (False, True)
            ]
        assert len(returned) == number + 1


def test_what_meets_a_closing_channel_was_not_refused(bench: Bench, connection: Connection) -> None:
    channel = declared(bench, connection)
    channel.confirm_delivery()
    outcomes: list[str] = []

    def close_and_publish() -> None:
        channel._wire.close()
        channel.basic_publish("", bench.queue, b"too late", on_confirm=outcomes.append)

    connection.submit(close_and_publish)
    until(lambda: outcomes, "its outcome")
    assert outcomes == ["lost"]  # so that it is sent again


def test_a_handlers_own_thread_tells_no_progress_of_a_task_that_is_settled(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Event()

    def handle(task: Task, attempt: Attempt) -> None:
        def go_on() -> None:
            until(lambda: found.count("task_completed"), "it to be told")
            attempt.progress(1, 2)
            late.set()

        threading.Thread(target=go_on).start()

    with running(settings, monkeypatch, lambda task: None) as found:
        found.worker.handle = handle
        bench.publish(BODY, BasicProperties(message_id="m"))
        assert late.wait(15)
    assert "task_progress" not in found.events
