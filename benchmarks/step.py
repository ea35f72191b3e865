"""Times a whole pre-training step, inputs ready in memory, without photometrics: ours and PyTorch's."""

from benchmarks.contest import Case, Contestant

SMALL = {"architecture": "resnet18", "size": 96, "batch": 64, "groups": 4, "bank": 4096, "roi_sizes": (24, 12, 6, 3)}
PAPER = {"architecture": "resnet50", "size": 224, "batch": 8, "groups": 1, "bank": 65536, "roi_sizes": (56, 28, 14, 7)}


def cases(_data):
    return [
        _case("step: ResNet-18, 96 px, batch 64 in 4 groups, K 4,096", SMALL),
        _case("step: ResNet-50, 224 px, batch 8, K 65,536", PAPER),
    ]


def _case(name, setting):
    peers = [
        Contestant(
            f"PyTorch, {'channels_last' if channels_last else 'default layout'}, {logits} logits",
            "benchmarks.step_torch:build",
            {**setting, "channels_last": channels_last, "logits": logits},
            needs=("torch", "torchvision"),
            heat="torch",
        )
        for channels_last in (True, False)
        for logits in ("full", "chunked")
    ]
    return Case(name, "images/s", (Contestant("dupr_tf", "benchmarks.step_ours:build", setting), *peers))
