"""bench.py measures the real programs, here without their peers, which need packages of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab.nodes import ROOT
from programs import Bench

WITHOUT_PEERS = "import runpy, sys; sys.modules['celery'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_PEERS, str(ROOT / "scripts/bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_it_prints_each_figure_beside_its_target(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    kind = "container" if bench.broker.kind == "container" else "local"
    flags = ["--broker", kind, "--contestants", "ours", "--rounds", "1", "--json", str(file)]
    done = run(*flags, "--only", "latency,makespan,startup")
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert done.stdout.startswith(found["machine"])
    figures = {name: figure["values"]["ours"][0] for name, figure in found["figures"].items()}
    assert 0 < figures["publish to handler, idle worker"] < 1000
    assert 0 < figures["worker: start to consuming"] < 30
    ((name, measured, target, verdict),) = found["targets"]  # the others are ratios to peers
    ratio = figures[name]
    assert ratio > 0.99  # no schedule is shorter, but for the rounding of tasks
    assert (measured, target, verdict) == (f"{ratio:.2f} x", "≤ 1.05 x", "met" if ratio <= 1.05 else "missed")
    assert f"{name:<50}{measured:>10}   {target:<8} {verdict}" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[1:] if "pika" not in line)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "speed"], "argument --only: speed: must be of publishing, working"),
        (["--contestants", "celery"], "must name ours"),
        (["--rounds", "0"], "--rounds starts from 1"),
        (["--json", "/no/such/folder/figures.json"], "No such file or directory"),
        (["--contestants", "ours,celery"], "celery is not installed: pip install -r requirements-bench.txt"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
