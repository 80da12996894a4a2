"""scripts/workers.sh: their number changes while they run, and none is left that nobody owns."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench, Program

SCRIPT = "scripts/workers.sh"


def workers_of(owner: Program) -> list[psutil.Process]:
    """The oldest first."""
    children = psutil.Process(owner.process.pid).children()
    found = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            if any(word.endswith("leashed.py") for word in child.cmdline()):
                found.append(child)
    return sorted(found, key=lambda child: child.create_time())


def call(bench: Bench, *arguments: str, code: int = 0) -> str:
    """As from another terminal; returns what it prints."""
    program = bench.start(SCRIPT, *arguments)
    assert program.wait() == code, program.describe()
    return program.stdout + program.stderr


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def at_work(bench: Bench, count: int, seconds: str = "1.5") -> Program:
    """So many workers, each of them with a task."""
    owner = bench.start(SCRIPT, str(count), SECONDS_PER_DIFFICULTY=seconds)
    owner.wait_for("worker_ready", count)
    bench.send("--count", str(count), "--max-difficulty", "1", "--quiet")
    owner.wait_for("task_started", count)
    return owner


def assert_done_once(owner: Program, count: int) -> None:
    """All tasks were completed, and none had been begun before."""
    assert len(owner.events("task_completed")) == count
    assert not any(event["redelivered"] for event in owner.events("task_started"))


def test_workers_that_are_not_yet_up_may_be_drained_too(bench: Bench) -> None:
    owner = bench.start(SCRIPT, "4")
    until(lambda: workers_of(owner), "a first process")
    owner.signal(signal.SIGTERM)
    assert owner.wait() == 0, owner.describe()


def test_called_again_it_adds_workers_and_drains_the_newest(bench: Bench) -> None:
    owner = bench.start(SCRIPT, "1", SECONDS_PER_DIFFICULTY="1.5")
    owner.wait_for("worker_ready")
    (oldest,) = workers_of(owner)
    assert f"1 workers of {bench.queue} were wanted" in call(bench, "4")
    owner.wait_for("worker_ready", 4)
    bench.send("--count", "4", "--max-difficulty", "1", "--quiet")
    owner.wait_for("task_started", 4)
    call(bench, "1")
    owner.wait_for("worker_stopped", 3)
    until(lambda: workers_of(owner) == [oldest], "three to leave")
    assert_done_once(owner, 4)
    call(bench, "0")
    assert owner.wait() == 0
    assert len(owner.events("worker_stopped")) == 4


def test_killed_in_mid_task_it_leaves_no_worker_and_no_task_is_run_twice(bench: Bench) -> None:
    owner = at_work(bench, 3)
    workers = workers_of(owner)
    owner.process.kill()
    until(lambda: all(map(is_gone, workers)), "the workers to drain")
    assert owner.stderr.count("whoever has started this worker is gone") == 3
    assert_done_once(owner, 3)
    assert bench.start(SCRIPT, "1").wait_for("worker_ready")  # what it has left is in nobody's way


def test_killed_while_its_workers_drain_it_does_not_hurry_them(bench: Bench) -> None:
    owner = at_work(bench, 2, seconds="5")
    workers = workers_of(owner)
    owner.signal(signal.SIGTERM)
    until(lambda: owner.stderr.count("stopping when what runs is done") == 2, "the workers to be told")
    assert "are stopping" in call(bench, "5", code=1)
    owner.process.kill()
    until(lambda: all(map(is_gone, workers)), "the workers to drain")
    assert_done_once(owner, 2)


def test_a_signal_to_it_and_to_its_group_is_one(bench: Bench) -> None:
    """As timeout(1) sends it."""
    bench.send("--count", "2", "--max-difficulty", "1", "--quiet")
    owner = bench.launch(SCRIPT, ["2"], {"SECONDS_PER_DIFFICULTY": "1.5"}, start_new_session=True)
    owner.wait_for("task_started", 2)
    owner.signal(signal.SIGTERM)
    time.sleep(0.03)  # more than what the workers themselves take for one
    os.killpg(owner.process.pid, signal.SIGTERM)
    assert owner.wait() == 0
    assert_done_once(owner, 2)


def test_a_second_signal_gives_back_what_runs(bench: Bench) -> None:
    owner = at_work(bench, 2, seconds="60")
    owner.signal(signal.SIGINT)
    until(lambda: owner.stderr.count("stopping when what runs is done") == 2, "the workers to be told")
    time.sleep(0.3)  # a person's second Ctrl-C
    owner.signal(signal.SIGINT)
    assert owner.wait() == 1
    assert until(lambda: bench.ready() == 2, "the tasks to be back")


def test_several_calls_at_once_make_one_crew(bench: Bench, tmp_path: Path) -> None:
    """Through a link, from elsewhere."""
    (tmp_path / "linked").symlink_to(ROOT / SCRIPT)
    environment = bench.environment()
    calls = [Program([str(tmp_path / "linked"), "2"], tmp_path, environment) for _ in range(4)]
    bench.programs += calls
    until(lambda: sum(each.process.poll() is not None for each in calls) == 3, "three of them to end")
    (owner,) = (each for each in calls if each.process.poll() is None)
    assert all(each.process.returncode == 0 for each in calls if each is not owner)
    owner.wait_for("worker_ready", 2)
    assert len(workers_of(owner)) == 2
    owner.signal(signal.SIGTERM)
    assert owner.wait() == 0


def test_each_queue_has_a_crew_of_its_own(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    owners = [bench.start(SCRIPT, "1"), bench.start(SCRIPT, "1", "--queue", other)]
    for owner in owners:
        assert owner.wait_for("worker_ready")[0]["queue"] == (other if owner is owners[1] else bench.queue)
    call(bench, "2", "--queue", other)
    owners[1].wait_for("worker_ready", 2)
    for owner in owners:
        owner.signal(signal.SIGTERM)
        assert owner.wait() == 0
    assert len(owners[0].events("worker_ready")) == 1
    with bench.broker.channel() as channel:
        for name in (other, f"{other}.dead", f"{other}.retry.0.2s", f"{other}.retry.0.4s"):
            channel.queue_delete(name)


def test_interrupted_at_any_moment_it_leaves_nothing(bench: Bench) -> None:
    """As timeout(1) does it: to the process and to its group; and kill -9 as well."""

    def leashed() -> set[int]:
        mark = f"TASK_QUEUE={bench.queue}"
        listed = subprocess.run(["ps", "axeww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        return {int(line.split()[0]) for line in listed.splitlines() if mark in line and "leashed.py" in line}

    for moment in range(10):
        queue = f"{bench.queue}.{moment}"  # none waits for another
        owner = bench.launch(SCRIPT, ["4"], {"TASK_QUEUE": queue}, start_new_session=True)
        with suppress(subprocess.TimeoutExpired):
            owner.process.wait(0.1 + 0.13 * moment)
        with suppress(ProcessLookupError):
            if moment % 3 == 2:
                owner.process.kill()
            else:
                owner.signal(signal.SIGTERM)
                os.killpg(owner.process.pid, signal.SIGTERM)
    for owner in bench.programs:
        owner.wait()
        assert "line" not in owner.stderr  # no error of the shell
    until(lambda: not leashed(), "all workers to end")
    with bench.broker.channel() as channel:
        for moment in range(10):
            for end in ("", ".dead", ".retry.0.2s", ".retry.0.4s"):
                channel.queue_delete(f"{bench.queue}.{moment}{end}")


def test_when_all_workers_have_ended_it_does_too(bench: Bench) -> None:
    bench.send("--count", "6", "--max-difficulty", "0", "--quiet")
    owner = bench.start(SCRIPT, "2", "--burst")
    assert owner.wait() == 0
    assert_done_once(owner, 6)
    assert bench.start(SCRIPT, "2", "--handlers", "no_such_module").wait() == 2


def test_a_wrong_flag_is_the_workers_to_explain(bench: Bench) -> None:
    assert "unrecognized arguments: --wrong" in call(bench, "2", "--wrong", code=2)
    assert "--concurrency='x'" in call(bench, "2", "--concurrency", "x", code=2)
    assert "usage: worker.py" in call(bench, "2", "--help")
    assert "no workers of" in call(bench, "0", code=2)


@pytest.mark.alone
def test_twenty_workers_consume_in_five_seconds(bench: Bench) -> None:
    began = time.monotonic()
    owner = bench.start(SCRIPT, "20")
    owner.wait_for("worker_ready", 20)
    took = time.monotonic() - began
    with bench.broker.channel() as channel:
        assert channel.queue_declare(bench.queue, passive=True).consumer_count == 20
    owner.signal(signal.SIGTERM)
    assert owner.wait() == 0
    assert took < 5, took
    print(f"twenty workers: {took:.2f} s")
