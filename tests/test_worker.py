"""The worker as a process: each task done, once, and acknowledged only then."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from itertools import pairwise

import psutil
import pytest
from lab.nodes import ROOT
from lab.waiting import until
from pika import BasicProperties
from programs import Bench
from test_tasks import BAD_BODIES


def test_the_text_of_the_tutorial(bench: Bench) -> None:
    bench.send("--task", "Process image resize", "--difficulty", "3", "--quiet")
    worker = bench.start("worker.py", "--id", "Worker-7", "--burst", LOG_FORMAT="text", SECONDS_PER_DIFFICULTY="1")
    assert worker.wait() == 0
    assert worker.stdout == (
        f"🚀 [Worker-7] Waiting for tasks in {bench.queue} (prefetch 1)\n"
        "📥 [Worker-7] Received task: Process image resize (id: 1)\n"
        "   [Worker-7] Difficulty: ⭐⭐⭐ (id: 1)\n"
        "   [Worker-7] Progress: [█  ] 1/3s (id: 1)\n"
        "   [Worker-7] Progress: [██ ] 2/3s (id: 1)\n"
        "   [Worker-7] Progress: [███] 3/3s (id: 1)\n"
        "   [Worker-7] ✅ Task completed! (id: 1)\n"
        "👋 [Worker-7] Stopped; tasks completed: 1\n"
    )
    assert worker.stderr == ""


def test_events_as_json(bench: Bench) -> None:
    bench.send("--task", "Größe", "--difficulty", "2", "--quiet")
    worker = bench.start("worker.py", "--burst", SECONDS_PER_DIFFICULTY="0.6")
    assert worker.wait() == 0
    events = [json.loads(line) for line in worker.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["worker_ready", "task_started", *["task_progress"] * 2, "task_completed", "worker_stopped"]
    assert len({event["worker"] for event in events}) == 1
    assert re.fullmatch(r"Worker-[0-9a-f]{8}", events[0]["worker"])
    for event in events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|\+00:00)", event["time"])
        if event["event"].startswith("task_"):
            assert (event["id"], event["task"], event["difficulty"]) == (1, "Größe", 2)
            assert (event["attempt"], event["redelivered"]) == (1, False)
            assert len(event["message_id"]) == 36


def test_quiet_prints_no_line_per_task(bench: Bench) -> None:
    bench.send("--count", "5", "--max-difficulty", "0", "--quiet")
    worker = bench.start("worker.py", "--burst", "--quiet", LOG_FORMAT="text")
    assert worker.wait() == 0
    assert len(worker.stdout.splitlines()) == 2
    assert "tasks completed: 5" in worker.stdout


def test_the_demo_batch_over_three_workers_each_task_once(bench: Bench) -> None:
    workers = [bench.worker() for _ in range(3)]
    bench.send()
    until(lambda: sum(len(worker.events("task_completed")) for worker in workers) >= 8, "eight completed tasks")
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    done = [[event["id"] for event in worker.events("task_completed")] for worker in workers]
    assert sorted(number for numbers in done for number in numbers) == list(range(1, 9))
    assert all(done), "a worker had nothing to do"
    assert bench.ready() == 0


def test_a_slow_worker_takes_fewer_tasks(bench: Bench) -> None:
    """With prefetch 1 a task goes to whoever is free; with the round-robin of old each would get half."""
    slow = bench.worker(SECONDS_PER_DIFFICULTY="0.5")
    fast = bench.worker(SECONDS_PER_DIFFICULTY="0.02")
    bench.send("--count", "30", "--max-difficulty", "1", "--quiet")
    until(lambda: len(slow.events("task_completed")) + len(fast.events("task_completed")) == 30, "thirty tasks")
    assert 1 <= len(slow.events("task_completed")) <= 5
    assert len(fast.events("task_completed")) >= 25


def test_round_robin_lets_the_slow_worker_fall_behind(bench: Bench) -> None:
    """Without a limit, tasks are dealt out in turn as they arrive, to the busy worker too."""
    slow = bench.worker("--prefetch", "0", SECONDS_PER_DIFFICULTY="0.2")
    fast = bench.worker("--prefetch", "0", SECONDS_PER_DIFFICULTY="0.01")
    bench.send("--count", "20", "--max-difficulty", "1", "--quiet")
    fast.wait_for("task_completed", 10)
    assert len(slow.events("task_completed")) < 5
    slow.wait_for("task_completed", 10)
    assert len(fast.events("task_completed")) == 10


def test_without_prefetch_the_first_worker_takes_all(bench: Bench) -> None:
    bench.send("--count", "20", "--max-difficulty", "1", "--quiet")
    greedy = bench.worker("--prefetch", "0", SECONDS_PER_DIFFICULTY="0.05")
    greedy.wait_for("task_started")
    other = bench.worker()
    greedy.wait_for("task_completed", 20)
    assert other.events("task_started") == []


def test_sigterm_in_mid_task_finishes_and_acknowledges_it(bench: Bench) -> None:
    worker = bench.worker(SECONDS_PER_DIFFICULTY="1")
    bench.send("--count", "3", "--max-difficulty", "1", "--quiet")
    worker.wait_for("task_started")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert len(worker.events("task_completed")) == 1
    assert len(worker.events("worker_stopped")) == 1
    assert bench.ready() == 2


def test_sigint_gives_back_what_is_only_held(bench: Bench) -> None:
    worker = bench.worker("--prefetch", "5", SECONDS_PER_DIFFICULTY="1")
    bench.send("--count", "4", "--max-difficulty", "1", "--quiet")
    worker.wait_for("task_started")
    until(lambda: bench.ready() == 0, "all four tasks to be held")
    worker.signal(signal.SIGINT)
    until(lambda: bench.ready() == 3, "three tasks to be given back before the running one is done", seconds=0.9)
    assert worker.wait() == 0
    assert len(worker.events("task_completed")) == 1
    assert bench.ready() == 3


def test_a_second_signal_gives_back_what_runs_and_ends_at_once(bench: Bench) -> None:
    worker = bench.worker(SECONDS_PER_DIFFICULTY="60")
    bench.send("--task", "long", "--difficulty", "1", "--quiet")
    worker.wait_for("task_started")
    worker.signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.5)
    worker.signal(signal.SIGINT)
    assert worker.wait(2) == 1
    assert "given back" in worker.stderr
    until(lambda: bench.ready() == 1, "the task to be back")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_task_that_is_put_down_is_given_back_and_no_attempt_is_used_up(bench: Bench, queue_type: str) -> None:
    """However often: neither as an attempt, of which it has one, nor as a worker's end, of which it survives one."""
    settings = {"RETRY_DELAYS": "", "DELIVERY_LIMIT": "2", "QUEUE_TYPE": queue_type}
    bench.send("--task", "long", "--difficulty", "0", "--quiet", **settings)
    for redelivered in (False, True, True, True):
        worker = bench.handling("put_down", **settings)
        (started,) = worker.wait_for("task_started")
        assert (started["attempt"], started["redelivered"]) == (1, redelivered)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert "put down, and given back: half of it is done" in worker.stderr
        assert "Traceback" not in worker.stderr
        until(lambda: bench.ready() == 1, "the task to be back")
    assert bench.ready(bench.dead) == 0


