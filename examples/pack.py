"""The smallest handler that is of use: packs the file that a task names.

    python sender.py --task "Pack file" --difficulty 1 --payload '{"path": "README.md"}'
    python worker.py --handlers examples.pack

Packed twice, it is packed all the same: that is all it takes for a task that may be delivered again.
"""

import gzip
import os
from pathlib import Path

from tasks import Attempt, Reject, Task, handles


@handles("Pack file")
def pack(task: Task, attempt: Attempt) -> None:
    path = Path((task.payload or {}).get("path", ""))
    if not path.is_file():
        raise Reject(f"there is no file {str(path)!r}")  # no further attempt would find one
    half_done = path.with_name(path.name + ".gz.part")
    half_done.write_bytes(gzip.compress(path.read_bytes()))
    os.replace(half_done, path.with_name(path.name + ".gz"))  # all of it, or nothing
