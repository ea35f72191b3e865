"""Draws seeded subsets for `detectron2_train.py`: "coco_2017_train_1pct_seed0" is 1 % of coco_2017_train.

The sha256 of "seed:image id" orders the images, so a draw depends on no library's random generator. Subsets of one seed
are nested: the 1 % images are among the 10 % ones. Imports neither detectron2 nor NumPy.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple


class Subset(NamedTuple):
    """Describes a subset: its name, the data set it is drawn from, the percentage, and the seed."""

    name: str
    base: str
    percent: float
    seed: int


def parse_subset(name):
    """Return the `Subset` of "<base>_<percent>pct_seed<seed>", or None for any other name."""
    match = re.fullmatch(r"(\w+?)_(\d+(?:\.\d+)?)pct_seed(\d+)", name)
    if not match:
        return None
    subset = Subset(name, match[1], float(match[2]), int(match[3]))
    if not 0 < subset.percent <= 100:
        raise ValueError(f"Expected a percentage above 0 and up to 100, received {name}. Use {match[1]}_1pct_seed0.")
    return subset


def draw_images(image_ids, percent, seed):
    """Return `percent` % of the image ids (rounded, at least one), sorted. The order of the input does not matter."""
    ids = set(image_ids)
    if not ids:
        raise ValueError("The data set has no images to draw from. Check its annotations.")
    ranked = sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())
    return sorted(ranked[: max(1, round(len(ids) * percent / 100))])


def list_file(folder, subset):
    """Return the file that lists the images of a subset."""
    return Path(folder) / f"{subset.name}.txt"


def write_list(path, subset, image_ids):
    """Write a line that describes the subset, then one image id a line. The file appears when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    header = f"# {len(image_ids)} images: {subset.percent:g} % of {subset.base}, seed {subset.seed}"
    partial.write_text("\n".join([header, *map(str, image_ids)]) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_list(path):
    """Return the image ids of a list file."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [int(line) for line in lines if line and not line.startswith("#")]


def draw_and_record(records, subset, folder, write=True):
    """Return the records of a subset's images. The list is written to `folder`, or compared with an existing one.

    Args:
        records: detectron2's dicts, each with an `image_id`.
        subset: a `Subset`.
        folder: the run's output directory.
        write: False on all processes but the first.

    Raises:
        ValueError: if an existing list names other images (the annotations have changed since).
    """
    chosen = draw_images([record["image_id"] for record in records], subset.percent, subset.seed)
    path = list_file(folder, subset)
    if path.exists() and read_list(path) != chosen:
        raise ValueError(f"The subset's images are not those listed in {path}. Choose another OUTPUT_DIR.")
    if write and not path.exists():
        write_list(path, subset, chosen)
    wanted = set(chosen)
    return [record for record in records if record["image_id"] in wanted]
