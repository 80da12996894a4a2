"""Handlers that fork, threads that die, and standard streams in every state: nothing is lost, and no worker hangs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.forwarder import Forwarder
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench, Program

HANDLERS = "tests/handlers_processes.py"


def start(bench: Bench, handler: str, *arguments: str, **settings: str) -> Program:
    """A worker that is consuming."""
    worker = bench.start(HANDLERS, handler, *arguments, **settings)
    worker.wait_for("worker_ready")
    return worker


def put(bench: Bench, *names: str, difficulty: float = 0) -> None:
    for name in names:
        task = {"id": name, "task": name, "difficulty": difficulty}
        bench.publish_as_sender(json.dumps(task).encode())


def runs(bench: Bench) -> Counter[str]:
    path = bench.folder / "runs"
    return Counter(path.read_text().splitlines() if path.exists() else [])


def outcomes(worker: Program) -> dict[str, str]:
    found = worker.events("task_completed") + worker.events("task_retried") + worker.events("task_dead")
    return {str(event["id"]): f"{event['event']} {event.get('error', '')}".strip() for event in found}


def stop(worker: Program, seconds: float = 8.0) -> int:
    worker.signal(signal.SIGTERM)
    return worker.wait(seconds)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


METHODS = ("fork", "spawn", "forkserver")
FORKS = ("_exit", "sys.exit", "sys.exit with words", "sys.exit without", "return", "raise", "SIGTERM", "raise_signal")


def test_a_handler_may_use_processes_as_in_plain_python(bench: Bench) -> None:
    names = [
        *(f"{what}:{method}" for what in ("process", "pool", "executor", "manager") for method in METHODS),
        *(f"fork:{end}" for end in FORKS),
        "subprocess:close",
        "subprocess:leave open",
        "interrupt:",
        "signals_at_once:",
        "fork_in_a_thread:",
        "progress_in_a_child:",
    ]
    put(bench, *names)
    worker = start(bench, "use_processes", "--concurrency", "3", "--burst", RETRY_DELAYS="")
    assert worker.wait(60) == 0, worker.describe()
    assert outcomes(worker) == dict.fromkeys(names, "task_completed")
    assert runs(bench) == Counter(names)
    assert "left running" not in worker.stderr


ASYNCHRONOUS = (
    "asynchronous",
    "asynchronous_generator",
    "asynchronous_object",
    "asynchronous_method",
    "asynchronous_static",
    "partial",
    "partial_of_partial",
    "partial_of_object",
)
NO_HANDLERS = (
    *ASYNCHRONOUS, "generator", "a_class", "not_callable", "a_module", "takes_one", "takes_three"
)  # fmt: skip


def test_what_is_no_handler_is_refused_at_start(bench: Bench) -> None:
    put(bench, "untouched")
    workers = [bench.start(HANDLERS, name) for name in NO_HANDLERS]
    for name, worker in zip(NO_HANDLERS, workers, strict=True):
        assert worker.wait(30) == 2, worker.describe()
        (line,) = worker.stderr.splitlines()
        assert line.startswith("worker.py: ")
        assert "cannot be a handler" in line
        assert ("event loop" in line) == (name in ASYNCHRONOUS)
        assert not worker.stdout
    assert bench.ready() == 1


def test_work_that_a_handler_returns_undone_is_not_done(bench: Bench) -> None:
    names = ["coroutine", "generator", "async generator"]
    put(bench, *names)
    worker = start(bench, "returns_coroutine", "--burst", RETRY_DELAYS="")
    assert worker.wait() == 0
    assert all("task_dead the handler returned" in outcome for outcome in outcomes(worker).values())
    assert len(bench.take_dead(3)) == 3
    assert "never awaited" not in worker.stderr


LEFT = ("fork", "forks on", "Popen", "Popen, all open", "Popen, deaf", "executor", "thread", "daemon thread", "spawn",
        "forkserver")  # fmt: skip


def left(bench: Bench) -> int:
    """The process that a handler has left; 0 if it has left a thread."""
    path = bench.folder / "child"
    until(path.exists, "the child")
    pid = int(path.read_text())
    path.unlink()
    return pid


@pytest.fixture
def leftovers() -> Iterator[list[int]]:
    """Processes to be ended."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_a_handler_leaves_running_keeps_no_worker(bench: Bench, leftovers: list[int]) -> None:
    ending: list[tuple[str, Program, int, float]] = []
    for what in LEFT:
        put(bench, what)
        worker = start(bench, "leave_running")
        leftovers.append(left(bench))
        worker.wait_for("task_completed")
        worker.signal(signal.SIGTERM)
        ending.append((what, worker, leftovers[-1], time.monotonic()))
    for what, worker, _, since in ending:
        assert worker.wait(since + 8 - time.monotonic()) == 0, what
    assert runs(bench) == Counter(LEFT)
    assert bench.ready() == 0


