from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.forwarder import Forwarder
from lab.nodes import (
    Broker,
    Cluster,
    ContainerBroker,
    ContainerCluster,
    LocalBroker,
    LocalCluster,
    NoBroker,
    first_that_works,
    url_broker,
)
from programs import Bench

KINDS = ("url", "container", "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=KINDS,
        help="RABBITMQ_TEST_URL, a container, or a private local node (default: the first of them that works)",
    )
    parser.addoption(
        "--again", action="store_true", help="after a run with another broker: leave out the tests that need none"
    )


# of one kind of broker, or of none: not a second time in a run with the other kind
ONLY_WITH = {"test_broker_script.py": "local", "test_script_callers.py": "local", "test_compose.py": "container"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    kind = ONLY_WITH.get(collection_path.name)
    return True if kind and config.getoption("--broker") != kind else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--again"):
        said = {item for item in items if not needs_broker(item)}
        config.hook.pytest_deselected(items=said)
        items[:] = [item for item in items if item not in said]


def needs_broker(item: pytest.Item) -> bool:
    return item.path.name in ONLY_WITH or "makers" in getattr(item, "fixturenames", ())


def pytest_configure() -> None:
    """Signals that whoever started the tests has had ignored would be ignored by all programs under test.

    What ends the tests lets the fixtures stop the brokers that they have started.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


Maker = Callable[[], Broker]


@pytest.fixture(scope="session")
def makers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Maker]:
    """How to come by a broker of each kind that is allowed."""
    all_makers: dict[str, Maker] = {
        "url": url_broker,
        "container": ContainerBroker,
        "local": lambda: LocalBroker(tmp_path_factory.mktemp("broker")),
    }
    wanted = request.config.getoption("--broker")
    return {kind: make for kind, make in all_makers.items() if wanted in (None, kind)}


def make_broker(makers: list[Maker]) -> Broker:
    try:
        return first_that_works(makers)
    except NoBroker as error:
        pytest.exit(f"{error}\nInstall rabbitmq-server or Docker, or set RABBITMQ_TEST_URL.", returncode=3)


@pytest.fixture(scope="session")
def shared_broker(makers: dict[str, Maker]) -> Iterator[Broker]:
    """One broker for all tests that leave it whole."""
    broker = make_broker(list(makers.values()))
    print(f"\nbroker: {broker.kind}, {broker.url}")
    yield broker
    broker.remove()


@pytest.fixture(scope="session")
def breakable_broker(makers: dict[str, Maker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that tests may restart and kill: never the one of RABBITMQ_TEST_URL."""
    allowed = [make for kind, make in makers.items() if kind != "url"]
    broker = make_broker(allowed or [lambda: LocalBroker(tmp_path_factory.mktemp("breakable")), ContainerBroker])
    yield broker
    broker.remove()


@pytest.fixture(scope="session")
def cluster_nodes(breakable_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, of the kind of the other brokers. Tests may kill any of them."""
    cluster: Cluster = (
        ContainerCluster() if breakable_broker.kind == "container" else LocalCluster(tmp_path_factory.mktemp("cluster"))
    )
    yield cluster
    cluster.remove()


@pytest.fixture
def cluster(cluster_nodes: Cluster, tmp_path: Path) -> Iterator[Bench]:
    """A bench on a cluster of three nodes that are all up at the start of each test."""
    cluster_nodes.start()
    bench = Bench(cluster_nodes, f"test-{uuid.uuid4().hex[:8]}", tmp_path, cluster_nodes.url)
    yield bench
    cluster_nodes.start()
    bench.close()


@pytest.fixture
def bench(shared_broker: Broker, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(shared_broker, f"test-{uuid.uuid4().hex[:8]}", tmp_path, shared_broker.url)
    yield bench
    bench.close()


@pytest.fixture
def breakable(breakable_broker: Broker, tmp_path: Path) -> Iterator[Bench]:
    """A bench on a broker that may be broken and looked into; it is whole at the start of each test."""
    if not breakable_broker.answers():
        breakable_broker.start()
    bench = Bench(breakable_broker, f"test-{uuid.uuid4().hex[:8]}", tmp_path, breakable_broker.url)
    yield bench
    if not breakable_broker.answers():
        breakable_broker.start()
    bench.close()


@pytest.fixture
def link(breakable: Bench) -> Iterator[Forwarder]:
    """The programs of this test reach the broker through it; the test itself does not."""
    forwarder = Forwarder(breakable.url)
    breakable.url = forwarder.url
    yield forwarder
    forwarder.close()
