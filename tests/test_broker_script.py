"""broker.sh, demo.sh and lib.sh with private nodes, or with no broker: only with `--broker local` (see conftest.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from lab.nodes import ROOT, free_port
from lab.waiting import until
from programs import copy_project

from workqueue.connection import Connection


class Scripts:
    """The scripts of one checkout, with a port and a folder for a broker of their own."""

    def __init__(self, folder: Path, checkout: Path = ROOT, nodes: int = 1) -> None:
        self.checkout = checkout
        self.port = free_port(in_a_row=nodes)
        self.folder = folder
        self.state = folder / str(self.port)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "BROKER_"))}
        self.environment = {
            **kept,
            "RABBITMQ_URL": f"amqp://me:s3cret@127.0.0.1:{self.port}/",
            "BROKER_DIR": str(folder),
            "BROKER_KIND": "node",
            "SECONDS_PER_DIFFICULTY": "0.05",
        }

    def start(self, script: str, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        environment = {**self.environment, **popen.pop("environment", {})}
        return subprocess.Popen(
            ["bash", str(self.checkout / "scripts" / script), *arguments],
            env=environment,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments, environment=environment)
        out, error = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def works(self, script: str, *arguments: str, **environment: str) -> str:
        result = self.run(script, *arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def running(self) -> list[str]:
        """What lives of the nodes: each holds a lock on a file, and each port, the port mapper's too, is taken."""
        held = []
        for path in self.state.glob("*.lock"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        ports = self.state / "ports"
        numbers = re.findall("[0-9]+", ports.read_text()) if ports.exists() else []
        return held + [number for number in numbers if answers(int(number))]


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    made = Scripts(tmp_path / "broker")
    yield made
    made.run("broker.sh", "down")


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    """For tests that leave it running."""
    made = Scripts(tmp_path_factory.mktemp("one_node"))
    made.works("broker.sh", "up")
    yield made
    made.works("broker.sh", "down")


SPECIAL = "amqp://m%25e%20%22:p%25a%20s%C3%A4%22%23%5C%27%24%7B%7D%2F%3A%40@127.0.0.1:{port}/a%2Fb%20%C3%A4%22"


def test_any_character_may_stand_in_user_password_and_virtual_host_and_they_may_change(scripts: Scripts) -> None:
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


def test_a_url_without_a_password_is_refused_in_words(scripts: Scripts) -> None:
    result = scripts.run("broker.sh", "up", RABBITMQ_URL=f"amqp://me:@127.0.0.1:{scripts.port}/")
    assert result.returncode == 2
    assert "has no password" in result.stderr


def test_a_node_becomes_a_cluster_and_its_url_can_be_pasted(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path / "with space", nodes=3)
    try:
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
        until(lambda: not answers(scripts.port), "the killed node to be gone")
        assert f"rabbit-{scripts.port + 2}@localhost" in scripts.works("broker.sh", "ctl", "cluster_status")
        assert "and 2 more" in scripts.works("broker.sh", "up")
        assert answers(scripts.port)
        assert scripts.works("broker.sh", "down").startswith("Stopped")
        assert scripts.running() == []
    finally:
        scripts.run("broker.sh", "down")


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "at once"),
        (signal.SIGTERM, "at once"),
        (signal.SIGINT, "booting"),
        (signal.SIGHUP, "booting"),
        (signal.SIGTERM, "late"),
    ],
)
def test_interrupted_at_any_moment_nothing_is_left(scripts: Scripts, number: signal.Signals, moment: str) -> None:
    log = scripts.state / f"{scripts.port}.log"
    up = scripts.start("broker.sh", "up", start_new_session=True, preexec_fn=heed_signals)
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


def heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_data_that_a_killed_start_has_left_half_made_boots(scripts: Scripts) -> None:
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


def test_several_at_once_start_one_node(scripts: Scripts) -> None:
    both = [scripts.start("broker.sh", "up") for _ in range(2)]
    for up in both:
        _, error = up.communicate(timeout=120)
        assert up.returncode == 0, error
    assert scripts.works("broker.sh", "down").startswith("Stopped")
    assert scripts.running() == []


