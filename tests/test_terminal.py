"""What a person sees of a worker on a terminal: its bar in one line, colours, and nothing wiped out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from lab.nodes import ROOT
from programs import Bench

COLUMNS = 80
TOKENS = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b])")


class Screen:
    """A worker on a terminal of its own, and what that shows: of the escapes, those that the worker uses."""

    def __init__(self, bench: Bench, arguments: tuple[str, ...], settings: dict[str, str]) -> None:
        environment = bench.environment(LOG_FORMAT="text", TERM="xterm", **settings)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(bench.folder)
            os.execve(sys.executable, [sys.executable, str(ROOT / "worker.py"), *arguments], environment)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.written = b""

    @property
    def rows(self) -> list[str]:
        rows, row, column, wraps = [""], 0, 0, True
        for numbers, command, character in TOKENS.findall(self.written.decode(errors="ignore")):
            if command == "A":
                row -= 1
            elif command == "K":
                rows[row] = ""
            elif numbers == "?7":
                wraps = command == "h"
            elif character == "\r":
                column = 0
            elif character == "\n" or (character and column == COLUMNS and wraps):
                row, column = row + 1, 0 if character != "\n" else column
                rows += [""] * (row + 1 - len(rows))
            if character and character not in "\r\n":
                rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
                column = min(column + 1, COLUMNS if wraps else COLUMNS - 1)
        return rows

    def until(self, enough: Callable[[list[str]], bool], seconds: float = 15.0) -> list[str]:
        """Its rows, once they are `enough`, or the worker has ended."""
        deadline = time.monotonic() + seconds
        while not enough(self.rows) and self.read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, self.rows
        return self.rows

    def read(self, seconds: float) -> bytes:
        select.select([self.terminal], [], [], max(0.0, seconds))
        with suppress(OSError):  # its other end is closed
            new = os.read(self.terminal, 10_000)
            self.written += new
            return new
        return b""


@contextmanager
def on_a_terminal(bench: Bench, *arguments: str, **settings: str) -> Iterator[Screen]:
    screen = Screen(bench, arguments, settings)
    try:
        yield screen
    finally:
        with suppress(ProcessLookupError):
            os.kill(screen.pid, 9)
        os.waitpid(screen.pid, 0)
        os.close(screen.terminal)


def shows(words: str) -> Callable[[list[str]], bool]:
    return lambda rows: any(words in row for row in rows)


def test_the_bar_is_one_line_also_where_it_is_too_long_for_the_terminal(bench: Bench) -> None:
    task = '{"id": "0b5e8f6e-3b1c-4a46-9d5e-7a3d9c1f2e11", "task": "x", "difficulty": 30}'
    bench.publish(task.encode())
    with on_a_terminal(bench, "--burst", SECONDS_PER_DIFFICULTY="0.1") as screen:
        rows = screen.until(shows("Stopped"))
    bars = [row for row in rows if "Progress" in row]
    assert len(bars) == 1, rows
    assert len(bars[0]) == COLUMNS
    assert "3/3s" in bars[0]


def test_what_ctrl_c_does_stays_to_be_read(bench: Bench) -> None:
    bench.send("--task", "x", "--difficulty", "4")
    with on_a_terminal(bench, SECONDS_PER_DIFFICULTY="1") as screen:
        screen.until(shows("1/4s"))
        os.write(screen.terminal, b"\x03")
        rows = screen.until(shows("Stopped"))
    assert shows("stopping when what runs is done")(rows), rows
    assert shows("4/4s")(rows)


HANDLER = """
from tasks import handles

@handles("x")
def work(task, attempt):
    for page in range(3):
        print("page", page)
        attempt.progress(page, 3)
"""


def test_what_a_handler_prints_is_not_wiped_out(bench: Bench) -> None:
    (bench.folder / "printing.py").write_text(HANDLER)
    bench.send("--task", "x", "--difficulty", "1")
    with on_a_terminal(bench, "--burst", "--handlers", "printing") as screen:
        rows = screen.until(shows("Stopped"))
    assert [row for row in rows if row.startswith("page")] == ["page 0", "page 1", "page 2"]


@pytest.mark.parametrize(("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_a_worker_has_a_colour_of_its_own(bench: Bench, settings: dict[str, str], coloured: bool) -> None:
    colours = []
    for name in ("Anna", "Bert"):
        with on_a_terminal(bench, "--burst", "--id", name, **settings) as screen:
            screen.until(shows("Stopped"))
        colours.append(set(re.findall(rb"\x1b\[\d+m(?=\[)", screen.written)))
    assert [len(found) for found in colours] == [coloured, coloured]
    assert (colours[0] != colours[1]) == coloured
