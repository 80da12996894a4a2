"""scripts/watch.py on a real broker: what it shows of workers that are well, dead, frozen or gone; and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_workers import FakeWorker
from lab.nodes import ROOT, free_port
from lab.waiting import until
from programs import Bench
from view.live import SAMPLE
from view.web import MOST_PAGES

from workqueue.connection import Channel

SCRIPT = "scripts/watch.py"
SOON = 3.0  # seconds in which everything is to be seen
SLOW = 10.0  # the same, where the machine has other things to do
INTERVAL = 0.2


class Crew:
    """Fake workers that send a heartbeat every INTERVAL, each with a consumer on the work queue."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._stop = threading.Event()
        self._context = bench.broker.channel()
        channel = self._context.__enter__()
        channel.queue_declare(bench.queue, durable=True)
        channel.exchange_declare(f"{bench.queue}.events", "topic", durable=True)
        self.workers = [FakeWorker(channel, bench.queue, f"Worker-{n}") for n in range(count)]
        self.consumers: dict[FakeWorker, Channel] = {worker: channel.connection.channel() for worker in self.workers}
        for worker, own in self.consumers.items():
            own.basic_qos(1)
            own.basic_consume(bench.queue, lambda *_: None, worker.name)
        self.frozen: set[FakeWorker] = set()
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(INTERVAL / 2):
            for worker in list(self.consumers):
                if worker not in self.frozen:
                    worker.publish(worker.heartbeat(interval=INTERVAL))

    def kill(self, worker: FakeWorker) -> None:
        self.consumers.pop(worker).close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(Exception):
            self._context.__exit__(None, None, None)


@contextmanager
def crew(bench: Bench, count: int) -> Iterator[Crew]:
    made = Crew(bench, count)
    try:
        yield made
    finally:
        made.close()


class View:
    """watch.py --web, and what it serves."""

    def __init__(self, bench: Bench, *arguments: str, **settings: str) -> None:
        self.program = bench.start(SCRIPT, "--web", "0", *arguments, **settings)
        words = until(lambda: re.findall(r"http://127\.0\.0\.1:(\d+)/", self.program.stdout), "the page", 20)
        self.port = int(words[0])
        self._newest: dict[str, Any] = {}
        self._number = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """As a browser does: one connection, made again when it ends."""
        while self.program.process.poll() is None:
            with suppress(OSError), self.follow() as link, link.makefile("rb") as lines:
                for line in lines:
                    if line.startswith(b"data: "):
                        self._newest = json.loads(line.removeprefix(b"data: "))
                        self._number += 1
            time.sleep(0.1)

    def ask(self, path: str, host: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{self.port}"})
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read().decode()
        connection.close()
        return found

    def follow(self) -> socket.socket:
        """A page that has its first state."""
        link = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        link.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return link

    def state(self) -> dict[str, Any]:
        """One that was made from now on."""
        number = self._number
        until(lambda: self._number > number + 1, f"a state of {self.program.describe()}", 20)
        return self._newest

    def opens(self) -> bool:
        """Whether there is room for one more page."""
        with self.follow() as link:
            return b" 200 " in link.recv(20)

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = SLOW) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            state = self.state()
            return state if condition(state) else None

        return until(check, what, seconds) or {}

    def says(self, words: str, seconds: float = SLOW) -> dict[str, Any]:
        """Waits until its sentence or a note has these words."""
        return self.until(
            lambda state: words in " ".join([state["verdict"]["text"], *state["verdict"]["notes"]]), words, seconds
        )


def call(bench: Bench, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / SCRIPT), *arguments],
        env=bench.environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What it shows


