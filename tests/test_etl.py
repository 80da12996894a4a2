"""examples/etl.py under a real broker: killed, stopped, and delivered twice, it loads what an undisturbed run does."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench, Program

from examples import etl
from tasks import Attempt, Task

ROWS = 20_000


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("etl") / "sales.csv"
    with path.open("wb") as file:
        command = [sys.executable, str(ROOT / "examples/make_sales.py"), "--rows", str(ROWS)]
        subprocess.run(command, stdout=file, check=True)
    return path


def tables(path: Path, order: str = "rowid") -> dict[str, list[Any]]:
    names = ("sales", "revenue", "refused", "loads")
    with closing(sqlite3.connect(path)) as database:
        return {name: database.execute(f"SELECT * FROM {name} ORDER BY {order}").fetchall() for name in names}


@pytest.fixture(scope="module")
def undisturbed(csv: Path) -> Path:
    database = csv.with_name("undisturbed.db")
    etl.load(Task(1, "Load sales", 5, {"csv": str(csv), "database": str(database)}), Attempt())
    return database


def send(bench: Bench, csv: Path, pause: float = 0.0) -> None:
    payload = json.dumps({"csv": str(csv), "database": "sales.db", "pause": pause})
    bench.send("--task", "Load sales", "--difficulty", "5", "--payload", payload, "--quiet")


def worker(bench: Bench, *flags: str) -> Program:
    """From the project's own folder its modules are found; the database is in the test's folder."""
    settings = {"RETRY_DELAYS": "", "PYTHONPATH": str(ROOT)}  # no second attempt
    return bench.start("worker.py", "--handlers", "examples.etl", *flags, **settings)


def test_killed_and_stopped_halfway_it_goes_on_where_it_was(bench: Bench, csv: Path, undisturbed: Path) -> None:
    send(bench, csv, pause=0.1)
    reached = 0.0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        halfway = worker(bench)
        progress = halfway.wait_for("task_progress", 3)
        halfway.signal(number)
        assert halfway.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: bench.ready() == 1, "the task to be back")
        assert progress[0]["done"] > reached, "goes on, and does not begin again"
        assert progress[0]["attempt"] == 1
        reached = progress[-1]["done"]
        assert ("put down, and given back" in halfway.stderr) == (number == signal.SIGTERM)
    last = worker(bench, "--burst")
    assert last.wait() == 0, last.describe()
    assert last.events("task_progress")[0]["done"] > reached
    assert len(last.events("task_completed")) == 1
    assert bench.ready(bench.dead) == 0
    assert tables(bench.folder / "sales.db") == tables(undisturbed)


def test_two_workers_at_the_same_file_load_each_row_once(bench: Bench, csv: Path, undisturbed: Path) -> None:
    """As after a broken link, when the first one still runs."""
    for _ in range(2):
        send(bench, csv, pause=0.02)
    both = [worker(bench, "--burst") for _ in range(2)]
    assert [program.wait() for program in both] == [0, 0]
    assert all(program.events("task_progress") for program in both)
    assert tables(bench.folder / "sales.db") == tables(undisturbed)
