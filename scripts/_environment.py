"""Imported first by the scripts beside it: where the packages and the modules are that they use.

A new terminal knows nothing of the environment `.venv` that another one has activated, and a script may be called
through a link from anywhere.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"


def enter() -> None:
    """Starts the program again with the interpreter of `.venv`, where this one lacks our packages."""
    missing = [package for package in ("pika", "dotenv", "rich") if not find_spec(package)]
    if not missing:
        return
    if PYTHON.exists() and Path(sys.executable).parent != PYTHON.parent:  # python3 is the same
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    name = os.path.basename(sys.argv[0])
    how = "pip install -r requirements.txt, or scripts/demo.sh"
    print(f"{name}: {missing[0]} is not installed: {how}", file=sys.stderr)
    sys.exit(2)


enter()
sys.path.insert(0, str(ROOT))
