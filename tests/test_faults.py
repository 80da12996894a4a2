"""Links cut and stalled, alarms, deletions, time-outs: nothing is lost, and both programs go on by themselves."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pika.data
import psutil
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lab.forwarder import Forwarder
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program, put

from tasks import BadTask, Task


def done_once_each(worker: Program, count: int) -> bool:
    return Counter(event["id"] for event in worker.events("task_completed")) == Counter(range(1, count + 1))


# Links


@pytest.mark.parametrize("fault", ["reset", "in mid-frame", "stalled for ever"])
def test_a_worker_survives_a_broken_link(breakable: Bench, link: Forwarder, fault: str) -> None:
    """The task that runs meanwhile comes back to this worker, and is acknowledged instead of being done again."""
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="0.5", HEARTBEAT_SECONDS="2")
    breakable.send("--count", "8", "--max-difficulty", "1", "--quiet", RABBITMQ_URL=breakable.broker.url)
    worker.wait_for("task_completed", 2)
    broken = time.monotonic()
    {"reset": link.reset, "in mid-frame": link.cut_in_mid_frame, "stalled for ever": link.stall_for_ever}[fault]()
    worker.wait_for("worker_ready", 2)
    noticed = time.monotonic() - broken
    assert noticed < 2 * 2 + 1.5, "two heartbeats, and the first attempts to connect"
    worker.wait_for("task_completed", 8)
    until(lambda: breakable.ready() == 0, "an empty queue")
    assert done_once_each(worker, 8)
    assert Counter(event["id"] for event in worker.events("task_started")) == Counter(range(1, 9)), "run twice"


@pytest.mark.parametrize("fault", ["reset", "in mid-frame", "stalled for ever"])
def test_a_sender_survives_a_broken_link(breakable: Bench, link: Forwarder, fault: str) -> None:
    count = 60_000
    sender = breakable.start("sender.py", "--count", str(count), "--quiet", HEARTBEAT_SECONDS="2")
    until(lambda: breakable.ready() > 2000, "tasks in the queue")
    {"reset": link.reset, "in mid-frame": link.cut_in_mid_frame, "stalled for ever": link.stall_for_ever}[fault]()
    assert sender.wait(60) == 0, sender.describe()
    assert sender.stdout == f"{count} tasks sent, {count} confirmed\n"
    assert "Connection lost" in sender.stderr, "the fault came too late to test anything"
    arrived = Counter(json.loads(body)["id"] for _, body in breakable.take_all())
    assert set(arrived) == set(range(1, count + 1))
    assert sum(arrived.values()) <= count + 1000, "more than one window was published twice"


def test_a_short_stall_is_sat_out(breakable: Bench, link: Forwarder) -> None:
    worker = breakable.worker(HEARTBEAT_SECONDS="5")
    link.stall()
    breakable.send("--quiet", RABBITMQ_URL=breakable.broker.url)
    until(lambda: breakable.ready() == 7, "a task to be on its way")
    link.flow()
    worker.wait_for("task_completed", 8)
    assert len(worker.events("worker_ready")) == 1
    assert worker.stderr == ""


def test_a_broker_that_takes_connections_and_says_nothing_is_waited_for(breakable: Bench, link: Forwarder) -> None:
    """As a node does that is frozen or coming up, or a load balancer that has none behind it."""
    link.stall()
    worker = breakable.start("worker.py", CONNECT_TIMEOUT_SECONDS="1")
    until(lambda: worker.stderr.count("(Connection timed out)") == 2, "the worker to try again")
    sender = breakable.start("sender.py", CONNECT_TIMEOUT_SECONDS="1")
    assert sender.wait() == 3
    assert "(Connection timed out): is it running" in sender.stderr
    link.flow()
    breakable.send("--quiet")
    worker.wait_for("task_completed", 8)
    assert "Traceback" not in worker.stderr


def test_the_next_of_several_brokers_is_tried_when_one_says_nothing(breakable: Bench, link: Forwarder) -> None:
    link.silent = [True]
    urls = f"{breakable.url},{breakable.broker.url}"
    sender = breakable.start("sender.py", "--count", "100", "--quiet", CONNECT_TIMEOUT_SECONDS="2", RABBITMQ_URL=urls)
    assert sender.wait(20) == 0
    assert breakable.ready() == 100


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
@pytest.mark.parametrize("backlog", [8, 0])
def test_a_port_that_says_nothing_is_given_up_in_time(bench: Bench, scheme: str, backlog: int) -> None:
    """With TLS, and where not even the connection is taken."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as silent, ExitStack() as stack:
        for _ in range(0 if backlog else 3):  # as many as fill the queue of connections to be accepted
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/"
        begun = time.monotonic()
        sender = bench.start("sender.py", RABBITMQ_URL=url, CONNECT_TIMEOUT_SECONDS="2")
        assert sender.wait() == 3
        assert time.monotonic() - begun < 2 * 2, "it tried for longer than CONNECT_TIMEOUT_SECONDS"
        assert "(Connection timed out)" in sender.stderr
        assert sender.stderr.count("\n") == 1


