"""Lists the layouts of data (`data.kind`) in tables, one for each kind of contents. Does not load TensorFlow.

A new layout needs a file with its functions, and a line in the table of each kind of contents. Each layout names the
paths it would read, and `auto` takes the layout whose paths exist. A root that shows several layouts with different
paths is refused. If it shows none, `auto` takes the fallback of the table.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from dupr_tf.data.labels.spelling import on_disk
from dupr_tf.data.shards.index import is_shards, read_manifest
from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry

FIELD = "data.kind"
TFDS = "tfds:"
MOST_NAMED = 2  # files of a layout that an error names
# The 07+12 of transfer protocols: split -> (split of each year, folders of the years).
VOC_UNION = dict.fromkeys(("train", "trainval"), ("trainval", "VOC20[0-9][0-9]"))
VOC_UNION |= dict.fromkeys(("val", "test"), ("test", "VOC2007"))
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
# Possible names of photo folders under a root. Those that exist are used.
WHOLE_ROOT = (".",)
VOC_FOLDERS = ("JPEGImages",)
CITYSCAPES_FOLDERS = ("leftImg8bit",)
COCO_FOLDERS = ("images", "train2017", "unlabeled2017", "train2014", "JPEGImages")


def names_of(split: str) -> tuple[str, ...]:
    """Returns the names that tools give a split."""
    return SPLIT_NAMES.get(split, (split,))


def _listed_as(split: str) -> list[str]:
    """Returns the names of a split in file names. CVAT writes its subsets Train, Validation, Test and default."""
    names = names_of(split)
    return [*names, *map(str.capitalize, names), *(["default"] if split == "train" else [])]


def coco_files(root: Path, split: str) -> list[Path]:
    """Returns possible annotation files of a split, the plainest name first."""
    names = [f"{name}{year}" for name in _listed_as(split) for year in ("", "2017", "2014")]
    return [root / "annotations" / f"instances_{name}.json" for name in names]


def voc_lists(root: Path, split: str) -> list[Path]:
    """Returns the lists that make up a split of VOC, of one year or several; [] if there is no such split."""
    main = Path("ImageSets", "Main")
    lists = _first([root / main / f"{name}.txt" for name in _listed_as(split)])
    if lists or split not in VOC_UNION:
        return lists
    of_year, years = VOC_UNION[split]
    folders = sorted([*root.glob(years), *root.glob(f"VOCdevkit/{years}")])
    return [folder / main / f"{of_year}.txt" for folder in folders]


def check_tfds(root: str | Path) -> None:
    """Raises UserError if a root does not begin with `tfds:`."""
    if not str(root).startswith(TFDS):
        raise UserError(FIELD, f"Expected {TFDS}NAME as data of kind tfds, received {root}.", f"Pass {TFDS}NAME:train.")


def _table(kind: str, **layouts: Entry) -> Registry:
    return Registry(kind, FIELD, layouts)


def _layout(target: str, summary: str, shown=lambda root, split=None: [], **facts) -> Entry:
    """Makes a line of a table.

    Args:
        target: function or constant of the layout.
        summary: a line for `dupr-tf list`.
        shown: (root, split) -> the paths that make a root show the layout; [] if it does not.
        facts: further columns of the table. `fallback` marks the layout that is taken if the root shows none.
    """
    return Entry(f"dupr_tf.data.{target}", summary, facts={"shown": shown, **facts})


def _first(paths: Sequence[Path]) -> list[Path]:
    """Returns the first path that exists, in a list; [] if none does."""
    return [path for path in paths if path.exists()][:1]


def _photos(folders: Sequence[str], *beside: str):
    """Finds the photo folders of a layout, if all folders `beside` them exist."""

    def shown(root: Path, split: str | None = None) -> list[Path]:
        if not all((root / name).is_dir() for name in beside):
            return []
        return [root / name for name in folders if (root / name).is_dir()]

    return shown


def _cityscapes(root: Path, split: str | None = None) -> list[Path]:
    return _first([root / "gtFine"]) if (root / "leftImg8bit").is_dir() else []


def _finder(target: str):
    """Finds the files that a reader's function (root, split) -> paths returns."""

    def shown(root: Path, split: str | None = None) -> list[Path]:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(f"dupr_tf.data.labels.{module}"), name)(Path(root), split)

    return shown


