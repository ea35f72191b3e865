"""PASCAL VOC's layout: a list of names a split, one XML file an image; one year, or 2007 and 2012 side by side."""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from dupr_tf.data.entries import MISTAKES, Entry, Object, bounded, file_error, refuse_outside, side
from dupr_tf.data.formats import VOC_IMAGES
from dupr_tf.errors import UserError

MAX_VOC_BYTES = 16 << 20  # of one image
YEAR = re.compile(r"VOC20\d\d")
# What the transfer protocols call 07+12: split -> (split of each year, the only year, where there is one).
UNION = {"train": ("trainval", None), "trainval": ("trainval", None)}
UNION |= {"val": ("test", "VOC2007"), "test": ("test", "VOC2007")}


def photo_folders(root: Path) -> list[Path]:
    """The folder of photos of a root, in a list."""
    if not (root / VOC_IMAGES).is_dir():
        raise UserError("data.kind", f"{root} is no VOC root: it has no {VOC_IMAGES}/.", "Use folder.")
    return [root / VOC_IMAGES]


def read_voc(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[Entry], list[str]]:
    """The listed images with their objects, and the classes by name; `counts` gets what was odd."""
    parts = _parts(root, split)
    if not parts:
        raise UserError(
            None,
            f"{root} has no annotations/instances_{split}.json (COCO), no ImageSets/Main/{split}.txt (VOC; nor the "
            f"folders VOC2007 and VOC2012) and no gtFine/{split} (Cityscapes).",
            "Pass the root of a COCO, VOC or Cityscapes data set.",
        )
    entries, names = [], set()
    for listing, prefix in parts:
        listed = _names(listing)
        kept = list(dict.fromkeys(listed))
        counts["images listed twice, used once"] += len(listed) - len(kept)
        entries += [_entry(listing.parents[2], name, prefix) for name in kept]
    names = {item.name for entry in entries for item in entry.objects}
    for other in sorted({"train", "val"} - {split}):  # a class that only one split has still gets a number in both
        for listing, prefix in _parts(root, other, needed=False):
            if listing not in [path for path, _ in parts]:
                found = (_entry(listing.parents[2], name, prefix) for name in _names(listing))
                names |= {item.name for entry in found for item in entry.objects}
    return entries, sorted(names)


def _parts(root: Path, split: str, needed: bool = True) -> list[tuple[Path, str]]:
    """The lists that make up a split, each with what its images' ids begin with; none where there is no such set."""
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if listing.is_file():
        return [(listing, "")]
    years = [path for path in (root, root / "VOCdevkit") if path.is_dir()]
    years = sorted(path for folder in years for path in folder.iterdir() if YEAR.fullmatch(path.name) and path.is_dir())
    if not years or split not in UNION:
        return []
    of_year, only = UNION[split]
    lists = [year / "ImageSets" / "Main" / f"{of_year}.txt" for year in years if only in (None, year.name)]
    missing = [path for path in lists if not path.is_file()]
    if not needed:
        return [(path, f"{path.parents[2].name}/") for path in lists if path.is_file()]
    if missing or not lists:
        raise UserError(
            None,
            f"There is no {missing[0] if missing else f'{only} beside {years[0]}'}: of VOC 07+12, {split} is {of_year} "
            f"of {only or 'every year'}.",
            "Add it, or pass the root of one year.",
        )
    return [(path, f"{path.parents[2].name}/") for path in lists]


def _names(listing: Path) -> list[str]:
    try:
        lines = bounded(listing, MAX_VOC_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise file_error(error, "VOC", listing) from None
    names = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        refuse_outside(name, listing)
    return names


class _WithoutDoctype(ET.TreeBuilder):
    """Refuses a document type: VOC's files have none, and it is where entity bombs are declared."""

    def doctype(self, name, public_id, system_id):
        raise ValueError(f"it has a DOCTYPE ({name}), which is not allowed")


def _entry(root: Path, name: str, prefix: str) -> Entry:
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ET.fromstring(bounded(file, MAX_VOC_BYTES), ET.XMLParser(target=_WithoutDoctype()))
        objects = [_object(node) for node in tree.iter("object")]
        sides = {which: float(tree.findtext(f"size/{which}") or 0) for which in ("height", "width")}
    except FileNotFoundError:
        raise UserError(None, f"There is no {file}.", f"Add it, or take {name} off the list.") from None
    except (ET.ParseError, *MISTAKES) as error:
        raise file_error(error, "VOC", file) from None
    size = side(sides, "height"), side(sides, "width")
    return Entry(root / VOC_IMAGES / f"{name}.jpg", size, prefix + name, objects)


def _object(node: ET.Element) -> Object:
    x1, y1, x2, y2 = (float(node.findtext(f"bndbox/{which}")) for which in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and names the last one inside: (1, 1, w, h) is the whole image.
    difficult = bool(int(node.findtext("difficult") or 0))
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    return Object(name, x1 - 1, y1 - 1, x2, y2, None, difficult)
