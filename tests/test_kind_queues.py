"""Queues as others have made them: by the defaults of a virtual host, by a policy, by an operator's own hand.

What we declare is what we mean; what passes is waited for, what does not is said rightly; looking costs nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dead_letters
import programs
import pytest
from lab.forwarder import Forwarder
from lab.nodes import ROOT, Broker, Cluster
from lab.waiting import until
from pika import BasicProperties
from programs import Bench, Program, copy_project

EXISTING = {"QUEUE_TYPE": "existing"}
Arguments = dict[str, Any]


def make(bench: Bench, work: Arguments | None, rest: Arguments | None = None) -> None:
    """The queues as an operator makes them."""
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, durable=True, arguments=work)
        for queue in (bench.dead, *retry_queues(bench)):
            channel.queue_declare(queue, durable=True, arguments=rest)


def retry_queues(bench: Bench) -> list[str]:
    return [f"{bench.queue}.retry.{delay}s" for delay in ("0.2", "0.4")]


def put(bench: Bench, count: int, queue: str = "", **task: Any) -> None:
    messages = []
    for number in range(1, count + 1):
        body = json.dumps({"id": number, "task": "x", "difficulty": 0, **task}).encode()
        messages.append((body, BasicProperties(message_id=f"m-{number}", delivery_mode=2)))
    with bench.broker.channel() as channel:
        programs.put(channel, queue or bench.queue, messages)


def recording(bench: Bench, *arguments: str, **settings: str) -> Program:
    return bench.start("tests/handlers_queues.py", "record", *arguments, **settings)


def ran(bench: Bench) -> Counter[int]:
    path = bench.folder / "ran"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def run(bench: Bench, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "scripts" / script, *arguments],
        env=bench.environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The defaults of a virtual host


@contextmanager
def virtual_host(bench: Bench, default: str) -> Iterator[None]:
    """The bench in a virtual host of its own, where a queue without arguments is of another type."""
    name = f"default-{uuid.uuid4().hex[:8]}"
    bench.broker.ctl("add_vhost", name, "--default-queue-type", default)
    bench.broker.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    outer, bench.broker, bench.url = bench.broker, Broker(bench.broker.url + name, "url"), bench.broker.url + name
    try:
        yield
    finally:
        bench.broker, bench.url = outer, outer.url
        outer.ctl("delete_vhost", name)


@pytest.mark.parametrize("default", ["quorum", "stream"])
def test_what_a_virtual_host_makes_of_a_foreign_declaration_is_noticed(breakable: Bench, default: str) -> None:
    with virtual_host(breakable, default):
        with breakable.broker.channel() as channel:
            channel.queue_declare(breakable.queue, durable=True)
        for program in (breakable.start("sender.py"), breakable.start("worker.py")):
            assert program.wait() == 2, program.describe()
            assert f"'x-queue-type' (received 'classic' but current is '{default}')" in program.stderr
        looked = run(breakable, "dead_letters.py", "list")
        assert (looked.returncode, looked.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("default", ["quorum", "stream"])
def test_a_classic_set_up_is_classic_in_any_virtual_host(breakable: Bench, default: str) -> None:
    with virtual_host(breakable, default):
        put_aside = breakable.handling("reject")
        breakable.send("--task", "x", "--difficulty", "0")
        put_aside.wait_for("task_dead")
        with breakable.broker.channel() as channel:  # refused where it is of another type
            for queue in (breakable.queue, breakable.dead):
                channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic"})


# Looking


DEAD_QUEUES: dict[str, tuple[str, Arguments | None, dict[str, int]]] = {
    "classic": ("classic", None, {}),
    "quorum": ("quorum", None, {}),
    "quorum, a policy": ("quorum", None, {"delivery-limit": 2}),
    "classic of an operator": ("existing", {"x-queue-type": "classic"}, {}),
    "quorum of an operator": ("existing", {"x-queue-type": "quorum"}, {}),
    "quorum of an operator, limit 3": ("existing", {"x-queue-type": "quorum", "x-delivery-limit": 3}, {}),
    "quorum of an operator, limit 1": ("existing", {"x-queue-type": "quorum", "x-delivery-limit": 1}, {}),
}


@pytest.fixture(params=DEAD_QUEUES)
def looked_at(request: pytest.FixtureRequest, breakable: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench with three dead tasks, and dead_letters.py can be called in this process."""
    queue_type, arguments, policy = DEAD_QUEUES[request.param]
    if policy:
        breakable.broker.ctl("set_policy", breakable.queue, f"^{breakable.queue}", json.dumps(policy))
    for name, value in breakable.environment(QUEUE_TYPE=queue_type).items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    if queue_type == "existing":
        make(breakable, None, arguments)
    else:
        assert dead_letters.main(["list"]) == 0
    put(breakable, 3, breakable.dead)
    yield breakable
    signal.signal(signal.SIGTERM, before)
    if policy:
        breakable.broker.ctl("clear_policy", breakable.queue)


