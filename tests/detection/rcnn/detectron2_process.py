"""Runs detectron2's Faster or Mask R-CNN on res4 on given weights, batch, samples and proposals.

    python detectron2_process.py JOB.json

Arguments, files and reasons are those of `torchvision_process.py`; `backbone` is the .pkl file of an export. The model
is that of a recipe in `configs/detectron2/`, with the options of the job. The only intended differences are the
sampling of RoIAlign, which is an option, and the masks to train on.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2 import layers
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils, rpn
from detectron2.modeling.roi_heads import fast_rcnn, roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
import detectron2_train

LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
    "loss_mask": "loss_mask",
}


class GivenSample:
    """Replaces `subsample_labels`: draws the given rows, image after image, and keeps the labels of all rows."""

    def __init__(self, inputs, name, images):
        kinds = ("positive", "negative")
        self.rows = iter([[inputs[f"{name}_{kind}_{i}"] for kind in kinds] for i in range(images)])
        self.labels = []

    def __call__(self, labels, *settings):
        self.labels.append(labels.clone())  # the caller overwrites them
        return [torch.from_numpy(np.flatnonzero(flags)) for flags in next(self.rows)]


def load(model, job, inputs):
    """Loads the backbone as users do, and every other weight by name."""
    DetectionCheckpointer(model).load(job["backbone"])
    others = {name.removeprefix("weights/"): inputs[name] for name in inputs.files if name.startswith("weights/")}
    unknown = set(others) - set(model.state_dict())
    if unknown:
        raise SystemExit(f"unexpected {sorted(unknown)}")
    model.load_state_dict({name: torch.from_numpy(value) for name, value in others.items()}, strict=False)


def detect(model, images):
    """Returns detectron2's own proposals and detections at test."""
    model.eval()
    with torch.no_grad():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        found, _ = model.roi_heads(images, features, proposals, None)
    results = {}
    for i, one in enumerate(found):
        results[f"test_proposals_{i}"] = proposals[i].proposal_boxes.tensor
        results |= {f"boxes_{i}": one.pred_boxes.tensor, f"scores_{i}": one.scores, f"labels_{i}": one.pred_classes + 1}
        if one.has("pred_masks"):
            results[f"masks_{i}"] = one.pred_masks
    return results


def truth_of(i, size, job, inputs):
    """Returns the ground truth of an image."""
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.from_numpy(inputs[f"truth_boxes_{i}"]))
    truth.gt_classes = torch.from_numpy(inputs[f"truth_labels_{i}"]) - 1
    if job["kind"] == "mask":
        truth.gt_masks = BitMasks(torch.from_numpy(inputs[f"truth_masks_{i}"]))
    return truth


def given_proposals(i, size, inputs):
    proposals = Instances(size)
    proposals.proposal_boxes = Boxes(torch.from_numpy(inputs[f"proposals_{i}"]))
    proposals.objectness_logits = torch.zeros(len(proposals))
    return proposals


def accept_float64():
    """Lets NMS take scores in float64. detectron2 casts only the boxes to float32."""

    def batched_nms(boxes, scores, *settings):
        return layers.batched_nms(boxes, scores.float(), *settings)

    proposal_utils.batched_nms = fast_rcnn.batched_nms = batched_nms


def use_masks(job, inputs):
    """Gives each image our targets. detectron2 crops them from the mask of the whole image."""
    targets = iter([torch.from_numpy(inputs[f"mask_targets_{i}"]) for i in range(job["images"])])
    BitMasks.crop_and_resize = lambda masks, boxes, side: next(targets)


def use_pooled(model, job, inputs):
    """Gives the pooled features of a step our values, which are rounded to float32, and keeps their gradient.

    Otherwise rounding would decide which rectified units close to 0 pass their gradient. Returns a list that receives
    detectron2's own features.
    """
    given, kept = np.concatenate([inputs[f"pooled_{i}"] for i in range(job["images"])]), []
    pool = model.roi_heads.pooler.forward

    def pool_given(features, boxes):
        own = pool(features, boxes)
        kept.append(own.detach())
        return own if "samples" in job["leave"] else own + (torch.from_numpy(given) - own).detach()

    model.roi_heads.pooler.forward = pool_given
    return kept


def train(model, images, job, inputs):
    """Returns the losses of a step, every gradient, detectron2's own proposals and labels, and the new statistics."""
    model.train()
    count, sizes = job["images"], images.image_sizes
    rpn.subsample_labels = of_anchors = GivenSample(inputs, "anchors", count)
    roi_heads.subsample_labels = of_regions = GivenSample(inputs, "regions", count)
    pooled = use_pooled(model, job, inputs)
    targets = [truth_of(i, sizes[i], job, inputs) for i in range(count)]
    with EventStorage():
        features = model.backbone(images.tensor)
        proposals, losses = model.proposal_generator(images, features, targets)
        given = [given_proposals(i, sizes[i], inputs) for i in range(count)]
        _, of_heads = model.roi_heads(images, features, given, targets)
    losses |= of_heads
    sum(losses.values()).backward()
    results = {f"losses/{LOSSES[name]}": value.detach() for name, value in losses.items()}
    results |= {f"gradients/{name}": value.grad for name, value in model.named_parameters() if value.grad is not None}
    results |= {f"statistics/{name}": value for name, value in model.named_buffers() if "running" in name}
    levels = model.proposal_generator.anchor_generator(list(features.values()))
    results["pooled"] = pooled[0]
    results["anchors"] = torch.cat([level.tensor for level in levels])
    for i in range(count):
        results[f"proposals_{i}"] = proposals[i].proposal_boxes.tensor
        results[f"anchor_labels_{i}"] = of_anchors.labels[i]
        labels = of_regions.labels[i]
        results[f"region_labels_{i}"] = torch.where(labels == model.roi_heads.num_classes, 0, labels + 1)
    return results


def main(file):
    with open(file, encoding="utf-8") as opened:
        job = json.load(opened)
    inputs = np.load(job["inputs"], allow_pickle=False)
    with tempfile.TemporaryDirectory() as folder:
        options = ["MODEL.WEIGHTS", "random", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", folder, *job["options"]]
        config = detectron2_train.configure(argparse.Namespace(config_file=job["recipe"], opts=options))
        model = build_model(config)
    load(model, job, inputs)
    dtype = getattr(torch, job["dtype"])
    model.to(dtype)
    accept_float64()
    if job["kind"] == "mask" and "masks" not in job["leave"]:
        use_masks(job, inputs)
    sizes = [tuple(int(side) for side in size) for size in inputs["sizes"]]
    images = ImageList(torch.from_numpy(inputs["images"]).to(dtype), sizes)
    results = {**detect(model, images), **train(model, images, job, inputs)}
    np.savez(job["outputs"], **{name: value.numpy() for name, value in results.items()})


if __name__ == "__main__":
    main(sys.argv[1])
