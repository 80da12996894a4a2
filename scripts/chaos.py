#!/usr/bin/env python3
"""Breaks things while tasks are sent and worked on, and counts what came of them.

Sends N tasks through M workers over a TCP forwarder, on a broker of its own, while it kills workers, stops them,
restarts and kills the broker, and cuts and stalls connections. Every fifth task fails at first, and is tried again. A
task counts as completed when its handler has returned, written down by the handler itself before the task is
acknowledged.

Ends with a table, and with exit code 1 if a confirmed task was lost. The same seed makes the same faults, in the same
order and at the same distances.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from _environment import ROOT
from lab.forwarder import Forwarder
from lab.nodes import Broker, Cluster, ContainerBroker, ContainerCluster, LocalBroker, LocalCluster, NoBroker
from lab.waiting import until

import worker
from tasks import Attempt, Task, generate

QUEUE = "chaos"
SECONDS_PER_TASK = 0.05
SETTLED_WITHIN = 120.0  # seconds for everything to calm down after the last fault


class Chaos:
    """One run: the broker, the forwarders in front of it, the sender, the workers, and the faults."""

    def __init__(self, broker: Broker, arguments: argparse.Namespace, folder: Path) -> None:
        self.broker = broker
        self.arguments = arguments
        self.folder = folder
        self.done_file = folder / "done"
        self.done_file.touch()
        self.links = [Forwarder(url) for url in broker.url.split(",")]
        self.dice = random.Random(arguments.seed)
        self.faults: Counter[str] = Counter()
        self.environment = {
            **os.environ,
            "RABBITMQ_URL": ",".join(link.url for link in self.links),
            "TASK_QUEUE": QUEUE,
            "QUEUE_TYPE": arguments.queue_type,
            "PREFETCH_COUNT": str(arguments.prefetch),
            "CONCURRENCY": str(arguments.concurrency),
            "RETRY_DELAYS": "1,1,1",
            "DELIVERY_LIMIT": "1000",  # workers are killed for no fault of the task in hand
            "HEARTBEAT_SECONDS": "2",
            "CONNECT_TIMEOUT_SECONDS": "120",
            "LOG_FORMAT": "json",
            "CHAOS_DONE_FILE": str(self.done_file),
            "CHAOS_FAILS_EVERY": str(arguments.fails_every),
        }
        self.workers = [self.start_worker(number) for number in range(arguments.workers)]

    def start_worker(self, number: int) -> subprocess.Popen[bytes]:
        with (self.folder / f"worker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, __file__, "worker", "--quiet"], env=self.environment, stdout=log, stderr=log
            )

    def run(self) -> int:
        names = self.arguments.faults.split(",")
        faults: dict[str, Callable[[], None]] = {
            "kill-worker": lambda: self.end_worker(signal.SIGKILL),
            "stop-worker": lambda: self.end_worker(signal.SIGTERM),
            "restart-broker": self.broker.restart if not isinstance(self.broker, Cluster) else self.kill_leader,
            "kill-broker": self.kill_broker if not isinstance(self.broker, Cluster) else self.kill_leader,
            "cut-links": lambda: self.each_link(Forwarder.reset),
            "cut-frames": lambda: self.each_link(Forwarder.cut_in_mid_frame),
            "stall-links": self.stall_links,
        }
        until(self.ready, "the workers to be ready", 120)
        self.broker.keep_queues()  # see docs/guarantees.md: what a crash does to a queue that is only a moment old
        sender_log = self.folder / "sender.log"
        with sender_log.open("wb") as log:
            command = [sys.executable, str(ROOT / "sender.py"), "--file", "-", "--quiet"]
            sender = subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        threading.Thread(target=self.feed, args=(sender,), daemon=True).start()
        started = time.monotonic()
        while len(self.done()) < self.arguments.tasks / 50:  # let it get going
            time.sleep(0.05)
            if sender.poll() not in (None, 0):
                break
        # every fault once, in the order of the seed, and then again, until the tasks or the time are used up
        pending: list[str] = []
        while time.monotonic() - started < self.arguments.seconds and (
            pending or len(self.done()) < self.arguments.tasks
        ):
            pending = pending or self.dice.sample(names, len(names))
            name = pending.pop()
            print(f"{time.monotonic() - started:6.1f} s  {len(self.done()):6} done  {name}", flush=True)
            self.faults[name] += 1
            faults[name]()
            self.revive_workers()
            time.sleep(self.dice.uniform(0.2, 1.5))
        sender.wait()
        self.calm_down()
        return self.report(sender_log.read_text(), time.monotonic() - started)

    def ready(self) -> bool:
        return all("worker_ready" in log.read_text() for log in self.folder.glob("worker-*.log"))

    def feed(self, sender: subprocess.Popen[bytes]) -> None:
        """Gives the sender its tasks a little faster than the workers can do them, so that it is at it all the time."""
        assert sender.stdin
        with suppress(BrokenPipeError), sender.stdin as pipe:
            for task in generate(self.arguments.tasks, str(self.arguments.seed), 0):
                pipe.write(task.encode() + b"\n")
                pipe.flush()
                time.sleep(SECONDS_PER_TASK / self.arguments.workers / 2)

    def end_worker(self, number: signal.Signals) -> None:
        self.dice.choice(self.workers).send_signal(number)

    def revive_workers(self) -> None:
        for number, process in enumerate(self.workers):
            if process.poll() is not None:
                self.workers[number] = self.start_worker(number)

    def kill_broker(self) -> None:
        self.broker.kill()
        self.broker.start()

    def kill_leader(self) -> None:
        assert isinstance(self.broker, Cluster)
        leader = self.broker.leader(QUEUE)
        if leader:
            self.broker.kill_node(leader)
            time.sleep(self.dice.uniform(0.5, 2))
            self.broker.start()

    def stall_links(self) -> None:
        """For less, or for more, than two heartbeats."""
        self.each_link(Forwarder.stall)
        time.sleep(self.dice.uniform(1, 6))
        self.each_link(Forwarder.flow)

    def each_link(self, do: Callable[[Forwarder], None]) -> None:
        for link in self.links:
            do(link)

    def calm_down(self) -> None:
        """Waits until no task is left on its way."""
        deadline = time.monotonic() + SETTLED_WITHIN
        while self.left() and time.monotonic() < deadline:
            self.revive_workers()
            time.sleep(0.2)
        for process in self.workers:
            process.send_signal(signal.SIGTERM)
        for process in self.workers:
            process.wait()
        for link in self.links:
            link.close()

    def kill_workers(self) -> None:
        """Those that are left when a fault of this script's own ends it."""
        for process in self.workers:
            process.kill()
            process.wait()

    def rows(self) -> list[str]:
        """What the broker says of each queue: name, ready, unacknowledged, consumers. Raises what asking it raises."""
        columns = ["name", "messages_ready", "messages_unacknowledged", "consumers"]
        rows = self.broker.ctl("--quiet", "list_queues", *columns).splitlines()
        return [row for row in rows if row.startswith(QUEUE) and ".begun." not in row]

    def left(self) -> int:
        """Tasks in the hands of workers, in the work queue and in the retry queues."""
        try:
            rows = [row.split("\t") for row in self.rows()]
        except (subprocess.CalledProcessError, NoBroker, AssertionError):
            return 1
        return sum(int(ready) + int(held) for name, ready, held, _ in rows if not name.endswith(".dead"))

    def done(self) -> Counter[int]:
        lines = self.done_file.read_text().splitlines()
        return Counter(int(line.split()[1]) for line in lines)

    def dead(self) -> set[int]:
        ids: set[int] = set()
        with self.broker.channel() as channel:
            while found := channel.basic_get(f"{QUEUE}.dead"):
                ids.add(json.loads(found[2])["id"])
        return ids

    def report(self, sender_log: str, seconds: float) -> int:
        closing = re.search(r"(\d+) tasks? sent, (\d+) confirmed", sender_log)
        sent, confirmed = (int(closing[1]), int(closing[2])) if closing else (0, 0)
        done, dead = self.done(), self.dead()
        missing = self.arguments.tasks - len(done.keys() | dead)
        lost = max(0, missing - (self.arguments.tasks - confirmed))
        moments = [float(line.split()[0]) for line in self.done_file.read_text().splitlines()]
        stalls = [later - earlier for earlier, later in pairwise(moments)]
        rows = {
            "sent": sent,
            "confirmed": confirmed,
            "completed": len(done),
            "lost": lost,
            "run more than once": sum(1 for count in done.values() if count > 1),
            "dead": len(dead),
            "longest stall": f"{max(stalls, default=0):.1f} s",
            "took": f"{seconds:.0f} s",
            "faults": ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
        }
        print()
        print(f"seed {self.arguments.seed}, {self.arguments.workers} workers, {self.arguments.queue_type} queue")
        for name, value in rows.items():
            print(f"  {name:<20}{value}")
        if confirmed < self.arguments.tasks:
            print("the end of the sender's log:", *sender_log.splitlines()[-8:], sep="\n  ")
        if lost or self.left():
            print("left in queues (ready, unacknowledged, consumers):", *self.rows(), sep="\n  ")
            for log in sorted(self.folder.glob("worker-*.log")):
                said = [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("{")]
                print(f"the end of {log.name}:", *said[-8:], sep="\n  ")
            print(f"lost: {sorted(set(range(1, self.arguments.tasks + 1)) - done.keys() - dead)[:20]} ...")
        return 1 if lost or not closing else 0