def test_a_lost_acknowledgement_is_made_good_without_running_the_task_again(breakable: Bench, link: Forwarder) -> None:
    """The acknowledgement is written, and never arrives: only the redelivery tells."""
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="0.5", HEARTBEAT_SECONDS="2")
    breakable.send("--task", "x", "--difficulty", "1", "--quiet", RABBITMQ_URL=breakable.broker.url)
    worker.wait_for("task_started")
    link.stall_for_ever()
    worker.wait_for("task_completed")
    worker.wait_for("worker_ready", 2)
    until(lambda: unacknowledged(breakable) == 0 and breakable.ready() == 0, "the acknowledgement to be made good")
    assert len(worker.events("task_started")) == 1
    assert len(worker.events("task_completed")) == 1


def unacknowledged(breakable: Bench) -> int:
    rows = [
        line.split() for line in breakable.broker.ctl("list_queues", "name", "messages_unacknowledged").splitlines()
    ]
    return next((int(row[1]) for row in rows if row and row[0] == breakable.queue), 0)


@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_a_link_cut_during_the_handshake_is_no_refusal(breakable: Bench, link: Forwarder, pieces: int) -> None:
    """pika takes it for wrong credentials; a worker must go on trying, and so must a sender."""
    link.hang_up_after = [pieces]
    worker = breakable.start("worker.py")
    worker.wait_for("worker_ready")
    assert "connecting again" in worker.stderr
    link.hang_up_after = [pieces]
    assert "8 tasks sent, 8 confirmed" in breakable.send()
    worker.wait_for("task_completed", 8)


VIRTUAL_HOSTS = {
    "down": (
        "is down",
        ["eval", 'rabbit_vhost_sup_sup:delete_on_all_nodes(<<"{0}">>).'],
        ["restart_vhost", "-p", "{0}"],
    ),
    "full": (
        "limit (0) is reached",
        ["set_vhost_limits", "-p", "{0}", '{{"max-connections": 0}}'],
        ["clear_vhost_limits", "-p", "{0}"],
    ),
}


@pytest.mark.parametrize("state", VIRTUAL_HOSTS)
def test_a_virtual_host_that_takes_no_connection_for_now_is_waited_for(breakable: Bench, state: str) -> None:
    """The broker refuses it as it does one that is not there, but not for good."""
    ctl, name = breakable.broker.ctl, breakable.queue
    words, refuse, accept = VIRTUAL_HOSTS[state]
    ctl("add_vhost", name)
    try:
        ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        ctl(*(part.format(name) for part in refuse))
        worker = breakable.start("worker.py", RABBITMQ_URL=breakable.url + name)
        until(lambda: f"{words}); connecting again" in worker.stderr, "the worker to wait")
        ctl(*(part.format(name) for part in accept))
        worker.wait_for("worker_ready")
    finally:
        ctl("delete_vhost", name)


