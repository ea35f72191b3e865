"""Semantic segmentation: which images there are, and which class every pixel is of. Nothing here imports TensorFlow.

Two layouts: folders of images and of masks (8-bit PNG whose values are classes), and Cityscapes.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dupr_tf.data.cityscapes_files import SEMANTIC_IDS, SEMANTIC_NAMES, cityscapes_scenes, label_ids
from dupr_tf.data.formats import PIXELS, layout_of
from dupr_tf.data.images.decode import upright_size
from dupr_tf.data.segment_classes import IGNORED, class_table
from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.text import one_line

log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class SegmentedImages:
    """A split of a segmentation data set; N images."""

    paths: tuple[str, ...]  # N
    segment_paths: tuple[str, ...]  # N; of Cityscapes, the beginning of the names
    sizes: np.ndarray  # (N, 2) int32, height and width
    ids: tuple[str, ...]  # N
    class_names: tuple[str, ...]
    table: np.ndarray  # (256,) uint8, the class of every value in a file; 255 is ignored
    kind: str  # a name in `formats.PIXELS`
    read_values: Callable[[Path], np.ndarray]  # of a segment path: (H, W) integers
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # {what was odd: how often}

    def __len__(self) -> int:
        return len(self.paths)

    def summary(self) -> str:
        """One line: images, classes, and how often anything odd was met."""
        odd = [f"{count} {what}" for what, count in self.counts.items() if count]
        return "; ".join([f"{len(self)} images, {len(self.class_names)} classes", *odd])

    def taking(self, positions: Sequence[int]) -> SegmentedImages:
        """Some of the images, in the order given."""
        columns = ("paths", "segment_paths", "ids")
        taken = {name: tuple(getattr(self, name)[i] for i in positions) for name in columns}
        return dataclasses.replace(self, sizes=self.sizes[list(positions)], **taken)

    def truth(self, index: int) -> np.ndarray:
        """(H, W) uint8: the class of every pixel of an image, 255 where it is ignored.

        Raises:
            UserError: the file cannot be read, or is of another size than the image.
        """
        path = Path(self.segment_paths[index])
        values = self.read_values(path)
        if values.shape != tuple(self.sizes[index]):
            raise UserError(
                None,
                f"{path} has {values.shape[0]} x {values.shape[1]} pixels, where its image has "
                f"{self.sizes[index][0]} x {self.sizes[index][1]}.",
                f"Correct the mask of {self.paths[index]}.",
            )
        return self.table[np.clip(values, 0, 255)]

    def unreadable_segments(self) -> dict[str, str]:
        """{path: reason} of the masks that cannot be used; slow."""
        reasons = {}
        for index, path in enumerate(self.segment_paths):
            try:
                self.truth(index)
            except UserError as error:
                reasons[path] = error.problem
        return reasons


def read_segments(
    root: str | Path,
    split: str,
    kind: str = "auto",
    class_names: Sequence[str] | None = None,
    ignore_value: int | None = None,
    max_missing_share: float = 0.01,
) -> SegmentedImages:
    """Lists one split, and tells in one line of the log what was odd in it, and how often.

    Args:
        root: of `{split}/images` and `{split}/masks` (or `images/{split}` and `masks/{split}`), a mask having its
            image's name and `.png`; or of Cityscapes.
        split: "train", "val", …
        kind: a name in `formats.PIXELS`, or "auto": Cityscapes where its folders are, else masks.
        class_names: the order of the classes, as of a trained detector; in a folder of masks without `classes.txt`
            they name the values 0, 1, … (see `class_table`).
        ignore_value: of a mask, beside 255: pixels that are no class.
        max_missing_share: share of the images that may be without a usable mask; they are left out.

    Raises:
        UserError: the data are wrong.
    """
    root = local_path(root)
    if not root.is_dir():
        raise UserError(None, f"{root} is not a folder.", "Pass the root of images and masks, or of Cityscapes.")
    reader = PIXELS.load(layout_of(PIXELS, root, kind, split))
    read = reader(root, split, class_names, ignore_value, max_missing_share)
    log.info("%s: %s", split, read.summary())
    return read


def read_values(path: Path) -> np.ndarray:
    """(H, W) integers of a mask, as stored: a palette's indices, not its colours.

    Raises:
        UserError: it is no PNG of one channel of 8 bits.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=["PNG"]) as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(f"its pixels have mode {image.mode}, where a mask has one channel of 8 bits")
            return np.asarray(image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = one_line(error, 200).rstrip(".")
        raise UserError(None, f"{path} is no mask (8-bit PNG): {reason}.", "Replace the file.") from None


def read_cityscapes(root, split, class_names, ignore_value, max_missing_share) -> SegmentedImages:
    """Lists a split of Cityscapes, with its 19 classes; see `read_segments`."""
    names = tuple(class_names or SEMANTIC_NAMES)
    unknown = sorted(set(SEMANTIC_NAMES) - set(names))
    if unknown:
        raise UserError(
            "data.class_names",
            f"Expected the classes {', '.join(names)}, received Cityscapes, which also has {', '.join(unknown)}.",
            "Use data with the classes the detector was trained on.",
        )
    table = np.full(256, IGNORED, np.uint8)
    for number, name in zip(SEMANTIC_IDS, SEMANTIC_NAMES, strict=True):
        table[number] = names.index(name)
    paths, truths, ids = zip(*cityscapes_scenes(root, split), strict=True)
    sizes = np.array([upright_size(path) for path in paths], np.int32)
    paths, truths = tuple(map(str, paths)), tuple(map(str, truths))
    return SegmentedImages(paths, truths, sizes, ids, names, table, "cityscapes", label_ids)


def read_masks(root, split, class_names, ignore_value, max_missing_share) -> SegmentedImages:
    """Lists a split of folders of images and masks; see `read_segments`."""
    pairs = mask_pairs(root, split)
    with ThreadPoolExecutor() as pool:
        looked = list(pool.map(lambda pair: _look(*pair), pairs))
    counts: collections.Counter = collections.Counter(reason for reason, *_ in looked if reason)
    usable = [pair for pair, (reason, *_) in zip(pairs, looked, strict=True) if not reason]
    if len(pairs) - len(usable) > max_missing_share * len(pairs):
        first = next(detail for reason, detail, _ in looked if reason)
        raise UserError(
            "data.max_bad_share",
            f"{len(pairs) - len(usable)} of {len(pairs)} images have no usable mask, where {max_missing_share:.0%} may "
            f"have none; the first is {first}.",
            "Complete the folder, or raise data.max_bad_share.",
        )
    met = {pair[1]: values for pair, (reason, _, values) in zip(pairs, looked, strict=True) if not reason}
    names, table = class_table(root, split, met, class_names, ignore_value, values_of_split)
    return SegmentedImages(
        paths=tuple(str(image) for image, _ in usable),
        segment_paths=tuple(str(mask) for _, mask in usable),
        sizes=np.array([size for reason, size, _ in looked if not reason], np.int32),
        ids=tuple(image.name for image, _ in usable),
        class_names=names,
        table=table,
        kind="masks",
        read_values=read_values,
        counts=dict(counts),
    )


def mask_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """The images of a split and where their masks should be, by name; [] where there is no such split."""
    for images, masks in ((f"{split}/images", f"{split}/masks"), (f"images/{split}", f"masks/{split}")):
        if (root / images).is_dir() and (root / masks).is_dir():
            files = sorted(path for path in (root / images).iterdir() if path.suffix.lower() in SUFFIXES)
            if files:
                return [(path, root / masks / f"{path.stem}.png") for path in files]
    raise UserError(
        None,
        f"{root} has no images in {split}/images and masks in {split}/masks (nor images/{split} and masks/{split}, nor "
        "Cityscapes' leftImg8bit and gtFine).",
        "Pass the root of such a data set.",
    )


def values_of_split(root: Path, split: str) -> set[int]:
    """Every value of the masks of another split; none where there is no such split or a mask cannot be read."""
    try:
        pairs = mask_pairs(root, split)
    except UserError:
        return set()
    with ThreadPoolExecutor() as pool:
        return set().union(*(values for reason, _, values in pool.map(lambda pair: _look(*pair), pairs) if not reason))


def _look(image: Path, mask: Path) -> tuple[str, object, set[int]]:
    """("", size, values) of a mask, or what is wrong with it, where, and no values."""
    if not mask.is_file():
        return "images without a mask", image, set()
    try:
        values, size = read_values(mask), upright_size(image)
    except UserError as error:
        return "images or masks that cannot be read", error.problem.rstrip("."), set()
    if values.shape != size:
        what = f"{mask} ({values.shape[0]} x {values.shape[1]}, its image {size[0]} x {size[1]})"
        return "masks of another size than their image", what, set()
    return "", size, set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
