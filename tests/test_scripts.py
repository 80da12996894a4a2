"""The scripts that people call, run as they call them."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lab.nodes import ROOT, Broker, free_port
from lab.waiting import until
from programs import Bench, copy_project


def run(command: str, environment: dict[str, str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def queues(environment: dict[str, str]) -> dict[str, list[str]]:
    """What `broker.sh queues` prints: ready, unacknowledged and consumers of each queue, in its order."""
    lines = run("./scripts/broker.sh queues", environment).stdout.splitlines()
    assert len({len(line) for line in lines}) == 1, lines  # aligned
    return {name: counts for name, *counts in map(str.split, lines[1:])}


def remove_volume(port: int, environment: dict[str, str]) -> None:
    """What Compose keeps of a broker that `broker.sh` started at `port`, if it was Compose."""
    checksum = run(f"printf %s {ROOT} | cksum | cut -d ' ' -f 1", environment).stdout.strip()
    run(f"docker volume rm work-queue-{port}-{checksum}_rabbitmq", environment)


def test_the_demo_shows_three_workers_sharing_eight_tasks(breakable: Bench) -> None:
    started = time.monotonic()
    result = run("./scripts/demo.sh", breakable.environment(SECONDS_PER_DIFFICULTY="1.0"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.monotonic() - started < 25
    assert len(re.findall(r"^   \[Worker-\d\] ✅ Task completed! \(id: \d\)$", result.stdout, re.MULTILINE)) == 8
    shares = re.findall(r"^  Worker-\d: (\d) tasks, of difficulty (\d+) in all$", result.stdout, re.MULTILINE)
    assert sum(int(tasks) for tasks, _ in shares) == 8
    assert sum(int(difficulty) for _, difficulty in shares) == 19
    assert len(shares) == 3
    assert all(int(tasks) for tasks, _ in shares)
    assert "8 tasks sent, 8 confirmed" in result.stdout
    assert "demo." not in breakable.broker.ctl("list_queues", "name")
    assert result.stdout.endswith("whoever was free took the next.\n")


def test_an_environment_that_was_interrupted_in_the_making_is_mended(bench: Bench, tmp_path: Path) -> None:
    copy_project(tmp_path / "clone")
    for moment in (0.3, 0.9, 1.5):
        script = subprocess.Popen(
            [tmp_path / "clone/scripts/broker.sh", "status"],
            env=bench.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            script.wait(moment)
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGTERM)
        script.wait()
    result = run(f"{tmp_path}/clone/scripts/broker.sh status", bench.environment())
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "clone/.venv/bin/activate").exists()


def test_the_demo_cleans_up_when_it_is_interrupted(breakable: Bench) -> None:
    demo = breakable.launch("scripts/demo.sh", [], {"LOG_FORMAT": "text"})
    until(lambda: "Received task" in demo.stdout, "the demo to run")
    demo.signal(signal.SIGTERM)
    assert demo.wait() == 130
    assert "demo." not in breakable.broker.ctl("list_queues", "name")
    assert breakable.broker.ctl("list_consumers", "consumer_tag").count("Worker-1") == 0


def test_workers_run_side_by_side_and_stop_gracefully(bench: Bench) -> None:
    workers = bench.launch("scripts/workers.sh", ["5"], {"SECONDS_PER_DIFFICULTY": "1"})
    workers.wait_for("worker_ready", 5)
    bench.send("--count", "5", "--max-difficulty", "1", "--quiet")
    workers.wait_for("task_started", 5)
    workers.signal(signal.SIGTERM)
    assert workers.wait() == 0
    assert len(workers.events("task_completed")) == 5
    assert len(workers.events("worker_stopped")) == 5


def test_control_c_in_a_terminal_stops_the_workers_once(bench: Bench) -> None:
    """The terminal sends Ctrl-C to the whole group: each worker must see it once, or it would stop at once."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = bench.environment(SECONDS_PER_DIFFICULTY="1")
        os.execve(str(ROOT / "scripts/workers.sh"), ["workers.sh", "3"], environment)
    try:
        output = b""

        def read_until(pattern: bytes, count: int) -> None:
            nonlocal output
            while output.count(pattern) < count:
                assert select.select([terminal], [], [], 15)[0], output
                output += os.read(terminal, 10_000)

        read_until(b"worker_ready", 3)
        bench.send("--count", "3", "--max-difficulty", "1", "--quiet")
        read_until(b"task_started", 3)
        os.write(terminal, b"\x03")
        read_until(b"worker_stopped", 3)
        assert output.count(b"task_completed") == 3
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


