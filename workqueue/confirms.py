"""Confirms of one channel: which message the broker's answer is about.

The broker numbers what is published on a channel in confirm mode, and answers for one number, or for all up to one. A
message that no queue takes is returned first, and confirmed all the same: returned is what it counts as.

All of this runs on the connection's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, ClassVar

from pika import BasicProperties
from pika.spec import Basic

OnConfirm = Callable[[str], None]
"""Called with "confirmed", "returned" (no queue took it), "refused" (the queue did not want it), "lost" (the channel
ended first: it may have arrived) or, where it was never sent, the reason."""


class Confirms:
    CONFIRMED: ClassVar = "confirmed"
    RETURNED: ClassVar = "returned"
    REFUSED: ClassVar = "refused"
    LOST: ClassVar = "lost"

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[OnConfirm, str | None, bytes]] = {}  # by number, oldest first
        self._returned: set[int] = set()
        self._number = 0

    def published(self, on_confirm: OnConfirm, properties: BasicProperties | None, body: bytes) -> None:
        self._number += 1
        self._waiting[self._number] = (on_confirm, properties.message_id if properties else None, body)

    def on_return(self, channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        """What comes back says no number; but it comes back in the order in which it was published."""
        for number, (_, message_id, sent) in self._waiting.items():
            if number not in self._returned and (message_id, sent) == (properties.message_id, body):
                self._returned.add(number)
                return

    def on_answer(self, frame: Any) -> None:
        method = frame.method
        numbers = [method.delivery_tag]
        if method.multiple:
            numbers = list(takewhile(lambda number: number <= method.delivery_tag, self._waiting))
        for number in numbers:
            on_confirm, _, _ = self._waiting.pop(number)
            if isinstance(method, Basic.Nack):
                on_confirm(self.REFUSED)
            elif number in self._returned:
                on_confirm(self.RETURNED)
            else:
                on_confirm(self.CONFIRMED)
            self._returned.discard(number)

    def lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for on_confirm, _, _ in waiting.values():
            on_confirm(self.LOST)
