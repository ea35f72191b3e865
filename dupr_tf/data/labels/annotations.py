"""Reads one split of a data set with boxes, and perhaps masks of objects, into checked arrays.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy". Here and in the detectors x comes first.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dupr_tf.data.labels.run_lengths import mask_of_box, read_mask
from dupr_tf.data.labels.split import Split, check_classes, log, look_at_files, open_root, refuse_many
from dupr_tf.data.layouts import BOXES
from dupr_tf.errors import UserError

NO_FILE = "images without a file that can be read"
OTHER_SIZE = "images of another size than annotated, whose own size is used"
MERGED = "images of a file that is listed before under another id, merged"
MAX_OTHER_SIZE = 0.05  # share of the images
DROPPED = ("boxes outside their image", "boxes without area", "boxes that are not finite")
UNMASKED = "boxes without a usable mask, ignored"


class Object(NamedTuple):
    """Holds an object as annotated, not yet checked."""

    name: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, px of the upright image
    area: float | None = None
    ignored: bool = False
    segmentation: Any = None  # COCO's polygons or RLE as in its file; bytes: RLE counts, checked


@dataclass
class ListedImage:
    """Holds an image as listed by a reader. `size` is height and width; 0 means that the annotations have no size."""

    path: Path
    size: tuple[int, int]
    id: str
    objects: list[Object] = field(default_factory=list)
    void: bytes | None = None  # Cityscapes: RLE counts of the void pixels
    shares: bool = False  # whether objects are still in shares of the width and height, because the size is unknown


@dataclass(frozen=True)
class AnnotatedImages(Split):
    """A split of a detection data set; N images, n_i boxes in image i.

    `ignored` marks VOC's `difficult`, COCO's `iscrowd`, Cityscapes' groups and similar flags. Such boxes are neither
    trained on nor counted. Masks are run lengths (see `run_lengths`) of the whole image.
    """

    columns: ClassVar = ("paths", "boxes", "labels", "ignored", "areas", "ids", "masks", "void", "bare")

    paths: tuple[str, ...]  # N
    sizes: np.ndarray  # (N, 2) int32, height and width as annotated
    boxes: tuple[np.ndarray, ...]  # N of (n_i, 4) float32, x1 y1 x2 y2 in px of the upright image
    labels: tuple[np.ndarray, ...]  # N of (n_i,) int32, positions in class_names
    ignored: tuple[np.ndarray, ...]  # N of (n_i,) bool
    areas: tuple[
        np.ndarray, ...
    ]  # N of (n_i,) float32; COCO's own if given; it decides what is a small or large object
    class_names: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)  # {what was odd: how often}
    ids: tuple[str, ...] = ()  # N; COCO's image id, VOC's name, Cityscapes' city/name
    masks: tuple[list[bytes], ...] | None = None  # N of n_i; None: masks were not read
    void: tuple[bytes, ...] | None = None  # N; Cityscapes: the void pixels, if masks are read
    bare: tuple[bool, ...] = ()  # N; whether no object is annotated at all, not even one that was left out
    background: bool = False  # whether bare images are trained on

    def labels_text(self) -> str:
        return f"{sum(map(len, self.boxes))} boxes"

    def with_boxes(self) -> list[int]:
        """Returns the positions of the images that have a box that counts."""
        return [i for i, ignored in enumerate(self.ignored) if not ignored.all()]

    def trained_on(self) -> list[int]:
        """Returns the positions of the images to train on. With `background`, these include bare images."""
        if not self.background:
            return self.with_boxes()
        return sorted({*self.with_boxes(), *np.flatnonzero(self.bare).tolist()})


def read_annotations(
    root: str | Path,
    split: str,
    kind: str = "auto",
    class_names: Sequence[str] | None = None,
    max_missing_share: float = 0.01,
    masks: bool = False,
) -> AnnotatedImages:
    """Reads one split of a data set. One line of the log counts what was odd in it.

    Args:
        root: root of a data set in one of `layouts.BOXES` (docs/labels.md).
        split: "train" or "val". Other spellings, such as `valid` and `train2017`, are recognised.
        kind: a name in `layouts.BOXES`. "auto" detects the layout of the root.
        class_names: the order of the classes, such as that of a trained detector. None sorts COCO's and Cityscapes' by
            id, VOC's by name.
        max_missing_share: share of the listed images whose file may be missing. These images are left out.
        masks: whether to read masks. A box without a usable mask is then ignored, and its mask is the box.

    Raises:
        UserError: the data are wrong.
    """
    counts: collections.Counter = collections.Counter()
    images, names = list_objects(root, split, kind, max_missing_share, masks, counts)
    if class_names is not None and (unknown := sorted(set(names) - set(class_names))):
        counts[f"classes that only this split lists ({', '.join(unknown)[:200]})"] += len(unknown)
    class_names = tuple(names if class_names is None else class_names)
    check_classes(class_names, (item.name for image in images for item in image.objects))
    read = _assemble(images, class_names, masks, counts)
    log.info("%s: %s", split, read.summary())
    return read


def list_objects(
    root: str | Path, split: str, kind: str, max_missing_share: float, masks: bool, counts: collections.Counter
) -> tuple[list[ListedImage], list[str]]:
    """Lists the images of a split that have a file, with their objects in pixels as annotated, and the classes.

    Args:
        root, split, kind, max_missing_share, masks: as in `read_annotations`.
        counts: receives counts of what was odd.
    """
    root, reader = open_root(BOXES, root, split, kind)
    listed, names = reader(root, split, counts, masks)
    if not listed:
        raise UserError(None, f"The split {split!r} of {root} has no images.", "Choose another split or data set.")
    return _usable(listed, max_missing_share, counts), names


def _usable(listed: list[ListedImage], max_missing_share: float, counts: collections.Counter) -> list[ListedImage]:
    """Returns the images that have a file, each file once, with the sizes in their headers.

    Sizes are those of the upright images, because people draw boxes on upright images.

    Raises:
        UserError: too many images have no file, or another size than annotated.
    """
    files: dict = {}
    missing, wrong = [], []
    for image, facts in zip(listed, look_at_files([image.path for image in listed]), strict=True):
        if facts is None or not (all(facts.size) or all(image.size)):
            missing.append(image.path)
            continue
        if all(facts.size):
            if all(image.size) and image.size != facts.size:
                wrong.append((image, image.size))
            image.size = facts.size
        if image.shares:
            image.objects, image.shares = [in_pixels(item, image.size) for item in image.objects], False
        files.setdefault(facts.identity, []).append(image)
    refuse_many(missing, len(listed), max_missing_share, "have no file that can be read")
    _refuse_other_sizes(wrong, len(listed))
    counts[NO_FILE], counts[OTHER_SIZE], counts[MERGED] = (
        len(missing),
        len(wrong),
        len(listed) - len(missing) - len(files),
    )
    return [_merged(same, counts) for same in files.values()]


def in_pixels(item: Object, size: tuple[int, int]) -> Object:
    """Converts an object from shares of an image to pixels. `size` is the image's height and width."""
    height, width = size
    box = tuple((np.array(item.box) * [width, height, width, height]).tolist())
    outlines = item.segmentation
    if outlines is not None:
        outlines = [(np.reshape(part, (-1, 2)) * [width, height]).ravel().tolist() for part in outlines]
    area = None if item.area is None else item.area * height * width
    return item._replace(box=box, area=area, segmentation=outlines)


