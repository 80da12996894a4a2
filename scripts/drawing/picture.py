"""Runs as a picture (SVG) that shows itself right on light and on dark pages, and on a telephone: text only, no script.

All lengths are units of a picture WIDTH wide; whoever shows it makes it as wide as there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from drawing.palette import COLOURS, INK
from drawing.schedules import Bar, nice_step
from drawing.timeline import decimals
from drawing.words import Run, story, verdict

WIDTH = 400.0
MARGIN = 12.0
LABEL = 62.0  # of a worker
LANE, LANE_GAP = 22.0, 5.0
HEADING, RUN_GAP = 22.0, 16.0
AXIS, FOOTER = 22.0, 30.0
CHART = WIDTH - 2 * MARGIN - LABEL
BASELINE = 15.5  # of the text in a lane, from its top
LARGEST_NUMBER, SMALLEST_NUMBER = 13.0, 6.0  # font sizes
DIGIT = 0.62  # width of a digit, in parts of the font size
MOST_TICKS = 8

LIGHT = {"ground": "#ffffff", "frame": "#d1d9e0", "text": "#1f2328", "quiet": "#59636e", "black": "#000000"}
DARK = {"ground": "#0d1117", "frame": "#3d444d", "text": "#f0f6fc", "quiet": "#9198a1", "black": "#ffffff"}


def style() -> str:
    """Each task has the class of its place in the palette: `a` is the shape of the first, `a n` its number."""
    rules = [
        "text{font:12px system-ui,-apple-system,Segoe UI,Roboto,sans-serif;fill:var(--text)}",
        ".h{font-size:14px;font-weight:600}.v{font-size:11.5px;font-weight:500}.q{fill:var(--quiet)}.m{text-anchor:middle}.r{text-anchor:end}",
        ".w{fill:var(--text);stroke:var(--ground);stroke-width:5px;stroke-linejoin:round;paint-order:stroke}",
        ".g{fill:var(--ground);stroke:var(--frame)}.l{stroke:var(--frame)}.s{stroke:var(--quiet);stroke-width:1.2}",
        "path{stroke:var(--text)}.i{fill:url(#i);stroke:var(--frame)}.n{text-anchor:middle;font-weight:600;fill:#000}",
    ]
    rules += [f".{letter(place)}{{fill:{colour or 'var(--black)'}}}" for place, colour in enumerate(COLOURS)]
    rules += [
        f".n{letter(place)}{{fill:{ink or 'var(--ground)'}}}" for place, ink in enumerate(INK) if ink != "#000000"
    ]
    return f":root{{{variables(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}{''.join(rules)}"


def variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items()).rstrip(";")


def letter(place: int) -> str:
    return "abcdefjk"[place]


def short(length: float) -> str:
    return f"{length:.1f}".removesuffix(".0")


def shape(kind: str, x: float, width: float) -> str:
    return f'<path class="{kind}" d="M{short(x)} 0h{short(width)}v{LANE:g}h-{short(width)}z"/>'


def bar(bar: Bar, scale: float) -> str:
    """The shape of a task, with its number as large as there is room for it, or without one."""
    x, width = bar.start * scale, bar.seconds * scale
    place = (bar.task - 1) % len(COLOURS)
    number = str(bar.task)
    size = min(LARGEST_NUMBER, (width - 2) / (DIGIT * len(number)))
    drawn = shape(letter(place), x, max(width, 0.3))
    if size < SMALLEST_NUMBER:
        return drawn
    smaller = f' style="font-size:{short(size)}px"' if size < LARGEST_NUMBER else ""
    ink = "" if INK[place] == "#000000" else f" n{letter(place)}"
    return f'{drawn}<text class="n{ink}"{smaller} x="{short(x + width / 2)}" y="{BASELINE}">{number}</text>'


def idle(start: float, end: float, scale: float, digits: int) -> str:
    """A span in which a worker has nothing to do, hatched; its length is told where there is room."""
    width = (end - start) * scale
    if width < 3:  # no more than the hand-over of the next task
        return ""
    told = f"idle {end - start:.{digits}f} s"
    text = f'<text class="m w" x="{short((start + end) / 2 * scale)}" y="{BASELINE}">{told}</text>'
    return shape("i", start * scale, width) + (text if width > 7 * len(told) else "")


def lane(run: Run, worker: int, y: float, scale: float) -> str:
    bars = run.measured.lane(worker)
    digits = decimals(run.best)
    parts = [f'<text class="r" x="-6" y="{BASELINE}">{escape(run.names[worker])}</text>']
    done = 0.0
    for each in bars:
        parts += [idle(done, each.start, scale, digits), bar(each, scale)]
        done = each.end
    parts.append(idle(done, run.measured.makespan, scale, digits))
    return f'<g transform="translate({short(MARGIN + LABEL)} {short(y)})">{"".join(parts)}</g>\n'


def panel(run: Run, y: float, scale: float) -> str:
    """The heading of a run, its lanes, and where it was done."""
    makespan = run.measured.makespan
    right = short(WIDTH - MARGIN)
    parts = [
        f'<text class="h" x="{short(MARGIN)}" y="{short(y + 13)}">{escape(run.title)}</text>'
        f'<text class="h r" x="{right}" y="{short(y + 13)}">{run.seconds(makespan)}</text>\n'
    ]
    for worker in range(len(run.names)):
        parts.append(lane(run, worker, y + HEADING + worker * (LANE + LANE_GAP), scale))
    return "".join(parts)


def axis(y: float, horizon: float, scale: float) -> str:
    step = nice_step(horizon, MOST_TICKS)
    marks = []
    for number in range(int(horizon / step + 1e-9) + 1):
        x, told = short(MARGIN + LABEL + number * step * scale), f"{number * step:g}" if number else "0 s"
        marks.append(
            f'<path class="l" d="M{x} {short(y)}v4"/><text class="m q" x="{x}" y="{short(y + 16)}">{told}</text>'
        )
    return "".join(marks) + "\n"


def picture(runs: Sequence[Run], about: str) -> str:
    """The picture. `about` says where its figures come from."""
    horizon = max(run.measured.makespan for run in runs) or 1.0
    scale = CHART / horizon
    rows = len(runs[0].names)
    each = HEADING + rows * (LANE + LANE_GAP) - LANE_GAP
    top = 10.0
    places = [top + number * (each + RUN_GAP) for number in range(len(runs))]
    bottom = places[-1] + each + 6
    height = bottom + AXIS + (FOOTER if len(runs) > 1 else 4)
    closing = f'<text class="v" x="{short(MARGIN)}" y="{short(height - 14)}">{escape(verdict(runs))}</text>\n'
    title = f"{sum(runs[0].measured.counts)} tasks, {rows} workers: {verdict(runs)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {short(height)}" width="{1.6 * WIDTH:g}" '
        f'role="img" aria-labelledby="t d">\n<title id="t">{escape(title)}</title>\n'
        f'<desc id="d">{escape(story(runs))} {escape(about)}</desc>\n<style>{style()}</style>\n'
        '<pattern id="i" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path class="s" d="M0 0v6"/></pattern>\n'
        f'<rect class="g" x=".5" y=".5" width="{WIDTH - 1:g}" height="{short(height - 1)}" rx="6"/>\n'
        f"{''.join(panel(run, y, scale) for run, y in zip(runs, places, strict=True))}"
        f"{axis(bottom, horizon, scale)}{closing if len(runs) > 1 else ''}</svg>\n"
    )
