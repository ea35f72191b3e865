"""Reading packed shards against reading the files they were packed from: the same images, the same shuffled order.

`ours` and `theirs` return seconds of CPU of this process and of the clock for one pass; a ratio above 1 is ours being
faster. Files are in the page cache on both sides after the first pass, which favours files: from a disk, an open shard
costs one access an image and a file several.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import tensorflow as tf

from dupr_tf.data.image_source import Files, ImageSource, map_contents
from dupr_tf.data.pack import PackSettings, pack
from dupr_tf.data.pipeline import shuffled_index
from dupr_tf.data.shards import Shards
from dupr_tf.data.sources import list_images


def prepare(images: str | Path, folder: str | Path, count: int = 2000) -> tuple[Files, Shards]:
    """The first so many images of a folder, as links to files and packed, in the same order.

    Args:
        images: folder of images.
        folder: empty; gets `files/` and `shards/`.
        count: images.
    """
    files, shards = Path(folder) / "files", Path(folder) / "shards"
    files.mkdir(parents=True)
    for number, path in enumerate(list_images(images)[:count]):
        (files / f"{number:06d}{Path(path).suffix}").symlink_to(path)
    pack(files, shards, PackSettings(shuffle=False))
    return Files([str(path.resolve()) for path in sorted(files.iterdir())]), Shards(shards)


def read_once(source: ImageSource, passes: int = 5) -> dict[str, float]:
    """Reads every image of a source in shuffled orders, as the pipeline does; seconds a pass, and bytes."""
    numbers = tf.data.Dataset.range(passes * len(source))

    def index_of(number):
        return shuffled_index(number % len(source), len(source), 0, number // len(source))

    lengths = map_contents(source, numbers, index_of, lambda _, content: tf.strings.length(content))
    cpu, clock = time.process_time(), time.perf_counter()
    total = lengths.batch(256).reduce(tf.constant(0, tf.int64), lambda a, b: a + tf.reduce_sum(tf.cast(b, tf.int64)))
    return {
        "bytes": int(total) / passes,
        "cpu": (time.process_time() - cpu) / passes,
        "clock": (time.perf_counter() - clock) / passes,
    }


def ours(shards: Shards) -> dict[str, float]:
    """One pass over packed shards."""
    return read_once(shards)


def theirs(files: Files) -> dict[str, float]:
    """One pass over the files, with `tf.io.read_file`."""
    return read_once(files)


def compare(files: Files, shards: Shards, repeats: int = 5) -> dict[str, float]:
    """Alternating passes, after one of each that is not counted: medians, and the ratio of the medians of CPU time.

    Args:
        files, shards: of the same images.
        repeats: counted passes of each.
    """
    assert ours(shards)["bytes"] == theirs(files)["bytes"]
    found = {"ours": [], "theirs": []}
    for _ in range(repeats):
        found["ours"].append(ours(shards)["cpu"])
        found["theirs"].append(theirs(files)["cpu"])
    median = {name: statistics.median(values) for name, values in found.items()}
    count = len(files)
    return {
        "ours_us_per_image": 1e6 * median["ours"] / count,
        "theirs_us_per_image": 1e6 * median["theirs"] / count,
        "ratio": median["theirs"] / median["ours"],
    }
