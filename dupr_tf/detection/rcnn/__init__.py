"""Faster R-CNN and Mask R-CNN, with a feature pyramid or on res4."""

from dupr_tf.detection.rcnn.masks import paste_masks
from dupr_tf.detection.rcnn.model import ANCHOR_SCALE, FasterRCNN, MaskRCNN
from dupr_tf.errors import UserError

__all__ = ["FasterRCNN", "MaskRCNN", "build_rcnn", "paste_masks"]

KINDS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


def build_rcnn(backbone, class_names, config):
    """The R-CNN that `config.detector` describes.

    Args:
        backbone: a functional model with `pyramid_level_inputs`; it takes images in 0–255.
        class_names: names of the classes 0, 1, …
        config: of it the section `detector`, `data.image_size` (without `detector.short_sides`) and `train.seed`.

    Raises:
        UserError: `detector.kind` is another, or the backbone does not fit `detector.neck`.
    """
    detector = config.detector
    if detector.kind not in KINDS:
        problem = f"Expected {' or '.join(KINDS)}, received {detector.kind}."
        raise UserError("detector.kind", problem, "Use one of them.")
    square = detector.short_sides is None
    return KINDS[detector.kind](
        backbone,
        class_names,
        neck=detector.neck,
        norm=detector.norm,
        fpn_channels=detector.fpn_channels,
        fpn_norm=detector.fpn_norm,
        head_channels=detector.head_channels,
        head_convs=detector.head_convs,
        box_head_width=detector.box_head_width,
        anchor_scale=detector.anchor_scale or ANCHOR_SCALE,
        rpn_pre_nms=detector.rpn_pre_nms,
        rpn_post_nms=detector.rpn_post_nms,
        rois_per_image=detector.rois_per_image,
        score_threshold=detector.score_threshold,
        nms_iou=detector.nms_iou,
        max_detections=detector.max_detections,
        image_size=config.data.image_size if square else None,
        test_short_side=None if square else detector.test_short_side or max(detector.short_sides),
        max_long_side=detector.max_long_side,
        seed=config.train.seed,
    )
