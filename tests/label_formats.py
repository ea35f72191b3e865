"""Writes data sets of painted pictures as labelling tools write them.

Each format has a function (root, {split: pictures of `labelled_scenes`}) -> root. Names are those of the tools.
"""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.bad_images import with_orientation
from tests.labelled_scenes import NAMES, Picture, Thing, draw, pictures, voc_text, write_coco, write_voc

# EXIF turns every odd image of a split: its pixels are stored in another orientation than they are seen.
ORIENTATIONS = (1, 6, 3, 8)
SPLITS = {"train": pictures(9), "val": pictures(3, seed=1)}
ONE = {"train": pictures(1)}
SCENE = Picture((60, 80), [Thing("cat", (10, 20, 40, 50))])


def check_boxes(read, made):
    """Checks boxes and classes of a split against its pictures, independent of image order."""
    drawn = sorted([sorted((*thing.box, thing.name) for thing in picture.things) for picture in made])
    boxes = sorted(
        sorted((*map(round, box.tolist()), read.class_names[label]) for box, label in zip(b, n, strict=True))
        for b, n in zip(read.boxes, read.labels, strict=True)
    )
    assert boxes == drawn


def write_images(folder: Path, split: str, made) -> list[str]:
    """Writes JPEGs, some of them turned by EXIF; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, picture in enumerate(made):
        names.append(f"{split}_{number}.jpg")
        turn = ORIENTATIONS[number % len(ORIENTATIONS)]
        content = with_orientation(Image.fromarray(draw(picture)), turn, quality=95, subsampling=0)
        (folder / names[-1]).write_bytes(content)
    return names


def dump(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def coco_content(names, made, categories=None, fields=lambda name: {"file_name": name}) -> dict:
    """Returns COCO's JSON of pictures, with the polygon of every box."""
    images, annotations = [], []
    for number, (name, picture) in enumerate(zip(names, made, strict=True), 1):
        height, width = picture.size
        images.append({"id": number, **fields(name), "height": height, "width": width})
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            outline = [x1, y1, x2, y1, x2, y2, x1, y2]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + NAMES.index(thing.name)}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "segmentation": [outline]}
            annotations.append({**row, **box, "iscrowd": 0})
    categories = categories or [{"id": k, "name": name, "supercategory": "none"} for k, name in enumerate(NAMES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_downloaded_coco(root, splits):
    for split, made in splits.items():
        names = write_images(root / f"{split}2017", split, made)
        dump(root / "annotations" / f"instances_{split}2017.json", coco_content(names, made))
    return root


def write_roboflow(root, splits):
    categories = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories += [{"id": k, "name": name, "supercategory": "things"} for k, name in enumerate(NAMES, 1)]
    for split, made in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        dump(folder / "_annotations.coco.json", coco_content(write_images(folder, split, made), made, categories))
    return root


def write_roboflow_voc(root, splits):
    """Writes Roboflow's Pascal VOC: XML files beside the images, without lists."""
    for split, made in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        for name, picture in zip(write_images(folder, split, made), made, strict=True):
            head = f"<annotation><folder></folder><filename>{name}</filename>"
            dump(folder / Path(name).with_suffix(".xml"), voc_text(picture, head))
    return root


def write_fiftyone(root, splits):
    for split, made in splits.items():
        names = write_images(root / split / "data", split, made)
        dump(root / split / "labels.json", coco_content(names, made))
    return root


def write_lvis(root, splits):
    for split, made in splits.items():
        names = write_images(root / f"{split}2017", split, made)
        content = coco_content(
            names,
            made,
            fields=lambda name, split=split: {
                "coco_url": f"http://images.cocodataset.org/{split}2017/{name}",
                "not_exhaustive_category_ids": [],
                "neg_category_ids": [],
            },
        )
        dump(root / f"lvis_v1_{split}.json", content)
    return root


def yolo_row(thing, size) -> str:
    (x1, y1, x2, y2), (height, width) = thing.box, size
    numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(NAMES.index(thing.name)), *(f"{number:.9f}" for number in numbers)])


