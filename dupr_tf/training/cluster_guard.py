"""Guard process: ends a worker that TensorFlow blocks while its servers connect. Imports the standard library alone.

TensorFlow waits an hour for a missing worker. Meanwhile it holds Python's lock, so no thread of the waiting process can
react. The guard is a separate process that watches the connections from outside.

Usage: `python cluster_guard.py PID SECONDS FD NAME [FD NAME …]`. The guard ends when its standard input does.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 5.0  # seconds the worker has to end without being killed
GO_ON = "The newest checkpoint is whole. Fix: start the same commands again"


class Guard:
    """Watches the other workers while the servers connect. It is a context manager.

    Args:
        peers: {name: socket} of the other workers.
        seconds: time limit.
    """

    def __init__(self, peers: dict, seconds: float):
        self.peers, self.seconds = peers, seconds

    def __enter__(self) -> Guard:
        watched = [text for name, peer in self.peers.items() for text in (str(peer.fileno()), name)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self.seconds), *watched],
            stdin=subprocess.PIPE,
            pass_fds=[peer.fileno() for peer in self.peers.values()],
        )
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.wait()


def watch(peers: dict[int, str], seconds: float) -> str | None:
    """Returns the problem once there is one, or None if standard input ended and watching is no longer needed."""
    deadline, poll = time.monotonic() + seconds, select.poll()
    poll.register(0, 0)  # only its end matters
    for number in peers:
        poll.register(number, select.POLLRDHUP)
    while (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(1000 * left):
            return None if number == 0 else f"{peers[number]} is gone: it ended while TensorFlow's servers met"
    return f"TensorFlow's servers did not meet within {seconds:g} s (train.start_timeout)"


def main(arguments: list[str]) -> None:
    parent, seconds = int(arguments[0]), float(arguments[1])
    peers = {int(number): name for number, name in zip(arguments[2::2], arguments[3::2], strict=True)}
    problem = watch(peers, seconds)
    poll = select.poll()
    poll.register(0, 0)
    if problem and not poll.poll(1000 * GRACE) and os.getppid() == parent:
        print(f"dupr-tf: error: {problem}. {GO_ON}", file=sys.stderr, flush=True)
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
