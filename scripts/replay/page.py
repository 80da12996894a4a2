"""docs/replay.html: one file that replays recorded runs. Its texts and tables are there without a script, too."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from drawing.palette import COLOURS, INK
from drawing.schedules import nice_step

from replay.scenes import Recording, Run
from replay.story import Moment, Question, Scene, scenes

FOLDER = Path(__file__).parent
MOST_TICKS = 10
MANY = 16  # tasks
SPEEDS = (("0.5", "½×"), ("1", "1×"), ("4", "4×"))
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072B2"/>'
    '<path fill="#F0E442" d="M2 3h9v4H2z"/><path fill="#56B4E9" d="M2 9h12v4H2z"/></svg>'
)


def page(recordings: dict[str, Recording]) -> str:
    found = scenes(recordings)
    style = f"\n{(FOLDER / 'template.css').read_text()}{colours()}"
    script = f"\n{(FOLDER / 'template.js').read_text()}"
    return Template((FOLDER / "template.html").read_text()).substitute(
        title=escape(found[0].title),
        scenes="\n".join(section(scene, number) for number, scene in enumerate(found)),
        data=json.dumps([data(scene) for scene in found], separators=(",", ":")).replace("<", "\\u003c"),
        style=style,
        style_hash=digest(style),
        script=script,
        script_hash=digest(script),
        icon=f"data:image/svg+xml,{quote(ICON)}",
    )


def digest(text: str) -> str:
    """By which the page's own style and script are known to the browser, and nothing else may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def colours() -> str:
    rules = []
    for place, (colour, ink) in enumerate(zip(COLOURS, INK, strict=True)):
        ground = colour or "var(--black)"
        rules.append(f".c{place} {{ background-color: {ground}; color: {ink or 'var(--white)'}; }}\n")
    return "".join(rules)


# What the script works with


def data(scene: Scene) -> dict[str, Any]:
    """Times in seconds, to the millisecond."""
    return {
        "key": scene.key,
        "seconds": round(scene.seconds, 3),
        "step": nice_step(scene.seconds, MOST_TICKS),
        "right": scene.right,
        "because": scene.because,
        "moments": [[round(moment.at, 3), moment.text] for moment in scene.moments],
        "runs": [run_data(run) for run in scene.recording.runs],
    }


def run_data(run: Run) -> dict[str, Any]:
    return {
        "seconds": round(run.makespan, 3),
        "tasks": list(run.tasks.items()),
        "workers": [
            [worker.name, round(worker.since, 3), rounded(worker.killed), rounded(worker.returned)]
            for worker in run.workers
        ],
        "pieces": [
            [piece.task, piece.worker, *(round(at, 3) for at in (piece.taken, piece.start, piece.end)), int(piece.done)]
            for piece in run.pieces
        ],
    }


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# What is there without it


def section(scene: Scene, number: int) -> str:
    title = "" if number == 0 else f'<h2 id="{scene.key}-title">{escape(scene.title)}</h2>\n'
    label = f'aria-label="{escape(scene.title)}"' if number == 0 else f'aria-labelledby="{scene.key}-title"'
    return (
        f'<section class="scene" id="{scene.key}" {label}>\n{title}<p class="lead">{escape(scene.lead)}</p>\n'
        f"{guess(scene)}"
        f'<div class="{shape(scene)}">\n{runs(scene)}'
        f'<div class="axis" aria-hidden="true"></div>\n{controls(scene)}</div>\n'
        f'<p class="source">Recorded on {scene.recording.broker}, {scene.recording.date:%-d %B %Y}, by '
        f"<code>{escape(scene.recording.command)}</code></p>\n"
        f"{questions(scene.questions)}"
        f"{in_words(scene.moments)}{table(scene)}</section>"
    )


def shape(scene: Scene) -> str:
    """Where nobody holds tasks beside the one in work, a name needs less room; where there are many, all is smaller."""
    several = any(run.prefetch != 1 for run in scene.recording.runs)
    many = max(len(run.tasks) for run in scene.recording.runs) > MANY
    return f"card{'' if several else ' short'}{' many' if many else ''}"


def guess(scene: Scene) -> str:
    buttons = "".join(
        f'<button type="button" class="answer" aria-pressed="false">{escape(answer)}</button>'
        for answer in scene.answers
    )
    return (
        f'<div class="guess" role="group" aria-labelledby="{scene.key}-guess">\n'
        f'<p class="asked" id="{scene.key}-guess">{escape(scene.guess)} '
        '<span class="dim">Guess, then watch.</span></p>\n'
        f'<div class="answers needs-script">{buttons}</div>\n</div>\n'
    )


