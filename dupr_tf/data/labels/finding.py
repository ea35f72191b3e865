"""Finds the label files of a split, and images by the names in label files."""

from __future__ import annotations

import collections
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from dupr_tf.data.images.listing import EXTENSIONS, is_hidden
from dupr_tf.data.labels.annotations import ListedImage
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.split import MissingSplit, inside
from dupr_tf.data.layouts import SPLIT_NAMES, names_of
from dupr_tf.errors import UserError
from dupr_tf.files import open_file
from dupr_tf.text import escape

HEAD_BYTES = 4096  # read from the start of a file to recognise its format
# {ending: what the start of a label file contains; other text files beside a photo describe it in words}
LABELS = {
    ".txt": re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*(\n|$)"),
    ".xml": re.compile(r"[^<]*(<\?[^>]*>)?\s*<annotation\b"),
    ".json": re.compile(r".*\"(shapes|annotations)\"", re.DOTALL),
}
OTHERS = "files of another format among the labels, not read"
OTHER_FORMAT = "images whose labels are in another format, left out"
SNIFFED = 5  # files of a folder that are read for this, at most


def split_of(name: str) -> str:
    """Returns the split that a tool's name stands for, in upper or lower case."""
    name = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), name)


def part_of(root: Path, split: str, label_files: Callable[[Path], list[Path]]) -> tuple[Path, list[Path]]:
    """Finds the folder of a split. The whole root is train if no folder in it is named after a split.

    Args:
        root: root of the data set.
        split: "train", …
        label_files: folder -> the label files in it that are of the format.

    Returns:
        The folder and its label files. The list is empty if there is no such split.
    """
    for name in names_of(split):
        if files := label_files(root / name):
            return root / name, files
    others = {name for names in (*SPLIT_NAMES.values(), ("test",)) for name in names}
    if split == "train" and not any(label_files(root / name) for name in sorted(others)):
        return root, label_files(root)
    return root, []


def recognised(files: Sequence[Path], test: Callable[[str], bool]) -> list[Path]:
    """Returns the files without hidden ones, if the start of one of the first files passes a test; otherwise []."""
    shown = sorted(path for path in files if not is_hidden(path.name) and path.is_file())
    return shown if any(test(head_of(path)) for path in shown[:SNIFFED]) else []


def head_of(path: Path) -> str:
    """Returns the start of a file as text; "" if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(HEAD_BYTES).decode("utf-8", "replace")
    except OSError:  # the reader reports it
        return ""


def other_format(images: Sequence[Path], own: str = "") -> str:
    """Returns the fault `OTHER_FORMAT` if an image without labels has a label file of another format; otherwise "".

    Args:
        images: paths of the image, whose label files would have the same names.
        own: ending of the format's own label files.
    """
    found = (
        path.with_suffix(ending).is_file() and start.match(head_of(path.with_suffix(ending)))
        for path in images
        for ending, start in LABELS.items()
        if ending != own
    )
    return OTHER_FORMAT if any(found) else ""


def unlabelled(
    index: ImageIndex, images: Sequence[ListedImage], what: str, counts: Counts, own: str = ""
) -> list[ListedImage]:
    """Returns the images of an index that have labels in another format only, as faulty images.

    Args:
        index: the images of the split.
        images: those with labels.
        what: name in `counts` of images without any labels.
        counts: receives their number, and one as an example.
        own: ending of the format's own label files.
    """
    unused = index.unused({image.path for image in images})
    faults = {path: other_format([path], own) for path in unused}
    for path in (path for path, fault in faults.items() if not fault):
        counts.note(what, path)
    return [ListedImage(path, (0, 0), path.name, fault=fault) for path, fault in faults.items() if fault]


def missing_split(root: Path, split: str, what: str) -> MissingSplit:
    """Returns the error about a split that a data set does not have."""
    names = " or ".join(names_of(split))
    return MissingSplit(None, f"{root} has no {what} of a split {names}.", "Add it, or pass another root or split.")


def list_images(folder: Path) -> list[Path]:
    """Lists the images below a folder, sorted by folders. Links to folders are followed once.

    Raises:
        UserError: a folder may not be read.
    """
    images, seen = [], set()
    for place, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        if (identity := (os.stat(place).st_dev, os.stat(place).st_ino)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        shown = (name for name in sorted(files) if not is_hidden(name))
        images += [Path(place, name) for name in shown if os.path.splitext(name)[1].lower() in EXTENSIONS]
    return images


def _refuse_unreadable(error: OSError) -> None:
    if isinstance(error, PermissionError):  # by default os.walk leaves such a folder out without a word
        raise UserError(None, f"{escape(str(error.filename))} cannot be listed.", "Change its permissions.") from None


class ImageIndex:
    """Finds images below a root by the names that tools write. Such names may have other folders in front, or none.

    Args:
        root: root of the data set, or of a split.
    """

    def __init__(self, root: Path):
        self.root = root
        self._by_name = collections.defaultdict(list)
        for path in list_images(root):
            self._by_name[path.name.lower()].append(path)

    def find(self, *names: str) -> Path:
        """Returns the image whose path agrees with most folders of a name. The first name with any match counts.

        Images whose names differ in case count if no name has a match of the same case.

        For an image that does not exist, it returns a path under the root, which is counted as missing later.

        Raises:
            UserError: two images fit equally.
            ValueError: a name leads out of the data set.
        """
        for same_case, name in itertools.product((True, False), names):
            parts = PurePosixPath(name.replace("\\", "/")).parts
            of_name = [path for path in self._of(parts) if not same_case or path.name == parts[-1]]
            fitting = {path: _agreeing(path.parts, parts) for path in of_name}
            best = [path for path, count in fitting.items() if count == max(fitting.values())]
            if len(best) > 1:
                problem = f"The image {name} may be {best[0]} or {best[1]}."
                raise UserError(None, problem, "Rename one, or move the other away.")
            if best:
                return best[0]
        return self.root / inside(names[-1].replace("\\", "/"))

    def _of(self, parts: Sequence[str]) -> list[Path]:
        """Returns the images with the last of some parts as their name, in any case."""
        return self._by_name.get(parts[-1].lower() if parts else "", [])

    def paths(self) -> list[Path]:
        """Returns the images below the root."""
        return [path for paths in self._by_name.values() for path in paths]

    def unused(self, used: set[Path]) -> list[Path]:
        """Returns the images that are not used."""
        return [path for path in self.paths() if path not in used]


def _agreeing(parts: Sequence[str], others: Sequence[str]) -> tuple[int, int]:
    """Counts how many of the last parts of two paths agree, whatever their case, and how many of these in case too."""
    pairs = list(zip(reversed(parts), reversed(others), strict=False))
    agreeing = list(itertools.takewhile(lambda pair: pair[0].lower() == pair[1].lower(), pairs))
    return len(agreeing), sum(one == other for one, other in agreeing)
