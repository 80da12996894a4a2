"""What watch.py makes of events and counts, on a clock of the test's own; and how it draws that."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from typing import Any

import pytest
from fake_workers import FakeWorker
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from view.events import DECIDED, HEARTBEAT, OF_TASKS, read
from view.facts import Queues, Source
from view.metrics import metrics
from view.model import Model, State
from view.recording import paced
from view.terminal import page, plain


class Watched(FakeWorker):
    """A worker whose events go straight into a model, at times that the test says."""

    def __init__(self, model: Model, name: str = "Worker-1", born: float = 0.0) -> None:
        super().__init__(None, "tq", name)  # type: ignore[arg-type]
        self.model = model
        self.began = born
        self.clock = born

    @property
    def up(self) -> float:
        return self.clock - self.began

    def tell(self, *events: dict[str, Any], at: float | None = None) -> None:
        self.model.receive(events, 0, self.clock if at is None else at)
        self.model.tick(self.clock if at is None else at)


@pytest.fixture
def model() -> Model:
    return new_model()


def new_model() -> Model:
    model = Model(Source("tq", "live", "amqp://guest:***@localhost/", "tq.dead", "scripts/dead_letters.py list"), 0.0)
    model.connected(0.0, "RabbitMQ 4.3.6")
    return model


def counted(at: float, ready: int = 0, consumers: int = 1, **more: Any) -> Queues:
    return Queues(at=at, exists=True, ready=ready, consumers=consumers, **more)


def row(state: State) -> dict[str, Any]:
    (found,) = state["workers"]["rows"]
    return dict(found)


# What is true


@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(["begin", "finish", "beat"]), max_size=40))
def test_after_a_heartbeat_all_is_as_the_worker_says_whatever_was_lost_late_or_twice(
    chance: random.Random, steps: list[str]
) -> None:
    """Also before it no count is negative, or higher than the worker's own."""
    model = new_model()
    worker = Watched(model)
    events = [worker.heartbeat()]
    for step in steps:
        worker.clock += 0.1
        if step == "begin":
            events.append(worker.begin())
        elif step == "finish" and worker.running:
            events.append(worker.finish(chance.choice(["task_completed", "task_retried", "task_dead"])))
        elif step == "beat":
            events.append(worker.heartbeat())
    chance.shuffle(events)
    for event in events[: chance.randint(0, len(events))] + events[:3]:
        worker.tell(event)
        found = row(model.state(worker.clock))
        assert all(0 <= found[name] <= worker.totals[name] for name in worker.totals)
    worker.tell(worker.heartbeat())
    for event in events:  # what is older than the snapshot changes nothing
        worker.tell(event)
    found = row(model.state(worker.clock))
    assert {name: found[name] for name in worker.totals} == worker.totals
    assert len(found["running"]) + found["more"] == len(worker.running)


def test_what_is_later_than_the_snapshot_is_shown_at_once_in_any_order(model: Model) -> None:
    worker = Watched(model)
    worker.tell(worker.heartbeat())
    begun = [worker.begin(), worker.begin()]
    worker.tell(worker.finish(), *begun)
    found = row(model.state(0.1))
    assert [task["id"] for task in found["running"]] == ["2"]
    assert found["completed"] == 1


def test_a_running_task_has_an_age_whatever_the_clocks_say(model: Model) -> None:
    """Its worker is on a machine whose clock is another; a delay on the way is no age."""
    worker = Watched(model, born=1000.0)
    worker.clock = 1005.0
    started = worker.begin()
    worker.clock = 1006.0
    worker.tell(worker.heartbeat(), at=20.0)
    worker.tell(started, at=20.3)
    assert row(model.state(22.0))["running"][0]["age"] == pytest.approx(3.0)


def test_a_dead_worker_grows_quiet_then_silent_then_is_gone(model: Model) -> None:
    worker = Watched(model)
    worker.begin()
    worker.tell(worker.heartbeat())
    assert [row(model.state(at))["state"] for at in (0.5, 2.0, 3.1, 29.0)] == ["working", "quiet", "silent", "silent"]
    model.tick(31.0)
    assert model.state(31.0)["workers"]["rows"] == []


