"""Writes into docs/reference.md what is generated from the code: the help of both programs, and the table of settings.

readme.py           rewrites the parts between <!-- NAME --> and <!-- end --> in place
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import config

PAGE = "docs/reference.md"


def help_of(program: str) -> str:
    environment = {**os.environ, "COLUMNS": "80"}
    printed = subprocess.run(
        [sys.executable, str(ROOT / program), "--help"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return f"\n```text\n{printed}```\n"


def settings_table() -> str:
    rows = ["| variable | default | meaning | allowed |", "| --- | --- | --- | --- |"]
    for variable in config.VARIABLES:
        without = "the concurrency" if variable.name == "PREFETCH_COUNT" else "none"
        default = f"`{variable.default}`" if variable.default else without
        rows.append(f"| `{variable.name}` | {default} | {variable.meaning} | {variable.allowed} |")
    return "\n{}\n".format("\n".join(rows))


def generated(text: str) -> str:
    """`text` with every generated part made anew."""
    parts = {
        "help of sender.py": lambda: help_of("sender.py"),
        "help of worker.py": lambda: help_of("worker.py"),
        "settings": settings_table,
    }
    for name, make in parts.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        head, found, rest = text.partition(begin)
        assert found, f"{PAGE} has no {begin}"
        text = head + begin + make() + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = ROOT / PAGE
    page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")
