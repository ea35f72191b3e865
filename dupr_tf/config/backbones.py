"""Lists the backbones for `model.backbone` and `--backbone`."""

from __future__ import annotations

from dupr_tf.registry import Entry, Registry


def _resnet(depth: int, parameters: str, block: str, blocks: tuple[int, int, int, int]) -> Entry:
    return Entry(
        "dupr_tf.models.resnet:ResNetBackbone",
        f"ResNet-{depth} in torchvision's layout, {parameters} M parameters",
        facts={"block": block, "depths": blocks},
    )


# A target is called as `target(name, width=…, **settings)` and returns a functional Keras model with `pyramid_outputs`.
BACKBONES = Registry(
    "backbone",
    "model.backbone",
    {
        "resnet18": _resnet(18, "11.2", "basic", (2, 2, 2, 2)),
        "resnet34": _resnet(34, "21.3", "basic", (3, 4, 6, 3)),
        "resnet50": _resnet(50, "23.5", "bottleneck", (3, 4, 6, 3)),
        "resnet101": _resnet(101, "42.5", "bottleneck", (3, 4, 23, 3)),
        "resnet152": _resnet(152, "58.1", "bottleneck", (3, 8, 36, 3)),
    },
)