def test_a_retry_of_a_task_whose_acknowledgement_may_be_lost_still_runs(breakable: Bench, link: Forwarder) -> None:
    """Its copy has the same id and body as what this worker remembers as done with."""
    worker = breakable.handling("fail_once", RETRY_DELAYS="5")  # time for another consumer to come
    breakable.send("--task", "x", "--difficulty", "0", "--quiet", RABBITMQ_URL=breakable.broker.url)
    worker.wait_for("task_retried")
    until(lambda: unacknowledged(breakable) == 0, "the acknowledgement to arrive")
    link.reset()
    worker.wait_for("worker_ready", 2)
    with breakable.broker.channel() as channel:  # another worker gets the copy, and dies with it
        taken: list[bool] = []
        channel.basic_consume(breakable.queue, lambda *_: taken.append(True), arguments={"x-priority": 10})
        until(lambda: taken, "the other worker to get the copy", seconds=20)
    (done,) = worker.wait_for("task_completed")
    assert (done["attempt"], done["redelivered"]) == (2, True)


# The broker


def test_a_killed_broker_loses_nothing_that_was_confirmed(breakable: Bench) -> None:
    count = 8000
    worker = breakable.worker("--concurrency", "4")
    breakable.broker.keep_queues()
    arguments = ["--count", str(count), "--max-difficulty", "0", "--quiet", "--window", "5"]  # to be still at it
    sender = breakable.start("sender.py", *arguments, CONNECT_TIMEOUT_SECONDS="60")
    until(lambda: len(worker.events("task_completed")) > 300, "tasks to be done")
    breakable.broker.kill()
    breakable.broker.start()
    assert sender.wait(60) == 0, sender.describe()
    assert "Connection lost" in sender.stderr, "the broker was killed too late to test anything"
    until(lambda: len({event["id"] for event in worker.events("task_completed")}) == count, "all tasks", seconds=60)


@pytest.mark.parametrize("prefetch", [1, 20])
def test_after_a_crash_of_the_broker_a_backlog_is_worked_on_at_once(breakable: Bench, prefetch: int) -> None:
    """A classic queue then calls everything redelivered. All keep their place."""
    breakable.send("--count", "100", "--max-difficulty", "0", "--quiet")
    breakable.broker.keep_queues()
    breakable.broker.kill()
    breakable.broker.start()
    until(lambda: breakable.ready() == 100, "the broker to have kept what it confirmed")
    worker = breakable.worker("--prefetch", str(prefetch))
    worker.wait_for("task_completed", 100)
    assert [event["id"] for event in worker.events("task_started")] == list(range(1, 101))


@pytest.mark.parametrize("alarm", ["memory", "disk"])
def test_in_an_alarm_the_sender_waits_and_acknowledgements_flow(breakable: Bench, alarm: str) -> None:
    raise_alarm, clear_alarm = {
        "memory": (["set_vm_memory_high_watermark", "0.00001"], ["set_vm_memory_high_watermark", "0.6"]),
        "disk": (["set_disk_free_limit", "900GB"], ["set_disk_free_limit", "50MB"]),
    }[alarm]
    breakable.send("--count", "20", "--max-difficulty", "1", "--quiet")
    try:
        breakable.broker.ctl(*raise_alarm)
        sender = breakable.start(
            "sender.py", "--count", "3000", "--max-difficulty", "0", "--quiet", HEARTBEAT_SECONDS="1"
        )
        until(lambda: "out of memory or disk" in sender.stderr, "the sender to say that it waits")
        # meanwhile the worker works, and its acknowledgements arrive
        worker = breakable.worker(SECONDS_PER_DIFFICULTY="0.05")
        worker.wait_for("task_completed", 20)
        until(lambda: unacknowledged(breakable) == 0 and breakable.ready() == 0, "acknowledgements to arrive")
        assert sender.process.poll() is None
    finally:
        breakable.broker.ctl(*clear_alarm)
    assert sender.wait(30) == 0, sender.describe()
    assert "The broker takes tasks again." in sender.stderr
    assert sender.stdout == "3000 tasks sent, 3000 confirmed\n"


