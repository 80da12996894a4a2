"""The three standard streams in every state that a caller leaves them, tried on real processes. No broker."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.waiting import until

from workqueue.streams import LineTooLong, lines

ROOT = Path(__file__).parent.parent

START = """
import os, signal, sys, threading, time
from workqueue import streams
from workqueue.streams import OutputClosed, fill_missing_streams, hurry, lines, note, say
"""

# A program that is told to stop as ours are: a first SIGTERM ends what prints, a second one ends all.
STOPPABLE = """
def stop(number, frame):
    hurry()
    if stopping:
        note("stopped at once")
        os._exit(1)
    stopping.append(True)
    note("stopping")

def flood(size):
    try:
        while True:
            say("x" * size)
    except OutputClosed as error:
        ending.acquire()  # for good: the first thread that gives up ends the program
        with open(sys.argv[1], "w") as file:
            file.write(str(error))
        os._exit(3)

stopping = []
ending = threading.Lock()
signal.signal(signal.SIGTERM, stop)
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program of the given lines; it is killed at the end."""
    with ExitStack() as stack:

        def start(code: str, *arguments: str, env: dict[str, str] | None = None, **streams: int) -> object:
            process = subprocess.Popen(
                [sys.executable, "-c", START + code, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                **streams,  # type: ignore[call-overload]
            )
            stack.callback(end, process)
            return process

        yield start  # type: ignore[misc]


def pipe() -> tuple[int, int]:
    return os.pipe()


def socket_pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return ours, theirs


KINDS = [pipe, socket_pair, terminal]


class Output:
    """Our end of a program's standard output; closing `theirs` lets us see its end."""

    def __init__(self, kind: Callable[[], tuple[int, int]]) -> None:
        self.ours, self.theirs = kind()
        self.read = b""

    def is_full(self) -> bool:
        """Whether the program cannot go on. A pipe with less than a page of room counts as full."""
        poll = select.poll()
        poll.register(self.theirs, select.POLLOUT)
        return not poll.poll(0)

    def wait_until_full(self) -> None:
        until(self.is_full, "an output that nobody reads to be full")

    def read_some(self, size: int = 65536) -> bytes:
        assert select.select([self.ours], [], [], 20)[0], "no output comes"
        try:
            some = os.read(self.ours, size)
        except OSError:  # how a terminal says that its last program is gone
            some = b""
        self.read += some
        return some

    def rest(self) -> bytes:
        """All that comes until the programs have ended."""
        self.close_theirs()
        while self.read_some():
            pass
        return self.read

    def close_theirs(self) -> None:
        if self.theirs != -1:
            os.close(self.theirs)
        self.theirs = -1

    def close_ours(self) -> None:
        if self.ours != -1:
            os.close(self.ours)
        self.ours = -1


@pytest.fixture(params=KINDS)
def output(request: pytest.FixtureRequest) -> Iterator[Output]:
    output = Output(request.param)
    yield output
    output.close_theirs()
    output.close_ours()


@pytest.fixture
def shared_pipe() -> Iterator[Output]:
    output = Output(pipe)
    yield output
    output.close_theirs()
    output.close_ours()


# Lines stay whole

