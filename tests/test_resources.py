"""Checks what the process is told about processors and memory, and that every number of threads is taken from there."""

import os
from pathlib import Path

import pytest

from dupr_tf import resources
from dupr_tf.data.images import source

PACKAGE = Path(resources.__file__).parent


def test_limits_of_a_container_count(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "absent")
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


@pytest.mark.parametrize(("own", "group", "quota", "names"), [
    ("0::/job/step", "job", {"cpu.max": "100000 100000"}, ("memory.max", "memory.current")),
    ("3:cpu,cpuacct:/job/step\n4:memory:/job/step", "{}/job/step",
     {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, ("memory.limit_in_bytes", "memory.usage_in_bytes")),
], ids=["version 2", "version 1"])  # fmt: skip
def test_limits_of_a_job_count(own, group, quota, names, tmp_path, monkeypatch):
    (tmp_path / "own").write_bytes(own.encode() + b"\n9:pids:/a\xff\n")
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: {0, 1, 2})
    own_cache = "inactive_file 5000" if names[0] == "memory.max" else "inactive_file 1\ntotal_inactive_file 5000"
    memory = {names[0]: "3000000", names[1]: "2900000", "memory.stat": own_cache}
    assert resources.usable_cpus() == 3
    for controller, files in (("cpu", quota), ("memory", memory)):
        folder = tmp_path / group.format(controller)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    assert resources.usable_cpus() == 1 and resources.available_memory() == 105_000
    if "cpu.cfs_quota_us" in quota:
        (tmp_path / group.format("cpu") / "cpu.cfs_quota_us").write_text("-1")
        assert resources.usable_cpus() == 3


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


def test_no_other_module_counts_cpus():
    counting = set()
    for path in PACKAGE.rglob("*.py"):
        code = path.read_text()
        if "cpu_count(" in code or "PoolExecutor()" in code:
            counting.add(path.relative_to(PACKAGE).as_posix())
    assert counting == {"resources.py", "environment.py"}
