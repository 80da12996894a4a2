"""worker.py --events: what is published, for whom, and that no task notices."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.forwarder import Forwarder
from lab.nodes import Broker
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program, put

import config
from tasks import Task
from workqueue import broadcast
from workqueue.broadcast import Broadcast
from workqueue.connection import Channel
from workqueue.deliveries import Delivery
from workqueue.dialing import dial
from workqueue.lines import Lines, Told

Event = dict[str, Any]
Matches = Callable[[Event], Any]

ENVELOPE = ["event", "worker", "time", "run", "seq", "up"]
OF_A_TASK = ["delivery", "id", "task", "difficulty", "message_id", "attempt", "redelivered"]
OWN = {
    "worker_ready": ["queue", "prefetch"],
    "task_started": ["waited"],
    "task_progress": ["done", "total", "done_seconds", "total_seconds"],
    "task_completed": ["seconds"],
    "task_retried": ["error", "error_type", "delay_seconds"],
    "task_dead": ["error", "error_type", "queue"],
    "task_lost_connection": [],
    "worker_stopped": ["completed"],
    "worker_heartbeat": [
        *("queue", "interval", "state", "prefetch", "concurrency", "held", "completed", "retried", "dead", "lost"),
        *("running", "more", "dropped"),
    ],
}
SECRET = "4f1e-secret"


class Watcher:
    """Whoever binds a queue to an exchange. What comes is kept in the order in which it comes."""

    def __init__(self, channel: Channel, exchange: str, key: str = "#") -> None:
        self.channel = channel
        self.messages: list[tuple[str, BasicProperties, bytes]] = []
        self.events: list[Event] = []
        if not exchange.startswith("amq."):
            channel.exchange_declare(exchange, "topic", durable=True)
        self.queue = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(self.queue, exchange, key)
        self.bound_at = time.monotonic()
        channel.basic_consume(self.queue, self._take, "watcher")

    def _take(self, channel: Channel, method: Any, properties: BasicProperties, body: bytes) -> None:
        self.messages.append((method.routing_key, properties, body))
        if method.exchange.endswith(".events"):
            self.events += [json.loads(line) for line in body.split(b"\n")]
        channel.basic_ack(method.delivery_tag)

    def all(self, name: str, matches: Matches = lambda event: True) -> list[Event]:
        return [event for event in list(self.events) if event["event"] == name and matches(event)]

    def wait_for(self, name: str, matches: Matches = lambda event: True, seconds: float = 15.0) -> Event:
        return until(lambda: self.all(name, matches), f"a {name}", seconds)[0]


@contextmanager
def watching(bench: Bench, key: str = "#") -> Iterator[Watcher]:
    with bench.broker.channel() as channel:
        yield Watcher(channel, f"{bench.queue}.events", key)


@contextmanager
def tracing(bench: Bench) -> Iterator[Watcher]:
    """What is published to the exchange of events, whoever is bound to it, as the broker's own trace tells."""
    bench.broker.ctl("trace_on")
    try:
        with bench.broker.channel() as channel:
            yield Watcher(channel, "amq.rabbitmq.trace", f"publish.{bench.queue}.events")
    finally:
        bench.broker.ctl("trace_off")


def missing(events: list[Event]) -> list[int]:
    """Numbers that did not come, between the first and the last; progress stands for what it says that it skipped."""
    numbers = {event["seq"] for event in events}
    skipped = sum(event.get("skipped", 0) for event in events)
    gaps = sorted(set(range(min(numbers), max(numbers) + 1)) - numbers)
    return gaps if len(gaps) > skipped else []


@pytest.fixture(autouse=True)
def _no_exchange_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    names = [name for name in ("bench", "breakable") if name in request.fixturenames]
    benches: list[Bench] = [request.getfixturevalue(name) for name in names]
    yield
    for bench in benches:
        if bench.broker.answers():
            with bench.broker.channel() as channel:
                channel.exchange_delete(f"{bench.queue}.events")


# What is published


