"""The scripts as somebody calls them, and tests of them that run beside each other."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.nodes import ROOT, free_port

Running = dict[str, Future[None]]
AT_ONCE = 2  # they wait for nodes most of the time


class Scripts:
    """The scripts of one checkout, with a port and a folder for a broker of their own."""

    def __init__(self, folder: Path, checkout: Path = ROOT, nodes: int = 1) -> None:
        self.checkout = checkout
        self.port = free_port(in_a_row=nodes)
        self.folder = folder
        self.state = folder / str(self.port)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "BROKER_"))}
        self.environment = {
            **kept,
            "RABBITMQ_URL": f"amqp://me:s3cret@127.0.0.1:{self.port}/",
            "BROKER_DIR": str(folder),
            "BROKER_KIND": "node",
            "SECONDS_PER_DIFFICULTY": "0.05",
        }

    def start(self, script: str, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        environment = {**self.environment, **popen.pop("environment", {})}
        return subprocess.Popen(
            ["bash", str(self.checkout / "scripts" / script), *arguments],
            env=environment,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments, environment=environment)
        out, error = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def works(self, script: str, *arguments: str, **environment: str) -> str:
        result = self.run(script, *arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def running(self) -> list[str]:
        """What lives of the nodes: each holds a lock on a file, and each port, the port mapper's too, is taken."""
        held = []
        for path in self.state.glob("*.lock"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        ports = self.state / "ports"
        numbers = re.findall("[0-9]+", ports.read_text()) if ports.exists() else []
        return held + [number for number in numbers if answers(int(number))]


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def calling(folder: Path, checkout: Path = ROOT, nodes: int = 1) -> Iterator[Scripts]:
    """Scripts whose node, if any is left, is stopped in the end."""
    scripts = Scripts(folder, checkout, nodes)
    try:
        yield scripts
    finally:
        scripts.run("broker.sh", "down")


class Beside:
    """Tests of a module that run beside each other, on threads: `@beside(...)` makes a test of such a body.

    A body gets a folder of its own, what is `shared` by all, and what stands in its line of `cases`. All that were
    asked for are begun with the first of them; each test then waits for its own.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, Callable[..., None]] = {}

    def __call__(self, *cases: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
        def decorate(body: Callable[..., None]) -> Callable[..., None]:
            name = body.__name__
            if not cases:
                self.bodies[name] = body
            ids = ["-".join(str(getattr(part, "name", part)) for part in case) for case in cases]
            for each, case in zip(ids, cases, strict=True):
                self.bodies[f"{name}[{each}]"] = lambda *shared, case=case: body(*shared, *case)

            def test(beside: Running, request: pytest.FixtureRequest) -> None:
                beside[request.node.name].result()

            def test_of_case(case: str, beside: Running, request: pytest.FixtureRequest) -> None:
                beside[request.node.name].result()

            return pytest.mark.parametrize("case", ids)(test_of_case) if cases else test

        return decorate

    @contextmanager
    def running(
        self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory, *shared: Any
    ) -> Iterator[Running]:
        names = [item.name for item in request.session.items if item.path == request.path]
        wanted = [name for name in names if name in self.bodies]
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            yield {name: pool.submit(self.bodies[name], folders.mktemp("beside"), *shared) for name in wanted}
        finally:
            pool.shutdown(cancel_futures=True)
