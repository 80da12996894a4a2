"""The command lines of sender.py and worker.py. `settings` are the flags that beat settings: see config.load."""

from __future__ import annotations

import argparse
import re
import uuid
from typing import Any

from config import LONGEST_NAME

SENDER_EXAMPLES = """examples:
  python sender.py                         the demo batch of eight tasks
  python sender.py --task "Clear cache" --difficulty 2
  python sender.py --count 1000 --seed 7   generated tasks, the same for the seed
  python sender.py --file tasks.jsonl      one task per line of JSON

exit codes:
  0 all confirmed   1 something was not   2 wrong use or input   3 no broker
"""

WORKER_EXAMPLES = """examples:
  python worker.py                                  a task at a time, till Ctrl-C
  python worker.py --burst                          until the queue is empty
  python worker.py --concurrency 10 --prefetch 20   ten at once, ten more in hand
  python worker.py --handlers my_work               your own work, from my_work.py
  for i in {1..5}; do python worker.py & done       five workers

exit codes:
  0 stopped as told         1 stopped at once, or the output was lost
  2 wrong flag, setting or handler, or a queue that cannot be used
  3 the broker refused us
"""


def of_sender(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser("sender.py", "Publish tasks to the work queue.", SENDER_EXAMPLES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--task", metavar="NAME", help="send one task of this name")
    source.add_argument("--count", metavar="N", type=_whole(0), help="send N generated tasks")
    source.add_argument("--file", metavar="PATH", help="send the tasks of a file of JSON lines; - is standard input")
    parser.add_argument("--difficulty", metavar="N", help="with --task: its difficulty, 0 or more")
    parser.add_argument("--payload", metavar="JSON", help="with --task: an object for the handler")
    parser.add_argument("--seed", metavar="S", help="with --count: the same tasks for the same seed")
    parser.add_argument(
        "--max-difficulty", metavar="D", type=_whole(0), help="with --count: the greatest difficulty (default: 5)"
    )
    parser.add_argument(
        "--window", metavar="N", type=_whole(1), default=1000, help="unconfirmed tasks at once (default: %(default)s)"
    )
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    parser.add_argument("--quiet", action="store_true", help="print only the closing line")
    arguments = parser.parse_args(argv)
    if (arguments.task is None) != (arguments.difficulty is None):
        parser.error("--task and --difficulty go together")
    if arguments.payload is not None and arguments.task is None:
        parser.error("--payload goes with --task")
    if arguments.count is None and not (arguments.seed is None and arguments.max_difficulty is None):
        parser.error("--seed and --max-difficulty go with --count")
    arguments.settings = {"TASK_QUEUE": ("--queue", arguments.queue)}
    arguments.bulk = arguments.count is not None or arguments.file is not None
    return arguments


def of_worker(argv: list[str] | None) -> argparse.Namespace:
    about = "Take tasks from the work queue and run them. Start as many workers as you like."
    parser = _parser("worker.py", about, WORKER_EXAMPLES)
    parser.add_argument("--prefetch", metavar="N", help="unacknowledged tasks to hold, instead of PREFETCH_COUNT")
    parser.add_argument("--concurrency", metavar="N", help="tasks to run at once, instead of CONCURRENCY")
    parser.add_argument("--id", metavar="NAME", type=_name, help="this worker's name (default: Worker-<random>)")
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    parser.add_argument(
        "--handlers", metavar="MODULE", action="append", default=[], help="your own work, by module; may be repeated"
    )
    parser.add_argument("--events", action="store_true", help="publish what happens, for those who watch")
    parser.add_argument("--burst", action="store_true", help="stop when the queue is empty")
    parser.add_argument("--quiet", action="store_true", help="print no line per task")
    arguments = parser.parse_args(argv)
    arguments.settings = {
        "TASK_QUEUE": ("--queue", arguments.queue),
        "PREFETCH_COUNT": ("--prefetch", arguments.prefetch),
        "CONCURRENCY": ("--concurrency", arguments.concurrency),
    }
    arguments.id = arguments.id or f"Worker-{uuid.uuid4().hex[:8]}"
    return arguments


def _parser(program: str, about: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=program, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _whole(least: int) -> Any:
    """A parser of whole numbers from `least`."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {10**12 - 1}")
        return int(text)

    return parse


def _name(text: str) -> str:
    if not text or not text.isprintable() or len(text.encode()) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{text!r} is not a printable name of 1 to {LONGEST_NAME} bytes")
    return text
