"""COCO and VOC annotations: one split of a data set, checked, as arrays.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy": here and in the detectors x comes first.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from dupr_tf.data.pillow_images import upright_size

log = logging.getLogger(__name__)
MAX_COCO_BYTES = 4 << 30  # read, it takes about six times as much memory; COCO's largest has 0.5 GB, LVIS's 1.2
MAX_VOC_BYTES = 16 << 20  # of one image
# What is wrong with the contents of a file, as Python finds it while they are read.
MISTAKES = (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)
NO_FILE, OTHER_SIZE = "images without a file", "images of another size than annotated, of those looked at"
DROPPED = ("boxes outside their image", "boxes without area", "boxes that are not finite")


@dataclass(frozen=True)
class AnnotatedImages:
    """A split of a detection data set; N images, n_i boxes in image i.

    `ignored` marks VOC's `difficult`, COCO's `iscrowd` and their like: neither trained on nor counted.
    """

    paths: tuple[str, ...]  # N
    sizes: np.ndarray  # (N, 2) int32, height and width as annotated
    boxes: tuple[np.ndarray, ...]  # N of (n_i, 4) float32, x1 y1 x2 y2 in px of the upright image
    labels: tuple[np.ndarray, ...]  # N of (n_i,) int32, positions in class_names
    ignored: tuple[np.ndarray, ...]  # N of (n_i,) bool
    areas: tuple[np.ndarray, ...]  # N of (n_i,) float32; COCO's own where given: it sorts small from large
    class_names: tuple[str, ...]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # {what was odd: how often}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def dropped_boxes(self) -> int:
        return sum(self.counts.get(what, 0) for what in DROPPED)

    @property
    def missing_images(self) -> int:
        return self.counts.get(NO_FILE, 0)

    def summary(self) -> str:
        """One line: images, boxes, and how often anything odd was met."""
        odd = [f"{count} {what}" for what, count in self.counts.items() if count]
        return "; ".join([f"{len(self)} images, {sum(map(len, self.boxes))} boxes", *odd])

    def with_boxes(self) -> list[int]:
        """Positions of the images that have something to learn from."""
        return [i for i, ignored in enumerate(self.ignored) if not ignored.all()]


@dataclass
class _Entry:
    """One listed image, as read: `objects` are (class name, x1, y1, x2, y2, area or None, ignored)."""

    path: Path
    size: tuple[int, int]
    objects: list[tuple[str, float, float, float, float, float | None, bool]]


def read_annotations(
    root: str | Path,
    split: str,
    kind: str = "auto",
    class_names: Sequence[str] | None = None,
    max_missing_share: float = 0.01,
) -> AnnotatedImages:
    """Reads one split of a COCO or VOC data set, and tells in one line of the log what was odd in it, and how often.

    Args:
        root: COCO's (`annotations/instances_{split}.json` beside a folder of images) or VOC's
            (`ImageSets/Main/{split}.txt`, `Annotations/*.xml`, `JPEGImages/`).
        split: "train" or "val" in the file names above; "train" also finds COCO's `instances_train2017.json`.
        kind: "coco", "voc", or "auto": COCO where its file is, else VOC.
        class_names: the order of the classes, as of a trained detector; none: COCO's by id, VOC's by name.
        max_missing_share: share of the listed images that may be without a file; they are left out.

    Raises:
        ValueError: one line that says what is wrong with the data and what to do.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"Expected a folder, received {root} (not one). Fix: give the root of a COCO or VOC set.")
    counts: collections.Counter = collections.Counter()
    coco_file = next((path for path in _coco_files(root, split) if path.is_file()), None)
    if kind == "coco" or (kind == "auto" and coco_file):
        entries, names = _read_coco(root, split, coco_file, counts)
    elif kind in ("auto", "voc"):
        entries, names = _read_voc(root, split, counts)
    else:
        raise ValueError(f"Expected data.kind auto, coco or voc, received {kind!r}. Fix: --data.kind auto")
    if not entries:
        raise ValueError(f"Expected images in the split {split!r} of {root}, received none. Fix: another split or root")
    present = _existing(entries, max_missing_share)
    counts[NO_FILE], counts[OTHER_SIZE] = len(entries) - len(present), _check_sizes(present)
    read = _assemble(present, names, class_names, counts)
    log.info("%s: %s", split, read.summary())
    return read


