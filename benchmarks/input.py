"""From JPEG files to two augmented, normalised views: ours, and MoCo v2's pipeline on two other libraries. One core."""

from benchmarks.contest import Case, Contestant

FILES = 2000


def cases(data):
    return [_case(size, {"data": data, "files": FILES, "size": size}) for size in (224, 64)]


def _case(size, options):
    return Case(
        f"input: two views of {size} px, JPEGs of 500 px",
        "images/s",
        (
            Contestant("dupr_tf", "benchmarks.input_ours:build", options),
            Contestant(
                "torchvision, Pillow (MoCo v2)", "benchmarks.input_peers:torchvision_pillow", options,
                needs=("torch", "torchvision"),
            ),
            Contestant(
                "albumentations, OpenCV", "benchmarks.input_peers:albumentations_opencv", options,
                needs=("albumentations", "cv2"),
            ),
        ),
        cores=1,
    )  # fmt: skip