def test_what_we_could_not_hear_is_nobodys_silence(model: Model) -> None:
    worker = Watched(model)
    worker.tell(worker.heartbeat())
    model.lost("the connection is lost")
    model.tick(60.0)
    assert row(model.state(60.0))["state"] == "waiting"
    model.connected(60.0, "RabbitMQ 4.3.6")
    model.tick(62.0)
    assert row(model.state(62.0))["state"] == "quiet"
    assert row(model.state(64.0))["state"] == "silent"


def test_who_says_good_bye_is_gone_soon(model: Model) -> None:
    worker = Watched(model)
    worker.tell(worker.heartbeat(), worker.event("worker_stopped", completed=0))
    assert row(model.state(0.1))["state"] == "stopped"
    model.tick(6.0)
    assert not model.runs


def test_counters_never_fall_whoever_ends_or_comes_back(model: Model) -> None:
    """A worker that is older than the watching counts from when it was first heard."""

    def completed(at: float) -> int:
        model.tick(at)
        shown = metrics(model.state(at))
        (line,) = [line for line in shown.splitlines() if 'outcome="completed"' in line]
        assert "Worker-" not in shown
        return int(line.rpartition(" ")[2])

    old = Watched(model, "Worker-old", born=-500.0)
    old.totals["completed"] = 1000
    young = Watched(model, "Worker-young")
    seen = [completed(0.0)]
    for at in range(1, 10):
        for worker in (old, young):
            worker.clock = at
            worker.totals["completed"] += 1
            worker.tell(worker.heartbeat())
        seen.append(completed(at))
    seen += [completed(at) for at in (20.0, 50.0)]  # both have been killed: they are gone
    assert not model.runs
    young.clock = 60.0  # it had only been frozen
    young.totals["completed"] += 1
    young.tell(young.heartbeat())
    seen.append(completed(60.0))
    assert seen == sorted(seen)
    assert seen[-1] == 8 + 9 + 1
    assert model.total("completed") == 1009 + 10


# What it means


def said(model: Model, at: float) -> tuple[str, str]:
    verdict = model.state(at)["verdict"]
    return verdict["level"], verdict["text"]


def test_nobody_to_do_it_does_not_look_like_too_much_to_do(model: Model) -> None:
    worker = Watched(model)
    worker.begin()
    worker.tell(worker.heartbeat())
    words = {}
    for ready, consumers in ((9, 0), (9, 1), (0, 1), (0, 0)):
        model.count(counted(0.0, ready, consumers))
        words[ready, consumers] = said(model, 0.1)
    assert len(set(words.values())) == 4
    assert words[9, 0] == ("bad", "Nobody consumes: 9 tasks wait, and no worker takes them.")
    assert words[9, 1][0] == "busy"
    assert words[0, 1][0] == "good"


def test_consumers_that_are_missing_are_told_before_the_worker_is_silent(model: Model) -> None:
    workers = [Watched(model, f"Worker-{number}") for number in range(3)]
    for worker in workers:
        worker.tell(worker.heartbeat())
    model.count(counted(0.1, consumers=2))
    (note,) = model.state(0.2)["verdict"]["notes"]
    assert note.startswith("2 consumers, 3 workers known")


def test_a_frozen_worker_is_told_from_a_dead_one(model: Model) -> None:
    worker = Watched(model)
    worker.tell(worker.heartbeat())
    model.count(counted(3.5, ready=4, consumers=1))
    model.tick(3.5)
    state = model.state(3.5)
    assert state["verdict"]["level"] == "bad"
    assert state["verdict"]["notes"] == ["1 worker silent, and still consuming: frozen, or cut off"]


def test_a_worker_without_events_is_missed_when_it_has_had_its_time(model: Model) -> None:
    for at in (0.1, 2.0, 3.0):
        model.count(counted(at, consumers=1))
        model.tick(at)
        notes = model.state(at)["verdict"]["notes"]
        assert bool(notes) == (at == 3.0), (at, notes)


