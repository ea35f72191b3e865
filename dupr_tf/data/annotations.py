"""COCO, VOC and Cityscapes annotations: one split of a data set, checked, as arrays.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy": here and in the detectors x comes first.
Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dupr_tf.data.entries import Entry, Object
from dupr_tf.data.formats import BOXES, layout_of
from dupr_tf.data.images.decode import upright_size
from dupr_tf.data.masks import mask_of_box, read_mask
from dupr_tf.errors import UserError
from dupr_tf.files import local_path

log = logging.getLogger(__name__)
NO_FILE, OTHER_SIZE = "images without a file", "images of another size than annotated, of those looked at"
DROPPED = ("boxes outside their image", "boxes without area", "boxes that are not finite")
UNMASKED = "boxes without a usable mask, ignored"


@dataclass(frozen=True)
class AnnotatedImages:
    """A split of a detection data set; N images, n_i boxes in image i.

    `ignored` marks VOC's `difficult`, COCO's `iscrowd`, Cityscapes' groups and their like: neither trained on nor
    counted. Masks are run lengths (see `masks`) of the whole image.
    """

    paths: tuple[str, ...]  # N
    sizes: np.ndarray  # (N, 2) int32, height and width as annotated
    boxes: tuple[np.ndarray, ...]  # N of (n_i, 4) float32, x1 y1 x2 y2 in px of the upright image
    labels: tuple[np.ndarray, ...]  # N of (n_i,) int32, positions in class_names
    ignored: tuple[np.ndarray, ...]  # N of (n_i,) bool
    areas: tuple[np.ndarray, ...]  # N of (n_i,) float32; COCO's own where given: it sorts small from large
    class_names: tuple[str, ...]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # {what was odd: how often}
    ids: tuple[str, ...] = ()  # N; COCO's image id, VOC's name, Cityscapes' city/name
    masks: tuple[list[bytes], ...] | None = None  # N of n_i; None: not asked for
    void: tuple[bytes, ...] | None = None  # N; Cityscapes: the pixels that are nothing, with its masks

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

    def taking(self, positions: Sequence[int]) -> AnnotatedImages:
        """Some of the images, in the order given; the classes stay."""
        columns = ("paths", "boxes", "labels", "ignored", "areas", "ids", "masks", "void")
        taken = {name: tuple(getattr(self, name)[i] for i in positions) for name in columns if getattr(self, name)}
        return dataclasses.replace(self, sizes=self.sizes[list(positions)], **taken)


def read_annotations(
    root: str | Path,
    split: str,
    kind: str = "auto",
    class_names: Sequence[str] | None = None,
    max_missing_share: float = 0.01,
    masks: bool = False,
) -> AnnotatedImages:
    """Reads one split of a data set, and tells in one line of the log what was odd in it, and how often.

    Args:
        root: COCO's (`annotations/instances_{split}.json` beside a folder of images), VOC's
            (`ImageSets/Main/{split}.txt`, `Annotations/*.xml`, `JPEGImages/`), of both years (`VOC2007/` and
            `VOC2012/`: train is trainval of both, val is test of 2007), or Cityscapes' (`leftImg8bit/`, `gtFine/`).
        split: "train" or "val" in the file names above; "train" also finds COCO's `instances_train2017.json`.
        kind: a name in `formats.BOXES`, or "auto": COCO where its file is, Cityscapes where its folder is, else VOC.
        class_names: the order of the classes, as of a trained detector; none: COCO's and Cityscapes' by id, VOC's by
            name.
        max_missing_share: share of the listed images that may be without a file; they are left out.
        masks: reads masks too. A box without a usable one is ignored then, its mask being the box.

    Raises:
        UserError: the data are wrong.
    """
    root = local_path(root)
    if not root.is_dir():
        raise UserError(None, f"{root} is not a folder.", "Pass the root of a COCO, VOC or Cityscapes data set.")
    counts: collections.Counter = collections.Counter()
    entries, names = BOXES.load(layout_of(BOXES, root, kind, split))(root, split, counts, masks)
    if not entries:
        raise UserError(None, f"The split {split!r} of {root} has no images.", "Choose another split or data set.")
    present = existing(entries, max_missing_share)
    counts[NO_FILE], counts[OTHER_SIZE] = len(entries) - len(present), _check_sizes(present)
    read = _assemble(present, names, class_names, masks, counts)
    log.info("%s: %s", split, read.summary())
    return read


def existing(entries: list[Entry], max_missing_share: float) -> list[Entry]:
    """The entries whose image is there.

    Raises:
        UserError: more than the given share are not.
    """
    found = [entry.path.is_file() for entry in entries]
    present = [entry for entry, there in zip(entries, found, strict=True) if there]
    missing = len(entries) - len(present)
    if missing > max_missing_share * len(entries):
        first = entries[found.index(False)].path
        raise UserError(
            "data.max_bad_share",
            f"{missing} of {len(entries)} listed images have no file, such as {first}; {max_missing_share:.0%} may be "
            "missing.",
            "Complete the folder, or raise data.max_bad_share.",
        )
    return present


def _check_sizes(entries: list[Entry], looks: int = 100) -> int:
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
        raise UserError(
            None,
            f"{len(wrong)} of {len(looked)} images have another size than in their annotations, such as "
            f"{wrong[0].path} ({height} x {width}, annotated {wrong[0].size[0]} x {wrong[0].size[1]}).",
            "Use the images the boxes were drawn on, or rescale or turn (EXIF) the boxes with them.",
        )
    return len(wrong)


def _assemble(
    entries: list[Entry],
    names: list[str],
    class_names: Sequence[str] | None,
    with_masks: bool,
    counts: collections.Counter,
) -> AnnotatedImages:
    class_names = tuple(names if class_names is None else class_names)
    _check_classes(class_names, {item.name for entry in entries for item in entry.objects})
    sizes = [entry.size if min(entry.size) > 0 else upright_size(entry.path) for entry in entries]
    index = {name: number for number, name in enumerate(class_names)}
    columns = [
        _columns(entry.objects, size, index, with_masks, counts) for entry, size in zip(entries, sizes, strict=True)
    ]
    boxes, labels, ignored, areas, masks = zip(*columns, strict=True)
    if with_masks and counts[UNMASKED] and counts[UNMASKED] == sum(map(len, boxes)):
        raise UserError(
            None,
            f"None of the {counts[UNMASKED]} boxes has a mask, such as those of {entries[0].path}.",
            "Use annotations with masks (COCO's segmentation, Cityscapes), or a detector without (detector.kind).",
        )
    counts["boxes ignored (crowd, difficult)"] += sum(int(flags.sum()) for flags in ignored)
    counts["images without boxes"] += sum(len(rows) == 0 for rows in boxes)
    void = tuple(entry.void for entry in entries)
    return AnnotatedImages(
        paths=tuple(str(entry.path) for entry in entries),
        sizes=np.array(sizes, np.int32),
        boxes=boxes,
        labels=labels,
        ignored=ignored,
        areas=areas,
        class_names=class_names,
        counts=dict(counts),
        ids=tuple(entry.id for entry in entries),
        masks=masks if with_masks else None,
        void=void if with_masks and None not in void else None,
    )


def _check_classes(class_names: tuple[str, ...], met: set[str]) -> None:
    unknown = sorted(met - set(class_names))
    if unknown:
        raise UserError(
            None,
            f"Expected boxes of the classes {', '.join(class_names)}, received {', '.join(unknown)}.",
            "Use data with the classes the detector was trained on.",
        )
    if not class_names or len(set(class_names)) < len(class_names):
        raise UserError(
            None,
            f"Expected classes with different names, received {', '.join(class_names) or 'none'}.",
            "Correct the annotations.",
        )


def _columns(
    objects: list[Object], size: tuple[int, int], index: dict[str, int], with_masks: bool, counts: collections.Counter
) -> tuple:
    """Boxes (n, 4), labels, flags, areas (n,) and n masks of an image; clipped, without those that have no area."""
    height, width = size
    table = np.array([item[1:5] for item in objects], np.float64).reshape(-1, 4)
    boxes = np.clip(table, 0, [width, height, width, height]).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    finite, has_area = np.isfinite(table).all(1), (table[:, 2:] > table[:, :2]).all(1)
    kept = finite & (sides > 0).all(1)
    for what, rows in zip(DROPPED, (finite & has_area & ~kept, finite & ~has_area, ~finite), strict=True):
        counts[what] += int(rows.sum())
    counts["boxes cut to their image by half a pixel or more"] += int((np.abs(boxes - table) > 0.5)[kept].any(1).sum())
    labels = np.array([index[item.name] for item in objects], np.int32)
    ignored = np.array([item.ignored for item in objects], bool)
    given = np.array([np.nan if item.area is None else item.area for item in objects], np.float32)
    areas = np.where(np.isfinite(given) & (given > 0), given, sides.prod(1)).astype(np.float32)
    masks = []
    for k in np.flatnonzero(kept) if with_masks else ():
        mask = read_mask(objects[k].segmentation, size, counts)
        counts[UNMASKED] += mask is None
        ignored[k] |= mask is None
        masks.append(mask or mask_of_box(boxes[k], size))
    return boxes[kept], labels[kept], ignored[kept], areas[kept], masks


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except ValueError:
        return None
