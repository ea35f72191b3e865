"""Runs a step and the detections of a detector here and in torchvision or detectron2, and measures the differences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from dupr_tf.detection.parts.box_matching import ground_truth
from dupr_tf.detection.rcnn import masks, model, proposals, region_heads, regions
from dupr_tf.detection.rcnn.pooling import SAMPLES
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from dupr_tf.training.distribution import deterministic_ops
from dupr_tf.weights.export import export
from dupr_tf.weights.paths import SAFETENSORS_FILE
from tests.detection.rcnn.peer_detectors import IMAGES, whole_masks
from tests.detection.rcnn.peer_weights import backbone_pairs, detectron2_pairs, torchvision_pairs

ROOT = Path(__file__).resolve().parents[3]
KEPT = (
    (model, "propose"),
    (proposals, "match_anchors"),
    (proposals, "sample"),
    (regions, "match_rois"),
    (regions, "sample"),
    (region_heads, "pool"),
    (region_heads, "pool_by_level"),
    (masks, "mask_targets"),
)
PEER_SETTINGS = (
    "rpn_pre_nms",
    "rpn_post_nms",
    "fpn_channels",
    "head_channels",
    "head_convs",
    "box_head_width",
    "rois_per_image",
    "score_threshold",
    "nms_iou",
    "max_detections",
)
LOSSES = {
    "rpn_objectness_loss": "loss_objectness",
    "rpn_box_loss": "loss_rpn_box_reg",
    "classification_loss": "loss_classifier",
    "box_loss": "loss_box_reg",
    "mask_loss": "loss_mask",
}


def our_step(detector, batch):
    """Returns the detections, losses, gradients and statistics, and the results of the functions inside, by name."""
    kept = {}

    def keep(module, name):
        function, key = getattr(module, name), f"{module.__name__.split('.')[-1]}.{name}"

        def run(*arguments):
            if name == "match_anchors":
                kept["anchors"] = arguments[0]
            kept[key] = function(*arguments)
            if name == "pool":
                kept.setdefault("pooled", []).append(kept[key])
            if name == "pool_by_level":
                kept.setdefault("pooled", []).append(tf.gather(*kept[key]))
            return kept[key]

        patch.setattr(module, name, run)

    with pytest.MonkeyPatch.context() as patch, deterministic_ops():
        for module, name in KEPT:
            keep(module, name)
        found = detector({name: batch[name] for name in ("images", "image_sizes")})
        at_test = kept.pop("model.propose")
        kept.pop("pooled")
        with tf.GradientTape() as tape:
            losses = detector.losses(batch, training=True)
            total = tf.add_n(list(losses.values()))
        gradients = tape.gradient(total, detector.trainable_variables)
    by_variable = {id(v): g for v, g in zip(detector.trainable_variables, gradients, strict=True)}
    kept |= {"found": found, "at_test": at_test, "losses": losses, "gradients": by_variable}
    return kept


def given_sample(sample, valid):
    """Returns (positive, negative) of one image: bool for each valid row of the table of a `Sample`."""
    flags = np.zeros((2, len(valid)), bool)
    rows, drawn, positive = (np.asarray(field) for field in sample)
    flags[0, rows[drawn & positive]] = flags[1, rows[drawn & ~positive]] = True
    return flags[:, valid]


def peer_inputs(batch, ours, weights):
    """Returns the arrays that `torchvision_process` reads."""
    labels = tf.nest.map_structure(np.asarray, batch["bounding_boxes"])
    inputs = {f"weights/{name}": value for name, value in weights.items()}
    inputs["images"] = ((np.asarray(batch["images"]) - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
    inputs["sizes"] = np.asarray(batch["image_sizes"]).astype(int)
    truth = ground_truth(batch["bounding_boxes"], IMAGES)
    targets = ours.get("masks.mask_targets")
    targets = None if targets is None else tf.reshape(targets, [IMAGES, -1, *targets.shape[1:]]).numpy()
    for i in range(IMAGES):
        real = labels["classes"][i] >= 0
        inputs[f"truth_boxes_{i}"] = labels["boxes"][i][real]
        inputs[f"truth_labels_{i}"] = labels["classes"][i][real].astype(np.int64) + 1
        inputs[f"truth_masks_{i}"] = whole_masks(labels["boxes"][i][real])
        proposals, valid = (np.asarray(part[i]) for part in ours["model.propose"])
        inputs[f"proposals_{i}"] = proposals[valid]
        anchors, regions = ([field[i] for field in ours[name]] for name in ("proposals.sample", "regions.sample"))
        everything = np.ones(len(ours["proposals.match_anchors"][0][i]), bool)
        inputs[f"anchors_positive_{i}"], inputs[f"anchors_negative_{i}"] = given_sample(anchors, everything)
        usable = np.concatenate([valid, np.asarray(truth.valid[i])])
        inputs[f"regions_positive_{i}"], inputs[f"regions_negative_{i}"] = given_sample(regions, usable)
        if targets is not None:
            rows = np.asarray(regions[0])[np.asarray(regions[2])]  # of the positives, which come first
            inputs[f"mask_targets_{i}"] = targets[i][: len(rows)][np.argsort(rows)]  # torchvision has them in order
    return inputs


class Comparison:
    """A step and the detections of a detector in both libraries.

    Args:
        detector: one of `in_float64`, if dtype is float64.
        batch: result of `as_batch`.
        folder: an existing, empty directory.
        dtype: precision in the other library.
    """

    library = backbone_file = other_pairs = None

    def __init__(self, detector, batch, folder, dtype):
        self.detector, self.batch, self.folder, self.dtype = detector, batch, folder, dtype
        others = type(self).other_pairs(detector)
        self.pairs = [*backbone_pairs(detector.backbone, self.library), *others]
        assert len({id(pair.variable) for pair in self.pairs}) == len(detector.variables)
        weights = {pair.name: pair.array() for pair in others}
        export(detector.backbone, self.library, folder / "export")
        self.ours = our_step(detector, batch)
        self.inputs = peer_inputs(batch, self.ours, weights) | self.more_inputs()
        np.savez(folder / "inputs.npz", **self.inputs)
        self.theirs = self.run()

    def settings(self, leave):
        """Returns the settings of the detector, as entries of the job."""
        raise NotImplementedError

    def more_inputs(self):
        """Returns further arrays for the process."""
        return {}

    def run(self, leave=()):
        """Returns the results of the other library, in which the differences in `leave` stay."""
        job = {"kind": "mask" if hasattr(self.detector, "mask_head") else "faster", "images": IMAGES}
        job |= {"dtype": self.dtype, "leave": list(leave), "backbone": str(self.folder / "export" / self.backbone_file)}
        job |= {name: str(self.folder / f"{name}.npz") for name in ("inputs", "outputs")}
        job |= self.settings(leave)
        (self.folder / "job.json").write_text(json.dumps(job))
        process = Path(__file__).with_name(f"{self.library}_process.py")
        command = [sys.executable, "-P", str(process), str(self.folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(self.folder / "outputs.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def losses(self, theirs):
        """Returns the difference of each loss, as a share of it."""
        expected = {name: float(theirs[f"losses/{LOSSES[name]}"]) for name in self.ours["losses"]}
        return {name: abs(float(self.ours["losses"][name]) - value) / value for name, value in expected.items()}

    def gradients(self, theirs):
        """Returns the largest difference of each variable's gradient, as a share of its largest gradient."""
        trained = [pair for pair in self.pairs if pair.variable.trainable]
        own = {pair.name: pair.array(self.ours["gradients"][id(pair.variable)]) for pair in trained}
        return {name: _share(value, theirs[f"gradients/{name}"]) for name, value in own.items()}

    def statistics(self, theirs):
        """Returns the largest difference of each moving mean and variance after the step, as a share of the largest."""
        moving = [pair for pair in self.pairs if not pair.variable.trainable]
        return {pair.name: _share(pair.array(), theirs[f"statistics/{pair.name}"]) for pair in moving}

    def pooled(self, theirs):
        """Returns the largest difference of a pooled feature, as a share of the largest feature."""
        names = [name for name in theirs if name.startswith("pooled")]
        own = [np.concatenate([self.inputs[f"{name}_{i}"] for i in range(IMAGES)]) for name in names]
        return max(_share(value, theirs[name]) for name, value in zip(names, own, strict=True))

    def anchors(self, theirs):
        """Returns the largest difference of a corner of an anchor, px."""
        return float(np.abs(np.asarray(self.ours["anchors"]) - theirs["anchors"]).max())

    def anchor_labels(self, theirs):
        """Returns the number of anchors that are positive, negative or ignored in one library only."""
        positive, negative, _ = (np.asarray(field) for field in self.ours["proposals.match_anchors"])
        own = np.where(positive, 1, np.where(negative, 0, -1))
        return sum(int((own[i] != theirs[f"anchor_labels_{i}"]).sum()) for i in range(IMAGES))

    def region_labels(self, theirs):
        """Returns the number of regions of another class, and the number of those that are no background."""
        positive, matches = (np.asarray(field) for field in self.ours["regions.match_rois"])
        truth = ground_truth(self.batch["bounding_boxes"], IMAGES)
        different = objects = 0
        for i in range(IMAGES):
            usable = np.concatenate([self.ours["model.propose"][1][i], truth.valid[i]])
            own = np.where(positive[i], np.asarray(truth.classes[i])[matches[i]] + 1, 0)[usable]
            different += int((own != theirs[f"region_labels_{i}"]).sum())
            objects += int((own > 0).sum())
        return different, objects

    def proposals(self, theirs, training):
        """Returns the largest difference of a coordinate, px; infinite if the numbers of proposals differ."""
        boxes, valid = (np.asarray(part) for part in self.ours["model.propose" if training else "at_test"])
        name = "proposals" if training else "test_proposals"
        return max(_paired(boxes[i][valid[i]], theirs[f"{name}_{i}"])[0] for i in range(IMAGES))

    def detections(self, theirs):
        """Returns {"boxes": px, "scores", "masks"}, the largest differences of detections of the same class, and their
        number.

        A detection without a counterpart makes boxes infinite.
        """
        largest, number = dict.fromkeys(("boxes", "scores", "masks"), 0.0), 0
        for i in range(IMAGES):
            count = int(self.ours["found"]["num_detections"][i])
            own = {
                name: np.asarray(value[i])[:count] for name, value in self.ours["found"].items() if value.shape.rank > 1
            }
            # Classes lie a kilometre apart, so that only boxes of the same class become a pair.
            offsets = [1e6 * labels[:, None] for labels in (own["classes"] + 1.0, theirs[f"labels_{i}"])]
            boxes, pairs = _paired(own["boxes"].astype(float) + offsets[0], theirs[f"boxes_{i}"] + offsets[1])
            largest["boxes"], number = max(largest["boxes"], boxes), number + count
            if np.isfinite(boxes):
                scores = np.abs(own["confidence"] - theirs[f"scores_{i}"][pairs])
                largest["scores"] = max(largest["scores"], float(scores.max(initial=0)))
            if np.isfinite(boxes) and "masks" in own:
                masks = np.abs(own["masks"] - theirs[f"masks_{i}"][pairs, 0])
                largest["masks"] = max(largest["masks"], float(masks.max(initial=0)))
        return largest, number


