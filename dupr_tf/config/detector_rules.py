"""Which settings of a detector go together: every mistake a line, before TensorFlow loads."""

from __future__ import annotations

import importlib.util

RCNN = ("faster_rcnn", "mask_rcnn")
# Data that has what a detector learns from.
DATA_KINDS = {
    "retinanet": ("auto", "coco", "voc", "cityscapes"),
    "kerashub_retinanet": ("auto", "coco", "voc", "cityscapes"),
    "faster_rcnn": ("auto", "coco", "voc", "cityscapes"),
    "mask_rcnn": ("auto", "coco", "cityscapes"),
    "fcn": ("auto", "masks", "cityscapes"),
}
MISSING = {"mask_rcnn": " (voc has no masks of objects)", "fcn": " (classes of pixels)"}


def finetune_problems(config, replicas: int = 1) -> list[str]:
    """The cross-field mistakes that would make fine-tuning impossible or meaningless, a line each.

    Args:
        config: a `Config`.
        replicas: devices that train together.
    """
    if config.detector is None:
        return ["detector: expected a section, received none. Fix: start from configs/retinanet_r18_small.yaml"]
    checks = (_training, _data, _kind, _sizes, _schedule)
    return [line for check in checks for line in check(config)] + _devices(config, replicas)


def _training(config) -> list[str]:
    problems = []
    if config.optimizer.learning_rate is None:
        problems.append(
            "optimizer.learning_rate: expected a number (its default is for pre-training), received none. "
            "Fix: --optimizer.learning_rate 0.01"
        )
    if config.train.precision != "float32":
        problems.append(
            f"train.precision: expected float32 for a detector, received {config.train.precision}. "
            "Fix: --train.precision float32"
        )
    if config.train.jit == "on":
        problems.append(
            "train.jit: expected auto or off for a detector (XLA compiles no NMS), received on. Fix: --train.jit auto"
        )
    return problems


def _data(config) -> list[str]:
    data, kind, problems = config.data, config.detector.kind, []
    allowed = DATA_KINDS[kind]
    if data.kind not in allowed:
        problems.append(
            f"data.kind: expected {', '.join(allowed[:-1])} or {allowed[-1]} for {kind}{MISSING.get(kind, '')}, "
            f"received {data.kind}. Fix: --data.kind auto"
        )
    if kind != "fcn":
        problems += [
            f"data.{name}: expected none but for detector.kind fcn (a folder of masks), received {value!r:.60}. "
            "Fix: leave it out"
            for name, value in (("class_names", data.class_names), ("ignore_value", data.ignore_value))
            if value is not None
        ]
    return problems


def _kind(config) -> list[str]:
    detector, problems = config.detector, []
    kind = detector.kind
    if detector.neck == "c4" and kind not in RCNN:
        problems.append(
            f"detector.neck: expected fpn for {kind}, received c4 (of faster_rcnn and mask_rcnn). "
            "Fix: --detector.neck fpn"
        )
    if kind not in RCNN:
        problems += [
            f"detector.{name}: expected none for {kind}, which has no proposals, received {list(value)}. "
            "Fix: leave it out"
            for name, value in (("rpn_pre_nms", detector.rpn_pre_nms), ("rpn_post_nms", detector.rpn_post_nms))
            if value is not None
        ]
    if kind == "kerashub_retinanet":
        problems += _kerashub(detector)
    return problems


def _kerashub(detector) -> list[str]:
    problems = []
    if importlib.util.find_spec("keras_hub") is None:
        problems.append(
            "detector.kind: expected KerasHub to be installed for kerashub_retinanet, received none. "
            "Fix: pip install 'dupr_tf[kerashub]'"
        )
    if detector.head_channels != 256:
        problems.append(
            f"detector.head_channels: expected 256, the width of KerasHub's heads, received {detector.head_channels}. "
            "Fix: --detector.head_channels 256, or --detector.kind retinanet"
        )
    if detector.short_sides:
        problems.append(
            f"detector.short_sides: expected none for kerashub_retinanet, whose anchors want one size, received "
            f"{list(detector.short_sides)}. Fix: data.image_size, or --detector.kind retinanet"
        )
    return problems


def _sizes(config) -> list[str]:
    detector, size, problems = config.detector, config.data.image_size, []
    sides = detector.short_sides
    if size % 32:
        problems.append(
            f"data.image_size: expected a multiple of 32, received {size}. "
            f"Fix: --data.image_size {max(32, round(size / 32) * 32)}"
        )
    if detector.kind == "fcn" and sides:
        problems.append(
            f"detector.short_sides: expected none for fcn, which trains on squares of data.image_size, received "
            f"{list(sides)}. Fix: detector.scale_jitter"
        )
    elif sides and list(sides) != sorted(set(sides)):
        problems.append(
            f"detector.short_sides: expected rising numbers, received {list(sides)}. Fix: {sorted(set(sides))}"
        )
    if not sides and detector.kind != "fcn" and detector.test_short_side:
        problems.append(
            f"detector.test_short_side: expected none without detector.short_sides (squares of data.image_size), "
            f"received {detector.test_short_side}. Fix: --detector.short_sides '[{detector.test_short_side}]'"
        )
    longest = max([*(sides or ()), detector.test_short_side or 0])
    if detector.max_long_side < longest:
        problems.append(
            f"detector.max_long_side: expected at least the short side {longest}, received {detector.max_long_side}. "
            f"Fix: --detector.max_long_side {longest}"
        )
    return problems


def _schedule(config) -> list[str]:
    optimizer, steps, problems = config.optimizer, config.optimizer.milestone_steps, []
    if steps and config.train.max_steps is not None and steps[-1] >= config.train.max_steps:
        problems.append(
            f"optimizer.milestone_steps: expected steps before train.max_steps ({config.train.max_steps}), received "
            f"{list(steps)}. Fix: earlier ones"
        )
    if steps and optimizer.schedule != "milestones":
        problems.append(
            f"optimizer.schedule: expected milestones with optimizer.milestone_steps, received {optimizer.schedule}. "
            "Fix: --optimizer.schedule milestones"
        )
    return problems


def _devices(config, replicas: int) -> list[str]:
    batch = config.train.batch_size
    if batch % replicas == 0:
        return []
    return [
        f"train.batch_size: expected a multiple of the {replicas} devices, received {batch}. "
        f"Fix: --train.batch_size {max(1, batch // replicas) * replicas}"
    ]
