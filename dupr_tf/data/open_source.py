"""The images of a root, whatever kind it is of."""

from __future__ import annotations

import os
from pathlib import Path

from dupr_tf.data.formats import SOURCES
from dupr_tf.data.images.listing import list_images, resolved_kind
from dupr_tf.data.images.source import Files, ImageSource


def open_source(root: str | Path, kind: str = "auto") -> tuple[str, ImageSource]:
    """The images of a root, and the root as a run notes it (absolute).

    Args:
        root: a folder, a COCO or VOC root, a folder of shards, or `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.
        kind: `data.kind`.

    Raises:
        UserError: there is nothing to read, or something is damaged.
    """
    kind = resolved_kind(root, kind)
    if kind in SOURCES:
        return SOURCES.load(kind)(root)
    return os.path.abspath(root), Files(list_images(root, kind))
