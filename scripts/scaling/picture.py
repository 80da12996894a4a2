"""The simulated day as a picture (SVG): load, workers and waiting time, by the rule and with a fixed number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from drawing.picture import MARGIN, WIDTH, short, style
from drawing.schedules import nice_step

from scaling.rule import Rule
from scaling.simulation import DAY, SECONDS, Day, arrivals, simulate

FIXED = 5
STEP = 300  # seconds of the day that are one point
LEFT, TOP, HIGH, GAP, FOOTER = 34.0, 12.0, 62.0, 34.0, 56.0
CHART = WIDTH - MARGIN - LEFT
HOURS = 4  # between two marks
RULE, OTHER = ("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00")  # on a light ground, and on a dark one


@dataclass(frozen=True)
class Line:
    kind: str
    values: Sequence[float]  # one a STEP


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    lines: Sequence[Line]


def day_picture() -> str:
    customers = arrivals()
    return picture(simulate(customers, Rule()), simulate(customers, Rule(least=FIXED, most=FIXED)))


def picture(scaled: Day, fixed: Day) -> str:
    panels = (
        Panel("Load", "tasks a second", (Line("load", by_step(scaled.arrived, mean)),)),
        Panel("Workers", "", (Line("fixed", by_step(fixed.workers, max)), Line("rule", by_step(scaled.workers, max)))),
        Panel("Waiting", "minutes", (waiting("fixed", fixed), waiting("rule", scaled))),
    )
    height = TOP + len(panels) * (HIGH + GAP) + FOOTER
    drawn = "".join(panel(each, TOP + n * (HIGH + GAP) + 20) for n, each in enumerate(panels))
    title = f"A day with a Black Friday peak, simulated: 1 to 10 workers by the rule, and a fixed {FIXED}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {short(height)}" width="{1.6 * WIDTH:g}" '
        f'role="img" aria-labelledby="t d">\n<title id="t">{title}</title>\n'
        f'<desc id="d">{escape(story(scaled, fixed))}</desc>\n'
        f"<style>{style()}{own_style()}</style>\n"
        f'<rect class="g" x=".5" y=".5" width="{WIDTH - 1:g}" height="{short(height - 1)}" rx="6"/>\n'
        f"{drawn}{hours(height - FOOTER + 2)}{legend(scaled, fixed, height - 30)}</svg>\n"
    )


def own_style() -> str:
    names = zip(("rule", "fixed"), (RULE, OTHER), strict=True)
    light, dark = zip(*((f"--{name}:{a}", f"--{name}:{b}") for name, (a, b) in names), strict=True)
    return (
        f":root{{{';'.join(light)}}}@media(prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}"
        ".line{fill:none;stroke-width:1.6;stroke-linejoin:round}.load{stroke:var(--quiet)}"
        ".rule{stroke:var(--rule)}.fixed{stroke:var(--fixed);stroke-dasharray:5 3}.u{font-size:11px}"
    )


def story(scaled: Day, fixed: Day) -> str:
    most = max(scaled.workers)
    late = fixed.waited_at_most(1.0) / 60
    return (
        f"A simulated day of {len(scaled.arrived) // 3600} hours and {sum(scaled.arrived):,} tasks of {SECONDS:g} s, "
        f"most of them between half past six and nine in the evening. By the rule there are 1 to {most} workers, "
        f"{scaled.worker_hours:.0f} worker-hours in all, and no task waits longer than "
        f"{scaled.waited_at_most(1.0):.0f} s. A fixed {FIXED} is {fixed.worker_hours:.0f} worker-hours, and tasks "
        f"wait up to {late:.0f} minutes, until midnight."
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_step(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> list[float]:
    return [of(values[start : start + STEP]) for start in range(0, len(values), STEP)]


def waiting(kind: str, day: Day) -> Line:
    return Line(kind, [value / 60 for value in by_step(day.waited, max)])


def panel(panel: Panel, y: float) -> str:
    """Its title, a scale of a round number of steps, and its lines."""
    most = max(max(line.values) for line in panel.lines)
    step = nice_step(most, 3)
    top = step * -(-most // step)
    parts = [f'<text class="h" x="{short(MARGIN)}" y="{short(y - 10)}">{panel.title}']
    parts.append(f'<tspan class="q u" style="font-weight:400" dx="6">{panel.unit}</tspan></text>')
    for number in range(round(top / step) + 1):
        level = short(y + HIGH - HIGH * number * step / top)
        parts.append(f'<path class="l" d="M{short(LEFT)} {level}h{short(CHART)}"/>')
        parts.append(
            f'<text class="q r u" x="{short(LEFT - 5)}" y="{short(float(level) + 4)}">{number * step:g}</text>'
        )
    for line in panel.lines:
        places = [place(n, value, len(line.values), y, top) for n, value in enumerate(line.values)]
        parts.append(f'<path class="line {line.kind}" d="{way(places)}"/>')
    return "".join(parts) + "\n"


def place(number: int, value: float, count: int, y: float, top: float) -> tuple[float, float]:
    return LEFT + CHART * (number + 0.5) / count, y + HIGH - HIGH * value / top


def way(places: Sequence[tuple[float, float]]) -> str:
    """The points, without those that lie between two of the same height."""
    kept = [
        (x, y)
        for n, (x, y) in enumerate(places)
        if n in (0, len(places) - 1) or not short(places[n - 1][1]) == short(y) == short(places[n + 1][1])
    ]
    return "M" + "L".join(f"{short(x)} {short(y)}" for x, y in kept)


def hours(y: float) -> str:
    marks = []
    for hour in range(0, DAY // 3600 + 1, HOURS):
        x = LEFT + CHART * hour * 3600 / DAY
        end = " r" if hour == DAY // 3600 else " m"
        marks.append(f'<text class="q u{end}" x="{short(x)}" y="{short(y + 4)}">{hour}:00</text>')
    return "".join(marks) + "\n"


def legend(scaled: Day, fixed: Day, y: float) -> str:
    """What each line is, what it costs, and what it brings."""
    late = fixed.waited_at_most(1.0) / 60
    rows = (
        ("rule", f"1 to 10: {scaled.worker_hours:.0f} worker-hours, longest wait {scaled.waited_at_most(1.0):.0f} s"),
        ("fixed", f"fixed {FIXED}: {fixed.worker_hours:.0f} worker-hours, longest wait {late:.0f} min"),
    )
    parts = []
    for number, (kind, text) in enumerate(rows):
        line = y + 17 * number
        parts.append(f'<path class="line {kind}" d="M{short(MARGIN)} {short(line - 4)}h22"/>')
        parts.append(f'<text class="v" x="{short(MARGIN + 30)}" y="{short(line)}">{text}</text>')
    return "".join(parts) + "\n"
