"""The state as a page of a terminal, as wide and as high as that is; and as plain text, where it is none."""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from view.model import State
from view.verdict import duration, of
from workqueue.streams import harmless

WIDE = 140  # columns from which what has happened stands beside the workers
WORDS_OF_HISTORY = 46  # columns that the words beside the two histories need
FIXED_LINES = 8  # of the head and the figures
ROOM_FOR_COUNTS = 120  # columns
LEAST_WORKERS = 3  # rows that the workers have, before what has happened has any
MOST_PLAIN = 50  # rows of a page that nobody scrolls
BARS = "▁▂▃▄▅▆▇█"
SYMBOLS = {"good": "●", "idle": "○", "busy": "▲", "bad": "✖", "unknown": "?"}
LEVELS = {"good": "green", "idle": "cyan", "busy": "yellow", "bad": "bold red", "unknown": "magenta"}
STATES = {
    "working": "green",
    "waiting": "cyan",
    "quiet": "yellow",
    "silent": "bold red",
    "reconnecting": "yellow",
    "stopping": "yellow",
}
HAPPENED = {
    "task_completed": ("✔", "green", "done"),
    "task_retried": ("↻", "yellow", "failed"),
    "task_dead": ("✖", "red", "dead"),
    "task_lost_connection": ("⌁", "yellow", "lost the connection"),
    "worker_ready": ("→", "cyan", "ready"),
    "worker_stopped": ("←", "cyan", "stopped"),
}