def test_a_queue_that_is_gone_and_a_broker_that_is_away_are_said(model: Model) -> None:
    model.count(Queues(at=1.0, exists=False))
    assert said(model, 1.0) == ("bad", "there is no queue tq: sender.py and worker.py declare it")
    model.count(counted(1.0))
    assert said(model, 9.0) == ("unknown", "the broker has not answered for 8 s")
    model.lost("no broker answers")
    assert said(model, 9.0) == ("unknown", "no broker answers; trying again")


def test_events_that_are_missed_are_counted_and_a_late_one_is_not_missed(model: Model) -> None:
    worker = Watched(model)
    late: list[dict[str, Any]] = []
    for second in range(20):
        worker.clock = float(second)
        worker.tell(*late)
        begun, done = worker.begin(), worker.finish()
        late = [done]  # of each second
        if second != 10:  # lost on the way
            worker.tell(begun)
        worker.tell(worker.heartbeat())
    assert model.missed_in_all == 1


def test_a_rate_is_made_of_counters_and_not_across_a_gap(model: Model) -> None:
    worker = Watched(model)
    for second in range(31):
        worker.clock = float(second)
        worker.totals["completed"] = 3 * second
        worker.tell(worker.heartbeat())
    assert model.rate() == pytest.approx((3.0, 10.0))
    model.lost("away")
    assert model.rate() is None
    model.connected(90.0, "RabbitMQ 4.3.6")
    model.tick(90.5)
    worker.clock, worker.totals["completed"] = 91.0, 1000
    model.tick(91.6)
    history = model.state(91.6)["history"]
    assert None in history["done"]
    assert max(value for value in history["done"] if value is not None) <= 3.1


def test_how_long_the_last_task_had_waited_is_told_with_its_age(model: Model) -> None:
    worker = Watched(model)
    worker.tell(worker.begin(waited=12.5))
    assert model.state(4.0)["waited"] == (12.5, 4.0)


# What is bounded


def test_an_hour_of_events_takes_no_memory() -> None:
    model = new_model()
    worker = Watched(model)
    sizes = []
    tracemalloc.start()
    try:
        for minute in range(60):
            for second in range(60):
                worker.clock = minute * 60.0 + second
                events = [event for _ in range(5) for event in (worker.begin(), worker.finish())]
                worker.tell(*events, worker.heartbeat())
            if minute in (20, 59):
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 100_000, sizes


def test_thousands_of_workers_that_come_and_go_take_little_of_it(model: Model) -> None:
    for number in range(12_000):
        worker = Watched(model, f"Worker-{number}")
        worker.clock = number / 100
        worker.totals["completed"] = 1
        worker.tell(worker.heartbeat(), worker.event("worker_stopped", completed=1))
    model.tick(1000.0)
    assert len(model.runs) + len(model.gone) <= 10_000
    assert model.done_while_watched("completed") == 12_000


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b'{"event": 7}',
        b'{"event": "worker_heartbeat", "worker": "w", "run": "r", "seq": -1, "up": 1}',
        b'{"event": "worker_heartbeat", "worker": "w", "run": "r", "seq": 1, "up": NaN}',
        b'{"event": "worker_heartbeat", "worker": ["w"], "run": "r", "seq": 1, "up": 1}',
        b"[" * 100_000,
        b'{"a": ' * 100_000,
    ],
)
def test_what_is_no_event_is_left_out(line: bytes) -> None:
    assert read(line) == ([], 1 if line else 0)


TEXTS = ("", "x", "\x1b[2J\a", "\ud800", "漢字", "a" * 500, "<b>&", "\u202e", "2026-13-01", "silent", "\n")
LEAVES = (None, True, 0, 1, -1, 2**70, 0.5, 1e308, float("inf"), float("nan"), *TEXTS)
WRONG: st.SearchStrategy[Any] = st.sampled_from(
    [*LEAVES, *([leaf] for leaf in LEAVES), *({"id": leaf} for leaf in LEAVES), [[{}]]]
)
MEMBERS = [
    *("interval", "state", "prefetch", "held", "completed", "running", "more", "dropped", "delivery", "id", "task"),
    *("difficulty", "attempt", "waited", "done", "total", "seconds", "error", "delay_seconds", "time", "worker"),
    *("workers", "least", "most", "why", "ago", "ended"),
]