def _coco_files(root: Path, split: str) -> list[Path]:
    return [root / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017", "2014")]


def _read_coco(root: Path, split: str, file: Path | None, counts: collections.Counter) -> tuple:
    if file is None:
        raise ValueError(
            f"Expected {_coco_files(root, split)[0]}, received no such file. Fix: give the root of a COCO set"
        )
    try:
        content = json.loads(_bounded(file, MAX_COCO_BYTES))
        _refuse_repeated((c["id"] for c in content["categories"]), "category", file)
        _refuse_repeated((image["id"] for image in content["images"]), "image", file)
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        folder = _coco_folder(root, split, file, content["images"])
        entries = {
            image["id"]: _Entry(folder / image["file_name"], (_side(image, "height"), _side(image, "width")), [])
            for image in content["images"]
        }
        annotations = _without_repeated(content["annotations"], counts)
        _refuse_unlisted(annotations, names, entries, file)
        for annotation in annotations:
            entries[annotation["image_id"]].objects.append(_coco_object(annotation, names))
    except MISTAKES as error:
        raise _told(error, "COCO", file) from None
    return list(entries.values()), list(names.values())


def _bounded(file: Path, most: int) -> bytes:
    """The bytes of a file that is not too large to be read."""
    if file.stat().st_size > most:
        raise ValueError(
            f"Expected annotations of at most {most} bytes, received {file.stat().st_size}: {file}. Fix: split the file"
        )
    return file.read_bytes()


def _told(error: Exception, kind: str, file: Path) -> ValueError:
    """One line for what was met in a file; what is one already stays."""
    if str(error).startswith("Expected"):
        return error
    what = " ".join(f"{type(error).__name__} {error}".split())[:200]
    return ValueError(f"Expected {kind} annotations, received {file}: {what}. Fix: the file")


def _refuse_repeated(ids: Iterable, what: str, file: Path) -> None:
    repeated = [key for key, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Expected a {what} id once, received {len(repeated)} more than once, such as {repeated[0]}: {file}. "
            "Fix: the file; boxes cannot be told apart by it"
        )


def _refuse_unlisted(annotations: list[dict], names: dict, entries: dict, file: Path) -> None:
    odd = [a for a in annotations if a["category_id"] not in names or a["image_id"] not in entries]
    if odd:
        raise ValueError(
            f"Expected annotations of listed images and categories, received category {odd[0]['category_id']} on image "
            f"{odd[0]['image_id']} ({len(odd)} such in {len(annotations)}): {file}. Fix: the file"
        )


def _without_repeated(annotations: list[dict], counts: collections.Counter) -> list[dict]:
    """Leaves out an annotation that repeats an earlier one in id, image, class and box; ids alone mean nothing here."""
    seen, kept = set(), []
    for annotation in annotations:
        key = annotation.get("id"), annotation["image_id"], annotation["category_id"], str(annotation["bbox"])
        if key[0] is None or key not in seen:
            kept.append(annotation)
            seen.add(key)
    counts["annotations that repeat another, left out"] += len(annotations) - len(kept)
    return kept


def _side(image: dict, name: str) -> int:
    """Height or width of an image as annotated; 0, to be read from the file, where it is no number above 0."""
    value = image.get(name)
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0


def _coco_object(annotation: dict, names: dict[int, str]) -> tuple:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    ignored = any(annotation.get(flag) for flag in ("iscrowd", "ignore", "difficult"))
    area = annotation.get("area")
    return names[annotation["category_id"]], x, y, x + width, y + height, None if area is None else float(area), ignored


def _coco_folder(root: Path, split: str, file: Path, images: list[dict]) -> Path:
    """The folder that holds the first listed images; sets differ in what they call it."""
    year_split = file.stem.removeprefix("instances_")
    names = ["images", f"images/{year_split}", f"images/{split}", "JPEGImages", year_split, split, "."]
    for image in images:
        _refuse_outside(image["file_name"], file)
    for image in images[:100]:
        for name in names:
            if os.path.isfile(root / name / image["file_name"]):
                return root / name
    if images:
        raise ValueError(
            f"Expected the images of {file.name} in one of {', '.join(names)} under {root}, "
            f"received no {images[0]['file_name']}. Fix: move or link the folder of images there"
        )
    return root


def _refuse_outside(name: str, file: Path) -> None:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"Expected file names inside the data set, received {name}: {file}. Fix: the file")


