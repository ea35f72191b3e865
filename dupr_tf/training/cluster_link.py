"""The link between workers: all train the same run, all stop if one fails, and no worker waits forever.

The chief decides. Workers send it their bad images, step times and signals, and it sends them how the run ends.
A worker holds nothing that the others lack, so it may end at any point. The chief ends only when its run folder
is in order. If the chief is killed, its newest checkpoint is undamaged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable

from dupr_tf.errors import RunFailed, UserError, UserErrors, WorkerLost, raise_all
from dupr_tf.training.cluster import Cluster
from dupr_tf.training.cluster_guard import GO_ON, Guard
from dupr_tf.training.cluster_wire import Connection, meet_chief, meet_workers, own_port

log = logging.getLogger(__name__)
DRAIN_SECONDS = 2.0  # time for the other workers to receive how the run ends
# Errors that TensorFlow raises if another worker is gone. The link finds out which one.
OF_OTHERS = {"UnavailableError", "CancelledError", "AbortedError", "InternalError", "FailedPreconditionError",
             "DeadlineExceededError", "UnknownError"}  # fmt: skip


class Alone:
    """The link of a process that trains alone, with no other worker to agree with."""

    chief, index, workers = True, 0, 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def agree(self, facts: dict[str, str], told: dict | None = None) -> dict:
        return told or {}

    def tell_chief(self, **message) -> None:
        raise RuntimeError("there is no chief but this process")

    def on(self, kind: str, handler: Callable) -> None:
        """Does nothing, because nobody sends messages."""

    def start_server(self) -> None:
        """Does nothing, because there is no server."""

    def servers_meeting(self):
        return contextlib.nullcontext()

    def progress(self) -> None:
        """Does nothing, because nobody waits."""


class Link:
    """Connects this worker with the others. It is a context manager: enter it before TensorFlow starts.

    Inside it, once `start_server` was called, an early end of this worker or of another one ends the process. The
    process prints one line. Its exit code is that of the cause, or that of `WorkerLost` if a worker is gone.

    Args:
        cluster: cluster of the run.
        worker_timeout: seconds without a message after which a worker counts as gone.
        start_timeout: seconds that all workers have to connect, to agree, and to do a step.
    """

    def __init__(self, cluster: Cluster, worker_timeout: float, start_timeout: float):
        self.cluster, self.worker_timeout, self.start_timeout = cluster, worker_timeout, start_timeout
        self.index, self.workers, self.chief = cluster.index, len(cluster.addresses), cluster.chief
        self._others: dict[int, Connection] = {}
        self._facts, self._told = defaultdict(deque), deque()
        self._done: set[int] = set()
        self._changed = threading.Condition()
        self._handlers: dict[str, Callable] = {}
        self._ended: tuple[int, str] | None = None
        self._over = self._hard = False
        self._progressed = time.monotonic()

    def __enter__(self) -> Link:
        problem, whom = None, "the other workers" if self.chief else self.cluster.called(0)
        log.info("waiting for %s, at most %g s (train.start_timeout)", whom, self.start_timeout)
        try:
            listener = own_port(self.cluster)
        except UserError as error:
            if self.chief:
                raise
            problem = error
        if self.chief:
            with listener:
                self._others = meet_workers(self.cluster, listener, self.start_timeout)
        else:
            self._others = {0: meet_chief(self.cluster, self.start_timeout)}
            if problem:
                self._others[0].send({"failed": [2, str(problem)]})
                self._others[0].end()
                raise problem
            listener.close()
        self._listeners = [
            threading.Thread(target=self._listen, args=other, daemon=True) for other in self._others.items()
        ]
        for thread in self._listeners:
            thread.start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def start_server(self) -> None:
        """Marks this process as part of TensorFlow's cluster, which hangs if an exception leaves it."""
        with self._changed:
            if self._ended:
                raise as_error(*self._ended)
            self._hard = True
        self.progress()

    def servers_meeting(self) -> Guard:
        """Returns a guard for the time in which TensorFlow holds Python's lock until all workers have connected."""
        return Guard({self.cluster.called(i): other for i, other in self._others.items()}, self.start_timeout)

    def agree(self, facts: dict[str, str], told: dict | None = None) -> dict:
        """Compares facts between all workers and sends the chief's data to all.

        Args:
            facts: {name: value} that must be the same on all workers.
            told: data of the chief. Values of other workers are ignored.

        Returns:
            The chief's data.

        Raises:
            UserError: a fact differs; a UserErrors if several do.
        """
        self.progress()
        if not self.chief:
            self._others[0].send({"facts": facts})
            self._wait(lambda: self._told, "the chief")
            return self._told.popleft()
        self._wait(lambda: all(self._facts[i] for i in self._others), "all workers")
        problems = [p for i in sorted(self._others) for p in self._differences(i, self._facts[i].popleft(), facts)]
        raise_all(problems)
        self._broadcast({"told": told or {}})
        self.progress()
        return told or {}

    def tell_chief(self, **message) -> None:
        """Sends the chief a message, `kind=value`, of a kind that it handles."""
        self._others[0].send(message)

    def on(self, kind: str, handler: Callable[[int, object], None]) -> None:
        """Makes the chief call `handler(index, value)` in a separate thread for each message of a kind."""
        self._handlers[kind] = handler

    def progress(self) -> None:
        """Records that a step was done."""
        self._progressed = time.monotonic()

    def __exit__(self, kind, error, _trace):
        if error is None:
            return self._finish()
        if type(error).__name__ in OF_OTHERS:
            time.sleep(self.worker_timeout)  # the link finds out which worker is gone and ends the process
            error = WorkerLost(
                f"the exchange with the other workers failed: {' '.join(str(error).split())[:200]}. {GO_ON}"
            )
        code, text = verdict(error)
        self._end(code, text)

    def _finish(self) -> None:
        """Waits until the chief has written its last file, so that all workers leave together."""
        self.progress()
        if self.chief:
            self._wait(lambda: len(self._done) == len(self._others), "all workers")
            self._over = True
            self._broadcast({"done": True})
        else:
            self._others[0].send({"done": True})
            self._wait(lambda: self._done, "the chief")
            self._over = True

    def _wait(self, ready, whom: str) -> None:
        """Waits until `ready()`. If another worker ends, the wait ends too."""
        deadline = time.monotonic() + self.start_timeout
        with self._changed:
            while not ready():
                self._changed.wait(0.1)
                if self._ended:
                    raise as_error(*self._ended)
                if time.monotonic() > deadline:
                    raise WorkerLost(
                        f"expected {whom} to be ready within {self.start_timeout:g} s (train.start_timeout). {GO_ON}"
                    )

    def _listen(self, index: int, connection: Connection) -> None:
        for message in connection.messages():
            for kind, value in message.items():
                self._handle(index, kind, value)
        if index not in self._done:
            self._lose(index, "its connection was closed")

    def _handle(self, index: int, kind: str, value) -> None:
        if kind == "end":
            self._end(*value)
        elif kind == "failed":
            self._end(value[0], "\n".join(f"{self.cluster.called(index)}: {line}" for line in value[1].splitlines()))
        elif kind in self._handlers:
            self._handlers[kind](index, value)
        with self._changed:
            if kind == "facts":
                self._facts[index].append(value)
            elif kind == "told":
                self._told.append(value)
            elif kind == "done":
                self._done.add(index)
            self._changed.notify_all()

    def _watch(self) -> None:
        """Sends heartbeats. Ends the run if another worker sends none or no step completes."""
        while not self._over:
            self._broadcast({"alive": self.index})
            time.sleep(min(1.0, self.worker_timeout / 5))
            now = time.monotonic()
            for index, connection in self._others.items():
                if index not in self._done and now - connection.heard > self.worker_timeout:
                    self._lose(index, f"no sign of life for {self.worker_timeout:g} s (train.worker_timeout)")
            if self._hard and now - self._progressed > self.start_timeout:
                self._end(
                    WorkerLost.code,
                    f"no step was done within {self.start_timeout:g} s (train.start_timeout), though all workers give "
                    f"signs of life. {GO_ON}",
                )

    def _lose(self, index: int, why: str) -> None:
        self._end(WorkerLost.code, f"{self.cluster.called(index)} is gone: {why}. {GO_ON}")

    def _end(self, code: int, text: str) -> None:
        """Ends the run, for any reason and from any thread. Only the first call counts."""
        with self._changed:
            if self._over:
                return
            self._over, self._ended = True, (code, text)
            self._changed.notify_all()
        self._broadcast({"end": [code, text]} if self.chief else {"failed": [code, text]})
        for connection in self._others.values():
            connection.end()
        if self._hard:
            self._drain()
            end_process(code, text)

    def _drain(self) -> None:
        """Waits until the other workers are gone. A process that ends with unread messages loses those it sent."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for thread in self._listeners:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _broadcast(self, message: dict) -> None:
        for connection in self._others.values():
            connection.send(message)

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


def verdict(error: BaseException) -> tuple[int, str]:
    """Returns the exit code and message for the error that ended a worker."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return getattr(error, "code", 128 + number), str(error) or "interrupted"
    if isinstance(error, UserError | RunFailed):
        return error.code, str(error)
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def as_error(code: int, text: str) -> Exception:
    """Returns the exception for another worker's exit code and message."""
    if code == UserError.code:
        return UserErrors([UserError(None, line) for line in text.splitlines()])
    error = WorkerLost(text)
    error.code = code
    return error


def end_process(code: int, text: str) -> None:
    """Ends the process at once with a message, because the main thread may wait inside TensorFlow forever."""
    for line in text.splitlines():
        print(f"dupr-tf: {'' if code > 128 else 'error: '}{line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
