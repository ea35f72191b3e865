"""How a path stands on the command line: a local one, or an address such as gs://bucket/photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from dupr_tf.remote_path import RemotePath, as_path

# `pathlib.Path` as a type would let tyro make a `Path` of it, which takes a slash from `gs://`.
Place = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: as_path(words[0]),
        is_instance=lambda value: isinstance(value, Path | RemotePath),
        str_from_instance=lambda value: [str(value)],
    ),
]
