"""The shop: its tables, its transactions, and the folder where its files are.

SQLite by default, for several workers that write at once, or PostgreSQL where DATABASE_URL names one.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite

BUSY_SECONDS = 60  # how long a writer of SQLite waits for the others: each of them takes milliseconds

metadata = MetaData()
products = Table(
    "products",
    metadata,
    Column("sku", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("price_cents", Integer, nullable=False),
    Column("delivered", Integer, nullable=False),
    Column("stock", Integer, CheckConstraint("stock >= 0"), nullable=False),
)
placed = Table(  # what the client has placed: report.py compares it with what was done
    "placed",
    metadata,
    Column("number", String, primary_key=True),
    Column("total_cents", Integer, nullable=False),
    Column("placed_at", Float, nullable=False),
)
orders = Table(
    "orders",
    metadata,
    Column("number", String, primary_key=True),  # delivered twice, it is one order
    Column("rejected", String, nullable=False, default=""),  # why, if it was
    Column("email", String, nullable=False),
    Column("photo", String, nullable=False),
    Column("total_cents", Integer, nullable=False),
    Column("processed_at", Float, nullable=False),
)
order_lines = Table(
    "order_lines",
    metadata,
    Column("order_number", ForeignKey("orders.number"), primary_key=True),
    Column("sku", ForeignKey("products.sku"), primary_key=True),
    Column("quantity", Integer, nullable=False),
    Column("price_cents", Integer, nullable=False),
)
payments = Table(
    "payments",
    metadata,
    Column("order_number", ForeignKey("orders.number"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("method", String, nullable=False),
    Column("amount_cents", Integer, nullable=False),
)
follow_ups = Table(  # the follow-up tasks of an order: promised in its transaction, then published, then done
    "outbox",
    metadata,
    Column("order_number", ForeignKey("orders.number"), primary_key=True),
    Column("task", String, primary_key=True),
    Column("published_at", Float),
    Column("claimed_at", Float),  # somebody is at it since then
    Column("tries", Integer, nullable=False, default=0),
    Column("done_at", Float),
)

CATALOGUE = (
    # sku, name, price in cents, pieces
    ("gold-mug", "Golden mug, limited", 4900, 25),
    ("calendar", "Calendar", 1995, 100_000),
    ("cushion", "Cushion", 2450, 100_000),
    ("magnet", "Magnet", 399, 100_000),
    ("mug", "Mug", 1290, 100_000),
    ("poster", "Poster", 899, 100_000),
    ("puzzle", "Puzzle", 3475, 100_000),
    ("t-shirt", "T-shirt", 2199, 100_000),
)


def folder(name: str = "") -> Path:
    """Where the shop's files are: SHOP_DIR, or `shop` in the current directory."""
    return Path(os.environ.get("SHOP_DIR") or "shop").absolute() / name


def keep(path: Path, content: bytes) -> None:
    """Writes a file: all of it or nothing, also when two do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # it is there before the database says so
    os.replace(part, path)


@cache
def engine() -> Engine:
    """The database of this process. Nothing is connected yet. Raises ValueError for one that we do not know."""
    url = make_url(os.environ.get("DATABASE_URL") or f"sqlite:///{folder() / 'shop.db'}")
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True)
    if url.get_backend_name() != "sqlite":
        raise ValueError(f"DATABASE_URL names a {url.get_backend_name()}: must be postgresql:// or sqlite:///")
    made = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(made, "connect", _connected_to_sqlite)
    event.listen(made, "begin", _begin_in_sqlite)
    return made


def _connected_to_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # transactions begin as we say, and not as Python's module thinks
    connection.execute("PRAGMA journal_mode = WAL")  # who reads and who writes do not wait for each other
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_in_sqlite(db: Connection) -> None:
    """IMMEDIATE: who is going to write waits here, in line. Later, having read, it could only fail."""
    db.exec_driver_sql(db.get_execution_options().get("begin", "BEGIN IMMEDIATE"))


def snapshot() -> Connection:
    """For reading: one moment of all tables, without holding up who writes."""
    if engine().dialect.name == "sqlite":
        return engine().connect().execution_options(begin="BEGIN")
    return engine().connect().execution_options(isolation_level="REPEATABLE READ")


def add(db: Connection, table: Table, **row: Any) -> bool:
    """Adds a row, if there is none with its key. Returns whether it is new."""
    insert = sqlite.insert if db.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(**row).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    return db.execute(statement).rowcount == 1


def prepare() -> None:
    """Makes the tables, and fills the shelves, where that was not done before."""
    folder().mkdir(parents=True, exist_ok=True)
    metadata.create_all(engine())
    with engine().begin() as db:
        for sku, name, price, pieces in CATALOGUE:
            add(db, products, sku=sku, name=name, price_cents=price, delivered=pieces, stock=pieces)
