"""The three standard streams, in every state that a caller leaves them: closed, not blocking, full, or read by nobody.

A pipe, a socket or a terminal takes what its reader has room for, so a write to one can stand still for ever. Three
rules hold here. Only the thread that prints waits, and never inside a system call that a stop could not end. A line
stays whole, also among several processes that print into one pipe. Nothing is dropped, unless the program is told to
stop and its reader does not read: see `hurry`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

MOST_SHOWN = 200  # characters of a task's text in a line for people
MAX_LINE = 256 * 1024 * 1024  # bytes of a line of input; more than any broker takes as one message
HURRY_SECONDS = 1.0  # how long a write that cannot go on waits, once the program is told to stop
LOOK_SECONDS = 0.1  # how often what waits looks whether that is so
CHUNK_BYTES = 256 * 1024
PIECE_BYTES = select.PIPE_BUF  # what a pipe that is ready for a write takes without standing still
LINE_BYTE, NEXT_BYTE = 0, 1  # what the record locks of `_take_turn` are on


class OutputClosed(Exception):
    """Standard output takes no more: its reader is gone, or the disk is full, or nobody reads it while we are to
    stop."""


class LineTooLong(ValueError):
    """A line of input of more than MAX_LINE bytes; the message names the file and the line."""


def harmless(text: str, most: int = MOST_SHOWN) -> str:
    """`text` in one line of at most `most` characters, with escapes for what could move a cursor, ring a bell or
    turn letters round."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def fill_missing_streams() -> None:
    """Opens what the caller has closed of the three standard streams, so that no connection gets one of their numbers.

    A missing standard output stays one that cannot be written to, and a missing standard input is an empty one.
    """
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if stream == 2 else os.O_RDONLY)


# Output


def say(line: str) -> None:
    """Writes a line to standard output: see `show`."""
    show(f"{line}\n")


