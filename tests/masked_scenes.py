"""Draws the pictures of `labelled_scenes` with masks: every thing is its box without the lower right quarter.

They are written in COCO's layout (polygons or run lengths), in Cityscapes', and as folders of masks.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.labelled_scenes import COLOURS, GREY, NAMES, Picture, Thing, write_coco

CITY_IDS = {"bus": 28, "cat": 26, "dog": 24}  # a cat stands in for a car, a dog for a person
CITY_NAMES = {"bus": "bus", "cat": "car", "dog": "person"}
IGNORE = 9  # value of a mask


def corners(thing: Thing) -> list[int]:
    """Returns the polygon x, y, x, y, … of a thing."""
    x1, y1, x2, y2 = thing.box
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    return [x1, y1, x2, y1, x2, y, x, y, x, y2, x1, y2]


def mask(thing: Thing, size) -> np.ndarray:
    """(H, W) bool."""
    x1, y1, x2, y2 = thing.box
    inside = np.zeros(size, bool)
    inside[y1:y2, x1:x2] = True
    inside[(y1 + y2) // 2 : y2, (x1 + x2) // 2 : x2] = False
    return inside


def draw(picture: Picture) -> np.ndarray:
    image = np.full((*picture.size, 3), GREY, np.uint8)
    for thing in picture.things:
        image[mask(thing, picture.size)] = COLOURS[thing.name]
    return image


def segmentation(thing: Thing, size, form: str):
    """Returns a mask in one of COCO's formats."""
    if form == "polygons":
        return [corners(thing)]
    compressed = coco_mask.encode(np.asfortranarray(mask(thing, size), np.uint8))
    if form == "compressed":
        return {"size": list(size), "counts": compressed["counts"].decode()}
    flat = mask(thing, size).T.ravel()
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    return {"size": list(size), "counts": ([0] if flat[0] else []) + np.diff(edges).tolist()}


def write_coco_masks(root: Path, splits: dict[str, list[Picture]], form: str = "polygons", change=None) -> Path:
    """Writes `write_coco` with masks. `change` edits the annotations of every split before they are written."""
    write_coco(root, splits)
    for split, made in splits.items():
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        things = [(thing, picture.size) for picture in made for thing in picture.things]
        for annotation, (thing, size) in zip(content["annotations"], things, strict=True):
            annotation["segmentation"] = segmentation(thing, size, form)
            annotation["area"] = int(mask(thing, size).sum())
        if change is not None:
            change(content)
        file.write_text(json.dumps(content))
        for number, picture in enumerate(made, start=1):
            Image.fromarray(draw(picture)).save(root / "images" / f"{split}_{number:03d}.png")
    return root


def instance_ids(picture: Picture) -> np.ndarray:
    """Returns (H, W) Cityscapes ids: road, four top rows out of the region of interest, difficult things as groups."""
    ids = np.full(picture.size, 7, np.uint16)
    ids[:4] = 3
    for number, thing in enumerate(picture.things):
        label = CITY_IDS[thing.name]
        ids[mask(thing, picture.size)] = label if thing.difficult else label * 1000 + number
    return ids


def write_cityscapes(root: Path, splits: dict[str, list[Picture]], kinds=("instanceIds", "labelIds")) -> Path:
    """Writes each picture as a separate city. `kinds` selects the truth files: instanceIds, labelIds, polygons."""
    for split, made in splits.items():
        for number, picture in enumerate(made):
            name, city = f"town{number % 2}_{number:06d}_000019", f"town{number % 2}"
            images, truth = (root / kind / split / city for kind in ("leftImg8bit", "gtFine"))
            images.mkdir(parents=True, exist_ok=True)
            truth.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(picture)).save(images / f"{name}_leftImg8bit.png")
            ids = instance_ids(picture)
            if "instanceIds" in kinds:
                Image.fromarray(ids).save(truth / f"{name}_gtFine_instanceIds.png")
            if "labelIds" in kinds:
                labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
                Image.fromarray(labels).save(truth / f"{name}_gtFine_labelIds.png")
            if "polygons" in kinds:
                (truth / f"{name}_gtFine_polygons.json").write_text(json.dumps(_polygons(picture)))
    return root


def _polygons(picture: Picture) -> dict:
    height, width = picture.size
    things = [("road", [0, 0, width, 0, width, height, 0, height])]
    things += [("out of roi", [0, 0, width - 1, 0, width - 1, 3, 0, 3])]
    for thing in picture.things:
        name = CITY_NAMES[thing.name] + ("group" if thing.difficult else "")
        things.append((name, corners(thing)))
    objects = [{"label": name, "polygon": np.reshape(points, (-1, 2)).tolist()} for name, points in things]
    objects.append({"label": "car", "polygon": [[0, 0], [9, 9], [0, 9]], "deleted": 1})
    objects.append({"label": "license plate", "polygon": [[0, 0], [9, 9], [0, 9]]})
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def values(picture: Picture) -> np.ndarray:
    """Returns (H, W) uint8: 0 is grey ground, 1 to 3 are things, the top four rows are `IGNORE`."""
    made = np.zeros(picture.size, np.uint8)
    for thing in picture.things:
        made[mask(thing, picture.size)] = 1 + NAMES.index(thing.name)
    made[:4] = IGNORE
    return made


def write_segments(root: Path, splits: dict[str, list[Picture]], split_first: bool = True) -> Path:
    """Writes folders of images and masks, `{split}/images` or `images/{split}`."""
    for split, made in splits.items():
        folders = [root / split / kind if split_first else root / kind / split for kind in ("images", "masks")]
        for folder in folders:
            folder.mkdir(parents=True)
        for number, picture in enumerate(made):
            Image.fromarray(draw(picture)).save(folders[0] / f"{number:03d}.jpg", quality=98, subsampling=0)
            Image.fromarray(values(picture)).save(folders[1] / f"{number:03d}.png")
    return root
