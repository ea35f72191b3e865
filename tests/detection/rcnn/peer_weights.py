"""Maps the variables of our R-CNNs to names and layouts of torchvision (with a pyramid) and of detectron2 (on res4).

detectron2 has our order of classes. torchvision has the background first, in the logits, the deltas and the masks. Ours
is last in the logits, and the deltas and masks have none. Channels come first in PyTorch, also where maps become
vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dupr_tf.weights.names import BATCH_NORM, keras_variable, weight_names


class Pair(NamedTuple):
    """A variable, its name in the other library, and the function from its array here to the array there."""

    name: str
    variable: object
    convert: object

    def array(self, value=None):
        return np.ascontiguousarray(self.convert(np.asarray(self.variable if value is None else value)))


def backbone_pairs(backbone, library):
    """Lists the arrays of the backbone, which `export` writes."""
    pairs = []
    for row in weight_names(backbone.architecture):
        convert, name = _kernel if row.is_kernel else _as_is, getattr(row, library)
        prefix = "backbone.body." if library == "torchvision" else "backbone."
        prefix = "roi_heads." if name.startswith("res5") else prefix
        pairs.append(Pair(prefix + name, keras_variable(backbone, row.keras), convert))
    return pairs


def detectron2_pairs(detector):
    """Lists all arrays of a detector on res4 that are not the backbone's."""
    norm = detector.regions.norm
    pairs = [Pair(f"roi_heads.res5.3.{theirs}", getattr(norm, ours), _as_is) for ours, theirs in BATCH_NORM.items()]
    pairs += _layer("proposal_generator.rpn_head.conv", detector.rpn.conv, _kernel)
    pairs += _layer("proposal_generator.rpn_head.objectness_logits", detector.rpn.objectness, _kernel)
    pairs += _layer("proposal_generator.rpn_head.anchor_deltas", detector.rpn.deltas, _kernel)
    pairs += _layer("roi_heads.box_predictor.cls_score", detector.predictor.logits, np.transpose)
    pairs += _layer("roi_heads.box_predictor.bbox_pred", detector.predictor.deltas, np.transpose)
    if hasattr(detector, "mask_head"):
        pairs += _layer("roi_heads.mask_head.deconv", detector.mask_head.upsampling, _kernel)
        pairs += _layer("roi_heads.mask_head.predictor", detector.mask_head.prediction, _kernel)
    return pairs


def torchvision_pairs(detector):
    """Lists all arrays of a detector with a pyramid that are not the backbone's."""
    pairs = []
    for i, level in enumerate(detector.pyramid_neck.LEVELS):
        for name, layers in (("inner", detector.pyramid_neck.lateral), ("layer", detector.pyramid_neck.output_convs)):
            conv, norm = layers[level].layers
            prefix = f"backbone.fpn.{name}_blocks.{i}"
            pairs.append(Pair(f"{prefix}.0.weight", conv.kernel, _kernel))
            pairs += [Pair(f"{prefix}.1.{theirs}", getattr(norm, ours), _as_is) for ours, theirs in BATCH_NORM.items()]
    pairs += _layer("rpn.head.conv.0.0", detector.rpn.conv, _kernel)
    pairs += _layer("rpn.head.cls_logits", detector.rpn.objectness, _kernel)
    pairs += _layer("rpn.head.bbox_pred", detector.rpn.deltas, _kernel)
    pairs += _layer("roi_heads.box_head.fc6", detector.regions.dense[0], _first_dense(detector.fpn_channels))
    pairs += _layer("roi_heads.box_head.fc7", detector.regions.dense[1], np.transpose)
    predictor = detector.predictor
    pairs += _layer("roi_heads.box_predictor.cls_score", predictor.logits, _background_first, _background_first)
    pairs += _layer("roi_heads.box_predictor.bbox_pred", predictor.deltas, _with_background(4), _with_background(4))
    if hasattr(detector, "mask_head"):
        pairs += _mask_pairs(detector.mask_head)
    return pairs


def _mask_pairs(head):
    pairs = []
    for i, layer in enumerate(head.hidden):
        pairs += _layer(f"roi_heads.mask_head.{i}.0", layer, _kernel)
    # A transposed kernel is (height, width, out, in) in Keras, (in, out, height, width) in PyTorch.
    pairs += _layer("roi_heads.mask_predictor.conv5_mask", head.upsampling, _kernel)
    background = _with_background(1)
    prediction = head.prediction
    return pairs + _layer(
        "roi_heads.mask_predictor.mask_fcn_logits", prediction, lambda x: background(_kernel(x), 0), background
    )


def _layer(name, layer, kernel, bias=None):
    return [Pair(f"{name}.weight", layer.kernel, kernel), Pair(f"{name}.bias", layer.bias, bias or _as_is)]


def _as_is(array):
    return array


def _kernel(array):
    return np.transpose(array, (3, 2, 0, 1))


def _first_dense(channels):
    """Returns the conversion of a dense layer whose inputs are 7×7×C in ours, C×7×7 in torchvision."""
    return lambda array: np.transpose(array.reshape(7, 7, channels, -1), (3, 2, 0, 1)).reshape(array.shape[-1], -1)


def _background_first(array):
    return np.roll(array, 1, -1).T


def _with_background(rows):
    """Returns the conversion that puts rows of zeros in front, for the background that ours does not have."""

    def convert(array, axis=-1):
        front = [(0, 0)] * array.ndim
        front[axis] = (rows, 0)
        return np.pad(array, front).T if axis == -1 else np.pad(array, front)

    return convert
