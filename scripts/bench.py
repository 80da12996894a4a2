#!/usr/bin/env python3
"""Measures sender.py and worker.py beside what people would pick instead, on one broker, in one run.

bench.py [--broker local|container] [--rounds N] [--json FILE] [--only FIGURE,...] [--contestants NAME,...]

The contestants take turns (A B A B ...) after a warm-up; a figure is the median over the rounds, and its spread is the
least and the most. They come from requirements-bench.txt.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where this is not the program that runs

from _environment import ROOT

sys.path.insert(0, str(ROOT / "scripts/peers"))

try:
    import psutil
    from lab.nodes import Broker, Cluster, ContainerBroker, ContainerCluster, LocalBroker, LocalCluster, NoBroker
    from lab.waiting import until
    from stage import OWN, Stage
except ModuleNotFoundError as error:
    print(f"bench.py: no module {error.name!r}: pip install -r requirements-bench.txt", file=sys.stderr)
    sys.exit(2)

CONTESTANTS = (OWN, "celery", "dramatiq", "aio-pika")
QUEUES = ("celery", "dramatiq")  # the contestants that are task queues, and not only a client
PUBLISHED = {OWN: 50_000, "celery": 2000, "dramatiq": 2000, "aio-pika": 20_000}
WORKED = 5000
TOLD = 20_000  # enough for several heartbeats
SLOW_WORKED = 60  # by Celery's solo pool, which at prefetch 1 stands still for two seconds after every few tasks


class Bench:
    """The figures. Each method measures one, prints what it found, and adds a row for each of its targets."""

    def __init__(self, stage: Stage, contestants: list[str]) -> None:
        self.stage = stage
        self.contestants = contestants
        self.found: dict[str, Any] = {}
        self.rows: list[tuple[str, str, str, str]] = []  # figure, measured, target, met or missed

    # What is kept and printed

    def note(self, figure: str, unit: str, values: dict[str, list[float]], digits: int = 0) -> dict[str, float]:
        """Prints and keeps the values of each contestant, and returns their medians."""
        self.found[figure] = {"unit": unit, "values": values}
        medians = {who: statistics.median(each) for who, each in values.items()}
        print(figure)
        for who, each in values.items():
            spread = f"{min(each):,.{digits}f} to {max(each):,.{digits}f}"
            print(f"    {who:<12}{medians[who]:>12,.{digits}f} {unit:<4} ({spread})", flush=True)
        return medians

    def compare(self, figure: str, medians: dict[str, float], other: str, target: float, at_least: bool = True) -> None:
        if other in medians:
            self.verdict(f"{figure} / {other}", medians[OWN] / medians[other], target, at_least)

    def verdict(self, figure: str, measured: float, target: float, at_least: bool, unit: str = "x") -> None:
        met = measured >= target if at_least else measured <= target
        shown = f"{measured:.2f} {unit}", f"{'≥' if at_least else '≤'} {target:g} {unit}"
        self.rows.append((figure, *shown, "met" if met else "missed"))

    def table(self) -> str:
        return "\n".join(
            f"{figure:<50}{measured:>10}   {target:<8} {met}" for figure, measured, target, met in self.rows
        )

    # The figures

    def publishing(self) -> None:
        """Confirmed tasks a second, until the broker has confirmed the last one."""

        def rate(who: str) -> float:
            queue, count = f"publish-{who}", PUBLISHED[who]
            found = self.stage.send_rate(queue, count) if who == OWN else self._printed(who, "publish", count, queue)
            self.stage.drop(queue)
            return found

        medians = self.note("confirmed publishing", "/s", self.stage.in_turns(self.contestants, rate))
        for other, target in (("celery", 12), ("dramatiq", 10), ("aio-pika", 2)):
            self.compare("confirmed publishing", medians, other, target)

    def _printed(self, who: str, command: str, count: int, queue: str) -> float:
        return float(self.stage.peer(who, command, count, queue))

    def work_rate(self, who: str, at_once: int) -> float:
        """Tasks that do nothing, a second, from the first to the last: of a queue that was filled before."""
        count = SLOW_WORKED if (who, at_once) == ("celery", 1) else WORKED
        queue = f"work-{who}"
        self.stage.fill(who, queue, count)
        report = self.reported(who, queue, at_once, count)
        self.stage.drop(queue)
        return (count - 1) / float(report["last"] - report["first"])

    def reported(self, who: str, queue: str, at_once: int, count: int, *flags: str, **settings: str) -> Any:
        """What a worker's handler reports after `count` tasks of a queue that holds as many."""
        environment = self.stage.environment(queue, count, **settings)
        process = self.stage.worker(who, queue, at_once, environment, *flags)
        file = Path(environment["BENCH_FILE"])
        until(file.exists, f"{who} to do {count} tasks", seconds=120)
        self.stage.stop(process)
        return json.loads(file.read_text())

    def working(self) -> None:
        values = self.stage.in_turns(self.contestants, lambda who: self.work_rate(who, 1))
        medians = self.note("no-op tasks, one at a time, prefetch 1", "/s", values)
        self._ahead_of_both("no-op tasks, one at a time", medians, 1.1)

    def working10(self) -> None:
        one = "ours, one"  # in the same turns, since it is a ratio
        values = self.stage.in_turns(
            [*self.contestants, one], lambda who: self.work_rate(OWN, 1) if who == one else self.work_rate(who, 10)
        )
        medians = self.note("no-op tasks, ten at once, prefetch 10", "/s", values)
        self.verdict("ten at once / own one at a time", medians[OWN] / medians[one], 3, at_least=True)
        self._ahead_of_both("no-op tasks, ten at once", medians, 1)

    def _ahead_of_both(self, figure: str, medians: dict[str, float], target: float) -> None:
        best = max((who for who in QUEUES if who in medians), key=medians.__getitem__, default="")
        self.compare(figure, medians, best, target)

    def latency(self) -> None:
        """From when the sender is told of a task to the start of its handler, one task every 10 ms, in milliseconds."""

        def milliseconds(who: str) -> float:
            queue, count = f"latency-{who}", SLOW_WORKED if who == "celery" else 200
            environment = self.stage.environment(queue, count)
            process = self.stage.worker(who, queue, 1, environment)
            self.stage.until_consuming(queue)
            self.stage.trickle(who, queue, count)
            file = Path(environment["BENCH_FILE"])
            until(file.exists, f"{who} to do {count} tasks", seconds=120)
            self.stage.stop(process)
            self.stage.drop(queue)
            return 1000 * float(statistics.median(json.loads(file.read_text())["delays"]))

        contestants = [who for who in self.contestants if who in (OWN, *QUEUES)]
        medians = self.note("publish to handler, idle worker", "ms", self.stage.in_turns(contestants, milliseconds), 2)
        self.compare("publish to handler", medians, "dramatiq", 1, at_least=False)

    def makespan(self) -> None:
        """200 tasks of 0 to 50 ms on four workers, beside list scheduling: each task in turn to who is free first."""
        dice = random.Random(1)
        tasks = [round(dice.uniform(0, 0.05), 5) for _ in range(200)]
        file = self.stage.folder / "makespan.jsonl"
        file.write_text("".join(f'{{"id": {n}, "task": "x", "difficulty": {d}}}\n' for n, d in enumerate(tasks)))
        free = [0.0] * 4
        for seconds in tasks:
            heapq.heappush(free, heapq.heappop(free) + seconds)

        def ratio(who: str) -> float:
            queue = "makespan"
            logs = [self.stage.folder / f"worker-{number}.log" for number in range(4)]
            command = [sys.executable, str(ROOT / "worker.py")]
            workers = [self.stage.start(command, self.stage.environment(queue), log) for log in logs]
            self.stage.until_consuming(queue, 4)
            self.stage.send(queue, "--file", str(file))

            def moments(event: str) -> list[float]:
                lines = [line for log in logs for line in log.read_text().splitlines(keepends=True)]
                events = [json.loads(line) for line in lines if line.endswith("\n")]
                return [datetime.fromisoformat(e["time"]).timestamp() for e in events if e["event"] == event]

            until(lambda: len(moments("task_completed")) == len(tasks), "all tasks", seconds=60)
            self.stage.stop(*workers)
            self.stage.drop(queue)
            return (max(moments("task_completed")) - min(moments("task_started"))) / max(free)

        figure = "makespan of 200 tasks / list scheduling"
        medians = self.note(figure, "x", self.stage.in_turns([OWN], ratio), 3)
        self.verdict(figure, medians[OWN], 1.05, at_least=False)

    def startup(self) -> None:
        """From the start of the process to when the broker has its consumer, in seconds."""

        def seconds(who: str) -> float:
            queue = f"startup-{who}"
            started = time.perf_counter()
            process = self.stage.worker(who, queue, 1, self.stage.environment(queue))
            found = self.stage.until_consuming(queue) - started
            self.stage.stop(process)
            return found

        # the queues stay, so that only the warm-up has to make them
        medians = self.note("worker: start to consuming", "s", self.stage.in_turns(self.contestants, seconds), 3)
        for who in self.contestants:
            self.stage.drop(f"startup-{who}")
        for other in QUEUES:
            self.compare("worker: start to consuming", medians, other, 0.6, at_least=False)

    def memory(self) -> None:
        """Resident memory of a worker that has consumed for a second, and after 100,000 tasks, in megabytes."""

        def megabytes(who: str, count: int = 0) -> float:
            queue = f"memory-{who}"
            environment = self.stage.environment(queue, count or 1)
            process = self.stage.worker(who, queue, 1, environment)
            self.stage.until_consuming(queue)
            if count:
                self.stage.fill(who, queue, count)
                until(Path(environment["BENCH_FILE"]).exists, f"{count} tasks", seconds=120)
            else:
                time.sleep(1)
            found = self.stage.resident(process)
            self.stage.stop(process)
            self.stage.drop(queue)
            return found

        contestants = [who for who in self.contestants if who in (OWN, *QUEUES)]
        medians = self.note("worker: resident memory, idle", "MB", self.stage.in_turns(contestants, megabytes), 1)
        after = {OWN: [megabytes(OWN, 100), megabytes(OWN, 100_000)]}
        self.note("worker: resident memory after 100 and after 100,000 tasks", "MB", after, 1)
        self.verdict("worker: resident memory, idle", medians[OWN], 32, at_least=False, unit="MB")
        grown = after[OWN][1] - after[OWN][0]
        self.verdict("worker: growth from 100 to 100,000 tasks", grown, 1, at_least=False, unit="MB")
        for other in QUEUES:
            self.compare("worker: resident memory, idle", medians, other, 0.6, at_least=False)

    def sender_memory(self, queue: str, *flags: str) -> float:
        """The most, in megabytes, that sender.py ever held."""
        command = [sys.executable, str(ROOT / "scripts/lab/peak_memory.py"), "--quiet", *flags]
        return int(self.stage.run(command, self.stage.environment(queue)).splitlines()[-1]) / 1024

    def depth(self) -> None:
        """Both rates with ever more tasks in the queue; and the memory of the sender that put them there."""
        rates: dict[str, list[float]] = {}
        peaks = {"--count, 10,000 tasks": self.sender_memory("few", "--count", "10000")}
        for depth in (1000, 100_000, 1_000_000):
            queue = f"depth-{depth}"
            peak = self.sender_memory(queue, "--count", str(depth), "--max-difficulty", "0")
            published, done = [], []
            for _ in range(self.stage.rounds):  # as many are done as are published, so that the depth stays
                published.append(self.stage.send_rate(queue, 20_000))
                report = self.reported(OWN, queue, 1, 20_000)
                done.append(19_999 / float(report["last"] - report["first"]))
            rates[f"{depth:,}"] = [statistics.median(published), statistics.median(done)]
            self.stage.drop(queue)
        peaks["--count, 1,000,000 tasks"] = peak
        file = self.stage.folder / "many.jsonl"
        with file.open("w") as out:
            out.writelines(f'{{"id": {n}, "task": "Clear cache", "difficulty": 0}}\n' for n in range(1_000_000))
        peaks["--file, 1,000,000 tasks"] = self.sender_memory("file", "--file", str(file))
        self.stage.drop("few")
        self.stage.drop("file")
        self.found["depth"] = {"unit": "published/s, done/s", "values": rates}
        self.found["sender: peak memory"] = {"unit": "MB", "values": peaks}
        for depths, (publishing, working) in rates.items():
            print(f"with {depths:>9} in the queue: {publishing:>7,.0f}/s published, {working:>6,.0f}/s done one by one")
        for what, megabytes in peaks.items():
            print(f"sender: peak memory by {what}: {megabytes:.1f} MB")
        for index, name in enumerate(("publishing", "working")):
            kept = [each[index] for each in rates.values()]
            self.verdict(f"{name} with the deepest queue / with 1,000", min(kept) / kept[0], 0.8, at_least=True)
        few = peaks.pop("--count, 10,000 tasks")
        for what, megabytes in peaks.items():
            self.verdict(f"sender: {what}", megabytes, 64, at_least=False, unit="MB")
            self.verdict(f"sender: {what}, over 10,000", megabytes - few, 4, at_least=False, unit="MB")

    def prefetch(self) -> None:
        """No-op tasks a second of one worker that runs one or ten at once, and holds ever more."""

        def rate(setting: str) -> float:
            queue, (concurrency, prefetch) = "prefetch", setting.split(", ")
            self.stage.fill(OWN, queue, WORKED)
            report = self.reported(OWN, queue, int(concurrency), WORKED, "--prefetch", prefetch)
            self.stage.drop(queue)
            return (WORKED - 1) / float(report["last"] - report["first"])

        settings = ["1, 1", "1, 2", "1, 10", "1, 100", "10, 10", "10, 100"]
        self.note("no-op tasks by concurrency, prefetch", "/s", self.stage.in_turns(settings, rate))

    def events(self) -> None:
        """No-op tasks a second: without events, with events for nobody, and for one who watches."""
        for prefetch in ("1", "10"):
            self.events_at(prefetch)

    def events_at(self, prefetch: str) -> None:
        queue = "events"

        def rate(setting: str) -> float:
            flags = ["--prefetch", prefetch, *([] if setting == "off" else ["--events"])]
            self.stage.fill(OWN, queue, TOLD)
            with self.stage.broker.channel() as channel:
                if setting == "watched":
                    channel.exchange_declare(f"{queue}.events", "topic", durable=True)
                    bounded = {"x-max-length": 1000, "x-overflow": "drop-head"}
                    watcher = channel.queue_declare("", exclusive=True, arguments=bounded).queue
                    channel.queue_bind(watcher, f"{queue}.events", "#")
                report = self.reported(OWN, queue, 1, TOLD, *flags)
                channel.exchange_delete(f"{queue}.events")
            self.stage.drop(queue)
            return (TOLD - 1) / float(report["last"] - report["first"])

        figure = f"no-op tasks by events, prefetch {prefetch}"
        medians = self.note(figure, "/s", self.stage.in_turns(["off", "unwatched", "watched"], rate))
        unwatched, watched = (medians[setting] / medians["off"] for setting in ("unwatched", "watched"))
        self.verdict(f"prefetch {prefetch}, events nobody watches / off", unwatched, 0.98, True)
        self.verdict(f"prefetch {prefetch}, watched events / off", watched, 0.95, True)

    def workers(self) -> None:
        """No-op tasks a second of ever more workers, over two seconds in which all of them consume."""
        queue, rates = "workers", {}
        self.stage.fill(OWN, queue, 300_000)
        for count in (1, 2, 4, 8, 16, 32):
            if self.stage.ready(queue) < 100_000:
                self.stage.fill(OWN, queue, 200_000)
            environment = self.stage.environment(queue, 10**9)
            processes = [self.stage.worker(OWN, queue, 1, environment) for _ in range(count)]
            self.stage.until_consuming(queue, count)
            before, started = self.stage.ready(queue), time.perf_counter()
            time.sleep(2)
            rates[str(count)] = (before - self.stage.ready(queue)) / (time.perf_counter() - started)
            self.stage.stop(*processes)
            self.stage.until_consuming(queue, 0)
            print(f"{count:>2} workers: {rates[str(count)]:>7,.0f} no-op tasks/s", flush=True)
        self.found["workers"] = {"unit": "/s", "values": rates}
        self.stage.drop(queue)

    def quorum(self) -> None:
        """What a queue that survives the loss of a node costs: both rates, on one node and on three of this machine."""
        folder = self.stage.folder / "cluster"
        cluster: Cluster = LocalCluster(folder) if self.stage.broker.kind == "local" else ContainerCluster()
        kinds = {
            "classic": ("classic", ""),
            "quorum, 1 node": ("quorum", ""),
            "quorum, 3 nodes": ("quorum", cluster.url),
        }
        done: dict[str, list[float]] = {kind: [] for kind in kinds}

        def published(kind: str) -> float:
            queue_type, url = kinds[kind]
            settings = {"QUEUE_TYPE": queue_type, "RABBITMQ_URL": url or self.stage.broker.url}
            queue = f"kinds-{queue_type}"  # they stay, empty
            rate = self.stage.send_rate(queue, WORKED * 4, **settings)
            report = self.reported(OWN, queue, 1, WORKED * 4, "--prefetch", "10", **settings)
            done[kind].append((WORKED * 4 - 1) / float(report["last"] - report["first"]))
            return rate

        try:
            medians = self.note(
                "confirmed publishing, by kind of queue", "/s", self.stage.in_turns(list(kinds), published)
            )
            worked = {kind: each[1:] for kind, each in done.items()}  # the first warms up
            more = self.note("no-op tasks, prefetch 10, by kind of queue", "/s", worked)
        finally:
            cluster.remove()
        for kind in list(kinds)[1:]:
            ratios = (found[kind] / found["classic"] for found in (medians, more))
            print(f"{kind} / classic: {{:.2f}} published, {{:.2f}} done".format(*ratios))

    def hashing(self) -> None:
        """Two senders at once: to one queue, to a queue each, and to two by the plugin for consistent hashing."""
        self.stage.broker.enable("rabbitmq_consistent_hash_exchange")
        queues, count = ("hashed-1", "hashed-2"), 40_000
        ways = {"one queue": ("", queues[:1] * 2), "two queues": ("", queues), "two, by hash": ("hashed", ("", ""))}

        def rate(way: str) -> float:
            exchange, keys = ways[way]
            with self.stage.broker.channel() as channel:
                for queue in queues:
                    channel.queue_declare(queue, durable=True)
                channel.exchange_declare("hashed", "x-consistent-hash", durable=True)
                for queue in queues:
                    channel.queue_bind(queue, "hashed", "1")
                program = [sys.executable, str(ROOT / "scripts/lab/publish.py"), exchange]
                moments = self.stage.at_once([[*program, key, str(count)] for key in keys])
                for name in queues:
                    channel.queue_delete(name)
                channel.exchange_delete("hashed")
            return 2 * count / (max(moments) - min(moments))

        medians = self.note("two senders, confirmed together", "/s", self.stage.in_turns(list(ways), rate))
        for way in ("two queues", "two, by hash"):
            print(f"{way} / one queue: {medians[way] / medians['one queue']:.2f}")


