"""The machinery behind sender.py and worker.py, one role a file."""

from __future__ import annotations

import sys
from types import TracebackType


def _say_why(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Ctrl-C ends a program that has no handler for it yet as it ends any other, without a traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _say_why
