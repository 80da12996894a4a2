"""The rules of the house: which module may import which, what the programs load, and how long they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from lab.nodes import ROOT

TOP = {"config", "sender", "tasks", "worker"}
LONGEST_FUNCTION = 32  # lines
LONGEST_PROGRAM = 559  # lines of sender.py, worker.py and tasks.py together
BLOCKING = {"BlockingConnection", "BlockingChannel", "blocking_connection"}

FOLDERS = ("workqueue", "scripts", "tests", "lessons")
FILES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
PACKAGE = sorted((ROOT / "workqueue").glob("*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), shown(path))


def below(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if into_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from below(child, into_functions)


def imports(path: Path, into_functions: bool = True) -> set[str]:
    """Full names of what a file imports: `from a import b` gives a and a.b, since b may be a module, too."""
    found: set[str] = set()
    for node in below(parsed(path), into_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def heads(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def modules_of(folder: str) -> set[str]:
    """Names by which the modules of a folder can be imported, from wherever it may be on the path."""
    found = {folder}
    for path in (ROOT / folder).rglob("*.py"):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        found |= set(parts) - {"__init__"}
    return found


def may_import(path: Path) -> set[str]:
    """Which of our modules a file may import, by the first parts of their names."""
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part in ("tasks", "config"):
        return set()
    if part in ("workqueue", "sender", "worker"):
        return {"tasks", "config", "workqueue"}
    if part == "tests":
        return TOP | {"workqueue"} | modules_of("scripts") | modules_of("tests")
    return TOP | {"workqueue"} | modules_of(part)


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_imports_go_one_way(path: Path) -> None:
    ours = TOP.union(*(modules_of(folder) for folder in FOLDERS))
    assert heads(imports(path)) & ours <= may_import(path)


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {f"workqueue.{path.stem}".removesuffix(".__init__"): path for path in PACKAGE}
    graph = {name: imports(path, into_functions=False) & names.keys() for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def loaded_by(statement: str) -> set[str]:
    """What Python has loaded after a statement, by the first parts of the names."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return heads(set(done.stdout.split()))


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import tasks", {"pika", "config", "workqueue", "sender", "worker", "dotenv", "rich"}),
        ("import config", {"tasks", "workqueue", "sender", "worker", "rich"}),
        ("import sender, worker", {"rich"}),
        ("import sender", {"worker"}),
        ("import worker", {"sender"}),
    ],
)
def test_what_is_not_needed_is_not_loaded(statement: str, never: set[str]) -> None:
    """Not even by way of others, or by a function that imports."""
    assert not loaded_by(statement) & never


def words(path: Path) -> Iterator[str]:
    """Every name in a file, also inside those that it imports; not what its texts and comments say."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
    for name in imports(path):
        yield from name.split(".")


@pytest.mark.parametrize("path", [path for path in FILES if "lessons" not in path.parts], ids=shown)
def test_nobody_but_the_lessons_uses_pikas_blocking_connection(path: Path) -> None:
    """pika warns of it from its next release on."""
    assert not BLOCKING & set(words(path))


def test_only_what_users_run_or_change_lies_at_the_top() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == TOP


@pytest.mark.parametrize("name", ["sender.py", "worker.py"])
def test_no_function_of_a_program_is_long(name: str) -> None:
    functions = [n for n in ast.walk(parsed(ROOT / name)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert functions
    assert {function: lines for function, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_the_programs_can_be_read_in_one_sitting() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in ("sender.py", "worker.py", "tasks.py")}
    assert sum(lines.values()) <= LONGEST_PROGRAM, lines


@pytest.mark.parametrize("path", PACKAGE, ids=shown)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parsed(path))


NEWER_THAN_BASH_3_2 = (
    r"\bexec [^<>\n)]*[^<>\d\s)][^\n)]*\d>&-",  # a descriptor closed on the way to another program stays open in that
    r"declare -[gA]|local -[nA]|typeset -A|mapfile|readarray|coproc|wait -n|&>>|\|&",
    r"\$\{\w+(,|\^|@[A-Z])|\$\{\w+\[-|\{\w+\}[<>]|\$(BASHPID|EPOCH)|\[\[ -v|printf -v \S+\[|;;?&",
    r"(?<!\+)\"\$\{\w+\[@\]\}\"(?!\}| 2>)",  # of an empty array, with `set -u`
)


def test_scripts_keep_to_the_bash_of_macos() -> None:
    for path in (*ROOT.glob("scripts/*.sh"), ROOT / "lessons/run.sh"):
        code = re.sub(r"(^|\s)#.*", "", path.read_text())
        found = [match.group() for rule in NEWER_THAN_BASH_3_2 for match in re.finditer(rule, code, re.MULTILINE)]
        assert found == [], path
