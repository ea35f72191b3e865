"""Times our detectors' training steps on a batch in memory."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from benchmarks.detector_arrays import CLASSES, REPEATS, objects, segments
from dupr_tf.config import parse_config
from dupr_tf.detection.registry import build_detector
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.optimizers import CoupledSGD


def build(kind, neck, size, batch, settings):
    """Returns a step of `model.fit`'s own training function, with SGD as in the paper's protocols."""
    config = parse_config({"data": {"image_size": size}, "detector": {"kind": kind, "neck": neck, **settings}})
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet18", include_normalization=True)
    detector = build_detector(backbone, [f"class {i}" for i in range(CLASSES)], config)
    detector.compile(CoupledSGD(1e-4, 0.9, 1e-4, global_clipnorm=10.0))
    return steps_of(detector, segments(size, batch) if kind == "fcn" else objects(size, batch, kind == "mask_rcnn"))


def steps_of(detector, batch):
    """Returns a function that takes `REPEATS` steps of a compiled Keras model on one batch and waits for the result."""
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    detector.make_train_function()

    def work():
        for _ in range(REPEATS):
            assert np.isfinite(float(detector.train_function(iterator)["loss"]))
        return REPEATS * len(batch["images"])

    work.facts = {"version": tf.__version__}
    return work
