"""Draws tiny data sets of coloured rectangles on grey for the tests, in COCO's and in VOC's layout."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"bus": (230, 40, 40), "cat": (40, 200, 60), "dog": (50, 60, 230)}
NAMES = tuple(COLOURS)
GREY = 120


@dataclass
class Thing:
    name: str
    box: tuple[int, int, int, int]  # x1, y1, x2, y2
    difficult: bool = False


@dataclass
class Picture:
    size: tuple[int, int]  # height, width
    things: list[Thing]


def pictures(count: int, seed: int = 0, size=(60, 100)) -> list[Picture]:
    """Returns pictures of one to three rectangles. The sides of a picture lie between the two values of `size`."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
        things = []
        for number in range(1 + index % 3):
            w, h = (int(side) for side in rng.integers(16, 40, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            things.append(Thing(NAMES[(index + number) % 3], (x, y, x + w, y + h), difficult=number == 2))
        made.append(Picture((height, width), things))
    return made


def draw(picture: Picture) -> np.ndarray:
    image = np.full((*picture.size, 3), GREY, np.uint8)
    for thing in picture.things:
        x1, y1, x2, y2 = thing.box
        image[y1:y2, x1:x2] = COLOURS[thing.name]
    return image


def write_coco(root: Path, splits: dict[str, list[Picture]], name_of: Callable = "{:03d}".format) -> Path:
    """Writes `images/` and `annotations/instances_{split}.json`. Category ids are 5, 10, 15, since COCO's have gaps.

    `name_of` returns a part of an image's name for its number, from 1.
    """
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split, made in splits.items():
        images, annotations = [], []
        for number, picture in enumerate(made, start=1):
            name = f"{split}_{name_of(number)}.png"
            Image.fromarray(draw(picture)).save(root / "images" / name)
            images.append({"id": number, "file_name": name, "height": picture.size[0], "width": picture.size[1]})
            for thing in picture.things:
                x1, y1, x2, y2 = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 5 * (1 + NAMES.index(thing.name)),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "difficult": int(thing.difficult),
                    }
                )
        categories = [{"id": 5 * number, "name": name} for number, name in enumerate(NAMES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, splits: dict[str, list[Picture]]) -> Path:
    """Writes `JPEGImages`, `Annotations` and `ImageSets/Main`. As in VOC, boxes count from 1 and include both ends."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, made in splits.items():
        names = [f"{split}_{number:03d}" for number in range(1, len(made) + 1)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name, picture in zip(names, made, strict=True):
            Image.fromarray(draw(picture)).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            (root / "Annotations" / f"{name}.xml").write_text(voc_text(picture))
    return root


def voc_text(picture: Picture, head: str = "<annotation>") -> str:
    """Returns VOC's XML of a picture."""
    objects = "".join(_voc_object(thing) for thing in picture.things)
    height, width = picture.size
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"{head}{size}{objects}</annotation>"


def _voc_object(thing: Thing) -> str:
    x1, y1, x2, y2 = thing.box
    box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    flag = int(thing.difficult)
    return f"<object><name>{thing.name}</name><difficult>{flag}</difficult><bndbox>{box}</bndbox></object>"


def with_polygons(root):
    """Adds to every annotation of a COCO root the polygon of its box."""
    for path in (root / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        path.write_text(json.dumps(content))
    return root


def write_masks(root, splits):
    """Writes `{split}/images` and `{split}/masks`: 0 is background, 1 to 3 are classes of things, 7 is nothing."""
    for split, made in splits.items():
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number, picture in enumerate(made):
            classes = np.zeros(picture.size, np.uint8)
            for thing in picture.things:
                x1, y1, x2, y2 = thing.box
                classes[y1:y2, x1:x2] = 1 + NAMES.index(thing.name)
            classes[:4] = 7
            Image.fromarray(draw(picture)).save(root / split / "images" / f"{number}.png")
            Image.fromarray(classes).save(root / split / "masks" / f"{number}.png")
    return root
