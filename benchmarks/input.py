"""Reads JPEG files and makes two augmented, normalised views, on one core: ours, and MoCo v2's pipeline on two
libraries.

Ours is timed with everything that `fit` does before the first layer of the step. Nothing that was read in advance
counts.
"""

from benchmarks.contest import Case, Contestant

FILES = 2000


def cases(data):
    options = {size: {"data": data, "files": FILES, "size": size} for size in (224, 64)}
    shards = (
        Contestant("shards", "benchmarks.input_ours:packed", options[224]),
        Contestant("files", "benchmarks.input_ours:build", options[224]),
    )
    return [
        *(_case(f"two views of {size} px, JPEGs of 500 px", _libraries(options[size])) for size in options),
        _case("two views of 224 px, from shards and from the files that were packed", shards),
    ]


def _case(what, entries):
    return Case(f"input: {what}", "images/s", entries, cores=1)


def _libraries(options):
    return contestants(options, "input_ours:build", "torchvision_pillow", "albumentations_opencv")


def contestants(options, ours, pillow, opencv):
    """Returns ours, and MoCo v2's pipeline on the two other libraries."""
    return (
        Contestant("dupr_tf", f"benchmarks.{ours}", options),
        Contestant(
            "torchvision, Pillow (MoCo v2)", f"benchmarks.input_peers:{pillow}", options, needs=("torch", "torchvision")
        ),
        Contestant(
            "albumentations, OpenCV", f"benchmarks.input_peers:{opencv}", options, needs=("albumentations", "cv2")
        ),
    )
