"""Layouts of data (`data.kind`): a line for each, by what is read from it. Loads no TensorFlow by itself.

A new layout is a file with its functions and a line in every table of what it holds. `auto` takes the first layout of a
table that the root shows, so the order of the lines counts.
"""

from __future__ import annotations

from pathlib import Path

from dupr_tf.data.shards.manifest import is_shards, read_manifest
from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry

FIELD = "data.kind"
TFDS = "tfds:"
VOC_IMAGES = "JPEGImages"
COCO_IMAGES = ("images", "train2017", "unlabeled2017", "train2014", VOC_IMAGES)


# ---- how a root shows its layout: (root, split) -> bool ----


def is_tfds(root: str | Path, split: str | None = None) -> bool:
    return str(root).startswith(TFDS)


def is_packed(root: str | Path, split: str | None = None) -> bool:
    return is_shards(root)


def has_voc_photos(root: Path, split: str | None = None) -> bool:
    return (root / VOC_IMAGES).is_dir() and (root / "Annotations").is_dir()


def has_coco_photos(root: Path, split: str | None = None) -> bool:
    return (root / "annotations").is_dir() and any((root / name).is_dir() for name in COCO_IMAGES)


def has_coco_boxes(root: Path, split: str) -> bool:
    from dupr_tf.data.coco_files import coco_files

    return any(path.is_file() for path in coco_files(root, split))


def is_cityscapes(root: Path, split: str | None = None) -> bool:
    return (root / "gtFine").is_dir() and (root / "leftImg8bit").is_dir()


def is_anything(root: object, split: str | None = None) -> bool:
    return True


def check_tfds(root: str | Path) -> None:
    """Raises UserError where a root does not begin with `tfds:`."""
    if not is_tfds(root):
        raise UserError(FIELD, f"Expected {TFDS}NAME as data of kind tfds, received {root}.", f"Pass {TFDS}NAME:train.")


# ---- the tables ----

# Photos that are no files of their own. Target: root -> the root as a run notes it, `ImageSource`.
# `check` raises what opening the root would, without TensorFlow.
SOURCES = Registry(
    "source of photos",
    FIELD,
    {
        "tfds": Entry(
            "dupr_tf.data.tfds:open_tfds",
            "tfds:NAME, a data set of TensorFlow Datasets that is prepared on this machine",
            facts={"shown": is_tfds, "check": check_tfds},
        ),
        "shards": Entry(
            "dupr_tf.data.shards.read:open_shards",
            "shards that `dupr-tf pack` wrote",
            facts={"shown": is_packed, "check": read_manifest},
        ),
    },
)
# Photos that are files. Target: root -> the folders they are in.
FOLDERS = Registry(
    "layout of photos",
    FIELD,
    {
        "voc": Entry(
            "dupr_tf.data.voc_files:photo_folders",
            "VOC: JPEGImages/ beside Annotations/",
            facts={"shown": has_voc_photos},
        ),
        "coco": Entry(
            "dupr_tf.data.coco_files:photo_folders",
            "COCO: images/, train2017/, … beside annotations/",
            facts={"shown": has_coco_photos},
        ),
        "folder": Entry(
            "dupr_tf.data.images.listing:photo_folders",
            "a folder of photos, nested or flat",
            facts={"shown": is_anything},
        ),
        "cityscapes": Entry(
            "dupr_tf.data.images.listing:photo_folders", "every image below the root", facts={"shown": is_anything}
        ),
        "masks": Entry(
            "dupr_tf.data.images.listing:photo_folders", "every image below the root", facts={"shown": is_anything}
        ),
    },
)
# Target: (root, split, counts of what is odd, masks wanted) -> list of `entries.Entry`, names of the classes.
BOXES = Registry(
    "layout with boxes",
    FIELD,
    {
        "coco": Entry(
            "dupr_tf.data.coco_files:read_coco",
            "COCO: annotations/instances_SPLIT.json beside a folder of images",
            facts={"shown": has_coco_boxes, "masks": True},
        ),
        "cityscapes": Entry(
            "dupr_tf.data.cityscapes_files:read_cityscapes",
            "Cityscapes: leftImg8bit/ and gtFine/, objects of eight classes",
            facts={"shown": is_cityscapes, "masks": True},
        ),
        "voc": Entry(
            "dupr_tf.data.voc_files:read_voc",
            "VOC: ImageSets/Main/SPLIT.txt, Annotations/ and JPEGImages/, of one year or of VOC2007 and VOC2012",
            facts={"shown": is_anything, "masks": False},
        ),
    },
)
# Target: (root, split, class names or None, ignored value or None, share without a mask) -> `SegmentedImages`.
PIXELS = Registry(
    "layout with classes of pixels",
    FIELD,
    {
        "cityscapes": Entry(
            "dupr_tf.data.segments:read_cityscapes",
            "Cityscapes: leftImg8bit/ and gtFine/, 19 classes",
            facts={"shown": is_cityscapes},
        ),
        "masks": Entry(
            "dupr_tf.data.segments:read_masks",
            "SPLIT/images/ and SPLIT/masks/: 8-bit PNGs whose values are classes",
            facts={"shown": is_anything},
        ),
    },
)


def layout_of(table: Registry, root: str | Path, kind: str = "auto", split: str | None = None) -> str:
    """The name of a root's layout: `kind`, or for "auto" the first of a table that the root shows.

    Raises:
        UserError: the table has no such layout.
    """
    if kind == "auto":
        return next(name for name, entry in table.items() if entry.facts["shown"](root, split))
    table.check(kind)
    return kind


def contents_of(kind: str) -> tuple[str, ...]:
    """What a layout holds, of "photos", "boxes", "masks" and "classes of pixels"."""
    boxes = BOXES.get(kind)
    held = {
        "photos": kind in SOURCES or kind in FOLDERS,
        "boxes": boxes is not None,
        "masks": boxes is not None and boxes.facts["masks"],
        "classes of pixels": kind in PIXELS,
    }
    return tuple(name for name, there in held.items() if there)