def _merged(same: list[ListedImage], counts: collections.Counter) -> ListedImage:
    """Merges images of one file that is listed under several ids: the first, with the objects of all, each once."""
    first = same[0]
    for other in same[1:]:
        known = {item[:2] for item in first.objects}  # name and box
        new = [item for item in other.objects if item[:2] not in known]
        counts["boxes that repeat another of their image, left out"] += len(other.objects) - len(new)
        first.objects += new
    return first


def _refuse_other_sizes(wrong: list[tuple[ListedImage, tuple[int, int]]], total: int) -> None:
    """Raises UserError if many images have another size than annotated, since their boxes would not fit the pixels.

    VOC and COCO each have some such images. Masks stored as run lengths fit no other size.
    """
    packed = any(isinstance(item.segmentation, bytes) for image, _ in wrong for item in image.objects)
    if len(wrong) > (0 if packed else MAX_OTHER_SIZE) * total:
        image, (height, width) = wrong[0]
        raise UserError(
            None,
            f"{len(wrong)} of {total} images have another size than in their annotations, such as {image.path} "
            f"({image.size[0]} x {image.size[1]}, annotated {height} x {width}).",
            "Use the images the boxes were drawn on, or rescale or turn (EXIF) the boxes with them.",
        )


def _assemble(
    images: list[ListedImage], class_names: tuple[str, ...], with_masks: bool, counts: collections.Counter
) -> AnnotatedImages:
    sizes = [image.size for image in images]
    index = {name: number for number, name in enumerate(class_names)}
    rows = [_arrays(image.objects, size, index, with_masks, counts) for image, size in zip(images, sizes, strict=True)]
    boxes, labels, ignored, areas, masks = zip(*rows, strict=True)
    if with_masks and counts[UNMASKED] and counts[UNMASKED] == sum(map(len, boxes)):
        raise UserError(
            None,
            f"None of the {counts[UNMASKED]} boxes has a mask, such as those of {images[0].path}.",
            "Use annotations with masks (COCO's segmentation, Cityscapes), or a detector without (detector.kind).",
        )
    counts["boxes ignored (crowd, difficult)"] += sum(int(flags.sum()) for flags in ignored)
    counts["images without boxes"] += sum(len(of_image) == 0 for of_image in boxes)
    paths, ids, void = zip(*((str(image.path), image.id, image.void) for image in images), strict=True)
    bare = tuple(not image.objects for image in images)
    sizes = np.array(sizes, np.int32)
    read = AnnotatedImages(paths, sizes, boxes, labels, ignored, areas, class_names, counts, ids, bare=bare)
    return dataclasses.replace(read, masks=masks, void=None if None in void else void) if with_masks else read


