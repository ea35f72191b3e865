"""Tests of configs/detectron2/ without detectron2: its keys and types, and the values of the paper's protocols."""

import re
from pathlib import Path

import pytest
import yaml

from tests.scripts.detectron2_defaults import DEFAULTS, TYPES

FOLDER = Path("configs/detectron2")
FILES = sorted(FOLDER.glob("*.yaml"))
COCO_SIDES, VOC_SIDES = list(range(640, 801, 32)), list(range(480, 801, 32))
CITY_SIDES = list(range(800, 1025, 32))
COCO = (["coco_2017_train"], ["coco_2017_val"])
VOC = (["voc_2007_trainval", "voc_2012_trainval"], ["voc_2007_test"])
CITYSCAPES = (["cityscapes_fine_instance_seg_train"], ["cityscapes_fine_instance_seg_val"])


def of_coco(percent):
    return [f"coco_2017_train_{percent}pct_seed0"], COCO[1]


# One row for each recipe (docs/method.md, Transfer), with the columns
# kind, masks, data, classes, lr, batch, iterations, steps, warm-up, sides in training, side in testing
RECIPES = {
    "voc_faster_rcnn_c4_24k":
        ("C4", False, VOC, 20, 0.02, 16, 24_000, [18_000, 22_000], 100, VOC_SIDES, 800),
    "coco_mask_rcnn_fpn_1x":
        ("FPN", True, COCO, 80, 0.02, 16, 90_000, [60_000, 80_000], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_fpn_2x":
        ("FPN", True, COCO, 80, 0.02, 16, 180_000, [120_000, 160_000], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_fpn_12k":
        ("FPN", True, COCO, 80, 0.02, 16, 12_000, [8_000, 10_667], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_fpn_18k":
        ("FPN", True, COCO, 80, 0.02, 16, 18_000, [12_000, 16_000], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_fpn_36k":
        ("FPN", True, COCO, 80, 0.02, 16, 36_000, [24_000, 32_000], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_c4_1x":
        ("C4", True, COCO, 80, 0.02, 16, 90_000, [60_000, 80_000], 1000, COCO_SIDES, 800),
    "coco_mask_rcnn_c4_2x":
        ("C4", True, COCO, 80, 0.02, 16, 180_000, [120_000, 160_000], 1000, COCO_SIDES, 800),
    "coco_retinanet_fpn_1x":
        ("RetinaNet", False, COCO, 80, 0.01, 16, 90_000, [60_000, 80_000], 1000, COCO_SIDES, 800),
    "coco_retinanet_fpn_2x":
        ("RetinaNet", False, COCO, 80, 0.01, 16, 180_000, [120_000, 160_000], 1000, COCO_SIDES, 800),
    "cityscapes_mask_rcnn_fpn_24k":
        ("FPN", True, CITYSCAPES, 8, 0.01, 8, 24_000, [18_000], 1000, CITY_SIDES, 1024),
    "coco_1pct_mask_rcnn_fpn_15k":
        ("FPN", True, of_coco(1), 80, 0.02, 16, 15_000, [10_000, 13_333], 1000, COCO_SIDES, 800),
    "coco_10pct_mask_rcnn_fpn_60k":
        ("FPN", True, of_coco(10), 80, 0.02, 16, 60_000, [40_000, 53_333], 1000, COCO_SIDES, 800),
}  # fmt: skip
# One row for each kind: architecture, backbone's builder, its levels, levels and norm of the pyramid, heads
KINDS = {
    "C4": ("GeneralizedRCNN", None, ["res4"], None, "", "Res5ROIHeadsWithNorm"),
    "FPN": ("GeneralizedRCNN", "build_resnet_fpn_backbone", ["res2", "res3", "res4", "res5"],
            ["res2", "res3", "res4", "res5"], "SyncBN", "StandardROIHeads"),
    "RetinaNet": ("RetinaNet", "build_retinanet_resnet_fpn_backbone", ["res3", "res4", "res5"],
                  ["res3", "res4", "res5"], "SyncBN", None),
}  # fmt: skip


def flat(values, prefix=""):
    """Returns {dotted key: value} of nested mappings."""
    items = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items


def own(path):
    """Returns the settings of one file, without its base."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values.pop("_BASE_", None), flat(values)


def resolved(path):
    """Returns a file merged over its base, as detectron2 merges them, over detectron2's defaults."""
    base, values = own(path)
    return {**(resolved(path.parent / base) if base else DEFAULTS), **values}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_and_types_are_those_of_detectron2(path):
    for key, value in own(path)[1].items():
        assert key in TYPES, f"{key} is not among the noted keys of detectron2"
        assert type(value) is TYPES[key], f"{key}: {value!r}"


def test_recipes_and_rows_correspond():
    assert {path.stem for path in FILES if not path.stem.startswith("base")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_values_of_its_row(name):
    cfg = resolved(FOLDER / f"{name}.yaml")
    kind, masks, (train, test), classes, rate, batch, iterations, steps, warm_up, sides, side = RECIPES[name]
    architecture, builder, levels, pyramid, norm, heads = KINDS[kind]
    received = {key: cfg.get(key) for key in TYPES}
    expected = {
        "MODEL.META_ARCHITECTURE": architecture, "MODEL.BACKBONE.NAME": builder, "MODEL.MASK_ON": masks,
        "MODEL.RESNETS.OUT_FEATURES": levels, "MODEL.FPN.IN_FEATURES": pyramid, "MODEL.FPN.NORM": norm,
        "MODEL.ROI_HEADS.NAME": heads, "DATASETS.TRAIN": train, "DATASETS.TEST": test,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes, "SOLVER.BASE_LR": rate, "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": steps, "SOLVER.WARMUP_ITERS": warm_up,
        "INPUT.MIN_SIZE_TRAIN": sides, "INPUT.MIN_SIZE_TEST": side,
        # the same in every row
        "INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375], "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NORM": "SyncBN", "MODEL.RESNETS.DEPTH": 50, "MODEL.BACKBONE.FREEZE_AT": 0,
        "TEST.PRECISE_BN.ENABLED": True, "MODEL.ROI_BOX_HEAD.NORM": "", "MODEL.ROI_MASK_HEAD.NORM": "",
        "MODEL.RETINANET.NORM": "", "TEST.EVAL_PERIOD": 8000 if name.startswith("cityscapes") else 0,
    }  # fmt: skip
    assert {key: received[key] for key in expected} == expected


def test_retinanet_has_three_anchors_per_octave():
    sizes = resolved(FOLDER / "coco_retinanet_fpn_1x.yaml")["MODEL.ANCHOR_GENERATOR.SIZES"]
    for level, base in zip(sizes, (32, 64, 128, 256, 512), strict=True):
        assert level == pytest.approx([base * 2 ** (i / 3) for i in range(3)], rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_header_states_row_figures_and_command(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    header = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Tables? \d|Figs\. \d", header.split("The paper's")[0])
    assert "The paper's, not run here: " in header
    assert f"--config-file configs/detectron2/{name}.yaml" in header and f"OUTPUT_DIR runs/{name}" in header
