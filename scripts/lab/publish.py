#!/usr/bin/env python3
"""Publishes persistent messages to an exchange, a thousand unconfirmed at once, and prints how many a second were
confirmed: what sender.py does, but for the exchange, and that each message has a routing key of its own.

publish.py EXCHANGE KEY COUNT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Semaphore

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pika import BasicProperties

import config
from workqueue.dialing import dial

BODY = b'{"id": 1, "task": "Clear cache", "difficulty": 0}'
WINDOW = 1000


def main() -> None:
    exchange, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    properties = BasicProperties(delivery_mode=2, content_type="application/json")
    room = Semaphore(WINDOW)

    def confirmed(outcome: str) -> None:
        assert outcome == "confirmed", outcome
        room.release()

    with dial(config.load(), "publish") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        print(time.monotonic(), flush=True)  # from now on
        for number in range(count):
            room.acquire()
            channel.basic_publish(exchange, key or str(number), BODY, properties, True, confirmed)
        for _ in range(WINDOW):
            room.acquire()
        print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
