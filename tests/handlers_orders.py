"""The shop's handlers, with a worker that is killed in the middle of one: DIES says where. (It is its first time.)"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from examples.orders import handlers, outbox, papers


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(module: Any, name: str) -> None:
    setattr(module, name, lambda *arguments, **more: dies())


def after(module: Any, name: str) -> None:
    does: Callable[..., None] = getattr(module, name)

    def does_and_dies(*arguments: Any, **more: Any) -> None:
        does(*arguments, **more)
        dies()

    setattr(module, name, does_and_dies)


MOMENTS: dict[str, Callable[[], None]] = {
    "before the commit": lambda: before(outbox, "promise"),
    "between commit and publishing": lambda: before(outbox, "publish_confirmed"),
    "between publishing and marking": lambda: after(outbox, "publish_confirmed"),
    "between commit and acknowledgement": lambda: after(outbox, "publish"),
    "between invoice and marking": lambda: after(handlers, "keep"),
    "between mail and marking": lambda: after(papers, "send"),
    "before the mail": lambda: before(papers, "send"),
}
if moment := os.environ.get("DIES"):
    MOMENTS[moment]()
