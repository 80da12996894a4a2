"""For the shell scripts: what RABBITMQ_URL says, and whether a broker answers there.

probe.py url              shell assignments of the first URL's parts: host, port, user_name, password, vhost, tls, shown
probe.py answers SECONDS [PORT]
                          exit 0 if an AMQP connection opens within so long, there or at another port,
                          3 if nothing answers, 4 if it is refused
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import replace
from urllib.parse import urlsplit

import _environment  # noqa: F401  # first: where our packages and modules are
from pika import PlainCredentials

import config
from workqueue.dialing import dial, parameters
from workqueue.errors import BrokerError, Refused


def main(question: str, seconds: str = "0", other_port: str = "") -> int:
    try:
        settings = config.load()
    except config.SettingError as error:
        print(error, file=sys.stderr)
        return 2
    url = settings.rabbitmq_urls[0]
    if question == "url":
        parts = parameters(settings, url, "probe")
        credentials = parts.credentials
        assert isinstance(credentials, PlainCredentials)
        facts = {
            "host": parts.host,
            "port": str(parts.port),
            "user_name": credentials.username,
            "password": credentials.password,
            "vhost": parts.virtual_host,
            "tls": "yes" if parts.ssl_options else "",
            "shown": config.mask(url),
        }
        print("\n".join(f"{name}={shlex.quote(value)}" for name, value in facts.items()))
        return 0
    if other_port:
        url = url.replace(f":{urlsplit(url).port}/", f":{other_port}/")
    deadline = time.monotonic() + float(seconds)
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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
