"""Real brokers for the tests: a private node of an installed rabbitmq-server, a container, or one given by its URL."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pika import URLParameters

from lab.waiting import until
from workqueue.connection import Channel, Connection
from workqueue.errors import FAILURES, BrokerError, Stopped
from workqueue.loop import never

ROOT = Path(__file__).parent.parent.parent
IMAGE = "rabbitmq:4-management"
DOCKER = shutil.which("docker")
ANSWER_SECONDS = 5.0  # a broker that takes longer to open a connection, or a channel, does not answer
NO_ANSWER = (*FAILURES, BrokerError, Stopped)


class NoBroker(Exception):
    """No broker of the wanted kind can be had here; the message says what to install."""


NOT_OURS = "a broker given by its URL is not the tests' to look into or to break: use the fixture `breakable`"


def open_channel(url: str) -> Channel:
    """The first channel of a new connection. Raises one of NO_ANSWER, also where the broker only falls silent."""
    parameters = URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = ANSWER_SECONDS
    connection = Connection(parameters)
    deadline = time.monotonic() + ANSWER_SECONDS
    connection.interrupted = lambda: time.monotonic() > deadline
    try:
        channel = connection.channel()
    except BaseException:
        connection.abort()  # it would not say good-bye, either
        raise
    connection.interrupted = never
    return channel


class Broker:
    """A broker that answers at `url`. Those that the tests started can be broken; one given by URL cannot."""

    def __init__(self, url: str, kind: str) -> None:
        self.url = url
        self.kind = kind

    @contextmanager
    def channel(self) -> Iterator[Channel]:
        """Of a connection of its own, to the first node that answers. Raises one of NO_ANSWER if none does."""
        urls = self.url.split(",")
        for url in urls:
            try:
                channel = open_channel(url)
                break
            except NO_ANSWER:
                if url == urls[-1]:
                    raise
        with channel.connection:
            yield channel

    def answers(self) -> bool:
        try:
            with self.channel():
                return True
        except NO_ANSWER:
            return False

    def ctl(self, *arguments: str) -> str:
        """Runs rabbitmqctl on the node and returns its output."""
        raise NoBroker(NOT_OURS)

    def enable(self, plugin: str) -> None:
        """Enables a plugin of the node."""
        raise NoBroker(NOT_OURS)

    def keep_queues(self) -> None:
        """Has the node write down which queues there are.

        It does so late: a durable queue that is only a moment old may be gone after a kill, with all that was in it.
        """
        self.ctl("eval", "mnesia:sync_log().")

    def restart(self) -> None:
        """Stops the node in good order, and starts it again."""
        raise NoBroker(NOT_OURS)

    def kill(self) -> None:
        """Ends the node as a power cut would."""
        raise NoBroker(NOT_OURS)

    def start(self) -> None:
        raise NoBroker(NOT_OURS)

    def remove(self) -> None:
        """Ends it for good, with its data."""


class LocalBroker(Broker):
    def __init__(self, folder: Path, config: str = "", nodes: int = 1) -> None:
        self.port = free_port(in_a_row=nodes)
        self.nodes = nodes
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self.port}/", "local")
        self.folder = folder
        self.config = config
        self.start()

    @property
    def state(self) -> Path:
        return self.folder / str(self.port)

    def _script(self, *command: str) -> None:
        environment = {
            **os.environ,
            "RABBITMQ_URL": self.url,
            "BROKER_KIND": "node",
            "BROKER_DIR": str(self.folder),
            "BROKER_CONFIG": self.config,
        }
        script = subprocess.Popen(
            ["bash", ROOT / "scripts/broker.sh", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is ours: we pass it on, and wait until nothing is left of the node
        )
        with script:
            try:
                _, error = script.communicate()
            except BaseException:
                script.terminate()
                script.wait()
                raise
        if script.returncode:
            raise NoBroker(error.strip())

    def start(self) -> None:
        try:
            self._script("up", *([] if self.nodes == 1 else ["--nodes", str(self.nodes)]))
        except KeyboardInterrupt:  # it may have come when `up` was through
            self._script("down")
            raise

    def restart(self) -> None:
        self._script("restart")

    def kill(self) -> None:
        pid = int((self.state / f"{self.port}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self.answers(), "the killed node to be gone")

    def ctl(self, *arguments: str) -> str:
        return self._tool("rabbitmqctl", *arguments)

    def enable(self, plugin: str) -> None:
        self._tool("rabbitmq-plugins", "enable", plugin)

    def _tool(self, name: str, *arguments: str) -> str:
        ports = dict(line.split("=") for line in (self.state / "ports").read_text().splitlines())
        environment = {
            **os.environ,
            "HOME": str(self.state),
            "ERL_EPMD_PORT": ports["epmd_port"],
            "RABBITMQ_NODENAME": f"rabbit-{self.port}@localhost",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",  # as the node was told
        }
        command = next(path for folder in TOOL_FOLDERS if shutil.which(path := f"{folder}{name}"))
        return subprocess.run(
            [command, *arguments],
            env=environment,
            cwd=self.state,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def remove(self) -> None:
        self._script("down")
        shutil.rmtree(self.folder, ignore_errors=True)


TOOL_FOLDERS = ("/usr/lib/rabbitmq/bin/", "", "/opt/homebrew/sbin/")


class ContainerBroker(Broker):
    """`files` go into the container; `ports` of it are published, each on a port of this machine."""

    def __init__(self, files: dict[str, bytes] | None = None, ports: dict[int, int] | None = None) -> None:
        port = free_port()
        # asked before: the client library leaves a socket open where no engine answers
        if not DOCKER or subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode:
            raise NoBroker("no Docker engine answers")
        try:
            from testcontainers.community.rabbitmq import RabbitMqContainer

            container = RabbitMqContainer(IMAGE)
            hand_over_again = "-rabbit dead_letter_worker_publisher_confirm_timeout 5000"  # see docker-compose.yml
            container.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", hand_over_again)
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
        return self._tool("rabbitmqctl", *arguments)

    def enable(self, plugin: str) -> None:
        self._tool("rabbitmq-plugins", "enable", plugin)

    def _tool(self, *command: str) -> str:
        code, output = self._container.exec_run(list(command))
        assert code == 0, output
        return str(output.decode())

    def remove(self) -> None:
        self._testcontainer.stop()


class Cluster(Broker, ABC):
    """Three nodes. `url` names all of them."""

    def leader(self, queue: str) -> str:
        """The node that leads a quorum queue."""
        rows = [line.split() for line in self.ctl("list_queues", "name", "leader").splitlines()]
        return next((row[1] for row in rows if len(row) == 2 and row[0] == queue), "")

    @abstractmethod
    def kill_node(self, node: str) -> None:
        """Ends one node as a power cut would; `start` brings it back."""


class LocalCluster(Cluster):
    def __init__(self, folder: Path) -> None:
        self._first = LocalBroker(folder, nodes=3)
        ports = range(self._first.port, self._first.port + 3)
        super().__init__(",".join(f"amqp://guest:guest@127.0.0.1:{port}/" for port in ports), "local")

    def ctl(self, *arguments: str) -> str:
        port = next(port for port in range(self._first.port, self._first.port + 3) if answers(port))
        return self._first.ctl("--node", f"rabbit-{port}@localhost", *arguments)

    def kill_node(self, node: str) -> None:
        port = int(node.removeprefix("rabbit-").partition("@")[0])
        os.kill(int((self._first.state / f"{port}.pid").read_text()), signal.SIGKILL)
        until(lambda: not answers(port), "the killed node to be gone")

    def start(self) -> None:
        self._first.start()

    def remove(self) -> None:
        self._first.remove()


class ContainerCluster(Cluster):
    """deploy/docker-compose.cluster.yml"""

    def __init__(self) -> None:
        self._ports = [free_port() for _ in range(3)]
        self._project = f"cluster-{self._ports[0]}"
        super().__init__(",".join(f"amqp://guest:guest@127.0.0.1:{port}/" for port in self._ports), "container")
        self.start()

    def _compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--file", str(ROOT / "deploy/docker-compose.cluster.yml")]
        ports = {f"RABBITMQ_PORT_{number}": str(port) for number, port in enumerate(self._ports, start=1)}
        result = subprocess.run(
            [*command, "--project-name", self._project, *arguments],
            env={**os.environ, **ports},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise NoBroker(result.stderr.strip())
        return result.stdout

    def ctl(self, *arguments: str) -> str:
        number = next(number for number, port in enumerate(self._ports, start=1) if answers(port))
        return self._compose("exec", "-T", f"rabbit{number}", "rabbitmqctl", *arguments)

    def kill_node(self, node: str) -> None:
        service = node.removeprefix("rabbit@")
        self._compose("kill", service)
        until(lambda: not answers(self._ports[int(service[-1]) - 1]), "the killed node to be gone")

    def start(self) -> None:
        self._compose("up", "--detach", "--wait")

    def remove(self) -> None:
        self._compose("down", "--volumes")


def answers(port: int) -> bool:
    """Whether a broker answers on a port of this machine."""
    return Broker(f"amqp://guest:guest@127.0.0.1:{port}/", "").answers()


def free_port(in_a_row: int = 1) -> int:
    """A port of loopback that is free, and so are those after it if there are to be more in a row.

    None that the system gives to outgoing connections: one of those could take it while a broker is down, and a
    program that looks for the broker could even be connected to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            for number in range(port, port + in_a_row):
                socket.create_server(("127.0.0.1", number)).close()
            return port
        except OSError:
            continue


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
