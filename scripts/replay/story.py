"""A recorded run in words: what to guess, what happens when, what to ask of it. All figures are those of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.scenes import Recording, Run

SENT = 0.01  # seconds from the first start, in which all is still in the queue
BEGUN = 0.1  # in which whoever is there has begun
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Moment:
    """What is said from a time on, in seconds."""

    at: float
    text: str


@dataclass(frozen=True)
class Question:
    """One that the replay answers at a time, in seconds."""

    at: float
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    key: str
    title: str
    lead: str
    headings: tuple[tuple[str, str], ...]  # of each run: its name, and what that means
    guess: str
    answers: tuple[str, ...]
    right: int
    because: str
    moments: tuple[Moment, ...]
    questions: tuple[Question, ...]
    recording: Recording

    @property
    def seconds(self) -> float:
        return max(run.makespan for run in self.recording.runs)


def told(seconds: float) -> str:
    return f"{seconds:.1f} s"


def word(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def tasks(numbers: Sequence[int]) -> str:
    """`task 3`, `tasks 3, 5 and 7`."""
    *first, last = map(str, numbers)
    return f"tasks {', '.join(first)} and {last}" if first else f"task {last}"


def in_order(moments: Sequence[Moment]) -> tuple[Moment, ...]:
    return tuple(sorted(moments, key=lambda moment: moment.at))


# Round-robin beside fair dispatch


def dispatch(recording: Recording) -> Scene:
    dealt, fair = recording.runs
    saved = dealt.makespan - fair.makespan
    lazy = min(range(len(dealt.workers)), key=dealt.busy_until)
    idle = dealt.makespan - dealt.busy_until(lazy)
    return Scene(
        "dispatch",
        "Who gets the next task?",
        f"{capital(word(len(fair.workers)))} workers share {word(len(fair.tasks))} tasks. In the first run the broker "
        "deals them out in turn, as they come. In the second nobody holds more than one: whoever is done gets the "
        "next.",
        (
            ("Round-robin", "prefetch 0: dealt out in turn"),
            ("Fair dispatch", "prefetch 1: to whoever is free"),
        ),
        "Which run is done first, and by how much?",
        (
            "Round-robin, by a second",
            f"Fair dispatch, by {word(round(saved))} seconds",
            "Neither: it is the same work",
        ),
        1,
        f"Fair dispatch is done after {told(fair.makespan)}, round-robin after {told(dealt.makespan)}: the work is the "
        f"same, but {dealt.workers[lazy].name} sits idle for {told(idle)} beside tasks that it cannot have.",
        in_order(dispatch_moments(dealt, fair, lazy)),
        dispatch_questions(dealt, fair, lazy),
        recording,
    )


def dispatch_moments(dealt: Run, fair: Run, lazy: int) -> list[Moment]:
    first = next(piece for piece in fair.pieces if piece.start > BEGUN)
    mine = dealt.lane(lazy)
    left = fair.queued(BEGUN)
    return [
        Moment(0.0, f"{capital(word(len(fair.tasks)))} tasks are in the queue, and both workers are ready."),
        Moment(
            SENT,
            f"Round-robin: all {word(len(dealt.tasks))} tasks are handed out at once, {word(len(mine))} to each. "
            f"Fair dispatch: one to each, and {word(len(left))} wait in the queue.",
        ),
        Moment(
            first.start,
            f"{fair.workers[first.worker].name} is done with its first task. By round-robin it goes on with "
            f"{tasks([mine[1].task])}, its next in hand; by fair dispatch the queue gives it {tasks([first.task])}.",
        ),
        *dispatch_ends(dealt, fair, lazy),
    ]


def dispatch_ends(dealt: Run, fair: Run, lazy: int) -> list[Moment]:
    busy = 1 - lazy
    name, other = dealt.workers[lazy].name, dealt.workers[busy].name
    since = dealt.busy_until(lazy)
    held = [piece.task for piece in dealt.lane(busy) if piece.end > since + BEGUN]
    unfinished = tasks(dealt.held(busy, fair.makespan))
    return [
        Moment(
            since,
            f"Round-robin: {name} is idle. {other} holds {word(len(held))}: {tasks(held)}. What is handed out is not "
            "taken back.",
        ),
        Moment(
            max(piece.start for piece in fair.pieces),
            "Fair dispatch: the queue is empty, and both workers have their last task.",
        ),
        Moment(
            fair.makespan,
            f"Fair dispatch is done, with nobody idle. By round-robin {other} still has {unfinished} to do.",
        ),
        Moment(
            dealt.makespan,
            f"Round-robin is done, {told(dealt.makespan - fair.makespan)} later; {name} was idle for "
            f"{told(dealt.makespan - since)}.",
        ),
    ]


def dispatch_questions(dealt: Run, fair: Run, lazy: int) -> tuple[Question, ...]:
    since = dealt.busy_until(lazy)
    third = next(task for task in fair.tasks if task not in (fair.pieces[0].task, fair.pieces[1].task))
    by_dealing, by_fairness = (next(p for p in run.pieces if p.task == third) for run in (dealt, fair))
    one, other = dealt.workers[by_dealing.worker].name, fair.workers[by_fairness.worker].name
    return (
        Question(
            by_fairness.start,
            f"When is task {third} started?",
            f"By fair dispatch at {told(by_fairness.start)}, by {other}. By round-robin at {told(by_dealing.start)}: "
            f"it waits in the hands of {one}, behind a long one.",
        ),
        Question(
            since,
            "Why does nobody give the idle worker something to do?",
            "The queue has been empty since 0.0 s: without a limit all tasks are in somebody's hands, and the broker "
            "takes none back from a worker that lives.",
        ),
        Question(
            fair.makespan,
            f"Could a cleverer broker be quicker than {told(fair.makespan)}?",
            f"Hardly: it is {fair.work:g} s of work for {word(len(fair.workers))} workers, so it cannot be done before "
            f"{told(fair.work / len(fair.workers))}.",
        ),
    )


# A worker is killed


def takeover(recording: Recording) -> Scene:
    (run,) = recording.runs
    lost = next(piece for piece in run.pieces if not piece.done)
    killed = run.workers[lost.worker]
    again = next(piece for piece in run.pieces if piece.task == lost.task and piece.again)
    heir = run.workers[again.worker].name
    return Scene(
        "takeover",
        "A worker is killed in the middle of a task",
        f"{capital(word(len(run.workers)))} workers, {word(len(run.tasks))} tasks, prefetch 1. At {told(lost.end)} "
        f"{killed.name} is killed (kill -9): it says no good-bye, and cannot give its task back.",
        (("Takeover", f"{killed.name} is killed at {told(lost.end)}"),),
        f"What becomes of task {lost.task}?",
        (
            f"It is lost with {killed.name}",
            "It goes back to the end of the queue",
            "It goes back to its old place, at the front",
        ),
        2,
        f"It was never acknowledged, so RabbitMQ puts it back where it was, and {heir} does it from the beginning. "
        f"All {word(len(run.tasks))} tasks are done after {told(run.makespan)}.",
        in_order(takeover_moments(run)),
        takeover_questions(run),
        recording,
    )


def takeover_moments(run: Run) -> list[Moment]:
    lost = next(piece for piece in run.pieces if not piece.done)
    again = next(piece for piece in run.pieces if piece.task == lost.task and piece.again)
    name, heir, back = run.workers[lost.worker].name, run.workers[again.worker].name, run.back(lost)
    behind = [task for task in run.queued(back) if task != lost.task]
    return [
        Moment(0.0, f"{capital(word(len(run.tasks)))} tasks are in the queue, and three workers are ready."),
        Moment(
            SENT,
            f"Each worker has a task, {word(len(run.queued(BEGUN)))} wait. RabbitMQ keeps those in work, too, until "
            "they are acknowledged.",
        ),
        Moment(lost.end, f"{name} is killed in the middle of {tasks([lost.task])}."),
        Moment(
            back,
            f"{name} is killed. After {1000 * (back - lost.end):.0f} ms RabbitMQ has noticed: task {lost.task} is back "
            f"in the queue, before {tasks(behind)}.",
        ),
        Moment(again.start, f"{heir} is free, and gets task {lost.task}, marked as delivered before."),
        Moment(again.end, f"Task {lost.task} is done, {told(lost.end - lost.start)} of its work twice."),
        Moment(run.makespan, f"All {word(len(run.tasks))} tasks are done by those who are left. Nothing was lost."),
    ]


def takeover_questions(run: Run) -> tuple[Question, ...]:
    lost = next(piece for piece in run.pieces if not piece.done)
    again = next(piece for piece in run.pieces if piece.task == lost.task and piece.again)
    back = run.back(lost)
    behind = [task for task in run.queued(back) if task != lost.task]
    return (
        Question(
            back,
            "How does RabbitMQ know that the worker is gone?",
            "The system closes the connections of a process that ends: that was seen after "
            f"{1000 * (back - lost.end):.0f} ms. When a whole machine vanishes, it is the missing heartbeats, "
            "after half a minute or so.",
        ),
        Question(
            again.start,
            "Why is it the next one to be handed out?",
            f"A task that comes back takes its old place: it was before {tasks(behind)}.",
        ),
        Question(
            again.end,
            "What did the kill cost?",
            f"{told(lost.end - lost.start)} of work, and the time until somebody was free. Task {lost.task} was begun "
            "twice: so a handler must be able to do its work again.",
        ),
    )


# Ten workers join


def joining(recording: Recording) -> Scene:
    (run,) = recording.runs
    others = run.workers[1:]
    first = run.workers[0].name
    slowest = longest_wait(run)
    return Scene(
        "joining",
        f"{capital(word(len(others)))} workers join a full queue",
        f"{first} is alone with {len(run.tasks)} tasks, which is {run.work:g} s of work. Then "
        f"{word(len(others))} more are started. Nobody tells {first}, the sender or the queue.",
        (("Scaling out", "prefetch 1: to whoever is free"),),
        "When does each new worker have its first task?",
        ("As soon as it is there", f"When {first} is done with its own", "When new tasks are sent"),
        0,
        f"Each has one within {1000 * slowest:.0f} ms of being ready. All is done after {told(run.makespan)}; "
        f"{first} alone would have needed {run.work:g} s.",
        in_order(joining_moments(run)),
        joining_questions(run),
        recording,
    )


def longest_wait(run: Run) -> float:
    """Of workers that come later, from being ready to their first task; in seconds."""
    return max(run.lane(number)[0].start - worker.since for number, worker in enumerate(run.workers) if worker.since)


def joining_moments(run: Run) -> list[Moment]:
    others = run.workers[1:]
    first, last = min(others, key=lambda w: w.since), max(others, key=lambda w: w.since)
    last_start = max(piece.start for piece in run.pieces)
    done = sum(piece.end <= first.since for piece in run.pieces)
    all_there = last.since + longest_wait(run)
    waiting = len(run.queued(all_there))
    return [
        Moment(0.0, f"{len(run.tasks)} tasks are in the queue, and one worker is ready."),
        Moment(SENT, f"{run.workers[0].name} works on task 1, and {len(run.queued(BEGUN))} tasks wait."),
        Moment(
            first.since,
            f"{first.name} is there, and has its first task at once. {capital(word(done))} are done so far.",
        ),
        Moment(
            all_there,
            f"All {word(len(others))} are there, and all {word(len(run.workers))} work. {waiting} tasks wait.",
        ),
        Moment(last_start, "The last task is handed out: the queue is empty."),
        Moment(
            run.makespan,
            f"All {len(run.tasks)} tasks are done, {run.work / run.makespan:.1f} times as fast as by one worker.",
        ),
    ]


def joining_questions(run: Run) -> tuple[Question, ...]:
    others = run.workers[1:]
    arrived = min(worker.since for worker in others)
    last_start = max(piece.start for piece in run.pieces)
    return (
        Question(
            0.0,
            "And if the first worker had no limit?",
            f"With prefetch 0 all {len(run.tasks)} tasks would be in its hands before anybody else came, and "
            f"{word(len(others))} workers would have nothing to do.",
        ),
        Question(
            arrived,
            "Who tells the queue that there are more workers?",
            "They do: each one asks to consume from it. The sender and the other workers need not know.",
        ),
        Question(
            last_start,
            "Why are they not done at the same moment?",
            f"From {told(last_start)} on there is nothing left to share: whoever has the last long task ends last, "
            f"here {told(run.makespan - last_start)} later.",
        ),
    )


def scenes(recordings: dict[str, Recording]) -> list[Scene]:
    return [
        dispatch(recordings["compare"]),
        takeover(recordings["takeover"]),
        joining(recordings["joining"]),
    ]
