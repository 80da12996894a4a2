#!/usr/bin/env python3
"""Watches a work queue and its workers live: in the terminal, or with --web in the browser.

It sees the workers that were started with --events, and counts what waits in the queues; it never takes a message, and
leaves no queue behind. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where this is not the program that runs

import _environment  # noqa: F401  # first: where our packages and modules are
from view.facts import Source
from view.live import Live
from view.model import Model
from view.recording import Recorder, Replay, Unusable

import config
from workqueue.errors import FAILURES, BrokerError, explain
from workqueue.streams import OutputClosed, note, say

FRAME_SECONDS = 0.25  # between two pages
SHARE = 0.02  # of a core that drawing may cost: a slower machine draws less often
LINE_SECONDS = 1.0  # between two lines, where there is no terminal
ONCE_SECONDS = 2.2  # in which every worker has been heard
PORT = 8765
PLAIN_COLUMNS = 100  # of a page in a pipe

AnySource = Live | Replay


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return watch(arguments)
    except (config.SettingError, Unusable) as error:
        note(f"watch.py: {error}")
        return 2
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, config.load())
        note(f"watch.py: {failure}")
        return failure.exit_code
    except OutputClosed:
        return 1
    except KeyboardInterrupt:
        return 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def watch(arguments: argparse.Namespace) -> int:
    show = chosen_view(arguments)
    source, model = replay(arguments) if arguments.replay else live(arguments)
    try:
        return int(show(source, model, arguments))
    finally:
        source.stop()
        if isinstance(source, Live) and source.recorder:
            source.recorder.close()


def chosen_view(arguments: argparse.Namespace) -> Any:
    if arguments.web is not None:
        return in_browser
    import rich.live  # noqa: F401  # the browser needs none of it

    if arguments.once:
        return once
    drawn = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return in_terminal if drawn else in_lines


# Where the data comes from


def live(arguments: argparse.Namespace) -> tuple[Live, Model]:
    settings = config.load({"TASK_QUEUE": ("--queue", arguments.queue)})
    where = ",".join(config.mask(url) for url in settings.rabbitmq_urls)
    source = Source(settings.task_queue, "live", where, settings.dead_queue, dead_command(arguments.queue))
    source.started = time.time() - time.monotonic()
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    recorder = Recorder(arguments.record, settings.task_queue, command) if arguments.record else None
    model = Model(source, time.monotonic())
    return Live(settings, model, recorder), model


def replay(arguments: argparse.Namespace) -> tuple[Replay, Model]:
    found = Replay(arguments.replay, arguments.speed)
    queue = str(found.header.get("queue") or "unnamed")[: config.LONGEST_NAME]
    source = Source(queue, "replay", arguments.replay, f"{queue}.dead", dead_command(queue))
    source.started = found.first
    source.note = "" if arguments.speed == 1 else f"at {arguments.speed:g} times its speed"
    found.model = Model(source, 0.0)
    return found, found.model


def dead_command(queue: str | None) -> str:
    return f"scripts/dead_letters.py --queue {shlex.quote(queue)} list" if queue else "scripts/dead_letters.py list"


# How it is shown


def once(source: AnySource, model: Model, arguments: argparse.Namespace) -> int:
    from view.terminal import plain

    if isinstance(source, Replay):
        source.run_through()
    else:
        source.start()
        wait_once(source, model)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else columns()
    say(plain(model.state(source.now()), width))
    return 0


def columns() -> int:
    text = os.environ.get("COLUMNS", "")
    return max(40, min(int(text), 1000)) if text.isdecimal() else PLAIN_COLUMNS


def wait_once(source: Live, model: Model) -> None:
    """Until all is known, or an interval has gone by in which it should be. Raises what keeps us from the broker."""
    while True:
        raise_failure(source)
        if source.attempts:
            raise BrokerError(model.trouble)
        state = model.state(source.now(), rows=0)
        queues, since = state["queues"], state["source"]["connected_seconds"]
        heard = queues["known"] and queues["consumers"] == state["workers"]["consuming"]
        if queues["known"] and (since > ONCE_SECONDS or (heard and queues["consumers"])):
            return
        time.sleep(0.05)


def in_terminal(source: AnySource, model: Model, arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live as Screen
    from view.terminal import page, plain

    console = Console()
    source.start()
    try:
        with Screen(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as screen:
            while not ended(source):
                began = time.thread_time()
                state = model.state(source.now(), rows=console.height, recent=console.height)
                screen.update(page(state, console.width, console.height), refresh=True)
                time.sleep(max(FRAME_SECONDS, (time.thread_time() - began) / SHARE))
    finally:
        raise_failure(source)
    say(plain(model.state(source.now()), console.width))
    return 0


def in_lines(source: AnySource, model: Model, arguments: argparse.Namespace) -> int:
    from view.terminal import line

    source.start()
    while not ended(source):
        time.sleep(LINE_SECONDS)
        say(line(model.state(source.now(), rows=0, recent=0)))
    raise_failure(source)
    return 0


def in_browser(source: AnySource, model: Model, arguments: argparse.Namespace) -> int:
    from view.web import Server

    try:
        server = Server(model, source.now, arguments.web)
    except OSError as error:
        note(f"watch.py: --web {arguments.web}: {error.strerror}")
        return 2
    source.start()
    with server:
        say(f"Watching {model.source.queue}: {server.url} (metrics: {server.url}metrics; Ctrl-C ends it)")
        while source.failure is None:
            time.sleep(0.2)
        raise_failure(source)
    return 0


def ended(source: AnySource) -> bool:
    return source.failure is not None or (isinstance(source, Replay) and source.ended.is_set())


def raise_failure(source: AnySource) -> None:
    if source.failure is not None:
        raise source.failure


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="watch.py", description="A live view of a work queue and its workers.", epilog=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("--queue", metavar="NAME", help="the work queue, instead of TASK_QUEUE")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print one state and end")
    how.add_argument(
        "--web",
        metavar="PORT",
        nargs="?",
        type=port,
        const=PORT,
        help=f"in the browser of this machine, with /metrics for Prometheus (default: {PORT}; 0: any free port)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--record", metavar="FILE", help="also write every event there, a line each")
    what.add_argument("--replay", metavar="FILE", help="show a recording, or the JSON lines of a worker")
    parser.add_argument("--speed", metavar="N", type=speed, help="with --replay: N times as fast (default: 1)")
    arguments = parser.parse_args(argv)
    if arguments.speed and not arguments.replay:
        parser.error("--speed goes with --replay")
    if arguments.queue and arguments.replay:
        parser.error("--queue does not go with --replay: a recording says what it is of")
    arguments.speed = arguments.speed or 1.0
    return arguments


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port from 0 to 65535")
    return int(text)


def speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and 0.01 <= value <= 1000):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0.01 to 1000")
    return value


if __name__ == "__main__":
    sys.exit(main())
