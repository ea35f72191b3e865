"""Trains and runs torchvision's Faster R-CNN on our batches: the process of `train_beside_torchvision`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection.image_list import ImageList

from dupr_tf.config import parse_config
from dupr_tf.data.detection import eval_batches, train_batches
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.placing import to_original
from tests.detection.rcnn.torchvision_process import build, load


def as_images(batch, job):
    """Returns a batch of images, normalised as the backbone here does, with the sizes of their unpadded parts."""
    pixels = (batch["images"] - job["mean"]) / job["std"]
    tensors = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32))
    return ImageList(tensors, [tuple(int(side) for side in size) for size in batch["image_sizes"]])


def as_targets(batch):
    """Returns boxes and labels of each image. Label 0 is the background."""
    labels, targets = batch["bounding_boxes"], []
    for boxes, classes in zip(labels["boxes"], labels["classes"], strict=True):
        real = classes >= 0
        label = torch.from_numpy(classes[real].astype(np.int64) + 1)
        targets.append({"boxes": torch.from_numpy(boxes[real]), "labels": label})
    return targets


def train(model, batches, job, config):
    """Trains with AdamW at the rates of the job, with the decay and the clipping of the config."""
    assert config.detector.optimizer == "adamw" and config.detector.gradient_clip is not None
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, eps=1e-7, weight_decay=config.optimizer.weight_decay)
    total, began = 0.0, time.monotonic()
    for step, (batch, rate) in enumerate(zip(batches, job["rates"], strict=True), start=1):
        optimizer.param_groups[0]["lr"] = rate
        images, targets = as_images(batch, job), as_targets(batch)
        features = model.backbone(images.tensors)
        proposals, losses = model.rpn(images, features, targets)
        _, of_heads = model.roi_heads(features, proposals, images.image_sizes, targets)
        loss = sum((losses | of_heads).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.detector.gradient_clip)
        optimizer.step()
        total += loss.item()
        if step % 50 == 0:
            speed = 50 * len(targets) / (time.monotonic() - began)
            print(f"step {step}: loss {total / 50:.3f}, {speed:.1f} images/s", flush=True)
            total, began = 0.0, time.monotonic()


def detect(model, batches, sizes, job):
    """Returns {boxes_0, classes_0, scores_0, …} in the pixels of the images of the split."""
    model.eval()
    found = {}
    for batch in batches:
        images = as_images(batch, job)
        with torch.no_grad():
            features = model.backbone(images.tensors)
            results, _ = model.roi_heads(features, model.rpn(images, features)[0], images.image_sizes)
        for one, factors, index in zip(results, batch["factors"], batch["index"], strict=True):
            found[f"boxes_{index}"] = to_original(one["boxes"].numpy(), factors, sizes[index])
            found[f"classes_{index}"], found[f"scores_{index}"] = one["labels"].numpy() - 1, one["scores"].numpy()
    return found


def main(file):
    job = json.loads(Path(file).read_text())
    config = parse_config(job["config"])
    torch.manual_seed(config.train.seed)
    training, val = (read_annotations(job["data"], split, config.data.kind) for split in ("train", "val"))
    weights = np.load(job["weights"], allow_pickle=False)
    model = build(job)
    load(model, job, weights)
    with train_batches(training, config, len(job["rates"])) as batches:
        train(model, batches, job, config)
    with eval_batches(val, config.data.image_size, config.train.batch_size, config.data) as batches:
        np.savez(job["found"], **detect(model, batches, val.sizes, job))


if __name__ == "__main__":
    main(sys.argv[1])
