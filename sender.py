"""Publishes tasks to the work queue.

Each task is a persistent message, published as `mandatory` and confirmed by the broker: a task that is counted as
confirmed is in the queue, and stays there through a restart of the broker.

    main thread: makes messages ─► publisher's thread: connects, again if need be ─► broker
    report thread: prints       ◄─ connection's thread: the broker's answers      ◄─ broker
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Iterator

from pika import BasicProperties, DeliveryMode

from config import SettingError, Settings, load
from tasks import BadTask, Task
from workqueue import flags
from workqueue.errors import BrokerError
from workqueue.messages import Message, sent_now, unique_id
from workqueue.processes import end_if_another
from workqueue.publisher import Publisher
from workqueue.queues import declare_task_queue
from workqueue.report import SendReport
from workqueue.sources import chosen_tasks
from workqueue.streams import OutputClosed, fill_missing_streams, harmless, hurry, note

INTERRUPTED_SECONDS = 10.0  # how long an interrupted sender waits for what is on its way


def main(argv: list[str] | None = None) -> int:
    fill_missing_streams()
    arguments = flags.of_sender(argv)
    try:
        settings = load(arguments.settings)
        to_send = chosen_tasks(arguments)
    except (SettingError, BadTask) as error:
        note(f"sender.py: {error}")
        return 2
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    return send(to_send, settings, SendReport(arguments.quiet, arguments.bulk, arguments.count, arguments.window))


def message(task: Task) -> Message:
    """The message that carries a task. Published a second time, it keeps its `message_id`."""
    label = f"{harmless(task.task)} (difficulty: {task.difficulty:g}) (id: {harmless(str(task.id), most=40)})"
    properties = BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        content_type="application/json",
        message_id=unique_id(),
        timestamp=int(time.time()),
        app_id="sender.py",
        headers=sent_now(),
    )
    return Message(task.encode(), properties, label)


def publish(to_send: Iterator[Task], queue: str, publisher: Publisher, report: SendReport) -> None:
    """Publishes the tasks, no more than the window unconfirmed at once, and waits for the broker's answers."""
    for task in to_send:
        report.room.get()  # a place in the window; waits for one
        if report.error:
            raise report.error
        publisher.publish(queue, message(task), report.settled)
    publisher.close()
    report.finish()


def send(to_send: Iterator[Task], settings: Settings, report: SendReport) -> int:
    """Publishes the tasks, says how that ended, and returns the exit code."""
    name = f"sender-{uuid.uuid4().hex[:8]}"
    publisher = Publisher(settings, name, declare_task_queue, report.note, settings.connect_timeout_seconds)
    publisher.on_failure = lambda error: report.room.put(None)  # for whoever waits, to be told
    exit_code = 0
    try:
        try:
            publish(to_send, settings.task_queue, publisher, report)
        except BadTask as error:  # a bad line ends the sending; what was sent is still confirmed
            report.note(f"sender.py: {error}")
            exit_code = 2
            publisher.close()
        except KeyboardInterrupt:
            report.note("sender.py: interrupted: nothing more is sent, and what is on its way is waited for")
            exit_code = 1
            publisher.close(INTERRUPTED_SECONDS)
    except BrokerError as error:
        report.note(f"sender.py: {error}")
        exit_code = error.exit_code
    except (OutputClosed, KeyboardInterrupt) as error:
        report.note(f"sender.py: {str(error) or 'interrupted'}; nothing more is sent")
        exit_code = 1
    all_well = report.close(publisher.abandon())
    return exit_code or int(not all_well)


def interrupt(signal_number: int, frame: object) -> None:
    """The first signal ends the sending, and what is on its way is waited for; a second one ends the program."""
    told_at = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end_if_another(told_at))
    hurry()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