def test_a_look_tells_all_and_changes_nothing(breakable: Bench) -> None:
    with crew(breakable, 2) as made:
        for worker in made.workers:
            worker.publish(worker.begin("Process image resize", waited=7.0))
        for number in range(5):
            breakable.publish_as_sender(json.dumps({"id": number, "task": "t", "difficulty": 1}).encode())
        done = call(breakable, "--once", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "RabbitMQ" in done.stdout
    assert "2 consumers" in done.stdout
    assert "3 tasks wait for 2 busy consumers" in done.stdout
    assert done.stdout.count("Process image resize (id 1)") == 2
    assert "\x1b" not in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    queues = breakable.broker.ctl("list_queues", "--quiet", "name").split()
    assert [name for name in queues if name != "name"] == [breakable.queue]
    assert len(breakable.take_all()) == 5


def test_started_in_mid_run_it_is_right_within_an_interval(bench: Bench) -> None:
    with crew(bench, 1) as made:
        (worker,) = made.workers
        worker.totals["completed"] = 41
        for _ in range(3):
            worker.begin()
        time.sleep(1.0)
        state = View(bench).until(lambda state: state["workers"]["rows"], "the worker")
    (row,) = state["workers"]["rows"]
    assert row["completed"] == 41
    assert [task["id"] for task in row["running"]] == ["1", "2", "3"]
    assert 1.0 <= row["running"][0]["age"] < 10.0


def test_what_tasks_do_is_shown_for_as_long_as_they_do_it(bench: Bench) -> None:
    """Of the messages about tasks only so many are on their way at once; those that were read make room."""
    view = View(bench)

    def newest() -> str:
        recent = view.state()["recent"]
        return recent[0]["id"] if recent else ""

    with crew(bench, 1) as workers:
        view.until(lambda state: state["workers"]["known"] == 1, "the worker")
        (worker,) = workers.workers
        for number in range(1, SAMPLE + 2):  # two messages each
            worker.publish(worker.begin())
            worker.publish(worker.finish())
            until(partial(lambda this: newest() == this, str(number)), f"task {number}")


def test_dead_frozen_and_gone_are_seen_in_time_by_three_watchers(bench: Bench) -> None:
    """And each for what it is."""
    with crew(bench, 3) as made:
        views = [View(bench) for _ in range(3)]
        for view in views:
            view.until(lambda state: state["workers"]["by_state"] == {"waiting": 3}, "three workers")
        made.kill(made.workers[0])
        for view in views:
            view.says("2 consumers, 3 workers known")
            view.until(lambda state: state["workers"]["by_state"].get("silent") == 1, "a silent worker")
        made.frozen.add(made.workers[1])
        for view in views:
            view.until(lambda state: state["workers"]["by_state"].get("silent") == 2, "two silent workers")
        made.kill(made.workers[2])
        made.kill(made.workers[1])
        bench.publish_as_sender(b"x")
        for view in views:
            view.says("Nobody consumes: 1 task waits")
        with bench.broker.channel() as channel:
            channel.queue_delete(bench.queue)
        for view in views:
            view.says(f"there is no queue {bench.queue}")
            assert view.program.process.poll() is None
        bench.publish_as_sender(b"x")
        for view in views:
            view.says("Nobody consumes: 1 task waits")


def test_it_waits_for_a_queue_and_an_exchange_that_do_not_exist_yet(bench: Bench) -> None:
    view = View(bench)
    view.says(f"there is no queue {bench.queue}")
    with bench.broker.channel() as channel:
        channel.exchange_delete(f"{bench.queue}.events")  # somebody tidies up: nothing is bound any more
    with crew(bench, 1):
        view.until(lambda state: state["workers"]["known"] == 1, "the worker", 15)
    assert view.state()["source"]["connected"]


def test_it_comes_back_after_a_restart_of_the_broker(breakable: Bench) -> None:
    with crew(breakable, 1):
        view = View(breakable)
        view.until(lambda state: state["workers"]["known"] == 1, "the worker")
        breakable.broker.kill()
        state = view.until(lambda state: not state["source"]["connected"], "the loss")
        assert state["verdict"]["level"] == "unknown"
        assert "trying again" in state["verdict"]["text"]
        assert "work_queue_up{" in view.ask("/metrics")[2]
        assert 'work_queue_tasks_ready{queue="' not in view.ask("/metrics")[2]  # not known is not 0
    breakable.broker.start()
    with crew(breakable, 2):
        view.until(lambda state: state["workers"]["by_state"].get("waiting") == 2, "the workers", 20)


def test_no_broker_is_said_on_the_page_and_tried_again(bench: Bench) -> None:
    url = f"amqp://guest:secret@127.0.0.1:{free_port()}/"
    view = View(bench, RABBITMQ_URL=url)
    state = view.says("no broker answers at amqp://guest:***@127.0.0.1")
    assert "secret" not in json.dumps(state)
    assert view.program.process.poll() is None


def test_without_permission_for_events_the_queues_are_counted(breakable: Bench) -> None:
    ctl = breakable.broker.ctl
    ctl("add_user", "looker", "secret")
    try:
        ctl("set_permissions", "looker", "^$", "^$", ".*")
        breakable.publish_as_sender(b"x")
        view = View(breakable, RABBITMQ_URL=re.sub("//.*?@", "//looker:secret@", breakable.url))
        state = view.says("no events: ")
        assert "Nobody consumes: 1 task waits" in state["verdict"]["text"]
    finally:
        ctl("delete_user", "looker")


def test_what_cannot_be_read_is_counted_and_nothing_else(bench: Bench) -> None:
    with crew(bench, 1) as made:
        view = View(bench)
        view.until(lambda state: state["workers"]["known"] == 1, "the worker")
        channel = made.workers[0].channel
        for body in (b"\xff", b"[]", b"{}", b"[" * 100_000):
            channel.basic_publish(f"{bench.queue}.events", "worker_heartbeat", body)
        view.says("4 lines on the exchange could not be read")
        assert view.state()["workers"]["known"] == 1


def test_no_text_of_a_task_reaches_a_terminal_raw(bench: Bench) -> None:
    with crew(bench, 1) as made:
        made.workers[0].begin("\x1b[2J\x07evil\u202e")
        done = call(bench, "--once")
    assert "evil" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_real_workers_are_seen_at_work_killed_frozen_and_back(breakable: Bench) -> None:
    """From within their run on; what is counted is what they have done."""
    steady, killed, frozen = (
        breakable.worker("--events", "--id", f"Worker-{n}") for n in ("steady", "killed", "frozen")
    )
    breakable.send("--count", "30", "--max-difficulty", "1", "--quiet")
    steady.wait_for("task_completed", 2)
    view = View(breakable)
    view.until(lambda state: state["totals"]["completed"] == 30, "all thirty", 20)
    breakable.send("--task", "Slow work", "--difficulty", "80")
    state = view.until(lambda state: state["workers"]["by_state"] == {"working": 1, "waiting": 2}, "a worker at work")
    assert state["workers"]["running"] == 1
    assert state["waited"][0] < 5
    began = time.monotonic()
    killed.process.kill()
    view.says("2 consumers, 3 workers known")
    assert time.monotonic() - began < SOON
    frozen.signal(signal.SIGSTOP)
    view.until(lambda state: state["workers"]["by_state"].get("silent") == 2, "two silent workers")
    frozen.signal(signal.SIGCONT)
    view.until(lambda state: state["workers"]["by_state"].get("silent") == 1, "only the killed one silent")
    breakable.broker.restart()
    view.until(lambda state: state["source"]["connected"] and state["workers"]["consuming"] >= 2, "all of it again", 30)
    view.until(lambda state: state["queues"]["consumers"] == 2, "both consumers", 30)


# The web


def test_only_this_machine_is_answered_by_its_own_names(bench: Bench) -> None:
    view = View(bench)
    assert view.ask("/", host="localhost:1")[0] == 200
    for path in ("/", "/events", "/metrics", "/page.js"):
        status, headers, _ = view.ask(path, host="evil.example")
        assert status == 421
        assert "Access-Control-Allow-Origin" not in headers
    with pytest.raises(ConnectionRefusedError):  # another address of this machine
        socket.create_connection(("127.0.0.2", view.port), 5)


def test_a_page_needs_nothing_from_elsewhere(bench: Bench) -> None:
    view = View(bench)
    status, headers, page = view.ask("/")
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    linked = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(linked) >= 4
    for path in linked:
        status, _, text = view.ask(path)
        assert status == 200
        assert not re.search(r"https?://(?!www\.w3\.org/(?:2000|1999)/)", text), path
    assert view.ask("/no")[0] == 404
    assert view.ask("/", method="HEAD")[2] == ""


def test_so_many_pages_and_no_more_and_a_slow_one_holds_up_nobody(bench: Bench) -> None:
    view = View(bench)
    pages = [view.follow() for _ in range(MOST_PAGES - 1)]  # none of them reads
    try:
        until(lambda: not view.opens(), "a refusal")
        assert view.ask("/metrics")[0] == 200
        assert view.state()
    finally:
        for page in pages:
            page.close()
    until(lambda: view.opens(), "room for a page", 20)


def test_at_most_ten_updates_a_second(bench: Bench) -> None:
    view = View(bench)
    with crew(bench, 3), view.follow() as link, link.makefile("rb") as lines:
        began, count = time.monotonic(), 0
        for line in lines:
            count += line.startswith(b"data: ")
            if time.monotonic() - began > 2:
                break
    assert 1 < count <= 21


def test_a_port_that_is_taken_is_named(bench: Bench) -> None:
    view = View(bench)
    done = call(bench, "--web", str(view.port))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"watch.py: --web {view.port}: Address already in use"]


