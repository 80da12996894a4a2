#!/usr/bin/env python3
"""Runs one batch of tasks with real workers, once for each prefetch, and draws who worked on what, and when.

All workers are ready before the batch is sent, so that what is seen is how the broker hands tasks out. The queues are
of this program's own, on the broker of RABBITMQ_URL, and are deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import _environment  # noqa: F401  # first: where our packages and modules are
from drawing.picture import picture
from drawing.schedules import list_scheduling, measured, predicted
from drawing.table import table
from drawing.timeline import draw
from drawing.words import Run, verdict
from lab.crew import Crew, CrewError, Event
from rich.console import Console

import config
from config import Settings
from tasks import Task, generate
from workqueue.connection import Connection
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, Stopped, explain
from workqueue.streams import OutputClosed, fill_missing_streams, hurry, note, say

EXAMPLES = """examples:
  compare.py                                    eight tasks, two workers
  compare.py --seconds-per-difficulty 0.1       the same, ten times as fast
  compare.py --count 40 --workers 4 --prefetch 0 1 10
  compare.py --count 40 --max-difficulty 1 --seconds-per-difficulty 0.1,0.01
                                                a slow worker and a fast one
  compare.py --table                            which prefetch for which tasks

exit codes:
  0 all done   1 a run was spoilt or interrupted   2 wrong use   3 no broker
