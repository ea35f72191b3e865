"""From JPEG files to two augmented, normalised views: ours, and MoCo v2's pipeline on two other libraries. One core."""

from benchmarks.contest import Case, Contestant

FILES = 2000


def cases(data):
    return [_case(size, {"data": data, "files": FILES, "size": size}) for size in (224, 64)]


def _case(size, options):
    return Case(
        f"input: two views of {size} px, JPEGs of 500 px",
        "images/s",
        contestants(options, "input_ours:build", "torchvision_pillow", "albumentations_opencv"),
        cores=1,
    )


def contestants(options, ours, pillow, opencv):
    """Ours, and MoCo v2's pipeline on the two other libraries."""
    return (
        Contestant("dupr_tf", f"benchmarks.{ours}", options),
        Contestant(
            "torchvision, Pillow (MoCo v2)", f"benchmarks.input_peers:{pillow}", options, needs=("torch", "torchvision")
        ),
        Contestant(
            "albumentations, OpenCV", f"benchmarks.input_peers:{opencv}", options, needs=("albumentations", "cv2")
        ),
    )