def _arrays(
    objects: list[Object], size: tuple[int, int], index: dict[str, int], with_masks: bool, counts: collections.Counter
) -> tuple:
    """Returns boxes (n, 4), labels, flags, areas (n,) and n masks of an image, clipped and without empty boxes."""
    height, width = size
    table = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    boxes = np.clip(table, 0, [width, height, width, height]).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    finite, has_area = np.isfinite(table).all(1), (table[:, 2:] > table[:, :2]).all(1)
    kept = finite & (sides > 0).all(1)
    for what, dropped in zip(DROPPED, (finite & has_area & ~kept, finite & ~has_area, ~finite), strict=True):
        counts[what] += int(dropped.sum())
    counts["boxes cut to their image by half a pixel or more"] += int((np.abs(boxes - table) > 0.5)[kept].any(1).sum())
    labels = np.array([index[item.name] for item in objects], np.int32)
    ignored = np.array([item.ignored for item in objects], bool)
    stated = np.array([np.nan if item.area is None else item.area for item in objects], np.float32)
    areas = np.where(np.isfinite(stated) & (stated > 0), stated, sides.prod(1)).astype(np.float32)
    masks = []
    for k in np.flatnonzero(kept) if with_masks else ():
        mask = read_mask(objects[k].segmentation, size, counts)
        counts[UNMASKED] += mask is None
        ignored[k] |= mask is None
        masks.append(mask or mask_of_box(boxes[k], size))
    return boxes[kept], labels[kept], ignored[kept], areas[kept], masks