def test_two_demos_share_a_broker_and_the_last_one_stops_it(scripts: Scripts) -> None:
    slow = scripts.start("demo.sh", environment={"SECONDS_PER_DIFFICULTY": "0.6"})
    fast = scripts.start("demo.sh")
    for demo in (fast, slow):
        out, error = demo.communicate(timeout=120)
        assert demo.returncode == 0, out + error
        assert out.endswith("whoever was free took the next.\n")
    assert scripts.running() == []


def test_a_demo_leaves_the_broker_to_whoever_uses_it(scripts: Scripts) -> None:
    demo = scripts.start("demo.sh", environment={"SECONDS_PER_DIFFICULTY": "0.6"})
    until(lambda: answers(scripts.port), "the demo's broker", 60)
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


def test_a_demo_does_not_stop_what_up_has_started(one_node: Scripts) -> None:
    one_node.works("demo.sh", "1")
    one_node.works("broker.sh", "status")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_twice_leaves_nothing(
    scripts: Scripts, number: signal.Signals, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"SECONDS_PER_DIFFICULTY": "2", "TMPDIR": str(temporary)}
    output = (tmp_path / "output").open("w+")
    demo = scripts.start(
        "demo.sh", environment=environment, stdout=output, start_new_session=True, preexec_fn=heed_signals
    )
    until(lambda: "Received task" in (tmp_path / "output").read_text(), "the demo to run", 60)
    for _ in range(5):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, number)
        time.sleep(0.2)  # a person's pace
    demo.communicate(timeout=60)
    output.close()
    assert demo.returncode == 130
    assert scripts.running() == []
    assert list(temporary.iterdir()) == []


