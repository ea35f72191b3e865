"""Draws the embedded sample: small labelled and unlabelled scenes, so that everything runs without a download.

A scene is a textured backdrop with one to five textured objects in front of it, and a few pieces of clutter that are
not annotated. Only the outline decides the class. Texture, colour, size, stretch and rotation are random for objects,
clutter and backdrops alike, so a detector has to learn form.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dupr_tf.data.sample_textures import Rng, contrasting_palette, grid, noise, palette, textured
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded, write_whole
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.records import parse_json

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross")
MIN_VISIBLE = 0.4  # share of an object's pixels that must be visible for it to be annotated

_VERSION = 1  # raised whenever the same arguments would draw another sample
_SPLITS = ("train", "val", "unlabeled")  # the position of a split is part of the seed of its scenes
_LABELLED = ("train", "val")
_CLUTTER = ("blob", "stroke")
_MARKER = "sample.json"
_OURS = re.compile(
    r"images/(train|val)_\d{6}\.jpg|unlabeled/\d{6}\.jpg|(annotations/instances_(train|val)|sample)\.json(\.part|\.tmp)?"
)


def write_sample(
    root: str | os.PathLike,
    *,
    train: int = 200,
    val: int = 100,
    unlabeled: int = 1000,
    size: tuple[int, int] = (128, 192),
    seed: int = 0,
) -> Path:
    """Writes a miniature detection data set: `images/` with COCO `annotations/`, and a folder `unlabeled/`.

    Each scene is a function of (seed, split, index, size) alone, so a larger sample begins with the smaller one. With
    the same Pillow and NumPy the same arguments give the same bytes. A complete sample of the same arguments is kept. A
    sample that is incomplete, or has other arguments, is removed and drawn again.

    Args:
      root: folder to write to, created if absent. It may hold an earlier sample, but no other files.
      train: number of labelled training scenes, 0 or more (`annotations/instances_train.json`).
      val: number of labelled validation scenes, 0 or more (`annotations/instances_val.json`).
      unlabeled: number of scenes without labels, 0 or more.
      size: least and greatest side of a scene in pixels, 48 to 2048. Height and width are drawn separately.
      seed: any integer from 0.

    Returns:
      `root` as a path.

    Raises:
      UserError: an argument is outside its range, or `root` is a file or holds files that are not a sample's.
    """
    counts = {"train": train, "val": val, "unlabeled": unlabeled}
    _check(counts, size, seed)
    root = Path(root)
    parameters = {"version": _VERSION, **counts, "size": list(size), "seed": seed}
    if _is_complete(root, parameters):
        return root
    if root.exists() and not root.is_dir():
        raise UserError(None, f"{root} is a file.", "Choose a new folder.")
    with locked(root):
        _clear(root)
        for split, count in counts.items():
            _write_split(root, split, count, size, seed)
        write_whole(root / _MARKER, json.dumps(parameters))  # written last: if it exists, the sample is complete
    return root


def _check(counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    for name, count in counts.items():
        if not 0 <= count <= 999_999:
            raise UserError(name, f"Expected 0 to 999999 scenes, received {count}.", "Pass a number of scenes.")
    if len(size) != 2 or not 48 <= size[0] <= size[1] <= 2048:
        expected = "(least, greatest) side with 48 <= least <= greatest <= 2048"
        raise UserError("size", f"Expected {expected}, received {size}.", "Pass (128, 192), for example.")
    if seed < 0:
        raise UserError("seed", f"Expected 0 or more, received {seed}.", "Pass 0.")


# ---- files ----


def _is_complete(root: Path, parameters: dict) -> bool:
    try:
        written = parse_json(read_bounded(root / _MARKER, 10_000))
    except (OSError, ValueError):
        return False
    names = [_photo(split, index) for split in _SPLITS for index in range(parameters[split])]
    return written == parameters and all((root / name).is_file() for name in [*names, *map(_labels, _LABELLED)])


def _photo(split: str, index: int) -> str:
    return f"images/{split}_{index:06d}.jpg" if split in _LABELLED else f"{split}/{index:06d}.jpg"


def _labels(split: str) -> str:
    return f"annotations/instances_{split}.json"


def _clear(root: Path) -> None:
    """Removes an earlier sample, its marker first, and creates the folders. Refuses a folder with other files."""
    files = [path for path in root.rglob("*") if not path.is_dir() and path != root / LOCK_FILE]
    foreign = [name for name in (path.relative_to(root).as_posix() for path in files) if not _OURS.fullmatch(name)]
    if foreign:
        raise UserError(None, f"{root} has {foreign[0]}, which does not belong to a sample.", "Choose a new folder.")
    for path in sorted(files, key=lambda path: path.name != _MARKER):
        path.unlink()
    for folder in ("images", "unlabeled"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    images, annotations = [], []
    for index in range(count):
        scene, path = draw_scene(seed, split, index, size), root / _photo(split, index)
        Image.fromarray(scene.image).save(path, quality=90)
        height, width, _ = scene.image.shape
        images.append({"id": index + 1, "file_name": path.name, "height": height, "width": width})
        for item in scene.objects:  # ids from 1: pycocotools takes an annotation 0 for "no match"
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **item})
    if split in _LABELLED:
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        info = {"description": f"dupr_tf sample, {split}"}
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        write_whole(root / _labels(split), json.dumps(content))


# ---- a scene ----


class Scene(NamedTuple):
    """Holds a drawn scene: `image` (h, w, 3) uint8 RGB, and `objects`, COCO annotations without their two ids."""

    image: np.ndarray
    objects: list[dict]


class Piece(NamedTuple):
    """Holds an object or a piece of clutter to paint over the backdrop. It may reach beyond the picture."""

    shape: str  # one of CLASSES, or of _CLUTTER
    top: int
    left: int
    cover: np.ndarray  # (h, w) in [0, 1]
    colour: np.ndarray  # (h, w, 3) in [0, 1]


def draw_scene(seed: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    """Draws one scene.

    Args:
      seed: seed of the sample, 0 or more.
      split: "train", "val" or "unlabeled"; different splits have different scenes.
      index: number of the scene within its split, 0 or more.
      size: least and greatest side in pixels.

    Returns:
      The scene. `bbox` is COCO's (x, y, width, height) in whole pixels, around the visible part of an object.
    """
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
    of_backdrop, of_pieces, of_light = rng.spawn(3)
    backdrop = textured(of_backdrop, height, width, palette(of_backdrop))
    pieces = _draw_pieces(of_pieces, backdrop)
    canvas, owner = paint(backdrop, pieces)
    return Scene(_develop(of_light, canvas), _annotate(pieces, owner))


def _draw_pieces(rng: Rng, backdrop: np.ndarray) -> list[Piece]:
    """Draws one to five objects and up to three pieces of clutter, back to front. The last one is always an object."""
    shapes = list(rng.choice(CLASSES, rng.integers(0, 5))) + list(rng.choice(_CLUTTER, rng.integers(0, 4)))
    rng.shuffle(shapes)
    shapes.append(rng.choice(CLASSES))  # nothing covers the last object, so every scene has an annotation
    tone = backdrop.mean((0, 1))
    return [_draw_piece(rng, str(shape), backdrop.shape[0], backdrop.shape[1], tone) for shape in shapes]


def _draw_piece(rng: Rng, shape: str, height: int, width: int, behind: np.ndarray) -> Piece:
    radius = min(height, width) * np.exp(rng.uniform(np.log(0.08), np.log(0.3)))
    reach = int(np.ceil(radius)) + 1
    # The centre keeps half a radius from the edge: at least 40 % of a front object is always in the picture.
    centre = [int(rng.uniform(0.5 * radius, side - 0.5 * radius)) for side in (height, width)]
    y, x = grid(2 * reach + 1, 2 * reach + 1) - reach
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(1, 1.4)
    u = (x * np.cos(angle) + y * np.sin(angle)) / radius
    v = (y * np.cos(angle) - x * np.sin(angle)) / radius * stretch
    distance = _OUTLINES[shape](rng, u, v) * radius  # signed, in pixels
    colour = textured(rng, *y.shape, contrasting_palette(rng, behind))
    if rng.random() < 0.5:  # a rounded look: darker (or lighter) towards the edge
        colour *= 1 + rng.uniform(-0.5, 0.3) * np.exp(np.minimum(distance, 0) / (0.2 * radius))[..., None]
    top, left = (middle - reach for middle in centre)
    return Piece(shape, top, left, np.clip(0.5 - distance, 0, 1), colour.clip(0, 1))


def paint(backdrop: np.ndarray, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Paints back to front. The second result (h, w) is the index of the piece visible at a pixel, or -1."""
    canvas, owner = backdrop.copy(), np.full(backdrop.shape[:2], -1, np.int8)
    for index, piece in enumerate(pieces):
        y1, x1 = max(piece.top, 0), max(piece.left, 0)
        window = np.s_[y1 : piece.top + piece.cover.shape[0], x1 : piece.left + piece.cover.shape[1]]
        here = canvas[window]
        part = np.s_[y1 - piece.top :, x1 - piece.left :]
        cover = piece.cover[part][: here.shape[0], : here.shape[1]]
        colour = piece.colour[part][: here.shape[0], : here.shape[1]]
        here += cover[..., None] * (colour - here)
        owner[window][cover >= 0.5] = index
    return canvas, owner


