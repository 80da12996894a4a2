"""How to test work that can be broken off, without a broker: break it off everywhere, and compare the tables.

pytest examples/test_etl.py
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from examples import etl
from tasks import Attempt, PutDown, Reject, Task

MAKE_SALES = Path(__file__).with_name("make_sales.py")
TABLES = ("sales", "revenue", "refused", "loads")


@pytest.fixture(scope="session")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sales") / "sales.csv"
    with path.open("wb") as file:
        subprocess.run([sys.executable, str(MAKE_SALES), "--rows", "1000"], stdout=file, check=True)
    return path


@pytest.fixture
def task(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(etl, "BATCH", 100)
    return Task(1, "Load sales", 5, {"csv": str(csv), "database": str(tmp_path / "sales.db")})


def tables(task: Task) -> dict[str, list[Any]]:
    """All that is in the database, in the order in which it came in."""
    with closing(sqlite3.connect((task.payload or {})["database"])) as database:
        return {table: database.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in TABLES}


@pytest.fixture
def undisturbed(task: Task, tmp_path: Path) -> dict[str, list[Any]]:
    elsewhere = Task(2, "Load sales", 5, {**(task.payload or {}), "database": str(tmp_path / "undisturbed.db")})
    etl.load(elsewhere, Attempt())
    return tables(elsewhere)


def test_every_row_is_loaded_or_refused(undisturbed: dict[str, list[Any]]) -> None:
    assert len(undisturbed["sales"]) + len(undisturbed["refused"]) == 1000
    assert undisturbed["refused"]
    assert sum(cents for _, cents in undisturbed["revenue"]) == sum(sale[-1] for sale in undisturbed["sales"])


def test_a_second_time_changes_nothing(task: Task, undisturbed: dict[str, list[Any]]) -> None:
    for number in (1, 2):
        etl.load(task, Attempt(number))
    assert tables(task) == undisturbed


def test_stopped_after_every_batch(task: Task, undisturbed: dict[str, list[Any]]) -> None:
    def stop_after_one() -> Attempt:
        asked: Iterator[int] = count()
        return Attempt(told_to_stop=lambda: next(asked) > 0)

    for _ in range(9):
        with pytest.raises(PutDown):
            etl.load(task, stop_after_one())
    etl.load(task, stop_after_one())  # the tenth batch is the last one
    assert tables(task) == undisturbed


@pytest.mark.parametrize("change", ["INSERT ON sales", "UPDATE ON revenue", "INSERT ON refused", "UPDATE ON loads"])
def test_broken_off_in_the_middle_of_a_batch(task: Task, undisturbed: dict[str, list[Any]], change: str) -> None:
    """Whichever of its statements is the last one to be run."""
    with closing(etl.connect((task.payload or {})["database"])) as database:
        in_the_second = "WHEN (SELECT count(*) FROM sales) > 110"
        database.execute(f"CREATE TRIGGER cut AFTER {change} {in_the_second} BEGIN SELECT RAISE(ABORT, 'cut'); END")
        with pytest.raises(sqlite3.IntegrityError, match="cut"):
            etl.load(task, Attempt())
        database.execute("DROP TRIGGER cut")
    etl.load(task, Attempt(2))
    assert tables(task) == undisturbed


def test_progress_is_told_in_percent(task: Task) -> None:
    told: list[float] = []
    etl.load(task, Attempt(progress=lambda done, total: told.append(done / total)))
    assert len(told) == 10
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_file_that_has_changed_is_not_mixed_with_what_it_was(task: Task, tmp_path: Path) -> None:
    etl.load(task, Attempt())
    changed = tmp_path / "sales.csv"
    changed.write_bytes(Path((task.payload or {})["csv"]).read_bytes() + b"1,2026-11-01,TEA-01,1,1.00,\n")
    with pytest.raises(Reject, match="bytes when it was first loaded"):
        etl.load(Task(1, "Load sales", 5, {**(task.payload or {}), "csv": str(changed)}), Attempt())


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_another_file_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.csv").write_text(text)
    for name in ("other.csv", "missing.csv"):
        payload = {"csv": str(tmp_path / name), "database": str(tmp_path / "sales.db")}
        with pytest.raises(Reject):
            etl.load(Task(1, "Load sales", 5, payload), Attempt())


def test_a_row_is_made_clean() -> None:
    assert etl.sale(["7", "2026-11-27", " tea-01 ", "3", "4,50", "gift"]) == (7, "2026-11-27", "TEA-01", 3, 1350)


@pytest.mark.parametrize(
    "row",
    [
        ["7"],
        ["7", "2026-11-31", "TEA-01", "3", "4,50", ""],
        ["7", "2026-11-27", "TEA-01", "0", "4,50", ""],
        ["7", "2026-11-27", "TEA-01", "", "4,50", ""],
        ["7", "2026-11-27", "TEA-01", "3", "NaN", ""],
        ["7", "2026-11-27", "TEA-01", "3", "Infinity", ""],
        ["7", "2026-11-27", "TEA-01", "3", "-1", ""],
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        etl.sale(row)
