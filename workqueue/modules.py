"""Own work: `worker.py --handlers MODULE` imports the module, and runs what it registers."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from functools import partial

from config import SettingError, Settings
from tasks import HANDLERS, Attempt, Handler, Reject, Task, simulate
from workqueue.handlers import usable

OURS = ("config", "sender", "tasks", "worker", "workqueue")


def chosen_handler(modules: Iterable[str], settings: Settings) -> Handler:
    """What runs each task: the handlers of these modules, or without any module the simulated work.

    Raises SettingError.
    """
    modules = list(modules)
    if not modules:
        return usable(partial(simulate, seconds_per_difficulty=settings.seconds_per_difficulty))
    sys.path.insert(0, "")  # the current directory, wherever worker.py is
    for module in modules:
        _load(module)
    if not HANDLERS:
        raise SettingError(f"--handlers {' '.join(modules)}: registers no handler: decorate one with @handles")
    return dispatch


def dispatch(task: Task, attempt: Attempt) -> None:
    """Runs the handler that is registered for the task's name."""
    handler = HANDLERS.get(task.task)
    if handler is None:
        raise Reject(f"no handler for {task.task!r}")
    handler(task, attempt)


def _load(module: str) -> None:
    if module.partition(".")[0] in OURS:
        raise SettingError(f"--handlers {module}: is a module of this program: give yours another name")
    known = dict(HANDLERS)
    try:
        importlib.import_module(module)
        for name in HANDLERS.keys() - known.keys():
            HANDLERS[name] = usable(HANDLERS[name])
    except SettingError as error:
        raise SettingError(f"--handlers {module}: {error}") from None
    except BaseException as error:  # whatever a module does when it is imported
        raise SettingError(f"--handlers {module}: {_where(error)}") from None


def _where(error: BaseException) -> str:
    """The error in one line, and where in the module it came up."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    last = frames[-1] if frames and frames[-1].filename != __file__ else None
    return f"cannot be imported: {words}" + (f" ({last.filename}, line {last.lineno})" if last else "")