def test_every_event_is_published_as_it_is_printed(bench: Bench) -> None:
    with watching(bench) as watcher:
        worker = bench.worker("--events", "--id", "Worker-7", SECONDS_PER_DIFFICULTY="0.6", RETRY_DELAYS="0.2")
        watcher.wait_for("worker_heartbeat")
        bench.send("--task", "Größe\n", "--difficulty", "2", "--payload", json.dumps({"x": SECRET}), "--quiet")
        bench.send("--task", "a" * 1000, "--difficulty", "0", "--payload", '{"fails": 1}', "--quiet")
        bench.send("--task", "b", "--difficulty", "0", "--payload", '{"rejects": true}', "--quiet")
        bench.publish(b"no task")
        watcher.wait_for("task_dead", lambda event: event["id"] is None)
        watcher.wait_for("task_completed", lambda event: event["attempt"] == 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        watcher.wait_for("worker_stopped")
    printed = [json.loads(line) for line in worker.stdout.splitlines()]
    assert [event["seq"] for event in printed] == list(range(1, len(printed) + 1))
    published = sorted(watcher.events, key=lambda event: event["seq"])
    first = next(event["seq"] for event in published if event["event"] == "worker_heartbeat")
    expected = [event for event in printed if event["seq"] >= first or event["event"] == "worker_ready"]
    for event in expected:
        for name in ("error", "task"):
            if event.get(name):
                event[name] = event[name][:200]
    assert published == expected
    assert {event["event"] for event in published} >= OWN.keys() - {"task_lost_connection"}
    for event in published:
        of_a_task = OF_A_TASK if event["event"].startswith("task_") else []
        assert list(event) == [*ENVELOPE, *of_a_task, *OWN[event["event"]]]
    for key, properties, body in watcher.messages:
        assert (properties.content_type, properties.delivery_mode) == ("application/x-ndjson", 1)
        assert {json.loads(line)["event"] for line in body.split(b"\n")} == {key}
        assert SECRET.encode() not in body


def test_the_envelope(bench: Bench) -> None:
    runs = set()
    for _ in range(2):
        started = time.time()
        worker = bench.worker()
        bench.send("--count", "2", "--max-difficulty", "0", "--quiet")
        worker.wait_for("task_completed", 2)
        took = time.time() - started
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        events = [json.loads(line) for line in worker.stdout.splitlines()]
        runs |= {event["run"] for event in events}
        ups = [event["up"] for event in events]
        assert ups == sorted(ups)
        assert 0 < ups[0] <= ups[-2] <= took
        assert all(re.search(r'"up": \d+(\.\d{1,6})?,', line) for line in worker.stdout.splitlines())
        assert [event["delivery"] for event in events if event["event"] == "task_completed"] == [1, 2]
        assert all(0 <= event["waited"] < took for event in worker.events("task_started"))
    assert len(runs) == 2
    assert all(re.fullmatch("[0-9a-f]{16,}", run) for run in runs)


def test_waited_is_told_only_where_it_is_known(bench: Bench) -> None:
    worker = bench.worker(RETRY_DELAYS="0.2")
    body = b'{"id": 1, "task": "x", "difficulty": 0, "payload": {"fails": 1}}'
    sent_at = round((time.time() - 5) * 1000)
    bench.publish(body, BasicProperties(headers={"timestamp_in_ms": sent_at}))
    worker.wait_for("task_completed")
    odd: list[dict[str, Any]] = [{"timestamp_in_ms": value} for value in ("soon", True, None, 2**62)]
    for headers in odd:
        bench.publish(body, BasicProperties(headers=headers))
    bench.publish(body)
    worker.wait_for("task_completed", 6)
    first, *others = worker.events("task_started")
    assert 5 <= first["waited"] < 15
    assert sorted(event["waited"] for event in others if event["waited"] is not None) == [0.0]  # of the future


@given(
    st.integers(-(10**30), 10**30) | st.text(max_size=150),
    st.text(min_size=1, max_size=150),
    st.floats(0, allow_infinity=False, allow_nan=False) | st.integers(0, 10**30),
    st.none() | st.text(max_size=80),
    st.booleans(),
)
def test_the_quick_json_of_a_task_says_the_same(
    number: int | str, name: str, difficulty: float, message_id: str | None, redelivered: bool
) -> None:
    delivery = Delivery(None, 1, redelivered, BasicProperties(message_id=message_id), b"", number=5)  # type: ignore[arg-type]
    lines = Lines("w", "r")
    for task in (None, Task(number, name, difficulty)):  # before it is known what it is, and then
        delivery.task = task
        about = delivery.about()
        line = json.loads(lines.line((7, "task_started", 1_000_001, 0.5, about, {"waited": None})))
        assert [line[name] for name in OF_A_TASK] == list(about)
        assert line["time"] == "1970-01-01T00:00:01.000001+00:00"
        assert list(line) == [*ENVELOPE, *OF_A_TASK, "waited"]


def test_long_texts_are_cut_in_what_is_published_and_nowhere_else() -> None:
    told: Told = (1, "scaled", 0, 0.0, None, {"why": "é" * 500})
    cut, whole = (json.loads(lines.line(told))["why"] for lines in (Lines("w", "r"), Lines("w", "r", most=None)))
    assert (len(cut), len(whole)) == (200, 500)


def test_numbers_have_no_gap_and_lines_are_in_their_order(bench: Bench) -> None:
    bench.send("--count", "2000", "--max-difficulty", "0", "--quiet")
    with watching(bench) as watcher:
        worker = bench.start("worker.py", "--events", "--concurrency", "8", "--burst")
        assert worker.wait(60) == 0
        watcher.wait_for("worker_stopped")
    printed = [json.loads(line)["seq"] for line in worker.stdout.splitlines()]
    assert printed == list(range(1, len(printed) + 1))
    first = watcher.all("worker_heartbeat")[0]["seq"]
    assert missing([event for event in watcher.events if event["seq"] >= first]) == []
    for _, _, body in watcher.messages:
        numbers = [json.loads(line)["seq"] for line in body.split(b"\n")]
        assert numbers == sorted(numbers)


def test_events_are_gathered(bench: Bench) -> None:
    bench.send("--count", "2000", "--max-difficulty", "0", "--quiet")
    with watching(bench) as watcher:
        started = time.monotonic()
        worker = bench.start("worker.py", "--events", "--quiet", "--prefetch", "10", "--burst")
        assert worker.wait(60) == 0
        took = time.monotonic() - started
    keys = Counter(key for key, _, _ in watcher.messages)
    assert max(keys["task_started"], keys["task_completed"]) <= 11 * took + 5


def test_what_is_told_before_a_heartbeat_comes_before_it(bench: Bench) -> None:
    """Whoever takes each message as it comes has, after a heartbeat, what that says."""
    bench.send("--count", "3000", "--max-difficulty", "0", "--quiet")
    with watching(bench) as watcher:
        worker = bench.start("worker.py", "--events", "--quiet", "--concurrency", "4", "--burst")
        assert worker.wait(60) == 0
        watcher.wait_for("worker_stopped")
    totals = Counter[str]()
    heartbeat: Event = {}
    for event in watcher.events:
        if event["event"] == "worker_heartbeat":
            assert not heartbeat or event["completed"] == totals["task_completed"]
            heartbeat, totals["task_completed"] = event, event["completed"]
        elif heartbeat:
            assert event["seq"] > heartbeat["seq"]
            totals[event["event"]] += 1
    assert heartbeat["completed"] == 3000


# The heartbeat


def test_a_heartbeat_says_what_is_now(bench: Bench) -> None:
    for number in range(4):
        bench.send("--task", f"task {number}", "--difficulty", "60", "--quiet")
    with watching(bench) as watcher:
        worker = bench.worker("--events", "--concurrency", "2", "--prefetch", "3", SECONDS_PER_DIFFICULTY="0.05")
        first = watcher.wait_for("worker_heartbeat", lambda event: len(event["running"]) == 2)
        assert (first["state"], first["held"], first["more"], first["dropped"]) == ("working", 1, 0, 0)
        assert (first["prefetch"], first["concurrency"], first["interval"]) == (3, 2, 1.0)
        started = {event["delivery"]: event for event in worker.events("task_started")}
        for running in first["running"]:
            assert list(running) == ["delivery", "id", "task", "difficulty", "attempt", "since", "done", "total"]
            event = started[running["delivery"]]
            assert (running["id"], running["task"], running["difficulty"]) == (1, event["task"], 60)
            assert 0 <= running["since"] - event["up"] < 0.5
        later = watcher.wait_for("worker_heartbeat", lambda event: any(each["done"] for each in event["running"]))
        assert {(each["done"], each["total"]) for each in later["running"]} <= {(1.0, 3.0), (2.0, 3.0), (None, None)}
        watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 4 and event["state"] == "waiting")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        watcher.wait_for("worker_stopped")
        assert [event["event"] for event in worker_lines(worker)[-2:]] == ["worker_heartbeat", "worker_stopped"]
        assert watcher.all("worker_heartbeat")[-1]["state"] == "stopping"
    ready_at = worker.events("worker_ready")[0]["up"]
    assert any(ready_at <= event["up"] < ready_at + 0.5 for event in worker.events("worker_heartbeat"))
    beats = [event["up"] for event in watcher.all("worker_heartbeat")]
    assert all(later - earlier < 1.5 for earlier, later in pairwise(beats))


