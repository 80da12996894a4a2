"""Dramatiq:  dramatiq dramatiq_peer ...   or   dramatiq_peer.py fill N | publish N | trickle"""

from __future__ import annotations

import json
import os
import sys
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from recorder import Recorder

CONFIRMS = sys.argv[1:2] != ["fill"]  # filling a queue before the measurement need not be safe
dramatiq.set_broker(RabbitmqBroker(url=os.environ["RABBITMQ_URL"], confirm_delivery=CONFIRMS))
record = Recorder()


@dramatiq.actor(queue_name=os.environ["TASK_QUEUE"])
def noop(sent: float = 0.0) -> None:
    record(sent)


if __name__ == "__main__":
    if sys.argv[1] == "trickle":
        for line in sys.stdin:
            noop.send(json.loads(line)["payload"]["sent"])
    else:
        count = int(sys.argv[2])
        noop.send()
        started = time.perf_counter()
        for _ in range(count - 1):
            noop.send()
        print((count - 1) / (time.perf_counter() - started))
