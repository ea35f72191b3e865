"""Tests of reading ahead with threads and processes: order, errors, and what remains however a process ends."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dupr_tf.data import reader as data_reader
from dupr_tf.data.reader import Block, Reader, concatenate_rows
from dupr_tf.errors import RunFailed

SIGNATURE = {"x": ((4, 2), np.int64)}
SHARED_MEMORY = Path("/dev/shm")
WIDTH = int(os.environ.get("TEST_READER_WIDTH", "100000"))  # identifies the shared memory of a run
SCRIPT = """
import signal, sys, time
import numpy as np
from tests.data.test_reader import SIGNATURE, child_processes, make_large
from dupr_tf.data.reader import Reader
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background ignores it
    with Reader(make_large, 0, 4 if sys.argv[1] == "end" else 10_000, SIGNATURE, processes=2) as reader:
        next(reader), next(reader)
        try:
            print(*child_processes(), flush=True)
            while sys.argv[1] == "read":
                next(reader)
            if sys.argv[1] == "sleep":
                time.sleep(60)
            list(reader)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""
linux = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="looks at /proc and /dev/shm")


def make(number):
    return Block({"x": np.full((2, 2), number)}, ((number, "bad"),) if number % 3 == 0 else ())


def make_large(number):
    return Block({"x": np.full((100, WIDTH), number % 256, np.uint8)})


def fail_at_four(number):
    if number == 4:
        raise ValueError("block 4")
    return make(number)


def child_processes(parent=None) -> list[int]:
    """Returns the processes that make blocks: spawned children without the tracker of shared memory."""
    children = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == (parent or os.getpid()) and fields[0] != "Z" and b"spawn_main" in command:
            children.append(int(status.parent.name))
    return children


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.05)


def sizes_of_shared_memory() -> list[int]:
    sizes = []
    for path in SHARED_MEMORY.iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sizes


@pytest.mark.parametrize(("threads", "processes"), [(0, 0), (1, 0), (3, 0), (1, 2)])
def test_batches_and_bad_images_come_in_order(threads, processes):
    bad = []
    with Reader(make, 2, 12, SIGNATURE, 2, threads, processes, lambda *image: bad.append(image)) as reader:
        batches = [batch["x"][:, 0].tolist() for batch in reader]
    assert batches == [[n, n, n + 1, n + 1] for n in range(2, 12, 2)]
    assert bad == [(3, "bad"), (6, "bad"), (9, "bad")]


@pytest.mark.parametrize(("threads", "processes", "started"), [(None, 0, 6), (None, 4, 1), (None, 9, 1), (2, 4, 2)])
def test_processes_share_the_cpus(threads, processes, started, monkeypatch):
    made = []
    monkeypatch.setattr(data_reader, "usable_cpus", lambda: 6)
    monkeypatch.setattr(data_reader, "_grain_iterator", lambda *arguments: made.append(arguments[3:]))
    Reader(make, 0, 4, SIGNATURE, 1, threads, processes)
    assert made == [(started, processes)]


@pytest.mark.parametrize("processes", [0, 2])
def test_first_error_is_raised_on_every_call(processes):
    with Reader(fail_at_four, 1, 9, SIGNATURE, processes=processes, on_bad=lambda *_: None) as reader:
        assert [next(reader)["x"][0, 0] for _ in range(3)] == [1, 2, 3]
        for _ in range(2):
            with pytest.raises(ValueError, match="block 4"):
                next(reader)
        assert isinstance(reader.error, ValueError)


def test_closing_ends_the_threads_and_the_iteration():
    def threads():
        return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}

    before = threads()
    reader = Reader(make, 0, 1000, SIGNATURE, threads=3, on_bad=lambda *_: None)
    next(reader)
    assert threads() - before
    reader.close()
    reader.close()
    wait_until(lambda: not threads() - before)
    assert list(reader) == []


def test_rows_of_blocks_are_concatenated_at_every_depth():
    parts = [{"a": np.full((1, 2), n), "b": {"c": np.full(1, n)}} for n in range(3)]
    batch = concatenate_rows(parts)
    assert batch["a"].tolist() == [[0, 0], [1, 1], [2, 2]] and batch["b"]["c"].tolist() == [0, 1, 2]


@linux
def test_killed_input_process_gives_one_line():
    with Reader(make_large, 0, 10_000, SIGNATURE, processes=2) as reader:
        next(reader)
        os.kill(child_processes()[0], signal.SIGKILL)
        with pytest.raises(RunFailed) as error:
            for _ in range(1000):
                next(reader)
    assert "\n" not in str(error.value) and "data.processes" in str(error.value)
    assert child_processes() == []


def start_run(folder, state, width=WIDTH) -> subprocess.Popen:
    script = folder / "read.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEST_READER_WIDTH": str(width)}
    return subprocess.Popen(
        [sys.executable, str(script), state], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_starting_processes_end_when_the_run_ends(tmp_path, number):
    run = start_run(tmp_path, "read")
    wait_until(lambda: len(child_processes(run.pid)) == 2, 60)
    children = child_processes(run.pid)
    try:
        if number == signal.SIGTERM:
            for child in children:
                os.kill(child, number)
            assert run.stdout.readline().split() == [*map(str, children)]  # they still read, despite the signal
        run.kill()
        wait_until(lambda: not any(map(is_running, children)), 60)
    finally:
        run.kill()
        for child in filter(is_running, children):
            os.kill(child, signal.SIGKILL)
        run.communicate()


@linux
def test_run_that_reads_everything_ends_without_a_warning(tmp_path):
    run = start_run(tmp_path, "end")
    output, errors = run.communicate(timeout=60)
    assert (run.returncode, len(output.split()), errors) == (0, 2, "")


@linux
@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGKILL, "read"), (signal.SIGINT, "read"), (signal.SIGINT, "sleep")]
)
def test_no_process_and_no_shared_memory_outlives_the_run(tmp_path, number, state):
    width = 100_001 + os.getpid() % 100_000
    run = start_run(tmp_path, state, width)
    children = [int(pid) for pid in run.stdout.readline().split()]
    assert len(children) == 2 and 100 * width in sizes_of_shared_memory()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does on Ctrl-C
    else:
        run.kill()
    output, errors = run.communicate(timeout=60)
    if number == signal.SIGINT:
        assert (run.returncode, output.strip(), errors) == (0, "interrupted", "")
    wait_until(lambda: not any(map(is_running, children)))
    wait_until(lambda: 100 * width not in sizes_of_shared_memory())