def worker_lines(worker: Program) -> list[Event]:
    return [json.loads(line) for line in worker.stdout.splitlines()]


def test_a_heartbeat_tells_of_fifty_tasks_at_most(bench: Bench) -> None:
    bench.send("--count", "60", "--max-difficulty", "1", "--quiet")
    with watching(bench) as watcher:
        bench.worker("--events", "--concurrency", "60", SECONDS_PER_DIFFICULTY="5")
        found = watcher.wait_for("worker_heartbeat", lambda event: event["more"] == 10)
        assert len(found["running"]) == 50


def test_a_heartbeat_is_never_part_of_the_text(bench: Bench) -> None:
    with watching(bench) as watcher:
        worker = bench.start("worker.py", "--events", "--quiet", LOG_FORMAT="text")
        bench.send("--count", "3", "--max-difficulty", "0", "--quiet")
        watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 3)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert len(worker.stdout.splitlines()) == 2
        assert worker.stderr == ""
        until(lambda: len(watcher.all("task_started")) == 3, "the events that are not printed")


def test_progress_that_is_no_number_harms_nobody(bench: Bench) -> None:
    bench.send("--task", "x", "--difficulty", "2", "--quiet")
    with watching(bench) as watcher:
        worker = bench.start("tests/handlers_events.py", "odd", "--events", "--quiet")
        found = watcher.wait_for("worker_heartbeat", lambda event: event["running"])
        assert found["running"][0]["done"] is None
        watcher.wait_for("task_completed")
        assert not re.search(b"NaN|Infinity", b"".join(body for _, _, body in watcher.messages))
        assert worker.stderr == ""