FIGURES = (
    "publishing",
    "working",
    "working10",
    "latency",
    "makespan",
    "startup",
    "memory",
    "depth",
    "prefetch",
    "events",
    "workers",
    "quorum",
    "hashing",
)


def machine(broker: Broker, contestants: list[str]) -> str:
    rabbitmq = broker.ctl("version").strip().splitlines()[-1]
    names = ["pika", *(who for who in contestants if who != OWN)]
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.machine()}\n"
        f"RabbitMQ {rabbitmq} ({broker.kind}), Python {platform.python_version()}, {packages}"
    )


def main() -> int:
    arguments = parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            broker: Broker = LocalBroker(Path(folder) / "broker") if arguments.broker == "local" else ContainerBroker()
        except NoBroker as error:
            print(f"bench.py: {error}", file=sys.stderr)
            return 3
        stage = Stage(broker, Path(folder), arguments.rounds)
        bench = Bench(stage, arguments.contestants)
        try:
            print(machine(broker, arguments.contestants), end="\n\n")
            for figure in arguments.only:
                getattr(bench, figure)()
            print(f"\n{bench.table()}\n\n{time.monotonic() - started:.0f} s")
            if arguments.json:
                data = {
                    "machine": machine(broker, arguments.contestants),
                    "figures": bench.found,
                    "targets": bench.rows,
                }
                arguments.json.write_text(json.dumps(data, indent=1) + "\n")
        except subprocess.CalledProcessError as error:
            print(f"bench.py: {' '.join(error.cmd)} failed:\n{error.stderr}", file=sys.stderr)
            return 1
        except AssertionError as error:  # something that was waited for did not come
            print(f"bench.py: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("bench.py: interrupted", file=sys.stderr)
            return 1
        finally:
            stage.stop_all()
            broker.remove()
    return 0


def parse() -> argparse.Namespace:
    def some_of(known: tuple[str, ...]) -> Any:
        def parse_names(text: str) -> list[str]:
            names = text.split(",")
            if unknown := set(names) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: must be of {', '.join(known)}")
            return names

        return parse_names

    parser = argparse.ArgumentParser(prog="bench.py", description="Measure sender.py and worker.py beside their peers.")
    parser.add_argument("--broker", choices=["local", "container"], default="local", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, metavar="N", default=3, help="after the warm-up (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument(
        "--only", metavar="FIGURES", type=some_of(FIGURES), default=list(FIGURES), help=", ".join(FIGURES)
    )
    parser.add_argument(
        "--contestants",
        metavar="NAMES",
        type=some_of(CONTESTANTS),
        default=list(CONTESTANTS),
        help=", ".join(CONTESTANTS),
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds starts from 1")
    if arguments.json:
        try:
            arguments.json.touch()  # now, and not after ten minutes
        except OSError as error:
            parser.error(f"--json {arguments.json}: {error.strerror}")
    if OWN not in arguments.contestants:
        parser.error(f"--contestants must name {OWN}")
    for who in arguments.contestants:
        if who != OWN and not importlib.util.find_spec(who.replace("-", "_")):
            parser.error(f"{who} is not installed: pip install -r requirements-bench.txt, or --contestants {OWN}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
