"""Defines pure functions of tensors, without state: geometry, RoIAlign, InfoNCE, photometrics."""

from dupr_tf.ops.info_nce import info_nce, info_nce_with_accuracy
from dupr_tf.ops.photometric import photometric
from dupr_tf.ops.roi_align import roi_align, roi_align_reference

__all__ = [
    "info_nce",
    "info_nce_with_accuracy",
    "photometric",
    "roi_align",
    "roi_align_reference",
]
