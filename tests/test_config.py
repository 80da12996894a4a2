"""Settings: where they come from, and what a bad one says. No broker."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.nodes import ROOT
from pika import PlainCredentials, URLParameters

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
        health_file="",
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
    *[("TASK_QUEUE", value) for value in ("", "amq.mine", "a\nb", "a\udcff", "x" * 201, "ä" * 101)],
    *[("QUEUE_TYPE", value) for value in ("", "Classic", "stream")],
    *[("CONCURRENCY", value) for value in ("", "0", "-1", "+1", "1.5", "1_0", "many", "1001", "9" * 5000)],
    *[("PREFETCH_COUNT", value) for value in ("", "-1", "65536", "1e3", "٣")],
    *[("SECONDS_PER_DIFFICULTY", value) for value in ("", "-0.1", "-0", "inf", "nan", "1s", "1e999", "1_0", "٣", ".")],
    *[("RETRY_DELAYS", value) for value in ("1,,5", "1,", "1;5", "0", "-1", "nan", "1,inf", "1_0", "1.0004", "0.0015")],
    *[("DELIVERY_LIMIT", value) for value in ("", "0", "-1", "x", "1000001")],
    *[("HEARTBEAT_SECONDS", value) for value in ("", "0", "-5", "1.5", "3601")],
    *[("CONNECT_TIMEOUT_SECONDS", value) for value in ("", "0", "inf", "soon", "0.0001", "1000001")],
    *[(name, value) for name in ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE") for value in ("/no/such/file", "/")],
    *[("LOG_FORMAT", value) for value in ("", "JSON", "xml")],
    *[("HEALTH_FILE", value) for value in ("/no/such/folder/health", "/")],
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


@pytest.mark.parametrize(
    "url", ["localhost", "localhost:5672", "http://localhost:5672/", "amqp://h:0/", "amqp://h:65536", "amqp://"]
)
def test_a_bad_url_without_secrets_is_shown_where_it_is_plain(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", url)
    with pytest.raises(config.SettingError, match=f"^RABBITMQ_URL='{url}' "):
        config.load()


def load_url(url: str) -> URLParameters:
    """What pika makes of a URL that was found to be good."""
    (loaded,) = config.load({"RABBITMQ_URL": ("RABBITMQ_URL", url)}).rabbitmq_urls
    return URLParameters(loaded)


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost"),
    [
        ("amqp://h", "h", 5672, "/"),
        ("amqp://h/", "h", 5672, "/"),
        ("amqp://h/%2f", "h", 5672, "/"),
        ("amqp://h/%2F", "h", 5672, "/"),
        ("amqp://h/team%2Fprod", "h", 5672, "team/prod"),
        ("amqp://h/prod%2F", "h", 5672, "prod/"),
        ("amqp://h/a:b+c~(d)'!", "h", 5672, "a:b+c~(d)'!"),
        ("amqp://h/a%3Bb", "h", 5672, "a;b"),
        ("amqp://h/" + "v" * 255, "h", 5672, "v" * 255),
        ("AMQP://H.example.:1/v?", "h.example.", 1, "v"),
        ("amqps://h", "h", 5671, "/"),
        ("amqp://h:", "h", 5672, "/"),
        ("amqp://rabbit_mq-1:65535/", "rabbit_mq-1", 65535, "/"),
        ("amqp://127.0.0.1/", "127.0.0.1", 5672, "/"),
        ("amqp://[::1]", "::1", 5672, "/"),
        ("amqp://[FE80::1%eth0]:5673/v", "fe80::1%eth0", 5673, "v"),
        (f"amqp://{'x' * 63}.{'y' * 63}/", f"{'x' * 63}.{'y' * 63}", 5672, "/"),
        ("amqp://bücher.example/käse", "bücher.example", 5672, "käse"),
        ("  amqp://h/v\n", "h", 5672, "v"),
    ],
)
def test_a_url_means_one_thing(url: str, host: str, port: int, vhost: str) -> None:
    read = load_url(url)
    assert (read.host, read.port, read.virtual_host) == (host, port, vhost)
    assert read.credentials == PlainCredentials("guest", "guest")


BAD_URLS = [
    *("", " ", ",", "amqp://a/,", ",amqp://a/", "amqp://a/,,amqp://b/", "amqp:/h/", "amqp:h", "amqp://h amqp://i"),
    *("amqp://h//", "amqp://h/team/prod", "amqp://h/prod/", "amqp://h/%2F/", "amqp://h/a@b", "amqp://h/a;b"),
    *("amqp://h/a b", "amqp://h/a#b", "amqp://h/#", "amqp://h/a\tb", "amqp://h/a\nb", "amqp://h/\0", "amqp://\rh/"),
    *(
        "amqp://h/%",
        "amqp://h/%2",
        "amqp://h/%zz",
        "amqp://h/%ff",
        "amqp://h/%C3",
        "amqp://u:%zz@h/",
        "amqp://%ff:p@h/",
    ),
    *("amqp://h/%00", "amqp://h/a%0Ab", "amqp://u%00:p@h/", "amqp://u:p%00@h/", "amqp://u%0D:p@h/", "amqp://h/\udcff"),
    *(f"amqp://h/{'v' * 256}", f"amqp://{'u' * 256}:p@h/", f"amqp://h/{'%C3%A4' * 128}"),
    *("amqp://h:0/", "amqp://h:65536/", "amqp://h:-1/", "amqp://h:+1/", "amqp://h:x/", "amqp://h:1:2/", "amqp://h:٣/"),
    *("amqp://a..b/", "amqp://.a/", "amqp://a../", "amqp://./", f"amqp://{'x' * 64}/", f"amqp://{'ü' * 60}/"),
    *(f"amqp://{'.'.join(['x' * 60] * 5)}/", "amqp:///", "amqp:///v", "amqp://:5672/", "amqp://@/", "amqp://u:p@/"),
    *("amqp://a%41/", "amqp://a*b/", "amqp://a b/", "amqp://a!/", "amqp://a;b/", "amqp://a\\b/", "amqpſ://localhost/"),
    *("amqp://::1/", "amqp://::1:5672/", "amqp://[::1/", "amqp://::1]/", "amqp://[::1]5672/", "amqp://[1.2.3.4]/"),
    *("amqp://[:::1]/", "amqp://[]/", "amqp://[h]/", "amqp://[v1.x]/", "amqp://[fe80::1%25eth0]/", "amqp://[::1%]/"),
    *(
        "amqp://u@h/",
        "amqp://@h/",
        "amqp://u:p:q@h/",
        "amqp://u:p@q@h/",
        "amqp://u:p/q@h",
        "amqp://u:1/q@h",
        "amqp://u:℀@h/",
    ),
    *("amqp://u:\udcff@h/", "amqp://u:\x01@h/", "amqp://u:\x7f@h/", "amqp://u:\xa0@h/", "amqp://u:\u2028@h/"),
    *("amqp://u:p?q@h/", "amqp://u:p#q@h/", "amqp://u:[p@h/", "amqp://u:p]@h/", "amqp://u:1?locale=q@h/"),
]
BAD_OPTIONS = [
    *("heartbeat", "heartbeat=", "heartbeat=abc", "heartbeat=-1", "heartbeat=1.5", "heartbeat=65536", "heartbeat=1_0"),
    *("heartbeat=5&heartbeat=6", "heartbeat=5&", "&heartbeat=5", "heartbeat=5;locale=x", "heartbeat=٣", "Heartbeat=5"),
    *("colour=red", "colour=1", "=1", "=", "x", "blocked_connection_timeout=nan", "blocked_connection_timeout=inf"),
    *("socket_timeout=0", "stack_timeout=0", "retry_delay=-1", "connection_attempts=0", "channel_max=0", "frame_max=1"),
    *("ssl_options=", "ssl_options=1", "ssl_options=None", "ssl_options={}", "ssl_options=%7B%7D", "ssl_options=x("),
    *("tcp_options=1", "tcp_options=[", "tcp_options={'TCP_KEEPIDLE':'x'}", f"tcp_options={{'TCP_KEEPIDLE':{2**31}}}"),
    *("client_properties=1", "client_properties=x", "client_properties=" + "(" * 5000, "heartbeat=5/", "heartbeat=5?"),
]


@pytest.mark.parametrize("url", [*BAD_URLS, *(f"amqp://h/?{options}" for options in BAD_OPTIONS)])
def test_a_url_that_could_mean_two_things_or_nothing_is_refused(url: str) -> None:
    with pytest.raises(config.SettingError) as caught:
        load_url(url)
    assert str(caught.value).startswith("RABBITMQ_URL=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [url for url in BAD_URLS if "," not in url])
def test_one_bad_url_among_several_is_refused(bad: str) -> None:
    for urls in (f"{bad},amqp://a/", f"amqp://a/,{bad}"):
        with pytest.raises(config.SettingError):
            config.load({"RABBITMQ_URL": ("RABBITMQ_URL", urls)})


def test_the_hint_names_what_to_write() -> None:
    with pytest.raises(config.SettingError, match="/ in a part is written %2F"):
        load_url("amqp://h/team/prod")


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("heartbeat=0", "heartbeat", 0),
        ("heartbeat=65535", "heartbeat", 65535),
        ("blocked_connection_timeout=1.5", "blocked_connection_timeout", 1.5),
        ("channel_max=10&locale=en_US", "channel_max", 10),
        ("frame_max=8192", "frame_max", 8192),
        ("socket_timeout=2", "socket_timeout", 2),
        ("retry_delay=0.5&connection_attempts=3", "connection_attempts", 3),
        ("tcp_options={'TCP_USER_TIMEOUT':120000}", "tcp_options", {"TCP_USER_TIMEOUT": 120000}),
        ("tcp_options=%7B%22TCP_KEEPIDLE%22%3A+60%7D", "tcp_options", {"TCP_KEEPIDLE": 60}),
    ],
)
def test_what_pika_knows_may_follow_the_url(option: str, name: str, value: object) -> None:
    for path in ("", "/", "/v"):
        assert getattr(load_url(f"amqp://h{path}?{option}"), name) == value


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
printable = st.text(st.characters(exclude_categories=["Cs"]).filter(str.isprintable), max_size=60)


@given(user=printable, password=any_text, vhost=printable)
def test_whatever_is_percent_encoded_arrives(user: str, password: str, vhost: str) -> None:
    url = f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@h/{quote(vhost, safe='')}"
    read = load_url(url)
    assert read.credentials == PlainCredentials(user, password)
    assert read.virtual_host == (vhost or "/")
    assert config.mask(url) == f"amqp://{quote(user, safe='')}:***@h/{quote(vhost, safe='')}"


HOSTILE = [
    *"/:@?#%,;[]&=.+\\ \n\t\0'\"\xa0ä\udcffſ℀",
    "//",
    "://",
    "%2F",
    "%zz",
    "%00",
    "%ff",
    "12",
    "x",
    "?heartbeat=5",
]
hostile = st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join)


@settings(deadline=None, max_examples=500)
@given(
    scheme=st.sampled_from(["amqp://", "amqps://", "AMQP://", "http://", "//", "amqp:", ""]),
    user=hostile,
    before=hostile,
    after=hostile,
    place=st.tuples(st.sampled_from(["h", "h:5672", "[::1]", ""]), hostile, st.sampled_from(["", "/", "/v"]), hostile),
    last=st.sampled_from(["", ",amqp://a/", ","]),
)
def test_whatever_a_url_is_like_it_is_understood_or_refused_in_one_line_without_its_password(
    scheme: str, user: str, before: str, after: str, place: tuple[str, ...], last: str
) -> None:
    text = f"{scheme}{user}:{before}s3cret{after}@{''.join(place)}{last}"
    try:
        loaded = config.load({"RABBITMQ_URL": ("RABBITMQ_URL", text)})
    except config.SettingError as error:
        message = str(error)
    else:
        read = URLParameters(loaded.rabbitmq_urls[0])
        assert isinstance(read.credentials, PlainCredentials)
        assert "s3cret" in str(read.credentials.password)
        message = " ".join([*map(config.mask, loaded.rabbitmq_urls), repr(loaded)])
    assert "s3cret" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("delay", "name"), [("1", "q.retry.1s"), ("0.25", "q.retry.0.25s"), ("1000000", "q.retry.1000000s")]
)
def test_the_name_of_a_retry_queue_is_a_plain_number(delay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_QUEUE", "q")
    monkeypatch.setenv("RETRY_DELAYS", delay)
    settings = config.load()
    assert settings.retry_queue(settings.retry_delays[0]) == name


@pytest.mark.parametrize(
    ("delays", "name", "ttl"),
    [
        ("0.001", "0.001", 1),
        ("0.29, 0.290, .29, 29e-2", "0.29", 290),
        ("1.001,1.0010000000000001", "1.001", 1001),
        ("8.2", "8.2", 8200),
        ("999999.999", "999999.999", 999_999_999),
        ("1e3,1000", "1000", 1_000_000),
    ],
)
def test_a_retry_queue_has_one_ttl_which_its_name_says(
    delays: str, name: str, ttl: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRY_DELAYS", delays)
    loaded = config.load()
    assert len(loaded.retry_delays) == delays.count(",") + 1
    for delay in loaded.retry_delays:
        assert loaded.retry_queue(delay) == f"task_queue.retry.{name}s"
        assert delay * 1000 == pytest.approx(ttl, abs=1e-6)
    assert len(set(loaded.retry_delays)) == 1


def test_the_longest_queue_name_has_room_for_what_is_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_QUEUE", "q" * config.LONGEST_NAME)
    monkeypatch.setenv("RETRY_DELAYS", "999999.999,1000000")
    loaded = config.load()
    assert all(len(loaded.retry_queue(delay)) <= 255 for delay in loaded.retry_delays)


def test_white_space_around_a_value_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TASK_QUEUE", " q\t"), ("CONCURRENCY", " 2 "), ("RETRY_DELAYS", " 1 , 2\n")):
        monkeypatch.setenv(name, value)
    assert (config.load().task_queue, config.load().concurrency, config.load().retry_delays) == ("q", 2, (1, 2))


def test_the_settings_can_be_printed_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://u:s3cret@h/")
    assert "s3cret" not in f"{config.load()}"


@pytest.mark.parametrize(
    "text",
    [
        "TASK_QUEUE=orders",
        "export TASK_QUEUE=orders\n",
        "# a comment\n\n  TASK_QUEUE = orders # another\n",
        "TASK_QUEUE='orders'\r\nCOLOUR\r\n",
        '\ufeffTASK_QUEUE="orders"\n',
        "PREFIX=or\nTASK_QUEUE=${PREFIX}ders\nOTHER_PROGRAM=x y z\n",
        "TASK_QUEUE=first\nTASK_QUEUE=orders\n",
    ],
)
def test_a_dotenv_is_read_as_other_programs_read_it(text: str) -> None:
    Path(".env").write_bytes(text.encode())
    assert config.load().task_queue == "orders"


@pytest.mark.parametrize(
    "line",
    [
        *("TASK_QUEUE s3cret", "TASK_QUEUE: s3cret", "TASK_QUEUE='s3cret", 'TASK_QUEUE="s3cret', "=s3cret", "'s3cret"),
        *("TASK_QUEUE='a' s3cret", "RABBITMQ_URL amqp://u:s3cret@h/", "TASK_QUEUE", "export TASK_QUEUE", "- s3cret x"),
    ],
)
@pytest.mark.parametrize(("before", "number"), [("", 1), ("\n# comment\n\n", 4), ("A=1\r\n\r\n", 3)])
def test_a_bad_line_of_dotenv_is_refused_with_its_number(line: str, before: str, number: int) -> None:
    Path(".env").write_bytes(f"{before}{line}\n\nCONCURRENCY=2\n".encode())
    with pytest.raises(config.SettingError, match=rf"^\.env: line {number} is no setting") as caught:
        config.load()
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"TASK_QUEUE=\xff\xfe\n", "TASK_QUEUE=orders\n".encode("utf-16")])
def test_a_dotenv_that_is_no_text_is_named(content: bytes) -> None:
    Path(".env").write_bytes(content)
    with pytest.raises(config.SettingError, match=r"\.env: cannot be read"):
        config.load()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory that others may enter; the `.env` beside config.py, in its parent, is another."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        (Path(name) / ".env").write_text("TASK_QUEUE=beside\n")
        monkeypatch.setattr(config, "__file__", f"{name}/config.py")
        current = Path(name) / "current"
        current.mkdir()
        monkeypatch.chdir(current)
        yield current
        monkeypatch.chdir(tmp_path)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """To root, nothing is unreadable."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_the_current_directory_comes_first(elsewhere: Path) -> None:
    assert config.load().task_queue == "beside"
    (elsewhere / ".env").write_text("CONCURRENCY=2\n")
    assert (config.load().task_queue, config.load().concurrency) == ("task_queue", 2)


