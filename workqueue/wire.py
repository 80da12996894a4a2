"""pika's connection, which notices a dead link sooner, and writes many frames at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pika import BasicProperties, SelectConnection, URLParameters, frame
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.heartbeat import HeartbeatChecker
from pika.spec import Basic

ONE_WRITE = 2**16  # bytes that are held back at most, to be written together


class _SignsOfLife(HeartbeatChecker):
    """pika looks for a sign of life every heartbeat + 5 s, so that a dead link is noticed after twice that. RabbitMQ
    sends two in every heartbeat: looking once in each is enough, and notices within two."""

    def _start_check_timer(self) -> None:
        self._check_interval = self._timeout  # type: ignore[attr-defined]  # the stubs leave out what is private
        super()._start_check_timer()  # type: ignore[misc]


class _Services(SelectorIOServicesAdapter):
    """pika's, which know the socket from before it connects: as its file descriptor, and as what that stands for."""

    known = (-1, -1)

    def connect_socket(self, sock: Any, resolved_addr: Any, on_done: Any) -> Any:
        self.known = (sock.fileno(), os.fstat(sock.fileno()).st_ino)
        return super().connect_socket(sock, resolved_addr, on_done)


class Wire(SelectConnection):
    def __init__(
        self,
        parameters: URLParameters,
        loop: Any,
        on_open: Callable[[Any], None],
        on_end: Callable[[Any, BaseException], None],
    ) -> None:
        self._held_back = bytearray()
        self._where_to = (0, "", "", False)  # what `_method` says
        self._method = b""
        self._services = _Services(loop)
        super().__init__(parameters, on_open, on_end, on_end, custom_ioloop=self._services)

    @property
    def socket(self) -> Any:
        return self._transport._sock  # type: ignore[attr-defined]

    def forget_socket(self) -> None:
        """For a child process, which has inherited it: puts nothing in its place, whatever state it is in."""
        descriptor, socket = self._services.known
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == socket:  # it is closed, and the number another's, if not
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, descriptor, inheritable=False)
                os.close(nothing)

    def publish(
        self,
        channel_number: int,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties,
        mandatory: bool,
    ) -> None:
        """A basic_publish: of most messages, the frame that says where to is the one of the message before."""
        where_to = (channel_number, exchange, routing_key, mandatory)
        if where_to != self._where_to:
            method = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
            self._method = frame.Method(channel_number, method).marshal()
            self._where_to = where_to
        most = self._body_max_length  # type: ignore[attr-defined]
        frames = [self._method, frame.Header(channel_number, len(body), properties).marshal()]
        for begin in range(0, len(body), most):
            frames.append(frame.Body(channel_number, body[begin : begin + most]).marshal())
        self._output_marshaled_frames(frames)

    def flush(self) -> None:
        """Writes what is held back: by itself, pika makes three system calls a frame, and goes round its loop once."""
        if self._held_back:
            held_back, self._held_back = self._held_back, bytearray()
            if not self.is_closed:
                left = bytes(held_back[self._written_at_once(held_back) :])
                if left:
                    super()._output_marshaled_frames([left])  # type: ignore[misc]

    def _written_at_once(self, data: bytearray) -> int:
        """How many bytes the socket has taken. None over TLS, or where pika has something to write before."""
        transport = self._transport  # type: ignore[attr-defined]
        if self.params.ssl_options or transport is None or transport.get_write_buffer_size():
            return 0
        try:
            return int(transport._sock.send(data))
        except (OSError, AttributeError):  # full, or gone: pika finds out which
            return 0

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        for marshaled in marshaled_frames:
            self._held_back += marshaled
        if len(self._held_back) > ONE_WRITE:
            self.flush()

    def _has_pending_callbacks(self, value: Any) -> int | None:
        if value.method.INDEX == Basic.Deliver.INDEX:  # most of all frames, and nobody waits for one
            return None
        pending: int | None = super()._has_pending_callbacks(value)  # type: ignore[misc]
        return pending

    def _create_heartbeat_checker(self) -> HeartbeatChecker | None:
        heartbeat = self.params.heartbeat
        return _SignsOfLife(self, heartbeat) if isinstance(heartbeat, int) and heartbeat else None
