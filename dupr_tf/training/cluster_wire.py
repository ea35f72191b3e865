"""Connections between workers: each connects to the chief's address before TensorFlow's server uses it.

The connections stay open. They carry small JSON messages, one per line: facts to compare at the start, heartbeats, bad
images, step times and the end of a run. Gradients and keys use TensorFlow's collectives only. When a process ends, its
connection closes, so that the other workers learn at once which one ended.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

from dupr_tf.errors import UserError
from dupr_tf.training.cluster import Cluster

LONGEST = 1 << 20  # bytes of the longest message
HELLO = "dupr_tf 1"  # name of this protocol
HELLO_SECONDS = 5.0


class Connection:
    """A connection to another worker.

    Args:
        opened: its socket.

    Attributes:
        heard: time of the last message received, `time.monotonic()`.
    """

    def __init__(self, opened: socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._lines, self._lock = opened, opened.makefile("rb"), threading.Lock()
        self.heard = time.monotonic()

    def send(self, message: dict) -> None:
        """Sends a message. If the other end is gone, `receive` shows it."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.close()

    def receive(self, seconds: float | None = None) -> dict | None:
        """Returns the next message, or None if the other end is gone, is no worker or is silent for `seconds`."""
        try:
            self._socket.settimeout(seconds)
            line = self._lines.readline(LONGEST)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        self.heard = time.monotonic()
        return message if isinstance(message, dict) else None

    def messages(self) -> Iterator[dict]:
        """Yields messages until the other end is gone."""
        while (message := self.receive()) is not None:
            yield message

    def fileno(self) -> int:
        """Returns the file descriptor of the socket, for a process that watches it from outside."""
        return self._socket.fileno()

    def end(self) -> None:
        """Closes the sending direction; messages already sent arrive."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close(self) -> None:
        self._socket.close()


def own_port(cluster: Cluster) -> socket.socket:
    """Listens on this worker's port, which proves that the port is free. Raises UserError if it is not."""
    _, port = cluster.host_and_port(cluster.index)
    try:
        return socket.create_server(("", port), backlog=len(cluster.addresses))
    except OSError as error:
        problem = f"Port {port} of {cluster.called(cluster.index)} cannot be used: {error.strerror}."
        raise UserError("TF_CONFIG", problem, "End the process that uses it, or choose another port.") from None


def meet_chief(cluster: Cluster, seconds: float) -> Connection:
    """Connects to the chief, retrying for `seconds`. Raises UserError with the chief's address."""
    address, deadline, problem = cluster.host_and_port(0), time.monotonic() + seconds, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = Connection(socket.create_connection(address, timeout=min(left, HELLO_SECONDS)))
            hello = {"hello": HELLO, "index": cluster.index, "workers": len(cluster.addresses)}
            connection.send(hello)
            answer = connection.receive(min(left, HELLO_SECONDS))
            if answer == {"welcome": HELLO}:
                return connection
            connection.close()
            if answer and "refused" in answer:
                raise UserError(None, str(answer["refused"]))
            problem = "an answer that is not a chief's at its start (a run that goes on, or something else)"
        except OSError as error:
            problem = error.strerror or str(error)
        time.sleep(min(0.2, max(0.0, left)))
    raise UserError(
        "TF_CONFIG",
        f"{cluster.called(0)} did not answer {cluster.called(cluster.index)} within {seconds:g} s "
        f"(train.start_timeout): {problem}.",
        "Start every worker and check that they can reach each other.",
    )


def meet_workers(cluster: Cluster, listener: socket.socket, seconds: float) -> dict[int, Connection]:
    """Returns the chief's connections to all others, by index. Raises UserError that names missing workers."""
    met: dict[int, Connection] = {}
    deadline = time.monotonic() + seconds
    while len(met) < len(cluster.addresses) - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            opened, _ = listener.accept()
        except TimeoutError:
            absent = [cluster.called(i) for i in range(1, len(cluster.addresses)) if i not in met]
            problem = UserError(
                "TF_CONFIG",
                f"{', '.join(absent)} did not connect within {seconds:g} s (train.start_timeout).",
                f"Start every worker and check that it can reach {cluster.addresses[0]}.",
            )
            raise refusal(met, problem) from None
        connection = Connection(opened)
        hello = connection.receive(HELLO_SECONDS) or {}
        index = hello.get("index")
        if hello.get("hello") != HELLO or type(index) is not int:
            connection.close()  # a port scanner, or another program
            continue
        problem = _unwelcome(cluster, hello, met)
        if problem:
            raise refusal({**met, -1: connection}, problem)
        connection.send({"welcome": HELLO})
        met[index] = connection
    return met


def refusal(connections: dict[int, Connection], problem: UserError) -> UserError:
    """Sends the problem to the connected workers, and returns it for the chief to raise."""
    for connection in connections.values():
        connection.send({"refused": str(problem), "end": [problem.code, str(problem)]})
        connection.end()
    return problem


def _unwelcome(cluster, hello, met) -> UserError | None:
    index, workers = hello["index"], hello.get("workers")
    if workers != len(cluster.addresses) or not 0 < index < workers:
        return UserError(
            "TF_CONFIG",
            f"Expected the same cluster on every worker, received {workers} workers on worker {index} and "
            f"{len(cluster.addresses)} on the chief.",
            "Give every worker the same cluster and its own index.",
        )
    if index in met:
        problem = f"Expected each task index once, received {index} twice."
        return UserError("TF_CONFIG", problem, "Give every worker its own index.")
    return None