def dead_ids(bench: Bench) -> list[int]:
    until(lambda: bench.ready(bench.dead) >= 3, "all of them to be back")
    return [json.loads(body)["id"] for _, body in bench.take_all(bench.dead)]


def test_looking_never_loses_or_moves_a_task(looked_at: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    calls = ((["list"], 0), (["show", "m-2"], 0), (["show", "m-9"], 1), (["replay", "--id", "m-9"], 1))
    for number in range(50):
        call, code = calls[number % 4]
        until(lambda: looked_at.ready(looked_at.dead) == 3, "all of them to be back")
        assert dead_letters.main(call) == code, capfd.readouterr().err
    assert dead_ids(looked_at) == [1, 2, 3]


def test_a_replay_that_the_work_queue_refuses_costs_nothing(
    looked_at: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUEUE_TYPE", "existing")
    with looked_at.broker.channel() as channel:
        channel.queue_delete(looked_at.queue)
    for _ in range(25):
        until(lambda: looked_at.ready(looked_at.dead) == 3, "all of them to be back")
        assert dead_letters.main(["replay", "--all"]) == 1
        assert "it stays dead" in capfd.readouterr().err
    assert Counter(dead_ids(looked_at)) == Counter((1, 2, 3))


def test_a_task_that_was_looked_at_is_replayed_as_it_was(looked_at: Bench) -> None:
    for _ in range(3):
        assert dead_letters.main(["list"]) == 0
        until(lambda: looked_at.ready(looked_at.dead) == 3, "all of them to be back")
    assert dead_letters.main(["replay", "--id", "@2"]) == 0
    ((properties, body),) = looked_at.take_all()
    assert (json.loads(body)["id"], properties.message_id) == (2, "m-2")
    assert properties.headers
    assert properties.headers["x-replays"] == 1


@pytest.mark.parametrize("moment", [1, 20])
@pytest.mark.parametrize("command", [["list"], ["replay", "--all"]])
def test_killed_in_the_middle_on_an_operators_queue(bench: Bench, command: list[str], moment: int) -> None:
    """Where copies are put back, too: a task is in both places at most, never in none."""
    make(bench, None, {"x-queue-type": "quorum", "x-delivery-limit": 3})
    put(bench, 60, bench.dead)
    run(bench, "dead_letters.py", "list", **EXISTING)  # from now on looking puts copies back
    for _ in range(2):
        until(lambda: bench.ready(bench.dead) + bench.ready() >= 60, "all to be in one of the queues")
        program = bench.launch("scripts/dead_letters.py", command, EXISTING)
        until(lambda: program.stdout.count("m-" if command == ["list"] else "Replayed") >= moment, "the middle")  # noqa: B023
        program.signal(signal.SIGKILL)
        program.wait()
    until(lambda: bench.ready(bench.dead) + bench.ready() >= 60, "all to be in one of the queues")
    found = Counter(json.loads(body)["id"] for queue in (bench.queue, bench.dead) for _, body in bench.take_all(queue))
    assert set(found) == set(range(1, 61))
    assert sum(found.values()) <= 62


# QUEUE_TYPE=existing: every kind of queue


KINDS: dict[str, Arguments] = {
    "classic": {"x-queue-type": "classic"},
    "quorum": {"x-queue-type": "quorum"},
    "quorum with a limit": {"x-queue-type": "quorum", "x-delivery-limit": 3},
    "priorities": {"x-max-priority": 5},
    "bounded": {"x-max-length": 100, "x-overflow": "reject-publish"},
    "single active consumer": {"x-single-active-consumer": True},
    "quorum, single active consumer": {"x-queue-type": "quorum", "x-single-active-consumer": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_queue_is_worked_on_to_its_end(bench: Bench, kind: str) -> None:
    make(bench, KINDS[kind])
    assert bench.send("--count", "20", "--max-difficulty", "0", "--quiet", **EXISTING).endswith("20 confirmed\n")
    workers = [recording(bench, "--burst", **EXISTING) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0], workers[0].describe() + workers[1].describe()
    assert ran(bench) == Counter(range(1, 21))
    assert bench.ready() == 0


@pytest.mark.parametrize("kind", ["single active consumer", "quorum, single active consumer"])
def test_a_worker_of_a_single_active_consumer_survives_a_lost_link(
    breakable: Bench, link: Forwarder, kind: str
) -> None:
    """A running task cannot be asked for in such a queue: it comes by itself."""
    make(breakable, KINDS[kind])
    worker = recording(breakable, **EXISTING)
    worker.wait_for("worker_ready")
    put(breakable, 2, difficulty=1)
    worker.wait_for("task_started")
    link.reset()
    worker.wait_for("task_completed", 2)
    assert worker.process.poll() is None
    assert ran(breakable) == Counter((1, 2)), worker.describe()


@pytest.mark.parametrize("prefetch", ["0", "1"])
def test_a_stream_is_refused_by_its_name(bench: Bench, prefetch: str) -> None:
    """It would seem to be empty."""
    make(bench, {"x-queue-type": "stream"})
    worker = recording(bench, "--prefetch", prefetch, **EXISTING)
    assert worker.wait() == 2, worker.describe()
    assert f"queue '{bench.queue}' is a stream" in worker.stderr
    assert worker.stderr.count("\n") == 1


def test_a_dead_queue_that_is_a_stream_is_refused_by_its_name(bench: Bench) -> None:
    make(bench, None, {"x-queue-type": "stream"})
    put(bench, 1, bench.dead)
    until(lambda: bench.ready(bench.dead) == 1, "the stream to count it")
    looked = run(bench, "dead_letters.py", "list", **EXISTING)
    assert looked.returncode == 2
    assert f"queue '{bench.dead}' is a stream" in looked.stderr


# QUEUE_TYPE=existing: what is in the way


def test_another_exclusive_consumer_is_waited_for(bench: Bench) -> None:
    make(bench, None)
    with bench.broker.channel() as channel:
        channel.basic_consume(bench.queue, lambda *_: None, exclusive=True)
        worker = recording(bench, **EXISTING)
        until(lambda: "another consumer has the queue for itself" in worker.stderr, "the reason")
    put(bench, 1)
    worker.wait_for("task_completed")


def test_an_exclusive_queue_is_waited_for_while_it_exists(bench: Bench) -> None:
    with bench.broker.channel() as channel:
        channel.queue_declare(bench.queue, exclusive=True)
        worker = recording(bench, **EXISTING)
        until(lambda: "another connection has the queue for itself" in worker.stderr, "the reason")
    assert worker.wait() == 2
    assert "make it, or set QUEUE_TYPE=classic" in worker.stderr


@pytest.mark.parametrize(("name", "missing"), [("fail", "retry.0.2s"), ("reject", "dead")])
def test_a_missing_queue_is_named_and_the_task_kept(bench: Bench, name: str, missing: str) -> None:
    make(bench, None)
    with bench.broker.channel() as channel:
        channel.queue_delete(f"{bench.queue}.{missing}")
    put(bench, 1, task=name)
    worker = recording(bench, **EXISTING)
    assert worker.wait() == 2, worker.describe()
    assert f"no queue '{bench.queue}.{missing}' in vhost '/': make it" in worker.stderr
    until(lambda: bench.ready() == 1, "the task to be back")
    assert ran(bench) == Counter([1])


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_retry_queue_of_an_earlier_version_is_named_with_the_ways_out(bench: Bench, queue_type: str) -> None:
    old = {"x-message-ttl": 200, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": bench.queue}
    with bench.broker.channel() as channel:
        channel.queue_declare(retry_queues(bench)[0], durable=True, arguments=old)
    worker = recording(bench, QUEUE_TYPE=queue_type)
    assert worker.wait() == 2
    for words in (retry_queues(bench)[0], "earlier version", "delete it when it is empty", "RETRY_DELAYS"):
        assert words in worker.stderr
    assert worker.stderr.count("\n") == 1


# Permissions


@contextmanager
def user(bench: Bench, **permissions: str) -> Iterator[str]:
    """The URL of a user who may do what `permissions` say, and all else."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    allowed = {"configure": ".*", "write": ".*", "read": ".*", **permissions}
    bench.broker.ctl("add_user", name, "pw")
    bench.broker.ctl("set_permissions", name, *allowed.values())
    yield bench.broker.url.replace("guest:guest", f"{name}:pw")
    bench.broker.ctl("delete_user", name)


NOBODY = "^$"


@pytest.mark.parametrize(
    ("program", "queue_type", "denied", "advice"),
    [
        ("worker", "classic", "configure", True),
        ("worker", "existing", "read", False),
        ("worker", "existing", "write", False),
        ("worker", "classic", "write", False),
        ("sender", "classic", "configure", True),
        ("sender", "existing", "write", False),
        ("sender", "classic", "write", False),
    ],
)
def test_a_missing_permission_is_named(
    breakable: Bench, program: str, queue_type: str, denied: str, advice: bool
) -> None:
    recording(breakable, "--burst").wait()  # declares the queues
    put(breakable, 1, task="fail")
    with user(breakable, **{denied: NOBODY}) as url:
        settings = {"QUEUE_TYPE": queue_type, "RABBITMQ_URL": url}
        if program == "worker":
            started = recording(breakable, **settings)
        else:
            started = breakable.start("sender.py", "--task", "x", "--difficulty", "0", **settings)
        assert started.wait() == 3, started.describe()
        (line,) = [line for line in started.stderr.splitlines() if "grant the permission" in line]
        assert ("set QUEUE_TYPE=existing" in line) == advice, line
    if program == "worker":
        until(lambda: breakable.ready() == 1, "the task to be back")


@pytest.mark.parametrize(
    ("program", "queue_type", "denied"), [("worker", "existing", "configure"), ("sender", "classic", "read")]
)
def test_a_permission_that_is_not_needed_is_not_asked_for(
    breakable: Bench, program: str, queue_type: str, denied: str
) -> None:
    recording(breakable, "--burst").wait()
    with user(breakable, **{denied: NOBODY}) as url:
        settings = {"QUEUE_TYPE": queue_type, "RABBITMQ_URL": url}
        if program == "sender":
            breakable.send("--task", "x", "--difficulty", "0", **settings)
            return
        put(breakable, 1, task="fail")
        recording(breakable, **settings).wait_for("task_dead")
        assert ran(breakable) == Counter({1: 3})


# Nodes


def says_why(program: Program) -> bool:
    """RabbitMQ 4.3 may say nothing at all about a queue whose node is away, until it is back."""
    return "node is away" in program.stderr or "does not answer" in program.stderr


def test_a_queue_whose_node_is_away_is_waited_for(cluster: Bench) -> None:
    """By workers and senders of every set-up, and by what has to be put aside; in a moment all goes on by itself."""
    broker = cluster.broker
    assert isinstance(broker, Cluster)
    urls = broker.url.split(",")
    cluster.url = ",".join(urls[1:])  # the programs stay connected
    away, here = Broker(urls[0], ""), Broker(urls[1], "")
    classic = {"x-queue-type": "classic"}

    def declare(at: Broker, *queues: str) -> None:
        with at.channel() as channel:
            for queue in queues:
                channel.queue_declare(queue, durable=True, arguments=classic)

    other = f"{cluster.queue}-2"  # its work queue is here, its other queues go away
    declare(away, cluster.queue, f"{other}.dead", f"{other}.retry.0.2s", f"{other}.retry.0.4s")
    declare(here, other)
    broker.keep_queues()
    patient = {"CONNECT_TIMEOUT_SECONDS": "90"}
    one = ("--task", "x", "--difficulty", "0")
    workers = [recording(cluster, QUEUE_TYPE=kind) for kind in ("existing", "classic")]
    workers.append(recording(cluster, "--queue", other, **EXISTING))
    for worker in workers:
        worker.wait_for("worker_ready")
    broker.kill_node(node_of(broker, urls[0]))
    for kind in ("existing", "classic"):
        impatient = cluster.start("sender.py", *one, QUEUE_TYPE=kind, CONNECT_TIMEOUT_SECONDS="2")
        assert impatient.wait(30) in (1, 3), impatient.describe()
    assert says_why(impatient)
    senders = [cluster.start("sender.py", *one, **patient, QUEUE_TYPE=kind) for kind in ("existing", "classic")]
    for number, name in enumerate(("fail", "reject"), start=7):
        with here.channel() as channel:
            body = json.dumps({"id": number, "task": name, "difficulty": 0}).encode()
            programs.put(channel, other, [(body, BasicProperties(message_id=name))])
    until(lambda: all(says_why(workers[number]) for number in (0, 2)), "the reason", 30)
    broker.start()
    assert [sender.wait(90) for sender in senders] == [0, 0]
    until(lambda: sum(len(worker.events("task_completed")) for worker in workers) == 2, "both tasks", 60)
    workers[2].wait_for("task_dead", seconds=60)
    workers[2].wait_for("task_retried", seconds=60)
    assert [worker.process.poll() for worker in workers] == [None, None, None]
    assert all(worker.stderr.count("\n") < 60 for worker in workers), "tried without a pause"
    with broker.channel() as channel:
        for queue in (other, f"{other}.dead", f"{other}.retry.0.2s", f"{other}.retry.0.4s"):
            channel.queue_delete(queue)


def node_of(broker: Cluster, url: str) -> str:
    if broker.kind == "local":
        return f"rabbit-{url.rpartition(':')[2].strip('/')}@localhost"
    return f"rabbit@rabbit{broker.url.split(',').index(url) + 1}"


# Scripts


def test_help_deletes_nothing(bench: Bench) -> None:
    bench.send("--task", "x", "--difficulty", "0")
    for flag in ("-h", "--help"):
        shown = run(bench, "drop_queues.py", flag)
        assert (shown.returncode, "usage" in shown.stdout) == (0, True)
    assert run(bench, "drop_queues.py", "--all").returncode == 2
    assert bench.ready() == 1


def test_drop_queues_deletes_those_of_the_queue_that_is_named(bench: Bench) -> None:
    make(bench, None)
    assert run(bench, "drop_queues.py", TASK_QUEUE=f"{bench.queue}-2").returncode == 0
    put(bench, 1)
    dropped = run(bench, "drop_queues.py", "--queue", bench.queue, TASK_QUEUE=f"{bench.queue}-2")
    assert (dropped.returncode, dropped.stderr) == (0, "")
    worker = recording(bench, **EXISTING)
    assert worker.wait() == 2


@pytest.mark.parametrize("script", ["drop_queues.py", "dead_letters.py", "probe.py"])
@pytest.mark.parametrize(
    ("setting", "code"), [({"RETRY_DELAYS": "x"}, 2), ({"RABBITMQ_URL": "amqp://127.0.0.1:1/"}, 3)]
)
def test_what_a_script_cannot_do_is_one_line(bench: Bench, script: str, setting: dict[str, str], code: int) -> None:
    arguments = {"dead_letters.py": ["list"], "probe.py": ["answers", "0"]}.get(script, [])
    result = run(bench, script, *arguments, **setting)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") <= 1


SCRIPTS = {"dead_letters.py": ["--help"], "drop_queues.py": ["--help"], "chaos.py": ["--help"], "probe.py": ["url"]}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("through_link", [False, True])
def test_a_script_finds_the_environment_by_itself(tmp_path: Path, script: str, through_link: bool) -> None:
    """Called by a python that has none of our packages, as in a new terminal, from anywhere."""
    project = tmp_path / "project"
    copy_project(project)
    for path in (ROOT / "scripts/lab").glob("*.py"):
        (project / "scripts/lab").mkdir(exist_ok=True)
        shutil.copy(path, project / "scripts/lab")
    called = project / "scripts" / script
    if through_link:
        called = tmp_path / "link.py"
        called.symlink_to(project / "scripts" / script)

    def call() -> subprocess.CompletedProcess[str]:
        bare = [sys.executable, "-S", "-E", str(called), *SCRIPTS[script]]  # -S: no packages
        return subprocess.run(bare, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)

    without = call()
    assert (without.returncode, without.stderr.count("\n")) == (2, 1), without.stderr
    assert "pip install -r requirements.txt" in without.stderr
    (project / ".venv").symlink_to(sys.prefix)
    found = call()
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("count", [1, 2])
def test_purge_counts_as_people_do(bench: Bench, count: int) -> None:
    run(bench, "dead_letters.py", "list")
    put(bench, count, bench.dead)
    parent, child = os.openpty()
    purge = bench.launch("scripts/dead_letters.py", ["purge"], {}, stdin=child)
    os.close(child)
    until(lambda: "for good?" in purge.stdout, "the question")
    os.write(parent, b"n\n")
    assert purge.wait() == 1
    os.close(parent)
    assert re.match(rf"Delete {count} dead task{'s' if count > 1 else ''} of ", purge.stdout)
    until(lambda: bench.ready(bench.dead) == count, "them to be back")