SPEAKER = """
def speak(letter):
    for number in range(int(sys.argv[2])):
        say(letter * 20_000)
        if number % 10 == 0:
            note(letter * 900 + chr(10) + letter * 900)
threads = [threading.Thread(target=speak, args=[letter]) for letter in sys.argv[1]]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def check_whole(text: bytes, letters: str, count: int) -> None:
    found = text.splitlines()
    for line in found:
        assert len(set(line)) == 1, f"a line that begins with {line[:20]!r} is mixed"
    for letter in letters.encode():
        sizes = [len(line) for line in found if line[0] == letter]
        assert sizes.count(20_000) == count
        assert sizes.count(900) == len(sizes) - count == (count + 9) // 10 * 2


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_of_several_processes_and_threads_never_mix(output: Output, start: Start, blocking: bool) -> None:
    os.set_blocking(output.theirs, blocking)
    for letters in ("ab", "c", "d"):
        start(SPEAKER, letters, "100", stdout=output.theirs, stderr=output.theirs)
    check_whole(output.rest(), "abcd", 100)


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_lines_of_several_processes_never_mix_in_a_file(flags: int, start: Start, tmp_path: Path) -> None:
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | flags)
    programs = [start(SPEAKER, letters, "100", stdout=file, stderr=file) for letters in ("ab", "c", "d")]
    os.close(file)
    assert [program.wait(60) for program in programs] == [0, 0, 0]
    check_whole((tmp_path / "log").read_bytes(), "abcd", 100)


def test_a_process_killed_in_the_midst_of_a_line_does_not_stop_the_others(output: Output, start: Start) -> None:
    first = start("say('x' * 10_000_000)", stdout=output.theirs)
    output.wait_until_full()
    second = start("print(1, file=sys.stderr, flush=True); say('hello')", stdout=output.theirs, stderr=subprocess.PIPE)
    assert second.stderr
    assert second.stderr.readline() == b"1\n"
    first.kill()
    first.wait()
    assert output.rest().strip(b"x") == b"hello\n"


def test_a_process_that_prints_without_a_pause_lets_the_others_have_their_turn(
    shared_pipe: Output, start: Start
) -> None:
    flood = start("while True: say('x' * 20_000)", stdout=shared_pipe.theirs)
    shared_pipe.wait_until_full()
    other = start("note('begins'); say('hello')", stdout=shared_pipe.theirs, stderr=subprocess.PIPE)
    assert other.stderr
    assert other.stderr.readline() == b"begins\n"
    shared_pipe.read = b""
    for _ in range(1000):
        time.sleep(0.001)  # a reader that is slower than the flood
        shared_pipe.read_some(4096)
        if b"hello" in shared_pipe.read:
            break
    flood.kill()
    assert b"\nhello\n" in shared_pipe.read
    assert shared_pipe.read.count(b"\n") < 100


# Readers that are slow, frozen, or gone

# One that cannot write to a blocking pipe without waiting, and has no locks for pipes.
OLDER_SYSTEM = """
def no_locks(*arguments):
    raise OSError(9, "Bad file descriptor")