def mask_folders(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Returns the existing pairs of an image folder and a mask folder of a split."""
    pairs = [(root / split / "images", root / split / "masks"), (root / "images" / split, root / "masks" / split)]
    return [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]


# Photos inside other files. Target: root -> the root as a run notes it, `ImageSource`.
# `check` raises what opening the root would, without TensorFlow.
SOURCES = _table(
    "source of photos",
    tfds=_layout(
        "tfds:open_tfds",
        "tfds:NAME, a data set of TensorFlow Datasets that is prepared on this machine",
        lambda root, split=None: [root] if str(root).startswith(TFDS) else [],
        check=check_tfds,
    ),
    shards=_layout(
        "shards.read:open_shards",
        "shards that `dupr-tf pack` wrote",
        lambda root, split=None: [root] if is_shards(root) else [],
        check=read_manifest,
    ),
)
# Photos that are files. Target: names of the folders they are in.
FOLDERS = _table(
    "layout of photos",
    cityscapes=_layout(
        "layouts:CITYSCAPES_FOLDERS", "Cityscapes: leftImg8bit/", _photos(CITYSCAPES_FOLDERS, "leftImg8bit")
    ),
    voc=_layout(
        "layouts:VOC_FOLDERS", "VOC: JPEGImages/ beside Annotations/", _photos(VOC_FOLDERS, "JPEGImages", "Annotations")
    ),
    coco=_layout(
        "layouts:COCO_FOLDERS",
        "COCO: images/, train2017/, … beside annotations/",
        _photos(COCO_FOLDERS, "annotations"),
    ),
    folder=_layout("layouts:WHOLE_ROOT", "a folder of photos, nested or flat", fallback=True),
    masks=_layout("layouts:WHOLE_ROOT", "every image below the root, but for folders of masks"),
)
# Target: (root, split, counts of what is odd, masks wanted) -> list of `ListedImage`, names of the classes.
BOXES = _table(
    "layout with boxes",
    coco=_layout(
        "labels.coco:read_coco",
        "COCO: annotations/instances_SPLIT.json beside a folder of images",
        lambda root, split: _first(coco_files(root, split)),
        masks=True,
    ),
    cityscapes=_layout(
        "labels.cityscapes:read_objects",
        "Cityscapes: leftImg8bit/ and gtFine/, objects of eight classes",
        _cityscapes,
        masks=True,
    ),
    roboflow=_layout(
        "labels.coco:read_roboflow",
        "Roboflow's COCO: SPLIT/_annotations.coco.json beside the images",
        _finder("coco:find_roboflow"),
        masks=True,
    ),
    fiftyone=_layout(
        "labels.coco:read_fiftyone",
        "FiftyOne's COCO: SPLIT/labels.json beside SPLIT/data/",
        _finder("coco:find_fiftyone"),
        masks=True,
    ),
    lvis=_layout(
        "labels.coco:read_lvis", "LVIS: lvis_v1_SPLIT.json with COCO's images", _finder("coco:find_lvis"), masks=True
    ),
    yolo=_layout(
        "labels.yolo:read_yolo",
        "YOLO: data.yaml, obj.data or classes.txt, with labels/ beside images/",
        _finder("yolo:find"),
        masks=True,
    ),
    cvat=_layout(
        "labels.cvat:read_cvat", "CVAT for images 1.1: annotations.xml and images", _finder("cvat:find"), masks=True
    ),
    labelme=_layout(
        "labels.labelme:read_labelme", "LabelMe: a JSON file for each image", _finder("labelme:find"), masks=True
    ),
    label_studio=_layout(
        "labels.label_studio:read_label_studio",
        "Label Studio's JSON export and the images",
        _finder("label_studio:find"),
        masks=True,
    ),
    openimages=_layout(
        "labels.openimages:read_openimages",
        "OpenImages: SPLIT-annotations-bbox.csv and the images",
        _finder("openimages:find"),
        masks=False,
    ),
    voc=_layout(
        "labels.voc:read_voc",
        "VOC: ImageSets/Main/SPLIT.txt, Annotations/ and JPEGImages/, of one year or of VOC2007 and VOC2012; or XML "
        "files without lists",
        _finder("voc:find"),
        fallback=True,
        masks=False,
    ),
)
# Target: (root, split, class names or None, ignored value or None, share without a mask) -> `SegmentedImages`.
PIXELS = _table(
    "layout with classes of pixels",
    cityscapes=_layout(
        "labels.cityscapes:read_classes",
        "Cityscapes: leftImg8bit/ and gtFine/, 19 classes",
        _cityscapes,
    ),
    masks=_layout(
        "labels.mask_folder:read_mask_folder",
        "SPLIT/images/ and SPLIT/masks/: 8-bit PNGs whose values are classes",
        lambda root, split: [masks for _, masks in mask_folders(root, split)],
        fallback=True,
    ),
)


def layout_of(table: Registry, root: str | Path, kind: str = "auto", split: str | None = None) -> str:
    """Returns the name of a root's layout: `kind`, or for "auto" the layout of a table that the root shows.

    If several layouts would read the same paths, the first one is taken.

    Raises:
        UserError: the table has no such layout, or the root shows several.
    """
    if kind != "auto":
        table.check(kind)
        return kind
    shown = {name: paths for name, entry in table.items() if (paths := entry.facts["shown"](root, split))}
    if not shown:
        return next(name for name, entry in table.items() if entry.facts.get("fallback"))
    (first, paths), *others = shown.items()
    for name, other in others:
        if not _same_paths(paths, other):
            raise UserError(
                FIELD,
                f"{root} shows two layouts: {first} ({_names(paths)}) and {name} ({_names(other)}).",
                f"Choose with data.kind: {first} or {name}; or pass one of the folders, or move the other away.",
            )
    return first


def split_folder(root: Path, split: str, years: Sequence[str], names: Sequence[str], file: Path) -> Path:
    """Finds the folder under a root that the image names of a split refer to: the most specific one with most images.

    Args:
        root: root of the data set.
        split: "train", …
        years: other names of the split, such as "train2017".
        names: relative paths of the first images.
        file: file that lists the images, for the error.

    Raises:
        UserError: no folder holds any of the images, or two equally specific folders do.
    """
    if not names:
        return root
    of_split = [place for name in dict.fromkeys((*years, split)) for place in (f"images/{name}", name)]
    ranks = (of_split, ["images", "JPEGImages"], ["."])
    held = {name: sum(on_disk(root / name / image).is_file() for image in names) for rank in ranks for name in rank}
    most = max(held.values())
    if not most:
        problem = f"The images of {file}, such as {names[0]}, are not in {', '.join(held)} under {root}."
        raise UserError(None, problem, "Move or link the folder of images there.")
    rank = next([name for name in rank if held[name] == most] for rank in ranks if max(held[n] for n in rank) == most)
    other = next((name for name in rank[1:] if not os.path.samefile(root / name, root / rank[0])), None)
    if other is not None:
        problem = f"{root / rank[0]} and {root / other} both have the images of {file}, such as {names[0]}."
        raise UserError(None, problem, "Keep the folder that the boxes were drawn on, and move the other away.")
    _refuse_spread(root, root / rank[0], names, file)
    return root / rank[0]


def _refuse_spread(root: Path, folder: Path, names: Sequence[str], file: Path) -> None:
    """Raises UserError if a second folder has images that the first lacks, and no image that the first has."""
    lacking = {name for name in names if not on_disk(folder / name).is_file()}
    for other in sorted(path for path in root.glob("*") if path.is_dir()) if lacking else ():
        present = {name for name in names if on_disk(other / name).is_file()}
        if present & lacking and not present - lacking:
            example = min(present & lacking)
            problem = (
                f"The images of {file} are in two folders: some in {folder}, others, such as {example}, in {other}."
            )
            raise UserError(None, problem, "Move them into one folder, or write the folders into file_name.")


def _same_paths(paths: Sequence[Path], others: Sequence[Path]) -> bool:
    """Returns True if two layouts read the same paths. Some file systems ignore case, as in Annotations."""
    return {os.stat(path).st_ino for path in paths} == {os.stat(path).st_ino for path in others}


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - MOST_NAMED:,} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(map(str, paths[:MOST_NAMED])) + more