def test_a_flood_of_progress_is_bounded(bench: Bench) -> None:
    bench.send("--task", "x", "--difficulty", "2", "--quiet")
    with watching(bench) as watcher:
        worker = bench.start("tests/handlers_events.py", "flood", "--events", "--quiet")
        watcher.wait_for("task_completed")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        watcher.wait_for("worker_stopped")
    count = int((bench.folder / "flood-1").read_text())
    progress = watcher.all("task_progress")
    assert count > 2000
    assert len(progress) <= 2 * 11 + 10
    assert progress[-1]["done"] == count
    assert sum(1 + event.get("skipped", 0) for event in progress) >= progress[-1]["done"] - progress[0]["done"]
    assert watcher.all("worker_heartbeat")[-1]["dropped"] == 0
    assert missing([event for event in watcher.events if event["seq"] >= watcher.all("task_started")[0]["seq"]]) == []


def test_children_of_a_handler_may_tell_of_progress(bench: Bench) -> None:
    bench.send("--count", "8", "--max-difficulty", "0", "--quiet")
    with watching(bench):
        worker = bench.start("tests/handlers_events.py", "fork", "--events", "--concurrency", "4", "--burst")
        assert worker.wait(60) == 0
    assert "stood still" not in worker.stderr


# For whom


def test_nothing_but_the_heartbeat_is_published_while_nobody_is_bound(breakable: Bench) -> None:
    with tracing(breakable) as trace:

        def keys() -> Counter[str]:
            headers: list[Any] = [properties.headers for _, properties, _ in trace.messages]
            return Counter(each["routing_keys"][0] for each in headers)

        worker = breakable.worker("--events")
        breakable.send("--count", "200", "--max-difficulty", "0", "--quiet")
        worker.wait_for("task_completed", 200)
        until(lambda: keys()["worker_heartbeat"] >= 3, "heartbeats")
        assert keys().keys() == {"worker_ready", "worker_heartbeat"}
        with watching(breakable):
            until(lambda: len(worker.events("worker_heartbeat")) >= 1, "a heartbeat")
            time.sleep(1.1)
            breakable.send("--count", "20", "--max-difficulty", "0", "--quiet")
            until(lambda: keys()["task_completed"] > 0, "events")
        seen = keys()["worker_heartbeat"]
        until(lambda: keys()["worker_heartbeat"] >= seen + 2, "the heartbeat that comes back")
        before = keys()
        breakable.send("--count", "20", "--max-difficulty", "0", "--quiet")
        worker.wait_for("task_completed", 240)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        until(lambda: keys()["worker_stopped"] == 1, "the end")
        assert {key for key, count in keys().items() if count > before[key]} <= {"worker_heartbeat", "worker_stopped"}


