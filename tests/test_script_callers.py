"""The scripts in any environment, from any checkout, with private nodes: only with `--broker local`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import Beside, Running, Scripts, answers
from lab.nodes import ROOT
from lab.waiting import until
from programs import copy_project

at_once = Beside()


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    """For tests that leave it running."""
    made = Scripts(tmp_path_factory.mktemp("one_node"))
    made.works("broker.sh", "up")
    yield made
    made.works("broker.sh", "down")


def test_a_demo_does_not_stop_what_up_has_started(one_node: Scripts) -> None:
    one_node.works("demo.sh", "1")
    one_node.works("broker.sh", "status")


@pytest.fixture(scope="module")
def beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_node: Scripts
) -> Iterator[Running]:
    with at_once.running(request, tmp_path_factory, one_node) as running:
        yield running


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


@at_once(*((caller,) for caller in CALLERS))
def test_the_caller_s_environment_does_no_harm(folder: Path, one_node: Scripts, caller: str) -> None:
    demo = one_node.works("demo.sh", "1", **CALLERS[caller])
    assert "Worker-1: 8 tasks, of difficulty 19 in all" in demo
    assert "me" in one_node.works("broker.sh", "ctl", "list_users", **CALLERS[caller])


def clone_in(folder: Path) -> Path:
    """A checkout with its own .venv, which is this one's: what it takes to make one has a test of its own."""
    clone = folder / "a clone ä"
    copy_project(clone)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    return clone


@at_once()
def test_scripts_need_no_run_bits_and_may_be_called_through_links(folder: Path, one_node: Scripts) -> None:
    clone = clone_in(folder)
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


@at_once()
def test_down_stops_through_a_link_to_the_checkout_and_without_ps(folder: Path, one_node: Scripts) -> None:
    clone = clone_in(folder)
    here = Scripts(folder / "broker", clone)
    link = folder / "link"
    link.symlink_to(clone)
    there = Scripts(folder / "broker", link)
    there.environment = here.environment
    here.environment.pop("BROKER_DIR")
    here.state = clone / ".broker" / str(here.port)
    here.works("broker.sh", "up")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ps").write_text("#!/bin/sh\nexit 1\n")
    (programs / "ps").chmod(0o755)
    there.works("broker.sh", "down", PATH=f"{programs}:{os.environ['PATH']}")
    assert here.running() == []


@at_once()
def test_a_checkout_that_cannot_be_written_to_works(folder: Path, one_node: Scripts) -> None:
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


PIP = {
    "target": {"PIP_TARGET": "elsewhere", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_USER": "1"},
    "prefix": {"PIP_PREFIX": "elsewhere", "VIRTUAL_ENV": "/nowhere"},
}


@at_once(("target",), ("prefix",))
def test_packages_go_into_the_environment_whatever_pip_is_told(folder: Path, one_node: Scripts, told: str) -> None:
    copy_project(folder / "clone")
    elsewhere = str(folder / "elsewhere")
    variables = {name: elsewhere if value == "elsewhere" else value for name, value in PIP[told].items()}
    result = subprocess.run(
        ["bash", str(folder / "clone/scripts/broker.sh"), "status"],
        env={**one_node.environment, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not Path(elsewhere).exists()


@at_once()
def test_two_scripts_at_once_make_one_environment(folder: Path, one_node: Scripts) -> None:
    copy_project(folder / "clone")
    clone = Scripts(folder, folder / "clone")
    both = [clone.start("broker.sh", "status", environment=one_node.environment) for _ in range(2)]
    said = ""
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        said += out
    assert said.count("Creating .venv") == 1


@at_once()
def test_what_pip_or_venv_say_is_passed_on(folder: Path, one_node: Scripts) -> None:
    copy_project(folder / "clone")
    clone = Scripts(folder, folder / "clone")
    fake = folder / "python"
    fails = 'case "$*" in *venv*) echo "the disk is full of cake"; exit 1 ;; esac'
    fake.write_text(f'#!/bin/sh\n{fails}\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    result = clone.run("broker.sh", "status", PYTHON=str(fake))
    assert result.returncode == 3
    assert "full of cake" in result.stderr
    assert "python3-venv" not in result.stdout + result.stderr
    (folder / "clone/requirements.txt").write_text("pika==0.0.1 --hash=sha256:" + 64 * "0" + "\n")
    result = clone.run("broker.sh", "status", PIP_NO_INDEX="1")
    assert result.returncode == 3
    assert "pika==0.0.1" in result.stderr
    assert "network" not in result.stderr


@at_once(("making",), ("ready",))
def test_a_test_run_that_is_ended_leaves_no_node(folder: Path, one_node: Scripts, moment: str) -> None:
    command = [sys.executable, "-m", "pytest", "--broker", "local", f"--basetemp={folder}/t", "tests/test_races.py"]
    tests = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pattern = "*/*/making" if moment == "making" else "*/*/kept"
    found = until(lambda: list((folder / "t").glob(pattern)), "the tests' node", 60)
    scripts = Scripts(found[0].parent.parent)
    scripts.state = found[0].parent
    ports = scripts.state / "ports"
    numbers = [scripts.state.name, *re.findall("[0-9]+", ports.read_text() if ports.exists() else "")]
    os.kill(tests.pid, signal.SIGTERM)
    tests.wait(60)
    assert not [number for number in numbers if answers(int(number))]
    assert scripts.running() == []


# A machine that has a service from before, and a package manager that enables the ones of a package
INSTALLS = r"""
. "$1/scripts/lib.sh"
machine=$2
find() { command find ${@/#\/etc\//$machine/etc/}; } # unquoted: rc?.d may be nowhere but here
as_root() {
  case $1 in
    env) mkdir -p "$machine/etc/rc3.d" "$machine/etc/systemd/system/new.target.wants"
      touch "$machine/etc/rc3.d/S01rabbitmq-server"
      touch "$machine"/etc/systemd/system/{multi-user,new}.target.wants/rabbitmq-server.service ;;
    update-rc.d) rm "$machine/etc/rc3.d/S01$2"; [ "$3" = disable ] ;;
    tee) cat ;;
    rm) case $3 in "$machine"/*) "$@" ;; esac ;;
    apt-get | chmod) ;;
    *) exit 9 ;;
  esac
}
apt_install rabbitmq-server as_root
"""


def test_what_is_installed_does_not_start_at_the_next_boot(tmp_path: Path) -> None:
    """Whoever calls is not root here; what root would be told is done to a folder that stands for the machine."""
    before = tmp_path / "etc/systemd/system/multi-user.target.wants/ssh.service"
    before.parent.mkdir(parents=True)
    before.touch()
    (tmp_path / "etc/rc3.d").mkdir()
    old = tmp_path / "etc/rc3.d/S01cron"
    old.touch()
    called = subprocess.run(
        ["bash", "-c", INSTALLS, "bash", ROOT, tmp_path], capture_output=True, text=True, check=False
    )
    assert (called.returncode, called.stderr, called.stdout) == (0, "", "Installing rabbitmq-server ...\n")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {before, old}


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_script_has_help(script: str, flag: str, tmp_path: Path) -> None:
    result = Scripts(tmp_path).run(script, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    assert len(result.stdout.splitlines()) > 2
