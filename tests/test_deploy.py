"""What lies in deploy/ agrees with the code and with published schemas: Kubernetes', KEDA's, PromQL's and systemd's.

The models of Kubernetes and KEDA are made of their published schemas. No package ships RabbitmqCluster's: what it may
say is listed here. Nothing is started but a broker, which says which metrics there are.
"""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from lab.nodes import ROOT, Broker, ContainerBroker, LocalBroker, free_port
from lab.waiting import until
from programs import Bench

import config
from workqueue import flags

FOLDER = ROOT / "deploy/kubernetes"
FILES = {
    path.name: [found for found in yaml.safe_load_all(path.read_text()) if found] for path in FOLDER.glob("*.yaml")
}
DOCUMENTS = [(name, each) for name, all_of_it in FILES.items() for each in all_of_it if name != "kustomization.yaml"]
MODELS = {
    "apps/v1": "cloudcoil.models.kubernetes.apps.v1",
    "v1": "cloudcoil.models.kubernetes.core.v1",
    "networking.k8s.io/v1": "cloudcoil.models.kubernetes.networking.v1",
    "policy/v1": "cloudcoil.models.kubernetes.policy.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
}
CLUSTER_MEMBERS = {
    "replicas", "image", "imagePullSecrets", "service", "persistence", "resources", "affinity", "tolerations",
    "rabbitmq", "tls", "override", "skipPostDeploySteps", "terminationGracePeriodSeconds", "secretBackend",
    "delayStartSeconds", "autoEnableAllFeatureFlags",
}  # fmt: skip
RABBITMQ_MEMBERS = {"additionalPlugins", "additionalConfig", "advancedConfig", "envConfig", "erlangInetConfig"}
SETTINGS = {variable.name: variable for variable in config.VARIABLES}
WORK = ("worker.yaml", "keda-jobs.yaml")


def of_kind(kind: str) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in DOCUMENTS if each["kind"] == kind]


def pod(name: str) -> Any:
    """The pod that a worker runs in."""
    first = FILES[name][0]["spec"]
    return (first if name == "worker.yaml" else first["jobTargetRef"])["template"]["spec"]


def worker(name: str) -> Any:
    return pod(name)["containers"][0]


def variables(name: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in worker(name)["env"] if "value" in each}


# Schemas


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[f"{n}-{d['kind']}" for n, d in DOCUMENTS])
def test_a_manifest_is_what_its_schema_allows(name: str, document: Any) -> None:
    if document["apiVersion"] == "rabbitmq.com/v1beta1":
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert set(document["spec"]) <= CLUSTER_MEMBERS
        assert set(document["spec"]["rabbitmq"]) <= RABBITMQ_MEMBERS
        return
    model = getattr(importlib.import_module(MODELS[document["apiVersion"]]), document["kind"])
    read = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == document, "a name that the schema does not know, or a value of another type"


def test_the_parts_are_all_there_and_listed() -> None:
    listed = set(FILES["kustomization.yaml"][0]["resources"])
    assert listed == set(FILES) - {"kustomization.yaml", "keda-amqp.yaml", "keda-jobs.yaml"}
    kinds = {document["kind"] for name, document in DOCUMENTS if name in listed}
    assert kinds == {
        "Deployment", "Secret", "ScaledObject", "TriggerAuthentication", "RabbitmqCluster", "NetworkPolicy",
        "PodDisruptionBudget",
    }  # fmt: skip


# Names, variables, ports


@pytest.mark.parametrize("name", WORK)
def test_a_worker_gets_flags_and_settings_that_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = worker(name)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "deploy/container.py"]' in dockerfile
    assert container["args"][0] == "worker.py"
    assert flags.of_worker(container["args"][1:]).burst == (name == "keda-jobs.yaml")
    for each, value in variables(name).items():
        monkeypatch.setenv(each, value)
    settings = config.load()
    assert settings.queue_type == "quorum"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    assert container["image"] == compose["image"] == FILES["kustomization.yaml"][0]["images"][0]["name"]
    assert f"USER {pod(name)['securityContext']['runAsUser']}\n" in dockerfile
    assert f"--uid {pod(name)['securityContext']['runAsUser']} " in dockerfile


