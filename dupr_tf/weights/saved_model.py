"""Backbones as TensorFlow SavedModels: raw images in, P2..P5 out; serving them needs no `dupr_tf`."""

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models.resnet import LEVELS, imagenet_normalization, pyramid

FLOAT_SIGNATURE = "serving_default"
UINT8_SIGNATURE = "uint8"
TOLERANCE = 1e-4


def write_saved_model(backbone, path):
    """Write a backbone as a SavedModel with the normalisation inside, and read it again.

    It has two signatures, `serving_default` (float32) and `uint8`; both take `images` `[B, H, W, 3]`, RGB in
    0–255, any B, H and W, and return `{"P2": …, "P5": …}` in float32, `[B, H/4, W/4, C]` to `[B, H/32, W/32, C]`.

    Args:
        backbone: a model `dupr_tf.models.resnet.pyramid` accepts. One without a true `include_normalization`
            is taken to want normalised images.
        path: the directory to write.

    Returns:
        The largest difference of any feature between the model, in a graph, and what was written: 0.0 as a rule. (Run
        eagerly, the model differs by rounding, some 1e-6: in a graph TensorFlow computes convolution and norm at once.)

    Raises:
        ValueError: if that is more than 1e-4.
    """
    serving = serving_model(backbone)
    model = _function(lambda images: _features(serving, images), tf.float32)  # traced once, called by both signatures
    module = tf.Module()  # Keras' ExportArchive writes every variable twice
    module.weights = [variable.value for variable in serving.variables]
    signatures = {
        name: _function(lambda images: model(tf.cast(images, tf.float32)), dtype)
        for name, dtype in ((FLOAT_SIGNATURE, tf.float32), (UINT8_SIGNATURE, tf.uint8))
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    return _read_difference(serving, path)


def _function(call, dtype):
    """`call` as a traced TensorFlow function of images `[B, H, W, 3]`, all three of them open."""
    signature = [tf.TensorSpec((None, None, None, 3), dtype, name="images")]
    function = tf.function(call, input_signature=signature, autograph=False)
    function.get_concrete_function()
    return function


def read_saved_model(path):
    """Return a SavedModel written here as `f(uint8 or float images in 0–255) -> {level: NumPy array}`."""
    loaded = tf.saved_model.load(str(path))
    missing = {FLOAT_SIGNATURE, UINT8_SIGNATURE} - set(loaded.signatures)
    if missing:
        raise ValueError(f"Expected the signatures serving_default and uint8, received {path} without {missing}.")

    def features(images):
        images = np.asarray(images)
        name = UINT8_SIGNATURE if images.dtype == np.uint8 else FLOAT_SIGNATURE
        dtype = tf.uint8 if name == UINT8_SIGNATURE else tf.float32
        return {level: value.numpy() for level, value in loaded.signatures[name](tf.constant(images, dtype)).items()}

    features.loaded = loaded  # TensorFlow keeps the variables alive only as long as this is
    return features


def serving_model(backbone):
    """Return a model from RGB images in 0–255 to `{level: feature map}`, sharing the backbone's weights."""
    levels = pyramid(backbone, _levels(backbone))
    if getattr(backbone, "include_normalization", False):
        return levels
    images = keras.Input((None, None, 3), name="images")  # (B, H, W, 3), 0–255
    return keras.Model(images, levels(imagenet_normalization()(images)), name=f"{backbone.name}_serving")


def _levels(backbone):
    """Those of P2..P5 that the backbone has; all if it has none, so that `pyramid` says what is wrong."""
    found = getattr(backbone, "pyramid_outputs", None) or getattr(backbone, "pyramid_level_inputs", {})
    return tuple(level for level in LEVELS if level in found) or LEVELS


def _features(model, images):
    return {level: tf.cast(value, tf.float32) for level, value in model(images, training=False).items()}


def _read_difference(serving, path):
    """Both signatures, on one odd-sized image, against the model in memory."""
    read = read_saved_model(path)
    images = np.random.default_rng(0).integers(0, 256, (1, 65, 97, 3), dtype=np.uint8)
    expected = _function(lambda x: _features(serving, x), tf.float32)(tf.constant(images, tf.float32))
    received = [read(images), read(images.astype(np.float32))]
    differences = [np.max(np.abs(value - expected[level])) for out in received for level, value in out.items()]
    difference = float(np.max(differences))
    if not difference <= TOLERANCE:  # NaN is refused too
        raise ValueError(
            f"Expected the SavedModel to give the model's features, received a difference of {difference}. "
            "Fix: check the weights for NaN."
        )
    return difference