@pytest.mark.parametrize(
    "command",
    [
        "workers.sh",
        "workers.sh 0",
        "workers.sh x",
        "demo.sh 0",
        "demo.sh 1 2",
        "demo.sh x",
        "broker.sh",
        "broker.sh fly",
        "broker.sh ctl",
        "broker.sh up --nodes 0",
        "broker.sh down now",
        "lock.sh x",
        "check_compose.sh x",
    ],
)
def test_wrong_use_is_explained(bench: Bench, command: str) -> None:
    result = run(f"./scripts/{command}", bench.environment())
    assert result.returncode == 2
    assert "usage: " in result.stderr


def test_a_broker_that_answers_is_used_and_never_stopped(bench: Bench) -> None:
    for command, words in (("up", "answers"), ("status", "not started by this script"), ("down", "nothing to stop")):
        result = run(f"./scripts/broker.sh {command}", bench.environment())
        assert result.returncode == 0
        assert words in result.stdout
        assert ":***@" in result.stdout
    for command in ("restart", "logs", "ctl list_users"):
        result = run(f"./scripts/broker.sh {command}", bench.environment())
        assert result.returncode == 2
        assert "not started by this script" in result.stderr
    result = run("./scripts/broker.sh up --nodes 3", bench.environment())
    assert result.returncode == 3
    assert "cannot become 3 nodes" in result.stderr
    assert bench.broker.answers()


def test_queues_of_a_broker_that_was_started_elsewhere(bench: Bench) -> None:
    result = run("./scripts/broker.sh queues", bench.environment())
    assert result.stdout == f"There is no queue {bench.queue} yet: sender.py and worker.py declare it\n"
    bench.send("--count", "2", "--max-difficulty", "0", "--quiet")
    result = run("./scripts/broker.sh queues", bench.environment())
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["queue", "ready", "unacknowledged", "consumers"]
    assert [bench.queue, "2", "?", "0"] in rows
    assert "rabbitmqctl alone" in result.stdout
    result = run("./scripts/broker.sh queues", bench.environment(RABBITMQ_URL=f"amqp://127.0.0.1:{free_port()}/"))
    assert result.returncode == 3
    assert "Traceback" not in result.stderr


def test_a_broker_elsewhere_is_not_started(bench: Bench) -> None:
    result = run("./scripts/broker.sh up", bench.environment(RABBITMQ_URL="amqp://broker.invalid/"))
    assert result.returncode == 3
    assert "only a broker on this machine can be started" in result.stderr


def test_a_file_with_the_number_of_another_process_does_not_stop_that(bench: Bench, tmp_path: Path) -> None:
    """What a crash of the machine leaves behind."""
    port = free_port()
    (tmp_path / str(port)).mkdir()
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (tmp_path / str(port) / "kind").write_text("node\n")
        for name in ("pid", "group"):
            (tmp_path / str(port) / f"{port}.{name}").write_text(f"{bystander.pid}\n")
        (tmp_path / str(port) / f"{port}.lock").touch()
        (tmp_path / str(port) / "ports").write_text(f"epmd_port={free_port()}\ndist_ports={free_port()}\n")
        environment = bench.environment(RABBITMQ_URL=f"amqp://127.0.0.1:{port}/", BROKER_DIR=str(tmp_path))
        assert run("./scripts/broker.sh down", environment).returncode == 0
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(0.5)
    finally:
        bystander.kill()
        bystander.wait()


def test_closing_the_terminal_stops_the_workers(bench: Bench) -> None:
    workers = bench.launch("scripts/workers.sh", ["2"], {})
    workers.wait_for("worker_ready", 2)
    workers.signal(signal.SIGHUP)
    assert workers.wait() == 0
    assert len(workers.events("worker_stopped")) == 2