@pytest.mark.parametrize("how", ["second signal", "kill -9"])
def test_a_living_child_does_not_keep_a_task(bench: Bench, leftovers: list[int], how: str) -> None:
    """Not even with the publisher's connection open."""
    kinds = [kind for kind in LEFT if "thread" not in kind]
    for what in kinds:
        put(bench, "fails", what, difficulty=60)
        worker = start(bench, "leave_running_after_failure", "--concurrency", "1", RETRY_DELAYS="30")
        leftovers.append(left(bench))
        if how == "kill -9":
            worker.signal(signal.SIGKILL)
        else:
            worker.signal(signal.SIGTERM)
            until(lambda: "stopping when" in worker.stderr, "the first signal to be heard")  # noqa: B023
            worker.signal(signal.SIGTERM)
            assert worker.wait(3) == 1
        assert leftovers[-1] == 0 or alive(leftovers[-1])
        until(lambda: bench.ready() == 1, f"the task again: {what}", 2)
        bench.take_all()
        until(lambda: bench.ready(f"{bench.queue}.retry.30s") == 1, "the other in its retry queue")
        bench.take_all(f"{bench.queue}.retry.30s")


def test_no_child_has_a_link_whatever_moment_it_is_forked_in(breakable: Bench, link: Forwarder) -> None:
    put(breakable, "forks", difficulty=4)
    worker = start(breakable, "fork_while_connecting", "--concurrency", "2", PREFETCH_COUNT="20", RETRY_DELAYS="")
    worker.wait_for("task_started")
    end = time.monotonic() + 3
    while time.monotonic() < end:
        put(breakable, "fails")  # for a connection of the publisher's
        time.sleep(0.1)
        link.reset()
    file = breakable.folder / "codes"
    codes = Counter(until(lambda: file.read_text().split() if file.exists() else [], "the end of the forks"))
    assert set(codes) == {"0"}, codes
    assert codes["0"] > 5
    assert stop(worker) == 0


ERRORS = ("unspeakable", "silent", "interrupting", "odd notes", "base", "huge", "many lines", "bytes", "MemoryError",
          "GeneratorExit", "StopIteration", "StopAsyncIteration", "CancelledError", "KeyboardInterrupt", "SystemExit",
          "SystemExit(0)", "group", "RecursionError")  # fmt: skip


def test_whatever_a_handler_raises_is_a_failed_attempt(bench: Bench) -> None:
    put(bench, *ERRORS, "good")
    worker = start(bench, "raise_it", "--concurrency", "2", RETRY_DELAYS="0.2")
    worker.wait_for("task_dead", len(ERRORS), 30)
    assert runs(bench) == {**dict.fromkeys(ERRORS, 2), "good": 1}
    assert [event["id"] for event in worker.events("task_completed")] == ["good"]
    assert len(bench.take_dead(len(ERRORS))) == len(ERRORS)
    assert len(worker.stdout) < 1_000_000
    assert stop(worker) == 0


GO_ON = ("stdout None", "stdout odd", "stdout StringIO", "stderr None", "folder", "faulthandler", "switch interval",
         "umask", "no tracebacks", "SIGCHLD")  # fmt: skip