def test_a_directory_with_the_name_is_no_settings(elsewhere: Path) -> None:
    (elsewhere / ".env").mkdir()  # some keep a virtual environment there
    assert config.load().task_queue == "beside"


def test_a_current_directory_that_is_gone(elsewhere: Path) -> None:
    elsewhere.rmdir()
    assert config.load().task_queue == "beside"
    with pytest.raises(config.SettingError, match=r"^TLS_CA_FILE='ca\.pem'"):
        config.load({"TLS_CA_FILE": ("TLS_CA_FILE", "ca.pem")})


def test_a_current_directory_that_has_no_name_any_more(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmounted() -> str:
        raise FileNotFoundError

    (elsewhere / ".env").write_text("TASK_QUEUE=orders\nTLS_CA_FILE=.env\n")
    monkeypatch.setattr(os, "getcwd", unmounted)
    with pytest.raises(config.SettingError, match=r"^TLS_CA_FILE='\.env'"):
        config.load()


def test_a_current_directory_that_is_closed_to_us(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("TASK_QUEUE=current\n")
    elsewhere.chmod(0)
    with ordinary_user():
        assert config.load().task_queue == "beside"
    elsewhere.chmod(0o755)


def test_a_dotenv_that_we_may_not_read_is_named(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("TASK_QUEUE=current\n")
    (elsewhere / ".env").chmod(0)
    with ordinary_user(), pytest.raises(config.SettingError, match=r"^\.env: cannot be read .*Permission denied"):
        config.load()


@pytest.mark.parametrize("program", ["sender.py", "worker.py"])
@pytest.mark.parametrize(
    "before",
    [
        "export RABBITMQ_URL=amqp://u:1/s3cret@h",
        "echo 'RABBITMQ_URL amqp://u:s3cret@h/' > .env",
        "mkdir gone; cd gone; rmdir ../gone; export RABBITMQ_URL=amqp://u:s3cret@a..b/",
    ],
)
def test_the_programs_end_with_exit_code_2_and_one_line(program: str, before: str, tmp_path: Path) -> None:
    command = f'{before}; exec "{sys.executable}" "{ROOT / program}"'
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, input="", timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert "s3cret" not in ended.stderr


@pytest.mark.parametrize("name", ["TLS_CA_FILE", "TLS_CERT_FILE"])
@pytest.mark.parametrize("url", ["amqps://localhost/", "AMQPS://localhost", "amqp://localhost/,amqps://localhost/"])
def test_a_file_that_holds_no_certificate_is_named(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", url)
    monkeypatch.setenv(name, __file__)
    with pytest.raises(config.SettingError, match=f"^{name}="):
        config.load()


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    """The files of settings with which TLS works."""
    authority = trustme.CA()
    issued = authority.issue_cert("client@example.com")
    files = {name: tmp_path / f"{name}.pem" for name in ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE")}
    authority.cert_pem.write_to_path(files["TLS_CA_FILE"])
    issued.cert_chain_pems[0].write_to_path(files["TLS_CERT_FILE"])
    issued.private_key_pem.write_to_path(files["TLS_KEY_FILE"])
    return files


@pytest.mark.parametrize("name", ["TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE"])
@pytest.mark.parametrize("state", ["half", "empty", "gone", "directory", "another"])
def test_tls_files_that_are_just_being_written_are_told_and_may_pass(
    name: str, state: str, certificate: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "AMQPS://localhost/")
    for variable, path in certificate.items():
        monkeypatch.setenv(variable, path.name)
    loaded = config.load()
    file, good = certificate[name], certificate[name].read_bytes()
    other = certificate["TLS_KEY_FILE" if name == "TLS_CA_FILE" else "TLS_CA_FILE"].read_bytes()
    file.unlink()
    if state == "directory":
        file.mkdir()
    elif state != "gone":
        file.write_bytes({"half": good[: len(good) // 2], "empty": b"", "another": other}[state])
    with pytest.raises(config.SettingError, match=r"^TLS_(CA|CERT)_FILE=.*: must hold"):
        config.tls_context(loaded)
    file.rmdir() if state == "directory" else file.unlink(missing_ok=True)
    file.write_bytes(good)
    monkeypatch.chdir("/")  # as a handler may do
    config.tls_context(loaded)


def test_a_key_without_a_certificate_is_refused(certificate: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqps://localhost/")
    monkeypatch.setenv("TLS_KEY_FILE", str(certificate["TLS_KEY_FILE"]))
    with pytest.raises(config.SettingError, match=r"^TLS_KEY_FILE=.* TLS_CERT_FILE"):
        config.load()


def test_a_long_url_is_refused_at_once() -> None:
    for part in ("amqp://" + "a" * 100_000, "amqp://u:" + "%2F" * 50_000 + "@", "amqp://h/" + "v" * 100_000 + "@"):
        with pytest.raises(config.SettingError):
            load_url(part + "/@/")


def test_env_example_shows_every_variable_with_its_default() -> None:
    lines = (Path(__file__).parent.parent / ".env.example").read_text().splitlines()[1:]
    shown = dict(line.removeprefix("#").split("=", 1) for line in lines)
    defaults = {variable.name: variable.default for variable in config.VARIABLES} | {"PREFETCH_COUNT": "1"}
    assert shown == defaults


def test_the_table_of_settings_says_what_holds_without_them() -> None:
    rows = [
        line.split(" | ") for line in (ROOT / "docs/reference.md").read_text().splitlines() if line.startswith("| `")
    ]
    said = {row[0].strip("|` "): row[1].strip("`") for row in rows}
    defaults = {variable.name: variable.default or "none" for variable in config.VARIABLES}
    defaults["PREFETCH_COUNT"] = "the concurrency"
    assert {name: said[name] for name in defaults} == defaults
