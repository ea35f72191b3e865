"""Reads one split of a data set with boxes, and perhaps masks of objects, into checked arrays.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy". Here and in the detectors x comes first.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dupr_tf.data.labels.class_names import warn_of_similar_classes
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.run_lengths import mask_of_box, read_mask
from dupr_tf.data.labels.spelling import on_disk
from dupr_tf.data.labels.split import FileFacts, Split, check_classes, log, look_at_files, open_root, refuse_faults
from dupr_tf.data.layouts import BOXES
from dupr_tf.errors import UserError
from dupr_tf.text import escape

NO_FILE = "images without a file that can be read"
OTHER_SIZE = "images of another size than annotated, whose own size is used"
MERGED = "images of a file that is listed before under another id, merged"
MAX_OTHER_SIZE = 0.05  # share of the images
DROPPED = ("boxes outside their image", "boxes without area", "boxes that are not finite")
CUT = "boxes cut to their image by half a pixel or more"
MOSTLY_OUTSIDE = "boxes of which more than half lies outside their image, cut to it"
UNKNOWN = "objects of unknown classes"
BAD_MASK = "masks without a pixel or that cannot be read"
UNMASKED = "boxes without a usable mask, ignored"


class Object(NamedTuple):
    """Holds an object as annotated, not yet checked."""

    name: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, px of the upright image
    area: float | None = None
    ignored: bool = False
    segmentation: Any = None  # COCO's polygons or RLE as in its file; bytes: RLE counts, checked
    fault: str = ""  # what is wrong; such an object is left out
    unread: str = ""  # the kind of shape, if that is not read
    place: str = ""  # in the label file, such as "line 3"


@dataclass
class ListedImage:
    """Holds an image as listed by a reader. `size` is height and width; 0 means that the annotations have no size."""

    path: Path
    size: tuple[int, int]
    id: str
    objects: list[Object] = field(default_factory=list)
    void: bytes | None = None  # Cityscapes: RLE counts of the void pixels
    shares: bool = False  # whether objects are still in shares of the width and height, because the size is unknown
    fault: str = ""  # what is wrong; such an image is left out
    bare: bool = False  # whether no object is annotated at all, not even one that was left out
    labels: Path | None = None  # the file with its objects

    def where(self, item: Object) -> str:
        """Returns where an object is annotated."""
        return f"{item.place} of {self.labels}" if item.place else f"an object of {self.path}"


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
    max_bad_share: float = 0.01,
    masks: bool = False,
) -> AnnotatedImages:
    """Reads one split of a data set. One line of the log counts what was odd in it.

    Args:
        root: root of a data set in one of `layouts.BOXES` (docs/labels.md).
        split: "train" or "val". Other spellings, such as `valid` and `train2017`, are recognised.
        kind: a name in `layouts.BOXES`. "auto" detects the layout of the root.
        class_names: the order of the classes, such as that of a trained detector. None sorts COCO's and Cityscapes' by
            id, VOC's by name.
        max_bad_share: share of the images, of the objects, and of the masks that may be unusable. They are left out.
        masks: whether to read masks. A box without a usable mask is then ignored, and its mask is the box.

    Raises:
        UserError: the data are wrong.
    """
    counts = Counts()
    images, names = list_objects(root, split, kind, max_bad_share, masks, counts, class_names)
    read = _assemble(images, tuple(names), max_bad_share if masks else None, counts)
    log.info("%s: %s", split, read.summary())
    return read


def list_objects(
    root: str | Path,
    split: str,
    kind: str,
    max_bad_share: float,
    masks: bool,
    counts: Counts,
    class_names: Sequence[str] | None = None,
) -> tuple[list[ListedImage], Sequence[str]]:
    """Lists the images of a split that can be used, with the objects that can be used in pixels, and the classes.

    Args:
        root, split, kind, max_bad_share, masks, class_names: as in `read_annotations`.
        counts: receives counts of what was odd.
    """
    root, reader = open_root(BOXES, root, split, kind)
    listed, names = reader(root, split, counts, masks)
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        problem = f"{root} lists several classes of the name {escape(twice[0])}, which would count as one."
        raise UserError(None, problem, "Give each class another name, or list it once.")
    if not listed:
        raise UserError(None, f"The split {split!r} of {root} has no images.", "Choose another split or data set.")
    if class_names is not None:
        count_class_differences(names, class_names, counts)
        names = class_names
    images = _usable_images(listed, max_bad_share, counts)
    _keep_usable_objects(images, names, max_bad_share, counts)
    _warn_of_boxes_outside(split, counts)
    warn_of_similar_classes(split, collections.Counter(item.name for image in images for item in image.objects))
    check_classes(names, ())
    return images, names


def class_names_of(images: Iterable[ListedImage]) -> set[str]:
    """Returns the classes of the objects that can be used."""
    return {item.name for image in images for item in image.objects if not (item.fault or item.unread)}


def count_class_differences(names: Sequence[str], expected: Sequence[str], counts: Counts) -> None:
    """Counts the classes that only a split lists, and those of the first split or the detector that it does not list.

    Such classes alone are no fault. Their objects are, if the class is unknown.
    """
    for what, one, other in (("only this split lists", names, expected), ("this split does not list", expected, names)):
        if different := sorted(set(one) - set(other)):
            counts[f"classes that {what} ({_listed(different)})"] += len(different)


def _listed(names: Iterable[str]) -> str:
    return escape(", ".join(names)[:200])


def _usable_images(listed: list[ListedImage], max_bad_share: float, counts: Counts) -> list[ListedImage]:
    """Returns the images that can be used, each file once, with the sizes in their headers.

    Sizes are those of the upright images, because people draw boxes on upright images.

    Raises:
        UserError: too many images have no file, labels in another format, or another size than annotated.
    """
    files: dict = {}
    faults, wrong = [], []
    for image, facts in zip(listed, _facts_of(listed), strict=True):
        if facts is None or not (all(facts.size) or all(image.size)):
            image.fault = NO_FILE
        if image.fault:
            faults.append((image.fault, image.path))
            continue
        if all(facts.size):
            if all(image.size) and image.size != facts.size:
                counts.note(OTHER_SIZE, image.path)
                wrong.append((image, image.size))
            image.size = facts.size
        if image.shares:
            image.objects, image.shares = [in_pixels(item, image.size) for item in image.objects], False
        files.setdefault(facts.identity, []).append(image)
    refuse_faults("images", faults, len(listed), max_bad_share, counts)
    _refuse_other_sizes(wrong, len(listed))
    counts[MERGED] = len(listed) - len(faults) - len(files)
    return [_merged(same, counts) for same in files.values()]


def _facts_of(listed: list[ListedImage]) -> list[FileFacts | None]:
    """Returns facts about the file of each image. A path that differs from its file's in case alone is corrected."""
    facts = look_at_files([image.path for image in listed])
    for number, image in enumerate(listed):
        if facts[number] is None and (found := on_disk(image.path)) != image.path:
            image.path, facts[number] = found, look_at_files([found])[0]
    return facts


