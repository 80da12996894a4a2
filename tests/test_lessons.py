"""The lessons: each is the one before and a few lines more, each breaks, and the next one stands what broke it."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

import psutil
import pytest
from lab.nodes import ROOT, Broker, ContainerBroker, LocalBroker
from lab.waiting import until
from programs import Bench, Program

LESSONS = [next(ROOT.glob(f"lessons/{number}_*.py")) for number in range(1, 10)]
README = (ROOT / "lessons/README.md").read_text()
CONSOLES = re.findall(r"^```console(?: (\w+))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BREAKS = [f"lessons/run.sh {number}" for number in range(1, 10)]
MENDED = [f"lessons/run.sh {number} --mended" for number in range(1, 9)]
MOST_REPLACED = 4  # lines of the lesson before that a lesson may replace by lines of its own
MOST_NEW = 18


def environment(broker: Broker, folder: Path) -> dict[str, str]:
    """How a user's terminal would be set, with a broker that `scripts/broker.sh` started, or one of his own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "LESSON_"))}
    kept |= {"RABBITMQ_URL": broker.url, "BROKER_DIR": str(folder), "PYTHONWARNINGS": "error"}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    if isinstance(broker, LocalBroker):
        kept |= {"BROKER_DIR": str(broker.folder), "BROKER_KIND": "node"}
    if isinstance(broker, ContainerBroker):
        kept["LESSON_RESTART_COMMAND"] = f"docker restart {broker._container.id}"
    return kept


def start(command: str, broker: Broker, folder: Path, **more: str) -> Program:
    script = ["bash", "-c", f"cd {ROOT} && exec {command}"]
    return Program(script, folder, {**environment(broker, folder), "PYTHONUNBUFFERED": "1", **more})


