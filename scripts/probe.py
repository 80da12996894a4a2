"""For the shell scripts: what RABBITMQ_URL says, whether a broker answers there, and what they need to start one.

probe.py url              shell assignments of the first URL's parts: host, port, user_name, password, vhost, tls, shown
probe.py answers SECONDS [PORT]
                          exit 0 if an AMQP connection opens within so long, there or at another port,
                          3 if nothing answers, 4 if it is refused
probe.py urls COUNT       the URLs of so many nodes, on ports in a row
probe.py ports COUNT FILE keeps in FILE, as shell assignments, a port for epmd and one for each node's distribution
probe.py definitions      the user, password and virtual host of the URL, as RabbitMQ's definitions (JSON)
probe.py crew [FLAGS]     of worker.py: which crew of workers they belong to, by broker and queue, and the queue
probe.py queues JSON      a table of the queues of TASK_QUEUE; JSON is what rabbitmqctl says of unacknowledged
                          messages, or empty where it cannot be asked
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shlex
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import _environment  # noqa: F401  # first: where our packages and modules are
from pika import PlainCredentials, URLParameters
from pika.exceptions import ChannelClosedByBroker

import config
from workqueue import flags
from workqueue.dialing import dial
from workqueue.errors import FAILURES, BrokerError, Refused, explain

MOST_NODES = 9  # of a cluster that broker.sh starts, on the port of RABBITMQ_URL and those after it


def main(question: str, *arguments: str) -> int:
    try:
        settings = config.load(flags.of_worker(list(arguments)).settings if question == "crew" else None)
    except config.SettingError as error:
        print(error, file=sys.stderr)
        return 2
    url = settings.rabbitmq_urls[0]
    match question:
        case "url":
            print(assignments(url))
        case "answers":
            return answers(settings, at_port(url, int(arguments[1])) if arguments[1:] else url, float(arguments[0]))
        case "urls":
            first = URLParameters(url).port
            print(",".join(at_port(url, first + number) for number in range(int(arguments[0]))))
        case "ports":
            keep_ports(int(arguments[0]), Path(arguments[1]), URLParameters(url).port)
        case "definitions":
            print(json.dumps(definitions(url)))
        case "crew":
            place = "\n".join((*settings.rabbitmq_urls, settings.task_queue))
            crew = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
            print(f"crew={crew}\nqueue={shlex.quote(settings.task_queue)}")
        case "queues":
            return show_queues(settings, arguments[0])
    return 0


def assignments(url: str) -> str:
    parts = URLParameters(url)
    user_name, password = login(parts)
    facts = {
        "host": parts.host,
        "port": str(parts.port),
        "user_name": user_name,
        "password": password,
        "vhost": parts.virtual_host,
        "tls": "yes" if parts.ssl_options else "",
        "shown": config.mask(url),
    }
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in facts.items())


def login(parts: URLParameters) -> tuple[str, str]:
    credentials = parts.credentials
    assert isinstance(credentials, PlainCredentials)
    return credentials.username, credentials.password


def at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}{re.sub(':[0-9]*$', '', host)}:{port}").geturl()


def answers(settings: config.Settings, url: str, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with dial(replace(settings, rabbitmq_urls=(url,), connect_timeout_seconds=5.0), "probe"):
                return 0
        except Refused as error:
            print(error, file=sys.stderr)
            return 4
        except BrokerError:
            if time.monotonic() >= deadline:
                return 3
            time.sleep(0.1)


def keep_ports(nodes: int, path: Path, own: int) -> None:
    """Adds what is missing; what is there stays, since the nodes' data knows it."""
    known = [int(port) for port in re.findall("[0-9]+", path.read_text())] if path.exists() else []
    epmd, *dist = known + free_ports(max(0, 1 + nodes - len(known)), without=range(own, own + MOST_NODES))
    new = path.with_suffix(".new")
    new.write_text(f"epmd_port={epmd}\ndist_ports='{' '.join(map(str, dist))}'\n")
    new.rename(path)


def free_ports(count: int, without: range) -> list[int]:
    """None that the system gives to outgoing connections, which could take it meanwhile."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 12_000):
        if len(found) == count:
            break
        if port in without:
            continue
        try:
            socket.create_server(("127.0.0.1", port)).close()
            found.append(port)
        except OSError:
            pass
    return found


def definitions(url: str) -> dict[str, object]:
    parts = URLParameters(url)
    user_name, password = login(parts)
    salt = os.urandom(4)
    user = {
        "name": user_name,
        "password_hash": base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"],
    }
    all_rights = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "vhosts": [{"name": parts.virtual_host}],
        "users": [user],
        "permissions": [{"user": user_name, "vhost": parts.virtual_host, **all_rights}],
    }


def show_queues(settings: config.Settings, listed: str) -> int:
    """Ready and consumers as the protocol tells them, which for a quorum queue is fresher than rabbitmqctl's."""
    unacknowledged = {row["name"]: str(row["messages_unacknowledged"]) for row in json.loads(listed)} if listed else {}
    retry_queues = [settings.retry_queue(delay) for delay in settings.retry_delays]
    # also those of other delays than today's, where the broker tells
    others = [name for name in unacknowledged if name.startswith(f"{settings.task_queue}.retry.")]
    names = [settings.task_queue, *sorted({*retry_queues, *others}, key=delay_of), settings.dead_queue]
    rows = [("queue", "ready", "unacknowledged", "consumers")]
    try:
        with dial(settings, "broker.sh queues") as connection:
            for name in names:
                try:
                    found = connection.channel().queue_declare(name, passive=True)
                except ChannelClosedByBroker as error:
                    if error.reply_code == 404:
                        continue
                    raise
                ready, consumers = str(found.message_count), str(found.consumer_count)
                rows.append((name, ready, unacknowledged.get(name, "?"), consumers))
    except (*FAILURES, BrokerError) as error:
        failure = explain(error, settings)
        print(failure, file=sys.stderr)
        return failure.exit_code
    if len(rows) == 1:
        print(f"There is no queue {settings.task_queue} yet: sender.py and worker.py declare it")
        return 0
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *counts in rows:
        cells = [count.rjust(width) for count, width in zip(counts, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]))
    if not listed:
        print("? what is unacknowledged is told by rabbitmqctl alone, which is where this broker runs")
    return 0


def delay_of(retry_queue: str) -> tuple[float, str]:
    """Shorter delays first."""
    found = re.search(r"\.retry\.([0-9.]+)s$", retry_queue)
    return (float(found[1]) if found else 0.0, retry_queue)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
