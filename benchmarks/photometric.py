"""MoCo v2's colours and blur on a batch of 224 px, one core: ours, and two other libraries image by image."""

from benchmarks.contest import Case, Contestant

OPTIONS = {"count": 64, "size": 224}


def cases(_data):
    return [
        Case(
            "photometric: 224 px",
            "images/s",
            (
                Contestant("dupr_tf", "benchmarks.input_ours:photometric", OPTIONS),
                Contestant(
                    "torchvision, Pillow (MoCo v2)", "benchmarks.input_peers:torchvision_photometric", OPTIONS,
                    needs=("torch", "torchvision"),
                ),
                Contestant(
                    "albumentations, OpenCV", "benchmarks.input_peers:albumentations_photometric", OPTIONS,
                    needs=("albumentations", "cv2"),
                ),
            ),
            cores=1,
        )
    ]  # fmt: skip
