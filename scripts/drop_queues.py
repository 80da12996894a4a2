#!/usr/bin/env python3
"""Deletes the queues of TASK_QUEUE: the work queue, its retry queues and its dead queue, with all that is in them."""

from __future__ import annotations

import argparse
import sys

import _environment  # noqa: F401  # first: where our packages and modules are

import config
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.streams import note


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="drop_queues.py", description=__doc__)
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    arguments = parser.parse_args(argv)
    try:
        settings = config.load({"TASK_QUEUE": ("--queue", arguments.queue)})
    except config.SettingError as error:
        note(f"drop_queues.py: {error}")
        return 2
    retry_queues = [settings.retry_queue(delay) for delay in settings.retry_delays]
    try:
        with dial(settings, "drop_queues.py") as connection:
            channel = connection.channel()
            for queue in (settings.task_queue, *retry_queues, settings.dead_queue):
                channel.queue_delete(queue)
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, settings)
        note(f"drop_queues.py: {failure}")
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
