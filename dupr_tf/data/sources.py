"""Where images come from: a folder of any shape, or the image folder of a COCO or VOC root. Labels are never read."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.data.shard_files import is_shards, read_manifest
from dupr_tf.errors import UserError
from dupr_tf.remote_path import RemotePath, as_path

log = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
VOC_IMAGES = "JPEGImages"
TFDS = "tfds:"


def list_images(root: str | Path, kind: str = "auto") -> list[str]:
    """Every image file below a folder, sorted, so that position i is the same image in every run.

    Args:
        root: a folder, nested or flat; or the root of a COCO or VOC data set.
        kind: "folder", "coco" (looks into `images/`, `train2017/`, …), "voc" (looks into `JPEGImages/`), or "auto".

    Returns:
        Absolute paths. Links to folders are not followed; hidden files and folders, pipes and devices are passed over.

    Raises:
        UserError: the folder is missing, is no folder, or holds no image.
    """
    paths = sorted(set(_images(as_path(root), kind)))
    if not paths:
        raise _no_image(root)
    return paths


def resolved_kind(root: str | Path, kind: str = "auto") -> str:
    """`kind`, or for "auto" what the root shows: "tfds", "tfrecord", else "auto" (a folder, COCO or VOC).

    Raises:
        UserError: the kind is tfds and the root does not begin with `tfds:`.
    """
    named = str(root).startswith(TFDS)
    if kind == "tfds" and not named:
        raise UserError(
            "data.kind", f"Expected {TFDS}NAME as data of kind tfds, received {root}.", f"Pass {TFDS}NAME:train."
        )
    if kind != "auto":
        return kind
    return "tfds" if named else "tfrecord" if is_shards(root) else "auto"


def check_root(root: str | Path, kind: str = "auto") -> None:
    """Raises what opening the root would, without walking further than the first image or the manifest."""
    kind = resolved_kind(root, kind)
    if kind == "tfrecord":
        read_manifest(root)
    elif kind != "tfds" and next(_images(as_path(root), kind), None) is None:
        raise _no_image(root)


def _no_image(root) -> UserError:
    return UserError(None, f"There is no image ({', '.join(EXTENSIONS)}) below {root}.", "Pass a folder of photos.")


def _images(root: Path | RemotePath, kind: str) -> Iterator[str]:
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(None, f"{root} {state}.", "Pass a folder of images.")
    for folder in _image_folders(root, kind):
        yield from _walk_remote(folder) if isinstance(folder, RemotePath) else _walk(folder)


def _image_folders(root: Path, kind: str) -> list[Path]:
    if kind == "folder":
        return [root]
    voc = root / VOC_IMAGES
    if kind == "voc" or (kind == "auto" and voc.is_dir() and (root / "Annotations").is_dir()):
        if not voc.is_dir():
            raise UserError("data.kind", f"{root} is no VOC root: it has no {VOC_IMAGES}/.", "Use folder.")
        return [voc]
    if kind == "coco" or (kind == "auto" and (root / "annotations").is_dir()):
        names = ("images", "train2017", "unlabeled2017", "train2014", VOC_IMAGES)
        found = [root / name for name in names if (root / name).is_dir()]
        if kind == "coco" and not found:
            raise UserError("data.kind", f"{root} is no COCO root: it has no images/.", "Use folder.")
        return found or [root]
    return [root]


def _walk(folder: Path) -> Iterator[str]:
    folders = [str(folder)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted((e for e in scan if not e.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            log.warning("passed over, cannot be listed: %r (%s)", folder, error.strerror)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS) and _may_be_file(entry):
                yield os.path.abspath(entry.path)


def _walk_remote(folder: RemotePath) -> Iterator[str]:
    """As `_walk`, by as few requests as may be: what is named as an image is taken for a file."""
    for name in folder.names():
        path = folder / name
        if name.startswith("."):
            continue
        if not name.endswith("/") and name.lower().endswith(EXTENSIONS):
            yield str(path)
        elif name.endswith("/") or path.is_dir():
            yield from _walk_remote(path)


def _may_be_file(entry: os.DirEntry) -> bool:
    """Whether an entry is a file, or a link that leads to one or nowhere: the latter is named when it is met."""
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True