CALLERS = {
    "shell": {
        "CDPATH": "/:/usr:.:..",
        "POSIXLY_CORRECT": "1",
        "SHELLOPTS": "posix:noglob:noclobber",
        "BASH_FUNC_cd%%": '() { echo cd; builtin cd "$@"; }',
        "TMPDIR": "/nowhere",
    },
    "Python": {"PYTHONHOME": "/nowhere", "PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1", "LC_ALL": "de_DE.ISO-8859-1"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"},
    "brokers": {
        "RABBITMQ_NODENAME": "other@nowhere",
        "RABBITMQ_USE_LONGNAME": "true",
        "ERL_FLAGS": "-sname other",
        "COMPOSE_FILE": "/nowhere.yml",
    },
}


@pytest.mark.parametrize("caller", CALLERS)
def test_the_caller_s_environment_does_no_harm(one_node: Scripts, caller: str) -> None:
    demo = one_node.works("demo.sh", "1", **CALLERS[caller])
    assert "Worker-1: 8 tasks, of difficulty 19 in all" in demo
    assert "me" in one_node.works("broker.sh", "ctl", "list_users", **CALLERS[caller])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with its own .venv, which is this one's: what it takes to make one has a test of its own."""
    folder = tmp_path / "a clone ä"
    copy_project(folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def test_scripts_need_no_run_bits_and_may_be_called_through_links(clone: Path, one_node: Scripts) -> None:
    for path in (clone / "scripts").iterdir():
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    link = clone.parent / "demo-link"
    link.symlink_to("a clone ä/scripts/demo.sh")
    result = subprocess.run(
        ["bash", link.name, "1"],
        cwd=clone.parent,
        env=one_node.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "of difficulty 19" in result.stdout


def test_down_stops_through_a_link_to_the_checkout_and_without_ps(clone: Path, tmp_path: Path) -> None:
    here = Scripts(tmp_path / "broker", clone)
    link = tmp_path / "link"
    link.symlink_to(clone)
    there = Scripts(tmp_path / "broker", link)
    there.environment = here.environment
    here.environment.pop("BROKER_DIR")
    here.state = clone / ".broker" / str(here.port)
    here.works("broker.sh", "up")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ps").write_text("#!/bin/sh\nexit 1\n")
    (programs / "ps").chmod(0o755)
    there.works("broker.sh", "down", PATH=f"{programs}:{os.environ['PATH']}")
    assert here.running() == []


def test_a_checkout_that_cannot_be_written_to_works(one_node: Scripts) -> None:
    with tempfile.TemporaryDirectory() as name:  # not below a folder that is root's alone
        folder = Path(name)
        folder.chmod(0o755)
        copy_project(folder / "clone")
        home = folder / "home"
        home.mkdir()
        environment = {**one_node.environment, "HOME": str(home)}
        environment.pop("BROKER_DIR")
        environment.pop("XDG_CACHE_HOME", None)
        user: dict[str, Any] = {}
        if os.getuid() == 0:  # who can write everywhere
            shutil.chown(home, 65534)
            user = {"user": 65534, "group": 65534, "extra_groups": []}
        for path in (folder / "clone", folder / "clone/scripts"):
            path.chmod(0o555)
        result = subprocess.run(
            ["bash", str(folder / "clone/scripts/demo.sh"), "1"],
            cwd=folder, env=environment, capture_output=True, text=True, check=False, **user,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        for path in (folder / "clone", folder / "clone/scripts"):
            path.chmod(0o755)


def test_a_checkout_has_the_line_ends_of_unix(tmp_path: Path) -> None:
    """Also one by a Git that is set up for Windows."""

    def git(*arguments: str) -> None:
        identity = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf", "-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    names = ["demo.sh", "requirements.txt", "probe.py", "Dockerfile", "run"]
    for name in names:
        (tmp_path / name).write_bytes(b"one\ntwo\n")
    git("add", ".")
    git("commit", "-m", "x")
    for name in names:
        (tmp_path / name).unlink()
    git("checkout", ".")
    assert all(b"\r" not in (tmp_path / name).read_bytes() for name in names)


def test_packages_go_into_the_environment_whatever_pip_is_told(tmp_path: Path, one_node: Scripts) -> None:
    copy_project(tmp_path / "clone")
    elsewhere = {"PIP_TARGET": str(tmp_path / "elsewhere"), "PIP_REQUIRE_VIRTUALENV": "1", "PIP_USER": "1"}
    for variables in (elsewhere, {"PIP_PREFIX": str(tmp_path / "elsewhere"), "VIRTUAL_ENV": "/nowhere"}):
        shutil.rmtree(tmp_path / "clone/.venv", ignore_errors=True)
        result = subprocess.run(
            ["bash", str(tmp_path / "clone/scripts/broker.sh"), "status"],
            env={**one_node.environment, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert not (tmp_path / "elsewhere").exists()


def test_two_scripts_at_once_make_one_environment(tmp_path: Path, one_node: Scripts) -> None:
    copy_project(tmp_path / "clone")
    clone = Scripts(tmp_path, tmp_path / "clone")
    both = [clone.start("broker.sh", "status", environment=one_node.environment) for _ in range(2)]
    said = ""
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        said += out
    assert said.count("Creating .venv") == 1


def test_what_pip_or_venv_say_is_passed_on(tmp_path: Path, one_node: Scripts) -> None:
    copy_project(tmp_path / "clone")
    clone = Scripts(tmp_path, tmp_path / "clone")
    fake = tmp_path / "python"
    fails = 'case "$*" in *venv*) echo "the disk is full of cake"; exit 1 ;; esac'
    fake.write_text(f'#!/bin/sh\n{fails}\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    result = clone.run("broker.sh", "status", PYTHON=str(fake))
    assert result.returncode == 3
    assert "full of cake" in result.stderr
    assert "python3-venv" not in result.stdout + result.stderr
    (tmp_path / "clone/requirements.txt").write_text("pika==0.0.1 --hash=sha256:" + 64 * "0" + "\n")
    result = clone.run("broker.sh", "status", PIP_NO_INDEX="1")
    assert result.returncode == 3
    assert "pika==0.0.1" in result.stderr
    assert "network" not in result.stderr


@pytest.mark.parametrize("moment", ["making", "ready"])
def test_a_test_run_that_is_ended_leaves_no_node(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-m", "pytest", "--broker", "local", f"--basetemp={tmp_path}/t", "tests/test_races.py"]
    tests = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pattern = "*/*/making" if moment == "making" else "*/*/kept"
    found = until(lambda: list((tmp_path / "t").glob(pattern)), "the tests' node", 60)
    scripts = Scripts(found[0].parent.parent)
    scripts.state = found[0].parent
    ports = scripts.state / "ports"
    numbers = [scripts.state.name, *re.findall("[0-9]+", ports.read_text() if ports.exists() else "")]
    os.kill(tests.pid, signal.SIGTERM)
    tests.wait(60)
    assert not [number for number in numbers if answers(int(number))]
    assert scripts.running() == []


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_script_has_help(script: str, flag: str, tmp_path: Path) -> None:
    result = Scripts(tmp_path).run(script, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    assert len(result.stdout.splitlines()) > 2
