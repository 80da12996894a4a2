"""The outbox: follow-up tasks that are written down in the transaction of their order, and then published.

A database and a broker share no transaction. Published before the commit, a follow-up could speak of an order that
there never was; published after it, it could be forgotten. So the order's transaction writes down what has to be
published. The handler publishes it, waits for the confirms, and marks it; only then its own task is acknowledged. A
worker that dies on the way leaves a task that comes again, and publishes what is not marked.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from functools import cache
from queue import Empty, SimpleQueue
from threading import Event

from sqlalchemy import ColumnElement, Connection, select, update

import config
import sender
from examples.orders.shop import add, engine, follow_ups
from tasks import Task
from workqueue.messages import Message
from workqueue.publisher import Publisher
from workqueue.queues import declare_task_queue
from workqueue.streams import note

FOLLOW_UPS = {"Resize image": 1, "Generate invoice": 2, "Send confirmation": 1}  # each with its difficulty
SHOP = uuid.UUID("5f0c3bb1-6f0e-4a0e-9a53-4b1f7f0a2c11")
CONFIRM_SECONDS = 30.0  # after that the task gets another attempt
CLAIM_SECONDS = 20.0  # for so long nobody takes over what another worker has claimed


def message(task: Task, key: str) -> Message:
    """The message of a task. The same key makes the same `message_id`, whoever publishes it again, and when."""
    made = sender.message(task)
    made.properties.message_id = str(uuid.uuid5(SHOP, key))
    return made


def promise(db: Connection, number: str) -> None:
    """In the order's own transaction."""
    for task in FOLLOW_UPS:
        add(db, follow_ups, order_number=number, task=task)


def publish(number: str) -> None:
    """Publishes the order's follow-ups that are not marked yet. Returns when the broker has them, and they are."""
    with engine().begin() as db:
        unpublished = (follow_ups.c.order_number == number) & follow_ups.c.published_at.is_(None)
        tasks = db.scalars(select(follow_ups.c.task).where(unpublished)).all()
    if not tasks:
        return
    publish_confirmed(publisher(), settings().task_queue, [follow_up(number, task) for task in tasks])
    mark = update(follow_ups).where(unpublished & follow_ups.c.task.in_(tasks)).values(published_at=time.time())
    with engine().begin() as db:
        db.execute(mark)


def claim(number: str, task: str, again: bool) -> bool:
    """Whether this follow-up is ours to do now; False if it is done. Raises BusyElsewhere while another is at it.

    `again`: our own message was delivered before, so that whoever had it is gone.
    """
    now = time.time()
    undone = _row(number, task) & follow_ups.c.done_at.is_(None)
    free = follow_ups.c.claimed_at.is_(None) | (follow_ups.c.claimed_at < now - (0 if again else CLAIM_SECONDS))
    taken = update(follow_ups).where(undone & free).values(claimed_at=now, tries=follow_ups.c.tries + 1)
    with engine().begin() as db:
        if db.execute(taken).rowcount:
            return True
        if db.execute(select(follow_ups.c.task).where(undone)).first():
            raise BusyElsewhere(f"another worker is at {task!r} of {number}")
        return False


class BusyElsewhere(Exception):
    """The task gets another attempt, which finds it done."""


def release(number: str, task: str) -> None:
    """It was claimed, and not done: the next attempt need not wait."""
    with engine().begin() as db:
        db.execute(update(follow_ups).where(_row(number, task)).values(claimed_at=None))


def mark_done(number: str, task: str) -> None:
    undone = _row(number, task) & follow_ups.c.done_at.is_(None)
    with engine().begin() as db:
        db.execute(update(follow_ups).where(undone).values(done_at=time.time()))


def _row(number: str, task: str) -> ColumnElement[bool]:
    return (follow_ups.c.order_number == number) & (follow_ups.c.task == task)


def follow_up(number: str, task: str) -> Message:
    return message(Task(number, task, FOLLOW_UPS[task], {"order": number}), f"{number}/{task}")


@cache
def settings() -> config.Settings:
    """The worker's own, but for its flag --queue, of which its handlers know nothing."""
    return config.load()


@cache
def shared_publisher() -> Publisher:
    return Publisher(settings(), f"outbox-{os.getpid()}", declare_task_queue, note)


def publisher() -> Publisher:
    """The one of this process: its connection is opened once. It is made anew if something has ended it."""
    if shared_publisher().error:
        shared_publisher.cache_clear()
    return shared_publisher()


def publish_confirmed(
    publisher: Publisher, queue: str, messages: Sequence[Message], seconds: float = CONFIRM_SECONDS
) -> None:
    """Returns when the broker has confirmed all of them. Raises what has ended the publisher, or TimeoutError."""
    answers: SimpleQueue[str] = SimpleQueue()
    given_up = Event()
    deadline = time.monotonic() + seconds
    for each in messages:
        publisher.publish(queue, each, lambda _, answer: answers.put(answer), wanted=lambda: not given_up.is_set())
    confirmed = 0
    try:
        while confirmed < len(messages):
            try:
                answer = answers.get(timeout=0.5)
            except Empty:
                if publisher.error:
                    raise publisher.error from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the broker has not confirmed a task for {seconds:g} s") from None
                continue
            if answer != "confirmed":
                raise RuntimeError(f"the broker has {answer} a task")
            confirmed += 1
    finally:
        given_up.set()
