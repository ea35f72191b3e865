"""Reports of workers to the chief between steps: bad images, signals, and step times without waiting."""

from __future__ import annotations

import logging
import statistics
import time

from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.training.callbacks import StepCallback

log = logging.getLogger(__name__)
SLOW = 1.5  # multiple of the other workers' median
LEAST = 0.005  # seconds per step below which no worker counts as slow
AGAIN = 600.0  # seconds until the same worker is named again


class Stragglers:
    """Names the worker that the others wait for.

    Args:
        called: index -> name of the worker.
        workers: number of workers.
    """

    def __init__(self, called, workers: int):
        self.called, self.workers = called, workers
        self._seconds: dict[int, dict[int, float]] = {}  # {step: {worker: seconds}}
        self._named: dict[int, float] = {}

    def note(self, index: int, step: int, seconds: float) -> None:
        """Records a worker's own seconds per step, up to a step. The last worker's report compares all workers."""
        own = self._seconds.setdefault(step, {})
        own[index] = seconds
        if len(own) < self.workers:
            return
        self._seconds = {later: values for later, values in self._seconds.items() if later > step}
        slowest = max(own, key=own.get)
        others = statistics.median(value for worker, value in own.items() if worker != slowest)
        if own[slowest] > max(SLOW * others, others + LEAST):
            self._name(slowest, step, own[slowest], others)

    def _name(self, index, step, seconds, others):
        now = time.monotonic()
        if now - self._named.get(index, -AGAIN) >= AGAIN:
            self._named[index] = now
            log.warning(
                "%s is slow: at step %d it takes %.3f s a step by itself, the others %.3f s (median), and they wait",
                self.called(index), step, seconds, others,
            )  # fmt: skip


class ReportToChief(StepCallback):
    """Reports to the chief after every step of a worker: progress, signals, bad images and step times.

    Args:
        link: link of this worker.
        bad: its bad images.
        received: signals, from `noted_signals`.
        first_step: step from which the run starts.
        every: steps between two reports of its step time.
    """

    def __init__(self, link, bad: BadImages, received: list[int], first_step: int, every: int):
        super().__init__(first_step)
        self.link, self.bad, self.received, self.every = link, bad, received, every
        self.stragglers = Stragglers(link.cluster.called, link.workers)
        self._own, self._told = [], 0
        if link.chief:
            link.on("bad", lambda _index, found: [bad.add(image, reason) for image, reason in found])
            link.on("signal", lambda _index, number: received.append(number))
            link.on("own", lambda index, own: self.stragglers.note(index, *own))

    def on_step(self, step, logs):
        self.link.progress()
        self._own.append(self.model.own_seconds)
        if not self.link.chief:
            self.tell_bad()
            if self.received:
                self.link.tell_chief(signal=self.received[0])
                self.received.clear()  # the chief ends the run
        if step % self.every == 0:
            self._tell_own(step, statistics.fmean(self._own))
            self._own = []

    def _tell_own(self, step, seconds):
        if self.link.chief:
            self.stragglers.note(0, step, seconds)
        else:
            self.link.tell_chief(own=[step, seconds])

    def tell_bad(self) -> None:
        """Sends the images found to be bad since the last report."""
        found = list(self.bad.reason_of.items())
        if len(found) > self._told:
            self.link.tell_chief(bad=found[self._told :])
            self._told = len(found)
