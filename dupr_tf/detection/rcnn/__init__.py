"""Faster R-CNN and Mask R-CNN, with a feature pyramid or on res4."""

from dupr_tf.detection.rcnn.model import FasterRCNN, MaskRCNN

__all__ = ["FasterRCNN", "MaskRCNN"]
