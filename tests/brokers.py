"""Real brokers for the tests: a private node of an installed rabbitmq-server, a container, or one given by its URL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError
from waiting import until

ROOT = Path(__file__).parent.parent
IMAGE = "rabbitmq:4-management"


class NoBroker(Exception):
    """No broker of the wanted kind can be had here; the message says what to install."""


class Broker:
    """A broker that answers at `url`. Those that the tests started can be broken; one given by URL cannot."""

    def __init__(self, url: str, kind: str) -> None:
        self.url = url
        self.kind = kind

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            with suppress(AMQPError):
                connection.close()

    def answers(self) -> bool:
        try:
            with self.channel():
                return True
        except (AMQPError, OSError):
            return False

    def ctl(self, *arguments: str) -> str:
        """Runs rabbitmqctl on the node and returns its output."""
        raise NotImplementedError

    def restart(self) -> None:
        """Stops the node in good order, and starts it again."""
        raise NotImplementedError

    def kill(self) -> None:
        """Ends the node as a power cut would."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        """Ends it for good, with its data."""


class LocalBroker(Broker):
    def __init__(self, folder: Path, config: str = "") -> None:
        self.port = free_port()
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self.port}/", "local")
        self.folder = folder
        self.config = config
        self.start()

    def _script(self, command: str) -> None:
        environment = {
            **os.environ,
            "RABBITMQ_URL": self.url,
            "BROKER_KIND": "node",
            "BROKER_DIR": str(self.folder),
            "BROKER_CONFIG": self.config,
        }
        result = subprocess.run(
            [ROOT / "scripts/broker.sh", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise NoBroker(result.stderr.strip())

    def start(self) -> None:
        self._script("up")

    def restart(self) -> None:
        self._script("restart")

    def kill(self) -> None:
        pid = int((self.folder / str(self.port) / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self.answers(), "the killed node to be gone")

    def ctl(self, *arguments: str) -> str:
        state = self.folder / str(self.port)
        ports = dict(line.split("=") for line in (state / "ports").read_text().split())
        environment = {
            **os.environ,
            "HOME": str(state),
            "ERL_EPMD_PORT": ports["epmd_port"],
            "RABBITMQ_NODENAME": f"rabbit-{self.port}@localhost",
        }
        command = next(path for path in CTL_PATHS if shutil.which(path))
        return subprocess.run(
            [command, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def remove(self) -> None:
        self._script("down")
        shutil.rmtree(self.folder, ignore_errors=True)


CTL_PATHS = ("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl", "/opt/homebrew/sbin/rabbitmqctl")


class ContainerBroker(Broker):
    """`files` go into the container; `ports` of it are published, each on a port of this machine."""

    def __init__(self, files: dict[str, bytes] | None = None, ports: dict[int, int] | None = None) -> None:
        port = free_port()
        try:
            from testcontainers.community.rabbitmq import RabbitMqContainer

            container = RabbitMqContainer(IMAGE)
            # ports of this machine that a restart keeps, and on loopback only
            published: dict[Any, Any] = {
                inner: ("127.0.0.1", outer) for inner, outer in {5672: port, **(ports or {})}.items()
            }
            container.ports = published
            for path, content in (files or {}).items():
                container.with_copy_into_container(content, path, mode=0o644)
            container.start()
        except Exception as error:
            raise NoBroker(f"no container of {IMAGE} ({error}): install Docker") from None
        super().__init__(f"amqp://guest:guest@127.0.0.1:{port}/", "container")
        self._testcontainer = container
        self._container: Any = container.get_wrapped_container()

    def start(self) -> None:
        self._container.start()
        until(self.answers, "the container to answer", seconds=60)

    def restart(self) -> None:
        self._container.restart()
        until(self.answers, "the container to answer", seconds=60)

    def kill(self) -> None:
        self._container.kill()
        until(lambda: not self.answers(), "the killed container to be gone")

    def ctl(self, *arguments: str) -> str:
        code, output = self._container.exec_run(["rabbitmqctl", *arguments])
        assert code == 0, output
        return str(output.decode())

    def remove(self) -> None:
        self._testcontainer.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def url_broker() -> Broker:
    url = os.environ.get("RABBITMQ_TEST_URL", "")
    if not url:
        raise NoBroker("RABBITMQ_TEST_URL is not set")
    broker = Broker(url, "url")
    if not broker.answers():
        raise NoBroker(f"no broker that we can use answers at RABBITMQ_TEST_URL={url.rpartition('@')[2]}")
    return broker


def first_that_works(makers: list[Callable[[], Broker]]) -> Broker:
    problems = []
    for make in makers:
        try:
            return make()
        except NoBroker as error:
            problems.append(str(error))
    raise NoBroker("no broker for the tests:\n  " + "\n  ".join(problems))
