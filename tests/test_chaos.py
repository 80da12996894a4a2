"""scripts/chaos.py in small: it breaks things, and its verdict is true."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from lab.nodes import ROOT, Broker


def test_a_short_run_loses_nothing(breakable_broker: Broker) -> None:
    """Each fault once, on a classic queue, with acknowledgements that stand for several tasks."""
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--broker", breakable_broker.kind]
    command += ["--tasks", "800", "--workers", "4", "--seconds", "60", "--concurrency", "4", "--prefetch", "8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    table = dict(re.findall(r"^  (\S.*?)  +(.+)$", result.stdout, re.MULTILINE))
    assert (table["sent"], table["confirmed"], table["completed"], table["lost"]) == ("800", "800", "800", "0")
    assert len(table["faults"].split(", ")) == 7


@pytest.mark.parametrize("arguments", [["--tasks", "0"], ["--faults", "earthquake"], ["--nodes", "2"]])
def test_wrong_use(arguments: list[str]) -> None:
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), *arguments]
    assert subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 2
