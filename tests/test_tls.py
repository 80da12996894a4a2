"""amqps: who is trusted, what is shown, and what a refusal says. Certificates are made here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from lab.forwarder import Forwarder
from lab.nodes import Broker, ContainerBroker, LocalBroker, free_port
from lab.waiting import until
from programs import Bench


class Certificates:
    """An authority, a certificate of the broker for `localhost`, one of a client; and an authority nobody knows."""

    def __init__(self, folder: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.other_ca)
        for name, issued in (
            ("broker", authority.issue_cert("localhost")),
            ("client", authority.issue_cert("client@example.com")),
            ("stranger", stranger.issue_cert("stranger@example.com")),
        ):
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
            issued.private_key_pem.write_to_path(folder / f"{name}.key")
        self.folder = folder

    def shown_by(self, name: str) -> dict[str, str]:
        return {"TLS_CERT_FILE": str(self.folder / f"{name}.pem"), "TLS_KEY_FILE": str(self.folder / f"{name}.key")}

    @property
    def trust(self) -> dict[str, str]:
        return {"TLS_CA_FILE": str(self.ca)}


def configuration(folder: str, port: int) -> str:
    return (
        f"listeners.ssl.1 = {port}\n"
        f"ssl_options.cacertfile = {folder}/ca.pem\n"
        f"ssl_options.certfile = {folder}/broker.pem\n"
        f"ssl_options.keyfile = {folder}/broker.key\n"
        "ssl_options.verify = verify_peer\n"
        "ssl_options.fail_if_no_peer_cert = true\n"
    )


def listens(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_broker(
    breakable_broker: Broker, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Broker, str]]:
    """A broker of the kind of the others, and its amqps URL."""
    port = free_port()
    broker: Broker
    if isinstance(breakable_broker, ContainerBroker):
        files = {f"/tls/{path.name}": path.read_bytes() for path in certificates.folder.iterdir()}
        files["/etc/rabbitmq/conf.d/90-tls.conf"] = configuration("/tls", 5671).encode()
        broker = ContainerBroker(files, {5671: port})
    else:
        config = configuration(str(certificates.folder), port).replace("= ", "= 127.0.0.1:", 1)
        broker = LocalBroker(tmp_path_factory.mktemp("tls"), config)
        until(lambda: listens(port), f"the TLS listener on port {port}")
    yield broker, f"amqps://guest:guest@localhost:{port}/"
    broker.remove()


@pytest.fixture
def tls(tls_broker: tuple[Broker, str], tmp_path: Path) -> Iterator[Bench]:
    broker, url = tls_broker
    bench = Bench(broker, f"test-{os.urandom(4).hex()}", tmp_path, url)
    yield bench
    bench.close()


def test_both_programs_work_over_tls(tls: Bench, certificates: Certificates) -> None:
    settings = certificates.trust | certificates.shown_by("client")
    assert "8 tasks sent, 8 confirmed" in tls.send(**settings)
    worker = tls.start("worker.py", "--burst", **settings)
    assert worker.wait() == 0
    assert len(worker.events("task_completed")) == 8


def refusals(certificates: Certificates, url: str) -> dict[str, tuple[str, dict[str, str]]]:
    """What each says, and the settings that bring it about."""
    trust, client = certificates.trust, certificates.shown_by("client")
    by_address = {"RABBITMQ_URL": url.replace("localhost", "127.0.0.1")}
    return {
        "an authority we do not know": ("is not trusted (", client),
        "another authority": ("is not trusted (", client | {"TLS_CA_FILE": str(certificates.other_ca)}),
        "another host name": ("is not valid for '127.0.0.1'", trust | client | by_address),
        "no certificate of ours": ("refused our certificate", trust),
        "a certificate it does not know": ("refused our certificate", trust | certificates.shown_by("stranger")),
    }


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
@pytest.mark.parametrize(
    "why",
    [
        "an authority we do not know",
        "another authority",
        "another host name",
        "no certificate of ours",
        "a certificate it does not know",
    ],
)
def test_a_refusal_ends_with_exit_code_3_and_one_line(
    tls: Bench, certificates: Certificates, program: str, why: str
) -> None:
    words, settings = refusals(certificates, tls.url)[why]
    started = tls.start(program, **settings)
    assert started.wait() == 3, started.describe()
    assert words in started.stderr
    assert started.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
def test_a_refusal_is_named_when_the_connection_ends_before_its_reason_is_read(
    tls: Bench, certificates: Certificates, program: str
) -> None:
    words, settings = refusals(certificates, tls.url)["a certificate it does not know"]
    forwarder = Forwarder(tls.url)
    try:
        forwarder.hang_up_after = [1]  # after the client's hello, so that the alert is not on its way yet
        url = forwarder.url.replace("127.0.0.1", "localhost")
        started = tls.start(program, **settings, RABBITMQ_URL=url)
        assert started.wait() == 3, started.describe()
        assert not forwarder.hang_up_after
        assert words in started.stderr
        assert started.stderr.count("\n") == 1
    finally:
        forwarder.close()


def test_a_port_that_does_not_speak_tls(tls: Bench, certificates: Certificates) -> None:
    url = tls.broker.url.replace("amqp:", "amqps:")
    sender = tls.start("sender.py", RABBITMQ_URL=url, CONNECT_TIMEOUT_SECONDS="1", **certificates.trust)
    assert sender.wait() == 3
    assert "does not speak TLS" in sender.stderr
    assert sender.stderr.count("\n") == 1
