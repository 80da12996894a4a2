"""What the figures mean, in a sentence: too much to do does not look like nobody to do it."""

from __future__ import annotations

from typing import Any

Verdict = dict[str, Any]  # level: good, idle, busy, bad or unknown; text; notes

STRANGERS_SECONDS = 2.5  # a worker has said who it is by then


def verdict(state: dict[str, Any]) -> Verdict:
    level, text = sentence(state)
    return {"level": level, "text": text, "notes": notes(state) if state["source"]["connected"] else []}


def sentence(state: dict[str, Any]) -> tuple[str, str]:
    source, queues, workers = state["source"], state["queues"], state["workers"]
    if not source["connected"]:
        return "unknown", f"{source['trouble'] or 'not connected'}; trying again"
    if queues["trouble"]:
        return "unknown", str(queues["trouble"])
    if not queues["known"]:
        if source["kind"] == "replay":
            return "unknown", "this recording does not tell what the queues held"
        if queues["silent_seconds"] < 2:
            return "unknown", "asking the broker"
        return "unknown", f"the broker has not answered for {queues['silent_seconds']:.0f} s"
    if not queues["exists"]:
        return "bad", f"there is no queue {source['queue']}: sender.py and worker.py declare it"
    return of_queue(state, queues["ready"] or 0, queues["consumers"] or 0, workers)


def of_queue(state: dict[str, Any], ready: int, consumers: int, workers: dict[str, Any]) -> tuple[str, str]:
    waiting = f"{of(ready, 'task')} {'waits' if ready == 1 else 'wait'}"
    who = of(consumers, "consumer")
    if not consumers:
        if not ready:
            return "idle", "Nothing to do, and nobody to do it: no worker consumes."
        return "bad", f"Nobody consumes: {waiting}, and no worker takes them."
    silent = workers["by_state"].get("silent", 0)
    if ready and silent >= consumers and workers["consuming"] == silent:
        return "bad", f"{waiting} for {who}, and {'it is' if consumers == 1 else 'all are'} silent."
    if ready:
        for_whom = f"{consumers:,} busy consumers" if consumers > 1 else "the only consumer, which is busy"
        return "busy", f"{waiting} for {for_whom}{time_left(state, ready)}."
    if workers["running"] or workers["held"]:
        return "good", f"Keeping up: {of(workers['running'], 'task')} in work, none waits."
    return "idle", f"Nothing to do: {who} {'waits' if consumers == 1 else 'wait'}."


def time_left(state: dict[str, Any], ready: int) -> str:
    if not state["rate"] or state["rate"][0] <= 0:
        return ""
    return f": {duration(ready / state['rate'][0])} at this rate"


def notes(state: dict[str, Any]) -> list[str]:
    """What does not fit together, or is worth a look."""
    source, queues, workers = state["source"], state["queues"], state["workers"]
    if source["no_events"]:
        return [f"no events: {source['no_events']}"]
    found: list[str] = []
    consumers, here = queues["consumers"], workers["consuming"]
    if queues["known"] and queues["exists"] and consumers is not None and consumers != here:
        known = f"{of(consumers, 'consumer')}, {of(workers['known'], 'worker')} known"
        if consumers < here:
            found.append(f"{known}: {of(here - consumers, 'worker')} gone, or about to consume again")
        elif workers["strangers_seconds"] > STRANGERS_SECONDS:
            found.append(f"{known}: start the others with --events to see them")
    elif silent := workers["by_state"].get("silent"):
        found.append(f"{of(silent, 'worker')} silent, and still consuming: frozen, or cut off")
    if workers["oldest"] is not None and workers["oldest"] > workers["long"]:
        found.append(f"a task has been running for {duration(workers['oldest'])}")
    if source["behind"]:
        found.append(f"this view is {source['behind']:.1f} s behind")
    if source["missed"]:
        share = f"{source['missed']:,} of {source['missed_of']:,}"
        found.append(f"{share} events of the last 10 s are not listed; the counts are right all the same")
    if source["unreadable"]:
        found.append(f"{of(source['unreadable'], 'line')} on the exchange could not be read")
    return found


def of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h"""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