def test_a_task_that_is_put_down_without_need_has_failed(bench: Bench) -> None:
    """Given back, it would come again at once, to the same worker, without an end."""
    bench.handling("put_down")
    bench.send("--task", "short", "--difficulty", "0", "--quiet")
    ((properties, _),) = bench.take_dead(1)
    assert (properties.headers or {})["x-attempts"] == 3


def test_signals_end_an_idle_worker_and_one_that_has_no_broker(bench: Bench) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        idle = bench.worker()
        idle.signal(number)
        assert idle.wait(2) == 0
        without_broker = bench.start("worker.py", RABBITMQ_URL="amqp://localhost:1/")
        until(lambda program=without_broker: "connecting again" in program.stderr, "the worker to try")  # type: ignore[misc]
        without_broker.signal(number)
        assert without_broker.wait(2) == 0
        assert "Traceback" not in without_broker.stderr


def test_a_signal_ends_a_worker_that_hangs_in_connecting(bench: Bench) -> None:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
        worker = bench.start("worker.py", RABBITMQ_URL=url, CONNECT_TIMEOUT_SECONDS="60")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(4) == b"AMQP"
            worker.signal(signal.SIGTERM)
            assert worker.wait(2) == 0


def test_sigkill_in_mid_task_has_it_redelivered(bench: Bench) -> None:
    first = bench.worker(SECONDS_PER_DIFFICULTY="60")
    bench.send("--task", "x", "--difficulty", "1", "--quiet")
    first.wait_for("task_started")
    first.signal(signal.SIGKILL)
    second = bench.worker()
    (done,) = second.wait_for("task_completed")
    assert done["redelivered"] is True
    assert done["message_id"] == first.events("task_started")[0]["message_id"]