def test_who_begins_to_watch_misses_none_after_the_first_heartbeat(bench: Bench) -> None:
    bench.send("--count", "100000", "--max-difficulty", "0", "--quiet")
    worker = bench.start("worker.py", "--events", "--quiet", "--prefetch", "10")
    worker.wait_for("worker_ready")
    for _ in range(3):
        with watching(bench) as watcher:
            until(lambda found=watcher: len(found.all("worker_heartbeat")) >= 2, "another heartbeat")  # type: ignore[misc]
            events = list(watcher.events)
            first, *_, last = (at for at, event in enumerate(events) if event["event"] == "worker_heartbeat")
            assert {event["event"] for event in events[first:last]} >= {"task_started", "task_completed"}
            assert all(event["seq"] < events[first]["seq"] for event in events[:first])  # who watched before is gone
            assert missing(events[first : last + 1]) == []
            assert len(events[first : last + 1]) == events[last]["seq"] - events[first]["seq"] + 1


def test_events_come_soon_after_a_binding(bench: Bench) -> None:
    worker = bench.worker("--events")
    worker.wait_for("worker_heartbeat", 2)
    with watching(bench) as watcher:
        until(lambda: watcher.messages, "the first event", 2)
        assert time.monotonic() - watcher.bound_at < 1.1 + 0.3  # which a busy machine may take
        assert watcher.all("worker_heartbeat")


def test_a_binding_for_some_events_gets_these(bench: Bench) -> None:
    bench.send("--count", "5", "--max-difficulty", "0", "--quiet")
    with watching(bench, "worker_heartbeat") as all_that_matters, watching(bench, "task_dead") as deaths:
        bench.worker("--events")
        all_that_matters.wait_for("worker_heartbeat", lambda event: event["completed"] == 5)
        assert {key for key, _, _ in all_that_matters.messages} == {"worker_heartbeat"}
        assert deaths.messages == []


# Tasks do not notice


def connections(broker: Broker) -> dict[str, str]:
    """The names of connections, and what the broker itself calls them."""
    rows = broker.ctl("-q", "list_connections", "pid", "client_properties").splitlines()
    found = [re.match(r'(\S+)\s.*"connection_name","([^"]+)"', row) for row in rows]
    return {each[2]: each[1] for each in found if each}


