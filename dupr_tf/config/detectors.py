"""Lists the detectors: class, task, data layouts, unsupported fields.

A new detector is one new file below `detection/` and one line here. Its class derives from
`detection.detector.DetectorMixin`. Each line has these facts:

    task: a key of `detection.task_labels.LABELS`: "boxes", "masks" or "segments".
    data: values of `data.kind` that have the labels it needs.
    data_note: why the other layouts lack these labels; may be empty.
    refuses: {dotted field: (why, what to do)} of fields that must keep their default. The message puts the kind's name
        before the reason.
    anchor_iou: the IoU with an anchor that a box needs to be trained on. None: every box is trained on.
    any_test_size: `detector.test_short_side` may be set without `detector.short_sides`.
    channels_multiple: `detector.fpn_channels` must be a multiple of it.
"""

from __future__ import annotations

from dupr_tf.registry import Entry, Registry

MASKS = (
    "auto", "coco", "cityscapes", "roboflow", "fiftyone", "lvis", "yolo", "cvat", "labelme", "label_studio",
)  # fmt: skip
BOXES = (*MASKS, "voc", "openimages")
PIXELS = ("auto", "masks", "cityscapes")
NO_PIXELS = {
    f"data.{name}": ("does not read it: it is for detector.kind fcn and a folder of masks.", "Leave it out.")
    for name in ("class_names", "ignore_value")
}
NO_PROPOSALS = {
    "detector.neck": ("has no neck but fpn.", "Pass --detector.neck fpn, or --detector.kind faster_rcnn or mask_rcnn."),
    "detector.rpn_pre_nms": ("has no proposals.", "Leave it out."),
    "detector.rpn_post_nms": ("has no proposals.", "Leave it out."),
}
YOLO = {
    f"detector.{name}": ("takes the widths of its pyramid and heads from the backbone.", "Leave it out.")
    for name in ("fpn_channels", "head_channels")
}
YOLO |= {
    "detector.fpn_norm": ("has batch norms in its pyramid.", "Leave it out."),
    "detector.head_convs": ("has two convolutions in each head.", "Leave it out."),
    "detector.anchor_scale": ("has no anchors.", "Leave it out."),
}
ONE_SIZE = {
    "detector.short_sides": (
        "takes images of one size only.",
        "Set data.image_size instead, or pass --detector.kind retinanet.",
    ),
}
KERASHUB = {
    "detector.head_channels": ("has heads of 256 channels.", "Leave it out, or pass --detector.kind retinanet."),
    **ONE_SIZE,
}
DFINE = {
    "detector.fpn_norm": ("has batch norms in its encoder.", "Leave it out."),
    "detector.head_channels": ("has the width detector.fpn_channels throughout.", "Leave it out."),
    "detector.head_convs": ("has no convolutions in its heads.", "Leave it out."),
    "detector.anchor_scale": ("has no anchors.", "Leave it out."),
    **ONE_SIZE,
}
SQUARES = {
    "detector.short_sides": ("trains on squares of data.image_size.", "Use detector.scale_jitter instead."),
    "data.background": ("trains on every image with a mask.", "Leave it out."),
}


DEFAULTS = {"data_note": "", "any_test_size": False, "anchor_iou": None, "channels_multiple": 1}


def _line(target, summary, task, data, refuses, extra=None, modules=(), **facts) -> Entry:
    facts = {"task": task, "data": data, "refuses": refuses, **DEFAULTS, **facts}
    return Entry(f"dupr_tf.detection.{target}", summary, extra, modules, facts=facts)


ANCHOR_IOU = 0.5  # of RetinaNet, whose small boxes may have no anchor; R-CNN gives each box its best anchor
ONE_STAGE = {**NO_PIXELS, **NO_PROPOSALS}
DETECTORS = Registry(
    "detector",
    "detector.kind",
    {
        "retinanet": _line(
            "retinanet:RetinaNet", "RetinaNet of KerasCV", "boxes", BOXES, ONE_STAGE, anchor_iou=ANCHOR_IOU
        ),
        "kerashub_retinanet": _line(
            "kerashub:KerasHubRetinaNet",
            "RetinaNet of KerasHub",
            "boxes",
            BOXES,
            {**ONE_STAGE, **KERASHUB},
            anchor_iou=ANCHOR_IOU,
            extra="kerashub",
            modules=("keras_hub",),
        ),
        "kerashub_dfine": _line(
            "dfine:KerasHubDFine",
            "D-FINE of KerasHub",
            "boxes",
            BOXES,
            {**ONE_STAGE, **DFINE},
            extra="kerashub",
            modules=("keras_hub",),
            channels_multiple=8,
        ),
        "yolov8": _line("yolov8:YOLOv8", "YOLOv8 of KerasCV", "boxes", BOXES, {**ONE_STAGE, **YOLO}),
        "faster_rcnn": _line("rcnn.model:FasterRCNN", "boxes in two stages", "boxes", BOXES, NO_PIXELS),
        "mask_rcnn": _line(
            "rcnn.model:MaskRCNN",
            "Faster R-CNN with masks",
            "masks",
            MASKS,
            NO_PIXELS,
            data_note="voc and openimages lack masks",
        ),
        "fcn": _line(
            "fcn:FCN",
            "classes of pixels",
            "segments",
            PIXELS,
            {**NO_PROPOSALS, **SQUARES},
            data_note="it learns classes of pixels",
            any_test_size=True,
        ),
    },
)
