"""Waits for all workers before TensorFlow's servers use their ports. Imports no TensorFlow.

TensorFlow waits without limit for a worker that never comes, and holds Python's lock meanwhile. The roll call therefore
names a missing worker first, and the guard ends this process if a worker leaves after the roll call.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator

from dupr_tf.errors import UserError, UserErrors, WorkerLost
from dupr_tf.training.cluster import Cluster

HELLO = 5.0  # seconds in which a program that connects must identify itself
LONGEST = 1 << 20  # bytes of a line
RESUME = "The newest checkpoint is whole. Fix: start the same commands again"


@contextlib.contextmanager
def guard(names: dict[socket.socket, str], seconds: float) -> Iterator[None]:
    """Ends this process if another worker ends, or `seconds` pass, inside this context.

    TensorFlow holds Python's lock while its servers connect, so no thread can react. A forked process can.
    """
    parent, (alive, own_end) = os.getpid(), os.pipe()
    child = os.fork()
    if not child:
        os.close(own_end)  # now `alive` ends with the parent
        ready = select.select([alive, *names], [], [], seconds)[0]
        why = f"{names[ready[0]]} is gone: it ended" if ready and ready[0] != alive else f"{seconds:g} s passed"
        if alive not in ready:
            os.write(2, f"dupr-tf: error: {why} while TensorFlow's servers connected. {RESUME}\n".encode())
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    os.close(alive)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(own_end)


def call_roll(cluster: Cluster, seconds: float) -> dict[int, socket.socket]:
    """Waits until every worker has started with the same cluster. TensorFlow's servers use the ports afterwards.

    Args:
        cluster: cluster of the run.
        seconds: time limit.

    Returns:
        A connection to each other worker (on the chief) or to the chief, by index. It closes when that worker ends.

    Raises:
        UserError: a port is in use, or the workers have different clusters.
        WorkerLost: a worker did not come.
    """
    hello, problem = {"addresses": list(cluster.addresses), "index": cluster.index}, None
    try:
        listener = socket.create_server(("", cluster.host_and_port(cluster.index)[1]), backlog=len(cluster.addresses))
    except OSError as error:
        text = f"Port {cluster.addresses[cluster.index]} of {cluster.called(cluster.index)} cannot be used"
        fix = "End the process that uses it, or choose another port."
        problem = UserError("TF_CONFIG", f"{text}: {error.strerror}.", fix)
        if cluster.chief:
            raise problem from None
        hello["problem"] = str(problem)
    deadline = time.monotonic() + seconds
    if problem:
        _answer(cluster, hello, deadline)
        raise problem
    with listener:
        return _admit(cluster, listener, deadline) if cluster.chief else {0: _answer(cluster, hello, deadline)}


def _admit(cluster: Cluster, listener: socket.socket, deadline: float) -> dict[int, socket.socket]:
    """Collects the chief's connections to all others, and sends the result of the roll call to all."""
    met: dict[int, socket.socket] = {}
    code, problem = 0, ""
    while not problem and len(met) < len(cluster.addresses) - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            opened, _ = listener.accept()
        except TimeoutError:
            late = ", ".join(cluster.called(index) for index in range(1, len(cluster.addresses)) if index not in met)
            code, problem = WorkerLost.code, f"{late} did not come in time (train.start_timeout). {RESUME}"
            break
        hello = _receive(opened, HELLO)
        if not isinstance(hello, dict) or type(hello.get("index")) is not int:
            opened.close()  # a port scanner, or another program
            continue
        problem = hello.get("problem") or _mismatch(cluster, hello, met)
        code = UserError.code if problem else 0
        met[-1 if problem else hello["index"]] = opened
    for opened in met.values():
        with contextlib.suppress(OSError):  # that worker has ended, which the guard notices
            opened.sendall(json.dumps([code, problem]).encode() + b"\n")
    if problem:
        raise _as_error(code, problem)
    return met


def _answer(cluster: Cluster, hello: dict, deadline: float) -> socket.socket:
    """Connects to the chief, and waits until it has met all workers."""
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            opened = socket.create_connection(cluster.host_and_port(0), timeout=left)
            opened.sendall(json.dumps(hello).encode() + b"\n")
            answer = _receive(opened, left + HELLO)  # the chief's limit may end a little later
            if isinstance(answer, list) and len(answer) == 2:
                if answer[0]:
                    raise _as_error(*answer)
                return opened
            opened.close()
            why = "its answer is not that of a chief"
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(0.2)
    raise WorkerLost(f"{cluster.called(0)} did not come in time (train.start_timeout): {why}. {RESUME}")


def _receive(opened: socket.socket, seconds: float):
    """Returns the JSON value of one line, or None if there is none."""
    opened.settimeout(seconds)
    try:
        with opened.makefile("rb") as lines:
            return json.loads(lines.readline(LONGEST))
    except (OSError, ValueError):
        return None


def _mismatch(cluster: Cluster, hello: dict, met: dict) -> str:
    index, addresses = hello["index"], hello.get("addresses")
    if addresses != list(cluster.addresses):
        problem = (
            f"Expected {', '.join(cluster.addresses)} on every worker, received {addresses!s:.200} on worker {index}."
        )
    elif index in met or not 0 < index < len(cluster.addresses):
        problem = f"Expected each task index once, received {index} twice."
    else:
        return ""
    return str(UserError("TF_CONFIG", problem, "Give every worker the same cluster and its own index."))


def _as_error(code: int, text: str) -> Exception:
    return (
        WorkerLost(text)
        if code == WorkerLost.code
        else UserErrors([UserError(None, line) for line in text.splitlines()])
    )
