"""A day of an online shop with a Black Friday peak, second by second: the rule beside a fixed number of workers.

The same customers come to both: the day is of the same dice. A task takes SECONDS; who is started consumes START later.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from scaling.rule import Load, Memory, Rule, decide

DAY = 24 * 60 * 60
SECONDS = 0.5  # that a task takes
START = 1  # seconds until a new worker consumes
# hours, and the tasks a second that come then; in between it changes evenly
ARRIVALS = (
    (0, 1.0), (5, 0.4), (9, 2.5), (12, 3.5), (17, 3.0),
    (18, 5.0), (18.5, 16.0), (20, 18.0), (21, 14.0), (22, 4.0), (24, 1.2),
)  # fmt: skip


@dataclass(frozen=True)
class Day:
    """A value for each second. `waited`: of the task that was started last."""

    arrived: tuple[int, ...]
    workers: tuple[int, ...]
    waited: tuple[float, ...]
    waits: tuple[float, ...]  # of all tasks, in the order in which they were started

    @property
    def worker_hours(self) -> float:
        return sum(self.workers) / 3600

    def waited_at_most(self, share: float) -> float:
        """What this share of all tasks had waited at most, in seconds."""
        return sorted(self.waits)[math.ceil(share * len(self.waits)) - 1]


def tasks_a_second(hour: float) -> float:
    for (start, low), (end, high) in pairwise(ARRIVALS):
        if hour < end:
            return low + (high - low) * (hour - start) / (end - start)
    return ARRIVALS[-1][1]


def arrivals(seed: int = 1) -> tuple[int, ...]:
    """How many tasks come in each second: at random, as customers do."""
    dice = random.Random(seed)
    found = [0] * DAY
    moment = 0.0
    while (moment := moment + dice.expovariate(tasks_a_second(moment / 3600))) < DAY:
        found[int(moment)] += 1
    return tuple(found)


def simulate(arrived: tuple[int, ...], rule: Rule) -> Day:
    """A day by the rule; a fixed number of workers is a rule whose least is its most."""
    queue: deque[int] = deque()  # the second in which each task came
    counts, waited, waits = [], [], []
    workers, memory, room, last = rule.least, Memory(), 0.0, 0.0
    consuming: deque[int] = deque([workers] * (START + 1), maxlen=START + 1)
    for now, coming in enumerate(arrived):
        queue.extend([now] * coming)
        able = min(consuming[0], workers)
        room = min(room, able) + able / SECONDS  # tasks that they can begin in this second
        begun = list(begin(queue, int(room), now))
        room -= len(begun)
        waits += begun
        last = begun[-1] if begun else last
        running = min(able, math.ceil(len(begun) * SECONDS))
        load = Load(len(queue), 0, running, last if begun else None, SECONDS)
        decision = decide(rule, load, workers, float(now), memory)
        workers, memory = decision.workers, decision.memory
        consuming.append(workers)
        counts.append(workers)
        waited.append(last if queue or begun else 0.0)
    return Day(arrived, tuple(counts), tuple(waited), tuple(waits))


def begin(queue: deque[int], most: int, now: int) -> Iterator[float]:
    """How long each of the tasks has waited that are begun in this second."""
    for _ in range(min(most, len(queue))):
        yield float(now - queue.popleft())
