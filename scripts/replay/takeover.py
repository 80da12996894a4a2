"""The takeover as a picture (SVG): who worked on what, where a worker was killed, and who went on with its task."""

from __future__ import annotations

from xml.sax.saxutils import escape

from drawing.picture import BASELINE, CHART, HEADING, LABEL, LANE, LANE_GAP, MARGIN, WIDTH, axis, bar, short, style
from drawing.schedules import Bar

from replay.scenes import Piece, Recording, Run
from replay.story import takeover

LANE_STEP = LANE + 14.0  # room for the way of the task between two lanes
TOP = 10.0
RED = ("#b3261e", "#ff8a80")  # on a light ground, and on a dark one


def picture(recording: Recording) -> str:
    (run,) = recording.runs
    scene = takeover(recording)
    lost = next(piece for piece in run.pieces if not piece.done)
    again = next(piece for piece in run.pieces if piece.task == lost.task and piece.again)
    scale = CHART / run.makespan
    bottom = TOP + HEADING + len(run.workers) * LANE_STEP - LANE_GAP
    height = bottom + 56
    heading = f"{run.workers[lost.worker].name} is killed in the middle of task {lost.task}"
    closing = (
        f"Task {lost.task} was back after {1000 * (run.back(lost) - lost.end):.0f} ms, and "
        f"{run.workers[again.worker].name} did it."
    )
    story = " ".join(f"{moment.at:.1f} s: {moment.text}" for moment in scene.moments)
    about = f"Measured on {recording.broker}, {recording.date:%Y-%m-%d}: {recording.command}"
    lanes = "".join(lane(run, worker, top_of(worker), scale) for worker in range(len(run.workers)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {short(height)}" width="{1.6 * WIDTH:g}" '
        f'role="img" aria-labelledby="t d">\n<title id="t">{escape(heading)}. {escape(closing)}</title>\n'
        f'<desc id="d">{escape(story)} {escape(about)}</desc>\n<style>{style()}{own_style()}</style>\n'
        f'<rect class="g" x=".5" y=".5" width="{WIDTH - 1:g}" height="{short(height - 1)}" rx="6"/>\n'
        f'<text class="h" x="{short(MARGIN)}" y="{short(TOP + 13)}">{escape(heading)}</text>'
        f'<text class="h r" x="{short(WIDTH - MARGIN)}" y="{short(TOP + 13)}">{run.makespan:.1f} s</text>\n'
        f"{lanes}{way(lost, again, scale)}{axis(bottom + 2, run.makespan, scale)}"
        f'<text class="v" x="{short(MARGIN)}" y="{short(height - 14)}">{escape(closing)}</text>\n</svg>\n'
    )


def own_style() -> str:
    light, dark = RED
    return (
        f":root{{--bad:{light}}}@media(prefers-color-scheme:dark){{:root{{--bad:{dark}}}}}"
        ".lost{opacity:.45}.x{fill:none;stroke:var(--bad);stroke-width:2.5;stroke-linecap:round}"
        ".bad{fill:var(--bad);font-weight:600}.gone{fill:none;stroke:var(--frame);stroke-dasharray:3 4}"
        ".way{fill:none;stroke:var(--bad);stroke-width:1.6}.tip{fill:var(--bad);stroke:none}"
    )


def top_of(worker: int) -> float:
    return TOP + HEADING + worker * LANE_STEP


def lane(run: Run, worker: int, y: float, scale: float) -> str:
    who = run.workers[worker]
    parts = [f'<text class="r" x="-6" y="{BASELINE}">{escape(who.name)}</text>']
    for piece in run.lane(worker):
        drawn = bar(Bar(piece.task, worker, piece.start, piece.end), scale)
        parts.append(drawn if piece.done else f'<g class="lost">{drawn}</g>')
    if who.killed is not None:
        x = who.killed * scale
        parts += [
            f'<path class="gone" d="M{short(x + 10)} {short(LANE / 2)}H{short(CHART)}"/>',
            f'<path class="x" d="M{short(x - 5)} 6l10 10m0 -10l-10 10"/>',
            f'<text class="bad w" x="{short(x + 12)}" y="{BASELINE}" style="fill:var(--bad)">killed</text>',
        ]
    return f'<g transform="translate({short(MARGIN + LABEL)} {short(y)})">{"".join(parts)}</g>\n'


def way(lost: Piece, again: Piece, scale: float) -> str:
    """From where the task was broken off to where it is begun again."""
    x, target = lost.end * scale, again.start * scale + 8
    down = again.worker > lost.worker
    start = top_of(lost.worker) + (LANE if down else 0)
    end = top_of(again.worker) + (-1 if down else LANE + 1)
    middle = (start + end) / 2
    tip = -4 if down else 4
    line = f"M{short(x)} {short(start)}V{short(middle)}H{short(target)}V{short(end + tip)}"
    arrow = f"M{short(target)} {short(end)}l-4 {1.5 * tip:g}h8z"
    return (
        f'<g transform="translate({short(MARGIN + LABEL)} 0)"><path class="way" d="{line}"/>'
        f'<path class="tip" d="{arrow}"/></g>\n'
    )
