"""Runs the contestants of bench.py on one broker: their senders, their workers, their queues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from lab.nodes import ROOT, Broker
from pika.exceptions import ChannelClosedByBroker

PEERS = Path(__file__).parent
OWN = "ours"


class Stage:
    def __init__(self, broker: Broker, folder: Path, rounds: int) -> None:
        self.broker = broker
        self.folder = folder
        self.rounds = rounds
        self._number = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def in_turns(self, contestants: list[str], measure: Callable[[str], float]) -> dict[str, list[float]]:
        """What `measure` finds of each contestant, once a round, in turn; a first round warms up and is left out."""
        found: dict[str, list[float]] = {who: [] for who in contestants}
        for number in range(self.rounds + 1):
            for who in contestants:
                value = measure(who)
                if number:
                    found[who].append(value)
        return found

    def environment(self, queue: str, expected: int = 1, **settings: str) -> dict[str, str]:
        """For a program on `queue`, whose handler reports to BENCH_FILE after `expected` tasks."""
        self._number += 1
        ours = ("CONCURRENCY", "PREFETCH_COUNT", "QUEUE_TYPE", "SECONDS_PER_DIFFICULTY")
        return {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "RABBITMQ_URL": self.broker.url,
            "TASK_QUEUE": queue,
            "LOG_FORMAT": "json",
            "PYTHONPATH": str(PEERS),
            "BENCH_FILE": str(self.folder / f"{self._number}.json"),
            "BENCH_EXPECTED": str(expected),
            **settings,
        }

    def run(self, command: list[str], environment: dict[str, str]) -> str:
        """The standard output of a program. Raises subprocess.CalledProcessError."""
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=self.folder)
        return done.stdout

    def peer(self, who: str, command: str, count: int, queue: str) -> str:
        return self.run([*self._script(who), command, str(count)], self.environment(queue))

    def _script(self, who: str) -> list[str]:
        return [sys.executable, str(PEERS / f"{who.replace('-', '')}_peer.py")]

    def trickle(self, who: str, queue: str, count: int) -> None:
        """Has one task at a time sent, by a sender that gets a line for each.

        The line says when it was written, and the task passes it on to its handler. The first one waits for the
        sender to start, and is not timed.
        """
        sender = [sys.executable, str(ROOT / "sender.py"), "--quiet", "--file", "-"]
        with subprocess.Popen(
            sender if who == OWN else [*self._script(who), "trickle"],
            env=self.environment(queue),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
        ) as process:
            assert process.stdin
            for number in range(count):
                sent = time.monotonic() if number else 0.0
                task = {"id": number, "task": "x", "difficulty": 0, "payload": {"sent": sent}}
                process.stdin.write(json.dumps(task).encode() + b"\n")
                time.sleep(0.01 if number else 1)

    def at_once(self, commands: list[list[str]]) -> list[float]:
        """Runs programs side by side, and returns the numbers that they print."""
        files = {"stdout": subprocess.PIPE, "cwd": self.folder, "env": self.environment("none")}
        processes: list[subprocess.Popen[bytes]] = [subprocess.Popen(command, **files) for command in commands]  # type: ignore[call-overload]
        printed = [process.communicate()[0] for process in processes]
        assert not any(process.returncode for process in processes)
        return [float(number) for text in printed for number in text.split()]

    def send(self, queue: str, *flags: str, **settings: str) -> float:
        """Runs sender.py, and returns the seconds it took."""
        started = time.perf_counter()
        self.run([sys.executable, str(ROOT / "sender.py"), "--quiet", *flags], self.environment(queue, 1, **settings))
        return time.perf_counter() - started

    def send_rate(self, queue: str, count: int, **settings: str) -> float:
        """Tasks that sender.py gets confirmed a second, its start and its end left out."""
        without_tasks = self.send(queue, "--count", "0", **settings)
        return count / (self.send(queue, "--count", str(count), "--max-difficulty", "0", **settings) - without_tasks)

    def fill(self, who: str, queue: str, count: int) -> None:
        """Puts `count` tasks that do nothing into the queue."""
        if who in (OWN, "aio-pika"):
            self.send(queue, "--count", str(count), "--max-difficulty", "0")
        else:
            self.peer(who, "fill", count, queue)

    def worker(
        self, who: str, queue: str, at_once: int, environment: dict[str, str], *flags: str
    ) -> subprocess.Popen[bytes]:
        """Starts a worker that runs `at_once` tasks and holds no more, unless `flags` say so."""
        environment = {**environment, "dramatiq_queue_prefetch": str(at_once)}
        here, many = Path(sys.executable).parent, str(at_once)
        celery = [
            "--pool",
            "solo" if at_once == 1 else "threads",
            "--without-gossip",
            "--without-mingle",
            "-l",
            "ERROR",
        ]
        command = {
            OWN: [sys.executable, str(PEERS / "ours.py"), "--quiet", "--concurrency", many],
            "celery": [f"{here}/celery", "-A", "celery_peer", "worker", "-Q", queue, "--concurrency", many, *celery],
            "dramatiq": [f"{here}/dramatiq", "dramatiq_peer", "--processes", "1", "--threads", many, "-Q", queue],
            "aio-pika": [sys.executable, str(PEERS / "aiopika_peer.py"), "work", many],
        }[who]
        return self.start([*command, *flags], environment)

    def start(
        self, command: list[str], environment: dict[str, str], output: Path | None = None
    ) -> subprocess.Popen[bytes]:
        with open(output or os.devnull, "wb") as stdout:
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=stdout, stderr=subprocess.DEVNULL
            )
        self._processes.append(process)
        return process

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        for process in processes:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()
            self._processes.remove(process)

    def stop_all(self) -> None:
        self.stop(*list(self._processes))

    def resident(self, process: subprocess.Popen[bytes]) -> float:
        """Megabytes that a process and its children hold."""
        root = psutil.Process(process.pid)
        return sum(float(each.memory_info().rss) for each in [root, *root.children(recursive=True)]) / 2**20

    def ready(self, queue: str) -> int:
        with self.broker.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def until_consuming(self, queue: str, count: int = 1) -> float:
        """Returns the moment, in seconds of time.perf_counter(), at which `count` consumers were there."""
        with self.broker.channel() as channel:
            give_up_at = time.perf_counter() + 60
            while time.perf_counter() < give_up_at:
                try:
                    if channel.queue_declare(queue, passive=True).consumer_count == count:
                        return time.perf_counter()
                except ChannelClosedByBroker:  # the queue is not declared yet
                    channel = channel.connection.channel()
                time.sleep(0.002)
        raise AssertionError(f"waited in vain for {count} consumers of {queue}")

    def drop(self, queue: str) -> None:
        """Deletes a queue, and what the contestants make beside it."""
        retries = [f"{queue}.retry.{seconds}s" for seconds in (1, 5, 30)]
        with self.broker.channel() as channel:
            for name in (queue, f"{queue}.dead", *retries, f"{queue}.DQ", f"{queue}.XQ"):
                channel.queue_delete(name)
