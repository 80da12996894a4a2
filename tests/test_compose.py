"""docker-compose.yml as Compose reads it: only with `--broker container` (see conftest.py), which has Docker.

scripts/check_compose.sh runs it for real.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pika
import pytest
from lab.nodes import ROOT, free_port
from programs import copy_project

import config

EXAMPLES = {
    "TASK_QUEUE": "orders",
    "QUEUE_TYPE": "quorum",
    "CONCURRENCY": "3",
    "PREFETCH_COUNT": "0",
    "SECONDS_PER_DIFFICULTY": "0.5",
    "RETRY_DELAYS": "",
    "DELIVERY_LIMIT": "4",
    "HEARTBEAT_SECONDS": "7",
    "CONNECT_TIMEOUT_SECONDS": "8",
    "LOG_FORMAT": "json",
}
SPECIAL = [("guest", "guest", "/"), ("m%e \"'", 'p%a sä"#\\${}/:@?&+', "a/b ä"), ("ü", "%41", "%2F")]


def rendered(env_file: Path) -> dict[str, dict[str, object]]:
    """The services that Compose makes of the file with such an `.env`."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["docker", "compose", "--env-file", str(env_file), "--profile", "sender", "config", "--format", "json"]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    services = json.loads(output)["services"]
    assert isinstance(services, dict)
    return services


@pytest.mark.parametrize("service", ["worker", "sender"])
def test_every_setting_of_dot_env_reaches_the_programs(tmp_path: Path, service: str) -> None:
    files = {name: f"{tmp_path}/{name}" for name in ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE")}
    names = {variable.name for variable in config.VARIABLES} - {"RABBITMQ_URL", "HEALTH_FILE"}
    assert names == {*EXAMPLES, *files}, "a new setting must be in docker-compose.yml, and here"
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in {**EXAMPLES, **files}.items()))
    found = rendered(env_file)[service]
    environment, volumes = found["environment"], found["volumes"]
    assert isinstance(environment, dict)
    assert isinstance(volumes, list)
    assert {name: environment[name] for name in EXAMPLES} == EXAMPLES
    mounted = {volume["target"]: volume["source"] for volume in volumes}
    assert {name: mounted[environment[name]] for name in files} == files


