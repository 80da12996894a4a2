"""examples/product_sync.py under a real broker, against a service that is slow, busy, silent, or has no such thing."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench, Program

from examples.product_server import ProductServer

ENDS = ("task_started", "task_completed")


@pytest.fixture
def server() -> Iterator[ProductServer]:
    with ProductServer() as server:
        yield server


def send(bench: Bench, products: Iterable[int]) -> None:
    tasks = [{"id": n, "task": "Sync product", "difficulty": 1, "payload": {"product": n}} for n in products]
    (bench.folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    bench.send("--file", "tasks.jsonl", "--quiet")


def worker(bench: Bench, server: ProductServer, *flags: str, patience: float = 0.5) -> Program:
    settings = {"PRODUCT_API": server.url, "PRODUCT_SILENCE_SECONDS": str(patience), "PYTHONPATH": str(ROOT)}
    return bench.start("worker.py", "--handlers", "examples.product_sync", *flags, **settings)


def synced(bench: Bench) -> list[Any]:
    with closing(sqlite3.connect(bench.folder / "products.db")) as database:
        return [number for (number,) in database.execute("SELECT id FROM products ORDER BY id")]


def test_what_may_pass_is_tried_again_and_what_will_not_is_dead(bench: Bench, server: ProductServer) -> None:
    server.troubles = {
        "/products/1": ["busy"],
        "/products/2": ["hang"],
        "/products/3": ["trickle"],
        "/products/4": ["busy"] * 9,
    }
    send(bench, [1, 2, 3, 4, 5, 2000])
    found = worker(bench, server, "--concurrency", "10")
    dead = {json.loads(body)["id"]: properties.headers or {} for properties, body in bench.take_dead(2)}
    done = {event["id"]: event["attempt"] for event in found.wait_for("task_completed", 4)}
    assert done == {1: 2, 2: 2, 3: 2, 5: 1}
    assert {number: headers["x-attempts"] for number, headers in dead.items()} == {4: 3, 2000: 1}
    assert dead[4]["x-error"] == "/products/4: 503"
    assert dead[2000]["x-error-type"] == "Reject"
    assert synced(bench) == [1, 2, 3, 5]


def test_workers_that_are_killed_and_stopped_leave_no_product_out(bench: Bench, server: ProductServer) -> None:
    server.latency = 0.05
    server.troubles = {"/products/15": ["hang"]}  # so that whoever is killed has it in hand
    send(bench, range(1, 101))
    for number in (signal.SIGKILL, signal.SIGTERM):
        found = worker(bench, server, "--concurrency", "10", patience=30)
        until(lambda: "/products/15" in server.requests, "the product that hangs")
        found.wait_for("task_completed", 10)
        found.signal(number)
        assert found.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    until(lambda: bench.ready() > 0, "what the killed worker held to be back")
    assert worker(bench, server, "--concurrency", "10", "--burst").wait() == 0
    assert synced(bench) == list(range(1, 101))
    assert bench.ready(bench.dead) == 0
    assert server.requests.count("/products/15") == 2, "nobody was killed in the middle of a task"


@pytest.mark.alone
def test_ten_at_once_are_at_least_five_times_faster(bench: Bench, server: ProductServer) -> None:
    server.latency = 0.1
    seconds = {concurrency: sync_time(bench, server, concurrency) for concurrency in (10, 1)}
    assert seconds[1] > 5 * seconds[10], seconds


def sync_time(bench: Bench, server: ProductServer, concurrency: int) -> float:
    """From the first task's begin to the last one's end."""
    send(bench, range(1, 41))
    found = worker(bench, server, "--concurrency", str(concurrency), "--burst")
    assert found.wait(60) == 0, found.describe()
    assert len(found.events("task_completed")) == 40
    times = [datetime.fromisoformat(event["time"]) for name in ENDS for event in found.events(name)]
    return (max(times) - min(times)).total_seconds()
