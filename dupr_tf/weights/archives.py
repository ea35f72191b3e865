"""Compares the declared contents of weight archives with their size, before reading them. Imports no TensorFlow.

A small file may unpack to more than the memory, or declare arrays that it does not hold.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from pathlib import Path

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.text import escape, one_line

RATIO, SPARE = 20, 64 << 20  # an archive may unpack to 20 times its size plus 64 MiB; weights hardly shrink
MOST_CONFIG = 16 << 20  # bytes of the description of a model
CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a `.keras` file


def check_archive(path: str | Path) -> None:
    """Rejects a zip archive, such as a `.keras` or `.npz` file, that unpacks to far more than its size.

    Raises:
        UserError: the archive is rejected, or the path is no zip archive or no file.
    """
    path = Path(path)
    try:
        size = os.stat(path)
        if not stat.S_ISREG(size.st_mode):
            raise ValueError("it is a folder, pipe or device")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_size(sum(entry.file_size for entry in entries), size.st_size, "unpacks to")
            for entry in entries:
                if entry.filename == CONFIG and entry.file_size > MOST_CONFIG:
                    raise ValueError(f"its {CONFIG} has {entry.file_size:,} bytes")
                if entry.filename.endswith(".npy"):
                    _check_array(archive, entry)
                if entry.filename == WEIGHTS:
                    _check_weights(archive, entry)
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, RuntimeError, NotImplementedError, EOFError) as error:
        problem = f"{escape(str(path))} cannot be read: {one_line(error, 120).rstrip('.')}."
        raise UserError(None, problem, "Copy it again, or use another file.") from None


def _check_size(declared: int, held: int, what: str) -> None:
    if declared > RATIO * held + SPARE:
        raise ValueError(f"it {what} {declared:,} bytes, and the file has {held:,}")


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compares the shape in the header of an array with its bytes."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        held = entry.file_size - file.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:  # in Python's integers, which cannot overflow
        raise ValueError(f"{entry.filename} declares {math.prod(shape) * dtype.itemsize:,} bytes and has {held:,}")


def _check_weights(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compares the arrays that an HDF5 file declares with its size. Chunks that were never written have none."""
    import h5py

    sizes = []

    def add(_, item) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append(math.prod(item.shape or ()) * item.dtype.itemsize)

    with archive.open(entry) as file, h5py.File(file, "r") as content:
        content.visititems(add)
    _check_size(sum(sizes), entry.file_size, "declares weights of")