def close_connection(broker: Broker, name: str) -> None:
    until(lambda: name in connections(broker), f"the connection {name!r}")
    broker.ctl("close_connection", connections(broker)[name], "a test")


def test_without_events_there_is_no_connection_for_them(breakable: Bench) -> None:
    worker = breakable.worker("--id", "Worker-plain")
    with_events = breakable.worker("--id", "Worker-open", "--events")
    until(lambda: "Worker-open events" in connections(breakable.broker), "its second connection")
    assert "Worker-plain events" not in connections(breakable.broker)
    assert "worker_heartbeat" not in worker.stdout
    assert with_events.stderr == ""


def test_events_come_again_after_a_restart_of_the_broker(breakable: Bench) -> None:
    worker = breakable.worker("--events")
    with watching(breakable) as watcher:
        watcher.wait_for("worker_heartbeat")
        run = watcher.events[0]["run"]
    breakable.broker.restart()
    with watching(breakable) as watcher:
        found = watcher.wait_for("worker_heartbeat", lambda event: event["state"] == "waiting", 30)
        breakable.send("--count", "3", "--max-difficulty", "0", "--quiet")
        until(lambda: len(watcher.all("task_completed")) == 3, "the events")
    assert found["run"] == run
    assert "events" not in worker.stderr


def test_a_lost_connection_of_events_is_nobodys_business(breakable: Bench) -> None:
    breakable.send("--count", "100", "--max-difficulty", "1", "--quiet")
    with watching(breakable) as watcher:
        worker = breakable.worker("--id", "Worker-7", "--events", SECONDS_PER_DIFFICULTY="0.05")
        watcher.wait_for("task_started")
        close_connection(breakable.broker, "Worker-7 events")
        since = watcher.events[-1]["seq"]
        watcher.wait_for("worker_heartbeat", lambda event: event["seq"] > since)
        watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 100)
    assert worker.stderr == ""
    assert worker.events("task_lost_connection") == []


def test_events_are_wanted_until_the_last_heartbeat_is_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to watch between two heartbeats that are taken together misses nothing after his first one."""
    for name, value in bench.environment().items():
        monkeypatch.setenv(name, value)
    settings = config.load()
    monkeypatch.setattr(Broadcast, "_run", lambda self: None)
    found = Broadcast(settings, "w", "r", print, lambda: None)
    wanted = []
    with dial(settings, "test") as connection:
        channel = found._open(connection)
        found._connected = True
        for seq in (1, 2, 3):
            found.add((seq, "worker_heartbeat", 0, 0.0, None, {}))
        publish = channel.basic_publish

        def noted(*arguments: Any, **options: Any) -> None:
            wanted.append(found.wanted)
            publish(*arguments, **options)

        channel.basic_publish = noted  # type: ignore[method-assign]
        found._publish_all(channel, found._take())
    assert wanted == [True] * 3
    assert not found.wanted


def test_each_event_is_taken_once_and_in_order_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the worker's threads and the one that publishes come between each other."""
    monkeypatch.setattr(broadcast, "MOST_KEPT", 3)
    monkeypatch.setattr(Broadcast, "_run", lambda self: None)
    found = Broadcast(config.load(), "w", "r", print, lambda: None)
    taken: list[int] = []
    count, over = 50_000, threading.Event()

    def take() -> None:
        while not over.is_set():
            taken.extend(seq for seq, *_ in found._take())

    taker = threading.Thread(target=take)
    taker.start()
    try:
        for seq in range(1, count + 1):
            event = "task_progress" if seq % 3 == 0 else "task_started"
            found.add((seq, event, 0, 0.0, (seq, 1, "x", 0, None, 1, False), {}))
    finally:
        over.set()
        taker.join()
    taken.extend(seq for seq, *_ in found._take())
    assert taken == sorted(set(taken))
    assert len(taken) + found.dropped == count
    assert taken
    assert found.dropped