def test_what_a_handler_changes_in_its_process_holds_up_no_other_task(bench: Bench) -> None:
    put(bench, *GO_ON)
    worker = start(bench, "abuse", "--burst")
    assert worker.wait(30) == 0, worker.describe()
    assert outcomes(worker) == dict.fromkeys(GO_ON, "task_completed")
    assert runs(bench) == Counter(GO_ON)


GOES_ON = ("connection thread", "close stdout")
EITHER = ("closerange", "reuse", "epoll")  # whether its descriptors can be told from new ones is chance
ENDS = ("main thread", "work thread", "closerange all")


@pytest.fixture
def benches(bench: Bench) -> Iterator[dict[str, Bench]]:
    """One for each of what a handler does to its process, since doing that takes time."""
    found = {}
    for number, what in enumerate(GOES_ON + EITHER + ENDS):
        (bench.folder / what).mkdir()
        found[what] = Bench(bench.broker, f"{bench.queue}-{number}", bench.folder / what, bench.url)
    yield found
    for own in found.values():
        own.close()


def test_a_worker_that_cannot_work_ends_or_begins_again(benches: dict[str, Bench]) -> None:
    """It never stays connected and does nothing. What it has not done is the broker's again."""
    for own in benches.values():
        start(own, "abuse", "--concurrency", "2", PREFETCH_COUNT="3", RETRY_DELAYS="0.2")
        put(own, "fails first")  # so that the publisher has its connection, too
    for what, own in benches.items():
        own.programs[0].wait_for("task_dead")
        put(own, what, difficulty=6 if what == "closerange all" else 0.5)
        put(own, "fails", "good")
    for what in GOES_ON + EITHER:
        (worker,) = benches[what].programs
        until(lambda: worker.process.poll() is not None or len(worker.events("task_dead")) == 2, what, 30)  # noqa: B023
        if what in EITHER and worker.process.poll() is not None:
            must_have_ended(benches[what], what, "this process cannot go on")
            continue
        until(lambda: len(worker.events("task_completed")) == 2, f"both tasks after {what}")  # noqa: B023
        assert stop(worker) == 0, worker.describe()
        assert runs(benches[what]) == {"fails first": 2, what: 1, "fails": 2, "good": 1}
    for what in ENDS:
        must_have_ended(
            benches[what], what, "" if what == "closerange all" else "stopped, and what was running is given back"
        )


def must_have_ended(own: Bench, what: str, why: str) -> None:
    (worker,) = own.programs
    assert worker.wait(20) == 1, worker.describe()
    assert why in worker.stderr
    found = {json.loads(body)["id"] for _, body in own.take_all()}
    assert found | {event["id"] for event in worker.events("task_completed")} >= {what, "good"}


def test_a_crash_leaves_the_task_with_the_broker(bench: Bench) -> None:
    crashes = ("abort", "_exit", "kill")
    for what in crashes:
        worker = start(bench, "abuse")
        put(bench, what)
        worker.wait(20)
        until(lambda: bench.ready() == 1, "the task again", 2)
        again = start(bench, "abuse", "--burst")
        assert again.wait() == 0
        assert outcomes(again) == {what: "task_completed"}
    assert runs(bench) == dict.fromkeys(crashes, 2)


@pytest.mark.parametrize("what", ["SIGTERM", "SIGINT"])
def test_a_handler_may_stop_its_worker(bench: Bench, what: str) -> None:
    worker = start(bench, "abuse", "--concurrency", "2")
    put(bench, what, difficulty=0.3)
    assert worker.wait(10) == 0
    assert outcomes(worker) == {what: "task_completed"}


# Standard streams


def unread(bench: Bench, handler: str, *arguments: str, **popen: Any) -> tuple[Program, int]:
    """A worker whose output goes into a pipe, which is returned and not read."""
    ours, theirs = os.pipe()
    settings = {"HEARTBEAT_SECONDS": "1"}
    streams = {"stdout": theirs, **dict.fromkeys(popen, theirs)}
    worker = bench.launch(HANDLERS, [handler, *arguments], settings, **streams)
    os.close(theirs)
    return worker, ours


