"""Dramatiq:  dramatiq dramatiq_peer ...   or   dramatiq_peer.py fill N | publish N | trickle"""

from __future__ import annotations

import os
import sys

import dramatiq
import sending
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from recorder import Recorder

CONFIRMS = sys.argv[1:2] != ["fill"]  # filling a queue before the measurement need not be safe
dramatiq.set_broker(RabbitmqBroker(url=os.environ["RABBITMQ_URL"], confirm_delivery=CONFIRMS))
record = Recorder()


@dramatiq.actor(queue_name=os.environ["TASK_QUEUE"])
def noop(sent: float = 0.0) -> None:
    record(sent)


if __name__ == "__main__":
    sending.main(noop.send)
