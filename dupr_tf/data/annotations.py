"""COCO and VOC annotations: one split of a data set, checked, as arrays.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy": here and in the detectors x comes first.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class AnnotatedImages:
    """A split of a detection data set; N images, n_i boxes in image i.

    `ignored` marks VOC's `difficult`, COCO's `iscrowd` and their like: neither trained on nor counted.
    """

    paths: tuple[str, ...]  # N
    sizes: np.ndarray  # (N, 2) int32, height and width as annotated
    boxes: tuple[np.ndarray, ...]  # N of (n_i, 4) float32, x1 y1 x2 y2 in px of the image file
    labels: tuple[np.ndarray, ...]  # N of (n_i,) int32, positions in class_names
    ignored: tuple[np.ndarray, ...]  # N of (n_i,) bool
    areas: tuple[np.ndarray, ...]  # N of (n_i,) float32; COCO's own where given: it sorts small from large
    class_names: tuple[str, ...]
    dropped_boxes: int = 0  # without area, or outside the image
    missing_images: int = 0  # listed, but without a file

    def __len__(self) -> int:
        return len(self.paths)

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
    """Reads one split of a COCO or VOC data set.

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
    coco_file = next((path for path in _coco_files(root, split) if path.is_file()), None)
    if kind == "coco" or (kind == "auto" and coco_file):
        entries, names = _read_coco(root, split, coco_file)
    elif kind in ("auto", "voc"):
        entries, names = _read_voc(root, split)
    else:
        raise ValueError(f"Expected data.kind auto, coco or voc, received {kind!r}. Fix: --data.kind auto")
    if not entries:
        raise ValueError(f"Expected images in the split {split!r} of {root}, received none. Fix: another split or root")
    present = _existing(entries, max_missing_share)
    _check_sizes(present)
    return _assemble(present, names, class_names, missing_images=len(entries) - len(present))