def test_a_worker_whose_output_nobody_reads_keeps_its_link_and_obeys_signals(bench: Bench) -> None:
    put(bench, "prints", difficulty=3000)
    worker, ours = unread(bench, "print_much")
    until(lambda: runs(bench) == {"prints": 1}, "the task to run")
    time.sleep(5)
    assert worker.stderr == ""
    assert bench.ready() == 0
    worker.signal(signal.SIGTERM)
    assert worker.wait(3) == 1
    assert "standard output is gone (nobody reads it)" in worker.stderr
    os.close(ours)
    until(lambda: bench.ready() == 1, "the task again", 2)
    assert runs(bench) == {"prints": 1}


def test_a_second_signal_ends_a_worker_whose_streams_nobody_reads(bench: Bench) -> None:
    put(bench, "prints", difficulty=3000)
    worker, ours = unread(bench, "print_much", stderr=None)
    until(lambda: runs(bench) == {"prints": 1}, "the task to run")
    time.sleep(0.5)
    worker.signal(signal.SIGTERM)
    time.sleep(0.1)
    worker.signal(signal.SIGTERM)
    assert worker.wait(1.5) == 1
    os.close(ours)
    until(lambda: bench.ready() == 1, "the task again", 2)


def test_lines_of_several_workers_on_a_slow_pipe_stay_whole(bench: Bench) -> None:
    names = [f"{number} {'long ' * 3000}" for number in range(30)]
    put(bench, *names)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    workers = [
        bench.launch(HANDLERS, ["raise_it", "--burst", "--concurrency", "2"], {}, stdout=theirs) for _ in range(3)
    ]
    os.close(theirs)
    output = b""
    while data := os.read(ours, 20_000):
        output += data
        time.sleep(0.001)
    os.close(ours)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    events = [json.loads(line) for line in output.splitlines()]
    completed = [event["id"] for event in events if event["event"] == "task_completed"]
    assert Counter(completed) == dict.fromkeys(names, 1)
    assert sum(event["completed"] for event in events if event["event"] == "worker_stopped") == len(names)


def test_a_reader_that_goes_ends_the_worker_and_loses_nothing(bench: Bench) -> None:
    worker, ours = unread(bench, "abuse")
    put(bench, "a", difficulty=0.5)
    until(lambda: runs(bench) == {"a": 1}, "the task to run")
    os.close(ours)
    put(bench, "b", "c")
    assert worker.wait(5) == 1
    assert "standard output is gone (Broken pipe)" in worker.stderr
    assert runs(bench) == {"a": 1}  # it was acknowledged
    assert bench.ready() == 2


# The sender

LINE = b'{"id": 1, "task": "x", "difficulty": 0}\n'
BOM = b"\xef\xbb\xbf"
FILES = {
    "blank last line": (LINE * 2 + b"\n", 0, 2, ""),
    "blank last lines": (LINE * 2 + b"\n \t\r\n\n", 0, 2, ""),
    "spaces at the end": (LINE * 2 + b"  ", 0, 2, ""),
    "carriage returns": (LINE.replace(b"\n", b"\r\n") * 2 + b"\r\n", 0, 2, ""),
    "nothing": (b"", 0, 0, ""),
    "only blank lines": (b"\n\n", 0, 0, ""),
    "byte order mark": (BOM + LINE * 2, 0, 2, ""),
    "only a byte order mark": (BOM, 0, 0, ""),
    "no line break at the end": (LINE + LINE.strip(), 0, 2, ""),
    "blank first line": (b"\n" + LINE, 2, 0, "line 1: is blank"),
    "blank lines between": (LINE + b"\n\n" + LINE, 2, 1, "line 2: is blank"),
    "blank line between, and at the end": (LINE + b"\n" + LINE + b"\n", 2, 1, "line 2: is blank"),
    "mark in the midst": (LINE + BOM + LINE, 2, 1, "line 2: "),
    "two marks": (BOM + BOM + LINE, 2, 0, "line 1: "),
}


