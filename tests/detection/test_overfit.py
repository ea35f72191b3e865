"""Overfits every kind and neck to eight photos, which shows that all parts work together."""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import gen_nn_ops

from dupr_tf.config import load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import image_rows, read_image
from dupr_tf.data.images.resize import resize
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.run_lengths import pixels_of
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.placing import Place, letterbox, pad_batch
from dupr_tf.detection.coco_eval import coco_ap
from dupr_tf.detection.fcn import FCN
from dupr_tf.detection.precision import set_precision
from dupr_tf.detection.predictions import paste_masks
from dupr_tf.detection.rcnn import FasterRCNN, MaskRCNN
from dupr_tf.detection.retinanet import RetinaNet
from dupr_tf.detection.segmentation_eval import ConfusionMatrix
from dupr_tf.detection.yolov8 import YOLOv8
from dupr_tf.models.resnet import build_backbone
from dupr_tf.ops import convolution
from dupr_tf.training.optimizers import LossScaling

DATA = os.environ.get("DUPR_DATA", Path(__file__).parents[3] / "shared" / "data")
VOC, CAMVID = Path(DATA) / "voc07", Path(DATA) / "camvid"
SMALL_FCN = Path(__file__).parents[2] / "configs" / "detection" / "small_fcn.yaml"
CAMVID_NAMES = tuple(load_config(SMALL_FCN).data.class_names)
SIZE, IMAGES, STEPS = 160, 8, 250
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
ROIS = {"fpn": 64, "c4": 16}  # boxes an image; with "c4" each costs four convolutions
NEEDS_KERASHUB = pytest.mark.skipif(
    bool(DETECTORS["kerashub_retinanet"].missing), reason="the extra is not installed: pip install 'dupr_tf[kerashub]'"
)
SMALL = {
    "fpn_channels": 48,
    "head_channels": 32,
    "head_convs": 2,
    "box_head_width": 128,
    "anchor_scale": 4.0,
    "rpn_pre_nms": (500, 300),
    "rpn_post_nms": (150, 100),
    "image_size": SIZE,
}
DENSE = {"fpn_channels": 48, "head_convs": 2, "anchor_scale": 3.0, "image_size": SIZE}


@pytest.fixture(autouse=True)
def kernel_gradients_in_float32(monkeypatch):
    """Computes kernel gradients of float16 in float32, as GPUs sum. TensorFlow's own take a second on a CPU."""

    def in_float32(function):
        def run(*arguments, **named):
            dtypes = {x.dtype for x in (*arguments, *named.values()) if tf.is_tensor(x)}
            if tf.float16 not in dtypes:
                return function(*arguments, **named)
            arguments, named = tf.nest.map_structure(_widened, (arguments, named))
            return tf.cast(function(*arguments, **named), tf.float16)

        return run

    for module, name in ((gen_nn_ops, "conv2d_backprop_filter"), (convolution, "plainly")):
        monkeypatch.setattr(module, name, in_float32(getattr(module, name)))


def _widened(value):
    return tf.cast(value, tf.float32) if tf.is_tensor(value) and value.dtype == tf.float16 else value


def rcnn(kind, neck):
    return lambda backbone, names: kind(backbone, names, neck=neck, rois_per_image=ROIS[neck], **SMALL)


def retinanet(backbone, names):
    return RetinaNet(backbone, names, head_channels=48, **DENSE)


def kerashub_retinanet(backbone, names):
    from dupr_tf.detection.kerashub import KerasHubRetinaNet

    return KerasHubRetinaNet(backbone, names, **DENSE)


def kerashub_dfine(backbone, names):
    from dupr_tf.detection.dfine import KerasHubDFine

    return KerasHubDFine(backbone, names, SIZE, fpn_channels=64, decoder_layers=2, queries=100)


def yolov8(backbone, names):
    return YOLOv8(backbone, names, image_size=SIZE)


