"""Measures points of `scaling`, a JSON line each: python -m benchmarks.scaling_points PART VALUE…

Seconds are CPU time of the process, over all its threads, so that other programs disturb them little. The smallest of
some repeats counts. MiB are the growth of the process's memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.scaling_replicas import works
from benchmarks.worker import forget_peak, peak_mib
from dupr_tf.data.images.source import Files
from dupr_tf.data.shards.index import FORMAT, MANIFEST, Shard, seal
from dupr_tf.data.shards.read import ShardSource, import_array_record
from dupr_tf.models.memory_bank import MemoryBank
from dupr_tf.ops.info_nce import info_nce

ENOUGH, MOST = 0.5, 20  # seconds of repeats, and their number
QUERIES, DIM, KEYS_A_STEP = 256, 128, 256
IMAGES_A_SHARD, IMAGES, READ = 2000, 1_000_000, 2048
IMAGE = bytes(100)  # bytes of each image


def replicas(count: int) -> dict:
    """Measures a step of a tiny network, and its parts, on several logical devices."""
    before = held()
    seconds = {name: least_seconds(work) for name, work in works(count).items()}
    return {"seconds": seconds, "mib": {"in all": peak_mib() - before}}


def bank_keys(size: int) -> dict:
    """Measures the loss of some queries against a bank of `keys` keys with its gradient, and the enqueueing."""
    before = held()
    bank = MemoryBank(size, DIM)
    bank_mib = held() - before
    keys = tf.math.l2_normalize(tf.random.stateless_normal([QUERIES, DIM], [0, 1]), -1)

    @tf.function
    def loss():
        with tf.GradientTape() as tape:
            tape.watch(keys)
            total = tf.reduce_sum(info_nce(keys, keys, bank.read(), 0.2))
        return tape.gradient(total, keys)

    enqueue = tf.function(lambda: bank.enqueue(keys[:KEYS_A_STEP]))
    seconds = {"loss and gradient": least_seconds(lambda: loss().numpy()), "enqueueing": least_seconds(enqueue)}
    return {"seconds": seconds, "mib": {"bank": bank_mib, "at the most": peak_mib() - before}}


def indexed(images: int) -> dict:
    """Measures opening packed shards of so many images, and reading some."""
    return _opened(images, -(-images // IMAGES_A_SHARD))


def shards(count: int) -> dict:
    """Measures opening and reading a fixed number of images in so many shards."""
    return _opened(IMAGES, count)


def names(images: int) -> dict:
    """Measures listing a folder's images by name, without shards."""
    before = held()
    paths = [f"/photos/camera_{i % 100:03d}/image_{i:09d}.jpg" for i in range(images)]
    start = time.process_time()
    source = Files(paths)
    point = {"seconds": {"opening": time.process_time() - start}, "mib": {"held": held() - before}}
    assert len(source) == images == len(paths)  # keeps both alive until here
    return point


PARTS = {"replicas": replicas, "bank keys": bank_keys, "indexed images": indexed, "shards": shards, "names": names}


def _opened(images, count) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), images, count)
        before = held()
        start = time.process_time()
        source = ShardSource(folder)
        seconds = {"opening": time.process_time() - start}
        most = peak_mib() - before
        held_mib = held() - before
        chosen = np.random.default_rng(0).integers(0, images, READ).tolist()

        def read():
            assert all(source.read(index) == IMAGE for index in chosen)

        seconds["reading 1,000 images"] = least_seconds(read) / READ * 1000
    return {"seconds": seconds, "mib": {"held": held_mib, "at the most": most}}


def write_shards(folder: Path, images: int, count: int) -> None:
    """Writes shards of equal images as `pack` does. All shards with the same number of images are one file."""
    share, rest = divmod(images, count)
    written, first = [], {}
    for number in range(count):
        rows = share + (number < rest)
        shard = Shard(number)
        if rows not in first:
            writer = import_array_record().ArrayRecordWriter(str(folder / shard.file), "group_size:1,uncompressed")
            for _ in range(rows):
                writer.write(IMAGE)
            writer.close()
            sealed, digest = seal({}, b'["photo.jpg", 100, 0]\n' * rows)
            (folder / shard.sidecar).write_bytes(sealed)
            size = (folder / shard.file).stat().st_size
            first[rows] = shard, {"images": rows, "bytes": size, "sha256": "0" * 64, "seal": digest}
        else:
            os.link(folder / first[rows][0].file, folder / shard.file)
            os.link(folder / first[rows][0].sidecar, folder / shard.sidecar)
        written.append(first[rows][1])
    (folder / MANIFEST).write_bytes(seal({"format": FORMAT, "shards": written})[0])


def held() -> float:
    """Returns the MiB held after freeing unused memory, where the system allows that, and starts a new peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    return forget_peak()


def least_seconds(work) -> float:
    """Returns the CPU seconds of the process for one call of `work`, which was called once before."""
    work()
    seconds = []
    while not seconds or (sum(seconds) < ENOUGH and len(seconds) < MOST):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    measure = PARTS[sys.argv[1]]
    for value in map(int, sys.argv[2:]):
        print(json.dumps({"part": sys.argv[1], "value": value, **measure(value)}), flush=True)