def page(state: State, width: int, height: int) -> RenderableType:
    """As many rows as fit; what is left out is counted."""
    notes = notes_on(state, width)
    notes = notes[: max(1, height - FIXED_LINES - LEAST_WORKERS - 3)]
    parts: list[RenderableType] = [*head(state, width), *figures(state, width), *notes, Text()]
    left = height - FIXED_LINES - len(notes) - 1
    if left < 2:
        return Group(*parts[: max(1, height - 1)])
    if width >= WIDE:
        beside = min(100, width * 3 // 8)
        both = Table.grid(padding=(0, 2), expand=True)
        both.add_column(width=width - beside - 4)
        both.add_column(width=beside)
        both.add_row(workers(state, width - beside - 4, left), happened(state, beside, left))
        return Group(*parts, both)
    rows = sum(max(1, len(row["running"])) for row in state["workers"]["rows"]) + bool(state["workers"]["more"]) + 1
    for_workers = min(rows, max(LEAST_WORKERS, left * 2 // 3)) if left > LEAST_WORKERS + 4 else left
    for_happened = left - for_workers - 1
    parts.append(workers(state, width, for_workers))
    if for_happened >= 2:
        parts += [Text(), happened(state, width, for_happened)]
    return Group(*parts)


def plain(state: State, width: int) -> str:
    """The whole page as text, for a pipe or a look (`--once`)."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    rows = min(MOST_PLAIN, len(state["workers"]["rows"])) + min(MOST_PLAIN, len(state["recent"])) + 6
    with console.capture() as capture:
        console.print(page(state, width, FIXED_LINES + len(notes_on(state, width)) + rows))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def line(state: State) -> str:
    """One line, for where there is no terminal to draw on."""
    totals, workers = state["watched"], state["workers"]
    figures = f"{of(workers['known'], 'worker')}, {workers['running']:,} in work, {totals['completed']:,} done"
    return f"{local(state['now'])} {state['verdict']['text']} ({figures}, {rate(state)})"


# The head


def head(state: State, width: int) -> list[Text]:
    source = state["source"]
    if source["kind"] == "replay":
        mark, style = "▶ replay", "magenta"
    elif source["connected"]:
        mark, style = "● live", "green"
    else:
        mark, style = "○ not connected", "bold red"
    title = Text.assemble((" watch ", "bold white on blue"), " ", (harmless(source["queue"]), "bold"))
    where = " · ".join(filter(None, [source["where"], source["broker"], source["note"]]))
    since = f"since {local(source['since'], zone=True)}, {duration(source['watched_seconds'])}"
    return [
        ends(title, Text(mark, style), width),
        ends(Text(f" {harmless(where)}", "dim"), Text(since, "dim"), width),
    ]


def figures(state: State, width: int) -> list[Text]:
    queues, workers, totals = state["queues"], state["workers"], state["watched"]
    retrying = sum(count for _, count in queues["retry"]) if queues["known"] else None
    dead = queues["dead"] if queues["known"] else None
    no_one = "red" if queues["consumers"] == 0 else ""
    cells = [
        ("ready", count(queues["ready"]), "yellow" if queues["ready"] else ""),
        ("in work", count(workers["running"]), "green" if workers["running"] else ""),
        ("held", count(workers["held"]), "yellow" if workers["held"] else ""),
        ("consumer" if queues["consumers"] == 1 else "consumers", count(queues["consumers"]), no_one),
        ("retrying", count(retrying), "yellow" if retrying else ""),
        ("dead", count(dead), "bold red" if dead else ""),
        ("done", count(totals["completed"]), ""),
    ]
    row = Text(" ")
    for name, value, style in cells:
        row.append(f" {value}", style=f"bold {style}".strip()).append(f" {name} ", style="dim")
    verdict = state["verdict"]
    symbol = Text(f" {SYMBOLS[verdict['level']]} {harmless(verdict['text'])}", LEVELS[verdict["level"]])
    return [Text(), cut(row, width), *histories(state, width), cut(symbol, width), waited(state, width)]


def histories(state: State, width: int) -> list[Text]:
    """How many waited, and how many were done, second by second: up to what fits of the last two minutes."""
    history = state["history"]
    room = max(10, min(120, (width - WORDS_OF_HISTORY) // 2))
    parts = Text("  ")
    for name, values, style in (("ready", history["ready"], "yellow"), ("done/s", history["done"], "green")):
        shown = values[-room:]
        most = max((value for value in shown if value is not None), default=0)
        parts.append(f"{name}, most {most:,.4g} ", style="dim")
        parts.append(f"{sparkline(shown)}".ljust(room + 2), style=style)
    return [cut(parts, width)]


def waited(state: State, width: int) -> Text:
    """The rate, and how long what was started last had waited."""
    found = Text(f"   {rate(state)}", "dim")
    if state["waited"]:
        seconds, ago = state["waited"]
        when = "" if ago < 2 else f", {duration(ago)} ago"
        found.append(f"; the last started task had waited {duration(seconds)}{when}")
    return cut(found, width)


def notes_on(state: State, width: int) -> list[Text]:
    """What is worth a look, a line each; dead letters with what lists them."""
    found = [clipped(f" ! {note}", width, "yellow") for note in state["verdict"]["notes"]]
    if state["autoscale"]:
        found.insert(0, clipped(f" ⇅ {scaled(state['autoscale'])}", width, "cyan"))
    source, dead = state["source"], state["queues"]["dead"]
    if dead:
        words = f" ✖ {of(dead, 'dead letter')} in {source['dead_queue']}: {source['dead_command']}"
        found.insert(0, clipped(words, width, "red"))
    return found


def scaled(decision: State) -> str:
    """What autoscale.py has decided last."""
    few = of(decision["workers"], "worker")
    return f"{few} of {decision['least']} to {decision['most']} since {duration(decision['ago'])}: {decision['why']}"


def rate(state: State) -> str:
    if not state["rate"]:
        return "no rate yet"
    per_second, seconds = state["rate"]
    return f"{per_second:,.{0 if per_second >= 100 else 1}f} done/s over {seconds:.0f} s"


# Workers, and what they did


def workers(state: State, width: int, height: int) -> RenderableType:
    """A row each, and a last one for those that have none."""
    found = state["workers"]
    rows = found["rows"]
    hidden = found["more"] + len(rows) - (height - 1)
    if hidden > 0:
        rows = rows[: max(0, height - 2)]
    hidden = found["more"] + len(found["rows"]) - len(rows)
    there_is_room = not hidden and sum(max(1, len(row["running"])) for row in rows) < height
    table = columns(width)
    for row in rows:
        first, *others = tasks(row, found["long"], width, all_of_them=there_is_room)
        cells = [Text(harmless(row["worker"]), "bold"), worker_state(row), Text(f"{row['completed']:,}")]
        if width >= ROOM_FOR_COUNTS:
            cells += [figure(row["retried"], "yellow"), figure(row["dead"], "red"), figure(row["held"], "yellow")]
        table.add_row(*cells, first)
        for other in others:
            table.add_row(*[Text()] * len(cells), other)
    if hidden > 0:
        return Group(table, cut(Text(f" … and {hidden:,} more", "dim"), width))
    if not rows:
        return Group(table, cut(Text(f" {no_worker(state)}", "dim"), width))
    return table


def columns(width: int) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim bold", show_edge=False)
    table.add_column("worker", no_wrap=True, overflow="ellipsis", width=min(20, max(15, width // 5)))
    table.add_column("state", no_wrap=True, width=12)
    table.add_column("done", justify="right", no_wrap=True, width=7)
    if width >= ROOM_FOR_COUNTS:
        table.add_column("failed", justify="right", no_wrap=True, width=6)
        table.add_column("dead", justify="right", no_wrap=True, width=5)
        table.add_column("held", justify="right", no_wrap=True, width=5)
    table.add_column("now", no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def no_worker(state: State) -> str:
    if not state["source"]["connected"]:
        return "nothing is known of workers"
    return "no worker is known: python worker.py --events"


def worker_state(row: dict[str, Any]) -> Text:
    state = row["state"]
    shown = f"{state} {row['quiet']:.0f} s" if state in ("silent", "quiet") else state
    return Text(harmless(shown, most=12), STATES.get(state, "dim"))


def figure(number: int, style: str) -> Text:
    return Text(f"{number:,}", style if number else "dim")


def tasks(row: dict[str, Any], long: float, width: int, all_of_them: bool) -> list[Text]:
    """What it does, a line each: all that are known, or the oldest and how many others. At least one line."""
    if not row["running"] or row["state"] == "stopped":
        return [Text()]
    shown = row["running"] if all_of_them else row["running"][:1]
    found = [task_line(task, long, 16 if width >= ROOM_FOR_COUNTS else 6, row["state"] == "silent") for task in shown]
    others = len(row["running"]) - len(shown) + row["more"]
    if others:
        found[-1].append(f" +{others:,}", style="bold")
    return found


def task_line(task: dict[str, Any], long: float, cells: int, is_silent: bool) -> Text:
    full = int(cells * min(1.0, (task["done"] or 0) / task["total"])) if task["total"] else 0
    found = Text().append("━" * full, style="dim" if is_silent else "green").append("╌" * (cells - full), style="dim")
    found.append(f"{duration(task['age']):>7} ", style="bold yellow" if task["age"] > long else "dim")
    found.append(harmless(task["task"]), style="strike dim" if is_silent else "")
    found.append(f" (id {harmless(task['id'], most=12)})", style="dim")
    if task["attempt"] > 1:
        found.append(f" attempt {task['attempt']}", style="yellow")
    return found


def happened(state: State, width: int, height: int) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim bold", show_edge=False)
    table.add_column("time", no_wrap=True, width=8)
    table.add_column("worker", no_wrap=True, overflow="ellipsis", width=min(16, width // 4))
    table.add_column("latest first", no_wrap=True, overflow="ellipsis", ratio=1)
    for event in state["recent"][: max(0, height - 1)]:
        symbol, style, word = HAPPENED[event["event"]]
        what = Text.assemble((f"{symbol} {word} ", style), harmless(event["task"]))
        if event["id"]:
            what.append(f" (id {harmless(event['id'], most=12)})", style="dim")
        table.add_row(Text(clock(event["time"]), "dim"), Text(harmless(event["worker"])), what.append_text(how(event)))
    return table


def how(event: dict[str, Any]) -> Text:
    if event["event"] == "task_completed" and event["seconds"] is not None:
        return Text(f" in {duration(event['seconds'])}", "dim")
    if event["event"] == "task_retried":
        again = f"; again in {event['delay_seconds']:g} s" if event["delay_seconds"] is not None else ""
        return Text(f": {harmless(event['error'])}{again}", "dim")
    return Text(f": {harmless(event['error'])}", "dim") if event["error"] else Text()


# Pieces


def sparkline(values: list[float | None]) -> str:
    """A character a value; a gap is a gap."""
    most = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else BARS[min(7, int(value / most * 7.999))] for value in values)


def ends(left: Text, right: Text, width: int) -> Text:
    """Both in one line; what is left has to give way."""
    room = width - cell_len(right.plain) - 2
    if room < 8:
        return cut(left, width)
    cut(left, room)
    return left.append(" " * (width - 1 - cell_len(left.plain) - cell_len(right.plain))).append_text(right)


def cut(text: Text, width: int) -> Text:
    text.truncate(width - 1, overflow="ellipsis")
    text.no_wrap = True
    return text


def clipped(words: str, width: int, style: str) -> Text:
    return cut(Text(harmless(words), style), width)


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def local(seconds: float, zone: bool = False) -> str:
    moment = datetime.fromtimestamp(seconds).astimezone()
    return moment.strftime("%H:%M:%S %Z" if zone else "%H:%M:%S")


def clock(time: str) -> str:
    """RFC 3339 as local time."""
    try:
        return local(datetime.fromisoformat(time).timestamp())
    except (ValueError, OverflowError, OSError):
        return "?"