def _coco_files(root: Path, split: str) -> list[Path]:
    return [root / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017", "2014")]


def _read_coco(root: Path, split: str, file: Path | None) -> tuple[list[_Entry], list[str]]:
    if file is None:
        raise ValueError(
            f"Expected {_coco_files(root, split)[0]}, received no such file. Fix: give the root of a COCO set"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        folder = _coco_folder(root, split, file, content["images"])
        entries = {
            image["id"]: _Entry(folder / image["file_name"], (image.get("height", 0), image.get("width", 0)), [])
            for image in content["images"]
        }
        for annotation in content["annotations"]:
            if annotation["category_id"] not in names or annotation["image_id"] not in entries:
                raise ValueError(
                    f"Expected annotations of listed images and categories, received category "
                    f"{annotation['category_id']} on image {annotation['image_id']}: {file}. Fix: the file"
                )
            entries[annotation["image_id"]].objects.append(_coco_object(annotation, names))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected COCO annotations, received {file}: {type(error).__name__} {error}. Fix: the file"
        ) from None
    return list(entries.values()), list(names.values())


def _coco_object(annotation: dict, names: dict[int, str]) -> tuple:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    ignored = any(annotation.get(flag) for flag in ("iscrowd", "ignore", "difficult"))
    name = names[annotation["category_id"]]
    return name, x, y, x + width, y + height, annotation.get("area"), ignored


def _coco_folder(root: Path, split: str, file: Path, images: list[dict]) -> Path:
    """The folder that holds the first listed images; sets differ in what they call it."""
    year_split = file.stem.removeprefix("instances_")
    names = ["images", f"images/{year_split}", f"images/{split}", "JPEGImages", year_split, split, "."]
    for image in images:
        name = PurePath(image["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"Expected file names inside the data set, received {name}: {file}. Fix: the file")
    for image in images[:100]:
        for name in names:
            if (root / name / image["file_name"]).is_file():
                return root / name
    if images:
        raise ValueError(
            f"Expected the images of {file.name} in one of {', '.join(names)} under {root}, "
            f"received no {images[0]['file_name']}. Fix: move or link the folder of images there"
        )
    return root


def _read_voc(root: Path, split: str) -> tuple[list[_Entry], list[str]]:
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise ValueError(
            f"Expected annotations/instances_{split}.json (COCO) or ImageSets/Main/{split}.txt (VOC) "
            f"under {root}, received neither. Fix: give the root of a COCO or VOC set"
        )
    entries = [_voc_entry(root, name) for name in _voc_names(listing)]
    classes = {item[0] for entry in entries for item in entry.objects}
    for other in ("train", "val"):  # a class that only one split has still gets a number in both
        path = listing.with_name(f"{other}.txt")
        if other != split and path.is_file():
            classes |= {item[0] for name in _voc_names(path) for item in _voc_entry(root, name).objects}
    return entries, sorted(classes)


def _voc_names(listing: Path) -> list[str]:
    return [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]


def _voc_entry(root: Path, name: str) -> _Entry:
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ET.parse(file).getroot()
        objects = [_voc_object(node) for node in tree.iter("object")]
        size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except FileNotFoundError:
        raise ValueError(f"Expected {file}, received no such file. Fix: add it, or take {name} off the list") from None
    except (ET.ParseError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected VOC annotations, received {file}: {error}. Fix: the file") from None
    return _Entry(root / "JPEGImages" / f"{name}.jpg", size, objects)


def _voc_object(node: ET.Element) -> tuple:
    x1, y1, x2, y2 = (float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and names the last one inside: (1, 1, w, h) is the whole image.
    difficult = bool(int(node.findtext("difficult") or 0))
    return node.findtext("name").strip(), x1 - 1, y1 - 1, x2, y2, None, difficult


def _existing(entries: list[_Entry], max_missing_share: float) -> list[_Entry]:
    present = [entry for entry in entries if entry.path.is_file()]
    missing = len(entries) - len(present)
    if missing > max_missing_share * len(entries):
        first = next(entry.path for entry in entries if not entry.path.is_file())
        raise ValueError(
            f"Expected a file for {1 - max_missing_share:.0%} of the {len(entries)} listed images or more, "
            f"received {missing} without one, such as {first}. "
            "Fix: complete the folder, or raise data.max_bad_share"
        )
    return present


def _check_sizes(entries: list[_Entry], looks: int = 100) -> None:
    """Looks at some of the files: boxes made for images of another size would quietly ruin a training."""
    looked = [entry for entry in entries[:: -(-len(entries) // looks)] if min(entry.size) > 0]
    # What cannot be read is named when it is met, with all the others.
    wrong = [entry for entry in looked if _size_or_none(entry.path) not in (None, tuple(entry.size))]
    if len(wrong) > 0.05 * len(looked):  # VOC and COCO have some such images each
        height, width = _file_size(wrong[0].path)
        raise ValueError(
            f"Expected images of the sizes in their annotations, received {len(wrong)} of another in {len(looked)}, "
            f"such as {wrong[0].path} ({height} x {width}, annotated {wrong[0].size[0]} x {wrong[0].size[1]}). "
            "Fix: the images the boxes were drawn on, or boxes rescaled with them"
        )


def _assemble(
    entries: list[_Entry], names: list[str], class_names: Sequence[str] | None, missing_images: int
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
    sizes = [entry.size if min(entry.size) > 0 else _file_size(entry.path) for entry in entries]
    index = {name: number for number, name in enumerate(class_names)}
    columns = [_columns(entry.objects, size, index) for entry, size in zip(entries, sizes, strict=True)]
    boxes, labels, ignored, areas = zip(*columns, strict=True)
    return AnnotatedImages(
        paths=tuple(str(entry.path) for entry in entries),
        sizes=np.array(sizes, np.int32),
        boxes=boxes,
        labels=labels,
        ignored=ignored,
        areas=areas,
        class_names=class_names,
        dropped_boxes=sum(len(entry.objects) for entry in entries) - sum(map(len, boxes)),
        missing_images=missing_images,
    )


def _columns(objects: list[tuple], size: tuple[int, int], index: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Boxes (n, 4), labels, flags and areas (n,) of an image; clipped, those without area left out."""
    height, width = size
    table = np.array([item[1:5] for item in objects], np.float64).reshape(-1, 4)
    boxes = np.clip(table, 0, [width, height, width, height]).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.isfinite(table).all(1) & (sides > 0).all(1)
    labels = np.array([index[item[0]] for item in objects], np.int32)
    ignored = np.array([item[6] for item in objects], bool)
    given = np.array([np.nan if item[5] is None else item[5] for item in objects], np.float32)
    areas = np.where(np.isnan(given), sides.prod(1), given).astype(np.float32)
    return boxes[kept], labels[kept], ignored[kept], areas[kept]


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return _file_size(path)
    except ValueError:
        return None


def _file_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise ValueError(f"Expected an image, received {path}: {error}. Fix: replace or unlist the file") from None
