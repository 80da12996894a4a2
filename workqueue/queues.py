"""What the queues are: the work queue, the retry queues, the dead queue. Declared here, and nowhere else.

                        fails: wait n seconds            given up
    task_queue ──► worker ──► task_queue.retry.<n>s ──► (task_queue)      task_queue.dead

What workers tell of their work goes to the exchange task_queue.events, to which whoever watches binds a queue.

Every queue is durable, and says its type: a virtual host may have another default.
"""

from __future__ import annotations

from typing import Any

from config import Settings
from workqueue.connection import Channel

Arguments = dict[str, Any]

CLASSIC = {"x-queue-type": "classic"}

# Workers count by themselves how often a task was begun: see counts.py. RabbitMQ counts what was only held, too, and
# would drop what has been given back 20 times.
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 2**31}

# RabbitMQ 4.3 waits a minute before it gives back what a worker held through a node that is gone. Others ignore this.
GIVEN_BACK_AFTER = {"x-consumer-disconnected-timeout": 5000}


def hands_over_to(queue: str) -> Arguments:
    """Arguments of a quorum queue that hands what expires or is given up in it over to `queue`, with a confirm."""
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # which RabbitMQ wants with at-least-once
    }


def work_arguments(settings: Settings) -> Arguments:
    if settings.queue_type == "quorum":
        return {**QUORUM, **GIVEN_BACK_AFTER, **hands_over_to(settings.dead_queue)}
    return CLASSIC


def dead_arguments(settings: Settings) -> Arguments:
    return QUORUM if settings.queue_type == "quorum" else CLASSIC


def retry_arguments(settings: Settings, delay: float) -> Arguments:
    """A quorum queue, whatever QUEUE_TYPE is: what expires in a classic one is handed over without a confirm, and
    lost when the broker is killed or the work queue is full."""
    return {**QUORUM, "x-message-ttl": round(delay * 1000), **hands_over_to(settings.task_queue)}


def declare_task_queue(channel: Channel, settings: Settings) -> None:
    """Makes sure that the work queue exists. Raises what pika raises where it exists as another."""
    if settings.queue_type != "existing":
        channel.queue_declare(settings.task_queue, durable=True, arguments=work_arguments(settings))


def declare_queues(channel: Channel, settings: Settings) -> None:
    """Makes sure that the work queue, the dead queue and one retry queue a delay exist."""
    if settings.queue_type == "existing":
        return
    declare_task_queue(channel, settings)
    channel.queue_declare(settings.dead_queue, durable=True, arguments=dead_arguments(settings))
    for delay in settings.retry_delays:
        channel.queue_declare(settings.retry_queue(delay), durable=True, arguments=retry_arguments(settings, delay))


def events_exchange(settings: Settings) -> str:
    return f"{settings.task_queue}.events"


def declare_events_exchange(channel: Channel, settings: Settings, passive: bool = False) -> None:
    """Makes sure that there is an exchange for events; if `passive`, that an operator has made one."""
    channel.exchange_declare(events_exchange(settings), "topic", passive=passive, durable=True)


def ready_tasks(channel: Channel, settings: Settings) -> int:
    """Tasks in the work queue that are not in the hands of a worker."""
    return int(channel.queue_declare(settings.task_queue, passive=True).message_count)
