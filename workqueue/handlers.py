"""Handlers of one's own: `worker.py --handlers MODULE` imports the module, and runs what it registers."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from functools import partial

from config import Settings
from tasks import HANDLERS, Attempt, Handler, Reject, Task, simulate

OURS = ("config", "sender", "tasks", "worker", "workqueue")


class HandlerError(Exception):
    """A module or a handler that cannot be used; the message is one line for people."""


def chosen_handler(modules: Iterable[str], settings: Settings) -> Handler:
    """What runs each task: the handlers of these modules, or without any module the simulated work.

    Raises HandlerError.
    """
    modules = list(modules)
    if not modules:
        return partial(simulate, seconds_per_difficulty=settings.seconds_per_difficulty)
    sys.path.insert(0, "")  # the current directory, wherever worker.py is
    for module in modules:
        _load(module)
    if not HANDLERS:
        raise HandlerError(f"--handlers {' '.join(modules)}: registers no handler: decorate one with @handles")
    return dispatch


def dispatch(task: Task, attempt: Attempt) -> None:
    """Runs the handler that is registered for the task's name."""
    handler = HANDLERS.get(task.task)
    if handler is None:
        raise Reject(f"no handler for {task.task!r}")
    handler(task, attempt)


def check(handler: object) -> None:
    """Raises HandlerError for what would not work when it is called as `handler(task, attempt)`."""
    if not callable(handler):
        raise HandlerError(f"{handler!r} cannot be called")
    inner: object = handler
    while isinstance(inner, partial):
        inner = inner.func
    called = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner).__call__
    name = getattr(inner, "__qualname__", repr(inner))
    for kind, is_kind in _NEVER_RUN.items():
        if is_kind(inspect.unwrap(called)):
            raise HandlerError(f"the handler {name} is {kind}: its work would never be run; make it a plain def")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        raise HandlerError(f"the handler {name} must take two arguments: (task, attempt)") from None
    except ValueError:  # of a built-in function, nobody knows
        pass


_NEVER_RUN = {
    "an async def": inspect.iscoroutinefunction,
    "an async generator": inspect.isasyncgenfunction,
    "a generator": inspect.isgeneratorfunction,
}


def _load(module: str) -> None:
    if module.partition(".")[0] in OURS:
        raise HandlerError(f"--handlers {module}: is a module of this program: give yours another name")
    known = dict(HANDLERS)
    try:
        importlib.import_module(module)
        for name in HANDLERS.keys() - known.keys():
            check(HANDLERS[name])
    except HandlerError as error:
        raise HandlerError(f"--handlers {module}: {error}") from None
    except BaseException as error:  # whatever a module does when it is imported
        raise HandlerError(f"--handlers {module}: {_where(error)}") from None


def _where(error: BaseException) -> str:
    """The error in one line, and where in the module it came up."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    last = frames[-1] if frames and frames[-1].filename != __file__ else None
    return f"cannot be imported: {words}" + (f" ({last.filename}, line {last.lineno})" if last else "")
