"""The README is true: its console blocks are run, its quotations compared, its generated parts made anew."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab.nodes import ROOT
from lab.waiting import until
from programs import Bench, copy_project

import config

SETTINGS = {variable.name for variable in config.VARIABLES}
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\S+)(?: ([^\n]*))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CONSOLES = [(info, text) for language, info, text in BLOCKS if language == "console"]
QUOTES = [(info, text) for language, info, text in BLOCKS if language == "python"]


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what a console block shows; `...` stands for anything, and random names for others."""
    pattern = re.escape(expected.strip())
    pattern = re.sub(r"Worker\\-[0-9a-f]{8}", r"Worker-[0-9a-f]{8}", pattern)
    dots = re.escape("...")
    pattern = pattern.replace(f"{dots}\\\n", "(?:.*\n)?").replace(dots, ".*")  # a line of dots may be no line at all
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def test_the_console_blocks_do_what_they_show(bench: Bench, tmp_path: Path) -> None:
    """In order, in a copy of the project. A block with a name is a terminal that goes on until the end."""
    copy_project(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"RABBITMQ_URL": bench.url, "TASK_QUEUE": bench.queue}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    terminals: list[tuple[str, subprocess.Popen[bytes], Path]] = []
    try:
        for number, (terminal, text) in enumerate(CONSOLES):
            for command, expected in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                output = tmp_path / f"{number}.output"
                with output.open("wb") as file:
                    process = subprocess.Popen(
                        ["bash", "-c", f"exec {command}" if terminal else command],
                        cwd=tmp_path,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                if terminal:
                    terminals.append((expected, process, output))
                    until(lambda output=output: "Waiting for tasks" in output.read_text(), command)  # type: ignore[misc]
                    continue
                process.wait(60)
                printed = output.read_text().replace(bench.queue, "task_queue")
                assert matches(expected, printed), f"$ {command}\n{printed}\n--- README:\n{expected}"
        until(lambda: bench.ready() == 0, "an empty queue", seconds=60)
        for expected, process, output in terminals:
            process.send_signal(signal.SIGINT)
            process.wait(20)

            def as_shown(expected: str = expected, output: Path = output) -> bool:
                return matches(expected, output.read_text().replace(bench.queue, "task_queue"))

            until(as_shown, f"what README shows of a terminal:\n{expected}\n--- {output.read_text()}", seconds=30)
    finally:
        for _, process, _ in terminals:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize(("file", "quote"), QUOTES, ids=[f"{file}-{n}" for n, (file, _) in enumerate(QUOTES)])
def test_the_code_is_quoted_as_it_is(file: str, quote: str) -> None:
    code = (ROOT / file).read_text()
    indents = [" " * 4 * depth for depth in range(5)]
    assert any(_indented(quote, indent) in code for indent in indents), f"{file} no longer says:\n{quote}"


def _indented(text: str, indent: str) -> str:
    return "".join(indent + line if line.strip() else line for line in text.splitlines(keepends=True))


def test_what_is_generated_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts/readme.py")
    assert spec
    assert spec.loader
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert re.sub(r"\s+", " ", readme.generated(README)) == re.sub(r"\s+", " ", README), "run scripts/readme.py"


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        if path:
            assert (ROOT / path).exists(), target
        else:
            headings = [
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)
            ]
            assert anchor in headings, target


def test_every_promise_names_a_test_that_exists() -> None:
    promises = re.findall(r"\[`(test_\w+)`\]\((tests/\w+\.py)\)", README)
    assert len(promises) >= 10
    for name, file in promises:
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_every_other_command_is_run_by_a_check() -> None:
    """What stands in a plain sh block: scripts by test_scripts.py, Docker Compose by check_compose.sh, this by you."""
    names = (
        "tests/test_scripts.py",
        "tests/test_dead_letters.py",
        "scripts/lab/nodes.py",
        "tests/test_chaos.py",
        "tests/test_bench.py",
    )
    scripts = "".join((ROOT / name).read_text() for name in names)
    compose = (ROOT / "scripts/check_compose.sh").read_text()
    plain = {
        "git clone <this repository> work-queue",
        "cd work-queue",
        "source .venv/bin/activate",
        "./scripts/test.sh",
        "pip install -r requirements-bench.txt",
    }
    text = "".join(text for language, _, text in BLOCKS if language == "sh")
    for command in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        name = (
            command.split()[2 if command.startswith("docker compose -f") else 0].removeprefix("./").removeprefix("-f ")
        )
        assert command in plain or command in compose or name in scripts, command


def test_the_readme_fits_a_terminal() -> None:
    for _, _, text in BLOCKS:
        assert all(len(line) <= 120 for line in text.splitlines())