def _read_voc(root: Path, split: str, counts: collections.Counter) -> tuple[list[_Entry], list[str]]:
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise ValueError(
            f"Expected annotations/instances_{split}.json (COCO) or ImageSets/Main/{split}.txt (VOC) "
            f"under {root}, received neither. Fix: give the root of a COCO or VOC set"
        )
    listed = _voc_names(listing)
    names = list(dict.fromkeys(listed))
    counts["images listed twice, used once"] += len(listed) - len(names)
    entries = [_voc_entry(root, name) for name in names]
    classes = {item[0] for entry in entries for item in entry.objects}
    for other in ("train", "val"):  # a class that only one split has still gets a number in both
        path = listing.with_name(f"{other}.txt")
        if other != split and path.is_file():
            classes |= {item[0] for name in _voc_names(path) for item in _voc_entry(root, name).objects}
    return entries, sorted(classes)


def _voc_names(listing: Path) -> list[str]:
    try:
        lines = _bounded(listing, MAX_VOC_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise _told(error, "VOC", listing) from None
    names = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        _refuse_outside(name, listing)
    return names


class _WithoutDoctype(ET.TreeBuilder):
    """Refuses a document type: VOC's files have none, and it is where entity bombs are declared."""

    def doctype(self, name, public_id, system_id):
        raise ValueError(f"a DOCTYPE ({name}), which annotations have no use for")


def _voc_entry(root: Path, name: str) -> _Entry:
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ET.fromstring(_bounded(file, MAX_VOC_BYTES), ET.XMLParser(target=_WithoutDoctype()))
        objects = [_voc_object(node) for node in tree.iter("object")]
        sides = {side: float(tree.findtext(f"size/{side}") or 0) for side in ("height", "width")}
    except FileNotFoundError:
        raise ValueError(f"Expected {file}, received no such file. Fix: add it, or take {name} off the list") from None
    except (ET.ParseError, *MISTAKES) as error:
        raise _told(error, "VOC", file) from None
    return _Entry(root / "JPEGImages" / f"{name}.jpg", (_side(sides, "height"), _side(sides, "width")), objects)


def _voc_object(node: ET.Element) -> tuple:
    x1, y1, x2, y2 = (float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and names the last one inside: (1, 1, w, h) is the whole image.
    difficult = bool(int(node.findtext("difficult") or 0))
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object without a name")
    return name, x1 - 1, y1 - 1, x2, y2, None, difficult


def _existing(entries: list[_Entry], max_missing_share: float) -> list[_Entry]:
    present = [entry for entry in entries if os.path.isfile(entry.path)]
    missing = len(entries) - len(present)
    if missing > max_missing_share * len(entries):
        first = next(entry.path for entry in entries if not os.path.isfile(entry.path))
        raise ValueError(
            f"Expected a file for {1 - max_missing_share:.0%} of the {len(entries)} listed images or more, "
            f"received {missing} without one, such as {first}. "
            "Fix: complete the folder, or raise data.max_bad_share"
        )
    return present


def _check_sizes(entries: list[_Entry], looks: int = 100) -> int:
    """Looks at some of the files: boxes made for images of another size would quietly ruin a training.

    Sizes are those of the upright images, as boxes are drawn on what people see.

    Returns:
        The number of those of another size, if they are few.
    """
    looked = [entry for entry in entries[:: -(-len(entries) // looks)] if min(entry.size) > 0]
    # What cannot be read is named when it is met, with all the others.
    wrong = [entry for entry in looked if _size_or_none(entry.path) not in (None, tuple(entry.size))]
    if len(wrong) > 0.05 * len(looked):  # VOC and COCO have some such images each
        height, width = upright_size(wrong[0].path)
        raise ValueError(
            f"Expected images of the sizes in their annotations, received {len(wrong)} of another in {len(looked)}, "
            f"such as {wrong[0].path} ({height} x {width}, annotated {wrong[0].size[0]} x {wrong[0].size[1]}). "
            "Fix: the images the boxes were drawn on, or boxes rescaled or turned (EXIF) with them"
        )
    return len(wrong)


def _assemble(
    entries: list[_Entry], names: list[str], class_names: Sequence[str] | None, counts: collections.Counter
) -> AnnotatedImages:
    class_names = tuple(names if class_names is None else class_names)
    unknown = sorted({item[0] for entry in entries for item in entry.objects} - set(class_names))
    if unknown:
        raise ValueError(
            f"Expected boxes of the classes {', '.join(class_names)}, received {', '.join(unknown)}. "
            "Fix: data with the classes the detector was trained on"
        )
    if not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(
            f"Expected classes, each by a name of its own, received {', '.join(class_names) or 'none'}. "
            "Fix: the annotations"
        )
    sizes = [entry.size if min(entry.size) > 0 else upright_size(entry.path) for entry in entries]
    index = {name: number for number, name in enumerate(class_names)}
    columns = [_columns(entry.objects, size, index, counts) for entry, size in zip(entries, sizes, strict=True)]
    boxes, labels, ignored, areas = zip(*columns, strict=True)
    counts["boxes ignored (crowd, difficult)"] += sum(int(flags.sum()) for flags in ignored)
    counts["images without boxes"] += sum(len(rows) == 0 for rows in boxes)
    return AnnotatedImages(
        paths=tuple(str(entry.path) for entry in entries),
        sizes=np.array(sizes, np.int32),
        boxes=boxes,
        labels=labels,
        ignored=ignored,
        areas=areas,
        class_names=class_names,
        counts=dict(counts),
    )


def _columns(
    objects: list[tuple], size: tuple[int, int], index: dict[str, int], counts: collections.Counter
) -> tuple[np.ndarray, ...]:
    """Boxes (n, 4), labels, flags and areas (n,) of an image; clipped, those without area left out and counted."""
    height, width = size
    table = np.array([item[1:5] for item in objects], np.float64).reshape(-1, 4)
    boxes = np.clip(table, 0, [width, height, width, height]).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    finite, has_area = np.isfinite(table).all(1), (table[:, 2:] > table[:, :2]).all(1)
    kept = finite & (sides > 0).all(1)
    for what, rows in zip(DROPPED, (finite & has_area & ~kept, finite & ~has_area, ~finite), strict=True):
        counts[what] += int(rows.sum())
    counts["boxes cut to their image by half a pixel or more"] += int((np.abs(boxes - table) > 0.5)[kept].any(1).sum())
    labels = np.array([index[item[0]] for item in objects], np.int32)
    ignored = np.array([item[6] for item in objects], bool)
    given = np.array([np.nan if item[5] is None else item[5] for item in objects], np.float32)
    areas = np.where(np.isfinite(given) & (given > 0), given, sides.prod(1)).astype(np.float32)
    return boxes[kept], labels[kept], ignored[kept], areas[kept]


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except ValueError:
        return None
