#!/usr/bin/env python3
"""Starts and drains real workers, as many as the load asks for.

What is ready, runs and waits is read from the queues and from the workers' own heartbeats, once a second. More workers
come at once, at most twice as many at a time; when fewer would have been enough for the whole cool-down, the surplus
drains: a worker that is told to leave finishes what it runs. One that has died is replaced.

Ctrl-C drains all of them, a second one gives back what they run. Should this program be killed, they drain by
themselves.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where this is not the program that runs

import _environment  # noqa: F401  # first: where our packages and modules are
from scaling.load import Observer
from scaling.rule import Memory, Rule, decide
from scaling.workers import Ended, Workers
from view.events import DECIDED
from view.facts import Source
from view.live import Live
from view.model import Model, State

import config
from config import Settings
from workqueue import flags
from workqueue.broadcast import Broadcast
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.lines import Lines
from workqueue.processes import is_another
from workqueue.streams import OutputClosed, fill_missing_streams, hurry, note, say

EXAMPLES = """what follows -- goes to each worker:
  autoscale.py --max 4 -- --handlers examples.pack --concurrency 2

exit codes:
  0 all drained   1 stopped at once, or the output was lost
  2 wrong flag, setting or handler, or a queue that cannot be used
  3 the broker refused us
"""
LOOK_SECONDS = 0.1  # how often we look for workers that have ended, and for a signal
DECIDE_SECONDS = 1.0
LAST_SECONDS = 0.5  # for the last word to reach those who watch
LONGEST_PAUSE = 30.0  # before a worker is replaced that does not even come up
MOST_WORKERS = 1000
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class GivenUp(Exception):
    """No worker can come up, and has said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Decisions:
    """Tells what is decided: a line each here, and an event for those who watch."""

    def __init__(self, settings: Settings, rule: Rule) -> None:
        self._json = settings.log_format == "json"
        self._queue = settings.task_queue
        self._rule = rule
        run = uuid.uuid4().hex
        self._seq = 0
        self._last: dict[str, Any] = {}
        self._decided_at = self._started_at = time.monotonic()
        self._broadcast = Broadcast(settings, "autoscale.py", run, note, lambda: None)
        self._lines = Lines("autoscale.py", run, most=None)

    def tell(self, before: int, workers: int, why: str, ended: bool = False) -> None:
        self._last = {"from": before, "workers": workers, "why": why, "ended": ended}
        self._decided_at = time.monotonic()
        line = self._publish()
        change = f"{before} → {workers}" if before != workers else f"{workers}"
        say(line if self._json else f"{datetime.now().astimezone():%H:%M:%S} {change}: {why}")

    def repeat(self) -> None:
        """For those who begin to watch."""
        self._publish()

    def close(self) -> None:
        self._broadcast.close(LAST_SECONDS)

    def _publish(self) -> str:
        self._seq += 1
        now = time.monotonic()
        facts = {"queue": self._queue, "least": self._rule.least, "most": self._rule.most}
        details = {**facts, **self._last, "ago": round(now - self._decided_at, 3)}
        told = self._seq, DECIDED, time.time_ns() // 1000, now - self._started_at, None, details
        self._broadcast.add(told)
        return self._lines.line(told)


class Autoscaler:
    def __init__(self, rule: Rule, workers: Workers, source: Live, decisions: Decisions) -> None:
        self.rule = rule
        self.workers = workers
        self.source = source
        self.decisions = decisions
        self.observer = Observer(rule.wait)
        self.memory = Memory()
        self.target = 0
        self.busy: set[str] = set()  # names of workers that run a task
        self.told_at = 0.0  # to stop
        self.told_again = False
        self.ever_up = False
        self.seen = self.blind = False  # the load was known once, and is not now
        self.failures = 0  # of workers to come up, one after another
        self.replace_at = self.decide_at = 0.0

    def on_signal(self, number: int, frame: object) -> None:
        if not self.told_at:
            self.told_at = time.monotonic()
        elif is_another(self.told_at):
            self.told_again = True
        hurry()

    def run(self) -> int:
        """Until a signal; then all workers are drained. Returns the exit code."""
        self.source.start()
        self.change(self.rule.least, "the least that there are to be")
        while not self.told_at:
            self.look_after()
            if time.monotonic() >= self.decide_at:
                self.decide_at = time.monotonic() + DECIDE_SECONDS
                self.decide(self.source.model.state(self.source.now(), rows=MOST_WORKERS * 2, recent=0))
                self.decisions.repeat()
            time.sleep(LOOK_SECONDS)
        return 0

    def change(self, target: int, why: str) -> None:
        before, self.target = self.target, target
        self.decisions.tell(before, target, why)

    def decide(self, state: State) -> None:
        if self.source.failure:
            raise self.source.failure
        rows = state["workers"]["rows"]
        self.workers.heard_of({row["worker"] for row in rows})
        self.busy = {row["worker"] for row in rows if row["running"]}
        load = self.observer.load(state, self.workers.active, self.source.now())
        if load is None:
            self.lose_sight(state)
            return
        self.seen, self.blind = True, False
        draining = self.workers.alive - len(self.workers.active)
        rule = replace(self.rule, most=max(self.rule.least, self.rule.most - draining))
        decision = decide(rule, load, self.target, self.source.now(), self.memory)
        self.memory = decision.memory
        if decision.workers != self.target:
            self.change(decision.workers, decision.why)

    def lose_sight(self, state: State) -> None:
        self.memory = Memory()
        if self.seen and not self.blind:
            self.blind = True
            self.change(self.target, f"nothing changes while the load is not known: {state['verdict']['text']}")

    def look_after(self) -> None:
        """Replaces workers that have died, and starts or drains what is missing or left over."""
        for worker in self.workers.ended():
            self.miss(worker)
        active = len(self.workers.active)
        if active < self.target and time.monotonic() >= self.replace_at:
            self.workers.start(self.target - active)
        elif active > self.target:
            self.workers.drain(active - self.target, self.busy)

    def miss(self, worker: Ended) -> None:
        self.ever_up |= worker.came_up
        if worker.told:
            if not worker.drained:
                note(f"autoscale.py: {worker.name} was to drain, and has ended otherwise: {worker.how}")
            return
        if not self.ever_up and worker.code in (2, 3):
            raise GivenUp(worker.code)
        self.failures = 0 if worker.came_up else self.failures + 1
        pause = min(LONGEST_PAUSE, 2.0 ** (self.failures - 2)) if self.failures > 1 else 0.0
        self.replace_at = time.monotonic() + pause
        when = f" in {pause:g} s" if pause else ""
        self.change(self.target, f"{worker.name} has ended ({worker.how}), and is replaced{when}")

    def drain(self) -> bool:
        """Returns when no worker is left; whether all of them drained."""
        self.workers.drain_all()
        well, hurried = True, False
        while self.workers.alive:
            if self.told_again and not hurried:
                self.workers.end_at_once()
                hurried = True
            well &= all(worker.drained for worker in self.workers.ended())
            time.sleep(LOOK_SECONDS / 2)
        return well


