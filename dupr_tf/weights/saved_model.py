"""Writes and reads backbones as SavedModels: raw images in, P2..P5 out. Serving them needs no `dupr_tf`."""

import functools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.errors import RunFailed
from dupr_tf.files import plain_alias
from dupr_tf.models.resnet import imagenet_normalization, pyramid
from dupr_tf.weights.verify import Written, check_images, compare, levels_of

FLOAT_SIGNATURE = "serving_default"
UINT8_SIGNATURE = "uint8"


def write_saved_model(backbone, path):
    """Write a backbone as a SavedModel with the normalisation inside, and read it again.

    It has two signatures, `serving_default` (float32) and `uint8`. Both take `images` `[B, H, W, 3]`, RGB in 0–255,
    for any B, H and W. Both return `{"P2": …, "P5": …}` in float32, `[B, H/4, W/4, C]` to `[B, H/32, W/32, C]`.

    Args:
        backbone: a model `dupr_tf.models.resnet.pyramid` accepts. Unless its `include_normalization` is true, it is
            assumed to take normalised images.
        path: the directory to write.

    Returns:
        A `Written` that compares both signatures with the model in a graph. The difference is normally 0.0. Run
            eagerly, the model differs by rounding (about 1e-6), because a graph fuses convolution and norm.
    """
    serving = serving_model(backbone)
    model = serving_function(serving)  # traced once, called by both signatures
    module = tf.Module()  # Keras' ExportArchive writes every variable twice
    module.weights = [variable.value for variable in serving.variables]
    signatures = {
        name: _function(lambda images: model(tf.cast(images, tf.float32)), dtype)
        for name, dtype in ((FLOAT_SIGNATURE, tf.float32), (UINT8_SIGNATURE, tf.uint8))
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    return Written(_read_checks(model, path))


def serving_function(serving):
    """Trace the model of `serving_model` as a function of float32 images `[B, H, W, 3]` to `{level: float32 map}`."""
    return _function(lambda images: _features(serving, images), tf.float32)


def as_numpy(function):
    """Wrap a `serving_function` as a function from images of any dtype to `{level: NumPy array}`."""
    return lambda images: {level: value.numpy() for level, value in function(tf.constant(images, tf.float32)).items()}


def _function(call, dtype):
    """Trace `call` as a TensorFlow function of images `[B, H, W, 3]`, with B, H and W open."""
    signature = [tf.TensorSpec((None, None, None, 3), dtype, name="images")]
    function = tf.function(call, input_signature=signature, autograph=False)
    function.get_concrete_function()
    return function


def read_saved_model(path):
    """Return a SavedModel of `write_saved_model` as `f(uint8 or float images in 0–255) -> {level: NumPy array}`."""
    path = Path(path)
    with plain_alias(path.parent) as parent:
        loaded = tf.saved_model.load(str(parent / path.name))
    missing = {FLOAT_SIGNATURE, UINT8_SIGNATURE} - set(loaded.signatures)
    if missing:
        raise RunFailed(f"{path} lacks the signatures {', '.join(sorted(missing))}.")

    def features(images):
        images = np.asarray(images)
        name = UINT8_SIGNATURE if images.dtype == np.uint8 else FLOAT_SIGNATURE
        dtype = tf.uint8 if name == UINT8_SIGNATURE else tf.float32
        return {level: value.numpy() for level, value in loaded.signatures[name](tf.constant(images, dtype)).items()}

    features.loaded = loaded  # TensorFlow keeps the variables alive only as long as this object
    return features


def serving_model(backbone):
    """Return a model from RGB images in 0–255 to `{level: feature map}`, sharing the backbone's weights."""
    levels = pyramid(backbone, levels_of(backbone))
    if getattr(backbone, "include_normalization", False):
        return levels
    images = keras.Input((None, None, 3), name="images")  # (B, H, W, 3), 0–255
    return keras.Model(images, levels(imagenet_normalization()(images)), name=f"{backbone.name}_serving")


def _features(model, images):
    """Compute `{level: float32 map}`. An empty batch runs as one black image, because oneDNN fails on empty ones."""
    count = tf.shape(images)[0]
    images = tf.pad(images, [[0, tf.cast(tf.equal(count, 0), tf.int32)], [0, 0], [0, 0], [0, 0]])
    return {level: tf.cast(value[:count], tf.float32) for level, value in model(images, training=False).items()}


def _read_checks(model, path):
    """Compare both signatures of the written file with the function in memory."""
    expected, read, checks = as_numpy(model), read_saved_model(path), []
    for name, dtype in ((FLOAT_SIGNATURE, np.float32), (UINT8_SIGNATURE, np.uint8)):  # `read` chooses by the dtype
        inputs = functools.partial(_images_of, dtype)
        checks += compare(f"signature {name}, read again", expected, read, inputs)
    return checks


def _images_of(dtype, size):
    return check_images(size).astype(dtype)
