"""Quorum queues on three nodes, any of which may die."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from lab.nodes import Cluster
from lab.waiting import until
from programs import Bench

QUORUM = {"QUEUE_TYPE": "quorum", "CONNECT_TIMEOUT_SECONDS": "60"}


def test_nothing_on_the_way_is_held_by_a_single_node(cluster: Bench) -> None:
    cluster.worker(**QUORUM)
    rows = [line.split("\t") for line in cluster.broker.ctl("list_queues", "name", "type", "members").splitlines()]
    queues = {row[0]: (row[1], row[2].count("@")) for row in rows if row[0].startswith(cluster.queue)}
    names = {cluster.queue, cluster.dead, f"{cluster.queue}.retry.0.2s", f"{cluster.queue}.retry.0.4s"}
    assert queues == dict.fromkeys(names, ("quorum", 3))


def test_the_arguments_of_a_quorum_queue(cluster: Bench) -> None:
    cluster.send("--quiet", **QUORUM, DELIVERY_LIMIT="7")
    arguments = cluster.broker.ctl("list_queues", "name", "arguments")
    (row,) = [line for line in arguments.splitlines() if line.startswith(cluster.queue)]
    # what RabbitMQ counts is only held, too: DELIVERY_LIMIT is what a worker counts
    for argument in (
        '"x-delivery-limit",2147483648',
        f'"x-dead-letter-routing-key","{cluster.dead}"',
        '"reject-publish"',
    ):
        assert argument in row.replace(", ", ","), row
    assert "at-least-once" in row
    cluster.worker(**QUORUM, DELIVERY_LIMIT="7")
    arguments = cluster.broker.ctl("list_queues", "name", "arguments").replace(", ", ",")
    (dead,) = [line for line in arguments.splitlines() if line.startswith(cluster.dead)]
    assert '"x-delivery-limit",2147483648' in dead, "RabbitMQ 4 would drop what has been looked at 20 times"


def test_a_failed_task_is_retried_and_ends_dead(cluster: Bench) -> None:
    worker = cluster.handling("fail", **QUORUM)
    cluster.send("--task", "x", "--difficulty", "0", "--quiet", **QUORUM)
    ((properties, body),) = cluster.take_dead(1)
    assert properties.headers
    assert properties.headers["x-attempts"] == 3
    assert json.loads(body)["task"] == "x"
    assert [event["attempt"] for event in worker.events("task_started")] == [1, 2, 3]


@pytest.mark.parametrize("victim", ["leader", "the node that we talk to"])
def test_a_killed_node_is_survived(cluster: Bench, victim: str) -> None:
    """Confirmed tasks are all done; sender and workers go on by themselves, on the nodes that are left."""
    broker = cluster.broker
    assert isinstance(broker, Cluster)
    count = 20_000  # so many that the sender is in the midst of it when the node dies
    workers = [cluster.worker("--concurrency", "5", HEARTBEAT_SECONDS="2", **QUORUM) for _ in range(2)]
    sender = cluster.start("sender.py", "--count", str(count), "--max-difficulty", "0", "--quiet", **QUORUM)

    def done() -> set[int]:
        return {event["id"] for worker in workers for event in worker.events("task_completed")}

    until(lambda: len(done()) > 300, "tasks to be done")
    leader = broker.leader(cluster.queue)
    node = leader if victim == "leader" else _first_node(broker)
    broker.kill_node(node)
    assert len(done()) < count, "the node was killed too late to test anything"
    assert sender.wait(90) == 0, sender.describe()
    assert sender.stdout == f"{count} tasks sent, {count} confirmed\n"
    until(lambda: len(done()) == count, "all tasks", seconds=60)
    assert done() == set(range(1, count + 1))
    for worker in workers:
        assert worker.process.poll() is None
    finished = Counter(event["id"] for worker in workers for event in worker.events("task_completed"))
    assert sum(finished.values()) - count < 1000 + 2 * 5, "more was done twice than can have been on its way"


def _first_node(broker: Cluster) -> str:
    """The node of the first URL, which every program tries first."""
    if broker.kind == "local":
        port = broker.url.partition(",")[0].rpartition(":")[2].strip("/")
        return f"rabbit-{port}@localhost"
    return "rabbit@rabbit1"