def runs(scene: Scene) -> str:
    found = []
    for run, (name, meaning) in zip(scene.recording.runs, scene.headings, strict=True):
        heading = f'<h3>{escape(name)} <span class="dim">{escape(meaning)}</span></h3>'
        found.append(
            f'<div class="run">\n<div class="head">{heading}<p class="tally"></p></div>\n'
            '<div class="rail" aria-hidden="true"><span class="rail-label">queue</span>'
            '<div class="slots"></div></div>\n'
            f'<div class="lanes" role="img" aria-label="{escape(told(run, name))}"></div>\n</div>\n'
        )
    return "".join(found)


def told(run: Run, name: str) -> str:
    """A run for those who do not see it."""
    lanes = []
    for number, worker in enumerate(run.workers):
        parts = [f"task {p.task} from {p.start:.1f} to {p.end:.1f} s" for p in run.lane(number) if p.done]
        parts += [f"killed at {worker.killed:.1f} s in the middle of a task"] if worker.killed is not None else []
        lanes.append(f"{worker.name}: {', '.join(parts) or 'nothing'}")
    return f"{name}. {'. '.join(lanes)}. Done in {run.makespan:.1f} s."


def controls(scene: Scene) -> str:
    speeds = "".join(
        f'<label><input type="radio" name="{scene.key}-speed" value="{value}"{" checked" if value == "1" else ""}>'
        f"<span>{shown}</span></label>"
        for value, shown in SPEEDS
    )
    return (
        '<div class="needs-script">\n<div class="track"><input type="range" class="scrub" min="0" '
        f'max="{scene.seconds:.2f}" step="0.01" value="0" aria-label="Time"></div>\n'
        '<p class="caption" aria-live="polite"></p>\n<p class="verdict" role="status"></p>\n<div class="controls">\n'
        '<button type="button" class="play"><span class="sign" aria-hidden="true"></span>'
        '<span class="word">Play</span></button>'
        '<button type="button" class="back" aria-label="Back to the event before">'
        '‹<span class="wide"> Back</span></button>'
        '<button type="button" class="step" aria-label="Step to the next event">'
        '<span class="wide">Step </span>›</button>\n'
        f'<fieldset class="speed"><legend class="hidden">Speed</legend>{speeds}</fieldset>\n'
        '<output class="clock" aria-hidden="true">0.0 s</output>\n</div>\n'
        '<p class="keys dim">Space plays, ← and → step from event to event.</p>\n</div>\n'
    )


def questions(asked: Iterable[Question]) -> str:
    items = "".join(
        f'<li><button type="button" class="ask" data-at="{question.at:.3f}" aria-expanded="true">'
        f'<span>{escape(question.text)}</span> <span class="at">{question.at:.1f} s</span></button>'
        f'<p class="reply">{escape(question.answer)}</p></li>\n'
        for question in asked
    )
    return f'<h3 class="below">Ask the recording</h3>\n<ul class="questions">\n{items}</ul>\n'


def in_words(moments: Iterable[Moment]) -> str:
    items = "".join(f"<li><b>{moment.at:.1f} s</b> {escape(moment.text)}</li>\n" for moment in moments)
    return f"<details><summary>What happens, in words</summary>\n<ol>\n{items}</ol>\n</details>\n"


def table(scene: Scene) -> str:
    """A row for each task: who did it, and when, in each of the runs."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in scene.headings)
    rows = []
    for task, seconds in scene.recording.runs[0].tasks.items():
        cells = "".join(f"<td>{'<br>'.join(pieces(run, task))}</td>" for run in scene.recording.runs)
        rows.append(f'<tr><th scope="row">{task}</th><td>{seconds:g} s</td>{cells}</tr>\n')
    return (
        "<details><summary>The data, as a table</summary>\n<table>\n<caption>Who did which task, in seconds from the "
        f'start of the first one</caption>\n<thead><tr><th scope="col">Task</th><th scope="col">Takes</th>{heads}</tr>'
        f"</thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</details>\n"
    )


def pieces(run: Run, task: int) -> list[str]:
    return [
        f'{escape(run.workers[p.worker].name)} <span class="span">{p.start:.2f}–{p.end:.2f}</span>'
        f"{'' if p.done else ', killed'}"
        for p in run.pieces
        if p.task == task
    ]