def work(task: Task, attempt: Attempt) -> None:
    """The handler of a chaos worker: a moment of work, then a line in the file of what is done.

    Every few tasks fail at first, so that there are always some in the retry queues.
    """
    time.sleep(SECONDS_PER_TASK)
    every = int(os.environ["CHAOS_FAILS_EVERY"])
    if every and int(task.id) % every == 0 and attempt.number == 1:
        raise RuntimeError("to be tried again")
    with open(os.environ["CHAOS_DONE_FILE"], "ab", buffering=0) as file:
        file.write(f"{time.monotonic()} {task.id}\n".encode())


FAULTS = "kill-worker,stop-worker,restart-broker,kill-broker,cut-links,cut-frames,stall-links"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.py", description="Break things, and count what came of the tasks.")
    parser.add_argument("--tasks", metavar="N", type=int, default=2000, help="tasks to send (default: %(default)s)")
    parser.add_argument("--workers", metavar="M", type=int, default=4, help="workers (default: %(default)s)")
    parser.add_argument("--concurrency", metavar="N", type=int, default=1, help="of each worker (default: %(default)s)")
    parser.add_argument("--prefetch", metavar="N", type=int, default=1, help="of each worker (default: %(default)s)")
    parser.add_argument(
        "--fails-every", metavar="N", type=int, default=5, help="each Nth task fails at first (default: %(default)s)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="of the faults (default: %(default)s)")
    parser.add_argument(
        "--seconds", metavar="T", type=float, default=120, help="no new fault after this (default: %(default)s)"
    )
    parser.add_argument("--faults", metavar="LIST", default=FAULTS, help="default: %(default)s")
    parser.add_argument("--queue-type", choices=["classic", "quorum"], default="classic", help="default: %(default)s")
    parser.add_argument("--nodes", type=int, choices=[1, 3], default=1, help="default: 1; of 3, the leader is killed")
    parser.add_argument("--broker", choices=["local", "container"], default="local", help="default: %(default)s")
    arguments = parser.parse_args()
    if min(arguments.tasks, arguments.workers, arguments.concurrency, arguments.prefetch) < 1:
        parser.error("--tasks, --workers, --concurrency and --prefetch start from 1")
    unknown = set(arguments.faults.split(",")) - set(FAULTS.split(","))
    if unknown:
        parser.error(f"--faults: there is no {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        broker: Broker
        try:
            if arguments.broker == "local":
                state = Path(folder) / "broker"
                broker = LocalBroker(state) if arguments.nodes == 1 else LocalCluster(state)
            else:
                broker = ContainerBroker() if arguments.nodes == 1 else ContainerCluster()
        except NoBroker as error:
            print(f"chaos.py: {error}", file=sys.stderr)
            return 3
        chaos = Chaos(broker, arguments, Path(folder))
        try:
            return chaos.run()
        finally:
            chaos.kill_workers()
            broker.remove()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        sys.exit(worker.main(sys.argv[2:], handle=work))
    sys.exit(main())
