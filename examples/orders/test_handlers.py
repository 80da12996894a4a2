"""The handlers, tried as you would try your own: calling one is calling a function, and no broker is needed.

python -m pytest examples/orders
"""

from __future__ import annotations

import email
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pypdf import PdfReader
from sqlalchemy import func, select, update

from examples.orders import checkout, handlers, outbox, papers, shop
from examples.orders.cart import Cart, Line, Payment
from tasks import Attempt, Reject, Task

CART = Cart(
    "A-1",
    "ada@customer.example",
    "photo-1",
    (Line("mug", 2, 1290), Line("calendar", 1, 1995)),
    (Payment("voucher", "accepted", 1000), Payment("card", "accepted", 3575)),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A shop that has just been opened, with nobody to publish to."""
    monkeypatch.setenv("SHOP_DIR", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("SMTP_URL", raising=False)
    monkeypatch.setattr(outbox, "publish", lambda number: None)
    shop.engine.cache_clear()
    shop.prepare()
    checkout.draw_photos()
    yield tmp_path
    shop.engine().dispose()
    shop.engine.cache_clear()


def process(cart: Cart) -> None:
    handlers.process_order(Task(cart.number, "Process order", cart.difficulty, cart.payload()), Attempt())


def follow_up(name: str, attempt: Attempt | None = None, number: str = "A-1") -> None:
    handler = {
        "Resize image": handlers.resize_image,
        "Generate invoice": handlers.generate_invoice,
        "Send confirmation": handlers.send_confirmation,
    }[name]
    handler(Task(number, name, 1, {"order": number}), attempt or Attempt())


def rows(table: Any) -> list[Any]:
    with shop.snapshot() as db:
        return list(db.execute(select(table)))


def stock(sku: str) -> int:
    with shop.snapshot() as db:
        return int(db.scalar(select(shop.products.c.stock).where(shop.products.c.sku == sku)) or 0)


def changed(**members: Any) -> Cart:
    return Cart.of({**CART.payload(), **members})


# Orders


def test_an_order_that_is_delivered_twice_is_one_order() -> None:
    process(CART)
    process(CART)
    assert [(row.number, row.rejected, row.total_cents) for row in rows(shop.orders)] == [("A-1", "", 4575)]
    assert (stock("mug"), stock("calendar")) == (99_998, 99_999)
    assert sum(row.amount_cents for row in rows(shop.payments)) == 4575
    assert [row.task for row in rows(shop.follow_ups)] == list(outbox.FOLLOW_UPS)


def test_who_reads_holds_up_nobody_who_writes() -> None:
    with shop.snapshot() as db:
        before = db.execute(select(shop.orders)).all()
        process(CART)
        assert db.execute(select(shop.orders)).all() == before == []
    assert len(rows(shop.orders)) == 1


def test_who_has_read_may_still_write() -> None:
    """The other one waits for us, in place of making what we have read old."""
    with ThreadPoolExecutor(1) as pool:
        with shop.engine().begin() as db:
            db.execute(select(shop.products)).all()
            other = pool.submit(process, CART)
            wait([other], timeout=0.3)
            db.execute(update(shop.products).values(delivered=1))
        other.result()
    assert len(rows(shop.orders)) == 1


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"lines": [{"sku": "mug", "quantity": 2, "price_cents": 1}]}, "price is not the shop's"),
        ({"lines": [{"sku": "no-such-thing", "quantity": 1, "price_cents": 4575}]}, "price is not the shop's"),
        ({"payments": [{"method": "card", "token": "accepted", "amount_cents": 4574}]}, "payments do not add up"),
        ({"payments": [{"method": "card", "token": "declined", "amount_cents": 4575}]}, "payment declined"),
    ],
)
def test_a_rejected_order_is_done_and_says_why(members: dict[str, Any], why: str) -> None:
    process(changed(**members))
    assert [row.rejected for row in rows(shop.orders)] == [why]
    assert stock("mug") == 100_000
    assert rows(shop.follow_ups) == rows(shop.payments) == rows(shop.order_lines) == []


def test_what_a_rejected_order_had_taken_is_given_back() -> None:
    lines = [
        {"sku": "calendar", "quantity": 1, "price_cents": 1995},
        {"sku": "gold-mug", "quantity": 26, "price_cents": 4900},
    ]
    process(changed(lines=lines, payments=[{"method": "card", "token": "accepted", "amount_cents": 1995 + 26 * 4900}]))
    assert [row.rejected for row in rows(shop.orders)] == ["out of stock: gold-mug"]
    assert (stock("calendar"), stock("gold-mug")) == (100_000, 25)
    assert rows(shop.follow_ups) == rows(shop.payments) == rows(shop.order_lines) == []


@pytest.mark.parametrize(
    "members",
    [
        {"number": "../../etc/passwd"},
        {"photo": "a/b"},
        {"email": "ada@customer.example\nBcc: everybody@customer.example"},
        {"lines": []},
        {"lines": [{"sku": "mug", "quantity": -1, "price_cents": 1290}]},
        {"lines": [{"sku": "mug", "quantity": 0.5, "price_cents": 1290}]},
        {"lines": [{"sku": "mug", "quantity": 1, "price_cents": 1290}] * 2},
        {"lines": 7},
        {"more": "than we know"},
    ],
)
def test_what_is_no_cart_is_no_order(members: dict[str, Any]) -> None:
    with pytest.raises(Reject, match="no cart"):
        handlers.process_order(Task(1, "Process order", 1, {**CART.payload(), **members}), Attempt())
    with pytest.raises(Reject, match="no cart"):
        handlers.process_order(Task(1, "Process order", 1), Attempt())
    assert rows(shop.orders) == []


# What follows from an order


def test_an_invoice_can_be_read_and_is_the_same_when_it_is_made_twice(folder: Path) -> None:
    process(CART)
    follow_up("Generate invoice")
    first = (folder / "invoices/A-1.pdf").read_bytes()
    follow_up("Generate invoice")
    assert (folder / "invoices/A-1.pdf").read_bytes() == first
    (page,) = PdfReader(io.BytesIO(first)).pages
    text = page.extract_text()
    for words in ("Invoice A-1", "2 x Mug", "25.80 EUR", "1 x Calendar", "19.95 EUR", "Total", "45.75 EUR"):
        assert words in text
    assert len(list((folder / "invoices").iterdir())) == 1


@pytest.mark.parametrize(("photo", "size"), [("photo-1", (320, 192)), ("photo-2", (192, 320)), ("photo-4", (250, 180))])
def test_a_picture_has_the_right_size(photo: str, size: tuple[int, int], folder: Path) -> None:
    process(changed(photo=photo))
    follow_up("Resize image")
    with Image.open(folder / "pictures/A-1.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", size)


def test_a_file_is_there_as_a_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shop.keep(folder / "invoices/A-1.pdf", b"half of it")
    assert not (folder / "invoices/A-1.pdf").exists()


def test_a_confirmation_is_sent_once(folder: Path) -> None:
    process(CART)
    follow_up("Send confirmation")
    follow_up("Send confirmation")
    (file,) = (folder / "mail").iterdir()
    mail = email.message_from_bytes(file.read_bytes())
    assert (mail["Message-ID"], mail["To"]) == ("<A-1@shop.example>", "ada@customer.example")
    assert "Total: 45.75 EUR" in str(mail.get_payload())
    assert [row.tries for row in rows(shop.follow_ups) if row.task == "Send confirmation"] == [1]


def test_two_workers_do_not_send_one_confirmation(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    process(CART)
    sent = []

    def send(mail: EmailMessage) -> None:
        sent.append(mail)
        with pytest.raises(outbox.BusyElsewhere):  # a copy of the task, in the middle of the first
            follow_up("Send confirmation")

    monkeypatch.setattr(papers, "send", send)
    follow_up("Send confirmation")
    assert len(sent) == 1


def test_a_confirmation_goes_on_where_a_worker_has_died() -> None:
    process(CART)
    assert outbox.claim("A-1", "Send confirmation", again=False)  # and then it was killed
    with pytest.raises(outbox.BusyElsewhere):
        follow_up("Send confirmation")
    follow_up("Send confirmation", Attempt(redelivered=True))
    assert [row.tries for row in rows(shop.follow_ups) if row.task == "Send confirmation"] == [2]


def test_a_mail_server_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process(CART)
    monkeypatch.setenv("SMTP_URL", "smtp://127.0.0.1:1")
    with pytest.raises(ConnectionRefusedError):
        follow_up("Send confirmation")
    monkeypatch.delenv("SMTP_URL")
    follow_up("Send confirmation", Attempt(number=2))
    assert all(row.done_at for row in rows(shop.follow_ups) if row.task == "Send confirmation")


@pytest.mark.parametrize("name", outbox.FOLLOW_UPS)
def test_there_is_nothing_to_do_for_an_order_that_is_none(name: str) -> None:
    process(changed(payments=[{"method": "card", "token": "declined", "amount_cents": 4575}]))
    for number in ("A-1", "A-2"):
        with pytest.raises(Reject, match="there is no order"):
            follow_up(name, number=number)


# Checkout


def test_the_same_checkout_is_the_same_orders() -> None:
    carts = list(checkout.carts(50, seed=7))
    assert carts == list(checkout.carts(50, seed=7))
    assert [cart.number for cart in carts[:2]] == ["7-000001", "7-000002"]
    assert {len(cart.payments) for cart in carts} == {1, 2, 3}
    ids = [checkout.place([cart])[0].properties.message_id for cart in (carts[0], carts[0], carts[1])]
    assert ids[0] == ids[1] != ids[2]
    ids = [outbox.follow_up("A-1", task).properties.message_id for task in (*outbox.FOLLOW_UPS, *outbox.FOLLOW_UPS)]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3
    with shop.snapshot() as db:
        assert db.scalar(select(func.count()).select_from(shop.placed)) == 2
