"""Times torchvision's Faster and Mask R-CNN with a pyramid, as its users train them."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.detector_arrays import CLASSES, REPEATS, objects


def build(kind, size, batch):
    """Builds its defaults (2,000 proposals a level, 512 regions) for images of one size; all batch norms train."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    which = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[kind]
    detector = which(backbone, CLASSES + 1, min_size=size, max_size=size, rpn_pre_nms_top_n_train=2000,
                     rpn_post_nms_top_n_train=1000)  # fmt: skip
    detector.train()
    optimizer = torch.optim.SGD(detector.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    images, targets = _as_torchvision(objects(size, batch, kind == "mask_rcnn"), size)

    def work():
        for _ in range(REPEATS):
            optimizer.zero_grad(set_to_none=True)
            loss = sum(detector(images, targets).values())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            assert np.isfinite(loss.item())
        return REPEATS * batch

    work.facts = {"version": torchvision.__version__}
    return work


def _as_torchvision(batch, size):
    """Returns images (3, S, S) in 0–1, with boxes, labels from 1 on, and masks of the whole image."""
    images = [torch.from_numpy(image.transpose(2, 0, 1) / 255.0) for image in batch["images"]]
    labels, targets = batch["bounding_boxes"], []
    for boxes, classes in zip(labels["boxes"], labels["classes"], strict=True):
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(classes.astype(np.int64) + 1)}
        if "masks" in labels:
            masks = np.zeros((len(boxes), size, size), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
                mask[y1:y2, x1:x2] = 1
            target["masks"] = torch.from_numpy(masks)
        targets.append(target)
    return images, targets
