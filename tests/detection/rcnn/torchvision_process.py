"""Runs torchvision's Faster or Mask R-CNN on given weights, batch, samples and proposals.

    python -P torchvision_process.py JOB.json

It runs in a separate process, because PyTorch and TensorFlow can crash each other, and imports nothing of this package.
`JOB.json` has the settings and three files: `backbone`, the safetensors file of an export; `inputs`, the other weights
and the batch (npz); `outputs`, where the results go (npz).

torchvision runs unchanged except for the intended differences in `MATCHED`. `leave` in the job names those that stay.
"""

import json
import sys
import types

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN, MaskRCNN, roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, poolers
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

LEVELS = ["0", "1", "2", "3"]


def build(job):
    """Returns torchvision's detector with the settings of the job, by its public arguments only."""
    body = getattr(torchvision.models, job["architecture"])(weights=None)
    width = body.fc.in_features // 8
    backbone = BackboneWithFPN(
        body,
        {f"layer{i + 1}": LEVELS[i] for i in range(4)},
        [width * 2**i for i in range(4)],
        job["fpn_channels"],
        extra_blocks=LastLevelMaxPool(),
        norm_layer=torch.nn.BatchNorm2d,
    )
    classes = job["classes"] + 1
    ratios = ((0.5, 1.0, 2.0),) * 5
    arguments = {
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in job["anchor_sizes"]), ratios),
        "rpn_pre_nms_top_n_train": job["rpn_pre_nms"][0],
        "rpn_pre_nms_top_n_test": job["rpn_pre_nms"][1],
        "rpn_post_nms_top_n_train": job["rpn_post_nms"][0],
        "rpn_post_nms_top_n_test": job["rpn_post_nms"][1],
        "box_roi_pool": MultiScaleRoIAlign(LEVELS, 7, sampling_ratio=2),
        "box_head": TwoMLPHead(job["fpn_channels"] * 49, job["box_head_width"]),
        "box_predictor": FastRCNNPredictor(job["box_head_width"], classes),
        "box_score_thresh": job["score_threshold"],
        "box_nms_thresh": job["nms_iou"],
        "box_detections_per_img": job["max_detections"],
        "box_batch_size_per_image": job["rois_per_image"],
    }
    if job["kind"] == "faster":
        return FasterRCNN(backbone, **arguments)
    channels = job["head_channels"]
    return MaskRCNN(
        backbone,
        **arguments,
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(job["fpn_channels"], (channels,) * job["head_convs"], 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
    )


# ---- the intended differences ----


def _exact_anchors(model, job, inputs):
    """torchvision rounds the corners of a cell's anchors to whole pixels."""
    anchors = [
        [(-w / 2, -h / 2, w / 2, h / 2) for w, h in ((size / r**0.5, size * r**0.5) for r in (0.5, 1, 2))]
        for size in job["anchor_sizes"]
    ]
    model.rpn.anchor_generator.cell_anchors = [torch.tensor(cell) for cell in anchors]


def _fixed_strides(model, job, inputs):
    """torchvision's strides are sides of the image over sides of the map, rounded down: 53 of P6 at 160 px, not 64."""
    generator, strides = model.rpn.anchor_generator, [[4 * 2**i] * 2 for i in range(5)]
    grid_anchors = generator.grid_anchors
    generator.grid_anchors = lambda sizes, _: grid_anchors(sizes, torch.tensor(strides))


def _l1_loss(model, job, inputs):
    """torchvision's smooth L1 is quadratic below 1/9."""

    def smooth_l1_loss(predicted, target, beta, reduction):
        return torch.nn.functional.l1_loss(predicted, target, reduction=reduction)

    functions = {**vars(torch.nn.functional), "smooth_l1_loss": smooth_l1_loss}
    rpn.F = roi_heads.F = types.SimpleNamespace(**functions)


def _smallest_boxes(model, job, inputs):
    """torchvision drops proposals with a side below 0.001 px and detections with one below 0.01 px."""

    def remove_empty_boxes(boxes, min_size):
        return torch.where((boxes[:, 2:] > boxes[:, :2]).all(1))[0]

    torchvision.ops.boxes.remove_small_boxes = remove_empty_boxes


def _half_pixels(model, job, inputs):
    """torchvision's detectors pool without the shift by half a cell, and take boxes below a cell for one cell."""

    def aligned(*arguments, **settings):
        return torchvision.ops.roi_align(*arguments, **settings, aligned=True)

    poolers.roi_align = aligned


def _binary_masks(model, job, inputs):
    """torchvision trains on fractional masks, cropped from the mask of the whole image."""
    if job["kind"] != "mask":
        return
    dtype = getattr(torch, job["dtype"])
    targets = iter([torch.from_numpy(inputs[f"mask_targets_{i}"]).to(dtype) for i in range(job["images"])])
    roi_heads.project_masks_on_boxes = lambda masks, boxes, matches, side: next(targets)


MATCHED = {
    "anchors": _exact_anchors,
    "strides": _fixed_strides,
    "l1": _l1_loss,
    "smallest": _smallest_boxes,
    "half_pixels": _half_pixels,
    "masks": _binary_masks,
}


# ---- running ----


class GivenSample:
    """Draws the given rows in place of random ones, and keeps the labels that torchvision gave to all rows."""

    def __init__(self, inputs, name, images):
        self.drawn = [
            [torch.from_numpy(inputs[f"{name}_{kind}_{i}"]) for i in range(images)] for kind in ("positive", "negative")
        ]

    def __call__(self, labels):
        self.labels = list(labels)  # the caller overwrites the entries of its list
        return self.drawn


def use_pooled(model, job, inputs):
    """Gives the pooled features of a step our values, which are rounded to float32, and keeps their gradient.

    Otherwise rounding would decide which rectified units close to 0 pass their gradient. Returns a dictionary that
    receives torchvision's own features.
    """
    kept = {}

    def replace(name):
        pooler = getattr(model.roi_heads, f"{name}_roi_pool")
        pool = pooler.forward
        given = torch.from_numpy(np.concatenate([inputs[f"pooled_{name}_{i}"] for i in range(job["images"])]))

        def pool_given(*arguments):
            own = pool(*arguments)
            kept[f"pooled_{name}"] = own.detach()
            return own if "half_pixels" in job["leave"] else own + (given - own).detach()

        pooler.forward = pool_given

    for name in ("box", "mask") if job["kind"] == "mask" else ("box",):
        replace(name)
    return kept


def load(model, job, inputs):
    """Loads every weight; a name without counterpart is an error."""
    state = {f"backbone.body.{name}": value for name, value in load_file(job["backbone"]).items()}
    state |= {
        name.removeprefix("weights/"): torch.from_numpy(inputs[name])
        for name in inputs.files
        if name.startswith("weights/")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")


def detect(model, images):
    """Returns torchvision's own proposals and detections at test."""
    model.eval()
    with torch.no_grad():
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        found, _ = model.roi_heads(features, proposals, images.image_sizes)
    results = {}
    for i, one in enumerate(found):
        results[f"test_proposals_{i}"] = proposals[i]
        results |= {f"{name}_{i}": value for name, value in one.items()}
    return results


def train(model, images, job, inputs):
    """Returns the losses of a step, every gradient, torchvision's own proposals and labels, and the new statistics."""
    model.train()
    count = job["images"]
    names = ("boxes", "labels", *(("masks",) if job["kind"] == "mask" else ()))
    targets = [{name: torch.from_numpy(inputs[f"truth_{name}_{i}"]) for name in names} for i in range(count)]
    for target in targets:
        target["boxes"] = target["boxes"].to(images.tensors.dtype)
    model.rpn.fg_bg_sampler = GivenSample(inputs, "anchors", count)
    model.roi_heads.fg_bg_sampler = GivenSample(inputs, "regions", count)
    pooled = use_pooled(model, job, inputs)
    features = model.backbone(images.tensors)
    proposals, losses = model.rpn(images, features, targets)
    given = [torch.from_numpy(inputs[f"proposals_{i}"]).to(images.tensors.dtype) for i in range(count)]
    _, of_heads = model.roi_heads(features, given, images.image_sizes, targets)
    losses |= of_heads
    sum(losses.values()).backward()
    results = {f"losses/{name}": value.detach() for name, value in losses.items()}
    results |= {f"gradients/{name}": value.grad for name, value in model.named_parameters() if value.grad is not None}
    results |= {f"statistics/{name}": value for name, value in model.named_buffers() if "running" in name}
    results |= pooled
    results["anchors"] = model.rpn.anchor_generator(images, list(features.values()))[0]
    for i in range(count):
        results[f"proposals_{i}"] = proposals[i]
        results[f"anchor_labels_{i}"] = model.rpn.fg_bg_sampler.labels[i]
        results[f"region_labels_{i}"] = model.roi_heads.fg_bg_sampler.labels[i]
    return results


def main(file):
    with open(file, encoding="utf-8") as opened:
        job = json.load(opened)
    inputs = np.load(job["inputs"], allow_pickle=False)
    dtype = getattr(torch, job["dtype"])
    model = build(job).to(dtype)
    load(model, job, inputs)
    for name, match in MATCHED.items():
        if name not in job["leave"]:
            match(model, job, inputs)
    sizes = [tuple(int(side) for side in size) for size in inputs["sizes"]]
    images = ImageList(torch.from_numpy(inputs["images"]).to(dtype), sizes)
    results = {**detect(model, images), **train(model, images, job, inputs)}
    np.savez(job["outputs"], **{name: value.numpy() for name, value in results.items()})
    print(json.dumps({"version": torchvision.__version__.split("+")[0]}))


if __name__ == "__main__":
    main(sys.argv[1])
