#!/usr/bin/env python3
"""Looks at the tasks that were given up, and sends them back to work, or deletes them.

No call loses a task, whenever it is killed: a dead task is taken from its queue only when the broker has confirmed a
copy of it, or when you said so (purge). Until then it is held unacknowledged, and falls back into the dead queue when
this program ends. Looking changes nothing, however often.

A task without a message id is named by its place in the list, as @3.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import _environment  # noqa: F401  # first: where our packages and modules are
from pika import BasicProperties

import config
import tasks
from config import Settings
from workqueue.confirms import Confirms
from workqueue.connection import Channel
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.messages import DoesNotFit, copied, count_of
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
        """What `show` and `--id` take: the message id, or where there is none the position, as @3."""
        message_id: str | bytes | None = self.properties.message_id
        if isinstance(message_id, bytes):  # pika leaves what is not UTF-8 as bytes
            return message_id.decode(errors="backslashreplace")
        return message_id or f"@{self.position}"

    @property
    def names(self) -> set[str]:
        return {self.id, f"@{self.position}", f"#{self.position}"}

    def header(self, name: str) -> str:
        return harmless(str((self.properties.headers or {}).get(name, "unknown")))

    @property
    def what(self) -> str:
        try:
            task = tasks.Task.decode(self.body)
        except tasks.BadTask:
            return f"{len(self.body)} bytes that are no task"
        return f"{harmless(task.task)} (id: {harmless(str(task.id))}, difficulty: {task.difficulty:g})"


class DeadQueue:
    """The dead queue, where whatever is taken is given back, unless it is removed.

    A quorum queue counts how often a message comes back, and deletes it after 20 times, or whatever an operator's
    limit is. So what has come back before is not given back a second time: a confirmed copy of it, which counts from
    the start, goes to the end of the queue. So does all that stood behind it: then the order stays as it was.
    """

    def __init__(self, channel: Channel, settings: Settings) -> None:
        self._channel = channel
        self._name = settings.dead_queue
        self._held: dict[int, DeadTask] = {}
        self._to_return: list[int] = []
        self._copying = False

    @cached_property
    def count(self) -> int:
        """Tasks that are in it when this is asked first."""
        return int(self._channel.queue_declare(self._name, passive=True).message_count)

    def take(self) -> Iterator[DeadTask]:
        """The tasks that are in it now, oldest first.

        Only so many as there are at the start: a task that is replayed and dies again is not met a second time.
        """
        for position in range(1, self.count + 1):
            found = self._channel.basic_get(self._name)
            if found is None:  # somebody else took it
                return
            method, properties, body = found
            dead = self._held[method.delivery_tag] = DeadTask(position, method.delivery_tag, properties, body)
            yield dead

    def remove(self, dead: DeadTask) -> None:
        del self._held[dead.tag]
        self._channel.basic_ack(dead.tag)

    def give_back(self, dead: DeadTask) -> None:
        self._copying = self._copying or count_of(dead.properties, "x-delivery-count") > 0
        if self._copying and self.put(self._name, dead, {}) == Confirms.CONFIRMED:
            self.remove(dead)
        else:
            del self._held[dead.tag]
            self._to_return.append(dead.tag)  # not yet: it would be the next one that we take

    def put(self, queue: str, dead: DeadTask, headers: dict[str, Any]) -> str:
        """Publishes a copy, and returns the broker's answer, or why there is none."""
        try:
            message = copied(dead.body, dead.properties, headers, self._channel.connection.frame_max)
        except DoesNotFit as error:
            return str(error)
        return self._channel.publish_and_wait(queue, message.body, message.properties)

    def close(self) -> None:
        """Gives back what is still held."""
        for dead in list(self._held.values()):
            self.give_back(dead)
        for tag in self._to_return:  # RabbitMQ 4.3 counts what a channel that ends leaves behind, and not this
            self._channel.basic_nack(tag)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        settings = config.load({"TASK_QUEUE": ("--queue", arguments.queue)})
        with dial(settings, "dead_letters.py") as connection:
            connection.on_blocked = say_blocked
            channel = connection.channel()
            declare_queues(channel, settings)
            channel.confirm_delivery()
            with closing(DeadQueue(channel, settings)) as dead_queue:
                return int(arguments.run(dead_queue, settings, arguments))
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


