"""A worker with a handler for tests of processes, threads and streams:  handlers_processes.py NAME [flags ...]

Each handler first writes into `runs` what it runs: how often each task ran is what counts.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import functools
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

import pika.tcp_socket_opts

import worker
from tasks import Attempt, Task

FOLDER = Path.cwd()


def ran(task: Task) -> None:
    with (FOLDER / "runs").open("a") as runs:
        runs.write(f"{task.id}\n")


def square(number: int) -> int:
    return number * number


def sleep_long() -> None:
    time.sleep(60)


def child_pid(pid: int) -> None:
    Path("child.new").write_text(str(pid))
    Path("child.new").rename("child")


# What a task may do with processes: the task's name says it


def with_process(method: str) -> None:
    context = multiprocessing.get_context(method)
    process = context.Process(target=sleep_long)  # type: ignore[attr-defined]
    process.start()
    process.terminate()
    process.join(20)
    assert process.exitcode == -signal.SIGTERM, process.exitcode


def with_pool(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]


def with_executor(method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as executor:
        assert list(executor.map(square, range(4))) == [0, 1, 4, 9]


def with_manager(method: str) -> None:
    with multiprocessing.get_context(method).Manager() as manager:
        shared = manager.dict()
        shared["a"] = 1
        assert shared["a"] == 1


def with_subprocess(close_fds: str) -> None:
    script = "import os, signal; print(os.getpid()); os.kill(os.getpid(), signal.SIGTERM)"
    for more in ({}, {"preexec_fn": os.getpid}, {"start_new_session": True}):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=subprocess.PIPE, close_fds=close_fds == "close", **more)
        assert done.returncode == -signal.SIGTERM, done.returncode


def end_by(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    sleep_long()


def raise_signal(number: signal.Signals) -> None:
    signal.raise_signal(number)
    sleep_long()


ENDS: dict[str, tuple[Callable[[], object], int]] = {
    "_exit": (lambda: os._exit(3), 3),
    "sys.exit": (lambda: sys.exit(3), 3),
    "sys.exit with words": (lambda: sys.exit("words"), 1),
    "sys.exit without": (lambda: sys.exit(), 0),
    "return": (lambda: None, 0),
    "raise": (lambda: 1 / 0, 1),
    "SIGTERM": (lambda: end_by(signal.SIGTERM), -signal.SIGTERM),
    "raise_signal": (lambda: raise_signal(signal.SIGTERM), -signal.SIGTERM),
}


def with_fork(how: str) -> None:
    end, expected = ENDS[how]
    child = os.fork()
    if child == 0:
        end()
        return  # out of the handler, in the child
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert found == expected, (found, expected)


def with_interrupt(how: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            os._exit(5)
        os._exit(6)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def with_signals_at_once(how: str) -> None:
    """A child that gets a signal before it has done anything."""
    for number in (signal.SIGTERM, signal.SIGINT) * 20:
        child = os.fork()
        if child == 0:
            try:
                sleep_long()
            finally:
                os._exit(5)
        os.kill(child, number)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert found == -number or (found == 5 and number == signal.SIGINT), (number, found)


def with_fork_in_a_thread(how: str) -> None:
    found: list[BaseException] = []

    def fork() -> None:
        try:
            with_fork("_exit")
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert not found, found


def with_progress_in_a_child(how: str) -> None:
    """Output of a child is whole, and does not stand still for a lock that was held when it was forked."""
    child = os.fork()
    if child == 0:
        print("from the child", file=sys.stderr, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def use_processes(task: Task, attempt: Attempt) -> None:
    """The name of the task is `what:how`."""
    ran(task)
    what, _, how = task.task.partition(":")
    globals()[f"with_{what}"](how)


def leave_running(task: Task, attempt: Attempt) -> None:
    """Leaves a child, or a thread, that ends long after the worker."""
    ran(task)
    match task.task:
        case "fork":
            child = os.fork()
            if child == 0:
                sleep_long()
                os._exit(0)
        case "forks on":  # a child that forks a child and ends
            child = os.fork()
            if child == 0:
                grandchild = os.fork()
                if grandchild == 0:
                    sleep_long()
                    os._exit(0)
                child_pid(grandchild)
                os._exit(0)
            os.waitpid(child, 0)
            wait_if_told(task)
            return
        case "Popen":
            child = subprocess.Popen(["sleep", "60"]).pid
        case "Popen, all open":
            child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
        case "Popen, deaf":
            ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
            child = subprocess.Popen([sys.executable, "-c", ignoring]).pid
        case "executor":
            executor = ProcessPoolExecutor(1)
            executor.submit(sleep_long)
            time.sleep(0.2)
            child = next(iter(executor._processes))
        case "thread":
            threading.Thread(target=sleep_long, daemon=False).start()
            child = 0
        case "daemon thread":
            threading.Thread(target=sleep_long, daemon=True).start()
            child = 0
        case method:
            process = multiprocessing.get_context(method).Process(target=sleep_long)  # type: ignore[attr-defined]
            process.start()
            child = process.pid
    child_pid(child)
    wait_if_told(task)


def leave_running_after_failure(task: Task, attempt: Attempt) -> None:
    if task.task == "fails":
        raise RuntimeError("no luck")
    leave_running(task, attempt)


def wait_if_told(task: Task) -> None:
    if task.difficulty:
        time.sleep(task.difficulty)


def links() -> list[str]:
    """The sockets of this process that lead to the broker."""
    port = f":{urlsplit(os.environ['RABBITMQ_URL']).port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    to_broker = {f"socket:[{fields[9]}]" for fields in lines if fields[2].endswith(port)}
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [what for what in found if what in to_broker]


def fork_while_connecting(task: Task, attempt: Attempt) -> None:
    """Forks again and again, while the worker loses and makes connections, and says how many children had a link."""
    ran(task)
    if task.task == "fails":
        raise RuntimeError("no luck")
    set_options = pika.tcp_socket_opts.set_sock_opts

    def set_options_slowly(*arguments: Any) -> None:
        time.sleep(0.02)  # between the making of a socket and its connecting
        set_options(*arguments)

    setattr(pika.tcp_socket_opts, "set_sock_opts", set_options_slowly)  # noqa: B010
    until = time.monotonic() + task.difficulty
    codes = []
    while time.monotonic() < until:
        child = os.fork()
        if child == 0:
            time.sleep(0.04)  # a socket that was forked before it was connected is connected now
            os._exit(len(links()))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    Path("codes").write_text(" ".join(map(str, codes)))


# What a task may do to its own process: the task's name says it


class Unspeakable(Exception):
    failure: type[BaseException] = ValueError

    def __str__(self) -> str:
        raise self.failure("no words")

    __repr__ = __str__


class Silent(Unspeakable):
    failure = SystemExit


class Interrupting(Unspeakable):
    failure = KeyboardInterrupt


class OddNotes(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__notes__":
            raise SystemExit("no notes")
        return super().__getattribute__(name)


class Base(BaseException):
    pass


def too_deep() -> None:
    too_deep()


ERRORS: dict[str, Callable[[], BaseException]] = {
    "unspeakable": Unspeakable,
    "silent": Silent,
    "interrupting": Interrupting,
    "odd notes": OddNotes,
    "base": Base,
    "huge": lambda: RuntimeError("x" * 50_000_000),
    "many lines": lambda: RuntimeError("x\n" * 100_000),
    "bytes": lambda: RuntimeError(b"\xff", "\udcff"),
    "MemoryError": MemoryError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "SystemExit(0)": lambda: SystemExit(0),
    "group": lambda: BaseExceptionGroup("several", [Unspeakable(), KeyboardInterrupt()]),
}


def raise_it(task: Task, attempt: Attempt) -> None:
    ran(task)
    if task.task == "RecursionError":
        too_deep()
    if task.task in ERRORS:
        error = ERRORS[task.task]()
        if task.task == "base":
            error.__cause__ = error.__context__ = error
        raise error


def close_epoll() -> None:
    """What an I/O thread waits with."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if "eventpoll" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))