def ellipse(side):
    """Returns (side, side) float32: the ellipse that a box is drawn around."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    return (x**2 + y**2 <= 1).astype(np.float32)


def photos():
    """Returns eight letterboxed photos (8, S, S, 3) and their annotations in pixels of the square."""
    every = read_annotations(VOC, "train", "voc")
    chosen = [i for i in every.with_boxes() if not every.ignored[i].any()][:IMAGES]
    rows, boxes = [], []
    for i in chosen:
        image = read_image(every.paths[i])
        place = letterbox(image.shape[:2], SIZE)
        rows.append(image_rows(image, place))
        boxes.append(place.move(every.boxes[i]))
    table = {name: tuple(getattr(every, name)[i] for i in chosen) for name in ("paths", "labels", "ignored", "areas")}
    sizes = np.full((len(chosen), 2), SIZE, np.int32)
    return pad_batch(rows, SIZE)["images"], dataclasses.replace(every, boxes=tuple(boxes), sizes=sizes, **table)


def batch_of(images, annotated):
    most = max(map(len, annotated.boxes))
    boxes, classes = np.full((len(images), most, 4), -1, np.float32), np.full((len(images), most), -1, np.float32)
    for i, (own, labels) in enumerate(zip(annotated.boxes, annotated.labels, strict=True)):
        boxes[i, : len(own)], classes[i, : len(own)] = own, labels
    masks = np.broadcast_to(ellipse(56), (*classes.shape, 56, 56))
    return {"images": images, "bounding_boxes": {"boxes": boxes, "classes": classes, "masks": masks}}


def compile_in(policy, detector, optimizer):
    set_precision(detector, policy)
    detector.compile(LossScaling(optimizer) if policy == "mixed_float16" else optimizer)


def overfitted(build, policy="float32", steps=STEPS):
    """Returns AP50, mean IoU of the confident masks with their ellipses or None, and the last losses."""
    keras.utils.set_random_seed(0)
    images, annotated = photos()
    detector = build(build_backbone("resnet18", width=0.25, include_normalization=True), annotated.class_names)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - 20, warmup_target=2e-3, warmup_steps=20)
    compile_in(policy, detector, keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=10.0))
    batches = tf.data.Dataset.from_tensors(batch_of(images, annotated)).repeat(steps)
    logs = detector.fit(batches, epochs=1, verbose=0, shuffle=False).history
    found = detector.predict_on_batch(images)
    rows = [
        {
            "boxes": found["boxes"][i, :n],
            "classes": found["classes"][i, :n].astype(int),
            "scores": found["confidence"][i, :n],
        }
        for i, n in enumerate(found["num_detections"])
    ]
    return coco_ap(annotated, rows)["AP50"], mask_iou(found), logs


def paste(masks, boxes):
    """Returns (n, SIZE, SIZE) bool."""
    pixels = [pixels_of(mask, (SIZE, SIZE)) for mask in paste_masks(masks, boxes, (SIZE, SIZE))]
    return np.array(pixels, bool).reshape(-1, SIZE, SIZE)


def mask_iou(found):
    if "masks" not in found:
        return None
    overlaps = []
    for i, count in enumerate(found["num_detections"]):
        sure = found["confidence"][i, :count] > 0.7
        boxes = found["boxes"][i, :count][sure]
        ellipses = paste([ellipse(56)] * len(boxes), boxes)
        drawn = paste(found["masks"][i, :count][sure], boxes)
        both, either = (ellipses & drawn).sum((1, 2)), (ellipses | drawn).sum((1, 2))
        overlaps.extend(both / np.maximum(either, 1))
    return float(np.mean(overlaps)) if overlaps else 0.0


def segments_overfitted(policy="float32", steps=STEPS):
    """Returns scores on the eight training frames. Poles and people are thinner than the detector's cells of 16 px."""
    keras.utils.set_random_seed(0)
    every = read_segments(CAMVID, "train", class_names=CAMVID_NAMES, ignore_value=len(CAMVID_NAMES))
    images, segments = [], []
    for i in range(0, 8 * 20, 20):
        images.append(resize(read_image(every.paths[i]), SIZE, SIZE))
        truth = every.truth(i)
        segments.append(Place(truth.shape, (SIZE, SIZE), (SIZE, SIZE)).put_values(truth, 255))
    images, segments = np.stack(images).astype(np.float32), np.stack(segments).astype(np.int32)
    fcn = FCN(build_backbone("resnet18", width=0.25, include_normalization=True), CAMVID_NAMES, head_channels=64)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - 20, warmup_target=2e-3, warmup_steps=20)
    compile_in(policy, fcn, keras.optimizers.AdamW(rate))
    batches = tf.data.Dataset.from_tensors({"images": images, "segments": segments}).repeat(steps)
    fcn.fit(batches, epochs=1, verbose=0, shuffle=False)
    counts = ConfusionMatrix(len(CAMVID_NAMES))
    for truth, predicted in zip(segments, fcn.predict_on_batch({"images": images}), strict=True):
        counts.add(truth, predicted)
    return counts.scores(CAMVID_NAMES)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not VOC.is_dir(), reason="DUPR_DATA holds no voc07")
@pytest.mark.parametrize("build", [
    pytest.param(rcnn(FasterRCNN, "fpn"), id="faster_rcnn_fpn"),
    pytest.param(rcnn(FasterRCNN, "c4"), id="faster_rcnn_c4"),
    pytest.param(rcnn(MaskRCNN, "fpn"), id="mask_rcnn_fpn"), pytest.param(rcnn(MaskRCNN, "c4"), id="mask_rcnn_c4"),
    pytest.param(retinanet, id="retinanet"), pytest.param(yolov8, id="yolov8"),
    pytest.param(kerashub_retinanet, id="kerashub_retinanet", marks=NEEDS_KERASHUB),
    pytest.param(kerashub_dfine, id="kerashub_dfine", marks=NEEDS_KERASHUB),
])  # fmt: skip
@pytest.mark.parametrize("policy", POLICIES)
def test_detector_overfits_eight_photos(build, policy):
    precision, overlap, _ = overfitted(build, policy)
    assert precision >= 0.9
    assert overlap is None or overlap >= 0.85


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not CAMVID.is_dir(), reason="DUPR_DATA holds no camvid")
@pytest.mark.parametrize("policy", POLICIES)
def test_fcn_overfits_eight_frames(policy):
    scores = segments_overfitted(policy)
    assert scores["pixel_accuracy"] >= 0.88
    assert min(scores["per_class"][name] for name in ("sky", "building", "road", "vehicle")) >= 0.75
