"""A TCP forwarder between a program and its broker, to cut and to stall what passes."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Link:
    """One forwarded connection. Each direction has a thread, which ends when either side is gone."""

    def __init__(self, client: socket.socket, broker: socket.socket, chunks: int | None) -> None:
        self._chunks = chunks
        self._ends = (client, broker)
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut_after: int | None = None
        self._threads = [
            threading.Thread(target=self._pump, args=pair, daemon=True) for pair in (self._ends, self._ends[::-1])
        ]
        for thread in self._threads:
            thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                self._flowing.wait()
                if self._chunks is not None and source is self._ends[0]:
                    self._chunks -= 1
                    if self._chunks < 0:
                        break
                after = self._cut_after
                if after is not None and len(data) > after:
                    sink.sendall(data[:after])
                    break
                sink.sendall(data)
        self._hang_up()

    def _hang_up(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut_in_mid_frame(self, after: int) -> None:
        self._cut_after = after

    def reset(self) -> None:
        """Both sides get a reset, as from a firewall that forgot the connection."""
        for end in self._ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._hang_up()
        self._flowing.set()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()


class Forwarder:
    """Forwards connections at `url` to `target`, both AMQP URLs."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.url = target.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
        self._links: list[Link] = []
        self.hang_up_after: list[int] = []
        """For each of the next connections, after how many pieces from the client it is cut."""
        self.silent: list[bool] = []
        """For each of the next connections, whether nothing ever passes on it."""
        self._stalled = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:  # closed
                return
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            link = Link(client, broker, self.hang_up_after.pop(0) if self.hang_up_after else None)
            if self._stalled or (self.silent.pop(0) if self.silent else False):
                link.stall()
            self._links.append(link)

    def stall(self) -> None:
        """Nothing passes, on no connection, until `flow`."""
        self._stalled = True
        for link in list(self._links):
            link.stall()

    def flow(self) -> None:
        self._stalled = False
        for link in list(self._links):
            link.flow()

    def stall_for_ever(self) -> None:
        """A link cut with no FIN: nothing passes on the connections of now, and nobody is told. New ones flow."""
        for link in list(self._links):
            link.stall()

    def cut_in_mid_frame(self, after: int = 5) -> None:
        """On each connection of now, `after` bytes of the next longer chunk pass, and then it is cut."""
        for link in list(self._links):
            link.cut_in_mid_frame(after)

    def reset(self) -> None:
        links, self._links = self._links, []
        for link in links:
            link.reset()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        for link in self._links:
            link.close()
