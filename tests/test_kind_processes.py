"""Handlers that fork, threads that die, and standard streams in every state: nothing is lost, and no worker hangs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lab.waiting import until
from programs import Bench, Program

HANDLERS = "tests/handlers_processes.py"


def start(bench: Bench, handler: str, *arguments: str, **settings: str) -> Program:
    """A worker that is consuming."""
    worker = bench.start(HANDLERS, handler, *arguments, **settings)
    worker.wait_for("worker_ready")
    return worker


def put(bench: Bench, *names: str, difficulty: float = 0) -> None:
    for name in names:
        task = {"id": name, "task": name, "difficulty": difficulty}
        bench.publish_as_sender(json.dumps(task).encode())


def runs(bench: Bench) -> Counter[str]:
    path = bench.folder / "runs"
    return Counter(path.read_text().splitlines() if path.exists() else [])


def outcomes(worker: Program) -> dict[str, str]:
    found = worker.events("task_completed") + worker.events("task_retried") + worker.events("task_dead")
    return {str(event["id"]): f"{event['event']} {event.get('error', '')}".strip() for event in found}


def stop(worker: Program, seconds: float = 8.0) -> int:
    worker.signal(signal.SIGTERM)
    return worker.wait(seconds)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


METHODS = ("fork", "spawn", "forkserver")
FORKS = ("_exit", "sys.exit", "sys.exit with words", "sys.exit without", "return", "raise", "SIGTERM", "raise_signal")


def test_a_handler_may_use_processes_as_in_plain_python(bench: Bench) -> None:
    names = [
        *(f"{what}:{method}" for what in ("process", "pool", "executor", "manager") for method in METHODS),
        *(f"fork:{end}" for end in FORKS),
        "subprocess:close",
        "subprocess:leave open",
        "interrupt:",
        "fork_in_a_thread:",
        "progress_in_a_child:",
    ]
    put(bench, *names)
    worker = start(bench, "use_processes", "--concurrency", "3", "--burst", RETRY_DELAYS="")
    assert worker.wait(60) == 0, worker.describe()
    assert outcomes(worker) == {name: "task_completed" for name in names}
    assert runs(bench) == Counter(names)
    assert "left running" not in worker.stderr


ASYNCHRONOUS = (
    "asynchronous",
    "asynchronous_generator",
    "asynchronous_object",
    "asynchronous_method",
    "asynchronous_static",
    "partial",
    "partial_of_partial",
    "partial_of_object",
)
NO_HANDLERS = (
    *ASYNCHRONOUS, "generator", "a_class", "not_callable", "a_module", "takes_one", "takes_three"
)  # fmt: skip


def test_what_is_no_handler_is_refused_at_start(bench: Bench) -> None:
    put(bench, "untouched")
    workers = [bench.start(HANDLERS, name) for name in NO_HANDLERS]
    for name, worker in zip(NO_HANDLERS, workers, strict=True):
        assert worker.wait(30) == 2, worker.describe()
        (line,) = worker.stderr.splitlines()
        assert line.startswith("worker.py: ") and "cannot be a handler" in line
        assert ("event loop" in line) == (name in ASYNCHRONOUS)
        assert not worker.stdout
    assert bench.ready() == 1


def test_work_that_a_handler_returns_undone_is_not_done(bench: Bench) -> None:
    names = ["coroutine", "generator", "async generator"]
    put(bench, *names)
    worker = start(bench, "returns_coroutine", "--burst", RETRY_DELAYS="")
    assert worker.wait() == 0
    assert all("task_dead the handler returned" in outcome for outcome in outcomes(worker).values())
    assert len(bench.take_dead(3)) == 3
    assert "never awaited" not in worker.stderr
