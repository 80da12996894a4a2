"""Publishes what workers with --events would, without any task: many of them, or ones that behave as a test wants.

python tests/fake_workers.py WORKERS TASKS_A_SECOND [SECONDS]     to RABBITMQ_URL and TASK_QUEUE
"""

from __future__ import annotations

import json
import random
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pika import BasicProperties

import config
from workqueue.connection import Channel
from workqueue.dialing import dial
from workqueue.queues import declare_queues

BATCH_SECONDS = 0.1
LINES = BasicProperties(content_type="application/x-ndjson", delivery_mode=1)


class FakeWorker:
    """The events of one run; `seq` goes on by itself."""

    def __init__(self, channel: Channel, queue: str, name: str) -> None:
        self.channel = channel
        self.exchange = f"{queue}.events"
        self.queue = queue
        self.name = name
        self.run = uuid.uuid4().hex
        self.seq = 0
        self.born = time.monotonic()
        self.deliveries = 0
        self.totals = {"completed": 0, "retried": 0, "dead": 0, "lost": 0}
        self.running: dict[int, dict[str, Any]] = {}

    @property
    def up(self) -> float:
        return round(time.monotonic() - self.born, 6)

    def event(self, event: str, **details: Any) -> dict[str, Any]:
        self.seq += 1
        moment = datetime.now(UTC).isoformat(timespec="microseconds")
        shared = {"run": self.run, "seq": self.seq, "up": self.up}
        return {"event": event, "worker": self.name, "time": moment, **shared, **details}

    def publish(self, *events: dict[str, Any]) -> None:
        """In one message: all of them of one name."""
        body = "\n".join(json.dumps(event) for event in events).encode()
        self.channel.basic_publish(self.exchange, events[0]["event"], body, LINES)

    def heartbeat(self, **details: Any) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "queue": self.queue,
            "interval": 1.0,
            "state": "working" if self.running else "waiting",
            "prefetch": 1,
            "concurrency": 1,
            "held": len(self.running),
            **self.totals,
            "running": list(self.running.values())[:50],
            "more": max(0, len(self.running) - 50),
            "dropped": 0,
        }
        return self.event("worker_heartbeat", **{**shared, **details})

    def begin(self, task: str = "Resize image", difficulty: float = 1, waited: float | None = 0.5) -> dict[str, Any]:
        self.deliveries += 1
        shown = {"delivery": self.deliveries, "id": self.deliveries, "task": task, "difficulty": difficulty}
        event = self.event("task_started", **shown, **self._delivered(), waited=waited)
        self.running[self.deliveries] = {**shown, "attempt": 1, "since": event["up"], "done": None, "total": None}
        return event

    def finish(self, event: str = "task_completed", **details: Any) -> dict[str, Any]:
        """The oldest of its tasks."""
        delivery, task = next(iter(self.running.items()))
        del self.running[delivery]
        total = {"task_completed": "completed", "task_retried": "retried", "task_dead": "dead"}.get(event, "lost")
        self.totals[total] += 1
        shown = {name: task[name] for name in ("delivery", "id", "task", "difficulty")}
        if event == "task_completed":
            details = {"seconds": round(self.up - task["since"], 6), **details}
        return self.event(event, **shown, **self._delivered(), **details)

    def _delivered(self) -> dict[str, Any]:
        return {"message_id": str(uuid.UUID(int=self.deliveries)), "attempt": 1, "redelivered": False}


def crowd(count: int, tasks_a_second: float, seconds: float) -> None:
    """`count` workers that do so many tasks in all."""
    settings = config.load()
    with dial(settings, "fake_workers.py") as connection:
        channel = connection.channel()
        channel.exchange_declare(f"{settings.task_queue}.events", "topic", durable=True)
        declare_queues(channel, settings)
        workers = [FakeWorker(channel, settings.task_queue, f"Worker-{n:08x}") for n in range(count)]
        began = time.monotonic()
        tick = 0
        owed = [random.random() for _ in workers]
        while time.monotonic() - began < seconds:
            tick += 1
            for number, worker in enumerate(workers):
                owed[number] += tasks_a_second * BATCH_SECONDS / count
                begun, done = [], []
                while owed[number] >= 1:
                    owed[number] -= 1
                    begun.append(worker.begin())
                    done.append(worker.finish())
                if begun:
                    worker.publish(*begun)
                    worker.publish(*done)
                if (tick + number) % 10 == 0:
                    worker.publish(worker.heartbeat())
            time.sleep(max(0.0, began + tick * BATCH_SECONDS - time.monotonic()))
        print(f"{sum(worker.totals['completed'] for worker in workers)} tasks, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    crowd(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) if sys.argv[3:] else float("inf"))