def test_two_workers_may_both_process_one_message_after_a_crash(bench: Bench) -> None:
    """At least once is the promise: a crash between the work and its acknowledgement repeats the work."""
    first = bench.worker(SECONDS_PER_DIFFICULTY="1")
    second_starts: list[str] = []
    bench.send("--task", "x", "--difficulty", "2", "--quiet")
    first.wait_for("task_progress")
    first.signal(signal.SIGKILL)
    second = bench.worker()
    second_starts += [event["message_id"] for event in second.wait_for("task_started")]
    assert second_starts == [event["message_id"] for event in first.events("task_started")]


def test_burst_stops_when_the_queue_is_empty(bench: Bench) -> None:
    bench.send("--count", "200", "--max-difficulty", "0", "--quiet")
    workers = [bench.start("worker.py", "--burst", "--concurrency", "3", "--prefetch", "20") for _ in range(2)]
    for worker in workers:
        assert worker.wait() == 0
    done = Counter(event["id"] for worker in workers for event in worker.events("task_completed"))
    assert done == Counter(range(1, 201))
    assert bench.ready() == 0


def test_tasks_run_side_by_side(bench: Bench) -> None:
    bench.send("--count", "5", "--max-difficulty", "1", "--quiet")
    worker = bench.start("worker.py", "--burst", "--concurrency", "5", SECONDS_PER_DIFFICULTY="1")
    started = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - started < 2.5
    assert len(worker.events("task_completed")) == 5


@pytest.mark.parametrize("long_one", [0, 1, 3])
def test_what_still_runs_is_not_acknowledged_with_the_others(bench: Bench, long_one: int) -> None:
    for number in range(4):
        difficulty = 60 if number == long_one else 0.1 * number
        bench.publish(b'{"id": %d, "task": "x", "difficulty": %g}' % (number, difficulty))
    worker = bench.worker("--concurrency", "4", SECONDS_PER_DIFFICULTY="1")
    done = worker.wait_for("task_completed", 3)
    assert {event["id"] for event in done} == set(range(4)) - {long_one}
    worker.signal(signal.SIGKILL)
    until(lambda: bench.ready() == 1, "the task that ran, and no other, to be given back")
    ((_, body),) = bench.take_all()
    assert b'"id": %d,' % long_one in body


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_finished_task_is_settled_at_once(bench: Bench, concurrency: int) -> None:
    """And not only when the main thread looks by itself, ten times a second."""
    bench.send("--count", "100", "--max-difficulty", "1", "--quiet")
    worker = bench.start("worker.py", "--burst", "--concurrency", str(concurrency), SECONDS_PER_DIFFICULTY="0.005")
    assert worker.wait() == 0
    begin, end = worker.events("task_started")[0], worker.events("task_completed")[99]
    took = datetime.fromisoformat(end["time"]) - datetime.fromisoformat(begin["time"])
    assert took.total_seconds() < 100 * 0.1 / concurrency / 2


def test_a_long_task_that_is_pure_computation_keeps_its_heartbeats(bench: Bench) -> None:
    """20 s of computation in Python under a heartbeat of 5 s: the broker would drop the connection after 10 s."""
    worker = bench.handling("cpu_bound", HEARTBEAT_SECONDS="5")
    bench.send("--task", "compute", "--difficulty", "20", "--quiet")
    (done,) = worker.wait_for("task_completed", seconds=40)
    assert done["redelivered"] is False
    assert worker.events("task_lost_connection") == []
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.stderr == ""


def test_bodies_that_are_no_tasks_go_to_the_dead_queue_and_the_worker_goes_on(bench: Bench) -> None:
    worker = bench.worker()
    for body in BAD_BODIES.values():
        bench.publish(body, BasicProperties(message_id="m", headers={"kept": 1}, expiration="60000"))
    bench.publish(b'{"id": 1, "task": "good", "difficulty": 0}')
    worker.wait_for("task_completed")
    dead = bench.take_dead(len(BAD_BODIES))
    assert [body for _, body in dead] == list(BAD_BODIES.values())
    for properties, _ in dead:
        headers = properties.headers
        assert headers
        assert headers["x-error-type"] == "BadTask"
        assert headers["x-error"]
        assert headers["x-worker"] == worker.events("worker_ready")[0]["worker"]
        assert headers["x-attempts"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", str(headers["x-failed-at"]))
        assert headers["kept"] == 1
        assert properties.message_id == "m"
        assert properties.delivery_mode == 2
        assert properties.expiration is None
    assert len(worker.events("task_dead")) == len(BAD_BODIES)
    assert "Traceback" not in worker.stderr


def test_a_foreign_client_works_with_this_sender_and_this_worker(bench: Bench) -> None:
    """Declares the queue durable without arguments, sends three members and no properties, acknowledges by hand."""
    bench.publish(b'{"id":1,"task":"Process image resize","difficulty":1}')
    worker = bench.worker("--burst")
    assert worker.wait() == 0
    (done,) = worker.events("task_completed")
    assert (done["id"], done["task"], done["message_id"]) == (1, "Process image resize", None)
    bench.send("--quiet")
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True)
        found = channel.basic_get(bench.queue)
        assert found
        method, _, body = found
        assert body == b'{"id": 1, "task": "Process image resize", "difficulty": 3}'
        channel.basic_ack(method.delivery_tag)
    assert bench.ready() == 7