def _keep_usable_objects(images: list[ListedImage], names: Sequence[str], max_share: float, counts: Counts) -> None:
    """Leaves out the objects that cannot be used, and cuts boxes to their image.

    Raises:
        UserError: too many objects cannot be used.
    """
    owners = [image for image in images for _ in image.objects]
    items = [item for image in images for item in image.objects]
    for image in images:
        image.bare, image.objects = not image.objects, []
    unknown = {item.name for item in items if not (item.fault or item.unread)} - set(names)
    of_unknown = f"{UNKNOWN} ({_listed(sorted(unknown))}; known are {_listed(names)}), left out"
    boxes, box_faults, cuts = _cut(items, [image.size for image in owners])
    faults, read = [], 0
    for image, item, box, box_fault, cut in zip(owners, items, boxes.tolist(), box_faults, cuts, strict=True):
        if item.unread:
            counts.note(f"{item.unread}, not read", image.where(item))
            continue
        if cut:
            counts.note(cut, image.where(item))
        read += 1
        if fault := item.fault or (of_unknown if item.name in unknown else box_fault):
            faults.append((fault, image.where(item)))
        else:
            image.objects.append(item._replace(box=tuple(box)))
    refuse_faults("objects", faults, read, max_share, counts)


def _cut(items: list[Object], sizes: list[tuple[int, int]]) -> tuple[np.ndarray, list[str], list[str]]:
    """Cuts the boxes of objects to their images; returns them, (n, 4), what is wrong with each, and how it was cut."""
    table = np.array([item.box for item in items], np.float64).reshape(-1, 4)
    boxes = np.clip(table, 0, np.array(sizes, np.float64).reshape(-1, 2)[:, [1, 0, 1, 0]])
    finite, has_area = np.isfinite(table).all(1), (table[:, 2:] > table[:, :2]).all(1)
    inside = (np.diff(boxes.astype(np.float32).reshape(-1, 2, 2), axis=1) > 0).all((1, 2))
    faults = np.select([~finite, ~has_area, ~inside], [DROPPED[2], DROPPED[1], DROPPED[0]], "").tolist()
    moved = (np.abs(boxes - table) > 0.5).any(1) & finite & has_area & inside
    with np.errstate(all="ignore"):
        shown = ((boxes[:, 2:] - boxes[:, :2]) / (table[:, 2:] - table[:, :2])).prod(1)
    return boxes, faults, np.select([moved & (shown < 0.5), moved], [MOSTLY_OUTSIDE, CUT], "").tolist()