# Recordings


def test_a_recording_holds_the_events_as_they_were_and_shows_the_same_again(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    view = View(bench, "--record", str(file))
    with crew(bench, 2) as made:
        view.until(lambda state: state["workers"]["known"] == state["queues"]["consumers"] == 2, "the workers")
        sent = [made.workers[0].begin("One\u2028more"), made.workers[0].finish()]
        for event in sent:
            made.workers[0].publish(event)
        view.until(lambda state: state["recent"], "what happened")
        view.program.signal(signal.SIGINT)  # while both consumers are there: the last page says so
        assert view.program.wait() == 0
    header, *lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert header["recording"] == 1
    assert header["queue"] == bench.queue
    assert header["broker"].startswith("RabbitMQ ")
    assert [line for line in lines if line["event"].startswith("task_")] == sent
    assert any(line["event"] == "queue_counted" and line["consumers"] == 2 for line in lines)
    done = call(bench, "--replay", str(file), "--once")
    assert done.returncode == 0, done.stderr
    assert "replay" in done.stdout
    assert bench.queue in done.stdout
    assert "2 consumers" in done.stdout
    assert "done One" in done.stdout
    replayed = View(bench, "--replay", str(file), "--speed", "100")
    state = replayed.until(lambda state: state["recent"], "what happened")
    assert state["recent"][0]["task"] == "One\u2028more"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replay", "/no/such/file"], "watch.py: /no/such/file: No such file or directory"),
        (["--replay", str(ROOT / "README.md")], "README.md: no recording: there is no event in it"),
        (["--record", "/no/such/folder/run"], "watch.py: /no/such/folder/run: No such file or directory"),
        (["--speed", "2"], "--speed goes with --replay"),
        (["--web", "70000"], "'70000' is not a port from 0 to 65535"),
        (["--queue", ""], "watch.py: --queue='': must be a queue name"),
    ],
)
def test_wrong_use_is_explained(bench: Bench, arguments: list[str], words: str) -> None:
    done = call(bench, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# How it ends


def test_a_look_without_a_broker_ends_with_one_line(bench: Bench) -> None:
    done = call(bench, "--once", RABBITMQ_URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_wrong_credentials_end_it(bench: Bench) -> None:
    url = re.sub("//.*?@", "//guest:wrong@", bench.url)
    done = call(bench, "--web", "0", RABBITMQ_URL=url)
    assert done.returncode == 3
    assert "refused the user name or the password" in done.stderr


def test_without_rich_there_is_one_line(bench: Bench) -> None:
    without = "import runpy, sys; sys.modules['rich'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", without, str(ROOT / SCRIPT), "--once"]
    done = subprocess.run(command, env=bench.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "watch.py: rich is not installed: pip install -r requirements.txt, or scripts/demo.sh\n"


@pytest.mark.parametrize("arguments", [["--once"], []])
def test_a_reader_that_goes_away_is_no_traceback(bench: Bench, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = bench.launch(SCRIPT, arguments, {}, stdout=writing)
    os.close(writing)
    assert program.wait() == 1
    assert program.stderr == ""


def test_without_a_terminal_it_writes_a_line_a_second(bench: Bench) -> None:
    program = bench.start(SCRIPT)
    until(lambda: len(program.stdout.splitlines()) >= 2, "two lines")
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert f"there is no queue {bench.queue}" in program.stdout
    assert program.stderr == ""


ENTERS, LEAVES = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_gives_the_terminal_back_as_it_was(bench: Bench, number: signal.Signals) -> None:
    master, slave = pty.openpty()
    with crew(bench, 1):
        program = bench.launch(SCRIPT, [], {"TERM": "xterm-256color"}, stdin=slave, stdout=slave)
        os.close(slave)
        drawn = bytearray()

        def shows(words: bytes) -> bool:
            drawn.extend(os.read(master, 65536))
            return words in drawn

        until(lambda: shows(b"Worker-0"), "the page")
        program.signal(number)
        with suppress(OSError):  # the other end is closed
            until(lambda: shows(b"never"), "its end", 20)
    assert program.wait() == 0
    os.close(master)
    assert drawn.index(ENTERS) < drawn.index(b"Worker-0") < drawn.rindex(LEAVES)
    assert drawn.rindex(b"\x1b[?25h") > drawn.rindex(b"\x1b[?25l")  # the cursor is back
    assert program.stderr == ""


# What it costs


@pytest.mark.alone
def test_two_hundred_workers_and_five_thousand_tasks_a_second_are_watched_for_little(bench: Bench) -> None:
    crowd = bench.start("tests/fake_workers.py", "200", "5000")
    view = View(bench)
    view.until(lambda state: state["workers"]["known"] == 200, "the workers", 30)
    watcher = psutil.Process(view.program.process.pid)
    time.sleep(3)  # it has found its pace
    before, began, memory = sum(watcher.cpu_times()[:2]), time.monotonic(), watcher.memory_info().rss
    time.sleep(10)
    share = (sum(watcher.cpu_times()[:2]) - before) / (time.monotonic() - began)
    state = view.state()
    assert state["rate"][0] > 2500, crowd.describe()
    assert share < 0.05, share
    assert watcher.memory_info().rss - memory < 3_000_000