def test_the_id_is_the_consumer_tag_and_the_connection_name(breakable: Bench) -> None:
    breakable.worker("--id", "Worker-of-this-test")
    assert "Worker-of-this-test" in breakable.broker.ctl("list_connections", "client_properties")
    assert "Worker-of-this-test" in breakable.broker.ctl("list_consumers", "consumer_tag")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prefetch", "-1"],
        ["--prefetch", "65536"],
        ["--concurrency", "0"],
        ["--id", ""],
        ["--id", "a\x1b[2J"],
        ["--id", "x" * 300],
        ["--queue", ""],
        ["surplus"],
    ],
)
def test_wrong_use_ends_with_exit_code_2(bench: Bench, arguments: list[str]) -> None:
    worker = bench.start("worker.py", *arguments)
    assert worker.wait() == 2
    assert "worker.py: " in worker.stderr
    assert "Traceback" not in worker.stderr
    assert "\x1b" not in worker.stderr


def test_a_queue_with_other_arguments_ends_with_exit_code_2(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True, arguments={"x-max-priority": 5})
    worker = bench.start("worker.py")
    assert worker.wait() == 2
    assert "'x-max-priority'" in worker.stderr
    assert "TASK_QUEUE" in worker.stderr
    assert worker.stderr.count("\n") == 1
    missing = bench.start("worker.py", "--queue", f"{bench.queue}-2", QUEUE_TYPE="existing")
    assert missing.wait() == 2
    assert f"no queue '{bench.queue}-2'" in missing.stderr


@pytest.mark.parametrize("target", ["closed pipe", "full disk"])
def test_lost_output_gives_back_the_task_in_hand(bench: Bench, target: str) -> None:
    bench.send("--task", "x", "--difficulty", "1", "--quiet")
    if target == "full disk":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        read, output = os.pipe()
        os.close(read)
    worker = bench.launch("worker.py", [], {}, stdout=output)
    os.close(output)
    assert worker.wait() == 1
    assert worker.stderr.count("\n") == 1
    assert "standard output is gone" in worker.stderr
    until(lambda: bench.ready() == 1, "the task to be back")


def test_a_standard_error_that_takes_nothing_stops_nothing(bench: Bench) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    worker = bench.launch("tests/handlers.py", ["fail_once"], {}, stderr=full)
    os.close(full)
    bench.send("--task", "x", "--difficulty", "0", "--quiet")
    (done,) = worker.wait_for("task_completed")
    assert done["attempt"] == 2


