#!/usr/bin/env python3
"""Looks at the tasks that were given up, and sends them back to work, or deletes them.

No call loses a task, whenever it is killed: a dead task is taken from its queue only when the broker has confirmed its
copy in the work queue (replay), or when you said so (purge). Until then it is held unacknowledged, and falls back into
the dead queue when this program ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pika import BasicProperties

import config
import tasks
from config import Settings
from workqueue.confirms import Confirms
from workqueue.connection import Channel
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.messages import copied
from workqueue.queues import declare_queues
from workqueue.streams import OutputClosed, harmless, note, say

REASONS = ("x-error", "x-error-type", "x-worker", "x-failed-at", "x-attempts", "x-deliveries")


@dataclass
class DeadTask:
    """A message of the dead queue, held unacknowledged. `position` counts from 1 at the head of the queue."""

    position: int
    tag: int
    properties: BasicProperties
    body: bytes

    @property
    def id(self) -> str:
        """What `show` and `--id` take: the message id, or where there is none the position, as #3."""
        message_id: str | bytes | None = self.properties.message_id
        if isinstance(message_id, bytes):  # pika leaves what is not UTF-8 as bytes
            return message_id.decode(errors="backslashreplace")
        return message_id or f"#{self.position}"

    @property
    def replays(self) -> int:
        value = (self.properties.headers or {}).get("x-replays")
        return value if isinstance(value, int) else 0

    def header(self, name: str) -> str:
        return harmless(str((self.properties.headers or {}).get(name, "unknown")))

    @property
    def what(self) -> str:
        try:
            task = tasks.Task.decode(self.body)
        except tasks.BadTask:
            return f"{len(self.body)} bytes that are no task"
        return f"{harmless(task.task)} (id: {harmless(str(task.id))}, difficulty: {task.difficulty:g})"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        settings = config.load({"TASK_QUEUE": ("--queue", arguments.queue)})
        with dial(settings, "dead_letters.py") as connection:
            channel = connection.channel()
            declare_queues(channel, settings)
            return int(arguments.run(channel, settings, arguments))
    except config.SettingError as error:
        note(f"dead_letters.py: {error}")
        return 2
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, settings)
        note(f"dead_letters.py: {failure}")
        return failure.exit_code
    except (OutputClosed, KeyboardInterrupt) as error:
        note(f"dead_letters.py: {error or 'interrupted'}; what was not finished is in the dead queue as before")
        return 1


def dead_tasks(channel: Channel, settings: Settings) -> Iterator[DeadTask]:
    """The tasks that are in the dead queue now, oldest first; what is not acknowledged goes back in the end.

    Only so many as there are at the start: a task that is replayed and dies again is not met a second time.
    """
    count = channel.queue_declare(settings.dead_queue, passive=True).message_count
    for position in range(1, count + 1):
        found = channel.basic_get(settings.dead_queue)
        if found is None:  # somebody else took it
            return
        method, properties, body = found
        yield DeadTask(position, method.delivery_tag, properties, body)


def list_tasks(channel: Channel, settings: Settings, arguments: argparse.Namespace) -> int:
    count = 0
    for count, dead in enumerate(dead_tasks(channel, settings), start=1):  # noqa: B007
        say(f"{harmless(dead.id)}  {dead.what}")
        say(f"    {dead.header('x-error-type')}: {dead.header('x-error')}")
        say(f"    {dead.header('x-worker')}, {dead.header('x-failed-at')}, attempts: {dead.header('x-attempts')}")
    say(f"{count} dead in {settings.dead_queue}")
    return 0


def show(channel: Channel, settings: Settings, arguments: argparse.Namespace) -> int:
    for dead in dead_tasks(channel, settings):
        if dead.id == arguments.id or f"#{dead.position}" == arguments.id:
            for name, value in sorted((dead.properties.headers or {}).items()):
                say(f"{harmless(name)}: {harmless(str(value), most=1000)}")
            say("")
            say(readable(dead.body))
            return 0
    note(f"dead_letters.py: no task {arguments.id!r} in {settings.dead_queue}: see `dead_letters.py list`")
    return 1


def readable(body: bytes) -> str:
    """JSON laid out, other text as it is, anything else with escapes; nothing that a terminal would obey."""
    text = body.decode(errors="backslashreplace")
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(body), indent=2)
    return "\n".join(harmless(line, most=10_000) for line in text.split("\n"))


def replay(channel: Channel, settings: Settings, arguments: argparse.Namespace) -> int:
    channel.confirm_delivery()
    wanted = set(arguments.id or [])
    replayed = 0
    for dead in dead_tasks(channel, settings):
        if not arguments.all and dead.id not in wanted:
            continue
        wanted.discard(dead.id)
        # counted, so that no worker takes it for what it had in hand before
        headers = {**dict.fromkeys(REASONS), "x-replays": dead.replays + 1}
        message = copied(dead.body, dead.properties, headers, channel.connection.frame_max)
        outcome = channel.publish_and_wait(settings.task_queue, message.body, message.properties)
        if outcome != Confirms.CONFIRMED:
            note(f"dead_letters.py: {settings.task_queue} does not take {harmless(dead.id)} ({outcome}): it stays dead")
            return 1
        channel.basic_ack(dead.tag)  # only now that the copy is confirmed: in between there are two, never none
        replayed += 1
        say(f"Replayed: {dead.what}")
    say(f"{replayed} replayed")
    for missing in sorted(wanted):
        note(f"dead_letters.py: no task {missing!r} in {settings.dead_queue}")
    return 1 if wanted else 0


def purge(channel: Channel, settings: Settings, arguments: argparse.Namespace) -> int:
    held = [dead.tag for dead in dead_tasks(channel, settings)]  # what dies from now on is not deleted unseen
    if held and not arguments.yes:
        if not sys.stdin.isatty():
            note("dead_letters.py: purge deletes for good: say --yes where nobody can be asked")
            return 2
        say(f"Delete {len(held)} dead tasks of {settings.dead_queue} for good? [y/N]")
        if not sys.stdin.readline().strip().lower().startswith("y"):
            say("Nothing deleted")
            return 1
    for tag in held:
        channel.basic_ack(tag)
    say(f"{len(held)} deleted")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dead_letters.py", description="The tasks that were given up.")
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="what, why, who, when")
    command.set_defaults(run=list_tasks)
    command = commands.add_parser("show", help="the headers and the body of one")
    command.add_argument("id", metavar="ID", help="as in the list")
    command.set_defaults(run=show)
    command = commands.add_parser("replay", help="back into the work queue, with a new count of attempts")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", metavar="ID", action="append", help="this one, as in the list; may be repeated")
    which.add_argument("--all", action="store_true", help="all that are dead now")
    command.set_defaults(run=replay)
    command = commands.add_parser("purge", help="delete all that are dead now")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.set_defaults(run=purge)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
