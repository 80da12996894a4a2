#!/usr/bin/env python3
"""The client: fills carts, writes down what it places, and sends a task `Process order` for each.

The same count and seed make the same orders, with the same numbers: sent twice, they are still the same orders.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever this is called

from PIL import Image, ImageDraw
from sqlalchemy.exc import SQLAlchemyError

import config
from examples.orders import shop
from examples.orders.cart import Cart, Line, Payment
from examples.orders.outbox import message, publish_confirmed
from tasks import Task
from workqueue.errors import BrokerError
from workqueue.messages import Message
from workqueue.publisher import Publisher
from workqueue.queues import declare_task_queue
from workqueue.streams import note, say

BATCH = 500  # orders that are written down, and then sent, at once
PHOTOS = {"photo-1": (1000, 600), "photo-2": (600, 1000), "photo-3": (800, 800), "photo-4": (250, 180)}
NAMES = ("ada", "alan", "barbara", "donald", "edsger", "grace", "katherine", "tony")
GOLDEN, STALE, DECLINED = 0.03, 0.01, 0.02  # of all orders: one of the limited mugs, an old price, a declined card


def carts(count: int, seed: int) -> Iterator[Cart]:
    """So many carts, the same for the same seed."""
    for number in range(1, count + 1):
        yield cart(f"{seed}-{number:06}", random.Random(f"{seed}-{number}"))


def cart(number: str, dice: random.Random) -> Cart:
    stale = dice.random() < STALE
    golden = shop.CATALOGUE[:1] if dice.random() < GOLDEN else ()
    lines = tuple(
        Line(sku, dice.randint(1, 3), price - (100 if stale else 0))
        for sku, _, price, _ in [*dice.sample(shop.CATALOGUE[1:], dice.randint(1, 4)), *golden]
    )
    total = sum(line.quantity * line.price_cents for line in lines)
    token = "declined" if dice.random() < DECLINED else "accepted"
    email = f"{dice.choice(NAMES)}@customer.example"
    return Cart(number, email, dice.choice(list(PHOTOS)), lines, shared(total, dice, token))


def shared(total: int, dice: random.Random, token: str) -> tuple[Payment, ...]:
    """One to three payments: a voucher, say, and what is left by card."""
    methods = dice.sample(("voucher", "transfer", "card"), dice.randint(1, 3))
    parts = [total // len(methods)] * (len(methods) - 1)
    amounts = [*parts, total - sum(parts)]
    return tuple(Payment(method, token, amount) for method, amount in zip(methods, amounts, strict=True))


def draw_photos() -> None:
    """What customers upload: a few pictures, wide, high, square and small."""
    for name, (width, height) in PHOTOS.items():
        path = shop.folder("photos") / f"{name}.jpg"
        if not path.exists():
            image = Image.new("RGB", (width, height), "lightblue")
            ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill="orange")
            drawn = io.BytesIO()
            image.save(drawn, "JPEG")
            shop.keep(path, drawn.getvalue())


def place(batch: list[Cart]) -> list[Message]:
    """Writes down what is going to be sent, and makes the messages."""
    with shop.engine().begin() as db:
        for each in batch:
            shop.add(db, shop.placed, number=each.number, total_cents=each.total_cents, placed_at=time.time())
    return [message(Task(each.number, "Process order", each.difficulty, each.payload()), each.number) for each in batch]


def send(to_place: Iterator[Cart], settings: config.Settings) -> int:
    """Returns how many were confirmed. Raises BrokerError."""
    publisher = Publisher(settings, "checkout", declare_task_queue, note, settings.connect_timeout_seconds)
    confirmed = 0
    while batch := list(islice(to_place, BATCH)):
        publish_confirmed(publisher, settings.task_queue, place(batch), float("inf"))
        confirmed += len(batch)
    publisher.close()
    return confirmed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="checkout.py", description=__doc__)
    parser.add_argument("--count", metavar="N", type=int, default=20, help="orders to place (default: %(default)s)")
    parser.add_argument("--seed", metavar="S", type=int, help="the same orders again (default: others every time)")
    arguments = parser.parse_args(argv)
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    if not (0 <= arguments.count < 10**6 and 0 <= seed < 10**12):
        parser.error("--count is from 0 to 999999, and --seed from 0 to 999999999999")
    try:
        settings = config.load()
        shop.prepare()
        draw_photos()
        confirmed = send(carts(arguments.count, seed), settings)
    except (config.SettingError, ValueError, SQLAlchemyError) as error:
        note(f"checkout.py: {str(error).splitlines()[0]}")
        return 2
    except BrokerError as error:
        note(f"checkout.py: {error}; the same call with --seed {seed} places the rest")
        return error.exit_code
    say(f"{confirmed} orders placed, {confirmed} confirmed (seed {seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
