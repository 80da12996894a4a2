#!/usr/bin/env python3
"""Draws the pictures of the README and of docs/, and writes docs/replay.html, from recordings of real runs.

The recordings are kept in docs/recordings/. With --record they are made anew, on a private broker, which takes about
two minutes; the picture of the live view is made then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where this is not the program that runs

from _environment import ROOT  # first: where our packages and modules are
from lab.nodes import Broker, LocalBroker, NoBroker
from replay.liveview import live_view
from replay.page import page
from replay.plays import joining, takeover, watched
from replay.scenes import read
from replay.takeover import picture
from scaling.picture import day_picture

import config
from workqueue.streams import note, say

DOCS = ROOT / "docs"
QUEUE = "task_queue"  # it is the only one of its broker


def record(docs: Path) -> None:
    """All recordings anew, and what can only be drawn of a live run."""
    with tempfile.TemporaryDirectory() as folder:
        broker = LocalBroker(Path(folder))
        try:
            record_on(broker, docs)
        finally:
            broker.remove()


def record_on(broker: Broker, docs: Path) -> None:
    os.environ |= {"RABBITMQ_URL": broker.url, "TASK_QUEUE": QUEUE, "SECONDS_PER_DIFFICULTY": "1.0"}
    settings = config.load()
    say("Round-robin beside fair dispatch ...")
    compare = [sys.executable, str(ROOT / "scripts/compare.py")]
    files = ["--json", str(docs / "recordings/compare.jsonl"), "--svg", str(docs / "pictures/compare.svg")]
    subprocess.run([*compare, *files], check=True, stdout=subprocess.DEVNULL)
    say("A worker is killed ...")
    takeover(settings, docs / "recordings/takeover.jsonl")
    say("Ten workers join ...")
    joining(settings, docs / "recordings/joining.jsonl")
    say("The live view ...")
    with tempfile.NamedTemporaryFile() as not_kept:
        watched(settings, Path(not_kept.name), lambda state: write(docs / "pictures/watch.svg", live_view(state)))


def draw(docs: Path) -> None:
    """All that can be made of the recordings that are kept, and a day that is simulated."""
    recordings = {name: read(docs / f"recordings/{name}.jsonl") for name in ("compare", "takeover", "joining")}
    write(docs / "pictures/takeover.svg", picture(recordings["takeover"]))
    write(docs / "pictures/autoscale.svg", day_picture())
    write(docs / "replay.html", page(recordings))


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    say(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {len(text.encode()):,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="pictures.py", description=__doc__)
    parser.add_argument("--record", action="store_true", help="make the recordings anew, first")
    parser.add_argument("--into", metavar="FOLDER", type=Path, default=DOCS, help="in place of docs/")
    arguments = parser.parse_args()
    for folder in ("recordings", "pictures"):
        (arguments.into / folder).mkdir(parents=True, exist_ok=True)
    try:
        if arguments.record:
            record(arguments.into)
        draw(arguments.into)
    except NoBroker as error:
        note(f"pictures.py: {error}")
        return 3
    except KeyboardInterrupt:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
