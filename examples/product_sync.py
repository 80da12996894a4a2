"""Many short tasks that wait for a network: each fetches one product over HTTP, and puts it into a database.

    python worker.py --handlers examples.product_sync --concurrency 10
    python sender.py --task "Sync product" --difficulty 1 --payload '{"product": 17}'

PRODUCT_API is the service's URL, PRODUCT_DB the database's file. While one task waits for its answer, nine others can,
too: that is what a concurrency, and with it a prefetch, of 10 is for.
"""

import json
import os
import sqlite3
import time
from contextlib import closing
from typing import Any

import httpx

from tasks import Attempt, Reject, Task, handles

API = os.environ.get("PRODUCT_API", "http://127.0.0.1:8000")
DATABASE = os.environ.get("PRODUCT_DB", "products.db")
CONNECT_SECONDS = 2.0
SILENCE_SECONDS = float(os.environ.get("PRODUCT_SILENCE_SECONDS", "5"))  # between two pieces of an answer
ANSWER_SECONDS = 2 * SILENCE_SECONDS  # for all of it
GONE = (404, 410)

# One for all threads: it keeps connections open, and lends each to one request at a time. It has no limit of its own,
# since the worker's concurrency is one.
http = httpx.Client(
    base_url=API,
    timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None),
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
)


class NoAnswer(Exception):
    """There may be one the next time."""


@handles("Sync product")
def sync(task: Task, attempt: Attempt) -> None:
    number = (task.payload or {}).get("product")
    if not isinstance(number, int):
        raise Reject(f"{number!r} is no product's number")
    store(fetch(f"/products/{number}"))


def fetch(path: str) -> Any:
    """What the service says of a product. Raises Reject if there is none, and NoAnswer for what may pass."""
    give_up_at = time.monotonic() + ANSWER_SECONDS
    body = b""
    try:
        with http.stream("GET", path) as response:
            if response.status_code in GONE:
                raise Reject(f"{path}: {response.status_code}, there is no such product")
            if response.status_code != 200:
                raise NoAnswer(f"{path}: {response.status_code}")
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > give_up_at:  # a time-out of httpx starts anew with each piece
                    raise NoAnswer(f"{path}: no end after {ANSWER_SECONDS:g} s")
    except httpx.TransportError as error:  # cannot connect, timed out, broken off
        raise NoAnswer(f"{path}: {type(error).__name__}: {error}") from None
    return json.loads(body)


def store(product: dict[str, Any]) -> None:
    """Once or twice, in this order or another: what the service said last stays."""
    with closing(sqlite3.connect(DATABASE, timeout=30, isolation_level=None)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name, cents, version)")
        database.execute(
            "INSERT INTO products VALUES (:id, :name, :cents, :version) ON CONFLICT (id) DO UPDATE SET"
            " name = excluded.name, cents = excluded.cents, version = excluded.version"
            " WHERE excluded.version > products.version",
            product,
        )
