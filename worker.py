"""Takes tasks from the work queue, runs each, and acknowledges it when it is done.

    broker ─► connection's thread ─► hands ─► work threads: run the handler, settle ─► connection's thread ─► broker
                                                   │ a task that failed
                                                   └► publisher's thread: a confirmed copy for later ─► broker
    main thread: connects, declares, consumes; again when the connection is lost; obeys signals

What keeps a task safe: it is acknowledged only when its handler has returned, or when a copy of it is confirmed in
another queue. Whatever ends before that leaves the task with the broker, which delivers it again.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from threading import Event, Thread

from config import SettingError, Settings, load
from tasks import BadTask, Handler, PutDown, Reject, Task
from workqueue import flags
from workqueue.connection import Channel, Connection
from workqueue.counts import Counts
from workqueue.deliveries import Dead, Delivery, DeliveryLimit, Done, GivenBack, Outcome, Problem, Retry
from workqueue.dialing import backoff, dial
from workqueue.errors import FAILURES, HOPELESS, BrokerError, Stopped, explain
from workqueue.events import WorkerOutput, in_words
from workqueue.handlers import usable
from workqueue.hands import Hands
from workqueue.health import Health
from workqueue.messages import DoesNotFit
from workqueue.modules import chosen_handler
from workqueue.processes import end_at_once, is_another, on_stop_signal, run_to_the_end
from workqueue.publisher import Publisher
from workqueue.queues import declare_queues, ready_tasks
from workqueue.reports import Reports
from workqueue.streams import OutputClosed, fill_missing_streams, hurry, note

TICK_SECONDS = 0.1  # how often the main thread looks at everything, if nobody wakes it
LASTING_SECONDS = 5.0  # a connection that held for so long worked, though no task was completed by it
LAST_SECONDS = 5.0  # how long a worker that stops waits until the broker has all acknowledgements
COPIES_SECONDS = 0.8  # the same for copies: a task without one is given back


class Worker:
    def __init__(self, settings: Settings, handle: Handler, output: WorkerOutput, name: str, burst: bool) -> None:
        self.settings = settings
        self.handle = handle
        self.output = output
        self.name = name
        self.burst = burst
        self.reports = Reports(output)
        self.hands = Hands(settings.prefetch_count, settings.heartbeat_seconds, self.reports.later)
        self.copies = Publisher(settings, name, declare_queues, self.reports.note)
        self.copies.on_failure = self.fail
        self.counts = Counts(settings, self.copies, output.note)
        self.hands.on_settled = self.counts.settled
        self.ready = Event()  # no task is begun before `worker_ready` is printed
        self.health = Health(settings.health_file, name, self.hands, output.note)
        self.reports.on_attend = self.health.beat
        self.stopping = False
        self.failure: BaseException | None = None  # what ends the worker
        self.busy_at = self.told_at = self.all_settled_at = 0.0

    # Main thread: connect, declare, consume; again when the connection is lost

    def run(self) -> int:
        """Works until a signal, or with `burst` until the queue is empty. Returns the exit code."""
        for _ in range(self.settings.concurrency):
            Thread(target=self.work, name="work", daemon=True).start()
        delays = backoff()
        while not self.may_end():
            connected_at, completed = time.monotonic(), self.reports.completed
            try:
                with dial(self.settings, self.name, self.health.beating(self.may_end), self.output.note) as connection:
                    connected_at = time.monotonic()
                    self.consume(connection)
                    break
            except Stopped:
                break
            except (*FAILURES, BrokerError) as error:
                failure = explain(error, self.settings)
            if isinstance(failure, HOPELESS):
                raise failure
            if time.monotonic() - connected_at > LASTING_SECONDS or self.reports.completed > completed or self.stopping:
                delays = backoff()
            self.lose_connection(failure, next(delays))
        return self.goodbye()

    def consume(self, connection: Connection) -> None:
        """Takes tasks until told to stop, or with `burst` until the queue is empty, and settles all of them."""
        channel = connection.channel()
        channel.on_end = self.reports.wake
        declare_queues(channel, self.settings)
        self.hands.claim_back(channel, self.settings.task_queue)
        self.counts.connected(connection)
        self.health.connection = connection
        while not self.stopping:
            self.take_tasks(channel)
            if self.burst and not self.hands.busy:  # nothing has come while we cancelled
                self.stopping = True
        if self.stopping and self.hands.in_hand:
            self.output.note("stopping when what runs is done; once more to give it back")
        self.hands.give_back_held()
        while not self.may_end():
            if self.stopping and self.hands.awaited and not self.hands.running:
                self.hands.claim_back(channel, self.settings.task_queue)
            self.attend(channel)
        if self.hands.give_back_waiting():
            self.output.note("what could not be put aside is given back")

    def take_tasks(self, channel: Channel) -> None:
        """Consumes, with a prefetch of what there is room for: less where a task of a lost connection still runs."""
        self.busy_at = time.monotonic()
        consumer_tag = self.name
        while not (self.stopping or (self.burst and self.nothing_to_do(channel))):
            prefetch = self.hands.room()
            if prefetch is not None:
                channel.basic_cancel(consumer_tag)
                consumer_tag = self.hands.consumer_starts(prefetch, self.name)
                channel.basic_qos(prefetch_count=prefetch)
                channel.basic_consume(self.settings.task_queue, self.hands.take, consumer_tag)
                if not self.ready.is_set():
                    self.output.ready(self.settings)
                    self.ready.set()
            self.attend(channel)
        self.hands.consumer_stops()
        channel.basic_cancel(consumer_tag)

    def nothing_to_do(self, channel: Channel) -> bool:
        """Whether nothing is in hand, nothing has come for a moment, and the queue is empty."""
        if self.hands.busy:
            self.busy_at = time.monotonic()
        return time.monotonic() - self.busy_at > TICK_SECONDS and ready_tasks(channel, self.settings) == 0

    def attend(self, channel: Channel | None = None, seconds: float = TICK_SECONDS) -> None:
        """Waits for a moment, and prints what others have to say. Raises what ends the worker or the channel."""
        self.reports.attend(seconds)
        if self.failure:
            raise self.failure
        if channel and not channel.is_open:
            raise explain(channel.reason or BrokerError("the channel has ended"), self.settings)

    def lose_connection(self, failure: BrokerError, delay: float) -> None:
        """What runs goes on; what was only held is the broker's again."""
        self.ready.clear()
        for delivery in self.hands.lose():
            self.output.event("task_lost_connection", delivery)
        self.output.note_failure(failure, f"connecting again in {delay:.1f} s")
        until, told = time.monotonic() + delay, self.stopping  # to stop, there is no time to be patient
        while time.monotonic() < until and self.stopping == told and not self.may_end():
            self.attend(seconds=min(delay, TICK_SECONDS))

    # Stop

    def on_signal(self, number: int, frame: object) -> None:
        """The first SIGTERM or SIGINT stops gracefully, a second one at once."""
        if not self.told_at:  # a burst may have come to its end by itself
            self.stopping, self.told_at = True, time.monotonic()
            hurry()
            self.reports.wake()
        elif is_another(self.told_at):
            end_at_once(f"[{self.name}] stopped at once: what was running is given back")

    def fail(self, error: BaseException) -> None:
        """From any thread: ends the worker. What it had in hand is given back."""
        self.failure = self.failure or error
        self.reports.wake()

    def may_end(self) -> bool:
        """Whether there is nothing more to wait for; what is only left to be acknowledged is not waited for long."""
        if not self.stopping or self.hands.running:
            return False
        self.all_settled_at = self.all_settled_at or time.monotonic()
        patience = LAST_SECONDS if self.hands.awaited else COPIES_SECONDS if self.hands.in_hand else 0.0
        return time.monotonic() - self.all_settled_at >= patience

    def goodbye(self) -> int:
        self.reports.attend(0)
        self.hands.give_back_held()
        if left := self.hands.in_hand or self.hands.awaited:
            self.output.note("no broker to acknowledge to: what was finished may be delivered again")
        self.output.stopped(self.reports.completed)
        return 1 if left else 0

    # Work threads: run the handler, then settle

    def work(self) -> None:
        try:
            while True:
                delivery = self.hands.next()
                self.ready.is_set() or self.ready.wait()  # which alone takes a lock for each task
                if not self.stopping and self.hands.begin(delivery):
                    with self.counts.begun(delivery) as times:
                        self.settle(delivery, self.attempt(delivery, times))
        except BaseException as error:  # a worker that has lost a thread must not go on as if it had not
            self.fail(error)

    def attempt(self, delivery: Delivery, times: int) -> Outcome:
        """Runs the handler, and returns how that ended. `times`: how often it was begun before."""
        try:
            task = delivery.task = Task.decode(delivery.body)
        except BadTask as error:
            return Dead.of(error, self.settings)
        if times >= self.settings.delivery_limit:
            return Dead.of(DeliveryLimit(f"begun {times} times and never settled"), self.settings)
        return self.handled(delivery, task)

    def handled(self, delivery: Delivery, task: Task) -> Outcome:
        self.output.event("task_started", delivery)
        delivery.begun_at = time.monotonic()
        try:
            self.handle(task, delivery.for_handler(self.output.event, lambda: self.stopping))
        except OutputClosed:
            raise
        except Reject as error:
            return Dead.of(error, self.settings)
        except BaseException as error:  # SystemExit too: a task must not end its worker
            if isinstance(error, PutDown) and self.stopping:
                return GivenBack(Problem.of(error))
            self.output.note(in_words(error))
            if delivery.attempt > len(self.settings.retry_delays):
                return Dead.of(error, self.settings)
            return Retry.of(error, self.settings, delivery.attempt)
        return Done(time.monotonic() - delivery.begun_at)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acknowledges it, now or when a copy of it is confirmed: a fault in between leaves two of it, never none."""
        if isinstance(outcome, Retry | Dead):
            self.put_aside(delivery, outcome)
        elif isinstance(outcome, GivenBack):
            self.output.note(f"put down, and given back: {outcome.problem.words}")
            self.hands.give_back(delivery)  # basic_nack
        else:
            self.hands.acknowledge(delivery, outcome, self.reports.now)  # basic_ack, if its channel is open

    def put_aside(self, delivery: Delivery, outcome: Retry | Dead) -> None:
        """Does not wait for the confirm: other tasks go on. What cannot be put aside is given back in the end."""
        if not self.hands.wait_for_copy(delivery, outcome):
            return  # its connection is lost: it comes again as it is

        def on_settled(copy: object, answer: str) -> None:
            if answer == "confirmed":
                self.hands.acknowledge(delivery, outcome, self.reports.later)

        try:
            copy = outcome.copy(delivery, self.name)
            self.copies.publish(outcome.queue, copy, on_settled, wanted=partial(self.hands.waits_for_copy, delivery))
        except DoesNotFit as error:
            self.output.note(f"cannot put a task into {outcome.queue}: {error}; it is held until this worker stops")


def main(argv: list[str] | None = None, handle: Handler | None = None) -> int:
    fill_missing_streams()
    arguments = flags.of_worker(argv)
    try:
        settings = load(arguments.settings)
        simulates = not (handle or arguments.handlers)
        handle = usable(handle) if handle else chosen_handler(arguments.handlers, settings)
    except SettingError as error:
        note(f"worker.py: {error}")
        return 2
    output = WorkerOutput(arguments.id, settings.log_format, arguments.quiet, settings.concurrency > 1, simulates)
    worker = Worker(settings, handle, output, arguments.id, arguments.burst)
    if arguments.events:
        output.publish(settings, worker.hands, lambda: worker.stopping)
    on_stop_signal(worker.on_signal)
    return run_to_the_end(worker.run, output.note)


if __name__ == "__main__":
    sys.exit(main())
