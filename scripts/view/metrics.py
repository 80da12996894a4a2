"""The state as Prometheus reads it. Counters come from what workers count themselves, so that no lost event makes them
wrong, and they do not fall when a worker ends. No label names a worker: those come and go by the thousand."""

from __future__ import annotations

from collections.abc import Iterator

from view.model import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("waiting", "working", "stopping", "reconnecting", "quiet", "silent", "starting", "stopped")

Sample = tuple[dict[str, str], float | None]


def metrics(state: State) -> str:
    return "".join(f"{line}\n" for line in lines(state))


def lines(state: State) -> Iterator[str]:
    labels = {"queue": state["source"]["queue"]}
    for name, kind, about, samples in families(state):
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} {kind}"
        for more, value in samples:
            if value is not None:
                shown = ",".join(f'{label}="{escaped(text)}"' for label, text in {**labels, **more}.items())
                yield f"{name}{{{shown}}} {value:.15g}"


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def families(state: State) -> Iterator[tuple[str, str, str, list[Sample]]]:
    source, queues, workers = state["source"], state["queues"], state["workers"]
    known = queues if queues["known"] else {}
    by_state = dict.fromkeys(STATES, 0) | {"other": 0}
    for name, count in workers["by_state"].items():
        by_state[name if name in STATES else "other"] += count
    retrying = sum(count for _, count in queues["retry"]) if known else None

    def one(value: float | None) -> list[Sample]:
        return [({}, value)]

    yield "work_queue_up", "gauge", "1 while connected to the broker.", one(float(source["connected"]))
    yield "work_queue_tasks_ready", "gauge", "Tasks that wait in the work queue.", one(known.get("ready"))
    yield "work_queue_consumers", "gauge", "Consumers of the work queue.", one(known.get("consumers"))
    yield "work_queue_tasks_retrying", "gauge", "Tasks that wait for a further attempt.", one(retrying)
    yield "work_queue_tasks_dead", "gauge", "Tasks in the dead queue.", one(known.get("dead"))
    yield "work_queue_tasks_running", "gauge", "Tasks that workers run.", one(workers["running"])
    yield "work_queue_tasks_held", "gauge", "Tasks that workers hold and have not begun.", one(workers["held"])
    about = "Age of the task that has been running for the longest."
    yield "work_queue_oldest_running_seconds", "gauge", about, one(workers["oldest"] or 0)
    about = "How long the task that was started last had waited."
    yield "work_queue_last_wait_seconds", "gauge", about, one(state["waited"][0] if state["waited"] else None)
    counted: list[Sample] = [({"state": name}, count) for name, count in by_state.items()]
    yield "work_queue_workers", "gauge", "Workers that send events, by what they do.", counted
    done: list[Sample] = [({"outcome": name}, count) for name, count in state["watched"].items()]
    yield "work_queue_tasks_total", "counter", "What became of attempts, while this view watched.", done
    about = "Events that did not reach this view; no other figure depends on them."
    yield "work_queue_events_missed_total", "counter", about, one(source["missed_in_all"])
    about = "Lines on the exchange that are no events."
    yield "work_queue_events_unreadable_total", "counter", about, one(source["unreadable"])