def test_files_with_blank_lines_and_marks(bench: Bench) -> None:
    senders = {}
    for name, (content, *_) in FILES.items():
        path = bench.folder / name
        path.write_bytes(content)
        senders[name] = bench.start("sender.py", "--quiet", "--file", str(path))
    for name, (_, exit_code, sent, words) in FILES.items():
        sender = senders[name]
        assert sender.wait(30) == exit_code, sender.describe()
        assert sender.stdout == f"{sent} task{'s' * (sent != 1)} sent, {sent} confirmed\n", name
        assert (f"{name}, {words}" in sender.stderr) if words else not sender.stderr
    assert bench.ready() == sum(sent for _, _, sent, _ in FILES.values())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "/: Is a directory"),
        ("/no/such", "/no/such: No such file or directory"),
        ("/proc/self/mem", "/proc/self/mem: Input/output error"),
        ("/dev/zero", "/dev/zero, line 1: longer than"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(bench: Bench, path: str, words: str) -> None:
    sender = bench.start("sender.py", "--file", path)
    assert sender.wait(30) == 2
    assert sender.stderr.startswith(f"sender.py: {words}")
    assert len(sender.stderr.splitlines()) == 1
    assert sender.stdout == "0 tasks sent, 0 confirmed\n"


def test_input_that_does_not_block_is_sent_to_its_end(bench: Bench) -> None:
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    sender = bench.launch("sender.py", ["--file", "-"], {}, stdin=theirs)
    os.close(theirs)
    for count in range(1, 4):
        os.write(ours, LINE[:10])
        time.sleep(0.3)
        os.write(ours, LINE[10:])
        until(lambda: bench.ready() == count, "the task in the queue")  # noqa: B023
    assert sender.process.poll() is None
    os.close(ours)
    assert sender.wait() == 0
    assert sender.stdout.splitlines()[-1] == "3 tasks sent, 3 confirmed"


def test_a_sender_whose_output_nobody_reads_keeps_its_link_and_obeys_signals(bench: Bench) -> None:
    """What it sent by then is confirmed, and counted; the closing line goes where it can."""
    ours, theirs = os.pipe()
    sender = bench.launch("sender.py", ["--count", "100000"], {"HEARTBEAT_SECONDS": "1"}, stdout=theirs)
    os.close(theirs)
    until(lambda: bench.ready() > 1000, "tasks in the queue")
    time.sleep(5)
    assert sender.stderr == ""
    ready = bench.ready()
    sender.signal(signal.SIGTERM)
    assert sender.wait(4) == 1
    with open(ours, "rb") as unread:
        printed = unread.read().decode()  # where there was room, the closing line is in there
    assert f"{ready} tasks sent, {ready} confirmed" in sender.stderr + printed
    assert bench.ready() == ready


def test_a_slow_output_that_does_not_block_only_slows_the_sender(bench: Bench) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    sender = bench.launch("sender.py", ["--count", "5000"], {}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    time.sleep(1)
    output = b""
    while data := os.read(ours, 50_000):
        output += data
        time.sleep(0.01)
    os.close(ours)
    assert sender.wait() == 0
    assert len(output.splitlines()) == 5001
    assert output.splitlines()[-1] == b"5000 tasks sent, 5000 confirmed"


def test_a_reader_that_goes_ends_the_sender_with_an_honest_line(bench: Bench) -> None:
    ours, theirs = os.pipe()
    sender = bench.launch("sender.py", ["--count", "100000"], {}, stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 1000)
    os.close(ours)
    assert sender.wait(10) == 1
    closing = sender.stderr.splitlines()[-1].split()
    assert int(closing[3]) <= bench.ready() <= int(closing[0])


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_shows_no_traceback(bench: Bench, program: str, number: signal.Signals) -> None:
    """From the first module of ours on; what Python loads before is not in our hands."""
    code = (
        "import os, sys, signal, workqueue\n"
        "import importlib.abc\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'workqueue.flags': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"import runpy; runpy.run_path({str(ROOT / program)!r}, run_name='__main__')\n"
    )
    starting = Program([sys.executable, "-c", code], bench.folder, bench.environment(PYTHONPATH=str(ROOT)))
    bench.programs.append(starting)
    assert starting.wait() == -number
    assert starting.stderr == starting.stdout == ""
