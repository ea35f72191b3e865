"""Checks what the process is told about processors and memory, and that every number of threads is taken from there."""

import os
from pathlib import Path

import pytest

from dupr_tf import resources
from dupr_tf.data.images import source

PACKAGE = Path(resources.__file__).parent


def test_limits_of_a_container_count(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    cpus, free = resources.usable_cpus(), resources.available_memory()
    for name, text in {
        "cpu.max": "50000 100000\n", "memory.max": "3000000\n", "memory.current": "2900000\n",
        "memory.stat": "anon 100\ninactive_file 700000\nactive_file 200000\nslab 5\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    assert resources.usable_cpus() == 1 and resources.available_memory() == 1_000_000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.usable_cpus() == cpus and resources.available_memory() == pytest.approx(free, rel=0.2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_keep_to_the_cpus_of_the_process(monkeypatch):
    started = []
    pool = source.ThreadPoolExecutor
    monkeypatch.setattr(source, "ThreadPoolExecutor", lambda workers: started.append(workers) or pool(workers))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert list(source.map_in_order(abs, [-1, 2])) == [1, 2]
    finally:
        os.sched_setaffinity(0, before)
    assert started == [1]


def test_nobody_counts_all_cpus_for_threads():
    files = PACKAGE.rglob("*.py")
    counting = {path.relative_to(PACKAGE).as_posix() for path in files if "cpu_count(" in path.read_text()}
    assert counting == {"resources.py", "environment.py"}
