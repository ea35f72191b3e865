"""Sources of encoded images: files, packed shards, or a data set of TensorFlow Datasets."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.fingerprint import Fingerprint, relative_name
from dupr_tf.files import open_file
from dupr_tf.resources import usable_cpus

AHEAD = 8  # images that each thread may be ahead, which limits the memory
MAX_BYTES = 1 << 30  # largest size of an encoded image
FILE_ERRORS = {
    errno.EISDIR: "no file: a folder, pipe or device",
    errno.ENOENT: "no file: missing, or a link to nowhere",
    errno.ELOOP: "no file: a link loop",
    errno.EACCES: "cannot be opened: permission denied",
}


class ImageSource:
    """Gives encoded images by number. An image has the same number in every run. Sources can be pickled."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Returns the name of an image for messages."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """Reads the bytes of an encoded image.

        Raises:
            Unusable: the bytes cannot be read, or are damaged.
        """
        raise NotImplementedError

    def digest(self, root: str) -> str:
        """Returns the sha256 of the images' identity and order, independent of where `root` is. Reads no image."""
        raise NotImplementedError

    def fingerprint(self, root: str) -> Fingerprint | None:
        """Returns sizes and times of the files. None if `digest` covers the contents."""
        return None

    def select(self, numbers: np.ndarray) -> ImageSource:
        """Returns a source of some of the images, (n,) int64 in rising order."""
        return Subset(self, numbers)


class Files(ImageSource):
    """Reads one image from each file.

    Args:
        paths: files in the order of `list_images`.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = [os.fspath(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> bytes:
        return read_file(self.paths[index])

    def digest(self, root: str) -> str:
        names = "\0".join(relative_name(path, root) for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def fingerprint(self, root: str) -> Fingerprint:
        return Fingerprint(self.paths, root)

    def select(self, numbers: np.ndarray) -> Files:
        return Files([self.paths[number] for number in numbers.tolist()])


class Subset(ImageSource):
    """Gives some of the images of another source, such as packed shards.

    Args:
        source: the other source. Its `digest` covers the contents.
        numbers: (n,) int64, the numbers of the images there.
    """

    def __init__(self, source: ImageSource, numbers: np.ndarray):
        self.source, self.numbers = source, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return self.source.name(int(self.numbers[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.numbers[index]))

    def digest(self, root: str) -> str:
        return hashlib.sha256(self.source.digest(root).encode() + self.numbers.astype("<i8").tobytes()).hexdigest()


def read_file(path: str | os.PathLike) -> bytes:
    """Reads the bytes of a regular file. Pipes and devices are refused, so that nothing waits for them.

    Raises:
        Unusable: there is no such file, it cannot be read, or it has more than `MAX_BYTES`.
    """
    try:
        with open_file(path, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Unusable(f"too large: {size:,} bytes")
            return file.read()
    except OSError as error:
        raise Unusable(FILE_ERRORS.get(error.errno, f"cannot be opened: {error.strerror}")) from None


def as_source(images: ImageSource | Sequence[str]) -> ImageSource:
    """Turns a list of paths into a source. Returns a source unchanged."""
    return images if isinstance(images, ImageSource) else Files(images)


def map_in_order(work: Callable, items: Iterable, workers: int | None = None) -> Iterator:
    """Yields results of `work` in the order of the items. Threads run ahead by at most `AHEAD` items each.

    Args:
        work: called with an item in a thread.
        items: any number of them.
        workers: number of threads. Default: one for each usable CPU.
    """
    workers = workers or usable_cpus()
    running = collections.deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) == AHEAD * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:  # after an error, drops the images that nobody waits for
        pool.shutdown(cancel_futures=True)
