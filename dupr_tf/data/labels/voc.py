"""Reads PASCAL VOC: an XML file for each image, and a list of names for each split.

2007 and 2012 may be side by side. Without lists, a folder named after a split is the split, or the whole root is train.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from dupr_tf.data.images.listing import EXTENSIONS, is_hidden
from dupr_tf.data.labels.annotations import ListedImage, Object, class_names_of
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHERS, ImageIndex, part_of, recognised, unlabelled
from dupr_tf.data.labels.split import MissingSplit, at, inside, log, reading, size_of
from dupr_tf.data.layouts import voc_lists
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.text import escape
from dupr_tf.values import read_flag, read_name, read_text

MAX_VOC_BYTES = 16 << 20  # limit for the file of one image
FOLDERS = ("JPEGImages", "Annotations")
EXTRA_BOXES = "boxes beside the first one of an object, each read as an object"
UNLABELLED = "images without an XML file, left out"


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the lists of a split. In a root without lists, finds its XML files."""
    lists = [path for path in voc_lists(root, split or "train") if path.is_file()]
    return lists or _unlisted(root, split or "train")[1]


def _unlisted(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Returns the folder and the XML files of a split. There are none if the root has lists."""
    if (root / "ImageSets").is_dir() or voc_lists(root, "trainval") or voc_lists(root, "val"):
        return root, []
    return part_of(root, split, _xml_files)


def _xml_files(folder: Path) -> list[Path]:
    found = ([*folder.glob(pattern)] for pattern in ("*.xml", "[Aa]nnotations/*.xml"))
    return next((files for paths in found if (files := recognised(paths, _is_voc))), [])


def _is_voc(head: str) -> bool:
    return re.search(r"<annotation[\s>]", head) is not None


def read_voc(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the listed images with their objects, and the classes by name. `counts` receives what was odd."""
    lists = voc_lists(root, split)
    if not lists and _unlisted(root, split)[1]:
        return _read_unlisted(root, split, counts)
    if not lists:
        raise MissingSplit(
            None,
            f"{root} has no ImageSets/Main/{split}.txt, and no XML files of a split {split}.",
            "Add them, or pass another root or split.",
        )
    images = []
    for listing in lists:
        listed, pictures = _names(listing), _pictures(listing.parents[2] / "JPEGImages")
        kept = dict.fromkeys(listed)
        counts["images listed twice, used once"] += len(listed) - len(kept)
        images += [_listed(listing, root, name, pictures, counts) for name in kept]
    # A class that only one split has still has a number in both.
    others = {path for other in ("train", "val") for path in voc_lists(root, other) if path.is_file()} - set(lists)
    unused = Counts()
    met = images + [_listed(listing, root, name, {}, unused) for listing in others for name in _names(listing)]
    return images, sorted(class_names_of(met))


def _read_unlisted(root: Path, split: str, counts: Counts) -> tuple[list[ListedImage], list[str]]:
    """Reads a split of a root without lists: the images of a folder that have an XML file."""
    folder, files = _unlisted(root, split)
    _log_unlisted(folder, split)
    index = ImageIndex(folder)
    pictures = _by_stem(index.paths())
    images = _images(files, root, folder, pictures, counts)
    others = [file for other in {"train", "val"} - {split} for file in _unlisted(root, other)[1]]
    met = images + _images(others, root, folder, {}, Counts())
    return images + unlabelled(index, images, UNLABELLED, counts, ".xml"), sorted(class_names_of(met))


@functools.cache
def _log_unlisted(folder: Path, split: str) -> None:
    """Logs once which images a split without a list has."""
    log.info("%s: no ImageSets/Main, so that all its images with an XML file are %s", escape(str(folder)), split)


def _images(files: list[Path], root: Path, folder: Path, pictures: dict, counts) -> list[ListedImage]:
    """Reads the files that are VOC's. An image has the name of its file, or the one that the file states."""
    images = []
    for file in files:
        tree = _parse(file)
        if tree.tag != "annotation":
            counts.note(OTHERS, file)
            continue
        stated = PureWindowsPath(tree.findtext("filename") or "").stem
        candidates = pictures.get(file.stem) or pictures.get(stated) or [folder / f"{file.stem}.jpg"]
        key = file.relative_to(root).with_suffix("").as_posix()
        images.append(_image(file, tree, key, candidates, counts))
    return images


def _names(listing: Path) -> list[str]:
    with reading(listing, "VOC list"):
        lines = read_text(read_bounded(listing, MAX_VOC_BYTES)).splitlines()
        return [_name_of(line.split()[0], listing.parents[2] / "Annotations") for line in lines if line.strip()]


def _name_of(listed: str, annotations: Path) -> str:
    """Returns the name of an image in a list. Some tools write its ending too, or its folder."""
    name = PurePosixPath(inside(listed))
    endings, folders = (*EXTENSIONS, ".xml"), [at for at, part in enumerate(name.parts[:-1]) if part in FOLDERS]
    if (name.suffix.lower() in endings or folders) and not (annotations / f"{name}.xml").is_file():
        name = PurePosixPath(*name.parts[folders[-1] + 1 :]) if folders else name
        name = name.with_suffix("") if name.suffix.lower() in endings else name
    return str(name)


class WithoutDoctype(ET.TreeBuilder):
    """Refuses a document type. VOC's files have none, and entity bombs are declared there."""

    def doctype(self, name, public_id, system_id):
        raise ValueError(f"it has a DOCTYPE ({name}), which is not allowed")


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of a folder by their names without endings."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else ()
    return _by_stem(path for path in paths if path.suffix.lower() in EXTENSIONS and not is_hidden(path.name))


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    pictures = collections.defaultdict(list)
    for path in paths:
        pictures[path.stem].append(path)
    return pictures


def _listed(listing: Path, root: Path, name: str, pictures: dict[str, list[Path]], counts) -> ListedImage:
    """Returns the image of a name in a list. `counts` receives what is odd in its file."""
    year = listing.parents[2]
    file = year / "Annotations" / f"{name}.xml"
    tree = _parse(file)
    if tree.tag != "annotation":
        problem = f"{file} is no VOC annotation: its first element is {escape(tree.tag)[:60]}."
        raise UserError(None, problem, "Correct the file.")
    candidates = pictures.get(name) or [year / "JPEGImages" / f"{name}.jpg"]
    return _image(file, tree, ("" if year == root else f"{year.name}/") + name, candidates, counts)


def _parse(file: Path) -> ET.Element:
    with reading(file, "VOC annotations"):
        return ET.fromstring(read_bounded(file, MAX_VOC_BYTES), ET.XMLParser(target=WithoutDoctype()))


def _image(file: Path, tree: ET.Element, key: str, candidates: list[Path], counts) -> ListedImage:
    """Returns the image of a file: of several candidates, the one that the file names."""
    with reading(file, "VOC annotations"):
        objects = [_objects(node, f"object {number}") for number, node in enumerate(tree.iter("object"), 1)]
        sides = {which: float(tree.findtext(f"size/{which}") or 0) for which in ("height", "width")}
        filename = PureWindowsPath((tree.findtext("filename") or "").strip()).name
    counts[EXTRA_BOXES] += sum(len(o) - 1 for o in objects)
    named = [path for path in candidates if path.name == filename] or candidates
    if len(named) > 1:
        names = " and ".join(map(str, named))
        raise UserError(
            None, f"{file} can belong to one image only, but {names} have its name.", "Remove or rename one."
        )
    return ListedImage(named[0], size_of(sides), key, list(itertools.chain(*objects)), labels=file)


def _objects(node: ET.Element, place: str) -> list[Object]:
    """Returns the objects of a node, one for each of its boxes. In VOC's own files a node has one box."""
    with at(place):
        return _boxes(node, place)


def _boxes(node: ET.Element, place: str) -> list[Object]:
    name, ignored = read_name(node.findtext("name") or ""), read_flag(node.findtext("difficult"))
    boxes = node.findall("bndbox")
    if not boxes:
        raise ValueError(f"it ({name}) has no bndbox")
    objects = []
    for box in boxes:
        x1, y1, x2, y2 = (float(box.findtext(which)) for which in ("xmin", "ymin", "xmax", "ymax"))
        # VOC counts pixels from 1 and includes the last one: (1, 1, w, h) is the whole image.
        objects.append(Object(name, (x1 - 1, y1 - 1, x2, y2), ignored=ignored, place=place))
    return objects
