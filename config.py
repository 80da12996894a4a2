"""Settings: read from the environment, then `.env`, then the default; a command-line flag beats all three.

`load()` is called once, at the start of each program, and checks everything: a bad value ends the program before
it has touched a queue, with one line that names the variable, the value and what is allowed. Nothing is guessed:
what could be meant in two ways is refused. A variable that is set to nothing is set: it is no way to the default.
"""

from __future__ import annotations

import io
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pika import PlainCredentials, URLParameters

QUEUE_TYPES = ("classic", "quorum", "existing")
LOG_FORMATS = ("text", "json")
LONGEST_NAME = 200  # bytes; AMQP allows 255, and ".retry.<n>s" is appended


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line for the person who set it."""


@dataclass(frozen=True)
class Settings:
    """All settings of one run. Times are in seconds."""

    rabbitmq_urls: tuple[str, ...] = field(repr=False)  # they hold passwords
    task_queue: str
    queue_type: str
    concurrency: int
    prefetch_count: int
    seconds_per_difficulty: float
    retry_delays: tuple[float, ...]
    delivery_limit: int
    heartbeat_seconds: int
    connect_timeout_seconds: float
    tls_ca_file: str
    tls_cert_file: str
    tls_key_file: str
    log_format: str
    health_file: str

    @property
    def dead_queue(self) -> str:
        return f"{self.task_queue}.dead"

    def retry_queue(self, delay: float) -> str:
        """The queue in which a task waits `delay` seconds for its next attempt."""
        return f"{self.task_queue}.retry.{f'{delay:.3f}'.rstrip('0').rstrip('.')}s"


@dataclass(frozen=True)
class Variable:
    """How one setting is read: its name in the environment, its default as text, its parser, and words for people."""

    name: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    meaning: str


# No part of a URL may hold a character that could as well end it: a password with a / in it can look like a port and
# a virtual host. The numbers after the ? have a limit, since pika takes any and fails when it connects.
_CHARACTER = r"[^\s:/?#@%\[\]]|%[0-9A-Fa-f]{2}"
_OPTION = (
    rf"(?:[a-z_]+=[0-9]{{1,5}}(?:\.[0-9]+)?|locale=[\w.-]+|(?:client_properties|tcp_options)=(?:{_CHARACTER}|[:\[\]])+)"
)
_URL = re.compile(
    rf"(?P<scheme>(?ai:amqps?))://(?:(?P<user>(?:{_CHARACTER})*):(?P<password>(?:{_CHARACTER})*)@)?"
    r"(?P<host>[\w.-]+|\[(?P<address>[0-9A-Fa-f:.]+(?:%(?!25)[\w.-]+)?)\])(?::(?P<port>[0-9]{0,5}))?"
    rf"(?:/(?P<vhost>(?:{_CHARACTER}|:)*))?(?:\?(?:{_OPTION}(?:&{_OPTION})*)?)?"
)
_FORM = (
    "not amqp://user:password@host:port/virtual-host?option=number, where / in a part is written %2F, "
    ": %3A, @ %40, ? %3F, # %23, % %25, ; %3B, a comma %2C, a space %20"
)


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        found = _URL.fullmatch(url) if url.isprintable() else None
        if not found:
            raise SettingError(_FORM)
        meant = _meaning(found)
        try:
            read = URLParameters(url)
        except Exception:  # pika raises whatever it stumbles over, of many kinds
            raise SettingError("pika cannot read it: look at what follows a ?, or is not ASCII") from None
        if (read.host.lower(), read.port, read.credentials, read.virtual_host) != meant:
            raise SettingError(_FORM)  # a ; in the path, for one: pika drops what follows
        for number, most in ((read.heartbeat or 0, 2**16), *((n, 2**31) for n in (read.tcp_options or {}).values())):
            if type(number) is not int or not 0 <= number < most:
                raise SettingError("a heartbeat, or a value in tcp_options, is no number or too large")
    return urls


def _meaning(url: re.Match[str]) -> tuple[str, int, PlainCredentials, str]:
    """Host, port, user with password, and virtual host. Raises SettingError, in words that quote nothing of the URL."""
    port = int(url["port"] or (5671 if url["scheme"].lower() == "amqps" else 5672))
    if not 1 <= port <= 65535:
        raise SettingError("a port is a number from 1 to 65535")
    host = url["address"] or url["host"]
    try:
        if url["address"]:
            IPv6Address(host)
        elif len(host.encode("idna").removesuffix(b".")) > 253:  # as sockets encode a name to look it up
            raise ValueError
    except ValueError:
        raise SettingError("no host has such a name: 1 to 63 bytes between two dots, 253 in all") from None
    try:
        user, password = (
            "guest" if url[part] is None else unquote(url[part], errors="strict") for part in ("user", "password")
        )
        vhost = unquote(url["vhost"] or "/", errors="strict")
    except UnicodeDecodeError:
        raise SettingError("what is percent-encoded must be UTF-8") from None
    if "\0" in password or any(not name.isprintable() or len(name.encode()) > 255 for name in (user, vhost)):
        raise SettingError("a user name and a virtual host are printable, at most 255 bytes; no NUL is in a password")
    return host.lower(), port, PlainCredentials(user, password), vhost


def _name(text: str) -> str:
    if not text or not text.isprintable() or len(text.encode()) > LONGEST_NAME or text.startswith("amq."):
        raise ValueError
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return parse


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError
    return seconds


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not 0.001 <= seconds <= 1_000_000:
        raise ValueError
    return seconds


def _delays(text: str) -> tuple[float, ...]:
    """Whole milliseconds, as in the name and the TTL of a retry queue: with a rest, two TTLs could have one name."""
    delays = [_positive_seconds(part.strip()) for part in text.split(",")] if text else []
    if any(abs(delay * 1000 - round(delay * 1000)) > 0.000_001 for delay in delays):
        raise ValueError
    return tuple(round(delay, 3) for delay in delays)


def _file(text: str) -> str:
    if text and (os.path.isdir(text) or not os.access(text, os.R_OK)):
        raise ValueError
    return str(Path(text).absolute()) if text else ""  # a handler may change the current folder


def _own_file(text: str) -> str:
    if text and (os.path.isdir(text) or not os.access(os.path.dirname(text) or ".", os.W_OK | os.X_OK)):
        raise ValueError
    return str(Path(text).absolute()) if text else ""


VARIABLES = (
    Variable(
        "RABBITMQ_URL",
        "amqp://guest:guest@localhost:5672/",
        _urls,
        "amqp:// or amqps:// URLs with a host, comma-separated, special characters percent-encoded (/ is %2F)",
        "the broker, or the nodes of a cluster, tried in turn",
    ),
    Variable(
        "TASK_QUEUE",
        "task_queue",
        _name,
        f"a queue name of 1 to {LONGEST_NAME} bytes, printable, not starting with amq.",
        "the work queue; the names of the retry and dead queues derive from it",
    ),
    Variable(
        "QUEUE_TYPE",
        "classic",
        _one_of(*QUEUE_TYPES),
        "classic, quorum or existing",
        "`classic`: durable, no arguments; `quorum`: replicated; `existing`: never declared, used as it is",
    ),
    Variable(
        "CONCURRENCY",
        "1",
        _whole(1, 1000),
        "a whole number from 1 to 1000",
        "tasks that a worker runs at once",
    ),
    Variable(
        "PREFETCH_COUNT",
        "",
        _whole(0, 65535),
        "a whole number from 0 (unlimited) to 65535",
        "unacknowledged tasks that a worker may hold; by default its concurrency",
    ),
    Variable(
        "SECONDS_PER_DIFFICULTY",
        "1.0",
        _seconds,
        "a finite number of seconds, 0 or more",
        "seconds of simulated work for each point of difficulty",
    ),
    Variable(
        "RETRY_DELAYS",
        "1,5,30",
        _delays,
        "seconds from 0.001 to 1000000, in whole milliseconds, comma-separated; empty for no further attempt",
        "seconds before each further attempt at a task whose handler failed; after the last it is dead",
    ),
    Variable(
        "DELIVERY_LIMIT",
        "20",
        _whole(1, 1_000_000),
        "a whole number from 1 to 1000000",
        "times that a task may be handed out without being settled before it is dead",
    ),
    Variable(
        "HEARTBEAT_SECONDS",
        "15",
        _whole(1, 3600),
        "a whole number from 1 to 3600",
        "AMQP heartbeat; a dead link is noticed within two of them",
    ),
    Variable(
        "CONNECT_TIMEOUT_SECONDS",
        "10",
        _positive_seconds,
        "seconds from 0.001 to 1000000",
        "how long the sender tries to reach a broker before it gives up; a worker never gives up",
    ),
    Variable(
        "TLS_CA_FILE",
        "",
        _file,
        "a readable file, or empty",
        "for amqps: certificates (PEM) to trust in place of the system's; the host's name is always checked",
    ),
    Variable(
        "TLS_CERT_FILE",
        "",
        _file,
        "a readable file, or empty",
        "for amqps: the certificate (PEM) that we show to the broker",
    ),
    Variable(
        "TLS_KEY_FILE",
        "",
        _file,
        "a readable file, or empty",
        "for amqps: its private key (PEM), where it is not in the same file",
    ),
    Variable(
        "LOG_FORMAT",
        "text",
        _one_of(*LOG_FORMATS),
        "text or json",
        "what a worker prints: text for people, or one JSON object a line",
    ),
    Variable(
        "HEALTH_FILE",
        "",
        _own_file,
        "a file in a folder that can be written to, or empty",
        "a worker says there, once a second, that it goes on, for `deploy/health.py`; one file for each worker",
    ),
)


def load(flags: Mapping[str, tuple[str, str | None]] | None = None) -> Settings:
    """The settings of this run, checked.

    `flags` maps a variable to the flag that stands for it and the flag's value, None where it was not given:
    `{"TASK_QUEUE": ("--queue", "orders")}`. Raises SettingError.
    """
    given = {**_dotenv(), **os.environ}
    names = {variable.name: variable.name for variable in VARIABLES}
    for name, (flag, value) in (flags or {}).items():
        if value is not None:
            given[name], names[name] = value, flag
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        text = given.get(variable.name)
        if text is None and variable.name == "PREFETCH_COUNT":
            text = str(values["CONCURRENCY"])
        if text is None:
            text = variable.default
        try:
            values[variable.name] = variable.parse(text.strip())
        except (ValueError, OSError) as error:
            shown = hide(text) if variable.name == "RABBITMQ_URL" else text
            why = f" ({error})" if isinstance(error, SettingError) else ""  # others may quote the value
            raise SettingError(f"{names[variable.name]}={shown!r}{why}: must be {variable.allowed}") from None
    urls = values.pop("RABBITMQ_URL")
    settings = Settings(rabbitmq_urls=urls, **{name.lower(): value for name, value in values.items()})
    if any(url.lower().startswith("amqps:") for url in urls):
        tls_context(settings)
    return settings


def tls_context(settings: Settings) -> ssl.SSLContext:
    """What we trust and show in a TLS connection.

    Raises SettingError for files that cannot be used. At the start of a program that is final. Later it may pass, as
    the files were good once: somebody may be writing new ones just now, so try again as with a broker that is away.
    """
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
    except OSError as error:  # an SSLError is one, too
        why = f"must hold certificates in PEM format ({error.strerror})"
        raise SettingError(f"TLS_CA_FILE={settings.tls_ca_file!r}: {why}") from None
    if settings.tls_key_file and not settings.tls_cert_file:
        raise SettingError(f"TLS_KEY_FILE={settings.tls_key_file!r}: must be the key of a certificate in TLS_CERT_FILE")
    if settings.tls_cert_file:
        try:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file or None, password="")
        except OSError as error:
            raise SettingError(
                f"TLS_CERT_FILE={settings.tls_cert_file!r}: must hold a certificate in PEM format, "
                f"and with TLS_KEY_FILE its key, without a passphrase ({error.strerror})"
            ) from None
    return context


def mask(url: str) -> str:
    """A URL as it may be shown: *** for the password, and no query."""
    scheme, _, rest = url.partition("://")
    user_info, at, place = rest.rpartition("@")
    user, colon, _ = user_info.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place.partition('?')[0]}"


def hide(urls: str) -> str:
    """URLs that are not valid, as they may be shown: anything in them could be a password, unless it is very plain."""
    scheme = "(amqps?|https?)://"
    if re.fullmatch(rf"({scheme})?[\w.\[\]-]*(:[0-9]{{0,5}})?/?", urls):
        return urls
    shown = [re.match(scheme, url.strip()) for url in urls.split(",")]
    return ",".join(f"{found[0] if found else ''}***" for found in shown)


def _dotenv() -> dict[str, str]:
    """What `.env` says: the one in the current directory, or else the one beside this file.

    Of two lines for one name the last counts, as in a shell. A line that cannot be understood is refused.
    """
    for path in (".env", str(Path(__file__).with_name(".env"))):
        if os.path.isfile(path):  # no error, where the current directory is gone or closed to us
            return _read_dotenv(path)
    return {}


def _read_dotenv(path: str) -> dict[str, str]:
    shown = repr(path)[1:-1]  # on one line, whatever is in it
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{shown}: cannot be read as settings ({error}): one NAME=value a line, UTF-8") from None
    ours = {variable.name for variable in VARIABLES}
    for line in parse_stream(io.StringIO(text)):
        if line.error or (line.key in ours and line.value is None):
            original = line.original.string  # what it says is not shown: it may be a password
            number = line.original.line + original[: len(original) - len(original.lstrip())].count("\n")
            raise SettingError(f"{shown}: line {number} is no setting: must be NAME=value, a # comment, or empty")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}
