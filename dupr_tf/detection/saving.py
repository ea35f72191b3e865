"""Detectors to and from files: `.keras`, and SavedModels that need neither Keras nor this package."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.detection.build import detector_classes, task_of
from dupr_tf.detection.finetune import detector_file
from dupr_tf.detection.scaling import letterbox, nearest_pixels, scaled_batch
from dupr_tf.errors import UserError
from dupr_tf.weights.loading import read_keras


def save_detector(detector, path):
    """Writes a `.keras` file without the optimizer's state; `load_detector` reads it."""
    copy = type(detector).from_config(detector.get_config())
    copy.set_weights(detector.get_weights())
    copy.save(path)


def load_detector(path):
    """Reads a `.keras` file of `save_detector`, or that of an output folder of `finetune`.

    Raises:
        UserError: it does not exist, or is another kind of model.
    """
    file = detector_file(path)
    known = detector_classes()  # imported before the file is read, so that Keras finds them by name
    model = read_keras(file)
    if not isinstance(model, known):
        raise UserError(
            "detector",
            f"{file} holds a {type(model).__name__}, which is not a detector.",
            "Pass a detector.keras that finetune wrote.",
        )
    return model


def export_detector(detector, path):
    """Writes a SavedModel that detects the same as `predict`, without Keras.

    Functions of the loaded object:
        serve (and the signature `serving_default`): takes images (B, H, W, 3) uint8 of any size and scales them as at
            test. It returns `boxes (B, K, 4)` float32 x1 y1 x2 y2 in their pixels, `classes (B, K)` int32,
            `scores (B, K)` float32 and `num_detections (B,)` int32. Rows from there on are -1. Mask R-CNN
            also returns `masks (B, K, h, w)`, 0–1 over the boxes. An FCN returns only `segments (B, H, W)` int32.
        serve_square, for a detector with a fixed size: takes letterboxed images `(B, S, S, 3)`, float32 in 0–255.
        class_names: takes nothing, returns (classes,) strings.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in detector.variables]
    module.class_names = tf.function(lambda: tf.constant(detector.class_names), input_signature=[], autograph=False)
    module.serve = _segmenting(detector) if task_of(detector) == "segments" else _finding(detector)
    if detector.image_size is not None:
        module.serve_square = _finding_in_squares(detector)
    # Keras' ExportArchive does the same in twice the time.
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})


def _as_at_test(detector, images):
    """Scales and pads images as the evaluation does; returns them and the (2,) int32 size of the unpadded part."""
    if detector.image_size is None:
        return scaled_batch(images, detector.test_short_side, detector.max_long_side)
    return letterbox(images, detector.image_size)


def _finding(detector):
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")], autograph=False)
    def serve(images):
        padded, size = _as_at_test(detector, images)
        own, picture = (tf.cast(sides, tf.float32) for sides in (tf.shape(images)[1:3], size))
        sizes = tf.tile(picture[None], [tf.shape(images)[0], 1])
        found = _served(detector.predict_step({"images": padded, "image_sizes": sizes}))
        factors, most = (tf.gather(sides, [1, 0, 1, 0]) for sides in (picture / own, own))
        boxes = tf.clip_by_value(found["boxes"] / factors, 0.0, most)
        return {**found, "boxes": tf.where(found["classes"][..., None] >= 0, boxes, -1.0)}

    return serve


def _finding_in_squares(detector):
    size = detector.image_size

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32, "images")], autograph=False)
    def serve_square(images):
        return _served(detector.predict_step({"images": images}))

    return serve_square


def _served(found):
    renamed = {
        "boxes": found["boxes"],
        "classes": tf.cast(found["classes"], tf.int32),
        "scores": found["confidence"],
        "num_detections": found["num_detections"],
    }
    return {**renamed, "masks": found["masks"]} if "masks" in found else renamed


def _segmenting(detector):
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")], autograph=False)
    def serve(images):
        padded, size = _as_at_test(detector, images)
        classes = detector.predict_step({"images": padded})
        sides = zip(tf.unstack(tf.shape(images)[1:3]), tf.unstack(size), strict=True)
        rows, columns = (nearest_pixels(*pair) for pair in sides)
        return {"segments": tf.gather(tf.gather(classes, rows, axis=1), columns, axis=2)}

    return serve
