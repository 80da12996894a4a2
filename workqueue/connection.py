"""One connection to a broker, which every thread may use: sender, worker, copies and scripts have no other.

    any thread ── basic_ack(7) ──►  calls  ──► the connection's thread ──► socket ──► broker
    any thread ◄─ queue_declare() returns ──────────┘   └──► callbacks: deliveries, confirms, ends; they must not wait

A thread of the connection's own does all reading and writing, so that heartbeats are answered however long anybody
else takes. The methods have the names that pika's next major version gives to a connection of this kind.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from pika import BasicProperties, URLParameters
from pika.exceptions import AMQPError
from pika.spec import Basic

from workqueue.acknowledgements import Acknowledgements
from workqueue.confirms import Confirms, OnConfirm
from workqueue.errors import BrokerError, Stopped
from workqueue.loop import Call, Loop, never, settle, wait_for
from workqueue.wire import Wire

SHORT_SECONDS = 0.001  # what comes of a delivery within so long is waited for, which is quicker than to be woken for it
CLOSE_SECONDS = 5.0  # how long a broker has to say good-bye
HURRIED_SECONDS = 0.3  # the same, where it has not answered before and we were told to stop
CANCELLED = (
    "the broker cancelled the consumer: the queue was deleted, its node is gone, or a task ran for longer than the "
    "broker waits for its acknowledgement (consumer_timeout in rabbitmq.conf)"
)
SILENT = "the broker does not answer: waiting (is one of its nodes away?)"
NO_STREAM = {"x-priority": 0}  # what every consumer has, and what a stream refuses: it would seem to be empty

OnMessage = Callable[["Channel", Any, BasicProperties, bytes], None]

open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
making_sockets = threading.RLock()  # a fork waits for it, so that no child has a socket that nobody knows of yet


class Connection:
    """Opened when the constructor returns. Raises what pika raises where that fails; see `dialing.dial`.

    `interrupted` is asked while a method waits for the broker: when it says yes, the method raises Stopped.
    """

    def __init__(self, parameters: URLParameters, interrupted: Callable[[], bool] = never) -> None:
        self.interrupted = interrupted
        self.reason: BaseException | None = None  # why it has ended
        self.linger = SHORT_SECONDS  # how long what is delivered may wait for more, to be read together
        self.blocked = False  # the broker is out of memory or disk, and takes nothing from those who publish
        self.on_blocked: Callable[[bool], None] = lambda blocked: None
        self.note: Callable[[str], None] = lambda line: None  # gets a line for people, on the thread of who waits
        self._channels: list[Channel] = []
        self._ended = threading.Event()
        self._opened: Future[None] = Future()
        self._loop = Loop()
        self._wire = Wire(parameters, self._loop, self._on_open, self._on_end)
        self._wire.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        self._wire.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        self._delivered = False
        self.thread = threading.Thread(target=self._run, name="connection", daemon=True)
        open_connections.add(self)
        self.thread.start()
        wait_for(self._opened, never)  # pika's own time-outs bound this

    # For any thread

    @property
    def is_open(self) -> bool:
        return self.reason is None

    @property
    def frame_max(self) -> int:
        """Bytes in a frame at most."""
        return int(self._wire.params.frame_max)

    @property
    def server_properties(self) -> dict[str, Any]:
        """What the broker says of itself: `product`, `version` and others."""
        return dict(self._wire.server_properties or {})

    def channel(self) -> Channel:
        """A new channel. Raises the reason if the connection ends first."""
        return Channel(self)

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Writes what is to be written, says good-bye, and ends the connection's thread. Never raises."""
        self.submit(self._close)
        if threading.current_thread() is not self.thread and not self._ended.wait(patience):
            self.abort()

    def abort(self) -> None:
        """Ends it at once, for every process that has inherited its socket."""
        with suppress(OSError, AttributeError):
            self._wire.socket.shutdown(socket.SHUT_RDWR)

    def forget_socket(self) -> None:
        """For a child process: the parent's connection must end when the parent closes it."""
        self._wire.forget_socket()

    def submit(self, call: Call) -> None:
        """Has the connection's thread make a call; it is dropped if the connection has ended."""
        self._loop.submit(call)

    def on_silence(self) -> None:
        """RabbitMQ 4.3 says nothing about a queue whose node is away, until it is back or a minute has passed."""
        if self.is_open and not self.blocked:  # or that is what was told
            self.note(SILENT)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(HURRIED_SECONDS if kind is Stopped else CLOSE_SECONDS)

    # On the connection's thread

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.activate_poller()
            while not self._ended.is_set():
                loop.poll()
                with making_sockets:
                    loop.process_timeouts()
                delivered, self._delivered = self._delivered, False
                loop.make_calls(self.linger if delivered else 0)
                for channel in self._channels:
                    channel.write_acknowledgements()
                self._wire.flush()
        except ValueError as error:  # pika's word for a broker that is gone in the moment of connecting
            self._on_end(self._wire, error.__context__ if isinstance(error.__context__, OSError) else error)
        except BaseException as error:  # whatever it was, nobody answers heartbeats any more
            self._on_end(self._wire, error)
        finally:
            with suppress(Exception):
                loop.make_calls(0)  # who made them is told that it is too late
            with suppress(Exception):
                loop.deactivate_poller()
            with suppress(Exception):
                self._wire.socket.close()
            with suppress(Exception):
                loop.close()

    def _on_open(self, wire: Wire) -> None:
        self._opened.set_result(None)

    def _on_end(self, wire: Wire, reason: BaseException) -> None:
        """The connection is gone, for whatever reason, or has never come about."""
        if self.reason is not None:
            return
        self.reason = reason
        for channel in self._channels:
            channel.end(reason)
        self._ended.set()
        if not self._opened.done():
            self._opened.set_exception(reason)

    def _close(self) -> None:
        for channel in self._channels:
            channel.write_acknowledgements()
        if self._wire.is_open:
            self._wire.close()
        elif not self._wire.is_closing:
            self._on_end(self._wire, BrokerError("closed"))

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        self.on_blocked(blocked)

    def _add(self, channel: Channel) -> None:
        self._channels = [*(known for known in self._channels if known.is_open), channel]

    def _has_delivered(self) -> None:
        self._delivered = True


