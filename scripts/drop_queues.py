"""Deletes the queues of TASK_QUEUE: the work queue, its retry queues and its dead queue, with all that is in them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import config
from workqueue.dialing import dial

if __name__ == "__main__":
    settings = config.load()
    with dial(settings, "drop_queues.py") as connection:
        channel = connection.channel()
        retry_queues = [settings.retry_queue(delay) for delay in settings.retry_delays]
        for queue in (settings.task_queue, *retry_queues, settings.dead_queue):
            channel.queue_delete(queue)