def test_an_interrupted_sender_waits_for_what_is_on_its_way(breakable: Bench, link: Forwarder) -> None:
    sender = breakable.start("sender.py", "--count", "20000", "--max-difficulty", "0", "--quiet")
    until(lambda: breakable.ready() > 0, "the first tasks to arrive")
    link.stall()  # it goes on until its window is full
    sender.signal(signal.SIGINT)
    until(lambda: "interrupted" in sender.stderr, "the sender to say so")
    link.flow()
    assert sender.wait() == 1
    sent = breakable.ready()
    assert sender.stdout == f"{sent} tasks sent, {sent} confirmed\n"
    assert sent < 20000


def test_in_an_alarm_a_failed_task_waits_in_hand_and_is_not_lost(breakable: Bench) -> None:
    breakable.send("--task", "x", "--difficulty", "0", "--quiet")
    try:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        worker = breakable.handling("reject")
        until(lambda: "out of memory or disk" in worker.stderr, "the worker to say that it waits")
        assert unacknowledged(breakable) == 1
        assert breakable.ready(breakable.dead) == 0
    finally:
        breakable.broker.ctl("set_vm_memory_high_watermark", "0.6")
    breakable.take_dead(1, seconds=40)
    until(lambda: unacknowledged(breakable) == 0, "the original to be acknowledged")


def test_a_task_that_runs_past_the_delivery_time_out_is_explained_and_not_run_in_a_loop(breakable: Bench) -> None:
    """RabbitMQ waits for an acknowledgement for 30 minutes; here for a second. Then it closes the channel, or, from 4.3
    on, cancels the consumer; a classic queue has no such limit there."""
    breakable.broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    breakable.broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    try:
        worker = breakable.worker(SECONDS_PER_DIFFICULTY="1", QUEUE_TYPE="quorum")
        breakable.send("--task", "long", "--difficulty", "6", "--quiet", QUEUE_TYPE="quorum")
        until(lambda: "consumer_timeout" in worker.stderr, "the worker to explain", seconds=20)
        worker.wait_for("task_completed", seconds=20)
        assert len(worker.events("task_started")) == 1
        until(lambda: breakable.ready() == 0 and unacknowledged(breakable) == 0, "the task to be acknowledged")
    finally:
        breakable.broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
        breakable.broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")


# Bodies


@hypothesis_settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies=st.lists(st.binary(max_size=300) | st.text().map(str.encode), min_size=1000, max_size=1000))
def test_a_thousand_generated_bodies_end_dead_or_done(breakable: Bench, bodies: list[bytes]) -> None:
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="0")
    with breakable.broker.channel() as channel:
        put(channel, breakable.queue, [(body, None) for body in bodies])
    dead = breakable.take_dead(len([body for body in bodies if not is_task(body)]), seconds=60)
    assert Counter(body for _, body in dead) == Counter(body for body in bodies if not is_task(body))
    assert "Traceback" not in worker.stderr
    assert breakable.ready() == 0


def is_task(body: bytes) -> bool:
    try:
        Task.decode(body)
    except BadTask:
        return False
    return True


def test_huge_bodies_leave_the_memory_of_a_worker_flat(breakable: Bench) -> None:
    worker = breakable.worker()
    process = psutil.Process(worker.process.pid)

    def memory_after(count: int) -> int:
        for _ in range(count):
            breakable.publish(b'"' + b"x" * 10_000_000)
        breakable.take_dead(count)
        return int(process.memory_info().rss)

    rounds = [memory_after(6) for _ in range(4)]
    assert rounds[3] < max(rounds[:2]) + (15 << 20), rounds


