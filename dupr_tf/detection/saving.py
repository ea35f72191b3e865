"""Detectors to and from files: `.keras`, and SavedModels that need neither Keras nor this package."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import tensorflow as tf

from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.detector import DetectorMixin
from dupr_tf.detection.finetune import detector_file, read_saved
from dupr_tf.detection.registry import task_of
from dupr_tf.detection.scaling import letterbox, nearest_pixels, scaled_batch
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import discarded_on_error, plain_alias
from dupr_tf.text import one_line
from dupr_tf.weights.loading import read_keras


def save_detector(detector, path):
    """Writes a `.keras` file without the optimizer's state; `load_detector` reads it."""
    copy = type(detector).from_config(detector.get_config())
    copy.set_weights(detector.get_weights())
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp.keras")
    with discarded_on_error(temporary):
        copy.save(temporary)
        temporary.replace(path)


def load_detector(path):
    """Reads a `.keras` file of `save_detector`, or that of an output folder of `finetune`.

    Raises:
        UserError: it does not exist, is another kind of model, or needs an extra that is not installed.
    """
    file = detector_file(path)
    saved = read_saved(file)
    if saved is not None:
        DETECTORS.load(saved.kind)  # imported before the file is read, so that Keras finds the class by its name
    model = read_keras(file)
    if not isinstance(model, DetectorMixin):
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
        class_names: takes nothing, returns (classes,) strings.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in detector.variables]
    module.class_names = tf.function(lambda: tf.constant(detector.class_names), input_signature=[], autograph=False)
    module.serve = serve_function(detector)
    # Keras' ExportArchive does the same in twice the time.
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with plain_alias(path.parent) as parent:
            target = str(parent / temporary.name)
            tf.saved_model.save(module, target, signatures={"serving_default": module.serve})
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except tf.errors.OpError as error:
        raise RunFailed(f"{path} could not be written ({one_line(error, 120)}). Check the folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def serve_function(detector, batch=None):
    """Returns `serve` of `export_detector` as an untraced function of images (B, H, W, 3) uint8.

    Args:
        detector: the detector.
        batch: B. Default: any.
    """
    serve = _serve_segments if task_of(detector) == "segments" else _serve_boxes
    signature = [tf.TensorSpec((batch, None, None, 3), tf.uint8, "images")]
    return tf.function(functools.partial(serve, detector), input_signature=signature, autograph=False)


def _scale_images(detector, images):
    """Scales and pads images as the evaluation does; returns them and the (2,) int32 size of the unpadded part."""
    if detector.image_size is None:
        return scaled_batch(images, detector.test_short_side, detector.max_long_side)
    return letterbox(images, detector.image_size)


def _serve_boxes(detector, images):
    padded, size = _scale_images(detector, images)
    original, picture = (tf.cast(sides, tf.float32) for sides in (tf.shape(images)[1:3], size))
    sizes = tf.tile(picture[None], [tf.shape(images)[0], 1])
    detections = _name_outputs(detector.predict_step({"images": padded, "image_sizes": sizes}))
    factors, most = (tf.gather(sides, [1, 0, 1, 0]) for sides in (picture / original, original))
    boxes = tf.clip_by_value(detections["boxes"] / factors, 0.0, most)
    return {**detections, "boxes": tf.where(detections["classes"][..., None] >= 0, boxes, -1.0)}


def _name_outputs(detections):
    renamed = {
        "boxes": detections["boxes"],
        "classes": tf.cast(detections["classes"], tf.int32),
        "scores": detections["confidence"],
        "num_detections": detections["num_detections"],
    }
    return {**renamed, "masks": detections["masks"]} if "masks" in detections else renamed


def _serve_segments(detector, images):
    padded, size = _scale_images(detector, images)
    classes = detector.predict_step({"images": padded})
    sides = zip(tf.unstack(tf.shape(images)[1:3]), tf.unstack(size), strict=True)
    rows, columns = (nearest_pixels(*pair) for pair in sides)
    return {"segments": tf.gather(tf.gather(classes, rows, axis=1), columns, axis=2)}
