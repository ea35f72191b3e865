"""Reads folders of images and of masks: 8-bit PNGs whose values are classes.

A file `classes.txt` in the root names the values. A line is a name (of the value 0, 1, …) or a value and a name. Pixels
called `ignore`, `void` or `unlabelled` have no class. Empty lines and lines that begin with `#` are skipped. Without
the file, the given class names belong to the values 0, 1, … If all names are numbers, they belong to these values.
Without file and names, every value in the masks of the split, "train" and "val" is a class.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dupr_tf.data.images.decode import upright_size
from dupr_tf.data.images.listing import EXTENSIONS, list_images
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.segments import IGNORED, SegmentedImages, class_table
from dupr_tf.data.labels.spelling import on_disk
from dupr_tf.data.labels.split import MissingSplit, log, read_png, reading, refuse_faults
from dupr_tf.data.layouts import mask_folders
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.resources import usable_cpus
from dupr_tf.values import read_text

IGNORED_NAMES = ("ignore", "ignored", "void", "unlabelled", "unlabeled")
NO_MASK = "images without a mask"
RENAMED = "images whose mask has another name"
OTHER_ENDING = "images whose mask is no PNG"
UNREADABLE = "images or masks that cannot be read"
OTHER_SIZE = "masks of another size than their image"
FIXES = {
    NO_MASK: "Add the masks, or move such images away.",
    RENAMED: "Rename the masks: a mask has the name of its image, with the ending .png.",
    OTHER_ENDING: "Save the masks as PNG from their source. JPEG changes values, and so classes.",
    UNREADABLE: "Correct them. A mask is a PNG with one channel of 8 bits, the number of the class of each pixel.",
    OTHER_SIZE: "Use the images that the masks were drawn on, or scale the masks without mixing values.",
}
MAX_BYTES = 1 << 20  # limit for classes.txt


def read_mask_folder(root, split, class_names, ignore_value, max_bad_share) -> SegmentedImages:
    """Lists a split; see `read_segments`."""
    looked, counts = _look_at(root, split), Counts()
    broken = [(reason, detail) for _, _, reason, detail, _ in looked if reason]
    most = collections.Counter(reason for reason, _ in broken).most_common(1)
    fix = FIXES[most[0][0]] if most else ""
    refuse_faults("images", broken, len(looked), max_bad_share, counts, f"{fix} Or raise data.max_bad_share.")
    images, masks, _, sizes, values = zip(*(look for look in looked if not look[2]), strict=True)
    classes = _class_of_values(root, split, set().union(*values), class_names, ignore_value)
    classes.setdefault(IGNORED)
    classes |= {ignore_value: None} if ignore_value is not None else {}
    odd = [(path, min(met - classes.keys())) for path, met in zip(masks, values, strict=True) if met - classes.keys()]
    if odd:
        raise UserError(
            "data.ignore_value",
            f"Expected mask values {', '.join(map(str, sorted(classes)))}, received {odd[0][1]} in {odd[0][0]} "
            f"({len(odd)} of {len(masks)} masks have such).",
            _fix_of_value(odd[0][1], ignore_value),
        )
    named = {value: name for value, name in classes.items() if name is not None}
    names = tuple(named.values() if class_names is None else class_names)
    return SegmentedImages(
        paths=tuple(map(str, images)),
        segment_paths=tuple(map(str, masks)),
        sizes=np.array(sizes, np.int32),
        ids=tuple(image.name for image in images),
        class_names=names,
        table=class_table(named, names),
        read_values=read_mask,
        counts=counts,
    )


def _fix_of_value(value: int, ignore_value: int | None) -> str:
    """Returns what to do about a value without a name. `data.ignore_value` is one value, which may be needed."""
    if ignore_value is None:
        return f"Add it to classes.txt, or set data.ignore_value to {value}."
    text = f"`{value} NAME`, or `{value} void` if it is no class"
    return f"Name every value in classes.txt: {text}. data.ignore_value is {ignore_value}, and is one value."


def read_mask(path: Path) -> np.ndarray:
    """Reads the (H, W) integers of a mask.

    Raises:
        UserError: it is no PNG of one channel of 8 bits.
    """
    return read_png(path, "a mask (8-bit PNG)", ("L", "P", "1"))


def _look_at(root: Path, split: str) -> list[tuple]:
    """Returns (image, mask, "", size, values) of each pair; (image, mask, reason, detail, {}) of an unusable one.

    Raises:
        UserError: there is no such split.
    """
    pairs = mask_folders(root, split)
    if len(pairs) > 1:
        raise UserError(
            None,
            f"{root} has two folders of masks of the split {split}: {pairs[0][1]} and {pairs[1][1]}.",
            "Keep one of them, and move the other away.",
        )
    for images, masks in pairs:
        files = [Path(path) for path in list_images(images, "folder")]
        segments = [on_disk(masks / path.relative_to(images.absolute()).with_suffix(".png")) for path in files]
        _refuse_shared(files, segments)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            looked = list(pool.map(_look, files, segments))
        missing = [number for number, look in enumerate(looked) if look[2] == NO_MASK]
        others = _other_files(masks, set(segments)) if missing else {}
        for number in missing:
            looked[number] = _explained(*looked[number][:2], others)
        return looked
    raise MissingSplit(
        None,
        f"{root} has no images in {split}/images and masks in {split}/masks (nor images/{split} and masks/{split}, nor "
        "Cityscapes' leftImg8bit and gtFine).",
        "Pass the root of such a data set.",
    )


def _refuse_shared(images: list[Path], masks: list[Path]) -> None:
    """Raises UserError if a mask belongs to two images, such as p.jpg and p.png."""
    owners: dict[Path, Path] = {}
    pairs = zip(images, masks, strict=True)
    shared = [(owners[mask], image, mask) for image, mask in pairs if owners.setdefault(mask, image) != image]
    if shared:
        first, second, mask = shared[0]
        raise UserError(
            None,
            f"{len(shared)} masks belong to two images, such as {mask} to {first} and {second}.",
            "Remove or rename one of the two.",
        )


def _look(image: Path, mask: Path) -> tuple:
    if not mask.is_file():
        return image, mask, NO_MASK, image, set()
    try:
        values, size = read_mask(mask), upright_size(image)
    except UserError as error:
        return image, mask, UNREADABLE, error.problem.rstrip("."), set()
    if values.shape != size:
        what = f"{mask} ({values.shape[0]} x {values.shape[1]}, its image {size[0]} x {size[1]})"
        return image, mask, OTHER_SIZE, what, set()
    return image, mask, "", size, set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())


def _other_files(masks: Path, expected: set[Path]) -> dict[Path, Path]:
    """Returns the images in a folder of masks that are not the mask of any image, by names that they begin with.

    `a_b_L.jpg` has the keys `a`, `a_b` and `a_b_L`.
    """
    others: dict[Path, Path] = {}
    for path in sorted(masks.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path not in expected:
            ends = [k for k, letter in enumerate(path.stem) if k and not letter.isalnum()]
            for end in (len(path.stem), *ends):
                others.setdefault(path.with_name(path.stem[:end]), path)
    return others


def _explained(image: Path, mask: Path, others: dict[Path, Path]) -> tuple:
    """Returns an image without a mask as in `_look_at`, with a file that is probably its mask under another name."""
    other = others.get(mask.with_suffix(""))
    if other is None:
        return image, mask, NO_MASK, image, set()
    if other.stem == mask.stem:
        return image, mask, OTHER_ENDING, other, set()
    return image, mask, RENAMED, f"{other}, where {mask.name} is expected", set()


def _class_of_values(
    root: Path, split: str, met: set[int], class_names: Sequence[str] | None, ignore_value: int | None
) -> dict[int, str | None]:
    """Returns {value: name of its class}. The name is None if the file says that the value has no class."""
    file = root / "classes.txt"
    if file.is_file():
        with reading(file, "a list of classes"):
            return _read_classes(read_text(read_bounded(file, MAX_BYTES)))
    if class_names is not None:
        numbers = all(name.isdecimal() for name in class_names)
        return {int(name) if numbers else i: name for i, name in enumerate(class_names)}
    for other in {"train", "val"} - {split}:
        try:
            met = met.union(*(values for *_, values in _look_at(root, other)))
        except UserError:
            log.debug("%s has no split %s", root, other)
    values = {value: str(value) for value in sorted(met - {IGNORED, ignore_value})}
    log.info("no classes.txt in %s: the classes are the values of its masks, %s", root, ", ".join(values.values()))
    return values


def _read_classes(text: str) -> dict[int, str | None]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [line.split(maxsplit=1)[0].isdecimal() and len(line.split()) > 1 for line in lines]
    if any(numbered) and not all(numbered):
        raise ValueError("only some of its lines have a value, where all or none must")
    pairs = [line.split(maxsplit=1) if any(numbered) else (i, line) for i, line in enumerate(lines)]
    classes = {int(value): None if name.lower() in IGNORED_NAMES else name for value, name in pairs}
    if not classes or len(classes) < len(pairs) or max(classes) > 255:
        raise ValueError("it has no values of 0 to 255, each once")
    return classes
