"""The documentation is true: README.md, docs/ and lessons/README.md are run, compared with the code, and followed.

What they show of a terminal is run as it stands, what they quote stands in the code, what is generated is made anew,
and every link, promise, flag, command and message is looked up. (What the lessons show is run by test_lessons.py.)
"""

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

PAGES = [ROOT / name for name in ("README.md", "lessons/README.md", "examples/README.md")]
PAGES += sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
LESSONS = "lessons/README.md"
BLOCK = re.compile(r"^```(\S+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, *block) for page, text in TEXTS.items() for block in BLOCK.findall(text)]
SAVED = {"my_work.py"}  # what a page has its reader save
QUOTES = [
    (page, file, text) for page, language, file, text in BLOCKS if language == "python" and file not in SAVED | {""}
]
SETTINGS = {variable.name for variable in config.VARIABLES}
MOST_LINES = 280  # of README.md


def of_page(page: str, language: str) -> list[tuple[str, str]]:
    """What follows the language in its first line, and the text, of the blocks of a page."""
    return [(info, text) for of, kind, info, text in BLOCKS if (of, kind) == (page, language)]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", TEXTS[page])


# What is shown of a terminal


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what a console block shows; `...` stands for anything, and random names for others."""
    pattern = re.escape(expected.strip())
    pattern = re.sub(r"Worker\\-[0-9a-f]{8}", r"Worker-[0-9a-f]{8}", pattern)
    dots = re.escape("...")
    pattern = pattern.replace(f"{dots}\\\n", "(?:.*\n)?").replace(dots, ".*")  # a line of dots may be no line at all
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


STOP = "<!-- stop the terminals -->"


@pytest.mark.parametrize("page", [page for page in TEXTS if page != LESSONS and of_page(page, "console")])
def test_the_console_blocks_do_what_they_show(page: str, bench: Bench, tmp_path: Path) -> None:
    """In order, in a copy of the project."""
    copy_project(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"RABBITMQ_URL": bench.url, "TASK_QUEUE": bench.queue}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for part in TEXTS[page].split(STOP):
        run_consoles(part, bench, tmp_path, environment)


def run_consoles(text: str, bench: Bench, folder: Path, environment: dict[str, str]) -> None:
    """A block with a name is a terminal, which goes on until the end of the text, or a file."""
    terminals: list[tuple[str, subprocess.Popen[bytes], Path]] = []

    def start(command: str, output: Path) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            files = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            return subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, **files)  # type: ignore[call-overload,no-any-return]

    def must_match(expected: str, output: Path) -> None:
        printed = output.read_text().replace(bench.queue, "task_queue")
        assert matches(expected, printed), f"{printed}\n--- expected:\n{expected}"

    try:
        for language, terminal, block in BLOCK.findall(text):
            if language == "python" and terminal in SAVED:
                (folder / terminal).write_text(block)
            found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
            for command, expected in found if language == "console" else []:
                output = folder / f"{len(list(folder.iterdir()))}.output"
                if terminal:
                    process = start(f"exec {command}", output)
                    terminals.append((expected, process, output))
                    until(lambda output=output: "Waiting for tasks" in output.read_text(), command)  # type: ignore[misc]
                else:
                    start(command, output).wait(60)
                    must_match(expected, output)
        if terminals:
            until(lambda: bench.ready() == 0, "an empty queue", seconds=60)
        for expected, process, output in terminals:
            process.send_signal(signal.SIGINT)
            process.wait(30)
            must_match(expected, output)
    finally:
        for _, process, _ in terminals:
            if process.poll() is None:
                process.kill()
            process.wait()


def test_every_other_command_is_run_by_a_check() -> None:
    """What stands in a plain sh block: scripts by tests, Docker Compose by check_compose.sh, the rest by you."""
    checks = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("scripts/lab/*.py")]
    scripts = "".join(path.read_text() for path in checks if path != Path(__file__))
    compose = (ROOT / "scripts/check_compose.sh").read_text()
    plain = {
        "git clone <this repository> work-queue",
        "cd work-queue",
        "source .venv/bin/activate",
        "./scripts/test.sh",
        "pip install -r requirements-bench.txt",
        "pip install -r requirements-examples.txt",
        "pip install -r requirements-test.txt",
    }
    for page in TEXTS:
        text = "".join(text for _, text in of_page(page, "sh"))
        for command in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
            words = command.split()
            if words[0] == "docker":
                is_run = command in compose or (words[2] == "-f" and words[3] in scripts)
            else:
                is_run = words[0].removeprefix("./") in scripts
            assert is_run or command in plain, f"{page}: {command}"


def test_a_command_has_no_comment() -> None:
    """Not every shell takes one that is typed: zsh makes arguments of it."""
    commands = [(page, line) for page, language, _, text in BLOCKS if language == "sh" for line in text.splitlines()]
    shown = [(page, line) for page, language, _, text in BLOCKS if language == "console" for line in text.splitlines()]
    commands += [(page, line) for page, line in shown if line.startswith("$ ")]
    assert [(page, line) for page, line in commands if re.search(r"(^|\s)#", line)] == []


def test_a_block_fits_a_terminal() -> None:
    for page, _, _, text in BLOCKS:
        assert all(len(line) <= 120 for line in text.splitlines()), page


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= MOST_LINES


# What is said of the code


@pytest.mark.parametrize(
    ("page", "file", "quote"), QUOTES, ids=[f"{page}-{file}-{n}" for n, (page, file, _) in enumerate(QUOTES)]
)
def test_the_code_is_quoted_as_it_is(page: str, file: str, quote: str) -> None:
    code = (ROOT / file).read_text()
    indents = [" " * 4 * depth for depth in range(5)]
    assert any(_indented(quote, indent) in code for indent in indents), f"{page}: {file} no longer says:\n{quote}"


def _indented(text: str, indent: str) -> str:
    return "".join(indent + line if line.strip() else line for line in text.splitlines(keepends=True))


def test_what_is_generated_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts/readme.py")
    assert spec
    assert spec.loader
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = TEXTS[readme.PAGE]
    assert re.sub(r"\s+", " ", readme.generated(text)) == re.sub(r"\s+", " ", text), "run scripts/readme.py"


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
def test_every_flag_is_explained(program: str) -> None:
    """Outside of the program's own help, which is generated."""
    command = [sys.executable, str(ROOT / program), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", printed, re.MULTILINE)) - {"--help"}
    assert len(flags) >= 6
    by_hand = "".join(re.sub(r"<!-- (.+?) -->.*?<!-- end -->", "", text, flags=re.DOTALL) for text in TEXTS.values())
    assert [flag for flag in sorted(flags) if not re.search(rf"{flag}(?![\w-])", by_hand)] == []


def test_every_promise_names_a_test_that_exists() -> None:
    promises = [
        ((ROOT / page).parent / file, name)
        for page in TEXTS
        for name, file in re.findall(r"\[`(test_\w+)`\]\(([./\w]+\.py)\)", prose(page))
    ]
    assert len(promises) >= 40
    assert [name for file, name in promises if f"def {name}(" not in file.read_text()] == []


def test_every_module_is_introduced() -> None:
    text = TEXTS["docs/how-it-works.md"]
    modules = [path.name for path in ROOT.glob("workqueue/*.py") if path.name != "__init__.py"]
    assert [name for name in modules if f"[`{name}`](../workqueue/{name})" not in text] == []


def test_every_message_is_one_that_a_program_prints() -> None:
    """The first column of the tables under `## What our programs say`; `…` stands for what differs."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("workqueue/*.py"), *ROOT.glob("scripts/*.*")]
    source = "".join(path.read_text() for path in files if path.is_file())
    source = re.sub(r'"\n\s+f?"', "", source)  # a text that is written in two parts
    pieces = [re.sub(r"\{[^{}]*\}", "…", source), source]
    section = TEXTS["docs/troubleshooting.md"].partition("## What our programs say\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`(.+?)`", row)]
    assert len(messages) >= 20
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in text for text in pieces), f"nobody says {part!r}: {message}"


# Links


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        leads_to = (ROOT / page).parent / path if path else ROOT / page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


def linked_from(page: str) -> set[str]:
    targets = re.findall(r"\]\(([^)]+)\)", prose(page))
    paths = [((ROOT / page).parent / target.partition("#")[0]).resolve() for target in targets]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_relative_to(ROOT)}


def test_every_page_is_linked_from_the_readme() -> None:
    """Those of single examples by way of all examples' page."""
    assert set(TEXTS) - {"README.md"} <= linked_from("README.md") | linked_from("examples/README.md")
