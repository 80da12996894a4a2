"""All that is known: made of events, of counts of the queues, and of how the connection to the broker is.

Times are seconds of one clock, which whoever calls hands in: a replay has one of its own. Everything is bounded.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from view.events import COUNTED, DECIDED, ENDINGS, Event, maybe, number, text, whole
from view.facts import Queues, Sample, Source, recorded
from view.runs import AWAY, COUNTS, Run
from view.verdict import verdict

MOST_RUNS = 2000
MOST_GONE = 10_000  # runs that are remembered only by their counts
MOST_RECENT = 60
MOST_DELAYS = 10
HISTORY_SECONDS = 300
SHOWN_SECONDS = 120  # of it
SMOOTH_SECONDS = 5  # that a rate in it is the mean of
RATE_SECONDS = 10
MISSED_SECONDS = 10
SETTLING_SECONDS = 3.0  # after we are bound, until every worker publishes all its events
BEHIND_SECONDS = 1.5
SCALED_SECONDS = 5.0  # without a word of autoscale.py, after which it is gone
STALE_SECONDS = 3.0  # counts of the queues that are older are no news
TROUBLE = ("silent", "quiet", "reconnecting")

State = dict[str, Any]


class Model:
    """For any thread."""

    def __init__(self, source: Source, now: float) -> None:
        self.source = source
        self.since = now
        self.connected_at: float | None = None
        self.trouble = "not connected yet"
        self.no_events = ""  # why, where only the queues can be seen
        self.queues = Queues()
        self.runs: dict[str, Run] = {}
        self.gone: OrderedDict[str, Run] = OrderedDict()  # not shown any more, but one may come back
        self.of_gone = Counter[str]()  # what they have done
        self.of_gone_before = Counter[str]()  # and what of it before we watched
        self.strangers_since: float | None = None  # more consumers than workers that we know
        self.recent: deque[tuple[str, float, Event]] = deque(maxlen=MOST_RECENT)
        self.history: deque[Sample | None] = deque(maxlen=HISTORY_SECONDS)
        self.missed: deque[tuple[float, int, int]] = deque(maxlen=4 * MOST_RUNS)
        self.waited: tuple[float, float] | None = None  # seconds, and when that was
        self.decided: tuple[Event, float] | None = None  # by autoscale.py, and when we heard of it last
        self.took: deque[float] = deque(maxlen=50)  # seconds of the tasks that were done last
        self.delays: dict[float, None] = {}  # that workers have told, in seconds
        self.unreadable = 0
        self.missed_in_all = 0
        self._guard = threading.RLock()

    # What comes in

    def connected(self, now: float, broker: str) -> None:
        with self._guard:
            self.connected_at, self.trouble = now, ""
            self.source.broker = broker
            for run in self.runs.values():
                run.forget_windows()

    def lost(self, reason: str) -> None:
        with self._guard:
            if self.connected_at is not None:
                self.history.append(None)  # no rate is made across it
            self.connected_at, self.trouble = None, reason
            self.queues = Queues()

    def count(self, queues: Queues) -> None:
        with self._guard:
            self.queues = queues

    def receive(self, events: Iterable[Event], bad: int, now: float) -> None:
        with self._guard:
            self.unreadable += bad
            for event in events:
                if event["event"] == COUNTED:
                    self.queues = recorded(event, now)
                elif event["event"] == DECIDED:
                    self.decided = (event, now)
                else:
                    self._of_run(event, now)

    def _of_run(self, event: Event, now: float) -> None:
        run = self.runs.get(event["run"]) or self._new_run(event, now)
        if run is None:
            return
        missed, of = run.apply(event, now)
        settled = self.connected_at is not None and now - self.connected_at > SETTLING_SECONDS + 3 * run.interval
        if of and settled:
            self.missed.append((now, missed, of))
            self.missed_in_all += missed
        name = event["event"]
        if name == "task_started" and (waited := maybe(event, "waited")) is not None:
            self.waited = (waited, now)
        elif name == "task_completed":
            self.took.append(number(event, "seconds"))
        elif name == "task_retried" and len(self.delays) < MOST_DELAYS and number(event, "delay_seconds") >= 0.001:
            self.delays[number(event, "delay_seconds")] = None
        if name in ENDINGS or name in ("worker_ready", "worker_stopped"):
            self.recent.append((text(event, "time"), now, event))

    def _new_run(self, event: Event, now: float) -> Run | None:
        if len(self.runs) >= MOST_RUNS:
            return None
        run = self.runs[event["run"]] = Run(event["run"], text(event, "worker"), self.since)
        if known := self.gone.pop(run.id, None):  # it had fallen silent, and is back
            run.counts, run.first_counts, run.is_back = known.counts, known.first_counts, True
            self.of_gone.subtract(known.counts)
            self.of_gone_before.subtract(known.first_counts)
        return run

    def tick(self, now: float) -> None:
        """To be called several times a second: forgets who is gone, and keeps history."""
        with self._guard:
            if self.connected_at is None:
                return
            for run in [run for run in self.runs.values() if run.is_gone(now, self.connected_at)]:
                self._forget(run)
            while self.missed and now - self.missed[0][0] > MISSED_SECONDS:
                self.missed.popleft()
            strangers = self.queues.consumers is not None and self.queues.consumers > self._consuming(now)
            self.strangers_since = (self.strangers_since or now) if strangers else None
            last = self.history[-1] if self.history else None
            if last is None or now - last.at >= 1.0:
                self.history.append(Sample(now, self.done_while_watched("completed"), self.queues.ready))

    def _forget(self, run: Run) -> None:
        del self.runs[run.id]
        run.counts = {name: run.total(name) for name in COUNTS}
        run.tasks, run.later = {}, {}
        self.gone[run.id] = run
        self.of_gone.update(run.counts)
        self.of_gone_before.update(run.first_counts)
        if len(self.gone) > MOST_GONE:
            self.gone.popitem(last=False)

    def _consuming(self, now: float) -> int:
        """Workers that should have a consumer."""
        connected_at = now if self.connected_at is None else self.connected_at
        return sum(run.heard_as(now, connected_at) not in AWAY for run in self.runs.values())

    # What is so

    def total(self, name: str) -> int:
        """Of one of COUNTS, in all that these workers have done, also before we watched."""
        return self.of_gone[name] + sum(run.total(name) for run in self.runs.values())

    def done_while_watched(self, name: str) -> int:
        """It never falls, whoever ends."""
        before = self.of_gone_before[name] + sum(run.first_counts[name] for run in self.runs.values())
        return self.total(name) - before

    def rate(self) -> tuple[float, float] | None:
        """Tasks done a second, and the seconds that this is the mean of."""
        newest = self.history[-1] if self.history else None
        if newest is None:
            return None
        oldest = newest
        for sample in reversed(self.history):
            if sample is None or newest.at - sample.at > RATE_SECONDS + 0.5:
                break
            oldest = sample
        seconds = newest.at - oldest.at
        return ((newest.done - oldest.done) / seconds, seconds) if seconds >= 0.9 else None

    def state(self, now: float, rows: int = 50, recent: int = 20) -> State:
        """All of it as plain data; of workers and recent events only so many."""
        with self._guard:
            connected_at = now if self.connected_at is None else self.connected_at
            seen = {run.id: run.seen_as(now, connected_at) for run in self.runs.values()}
            state: State = {
                "now": self.source.started + now,
                "source": self._source(now),
                "queues": self._queues(now),
                "totals": {name: self.total(name) for name in COUNTS},
                "watched": {name: self.done_while_watched(name) for name in COUNTS},
                "rate": self.rate(),
                "waited": (self.waited[0], now - self.waited[1]) if self.waited else None,
                "workers": self._workers(now, connected_at, seen, rows),
                "autoscale": self._autoscale(now),
                "recent": self._recent(recent),
                "history": self._history(),
            }
            state["verdict"] = verdict(state)
            return state

    def _source(self, now: float) -> State:
        source = self.source
        lags = [run.lag for run in self.runs.values() if now - run.heard < 1.5 * (run.interval or 1.0)]
        behind = min(lags, default=0.0)
        return {
            "queue": source.queue,
            "dead_queue": source.dead_queue,
            "dead_command": source.dead_command,
            "kind": source.kind,
            "where": source.where,
            "broker": source.broker,
            "note": source.note,
            "since": source.started + self.since,
            "watched_seconds": now - self.since,
            "connected": self.connected_at is not None,
            "connected_seconds": 0.0 if self.connected_at is None else now - self.connected_at,
            "trouble": self.trouble,
            "no_events": self.no_events,
            "behind": behind if behind > BEHIND_SECONDS else 0.0,
            "missed": sum(missed for _, missed, _ in self.missed),
            "missed_of": sum(of for _, _, of in self.missed),
            "missed_in_all": self.missed_in_all,
            "unreadable": self.unreadable,
        }

    def _queues(self, now: float) -> State:
        queues = self.queues
        fresh = now - queues.at <= STALE_SECONDS
        return {
            "known": fresh,
            "silent_seconds": 0.0 if fresh or self.connected_at is None else now - max(queues.at, self.connected_at),
            "exists": queues.exists,
            "ready": queues.ready,
            "consumers": queues.consumers,
            "dead": queues.dead,
            "retry": list(queues.retry.items()),
            "trouble": queues.trouble,
        }

    def _workers(self, now: float, connected_at: float, seen: dict[str, str], rows: int) -> State:
        by_state: dict[str, int] = {}
        for name in seen.values():
            by_state[name] = by_state.get(name, 0) + 1
        runs = list(self.runs.values())
        if len(runs) > rows:  # the ones in trouble must be among those that are shown
            runs.sort(key=lambda run: seen[run.id] not in TROUBLE)
        tasks = {run.id: run.running() for run in runs if seen[run.id] not in ("silent", "stopped")}
        ages = [self.runs[name].age(task, now) for name, found in tasks.items() for task in found[:1]]
        return {
            "known": sum(count for name, count in by_state.items() if name != "stopped"),
            "by_state": by_state,
            "running": sum(len(found) + self.runs[name].more for name, found in tasks.items()),
            "held": sum(run.held for run in runs if run.id in tasks),
            "oldest": max(ages, default=None),
            "took": sum(self.took) / len(self.took) if self.took else None,
            "long": self._long(),
            "consuming": self._consuming(now),
            "strangers_seconds": 0.0 if self.strangers_since is None else now - self.strangers_since,
            "dropped": sum(run.dropped for run in runs),
            "rows": [self._row(run, seen[run.id], now, connected_at) for run in runs[:rows]],
            "more": max(0, len(runs) - rows),
        }

    def _autoscale(self, now: float) -> State | None:
        """The last decision, as long as autoscale.py repeats it."""
        if self.decided is None or now - self.decided[1] > SCALED_SECONDS or self.decided[0].get("ended") is True:
            return None
        event, heard = self.decided
        ago = number(event, "ago") + now - heard
        return {
            **{name: whole(event, name) for name in ("workers", "least", "most")},
            "why": text(event, "why"),
            "ago": ago,
        }

    def _long(self) -> float:
        """A task that runs for longer, in seconds, is worth a look."""
        return max(10.0, 5 * max(self.took, default=0.0))

    def _row(self, run: Run, seen: str, now: float, connected_at: float) -> State:
        tasks = run.running()
        return {
            "worker": run.worker,
            "state": seen,
            "quiet": run.quiet(now, connected_at),
            "prefetch": run.prefetch,
            "concurrency": run.concurrency,
            "held": run.held,
            **{name: run.total(name) for name in COUNTS},
            "running": [
                {
                    "id": task.id,
                    "task": task.task,
                    "difficulty": task.difficulty,
                    "attempt": task.attempt,
                    "age": run.age(task, now),
                    "done": task.done,
                    "total": task.total,
                }
                for task in tasks[:3]
            ],
            "more": max(0, len(tasks) - 3) + run.more,
        }

    def _recent(self, most: int) -> list[State]:
        """Newest first."""
        found = sorted(self.recent, key=lambda entry: entry[0])[-most:] if most else []
        names = ("event", "worker", "id", "task", "error", "error_type", "queue")
        return [
            {
                **{name: text(event, name) for name in names},
                "time": time,
                "attempt": max(1, whole(event, "attempt")),
                "seconds": maybe(event, "seconds"),
                "delay_seconds": maybe(event, "delay_seconds"),
            }
            for time, _, event in reversed(found)
        ]

    def _history(self) -> State:
        """A value a second, oldest first; None where nothing is known."""
        samples = list(self.history)[-SHOWN_SECONDS - 1 :]
        done: list[float | None] = []
        before: deque[Sample] = deque(maxlen=SMOOTH_SECONDS)
        for sample in samples:
            if sample is None or (before and sample.at - before[-1].at > 3):
                before.clear()
            rate = (sample.done - before[0].done) / (sample.at - before[0].at) if sample and before else None
            done.append(None if rate is None else round(rate, 2))
            if sample:
                before.append(sample)
        return {"done": done[1:], "ready": [sample.ready if sample else None for sample in samples[1:]]}