streams._NOWAIT = 0
streams.fcntl.lockf = no_locks
"""


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize("system", ["", OLDER_SYSTEM], ids=["", "older system"])
def test_a_slow_reader_gets_everything(output: Output, start: Start, blocking: bool, size: int, system: str) -> None:
    os.set_blocking(output.theirs, blocking)
    count = 1_500_000 // size
    code = f"{system}for number in range({count}): say(str(number).ljust({size}, '.'))"
    program = start(code, stdout=output.theirs)
    output.wait_until_full()
    time.sleep(0.1)
    found = output.rest().splitlines()
    assert [int(line.rstrip(b".")) for line in found] == list(range(count))
    assert {len(line) for line in found} == {size}
    assert program.wait(10) == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_notes_wait_for_a_slow_reader_too(output: Output, start: Start, blocking: bool) -> None:
    os.set_blocking(output.theirs, blocking)
    start("for number in range(2000): note(str(number).ljust(900, '.'))", stderr=output.theirs)
    output.wait_until_full()
    assert [int(line.rstrip(b".")) for line in output.rest().splitlines()] == list(range(2000))


@pytest.mark.parametrize("blocking", [True, False])
def test_only_the_thread_that_prints_waits(output: Output, start: Start, blocking: bool) -> None:
    """The main thread goes on, and hears signals, even while other threads wait to print."""
    os.set_blocking(output.theirs, blocking)
    code = STOPPABLE + (
        "for _ in range(3): threading.Thread(target=flood, args=[5000]).start()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard', file=sys.stderr, flush=True))\n"
        "note('main goes on')\n"
        "while True: time.sleep(0.05)\n"
    )
    program = start(code, "/dev/null", stdout=output.theirs, stderr=subprocess.PIPE)
    output.wait_until_full()
    assert program.stderr
    assert program.stderr.readline() == b"main goes on\n"
    for _ in range(3):
        program.send_signal(signal.SIGUSR1)
        assert program.stderr.readline() == b"heard\n"
    assert program.poll() is None


@pytest.mark.parametrize(
    ("blocking", "prints", "one_place"),
    [
        (True, "flood(5000)", False),
        (False, "flood(5000)", True),
        (True, "flood(5_000_000)", True),
        (False, "flood(5_000_000)", False),
        (True, "threaded", True),
        (False, "threaded", False),
        (True, OLDER_SYSTEM + "threaded", True),
        (False, OLDER_SYSTEM + "flood(5000)", False),
    ],
)
def test_told_to_stop_a_program_that_nobody_reads_gives_up(
    output: Output, start: Start, tmp_path: Path, blocking: bool, prints: str, one_place: bool
) -> None:
    os.set_blocking(output.theirs, blocking)
    threaded = "for _ in range(3): threading.Thread(target=flood, args=[5000]).start()\nwhile True: time.sleep(0.05)"
    code = "streams.HURRY_SECONDS = 0.3\n" + STOPPABLE + prints.replace("threaded", threaded)
    stderr = output.theirs if one_place else subprocess.DEVNULL
    program = start(code, str(tmp_path / "reason"), stdout=output.theirs, stderr=stderr)
    output.wait_until_full()
    for size in (1, 100, 1000):  # room for a part of a line: a terminal is ready for a write then, and yet may block
        output.read_some(size)
        time.sleep(0.02)
    program.send_signal(signal.SIGTERM)
    assert program.wait(5) == 3
    assert (tmp_path / "reason").read_text() == "standard output is gone (nobody reads it)"


def test_told_to_stop_a_write_that_cannot_go_on_waits_a_second(output: Output, start: Start) -> None:
    program = start(STOPPABLE + "flood(5000)", os.devnull, stdout=output.theirs, stderr=subprocess.DEVNULL)
    output.wait_until_full()
    begun = time.monotonic()
    program.send_signal(signal.SIGTERM)
    assert program.wait(10) == 3
    assert 0.9 < time.monotonic() - begun < 3


@pytest.mark.parametrize("prints", ["flood(5000)", "flood(5_000_000)", "threaded"])
@pytest.mark.parametrize("one_place", [True, False])
def test_a_second_signal_ends_a_program_that_nobody_reads(
    output: Output, start: Start, tmp_path: Path, prints: str, one_place: bool
) -> None:
    threaded = "for _ in range(3): threading.Thread(target=flood, args=[5000]).start()\nwhile True: time.sleep(0.05)"
    code = "streams.HURRY_SECONDS = 600\n" + STOPPABLE + prints.replace("threaded", threaded)
    stderr = output.theirs if one_place else subprocess.DEVNULL
    program = start(code, str(tmp_path / "reason"), stdout=output.theirs, stderr=stderr)
    output.wait_until_full()
    program.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    assert program.wait(5) == 1


def test_without_hurry_a_reader_may_take_its_time_and_with_it_may_be_slow(output: Output, start: Start) -> None:
    """What counts in a hurry is whether the line gets on, not how long it takes in all."""
    code = "streams.HURRY_SECONDS = 0.5\n" + STOPPABLE + "say('x' * 500_000)\nos._exit(0)"
    program = start(code, stdout=output.theirs, stderr=subprocess.PIPE)
    output.wait_until_full()
    time.sleep(0.8)
    program.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    while time.monotonic() < begun + 1:
        output.read_some(5000)
        time.sleep(0.03)
    assert output.rest() == b"x" * 500_000 + b"\n"
    assert program.wait(10) == 0


def test_in_a_hurry_many_notes_wait_no_longer_than_one_until_somebody_reads_again(output: Output, start: Start) -> None:
    code = """
streams.HURRY_SECONDS = 0.5
hurry()
for number in range(500): note(str(number).ljust(900, "."))
print("given up", flush=True)
sys.stdin.readline()
for number in range(500): note("again".ljust(900, "."))
"""
    program = start(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output.theirs)
    assert program.stdin
    assert program.stdout
    assert select.select([program.stdout], [], [], 10)[0]  # and not 0.5 s a note
    until(lambda: output.read_some() and not output.is_full(), "room")
    program.stdin.write(b"\n")
    program.stdin.flush()
    assert output.rest().count(b"again") > 100


@pytest.mark.parametrize("size", [5000, 5_000_000])
def test_what_a_signal_handler_notes_follows_the_line_that_it_interrupted(
    output: Output, start: Start, size: int
) -> None:
    code = (
        "signal.signal(signal.SIGUSR1, lambda *_: (note('from the handler'), os.close(int(sys.argv[1]))))\n"
        f"for _ in range(5_000_000 // {size}): say('x' * {size})"
    )
    handled, closes = os.pipe()
    os.set_inheritable(closes, True)
    program = subprocess.Popen(
        [sys.executable, "-c", START + code, str(closes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=output.theirs,
        stderr=output.theirs,
        pass_fds=[closes],
    )
    os.close(closes)
    output.wait_until_full()
    program.send_signal(signal.SIGUSR1)
    assert select.select([handled], [], [], 10)[0]  # the handler does not wait for the line that waits for it
    os.close(handled)
    found = output.rest().splitlines()
    assert program.wait(10) == 0
    assert found.count(b"from the handler") == 1
    assert {line for line in found if line != b"from the handler"} == {b"x" * size}


def test_a_line_that_a_signal_handler_breaks_off_holds_up_nobody(output: Output, start: Start) -> None:
    code = """
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
def others():
    started.wait()
    say("another thread")
