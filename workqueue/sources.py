"""Where a sender's tasks come from: the demo batch, one task of the command line, generated ones, or a file."""

from __future__ import annotations

import argparse
import codecs
import json
from collections.abc import Iterator
from typing import Any

import tasks
from tasks import BadTask, Task
from workqueue.streams import LineTooLong, lines


def chosen_tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """The tasks that the flags ask for, one at a time: a million of them never stand in memory. Raises BadTask."""
    if arguments.task is not None:
        return iter([_single_task(arguments)])
    if arguments.count is not None:
        most = 5 if arguments.max_difficulty is None else arguments.max_difficulty
        return tasks.generate(arguments.count, arguments.seed, most)
    if arguments.file is not None:
        return _tasks_of_file(arguments.file)
    return iter(tasks.DEMO_BATCH)


def _single_task(arguments: argparse.Namespace) -> Task:
    members: dict[str, Any] = {"id": 1, "task": arguments.task}
    for name in ("difficulty", "payload"):
        text = getattr(arguments, name)
        if text is not None:
            try:
                members[name] = json.loads(text)
            except (ValueError, RecursionError):
                wanted = "a number, 0 or more" if name == "difficulty" else "a JSON object"
                raise BadTask(f"--{name} {text[:40]!r}: must be {wanted}") from None
    return Task.decode(json.dumps(members).encode())


def _tasks_of_file(path: str) -> Iterator[Task]:
    """One task per line. Raises BadTask that names the line, or says why the file cannot be read.

    Blank lines may stand at the end, where many editors leave one. Elsewhere something is missing.
    """
    name = "standard input" if path == "-" else path
    blank = 0  # the first of the blank lines that were the last so far
    try:
        for number, line in enumerate(lines(path), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                blank = blank or number
                continue
            if blank:
                raise BadTask(f"{name}, line {blank}: is blank, and is not the last")
            try:
                yield Task.decode(line)
            except BadTask as error:
                raise BadTask(f"{name}, line {number}: {error}") from None
    except LineTooLong as error:
        raise BadTask(str(error)) from None
    except OSError as error:
        raise BadTask(f"{error.filename}: {error.strerror}") from None