@pytest.fixture(scope="module")
def printed(breakable_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every break of every lesson printed. Those that restart the broker are run alone, the others together,
    and no two together that use the same queue."""
    if not breakable_broker.answers():
        breakable_broker.start()
    folder = tmp_path_factory.mktemp("lessons")
    found = {}
    survivor = start("python lessons/7_stop.py work", breakable_broker, folder)
    alone = (["lessons/run.sh 2"], ["lessons/run.sh 2 --mended"])
    together = ([command for command in commands if [command] not in alone] for commands in (BREAKS, MENDED))
    try:
        for commands in (*alone, ["python lessons/7_stop.py send soup:0"], *together):
            running = {command: start(command, breakable_broker, folder) for command in commands}
            for command, program in running.items():
                assert program.wait(60) == 0, program.describe()
                found[command] = program.stdout
            if "7_stop" in commands[0]:
                until(lambda: "soup done" in survivor.stdout, "a worker that connects again", seconds=30)
                survivor.signal(signal.SIGINT)
                found["survivor"] = f"{survivor.stdout}exit code {survivor.wait()}"
    finally:
        survivor.process.kill()
        survivor.process.wait()
    return found


# What the lessons are


def code(lesson: Path) -> list[str]:
    """The lines of a lesson without its docstring, blank lines, and the number in its queue's name."""
    text = lesson.read_text()
    body = text.splitlines()[ast.parse(text).body[0].end_lineno :]
    return [re.sub(r'"lesson-\d"', '"lesson-N"', line) for line in body if line]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_fits_a_screen_and_asks_its_question(lesson: Path) -> None:
    number = lesson.name[0]
    text = lesson.read_text()
    assert len(text.splitlines()) <= 60
    assert f'QUEUE = "lesson-{number}"' in text
    words = ast.get_docstring(ast.parse(text)) or ""
    assert f"`lessons/run.sh {number}`" in words
    assert words.endswith("?" if number != "9" else "`worker.py`.")
    assert not re.search(r"^import (?!os|signal|sqlite3|sys|time|pika)", text, re.MULTILINE)


@pytest.mark.parametrize("number", range(2, 10))
def test_a_lesson_is_the_one_before_and_its_marked_lines(number: int) -> None:
    before, now = code(LESSONS[number - 2]), code(LESSONS[number - 1])
    marked = [line for line in now if re.search(rf"  # {number}(: |$)", line)]
    replaced = 0
    new = []
    for what, start_before, end_before, start_now, end_now in SequenceMatcher(None, before, now, False).get_opcodes():
        if what != "equal":
            assert now[start_now:end_now], f"gone, and nothing in its place: {before[start_before:end_before]}"
            replaced += end_before - start_before
            new += now[start_now:end_now]
    assert new == marked
    assert 1 <= len(new) <= MOST_NEW
    assert replaced <= MOST_REPLACED
    marks = re.findall(r"  # (\d)(?:: |$)", "\n".join(now), re.MULTILINE)
    assert max(marks) == str(number)


# That each breaks, and the next one does not

LOST = r"^lost (\d) of 5 \((\d) of them never begun\)$"
LOST_IN_RESTART = r"^lost (\d) of 5$"
SHARES = r"^the first worker did (\d) of 8, the second (\d)$"
UNNOTICED = r"^lost without a word: (\d) of 3$"
SETTLED = r"^1 task: \S+ (once|\d+ times), still in the queue: (\d)$"
TOSSED = r"^1 failing task: begun (once|\d+ times) in 4 s, set aside as dead: (\d)$"


def times(words: str) -> int:
    return 1 if words == "once" else int(words.split()[0])


Check = Callable[..., bool]
VERDICTS: dict[int, tuple[str, Check, Check]] = {  # how a verdict reads; what it says of a break; and when mended
    1: (LOST, lambda lost, never: (lost, never) == ("4", "3"), lambda lost, never: (lost, never) == ("0", "0")),
    2: (LOST_IN_RESTART, lambda lost: lost == "5", lambda lost: lost == "0"),
    3: (SHARES, lambda one, two: (one, two) == ("8", "0"), lambda one, two: int(two) >= 2 and int(one) + int(two) == 8),
    4: (UNNOTICED, lambda lost: lost == "3", lambda lost: lost == "0"),
    5: (SETTLED, lambda done, left: times(done) == 2 and left == "1", lambda done, left: (done, left) == ("once", "0")),
    6: (SETTLED, lambda done, left: (done, left) == ("once", "1"), lambda done, left: (done, left) == ("once", "0")),
    7: (TOSSED, lambda n, dead: times(n) > 200 and dead == "0", lambda n, dead: times(n) == 3 and dead == "1"),
    8: (SETTLED, lambda done, left: times(done) == 2 and left == "0", lambda done, left: (done, left) == ("once", "0")),
    9: (SETTLED, lambda sent, left: times(sent) == 2 and left == "0", lambda: False),
}


@pytest.mark.parametrize("command", [*BREAKS, *MENDED])
def test_every_break_breaks_and_every_mend_holds(command: str, printed: dict[str, str]) -> None:
    pattern, broken, mended = VERDICTS[int(command.split()[1])]
    verdicts = re.findall(pattern, printed[command], re.MULTILINE)
    assert len(verdicts) == 1, printed[command]
    values = verdicts[0] if isinstance(verdicts[0], tuple) else verdicts
    assert (mended if "--mended" in command else broken)(*values), printed[command]


@pytest.mark.parametrize("lesson", LESSONS[1:6], ids=lambda lesson: lesson.stem)
def test_a_task_that_fails_is_not_acknowledged(lesson: Path, breakable: Bench, tmp_path: Path) -> None:
    """It ends the worker, which gives it back, until lesson 7 knows better."""
    queue = f"lesson-{lesson.name[0]}"
    assert start(f"python {lesson} send cake:burnt", breakable.broker, tmp_path).wait() == 0
    worker = start(f"python {lesson} work", breakable.broker, tmp_path)
    breakable.programs.append(worker)
    assert worker.wait() == 1, worker.describe()
    until(lambda: breakable.ready(queue) == 1, "the task to be back")
    with breakable.broker.channel() as channel:
        channel.queue_delete(queue)


def test_a_worker_of_lesson_7_connects_again_and_stops_when_told(printed: dict[str, str]) -> None:
    assert printed["survivor"] == "soup begun\nsoup done\nexit code 0"


def test_nothing_is_left_of_the_lessons(printed: dict[str, str], breakable: Bench) -> None:
    names = breakable.broker.ctl("list_queues", "name").split()
    # lesson 7 was also started by hand here
    assert not [name for name in names if name.startswith("lesson-") and name != "lesson-7"]


# The script that breaks them


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_break_leaves_nothing(number: signal.Signals, breakable: Bench, tmp_path: Path) -> None:
    script = start("lessons/run.sh 5", breakable.broker, tmp_path, TMPDIR=str(tmp_path))
    breakable.programs.append(script)
    before = set(tmp_path.iterdir())
    until(
        lambda: (tmp := set(tmp_path.iterdir()) - before) and "begun" in contents(tmp.pop() / "first"), "a worker", 30
    )
    started = psutil.Process(script.process.pid).children(recursive=True)
    assert started
    script.signal(number)
    assert script.wait(20) in (130, 143)
    assert not [process for process in started if process.is_running()]
    assert set(tmp_path.iterdir()) == before
    assert "lesson-5" not in breakable.broker.ctl("list_queues", "name").split()


def contents(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_broker_of_somebody_else_is_not_restarted(breakable: Bench, tmp_path: Path) -> None:
    own = {"BROKER_DIR": str(tmp_path), "LESSON_RESTART_COMMAND": ""}
    script = start("lessons/run.sh 2", breakable.broker, tmp_path, **own)
    assert script.wait(30) == 3, script.describe()
    assert "set LESSON_RESTART_COMMAND" in script.stderr
    assert "lost" not in script.stdout
    assert "lesson-2" not in breakable.broker.ctl("list_queues", "name").split()


def test_a_queue_that_somebody_works_on_is_left_alone(breakable: Bench, tmp_path: Path) -> None:
    with breakable.broker.channel() as channel:
        channel.queue_declare("lesson-1", durable=True)
        channel.basic_consume("lesson-1", lambda *_: None)
        script = start("lessons/run.sh 1", breakable.broker, tmp_path)
        assert script.wait(30) == 2, script.describe()
        assert script.stderr == "run.sh: somebody works on lesson-1: stop that worker first\n"
        channel.queue_delete("lesson-1")


@pytest.mark.parametrize("arguments", ["", "0", "10", "1 2", "1 --mended more", "9 --mended", "--mended"])
def test_wrong_use_is_told_in_one_line(arguments: str) -> None:
    script = [str(ROOT / "lessons/run.sh"), *arguments.split()]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


# README


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is what a console block shows; `...` stands for anything."""
    return re.fullmatch(re.escape(expected.strip()).replace(r"\.\.\.", ".*"), printed.strip(), re.DOTALL) is not None


def shown(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


def test_the_readme_shows_what_every_break_prints(printed: dict[str, str]) -> None:
    found = [pair for _, text in CONSOLES for pair in shown(text) if "run.sh" in pair[0]]
    assert sorted(command for command, _ in found) == sorted([*BREAKS, *MENDED])
    for command, expected in found:
        assert matches(expected, printed[command]), f"$ {command}\n{printed[command]}\n--- README:\n{expected}"


def test_the_other_console_blocks_do_what_they_show(breakable: Bench, tmp_path: Path) -> None:
    for kind, text in CONSOLES:
        for command, expected in shown(text):
            if "run.sh" in command:
                continue
            program = start(command, breakable.broker, tmp_path)
            breakable.programs.append(program)
            if kind == "worker":
                last = expected.splitlines()[-2]  # before the dots
                until(lambda program=program, last=last: last in program.stdout, last)  # type: ignore[misc]
                program.signal(signal.SIGINT)
            program.wait()
            assert matches(expected, program.stdout + program.stderr), (
                f"$ {command}\n{program.describe()}\n--- README:\n{expected}"
            )
    with breakable.broker.channel() as channel:
        channel.queue_delete("lesson-1")


def test_what_the_readme_has_run_is_shown_too() -> None:
    for text in re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for command in (line.partition("#")[0].strip() for line in text.splitlines()):
            assert f"\n$ {command}\n" in README or command in ("./scripts/broker.sh up", "source .venv/bin/activate")


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / "lessons" / target).exists(), target


def test_the_readme_has_every_question_in_the_words_of_its_lesson() -> None:
    plain = re.sub(r"\s+", " ", README)
    for lesson in LESSONS[:-1]:
        question = re.split(r"(?<=[.]) ", ast.get_docstring(ast.parse(lesson.read_text())) or "")[-1]
        assert f"**{question}**" in plain, question