started = threading.Event()
thread = threading.Thread(target=others)
thread.start()
try:
    say("x" * 5_000_000)
except KeyboardInterrupt:
    started.set()
    say("next")
thread.join()
"""
    program = start(code, stdout=output.theirs)
    output.wait_until_full()
    program.send_signal(signal.SIGTERM)
    torn, *whole = output.rest().splitlines()
    assert torn.strip(b"x") == b""
    assert sorted(whole) == [b"another thread", b"next"]
    assert program.wait(10) == 0


def test_a_forked_child_prints_though_a_thread_of_its_parent_was_in_the_midst_of_a_line(
    output: Output, start: Start
) -> None:
    """With the streams of its own that a handler gives it: the locks of its parent's threads are not its business."""
    code = """
thread = threading.Thread(target=say, args=["x" * 5_000_000], daemon=True)
thread.start()
sys.stdin.readline()
child = os.fork()
if child == 0:
    say("child")
    os._exit(0)
print("forked", file=sys.stderr, flush=True)
thread.join()
os.waitpid(child, 0)
"""
    program = start(code, stdin=subprocess.PIPE, stdout=output.theirs, stderr=subprocess.PIPE)
    output.wait_until_full()
    assert program.stdin
    assert program.stderr
    program.stdin.write(b"\n")
    program.stdin.flush()
    assert program.stderr.readline() == b"forked\n"
    assert output.rest() == b"x" * 5_000_000 + b"\nchild\n"
    assert program.wait(10) == 0


SAYS_WHY = """
try:
    while True: say("x" * 1000)
except OutputClosed as error:
    open(sys.argv[1], "w").write(str(error))
"""


@pytest.mark.parametrize("read_before", [True, False])
def test_a_reader_that_is_gone(shared_pipe: Output, start: Start, tmp_path: Path, read_before: bool) -> None:
    program = start(SAYS_WHY, str(tmp_path / "why"), stdout=shared_pipe.theirs)
    if read_before:
        assert shared_pipe.read_some()
    else:
        shared_pipe.wait_until_full()
    shared_pipe.close_theirs()
    shared_pipe.close_ours()
    assert program.wait(10) == 0
    assert (tmp_path / "why").read_text() == "standard output is gone (Broken pipe)"


@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), ("</dev/null >&0", "Bad file desc")],
)
def test_an_output_that_cannot_be_written_to(redirection: str, why: str, tmp_path: Path) -> None:
    code = START + "fill_missing_streams()" + SAYS_WHY
    command = f'exec "$0" -c "$1" "$2" {redirection}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", command, sys.executable, code, tmp_path / "why"], env=environment, check=True)
    assert (tmp_path / "why").read_text().startswith(f"standard output is gone ({why}")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/null </dev/null 2>&0", "2>gone"])
