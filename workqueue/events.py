"""What a worker shows people, and other programs: the text of the tutorial, or JSON lines."""

from __future__ import annotations

import json
import math
import traceback
from datetime import UTC, datetime
from typing import Any

from workqueue.streams import harmless, note, say

MOST_CELLS = 30  # of a progress bar
MOST_STARS = 10


def stars(difficulty: float) -> str:
    """A star a point, and the number where stars do not tell it."""
    count = min(math.ceil(min(difficulty, MOST_STARS + 1)), MOST_STARS)
    return "⭐" * count if count == difficulty > 0 else f"{'⭐' * count} {difficulty:g}".strip()


def bar(done: float, total: float) -> str:
    """`[█  ] 1/3s`: a cell a second, or MOST_CELLS of them."""
    cells = math.ceil(min(total, MOST_CELLS))
    full = min(cells, int(cells * done / total)) if done < total else cells
    return f"[{'█' * full}{' ' * (cells - full)}] {done:g}/{total:g}s"


def in_words(error: BaseException) -> str:
    """With its traceback, where that can be had."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # of the error's own making
        return f"{type(error).__name__}: an error that cannot be put into words\n"


class WorkerOutput:
    """The lines of one worker: `event("task_started", id=1, task="…", …)` as the text of the tutorial, or as JSON."""

    def __init__(self, worker: str, log_format: str, quiet: bool = False, several_at_once: bool = False) -> None:
        self._worker = worker
        self._json = log_format == "json"
        self._quiet = quiet
        self._several_at_once = several_at_once

    def event(self, event: str, **details: Any) -> None:
        """Writes one event. `quiet` leaves out those of single tasks. Raises OutputClosed."""
        if self._quiet and event.startswith("task_"):
            return
        if self._json:
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            say(json.dumps({"event": event, "worker": self._worker, "time": time, **details}))
        else:
            say(self._text(event, details))

    def note(self, line: str) -> None:
        note(f"[{self._worker}] {line}")

    def _text(self, event: str, details: dict[str, Any]) -> str:
        who = f"[{harmless(self._worker)}]"
        # with several tasks at once, each line says which
        name = harmless(str(details.get("task") or "a message that is no task"))
        which = f" ({name})" if self._several_at_once else ""
        reason = harmless(str(details.get("error", "")))
        match event:
            case "worker_ready":
                prefetch = details["prefetch"] or "unlimited"
                return f"🚀 {who} Waiting for tasks in {details['queue']} (prefetch {prefetch})"
            case "task_started":
                return f"📥 {who} Received task: {name}\n   {who} Difficulty: {stars(details['difficulty'])}"
            case "task_progress":
                return f"   {who} Progress: {bar(details['done_seconds'], details['total_seconds'])}{which}"
            case "task_completed":
                return f"   {who} ✅ Task completed!{which}"
            case "task_retried":
                return f"   {who} 🔁 Task failed: {reason}; again in {details['delay_seconds']:g} s{which}"
            case "task_dead":
                return f"   {who} 💀 Task given up: {name}: {reason}; it is in {details['queue']}"
            case "task_lost_connection":
                return f"   {who} 🔌 Connection lost during a task; it will be delivered again: {name}"
            case "worker_stopped":
                return f"👋 {who} Stopped; tasks completed: {details['completed']}"
        raise ValueError(event)
