"""The shop's four handlers. Any of their tasks may be delivered twice, and is done once.

    worker.py --handlers examples.orders.handlers

What makes it so is a key in the database, in the same transaction as what must not happen twice.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, select, update

from examples.orders import outbox, papers
from examples.orders.cart import Cart, Payment
from examples.orders.papers import Item, Order
from examples.orders.shop import add, engine, folder, keep, order_lines, orders, payments, products, snapshot
from tasks import Attempt, Reject, Task, handles

engine()  # a DATABASE_URL that cannot be used ends the worker now, before it takes a task


class Rejected(Exception):
    """An order that the shop does not take: that is an answer, and no failure of the task."""


@handles("Process order")
def process_order(task: Task, attempt: Attempt) -> None:
    try:
        cart = Cart.of(task.payload)
    except ValueError as error:
        raise Reject(str(error)) from None
    with engine().begin() as db:
        record(db, cart)
    outbox.publish(cart.number)


def record(db: Connection, cart: Cart) -> None:
    """The order, its stock, its payments and its follow-ups, in one transaction: all of it once, or nothing."""
    number = cart.number
    order = {"number": number, "email": cart.email, "photo": cart.photo, "total_cents": cart.total_cents}
    if not add(db, orders, **order, processed_at=time.time()):
        return  # it was delivered before
    try:
        with db.begin_nested():  # what an order has taken before it is rejected is given back
            check_prices(db, cart)
            take_stock(db, cart)
            take_money(db, cart)
            outbox.promise(db, number)
    except Rejected as why:
        db.execute(update(orders).where(orders.c.number == number).values(rejected=str(why)))


def check_prices(db: Connection, cart: Cart) -> None:
    prices = {row.sku: row.price_cents for row in db.execute(select(products.c.sku, products.c.price_cents))}
    if any(prices.get(line.sku) != line.price_cents for line in cart.lines):
        raise Rejected("price is not the shop's")


def take_stock(db: Connection, cart: Cart) -> None:
    """In the order of the products: two orders that lock the same ones must not wait for each other in turn."""
    for line in sorted(cart.lines, key=lambda line: line.sku):
        enough = (products.c.sku == line.sku) & (products.c.stock >= line.quantity)
        if not db.execute(update(products).where(enough).values(stock=products.c.stock - line.quantity)).rowcount:
            raise Rejected(f"out of stock: {line.sku}")
        sold = {"quantity": line.quantity, "price_cents": line.price_cents}
        add(db, order_lines, order_number=cart.number, sku=line.sku, **sold)


def take_money(db: Connection, cart: Cart) -> None:
    if sum(payment.amount_cents for payment in cart.payments) != cart.total_cents:
        raise Rejected("payments do not add up")
    for position, payment in enumerate(cart.payments, start=1):
        charge(payment)
        paid = {"method": payment.method, "amount_cents": payment.amount_cents}
        add(db, payments, order_number=cart.number, position=position, **paid)


def charge(payment: Payment) -> None:
    """Stands for a provider, which has to be given a key as well: it is outside of any transaction of ours."""
    if payment.token == "declined":
        raise Rejected("payment declined")


@handles("Resize image")
def resize_image(task: Task, attempt: Attempt) -> None:
    order = order_of(task)
    keep(folder("pictures") / f"{order.number}.jpg", papers.picture(folder("photos") / f"{order.photo}.jpg"))
    outbox.mark_done(order.number, task.task)


@handles("Generate invoice")
def generate_invoice(task: Task, attempt: Attempt) -> None:
    order = order_of(task)
    keep(folder("invoices") / f"{order.number}.pdf", papers.invoice(order))
    outbox.mark_done(order.number, task.task)


@handles("Send confirmation")
def send_confirmation(task: Task, attempt: Attempt) -> None:
    """A mail cannot be sent the same again, as a file can be written: it is claimed first, and marked afterwards."""
    order = order_of(task)
    if outbox.claim(order.number, task.task, again=attempt.redelivered):
        try:
            papers.send(papers.confirmation(order))
        except BaseException:
            outbox.release(order.number, task.task)
            raise
        outbox.mark_done(order.number, task.task)


def order_of(task: Task) -> Order:
    """The order of a follow-up, as the database knows it. Raises Reject if there is none."""
    number = (task.payload or {}).get("order")
    with snapshot() as db:
        row = db.execute(select(orders).where(orders.c.number == str(number), orders.c.rejected == "")).first()
        lines = select(products.c.name, order_lines.c.quantity, order_lines.c.price_cents).join_from(
            order_lines, products
        )
        items = db.execute(lines.where(order_lines.c.order_number == str(number)).order_by(products.c.sku))
        if row is None:
            raise Reject(f"there is no order {number!r}")
        at = papers.date_of(row.processed_at)
        return Order(row.number, row.email, row.photo, row.total_cents, at, tuple(Item(*item) for item in items))
