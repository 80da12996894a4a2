"""Faults that need one exact moment, or a state of its surroundings that is seldom met: each has been seen."""

from __future__ import annotations

import json
import os
import pty
import signal
import termios
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab.forwarder import Forwarder
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program
from test_races import BODY, cut, let_cross_the_cancellation, publish, running, slow

import config
from tasks import Task
from worker import Worker
from workqueue.connection import Channel
from workqueue.deliveries import Delivery
from workqueue.hands import Hands
from workqueue.messages import Message
from workqueue.publisher import Publisher
from workqueue.queues import declare_task_queue


@pytest.fixture(autouse=True)
def _quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """The worker of this process writes to the real standard output."""


@pytest.fixture
def settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    for name, value in bench.environment(HEARTBEAT_SECONDS="2").items():
        monkeypatch.setenv(name, value)
    return config.load()


def test_a_burst_begins_what_crosses_its_cancellation_however_late_a_thread_takes_it(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread asks for more by then, and has no place for it."""
    let_cross_the_cancellation(bench, monkeypatch, 1)
    next_one = Hands.next

    def taken_late(self: Hands) -> Delivery:
        delivery = next_one(self)
        time.sleep(0.5)
        return delivery

    monkeypatch.setattr(Hands, "next", taken_late)
    with running(settings, monkeypatch, burst=True) as found:
        until(lambda: found.code is not None, "the end of the burst", 10)
    assert found.count("task_completed") == 1
    assert bench.ready() == 0


def test_the_first_signal_to_a_burst_at_its_end_is_no_second_one(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[str] = []
    monkeypatch.setattr("worker.end_at_once", at_once.append)
    monkeypatch.setattr("workqueue.acknowledgements.PROOF_SECONDS", 1.0)
    publish(bench)
    with running(settings, monkeypatch, burst=True) as found:
        until(lambda: found.worker.stopping, "the end of the burst")
        found.worker.on_signal(signal.SIGTERM, None)
        until(lambda: found.code is not None, "the end of the worker")
    assert not at_once
    assert found.code == 0


@pytest.mark.parametrize("outcome", ["done", "dead"])
@pytest.mark.parametrize("message_id", ["", "a UUID"])
def test_a_worker_ends_when_all_that_it_settled_is_told(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, message_id: str, outcome: str
) -> None:
    def handle(task: Task) -> None:
        found.worker.stopping = True
        if outcome == "dead":
            raise ValueError("of a task")

    told = "task_completed" if outcome == "done" else "task_dead"
    with running(replace(settings, retry_delays=()), monkeypatch, handle) as found:
        event = found.event

        def slow_to_tell(name: str, *delivery: Any, **details: Any) -> None:
            if name == told:
                time.sleep(0.5)
            event(name, *delivery, **details)

        found.worker.output.event = slow_to_tell  # type: ignore[assignment,method-assign]
        bench.publish(BODY, BasicProperties(message_id=str(uuid.uuid4()) if message_id else None, delivery_mode=2))
        until(lambda: found.code is not None, "the end of the worker")
    assert found.events[-2:] == [told, "worker_stopped"]
    assert found.code == 0


def test_what_tasks_carried_is_not_kept_when_they_are_done(bench: Bench) -> None:
    worker = bench.worker(SECONDS_PER_DIFFICULTY="0")
    process = psutil.Process(worker.process.pid)
    numbers: list[int] = []

    def memory_after(count: int) -> int:
        for number in range(count):
            payload = {"x": "x" * 5_000_000}
            bench.publish_as_sender(
                json.dumps({"id": number, "task": "x", "difficulty": 0, "payload": payload}).encode()
            )
        numbers.append(count)
        worker.wait_for("task_completed", sum(numbers), 60)
        return int(process.memory_info().rss)

    first = memory_after(5)
    assert memory_after(20) < first + (30 << 20)


def test_a_task_that_comes_again_while_it_is_acknowledged_is_reported_once(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is lost in between, and back before the work thread goes on."""
    again = threading.Event()
    has_come_again = Hands._has_come_again

    def noted(self: Hands, delivery: Delivery) -> bool:
        found = has_come_again(self, delivery)
        if found:
            again.set()
        return found

    monkeypatch.setattr(Hands, "_has_come_again", noted)
    acknowledge = Channel.basic_ack

    def late(self: Channel, delivery_tag: int) -> None:
        if threading.current_thread().name == "work" and not again.is_set():
            cut(found)
            again.wait(10)
            time.sleep(0.3)
        acknowledge(self, delivery_tag)

    monkeypatch.setattr(Channel, "basic_ack", late)
    publish(bench)
    with running(replace(settings, prefetch_count=2), monkeypatch) as found:
        until(lambda: found.count("task_completed"), "the task")
        time.sleep(0.5)
    assert again.is_set()
    assert found.count("task_completed") == 1
    assert found.runs == [1]


def test_a_stop_does_not_sit_out_the_pause_before_the_next_attempt_to_connect(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is back takes the acknowledgement of what was finished meanwhile."""
    pauses = [iter([20.0])]
    monkeypatch.setattr("worker.backoff", lambda: pauses.pop() if pauses else iter([0.1] * 100))
    publish(bench)

    def handle(task: Task) -> None:
        cut(found)
        until(lambda: found.count("task_lost_connection"), "the loss to be noticed")

    with running(settings, monkeypatch, handle) as found:
        until(lambda: found.count("task_lost_connection"), "the loss")
        time.sleep(0.5)
        found.worker.on_signal(signal.SIGTERM, None)
        until(lambda: found.code is not None, "the end of the worker")
    assert found.code == 0
    assert found.count("task_completed") == 1
    assert bench.ready() == 0


def test_a_message_for_a_connection_that_ends_meanwhile_does_not_keep_later_ones_waiting(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[str] = []
    publisher = Publisher(settings, "test", declare_task_queue, lambda line: None, 10)
    message = Message(BODY, BasicProperties())

    def publish_one() -> None:
        publisher.publish(bench.queue, message, lambda _, outcome: settled.append(outcome))

    publish_one()
    until(lambda: len(settled) == 1, "the first")
    old = publisher._channel
    assert old

    def ask_late(self: Publisher, value: bool) -> None:
        if value and threading.current_thread().name == "late":
            old.connection.abort()
            until(lambda: len(settled) == 2, "the second, over another connection")
        self.__dict__["asked"] = value

    monkeypatch.setattr(
        Publisher, "_waking", property(lambda self: self.__dict__.get("asked", False), ask_late), raising=False
    )
    thread = threading.Thread(target=publish_one, name="late")
    thread.start()
    thread.join()
    publish_one()
    until(lambda: len(settled) == 3, "the third", 5)
    publisher.close()
    assert settled == ["confirmed"] * 3


def sending_on_a_terminal(bench: Bench) -> tuple[Program, int, int]:
    """A sender that has begun, and both ends of its terminal."""
    parent, child = pty.openpty()
    streams = {"stdin": child, "stdout": child}
    sender = bench.launch("sender.py", ["--count", "1000000"], {"TERM": "xterm"}, start_new_session=True, **streams)
    until(lambda: bench.ready() > 1000, "tasks in the queue", 30)
    return sender, parent, child


def test_a_sender_whose_terminal_goes_away_ends_with_an_honest_line(bench: Bench) -> None:
    sender, parent, child = sending_on_a_terminal(bench)
    os.close(child)
    os.close(parent)
    assert sender.wait(15) == 1
    assert "standard output is gone" in sender.stderr
    assert "Traceback" not in sender.stderr
    sent, confirmed, *_ = (int(word) for word in sender.stderr.splitlines()[-1].split() if word.isdigit())
    assert confirmed <= bench.ready() <= sent


def test_a_sender_on_a_terminal_that_stands_still_obeys_a_signal(bench: Bench) -> None:
    """As after Ctrl-S."""
    sender, parent, child = sending_on_a_terminal(bench)
    termios.tcflow(child, termios.TCOOFF)
    time.sleep(1)
    sender.signal(signal.SIGTERM)
    assert sender.wait(5) == 1
    assert "Traceback" not in sender.stderr
    os.close(child)
    os.close(parent)


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes nothing more."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    for size in (1000, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(theirs, b"x" * size)
    return ours, theirs


@pytest.mark.parametrize("line", ["", "{}"], ids=["all is well", "a bad line"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sender_that_cannot_print_its_closing_line_obeys_a_signal(
    bench: Bench, tmp_path: Path, number: signal.Signals, line: str
) -> None:
    """And says it where it can."""
    ours, theirs = full_pipe()
    file = tmp_path / "tasks"
    file.write_text('{"id": 1, "task": "x", "difficulty": 0}\n' * 10 + line)
    sender = bench.launch("sender.py", ["--file", str(file), *(() if line else ["--quiet"])], {}, stdout=theirs)
    os.close(theirs)
    until(lambda: bench.ready() == 10, "the tasks")
    time.sleep(1)
    sender.signal(number)
    assert sender.wait(5) == (2 if line else 0)
    assert sender.stderr.splitlines()[-1] == "10 tasks sent, 10 confirmed"
    os.close(ours)


@contextmanager
def memory_alarm(bench: Bench) -> Iterator[None]:
    bench.broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        bench.broker.ctl("set_vm_memory_high_watermark", "0.6")


def test_an_alarm_leaves_one_copy_of_a_task_without_an_id_however_many_links_were_lost(
    breakable: Bench, link: Forwarder
) -> None:
    """Nobody can tell that it has come again: it is run again, and only the last run counts."""
    worker = breakable.handling("reject", RETRY_DELAYS="")
    breakable.publish(BODY)
    breakable.take_dead(1)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    breakable.publish(BODY)
    with memory_alarm(breakable):
        worker = breakable.handling("reject", RETRY_DELAYS="")
        for lost in range(3):
            worker.wait_for("task_started", lost + 1)
            time.sleep(0.5)
            for each in list(link._links):
                each.close()  # not a reset, which would have the broker forget what it has not read
            worker.wait_for("task_lost_connection", lost + 1)
        worker.wait_for("task_started", 4)
    worker.wait_for("task_dead", 1, 40)
    time.sleep(0.5)  # for what should not come
    assert len(breakable.take_all(breakable.dead)) == 1
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_standard_error_that_nobody_reads_keeps_no_connection_from_its_heartbeats(breakable: Bench) -> None:
    """Not even where there is much to say of copies that cannot be placed."""
    breakable.worker("--burst").wait()
    refuses = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    breakable.broker.ctl("set_policy", breakable.queue, f"^{breakable.dead}$", refuses, "--apply-to", "queues")
    ours, theirs = full_pipe()
    breakable.publish_as_sender(BODY)
    settings = {"RETRY_DELAYS": "", "HEARTBEAT_SECONDS": "1"}
    worker = breakable.launch("tests/handlers.py", ["reject"], settings, stderr=theirs)
    os.close(theirs)
    worker.wait_for("task_started")
    time.sleep(5)
    breakable.broker.ctl("clear_policy", breakable.queue)
    breakable.take_dead(1)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    with open(ours, "rb") as said:
        words = said.read().lstrip(b"x").decode()
    assert "Connection lost" not in words


def test_a_last_attempt_begins_when_the_one_before_is_settled(
    bench: Bench, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end the worker: what is done, and not yet acknowledged, would be counted out with it."""
    slow(monkeypatch, Worker, "settle", lambda: time.sleep(0.5))
    for number in range(3):
        publish(bench, json.dumps({"id": number, "task": "x", "difficulty": 0}).encode())
    with bench.broker.channel() as channel:  # it holds them, and gives them back: they count as begun once
        taken = [channel.basic_get(bench.queue) for _ in range(3)]
        assert all(taken)
    until(lambda: bench.ready() == 3, "them to be back")
    in_hand: list[int] = []

    def handle(task: Task) -> None:
        if not in_hand:
            until(lambda: found.worker.hands.in_hand == 3, "the others")
        in_hand.append(found.worker.hands.in_hand)

    with running(replace(settings, delivery_limit=2, concurrency=3, prefetch_count=3), monkeypatch, handle) as found:
        until(lambda: found.count("task_completed") == 3, "all three")
    assert in_hand == [3, 2, 1]
