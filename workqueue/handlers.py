"""Handlers: what can be one, and what may come out of it."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from functools import partial
from typing import Any, NoReturn

from config import SettingError
from tasks import Attempt, Handler, Task

ASYNC = "only an event loop would run an async def: a handler is a plain function, which may call asyncio.run()"


def usable(handle: Handler) -> Handler:
    """The handler, out of which comes nothing but what the worker can take. Raises SettingError if it is no handler."""
    if reason := _why_not(handle):
        raise SettingError(f"{handle!r:.200} cannot be a handler: {reason}")
    return partial(_run, handle)


def _why_not(handle: Any) -> str:
    if not callable(handle):
        return "it cannot be called"
    if isinstance(handle, type):
        return "it is a class: a handler is a function, or an object that can be called"
    function: Any = handle
    while isinstance(function, partial):
        function = function.func
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            return ASYNC
        if inspect.isgeneratorfunction(called):
            return "it is a generator, so that calling it runs nothing"
    try:
        inspect.signature(handle).bind("task", "attempt")
    except TypeError as error:
        return f"it must take two arguments, a task and an attempt ({error})"
    except ValueError:  # one that is not written in Python does not say what it takes
        return ""
    return ""


def _run(handle: Any, task: Task, attempt: Attempt) -> None:
    """Runs the handler. Raises what it raises, and TypeError if it returns work that nobody has done."""
    process = os.getpid()
    try:
        returned = handle(task, attempt)
    except BaseException as error:
        if os.getpid() != process:
            _end_child(error)
        raise
    if os.getpid() != process:
        _end_child(None)
    if returned is None:
        return
    if inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise TypeError(f"the handler returned {type(returned).__name__}, which nobody runs: {ASYNC}")


def _end_child(error: BaseException | None) -> NoReturn:
    """Ends a process that the handler has forked and that has left the handler: the worker's code is not for it."""
    code: object = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code
        elif error:
            code = 1
            traceback.print_exception(error)
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(int(code or 0) & 0xFF if isinstance(code, int | None) else 1)
