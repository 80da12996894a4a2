"""Whether a worker is healthy, for probes: reads the HEALTH_FILE that it writes, and says in one line why it is not.

    python deploy/health.py                        is it alive? For what restarts it when it is not
    python deploy/health.py --connected            has it a broker? For what only shows it
    python deploy/health.py --task-older-than 600  has a task run for longer than any should? As you like

A broker that is away, and a task that takes long, are no reasons to restart a worker: the first form minds neither.
Exit codes: 0 healthy, 1 not, 2 wrong use. Needs nothing but Python: no shell, no package, no broker.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time


def problem(file: str, now: float, older_than: float, connected: bool, task_older_than: float) -> str:
    """Why the worker is not healthy, in one line; nothing if it is. `now` in seconds of time.monotonic()."""
    try:
        with open(file, encoding="utf-8") as text:
            state = json.load(text)
        worker, age = str(state["worker"]), now - float(state["at"])
        lasts, task = now - float(state["since"]), now - float(state["task_since"] or now)
        has_broker = bool(state["connected"])
    except FileNotFoundError:
        return f"there is no {file}: the worker has not started, or writes to another HEALTH_FILE"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{file} cannot be read as a worker's HEALTH_FILE: {error}"
    if age < -1 or math.isnan(age):
        return f"{worker} wrote {file} before this machine was started"
    if age > older_than:
        return f"{worker} has not moved for {age:.0f} s"
    if task > task_older_than:
        return f"{worker} has run one task for {task:.0f} s"
    if connected and not has_broker:
        return f"{worker} has had no broker for {lasts:.0f} s"
    return ""


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: HEALTH_FILE of the environment")
    parser.add_argument(
        "--older-than", metavar="SECONDS", type=seconds, default=60.0, help="without a sign of life (default: 60)"
    )
    parser.add_argument("--connected", action="store_true", help="and it has a broker to take tasks from")
    parser.add_argument(
        "--task-older-than", metavar="SECONDS", type=seconds, default=math.inf, help="default: no limit"
    )
    arguments = parser.parse_args()
    file = arguments.file or os.environ.get("HEALTH_FILE", "")
    if not file:
        parser.error("no FILE is given, and HEALTH_FILE is not set")
    why = problem(file, time.monotonic(), arguments.older_than, arguments.connected, arguments.task_older_than)
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
