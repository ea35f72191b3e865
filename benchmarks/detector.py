"""A training step of each detector, inputs ready in memory: ours beside KerasCV's RetinaNet and torchvision's R-CNNs.

All at the width and the numbers of the paper's protocols (256 channels, 512 regions), on a ResNet-18 and small images;
C4 with fewer regions, each of which goes through res5.
"""

from benchmarks.contest import Case, Contestant

SETTING = {"size": 256, "batch": 2}
TITLE = "ResNet-18, 256 px, batch 2"
C4_REGIONS = 64
OURS, THEIRS = "benchmarks.detector_ours:build", "benchmarks.detector_keras_cv"


def cases(_data):
    retinanet = Contestant("KerasCV RetinaNet, its own ResNet-18", f"{THEIRS}:build", SETTING)
    return [
        _case("RetinaNet", {"kind": "retinanet", "neck": "fpn"}, retinanet),
        _case("Faster R-CNN, pyramid", {"kind": "faster_rcnn", "neck": "fpn"}, _torchvision("faster_rcnn")),
        _case("Mask R-CNN, pyramid", {"kind": "mask_rcnn", "neck": "fpn"}, _torchvision("mask_rcnn")),
        _case(f"Faster R-CNN, C4, {C4_REGIONS} regions", {"kind": "faster_rcnn", "neck": "c4", "regions": C4_REGIONS}),
        _case(f"Mask R-CNN, C4, {C4_REGIONS} regions", {"kind": "mask_rcnn", "neck": "c4", "regions": C4_REGIONS}),
        _case("FCN", {"kind": "fcn", "neck": "fpn"}),
    ]


def _case(name, which, *peers):
    ours = Contestant("dupr_tf", OURS, {**which, **SETTING})
    return Case(f"{name}: {TITLE}", "images/s", (ours, *peers))


def _torchvision(kind):
    needs = ("torch", "torchvision")
    return Contestant("torchvision", "benchmarks.detector_torch:build", {"kind": kind, **SETTING}, needs=needs)