def polygon_row(thing, size) -> str:
    """Returns a YOLO row: the outline of the box with a fifth point on its upper side."""
    (x1, y1, x2, y2), (height, width) = thing.box, size
    points = [(x1, y1), ((x1 + x2) / 2, y1), (x2, y1), (x2, y2), (x1, y2)]
    numbers = [f"{x / width:.9f} {y / height:.9f}" for x, y in points]
    return " ".join([str(NAMES.index(thing.name)), *numbers])


def _yolo(root, splits, images: str, labels: str, row=yolo_row):
    for split, made in splits.items():
        names = write_images(root / images.format(split), split, made)
        for name, picture in zip(names, made, strict=True):
            rows = [row(thing, picture.size) for thing in picture.things]
            dump(root / labels.format(split) / Path(name).with_suffix(".txt"), "\n".join(rows) + "\n" * bool(rows))
    return root


def write_yolo(root, splits):
    """Writes Ultralytics' layout."""
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    dump(root / "data.yaml", f"path: ../datasets/things\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return _yolo(root, splits, "images/{}", "labels/{}", polygon_row)


def write_roboflow_yolo(root, splits):
    """Writes Roboflow's layout. Its paths lead out of the folder, and `test` may be missing."""
    head = "train: ../train/images\nval: ../val/images\ntest: ../test/images\n"
    dump(root / "data.yaml", f"{head}\nnc: 3\nnames: {list(NAMES)}\n")
    return _yolo(root, splits, "{}/images", "{}/labels")


def write_fiftyone_yolo(root, splits):
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    places = "train: ./images/train/\nval: ./images/val/\n"
    dump(root / "dataset.yaml", f"names:\n{names}path: /elsewhere/export\n{places}")
    return _yolo(root, splits, "images/{}", "labels/{}")


def write_darknet(root, splits):
    """Writes CVAT's YOLO 1.1."""
    lines = ["classes = 3", "names = data/obj.names", "backup = backup/"]
    for split, made in splits.items():
        name = {"val": "valid"}.get(split, split)
        lines.append(f"{name} = data/{name}.txt")
        listed = [f"data/obj_{name}_data/{split}_{number}.jpg" for number in range(len(made))]
        dump(root / f"{name}.txt", "\n".join(listed))
        _yolo(root, {split: made}, f"obj_{name}_data", f"obj_{name}_data")
    dump(root / "obj.names", "\n".join(NAMES))
    dump(root / "obj.data", "\n".join(lines))
    return root


def write_cvat(root, splits):
    """Writes a CVAT project with a subset for each split."""
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in NAMES)
    text = f"<annotations><version>1.1</version><meta><project><labels>{labels}</labels></project></meta>"
    for split, made in splits.items():
        names = write_images(root / "images" / split, split, made)
        for name, picture in zip(names, made, strict=True):
            size = f'width="{picture.size[1]}" height="{picture.size[0]}"'
            shapes = "".join(_cvat_box(thing) for thing in picture.things)
            text += f'<image id="0" name="{name}" subset="{split}" {size}>{shapes}</image>'
    dump(root / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}</annotations>')
    return root


def _cvat_box(thing) -> str:
    sides = " ".join(
        f'{side}="{value:.2f}"' for side, value in zip(("xtl", "ytl", "xbr", "ybr"), thing.box, strict=True)
    )
    flag = f'<attribute name="difficult">{str(thing.difficult).lower()}</attribute>'
    return f'<box label="{thing.name}" source="manual" occluded="0" {sides} z_order="0">{flag}</box>'


def labelme_content(name, picture, shapes=None) -> dict:
    """Returns LabelMe's JSON: a rectangle, a polygon or a mask for the things of a picture, in turn."""
    kinds = (_labelme_rectangle, _labelme_polygon, _labelme_mask)
    shapes = shapes or [kinds[k % 3](thing) for k, thing in enumerate(picture.things)]
    sides = {"imageHeight": picture.size[0], "imageWidth": picture.size[1]}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **sides}