def stop_thread(name: str, error: type[BaseException]) -> None:
    """A recipe of many: has an exception raised in another thread."""
    for thread in threading.enumerate():
        if thread.name == name and thread is not threading.current_thread():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


def remove_folder() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


def reuse_descriptors() -> None:
    """Closes all, and opens others in their place."""
    os.closerange(3, 4096)
    for _ in range(8):
        os.open("/dev/null", os.O_RDWR)


ABUSES: dict[str, Callable[[], object]] = {
    "closerange": lambda: os.closerange(3, 4096),
    "closerange all": lambda: os.closerange(0, 4096),
    "reuse": reuse_descriptors,
    "close stdout": lambda: sys.stdout.close(),
    "stdout None": lambda: setattr(sys, "stdout", None),
    "stdout odd": lambda: setattr(sys, "stdout", type("Odd", (), {"encoding": "no such"})()),
    "stdout StringIO": lambda: setattr(sys, "stdout", io.StringIO()),
    "stderr None": lambda: setattr(sys, "stderr", None),
    "epoll": close_epoll,
    "connection thread": lambda: stop_thread("connection", SystemExit),
    "main thread": lambda: stop_thread("MainThread", SystemExit),
    "work thread": lambda: stop_thread("work", SystemExit),
    "recursion limit": lambda: sys.setrecursionlimit(10_000),
    "folder": remove_folder,
    "faulthandler": lambda: faulthandler.dump_traceback(2),
    "switch interval": lambda: sys.setswitchinterval(1),
    "umask": lambda: os.umask(0o777),
    "no tracebacks": lambda: setattr(sys, "excepthook", print),
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
    "SIGCHLD": lambda: signal.raise_signal(signal.SIGCHLD),
    "abort": os.abort,
    "_exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def abuse(task: Task, attempt: Attempt) -> None:
    """Once a name: later runs of the same task, in this process or another, do nothing."""
    ran(task)
    marker = FOLDER / f"abused {task.task}"
    if task.task in ABUSES and not marker.exists():
        marker.touch()
        ABUSES[task.task]()
    if task.difficulty:
        time.sleep(task.difficulty)
    if task.task.startswith("fails"):
        raise RuntimeError("no luck")


def print_much(task: Task, attempt: Attempt) -> None:
    """Fills a pipe of 64 KiB."""
    ran(task)
    for number in range(int(task.difficulty)):
        attempt.progress(number, task.difficulty)


# What is no handler


async def asynchronous(task: Task, attempt: Attempt) -> None:
    raise AssertionError("run")


def generator(task: Task, attempt: Attempt) -> Any:
    yield 1


async def asynchronous_generator(task: Task, attempt: Attempt) -> Any:
    yield 1


class Callable_:
    async def __call__(self, task: Task, attempt: Attempt) -> None:
        raise AssertionError("run")


class Methods:
    async def method(self, task: Task, attempt: Attempt) -> None:
        raise AssertionError("run")

    @staticmethod
    async def static(task: Task, attempt: Attempt) -> None:
        raise AssertionError("run")


@functools.wraps(asynchronous)
def wrapped(*arguments: Any) -> Any:
    return asynchronous(*arguments)


def returns_coroutine(task: Task, attempt: Attempt) -> Any:
    """Nothing shows it before it runs."""
    ran(task)
    return {"coroutine": asynchronous, "generator": generator, "async generator": asynchronous_generator}[task.task](
        task, attempt
    )


partial = functools.partial(asynchronous)
partial_of_partial = functools.partial(functools.partial(asynchronous))
partial_of_object = functools.partial(Callable_())
asynchronous_object = Callable_()
asynchronous_method = Methods().method
asynchronous_static = Methods.static
a_class = Callable_
not_callable = "handle"
a_module = signal


def takes_one(task: Task) -> None:
    raise AssertionError("run")


def takes_three(task: Task, attempt: Attempt, more: int) -> None:
    raise AssertionError("run")


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[2:], handle=globals()[sys.argv[1]]))
