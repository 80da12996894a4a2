"""The shop of examples/orders on a real broker: workers are killed, tasks come twice, and everything is done once.

On SQLite and on PostgreSQL, with a real SMTP server. (What a handler does by itself: examples/orders/test_handlers.py.)
"""

from __future__ import annotations

import email
import io
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from handlers_orders import MOMENTS
from lab.nodes import ROOT, Broker, free_port
from lab.postgres import Postgres
from lab.waiting import until
from PIL import Image
from programs import Bench, Program, put
from pypdf import PdfReader
from sqlalchemy import delete, select, update

from examples.orders import checkout, handlers, outbox, shop
from examples.orders.cart import Cart, Line, Payment
from tasks import Attempt, Task

HANDLERS = ["--handlers", "examples.orders.handlers"]
RETRY_DELAYS = "0.2,0.4,1,5"  # as many as a claimed mail may need; all of them known to Bench.close


class Mailbox:
    """A real SMTP server, and what it has taken."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())
        self._controller.start()
        self.url = f"smtp://127.0.0.1:{self._controller.port}"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # aiosmtpd's name
        self.mails.append(email.message_from_bytes(envelope.content))
        return "250 OK"

    def ids(self) -> Counter[str]:
        return Counter(mail["Message-ID"] for mail in self.mails)

    def close(self) -> None:
        self._controller.stop()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    box = Mailbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@dataclass
class Shop:
    """A shop of its own on a bench: its programs, and what they have left."""

    bench: Bench
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {"SHOP_DIR": str(self.folder), "RETRY_DELAYS": RETRY_DELAYS, **self.settings}

    def start(self, program: str, *arguments: str, **settings: str) -> Program:
        return self.bench.start(program, *arguments, **self.environment(), **settings)

    def checkout(self, count: int, seed: int = 7) -> None:
        placing = self.start("examples/orders/checkout.py", "--count", str(count), "--seed", str(seed))
        assert placing.wait(60) == 0, placing.describe()
        assert f"{count} orders placed, {count} confirmed" in placing.stdout

    def worker(self, *arguments: str, **settings: str) -> Program:
        return self.start("worker.py", *HANDLERS, "--quiet", *arguments, **settings)

    def report(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        reporting = self.start("examples/orders/report.py", "--json", *arguments)
        code = reporting.wait(90)
        assert code in (0, 1), reporting.describe()
        return code, json.loads(reporting.stdout)

    def finish(self) -> dict[str, Any]:
        """What a report says when all is done: it must have nothing to say against it."""
        code, report = self.report("--wait")
        assert (code, report["wrong"], report["to_come"]) == (0, [], {}), report
        return report


@pytest.fixture
def sqlite_shop(bench: Bench, tmp_path: Path) -> Shop:
    return Shop(bench, tmp_path / "shop")


# Everything at once


def test_killed_workers_and_repeated_orders_leave_nothing_out_and_nothing_twice(
    shared_broker: Broker, tmp_path: Path, postgres: Postgres, mailbox: Mailbox
) -> None:
    """On SQLite and PostgreSQL at once, three workers each, one of which is killed and replaced again and again."""
    count, kills = 100, 8
    shops = [
        Shop(Bench(shared_broker, f"test-{os.getpid()}-sqlite", tmp_path, shared_broker.url), tmp_path / "a"),
        Shop(
            Bench(shared_broker, f"test-{os.getpid()}-postgresql", tmp_path, shared_broker.url),
            tmp_path / "b",
            {"DATABASE_URL": postgres.database(), "SMTP_URL": mailbox.url},
        ),
    ]
    try:
        workers = [[each.worker() for _ in range(3)] for each in shops]
        for each in shops:
            each.checkout(count)
            each.checkout(count)  # they are the same orders
        for number in range(kills):
            crew, each = workers[number % 2], shops[number % 2]
            until(lambda each=each, number=number: made(each) > 25 * number, "work to go on", 60)  # type: ignore[misc]
            crew.pop(random.randrange(len(crew))).signal(signal.SIGKILL)
            crew.append(each.worker())
        reports = [each.finish() for each in shops]
        carts = {cart.number: cart for cart in checkout.carts(count, seed=7)}
        for each, report in zip(shops, reports, strict=True):
            accepted = look_into(each.folder, carts, mails_in_files=each is shops[0])
            assert report["placed"] == report["processed"] == count
            assert report["revenue_cents"] == sum(carts[number].total_cents for number in accepted)
            assert report["pictures"] == report["invoices"] == report["confirmations"] == len(accepted)
            assert each.bench.ready(each.bench.dead) == 0
        assert mailbox.ids().keys() == {f"<{number}@shop.example>" for number in accepted}
        repeats = [message_id for message_id, times in mailbox.ids().items() if times > 1]
        assert len(repeats) <= reports[1]["mails_tried_again"]  # SMTP cannot do better; the shop knows of it
    finally:
        for each in shops:
            each.bench.close()


def made(each: Shop) -> int:
    """Pictures, invoices and mails so far."""
    return len(list(each.folder.glob("*/7-*")))


def look_into(folder: Path, carts: dict[str, Cart], mails_in_files: bool) -> set[str]:
    """Reads back what the shop has made. Returns the numbers of the orders it has invoices for."""
    invoices = {path.stem: path for path in (folder / "invoices").glob("*.pdf")}
    pictures = {path.stem: path for path in (folder / "pictures").glob("*.jpg")}
    assert invoices.keys() == pictures.keys() <= carts.keys()
    for number, path in invoices.items():
        total = carts[number].total_cents
        text = PdfReader(io.BytesIO(path.read_bytes())).pages[0].extract_text()
        assert f"Invoice {number}" in text
        assert f"{total // 100:,}.{total % 100:02d} EUR" in text
        with Image.open(pictures[number]) as picture:
            wanted = checkout.PHOTOS[carts[number].photo]
            assert max(picture.size) == min(320, max(wanted))
            assert picture.width * wanted[1] == pytest.approx(picture.height * wanted[0], rel=0.02)
    if mails_in_files:
        mails = [email.message_from_bytes(path.read_bytes()) for path in (folder / "mail").glob("*.eml")]
        assert {mail["Message-ID"] for mail in mails} == {f"<{number}@shop.example>" for number in invoices}
        assert all(mail["To"] == carts[mail["Message-ID"][1:].partition("@")[0]].email for mail in mails)
    return set(invoices)


# One moment each


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_may_die_at_any_moment(moment: str, sqlite_shop: Shop, mailbox: Mailbox) -> None:
    """It is killed there with the only order in hand, or a follow-up of it; the next worker does what is left."""
    sqlite_shop.settings = {"SMTP_URL": mailbox.url}
    sqlite_shop.checkout(1)
    path = f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"
    victim = sqlite_shop.start("worker.py", "--handlers", "handlers_orders", DIES=moment, PYTHONPATH=path)
    assert victim.wait(60) == -signal.SIGKILL, victim.describe()
    code, report = sqlite_shop.report()
    assert (code, report["wrong"]) == (1, [])
    assert report["to_come"]
    worker = sqlite_shop.worker()
    report = sqlite_shop.finish()
    assert (report["accepted"], report["pictures"], report["invoices"], report["confirmations"]) == (1, 1, 1, 1)
    repeats = {"between mail and marking": 2}  # nobody can tell whether the server has taken it
    assert mailbox.ids() == {"<7-000001@shop.example>": repeats.get(moment, 1)}
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_an_order_that_comes_many_times_at_once_is_done_once(
    database: str, bench: Bench, tmp_path: Path, request: pytest.FixtureRequest, mailbox: Mailbox
) -> None:
    """Ten times for each of ten orders, to four workers that have nothing else to do."""
    settings = {"SMTP_URL": mailbox.url}
    if database == "postgresql":
        settings["DATABASE_URL"] = request.getfixturevalue("postgres").database()
    once = Shop(bench, tmp_path / "shop", settings)
    once.checkout(10)
    messages = bench.take_all()
    workers = [once.worker() for _ in range(4)]
    for worker in workers:
        worker.wait_for("worker_ready")
    with bench.broker.channel() as channel:
        put(channel, bench.queue, [(body, properties) for properties, body in messages for _ in range(10)])
    report = once.finish()
    assert report["placed"] == report["processed"] == 10
    assert set(mailbox.ids().values()) == {1}
    assert len(mailbox.mails) == report["accepted"] == report["confirmations"] > 5
    assert report["mails_tried_again"] == 0
    assert bench.ready(bench.dead) == 0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_orders_that_are_written_at_the_same_time_do_not_fail(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same products, half of them the other way round: no attempt is lost to a lock, or to a deadlock."""
    url = "" if database == "sqlite" else request.getfixturevalue("postgres").database()
    monkeypatch.setenv("SHOP_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setattr(outbox, "publish", lambda number: None)
    shop.engine.cache_clear()
    shop.prepare()
    lines = [Line(sku, 1, price) for sku, _, price, _ in shop.CATALOGUE[1:]]
    total = sum(line.price_cents for line in lines)

    def process(number: int) -> None:
        mixed = tuple(lines if number % 2 else reversed(lines))
        cart = Cart(f"A-{number}", "ada@customer.example", "photo-1", mixed, (Payment("card", "accepted", total),))
        handlers.process_order(Task(cart.number, "Process order", 1, cart.payload()), Attempt())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(process, range(60)))  # raises what one of them has raised
    with shop.snapshot() as db:
        assert set(db.scalars(select(shop.products.c.delivered - shop.products.c.stock))) == {0, 60}
    shop.engine().dispose()
    shop.engine.cache_clear()