def test_a_note_never_fails(redirection: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gone")
    reader = os.open(tmp_path / "gone", os.O_RDONLY | os.O_NONBLOCK)
    code = START + "fill_missing_streams(); sys.stdin.readline(); note('hello'); note('a\\nb'); say('went on')"
    program = subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    if redirection == "2>gone":
        time.sleep(0.1)
    os.close(reader)
    out, _ = program.communicate(b"\n", timeout=20)
    assert out == b"went on\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_every_text_can_be_shown_in_every_encoding(start: Start, encoding: str, stream: str) -> None:
    text = "Größe 🚀 \\ud800 \\x1b"
    function = "say(streams.harmless" if stream == "stdout" else "note(str"
    program = start(
        f"{function}('{text}'))", env={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = program.communicate(timeout=20)
    shown = (out if stream == "stdout" else err).decode(encoding)
    assert shown == ("Größe 🚀".encode(encoding, "backslashreplace").decode(encoding) + r" \ud800 \x1b" + "\n")
    assert (err if stream == "stdout" else out) == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_no_connection_gets_the_number_of_a_missing_stream(closed: str, tmp_path: Path) -> None:
    code = START + "import socket; fill_missing_streams(); open('number', 'w').write(str(socket.socket().fileno()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert int((tmp_path / "number").read_text()) > 2


# Input


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"x", b"\x0c", b"\xff", b"y" * 300_000]), max_size=12))
def test_the_lines_of_a_file_are_those_that_python_reads(tmp_path: Path, parts: list[bytes]) -> None:
    (tmp_path / "file").write_bytes(b"".join(parts))
    with open(tmp_path / "file", "rb") as file:
        assert list(lines(str(tmp_path / "file"))) == list(file)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pause_of_standard_input_is_not_its_end(
    kind: Callable[[], tuple[int, int]], start: Start, blocking: bool
) -> None:
    """Neither between two lines nor within one."""
    ours, theirs = reversed(kind()) if kind is pipe else kind()
    os.set_blocking(theirs, blocking)
    code = "for line in lines('-'): say(str(line))\nsay(str(os.fstat(0) is not None))"
    program = start(code, stdin=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    assert program.stdout
    for part in (b"first\nsec", b"ond\nth", b"ird\nlast\n"):
        os.write(ours, part)
        for line in part.splitlines(keepends=True):
            if line.endswith(b"\n"):
                program.stdout.readline()
        time.sleep(0.05)
    assert program.poll() is None
    if kind is not terminal:  # whose end is an error to its programs
        os.write(ours, b"no line break")
        os.close(ours)
        assert program.stdout.read() == b"b'no line break'\nTrue\n"
        assert program.wait(10) == 0
    else:
        os.close(ours)


def test_every_line_with_pauses_arrives_once_and_whole(start: Start) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    program = start("for line in lines('-'): say(line.decode().strip())", stdin=ours, stdout=subprocess.PIPE)
    os.close(ours)
    text = "".join(f"{number}\n" for number in range(300)).encode()
    for begin in range(0, len(text), 7):
        os.write(theirs, text[begin : begin + 7])
        time.sleep(0.0005)
    os.close(theirs)
    out, _ = program.communicate(timeout=20)
    assert out == text


@pytest.mark.parametrize(("path", "name"), [("/dev/zero", "/dev/zero"), ("-", "standard input")])
def test_a_file_without_line_breaks_does_not_fill_the_memory(path: str, name: str, start: Start) -> None:
    code = (
        "import resource\n"
        "try: list(lines(sys.argv[1]))\n"
        "except streams.LineTooLong as error: say(str(error))\n"
        "say(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))"
    )
    zeros = os.open("/dev/zero", os.O_RDONLY)
    program = start(code, path, stdin=zeros, stdout=subprocess.PIPE)
    os.close(zeros)
    out, _ = program.communicate(timeout=60)
    message, peak = out.decode().splitlines()
    assert message == f"{name}, line 1: longer than 256 MiB"
    assert int(peak) < 650


def test_a_line_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workqueue.streams.MAX_LINE", 1024 * 1024)
    path = tmp_path / "file"
    path.write_bytes(b"one\n" + b"x" * 1024 * 1024 + b"\n" + b"y" * (1024 * 1024 + 1) + b"\nfour\n")
    read = lines(str(path))
    assert [len(next(read)), len(next(read))] == [4, 1024 * 1024 + 1]
    with pytest.raises(LineTooLong, match=f"^{path}, line 3: longer than 1 MiB$"):
        next(read)


@pytest.mark.parametrize("path", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=path) as caught:
        list(lines(str(tmp_path / path)))
    assert caught.value.filename == str(tmp_path / path)


@pytest.mark.parametrize("redirection", ["<&1"])
def test_a_standard_input_that_cannot_be_read_is_named(redirection: str, tmp_path: Path) -> None:
    code = "fill_missing_streams()\ntry: list(lines('-'))\nexcept OSError as error: note(str(error.filename))"
    program = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" >out {redirection}', sys.executable, START + code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        timeout=20,
    )
    assert program.stderr == b"standard input\n"