def test_output_lost_in_mid_task_gives_the_task_back(bench: Bench) -> None:
    read, write = os.pipe()
    worker = bench.launch("worker.py", [], {"LOG_FORMAT": "text", "SECONDS_PER_DIFFICULTY": "1"}, stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        output.readline()
        bench.send("--task", "x", "--difficulty", "2", "--quiet")
        assert b"Received task" in output.readline()
    assert worker.wait() == 1
    assert "Traceback" not in worker.stderr
    until(lambda: bench.ready() == 1, "the task to be back")
    ((properties, _),) = bench.take_all()
    assert "x-attempts" not in (properties.headers or {}), "it was counted as an attempt"


@pytest.mark.parametrize("command", ["worker.py --burst >&-", "sender.py >&-", "sender.py --file - <&-"])
def test_a_missing_standard_stream_is_no_surprise(bench: Bench, command: str) -> None:
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -W error {ROOT}/{command}"],
        env=bench.environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if command.endswith("<&-"):  # as good as an empty file
        assert (result.returncode, result.stdout, result.stderr) == (0, "0 tasks sent, 0 confirmed\n", "")
    else:
        assert result.returncode == 1
        assert "standard output is gone" in result.stderr
        assert "Traceback" not in result.stderr


def test_task_text_cannot_harm_a_terminal(bench: Bench) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\nfake line\u202egnp.exe"
    bench.publish(json.dumps({"id": 1, "task": evil, "difficulty": 0}).encode())
    bench.publish(json.dumps({"id": 1, evil: 1, "task": 3, "difficulty": 0}).encode())
    for log_format in ("text", "json"):
        worker = bench.start("worker.py", "--burst", LOG_FORMAT=log_format)
        assert worker.wait() == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", worker.stdout + worker.stderr)
        bench.publish(json.dumps({"id": 1, "task": evil, "difficulty": 0}).encode())


@pytest.mark.alone
def test_an_idle_worker_is_small_and_starts_quickly(bench: Bench) -> None:
    samples = []
    for _ in range(5):
        started = time.time()
        worker = bench.worker()
        with bench.broker.channel() as channel:
            assert channel.queue_declare(bench.queue, passive=True).consumer_count == 1
        ready = worker.events("worker_ready")[0]["time"]
        samples.append(_epoch(ready) - started)
        assert psutil.Process(worker.process.pid).memory_info().rss < 40 << 20
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert sorted(samples)[2] < 0.5


def _epoch(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()


def test_a_worker_waits_for_a_broker_and_then_works(breakable: Bench) -> None:
    breakable.send("--quiet")
    breakable.broker.keep_queues()
    breakable.broker.kill()
    worker = breakable.start("worker.py", CONNECT_TIMEOUT_SECONDS="1")
    until(lambda: worker.stderr.count("connecting again") >= 2, "the worker to try again")
    breakable.broker.start()
    worker.wait_for("task_completed", 8, seconds=40)


def test_a_restart_of_the_broker_in_mid_run_keeps_the_tasks(breakable: Bench) -> None:
    """Persistent tasks are kept; what runs meanwhile is acknowledged when it comes back, not redone."""
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="0.3")
    breakable.send("--count", "20", "--max-difficulty", "1", "--quiet")
    worker.wait_for("task_completed", 2)
    breakable.broker.restart()
    worker.wait_for("task_completed", 20, seconds=40)
    assert worker.events("task_lost_connection")
    done = Counter(event["id"] for event in worker.events("task_completed"))
    assert done == Counter(range(1, 21)), "each once"
    tries = [line for line in worker.stderr.splitlines() if "connecting again" in line]
    assert [line for line in tries if len(line) > 80] == []
    assert Counter(event["id"] for event in worker.events("task_started")) == Counter(range(1, 21)), "none run twice"
    until(lambda: breakable.ready() == 0, "an empty queue")


def test_a_task_finished_while_the_broker_was_away_is_acknowledged_not_redone(breakable: Bench) -> None:
    worker = breakable.worker(SECONDS_PER_DIFFICULTY="1")
    breakable.broker.keep_queues()
    breakable.send("--task", "x", "--difficulty", "1", "--quiet")
    worker.wait_for("task_started")
    breakable.broker.kill()
    worker.wait_for("task_lost_connection")
    until(lambda: worker.stderr.count("connecting again") >= 4, "the task to be done long since")
    breakable.broker.start()
    worker.wait_for("task_completed", seconds=40)
    assert len(worker.events("task_started")) == 1
    assert len(worker.events("task_lost_connection")) == 1
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert breakable.ready() == 0


def test_a_deleted_queue_is_declared_and_consumed_again(bench: Bench) -> None:
    worker = bench.worker()
    with bench.broker.channel() as channel:
        channel.queue_delete(bench.queue)
    worker.wait_for("worker_ready", 2)
    bench.send("--quiet")
    worker.wait_for("task_completed", 8)


def test_a_task_that_fails_is_tried_again_after_each_delay_then_dead(bench: Bench) -> None:
    worker = bench.handling("fail")
    bench.send("--task", "x", "--difficulty", "0", "--quiet")
    (dead,) = bench.take_dead(1)
    starts = worker.events("task_started")
    assert [event["attempt"] for event in starts] == [1, 2, 3]
    waits = [_epoch(later["time"]) - _epoch(earlier["time"]) for earlier, later in pairwise(starts)]
    assert 0.2 <= waits[0] < 0.4 <= waits[1]
    assert [event["delay_seconds"] for event in worker.events("task_retried")] == [0.2, 0.4]
    headers = dead[0].headers
    assert headers
    assert (headers["x-error"], headers["x-error-type"], headers["x-attempts"]) == (
        "no luck with x",
        "RuntimeError",
        3,
    )
    assert worker.stderr.count("Traceback") == 3
    assert worker.stderr.count("RuntimeError: no luck with x") == 3


def test_a_task_that_fails_once_is_completed_at_its_second_attempt(bench: Bench) -> None:
    worker = bench.handling("fail_once")
    bench.send("--task", "x", "--difficulty", "0", "--quiet")
    (done,) = worker.wait_for("task_completed")
    assert done["attempt"] == 2
    assert bench.ready(bench.dead) == 0
