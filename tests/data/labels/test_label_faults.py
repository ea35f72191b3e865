"""Tests of one rule for all formats: faulty labels are counted, left out within `data.max_bad_share`, or refused."""

import json

import pytest

from dupr_tf.cli import main
from dupr_tf.data.labels.annotations import CUT, DROPPED, MOSTLY_OUTSIDE, NO_FILE, read_annotations
from dupr_tf.data.labels.convert import convert
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHER_FORMAT
from dupr_tf.data.labels.label_studio import NAMELESS
from dupr_tf.data.labels.shapes import FLAT
from dupr_tf.data.labels.split import refuse_faults
from tests.data.labels.test_formats import cvat_shapes, labelme_shapes, studio
from tests.label_formats import FORMATS, dump, labelme_shape, studio_result, write_images
from tests.labelled_scenes import NAMES, Picture, Thing, pictures
from tests.refusals import refusal

FLAT_SCENE = Picture((60, 80), [Thing("cat", (10, 20, 40, 20))])
MADE = [FLAT_SCENE, *pictures(9)]
LABELS = {".txt": "0 .5 .5 .1 .1\n", ".xml": "<annotation></annotation>", ".json": '{"version": "5", "shapes": []}'}
OBJECTS = sum(len(picture.things) for picture in MADE)


