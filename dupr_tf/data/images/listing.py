"""Lists the images of a folder, of a COCO or VOC root, or of another source. It never reads labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.layouts import FIELD, FOLDERS, SOURCES, layout_of
from dupr_tf.errors import UserError
from dupr_tf.files import local_path

log = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def open_source(root: str | Path, kind: str = "auto") -> tuple[str, ImageSource]:
    """The images of a root, and the root as a run notes it (absolute).

    Args:
        root: a folder, a COCO or VOC root, a folder of shards, or `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.
        kind: `data.kind`.

    Raises:
        UserError: there is nothing to read, or something is damaged.
    """
    root = local_path(root)
    kind = resolved_kind(root, kind)
    if kind in SOURCES:
        return SOURCES.load(kind)(root)
    return os.path.abspath(root), Files(list_images(root, kind))


def list_images(root: str | Path, kind: str = "auto") -> list[str]:
    """Lists every image file below a folder, sorted, so that position i is the same image in every run.

    Args:
        root: a folder, nested or flat; or the root of a COCO or VOC data set.
        kind: a name in `layouts.FOLDERS`, or "auto".

    Returns:
        Absolute paths. Links to folders are not followed. Hidden files and folders, pipes and devices are skipped.

    Raises:
        UserError: the folder is missing, is no folder, or holds no image.
    """
    paths = sorted(set(_images(local_path(root), kind)))
    if not paths:
        raise _no_image(root)
    return paths


def resolved_kind(root: str | Path, kind: str = "auto") -> str:
    """`kind`, or for "auto" the source of `layouts.SOURCES` that the root shows, else "auto": the photos are files."""
    shown = (name for name, entry in SOURCES.items() if entry.facts["shown"](root))
    return next(shown, kind) if kind == "auto" else kind


def check_root(root: str | Path, kind: str = "auto") -> str | None:
    """Raises what opening the root would, without walking further than the first image or the manifest.

    Returns:
        The path of that image; None if the images are not files.
    """
    root = local_path(root)
    kind = resolved_kind(root, kind)
    if kind in SOURCES:
        SOURCES[kind].facts["check"](root)
        return None
    first = next(_images(root, kind), None)
    if first is None:
        raise _no_image(root)
    return first


def _no_image(root) -> UserError:
    return UserError(None, f"There is no image ({', '.join(EXTENSIONS)}) below {root}.", "Pass a folder of photos.")


def _images(root: Path, kind: str) -> Iterator[str]:
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(None, f"{root} {state}.", "Pass a folder of images.")
    kind = layout_of(FOLDERS, root, kind)
    names = FOLDERS.load(kind)
    folders = [root / name for name in names if (root / name).is_dir()]
    if not folders:
        raise UserError(FIELD, f"{root} is no {kind} root: it has no {', '.join(names)}.", "Use folder.")
    for folder in folders:
        yield from _walk(folder)


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


def _may_be_file(entry: os.DirEntry) -> bool:
    """Whether an entry is a file, or a link that leads to one or nowhere: the latter is named when it is met."""
    if entry.is_file(follow_symlinks=False):
        return True
    return entry.is_symlink() and (os.path.isfile(entry.path) or not os.path.exists(entry.path))