def _annotate(pieces: list[Piece], owner: np.ndarray) -> list[dict]:
    objects = []
    for index, piece in enumerate(pieces):
        visible = owner == index
        if piece.shape not in CLASSES or visible.sum() < MIN_VISIBLE * (piece.cover >= 0.5).sum():
            continue
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        y1, x1, y2, x2 = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        box = [int(x1), int(y1), int(x2 - x1), int(y2 - y1)]
        category, area = CLASSES.index(piece.shape) + 1, int(visible.sum())
        objects.append({"category_id": category, "bbox": box, "area": area, "iscrowd": 0})
    return objects


def _develop(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Adds uneven light, gamma and sensor noise; (h, w, 3) float in [0, 1] → uint8."""
    height, width, _ = canvas.shape
    light = 1 + rng.uniform(0, 0.5) * (noise(rng, height, width, cell=max(height, width) / 2) - 0.5)
    exposed = (canvas * light[..., None] * rng.uniform(0.8, 1.15)).clip(0, 1) ** rng.uniform(0.8, 1.25)
    grain = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(0.005, 0.03)
    return np.round((exposed + grain).clip(0, 1) * 255).astype(np.uint8)


# ---- outlines ----


def _ring(rng: Rng, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    hole = rng.uniform(0.4, 0.65)
    return np.abs(np.hypot(u, v) - (0.95 + hole) / 2) - (0.95 - hole) / 2


def _cross(rng: Rng, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    along, across = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(along - 0.9, across - rng.uniform(0.2, 0.32))


def _pointed(u: np.ndarray, v: np.ndarray, tips: int, inner: float) -> np.ndarray:
    """Computes a star with tips at radius 1 and notches at radius `inner`. Each half tip is folded onto the first."""
    half = np.pi / tips
    angle = np.abs(np.mod(np.arctan2(v, u) + half, 2 * half) - half)
    radius = np.hypot(u, v)
    edge = np.array([inner * np.cos(half) - 1, inner * np.sin(half)])  # from the tip (1, 0) to the notch
    outward = np.array([edge[1], -edge[0]]) / np.linalg.norm(edge)
    return outward[0] * (radius * np.cos(angle) - 1) + outward[1] * radius * np.sin(angle)


def _blob(rng: Rng, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    angle = np.arctan2(v, u)
    waves = sum(rng.uniform(0.03, 0.14) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4))
    return np.hypot(u, v) - 0.55 - waves


def _stroke(rng: Rng, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    bend = rng.uniform(-0.4, 0.4)
    return np.maximum(np.abs(u) - 0.85, np.abs(v - bend * (u * u - 0.4)) - rng.uniform(0.05, 0.12))


# Signed distance in units of the radius, negative inside; u, v (h, w) are the piece's own axes.
_OUTLINES: dict[str, Callable[[Rng, np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda rng, u, v: np.hypot(u, v) - 0.95,
    "ring": _ring,
    "square": lambda rng, u, v: np.maximum(np.abs(u), np.abs(v)) - 0.7,
    "triangle": lambda rng, u, v: _pointed(u, v, tips=3, inner=0.5),
    "star": lambda rng, u, v: _pointed(u, v, tips=5, inner=rng.uniform(0.38, 0.5)),
    "cross": _cross,
    "blob": _blob,
    "stroke": _stroke,
}
