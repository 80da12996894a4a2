"""Settings: read from the environment, then `.env`, then the default; a command-line flag beats all three.

`load()` is called once, at the start of each program, and checks everything: a bad value ends the program before
it has touched a queue, with one line that names the variable, the value and what is allowed.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pika import URLParameters

QUEUE_TYPES = ("classic", "quorum", "existing")
LOG_FORMATS = ("text", "json")
LONGEST_NAME = 200  # bytes; AMQP allows 255, and ".retry.<n>s" is appended


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line for the person who set it."""


@dataclass(frozen=True)
class Settings:
    """All settings of one run. Times are in seconds."""

    rabbitmq_urls: tuple[str, ...]
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


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or parts.port == 0:
            raise ValueError
        if "@" in parts.query or parts.fragment:  # a password with a ? or # that is not percent-encoded
            raise ValueError
        try:
            URLParameters(url)
        except Exception:  # pika raises whatever it stumbles over, of many kinds
            raise ValueError from None
    return urls


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
    seconds = float(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not 0.001 <= seconds <= 1_000_000:
        raise ValueError
    return seconds


def _delays(text: str) -> tuple[float, ...]:
    return tuple(_positive_seconds(part) for part in text.split(",")) if text else ()


def _file(text: str) -> str:
    if text and not os.access(text, os.R_OK):
        raise ValueError
    return text


VARIABLES = (
    Variable(
        "RABBITMQ_URL",
        "amqp://guest:guest@localhost:5672/",
        _urls,
        "one or more amqp:// or amqps:// URLs with a host, comma-separated, special characters percent-encoded",
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
        "seconds from 0.001 to 1000000, comma-separated; empty for no further attempt",
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
        except ValueError:
            shown = hide(text) if variable.name == "RABBITMQ_URL" else text
            raise SettingError(f"{names[variable.name]}={shown!r}: must be {variable.allowed}") from None
    urls = values.pop("RABBITMQ_URL")
    settings = Settings(rabbitmq_urls=urls, **{name.lower(): value for name, value in values.items()})
    if any(url.startswith("amqps:") for url in urls):
        tls_context(settings)
    return settings


def tls_context(settings: Settings) -> ssl.SSLContext:
    """What we trust and show in a TLS connection. Raises SettingError for files that are no certificates."""
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
    except ssl.SSLError:
        raise SettingError(f"TLS_CA_FILE={settings.tls_ca_file!r}: must hold certificates in PEM format") from None
    if settings.tls_cert_file:
        try:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file or None, password="")
        except ssl.SSLError:
            raise SettingError(
                f"TLS_CERT_FILE={settings.tls_cert_file!r}: must hold a certificate in PEM format, "
                "and with TLS_KEY_FILE its key, without a passphrase"
            ) from None
    return context


def mask(url: str) -> str:
    """A URL that was found to be valid, as it may be shown: *** for the password, and no query."""
    parts = urlsplit(url)
    user = f"{parts.username}:***@" if parts.password else f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"


def hide(urls: str) -> str:
    """URLs that are not valid, as they may be shown: anything in them could be a password, unless it is very plain."""
    if re.fullmatch(r"([a-z]*://)?[\w.\[\]-]*(:[0-9]*)?(/\w*)?", urls):
        return urls
    return ",".join(f"{url.partition('://')[0]}://***" if "://" in url else "***" for url in urls.split(","))


def _dotenv() -> dict[str, str]:
    """What `.env` says: the one in the current directory, or else the one beside this file."""
    for folder in (Path.cwd(), Path(__file__).parent):
        path = folder / ".env"
        if path.is_file():
            try:
                return {name: value for name, value in dotenv_values(path).items() if value is not None}
            except (OSError, UnicodeDecodeError) as error:
                raise SettingError(
                    f"{path}: cannot be read as settings ({error}): one NAME=value a line, UTF-8"
                ) from None
    return {}
