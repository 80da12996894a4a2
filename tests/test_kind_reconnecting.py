"""A link that comes back costs what was in flight and nothing else, and a signal is obeyed in every state."""

from __future__ import annotations

import json
import random
import select
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import programs
import psutil
import pytest
from lab.forwarder import Forwarder
from lab.nodes import Cluster
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program

HANDLERS = "tests/handlers_reconnecting.py"
QUICK = {"HEARTBEAT_SECONDS": "2", "CONNECT_TIMEOUT_SECONDS": "4"}
TYPES = pytest.mark.parametrize("queue_type", ["classic", "quorum"])
FAULTS = pytest.mark.parametrize("fault", ["reset", "in mid-frame", "stalled for ever"])


def started(bench: Bench, handler: str, *arguments: str, **settings: str) -> Program:
    return bench.start(HANDLERS, handler, *arguments, **{**QUICK, **settings})


def ready(bench: Bench, handler: str, *arguments: str, **settings: str) -> Program:
    worker = started(bench, handler, *arguments, **settings)
    worker.wait_for("worker_ready")
    return worker


def put(bench: Bench, *seconds: float) -> None:
    """Tasks with ids from 1, which take so many seconds."""
    messages = []
    for number, difficulty in enumerate(seconds, start=1):
        body = json.dumps({"id": number, "task": "x", "difficulty": difficulty}).encode()
        messages.append((body, BasicProperties(message_id=str(uuid.uuid4()), delivery_mode=2)))
    with bench.broker.channel() as channel:
        programs.put(channel, bench.queue, messages)


def record(bench: Bench, name: str) -> Counter[int]:
    """How often a handler has begun, or finished, each task."""
    path = bench.folder / name
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def broken(link: Forwarder, fault: str) -> None:
    {"reset": link.reset, "in mid-frame": link.cut_in_mid_frame, "stalled for ever": link.stall_for_ever}[fault]()


# A graceful stop


@TYPES
@FAULTS
def test_a_link_lost_in_a_graceful_stop_costs_nothing(
    breakable: Bench, link: Forwarder, fault: str, queue_type: str
) -> None:
    worker = ready(breakable, "record", "--prefetch", "2", "--concurrency", "2", QUEUE_TYPE=queue_type)
    put(breakable, 6.0, 0.5)
    until(lambda: record(breakable, "begun").total() == 2, "both tasks to run")
    worker.signal(signal.SIGTERM)
    broken(link, fault)
    assert worker.wait() == 0, worker.describe()
    assert Counter(event["id"] for event in worker.events("task_completed")) == Counter([1, 2])
    assert record(breakable, "begun") == Counter([1, 2])
    time.sleep(0.3)
    assert breakable.ready() == 0, "what was finished came back"


@TYPES
def test_an_acknowledgement_lost_in_a_graceful_stop_is_made_good(
    breakable: Bench, link: Forwarder, queue_type: str
) -> None:
    """The task has finished, and the link breaks before the acknowledgement has arrived."""
    worker = ready(breakable, "record", QUEUE_TYPE=queue_type)
    put(breakable, 0.5)
    until(lambda: record(breakable, "begun"), "the task to run")
    worker.signal(signal.SIGTERM)
    link.stall_for_ever()
    worker.wait_for("task_completed")
    link.reset()
    assert worker.wait() == 0, worker.describe()
    time.sleep(0.3)
    assert breakable.ready() == 0, "what was finished came back"
    assert record(breakable, "begun") == Counter([1])
    assert len(worker.events("task_completed")) == 1


def test_a_stop_while_the_broker_is_gone_says_that_tasks_may_come_again(breakable: Bench, link: Forwarder) -> None:
    worker = ready(breakable, "record")
    put(breakable, 1.0)
    until(lambda: record(breakable, "begun"), "the task to run")
    link.stall()
    link.reset()
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 1
    assert "may be delivered again" in worker.stderr


