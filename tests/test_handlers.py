"""Own work by --handlers: every outcome, and every module that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lab.waiting import until
from programs import Bench

OWN_WORK = """
from tasks import Attempt, Reject, Task, handles

@handles("Generate invoice")
def invoice(task: Task, attempt: Attempt) -> None:
    how = (task.payload or {}).get("how")
    attempt.progress(1, 4)
    print(f"attempt {attempt.number} {attempt.message_id} {attempt.redelivered} {attempt.stopping}", flush=True)
    if how == "reject":
        raise Reject("unpaid")
    if how == "fail" or (how == "fail once" and attempt.number == 1):
        raise RuntimeError("no ink")
"""


def own_work(bench: Bench, text: str = OWN_WORK, name: str = "own_work.py") -> None:
    (bench.folder / name).write_text(text)


def send(bench: Bench, how: str = "", task: str = "Generate invoice") -> None:
    bench.send("--task", task, "--difficulty", "0", "--payload", json.dumps({"how": how}), "--quiet")


def test_a_module_of_five_lines_does_own_work(bench: Bench) -> None:
    own_work(bench)
    for how in ("", "fail once", "fail", "reject"):
        send(bench, how)
    send(bench, task="Brew tea")
    worker = bench.start("worker.py", "--handlers", "own_work", LOG_FORMAT="text")
    until(lambda: bench.ready(bench.dead) == 3, "three dead tasks")
    until(lambda: worker.stdout.count("Task completed!") == 2, "two completed tasks")
    dead = {(p.headers or {})["x-error"]: (p.headers or {})["x-attempts"] for p, _ in bench.take_dead(3)}
    assert dead == {"no ink": 3, "unpaid": 1, "no handler for 'Brew tea'": 1}
    assert "Progress: [█   ] 1/4 (id: 1)\n" in worker.stdout
    message_ids = [line.split()[2] for line in worker.stdout.splitlines() if line.startswith("attempt ")]
    assert len(message_ids) == 1 + 2 + 3 + 1
    assert len(set(message_ids)) == 4, "each attempt at a task has the message id of the task"


def test_progress_is_an_event(bench: Bench) -> None:
    own_work(bench)
    send(bench)
    worker = bench.start("worker.py", "--handlers", "own_work", "--burst", LOG_FORMAT="json")
    assert worker.wait() == 0
    lines = [json.loads(line) for line in worker.stdout.splitlines() if line.startswith("{")]
    (progress,) = [line for line in lines if line["event"] == "task_progress"]
    assert (progress["done"], progress["total"], progress["id"]) == (1, 4, 1)


def test_several_modules_and_packages(bench: Bench) -> None:
    own_work(bench)
    (bench.folder / "more").mkdir()
    own_work(bench, OWN_WORK.replace("Generate invoice", "Brew tea"), "more/tea.py")
    send(bench)
    send(bench, task="Brew tea")
    worker = bench.start("worker.py", "--handlers", "own_work", "--handlers", "more.tea", "--burst", LOG_FORMAT="text")
    assert worker.wait() == 0
    assert worker.stdout.count("Task completed!") == 2


WRONG = {
    "missing": ("", "nowhere", "No module named 'nowhere'"),
    "a syntax error": ("def :", "own_work", "SyntaxError"),
    "one that raises": ("raise RuntimeError('no\\nway')", "own_work", "RuntimeError: no way"),
    "one that ends the program": ("import sys; sys.exit(7)", "own_work", "SystemExit"),
    "registers nothing": ("x = 1", "own_work", "registers no handler"),
    "a name twice": (OWN_WORK + OWN_WORK, "own_work", "'Generate invoice' has two handlers"),
    "an async def": (OWN_WORK.replace("def invoice", "async def invoice"), "own_work", "async def"),
    "a generator": (OWN_WORK.replace("attempt.progress", "yield attempt.progress"), "own_work", "generator"),
    "too few arguments": (OWN_WORK.replace("task: Task, attempt: Attempt", "task"), "own_work", "two arguments"),
    "one of ours": (OWN_WORK, "tasks", "is a module of this program"),
    "a submodule of ours": (OWN_WORK, "workqueue.hands", "is a module of this program"),
    "an empty name": (OWN_WORK, "", "cannot be imported"),
    "a file name": (OWN_WORK, "own_work.py", "cannot be imported"),
    "a path": (OWN_WORK, "./own_work", "cannot be imported"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_module_that_cannot_be_used_ends_the_worker_before_it_takes_a_task(bench: Bench, why: str) -> None:
    text, module, words = WRONG[why]
    own_work(bench, text)
    bench.publish(b'{"id": 1, "task": "Generate invoice", "difficulty": 0}')
    worker = bench.start("worker.py", "--handlers", module)
    assert worker.wait() == 2, worker.describe()
    assert words in worker.stderr
    assert worker.stderr.count("\n") == 1
    assert worker.stdout == ""
    assert bench.ready() == 1


def test_the_current_directory_comes_first(bench: Bench, tmp_path: Path) -> None:
    own_work(bench)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own_work.py").write_text("raise RuntimeError('the wrong one')")
    send(bench)
    worker = bench.start("worker.py", "--handlers", "own_work", "--burst", PYTHONPATH=str(elsewhere), LOG_FORMAT="text")
    assert worker.wait() == 0, worker.describe()
    os.unlink(bench.folder / "own_work.py")
    worker = bench.start("worker.py", "--handlers", "own_work", "--burst", PYTHONPATH=str(elsewhere))
    assert worker.wait() == 2
    assert "the wrong one" in worker.stderr


@pytest.mark.parametrize(
    ("payload", "attempts", "end"),
    [
        ({"fails": 1}, 2, "task_completed"),
        ({"fails": 2}, 3, "task_completed"),
        ({"fails": "always"}, 3, "task_dead"),
        ({"rejects": True}, 1, "task_dead"),
        ({"fails": 0}, 1, "task_completed"),
        ({"fails": "sometimes"}, 1, "task_completed"),
    ],
)
def test_the_simulated_work_does_as_its_payload_says(
    bench: Bench, payload: dict[str, object], attempts: int, end: str
) -> None:
    worker = bench.worker()
    bench.send("--task", "x", "--difficulty", "0", "--payload", json.dumps(payload), "--quiet")
    worker.wait_for(end)
    assert len(worker.events("task_started")) == attempts
