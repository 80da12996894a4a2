"""Copies for another attempt and for the dead queue: nobody waits for one, none is lost, and there is one of each."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count

import pytest
from lab.forwarder import Forwarder
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program, put

STOP_SECONDS = 4.0  # for a worker that has nothing to run: two to be patient with its copies, and two of a slow machine
LOW, HIGH = "0.00001", "0.6"
QUEUE_TYPES = pytest.mark.parametrize("queue_type", ["classic", "quorum"])
numbers = count(1)


def start(bench: Bench, *arguments: str, **settings: str) -> Program:
    """A worker that keeps a record of what it runs, consuming."""
    worker = bench.start("tests/handlers_copies.py", "obey", *arguments, **settings)
    worker.wait_for("worker_ready")
    return worker


def give(bench: Bench, *names: str, difficulty: float = 0, padding: int = 0) -> list[int]:
    """Publishes a task a name to the queue, which is there. Returns their ids."""
    ids = [next(numbers) for _ in names]
    tasks = [
        {"id": number, "task": name, "difficulty": difficulty, "pad": "x" * padding}
        for number, name in zip(ids, names, strict=True)
    ]
    with bench.broker.channel() as channel:
        put(
            channel,
            bench.queue,
            [(json.dumps(t).encode(), BasicProperties(message_id=f"m{t['id']}", delivery_mode=2)) for t in tasks],
        )
    return ids


def runs(bench: Bench) -> list[tuple[int, int, float]]:
    """What the handlers have begun: id, attempt and time."""
    path = bench.folder / "runs"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [(int(a), int(b), float(c)) for a, b, c in (line.split() for line in lines if line.endswith("\n"))]


def times(bench: Bench) -> Counter[tuple[int, int]]:
    """How often each attempt at each task was begun."""
    return Counter((number, attempt) for number, attempt, _ in runs(bench))


def reported(workers: list[Program], event: str) -> Counter[tuple[int, int]]:
    return Counter((found["id"], found["attempt"]) for worker in workers for found in worker.events(event))


def counts(bench: Bench, queue: str = "") -> tuple[int, int]:
    """What is ready and what is unacknowledged in a queue; (0, 0) if there is none."""
    listed = bench.broker.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged")
    rows = [line.split("\t") for line in listed.splitlines()]
    found = [(int(row[1]), int(row[2])) for row in rows if row[0] == (queue or bench.queue)]
    return found[0] if found else (0, 0)


def stop(worker: Program, exit_code: int = 0) -> None:
    worker.signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(30) == exit_code, worker.describe()
    assert time.monotonic() - began < STOP_SECONDS, worker.describe()


def set_variable(bench: Bench, name: str, value: int) -> None:
    bench.broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")


# Retry queues


@QUEUE_TYPES
def test_a_killed_broker_loses_no_task_that_waits_for_its_next_attempt(breakable: Bench, queue_type: str) -> None:
    worker = start(breakable, "--prefetch", "50", RETRY_DELAYS="5", QUEUE_TYPE=queue_type)
    breakable.broker.keep_queues()
    ids = give(breakable, *["fail once"] * 1500)
    until(lambda: len(worker.events("task_retried")) > 1000, "tasks to wait for their next attempt", 40)
    breakable.broker.kill()
    breakable.broker.start()
    # where the work queue is not back yet when a delay ends, RabbitMQ hands over again after three minutes
    until(lambda: {event["id"] for event in worker.events("task_completed")} == set(ids), "all tasks", 240)
    again = [number for number, found in reported([worker], "task_completed").items() if found > 1]
    # a classic queue writes acknowledgements down late, and gives out again what was acknowledged before the kill
    assert queue_type == "classic" or len(again) <= 100, "more were doubled than were on their way"


@contextmanager
def full(bench: Bench, most: int) -> Iterator[None]:
    """A queue that holds so many tasks takes no more."""
    definition = json.dumps({"max-length": most, "overflow": "reject-publish"})
    bench.broker.ctl("set_policy", bench.queue, f"^{bench.queue}$", definition, "--apply-to", "queues")
    try:
        yield
    finally:
        bench.broker.ctl("clear_policy", bench.queue)


@contextmanager
def handed_over_again_soon(bench: Bench) -> Iterator[None]:
    """Quorum queues of now on try again every second to hand over; RabbitMQ says every three minutes."""
    set_variable(bench, "dead_letter_worker_publisher_confirm_timeout", 1000)
    try:
        yield
    finally:
        set_variable(bench, "dead_letter_worker_publisher_confirm_timeout", 180000)


@pytest.mark.parametrize("state", ["full", "deleted"])
def test_a_work_queue_that_takes_nothing_when_a_delay_ends_gets_its_tasks_later(breakable: Bench, state: str) -> None:
    with handed_over_again_soon(breakable):
        worker = start(breakable, "--prefetch", "50", RETRY_DELAYS="5")
        ids = give(breakable, *["fail once"] * 8)
        worker.wait_for("task_retried", 8)
        stop(worker)
        if state == "full":
            give(breakable, *["good"] * 2)
            with full(breakable, 2):
                time.sleep(6)
                assert counts(breakable) == (2, 0)
                worker = start(breakable, RETRY_DELAYS="5")
                worker.wait_for("task_completed", 10, 60)
        else:
            with breakable.broker.channel() as channel:
                channel.queue_delete(breakable.queue)
            time.sleep(6)
            worker = start(breakable, RETRY_DELAYS="5")
        until(lambda: all(times(breakable)[number, 2] for number in ids), "all second attempts", 30)
    assert all(times(breakable)[number, 1] == 1 for number in ids)


@QUEUE_TYPES
def test_a_next_attempt_is_made_after_its_delay_and_not_before(breakable: Bench, queue_type: str) -> None:
    worker = start(breakable, "--concurrency", "4", RETRY_DELAYS="0.4,1", QUEUE_TYPE=queue_type)
    ids = give(breakable, *["fail"] * 40)
    worker.wait_for("task_dead", 40)
    assert reported([worker], "task_retried") == dict.fromkeys(((n, a) for n in ids for a in (1, 2)), 1)
    assert reported([worker], "task_dead") == dict.fromkeys(((n, 3) for n in ids), 1)
    assert times(breakable) == dict.fromkeys(((n, a) for n in ids for a in (1, 2, 3)), 1)
    begun = {(number, attempt): at for number, attempt, at in runs(breakable)}
    for number in ids:
        for attempt, delay in ((1, 0.4), (2, 1)):
            assert delay <= begun[number, attempt + 1] - begun[number, attempt] < delay + 3


def test_a_full_work_queue_and_killed_workers_hold_up_nothing(breakable: Bench) -> None:
    with full(breakable, 2):
        killed = [start(breakable, "--prefetch", "1") for _ in range(2)]
        ids = give(breakable, *["good"] * 2, difficulty=3)
        until(lambda: len(runs(breakable)) == 2, "the tasks to run")
        for worker in killed:
            worker.process.kill()
        until(lambda: counts(breakable) == (2, 0), "them to be back")
        worker = start(breakable)
        worker.wait_for("task_completed", 2, 10)
        assert times(breakable) == dict.fromkeys(((n, 1) for n in ids), 2)
        stop(worker)


# A copy that cannot be placed


def take_no_more_than(bench: Bench, size: int) -> None:
    set_variable(bench, "max_message_size", size)
    bench.broker.ctl("eval", f"persistent_term:put(max_message_size, {size}).")  # where RabbitMQ 4 looks


@contextmanager
def too_large(bench: Bench) -> Iterator[None]:
    """The broker takes no message of more than a few bytes now. Tasks are small, unless their headers are not."""
    take_no_more_than(bench, 300)
    try:
        yield
    finally:
        take_no_more_than(bench, 16 << 20)


@contextmanager
def dead_queue_full(bench: Bench) -> Iterator[None]:
    """A quorum queue refuses what comes when it holds more than it should, a classic one what would be more."""
    with bench.broker.channel() as channel:
        put(channel, bench.dead, [(b"of somebody else", None)] * 2)
    definition = json.dumps({"max-length": 1, "overflow": "reject-publish"})
    bench.broker.ctl("set_policy", bench.queue, f"^{bench.queue}[.]", definition, "--apply-to", "queues")
    try:
        yield
    finally:
        bench.broker.ctl("clear_policy", bench.queue)


@contextmanager
def connection_limit(bench: Bench) -> Iterator[None]:
    bench.broker.ctl("set_user_limits", "guest", json.dumps({"max-connections": 1}))
    try:
        yield
    finally:
        bench.broker.ctl("clear_user_limits", "guest", "all")


@contextmanager
def memory_alarm(bench: Bench) -> Iterator[None]:
    bench.broker.ctl("set_vm_memory_high_watermark", LOW)
    try:
        yield
    finally:
        bench.broker.ctl("set_vm_memory_high_watermark", HIGH)


Obstacle = Callable[[Bench], AbstractContextManager[None]]
OBSTACLES = [
    (too_large, "classic"),
    (dead_queue_full, "quorum"),
    (connection_limit, "classic"),
    (memory_alarm, "classic"),
    (memory_alarm, "quorum"),
]


def ids_of(worker: Program, event: str) -> list[int]:
    return sorted(found["id"] for found in worker.events(event))


@pytest.mark.parametrize(("obstacle", "queue_type"), OBSTACLES)
def test_a_copy_that_cannot_be_placed_holds_up_nobody(breakable: Bench, obstacle: Obstacle, queue_type: str) -> None:
    settings = {"QUEUE_TYPE": queue_type, "RETRY_DELAYS": ""}
    stop(start(breakable, **settings))
    bad = give(breakable, *["reject"] * 2, padding=400)
    good = give(breakable, *["good"] * 30)
    with obstacle(breakable):
        worker = start(breakable, **settings)
        until(lambda: ids_of(worker, "task_completed") == good, "good tasks to go on", 20)
        assert times(breakable) == dict.fromkeys(((n, 1) for n in bad + good), 1)
        stop(worker)
        until(lambda: breakable.ready() == 2, "the others to be back")
        again = start(breakable, **settings)
        until(lambda: len(runs(breakable)) == 34, "those that wait to be run again", 20)
    until(lambda: ids_of(again, "task_dead") == bad, "them to be dead", 30)
    until(lambda: counts(breakable) == (0, 0), "them to be acknowledged")
    bodies = [body for _, body in breakable.take_all(breakable.dead) if body != b"of somebody else"]
    assert sorted(json.loads(body)["id"] for body in bodies) == bad
    assert times(breakable) == {**dict.fromkeys(((n, 1) for n in bad), 2), **dict.fromkeys(((n, 1) for n in good), 1)}
    assert ids_of(worker, "task_dead") == []
    stop(again)


def test_a_worker_for_a_burst_ends_although_a_copy_cannot_be_placed(breakable: Bench) -> None:
    stop(start(breakable))
    bad, good = give(breakable, "reject", "good")
    with memory_alarm(breakable):
        worker = start(breakable, "--burst")
        assert worker.wait(10) == 0, worker.describe()
    assert ids_of(worker, "task_completed") == [good]
    until(lambda: breakable.ready() == 1, "the other one to be back")
    assert times(breakable) == {(bad, 1): 1, (good, 1): 1}


def says_that_it_waits(worker: Program, times: int) -> bool:
    return worker.stderr.count("out of memory or disk") >= times


@QUEUE_TYPES
def test_after_an_alarm_there_is_one_copy_of_each_however_many_links_were_lost(
    breakable: Bench, link: Forwarder, queue_type: str
) -> None:
    settings = {"QUEUE_TYPE": queue_type, "RETRY_DELAYS": ""}
    stop(start(breakable, **settings))
    bad = give(breakable, *["reject"] * 3)
    with memory_alarm(breakable):
        worker = start(breakable, "--concurrency", "3", **settings)
        until(lambda: len(runs(breakable)) == 3, "them to fail")
        for lost in range(1, 4):
            until(partial(says_that_it_waits, worker, lost), "the worker to wait")
            for each in list(link._links):
                each.close()  # not a reset, which would have the broker forget what it has not read
    until(lambda: ids_of(worker, "task_dead") == bad, "them to be dead", 40)
    until(lambda: breakable.ready(breakable.dead) >= 3, "their copies")
    time.sleep(0.5)  # for what should not come
    bodies = [body for _, body in breakable.take_all(breakable.dead)]
    assert sorted(json.loads(body)["id"] for body in bodies) == bad
    assert times(breakable) == dict.fromkeys(((n, 1) for n in bad), 1)
    stop(worker)


def test_what_waits_in_vain_for_its_copy_is_not_counted_as_begun(breakable: Bench) -> None:
    settings = {"RETRY_DELAYS": "900", "DELIVERY_LIMIT": "2"}
    stop(start(breakable, **settings))
    (number,) = give(breakable, "fail once")
    definition = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    retry = f"{breakable.queue}.retry.900s"
    with breakable.broker.channel() as channel:
        put(channel, retry, [(b"{}", None)] * 2)  # a quorum queue takes one more than it should hold
    breakable.broker.ctl("set_policy", breakable.queue, f"^{retry}$", definition, "--apply-to", "queues")
    try:
        for begun in range(1, 5):
            worker = start(breakable, **settings)
            until(lambda begun=begun: times(breakable)[number, 1] == begun, "it to be begun")  # type: ignore[misc]
            stop(worker)
    finally:
        breakable.broker.ctl("clear_policy", breakable.queue)
    worker = start(breakable, **settings)
    worker.wait_for("task_retried")
    assert breakable.ready(breakable.dead) == 0
