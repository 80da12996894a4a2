#!/usr/bin/env python3
"""Compares what was placed with what was done: orders, money, stock, pictures, invoices and e-mails.

Exit code 0: everything is there, and nothing twice. 1: something is missing, also if it is still to come, or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, wherever this is called

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

from examples.orders.papers import euros
from examples.orders.shop import folder, follow_ups, order_lines, orders, payments, placed, products, snapshot
from workqueue.streams import note, say

LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 60.0  # for which --wait sees nothing happen: longer than the longest wait for another attempt
NAMES = {"Resize image": "pictures", "Generate invoice": "invoices", "Send confirmation": "confirmations"}
FILES = {"Resize image": "pictures/*.jpg", "Generate invoice": "invoices/*.pdf", "Send confirmation": "mail/*.eml"}

Report = dict[str, Any]


def look() -> Report:
    """All that the shop knows, in figures."""
    files = {task: names_of(pattern) for task, pattern in FILES.items()}  # before: some may be written meanwhile
    with snapshot() as db:
        was_placed = dict(db.execute(select(placed.c.number, placed.c.total_cents)).all())
        rows = db.execute(select(orders.c.number, orders.c.total_cents, orders.c.rejected)).all()
        totals = {number: cents for number, cents, _ in rows}
        accepted = {number: cents for number, cents, rejected in rows if not rejected}
        return {
            "placed": len(was_placed),
            "processed": len(rows),
            "accepted": len(accepted),
            "rejected": dict(Counter(why for *_, why in rows if why).most_common()),
            "placed_cents": sum(was_placed.values()),
            "revenue_cents": sum(accepted.values()),
            "rejected_cents": sum(totals.values()) - sum(accepted.values()),
            **dict.fromkeys(NAMES.values(), 0),
            **count_by_task(db, follow_ups.c.done_at.is_not(None)),
            "mails_tried_again": count_by_task(db, follow_ups.c.tries > 1).get("confirmations", 0),
            "stock_left": dict(db.execute(select(products.c.sku, products.c.stock)).all()),
            "to_come": to_come(db, len(was_placed.keys() - totals.keys())),
            "wrong": [
                *wrong_orders(was_placed, totals),
                *wrong_sums(db, accepted),
                *wrong_stock(db),
                *wrong_follow_ups(db, accepted, files),
            ],
            "seconds_since_last_change": seconds_since_last_change(db),
        }


def names_of(pattern: str) -> set[str]:
    return {path.stem for path in folder().glob(pattern) if not path.name.startswith(".")}


def count_by_task(db: Connection, condition: ColumnElement[bool]) -> dict[str, int]:
    counts = select(follow_ups.c.task, func.count()).where(condition).group_by(follow_ups.c.task)
    return {NAMES[task]: count for task, count in db.execute(counts)}


def to_come(db: Connection, new_orders: int) -> dict[str, int]:
    """What was placed or promised, and is not done."""
    missing = {"orders": new_orders, **count_by_task(db, follow_ups.c.done_at.is_(None))}
    return {name: count for name, count in missing.items() if count}


# What cannot be, however much is still to come


def wrong_orders(was_placed: dict[str, int], totals: dict[str, int]) -> Iterator[str]:
    for number, cents in totals.items():
        if number not in was_placed:
            yield f"order {number} was never placed"
        elif was_placed[number] != cents:
            yield f"order {number} is of {euros(cents)}, and was placed with {euros(was_placed[number])}"


def wrong_sums(db: Connection, accepted: dict[str, int]) -> Iterator[str]:
    cents = order_lines.c.quantity * order_lines.c.price_cents
    for name, amount, key in (
        ("lines", cents, order_lines.c.order_number),
        ("payments", payments.c.amount_cents, payments.c.order_number),
    ):
        sums = dict(db.execute(select(key, func.sum(amount)).group_by(key)).all())
        if wrong := {number for number, _ in sums.items() ^ accepted.items()}:
            yield f"{len(wrong)} orders whose {name} do not make their total: {min(wrong)} for one"


def wrong_stock(db: Connection) -> Iterator[str]:
    pieces = select(order_lines.c.sku, func.sum(order_lines.c.quantity)).group_by(order_lines.c.sku)
    sold = dict(db.execute(pieces).all())
    for sku, came, left in db.execute(select(products.c.sku, products.c.delivered, products.c.stock)):
        if came - sold.get(sku, 0) != left:
            yield f"{sku}: {came} came, {sold.get(sku, 0)} are sold, {left} are left"


def wrong_follow_ups(db: Connection, accepted: dict[str, int], files: dict[str, set[str]]) -> Iterator[str]:
    """Each accepted order has its three; one that is done has left its file; and no other file is there."""
    for task, pattern in FILES.items():
        query = select(follow_ups.c.order_number, follow_ups.c.done_at).where(follow_ups.c.task == task)
        done_at = dict(db.execute(query).all())
        if wrong := done_at.keys() ^ accepted.keys():
            yield f"{NAMES[task]}: promised for the wrong orders, {min(wrong)} for one"
        if task == "Send confirmation" and os.environ.get("SMTP_URL"):
            continue  # they are where we cannot count them
        now = names_of(pattern)
        if missing := {number for number, done in done_at.items() if done} - now:
            yield f"{NAMES[task]}: {len(missing)} missing, of order {min(missing)} for one"
        if extra := files[task] - done_at.keys():
            yield f"{NAMES[task]}: {len(extra)} too many, {min(extra)} for one"


def seconds_since_last_change(db: Connection) -> float | None:
    moments = [placed.c.placed_at, orders.c.processed_at, follow_ups.c.published_at, follow_ups.c.done_at]
    last = max(db.scalar(select(func.max(moment))) or 0.0 for moment in moments)
    return round(time.time() - last, 1) if last else None


# For people


def show(report: Report) -> None:
    say(f"{report['placed']:7,} orders placed      {euros(report['placed_cents']):>18}")
    say(f"{report['accepted']:7,} accepted           {euros(report['revenue_cents']):>18}  revenue")
    say(f"{sum(report['rejected'].values()):7,} rejected           {euros(report['rejected_cents']):>18}")
    for why, count in report["rejected"].items():
        say(f"{count:15,}  {why}")
    for name in NAMES.values():
        say(f"{report[name]:7,} {name}")
    say("  stock left: " + ", ".join(f"{left:,} {sku}" for sku, left in report["stock_left"].items()))
    if report["mails_tried_again"]:
        say(f"{report['mails_tried_again']:7,} e-mails were begun more than once: a repeat has the same Message-ID")
    for line in report["wrong"]:
        say(f"WRONG: {line}")
    if report["to_come"]:
        what = ", ".join(f"{count:,} {name}" for name, count in report["to_come"].items())
        say(f"Still to come: {what}. The last change was {report['seconds_since_last_change']:.1f} s ago.")
    elif not report["wrong"]:
        say("All there, and nothing twice.")


def wait(percent: int) -> None:
    """Until so much of the work is done, or until nothing happens any more."""
    before, changed_at = (0, 0), time.monotonic()
    while time.monotonic() - changed_at < PATIENCE_SECONDS:
        done, work = progress()
        if work and done >= work * percent / 100:
            return
        if (done, work) != before:
            before, changed_at = (done, work), time.monotonic()
        time.sleep(LOOK_SECONDS)


def progress() -> tuple[int, int]:
    """Orders and follow-ups: how many are done, and how many there are, as far as one can tell."""
    counts = [select(func.count()).select_from(table) for table in (placed, orders, follow_ups)]
    try:
        with snapshot() as db:
            was_placed, processed, promised = (db.scalar(count) or 0 for count in counts)
            followed = db.scalar(counts[2].where(follow_ups.c.done_at.is_not(None))) or 0
    except (OperationalError, ProgrammingError):  # nobody has opened the shop yet
        return 0, 0
    return processed + followed, was_placed + promised + len(NAMES) * (was_placed - processed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--wait",
        metavar="PERCENT",
        nargs="?",
        type=int,
        const=100,
        help="first wait until so much of the work is done (default: 100), or nothing happens for a minute",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.wait:
            wait(arguments.wait)
        report = look()
    except (ValueError, SQLAlchemyError) as error:
        note(f"report.py: {str(error).splitlines()[0]}: is there a shop? checkout.py opens one")
        return 2
    if arguments.json:
        say(json.dumps(report))
    else:
        show(report)
    return 1 if report["wrong"] or report["to_come"] else 0


if __name__ == "__main__":
    sys.exit(main())
