"""Celery:  celery -A celery_peer worker ...   or   celery_peer.py fill N | publish N | trickle"""

from __future__ import annotations

import os
import sys

import sending
from celery import Celery
from recorder import Recorder

CONFIRMS = sys.argv[1:2] != ["fill"]  # filling a queue before the measurement need not be safe
app = Celery("celery_peer", broker=os.environ["RABBITMQ_URL"])
app.conf.update(
    task_default_queue=os.environ["TASK_QUEUE"],
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"confirm_publish": CONFIRMS},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
record = Recorder()


@app.task(name="noop")
def noop(sent: float = 0.0) -> None:
    record(sent)


if __name__ == "__main__":
    sending.main(noop.delay)
