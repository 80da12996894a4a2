"""Runs a program of the project in its container: container.py worker.py [FLAGS]

RABBITMQ_URL, where it is not given, is made of RABBITMQ_HOST, RABBITMQ_USER, RABBITMQ_PASSWORD and RABBITMQ_VHOST: in
a URL each special character must be percent-encoded, which Compose cannot do.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import quote


def url(environment: dict[str, str]) -> str:
    host = environment.get("RABBITMQ_HOST", "localhost")
    parts = (("RABBITMQ_USER", "guest"), ("RABBITMQ_PASSWORD", "guest"), ("RABBITMQ_VHOST", "/"))
    user, password, vhost = (quote(environment.get(name, default), safe="") for name, default in parts)
    return f"amqp://{user}:{password}@{host}:5672/{vhost if vhost != '%2F' else ''}"


if __name__ == "__main__":
    os.environ.setdefault("RABBITMQ_URL", url(dict(os.environ)))
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
