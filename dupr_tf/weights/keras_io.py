"""Writes backbones as `.keras` files: unchanged, or prepared for KerasCV's and KerasHub's detectors."""

import keras

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.models.resnet import ResNetBackbone
from dupr_tf.models.twins import is_plain
from dupr_tf.weights.loading import load_backbone, with_normalization
from dupr_tf.weights.paths import KERAS_FILE
from dupr_tf.weights.verify import Written, compare, features


def write_keras(backbone, directory):
    """Write `backbone.keras`, the unchanged model.

    Args:
        backbone: a model `dupr_tf.models.resnet.pyramid` accepts.
        directory: an existing, empty directory.

    Returns:
        A `Written` that compares the loaded file with the model on the same images.

    Raises:
        UserError: a plain functional model, whose file would lack the levels.
    """
    _check_class(backbone)
    backbone.save(directory / KERAS_FILE)
    return _compare_read(backbone, load_backbone(directory, allow_nonfinite=True))  # `export` has checked already


def write_kerascv(backbone, directory):
    """Write `backbone.keras` with the normalisation inside, because KerasCV's detectors pass on pixels in 0–255.

    Arguments and result are those of `write_keras`. After `import dupr_tf.models` the file loads by
    `keras.saving.load_model`, and has the `pyramid_level_inputs` that KerasCV's `RetinaNet(backbone=…)` requires.
    """
    _check_class(backbone)
    if isinstance(backbone, ResNetBackbone):
        backbone = with_normalization(backbone, True)
    if not getattr(backbone, "pyramid_level_inputs", None):
        raise UserError(
            "backbone",
            f"`{backbone.name}` has no pyramid_level_inputs.",
            "KerasCV needs it, {level: layer name}; a ResNetBackbone has it.",
        )
    backbone.save(directory / KERAS_FILE)
    read = keras.saving.load_model(directory / KERAS_FILE, compile=False)
    if getattr(read, "pyramid_level_inputs", None) != backbone.pyramid_level_inputs:
        raise RunFailed(
            f"{KERAS_FILE}, read again, is a {type(read).__name__} without the pyramid_level_inputs of the backbone. "
            "Register a class for this backbone that sets it in __init__."
        )
    return _compare_read(backbone, read)


def _check_class(backbone):
    if is_plain(backbone):
        raise UserError(
            "backbone",
            f"`{backbone.name}` is a plain functional model, whose .keras file would lack its levels.",
            "Register a subclass of keras.Model that sets pyramid_outputs in __init__, or export to saved_model.",
        )


def _compare_read(backbone, read):
    against = f"{KERAS_FILE}, read again"
    return Written(compare(against, lambda x: features(backbone, x), lambda x: features(read, x)))
