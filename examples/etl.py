"""A long task that can be broken off anywhere: loads the sales of a CSV file into a database.

    python examples/make_sales.py >sales.csv
    python sender.py --task "Load sales" --difficulty 5 --payload '{"csv": "sales.csv", "database": "sales.db"}'
    python worker.py --handlers examples.etl

A batch of rows, and the position in the file up to which it reaches, are one transaction. So whoever is given the task
next goes on where the last batch ended, whatever has ended the worker before, and no row is loaded twice.
"""

import csv
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tasks import Attempt, PutDown, Reject, Task, handles

BATCH = 1000  # rows: what a killed worker has done in vain, at most, and what one that stops still does
COLUMNS = ["order", "day", "product", "quantity", "price", "note"]
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS loads (file PRIMARY KEY, size INTEGER, position INTEGER)",
    'CREATE TABLE IF NOT EXISTS sales ("order" INTEGER, day TEXT, product TEXT, quantity INTEGER, cents INTEGER)',
    "CREATE TABLE IF NOT EXISTS revenue (day TEXT PRIMARY KEY, cents INTEGER)",
    "CREATE TABLE IF NOT EXISTS refused (line TEXT, why TEXT)",
)
Sale = tuple[int, str, str, int, int]


@handles("Load sales")
def load(task: Task, attempt: Attempt) -> None:
    payload = task.payload or {}
    path, pause = Path(payload.get("csv", "")), payload.get("pause", 0)
    if not path.is_file():
        raise Reject(f"there is no file {str(path)!r}")
    with path.open("rb") as file, closing(connect(payload.get("database", "sales.db"))) as database:
        size = path.stat().st_size
        position = begin(database, path.name, size, first_row(file))
        while position < size:
            if attempt.stopping:
                raise PutDown(f"{position} of {size} bytes of {path} are loaded")
            position = load_batch(database, path.name, file)
            attempt.progress(round(100 * position / size), 100)
            time.sleep(pause)  # seconds, to watch it


def connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, isolation_level=None)  # None: a transaction begins where we say so
    with transaction(database):
        for statement in SCHEMA:
            database.execute(statement)
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; alone, so that what is read in it is still so when it ends."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        yield


# Extract


def rows(file: BinaryIO) -> Iterator[list[str]]:
    """The rows from where the file stands. After each of them, the file stands behind it: no line is read ahead."""
    return csv.reader(line.decode() for line in iter(file.readline, b""))


def first_row(file: BinaryIO) -> int:
    """Where it begins, behind the heading."""
    if next(rows(file), None) != COLUMNS:
        raise Reject(f"the columns are not {','.join(COLUMNS)}")
    return file.tell()


# Transform


def sale(row: list[str]) -> Sale:
    """Raises ValueError for a row that cannot be used; the message says why."""
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} columns")
    order, day, product, quantity, price, _ = (text.strip() for text in row)
    try:
        cents = int(Decimal(price.replace(",", ".")) * 100)
        pieces = int(quantity)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"quantity {quantity!r}, price {price!r}") from None
    if pieces < 1 or cents < 0:
        raise ValueError(f"quantity {quantity!r}, price {price!r}")
    return int(order), date.fromisoformat(day).isoformat(), product.upper(), pieces, pieces * cents


# Load


def begin(database: sqlite3.Connection, name: str, size: int, start: int) -> int:
    """The position to go on from: `start`, if nobody was here before. A file is known by its name."""
    with transaction(database):
        database.execute("INSERT OR IGNORE INTO loads VALUES (?, ?, ?)", [name, size, start])
        known, position = database.execute("SELECT size, position FROM loads WHERE file = ?", [name]).fetchone()
    if known != size:
        raise Reject(f"{name} had {known} bytes when it was first loaded, and has {size} now")
    return int(position)


def load_batch(database: sqlite3.Connection, name: str, file: BinaryIO) -> int:
    """Loads the next rows, and returns the position behind them.

    Which ones are next is asked in the transaction that moves the position: of two workers that have the same task, as
    after a broken link, each loads what the other one has not.
    """
    with transaction(database):
        (position,) = database.execute("SELECT position FROM loads WHERE file = ?", [name]).fetchone()
        file.seek(position)
        for row in islice(rows(file), BATCH):
            try:
                load_sale(database, sale(row))
            except (ValueError, OverflowError) as error:  # a number can be too large for the database, too
                database.execute("INSERT INTO refused VALUES (?, ?)", [",".join(row), str(error)])
        database.execute("UPDATE loads SET position = ? WHERE file = ?", [file.tell(), name])
    return file.tell()


def load_sale(database: sqlite3.Connection, sold: Sale) -> None:
    _, day, _, _, cents = sold
    added = "ON CONFLICT (day) DO UPDATE SET cents = cents + excluded.cents"
    database.execute("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", sold)
    database.execute(f"INSERT INTO revenue VALUES (?, ?) {added}", [day, cents])
