"""RoIAlign of one box an image, forward and backward, at the two patch levels of the paper's setting."""

from benchmarks.contest import Case, Contestant

LEVELS = {  # batch 32, ResNet-50 at 224 px
    "P4": {"images": 32, "side": 14, "channels": 1024, "bins": 14, "stride": 16},
    "P5": {"images": 32, "side": 7, "channels": 2048, "bins": 7, "stride": 32},
}


def cases(_data):
    return [
        Case(
            f"roi_align: {level}, 32 × {shape['side']}² × {shape['channels']}, {shape['bins']}² bins",
            "boxes/s",
            (
                Contestant("dupr_tf, separable", "benchmarks.roi_align_ours:build", shape),
                Contestant(
                    "crop_and_resize, moved to the bin centres", "benchmarks.roi_align_ours:build",
                    {**shape, "reference": True},
                ),
                Contestant(
                    "torchvision", "benchmarks.roi_align_torch:build", shape, needs=("torch", "torchvision")
                ),
            ),
        )
        for level, shape in LEVELS.items()
    ]  # fmt: skip
