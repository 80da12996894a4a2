"""Publishes tasks to the work queue.

Each task is a persistent message, published as `mandatory` and confirmed by the broker: a task that is counted as
confirmed is in the queue, and stays there through a restart of the broker.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pika import BasicProperties, DeliveryMode

import broker
import config
import tasks
from output import OutputClosed, SendReport, fill_missing_streams, harmless, note
from publisher import Publisher

EXAMPLES = """examples:
  python sender.py                         the demo batch of eight tasks
  python sender.py --task "Clear cache" --difficulty 2
  python sender.py --count 1000 --seed 7   generated tasks, the same for the seed
  python sender.py --file tasks.jsonl      one task per line of JSON

exit codes:
  0 all confirmed   1 something was not   2 wrong use or input   3 no broker
"""


INTERRUPTED_SECONDS = 10.0  # how long an interrupted sender waits for what is on its way


def main(argv: list[str] | None = None) -> int:
    fill_missing_streams()
    arguments = parse(argv)
    try:
        settings = config.load({"TASK_QUEUE": ("--queue", arguments.queue)})
        to_send = chosen_tasks(arguments)
    except (config.SettingError, tasks.BadTask) as error:
        note(f"sender.py: {error}")
        return 2
    bulk = arguments.count is not None or arguments.file is not None
    report = SendReport(quiet=arguments.quiet, bulk=bulk, total=arguments.count)
    return send(to_send, settings, arguments.window, report)


def send(to_send: Iterator[tasks.Task], settings: config.Settings, window: int, report: SendReport) -> int:
    """Publishes the tasks, waits until the broker has settled each, reports, and returns the exit code."""
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    name = f"sender-{uuid.uuid4().hex[:8]}"
    publisher = Publisher(settings, name, window, report.settled, report.note)
    exit_code = 0
    try:
        try:
            for task in to_send:
                publisher.publish(message(task))
            publisher.close()
        except (tasks.BadTask, OSError) as error:  # a bad line ends the sending; what was sent is still confirmed
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            report.note(f"sender.py: {reason}")
            exit_code = 2
            publisher.close()
        except KeyboardInterrupt:
            report.note("sender.py: interrupted: nothing more is sent, and what is on its way is waited for")
            exit_code = 1
            publisher.close(INTERRUPTED_SECONDS)
    except broker.BrokerError as error:
        report.note(f"sender.py: {error}")
        exit_code = error.exit_code
    except (OutputClosed, KeyboardInterrupt) as error:
        report.note(f"sender.py: {str(error) or 'interrupted'}; nothing more is sent")
        exit_code = 1
    report.close(publisher.published)
    return exit_code or int(report.confirmed < publisher.published)


def message(task: tasks.Task) -> broker.Message:
    """The message that carries a task. Published a second time, it keeps its `message_id`."""
    properties = BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        content_type="application/json",
        message_id=str(uuid.uuid4()),
        timestamp=int(time.time()),
        app_id="sender.py",
    )
    return broker.Message(task.encode(), properties, f"{harmless(task.task)} (difficulty: {task.difficulty:g})")


def chosen_tasks(arguments: argparse.Namespace) -> Iterator[tasks.Task]:
    """The tasks that the flags ask for, one at a time: a million of them never stand in memory."""
    if arguments.task is not None:
        return iter([single_task(arguments)])
    if arguments.count is not None:
        return tasks.generate(arguments.count, arguments.seed, arguments.max_difficulty)
    if arguments.file is not None:
        return tasks_of_file(arguments.file)
    return iter(tasks.DEMO_BATCH)


def single_task(arguments: argparse.Namespace) -> tasks.Task:
    members: dict[str, Any] = {"id": 1, "task": arguments.task}
    for name in ("difficulty", "payload"):
        text = getattr(arguments, name)
        if text is not None:
            try:
                members[name] = json.loads(text)
            except (ValueError, RecursionError):
                wanted = "a number, 0 or more" if name == "difficulty" else "a JSON object"
                raise tasks.BadTask(f"--{name} {text[:40]!r}: must be {wanted}") from None
    return tasks.Task.decode(json.dumps(members).encode())


def tasks_of_file(path: str) -> Iterator[tasks.Task]:
    """One task per line. Raises BadTask that names the line, or OSError."""
    name = "standard input" if path == "-" else path
    with open(0 if path == "-" else path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield tasks.Task.decode(line)
            except tasks.BadTask as error:
                raise tasks.BadTask(f"{name}, line {number}: {error}") from None


def interrupt(signal_number: int, frame: object) -> None:
    """The first signal ends the sending, and what is on its way is waited for; a second one ends the program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(1))
    raise KeyboardInterrupt


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sender.py",
        description="Publish tasks to the work queue.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--task", metavar="NAME", help="send one task of this name")
    source.add_argument("--count", metavar="N", type=whole(0), help="send N generated tasks")
    source.add_argument("--file", metavar="PATH", help="send the tasks of a file of JSON lines; - is standard input")
    parser.add_argument("--difficulty", metavar="N", help="with --task: its difficulty, 0 or more")
    parser.add_argument("--payload", metavar="JSON", help="with --task: an object for the handler")
    parser.add_argument("--seed", metavar="S", help="with --count: the same tasks for the same seed")
    parser.add_argument(
        "--max-difficulty", metavar="D", type=whole(0), help="with --count: the greatest difficulty (default: 5)"
    )
    parser.add_argument(
        "--window", metavar="N", type=whole(1), default=1000, help="unconfirmed tasks at once (default: %(default)s)"
    )
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    parser.add_argument("--quiet", action="store_true", help="print only the closing line")
    arguments = parser.parse_args(argv)
    if (arguments.task is None) != (arguments.difficulty is None):
        parser.error("--task and --difficulty go together")
    if arguments.payload is not None and arguments.task is None:
        parser.error("--payload goes with --task")
    if arguments.count is None and not (arguments.seed is None and arguments.max_difficulty is None):
        parser.error("--seed and --max-difficulty go with --count")
    if arguments.max_difficulty is None:
        arguments.max_difficulty = 5
    return arguments


def whole(least: int) -> Any:
    """A parser of whole numbers from `least` for argparse."""

    def parse_whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {10**12 - 1}")
        return int(text)

    return parse_whole


if __name__ == "__main__":
    sys.exit(main())
