"""How many workers the load asks for, and why: pure functions, without a broker, a process or a clock.

    busy     workers that the running tasks keep busy
    backlog  workers that work off, within `wait` seconds, what is ready, what is due from the retry queues, and what
             runs, of which half is done
    wanted   the greater of the two, but never more than there are tasks; one more than now, if tasks wait too long

More workers come at once, at most twice as many at a time. Fewer are enough only when they would have been for `calm`
seconds on end, and at most half of them leave at a time. Between two steps are `pause` seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    least: int = 1
    most: int = 10
    wait: float = 5.0  # seconds for which a task may wait
    calm: float = 10.0  # the cool-down, in seconds
    pause: float = 2.0  # seconds after which workers that were started are at work
    concurrency: int = 1  # tasks that a worker runs at once


@dataclass(frozen=True)
class Load:
    """What is seen of the work. None is not known."""

    ready: int
    due: int = 0  # tasks in retry queues that come back within the rule's `wait`
    running: int = 0
    waited: float | None = None  # seconds, the task that was started last, or the next one by now
    seconds: float | None = None  # that a task takes


@dataclass(frozen=True)
class Memory:
    """What a decision has to know of those before it."""

    since: float | None = None  # from when on the load was known without a gap
    asked: tuple[tuple[float, int], ...] = field(default=())  # when how many were wanted, in the last `calm` seconds
    stepped_at: float = -math.inf


@dataclass(frozen=True)
class Decision:
    workers: int
    why: str
    memory: Memory


def estimate(rule: Rule, load: Load) -> int:
    """How many workers are busy, or would work off what waits in time."""
    tasks = load.ready + load.due
    seconds = rule.wait if load.seconds is None else load.seconds
    backlog = (tasks + load.running / 2) * seconds / rule.wait if tasks else 0.0
    slots = min(max(load.running, backlog), load.running + tasks)
    return math.ceil(slots / rule.concurrency - 1e-9)


def wanted(rule: Rule, load: Load, workers: int) -> int:
    """How many workers the load of this moment asks for, whatever there may be."""
    count = estimate(rule, load)
    if load.ready and load.waited is not None and load.waited > rule.wait:
        count = max(count, min(workers + 1, math.ceil((load.running + load.ready) / rule.concurrency)))
    return count


def decide(rule: Rule, load: Load, workers: int, now: float, memory: Memory) -> Decision:
    """How many workers there are to be from now on, where there are `workers`."""
    count = wanted(rule, load, workers)
    asked = (*((at, n) for at, n in memory.asked if at >= now - rule.calm), (now, count))
    since = now if memory.since is None else memory.since
    memory = Memory(since, asked, memory.stepped_at)
    enough = max(n for _, n in asked)
    target = workers
    if now - memory.stepped_at >= rule.pause:
        if count > workers:
            target = min(count, max(2 * workers, 1), rule.most)
        elif now - since >= rule.calm:
            target = max(min(enough, workers), workers // 2)
    target = max(rule.least, min(target, rule.most))
    if target == workers:
        return Decision(workers, "", memory)
    up = target > workers
    why = f"{in_words(load)}: {more(rule, load, target, count) if up else fewer(rule, target, enough)}"
    return Decision(target, why, Memory(since, asked, now))


def in_words(load: Load) -> str:
    due = f", {load.due:,} soon back from retry" if load.due else ""
    waited = "" if load.waited is None else f", waiting for {duration(load.waited)}"
    seconds = "" if load.seconds is None else f", a task takes {duration(load.seconds)}"
    return f"{load.ready:,} ready{due}, {load.running:,} in work{waited}{seconds}"


def more(rule: Rule, load: Load, target: int, count: int) -> str:
    """Why there are to be more; `count` were wanted."""
    late = count > max(estimate(rule, load), rule.least)
    text = "tasks wait too long, one more" if late else f"{count:,} would work that off in {rule.wait:g} s"
    if target >= count:
        return text
    return f"{text}; {rule.most} is the most" if target == rule.most else f"{text}; at most twice as many at a time"


def fewer(rule: Rule, target: int, enough: int) -> str:
    text = f"for {rule.calm:g} s {enough} had been enough"
    return text if target == max(enough, rule.least) else f"{text}; at most half leave at a time"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "no time"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
