"""The live view as a picture (SVG): what the terminal shows, in the reader's own letters, light or dark."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from view.terminal import FIXED_LINES, notes_on, page
from view.verdict import duration

COLUMNS = 74  # as many as can be read on a telephone
MOST_ROWS = 24
PADDING = 14
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,Liberation Mono,DejaVu Sans Mono,monospace"
FRAME = "#8b949e"

Colour = tuple[int, int, int]

# black, red, green, yellow, blue, magenta, cyan, white; the blue is a ground for white letters
LIGHT = ((31, 35, 40), (207, 34, 46), (17, 99, 41), (125, 78, 0), (9, 80, 175), (130, 80, 223), (27, 124, 131))
DARK = ((72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (9, 80, 175), (188, 140, 255), (57, 197, 207))
WHITE = (255, 255, 255)


def theme(ground: Colour, text: Colour, colours: tuple[Colour, ...]) -> TerminalTheme:
    found: list[Colour] = [*colours, WHITE]
    return TerminalTheme(ground, text, found, found)


MODES = {
    "light": theme((255, 255, 255), (31, 35, 40), LIGHT),
    "dark": theme((13, 17, 23), (230, 237, 243), DARK),
}

FORMAT = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="640" role="img" aria-labelledby="t">'
    '\n<title id="t">TITLE</title>\n<style>.{unique_id}-matrix{{font:{char_height}px FONT;white-space:pre}}'
    "rect.g{{fill:GROUND;stroke:FRAME;stroke-width:2}}{styles}OTHERS</style>\n"
    '<rect class="g" x="1" y="1" width="{width}" height="{height}" rx="12"/>\n'
    '<g transform="translate(8,{terminal_y})">{backgrounds}\n<g class="{unique_id}-matrix">{matrix}</g></g>'
    "\n</svg>\n"
)


def live_view(state: dict[str, Any]) -> str:
    """The page of the terminal, with as many rows as it needs."""
    rows = len(state["workers"]["rows"]) + min(6, len(state["recent"])) + 3
    height = min(MOST_ROWS, FIXED_LINES + len(notes_on(state, COLUMNS)) + rows)
    console = Console(
        file=io.StringIO(),
        width=COLUMNS,
        record=True,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(page(state, COLUMNS, height))
    drawn = {mode: exported(console, mode) for mode in MODES}
    ground = {mode: MODES[mode].background_color.hex for mode in MODES}
    others = f"@media(prefers-color-scheme:dark){{rect.g{{fill:{ground['dark']}}}{rules(drawn['dark'])}}}"
    picture = drawn["light"].replace("GROUND", ground["light"]).replace("OTHERS", others)
    return framed(tight(picture)).replace("TITLE", title(state)).replace("FONT", FONT).replace("FRAME", FRAME)


def exported(console: Console, mode: str) -> str:
    return console.export_svg(theme=MODES[mode], clear=False, code_format=FORMAT, unique_id="w")


def rules(picture: str) -> str:
    """The colours of its letters."""
    return "".join(re.findall(r"\.w-r\d+ \{.*?\}", picture))


def framed(picture: str) -> str:
    """Without the room for a title, and with a frame that lies within the picture."""
    top = float(re.findall(r"translate\(8,(\d+)\)", picture)[0]) - PADDING
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)[0])
    size = f'viewBox="0 0 {width:g} {height - top:g}"'
    picture = re.sub(r'viewBox="[^"]*"', size, picture).replace(
        f"translate(8,{top + PADDING:g})", f"translate(8,{PADDING})"
    )
    return picture.replace(
        f'width="{width:g}" height="{height:g}" rx', f'width="{width - 2:g}" height="{height - top - 2:g}" rx'
    )


def tight(picture: str) -> str:
    """Without what nobody sees: the marks of lines that are cut off, and empty texts."""
    picture = re.sub(r' clip-path="[^"]*"', "", picture)
    picture = re.sub(r'<text class="[^"]*"[^>]*>(?:&#160;|\s)*</text>', "", picture)
    return re.sub(r"[ \t]*\n\s*", "\n", picture)


def title(state: dict[str, Any]) -> str:
    rows = state["workers"]["rows"]
    lanes = "; ".join(f"{row['worker']}: {row['state']}, {row['completed']} done" for row in rows)
    dead = state["queues"]["dead"] or 0
    return (
        f"watch.py after {duration(state['source']['watched_seconds'])}: {state['queues']['ready']} tasks ready, "
        f"{state['queues']['consumers']} consumers, {dead} dead. {lanes}."
    )