@given(
    st.sampled_from([HEARTBEAT, *OF_TASKS, DECIDED, "other"]),
    st.dictionaries(st.sampled_from(MEMBERS), WRONG),
    st.lists(st.dictionaries(st.sampled_from(MEMBERS), WRONG), max_size=2),
)
def test_nothing_that_anybody_publishes_ends_the_view(event: str, members: Any, running: Any) -> None:
    model = new_model()
    basis = {"running": running, "time": "2026-01-01T00:00:00+00:00"}
    told = {**basis, **members, "event": event, "run": "r", "seq": 1, "up": 1.0}
    events, _ = read(json.dumps(told).encode())
    model.receive(events, 0, 1.0)
    model.tick(1.0)
    state = model.state(1.1)
    json.loads(json.dumps(state), parse_constant=pytest.fail)  # JSON that a browser takes
    shown = plain(state, 80)
    assert all(line.isprintable() for line in shown.splitlines())
    assert metrics(state).isprintable() or "\n" in metrics(state)


# How it is drawn


def busy_model(workers: int) -> Model:
    model = new_model()
    for number in range(workers):
        worker = Watched(model, f"Worker-{number:08x}", born=0.0)
        begun = [worker.begin("A task with a rather long name, which does not end soon 漢字" * 2) for _ in range(3)]
        worker.tell(*begun, worker.finish(), worker.heartbeat())
    model.count(counted(0.0, 12_345, workers, dead=3, retry={"1s": 4}))
    return model


@pytest.mark.parametrize("workers", [0, 1, 7, 1000])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 10), (139, 24), (140, 60), (20, 5), (300, 3)])
def test_a_page_fits_its_terminal_and_says_what_it_leaves_out(workers: int, width: int, height: int) -> None:
    model = busy_model(workers)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(page(model.state(0.5, rows=height, recent=height), width, height))
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    if workers and height >= 24:
        shown = sum("Worker-" in line[:10] for line in lines)
        left_out = [int(line.split()[2].replace(",", "")) for line in lines if line.startswith(" … and ")]
        assert shown + sum(left_out) == workers


def test_the_workers_in_trouble_are_among_those_that_are_shown() -> None:
    model = busy_model(200)
    for run in model.runs.values():
        run.heard = 9.0
    model.runs[next(reversed(model.runs))].heard = 1.0
    assert "silent" in plain(model.state(9.5, rows=5), 100)


def test_dead_letters_come_with_the_command_that_lists_them() -> None:
    shown = plain(busy_model(1).state(0.5), 120)
    assert "3 dead" in shown
    assert "scripts/dead_letters.py list" in shown


# What is recorded


def decided(worker: Watched, **details: Any) -> dict[str, Any]:
    facts = {"workers": 4, "least": 1, "most": 10, "why": "2 \x1b[31m→ 4", "ago": 1.5}
    return worker.event("autoscale_decision", **{**facts, **details})


def test_the_last_decision_of_the_autoscaler_is_shown_as_long_as_it_is_repeated(model: Model) -> None:
    """It is no worker."""
    scaler = Watched(model, "autoscale.py")
    scaler.tell(decided(scaler))
    shown = plain(model.state(2.0), 100)
    assert "⇅ 4 workers of 1 to 10 since 3.5 s: 2 \\x1b[31m→ 4" in shown
    assert model.state(2.0)["workers"]["known"] == 0
    assert model.state(5.5)["autoscale"] is None
    scaler.tell(decided(scaler), decided(scaler, ended=True))
    assert model.state(0.1)["autoscale"] is None


def test_a_replay_keeps_the_pace_though_a_workers_clock_is_wrong() -> None:
    def at(second: float, event: str = "worker_heartbeat") -> dict[str, Any]:
        return {"event": event, "time": f"2026-01-01T00:00:{second:09.6f}+00:00"}

    wrong = {"event": "worker_heartbeat", "time": "2027-01-01T00:00:00+00:00"}
    events = [at(0, "queue_counted"), at(0.5), wrong, at(1, "queue_counted"), wrong, at(1.5), at(2, "queue_counted")]
    first = 1767225600.0
    assert [moment for _, moment in paced(iter(events), first)] == [0, 0.5, 0.5, 1, 1, 1.5, 2]
