"""The state as a page of the browser, which is fed by server-sent events, and as metrics.

Only this machine can ask, and only by a name of this machine: another site's page that has its own name resolve to
127.0.0.1 is refused. Whoever reads slowly gets fewer states, never a queue of old ones.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from view.metrics import CONTENT_TYPE, metrics
from view.model import Model

FRAME_SECONDS = 0.2  # between two states, at least
SHARE = 0.02  # of a core that making them may cost
MOST_PAGES = 20  # that are fed at once
MOST_CONNECTIONS = 60
PATIENCE_SECONDS = 10.0  # with a client that does not read or write
STILL_SECONDS = 5.0  # a sign of life, where there is nothing new
MOST_WORKERS = 100  # rows
MOST_RECENT = 30
OUR_NAMES = ("127.0.0.1", "localhost", "[::1]")

FOLDER = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Feed:
    """The newest state as JSON, made only while somebody reads it."""

    def __init__(self, model: Model, now: Callable[[], float]) -> None:
        self._model = model
        self._now = now
        self._changed = threading.Condition()
        self._newest = b""
        self._number = 0
        self._pages = 0
        self.closed = False

    def join(self) -> bool:
        """Whether there is room for one more page; then `leave` must follow."""
        with self._changed:
            if self._pages >= MOST_PAGES:
                return False
            self._pages += 1
            self._changed.notify_all()
            return True

    def leave(self) -> None:
        with self._changed:
            self._pages -= 1

    def after(self, number: int) -> tuple[int, bytes]:
        """The newest state and its number, as soon as that is another; nothing, if there is none for some time."""
        with self._changed:
            there_is = self._changed.wait_for(lambda: self._number != number or self.closed, STILL_SECONDS)
            return (self._number, self._newest) if there_is else (number, b"")

    def run(self) -> None:
        while not self.closed:
            with self._changed:
                self._changed.wait_for(lambda: self._pages > 0 or self.closed)
            began = time.thread_time()
            state = json.dumps(self._model.state(self._now(), MOST_WORKERS, MOST_RECENT)).encode()
            with self._changed:
                self._newest = state
                self._number += 1
                self._changed.notify_all()
            time.sleep(max(FRAME_SECONDS, (time.thread_time() - began) / SHARE))

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class Server:
    """A context manager: it serves inside. Raises OSError where the port cannot be had."""

    def __init__(self, model: Model, now: Callable[[], float], port: int) -> None:
        self._feed = Feed(model, now)
        self._http = _Http(("127.0.0.1", port), model, now, self._feed)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"

    def __enter__(self) -> Server:
        threading.Thread(target=self._feed.run, name="feed", daemon=True).start()
        threading.Thread(target=self._http.serve_forever, args=(0.2,), name="web", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()
        self._http.shutdown()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], model: Model, now: Callable[[], float], feed: Feed) -> None:
        self.model = model
        self.now = now
        self.feed = feed
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = PATIENCE_SECONDS
    server_version = "watch.py"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = self.headers.get("Host", "").rpartition(":")
        if (name[0] if name[2].isdecimal() else self.headers.get("Host", "")) not in OUR_NAMES:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "watch.py answers only at 127.0.0.1 and localhost\n")
        elif path in FILES:
            file, kind = FILES[path]
            self._answer((FOLDER / file).read_bytes(), kind)
        elif path == "/metrics":
            state = self.server.model.state(self.server.now(), rows=0, recent=0)
            self._answer(metrics(state).encode(), CONTENT_TYPE)
        elif path == "/events":
            self._feed_page()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is /, /events and /metrics\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **more: str) -> None:
        self.send_response(status)
        for header, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, why: str, **more: str) -> None:
        self._answer(why.encode(), "text/plain; charset=utf-8", status, **more)

    def _feed_page(self) -> None:
        feed = self.server.feed
        if self.command == "HEAD" or not feed.join():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_PAGES} pages are open already\n")
            return
        try:
            self.send_response(HTTPStatus.OK)
            for header, value in {**HEADERS, "Content-Type": "text/event-stream"}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(b"retry: 1000\n\n")
            number = 0
            while not feed.closed:
                number, state = feed.after(number)
                self.wfile.write(b"data: " + state + b"\n\n" if state else b": still here\n\n")
        finally:
            feed.leave()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""