"""
BATCH = "5,1,1,1,3,2,2,1"  # uneven, as tasks are
MOST_TASKS, MOST_WORKERS, MOST_PREFETCH = 10_000, 100, 65_535
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Comparison:
    """The same workers for one batch after another, each time with another prefetch."""

    def __init__(
        self, settings: Settings, connection: Connection, paces: Sequence[float], interrupted: Callable[[], bool]
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.paces = paces
        self.interrupted = interrupted
        self.runs: list[Run] = []
        self.queues: list[str] = []
        self.events: list[Event] = []  # of all runs

    @property
    def broker(self) -> str:
        found = self.connection._wire.server_properties or {}
        return f"{found.get('product', 'a broker')} {found.get('version', '')}".strip()

    def run(self, tasks: Sequence[Task], prefetch: int) -> Run:
        difficulties = [task.difficulty for task in tasks]
        with Crew(self.settings, self.connection, self.paces, prefetch, self.interrupted) as crew:
            crew.work(tasks)
        self.events += crew.events
        self.queues.append(crew.settings.task_queue)
        as_it_was = measured(crew.events, crew.names)
        as_it_should_be = predicted(difficulties, self.paces, prefetch)
        best = list_scheduling(difficulties, self.paces)
        self.runs.append(Run(prefetch, as_it_was, as_it_should_be, best, tuple(crew.names)))
        return self.runs[-1]

    def recording(self, command: str) -> str:
        """All events, one JSON object a line; the first line says what they are of."""
        runs = [
            {
                "prefetch": run.prefetch,
                "queue": queue,
                "workers": run.names,
                "makespan": round(run.measured.makespan, 6),
                "predicted": round(run.predicted.makespan, 6),
                "list_scheduling": round(run.best, 6),
            }
            for run, queue in zip(self.runs, self.queues, strict=True)
        ]
        about = {"event": "comparison", "time": now(), "broker": self.broker, "command": command, "runs": runs}
        events = sorted(self.events, key=lambda event: str(event["time"]))
        return "".join(f"{json.dumps(each)}\n" for each in (about, *events))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def main(argv: list[str] | None = None) -> int:
    fill_missing_streams()
    arguments = parse(argv)
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        hurry()

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    return run_to_the_end(arguments, lambda: bool(told))


def run_to_the_end(arguments: argparse.Namespace, interrupted: Callable[[], bool]) -> int:
    """Whatever ends it becomes one line, and the exit code."""
    try:
        settings = config.load()
        paces = arguments.paces or [settings.seconds_per_difficulty]
        paces = paces * arguments.workers if len(paces) == 1 else paces
        with dial(settings, "compare.py", interrupted) as connection:
            comparison = Comparison(settings, connection, paces, interrupted)
            show = show_table if arguments.table else show_runs
            show(comparison, arguments, announce(comparison, arguments))
            write_files(comparison, arguments)
        return 0
    except (config.SettingError, CrewError, OutputClosed) as error:
        exit_code = 2 if isinstance(error, config.SettingError) else getattr(error, "exit_code", 1)
        note(f"compare.py: {error}")
    except Stopped:
        exit_code = 1
        note("compare.py: interrupted: the workers are ended, and their queues deleted")
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, settings)
        exit_code = failure.exit_code
        note(f"compare.py: {failure}")
    return exit_code


def announce(comparison: Comparison, arguments: argparse.Namespace) -> float:
    """Says what comes and how long it takes. Returns the longest makespan that is predicted, in seconds."""
    difficulties = [task.difficulty for task in arguments.tasks]
    makespans = [predicted(difficulties, comparison.paces, prefetch).makespan for prefetch in arguments.prefetch]
    seconds = sum(makespans) + len(makespans) * (5 if arguments.table else 1)
    say(f"{len(difficulties)} tasks, {len(comparison.paces)} workers, {comparison.broker}: about {seconds:.0f} s")
    return max(makespans)


def show_runs(comparison: Comparison, arguments: argparse.Namespace, longest: float) -> None:
    """A timeline for each prefetch, all on one scale, and which was done first."""
    console = Console()
    for prefetch in arguments.prefetch:
        run = comparison.run(arguments.tasks, prefetch)
        horizon = max(run.measured.makespan, 1.02 * longest)
        say(f"\n{run.title}\n{draw(console, run.measured, run.names, horizon)}\n{run.facts}\n{run.result}")
    if len(arguments.prefetch) > 1:
        say(f"\n{verdict(comparison.runs)}")


def show_table(comparison: Comparison, arguments: argparse.Namespace, longest: float) -> None:
    """The few tasks, and many that do nothing, with each prefetch."""
    no_ops = list(generate(arguments.no_ops, "1", 0))
    others = Comparison(comparison.settings, comparison.connection, comparison.paces, comparison.interrupted)
    rows = [
        (comparison.run(arguments.tasks, prefetch), others.run(no_ops, prefetch)) for prefetch in arguments.prefetch
    ]
    say(f"\n{table(rows)}")


def write_files(comparison: Comparison, arguments: argparse.Namespace) -> None:
    command = shlex.join(["scripts/compare.py", *without_files(arguments.given)])
    about = f"Measured with {len(comparison.paces)} workers on {comparison.broker}, {now()[:10]}: {command}"
    files: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (arguments.json, lambda: comparison.recording(command)),
        (arguments.svg, lambda: picture(comparison.runs, about)),
    )
    for path, text in files:
        if path:
            try:
                path.write_text(text(), encoding="utf-8")
            except OSError as error:
                raise CrewError(f"{path}: {error.strerror}") from None


def without_files(given: Sequence[str]) -> list[str]:
    """The flags that make the runs what they are."""
    flags = ("--json", "--svg")
    return [
        word
        for before, word in zip(("", *given), given, strict=False)
        if before not in flags and word.partition("=")[0] not in flags
    ]


# The command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--prefetch",
        metavar="N",
        type=whole(0, MOST_PREFETCH),
        nargs="+",
        help="a run for each; 0 is unlimited (default: 0 1; with --table 1 10 0)",
    )
    add_batch_and_workers(parser)
    parser.add_argument("--table", action="store_true", help="in place of timelines: which prefetch for which tasks")
    parser.add_argument(
        "--no-ops",
        metavar="N",
        type=whole(1, MOST_TASKS),
        default=5000,
        help="with --table: tasks that do nothing, beside the others (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=writable, help="also write all events there")
    parser.add_argument("--svg", metavar="FILE", type=writable, help="also draw a picture there")
    arguments = parser.parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    return completed(arguments, parser)


def add_batch_and_workers(parser: argparse.ArgumentParser) -> None:
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--tasks", metavar="LIST", type=numbers, help=f"their difficulties (default: {BATCH})")
    batch.add_argument("--count", metavar="N", type=whole(1, MOST_TASKS), help="so many generated tasks in their place")
    parser.add_argument("--seed", metavar="S", default="1", help="with --count: another one makes other tasks")
    parser.add_argument(
        "--max-difficulty", metavar="D", type=whole(0, 1000), default=5, help="with --count (default: %(default)s)"
    )
    parser.add_argument("--workers", metavar="N", type=whole(1, MOST_WORKERS), help="default: 2")
    parser.add_argument(
        "--seconds-per-difficulty",
        metavar="S",
        type=numbers,
        help="of all workers, or a list, one for each (default: SECONDS_PER_DIFFICULTY)",
    )


def completed(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Defaults that hang on other flags, and what does not go together."""
    arguments.paces = arguments.seconds_per_difficulty
    several = len(arguments.paces or ()) > 1
    arguments.workers = arguments.workers or (len(arguments.paces) if several else 2)
    if several and len(arguments.paces) != arguments.workers:
        parser.error(f"--seconds-per-difficulty: one for each of {arguments.workers} workers, or one for all")
    arguments.prefetch = arguments.prefetch or ([1, 10, 0] if arguments.table else [0, 1])
    if arguments.count is None:
        difficulties = arguments.tasks or numbers(BATCH)
        arguments.tasks = [Task(n, f"Task {n}", difficulty) for n, difficulty in enumerate(difficulties, start=1)]
    else:
        arguments.tasks = list(generate(arguments.count, arguments.seed, arguments.max_difficulty))
    return arguments


def whole(least: int, most: int) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse_whole


def numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(found) > MOST_TASKS or not all(math.isfinite(n) and 0 <= n <= 1e6 for n in found):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list of numbers from 0, as 5,1,0.5")
    return found


def writable(text: str) -> Path:
    """Found out now, and not after the runs; nothing is made that would be left if they fail."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text[:200]!r} cannot be written")
    return path


if __name__ == "__main__":
    sys.exit(main())
