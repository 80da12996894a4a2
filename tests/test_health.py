"""HEALTH_FILE, and deploy/health.py, which reads it for a supervisor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lab.forwarder import Forwarder
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench

from workqueue.hands import Hands
from workqueue.health import Health

PROBE = [sys.executable, "-W", "error", str(ROOT / "deploy/health.py")]


def probe(file: Path, *flags: str) -> tuple[int, str]:
    """The exit code of a probe, and what it says."""
    environment = {"HEALTH_FILE": str(file), "PATH": ""}
    done = subprocess.run([*PROBE, *flags], env=environment, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stderr + done.stdout


def becomes_unhealthy(file: Path, *flags: str) -> str:
    def said() -> str:
        code, line = probe(file, *flags)
        return line if code == 1 else ""

    return until(said, f"{flags} to be unhealthy")


def at(file: Path) -> float:
    return float(json.loads(file.read_text())["at"])


def goes_on(file: Path) -> None:
    """Waits until the worker has written it twice more."""
    before = at(file)
    until(lambda: at(file) > before + 1.5, "the worker to go on")


def test_a_long_task_is_healthy_unless_a_limit_is_set(bench: Bench) -> None:
    file = bench.folder / "health"
    worker = bench.worker("--id", "W-1", HEALTH_FILE=str(file))
    until(lambda: probe(file, "--connected") == (0, ""), "a healthy worker")
    bench.send("--task", "x", "--difficulty", "600")
    worker.wait_for("task_started")
    said = becomes_unhealthy(file, "--task-older-than", "1")
    assert said.startswith("W-1 has run one task for ")
    goes_on(file)
    assert probe(file, "--older-than", "10", "--connected") == (0, "")
    worker.signal(signal.SIGSTOP)
    assert becomes_unhealthy(file, "--older-than", "1").startswith("W-1 has not moved for ")
    assert worker.stderr == ""


def test_without_a_broker_it_is_alive_and_not_connected(breakable: Bench, link: Forwarder) -> None:
    file = breakable.folder / "health"
    quick = {"HEARTBEAT_SECONDS": "1", "CONNECT_TIMEOUT_SECONDS": "2"}
    worker = breakable.worker("--id", "W-1", HEALTH_FILE=str(file), **quick)
    breakable.send("--task", "x", "--difficulty", "600")  # it takes no other meanwhile, and is connected all the same
    worker.wait_for("task_started")
    until(lambda: probe(file, "--connected") == (0, ""), "a connected worker")
    link.stall()
    assert becomes_unhealthy(file, "--connected").startswith("W-1 has had no broker for ")
    goes_on(file)
    assert probe(file, "--older-than", "10") == (0, "")
    link.flow()
    until(lambda: probe(file, "--connected") == (0, ""), "a worker that is connected again")


def test_a_broker_that_does_not_answer_leaves_it_alive(bench: Bench) -> None:
    """It waits for it on its main thread, for as long as it was told to."""
    file = bench.folder / "health"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/"
        worker = bench.start("worker.py", HEALTH_FILE=str(file), RABBITMQ_URL=url, CONNECT_TIMEOUT_SECONDS="600")
        silent.accept()[0].detach()  # it is connected, and gets no answer
        until(file.exists, "the file")
        goes_on(file)
        assert probe(file)[0] == 0
        assert probe(file, "--connected")[0] == 1
    assert worker.process.poll() is None


def test_a_file_that_cannot_be_written_is_told_once_and_ends_nothing(bench: Bench) -> None:
    folder = bench.folder / "there"
    folder.mkdir()
    file = folder / "health"
    worker = bench.worker(HEALTH_FILE=str(file), SECONDS_PER_DIFFICULTY="1")
    until(file.exists, "the file")
    shutil.rmtree(folder)
    until(lambda: "cannot write HEALTH_FILE" in worker.stderr, "a line about it")
    bench.send("--task", "x", "--difficulty", "2.5")
    worker.wait_for("task_completed")
    assert worker.stderr.count("\n") == 1
    folder.mkdir()
    until(lambda: file.exists() and probe(file, "--connected") == (0, ""), "the file again")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_only_the_main_thread_counts(tmp_path: Path) -> None:
    """Another one that waits for the broker goes on also when the main thread is stuck."""
    file = tmp_path / "health"
    health = Health(str(file), "W-1", Hands(1, 15, lambda delivery: None), print)
    other = threading.Thread(target=health.beat)
    other.start()
    other.join()
    assert not file.exists()
    health.beat()
    assert file.exists()
    assert os.listdir(tmp_path) == ["health"]


def test_it_is_written_once_a_second_at_most(tmp_path: Path) -> None:
    file = tmp_path / "health"
    health = Health(str(file), "W-1", Hands(1, 15, lambda delivery: None), print)
    for _ in range(1000):
        health.beat()
    first = file.stat().st_ino
    health.beat()
    assert file.stat().st_ino == first
    assert time.monotonic() - at(file) < 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no "),
        ("", " cannot be read as a worker's HEALTH_FILE"),
        ('{"worker": "W-1"}', " cannot be read as a worker's HEALTH_FILE"),
        ("[]", " cannot be read as a worker's HEALTH_FILE"),
        ('{"worker": "W-1", "at": 1e12, "connected": true, "since": 0, "task_since": null}', "before this machine"),
    ],
)
def test_what_is_no_sign_of_life_is_unhealthy(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "health"
    if content is not None:
        file.write_text(content)
    code, line = probe(file)
    assert code == 1
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--older-than", "0"], ["--older-than", "soon"], ["--task-older-than", "nan"], ["-x"]]
)
def test_wrong_use_of_the_probe_is_told_apart(flags: list[str], tmp_path: Path) -> None:
    assert probe(tmp_path / "health", *flags)[0] == 2
