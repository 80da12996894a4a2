"""Settings: where they come from, and what a bad one says. No broker."""

from __future__ import annotations

from pathlib import Path

import pytest

import config


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a `.env` says anything."""
    for variable in config.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "config.py"))


def test_the_defaults() -> None:
    assert config.load() == config.Settings(
        rabbitmq_urls=("amqp://guest:guest@localhost:5672/",),
        task_queue="task_queue",
        queue_type="classic",
        concurrency=1,
        prefetch_count=1,
        seconds_per_difficulty=1.0,
        retry_delays=(1, 5, 30),
        delivery_limit=20,
        heartbeat_seconds=15,
        connect_timeout_seconds=10,
        tls_ca_file="",
        tls_cert_file="",
        tls_key_file="",
        log_format="text",
    )


def test_a_flag_beats_the_environment_which_beats_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TASK_QUEUE=from_dotenv\nCONCURRENCY=3\n")
    assert config.load().task_queue == "from_dotenv"
    assert config.load().concurrency == 3
    monkeypatch.setenv("TASK_QUEUE", "from_environment")
    assert config.load().task_queue == "from_environment"
    assert config.load({"TASK_QUEUE": ("--queue", "from_flag")}).task_queue == "from_flag"
    assert config.load({"TASK_QUEUE": ("--queue", None)}).task_queue == "from_environment"


def test_prefetch_is_the_concurrency_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCURRENCY", "7")
    assert config.load().prefetch_count == 7
    monkeypatch.setenv("PREFETCH_COUNT", "0")
    assert config.load().prefetch_count == 0


def test_the_names_of_the_other_queues_derive_from_the_work_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_QUEUE", "orders")
    settings = config.load()
    assert settings.dead_queue == "orders.dead"
    assert [settings.retry_queue(delay) for delay in settings.retry_delays] == [
        "orders.retry.1s",
        "orders.retry.5s",
        "orders.retry.30s",
    ]


BAD = [
    *[
        ("RABBITMQ_URL", value)
        for value in ("", "localhost", "http://localhost/", "amqp://", "amqp://h:0/", "amqp://h:x/")
    ],
    *[("RABBITMQ_URL", value) for value in ("amqp://a/,", "amqp://h/?heartbeat=often", "amqp://h/?colour=red")],
    *[("TASK_QUEUE", value) for value in ("", "amq.mine", "a\nb", "x" * 201, "ä" * 101)],
    *[("QUEUE_TYPE", value) for value in ("", "Classic", "stream")],
    *[("CONCURRENCY", value) for value in ("", "0", "-1", "1.5", "many", "1001")],
    *[("PREFETCH_COUNT", value) for value in ("", "-1", "65536", "1e3", "٣")],
    *[("SECONDS_PER_DIFFICULTY", value) for value in ("", "-0.1", "inf", "nan", "1s")],
    *[("RETRY_DELAYS", value) for value in ("1,,5", "1;5", "0", "-1", "nan", "1,inf")],
    *[("DELIVERY_LIMIT", value) for value in ("", "0", "-1", "x", "1000001")],
    *[("HEARTBEAT_SECONDS", value) for value in ("", "0", "-5", "1.5", "3601")],
    *[("CONNECT_TIMEOUT_SECONDS", value) for value in ("", "0", "inf", "soon", "0.0001", "1000001")],
    *[(name, "/no/such/file") for name in ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE")],
    *[("LOG_FORMAT", value) for value in ("", "JSON", "xml")],
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(config.SettingError) as caught:
        config.load()
    message = str(caught.value)
    allowed = next(variable.allowed for variable in config.VARIABLES if variable.name == name)
    assert message.startswith(f"{name}=")
    assert message.endswith(f"must be {allowed}")
    assert "\n" not in message


def test_a_bad_flag_is_named_as_the_flag() -> None:
    with pytest.raises(config.SettingError, match=r"^--prefetch='x': must be a whole number"):
        config.load({"PREFETCH_COUNT": ("--prefetch", "x")})


def test_no_retries_and_fractions_of_a_second_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRY_DELAYS", "")
    assert config.load().retry_delays == ()
    monkeypatch.setenv("RETRY_DELAYS", "0.5, 2")
    assert config.load().retry_queue(config.load().retry_delays[0]) == "task_queue.retry.0.5s"


def test_several_urls_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://a/, amqps://u:p%2Cq@b:5671/v")
    assert config.load().rabbitmq_urls == ("amqp://a/", "amqps://u:p%2Cq@b:5671/v")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@localhost:5672/", "amqp://guest:***@localhost:5672/"),
        ("amqp://u:s3cret@with@a/", "amqp://u:***@a/"),
        ("amqps://a/v?heartbeat=5", "amqps://a/v"),
        ("amqp://localhost:5672/v", "amqp://localhost:5672/v"),
        ("amqp://u:p@[::1]:5672/", "amqp://u:***@[::1]:5672/"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert config.mask(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://u:s3cret@h/",
            "u:s3cret@h",
            "amqp://u:s3cret",
            "amqp://u:s3cret,x@h/",
            "//u:s3cret@h",
            "amqp://s3cret@h/",
        ),
        *("amqp://u:a//s3cret@h/", "amqp://u:12,s3cret@h/", "amqp://u:12?s3cret@h/", "amqp://u:12#s3cret@h/"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", url)
    with pytest.raises(config.SettingError) as caught:
        config.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost", "http://localhost:5672/", "amqp://h:x/", "amqp://"])
def test_a_bad_url_without_secrets_is_shown_where_it_is_plain(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", url)
    with pytest.raises(config.SettingError, match=r"^RABBITMQ_URL='"):
        config.load()


@pytest.mark.parametrize(
    ("delay", "name"), [("1", "q.retry.1s"), ("0.25", "q.retry.0.25s"), ("1000000", "q.retry.1000000s")]
)
def test_the_name_of_a_retry_queue_is_a_plain_number(delay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_QUEUE", "q")
    monkeypatch.setenv("RETRY_DELAYS", delay)
    settings = config.load()
    assert settings.retry_queue(settings.retry_delays[0]) == name


def test_a_dotenv_that_is_no_text_is_named() -> None:
    Path(".env").write_bytes(b"TASK_QUEUE=\xff\xfe\n")
    with pytest.raises(config.SettingError, match=r"\.env: cannot be read"):
        config.load()


@pytest.mark.parametrize("name", ["TLS_CA_FILE", "TLS_CERT_FILE"])
def test_a_file_that_holds_no_certificate_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqps://localhost/")
    monkeypatch.setenv(name, __file__)
    with pytest.raises(config.SettingError, match=f"^{name}="):
        config.load()


def test_env_example_shows_every_variable_with_its_default() -> None:
    lines = (Path(__file__).parent.parent / ".env.example").read_text().splitlines()[1:]
    shown = dict(line.removeprefix("#").split("=", 1) for line in lines)
    defaults = {variable.name: variable.default for variable in config.VARIABLES} | {"PREFETCH_COUNT": "1"}
    assert shown == defaults