def test_a_stopping_worker_begins_nothing_while_it_waits_for_what_it_finished(
    breakable: Bench, link: Forwarder
) -> None:
    """Another worker has got the lost task; what else is in the queue stays there."""
    worker = ready(breakable, "record")
    put(breakable, 1.5)
    until(lambda: record(breakable, "begun"), "the task to run")
    link.stall()  # those to come
    link.reset()
    with breakable.broker.channel() as channel:
        until(lambda: channel.basic_get(breakable.queue), "the lost task, for somebody else")
        link.flow()
        worker.signal(signal.SIGTERM)
        put(breakable, 0.0, 0.0)
        assert worker.wait() == 0, "the lost task is in other hands"
        assert record(breakable, "begun") == Counter([1])
        until(lambda: breakable.ready() == 2, "the others to be where they were")


# Signals in every state


class SilentOnceOpen:
    """Forwards to a broker until a connection is open, and nothing from then on: as a broker that waits for others."""

    def __init__(self, target: str) -> None:
        self._target = (urlsplit(target).hostname, urlsplit(target).port)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.url = target.replace(str(self._target[1]), str(port))
        self.opened = 0
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(self._target)
                self._ends += [client, broker]
                threading.Thread(target=self._forward, args=(client, broker), daemon=True).start()

    def _forward(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError):
            while select.select([client, broker], [], []):
                for source, sink in ((client, broker), (broker, client)):
                    if source not in select.select([client, broker], [], [], 0)[0]:
                        continue
                    if not (data := source.recv(65536)):
                        return
                    sink.sendall(data)
                    if source is broker and b"\x00\x0a\x00\x29" in data:  # connection.open-ok
                        self.opened += 1
                        return

    def close(self) -> None:
        for end in (self._server, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def unhelpful(bench: Bench) -> Iterator[SilentOnceOpen]:
    found = SilentOnceOpen(bench.broker.url)
    yield found
    found.close()


def took(program: Program, at_most: float) -> int:
    """The exit code after SIGTERM."""
    begun = time.monotonic()
    program.signal(signal.SIGTERM)
    code = program.wait(at_most + 10)
    seconds = time.monotonic() - begun
    assert seconds < at_most, f"{seconds:.1f} s after the signal: {program.describe()}"
    return code


SOON = 1.5  # a second, and what Python needs to end on a busy machine


def test_a_worker_that_nobody_answers_obeys_a_signal(bench: Bench, unhelpful: SilentOnceOpen) -> None:
    """A name server, a frozen broker, one that is gone, and one that takes connections and then waits for others."""
    slow = {"HEARTBEAT_SECONDS": "30", "CONNECT_TIMEOUT_SECONDS": "60"}
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        programs = [
            started(bench, "without_name_server", RABBITMQ_URL="amqp://broker.example/", **slow),
            started(bench, "record", RABBITMQ_URL=f"amqp://127.0.0.1:{port}/", **slow),
            started(bench, "record", RABBITMQ_URL="amqp://127.0.0.1:1/", **slow),
            started(bench, "record", RABBITMQ_URL=unhelpful.url, **slow),
        ]
        until(
            lambda: (
                (unhelpful.opened and "connecting again in 0.4" in programs[2].stderr)
                or programs[2].stderr.count("connecting again") > 3
            ),
            "the programs to wait",
        )
        time.sleep(0.5)
        for program in programs:
            assert program.process.poll() is None
            assert took(program, SOON) == 0
            assert len(program.events("worker_stopped")) == 1


def test_a_broker_that_does_not_answer_for_long_is_told_of_once(bench: Bench, unhelpful: SilentOnceOpen) -> None:
    worker = started(bench, "record", RABBITMQ_URL=unhelpful.url, HEARTBEAT_SECONDS="60")
    until(lambda: "the broker does not answer: waiting" in worker.stderr, "the line", seconds=20)
    assert took(worker, SOON) == 0
    assert worker.stderr.count("does not answer") == 1


def test_a_worker_on_a_stalled_link_obeys_a_signal(breakable: Bench, link: Forwarder) -> None:
    worker = ready(breakable, "record", HEARTBEAT_SECONDS="30")
    link.stall()
    assert took(worker, SOON) == 0


def test_a_worker_whose_copies_are_pending_obeys_a_signal(breakable: Bench) -> None:
    breakable.send("--task", "x", "--difficulty", "0", "--quiet")
    try:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        worker = ready(breakable, "fail")
        until(lambda: "out of memory or disk" in worker.stderr, "a copy to wait")
        assert took(worker, 1.0 + SOON) == 0
    finally:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.6")
    places = (breakable.queue, breakable.dead, *(f"{breakable.queue}.retry.{delay}s" for delay in ("0.2", "0.4")))
    until(lambda: sum(breakable.ready(place) for place in places) >= 1, "the task to be somewhere")


def test_a_sender_that_nobody_answers_obeys_signals(bench: Bench, unhelpful: SilentOnceOpen) -> None:
    """Nothing is on its way that could be waited for."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        urls = [f"amqp://127.0.0.1:{frozen.getsockname()[1]}/", "amqp://127.0.0.1:1/", unhelpful.url]
        senders = [bench.start("sender.py", RABBITMQ_URL=url, CONNECT_TIMEOUT_SECONDS="60") for url in urls]
        until(lambda: unhelpful.opened == 1, "the sender to wait")
        until(lambda: "no broker" in senders[1].stderr, "the sender to say so")
        time.sleep(1)
        for sender in senders:
            sender.signal(signal.SIGTERM)
        for sender in senders:
            assert sender.wait(2 * SOON) == 1, sender.describe()
            assert "interrupted" in sender.stderr
            assert "0 confirmed" in sender.stdout


def test_programs_on_a_cluster_without_majority_obey_signals(cluster: Bench) -> None:
    quorum = {"QUEUE_TYPE": "quorum", "CONNECT_TIMEOUT_SECONDS": "60", "HEARTBEAT_SECONDS": "20"}
    assert isinstance(cluster.broker, Cluster)
    idle = ready(cluster, "record", **quorum)
    names = (
        [f"rabbit-{urlsplit(url).port}@localhost" for url in cluster.url.split(",")]
        if cluster.broker.kind == "local"
        else ["rabbit@rabbit1", "rabbit@rabbit2", "rabbit@rabbit3"]
    )
    last = cluster.url.split(",")[2]
    for node in names[:2]:
        cluster.broker.kill_node(node)
    worker = started(cluster, "record", RABBITMQ_URL=last, **quorum)
    # to a new queue, which needs a majority: nothing is on its way that it would wait for
    sender = cluster.start("sender.py", "--queue", f"{cluster.queue}-new", RABBITMQ_URL=last, **quorum)
    time.sleep(2)
    for program in (idle, worker):
        assert program.process.poll() is None, program.describe()
        took(program, SOON)
    assert took(sender, SOON) == 1
    assert "interrupted" in sender.stderr


# Places


@TYPES
def test_a_worker_busy_with_a_lost_task_leaves_new_ones_to_others(
    breakable: Bench, link: Forwarder, queue_type: str
) -> None:
    busy = ready(breakable, "record", QUEUE_TYPE=queue_type)
    put(breakable, 5.0)
    until(lambda: record(breakable, "begun"), "the long task to run")
    direct = {"QUEUE_TYPE": queue_type, "RABBITMQ_URL": breakable.broker.url}
    idle = ready(breakable, "record", **direct)
    ready(breakable, "record", **direct)
    link.reset()  # one of the others gets the long task
    until(lambda: "connecting again" in busy.stderr, "the worker to notice")
    time.sleep(0.5)
    before = len(busy.events("task_completed"))
    tasks = [(number, json.dumps({"id": number, "task": "x", "difficulty": 0}).encode()) for number in range(2, 12)]
    with breakable.broker.channel() as channel:
        programs.put(channel, breakable.queue, [(body, BasicProperties(message_id=str(n))) for n, body in tasks])
    until(lambda: record(breakable, "finished").total() == 10, "the new tasks, at one of the others", 3)
    assert before == 0 == len(busy.events("task_completed")), "the long task was too short to test anything"
    until(lambda: record(breakable, "finished")[1], "the long task")
    idle.signal(signal.SIGTERM)
    assert idle.wait() == 0


def test_a_frozen_broker_among_several_costs_its_time_once(bench: Bench, breakable: Bench, link: Forwarder) -> None:
    """Neither failing tasks nor reconnects wait for it again."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as frozen:
        urls = f"amqp://127.0.0.1:{frozen.getsockname()[1]}/,{breakable.url}"
        worker = started(breakable, "fail", RABBITMQ_URL=urls, CONNECT_TIMEOUT_SECONDS="6", RETRY_DELAYS="0.2")
        worker.wait_for("worker_ready")
        begun = time.monotonic()
        put(breakable, *[0] * 10)
        breakable.take_dead(10)
        for number in range(3):
            link.reset()
            worker.wait_for("worker_ready", number + 2)
        assert time.monotonic() - begun < 5, "at 3 s a time-out, it was tried again"


# Links cut again and again


@TYPES
@pytest.mark.parametrize("burst", [False, True])
def test_each_finished_task_is_reported_however_often_links_are_cut(
    breakable: Bench, link: Forwarder, queue_type: str, burst: bool
) -> None:
    count = 6000
    breakable.send(
        "--count",
        str(count),
        "--max-difficulty",
        "0",
        "--quiet",
        QUEUE_TYPE=queue_type,
        RABBITMQ_URL=breakable.broker.url,
    )
    flags = ("--prefetch", "8", "--concurrency", "4", *(["--burst"] if burst else []))
    workers = [started(breakable, "record", *flags, QUEUE_TYPE=queue_type) for _ in range(1 + burst)]
    cuts = 0

    def done() -> set[int]:
        return set(record(breakable, "finished"))

    for worker in workers:
        worker.wait_for("task_completed")
    while len(done()) < count and cuts < 56:
        time.sleep(random.uniform(0.05, 0.15))
        link.reset()
        cuts += 1
    assert cuts > 10, "too few cuts to test anything"
    until(lambda: len(done()) == count, "all tasks to be done", 60)
    until(lambda: burst or breakable.ready() == 0, "an empty queue")
    for worker in workers:
        if not burst:
            worker.signal(signal.SIGTERM)
        assert worker.wait(30) == 0, worker.describe()
    assert breakable.ready() == 0
    finished = record(breakable, "finished")
    completed = Counter(event["id"] for worker in workers for event in worker.events("task_completed"))
    print("cuts", cuts, "completed twice", sum(completed.values()) - count, "run twice", finished.total() - count)
    assert set(completed) == set(range(1, count + 1)), "finished, and never reported"
    # of two workers, one may have begun what comes back before the other, which has finished it, is connected again
    assert completed.total() - count <= (30 if burst else 3), "completed more than once"
    assert all(completed[number] <= finished[number] for number in finished)
    assert sum(event["completed"] for w in workers for event in w.events("worker_stopped")) == completed.total()


def test_fifty_reconnects_leave_nothing_behind(breakable: Bench, link: Forwarder) -> None:
    """No thread, no file descriptor, and no memory to speak of."""
    worker = ready(breakable, "count_resources")
    process = psutil.Process(worker.process.pid)

    def look(number: int) -> tuple[int, int, int]:
        put(breakable, 0)
        worker.wait_for("task_completed", number)
        threads, descriptors = map(int, (breakable.folder / "resources").read_text().splitlines()[-1].split())
        return threads, descriptors, process.memory_info().rss

    def reconnect(times: int) -> None:
        for _ in range(times):
            known = len(worker.events("worker_ready"))
            link.reset()
            worker.wait_for("worker_ready", known + 1)
            last[:] = look(len(worker.events("task_completed")) + 1)

    last: list[int] = []
    reconnect(5)
    first = list(last)
    reconnect(50)
    assert last[0] <= first[0], "threads"
    assert last[1] <= first[1], "file descriptors"
    assert last[2] < first[2] + (3 << 20), "memory"


def test_a_handler_in_pure_python_does_not_stop_the_heartbeats(breakable: Bench, link: Forwarder) -> None:
    worker = ready(breakable, "busy", HEARTBEAT_SECONDS="1")
    put(breakable, 6)
    worker.wait_for("task_completed", seconds=30)
    assert worker.stderr == ""
    assert record(breakable, "begun") == Counter([1])
