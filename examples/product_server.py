"""A shop's product service to try examples/product_sync.py on: slow, and now and then in trouble, as you like.

    python examples/product_server.py --latency 0.1 --busy 0.2 -- COMMAND ...

serves while the command runs, which finds it by PRODUCT_API. GET /products/17 answers with a product, in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ProductServer(ThreadingHTTPServer):
    """Serves on a free port of loopback, on threads of its own, from `with` to its end."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, latency: float = 0.0, busy: float = 0.0, products: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.latency = latency  # seconds before each answer
        self.busy = busy  # the share of requests that are answered with 503
        self.products = products
        self.version = 1
        self.troubles: dict[str, list[str]] = {}  # path -> what happens to the next requests for it: see Answer
        self.requests: list[str] = []  # their paths
        self.ended = threading.Event()

    def __enter__(self) -> ProductServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has lost its patience, or was killed, is no news."""


class Answer(BaseHTTPRequestHandler):
    server: ProductServer
    protocol_version = "HTTP/1.1"  # connections stay open for the next request
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        time.sleep(self.server.latency)
        troubles = self.server.troubles.get(self.path)
        trouble = troubles.pop(0) if troubles else "busy" if random.random() < self.server.busy else ""
        if trouble == "hang":  # takes the request, and says nothing
            self.server.ended.wait()
            self.close_connection = True
        elif trouble == "trickle":  # a byte now and then
            self.trickle()
        elif trouble:
            self.answer(503, {"error": "come again"})
        else:
            self.product(self.path.removeprefix("/products/"))

    def product(self, number: str) -> None:
        if not (number.isdecimal() and 1 <= int(number) <= self.server.products):
            return self.answer(404, {"error": "no such product"})
        about = {"id": int(number), "name": f"Tea no. {number}", "cents": 100 + int(number)}
        return self.answer(200, about | {"version": self.server.version})

    def answer(self, status: int, members: dict[str, object]) -> None:
        body = json.dumps(members).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "50")
        self.end_headers()
        for _ in range(50):
            self.wfile.write(b" ")
            self.server.ended.wait(0.1)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds before each answer (default: 0.1)")
    parser.add_argument("--busy", type=float, default=0.0, help="share of requests that get a 503 (default: 0)")
    parser.add_argument("--products", type=int, default=1000, help="how many there are; 404 above (default: 1000)")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with ProductServer(arguments.latency, arguments.busy, arguments.products) as server:
        return subprocess.call(arguments.command, env={**os.environ, "PRODUCT_API": server.url})


if __name__ == "__main__":
    sys.exit(main())
