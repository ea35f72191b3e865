"""Reads the batches of a run in order, ahead of the training, with the threads and processes of Grain.

A batch consists of blocks, and a block is a function of its number. So the result does not depend on threads or
processes, and starting at a later block costs nothing.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np

from dupr_tf.errors import RunFailed
from dupr_tf.resources import usable_cpus
from dupr_tf.text import one_line

AHEAD = 2  # blocks that each thread reads ahead of the training
SHARED_SIZE = 1 << 14  # bytes; arrays of other processes use shared memory from this size on
FREEING = 0.1  # seconds for the thread in which Grain frees shared memory, before the program may end
PARENT_CHECK = 1.0  # seconds between two checks of the parent process


class Block(NamedTuple):
    """Holds a part of a batch.

    Attributes:
        rows: dict, nested or not, of arrays whose first axis is samples.
        bad: (image, reason) of each unusable image.
    """

    rows: dict[str, Any]
    bad: tuple[tuple[int, str], ...] = ()


class Reader:
    """Iterates over batches in order. Its owner closes it, or uses it as a context manager.

    Args:
        make: block number -> `Block`. It is called in threads, and pickled for other processes.
        first, last: numbers of the blocks; `last` is not read.
        signature: {name: (shape, dtype)} of a batch, nested like its rows. None in a shape means any length.
        blocks: number of blocks in a batch. The last batch has the rest.
        threads: threads of each process that makes blocks. 0 uses the caller's thread. None: the usable
            CPUs, shared among the processes.
        processes: processes that make blocks. 0 uses this process.
        on_bad: called with (image, reason) for each unusable image, in the order of the blocks. An exception that it
            raises ends the iteration.
        merge: function from the rows of a batch's blocks to the batch.

    Attributes:
        signature: as above.
        error: the first exception that ended the iteration, or None. TensorFlow wraps the exceptions of an iterator, so
            the owner of the reader raises this one.
    """

    def __init__(
        self,
        make: Callable[[int], Block],
        first: int,
        last: int,
        signature: dict,
        blocks: int = 1,
        threads: int | None = 1,
        processes: int = 0,
        on_bad: Callable[[int, str], None] | None = None,
        merge: Callable[[list[dict]], dict] | None = None,
    ):
        self.signature, self.error = signature, None
        self._on_bad, self._processes, self._merge = on_bad, processes, merge or concatenate_rows
        self._started = False
        self._blocks_per_batch, self._blocks_left = blocks, last - first
        threads = max(1, usable_cpus() // max(1, processes)) if threads is None else threads
        self._blocks = _grain_iterator(make, first, last, threads, processes)

    def __iter__(self) -> Reader:
        return self

    def __len__(self) -> int:
        """Returns the number of batches left."""
        return -(-self._blocks_left // self._blocks_per_batch)

    def __next__(self) -> dict:
        if self.error is not None:
            raise self.error
        if self._blocks_left <= 0:
            raise StopIteration
        count = min(self._blocks_per_batch, self._blocks_left)
        try:
            with interrupt_deferred():
                batch = self._merge([self._next_block() for _ in range(count)])
        except BaseException as error:
            self.error = self._with_advice(error)
            raise self.error from error
        self._blocks_left -= count
        return batch

    def close(self) -> None:
        """Ends all threads and processes. It can be called again."""
        self._blocks_left = 0
        if self._blocks is not None:
            with interrupt_deferred():
                self._blocks.close()
            self._blocks = None
            if self._processes:  # the last blocks are in a reference cycle, and a thread of Grain frees them
                gc.collect()
                time.sleep(FREEING)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def _next_block(self) -> dict:
        starting, self._started = self._processes and not self._started, True
        with _signals_held() if starting else contextlib.nullcontext():
            block = Block(*next(self._blocks))
        for index, reason in block.bad:
            self._on_bad(index, reason)
        return block.rows

    def _with_advice(self, error: BaseException) -> BaseException:
        if self._processes and "terminated unexpectedly" in str(error):
            return RunFailed(
                f"A process that reads images was killed ({one_line(error, 120)}). If memory ran out, use fewer "
                "data.processes or a smaller batch, and run the same command again."
            )
        return error


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Delays the KeyboardInterrupt of Ctrl-C to the end of the block. A second Ctrl-C raises it at once.

    Python could raise it between any two instructions of Grain. A lock that Grain has just taken would stay locked, and
    closing its iterator would wait for that lock for ever.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def note(number, frame):
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def concatenate_rows(parts: list[dict]) -> dict:
    """Joins the rows of blocks to one batch. It is always a copy, so memory shared with processes is freed at once."""
    return {name: _concatenate([part[name] for part in parts]) for name in parts[0]}


def _concatenate(values: list):
    return concatenate_rows(values) if isinstance(values[0], dict) else np.concatenate(values)


def _grain_iterator(make, first: int, last: int, threads: int, processes: int):
    import grain  # takes half a second, so it is imported only to read images

    blocks = grain.MapDataset.range(first, last).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, AHEAD * threads) if threads else 0)
    dataset = blocks.to_iter_dataset(options)
    if processes:
        resource_tracker.ensure_running()  # before `_signals_held`, because its start unblocks the signals held there
        small = grain.experimental.DatasetOptions(min_shm_size=SHARED_SIZE)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, small)
        workers = grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=AHEAD)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_begin_process)
    iterator = iter(dataset)
    iterator.start_prefetch()  # starts threads; processes start with the first block, in threads of Grain
    return iterator


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Holds back signals that end a run from this thread, and from threads and processes that it starts.

    A process of Grain takes seconds to reach `_begin_process`. Ctrl-C in the terminal would end it before that.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_process(_worker: int, _workers: int) -> None:
    """Prepares a process that makes blocks. It ignores signals, which the parent handles, and ends with the parent."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # needed on Windows, where `_signals_held` cannot block them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_watch_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    """Ends this process when its parent has ended, for whatever reason.

    Linux could send a signal instead, but it sends it when the thread ends that started the process. Grain starts
    processes in threads that end earlier.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os._exit(1)
