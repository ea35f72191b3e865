"""Writes files of features. Each format has a line in the table and a function. Imports no TensorFlow.

A function is called with

    path: the file to write. It appears when it is complete.
    features: iterator of the names of some images, and their features as little-endian float32 bytes.
    count: number of all images.
    shape: shape of the features of an image.
    facts: description of the run, JSON values.

It reads a part at a time, so memory does not grow with the number of images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.files import publishing
from dupr_tf.registry import Entry, Registry
from dupr_tf.text import escape

Features = Iterator[tuple[list[str], bytes]]
NAMES_ENDING = ".names.txt"  # of the text file beside an array
FEATURE_FILES = Registry(
    "format of features",
    "--output",
    {
        "npy": Entry(
            "dupr_tf.probing.feature_files:write_npy",
            "NumPy array, and a text file of names in the same folder",
            facts={"beside": (NAMES_ENDING,)},
        ),
        "parquet": Entry(
            "dupr_tf.probing.feature_files:write_parquet",
            "table of names and features",
            "parquet",
            ("pyarrow",),
            {"beside": ()},
        ),
    },
)


def format_of(output: Path) -> str:
    """Returns the name of a format by the ending of a file. Raises UserError if there is none, or a package lacks."""
    name = output.suffix.removeprefix(".")
    if name not in FEATURE_FILES:
        endings = " or ".join(f".{name}" for name in FEATURE_FILES)
        problem = f"Expected a file ending in {endings}, received {output}."
        raise UserError("--output", problem, f"Use {output.with_suffix('.npy')}.")
    FEATURE_FILES.check(name)
    return name


def write_npy(path: Path, features: Features, count: int, shape: tuple[int, ...], facts: dict) -> None:
    """Writes an array (N, *shape) float32, and `PATH.names.txt` with a name on each line."""
    names_file = path.with_name(path.name + NAMES_ENDING)
    with publishing(names_file, "w", encoding="utf-8", newline="") as names, publishing(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for some, content in features:
            file.write(content)
            names.writelines(f"{escape(name)}\n" for name in some)


def write_parquet(path: Path, features: Features, count: int, shape: tuple[int, ...], facts: dict) -> None:
    """Writes a table with the columns `name` and `feature`, a list of float32. `facts` are metadata of the table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = math.prod(shape)
    columns = [pa.field("name", pa.string()), pa.field("feature", pa.list_(pa.float32(), width))]
    schema = pa.schema(columns, {"dupr_tf": json.dumps(facts)})
    with publishing(path, "wb") as file, pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for names, content in features:
            values = pa.array(np.frombuffer(content, "<f4"))
            rows = pa.FixedSizeListArray.from_arrays(values, width)
            writer.write_table(pa.table([pa.array([escape(name) for name in names], pa.string()), rows], schema=schema))
