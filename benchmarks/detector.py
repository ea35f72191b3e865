"""A training step of each detector, inputs ready in memory: ours, KerasCV's RetinaNet and torchvision's R-CNNs.

All have the width and the numbers of the paper's protocols (256 channels, 512 regions), on a ResNet-18 and small
images. C4 detectors get fewer regions, because each region goes through res5.
"""

from benchmarks.contest import Case, Contestant

SETTING = {"size": 256, "batch": 2}
TITLE = "ResNet-18, 256 px, batch 2"
C4_REGIONS = 64
OURS, THEIRS = "benchmarks.detector_ours:build", "benchmarks.detector_keras_cv"


def cases(_data):
    few = {"rois_per_image": C4_REGIONS}
    return [
        _case("RetinaNet", "retinanet", "fpn", {}),
        _case(
            "RetinaNet with three convolutions a head and no norm in the pyramid, KerasCV's", "retinanet", "fpn",
            {"head_convs": 3, "fpn_norm": False},
            Contestant("KerasCV RetinaNet, its own ResNet-18", f"{THEIRS}:build", SETTING),
        ),
        _case("Faster R-CNN, pyramid", "faster_rcnn", "fpn", {}, _torchvision("faster_rcnn")),
        _case("Mask R-CNN, pyramid", "mask_rcnn", "fpn", {}, _torchvision("mask_rcnn")),
        _case(f"Faster R-CNN, C4, {C4_REGIONS} regions", "faster_rcnn", "c4", few),
        _case(f"Mask R-CNN, C4, {C4_REGIONS} regions", "mask_rcnn", "c4", few),
        _case("FCN", "fcn", "fpn", {}),
    ]  # fmt: skip


def _case(name, kind, neck, settings, *peers):
    ours = Contestant("dupr_tf", OURS, {"kind": kind, "neck": neck, **SETTING, "settings": settings})
    return Case(f"{name}: {TITLE}", "images/s", (ours, *peers))


def _torchvision(kind):
    needs = ("torch", "torchvision")
    return Contestant("torchvision", "benchmarks.detector_torch:build", {"kind": kind, **SETTING}, needs=needs)
