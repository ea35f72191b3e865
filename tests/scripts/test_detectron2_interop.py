"""Tests exports and recipes in a real detectron2, and skips where it is not installed. No extra installs it.

The environment needs this package with the extra `cpu` (requirements.txt), pytest, torch and torchvision. It also needs
detectron2 0.6, built from source against that torch, with what its setup.py lists. Run there

    python -m pytest tests/scripts/test_detectron2_interop.py -m "slow or not slow"

detectron2 runs in separate processes (detectron2_process.py), since PyTorch and TensorFlow in one process can crash.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dupr_tf.models.resnet import LEVELS, ResNetBackbone, pyramid
from dupr_tf.weights.export import export
from dupr_tf.weights.formats import installed
from dupr_tf.weights.verify import SIZES, check_images, normalized
from tests.weights.backbones import randomised

MISSING = [module for module in ("torch", "torchvision", "detectron2") if not installed(module)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("detectron2_process.py")
RECIPES = sorted((ROOT / "configs" / "detectron2").glob("*.yaml"))
INPUTS = {f"{height}x{width}": normalized(check_images((height, width))) for height, width in SIZES}
# Of a level's largest feature. float64 shows that both compute the same function, float32 the effect of rounding.
TOLERANCES = {"float32": 4e-6, "float64": 1e-12}


def run(*command, **variables):
    """Runs a program with this Python, in the repository; returns its output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_job(**job):
    return json.loads(run(PROCESS, json.dumps(job)).splitlines()[-1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a function from an architecture to its export with random weights, and features in both precisions."""
    made = {}

    def make(architecture):
        if architecture not in made:
            backbone = randomised(architecture)
            folder = export(backbone, "detectron2", tmp_path_factory.mktemp(architecture) / "out")
            ours = {}
            for dtype in TOLERANCES:
                twin = ResNetBackbone.from_config({**backbone.get_config(), "dtype": dtype})
                twin.set_weights(backbone.get_weights())
                for size, images in INPUTS.items():
                    levels = pyramid(twin, LEVELS)(images.astype(dtype), training=False)
                    ours |= {f"{dtype} {size} {level}": np.asarray(value) for level, value in levels.items()}
            made[architecture] = folder / "backbone.pkl", ours
        return made[architecture]

    return make


def differences_in_detectron2(recipe, export, folder, *options):
    """Returns {"float32 64x96 P2": largest difference, divided by the largest feature} of an export in a recipe's
    model.

    The weights must be all that the file holds and all that the model's ResNet has.
    """
    weights, ours = export
    inputs, output = folder / "inputs.npz", folder / "features.npz"
    np.savez(inputs, **INPUTS)
    answer = run_job(
        task="load", recipe=str(ROOT / "configs" / "detectron2" / f"{recipe}.yaml"), options=options,
        weights=str(weights), inputs=str(inputs), output=str(output),
    )  # fmt: skip
    assert (answer["missing"], answer["unexpected"], answer["different"]) == ([], [], [])
    with np.load(output) as theirs:
        return {
            name: float(np.abs(ours[name] - theirs[name]).max() / np.abs(ours[name]).max()) for name in theirs.files
        }


@pytest.mark.parametrize(("recipe", "architecture", "options", "levels"), [
    ("base_rcnn_fpn", "resnet50", [], {"P2", "P3", "P4", "P5"}),
    ("base_rcnn_c4", "resnet50", [], {"P4", "P5"}),  # P5 is in the box head
    pytest.param("base_retinanet_fpn", "resnet50", [], {"P3", "P4", "P5"}, marks=pytest.mark.slow),
    pytest.param("base_rcnn_fpn", "resnet18", ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"],
                 {"P2", "P3", "P4", "P5"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_export_has_equal_features_in_detectron2(recipe, architecture, options, levels, exported, tmp_path):
    differences = differences_in_detectron2(recipe, exported(architecture), tmp_path, *options)
    assert set(differences) == {
        f"{dtype} {size} {level}" for dtype in TOLERANCES for size in INPUTS for level in levels
    }
    for dtype, tolerance in TOLERANCES.items():
        worst = max(value for name, value in differences.items() if name.startswith(dtype))
        print(f"{recipe}, {architecture}, {dtype}: {worst:.1e}")  # printed with -s
        assert 0 < worst <= tolerance, differences  # 0 would mean that the same network was compared


def test_default_stride_of_detectron2_gives_other_features(exported, tmp_path):
    options = ["MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    differences = differences_in_detectron2("base_rcnn_fpn", exported("resnet50"), tmp_path, *options)
    assert differences["float64 64x96 P2"] <= TOLERANCES["float64"]  # res2 has no stride
    assert differences["float64 64x96 P3"] > 0.01


@pytest.fixture(scope="module")
def built():
    """Returns detectron2's facts about each recipe."""
    return run_job(task="recipes", recipes=[str(path) for path in RECIPES])


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_detectron2_builds_and_runs_each_recipe(path, built):
    facts = built[str(path)]
    assert "error" not in facts, facts["error"]
    retinanet, masks = "retinanet" in path.stem, "mask" in path.stem or path.stem == "base_rcnn_fpn"
    assert facts["model"] == ("RetinaNet" if retinanet else "GeneralizedRCNN")
    assert facts["classes"] == {"voc": 20, "cityscapes": 8}.get(path.stem.split("_")[0], 80)
    assert facts["masks"] == masks
    assert facts["frozen"] == 0
    if path.stem != "base":
        # ResNet-50's 53 norms, those of the pyramid's three or four laterals and outputs, and the one after res5 in C4.
        assert facts["norms"] == 53 + (1 if "c4" in path.stem else 6 if retinanet else 8)
    assert set(facts["fields"]) == {"pred_boxes", "scores", "pred_classes"} | ({"pred_masks"} if masks else set())


def draw_coco(root):
    """Draws a COCO set of eight training and two validation images, under the names that detectron2 gives COCO's."""
    categories = run_job(task="categories")
    rng, counter = np.random.default_rng(0), iter(range(1, 1000))
    for split, count in (("train2017", 8), ("val2017", 2)):
        images, annotations = [], []
        (root / "coco" / split).mkdir(parents=True)
        for _ in range(count):
            image = Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
            images.append({"id": next(counter), "width": 96, "height": 64})
            images[-1]["file_name"] = f"{images[-1]['id']:012}.jpg"
            for category in rng.choice(categories, 2, replace=False):
                x, y = int(rng.integers(0, 60)), int(rng.integers(0, 30))
                ImageDraw.Draw(image).rectangle((x, y, x + 31, y + 27), fill=tuple(rng.integers(0, 256, 3).tolist()))
                annotations.append({
                    "id": next(counter), "image_id": images[-1]["id"], "category_id": category["id"], "iscrowd": 0,
                    "bbox": [x, y, 32, 28], "area": 32 * 28,
                    "segmentation": [[x, y, x + 32, y, x + 32, y + 28, x, y + 28]],
                })  # fmt: skip
            image.save(root / "coco" / split / images[-1]["file_name"])
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        path = root / "coco" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


# Two iterations on small images, one process without a GPU. With a score of 0, untrained heads detect something.
SHORT = [
    "MODEL.DEVICE", "cpu",
    "DATASETS.TRAIN", "('coco_2017_train_50pct_seed0',)", "DATALOADER.NUM_WORKERS", "0",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH", "2",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.PRECISE_BN.NUM_ITER", "2", "TEST.DETECTIONS_PER_IMAGE", "5",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["coco_mask_rcnn_fpn_1x", "coco_mask_rcnn_c4_1x", "coco_retinanet_fpn_1x"])
def test_script_trains_and_evaluates_a_recipe(recipe, exported, tmp_path):
    weights, _ = exported("resnet50")
    output = tmp_path / "run"
    config = ROOT / "configs" / "detectron2" / f"{recipe}.yaml"
    run(
        ROOT / "scripts" / "detectron2_train.py", "--num-gpus", 0, "--config-file", config,
        "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output, *SHORT, DETECTRON2_DATASETS=str(draw_coco(tmp_path / "data")),
    )  # fmt: skip
    assert (output / "model_final.pth").is_file()
    assert (output / "coco_2017_train_50pct_seed0.txt").read_text().startswith("# 4 images: 50 % of coco_2017_train")
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    logged = {key: value for line in lines for key, value in line.items()}
    assert logged["iteration"] == 2 and np.isfinite(logged["total_loss"])
    kinds = ["bbox"] if "retinanet" in recipe else ["bbox", "segm"]
    assert all(0 <= logged[f"{kind}/AP"] <= 100 for kind in kinds)
    detections = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    validation = json.loads((tmp_path / "data" / "coco" / "annotations" / "instances_val2017.json").read_text())
    assert {found["image_id"] for found in detections} == {image["id"] for image in validation["images"]}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet18", "resnet34"])
def test_script_refuses_a_small_resnet_in_a_c4_model(architecture, exported, tmp_path):
    weights, _ = exported(architecture)
    small = ["MODEL.RESNETS.DEPTH", architecture.removeprefix("resnet"), "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    command = [
        ROOT / "scripts" / "detectron2_train.py", "--num-gpus", 0, "--eval-only", "--config-file",
        ROOT / "configs" / "detectron2" / "coco_mask_rcnn_c4_1x.yaml",
        "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "run", *SHORT, *small,
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "MODEL.WEIGHTS does not fit the backbone" in done.stderr
