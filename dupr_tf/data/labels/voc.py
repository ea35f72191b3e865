"""Reads PASCAL VOC: a list of names for each split, an XML file for each image. 2007 and 2012 may be side by side."""

from __future__ import annotations

import collections
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

from dupr_tf.data.images.listing import EXTENSIONS, is_hidden
from dupr_tf.data.labels.annotations import ListedImage, Object
from dupr_tf.data.labels.split import MissingSplit, inside, reading, size_of
from dupr_tf.data.layouts import voc_lists
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.values import read_flag, read_name, read_text

MAX_VOC_BYTES = 16 << 20  # limit for the file of one image
EXTRA_BOXES = "boxes beside the first one of an object, each read as an object"


def read_voc(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the listed images with their objects, and the classes by name. `counts` receives what was odd."""
    lists = voc_lists(root, split)
    if not lists:
        raise MissingSplit(
            None,
            f"{root} has no labels of a split {split} in a layout of `dupr-tf list boxes`, such as "
            f"annotations/instances_{split}.json, ImageSets/Main/{split}.txt or data.yaml.",
            "Pass the root of a labelled data set (docs/labels.md).",
        )
    images = []
    for listing in lists:
        listed, pictures = _names(listing), _pictures(listing.parents[2] / "JPEGImages")
        kept = dict.fromkeys(listed)
        counts["images listed twice, used once"] += len(listed) - len(kept)
        images += [_image(listing, root, name, pictures, counts) for name in kept]
    # A class that only one split has still has a number in both.
    others = {path for other in ("train", "val") for path in voc_lists(root, other) if path.is_file()} - set(lists)
    unused = collections.Counter()
    met = images + [_image(listing, root, name, {}, unused) for listing in others for name in _names(listing)]
    return images, sorted({item.name for image in met for item in image.objects})


def _names(listing: Path) -> list[str]:
    with reading(listing, "VOC list"):
        lines = read_text(read_bounded(listing, MAX_VOC_BYTES)).splitlines()
        return [inside(line.split()[0]) for line in lines if line.strip()]


class WithoutDoctype(ET.TreeBuilder):
    """Refuses a document type. VOC's files have none, and entity bombs are declared there."""

    def doctype(self, name, public_id, system_id):
        raise ValueError(f"it has a DOCTYPE ({name}), which is not allowed")


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of a folder by their names without endings."""
    pictures = collections.defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in EXTENSIONS and not is_hidden(path.name):
            pictures[path.stem].append(path)
    return pictures


def _image(listing: Path, root: Path, name: str, pictures: dict[str, list[Path]], counts) -> ListedImage:
    """Returns the image of a name in a list. `counts` receives what is odd in its file."""
    year = listing.parents[2]
    file = year / "Annotations" / f"{name}.xml"
    with reading(file, "VOC annotations"):
        tree = ET.fromstring(read_bounded(file, MAX_VOC_BYTES), ET.XMLParser(target=WithoutDoctype()))
        objects = [_objects(node) for node in tree.iter("object")]
        sides = {which: float(tree.findtext(f"size/{which}") or 0) for which in ("height", "width")}
        filename = (tree.findtext("filename") or "").strip()
    counts[EXTRA_BOXES] += sum(len(o) - 1 for o in objects)
    candidates = pictures.get(name) or [year / "JPEGImages" / f"{name}.jpg"]
    named = [path for path in candidates if path.name == filename] or candidates
    if len(named) > 1:
        names = " and ".join(map(str, named))
        raise UserError(
            None, f"{file} can belong to one image only, but {names} have its name.", "Remove or rename one."
        )
    prefix = "" if year == root else f"{year.name}/"
    return ListedImage(named[0], size_of(sides), prefix + name, list(itertools.chain(*objects)))


def _objects(node: ET.Element) -> list[Object]:
    """Returns the objects of a node, one for each of its boxes. In VOC's own files a node has one box."""
    name, ignored = read_name(node.findtext("name") or ""), read_flag(node.findtext("difficult"))
    boxes = node.findall("bndbox")
    if not boxes:
        raise ValueError(f"an object ({name}) has no bndbox")
    objects = []
    for box in boxes:
        x1, y1, x2, y2 = (float(box.findtext(which)) for which in ("xmin", "ymin", "xmax", "ymax"))
        # VOC counts pixels from 1 and includes the last one: (1, 1, w, h) is the whole image.
        objects.append(Object(name, (x1 - 1, y1 - 1, x2, y2), ignored=ignored))
    return objects
