"""scripts/autoscale.py with real workers on a real broker: it follows the load, and leaves nobody behind."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab.burst import Burst, scaled
from lab.forwarder import Forwarder
from lab.nodes import free_port
from lab.waiting import until
from programs import Bench, Program
from scaling.workers import Workers

SCRIPT = "scripts/autoscale.py"
QUICK = ("--cool-down", "1.5")


def workers_of(scaler: Program) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(scaler.process.pid).children()
        if any(word.endswith("leashed.py") for word in child.cmdline())
    ]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def decisions(scaler: Program) -> list[dict[str, Any]]:
    return scaler.events("autoscale_decision")


def at_work(bench: Bench, count: int, seconds: str = "2", *flags: str) -> Program:
    """As many workers as tasks, each of them with one."""
    scaler = bench.start(SCRIPT, "--min", str(count), *flags, SECONDS_PER_DIFFICULTY=seconds)
    scaler.wait_for("worker_ready", count)
    bench.send("--count", str(count), "--max-difficulty", "1", "--quiet")
    until(lambda: bench.ready() == 0, "every worker to have a task")
    return scaler


def assert_done_once(scaler: Program, count: int) -> None:
    """By what the workers say when they stop."""
    assert sum(event["completed"] for event in scaler.events("worker_stopped")) == count


def watched(bench: Bench) -> str:
    view = bench.start("scripts/watch.py", "--once")
    assert view.wait() == 0, view.describe()
    return view.stdout


# It follows the load


@pytest.mark.alone
def test_a_burst_waits_less_than_with_a_fixed_two_and_nothing_is_lost(bench: Bench, tmp_path: Path) -> None:
    """Two at once, each on a queue of its own; in the second, a worker is killed every two seconds."""
    count, seconds = 300, 0.2
    command = scaled("--max", "6", "--cool-down", "3")
    bursts: list[Burst] = []
    try:
        bursts += [Burst(command, tmp_path, count, seconds, **bench.environment()) for _ in range(2)]
        quiet, killed = bursts
        threads = [threading.Thread(target=quiet.work_off), threading.Thread(target=killed.work_off, args=(2.0,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for burst in bursts:
            assert (burst.left, burst.twice, burst.most_workers) == (0, 0, 6)
            until(lambda burst=burst: len(burst.children()) == 1, "one worker again")  # type: ignore[misc]
            with_two = count * seconds / 2 / 2  # seconds on average, if two workers did nothing else
            assert sum(burst.waits) / count < 0.9 * with_two
        replaced = [event for event in killed.events("autoscale_decision") if "killed by signal 9" in event["why"]]
        assert len(replaced) >= 2
        assert quiet.run_again == 0
        assert killed.run_again <= len(replaced)
    finally:
        codes = [burst.stop() for burst in bursts]
    assert codes == [0, 0]


def test_it_says_each_decision_in_a_line_and_in_the_live_view(bench: Bench) -> None:
    scaler = bench.start(SCRIPT, *QUICK, "--wait", "1", "--max", "2", LOG_FORMAT="text", SECONDS_PER_DIFFICULTY="0.2")
    until(lambda: "Waiting for tasks" in scaler.stdout, "the first worker")
    bench.send("--count", "100", "--max-difficulty", "1", "--quiet")
    line = r"^\d\d:\d\d:\d\d 1 → 2: \d+ ready, \d in work.*: .+$"
    until(lambda: re.search(line, scaler.stdout, re.MULTILINE), "the second worker")
    until(lambda: re.search(r"⇅ 2 workers of 1 to 2 since [\d.]+ s: \d+ ready, ", watched(bench)), "the live view")
    until(lambda: re.search(r"2 → 1: .* had been enough$", scaler.stdout, re.MULTILINE), "one to leave")
    scaler.signal(signal.SIGINT)
    assert scaler.wait() == 0
    assert "1 → 0: told to stop" in scaler.stdout
    assert "⇅" not in watched(bench)


def test_no_worker_ends_in_mid_task_when_fewer_are_enough(bench: Bench) -> None:
    """Two have a long task; the others are idle, and are those that leave."""
    scaler = bench.start(SCRIPT, *QUICK, "--wait", "0.5", "--max", "4", SECONDS_PER_DIFFICULTY="1")
    scaler.wait_for("worker_ready")
    for difficulty in (15, 15, 1, 1):
        bench.publish(json.dumps({"id": 1, "task": "x", "difficulty": difficulty}).encode())
    scaler.wait_for("worker_ready", 4)
    stopped = scaler.wait_for("worker_stopped", 2)
    assert [event["completed"] for event in stopped] == [1, 1]
    assert decisions(scaler)[-1]["workers"] == 2
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0
    assert_done_once(scaler, 4)
    assert bench.ready(bench.dead) == 0


def test_what_is_to_be_tried_again_counts_when_it_falls_due(bench: Bench) -> None:
    """All of them are in the retry queue: nothing is ready, and nothing runs, when more workers come."""
    scaler = bench.start(SCRIPT, "--wait", "2", RETRY_DELAYS="5", SECONDS_PER_DIFFICULTY="1")
    scaler.wait_for("worker_ready")
    for _ in range(4):
        bench.publish(json.dumps({"id": 1, "task": "x", "difficulty": 1}).encode(), queue=f"{bench.queue}.retry.5s")
    until(lambda: any(d["workers"] > 1 for d in decisions(scaler)), "more workers")
    (first,) = [d for d in decisions(scaler) if d["from"] == 1 and d["workers"] == 2][:1]
    assert re.match("0 ready, [2-4] soon back from retry, 0 in work", first["why"])
    assert bench.ready(f"{bench.queue}.retry.5s") == 4
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0
    bench.take_all(f"{bench.queue}.retry.5s")


def test_nothing_changes_while_the_broker_is_away(breakable: Bench, link: Forwarder) -> None:
    scaler = breakable.start(SCRIPT, *QUICK, "--min", "2")
    scaler.wait_for("worker_ready", 2)
    workers = workers_of(scaler)
    link.stall()
    until(lambda: "nothing changes while the load is not known" in decisions(scaler)[-1]["why"], "a word of it")
    assert [decisions(scaler)[-1][name] for name in ("from", "workers")] == [2, 2]
    assert workers_of(scaler) == workers
    link.flow()
    scaler.signal(signal.SIGTERM)
    assert scaler.wait(30) == 0


# Its workers


def test_those_with_nothing_to_do_leave_first_of_them_the_newest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bench.environment().items():
        monkeypatch.setenv(name, value)
    workers = Workers(["--quiet"])
    first, second, third, fourth = workers.start(4)
    assert workers.drain(2, busy={fourth}) == [third, second]
    assert workers.active == [first, fourth]
    assert workers.drain(5, busy={fourth}) == [first, fourth]
    ended: set[str] = set()

    def all_have_left() -> bool:
        ended.update(worker.name for worker in workers.ended())
        return ended == {first, second, third, fourth}

    until(all_have_left, "all to leave")
    workers.close()


def test_one_that_has_died_is_replaced(bench: Bench) -> None:
    scaler = at_work(bench, 2)
    first = workers_of(scaler)[0]
    first.kill()
    scaler.wait_for("worker_ready", 3)
    assert "(killed by signal 9), and is replaced" in decisions(scaler)[-1]["why"]
    assert len(workers_of(scaler)) == 2
    until(lambda: bench.ready() == 0, "the new one to have its task")
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0
    assert_done_once(scaler, 2)


def test_its_own_end_drains_all(bench: Bench) -> None:
    scaler = at_work(bench, 3)
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0
    assert_done_once(scaler, 3)
    assert bench.ready() == 0


def test_workers_that_are_not_yet_up_may_be_drained_too(bench: Bench) -> None:
    scaler = bench.start(SCRIPT, "--min", "4")
    until(lambda: workers_of(scaler), "a first process")
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0, scaler.describe()
    assert scaler.stderr == ""


def test_a_second_signal_gives_back_what_runs(bench: Bench) -> None:
    scaler = at_work(bench, 2, "60")
    scaler.signal(signal.SIGINT)
    until(lambda: scaler.stderr.count("stopping when what runs is done") == 2, "the workers to be told")
    scaler.signal(signal.SIGINT)
    assert scaler.wait() == 1
    until(lambda: bench.ready() == 2, "the tasks to be back")


@pytest.mark.parametrize("when", ["while it works", "while they drain"])
def test_killed_it_leaves_no_worker_and_no_task_is_run_twice(bench: Bench, when: str) -> None:
    scaler = at_work(bench, 2)
    workers = workers_of(scaler)
    if when == "while they drain":
        scaler.signal(signal.SIGTERM)
        until(lambda: scaler.stderr.count("stopping when what runs is done") == 2, "the workers to be told")
    scaler.process.kill()
    until(lambda: all(map(is_gone, workers)), "the workers to drain")
    assert scaler.stderr.count("whoever has started this worker is gone") == (2 if when == "while it works" else 0)
    assert_done_once(scaler, 2)
    assert bench.ready() == 0


def test_its_output_may_be_gone(bench: Bench) -> None:
    """What it cannot say does not keep it from draining its workers."""
    scaler = bench.launch("scripts/autoscale.py", ["--min", "1", "--max", "1"], {})
    scaler.wait_for("worker_ready")
    (worker,) = workers_of(scaler)
    with open("/dev/full", "wb") as full:
        broken = bench.launch("scripts/autoscale.py", [], {}, stdout=full)
    assert broken.wait() == 1
    assert "standard output is gone" in broken.stderr
    assert not is_gone(worker)
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0


# Wrong use


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min", "3", "--max", "2"], "--min 3 is more than --max 2"),
        (["--max", "0"], "not a whole number from 1"),
        (["--wait", "x"], "not a number of seconds"),
        (["--", "--burst"], "do not go to these workers"),
        (["--", "--id", "Anna"], "do not go to these workers"),
        (["--", "--queue", "x"], "--queue goes before the --"),
        (["--", "--concurrency", "0"], "--concurrency='0'"),
        (["--", "--handlers", "no_such_module"], "no worker comes up, for the reason that it gave"),
    ],
)
def test_wrong_use_is_explained(bench: Bench, flags: list[str], words: str) -> None:
    scaler = bench.start(SCRIPT, *flags)
    assert scaler.wait() == 2, scaler.describe()
    assert words in scaler.stderr
    assert "Traceback" not in scaler.stderr


def test_a_broker_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    forwarder_port = free_port()
    scaler = bench.start(SCRIPT, "--min", "1", RABBITMQ_URL=f"amqp://127.0.0.1:{forwarder_port}/")
    until(lambda: "no broker at" in scaler.stderr, "the worker to say so")
    scaler.signal(signal.SIGTERM)
    assert scaler.wait() == 0
    wrong = bench.url.replace("guest:guest", "nobody:wrong")
    refused = bench.start(SCRIPT, RABBITMQ_URL=wrong)
    assert refused.wait() == 3
    assert "Traceback" not in refused.stderr