class Channel:
    """A channel, with the blocking methods of AMQP for any thread.

    Those that wait for an answer raise the reason if the channel or the connection ends first. `basic_ack`,
    `basic_nack` and `basic_publish` do not wait, and do nothing on a channel that has ended.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.reason: BaseException | None = None  # why it has ended
        self.on_end: Callable[[], None] = lambda: None  # called on the connection's thread
        self.on_return: Callable[[], None] = lambda: None  # the same, for what was mandatory and no queue took
        self.acknowledgements = Acknowledgements(self._write_ack, connection._loop.call_later, self._ask)
        self._confirms: Confirms | None = None
        self._waiting: set[Future[Any]] = set()
        self._guard = threading.Lock()  # of what waits
        self._got_nothing: Callable[[Any], None] = lambda answer: None
        self._prefetch_count = 0
        self._wire: Any = None
        self._rpc(self._open)

    # For any thread

    @property
    def is_open(self) -> bool:
        return self.reason is None and self.connection.is_open

    def basic_qos(self, prefetch_count: int) -> None:
        """For the consumers that start from now on."""
        self._prefetch_count = prefetch_count
        self._rpc(lambda done: self._wire.basic_qos(prefetch_count=prefetch_count, callback=done))

    def basic_consume(
        self,
        queue: str,
        on_message_callback: OnMessage,
        consumer_tag: str = "",
        exclusive: bool = False,
        arguments: dict[str, Any] | None = None,
        auto_ack: bool = False,
    ) -> None:
        """`on_message_callback(channel, method, properties, body)` runs on the connection's thread: it must not wait.

        The end of the consumer on the broker's side ends the channel.
        """

        def deliver(wire: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
            if self.is_open:
                if not auto_ack:
                    self.acknowledgements.delivered(method.delivery_tag)
                self.connection._has_delivered()
                on_message_callback(self, method, properties, body)

        self._rpc(
            lambda done: self._wire.basic_consume(
                queue,
                deliver,
                auto_ack=auto_ack,
                consumer_tag=consumer_tag or None,
                exclusive=exclusive,
                arguments={**NO_STREAM, **(arguments or {})},
                callback=done,
            )
        )

    def basic_cancel(self, consumer_tag: str) -> None:
        """Returns when nothing more is delivered, and what was on its way has been."""

        def cancel(done: Callable[[Any], None]) -> None:
            if consumer_tag in self._wire.consumer_tags:
                self._wire.basic_cancel(consumer_tag, callback=done)
                self._wire._cancelled.discard(consumer_tag)  # or pika itself would give back what is on its way
            else:
                done(None)

        self._rpc(cancel)

    def basic_get(self, queue: str) -> tuple[Any, BasicProperties, bytes] | None:
        """One message of the queue, to be acknowledged, or None if it is empty."""

        def get(done: Callable[[Any], None]) -> None:
            def got(wire: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
                self.acknowledgements.delivered(method.delivery_tag)
                done((method, properties, body))

            self._got_nothing = done
            self._wire.basic_get(queue, got)

        found: tuple[Any, BasicProperties, bytes] | None = self._rpc(get)
        return found

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """With `multiple`, whatever was delivered up to this one."""
        add = self.acknowledgements.add_up_to if multiple else self.acknowledgements.add
        self.connection.submit(partial(add, delivery_tag))

    def basic_nack(self, delivery_tag: int, requeue: bool = True) -> None:
        def nack() -> None:
            self.acknowledgements.drop(delivery_tag)
            self._wire.basic_nack(delivery_tag, requeue=requeue)

        self._submit(nack)

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties | None = None,
        mandatory: bool = False,
        on_confirm: OnConfirm | None = None,
    ) -> None:
        """With `confirm_delivery`, `on_confirm` is called once, on the connection's thread, with what became of it."""

        def publish() -> None:
            if not (self.is_open and self._wire.is_open):  # it may be closing, and not say yet why
                if on_confirm:
                    on_confirm(Confirms.LOST)
                return
            try:
                self.connection._wire.publish(
                    self._wire.channel_number, exchange, routing_key, body, properties or BasicProperties(), mandatory
                )
            except (AMQPError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
                if on_confirm:  # pika cannot encode it
                    on_confirm(f"cannot be sent: {error or type(error).__name__}")
                return
            if self._confirms:  # the broker numbers all of them
                self._confirms.published(on_confirm or (lambda outcome: None), properties, body)

        if threading.current_thread() is self.connection.thread:
            publish()
        else:
            self.connection.submit(publish)

    def publish_and_wait(self, queue: str, body: bytes, properties: BasicProperties | None = None) -> str:
        """Publishes to a queue, waits for the broker's answer, and returns it: see `confirms`."""
        outcome: str = self._rpc(lambda done: self.basic_publish("", queue, body, properties, True, done))
        return outcome

    def confirm_delivery(self) -> None:
        """From now on the broker answers for every message that is published here."""
        confirms = Confirms()

        def confirm(done: Callable[[Any], None]) -> None:
            self._wire.add_on_return_callback(confirms.on_return)
            self._wire.confirm_delivery(confirms.on_answer, callback=done)

        self._rpc(confirm)
        self._confirms = confirms

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> Any:
        """An answer with `queue`, `message_count` (ready) and `consumer_count`."""
        return self._rpc(
            lambda done: self._wire.queue_declare(
                queue, passive=passive, durable=durable, exclusive=exclusive, arguments=arguments, callback=done
            )
        )

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False) -> None:
        self._rpc(lambda done: self._wire.queue_delete(queue, if_unused=if_unused, if_empty=if_empty, callback=done))

    def queue_delete_later(self, queue: str) -> None:
        """Does not wait for the broker."""
        self._submit(lambda: self._wire.queue_delete(queue))

    def exchange_declare(self, exchange: str, exchange_type: str, passive: bool = False, durable: bool = False) -> None:
        self._rpc(
            lambda done: self._wire.exchange_declare(
                exchange, exchange_type, passive=passive, durable=durable, callback=done
            )
        )

    def exchange_delete(self, exchange: str) -> None:
        self._rpc(lambda done: self._wire.exchange_delete(exchange, callback=done))

    def queue_bind(self, queue: str, exchange: str, routing_key: str) -> None:
        self._rpc(lambda done: self._wire.queue_bind(queue, exchange, routing_key, callback=done))

    def close(self) -> None:
        """Gives back what was delivered here and is not settled."""
        with suppress(Exception):  # it has ended, for whatever reason
            self._rpc(self._close)

    def _rpc(self, ask: Callable[[Callable[[Any], None]], Any]) -> Any:
        """Has `ask(done)` called on the connection's thread, and waits until `done` is."""
        future: Future[Any] = Future()

        def answered(answer: Any, error: BaseException | None = None) -> None:
            with self._guard:
                self._waiting.discard(future)
            settle(future, getattr(answer, "method", answer), error)

        def call() -> None:
            try:
                ask(answered)
            except Exception as error:
                answered(None, self.reason or error)

        with self._guard:
            self._waiting.add(future)
        self._submit(call)
        if not self.is_open:  # it may have ended before it was to make this call
            answered(None, self._why())
        return wait_for(future, self.connection.interrupted, self.connection.on_silence)

    def _why(self) -> BaseException:
        return self.reason or self.connection.reason or BrokerError("the channel has ended")

    def _submit(self, call: Call) -> None:
        """After the acknowledgements that were asked for before it."""

        def in_order() -> None:
            self.write_acknowledgements()
            with suppress(AMQPError):  # the channel has ended, and says why by itself
                call()

        self.connection.submit(in_order)

    # On the connection's thread

    def _open(self, done: Callable[[Any], None]) -> None:
        if not self.connection.is_open:
            raise self._why()

        def opened(wire: Any) -> None:
            wire.add_on_close_callback(lambda _, reason: self.end(reason))
            wire.add_on_cancel_callback(lambda _: self._cancelled())
            wire.add_on_return_callback(lambda *_: self.on_return())
            wire.add_callback(lambda _: self._got_nothing(None), [Basic.GetEmpty], one_shot=False)
            done(None)

        self.connection._add(self)
        self._wire = self.connection._wire.channel(on_open_callback=opened)

    def _close(self, done: Callable[[Any], None]) -> None:
        if self._wire.is_open:
            self._wire.add_on_close_callback(lambda *_: done(None))
            self._wire.close()
        else:
            done(None)

    def _cancelled(self) -> None:
        self.end(BrokerError(CANCELLED))
        self._wire.close()

    def end(self, reason: BaseException) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        with self._guard:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            settle(future, None, reason)
        if self._confirms:
            self._confirms.lost()
        self.on_end()

    def write_acknowledgements(self) -> None:
        if self._wire is not None and self._wire.is_open:
            self.acknowledgements.write()

    def _write_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._wire.basic_ack(delivery_tag, multiple)

    def _ask(self, answered: Callable[[], None]) -> None:
        """Anything that the broker answers, and that changes nothing."""
        with suppress(AMQPError):
            self._wire.basic_qos(prefetch_count=self._prefetch_count, callback=lambda _: answered())