def show(text: str) -> None:
    """Writes to standard output at once, the whole of it, so that several threads and processes never mix.

    Straight to the file descriptor: nothing is buffered that an abrupt end could lose. Raises OutputClosed.
    """
    try:
        _write_line(1, text.encode(getattr(sys.__stdout__, "encoding", None) or "utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputClosed(f"standard output is gone ({error.strerror})") from None


def note(line: str) -> None:
    """Writes a line about the program, or the lines of a traceback, to standard error, if that can be written to.

    A signal handler may call it, after `hurry`. If it interrupted its own thread in the midst of a line to the same
    place, the note follows that line.
    """
    text = "".join(f"{harmless(part, most=1000)}\n" for part in line.splitlines())
    with suppress(OSError):
        _write_line(2, text.encode(getattr(sys.__stderr__, "encoding", None) or "utf-8", "backslashreplace"))


_hurry_since: float | None = None  # in seconds of time.monotonic()


def hurry() -> None:
    """From now on, a write that cannot go on waits HURRY_SECONDS at most; then `say` raises OutputClosed, and `note`
    drops the rest. For the signal handler that tells the program to stop."""
    global _hurry_since
    if _hurry_since is None:
        _hurry_since = time.monotonic()


class _Stream:
    """What this process knows of one pipe, socket or terminal, which may be standard output and error at once."""

    def __init__(self, mode: int) -> None:
        self.is_terminal = stat.S_ISCHR(mode)
        # An RLock, since its release() fails where this thread does not hold it. That makes it safe to release after
        # an exception out of a signal handler, which may come between any two steps.
        self.lock = threading.RLock()
        self.inside: set[int] = set()  # the threads that write to it, or wait to
        self.deferred: deque[tuple[int, bytes]] = deque()  # (file descriptor, lines) of signal handlers meanwhile
        self.slow = False  # the last line had to wait for the reader
        self.torn = False  # the last line was given up in its midst
        self.given_up = False  # in a hurry, its reader has had its HURRY_SECONDS


_streams: dict[tuple[int, int], _Stream] = {}  # by device and inode

# A child that a handler forks has none of the threads that may hold a lock.
os.register_at_fork(after_in_child=_streams.clear)


def _write_line(fd: int, line: bytes) -> None:
    """Writes all of `line`, or raises OSError. `line` may be several lines that belong together."""
    status = os.fstat(fd)  # every time, since a handler may redirect it
    if not _can_stand_still(fd, status.st_mode):
        # The kernel writes to a file whole: nothing to wait for, and no lock needed.
        while line:
            line = line[os.write(fd, line) :]
        return
    place = (status.st_dev, status.st_ino)
    stream = _streams.get(place) or _streams.setdefault(place, _Stream(status.st_mode))
    thread = threading.get_ident()
    if thread in stream.inside:  # this is a signal handler, and the line that it interrupted cannot go on before it
        stream.deferred.append((fd, line))
        return
    try:
        stream.inside.add(thread)
        _write_in_turn(fd, stream, line)
    finally:
        stream.inside.discard(thread)
        while stream.deferred:
            with suppress(OSError, IndexError):
                _write_line(*stream.deferred.popleft())


def _can_stand_still(fd: int, mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))


class _Patience:
    """How long one line may still wait: for ever, or in a hurry for HURRY_SECONDS without getting on."""

    __slots__ = ("_since", "_stream")

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._since = time.monotonic()

    def got_on(self) -> None:
        self._since = time.monotonic()

    def check(self) -> None:
        """Raises TimeoutError if it is over."""
        if _hurry_since is None:
            return
        waited = time.monotonic() - max(self._since, _hurry_since)
        if waited >= HURRY_SECONDS or self._stream.given_up:
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")


def _write_in_turn(fd: int, stream: _Stream, line: bytes) -> None:
    """Waits until no other thread and no other process is in the midst of a line there, and writes this one."""
    patience = _Patience(stream)
    try:
        while not stream.lock.acquire(timeout=LOOK_SECONDS):
            patience.check()
        own_fd = _reopened(fd) if stream.is_terminal else fd
        try:
            _take_turn(fd, stream.slow, patience)
            _write_whole(own_fd, stream, line, patience)
            stream.given_up = False
        except TimeoutError:
            stream.given_up = True
            raise
        finally:
            _unlock(fd, LINE_BYTE, 2)  # and NEXT_BYTE, which may be left after an exception
            if own_fd != fd:  # not before the end of the turn: it would end it, see below
                os.close(own_fd)
    finally:
        _release(stream.lock)


def _release(lock: threading.RLock) -> None:
    try:
        lock.release()
    except RuntimeError:
        return  # it was not ours


# Between processes: record locks (POSIX). Unlike those of flock(), they tell processes apart that have inherited one
# file descriptor, and no child inherits them, so that the kernel frees them whenever a process ends. LINE_BYTE is for
# whoever writes a line. NEXT_BYTE is for whoever has it next: with it, a process that prints without a pause into a
# pipe that is read slowly, and thus always holds the first, still lets the others have their turn. All locks of a
# process on a file end as soon as it closes any descriptor of that file.


def _take_turn(fd: int, politely: bool, patience: _Patience) -> None:
    """Takes LINE_BYTE. `politely` is for a process that may have held it most of the time."""
    if not politely and _locked(fd, LINE_BYTE):
        return
    for byte in (NEXT_BYTE, LINE_BYTE):
        pause = 0.0005
        while not _locked(fd, byte):  # never by waiting in the kernel, where a hurry would not be noticed
            patience.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
    _unlock(fd, NEXT_BYTE)


def _locked(fd: int, byte: int) -> bool:
    """Tries to lock it. True as well where the system has no such locks for pipes: better mixed lines than none."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _unlock(fd: int, byte: int, count: int = 1) -> None:
    try:
        fcntl.lockf(fd, fcntl.LOCK_UN, count, byte)
    except OSError:
        return  # no such locks here, or the file is closed by now


def _write_whole(fd: int, stream: _Stream, line: bytes, patience: _Patience) -> None:
    """Writes the line, at the speed of the reader. Raises OSError."""
    if stream.torn:  # what comes now is at least no part of what was given up
        line = b"\n" + line
    left = memoryview(line)
    stream.slow = False
    try:
        while left:
            count = _write_what_fits(fd, left)
            left = left[count:]
            if count:
                patience.got_on()
            else:
                stream.slow = True
                patience.check()
                _wait_for_room(fd)
    finally:
        stream.torn = 0 < len(left) < len(line) or (stream.torn and len(left) == len(line))


def _write_what_fits(fd: int, data: memoryview) -> int:
    """Writes without waiting, whether the descriptor blocks or not, and returns the number of bytes written.

    The descriptor itself stays as it is: it is shared with whoever else has inherited it.
    """
    if _NOWAIT:
        try:
            return os.pwritev(fd, [data], -1, _NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
    if not _has_room(fd, 0):
        return 0
    try:
        return os.write(fd, data[:PIECE_BYTES])
    except BlockingIOError:
        return 0


_NOWAIT = getattr(os, "RWF_NOWAIT", 0) if hasattr(os, "pwritev") else 0
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE)  # by this kernel for this kind of file


def _reopened(fd: int) -> int:
    """The same terminal, not blocking: one that is ready for a write may have less room than the write needs."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # a terminal of someone else, or no Linux
        return fd


def _wait_for_room(fd: int) -> None:
    if _has_room(fd, 0):
        time.sleep(0.001)  # a full terminal may say so and yet take nothing
    else:
        _has_room(fd, LOOK_SECONDS)


def _has_room(fd: int, seconds: float) -> bool:
    """Whether a write would be taken, or would fail, within that time."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


# Input


def lines(path: str) -> Iterator[bytes]:
    """The lines of a file, with their line breaks; `-` is standard input. Waits where that has nothing for the moment.

    Raises OSError with its `filename`, and LineTooLong, before such a line fills the memory.
    """
    name = "standard input" if path == "-" else path
    number = 1
    begun = bytearray()
    for chunk in _chunks(path, name):
        first, *others = chunk.split(b"\n")
        begun += first
        if len(begun) > MAX_LINE:
            raise LineTooLong(f"{name}, line {number}: longer than {MAX_LINE / 1024**2:g} MiB")
        for other in others:
            begun += b"\n"
            line, begun = bytes(begun), bytearray(other)
            yield line
            number += 1
    if begun:
        yield bytes(begun)


def _chunks(path: str, name: str) -> Iterator[bytes]:
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY)
    try:
        while chunk := _read(fd):
            yield chunk
    except OSError as error:
        error.filename = name
        raise
    finally:
        if path != "-":
            os.close(fd)


def _read(fd: int) -> bytes:
    """The next bytes, however long they take to come; none at the end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        # In slices, since a signal that comes just before a system call does not interrupt it.
        if poll.poll(LOOK_SECONDS * 1000):
            with suppress(BlockingIOError):  # whoever shares the descriptor was faster
                return os.read(fd, CHUNK_BYTES)
