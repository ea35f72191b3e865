"""Lists the images of a folder, of a COCO or VOC root, or of another source. It never reads labels.

All readers of photos, masks and labels use the rules of this file. The rules say which names are files of the system,
and which endings images have.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.data.images.decode import kind_of
from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.layouts import FIELD, FOLDERS, SOURCES, layout_of
from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.text import escape

log = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
SYSTEM_NAMES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db")
LABEL_MAPS = re.compile(r"(.*[_-])?(masks?|labels?|annot(ation)?s?|gt|ground_?truth)|.+annot", re.IGNORECASE)
SHOWN = 6  # file endings named at most in the line about files left out
HIDDEN, LINKS, MAPS = "hidden or system entries", "links to folders", "folders of label maps"
UNLISTED = "folders that cannot be listed"
KINDS = {HIDDEN: "", LINKS: ", which are not followed", MAPS: ", which data.kind folder would use", UNLISTED: ""}


@dataclasses.dataclass
class LeftOut:
    """Counts what a listing leaves out, and keeps the first path of each kind."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, what: str, path: str) -> None:
        """Counts a path; `what` is one of the kinds above, or the ending of a file."""
        self.counts[what] += 1
        self.examples.setdefault(what, path)

    def update(self, other: LeftOut) -> None:
        """Adds what another listing leaves out."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}

    def summary(self) -> str:
        """Returns a line: how many entries were left out, of which ending, folder or link, and why; or ""."""
        parts = [
            f"{self.counts[kind]} {kind}{why} ({escape(self.examples[kind])})"
            for kind, why in KINDS.items()
            if kind in self.counts
        ]
        endings = [(ending, count) for ending, count in self.counts.most_common() if ending not in KINDS]
        for ending, count in endings[:SHOWN]:
            name = f"ending in {ending}, which no image has" if ending else "without an ending"
            parts.append(f"{count} files {name} ({escape(self.examples[ending])}{self._inside(ending)})")
        if len(endings) > SHOWN:
            parts.append(f"{sum(count for _, count in endings[SHOWN:])} files with other endings")
        return "; ".join(parts)

    def _inside(self, ending: str) -> str:
        """Returns the advice for a file that is an image under another ending."""
        try:
            with open(self.examples[ending], "rb") as file:
                kind = kind_of(file.read(64))
        except OSError:
            return ""
        return f": {kind} inside, rename it to use it" if kind else ""


@dataclasses.dataclass(frozen=True)
class Listing:
    """Holds the images of a root, and counts of the files left out."""

    root: str
    kind: str  # of `layouts.FOLDERS`
    folders: tuple[str, ...]  # folders that were walked, relative to the root
    paths: list[str]  # absolute, sorted
    left_out: LeftOut

    def summary(self) -> str:
        """Returns a line with the layout that was recognised and the number of images."""
        inside = "" if self.folders == (".",) else f", photos from {', '.join(f'{name}/' for name in self.folders)}"
        return f"{escape(self.root)}: {self.kind}{inside}, {len(self.paths):,} images"


def open_source(root: str | Path, kind: str = "auto") -> tuple[str, ImageSource]:
    """Opens the images of a root. Also returns the root as a run records it (absolute).

    Args:
        root: a folder, a COCO or VOC root, a folder of shards, or `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`.
        kind: `data.kind`.

    Raises:
        UserError: there is no image, or a file is damaged.
    """
    root = local_path(root)
    kind = resolved_kind(root, kind)
    if kind in SOURCES:
        root, source = SOURCES.load(kind)(root)
        _log_once(f"{escape(root)}: {kind}, {len(source):,} images")
        return root, source
    return os.path.abspath(root), Files(list_images(root, kind))


def list_images(root: str | Path, kind: str = "auto") -> list[str]:
    """Lists the images of a root, sorted, so that position i is the same image in every run.

    One line of the log names the layout that was recognised. Another counts the files left out.

    Args:
        root: a folder, nested or flat; or the root of a COCO, VOC or Cityscapes data set.
        kind: a name in `layouts.FOLDERS`, or "auto".

    Returns:
        Absolute paths. Links to folders are not followed. Hidden files and folders, pipes and devices are skipped.
        Folders of label maps beside their photos are skipped too, unless `kind` is "folder".

    Raises:
        UserError: the folder is missing, is no folder, holds no image, or shows several layouts.
    """
    listing = list_root(root, kind)
    log_left_out(listing.summary(), listing.left_out)
    return listing.paths


def list_root(root: str | Path, kind: str = "auto") -> Listing:
    """Lists the images of a root as `list_images` does, without a line in the log."""
    kind, folders, images, left_out = _open(root, kind)
    paths = sorted(set(images))
    if not paths:
        raise _no_image(root, left_out)
    return Listing(os.path.abspath(root), kind, folders, paths, left_out)


def resolved_kind(root: str | Path, kind: str = "auto") -> str:
    """Returns `kind`, or for "auto" the source of `layouts.SOURCES` that the root shows; "auto" if photos are files."""
    shown = (name for name, entry in SOURCES.items() if entry.facts["shown"](root))
    return next(shown, kind) if kind == "auto" else kind


def check_root(root: str | Path, kind: str = "auto") -> str | None:
    """Raises the errors of opening the root, but walks no further than the first image or the manifest.

    Returns:
        The path of that image; None if the images are not files.
    """
    root = local_path(root)
    kind = resolved_kind(root, kind)
    if kind in SOURCES:
        SOURCES[kind].facts["check"](root)
        return None
    _, _, images, left_out = _open(root, kind)
    first = next(images, None)
    if first is None:
        raise _no_image(root, left_out)
    return first


def is_hidden(name: str) -> bool:
    """Returns True for names that an operating system creates beside the user's files: `._a.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in SYSTEM_NAMES