def test_a_started_broker_keeps_its_data_and_leaves_nothing_running(tmp_path: Path, breakable_broker: Broker) -> None:
    """Of the kind that this machine has: a private node, or a container."""
    port, management_port = free_port(), free_port()
    environment = {
        **os.environ,
        "RABBITMQ_URL": f"amqp://me:s3cret@127.0.0.1:{port}/mine",
        "TASK_QUEUE": "kept",
        "SECONDS_PER_DIFFICULTY": "60",
        "BROKER_DIR": str(tmp_path),
        "BROKER_KIND": "docker" if breakable_broker.kind == "container" else "node",
        "RABBITMQ_MANAGEMENT_PORT": str(management_port),
    }
    sender, worker = (f"{sys.executable} {name}" for name in ("sender.py --task x --difficulty 0", "worker.py --burst"))
    try:
        for command in ("up", "up", "status", "restart"):
            result = run(f"./scripts/broker.sh {command}", environment)
            assert result.returncode == 0, result.stderr
            assert "s3cret" not in result.stdout + result.stderr
        with socket.create_server(("127.0.0.2", port)):
            pass  # would fail if the broker listened on more than 127.0.0.1
        assert "1 confirmed" in run(sender, environment).stdout
        assert queues(environment) == {"kept": ["1", "0", "0"]}
        assert "me" in run("./scripts/broker.sh ctl list_users", environment).stdout
        assert run("./scripts/broker.sh ctl no_such_command", environment).returncode == 64
        assert run("./scripts/broker.sh down", environment).returncode == 0
        assert run("./scripts/broker.sh status", environment).returncode == 3
        assert run("./scripts/broker.sh up", environment).returncode == 0
        assert "tasks completed: 1" in run(worker, environment).stdout
        counts = queues(environment)
        assert list(counts) == ["kept", "kept.retry.1s", "kept.retry.5s", "kept.retry.30s", "kept.dead"]
        assert set(map(tuple, counts.values())) == {("0", "0", "0")}
        busy = subprocess.Popen([sys.executable, "worker.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            run(f"{sys.executable} sender.py --count 3 --quiet", environment)
            until(lambda: queues(environment)["kept"] == ["2", "1", "1"], "the worker to hold one task", 60)
        finally:
            busy.kill()
            busy.wait()
    finally:
        run("./scripts/broker.sh down", environment)
        remove_volume(port, environment)
    ports_file = tmp_path / str(port) / "ports"
    ports = [
        port,
        *(int(number) for number in re.findall(r"\d+", ports_file.read_text() if ports_file.exists() else "")),
    ]
    assert len(ports) == (1 if breakable_broker.kind == "container" else 3)
    for left_over in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", left_over))


def test_a_broker_that_does_not_come_up_is_explained(tmp_path: Path, breakable_broker: Broker) -> None:
    kind = "docker" if breakable_broker.kind == "container" else "node"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        environment = {**os.environ, "BROKER_KIND": kind, "BROKER_DIR": str(tmp_path)}
        port = taken.getsockname()[1]
        environment["RABBITMQ_URL"] = f"amqp://guest:guest@127.0.0.1:{port}/"
        result = run("./scripts/broker.sh up", environment)
    remove_volume(port, environment)
    words = {"node": "RabbitMQ did not come up; its log is in", "docker": "Docker Compose could not start it"}
    assert result.returncode == 3, result.stderr
    assert words[kind] in result.stderr
    assert not list(tmp_path.glob("*/kind"))


def test_a_port_that_is_taken_for_a_moment_is_no_lasting_harm(tmp_path: Path, breakable_broker: Broker) -> None:
    """A node is started once more by itself; Compose says at once what is wrong, and the next `up` works."""
    kind = "docker" if breakable_broker.kind == "container" else "node"
    port = free_port()
    environment = {**os.environ, "BROKER_KIND": kind, "BROKER_DIR": str(tmp_path)}
    environment["RABBITMQ_URL"] = f"amqp://guest:guest@127.0.0.1:{port}/"
    log = tmp_path / str(port) / f"{port}.log"
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            first = subprocess.Popen(
                ["./scripts/broker.sh", "up"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
            )
            if kind == "docker":
                assert first.wait(60) == 3
            else:
                until(lambda: log.exists() and "eaddrinuse" in log.read_text(), "the node to meet the taken port", 60)
        if kind == "docker":
            assert run("./scripts/broker.sh up", environment).returncode == 0
        else:
            assert first.wait(60) == 0
    finally:
        run("./scripts/broker.sh down", environment)
        remove_volume(port, environment)