def test_in_a_memory_alarm_events_are_dropped_and_counted_and_tasks_are_done(breakable: Bench) -> None:
    breakable.send("--count", "8000", "--max-difficulty", "0", "--quiet")
    with watching(breakable) as watcher:
        try:
            breakable.broker.ctl("set_vm_memory_high_watermark", "0.00001")
            worker = breakable.worker("--events", "--quiet", "--prefetch", "100", SECONDS_PER_DIFFICULTY="1")
            until(lambda: breakable.ready() == 0, "all tasks to be taken", 60)
            until(lambda: worker.events("worker_heartbeat")[-1]["completed"] == 8000, "all tasks to be done", 60)
            assert unacknowledged(breakable) == 0
        finally:
            breakable.broker.ctl("set_vm_memory_high_watermark", "0.6")
        found = watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 8000)
        assert found["dropped"] >= 16_000 - 10_000 - 1000
        assert worker.stderr == ""
        breakable.send("--count", "1", "--max-difficulty", "0", "--quiet")
        watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 8001)


def unacknowledged(bench: Bench) -> int:
    rows = bench.broker.ctl("-q", "list_queues", "name", "messages_unacknowledged").splitlines()
    return next(int(row.split()[1]) for row in rows if row.split()[0] == bench.queue)


def test_a_broker_that_is_slow_with_events_holds_up_no_task(breakable: Bench, link: Forwarder) -> None:
    with watching(breakable) as watcher:
        worker = breakable.start(
            "worker.py", "--events", "--id", "Worker-7", "--prefetch", "100", "--quiet", HEARTBEAT_SECONDS="60"
        )
        watcher.wait_for("worker_heartbeat")
        links = len(link._links)
        close_connection(breakable.broker, "Worker-7 events")
        until(lambda: len(link._links) > links, "the next connection for events")
        watcher.messages.clear()
        until(lambda: watcher.messages, "the next heartbeat")
        link._links[-1].stall()
        with breakable.broker.channel() as channel:
            put(channel, breakable.queue, [(b'{"id": 1, "task": "x", "difficulty": 0}', None)] * 20_000)
        until(lambda: worker.events("worker_heartbeat")[-1]["completed"] == 20_000, "all tasks to be done", 60)
        assert worker.events("worker_heartbeat")[-1]["dropped"] > 0
        memory = [event["dropped"] for event in worker.events("worker_heartbeat")]
        assert memory == sorted(memory)
        worker.signal(signal.SIGTERM)
        told = time.monotonic()
        assert worker.wait() == 0
        assert time.monotonic() - told < 2.0


@pytest.mark.parametrize("refused", ["to declare it", "to publish to it"])
def test_without_permission_a_worker_says_so_once_and_works(breakable: Bench, refused: str) -> None:
    name, ctl = breakable.queue, breakable.broker.ctl
    ctl("add_user", name, "secret")
    try:
        breakable.send("--count", "20", "--max-difficulty", "1", "--quiet")
        all_else = f"^(amq\\.default|{name}(\\.dead|\\.retry.*)?)$"
        declares, publishes = (all_else, ".*") if refused == "to declare it" else (".*", all_else)
        ctl("set_permissions", name, declares, publishes, ".*")
        url = breakable.url.replace("guest:guest", f"{name}:secret")
        worker = breakable.worker("--events", RABBITMQ_URL=url)
        worker.wait_for("task_completed", 20)
        until(lambda: "no events are published: " in worker.stderr, "the worker to say so")
        until(lambda: worker.events("worker_heartbeat")[-1]["completed"] == 20, "heartbeats that are printed")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    finally:
        ctl("delete_user", name)
    (line,) = worker.stderr.splitlines()
    assert f"access to exchange '{name}.events'" in line


def test_an_exchange_that_an_operator_has_made_is_used(breakable: Bench) -> None:
    """With QUEUE_TYPE=existing, and without the permission to declare anything."""
    name, ctl = breakable.queue, breakable.broker.ctl
    ctl("add_user", name, "secret")
    try:
        breakable.send("--count", "2", "--max-difficulty", "0", "--quiet")
        ctl("set_permissions", name, "^$", ".*", ".*")
        url = breakable.url.replace("guest:guest", f"{name}:secret")
        with watching(breakable) as watcher:
            worker = breakable.worker("--events", RABBITMQ_URL=url, QUEUE_TYPE="existing")
            watcher.wait_for("worker_heartbeat", lambda event: event["completed"] == 2)
            assert worker.stderr == ""
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
    finally:
        ctl("delete_user", name)


