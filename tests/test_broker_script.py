"""broker.sh and demo.sh with private nodes: only with `--broker local` (see conftest.py)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import probe
import pytest
from calls import Beside, Running, answers, calling
from lab.nodes import free_port
from lab.waiting import until

from workqueue.connection import Connection

at_once = Beside()


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with at_once.running(request, tmp_path_factory) as running:
        yield running


@at_once()
def test_a_node_becomes_a_cluster_and_its_url_can_be_pasted(folder: Path) -> None:
    with calling(folder / "with space", nodes=3) as scripts:
        scripts.works("broker.sh", "up")
        said = scripts.works("broker.sh", "up", "--nodes", "3")
        assert "and 2 more" in said
        assert "s3cret" not in said
        paste = next(line.partition(": ")[2] for line in said.splitlines() if line.startswith("All nodes: "))
        urls = subprocess.run(
            ["bash", "-c", f'{paste}; echo "$RABBITMQ_URL"'], capture_output=True, text=True, check=True
        ).stdout.split(",")
        assert len(urls) == 3
        for url in urls:
            Connection(pika.URLParameters(url.strip())).close()
        os.kill(int((scripts.state / f"{scripts.port}.pid").read_text()), signal.SIGKILL)
        until(lambda: not answers(scripts.port), "the killed node to be gone", 60)
        assert f"rabbit-{scripts.port + 2}@localhost" in scripts.works("broker.sh", "ctl", "cluster_status")
        assert "and 2 more" in scripts.works("broker.sh", "up")
        assert answers(scripts.port)
        assert scripts.works("broker.sh", "down").startswith("Stopped")
        assert scripts.running() == []


SPECIAL = "amqp://m%25e%20%22:p%25a%20s%C3%A4%22%23%5C%27%24%7B%7D%2F%3A%40@127.0.0.1:{port}/a%2Fb%20%C3%A4%22"


@at_once()
def test_any_character_may_stand_in_user_password_and_virtual_host_and_they_may_change(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        ordinary = scripts.environment["RABBITMQ_URL"]
        scripts.environment["RABBITMQ_URL"] = SPECIAL.replace("{port}", str(scripts.port))
        scripts.works("broker.sh", "up")
        Connection(pika.URLParameters(scripts.environment["RABBITMQ_URL"])).close()
        assert "s%C3%A4" not in (scripts.state / "definitions.json").read_text()
        refused = scripts.run("broker.sh", "up", RABBITMQ_URL=ordinary)
        assert refused.returncode == 3
        assert "broker.sh restart makes it take" in refused.stderr
        scripts.environment["RABBITMQ_URL"] = ordinary
        scripts.works("broker.sh", "restart")
        Connection(pika.URLParameters(ordinary)).close()


@at_once()
def test_a_url_without_a_password_is_refused_in_words(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        result = scripts.run("broker.sh", "up", RABBITMQ_URL=f"amqp://me:@127.0.0.1:{scripts.port}/")
        assert result.returncode == 2
        assert "has no password" in result.stderr


@at_once(
    (signal.SIGINT, "at once"),
    (signal.SIGTERM, "at once"),
    (signal.SIGINT, "booting"),
    (signal.SIGHUP, "booting"),
    (signal.SIGTERM, "late"),
)
def test_interrupted_at_any_moment_nothing_is_left(folder: Path, number: signal.Signals, moment: str) -> None:
    with calling(folder / "broker") as scripts:
        log = scripts.state / f"{scripts.port}.log"
        up = scripts.start("broker.sh", "up", start_new_session=True)
        if moment == "at once":
            until(lambda: (scripts.state / "kind").exists(), "the node to be about to start")
        else:
            words = "Running boot step" if moment == "booting" else "Server startup complete"
            until(lambda: log.exists() and words in log.read_text(errors="replace"), "the node to boot", 60)
        os.killpg(up.pid, number)
        up.communicate(timeout=60)
        if up.returncode != 0:  # when it was through already, it is through
            assert up.returncode == 130
            assert scripts.running() == []
            assert not (scripts.state / "kind").exists()


def test_a_node_s_own_ports_are_not_given_to_its_port_mapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = free_port()
    monkeypatch.setattr("random.sample", lambda ports, count: [own, own + 8, *range(own + 9, own + 500)])
    probe.keep_ports(1, tmp_path / "ports", own)
    given = [int(number) for number in re.findall("[0-9]+", (tmp_path / "ports").read_text())]
    assert len(given) == 2
    assert min(given) > own + 8


@at_once()
def test_data_that_a_killed_start_has_left_half_made_boots(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        up = scripts.start("broker.sh", "up", start_new_session=True)
        log = scripts.state / f"{scripts.port}.log"
        until(lambda: log.exists() and "Running boot step" in log.read_text(errors="replace"), "the node to boot", 60)
        up.kill()
        up.communicate()
        scripts.works("broker.sh", "down")
        assert scripts.running() == []
        # the worst that can be left of it: a database that no node can read
        for path in (scripts.state / "data").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        scripts.works("broker.sh", "up")


@at_once()
def test_several_at_once_start_one_node(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        both = [scripts.start("broker.sh", "up") for _ in range(2)]
        for up in both:
            _, error = up.communicate(timeout=120)
            assert up.returncode == 0, error
        assert scripts.works("broker.sh", "down").startswith("Stopped")
        assert scripts.running() == []


@at_once()
def test_two_demos_share_a_broker_and_the_last_one_stops_it(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        slow = scripts.start("demo.sh", environment={"SECONDS_PER_DIFFICULTY": "0.6"})
        fast = scripts.start("demo.sh")
        for demo in (fast, slow):
            out, error = demo.communicate(timeout=120)
            assert demo.returncode == 0, out + error
            assert out.endswith("whoever was free took the next.\n")
        assert scripts.running() == []


@at_once()
def test_a_demo_leaves_the_broker_to_whoever_uses_it(folder: Path) -> None:
    with calling(folder / "broker") as scripts:
        demo = scripts.start("demo.sh", environment={"SECONDS_PER_DIFFICULTY": "0.6"})
        until(lambda: answers(scripts.port), "the demo's broker", 120)
        connection = None
        with contextlib.suppress(pika.exceptions.AMQPError):
            until(lambda: (scripts.state / "making").exists() is False, "the demo's broker to be through", 60)
            connection = Connection(pika.URLParameters(scripts.environment["RABBITMQ_URL"]))
        assert connection
        demo.communicate(timeout=120)
        assert demo.returncode == 0
        connection.close()  # works: it is there
        scripts.works("broker.sh", "down", "--unused")  # nobody is left, and nobody has asked for it with `up`
        assert scripts.running() == []


@at_once((signal.SIGINT,), (signal.SIGTERM,))
def test_a_demo_that_is_interrupted_twice_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    with calling(folder / "broker") as scripts:
        temporary = folder / "temporary"
        temporary.mkdir()
        environment = {"SECONDS_PER_DIFFICULTY": "2", "TMPDIR": str(temporary)}
        output = (folder / "output").open("w+")
        demo = scripts.start("demo.sh", environment=environment, stdout=output, start_new_session=True)
        until(lambda: "Received task" in (folder / "output").read_text(), "the demo to run", 60)
        for _ in range(5):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(demo.pid, number)
            time.sleep(0.2)  # a person's pace
        demo.communicate(timeout=60)
        output.close()
        assert demo.returncode == 130
        assert scripts.running() == []
        assert list(temporary.iterdir()) == []
