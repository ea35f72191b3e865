"""Tables of layouts: complete, in step with the config, the same choice for `auto` everywhere."""

from typing import get_args

import pytest

from dupr_tf.config import DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.layouts import BOXES, FOLDERS, PIXELS, SOURCES, layout_of
from tests.refusals import refusal

TABLES = (SOURCES, FOLDERS, BOXES, PIXELS)
KINDS = {name for table in TABLES for name in table}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_layout_has_a_function_and_a_line(table):
    for name, entry in table.items():
        loaded = table.load(name)
        assert loaded if table is FOLDERS else callable(loaded)
        assert callable(entry.facts["shown"])
        assert entry.summary and "\n" not in entry.summary


def test_config_allows_the_layouts_of_the_tables():
    assert {"auto", *KINDS} == set(get_args(DataConfig.model_fields["kind"].annotation))
    with_masks = {kind for kind in BOXES if BOXES[kind].facts["masks"]}
    assert with_masks == {"coco", "cityscapes"}
    held = {"retinanet": BOXES, "faster_rcnn": BOXES, "mask_rcnn": with_masks, "fcn": PIXELS}
    for detector, kinds in held.items():
        assert {"auto", *kinds} == set(DETECTORS[detector].facts["data"])


def test_unknown_layout_is_refused_with_the_nearest(tmp_path):
    error = refusal(layout_of, BOXES, tmp_path, "coc", "train")
    assert error.field == "data.kind" and error.fix == "Did you mean coco?"
    assert "masks" in refusal(layout_of, PIXELS, tmp_path, "voc").fix


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


@pytest.mark.parametrize(
    ("names", "photos", "boxes", "pixels"),
    [
        ([], "folder", "voc", "masks"),
        (["JPEGImages/1.jpg", "Annotations/1.xml"], "voc", "voc", "masks"),
        (["JPEGImages/1.jpg"], "folder", "voc", "masks"),
        (["images/1.jpg", "annotations/instances_train2017.json"], "coco", "coco", "masks"),
        (["images/1.jpg", "annotations/instances_val.json"], "coco", "voc", "masks"),
        (["1.jpg", "annotations/instances_train.json"], "folder", "coco", "masks"),
        (["JPEGImages/1.jpg", "Annotations/1.xml", "annotations/instances_train.json"], "voc", "coco", "masks"),
        (["leftImg8bit/train/a/1.png", "gtFine/train/a/1.png"], "folder", "cityscapes", "cityscapes"),
    ],
)
def test_auto_takes_the_layout_that_the_root_shows(tmp_path, names, photos, boxes, pixels):
    root = write(tmp_path / "set", *names)
    root.mkdir(exist_ok=True)
    assert [layout_of(table, root, split="train") for table in (FOLDERS, BOXES, PIXELS)] == [photos, boxes, pixels]
