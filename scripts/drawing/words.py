"""Runs in words: what was predicted, what was measured, and who waited for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drawing.schedules import Schedule, name_of
from drawing.timeline import decimals

SMALL = 0.02  # of the makespan: idleness that is not worth a word
MOST_TOLD = 12  # tasks of one worker that are told one by one


@dataclass(frozen=True)
class Run:
    """One batch with one prefetch: as it was, as it was predicted, and how long list scheduling would take."""

    prefetch: int
    measured: Schedule
    predicted: Schedule
    best: float  # seconds
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        way = name_of(self.prefetch) if self.prefetch < 2 else f"up to {self.prefetch} in hand"
        return f"Prefetch {self.prefetch}: {way}"

    @property
    def ratio(self) -> float:
        return self.measured.makespan / self.best if self.best else 1.0

    def seconds(self, seconds: float) -> str:
        return f"{seconds:.{decimals(self.best)}f} s"

    @property
    def facts(self) -> str:
        """Makespan, what was predicted, and how far that is from list scheduling."""
        digits = decimals(self.best) + 1
        return (
            f"Done in {self.measured.makespan:.{digits}f} s (predicted: {self.predicted.makespan:.{digits}f} s), "
            f"{self.ratio:.2f} times list scheduling"
        )

    @property
    def result(self) -> str:
        """The closing sentence: who did how much, and who had nothing to do meanwhile."""
        counts, idle = self.measured.counts, self.measured.idleness
        if len(counts) == 1:
            return f"Result: {self.names[0]} processed {counts[0]} tasks"
        most, least, lazy = counts.index(max(counts)), counts.index(min(counts)), idle.index(max(idle))
        waited = f"and {self.names[lazy]} was idle for {self.seconds(idle[lazy])}"
        if counts[most] == counts[least]:
            return f"Result: each worker processed {counts[most]} tasks, {waited}"
        shares = f"{self.names[most]} processed {counts[most]} tasks while {self.names[least]} did {counts[least]}"
        if idle[lazy] <= SMALL * self.measured.makespan:
            return f"Result: {shares}\n        = efficient load balancing: nobody was idle"
        return f"Result: {shares},\n        {waited}"

    @property
    def story(self) -> str:
        """Who did what, for those who cannot see the picture."""
        lanes = []
        for worker, name in enumerate(self.names):
            tasks = [str(bar.task) for bar in self.measured.lane(worker)]
            did = (
                f"{len(tasks)} tasks" if len(tasks) > MOST_TOLD else f"tasks {', '.join(tasks)}" if tasks else "nothing"
            )
            lanes.append(f"{name} does {did} and is idle for {self.seconds(self.measured.idle(worker))}")
        return f"{self.title}: {'; '.join(lanes)}. Done in {self.seconds(self.measured.makespan)}."


def story(runs: Sequence[Run]) -> str:
    return " ".join(run.story for run in runs)


def verdict(runs: Sequence[Run]) -> str:
    """Which of the runs was done first, and by how much."""
    first, last = (pick(runs, key=lambda run: run.measured.makespan) for pick in (min, max))
    saved = last.measured.makespan - first.measured.makespan
    percent = round(100 * saved / last.measured.makespan) if last.measured.makespan else 0
    if not percent:
        return "All took as long."
    name = name_of(first.prefetch)
    return f"{name[0].upper()}{name[1:]} was done {first.seconds(saved)} ({percent} %) before {name_of(last.prefetch)}."