class Raw:
    """A header value as it stands on the wire, for what pika would not encode."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded


def nested_table(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + len(table).to_bytes(4, "big") + table
    return b"F" + len(table).to_bytes(4, "big") + table


@pytest.mark.parametrize(
    "value",
    [b"T" + (1_764_000_000_000).to_bytes(8, "big"), b"T" + b"\xff" * 8, nested_table(3000)],
    ids=["a time stamp in milliseconds", "a time stamp beyond all", "a table nested deeply"],
)
def test_a_header_that_pika_cannot_decode_costs_nothing(
    breakable: Bench, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = pika.data.encode_value

    def encode_raw(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, Raw):
            pieces.append(value.encoded)
            return len(value.encoded)
        return encode(pieces, value)

    monkeypatch.setattr(pika.data, "encode_value", encode_raw)
    headers: Any = {"odd": Raw(value), "plain": 1}
    worker = breakable.worker()
    breakable.publish(b'{"id": 1, "task": "x", "difficulty": 0}', BasicProperties(headers=headers))
    breakable.publish(b"no task", BasicProperties(headers=headers))
    worker.wait_for("task_completed")
    ((properties, _),) = breakable.take_dead(1)
    assert properties.headers
    assert properties.headers["plain"] == 1
    assert len(worker.events("worker_ready")) == 1


# Message ids


def test_a_message_id_that_is_not_utf8_is_shown_with_escapes(breakable: Bench) -> None:
    worker = breakable.worker()
    message_id: Any = b"\xff-1"
    breakable.publish(b'{"id": 1, "task": "x", "difficulty": 0}', BasicProperties(message_id=message_id))
    (done,) = worker.wait_for("task_completed")
    assert done["message_id"] == "\\xff-1"


def test_without_a_message_id_a_redelivered_task_runs_again(breakable: Bench, link: Forwarder) -> None:
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="0.5", HEARTBEAT_SECONDS="2")
    breakable.publish(b'{"id": 1, "task": "x", "difficulty": 1}')
    worker.wait_for("task_started")
    link.reset()
    worker.wait_for("task_completed")
    assert len(worker.events("task_started")) == 2
    until(lambda: unacknowledged(breakable) == 0 and breakable.ready() == 0, "the task to be acknowledged")


def test_the_same_message_id_on_two_tasks_runs_both(breakable: Bench, link: Forwarder) -> None:
    """Even when both come back after a lost connection, and one of them is known to be done."""
    same = BasicProperties(message_id="always-the-same")
    worker = breakable.worker("--prefetch", "2", SECONDS_PER_DIFFICULTY="0.5", HEARTBEAT_SECONDS="2")
    breakable.publish(b'{"id": 1, "task": "x", "difficulty": 1}', same)
    breakable.publish(b'{"id": 2, "task": "y", "difficulty": 1}', same)
    worker.wait_for("task_started")
    link.reset()
    worker.wait_for("task_completed", 2)
    assert {event["id"] for event in worker.events("task_completed")} == {1, 2}
    until(lambda: unacknowledged(breakable) == 0 and breakable.ready() == 0, "both tasks to be acknowledged")


def test_the_same_message_id_on_two_tasks_that_both_run_keeps_them_apart(breakable: Bench, link: Forwarder) -> None:
    same = BasicProperties(message_id="always-the-same")
    worker = breakable.worker("--concurrency", "2", SECONDS_PER_DIFFICULTY="1", HEARTBEAT_SECONDS="2")
    breakable.publish(b'{"id": 1, "task": "x", "difficulty": 1}', same)
    breakable.publish(b'{"id": 2, "task": "y", "difficulty": 1}', same)
    worker.wait_for("task_started", 2)
    link.reset()
    worker.wait_for("task_completed", 2)
    until(lambda: unacknowledged(breakable) == 0 and breakable.ready() == 0, "both tasks to be acknowledged")
    for event in ("task_started", "task_completed"):
        assert sorted(e["id"] for e in worker.events(event)) == [1, 2], event


# Handlers


def test_a_dead_queue_that_is_missing_or_full_costs_no_task(breakable: Bench) -> None:
    with breakable.broker.channel() as channel:
        channel.queue_declare(breakable.queue, durable=True)
    breakable.publish(b"no task")
    worker = breakable.start("worker.py", QUEUE_TYPE="existing")
    assert worker.wait() == 2
    assert f"no queue '{breakable.dead}'" in worker.stderr
    until(lambda: breakable.ready() == 1, "the task to be back")
    with breakable.broker.channel() as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(breakable.dead, durable=True, arguments=arguments)
    breakable.publish(b"no task either")
    breakable.publish(b"nor this")
    worker = breakable.worker(QUEUE_TYPE="existing")
    until(lambda: "(refused)" in worker.stderr, "the worker to say so")
    found: list[bytes] = []
    while len(found) < 3:
        found += [body for _, body in breakable.take_dead(1)]
    assert sorted(found) == sorted([b"no task", b"no task either", b"nor this"])


def test_a_dead_queue_that_was_deleted_is_made_again(breakable: Bench) -> None:
    breakable.worker()
    breakable.publish(b"no task")
    breakable.take_dead(1)
    with breakable.broker.channel() as channel:
        channel.queue_delete(breakable.dead)
    breakable.publish(b"no task either")
    breakable.take_dead(1)


def test_every_queue_is_durable(breakable: Bench) -> None:
    breakable.worker()
    rows = [line.split("\t") for line in breakable.broker.ctl("list_queues", "name", "durable").splitlines()]
    found = {row[0]: row[1] for row in rows if row[0].startswith(breakable.queue)}
    names = {breakable.queue, breakable.dead, f"{breakable.queue}.retry.0.2s", f"{breakable.queue}.retry.0.4s"}
    assert found == dict.fromkeys(names, "true")


def test_a_rejected_task_is_dead_at_once(breakable: Bench) -> None:
    worker = breakable.handling("reject")
    breakable.send("--task", "x", "--difficulty", "0", "--quiet")
    ((properties, body),) = breakable.take_dead(1)
    assert properties.headers
    assert (properties.headers["x-error"], properties.headers["x-error-type"]) == ("never going to work", "Reject")
    assert properties.headers["x-attempts"] == 1
    assert json.loads(body)["task"] == "x"
    assert len(worker.events("task_started")) == 1
    assert worker.stderr == ""


def test_a_handler_that_ends_the_program_fails_like_any_other(breakable: Bench) -> None:
    worker = breakable.handling("leave", RETRY_DELAYS="")
    breakable.send("--task", "x", "--difficulty", "0", "--quiet")
    ((properties, _),) = breakable.take_dead(1)
    assert properties.headers
    assert properties.headers["x-error-type"] == "SystemExit"
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("task", "words"),
    [("unspeakable", "cannot be put into words"), ("surrogate", "udcff"), ("long", "x" * 1000), ("escapes", "[2J")],
)
def test_an_error_that_cannot_be_encoded_fails_like_any_other(breakable: Bench, task: str, words: str) -> None:
    worker = breakable.handling("fail_unspeakably", RETRY_DELAYS="")
    breakable.send("--task", task, "--difficulty", "0", "--quiet")
    ((properties, _),) = breakable.take_dead(1)
    assert properties.headers
    assert words in str(properties.headers["x-error"])
    assert len(str(properties.headers["x-error"])) <= 1000
    assert "\x1b" not in worker.stderr
    assert worker.process.poll() is None


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_task_that_kills_its_worker_is_dead_after_the_delivery_limit(breakable: Bench, queue_type: str) -> None:
    settings = {"QUEUE_TYPE": queue_type, "DELIVERY_LIMIT": "3"}
    breakable.send("--task", "kill", "--difficulty", "0", "--quiet", **settings)
    starts = 0
    for _ in range(3):
        worker = breakable.handling("kill_worker", **settings)
        assert worker.wait() == -signal.SIGKILL
        starts += len(worker.events("task_started"))
    last = breakable.handling("kill_worker", **settings)
    ((properties, body),) = breakable.take_dead(1)
    assert starts == 3
    assert last.events("task_started") == []
    assert properties.headers
    assert properties.headers["x-error-type"] == "DeliveryLimit"
    assert json.loads(body)["task"] == "kill"
    breakable.send("--task", "harmless", "--difficulty", "0", "--quiet", **settings)
    last.wait_for("task_completed")


def test_a_retried_task_starts_a_new_count_of_deliveries(breakable: Bench) -> None:
    """A failure that was settled is no sign of a task that kills."""
    worker = breakable.handling("fail_once", DELIVERY_LIMIT="2")
    breakable.publish(
        b'{"id": 1, "task": "x", "difficulty": 0}', BasicProperties(message_id="m", headers={"x-deliveries": 1})
    )
    (done,) = worker.wait_for("task_completed")
    assert done["attempt"] == 2
    assert done["redelivered"] is False
