"""An R-CNN on disk: as a `.keras` file and as a SavedModel."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from dupr_tf.data.detection import PAD_COLOUR, letterbox
from dupr_tf.detection.rcnn.model import FasterRCNN
from dupr_tf.weights.loading import read_keras

STRIDE = 32  # of the coarsest map that others are added to: inputs are multiples of it


def save_rcnn(detector, path):
    """Writes a `.keras` file without the optimizer's state; `load_rcnn` reads it."""
    copy = type(detector).from_config(detector.get_config())
    copy.set_weights(detector.get_weights())
    copy.save(path)


def load_rcnn(path):
    """Reads a `.keras` file of `save_rcnn`, or of a folder that `finetune` wrote.

    Raises:
        ValueError: there is none, or it is another kind of model.
    """
    file = Path(path)
    file = file / "detector.keras" if file.is_dir() else file
    if not file.is_file() or file.suffix != ".keras":
        raise ValueError(f"Expected a detector (.keras, or a folder of finetune), received {path}. Fix: the path")
    model = read_keras(file)
    if not isinstance(model, FasterRCNN):
        raise ValueError(f"Expected an R-CNN, received {file} ({type(model).__name__}). Fix: a detector.keras of one")
    return model


def export_rcnn(detector, path):
    """Writes a SavedModel that gives the same detections as `predict`, without Keras.

    Functions of the loaded object. The first two return `boxes` (B, K, 4) float32 x1 y1 x2 y2, `classes` (B, K) int32,
    `scores` (B, K) float32, `num_detections` (B,) int32, rows from there on being -1, and of a Mask R-CNN `masks`
    (B, K, S, S) float32 probabilities over each box, which `paste_masks` draws:
        serve (and the signature `serving_default`): images (B, H, W, 3) uint8 of any size, boxes in their pixels;
        serve_padded: images (B, H, W, 3) float32 in 0–255, H and W multiples of 32, and image_sizes (B, 2) float32,
            the height and width of the part that is picture, at the top left;
        class_names: takes nothing, returns (classes,) strings.
    """
    batch = [
        tf.TensorSpec((None, None, None, 3), tf.float32, "images"),
        tf.TensorSpec((None, 2), tf.float32, "image_sizes"),
    ]

    @tf.function(input_signature=batch, autograph=False)
    def serve_padded(images, image_sizes):
        found = dict(detector({"images": images, "image_sizes": image_sizes}, training=False))
        return {**found, "classes": tf.cast(found["classes"], tf.int32), "scores": found.pop("confidence")}

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")], autograph=False)
    def serve(images):
        padded, sizes, scale = fit_to_test(images, detector)
        found = serve_padded(padded, tf.tile(sizes[None], [tf.shape(images)[0], 1]))
        height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(images)[1:3]))
        boxes = tf.clip_by_value(found["boxes"] / tf.tile(tf.reverse(scale, [0]), [2]), 0.0, [width, height] * 2)
        return {**found, "boxes": tf.where(found["classes"][..., None] >= 0, boxes, -1.0)}

    module = tf.Module()
    module.weights = [variable.value for variable in detector.variables]
    module.serve, module.serve_padded = serve, serve_padded
    module.class_names = tf.function(lambda: tf.constant(detector.class_names), input_signature=[])
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


def fit_to_test(images, detector):
    """Images as the detector takes them at test: in its square, or scaled to its short side and padded.

    Args:
        images: (B, H, W, 3), 0–255, any dtype, one size.
        detector: with `image_size`, or `test_short_side` (None: the images' own size) and `max_long_side`.

    Returns:
        images: (B, h, w, 3) float32; the picture is at the top left, the rest has the mean colour.
        size: (2,) float32 height and width of the picture in it.
        scale: (2,) float32 its pixels per pixel of the original, y and x.
    """
    original = tf.cast(tf.shape(images)[1:3], tf.float32)
    if detector.image_size is not None:
        square, scale = letterbox(images, detector.image_size)
        return square, original * scale, tf.stack([scale, scale])
    size = original
    if detector.test_short_side is not None:
        short, long = tf.reduce_min(original), tf.reduce_max(original)
        size = tf.round(original * tf.minimum(detector.test_short_side / short, detector.max_long_side / long))
    whole = tf.cast(size, tf.int32)
    colour = tf.constant(PAD_COLOUR)
    picture = tf.image.resize(tf.cast(images, tf.float32), whole, antialias=True) - colour
    missing = -whole % STRIDE
    return tf.pad(picture, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]]) + colour, size, size / original
