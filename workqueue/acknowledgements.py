"""Acknowledgements of one channel: as few frames as can be, and which of them the broker is known to have.

    delivered 1 2 3 4     done 1 2 4          written: "all up to 2", "4"     3 still runs

AMQP does not confirm an acknowledgement. One that was written just before a link broke may or may not have arrived;
but whatever the broker answers later on the same channel, it answers after it has taken all that came before. So some
time after an acknowledgement it is asked something, and its answer is the proof.

All of this runs on the connection's thread.
"""

from __future__ import annotations

from collections.abc import Callable

PROOF_SECONDS = 0.05  # between an acknowledgement and the question that proves it


class Acknowledgements:
    def __init__(
        self,
        write: Callable[[int, bool], None],
        later: Callable[[float, Callable[[], None]], object],
        ask: Callable[[Callable[[], None]], None],
    ) -> None:
        """`write(tag, multiple)` sends a frame, `later(seconds, call)` calls, `ask(answered)` has the broker answer."""
        self._write = write
        self._later = later
        self._ask = ask
        self._outstanding: dict[int, None] = {}  # delivered and not settled, oldest first
        self._done: set[int] = set()  # to be acknowledged with the next write
        self._written: set[int] = set()  # since the last question
        self._asked: set[int] = set()  # written before it
        self._asking = False

    def delivered(self, tag: int) -> None:
        self._outstanding[tag] = None

    def drop(self, tag: int) -> None:
        """It is given back, and not acknowledged."""
        self._outstanding.pop(tag, None)
        self._done.discard(tag)

    def add(self, tag: int) -> None:
        if tag in self._outstanding:
            self._done.add(tag)

    def add_up_to(self, tag: int) -> None:
        self._done.update(older for older in self._outstanding if older <= tag)

    def may_come_back(self, tag: int) -> bool:
        """Whether the broker may not have its acknowledgement. For any thread: `write` and `_question` add a tag to
        the next of these before they take it from the one before."""
        return tag in self._outstanding or tag in self._written or tag in self._asked

    def write(self) -> None:
        """One frame for the oldest, up to the first that is not done; the others one by one."""
        if not self._done:
            return
        last = 0
        for tag in self._outstanding:
            if tag not in self._done:
                break
            last = tag
        if last:
            self._write(last, True)
        self._written |= self._done
        for tag in self._done:
            if tag > last:
                self._write(tag, False)
            del self._outstanding[tag]
        self._done.clear()
        if not self._asking:
            self._asking = True
            self._later(PROOF_SECONDS, self._question)

    def _question(self) -> None:
        self._asked, self._written = self._written, set()
        self._ask(self._answered)

    def _answered(self) -> None:
        self._asked.clear()
        self._asking = bool(self._written)
        if self._asking:
            self._later(PROOF_SECONDS, self._question)