def main(argv: list[str] | None = None) -> int:
    fill_missing_streams()
    arguments = parse(argv)
    try:
        settings = config.load(arguments.settings)
    except config.SettingError as error:
        note(f"autoscale.py: {error}")
        return 2
    rule = Rule(arguments.min, arguments.max, arguments.wait, arguments.cool_down, concurrency=settings.concurrency)
    model = Model(Source(settings.task_queue, "live", "", settings.dead_queue, ""), time.monotonic())
    source = Live(settings, model, name="autoscale.py")
    decisions = Decisions(settings, rule)
    scaler = Autoscaler(rule, Workers(arguments.worker), source, decisions)
    for number in STOP_SIGNALS:
        signal.signal(number, scaler.on_signal)
    return run_to_the_end(scaler, settings)


def run_to_the_end(scaler: Autoscaler, settings: Settings) -> int:
    """Whatever ends it, the workers drain before it does."""
    exit_code = 1
    try:
        exit_code = scaler.run()
        scaler.decisions.tell(scaler.target, 0, "told to stop: all finish what they run", ended=True)
    except GivenUp as error:
        note("autoscale.py: no worker comes up, for the reason that it gave")
        exit_code = error.exit_code
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, settings)
        note(f"autoscale.py: {failure}")
        exit_code = failure.exit_code
    except OutputClosed as error:
        note(f"autoscale.py: {error}: the workers drain")
    finally:
        well = scaler.drain()
        scaler.source.stop()
        scaler.decisions.close()
    return exit_code if well else exit_code or 1


# The command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="autoscale.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--min N] [--max N] [--wait S] [--cool-down S] [--queue NAME] [-- FLAGS OF worker.py ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--min", metavar="N", type=whole(0), default=1, help="the fewest workers (default: 1)")
    parser.add_argument("--max", metavar="N", type=whole(1), default=10, help="the most (default: 10)")
    parser.add_argument(
        "--wait", metavar="S", type=seconds, default=5.0, help="seconds that a task may wait (default: 5)"
    )
    parser.add_argument(
        "--cool-down",
        metavar="S",
        type=seconds,
        default=10.0,
        help="seconds for which fewer must have been enough before the surplus drains (default: 10)",
    )
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    given = sys.argv[1:] if argv is None else argv
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    if arguments.min > arguments.max:
        parser.error(f"--min {arguments.min} is more than --max {arguments.max}")
    return with_worker_flags(arguments, given[end + 1 :], parser)


def with_worker_flags(
    arguments: argparse.Namespace, given: list[str], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """Checks the flags of the workers, and adds our own: they are heard of, and print no line per task."""
    worker = flags.of_worker(given)
    if worker.burst or any(word.startswith("--i") for word in given) or worker.settings["TASK_QUEUE"][1] is not None:
        parser.error("--id and --burst do not go to these workers, and --queue goes before the --")
    queue = [] if arguments.queue is None else ["--queue", arguments.queue]
    arguments.settings = {**worker.settings, "TASK_QUEUE": ("--queue", arguments.queue)}
    arguments.worker = [*given, *queue, "--events", "--quiet"]
    return arguments


def whole(least: int) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,4}", text) or not least <= int(text) <= MOST_WORKERS:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {MOST_WORKERS}")
        return int(text)

    return parse_whole


def seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or float(text) < 0.1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of seconds from 0.1 to 99999")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