# The report


@pytest.fixture
def done(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop with ten orders that are done, for this process to look into."""
    sqlite_shop.checkout(10)
    sqlite_shop.worker()
    sqlite_shop.finish()
    monkeypatch.setenv("SHOP_DIR", str(sqlite_shop.folder))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    shop.engine.cache_clear()
    yield sqlite_shop
    shop.engine().dispose()
    shop.engine.cache_clear()


def test_the_report_says_what_is_missing_doubled_or_wrong(done: Shop) -> None:
    (first, second, *_) = (row.order_number for row in read(select(shop.order_lines.c.order_number).distinct()))
    (done.folder / f"pictures/{second}.jpg").unlink()
    (done.folder / "mail/7-900000.eml").write_text("to nobody")
    mug, line = shop.products.c.sku == "mug", shop.order_lines.c.order_number == first
    is_first = shop.orders.c.number == first
    expected = {
        "mug: 100000 came": update(shop.products).where(mug).values(stock=7),
        "whose lines do not make their total": update(shop.order_lines).where(line).values(quantity=77),
        "whose payments do not make": delete(shop.payments).where(shop.payments.c.order_number == first),
        "and was placed with": update(shop.orders).where(is_first).values(total_cents=1),
        "was never placed": delete(shop.placed).where(shop.placed.c.number == "7-000010"),
        "promised for the wrong orders": delete(shop.follow_ups).where(shop.follow_ups.c.order_number == first),
    }
    with shop.engine().begin() as db:
        for statement in expected.values():
            db.execute(statement)
        shop.add(db, shop.placed, number="7-000011", total_cents=100, placed_at=time.time())
    code, report = done.report()
    assert code == 1
    expected_words = [*expected, "invoices: 1 too many", "pictures: 1 missing", "confirmations: 2 too many"]
    assert [words for words in expected_words if not any(words in line for line in report["wrong"])] == []
    assert report["to_come"] == {"orders": 1}


def read(query: Any) -> list[Any]:
    with shop.snapshot() as db:
        return list(db.execute(query))


def test_a_report_on_work_under_way_says_so(sqlite_shop: Shop) -> None:
    sqlite_shop.checkout(3)
    reporting = sqlite_shop.start("examples/orders/report.py")
    assert reporting.wait() == 1
    assert "Still to come: 3 orders. The last change was " in reporting.stdout
    sqlite_shop.worker()
    waiting = sqlite_shop.start("examples/orders/report.py", "--wait")
    assert waiting.wait(30) == 0
    assert "All there, and nothing twice." in waiting.stdout


@pytest.mark.parametrize("program", ["examples/orders/report.py", "examples/orders/checkout.py"])
def test_what_cannot_be_used_is_said_in_a_line(program: str, sqlite_shop: Shop) -> None:
    for settings in ({"DATABASE_URL": "mysql://here/shop"}, {"DATABASE_URL": "postgresql://shop@127.0.0.1:1/shop"}):
        refused = sqlite_shop.start(program, **settings)
        assert refused.wait() == 2
        assert len(refused.stderr.splitlines()) == 1
    worker = sqlite_shop.start("worker.py", *HANDLERS, DATABASE_URL="mysql://here/shop")
    assert worker.wait() == 2
    assert "DATABASE_URL names a mysql: must be postgresql:// or sqlite:///" in worker.stderr


# Black Friday


def test_black_friday_leaves_nothing_behind(bench: Bench) -> None:
    environment = bench.environment()
    command = ["bash", str(ROOT / "scripts/black_friday.sh"), "--orders", "60", "--seed", "3"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("two workers wait", "ten workers", "is killed", "back to two", "All there, and nothing twice."):
        assert words in result.stdout
    assert "     60 orders placed" in result.stdout
    assert "black-friday." not in bench.broker.ctl("list_queues", "name")
