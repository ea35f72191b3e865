"""Workers that live and die together: the same run on all, the end of one the end of all, and nobody waits for ever.

The chief decides. Workers tell it what they find, their step times and their signals; it tells them how the run ends.
A worker holds nothing that is not on the others as well, so it may end anywhere; the chief ends where its run folder
is in order, and where it is killed, its newest checkpoint is whole.
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
DRAIN_SECONDS = 2.0  # for the others to hear how the run ends
# What TensorFlow raises where another worker is gone; which one, the link learns.
OF_OTHERS = {"UnavailableError", "CancelledError", "AbortedError", "InternalError", "FailedPreconditionError",
             "DeadlineExceededError", "UnknownError"}  # fmt: skip


class Alone:
    """The link of a process that trains by itself: there is nobody to agree with."""

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
        """Nobody sends anything."""

    def start_server(self) -> None:
        """There is none."""

    def servers_meeting(self):
        return contextlib.nullcontext()

    def progress(self) -> None:
        """Nobody waits."""


class Link:
    """The connections of this worker with the others, a context: entered before TensorFlow starts, left at the end.

    Within it, once `start_server` was called, whatever ends this worker early, or another one, ends the process: in one
    line, with the exit code of what happened, or that of `WorkerLost` where a worker is gone.

    Args:
        cluster: of the run.
        worker_timeout: seconds without a sign of life after which a worker is gone.
        start_timeout: seconds all have to come, to agree, and to do a step.
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
        """From here on this process is part of TensorFlow's cluster, which hangs where it is left by an exception."""
        with self._changed:
            if self._ended:
                raise as_error(*self._ended)
            self._hard = True
        self.progress()

    def servers_meeting(self) -> Guard:
        """A context for the time in which TensorFlow holds Python's lock until all workers are there."""
        return Guard({self.cluster.called(i): other for i, other in self._others.items()}, self.start_timeout)

    def agree(self, facts: dict[str, str], told: dict | None = None) -> dict:
        """Compares facts between all workers, and hands what the chief has to tell to all.

        Args:
            facts: {what: value} that must be the same everywhere.
            told: by the chief; the others' is not looked at.

        Returns:
            The chief's `told`.

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
        """Sends a message of a kind that the chief handles, `kind=value`."""
        self._others[0].send(message)

    def on(self, kind: str, handler: Callable[[int, object], None]) -> None:
        """Has the chief call `handler(index, value)` for each message of a kind; in a thread of its own."""
        self._handlers[kind] = handler

    def progress(self) -> None:
        """A step was done."""
        self._progressed = time.monotonic()

    def __exit__(self, kind, error, _trace):
        if error is None:
            return self._finish()
        if type(error).__name__ in OF_OTHERS:
            time.sleep(self.worker_timeout)  # the link learns who is gone, and ends the process
            error = WorkerLost(
                f"the exchange with the other workers failed: {' '.join(str(error).split())[:200]}. {GO_ON}"
            )
        code, text = verdict(error)
        self._end(code, text)

    def _finish(self) -> None:
        """All leave together, once the chief has written the last."""
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
        """Until `ready()`; the others' end ends it."""
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
        """Gives signs of life, and ends the run where another gives none or no step is done."""
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
        """The end of the run, for whatever reason and from whatever thread; the first one counts."""
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
        """Waits until the others are gone: a process that ends with messages unread takes back what it said."""
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
    """Exit code and message for what ended a worker."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        return getattr(error, "code", 128 + number), str(error) or "interrupted"
    if isinstance(error, UserError | RunFailed):
        return error.code, str(error)
    ours = isinstance(error, ValueError) and str(error).startswith("Expected")  # not converted yet
    if ours:
        return 2, str(error)
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def as_error(code: int, text: str) -> Exception:
    """The exception for what another worker told."""
    if code == UserError.code:
        return UserErrors([UserError(None, line) for line in text.splitlines()])
    error = WorkerLost(text)
    error.code = code
    return error


def end_process(code: int, text: str) -> None:
    """Ends the process at once, saying why: the main thread may wait within TensorFlow for what never comes."""
    for line in text.splitlines():
        print(f"dupr-tf: {'' if code > 128 else 'error: '}{line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