class Torchvision(Comparison):
    library, backbone_file, other_pairs = "torchvision", SAFETENSORS_FILE, torchvision_pairs

    def more_inputs(self):
        """Returns the pooled features of each image for boxes and masks, in torchvision's order of regions."""
        inputs = {}
        for i in range(IMAGES):
            rows, drawn, positive = (np.asarray(field[i]) for field in self.ours["regions.sample"])
            for name, chosen, maps in zip(
                ("pooled_box", "pooled_mask"), (drawn, positive), self.ours["pooled"], strict=False
            ):
                places = np.flatnonzero(chosen)
                inputs[f"{name}_{i}"] = _channels_first(maps[i], places[np.argsort(rows[places])])
        return inputs

    def settings(self, leave):
        detector = self.detector
        settings = {name: getattr(detector, name) for name in PEER_SETTINGS}
        settings |= {"classes": len(detector.class_names), "architecture": detector.backbone.architecture}
        settings["anchor_sizes"] = [size for _, (size,) in detector.anchor_levels]
        return settings


class Detectron2(Comparison):
    library, backbone_file, other_pairs = "detectron2", "backbone.pkl", detectron2_pairs

    def more_inputs(self):
        """Returns the pooled features of each image (R, C, 14, 14), in detectron2's order of regions."""
        inputs = {}
        for i in range(IMAGES):
            rows, drawn, positive = (np.asarray(field[i]) for field in self.ours["regions.sample"])
            assert drawn.all()  # norms of the regions see no repetitions
            inputs[f"pooled_{i}"] = _channels_first(self.ours["pooled"][0][i], np.lexsort((rows, ~positive)))
        return inputs

    def settings(self, leave):
        detector, width = self.detector, self.detector.backbone.width
        options = {
            "MODEL.MASK_ON": hasattr(detector, "mask_head"),
            "MODEL.RESNETS.NORM": "BN",  # a synchronised norm has no form on a CPU
            "MODEL.RESNETS.STEM_OUT_CHANNELS": int(64 * width),
            "MODEL.RESNETS.RES2_OUT_CHANNELS": int(256 * width),
            "MODEL.RESNETS.WIDTH_PER_GROUP": int(64 * width),
            "MODEL.ANCHOR_GENERATOR.SIZES": [detector.anchor_levels[0][1]],
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": detector.rpn_pre_nms[0],
            "MODEL.RPN.PRE_NMS_TOPK_TEST": detector.rpn_pre_nms[1],
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": detector.rpn_post_nms[0],
            "MODEL.RPN.POST_NMS_TOPK_TEST": detector.rpn_post_nms[1],
            "MODEL.ROI_HEADS.NUM_CLASSES": len(detector.class_names),
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": detector.rois_per_image,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": detector.score_threshold,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": detector.nms_iou,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0 if "samples" in leave else SAMPLES,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": detector.head_channels,
            "TEST.DETECTIONS_PER_IMAGE": detector.max_detections,
        }
        options = [str(part) for pair in options.items() for part in pair]
        return {"recipe": str(ROOT / "configs" / "detectron2" / "coco_mask_rcnn_c4_1x.yaml"), "options": options}


def _channels_first(maps, rows):
    return np.ascontiguousarray(np.asarray(maps)[rows].transpose(0, 3, 1, 2))


def _share(own, expected):
    assert own.shape == expected.shape
    return float(np.abs(own - expected).max() / np.abs(expected).max())


def _paired(own, others):
    """Pairs the boxes one to one, so that they are nearest. Returns the largest difference and the partners' rows.

    Boxes of almost equal scores may have another order.
    """
    if len(own) != len(others):
        return np.inf, None
    distances = np.abs(own[:, None] - others[None]).max(-1)  # (n, n)
    rows, pairs = linear_sum_assignment(distances)  # one to one, also where boxes of two levels are equal
    return float(distances[rows, pairs].max(initial=0)), pairs
