"""How often a task was begun, and which delivery is which: counted by what handlers record, on real workers."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections import Counter

import pytest
from lab.forwarder import Forwarder
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program, put

QUEUE_TYPES = ("classic", "quorum")
HANDLERS = "tests/handlers_counting.py"


def send(bench: Bench, tasks: list[tuple[str, float]], **settings: str) -> None:
    """Sends (name, seconds) as tasks with ids from 1, past any forwarder."""
    lines = [
        json.dumps({"id": number, "task": name, "difficulty": seconds})
        for number, (name, seconds) in enumerate(tasks, start=1)
    ]
    path = bench.folder / "tasks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    bench.send("--file", str(path), "--quiet", **{"RABBITMQ_URL": bench.broker.url, **settings})


def start(bench: Bench, *arguments: str, **settings: str) -> Program:
    worker = bench.start(HANDLERS, "record", *arguments, **settings)
    worker.wait_for("worker_ready")
    return worker


def recorded(bench: Bench, what: str) -> list[str]:
    """Ids of the tasks that were begun, or done, in order."""
    path = bench.folder / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith(what)]


def counts(bench: Bench, column: str = "messages") -> dict[str, int]:
    """Of every queue of this test that exists."""
    rows = [line.split() for line in bench.broker.ctl("list_queues", "name", column).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[0].startswith(bench.queue)}


def settled(bench: Bench) -> None:
    """Nothing is left in the work queue or in hand, and no marks."""

    def nothing_left() -> bool:
        found = counts(bench)
        return found.get(bench.queue) == 0 and not any(".begun." in name for name in found)

    until(nothing_left, "all to be settled, and marks to be gone", 20)


def dead(bench: Bench) -> int:
    return bench.ready(bench.dead)


# What was never begun


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.parametrize("limit", ["1", "3"])
def test_graceful_stops_count_for_nothing_and_keep_the_order(breakable: Bench, queue_type: str, limit: str) -> None:
    settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": limit}
    send(breakable, [("x", 0.3)] * 16, **settings)
    for stops in range(1, 11 if limit == "3" else 4):
        worker = start(breakable, "--prefetch", "8", **settings)
        until(lambda: len(recorded(breakable, "begun")) >= stops, "a task to begin")  # noqa: B023
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.describe()
    last = start(breakable, "--prefetch", "8", "--burst", **settings)
    assert last.wait() == 0
    assert recorded(breakable, "begun") == recorded(breakable, "done") == [str(number) for number in range(1, 17)]
    assert dead(breakable) == 0
    settled(breakable)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_lost_links_count_for_nothing(breakable: Bench, link: Forwarder, queue_type: str) -> None:
    """A task that runs through five of them is done, once, and so is what was held with it."""
    settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": "3"}
    send(breakable, [("x", 6), *[("x", 0.0)] * 7], **settings)
    worker = start(breakable, "--prefetch", "8", **settings)
    until(lambda: recorded(breakable, "begun"), "the task to begin")
    for links in range(2, 7):
        link.reset()
        worker.wait_for("worker_ready", links)
    assert recorded(breakable, "done") == []
    worker.wait_for("task_completed", 8)
    for what in ("begun", "done"):
        assert sorted(recorded(breakable, what)) == [str(number) for number in range(1, 9)]
    assert sorted(event["id"] for event in worker.events("task_completed")) == list(range(1, 9))
    settled(breakable)
    assert dead(breakable) == 0


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_a_task_that_goes_from_link_to_link_is_not_dead_while_it_runs(breakable: Bench, queue_type: str) -> None:
    """Each worker that loses its link still runs it, and the next one begins it anew."""
    settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": "2"}
    links = [Forwarder(breakable.broker.url) for _ in range(4)]
    try:
        workers = [start(breakable, RABBITMQ_URL=link.url, **settings) for link in links]
        send(breakable, [("x", 8)], **settings)
        for begun in range(1, 4):
            until(lambda: len(recorded(breakable, "begun")) >= begun, "it to begin once more")  # noqa: B023
            running = [bool(worker.events("task_started")) for worker in workers]
            until(lambda: breakable.ready() == 0, "nothing to wait")
            for link, runs in zip(links, running, strict=True):
                if runs:
                    link.reset()
            time.sleep(1)
        until(lambda: counts(breakable)[breakable.queue] == 0, "the task to be acknowledged", 30)
        assert dead(breakable) == 0
        assert sum(len(worker.events("task_completed")) for worker in workers) == 1
    finally:
        for link in links:
            link.close()


# What ends its worker


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_after_a_kill_a_task_comes_back_to_its_place(breakable: Bench, queue_type: str) -> None:
    settings = {"QUEUE_TYPE": queue_type}
    send(breakable, [("x", 1), *[("x", 0.0)] * 199], **settings)
    worker = start(breakable, **settings)
    until(lambda: recorded(breakable, "begun"), "the task to begin")
    worker.signal(signal.SIGKILL)
    worker.wait()
    assert start(breakable, "--burst", **settings).wait(60) == 0
    assert recorded(breakable, "begun") == ["1", *[str(number) for number in range(1, 201)]]
    settled(breakable)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.parametrize(
    ("limit", "flags", "at"),
    [
        (1, ["--prefetch", "1"], 1),
        (3, ["--prefetch", "8"], 1),
        (3, ["--prefetch", "8"], 5),
        (3, ["--concurrency", "4", "--prefetch", "8"], 3),
    ],
)
def test_what_kills_its_worker_is_dead_and_nothing_else_is(
    breakable: Bench, queue_type: str, limit: int, flags: list[str], at: int
) -> None:
    """`at`: the place of the killer among eight. The others take their time, and are killed with it."""
    settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": str(limit)}
    tasks = [("x", 0.5)] * 8
    tasks[at - 1] = ("kill", 0)
    send(breakable, tasks, **settings)
    killed = 0
    while True:
        worker = breakable.start(HANDLERS, "record", "--burst", *flags, **settings)
        if worker.wait(60) != -signal.SIGKILL:
            break
        killed += 1
    assert worker.process.returncode == 0, worker.describe()
    assert killed == Counter(recorded(breakable, "begun"))[str(at)] == limit
    ((properties, _),) = breakable.take_dead(1)
    assert properties.headers
    assert properties.headers["x-error-type"] == "DeliveryLimit"
    # an acknowledgement that was not written when the worker was killed has its task done again
    assert set(recorded(breakable, "done")) == {str(number) for number in range(1, 9) if number != at}
    if at == 1:  # else the kill may come between an acknowledgement and the removal of the marks
        settled(breakable)


# Marks that cannot be made


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_marks_that_may_not_be_made_hold_up_nothing(breakable: Bench, queue_type: str) -> None:
    settings = {"QUEUE_TYPE": queue_type}
    send(breakable, [("x", 0.2)] * 8, **settings)
    worker = start(breakable, **settings)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    first = start(breakable, "--prefetch", "8", **settings)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    ctl, name = breakable.broker.ctl, f"user-{uuid.uuid4().hex[:8]}"
    ctl("add_user", name, "secret")
    try:
        ctl("set_permissions", name, "^$", ".*", ".*")
        url = breakable.broker.url.replace("guest:guest", f"{name}:secret")
        worker = start(breakable, **{**settings, "QUEUE_TYPE": "existing", "RABBITMQ_URL": url})
        until(lambda: set(recorded(breakable, "done")) == {str(number) for number in range(1, 9)}, "all tasks")
        assert worker.stderr.count("not counted") <= 1
        until(lambda: counts(breakable)[breakable.queue] == 0, "all to be settled")
        assert len(recorded(breakable, "begun")) == 8
        assert len(worker.events("worker_ready")) == 1, worker.describe()
    finally:
        ctl("delete_user", name)


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
def test_in_a_memory_alarm_marks_hold_up_nothing(breakable: Bench, queue_type: str) -> None:
    settings = {"QUEUE_TYPE": queue_type}
    send(breakable, [("x", 1), *[("x", 0.0)] * 39], **settings)
    first = start(breakable, "--prefetch", "40", **settings)
    until(lambda: recorded(breakable, "begun"), "the first to begin")
    first.signal(signal.SIGKILL)
    first.wait()
    left = 40 - len(set(recorded(breakable, "done")))
    try:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        worker = start(breakable, "--prefetch", "40", **settings)
        began = time.monotonic()
        worker.wait_for("task_completed", left)
        assert time.monotonic() - began < 10
    finally:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.6")
    settled(breakable)


def test_after_a_crash_of_the_broker_a_thousand_tasks_are_not_slower(breakable: Bench) -> None:
    """A classic queue calls all of them redelivered then; few of them need a mark."""
    send(breakable, [("x", 0.0)] * 1000)
    breakable.broker.keep_queues()
    breakable.broker.kill()
    breakable.broker.start()
    until(lambda: breakable.ready() == 1000, "the broker to have kept what it confirmed", 60)
    began = time.monotonic()
    assert start(breakable, "--burst", "--quiet").wait(60) == 0
    assert time.monotonic() - began < 15
    assert recorded(breakable, "done") == [str(number) for number in range(1, 1001)]


# Equal messages

EQUAL_ID = "the same for all"


def publish(bench: Bench, messages: list[tuple[int, float, str | None]], **settings: str) -> None:
    """(id, seconds, message_id): nothing tells those of one id apart."""
    assert start(bench, "--burst", **{**settings, "RABBITMQ_URL": bench.broker.url}).wait() == 0
    with bench.broker.channel() as channel:
        put(
            channel,
            bench.queue,
            [
                (
                    json.dumps({"id": number, "task": "x", "difficulty": seconds}).encode(),
                    BasicProperties(message_id=message_id, timestamp=1_700_000_000, delivery_mode=2),
                )
                for number, seconds, message_id in messages
            ],
        )


@pytest.mark.parametrize(
    ("prefetch", "concurrency", "workers", "queue_type"),
    [
        ("1", "1", 1, "classic"),
        ("2", "1", 1, "quorum"),
        ("8", "1", 2, "classic"),
        ("8", "4", 1, "quorum"),
        ("2", "2", 2, "quorum"),
    ],
)
def test_each_of_several_equal_messages_is_run(
    breakable: Bench, link: Forwarder, prefetch: str, concurrency: str, workers: int, queue_type: str
) -> None:
    """Links are lost all the time: while they run, and around their acknowledgements."""
    settings = {"QUEUE_TYPE": queue_type, "HEARTBEAT_SECONDS": "2"}
    publish(breakable, [(1, 0.05, EQUAL_ID), (2, 0.05, None)] * 10, **settings)
    for _ in range(workers):
        start(breakable, "--prefetch", prefetch, "--concurrency", concurrency, **settings)
    for before in range(4):
        time.sleep(0.03 + before * 0.02)
        link.reset()
    until(lambda: min(Counter(recorded(breakable, "done"))[number] for number in "12") >= 10, "each to be run", 30)
    until(lambda: counts(breakable)[breakable.queue] == 0, "all to be settled", 30)
    assert dead(breakable) == 0


def test_an_equal_message_that_was_held_is_run(breakable: Bench, link: Forwarder) -> None:
    """The acknowledgement of the first arrives, and the link is lost before the worker can know."""
    same = str(uuid.uuid4())
    publish(breakable, [(1, 0.1, same), (2, 1, "another"), (1, 0.1, same)])
    worker = start(breakable, "--prefetch", "3")
    worker.wait_for("task_completed")
    link.reset()
    until(lambda: counts(breakable)[breakable.queue] == 0, "all to be settled")
    assert recorded(breakable, "done").count("1") >= 2, worker.describe()


def test_an_id_that_is_no_uuid_proves_nothing(breakable: Bench, link: Forwarder) -> None:
    """One of two equal messages is done; the other comes redelivered, from a worker that we do not know of."""
    publish(breakable, [(1, 0.5, EQUAL_ID)] * 2)
    with breakable.broker.channel() as channel:
        found = until(lambda: channel.basic_get(breakable.queue), "the other one")
        assert found
        other, _, _ = found
        worker = start(breakable)
        until(lambda: recorded(breakable, "begun"), "the first to begin")
        until(lambda: recorded(breakable, "done"), "the first to be done")
        link.reset()
    assert other
    until(lambda: counts(breakable)[breakable.queue] == 0, "both to be settled")
    assert len(recorded(breakable, "done")) >= 2, worker.describe()


# Consumer time-outs


@pytest.mark.parametrize("queue_type", QUEUE_TYPES)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_longer_than_the_broker_waits_is_done_and_reported_once(
    breakable: Bench, queue_type: str, workers: int
) -> None:
    set_env = "application:set_env(rabbit, {}, {})."
    breakable.broker.ctl("eval", set_env.format("consumer_timeout", 1000))
    breakable.broker.ctl("eval", set_env.format("channel_tick_interval", 500))
    try:
        settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": "3"}
        running = [start(breakable, **settings) for _ in range(workers)]
        send(breakable, [("x", 7)], **settings)
        until(lambda: recorded(breakable, "done"), "it to be done", 20)
        until(lambda: counts(breakable)[breakable.queue] == 0, "it to be acknowledged", 20)
        assert len(recorded(breakable, "begun")) <= workers
        assert sum(len(worker.events("task_completed")) for worker in running) == 1
        assert dead(breakable) == 0
        said = "".join(worker.stderr for worker in running)
        # classic queues of RabbitMQ 4.3 have no such time-out
        assert ("consumer_timeout" in said) == ("connecting again" in said), said
        assert "consumer_timeout" in said or queue_type == "classic"
    finally:
        breakable.broker.ctl("eval", set_env.format("consumer_timeout", 1_800_000))
        breakable.broker.ctl("eval", set_env.format("channel_tick_interval", 60_000))