def say_blocked(blocked: bool) -> None:
    if blocked:
        note("dead_letters.py: the broker is out of memory or disk and takes no tasks: waiting until it does")


def list_tasks(dead_queue: DeadQueue, settings: Settings, arguments: argparse.Namespace) -> int:
    count = 0
    for count, dead in enumerate(dead_queue.take(), start=1):  # noqa: B007
        say(f"{harmless(dead.id)}  {dead.what}")
        say(f"    {dead.header('x-error-type')}: {dead.header('x-error')}")
        say(f"    {dead.header('x-worker')}, {dead.header('x-failed-at')}, attempts: {dead.header('x-attempts')}")
        dead_queue.give_back(dead)
    say(f"{count} dead in {settings.dead_queue}")
    return 0


def show(dead_queue: DeadQueue, settings: Settings, arguments: argparse.Namespace) -> int:
    found = False
    for dead in dead_queue.take():  # all of them: then their order stays
        if arguments.id in dead.names and not found:
            found = True
            for name, value in sorted((dead.properties.headers or {}).items()):
                say(f"{harmless(name)}: {harmless(str(value), most=1000)}")
            say("")
            say(readable(dead.body))
        dead_queue.give_back(dead)
    if not found:
        note(f"dead_letters.py: no task {arguments.id!r} in {settings.dead_queue}: see `dead_letters.py list`")
    return 0 if found else 1


def readable(body: bytes) -> str:
    """JSON laid out, other text as it is, anything else with escapes; nothing that a terminal would obey."""
    text = body.decode(errors="backslashreplace")
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(body), indent=2)
    return "\n".join(harmless(line, most=10_000) for line in text.split("\n"))


def replay(dead_queue: DeadQueue, settings: Settings, arguments: argparse.Namespace) -> int:
    wanted = set(arguments.id or [])
    replayed = 0
    for dead in dead_queue.take():
        if not (arguments.all or wanted & dead.names):
            dead_queue.give_back(dead)
            continue
        wanted -= dead.names
        # counted, so that no worker takes it for what it had in hand before
        headers = {**dict.fromkeys(REASONS), "x-replays": count_of(dead.properties, "x-replays") + 1}
        outcome = dead_queue.put(settings.task_queue, dead, headers)
        if outcome != Confirms.CONFIRMED:
            note(f"dead_letters.py: {settings.task_queue} does not take {harmless(dead.id)} ({outcome}): it stays dead")
            return 1
        dead_queue.remove(dead)  # only now that the copy is confirmed: in between there are two, never none
        replayed += 1
        say(f"Replayed: {dead.what}")
    say(f"{replayed} replayed")
    for missing in sorted(wanted):
        note(f"dead_letters.py: no task {missing!r} in {settings.dead_queue}")
    return 1 if wanted else 0


def purge(dead_queue: DeadQueue, settings: Settings, arguments: argparse.Namespace) -> int:
    if dead_queue.count and not arguments.yes and not sys.stdin.isatty():
        note("dead_letters.py: purge deletes for good: say --yes where nobody can be asked")
        return 2
    held = list(dead_queue.take())  # what dies from now on is not deleted unseen
    if held and not arguments.yes:
        say(f"Delete {len(held)} dead {'task' if len(held) == 1 else 'tasks'} of {settings.dead_queue} for good? [y/N]")
        if not sys.stdin.readline().strip().lower().startswith("y"):
            say("Nothing deleted")
            return 1
    for dead in held:
        dead_queue.remove(dead)
    say(f"{len(held)} deleted")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dead_letters.py", description="The tasks that were given up.", epilog=__doc__.rpartition("\n\n")[2]
    )
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="what, why, who, when")
    command.set_defaults(run=list_tasks)
    command = commands.add_parser("show", help="the headers and the body of one")
    command.add_argument("id", metavar="ID", help="as in the list: a message id, or @3 for the third")
    command.set_defaults(run=show)
    command = commands.add_parser("replay", help="back into the work queue, with a new count of attempts")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--id",
        metavar="ID",
        action="append",
        help="this one: a message id, or @3 for the third of the list; may be repeated",
    )
    which.add_argument("--all", action="store_true", help="all that are dead now")
    command.set_defaults(run=replay)
    command = commands.add_parser("purge", help="delete all that are dead now")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.set_defaults(run=purge)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