def test_an_exchange_of_another_kind_is_told_once(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        channel.exchange_declare(f"{bench.queue}.events", "fanout", durable=True)
    bench.send("--count", "5", "--max-difficulty", "0", "--quiet")
    worker = bench.worker("--events")
    worker.wait_for("task_completed", 5)
    until(lambda: "no events are published: " in worker.stderr, "the worker to say so")
    worker.wait_for("worker_heartbeat", 3)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    (line,) = worker.stderr.splitlines()
    assert "inequivalent arg 'type' for exchange" in line


def test_a_deleted_exchange_is_made_again(bench: Bench) -> None:
    worker = bench.worker("--events")
    worker.wait_for("worker_heartbeat", 2)
    with bench.broker.channel() as channel:
        channel.exchange_delete(f"{bench.queue}.events")
    with watching(bench) as watcher:
        watcher.wait_for("worker_heartbeat")
    assert worker.stderr == ""


def test_a_killed_worker_falls_silent_and_its_task_is_told_of_again(bench: Bench) -> None:
    bench.send("--task", "x", "--difficulty", "1", "--quiet")
    with watching(bench) as watcher:
        worker = bench.worker("--events", "--id", "Worker-dead", SECONDS_PER_DIFFICULTY="60")
        last = watcher.wait_for("worker_heartbeat", lambda event: event["running"])
        worker.signal(signal.SIGKILL)
        worker.wait()
        bench.worker("--events", "--id", "Worker-next")
        again = watcher.wait_for("task_completed")
        assert watcher.all("worker_stopped") == []
    assert (again["worker"], again["id"], again["redelivered"]) == ("Worker-next", 1, True)
    assert again["run"] != last["run"]
    assert [each["id"] for each in last["running"]] == [1]


def test_a_lost_task_keeps_its_number(breakable: Bench, link: Forwarder) -> None:
    breakable.send("--task", "x", "--difficulty", "3", "--quiet")
    worker = breakable.worker("--events", SECONDS_PER_DIFFICULTY="1")
    worker.wait_for("task_started")
    link.reset()
    (lost,) = worker.wait_for("task_lost_connection")
    (done,) = worker.wait_for("task_completed")
    assert lost["delivery"] == done["delivery"] == 1
    until(lambda: worker.events("worker_heartbeat")[-1]["completed"] == 1, "it to be counted")
    assert worker.events("worker_heartbeat")[-1]["lost"] == 1
    assert worker.events("worker_heartbeat")[-1]["running"] == []
    assert "reconnecting" in {event["state"] for event in worker.events("worker_heartbeat")}


# The end


def test_the_last_events_go_out(bench: Bench) -> None:
    with watching(bench) as watcher:
        for _ in range(5):
            worker = bench.start("worker.py", "--events", "--burst")
            assert worker.wait() == 0
        until(lambda: len(watcher.all("worker_stopped")) == 5, "the ends of all", 2)


@pytest.mark.parametrize("trouble", ["alarm", "away"])
def test_the_end_does_not_wait_for_events(breakable: Bench, link: Forwarder, trouble: str) -> None:
    worker = breakable.worker("--events", "--id", "Worker-7")
    worker.wait_for("worker_heartbeat", 2)
    try:
        if trouble == "alarm":
            breakable.broker.ctl("set_vm_memory_high_watermark", "0.00001")
            worker.wait_for("worker_heartbeat", len(worker.events("worker_heartbeat")) + 2)
        else:
            link.silent = [True] * 100
            link.reset()
            until(lambda: "connecting again" in worker.stderr, "the worker to notice")
        told = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert time.monotonic() - told < 2.0
    finally:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.6")
