"""scripts/dead_letters.py: looks, sends back, deletes; and loses nothing when it is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
from lab.forwarder import Forwarder
from lab.nodes import ROOT
from lab.waiting import until
from pika import BasicProperties
from programs import Bench
from test_faults import unacknowledged

SCRIPT = "scripts/dead_letters.py"


def call(bench: Bench, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / SCRIPT), *arguments],
        env=bench.environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def bury(bench: Bench, count: int) -> None:
    """Makes `count` tasks dead, put there as a worker would."""
    call(bench, "list")  # declares the queues
    with bench.broker.channel() as channel:
        channel.confirm_delivery()
        for number in range(1, count + 1):
            headers = {"x-error": f"no luck {number}", "x-error-type": "RuntimeError", "x-worker": "Worker-1"}
            headers |= {"x-failed-at": "2026-01-02T03:04:05+00:00", "x-attempts": 4, "mine": 7}  # type: ignore[dict-item]
            body = json.dumps({"id": number, "task": f"Task {number}", "difficulty": 0}).encode()
            properties = BasicProperties(message_id=f"m-{number}", headers=headers)
            assert channel.publish_and_wait(bench.dead, body, properties) == "confirmed"


def test_list_says_what_why_who_and_when(bench: Bench) -> None:
    bury(bench, 2)
    bench.publish(b"\x1b[2J\xff", queue=bench.dead)
    result = call(bench, "list")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "m-1  Task 1 (id: 1, difficulty: 0)\n"
        "    RuntimeError: no luck 1\n"
        "    Worker-1, 2026-01-02T03:04:05+00:00, attempts: 4\n"
        "m-2  Task 2 (id: 2, difficulty: 0)\n"
        "    RuntimeError: no luck 2\n"
        "    Worker-1, 2026-01-02T03:04:05+00:00, attempts: 4\n"
        "@3  5 bytes that are no task\n"
        "    unknown: unknown\n"
        "    unknown, unknown, attempts: unknown\n"
        f"3 dead in {bench.dead}\n"
    )
    until(lambda: bench.ready(bench.dead) == 3, "all of them to be back")


def test_show_prints_a_body_that_cannot_harm_a_terminal(bench: Bench) -> None:
    bury(bench, 1)
    bench.publish(json.dumps({"id": 1, "task": "\x1b[2J\u202e", "x": [1]}).encode(), queue=bench.dead)
    bench.publish(b"\x1b]0;owned\x07\xff\r\nline", queue=bench.dead)
    assert '"task": "Task 1"' in call(bench, "show", "m-1").stdout
    assert "x-error: no luck 1" in call(bench, "show", "m-1").stdout
    for position in ("@2", "#3"):
        shown = call(bench, "show", position).stdout
        assert shown
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    missing = call(bench, "show", "m-9")
    assert missing.returncode == 1
    assert "no task 'm-9'" in missing.stderr
    until(lambda: bench.ready(bench.dead) == 3, "all of them to be back")


def test_replay_sends_back_to_work_with_a_new_count_of_attempts(bench: Bench) -> None:
    bury(bench, 3)
    result = call(bench, "replay", "--id", "m-2")
    assert (result.returncode, result.stdout) == (0, "Replayed: Task 2 (id: 2, difficulty: 0)\n1 replayed\n")
    ((properties, body),) = bench.take_all()
    assert json.loads(body) == {"id": 2, "task": "Task 2", "difficulty": 0}
    assert properties.message_id == "m-2"
    assert properties.headers == {"mine": 7, "x-replays": 1}
    assert properties.delivery_mode == 2
    until(lambda: bench.ready(bench.dead) == 2, "the others to be back")
    assert call(bench, "replay", "--all").stdout.endswith("2 replayed\n")
    assert (bench.ready(), bench.ready(bench.dead)) == (2, 0)
    assert call(bench, "replay", "--id", "m-2").returncode == 1


def test_a_replayed_task_that_fails_again_is_dead_again(bench: Bench) -> None:
    worker = bench.handling("fail")
    bench.send("--task", "x", "--difficulty", "0", "--quiet")
    until(lambda: bench.ready(bench.dead) == 1, "the dead task")
    assert "1 replayed" in call(bench, "replay", "--all").stdout
    ((properties, _),) = bench.take_dead(1)
    assert properties.headers
    assert properties.headers["x-attempts"] == 3
    assert [event["attempt"] for event in worker.events("task_started")] == [1, 2, 3, 1, 2, 3]


def test_purge_asks_or_takes_yes(bench: Bench) -> None:
    bury(bench, 2)
    refused = call(bench, "purge")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    until(lambda: bench.ready(bench.dead) == 2, "both to be back")
    assert call(bench, "purge", "--yes").stdout == "2 deleted\n"
    assert bench.ready(bench.dead) == 0
    assert call(bench, "purge").stdout == "0 deleted\n"


def test_purge_believes_only_a_yes(bench: Bench) -> None:
    bury(bench, 1)
    for answer, left in ((b"n\n", 1), (b"\n", 1), (b"y\n", 0)):
        parent, child = os.openpty()
        purge = bench.launch(SCRIPT, ["purge"], {}, stdin=child)
        os.close(child)
        until(lambda purge=purge: "for good?" in purge.stdout, "the question")  # type: ignore[misc]
        os.write(parent, answer)
        purge.wait()
        os.close(parent)
        until(lambda left=left: bench.ready(bench.dead) == left, f"{left} left")  # type: ignore[misc]


def test_replay_into_a_full_queue_keeps_the_task(bench: Bench) -> None:
    bury(bench, 2)
    with bench.broker.channel() as channel:
        channel.queue_delete(bench.queue)
        channel.queue_declare(bench.queue, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    result = call(bench, "replay", "--all", QUEUE_TYPE="existing")
    assert result.returncode == 1
    assert "it stays dead" in result.stderr
    until(lambda: bench.ready(bench.dead) == 2, "both to be dead still")


def test_replay_into_no_queue_keeps_the_task(bench: Bench) -> None:
    bury(bench, 2)
    with bench.broker.channel() as channel:
        channel.queue_delete(bench.queue)
    result = call(bench, "replay", "--all", QUEUE_TYPE="existing")
    assert result.returncode == 1
    until(lambda: bench.ready(bench.dead) == 2, "both to be dead still")


def test_a_replayed_task_that_this_worker_acknowledged_before_runs(breakable: Bench, link: Forwarder) -> None:
    worker = breakable.handling("reject")
    breakable.send("--task", "x", "--difficulty", "0", "--quiet", RABBITMQ_URL=breakable.broker.url)
    worker.wait_for("task_dead")
    until(lambda: unacknowledged(breakable) == 0, "the acknowledgement to arrive")
    link.reset()  # the worker now remembers what it has acknowledged, for it might come again
    worker.wait_for("worker_ready", 2)
    with breakable.broker.channel() as channel:  # another worker gets the replayed task, and dies with it
        taken: list[bool] = []
        channel.basic_consume(breakable.queue, lambda *_: taken.append(True), arguments={"x-priority": 10})
        assert "1 replayed" in call(breakable, "replay", "--all").stdout
        until(lambda: taken, "the other worker to get the task")
    worker.wait_for("task_dead", 2)


@pytest.mark.parametrize("moment", [1, 20, 100, 150])
def test_replay_killed_at_any_moment_loses_nothing(bench: Bench, moment: int) -> None:
    """Once a task has been in both queues at most, never in none."""
    bury(bench, 200)
    replay = bench.launch(SCRIPT, ["replay", "--all"], {})
    until(lambda: replay.stdout.count("Replayed") >= moment, f"{moment} replayed")
    replay.signal(signal.SIGKILL)
    replay.wait()
    until(lambda: bench.ready(bench.dead) + bench.ready() >= 200, "all to be in one of the queues")
    found = Counter(json.loads(body)["id"] for queue in (bench.queue, bench.dead) for _, body in bench.take_all(queue))
    assert set(found) == set(range(1, 201))
    assert sum(found.values()) <= 201


@pytest.mark.parametrize("arguments", [[], ["bury"], ["show"], ["replay"], ["replay", "--all", "--id", "x"]])
def test_wrong_use(bench: Bench, arguments: list[str]) -> None:
    assert call(bench, *arguments).returncode == 2