def labelme_shape(name, kind, points, **more) -> dict:
    return {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def _labelme_rectangle(thing):
    x1, y1, x2, y2 = thing.box
    return labelme_shape(thing.name, "rectangle", [[x2, y1], [x1, y2]])


def _labelme_polygon(thing):
    x1, y1, x2, y2 = thing.box
    return labelme_shape(thing.name, "polygon", [[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def _labelme_mask(thing):
    x1, y1, x2, y2 = thing.box
    file = io.BytesIO()
    Image.fromarray(np.full((y2 - y1, x2 - x1), True)).save(file, "PNG")
    mask = base64.b64encode(file.getvalue()).decode()
    return labelme_shape(thing.name, "mask", [[x1, y1], [x2 - 1, y2 - 1]], mask=mask)


def write_labelme(root, splits):
    for split, made in splits.items():
        for name, picture in zip(write_images(root / split, split, made), made, strict=True):
            dump(root / split / Path(name).with_suffix(".json"), labelme_content(name, picture))
    return root


def studio_result(kind, picture, value, **more) -> dict:
    height, width = picture.size
    sides = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": "a", "type": kind, "from_name": "label", "to_name": "image", **sides, "value": value, **more}


def studio_task(number, name, picture, results=None) -> dict:
    height, width = picture.size
    drawn = []
    for thing in picture.things:
        x1, y1, x2, y2 = thing.box
        place = {"x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0, "rectanglelabels": [thing.name]}
        sides = {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
        drawn.append(studio_result("rectanglelabels", picture, {**place, **sides}))
    annotation = {"id": number, "was_cancelled": False, "result": drawn if results is None else results}
    return {"id": number, "annotations": [annotation], "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"}}


def write_label_studio(root, splits):
    for split, made in splits.items():
        names = write_images(root / split, split, made)
        tasks = [studio_task(k, *pair) for k, pair in enumerate(zip(names, made, strict=True), 1)]
        dump(root / split / "project-1-at-2025-01-01.json", tasks)
    return root


OPEN_COLUMNS = (
    "ImageID",
    "Source",
    "LabelName",
    "Confidence",
    "XMin",
    "XMax",
    "YMin",
    "YMax",
    "IsOccluded",
    "IsGroupOf",
)


def write_openimages(root, splits):
    labels = {name: f"/m/0{number}" for number, name in enumerate(NAMES)}
    with _rows(root / "class-descriptions-boxable.csv") as rows:
        rows.writerows((label, name) for name, label in labels.items())
    for split, made in splits.items():
        split_name = {"val": "validation"}.get(split, split)
        names = write_images(root / split_name, split, made)
        with _rows(root / f"{split_name}-annotations-bbox.csv") as rows:
            rows.writerow(OPEN_COLUMNS)
            for name, picture in zip(names, made, strict=True):
                height, width = picture.size
                for thing in picture.things:
                    x1, y1, x2, y2 = thing.box
                    sides = (x1 / width, x2 / width, y1 / height, y2 / height)
                    rows.writerow((Path(name).stem, "xclick", labels[thing.name], 1, *sides, -1, int(thing.difficult)))
    return root


class _rows:
    """A CSV file to write."""

    def __init__(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="", encoding="utf-8")

    def __enter__(self):
        return csv.writer(self.file)

    def __exit__(self, *error):
        self.file.close()


# Name of a folder → (its writer, the layout that `auto` should take, whether it marks ignored objects).
FORMATS = {
    "coco": (write_downloaded_coco, "coco", False),
    "coco_images": (write_coco, "coco", True),
    "voc": (write_voc, "voc", True),
    "roboflow_voc": (write_roboflow_voc, "voc", True),
    "roboflow": (write_roboflow, "roboflow", False),
    "fiftyone": (write_fiftyone, "fiftyone", False),
    "lvis": (write_lvis, "lvis", False),
    "yolo": (write_yolo, "yolo", False),
    "roboflow_yolo": (write_roboflow_yolo, "yolo", False),
    "fiftyone_yolo": (write_fiftyone_yolo, "yolo", False),
    "darknet": (write_darknet, "yolo", False),
    "cvat": (write_cvat, "cvat", True),
    "labelme": (write_labelme, "labelme", False),
    "label_studio": (write_label_studio, "label_studio", False),
    "openimages": (write_openimages, "openimages", True),
}