def test_without_dot_env_the_defaults_hold(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("")
    environment = rendered(tmp_path / "env")["worker"]["environment"]
    assert isinstance(environment, dict)
    assert not [name for name in EXAMPLES if environment.get(name) is not None]


def test_the_health_of_a_worker_is_shown(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("HEALTH_FILE=/of/this/machine\n")
    services = rendered(tmp_path / "env")
    worker, sender = services["worker"], services["sender"]
    environment, check = worker["environment"], worker["healthcheck"]
    assert isinstance(environment, dict)
    assert isinstance(check, dict)
    assert environment["HEALTH_FILE"] == "/tmp/health"
    assert check["test"] == ["CMD", "python", "deploy/health.py", "--connected"]
    assert sender["healthcheck"] == {"disable": True}


def test_programs_run_under_an_init(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("")
    services = rendered(tmp_path / "env")
    assert services["worker"]["init"] is services["sender"]["init"] is True
    assert services["worker"]["stop_grace_period"] == "1m0s"


@pytest.mark.parametrize(("user", "password", "vhost"), SPECIAL)
def test_the_url_in_a_container_holds_any_character(user: str, password: str, vhost: str, tmp_path: Path) -> None:
    program = tmp_path / "show.py"
    program.write_text("import os; print(os.environ['RABBITMQ_URL'])")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
    printed = subprocess.run(
        [sys.executable, str(ROOT / "deploy/container.py"), str(program)],
        env={**kept, "RABBITMQ_USER": user, "RABBITMQ_PASSWORD": password, "RABBITMQ_VHOST": vhost},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    parameters = pika.URLParameters(printed.strip())
    credentials = parameters.credentials
    assert isinstance(credentials, pika.PlainCredentials)
    assert (credentials.username, credentials.password, parameters.virtual_host) == (user, password, vhost)


def test_the_shop_is_added_to_the_main_file() -> None:
    """As Compose reads the two together. (Nothing here runs it: its database and its mail catcher are to be pulled.)"""
    files = ["-f", "docker-compose.yml", "-f", "deploy/docker-compose.shop.yml"]
    command = ["docker", "compose", *files, "--profile", "shop", "config", "--format", "json"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    services = json.loads(output)["services"]
    assert services["worker"]["command"] == ["--handlers", "examples.orders.handlers"]
    for name in ("worker", "checkout", "report"):
        environment = services[name]["environment"]
        assert environment["DATABASE_URL"] == "postgresql://shop:shop@postgres/shop"
        assert (environment["SMTP_URL"], environment["RABBITMQ_HOST"]) == ("smtp://mail:1025", "rabbitmq")
        assert services[name]["depends_on"].keys() >= {"postgres", "mail"}


def test_down_says_what_is_so(tmp_path: Path) -> None:
    """Also with an `.env` that Compose refuses. Without the engine nothing is stopped, and so it says."""
    copy_project(tmp_path / "clone")
    (tmp_path / "clone/.venv").symlink_to(Path(sys.prefix))
    (tmp_path / "clone/.env").write_text("TASK_QUEUE=${oops\n")
    port = free_port()
    settings = {"RABBITMQ_URL": f"amqp://me:s3cret@127.0.0.1:{port}/", "TASK_QUEUE": "orders", "BROKER_KIND": "docker"}
    environment = {**os.environ, **settings, "RABBITMQ_MANAGEMENT_PORT": "0"}
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/nowhere"}

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(tmp_path / "clone/scripts/broker.sh"), *arguments]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)

    try:
        up = call("up")
        assert up.returncode == 0, up.stderr
        down = call("down", **nowhere)
        assert down.returncode == 3
        assert "could not stop" in down.stderr
        assert "Stopped" not in down.stdout
        assert call("status").returncode == 0
        down = call("down")
        assert down.returncode == 0, down.stderr
        assert down.stdout.startswith("Stopped")
        assert call("status").returncode == 3
    finally:
        call("down")
        remove_volumes(port)


def remove_volumes(port: int) -> None:
    listed = ["docker", "volume", "ls", "--quiet", "--filter", f"name=work-queue-{port}-"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["docker", "volume", "rm", *names], capture_output=True, check=True)


def test_what_a_kept_volume_holds_is_there_for_a_changed_password(tmp_path: Path) -> None:
    """Told while the broker runs, or while it is down."""
    port = free_port()
    settings = {"TASK_QUEUE": "kept", "BROKER_KIND": "docker", "BROKER_DIR": str(tmp_path)}
    environment = {**os.environ, **settings, "RABBITMQ_MANAGEMENT_PORT": "0"}

    def call(password: str, *command: str) -> subprocess.CompletedProcess[str]:
        url = f"amqp://me:{password}@127.0.0.1:{port}/"
        call = {"cwd": ROOT, "env": {**environment, "RABBITMQ_URL": url}}
        return subprocess.run(command, capture_output=True, text=True, check=False, **call)  # type: ignore[call-overload,no-any-return]

    def works(password: str, *command: str) -> str:
        called = call(password, *command)
        assert called.returncode == 0, called.stderr
        return str(called.stdout)

    broker, send = "scripts/broker.sh", (sys.executable, "sender.py", "--count", "1", "--quiet")
    try:
        works("first", broker, "up")
        works("first", *send)
        refused = call("second", broker, "up")
        assert refused.returncode == 3
        assert "broker.sh restart makes it take" in refused.stderr
        works("second", broker, "restart")
        works("second", *send)
        works("second", broker, "down")
        works("th%25rd", broker, "up")
        works("th%25rd", *send)
        assert re.search(r"^kept +3 ", works("th%25rd", broker, "queues"), re.MULTILINE)
    finally:
        call("th%25rd", broker, "down")
        remove_volumes(port)
