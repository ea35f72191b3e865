"""Coordinates workers on several machines: they agree, report to the chief and end together.

They use TensorFlow's coordination service, which runs in the chief's process. Its key-value store holds a log of
messages, `dupr/0`, `dupr/1`, …, that every worker reads in order. A key can be set once, so a sender takes the next
free one. The chief decides how a run ends: the first message `end` or `over` counts. No other module uses TensorFlow's
private interface to the service.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.eager import context

from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.errors import RunFailed, UserError, WorkerLost, raise_all
from dupr_tf.models.multi_worker import check_keras
from dupr_tf.text import one_line, visible
from dupr_tf.training.callbacks import StepCallback
from dupr_tf.training.cluster import Cluster
from dupr_tf.training.roll_call import RESUME, call_roll, guard

log = logging.getLogger(__name__)
HEARTBEAT = 8.0  # seconds without a heartbeat after which the service counts a worker as lost
SLOW = 3  # times the last step that a step may take, if that is longer than `worker_timeout`
DRAIN = 2.0  # seconds in which the others must read how the run ends
SERVICE = ("configure_coordination_service", "get_config_key_value", "set_config_key_value", "get_task_states")
# Errors of a collective if another worker is gone. The chief determines which one.
OF_OTHERS = (tf.errors.UnavailableError, tf.errors.CancelledError, tf.errors.AbortedError, tf.errors.InternalError,
             tf.errors.FailedPreconditionError, tf.errors.DeadlineExceededError, tf.errors.UnknownError)  # fmt: skip


class Alone:
    """Stands for `Workers` in a process that trains alone, with the strategy of its devices."""

    chief, index, count = True, 0, 1

    def __init__(self, strategy: tf.distribute.Strategy | None):
        self.strategy = strategy

    def agree(self, facts: dict[str, str], message: dict | None = None) -> dict:
        return message or {}

    def announce(self, function: Callable) -> Callable:
        return function


class Workers:
    """The workers of a run. It is a context manager: enter it before TensorFlow computes anything.

    Inside it, an early end of any worker ends the process. The process prints one line. Its exit code is that of the
    cause, or that of `WorkerLost` if a worker is gone.

    Args:
        cluster: cluster of the run.
        worker_timeout: seconds that an ordinary step may take. A run of slow steps gets `SLOW` times its last step.
        start_timeout: seconds that all workers have to start, to agree, to take the first step, and for a long task.

    Attributes:
        strategy: the strategy of the run.
    """

    def __init__(self, cluster: Cluster, worker_timeout: float, start_timeout: float):
        self.cluster, self.worker_timeout, self.start_timeout = cluster, worker_timeout, start_timeout
        self.index, self.count, self.chief = cluster.index, len(cluster.addresses), cluster.chief
        self._handlers: dict[str, Callable] = {}
        self._reports = defaultdict(list)  # that came before their handler
        self._facts, self._messages = defaultdict(deque), deque()
        self._left, self._next, self._end_kind = set(), 0, None
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._steady = self._long_task = False
        self._progressed, self._limit = time.monotonic(), worker_timeout

    def __enter__(self) -> Workers:
        check_service()
        log.info("waiting for the other workers, at most %g s (train.start_timeout)", self.start_timeout)
        self._sockets = call_roll(self.cluster, self.start_timeout)
        names = {opened: self.cluster.called(index) for index, opened in self._sockets.items()}
        with guard(names, self.start_timeout):
            self.strategy = build_strategy(self.cluster, min(HEARTBEAT, self.worker_timeout / 2))
        self._service = context.context()
        self.wait_long()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._watch)]
        for thread in self._threads:
            thread.start()
        return self

    def agree(self, facts: dict[str, str], message: dict | None = None) -> dict:
        """Compares facts between all workers, and sends the chief's message to all.

        Args:
            facts: {name: value} that must be the same on all workers.
            message: message of the chief. That of other workers is ignored.

        Returns:
            The chief's message.

        Raises:
            UserError: a fact differs; a UserErrors if several do.
            WorkerLost: a worker is not ready within `start_timeout`.
        """
        self.wait_long()
        if self.chief:
            others = [index for index in range(self.count) if index != self.index]
            self._wait(lambda: [self.cluster.called(index) for index in others if not self._facts[index]])
            raise_all([p for index in others for p in self._differences(index, self._facts[index].popleft(), facts)])
            self.send("message", message or {})
        else:
            self.send("facts", facts)
        self._wait(lambda: [] if self._messages else [self.cluster.called(0)])
        self.wait_long()
        return self._messages.popleft()

    def announce(self, function: Callable) -> Callable:
        """Returns the function with a message before and after it, so that the others give it `start_timeout`."""

        def announced(*args, **kwargs):
            self.send("long task", True)
            try:
                return function(*args, **kwargs)
            finally:
                self.send("long task", False)

        return announced

    def send(self, kind: str, value=None) -> None:
        """Appends a message to the log that all workers read."""
        with self._sending:
            while True:
                try:
                    text = json.dumps([self.index, kind, value])
                    return self._service.set_config_key_value(f"dupr/{self._next}", text)
                except tf.errors.AlreadyExistsError:
                    self._next += 1

    def receive(self, kind: str, handler: Callable) -> None:
        """Calls `handler(value)` for each report of this kind, earlier ones included. Later ones come from a thread."""
        with self._changed:
            self._handlers[kind] = handler
            for value in self._reports.pop(kind, []):
                handler(value)

    def progress(self) -> None:
        """Records that a step was taken. From now on a step may take `worker_timeout`."""
        now = time.monotonic()
        self._limit = max(self.worker_timeout, SLOW * (now - self._progressed))
        self._steady, self._progressed = True, now

    def wait_long(self) -> None:
        """Allows `start_timeout` until the next step or agreement."""
        self._steady, self._progressed = False, time.monotonic()

    def __exit__(self, kind, error, _trace):
        if error is None:
            try:
                return self._finish()
            except BaseException as problem:
                error = problem
        if isinstance(error, OF_OTHERS):
            if "CoordinationService/" in str(error):
                self._end(WorkerLost.code, self._lost(0, "it sends no heartbeats"))
            time.sleep(HEARTBEAT + 2 * DRAIN)  # the chief determines which worker is gone, and the reader ends this one
            error = WorkerLost(f"the exchange with the other workers failed: {one_line(error, 200)}. {RESUME}")
        self._end(*verdict(error))

    def _finish(self) -> None:
        """Waits until the chief has written its last file, so that all workers leave together."""
        self.agree({})
        if self.chief:
            self.send("over")
        for thread in self._threads:
            thread.join()
        for opened in self._sockets.values():
            opened.close()

    def _wait(self, missing: Callable[[], list[str]]) -> None:
        """Waits until `missing()` is empty. If another worker ends, the reader ends this process."""
        with self._changed:
            if not self._changed.wait_for(lambda: not missing(), self.start_timeout):
                late = ", ".join(missing())
                raise WorkerLost(
                    f"{late} was not ready within {self.start_timeout:g} s (train.start_timeout). {RESUME}"
                )

    def _read(self) -> None:
        """Reads the log until the run ends. The chief, which has the service, then waits until the others have left."""
        number, last, deadline = 0, None, 0.0
        while last is None or (self.chief and len(self._left) < self.count - 1):
            wait = 0 if last is None else max(1, int(1000 * (deadline - time.monotonic())))
            try:
                entry = json.loads(self._service.get_config_key_value(f"dupr/{number}", wait))
            except tf.errors.OpError:
                if last is None:
                    self._exit(WorkerLost.code, self._lost(0, "its connection was closed"))
                break  # a worker that is lost never leaves
            number += 1
            if last is None and entry[1] in ("end", "over"):
                last, self._end_kind = entry, entry[1]
                deadline = time.monotonic() + (DRAIN if entry[1] == "end" else self.worker_timeout)
            self._handle(*entry)
        if not self.chief:
            with contextlib.suppress(tf.errors.OpError):  # a chief that waits no longer has ended, as this worker does
                self.send("left")
        if self._end_kind == "end":
            index, _, (code, text) = last
            foreign = index not in (0, self.index) and code != WorkerLost.code
            self._exit(code, text, f"{self.cluster.called(index)}: " if foreign else "")

    def _handle(self, index: int, kind: str, value) -> None:
        with self._changed:
            if kind in ("bad", "signal"):
                (self._handlers.get(kind) or self._reports[kind].append)(value)
            elif kind == "facts":
                self._facts[index].append(value)
            elif kind == "message":
                self._messages.append(value)
            elif kind == "left":
                self._left.add(index)
            elif kind == "long task":
                self._long_task, self._progressed = value, time.monotonic()
            self._changed.notify_all()

    def _watch(self) -> None:
        """Ends the run if a worker is gone or no step is taken."""
        poll, pause = select.poll(), min(1.0, self.worker_timeout / 5)
        for opened in self._sockets.values():
            poll.register(opened, select.POLLRDHUP)
        closed = {opened.fileno(): index for index, opened in self._sockets.items()}
        while self._end_kind is None:
            gone = [(closed[number], "its connection was closed") for number, _ in poll.poll(1000 * pause)]
            if not gone and self.chief:
                states = self._service.get_task_states([("worker", self.count)])
                gone = [(index, "it sends no heartbeats") for index, state in enumerate(states) if state is not None]
            if gone:
                self._left.add(gone[0][0])  # the chief need not wait for it
                return self._end(WorkerLost.code, self._lost(*gone[0]))
            ordinary = self._steady and not self._long_task
            limit = self._limit if ordinary else self.start_timeout
            if time.monotonic() - self._progressed > limit:
                field = "train.worker_timeout" if ordinary else "train.start_timeout"
                return self._end(WorkerLost.code, f"no step was taken within {limit:.3g} s ({field}). {RESUME}")

    def _lost(self, index: int, why: str) -> str:
        return f"{self.cluster.called(index)} is gone: {why}. {RESUME}"

    def _end(self, code: int, text: str) -> None:
        """Ends the run on all workers. The reader ends this process, unless the service does not answer."""

        def send():
            with contextlib.suppress(tf.errors.OpError):  # the service is gone, and so is the chief
                self.send("end", [code, text])

        threading.Thread(target=send, daemon=True).start()
        time.sleep(2 * DRAIN)
        if self._end_kind != "over":
            self._exit(code, text)

    def _exit(self, code: int, text: str, prefix: str = "") -> None:
        """Ends the process at once, because the main thread may wait inside TensorFlow forever."""
        for line in text.splitlines():
            print(f"dupr-tf: {'' if code > 128 else 'error: '}{prefix}{visible(line)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _differences(self, index: int, theirs: dict, own: dict) -> list[UserError]:
        return [
            UserError(
                name,
                f"Expected the same on every worker, received {theirs.get(name)!s:.80} on {self.cluster.called(index)} "
                f"and {own.get(name)!s:.80} on the chief.",
                "Start all workers with the same.",
            )
            for name in sorted({*own, *theirs})
            if theirs.get(name) != own.get(name)
        ]


class ReportToChief(StepCallback):
    """Reports to the chief after every step: progress, signals and bad images.

    Args:
        workers: workers of the run.
        bad: bad images of this worker.
        received: signals, from `noted_signals`.
        first_step: step from which the run starts.
    """

    def __init__(self, workers: Workers, bad: BadImages, received: list[int], first_step: int = 0):
        super().__init__(first_step)
        self.workers, self.received = workers, received
        self._new = deque(bad.reason_of.items())  # bad images that the chief does not know yet
        if workers.chief:
            workers.receive("bad", lambda images: [bad.add(image, reason) for image, reason in images])
            workers.receive("signal", received.append)
        else:
            bad.on_new = self._new.append

    def on_train_begin(self, logs=None):
        self.workers.wait_long()  # the first step starts the input processes and traces

    on_train_end = on_train_begin

    def on_step(self, step, logs):
        self.workers.progress()
        if self.workers.chief:
            return
        images = [self._new.popleft() for _ in range(len(self._new))]
        if images:
            self.workers.send("bad", images)
        while self.received:
            self.workers.send("signal", self.received.pop(0))  # the chief saves and ends the run


def check_service() -> None:
    """Rejects versions of Keras and TensorFlow that cannot train on several workers."""
    check_keras()
    missing = [name for name in SERVICE if not hasattr(context.Context, name)]
    if missing:
        problem = f"TensorFlow {tf.__version__} lacks {', '.join(missing)}, which several workers need."
        raise UserError("tensorflow", problem, "Install the version of requirements.txt.")


def build_strategy(cluster: Cluster, heartbeat: float = HEARTBEAT) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Starts TensorFlow's server and coordination service, and waits for those of all workers.

    Args:
        cluster: cluster of the run.
        heartbeat: seconds without a heartbeat after which a worker is lost.

    Raises:
        UserError: another program took the port in the meantime.
    """
    context.context().configure_coordination_service(
        "standalone", "/job:worker/replica:0/task:0", heartbeat_timeout_in_ms=int(1000 * heartbeat),
        shutdown_barrier_timeout_in_ms=int(1000 * HEARTBEAT),
    )  # fmt: skip
    spec = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, "", "worker", cluster.index, rpc_layer="grpc")
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.OpError as error:
        problem = f"{cluster.called(cluster.index)} cannot open its port: {one_line(error, 200)}."
        raise UserError("TF_CONFIG", problem, "Choose another port.") from None
    # Every batch is full, so workers need not check at every step if one has run out of images.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def verdict(error: BaseException) -> tuple[int, str]:
    """Returns the exit code and message for the error that ended a worker."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return getattr(error, "code", 128 + number), str(error) or "interrupted"
    if isinstance(error, UserError | RunFailed):
        return error.code, str(error)
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {one_line(error, 300)}"
