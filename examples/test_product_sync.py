"""How to test work that needs a network, without a broker: a server of one's own that makes all the trouble there is.

pytest examples/test_product_sync.py
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples import product_sync
from examples.product_server import ProductServer
from tasks import Attempt, Reject, Task


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProductServer]:
    with ProductServer() as server, httpx.Client(base_url=server.url, timeout=0.3) as client:
        monkeypatch.setattr(product_sync, "http", client)
        monkeypatch.setattr(product_sync, "ANSWER_SECONDS", 0.5)
        monkeypatch.setattr(product_sync, "DATABASE", str(tmp_path / "products.db"))
        yield server


def sync(number: object) -> None:
    product_sync.sync(Task(1, "Sync product", 1, {"product": number}), Attempt())


def products() -> list[Any]:
    with closing(sqlite3.connect(product_sync.DATABASE)) as database:
        return database.execute("SELECT * FROM products ORDER BY id").fetchall()


def test_a_product_is_put_in_once_and_kept_up_to_date(server: ProductServer) -> None:
    for server.version in (1, 1, 2):
        sync(17)
    assert products() == [(17, "Tea no. 17", 117, 2)]


def test_an_answer_that_comes_late_does_not_undo_a_newer_one(server: ProductServer) -> None:
    for server.version in (2, 1):
        sync(17)
    assert products() == [(17, "Tea no. 17", 117, 2)]


@pytest.mark.parametrize("trouble", ["busy", "hang", "trickle"])
def test_what_may_pass_is_no_answer_and_does_not_take_for_ever(server: ProductServer, trouble: str) -> None:
    server.troubles["/products/17"] = [trouble]
    begun = time.monotonic()
    with pytest.raises(product_sync.NoAnswer, match="/products/17"):
        sync(17)
    assert time.monotonic() - begun < 2
    sync(17)
    assert len(products()) == 1


def test_a_service_that_is_away_is_no_answer(server: ProductServer) -> None:
    product_sync.http.base_url = "http://127.0.0.1:1"
    with pytest.raises(product_sync.NoAnswer, match="ConnectError"):
        sync(17)


@pytest.mark.parametrize("number", [2000, "17", None])
def test_no_product_is_no_reason_to_try_again(server: ProductServer, number: object) -> None:
    with pytest.raises(Reject):
        sync(number)
    assert server.requests == (["/products/2000"] if number == 2000 else [])