@pytest.mark.parametrize("name", WORK)
def test_a_worker_may_do_no_more_than_it_has_to(name: str) -> None:
    of_pod, of_container = pod(name)["securityContext"], worker(name)["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_container["readOnlyRootFilesystem"] is True
    assert of_container["allowPrivilegeEscalation"] is False
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    assert pod(name)["automountServiceAccountToken"] is False
    assert pod(name)["shareProcessNamespace"] is True, "something has to collect zombies"
    health = Path(variables(name)["HEALTH_FILE"])
    mounted = {volume["name"]: volume["mountPath"] for volume in worker(name)["volumeMounts"]}
    assert str(health.parent) in mounted.values(), "nothing else can be written to"
    assert {volume["name"] for volume in pod(name)["volumes"] if "emptyDir" in volume} == set(mounted)


def test_each_probe_is_one_that_answers(bench: Bench) -> None:
    file = bench.folder / "health"
    bench.worker(HEALTH_FILE=str(file))
    for name, probe in [(each, probe) for each in WORK for probe in worker(each) if probe.endswith("Probe")]:
        command = worker(name)[probe]["exec"]["command"]
        assert command[:2] == ["python", "deploy/health.py"]
        assert f" {command[1]} " in (ROOT / "Dockerfile").read_text().replace("\n", " ")
        assert f"!{command[1]}\n" in (ROOT / ".dockerignore").read_text()
        assert ("--connected" in command) == (probe == "readinessProbe"), "a broker that is away must not end workers"

        def code(program: list[str]) -> int:
            return subprocess.run(program, cwd=ROOT, env={"HEALTH_FILE": str(file)}, check=False).returncode

        until(partial(lambda program: code(program) == 0, [sys.executable, *command[1:]]), f"{name}: {probe}")


def test_a_worker_has_the_time_to_finish() -> None:
    grace = pod("worker.yaml")["terminationGracePeriodSeconds"]
    cluster = of_kind("RabbitmqCluster")[0][1]["spec"]
    times = re.findall(r"^consumer_timeout = (\d+)$", cluster["rabbitmq"]["additionalConfig"], re.MULTILINE)
    assert [int(time) / 1000 >= grace for time in times] == [True]
    amqp = next(each for name, each in of_kind("ScaledObject") if name == "keda-amqp.yaml")["spec"]
    assert amqp["cooldownPeriod"] >= grace


def test_every_name_leads_somewhere() -> None:
    secret = of_kind("Secret")[0][1]
    keys = [each["valueFrom"]["secretKeyRef"] for name in WORK for each in worker(name)["env"] if "valueFrom" in each]
    keys += [each for _, found in of_kind("TriggerAuthentication") for each in found["spec"]["secretTargetRef"]]
    assert len(keys) == 5
    assert {key["name"] for key in keys} == {secret["metadata"]["name"]}
    assert {key["key"] for key in keys} == set(secret["stringData"])
    namespace = FILES["kustomization.yaml"][0]["namespace"]
    broker = of_kind("RabbitmqCluster")[0][1]["metadata"]["name"]
    assert {url.partition("@")[2] for url in secret["stringData"].values()} == {
        f"{broker}.{namespace}.svc:5672/",
        f"{broker}.{namespace}.svc:15672/",
    }
    labels = FILES["worker.yaml"][0]["spec"]["template"]["metadata"]["labels"]
    assert FILES["keda-jobs.yaml"][0]["spec"]["jobTargetRef"]["template"]["metadata"]["labels"] == labels
    chosen = [each["spec"]["selector"]["matchLabels"] for _, each in of_kind("PodDisruptionBudget")]
    chosen += [each["spec"]["podSelector"]["matchLabels"] for _, each in of_kind("NetworkPolicy")]
    brokers = {"app.kubernetes.io/name": broker}
    assert all(each == brokers or each.items() <= labels.items() for each in chosen)
    assert sum(each == brokers for each in chosen) == 2
    for _, scaled in of_kind("ScaledObject"):
        assert scaled["spec"]["scaleTargetRef"]["name"] == FILES["worker.yaml"][0]["metadata"]["name"]


def test_the_password_is_an_example() -> None:
    for url in of_kind("Secret")[0][1]["stringData"].values():
        assert url.partition("://")[2].startswith("worker:change-me@")


def test_the_ports_of_the_urls_are_open_to_those_who_use_them() -> None:
    rules = {each["metadata"]["name"]: each["spec"] for _, each in of_kind("NetworkPolicy")}
    out = {port["port"] for rule in rules["worker"]["egress"] for port in rule["ports"]}
    assert out == {5671, 5672, 53}
    to_rabbitmq = {str(rule["from"]): {port["port"] for port in rule["ports"]} for rule in rules["rabbitmq"]["ingress"]}
    assert next(ports for who, ports in to_rabbitmq.items() if "work-queue" in who) == {5671, 5672}
    assert next(ports for who, ports in to_rabbitmq.items() if "'keda'" in who) == {5672, 15672}
    assert next(ports for who, ports in to_rabbitmq.items() if "'monitoring'" in who) == {15692}


# KEDA


def triggers(name: str) -> list[dict[str, str]]:
    return [each["metadata"] for each in FILES[name][-1 if name != "keda-jobs.yaml" else 0]["spec"]["triggers"]]


def queues(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in variables("worker.yaml").items():
        monkeypatch.setenv(name, value)
    settings = config.load()
    return [settings.task_queue, *(settings.retry_queue(delay) for delay in settings.retry_delays)]


def test_keda_sees_the_work_queue_and_each_retry_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    names = queues(monkeypatch)
    assert len(names) == 4
    assert [trigger["queueName"] for trigger in triggers("keda-amqp.yaml")] == names
    [by_http] = triggers("keda-http.yaml")
    assert by_http["useRegex"] == "true"
    others = [
        f"{names[0]}.dead",
        f"{names[0]}.begun.1a2b",
        f"{names[0]}s",
        f"my_{names[0]}",
        f"{names[0]}.retry.1s.dead",
    ]
    found = [name for name in [*names, f"{names[0]}.retry.0.5s", *others] if re.search(by_http["queueName"], name)]
    assert found == [*names, f"{names[0]}.retry.0.5s"]
    assert [trigger["queueName"] for trigger in triggers("keda-jobs.yaml")] == names[:1]


def test_keda_lets_busy_workers_be() -> None:
    """By http, what workers hold counts; a job is never ended."""
    [by_http] = triggers("keda-http.yaml")
    assert (by_http["protocol"], by_http["mode"]) == ("http", "QueueLength")
    assert "excludeUnacknowledged" not in by_http
    [of_jobs] = triggers("keda-jobs.yaml")
    assert of_jobs["excludeUnacknowledged"] == "true", "a task that runs already needs no further job"
    for _, scaled in of_kind("ScaledObject"):
        assert scaled["spec"]["minReplicaCount"] == 0
        assert scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]


# RabbitMQ


def test_the_cluster_can_lose_a_node() -> None:
    [(_, cluster)] = of_kind("RabbitmqCluster")
    assert cluster["spec"]["replicas"] == 3
    compose = (ROOT / "deploy/docker-compose.cluster.yml").read_text()
    assert f"image: {cluster['spec']['image']}\n" in compose
    again = re.findall(r"dead_letter_worker_publisher_confirm_timeout\W+(\d+)", compose)
    assert (
        re.findall(
            r"dead_letter_worker_publisher_confirm_timeout\W+(\d+)", cluster["spec"]["rabbitmq"]["advancedConfig"]
        )
        == again
    )
    [budget] = [e for _, e in of_kind("PodDisruptionBudget") if e["metadata"]["name"] == cluster["metadata"]["name"]]
    assert budget["spec"]["maxUnavailable"] == 1


# systemd

UNITS = {path.name: path.read_text() for path in (ROOT / "deploy/systemd").iterdir()}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNITS[name])
    return parser


