"""The rule of scripts/autoscale.py, by itself: what it asks for, how fast it follows, and a simulated day."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.nodes import ROOT
from scaling.load import Observer
from scaling.retries import Waiting, counted, due
from scaling.rule import Decision, Load, Memory, Rule, decide, wanted
from scaling.simulation import DAY, SECONDS, Day, arrivals, simulate

RULE = Rule()
QUIET = Load(ready=0, seconds=0.5)
RUSH = Load(ready=3000, running=1, seconds=0.1)


def followed(rule: Rule, loads: Iterable[Load], workers: int) -> list[Decision]:
    """Decisions of one second after another."""
    memory, found = Memory(), []
    for now, load in enumerate(loads):
        found.append(decide(rule, load, workers, float(now), memory))
        workers, memory = found[-1].workers, found[-1].memory
    return found


def numbers(rule: Rule, loads: Iterable[Load], workers: int) -> list[int]:
    return [decision.workers for decision in followed(rule, loads, workers)]


# What is wanted


@pytest.mark.parametrize(
    ("load", "workers", "count"),
    [
        (Load(0), 4, 0),
        (Load(0, running=3), 4, 3),  # who is busy stays
        (Load(99, running=2, seconds=0.1), 2, 2),  # they are done with it in 5 s
        (Load(100, running=2, seconds=0.1), 2, 3),  # and with what they run
        (Load(3, running=2), 2, 4),
        (Load(1, running=1, seconds=60.0), 1, 2),  # a task needs no more than one worker
        (Load(8), 1, 8),  # nobody knows how long a task takes
        (Load(0, due=20, seconds=1.0), 1, 4),  # what comes back from retry counts as if it were ready
        (Load(3, running=2, seconds=0.1, waited=6.0), 2, 3),  # the estimate is wrong: it has waited too long
        (Load(0, running=2, seconds=0.1, waited=6.0), 2, 2),  # but nothing waits any more
        (Load(3000, running=10, seconds=0.1), 10, 61),
    ],
)
def test_as_many_as_the_load_asks_for(load: Load, workers: int, count: int) -> None:
    assert wanted(RULE, load, workers) == count


def test_workers_that_run_several_tasks_at_once_are_fewer() -> None:
    load = Load(98, running=4, seconds=1.0)
    assert wanted(RULE, load, 1) == 20
    assert wanted(replace(RULE, concurrency=4), load, 1) == 5


# Steps and cool-down


def test_more_come_at_once_at_most_twice_as_many_every_two_seconds() -> None:
    assert numbers(RULE, [RUSH] * 8, 1) == [2, 2, 4, 4, 8, 8, 10, 10]


def test_fewer_only_after_the_cool_down_and_at_most_half_at_a_time() -> None:
    found = numbers(RULE, [QUIET] * 18, 10)
    assert found == [10] * 10 + [5, 5, 2, 2, 1, 1, 1, 1]


def test_one_busy_moment_begins_the_cool_down_anew() -> None:
    busy = Load(ready=0, running=10, seconds=0.5)
    assert numbers(RULE, [*[QUIET] * 8, busy, *[QUIET] * 10], 10) == [10] * 19


def test_what_was_needed_in_the_cool_down_stays() -> None:
    assert numbers(RULE, [Load(ready=0, running=n % 4, seconds=0.5) for n in range(20)], 10)[-1] == 3


def test_after_a_gap_the_cool_down_begins_anew() -> None:
    assert decide(RULE, QUIET, 10, 1000.0, Memory()).workers == 10


@given(
    loads=st.lists(
        st.builds(
            Load,
            ready=st.integers(0, 5000),
            due=st.integers(0, 100),
            running=st.integers(0, 12),
            waited=st.none() | st.floats(0, 1000),
            seconds=st.none() | st.floats(0, 1000),
        ),
        max_size=40,
    ),
    least=st.integers(0, 5),
    more=st.integers(0, 5),
    concurrency=st.integers(1, 5),
)
def test_it_stays_within_bounds_and_says_why(loads: list[Load], least: int, more: int, concurrency: int) -> None:
    rule = Rule(least, least + more, concurrency=concurrency)
    workers = least
    for decision in followed(rule, loads, workers):
        assert rule.least <= decision.workers <= rule.most
        assert decision.workers <= max(1, 2 * workers)
        assert decision.workers >= workers // 2
        assert bool(decision.why) == (decision.workers != workers)
        assert len(decision.memory.asked) <= rule.calm + 1
        workers = decision.workers


def test_a_decision_is_in_words() -> None:
    up = followed(RULE, [replace(RUSH, waited=12.0)], 1)[-1]
    assert up.why == (
        "3,000 ready, 1 in work, waiting for 12 s, a task takes 0.1 s: "
        "61 would work that off in 5 s; at most twice as many at a time"
    )
    late = decide(RULE, Load(3, running=2, seconds=0.1, waited=6.0), 2, 0.0, Memory())
    assert late.why.endswith(": tasks wait too long, one more")
    assert "10 is the most" in followed(RULE, [RUSH] * 7, 1)[-1].why
    down = followed(RULE, [QUIET] * 11, 10)[-1]
    assert down.why == (
        "0 ready, 0 in work, a task takes 0.5 s: for 10 s 0 had been enough; at most half leave at a time"
    )
    assert "4 soon back from retry" in decide(RULE, Load(0, due=4), 1, 0.0, Memory()).why


def test_from_none_to_one_and_back() -> None:
    rule = Rule(least=0)
    assert numbers(rule, [Load(0), Load(1), *[QUIET] * 12], 0)[1:] == [1] * 11 + [0, 0]


# What is seen


def seen(ready: int, waited: tuple[float, float] | None = None, took: float | None = None, *ages: float) -> Any:
    running = [{"age": age} for age in ages]
    rows = [{"worker": "ours", "running": running, "more": 0}, {"worker": "other", "running": running, "more": 3}]
    queues = {"known": True, "ready": ready, "retry": [("5s", 2)]}
    return {"queues": queues, "waited": waited, "workers": {"took": took, "rows": rows}}


def test_only_our_own_workers_are_busy() -> None:
    load = Observer(5.0).load(seen(1, None, None, 0.1, 0.2), ["ours"], 0.0)
    assert load == Load(ready=1, due=2, running=2, waited=0.0)


def test_a_task_takes_as_long_as_those_that_run_already_do() -> None:
    observer = Observer(5.0)
    for ages, took, seconds in (((9.0, 9.0), 0.1, 9.0), ((0.1,), 2.0, 2.0), ((9.0,), None, 9.0), ((1.0,), None, None)):
        load = observer.load(seen(0, None, took, *ages), ["ours"], 0.0)
        assert load
        assert load.seconds == seconds


def test_tasks_wait_too_where_none_is_started() -> None:
    """The last one was started 60 s ago, and had not waited; tasks have been ready for 8 s."""
    observer = Observer(5.0)
    for now, ready, waited in ((0.0, 0, None), (1.0, 2, 0.0), (9.0, 2, 8.0), (10.0, 0, None)):
        load = observer.load(seen(ready, (0.0, 60.0)), ["ours"], now)
        assert load
        assert load.waited == waited


def test_what_is_not_known_is_no_load() -> None:
    assert Observer(5.0).load({"queues": {"known": False}}, ["ours"], 0.0) is None


# Retry queues


def test_what_comes_into_a_retry_queue_falls_due_a_delay_later() -> None:
    waiting = counted((), 30.0, 4, now=100.0)
    assert due(waiting, 129.9) == 0
    assert due(waiting, 130.0) == 4


def test_the_oldest_leave_first() -> None:
    waiting = counted(counted((), 30.0, 4, now=100.0), 30.0, 6, now=110.0)
    waiting = counted(waiting, 30.0, 3, now=130.5)
    assert [count for _, count in waiting] == [1, 2]
    assert due(waiting, 135.0) == 1


def test_as_many_may_have_come_as_have_left() -> None:
    waiting = counted((), 5.0, 4, now=100.0)
    waiting = counted(waiting, 5.0, 4, now=107.0)
    assert waiting == ((112.0, 4),)


@pytest.mark.parametrize("count", [0, 1, 7, 10, 1234])
def test_what_was_there_before_is_spread_over_the_delay(count: int) -> None:
    waiting = counted(None, 30.0, count, now=0.0)
    assert due(waiting, 30.0) == count
    assert due(waiting, 15.0) == pytest.approx(count / 2, abs=1)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1000)), max_size=50))
def test_never_more_nor_less_than_there_are(counts: list[tuple[float, int]]) -> None:
    now = 0.0
    waiting: Waiting | None = None
    for later, count in counts:
        now += later
        waiting = counted(waiting, 5.0, count, now)
        assert due(waiting, now + 5.0) == count
        assert [at for at, _ in waiting] == sorted(at for at, _ in waiting)
        assert all(share > 0 for _, share in waiting)


# A day with a Black Friday peak


@pytest.fixture(scope="module")
def customers() -> tuple[int, ...]:
    return arrivals()


@pytest.fixture(scope="module")
def scaled(customers: tuple[int, ...]) -> Day:
    return simulate(customers, RULE)


def test_every_task_of_the_day_is_done_and_none_waits_long(customers: tuple[int, ...], scaled: Day) -> None:
    assert len(customers) == DAY
    assert len(scaled.waits) == sum(customers)
    assert max(scaled.waits) <= RULE.wait + RULE.pause
    assert (min(scaled.workers), max(scaled.workers)) == (1, 10)


def test_it_costs_little_more_than_the_work_itself(customers: tuple[int, ...], scaled: Day) -> None:
    assert scaled.worker_hours < 1.3 * sum(customers) * SECONDS / 3600


def test_a_fixed_number_is_dear_or_slow(customers: tuple[int, ...], scaled: Day) -> None:
    few, many = (simulate(customers, Rule(least=n, most=n)) for n in (5, 10))
    assert max(few.waits) > 3600
    assert few.worker_hours > 1.5 * scaled.worker_hours
    assert max(many.waits) <= 1
    assert many.worker_hours > 3 * scaled.worker_hours


def test_it_does_not_flap(scaled: Day) -> None:
    changes = sum(before != after for before, after in pairwise(scaled.workers))
    assert changes < 200


def test_the_picture_tells_the_figures_of_the_day(scaled: Day) -> None:
    drawn = re.sub("<[^>]+>", " ", (ROOT / "docs/pictures/autoscale.svg").read_text())
    assert f"1 to 10: {scaled.worker_hours:.0f} worker-hours, longest wait {max(scaled.waits):.0f} s" in drawn
