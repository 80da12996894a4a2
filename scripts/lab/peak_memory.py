"""sender.py, and after it a line with the most memory that its process has held, in KiB (Linux).

From /proc, since getrusage() of a child process may count the memory of its parent.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import sender

if __name__ == "__main__":
    code = sender.main(sys.argv[1:])
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(found[1])
    sys.exit(code)