def test_the_units_name_files_flags_and_settings_that_there_are() -> None:
    service = unit("worker@.service")["Service"]
    home = Path(service["WorkingDirectory"])
    interpreter, program, *arguments = service["ExecStart"].split()
    assert interpreter == str(home / ".venv/bin/python")
    assert (ROOT / program).exists()
    flags.of_worker(arguments)
    variable, _, file = service["Environment"].partition("=")
    assert variable in SETTINGS
    assert Path(file).parent == Path("/run") / service["RuntimeDirectory"], "of this worker, and there before it"
    assert service["RestartPreventExitStatus"] == "2", "wrong use: see docs/reference.md"
    check = unit("worker-health@.service")["Service"]["ExecStart"]
    assert check.startswith(f'sh -c "{interpreter} {home}/deploy/health.py {file} || ')


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "needs systemd-analyze, of a Linux: apt-get install systemd"
    for name, text in UNITS.items():
        here = str(Path(sys.executable)), str(ROOT)
        text = text.replace("/opt/work-queue/.venv/bin/python", here[0]).replace("/opt/work-queue", here[1])
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# Prometheus

PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
GROUPS = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
METRIC = re.compile(r"\b((?:rabbitmq|work_queue)_\w+|up)\b(?:\{([^}]*)\})?")


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of an expression, each with the labels by which it is chosen."""
    for name, chosen in METRIC.findall(re.sub(r'"[^"]*"', "", expression)):
        yield name, set(re.findall(r"\w+", chosen))


def exported(page: str) -> dict[str, set[str]]:
    """The metrics of a page, with the labels of each."""
    found: dict[str, set[str]] = {}
    for name, chosen in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", page, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'([a-z_]+)="', chosen))
    return found


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def metrics_of_rabbitmq(shared_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    port = free_port()
    if shared_broker.kind == "container":
        broker: Broker = ContainerBroker(ports={15692: port})
    else:
        shared = shared_broker.kind == "local"
        broker = shared_broker if shared else LocalBroker(tmp_path_factory.mktemp("metrics"))
    try:
        if broker.kind == "local":
            where = f'[{{port, {port}}}, {{ip, "127.0.0.1"}}]'
            broker.ctl(
                "eval", f"application:set_env(rabbitmq_prometheus, tcp_config, {where}, [{{persistent, true}}])."
            )
        text = metrics(broker, f"http://127.0.0.1:{port}")
    finally:
        if broker is not shared_broker:
            broker.remove()
    return exported(text)


def metrics(broker: Broker, page: str) -> str:
    """What a node with a queue tells Prometheus, at all addresses that it is asked at."""
    broker.enable("rabbitmq_prometheus")
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    families = "&".join(f"family={family}" for family in jobs["rabbitmq-queues"]["params"]["family"])
    with broker.channel() as channel:
        channel.queue_declare("task_queue", durable=True)
        until(lambda: 'queue="task_queue"' in fetched(f"{page}/metrics/detailed?{families}"), "its metrics", 30)
        text = fetched(f"{page}/metrics") + fetched(f"{page}{jobs['rabbitmq-queues']['metrics_path']}?{families}")
        channel.queue_delete("task_queue")
    return text


def test_rules_ask_for_metrics_that_there_are(metrics_of_rabbitmq: dict[str, set[str]], bench: Bench) -> None:
    bench.worker("--events")
    watch = bench.start("scripts/watch.py", "--web", "0")
    until(lambda: "metrics: http" in watch.stdout, "the address of the metrics")
    [url] = re.findall(r"metrics: (http\S+?);", watch.stdout)
    until(lambda: 'work_queue_workers{queue="' in fetched(url), "metrics")

    def waiting_is_told() -> bool:
        """Of a task that is begun after the worker has noticed that somebody watches."""
        bench.send("--task", "x", "--difficulty", "0")
        return "work_queue_last_wait_seconds{" in fetched(url)

    until(waiting_is_told, "how long a task has waited")
    known = {"up": {"job", "instance"}, **metrics_of_rabbitmq, **exported(fetched(url))}
    for alert, rule in RULES.items():
        promql_parser.parse(rule["expr"])
        found = list(selectors(rule["expr"]))
        assert found, alert
        for metric, labels in found:
            assert metric in known, f"{alert}: nobody exports {metric}"
            assert labels <= known[metric], f"{alert}: {metric} has no such label"


def test_a_rule_has_what_it_needs() -> None:
    assert len(RULES) == sum(len(group["rules"]) for group in GROUPS) >= 10
    for alert, rule in RULES.items():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, alert
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch("[1-9][0-9]*m", rule.get("for", "1m"))
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            by = re.search(r"sum by \(([^)]*)\)", rule["expr"])
            assert not by or label in by[1].split(", "), f"{alert}: {label} is summed up"


def test_the_docs_say_what_to_do_at_each_alert() -> None:
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE)
    assert told == list(RULES)


def test_prometheus_is_told_of_the_rules_and_the_ports() -> None:
    assert PROMETHEUS["rule_files"] == ["rules.yml"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in PROMETHEUS["scrape_configs"]}
    from watch import PORT

    assert targets["work-queue"] == [f"localhost:{PORT}"]
    jobs = {job for rule in RULES.values() for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert jobs <= set(targets)