def list_classes(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted. Folders created by the system are left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def log_left_out(line: str, left_out: LeftOut) -> None:
    """Logs a line and the files left out. Each folder is logged once, since a command may open it again."""
    _log_once(line)
    if left_out.counts:
        _log_once(f"left out: {left_out.summary()}")


@functools.cache
def _log_once(line: str) -> None:
    log.info("%s", line)


def _no_image(root, left_out: LeftOut) -> UserError:
    left = f" Left out: {left_out.summary()}." if left_out.counts else ""
    problem = f"There is no image ({', '.join(EXTENSIONS)}) below {root}.{left}"
    return UserError(None, problem, "Pass a folder of photos.")


def _open(root: str | Path, kind: str) -> tuple[str, tuple[str, ...], Iterator[str], LeftOut]:
    """Returns layout, folders, an iterator of images, and the counts of files that the iterator leaves out."""
    root, left_out = local_path(root), LeftOut()
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(None, f"{root} {state}.", "Pass a folder of images.")
    resolved = layout_of(FOLDERS, root, kind)
    names = FOLDERS.load(resolved)
    folders = tuple(name for name in names if (root / name).is_dir())
    if not folders:
        raise UserError(FIELD, f"{root} is no {resolved} root: it has no {', '.join(names)}.", "Use folder.")
    maps = kind != "folder"
    images = (path for name in folders for path in _walk(root / name, left_out, maps))
    return resolved, folders, images, left_out


def _walk(folder: Path, left_out: LeftOut, without_maps: bool) -> Iterator[str]:
    folders = [str(folder)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            left_out.add(UNLISTED, folder)
            continue
        inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name)]
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if is_hidden(entry.name):
                left_out.add(HIDDEN, entry.path)
            elif entry.is_dir(follow_symlinks=False):
                if without_maps and _holds_label_maps(folder, entry.name, inner):
                    left_out.add(MAPS, entry.path)
                else:
                    folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                left_out.add(LINKS, entry.path)
            elif ending not in EXTENSIONS:
                left_out.add(ending, entry.path)
            elif _may_be_file(entry):
                yield os.path.abspath(entry.path)


def _may_be_file(entry: os.DirEntry) -> bool:
    """Returns True for a file, a link to a file, or a broken link. A broken link is reported when it is read."""
    if entry.is_file(follow_symlinks=False):
        return True
    return entry.is_symlink() and (os.path.isfile(entry.path) or not os.path.exists(entry.path))


def _holds_label_maps(parent: str, name: str, inner: list[str]) -> bool:
    """Returns True if a folder is named like label maps, and another has a photo with the name of its first image."""
    if not LABEL_MAPS.fullmatch(name):
        return False
    folder = os.path.join(parent, name)
    first = next(_walk(Path(folder), LeftOut(), False), None)
    if first is None:
        return False
    stem = os.path.splitext(os.path.relpath(first, os.path.abspath(folder)))[0]
    others = [other for other in inner if other != name and not LABEL_MAPS.fullmatch(other)]
    stems = {stem, re.sub(r"[_-][A-Za-z]+$", "", stem)}  # CamVid's masks end in _L
    photos = (os.path.join(parent, other, s + e) for other in others for s in stems for e in EXTENSIONS)
    return any(os.path.isfile(path) for path in photos)
