"""What the senders of the task queues are told to do:  fill N | publish N | trickle"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main(send: Callable[[float], Any]) -> None:
    """`send(moment)` publishes one task. `trickle` sends one for each line that says when it was written, the others
    send N, and print how many were sent a second once the first was."""
    if sys.argv[1] == "trickle":
        for line in sys.stdin:
            send(json.loads(line)["payload"]["sent"])
        return
    count = int(sys.argv[2])
    send(0.0)
    started = time.perf_counter()
    for _ in range(count - 1):
        send(0.0)
    print((count - 1) / (time.perf_counter() - started))
