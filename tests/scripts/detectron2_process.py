"""Runs detectron2 for the interop tests, as a separate program: PyTorch and TensorFlow in one process can crash.

It imports nothing of dupr_tf and takes one JSON argument. It prints its answer as one line of JSON, the last line. The
arguments are:

    {"task": "load", "recipe": FILE, "options": […], "weights": FILE, "inputs": FILE, "output": FILE}
    {"task": "recipes", "recipes": [FILE, …]}
    {"task": "categories"}

Recipes are .yaml files, weights are a .pkl file, and inputs and output are .npz files.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import detectron2_train

LEVELS = {"res2": "P2", "res3": "P3", "res4": "P4", "res5": "P5"}


def load(job):
    """Builds a recipe's model, loads weights as the script does, and runs the backbone in both precisions."""
    model = build(job["recipe"], job["options"]).eval()
    DetectionCheckpointer(model).load(job["weights"])
    answer = compare_weights(model, job["weights"])
    features = {}
    with np.load(job["inputs"]) as inputs, torch.no_grad():
        for dtype in ("float32", "float64"):
            model.to(getattr(torch, dtype))
            for name in inputs.files:
                x = torch.from_numpy(inputs[name].transpose(0, 3, 1, 2).astype(dtype))  # (B, C, H, W)
                for level, value in levels_of(model, x).items():
                    features[f"{dtype} {name} {LEVELS[level]}"] = value.numpy().transpose(0, 2, 3, 1)
    np.savez(job["output"], **features)
    return answer


def build(recipe, options=()):
    """Returns the model of a recipe on the CPU, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["MODEL.WEIGHTS", "random", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder, *options]
        return build_model(detectron2_train.configure(argparse.Namespace(config_file=recipe, opts=options)))


def levels_of(model, x):
    """Returns {"res2": …, …} of the backbone.

    A C4 model has res5 in its box head, followed by a norm that our backbone lacks.
    """
    if hasattr(model.backbone, "bottom_up"):
        return model.backbone.bottom_up(x)
    features = model.backbone(x)
    return {**features, "res5": model.roi_heads.res5[:-1](features["res4"])}


def compare_weights(model, path):
    """Returns names of the model's ResNet without an array, of unused arrays, and of weights that differ."""
    arrays = np.load(path, allow_pickle=True)["model"]  # the test wrote this file; NumPy also reads a bare pickle
    prefixes = ("backbone.bottom_up.", "backbone.", "roi_heads.")
    weights = {}
    for name, value in model.state_dict().items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        short = name.removeprefix(prefix or "")
        if prefix and short.startswith(("stem.", "res")) and not short.endswith("num_batches_tracked"):
            weights[short] = value.numpy()
    added = {name for name in weights if name.startswith("res5.3.")}  # the norm that the script adds
    shared = set(weights) & set(arrays)
    return {
        "missing": sorted(set(weights) - set(arrays) - added),
        "unexpected": sorted(set(arrays) - set(weights)),
        "different": sorted(name for name in shared if not np.array_equal(weights[name], arrays[name])),
    }


def recipes(job):
    """Builds each recipe's model and runs it on one image. Returns {recipe: facts about it, or how it failed}."""
    return {recipe: try_recipe(recipe) for recipe in job["recipes"]}


def try_recipe(recipe):
    try:
        model = build(recipe).eval()
        with torch.no_grad():
            [answer] = model([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "height": 64, "width": 96}])
    except Exception as error:  # the test reports which recipe failed and why
        return {"error": f"{type(error).__name__}: {error}"}
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    return {
        "model": type(model).__name__,
        "classes": model.num_classes if hasattr(model, "num_classes") else model.roi_heads.num_classes,
        "masks": bool(getattr(model, "roi_heads", None) and model.roi_heads.mask_on),
        "norms": len(norms),
        "frozen": sum(not parameter.requires_grad for parameter in model.parameters()),
        "fields": sorted(answer["instances"].get_fields()),
    }


def categories(job):
    """Returns COCO's 80 categories, which detectron2 expects of a COCO file."""
    return [{"id": facts["id"], "name": facts["name"]} for facts in COCO_CATEGORIES if facts["isthing"]]


if __name__ == "__main__":
    received = json.loads(sys.argv[1])
    answer = {"load": load, "recipes": recipes, "categories": categories}[received["task"]](received)
    print(json.dumps(answer))
