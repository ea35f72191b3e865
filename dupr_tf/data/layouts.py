"""Layouts of data (`data.kind`): a line for each, by what is read from it. Loads no TensorFlow by itself.

A new layout is a file with its functions and a line in every table of what it holds. `auto` takes the first layout of a
table that the root shows, so the order of the lines counts.
"""

from __future__ import annotations

from pathlib import Path

from dupr_tf.data.shards.index import is_shards, read_manifest
from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry

FIELD = "data.kind"
TFDS = "tfds:"
# Folders of photos under a root. Those that exist are used.
WHOLE_ROOT = (".",)
VOC_FOLDERS = ("JPEGImages",)
COCO_FOLDERS = ("images", "train2017", "unlabeled2017", "train2014", "JPEGImages")


def coco_files(root: Path, split: str) -> list[Path]:
    """Possible files of annotations of a split, the plainest name first."""
    return [root / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017", "2014")]


def check_tfds(root: str | Path) -> None:
    """Raises UserError where a root does not begin with `tfds:`."""
    if not str(root).startswith(TFDS):
        raise UserError(FIELD, f"Expected {TFDS}NAME as data of kind tfds, received {root}.", f"Pass {TFDS}NAME:train.")


def _table(kind: str, **layouts: Entry) -> Registry:
    return Registry(kind, FIELD, layouts)


def _layout(target: str, summary: str, shown=lambda root, split=None: True, **facts) -> Entry:
    """A line of a table; `shown` says whether a root, or a split of it, has the layout."""
    return Entry(f"dupr_tf.data.{target}", summary, facts={"shown": shown, **facts})


def _has(*folders: str):
    return lambda root, split=None: all((root / name).is_dir() for name in folders)


def _has_coco_folders(root: Path, split: str | None = None) -> bool:
    return (root / "annotations").is_dir() and any((root / name).is_dir() for name in COCO_FOLDERS)


# Photos inside other files. Target: root -> the root as a run notes it, `ImageSource`.
# `check` raises what opening the root would, without TensorFlow.
SOURCES = _table(
    "source of photos",
    tfds=_layout(
        "tfds:open_tfds",
        "tfds:NAME, a data set of TensorFlow Datasets that is prepared on this machine",
        lambda root, split=None: str(root).startswith(TFDS),
        check=check_tfds,
    ),
    shards=_layout(
        "shards.read:open_shards",
        "shards that `dupr-tf pack` wrote",
        lambda root, split=None: is_shards(root),
        check=read_manifest,
    ),
)
# Photos that are files. Target: names of the folders they are in.
FOLDERS = _table(
    "layout of photos",
    voc=_layout("layouts:VOC_FOLDERS", "VOC: JPEGImages/ beside Annotations/", _has("JPEGImages", "Annotations")),
    coco=_layout("layouts:COCO_FOLDERS", "COCO: images/, train2017/, … beside annotations/", _has_coco_folders),
    folder=_layout("layouts:WHOLE_ROOT", "a folder of photos, nested or flat"),
    cityscapes=_layout("layouts:WHOLE_ROOT", "every image below the root"),
    masks=_layout("layouts:WHOLE_ROOT", "every image below the root"),
)
# Target: (root, split, counts of what is odd, masks wanted) -> list of `ListedImage`, names of the classes.
BOXES = _table(
    "layout with boxes",
    coco=_layout(
        "labels.coco:read_coco",
        "COCO: annotations/instances_SPLIT.json beside a folder of images",
        lambda root, split: any(path.is_file() for path in coco_files(root, split)),
        masks=True,
    ),
    cityscapes=_layout(
        "labels.cityscapes:read_objects",
        "Cityscapes: leftImg8bit/ and gtFine/, objects of eight classes",
        _has("gtFine", "leftImg8bit"),
        masks=True,
    ),
    voc=_layout(
        "labels.voc:read_voc",
        "VOC: ImageSets/Main/SPLIT.txt, Annotations/ and JPEGImages/, of one year or of VOC2007 and VOC2012",
        masks=False,
    ),
)
# Target: (root, split, class names or None, ignored value or None, share without a mask) -> `SegmentedImages`.
PIXELS = _table(
    "layout with classes of pixels",
    cityscapes=_layout(
        "labels.cityscapes:read_classes",
        "Cityscapes: leftImg8bit/ and gtFine/, 19 classes",
        _has("gtFine", "leftImg8bit"),
    ),
    masks=_layout(
        "labels.mask_folder:read_mask_folder", "SPLIT/images/ and SPLIT/masks/: 8-bit PNGs whose values are classes"
    ),
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
