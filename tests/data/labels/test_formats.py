"""Tests that label formats are recognised and read onto the painted pixels, and that losses are counted."""

import json
import math

import numpy as np
import pytest

from dupr_tf.data.detection import read_image
from dupr_tf.data.labels import coco, cvat, label_studio, labelme, openimages, voc
from dupr_tf.data.labels.annotations import DROPPED, NO_FILE, OTHER_SIZE, UNMASKED, read_annotations
from dupr_tf.data.labels.finding import OTHERS
from dupr_tf.data.labels.run_lengths import pixels_of
from dupr_tf.data.labels.shapes import FLAT, ROTATED, ROUND
from dupr_tf.data.labels.split import MissingSplit
from dupr_tf.data.layouts import BOXES, layout_of
from tests.label_formats import (
    FORMATS,
    ONE,
    SCENE,
    SPLITS,
    check_boxes,
    dump,
    labelme_content,
    labelme_shape,
    studio_result,
    studio_task,
    write_cvat,
    write_images,
    write_labelme,
    write_roboflow,
    write_yolo,
)
from tests.labelled_scenes import COLOURS, NAMES, pictures, voc_text
from tests.refusals import refusal

LOST = (*DROPPED, NO_FILE, OTHER_SIZE, FLAT, ROTATED, ROUND)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    return {name: write(folder / name, SPLITS) for name, (write, *_) in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_auto_recognises_format_in_both_splits(roots, name):
    kind = FORMATS[name][1]
    assert [layout_of(BOXES, roots[name], split=split) for split in SPLITS] == [kind, kind]


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_lie_on_painted_pixels(roots, name):
    for split, made in SPLITS.items():
        read = read_annotations(roots[name], split, max_bad_share=0)
        assert len(read) == len(made) and set(read.class_names) == set(NAMES)
        assert [read.counts[what] for what in LOST] == [0] * len(LOST)
        assert sum(map(len, read.boxes)) == sum(len(picture.things) for picture in made)
        for path, size, boxes, labels in zip(read.paths, read.sizes, read.boxes, read.labels, strict=True):
            pixels = read_image(path).astype(int)
            assert pixels.shape[:2] == tuple(size)
            x1, y1, x2, y2 = boxes[-1].round().astype(int)  # the last one is painted over the others
            for corner in (pixels[y1 + 2, x1 + 2], pixels[y2 - 3, x2 - 3]):
                assert np.abs(corner - COLOURS[read.class_names[labels[-1]]]).max() <= 24
        check_boxes(read, made)


@pytest.mark.parametrize("name", FORMATS)
def test_ignored_objects_are_marked_if_the_format_allows_it(roots, name):
    read = read_annotations(roots[name], "train")
    difficult = sum(thing.difficult for picture in SPLITS["train"] for thing in picture.things)
    assert difficult > 0 and sum(flags.sum() for flags in read.ignored) == difficult * FORMATS[name][2]


@pytest.mark.parametrize("name", ["coco", "roboflow", "fiftyone", "lvis", "yolo", "labelme"])
def test_outlines_become_masks_of_their_box(roots, name):
    read = read_annotations(roots[name], "train", masks=True)
    assert read.counts[UNMASKED] == (name == "labelme") * 9  # one rectangle an image
    for size, boxes, masks, ignored in zip(read.sizes, read.boxes, read.masks, read.ignored, strict=True):
        for box, mask, without in zip(boxes, masks, ignored, strict=True):
            x1, y1, x2, y2 = box.round().astype(int)
            pixels = pixels_of(mask, size)
            assert without or (pixels.sum() == pixels[y1:y2, x1:x2].sum() == (y2 - y1) * (x2 - x1))


@pytest.mark.parametrize("name", FORMATS)
def test_missing_val_is_a_missing_split(tmp_path, name):
    write, kind, _ = FORMATS[name]
    root = write(tmp_path / "set", ONE)
    for chosen in ("auto", kind):
        with pytest.raises(MissingSplit):
            read_annotations(root, "val", chosen)
    assert len(read_annotations(root, "train")) == 1


@pytest.mark.parametrize("name", ["labelme", "label_studio", "roboflow", "roboflow_voc", "fiftyone"])
def test_folder_without_splits_is_train(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", ONE) / "train"
    assert len(read_annotations(root, "train")) == 1
    with pytest.raises(MissingSplit):
        read_annotations(root, "val", FORMATS[name][1])


def test_two_formats_in_one_root_are_refused(tmp_path):
    root = write_roboflow(write_yolo(tmp_path / "set", ONE), ONE)
    assert refusal(read_annotations, root, "train").field == "data.kind"
    assert len(read_annotations(root, "train", "yolo")) == len(read_annotations(root, "train", "roboflow")) == 1


def test_classes_that_only_val_lists_are_counted(roots):
    read = read_annotations(roots["coco"], "val", class_names=[*NAMES, "more"])
    assert sum("only this split" in what for what in read.counts) == 0
    file = json.loads((roots["coco"] / "annotations/instances_val2017.json").read_text())
    file["categories"].append({"id": 99, "name": "extra"})
    root = roots["coco"].parent / "differing"
    dump(root / "annotations/instances_val.json", file)
    (root / "images").symlink_to(roots["coco"] / "val2017")
    read = read_annotations(root, "val", class_names=NAMES)
    assert [count for what, count in read.counts.items() if "extra" in what] == [1]


def test_links_to_folders_of_images_are_followed_once(tmp_path):
    root = write_cvat(tmp_path / "set", SPLITS)
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    assert len(read_annotations(root, "val", max_bad_share=0)) == 3


# ---- COCO's relatives


def test_root_category_of_roboflow_is_no_class(roots):
    read = read_annotations(roots["roboflow"], "train")
    assert read.class_names == NAMES
    assert [count for what, count in read.counts.items() if "things" in what] == [1]


def test_category_that_has_boxes_stays_a_class(tmp_path):
    root = write_roboflow(tmp_path / "set", ONE)
    file = root / "train/_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    dump(file, content)
    assert read_annotations(root, "train").class_names == ("things", *NAMES)


def test_lvis_counts_images_not_searched_for_every_class(roots):
    assert read_annotations(roots["lvis"], "train").counts[coco.FEDERATED] == 9


def test_images_of_one_split_in_two_folders_are_refused(tmp_path):
    root = FORMATS["coco"][0](tmp_path / "set", {"val": pictures(4)})
    (root / "train2017").mkdir()
    for name in ("val_1.jpg", "val_3.jpg"):
        (root / "val2017" / name).rename(root / "train2017" / name)
    error = refusal(read_annotations, root, "val")
    assert "train2017" in error.problem and "val2017" in error.problem


# ---- CVAT


def cvat_shapes(tmp_path, text):
    root = write_cvat(tmp_path / "set", {"train": [SCENE]})
    file = root / "annotations.xml"
    start, end = file.read_text().index("<box"), file.read_text().index("</image>")
    file.write_text(file.read_text()[:start] + text + file.read_text()[end:])
    return root


def test_cvat_mask_is_read_row_by_row(tmp_path):
    """The mask is an L of 2 x 3 pixels at (5, 7)."""
    root = cvat_shapes(tmp_path, '<mask label="cat" rle="0, 1, 1, 1, 1, 2" left="5" top="7" width="2" height="3"/>')
    read = read_annotations(root, "train", masks=True)
    expected = np.zeros((60, 80), int)
    expected[7:10, 5] = expected[9, 6] = 1
    np.testing.assert_array_equal(read.boxes[0], [[5, 7, 7, 10]])
    np.testing.assert_array_equal(pixels_of(read.masks[0][0], read.sizes[0]), expected)


def test_rotated_and_round_shapes_get_the_box_around_them(tmp_path):
    text = '<box label="cat" xtl="30" ytl="25" xbr="50" ybr="35" rotation="90.0"/>'
    text += '<ellipse label="dog" cx="40" cy="30" rx="20" ry="10" rotation="30"/>'
    text += '<polygon label="bus" points="1,1;9,1;1,9"/>'
    read = read_annotations(cvat_shapes(tmp_path, text), "train")
    reach = math.hypot(20 * math.cos(math.pi / 6), 5), math.hypot(10, 10 * math.cos(math.pi / 6))
    ellipse = [40 - reach[0], 30 - reach[1], 40 + reach[0], 30 + reach[1]]
    np.testing.assert_allclose(read.boxes[0], [[35, 20, 45, 40], ellipse, [1, 1, 9, 9]], atol=1e-4)
    assert read.counts[ROTATED] == read.counts[ROUND] == 1
    np.testing.assert_allclose(read.areas[0], [200, 200 * math.pi, 32], rtol=2e-3)


def test_other_cvat_shapes_are_counted_by_kind(tmp_path):
    text = (
        '<points label="cat" points="1,1"/><polyline label="cat" points="1,1;2,2"/><tag label="cat"/><tag label="dog"/>'
    )
    counts = read_annotations(cvat_shapes(tmp_path, text), "train").counts
    assert [counts[f"shapes of kind {kind}, not read"] for kind in ("points", "polyline", "tag")] == [1, 1, 2]


@pytest.mark.parametrize(
    "text",
    ['<mask label="cat" rle="1, 1" left="0" top="0" width="2" height="2"/>', '<box label="cat" xtl="a"/>', "<box"],
)
def test_wrong_cvat_shapes_are_refused(tmp_path, text):
    assert "annotations.xml" in refusal(read_annotations, cvat_shapes(tmp_path, text), "train").problem


@pytest.mark.parametrize("image", ["", '<image name="a.jpg" width="9" height="9"/>'])
def test_cvat_video_is_refused_with_the_export_to_use(tmp_path, image):
    text = f'<annotations><version>1.1</version>{image}<track id="0" label="cat"/></annotations>'
    dump(tmp_path / "annotations.xml", text)
    error = refusal(read_annotations, tmp_path, "train")
    assert "video" in error.problem and "images 1.1" in error.fix


# ---- VOC without lists


def unlisted_voc(tmp_path, count=4):
    """Writes `annotations/*.xml` beside `images/`, as many sets of Kaggle have it, all in one folder each."""
    root, made = tmp_path / "set", pictures(count)
    for name, picture in zip(write_images(root / "images", "train", made), made, strict=True):
        head = f'<annotation verified="yes"><filename>C:\\photos\\{name}</filename>'
        dump(root / "annotations" / f"{name[:-4]}.xml", voc_text(picture, head))
    return root


def test_all_images_of_voc_without_lists_are_train(tmp_path, caplog):
    caplog.set_level("INFO")
    root = unlisted_voc(tmp_path)
    check_boxes(read_annotations(root, "train", max_bad_share=0), pictures(4))
    assert sum("no ImageSets/Main" in line for line in caplog.messages) == 1
    with pytest.raises(MissingSplit):
        read_annotations(root, "val")


def test_voc_file_finds_its_image_by_the_stated_name(tmp_path):
    root = unlisted_voc(tmp_path)
    (root / "annotations/train_1.xml").rename(root / "annotations/z.xml")
    check_boxes(read_annotations(root, "train", max_bad_share=0), pictures(4))


def test_voc_with_lists_of_other_splits_lacks_train(tmp_path):
    root = FORMATS["voc"][0](tmp_path / "set", ONE)
    (root / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(MissingSplit):
        read_annotations(root, "train")


def test_other_xml_files_beside_voc_are_counted(tmp_path):
    root = unlisted_voc(tmp_path)
    dump(root / "annotations/z.xml", "<pipeline/>")
    write_images(root / "images", "more", pictures(1))
    counts = read_annotations(root, "train").counts
    assert counts[OTHERS] == 1 and counts[voc.UNLABELLED] == 1


def test_listed_file_that_is_no_voc_annotation_is_refused(tmp_path):
    root = FORMATS["voc"][0](tmp_path / "set", ONE)
    dump(root / "Annotations/train_001.xml", "<annotations/>")
    assert "train_001.xml" in refusal(read_annotations, root, "train").problem


def test_cvat_reads_subsets_of_one_file_apart(roots):
    assert {len(read_annotations(roots["cvat"], split)) for split in SPLITS} == {9, 3}
    assert cvat.find(roots["cvat"], "test") == []


# ---- LabelMe


def labelme_shapes(tmp_path, *shapes):
    root = write_labelme(tmp_path / "set", {"train": [SCENE]})
    dump(root / "train/train_0.json", labelme_content("train_0.jpg", SCENE, list(shapes)))
    return root


def test_labelme_circles_and_groups_are_read_and_counted(tmp_path):
    circle = labelme_shape("cat", "circle", [[30, 30], [33, 34]])
    parts = [
        labelme_shape("dog", "rectangle", corners) | {"group_id": 4}
        for corners in ([[1, 1], [5, 5]], [[9, 9], [20, 7]])
    ]
    read = read_annotations(labelme_shapes(tmp_path, circle, *parts), "train", masks=True)
    np.testing.assert_allclose(read.boxes[0], [[25, 25, 35, 35], [1, 1, 20, 9]], atol=1e-5)
    assert read.counts[ROUND] == 1 and read.counts[labelme.JOINED] == 2
    assert pixels_of(read.masks[0][1], read.sizes[0]).sum() == 16 + 22


def test_labelme_lines_and_points_are_counted_by_kind(tmp_path):
    shapes = [labelme_shape("cat", kind, [[1, 1], [9, 9]]) for kind in ("line", "point", "point", "rectangle")]
    counts = read_annotations(labelme_shapes(tmp_path, *shapes), "train").counts
    assert [counts[f"shapes of kind {kind}, not read"] for kind in ("line", "point")] == [1, 2]


def test_labelme_images_and_files_without_partner_are_counted(tmp_path):
    root = write_labelme(tmp_path / "set", {"train": pictures(3)})
    (root / "train/train_0.json").unlink()
    dump(root / "train/z.json", {"other": 1})
    counts = read_annotations(root, "train").counts
    assert counts[labelme.UNLABELLED] == 1 and counts[OTHERS] == 1


def test_labelme_paths_of_other_systems_are_followed(tmp_path):
    root = write_labelme(tmp_path / "set", {"train": [SCENE]})
    dump(root / "train/json/train_0.json", labelme_content("..\\train_0.jpg", SCENE))
    (root / "train/train_0.json").unlink()
    assert len(read_annotations(root, "train").boxes[0]) == 1


# ---- Label Studio


def studio(tmp_path, *results, **task):
    write_images(tmp_path / "train", "train", [SCENE])
    dump(tmp_path / "train/project.json", [studio_task(1, "train_0.jpg", SCENE, list(results)) | task])
    return tmp_path


def test_label_studio_turns_boxes_about_their_first_corner(tmp_path):
    place = {
        "x": 50,
        "y": 50,
        "width": 25,
        "height": 10,
        "rotation": 90,
        "rectanglelabels": ["cat"],
    }  # (40, 30), 20 x 6
    read = read_annotations(studio(tmp_path, studio_result("rectanglelabels", SCENE, place)), "train")
    np.testing.assert_allclose(read.boxes[0], [[34, 30, 40, 50]], atol=1e-4)
    assert read.counts[ROTATED] == 1


def test_label_studio_polygons_ellipses_and_other_results(tmp_path):
    points = {"points": [[0, 0], [50, 0], [0, 50]], "polygonlabels": ["dog", "cat"]}
    circle = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0, "ellipselabels": ["bus"]}
    results = [studio_result("polygonlabels", SCENE, points), studio_result("ellipselabels", SCENE, circle)]
    results += [
        studio_result("keypointlabels", SCENE, {"keypointlabels": ["cat"]}),
        studio_result("choices", SCENE, {}),
    ]
    read = read_annotations(studio(tmp_path, *results), "train")
    np.testing.assert_allclose(read.boxes[0], [[0, 0, 40, 30]] * 2 + [[32, 24, 48, 36]], atol=1e-4)
    assert read.counts[label_studio.SEVERAL] == read.counts[ROUND] == 1
    kinds = ("keypointlabels", "choices")
    assert [read.counts[f"results of kind {kind}, not read"] for kind in kinds] == [1, 1]


def test_label_studio_counts_tasks_it_does_not_read(tmp_path):
    root = studio(tmp_path)
    made = [studio_task(k, "train_0.jpg", SCENE) for k in range(4)]
    made[0]["annotations"] = []
    made[1]["annotations"] *= 2
    made[2]["annotations"][0]["result"][0]["image_rotation"] = 90
    dump(root / "train/project.json", made)
    counts = read_annotations(root, "train").counts
    assert [counts[what] for what in (label_studio.UNFINISHED, label_studio.FURTHER, label_studio.TURNED)] == [1, 1, 1]


@pytest.mark.parametrize("address", ["s3://bucket/a/train_0.jpg", "/data/local-files/?d=x/train_0.jpg", "train_0.jpg"])
def test_label_studio_images_are_found_by_their_address(tmp_path, address):
    box = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["cat"]}
    root = studio(tmp_path, studio_result("rectanglelabels", SCENE, box), data={"image": address})
    assert len(read_annotations(root, "train", max_bad_share=0).boxes[0]) == 1


def test_label_studio_json_min_names_the_export_to_use(tmp_path):
    """The export JSON-MIN lacks `image_rotation`, so that boxes of a turned image would be wrong."""
    place = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
    place |= {"original_width": 80, "original_height": 60}
    write_images(tmp_path / "train", "train", [SCENE])
    row = {"image": "/data/upload/1/0a1b2c3d-train_0.jpg", "id": 1, "label": [place], "annotator": 1}
    dump(tmp_path / "train/project.json", [row | {"annotation_id": 1, "lead_time": 4.5}])
    error = refusal(read_annotations, tmp_path, "train")
    assert "JSON-MIN" in error.problem and "as JSON" in error.fix


def test_other_json_files_beside_label_studio_are_counted(tmp_path):
    root = FORMATS["label_studio"][0](tmp_path / "set", ONE)
    dump(root / "train/notes.json", {"annotations": 1})
    assert read_annotations(root, "train").counts[OTHERS] == 1


def test_label_studio_task_without_image_is_refused(tmp_path):
    assert "task 1" in refusal(read_annotations, studio(tmp_path, data={}), "train").problem


# ---- OpenImages


def test_openimages_counts_unknown_groups_and_unlisted_images(tmp_path):
    root = FORMATS["openimages"][0](tmp_path / "set", {"train": pictures(3)})
    file = root / "train-annotations-bbox.csv"
    lines = file.read_text().splitlines()
    kept = [lines[0], *(line for line in lines[1:] if not line.startswith("train_0"))]
    file.write_text("\n".join([*kept[:-1], kept[-1].rpartition(",")[0] + ",-1"]))
    counts = read_annotations(root, "train").counts
    assert counts[openimages.UNKNOWN_GROUP] == 1 and counts[openimages.UNLABELLED] == 1


@pytest.mark.parametrize(
    "line", ["a,b", "train_0,xclick,/m/09,1,0,1,0,1,0,0", "train_0,xclick,/m/00,1,a,1,0,1,0,0", "\0"]
)
def test_wrong_openimages_rows_are_refused(tmp_path, line):
    root = FORMATS["openimages"][0](tmp_path / "set", ONE)
    file = root / "train-annotations-bbox.csv"
    file.write_text(file.read_text() + line + "\n")
    assert file.name in refusal(read_annotations, root, "train").problem