def _warn_of_boxes_outside(split: str, counts: Counts) -> None:
    """Warns of boxes that lie mostly outside of their image: their numbers are probably wrong."""
    if counts[MOSTLY_OUTSIDE]:
        text = f"{counts[MOSTLY_OUTSIDE]} {MOSTLY_OUTSIDE}, such as {counts.examples[MOSTLY_OUTSIDE]}"
        log.warning("%s: %s. Check whether their coordinates fit their image.", split, text)


def in_pixels(item: Object, size: tuple[int, int]) -> Object:
    """Converts an object from shares of an image to pixels. `size` is the image's height and width."""
    height, width = size
    box = tuple((np.array(item.box) * [width, height, width, height]).tolist())
    outlines = item.segmentation
    if outlines is not None:
        outlines = [(np.reshape(part, (-1, 2)) * [width, height]).ravel().tolist() for part in outlines]
    area = None if item.area is None else item.area * height * width
    return item._replace(box=box, area=area, segmentation=outlines)


def _merged(same: list[ListedImage], counts: Counts) -> ListedImage:
    """Merges images of one file that is listed under several ids: the first, with the objects of all, each once."""
    first = same[0]
    known = {item[:2] for item in first.objects}  # name and box
    for other in same[1:]:
        new = [item for item in other.objects if item[:2] not in known]
        counts["boxes that repeat another of their image, left out"] += len(other.objects) - len(new)
        first.objects += new
        known.update(item[:2] for item in new)
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
    images: list[ListedImage], class_names: tuple[str, ...], max_bad_masks: float | None, counts: Counts
) -> AnnotatedImages:
    """Returns the split as arrays. `max_bad_masks` is the share of masks that may be wrong; None reads no masks."""
    index, with_masks = {name: number for number, name in enumerate(class_names)}, max_bad_masks is not None
    masks = _read_masks(images, max_bad_masks, counts) if with_masks else [[] for _ in images]
    rows = [_arrays(image.objects, index) for image in images]
    boxes, labels, ignored, areas = zip(*rows, strict=True)
    if with_masks and counts[UNMASKED] and counts[UNMASKED] == sum(map(len, boxes)):
        raise UserError(
            None,
            f"None of the {counts[UNMASKED]} boxes has a mask, such as those of {images[0].path}.",
            "Use annotations with masks (COCO's segmentation, Cityscapes), or a detector without (detector.kind).",
        )
    counts["boxes ignored (crowd, difficult)"] += sum(int(flags.sum()) for flags in ignored)
    counts["images without boxes"] += sum(len(of_image) == 0 for of_image in boxes)
    paths, ids, void = zip(*((str(image.path), image.id, image.void) for image in images), strict=True)
    bare = tuple(image.bare for image in images)
    sizes = np.array([image.size for image in images], np.int32)
    read = AnnotatedImages(paths, sizes, boxes, labels, ignored, areas, class_names, counts, ids, bare=bare)
    return dataclasses.replace(read, masks=tuple(masks), void=None if None in void else void) if with_masks else read


def _read_masks(images: list[ListedImage], max_share: float, counts: Counts) -> list[list[bytes]]:
    """Returns the masks of each image's objects. An object without a usable mask is ignored, and its mask is the box.

    Raises:
        UserError: too many of the masks in the labels cannot be used.
    """
    faults, given, masks = [], 0, []
    for image in images:
        read = [read_mask(item.segmentation, image.size, counts) for item in image.objects]
        annotated = [bool(item.segmentation) for item in image.objects]
        faults += [
            (BAD_MASK, image.where(item))
            for item, mask, is_given in zip(image.objects, read, annotated, strict=True)
            if mask is None and is_given
        ]
        given += sum(annotated)
        counts[UNMASKED] += read.count(None)
        pairs = list(zip(image.objects, read, strict=True))
        masks.append([mask or mask_of_box(np.float32(item.box), image.size) for item, mask in pairs])
        image.objects = [item._replace(ignored=item.ignored or mask is None) for item, mask in pairs]
    refuse_faults("masks", faults, given, max_share, counts)
    return masks


def _arrays(objects: list[Object], index: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Returns boxes (n, 4), labels, flags and areas (n,) of an image."""
    boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
    labels = np.array([index[item.name] for item in objects], np.int32)
    ignored = np.array([item.ignored for item in objects], bool)
    stated = np.array([np.nan if item.area is None else item.area for item in objects], np.float32)
    usable = np.isfinite(stated) & (stated > 0)
    return boxes, labels, ignored, np.where(usable, stated, (boxes[:, 2:] - boxes[:, :2]).prod(1)).astype(np.float32)
