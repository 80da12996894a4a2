"""A schedule as a timeline in the terminal: a line a worker, length is time, the number is the task, dots are idle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from drawing.palette import COLOURS, INK
from drawing.schedules import Bar, Schedule, nice_step

TICK_CELLS = 6  # between two marks of the axis, at least
LEAST_CELLS = 10


@dataclass(frozen=True)
class Glyphs:
    full: str
    end: str
    idle: str
    edge: str


BLOCKS = Glyphs("█", "▌", "·", "│")
ASCII = Glyphs("#", "]", ".", "|")  # for a terminal without Unicode


def lane(bars: Sequence[Bar], cells: int, seconds: float) -> list[Bar | None]:
    """Which task has most of each cell, of so many seconds; None where that is idleness."""
    found: list[Bar | None] = []
    for cell in range(cells):
        start, end = cell * seconds, (cell + 1) * seconds
        shares = [(min(bar.end, end) - max(bar.start, start), -bar.task, bar) for bar in bars]
        here = [share for share in shares if share[0] > 0]
        busy = sum(share for share, *_ in here)
        found.append(max(here)[2] if here and busy >= seconds / 2 else None)
    return found


def bar_text(bar: Bar, cells: int, glyphs: Glyphs, coloured: bool) -> Text:
    """The number, if there is room for it, then blocks, and half a block, so that the next bar stands apart."""
    number = str(bar.task) if len(str(bar.task)) < cells else ""
    body = glyphs.full * (cells - len(number) - 1) + glyphs.end
    if not coloured:
        return Text(number + body)
    place = (bar.task - 1) % len(COLOURS)
    if COLOURS[place] == "":  # black on light, white on dark: what the terminal writes in
        return Text.assemble((number, "bold reverse"), body)
    return Text.assemble((number, f"bold {INK[place]} on {COLOURS[place]}"), (body, COLOURS[place]))


def lane_text(bars: Sequence[Bar], cells: int, seconds: float, glyphs: Glyphs, coloured: bool) -> Text:
    owners = lane(bars, cells, seconds)
    text = Text()
    start = 0
    for cell in range(1, cells + 1):
        if cell < cells and owners[cell] is owners[start]:
            continue
        owner, width = owners[start], cell - start
        if owner is None:
            text.append(glyphs.idle * width, "dim" if coloured else "")
        else:
            text.append_text(bar_text(owner, width, glyphs, coloured))
        start = cell
    return text


def axis_text(cells: int, horizon: float) -> str:
    step = nice_step(horizon, max(1, cells // TICK_CELLS))
    line = ""
    number = 0
    while (place := round(number * step / horizon * cells)) < cells - 3:
        mark = f"{number * step:g}" if number else "0 s"
        line = line.ljust(place) + mark
        number += 1
    return line


def draw(console: Console, schedule: Schedule, names: Sequence[str], horizon: float) -> str:
    """The lanes and their axis, in as many columns as the console has; `horizon` is where the axis ends, in seconds."""
    coloured = bool(console.color_system) and not console.no_color
    glyphs = ASCII if console.options.ascii_only else BLOCKS
    notes = [
        f"{count} {'task' if count == 1 else 'tasks'}, idle {schedule.idle(worker):.{decimals(horizon)}f} s"
        for worker, count in enumerate(schedule.counts)
    ]
    label, margin = max(map(len, names)) + 1, max(map(len, notes)) + 1
    cells = max(LEAST_CELLS, console.width - label - margin - 2)
    here = min(cells, max(1, round(cells * schedule.makespan / horizon)))
    with console.capture() as capture:
        for worker, (name, note) in enumerate(zip(names, notes, strict=True)):
            text = Text(f"{name:<{label}}{glyphs.edge}")
            text.append_text(lane_text(schedule.lane(worker), here, horizon / cells, glyphs, coloured))
            text.append(f"{glyphs.edge}{' ' * (cells - here)} {note}")
            console.print(text, no_wrap=True, overflow="ignore", crop=False, highlight=False)
        console.print(" " * (label + 1) + axis_text(cells, horizon), highlight=False, no_wrap=True, crop=False)
    return capture.get().rstrip("\n")


def decimals(seconds: float) -> int:
    """Digits after the point that say enough of times like this one."""
    return 1 if seconds >= 5 else 2 if seconds >= 0.2 else 3