@pytest.mark.parametrize("name", FORMATS)
def test_objects_without_area_are_left_out_within_the_share(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", {"train": MADE})
    error = refusal(read_annotations, root, "train")
    assert error.field == "data.max_bad_share" and f"1 of {OBJECTS} objects" in error.problem
    read = read_annotations(root, "train", max_bad_share=1 / OBJECTS)
    assert sum(map(len, read.boxes)) == OBJECTS - 1
    assert [read.counts[FLAT] + read.counts[what] for what in DROPPED] in ([0, 1, 0], [1, 1, 1])
    empty = [len(boxes) for boxes in read.boxes].index(0)
    assert not read.bare[empty]  # it has an object, so it is no background


def test_most_frequent_fault_is_named_first():
    faults = [("a rare fault", "line 1"), ("a common fault", "line 2"), ("a common fault", "line 3")]
    problem = refusal(refuse_faults, "objects", faults, 9, 0.1, Counts()).problem
    assert problem.startswith("3 of 9 objects cannot be used: 2 a common fault, such as line 2; 1 a rare fault")


@pytest.mark.parametrize("name", FORMATS)
def test_labels_without_image_are_left_out_within_the_share(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", {"train": pictures(9)})
    sorted(path for path in root.rglob("train_*") if path.suffix in (".jpg", ".png"))[3].unlink()
    error = refusal(read_annotations, root, "train")
    assert error.field == "data.max_bad_share" and "1 of 9 images" in error.problem
    assert read_annotations(root, "train", max_bad_share=1 / 9).counts[NO_FILE] == 1


@pytest.mark.parametrize("name", FORMATS)
def test_commands_refuse_faults_in_one_line(tmp_path, capsys, name):
    root = FORMATS[name][0](tmp_path / "set", {"train": MADE, "val": pictures(3, seed=1)})
    words = [str(root), "--output", str(tmp_path / "new"), "--to", "coco"]
    assert main(["convert", *words]) == main(["doctor", "configs/retinanet_r18_small.yaml", "--data", str(root)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be used" in line]
    assert ["--max-bad-share" in line for line in lines] == [True, False]
    assert ["data.max_bad_share" in line for line in lines] == [False, True]
    assert main(["convert", *words, "--max-bad-share", "0.1"]) == 0
    assert f"train: 9 images, {OBJECTS - 1} boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("yolo", "labels/train/train_2.txt", ".json"), ("darknet", "obj_train_data/train_2.txt", ".xml"),
     ("labelme", "train/train_2.json", ".xml"), ("roboflow_voc", "train/train_2.xml", ".txt")],
)  # fmt: skip
def test_labels_in_another_format_are_limited_by_the_share(tmp_path, name, old, new):
    root = FORMATS[name][0](tmp_path / "set", {"train": pictures(9)})
    (root / old).unlink()
    dump((root / old).with_suffix(new), LABELS[new])
    kind = {"darknet": "yolo", "roboflow_voc": "voc"}.get(name, name)
    assert f"1 {OTHER_FORMAT}" in refusal(read_annotations, root, "train", kind).problem
    read = read_annotations(root, "train", kind, max_bad_share=0.12)
    assert len(read) == 8 and not any(read.bare) and read.counts[OTHER_FORMAT] == 1


@pytest.mark.parametrize(
    ("ending", "text"), [(".txt", "2 dogs on a beach"), (".json", '{"camera": "X100"}'), (".xml", "<x:xmpmeta/>")]
)
def test_texts_about_a_photo_are_no_labels(tmp_path, ending, text):
    name = "darknet" if ending != ".txt" else "labelme"
    root = FORMATS[name][0](tmp_path / "set", {"train": pictures(9)})
    label = next(iter(root.rglob("train_2.txt" if name == "darknet" else "train_2.json")))
    label.unlink()
    dump(label.with_suffix(ending), text)
    read = read_annotations(root, "train", max_bad_share=0)
    assert len(read) == (9 if name == "darknet" else 8) and not read.counts[OTHER_FORMAT]


def test_openimages_image_with_another_label_file_is_a_fault(tmp_path):
    root = FORMATS["openimages"][0](tmp_path / "set", {"train": pictures(9)})
    write_images(root / "train", "more", pictures(1))
    dump(root / "train/more_0.txt", "0 .5 .5 .1 .1")
    assert "1 of 10 images" in refusal(read_annotations, root, "train").problem


def differing(tmp_path, count):
    """Writes a set whose val lists a class `boat` with some objects instead of `dog`, and returns that number."""
    root = FORMATS["roboflow"][0](tmp_path / "set", {"train": pictures(9), "val": pictures(9, seed=1)})
    file = root / "valid/_annotations.coco.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "boat", "supercategory": "things"})
    for row in content["annotations"][:count]:
        row["category_id"] = 9
    dump(file, content)
    return root, len(content["annotations"])


def test_objects_of_unknown_classes_are_limited_by_the_share(tmp_path):
    root, objects = differing(tmp_path, 2)
    error = refusal(read_annotations, root, "val", class_names=NAMES)
    assert error.field == "data.max_bad_share" and f"2 of {objects}" in error.problem and "boat" in error.problem
    read = read_annotations(root, "val", class_names=NAMES, max_bad_share=0.2)
    assert sum(map(len, read.boxes)) == objects - 2 and len(read) == 9
    assert [count for what, count in read.counts.items() if "unknown classes (boat" in what] == [2]


def test_lists_that_differ_without_objects_are_one_line_each(tmp_path, caplog):
    caplog.set_level("INFO")
    root, _ = differing(tmp_path, 0)
    read_annotations(root, "val", class_names=[*NAMES, "kite"], max_bad_share=0)
    assert "1 classes that only this split lists (boat)" in caplog.messages[-1]
    assert "1 classes that this split does not list (kite)" in caplog.messages[-1]


def test_cvat_shape_of_an_unlisted_label_is_a_fault(tmp_path):
    root = cvat_shapes(tmp_path, '<box label="cow" xtl="1" ytl="1" xbr="9" ybr="9"/>')
    assert "cow" in refusal(read_annotations, root, "train").problem
    assert "cow" in refusal(convert, root, tmp_path / "new", "coco", "auto", 0).problem


def test_images_with_shapes_that_are_not_read_are_no_background(tmp_path):
    roots = [
        cvat_shapes(tmp_path / "cvat", '<polyline label="cat" points="1,1;2,2"/>'),
        labelme_shapes(tmp_path / "labelme", labelme_shape("cat", "point", [[1, 1]])),
        studio(tmp_path / "studio", studio_result("keypointlabels", FLAT_SCENE, {"keypointlabels": ["cat"]})),
    ]
    for root in roots:
        assert read_annotations(root, "train", class_names=NAMES).bare == (False,)


def test_unnamed_regions_are_faults(tmp_path):
    place = {"x": 0, "y": 0, "width": 50, "height": 50}
    named = studio_result("rectanglelabels", FLAT_SCENE, place | {"rectanglelabels": ["cat"]})
    root = studio(tmp_path, studio_result("rectangle", FLAT_SCENE, place), named | {"id": "b"})
    assert f"1 of 2 objects cannot be used: 1 {NAMELESS}" in refusal(read_annotations, root, "train").problem


# {format: the place of the object without area of `FLAT_SCENE`}
PLACES = {
    "coco": "annotation 1 of {}/annotations/instances_train2017.json",
    "coco_images": "annotation 1 of {}/annotations/instances_train.json",
    "voc": "object 1 of {}/Annotations/train_001.xml",
    "roboflow_voc": "object 1 of {}/train/train_0.xml",
    "roboflow": "annotation 1 of {}/train/_annotations.coco.json",
    "fiftyone": "annotation 1 of {}/train/labels.json",
    "lvis": "annotation 1 of {}/lvis_v1_train.json",
    "yolo": "line 1 of {}/labels/train/train_0.txt",
    "roboflow_yolo": "line 1 of {}/train/labels/train_0.txt",
    "fiftyone_yolo": "line 1 of {}/labels/train/train_0.txt",
    "darknet": "line 1 of {}/obj_train_data/train_0.txt",
    "cvat": "box 1 of the image train_0.jpg of {}/annotations.xml",
    "labelme": "shape 1 of {}/train/train_0.json",
    "label_studio": "region a of task 1 of {}/train/project-1-at-2025-01-01.json",
    "openimages": "row 2 of {}/train-annotations-bbox.csv",
}


@pytest.mark.parametrize("name", FORMATS)
def test_faults_are_named_with_their_file_and_place(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", {"train": MADE})
    place = PLACES[name].format(root)
    assert f"such as {place}. At most" in refusal(read_annotations, root, "train").problem
    read = read_annotations(root, "train", max_bad_share=0.1)
    assert place in read.counts.examples.values() and f"such as {place};" in read.summary()


@pytest.mark.parametrize("name", FORMATS)
def test_box_mostly_outside_is_a_warning_with_its_place(tmp_path, caplog, name):
    outside = Picture((60, 80), [Thing("cat", (70, 10, 95, 40)), Thing("cat", (60, 10, 85, 40))])
    if name == "labelme":
        outside.things[1], outside.things[0] = outside.things  # its second thing is drawn as a polygon
    root = FORMATS[name][0](tmp_path / "set", {"train": [outside, *pictures(3)]})
    read = read_annotations(root, "train", max_bad_share=0)
    assert read.counts[MOSTLY_OUTSIDE] == read.counts[CUT] == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    place = read.counts.examples[MOSTLY_OUTSIDE]
    assert len(warnings) == 1 and f"train: 1 {MOSTLY_OUTSIDE}, such as {place}" in warnings[0]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "place"),
    [
        ("voc", "Annotations/train_001.xml", "<xmin>", "<xmin>a", "object 1: "),
        ("labelme", "train/train_0.json", '"points": [[', '"points": [["a", ', "shape 1: "),
        ("cvat", "annotations.xml", 'xtl="', 'xtl="a', "box 1 of the image train_0.jpg: "),
        ("openimages", "train-annotations-bbox.csv", ",1,0.", ",1,a0.", "row 2: "),
        ("label_studio", "train/*.json", '"width": ', '"width": "a", "": ', "region a of task 1: "),
    ],
)
def test_errors_in_label_files_name_the_place(tmp_path, name, file, old, new, place):
    root = FORMATS[name][0](tmp_path / "set", {"train": pictures(2)})
    file = next(root.glob(file))
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert f": {place}" in refusal(read_annotations, root, "train").problem
