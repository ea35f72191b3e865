"""Rules between the settings of a detector. Every mistake is found at once, before TensorFlow loads."""

from __future__ import annotations

import importlib.util

from dupr_tf.errors import UserError

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


def finetune_problems(config, replicas: int = 1) -> list[UserError]:
    """The cross-field mistakes that make fine-tuning impossible or meaningless.

    Args:
        config: a `Config`.
        replicas: devices that train together.
    """
    if config.detector is None:
        fix = "Start from configs/retinanet_r18_small.yaml."
        return [UserError("detector", "The config has no section detector.", fix)]
    checks = (_training, _data, _kind, _sizes, _schedule)
    return [error for check in checks for error in check(config)] + _devices(config, replicas)


def _training(config) -> list[UserError]:
    problems = []
    if config.optimizer.learning_rate is None:
        problem = "It is not set, and its default is for pre-training."
        problems.append(UserError("optimizer.learning_rate", problem, "Pass --optimizer.learning_rate 0.01."))
    precision = config.train.precision
    if precision != "float32":
        problem = f"Expected float32 for a detector, received {precision}."
        problems.append(UserError("train.precision", problem, "Pass --train.precision float32."))
    if config.train.jit == "on":
        problem = "Expected auto or off for a detector, whose NMS XLA does not compile, received on."
        problems.append(UserError("train.jit", problem, "Pass --train.jit auto."))
    return problems


def _data(config) -> list[UserError]:
    data, kind, problems = config.data, config.detector.kind, []
    allowed = DATA_KINDS[kind]
    if data.kind not in allowed:
        names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        problem = f"Expected {names} for {kind}{MISSING.get(kind, '')}, received {data.kind}."
        problems.append(UserError("data.kind", problem, "Pass --data.kind auto."))
    if kind != "fcn":
        problem = f"Only detector.kind fcn reads it, from a folder of masks; the kind here is {kind}."
        given = [name for name in ("class_names", "ignore_value") if getattr(data, name) is not None]
        problems += [UserError(f"data.{name}", problem, "Leave it out.") for name in given]
    return problems


def _kind(config) -> list[UserError]:
    detector, problems = config.detector, []
    kind = detector.kind
    if detector.neck == "c4" and kind not in RCNN:
        problem = f"Expected fpn for {kind}, received c4."
        fix = f"Pass --detector.neck fpn, or --detector.kind {' or '.join(RCNN)}."
        problems.append(UserError("detector.neck", problem, fix))
    if kind not in RCNN:
        given = [name for name in ("rpn_pre_nms", "rpn_post_nms") if getattr(detector, name) is not None]
        problem = f"{kind} has no proposals."
        problems += [UserError(f"detector.{name}", problem, "Leave it out.") for name in given]
    if kind == "kerashub_retinanet":
        problems += _kerashub(detector)
    return problems


def _kerashub(detector) -> list[UserError]:
    problems = []
    if importlib.util.find_spec("keras_hub") is None:
        problem = "kerashub_retinanet needs keras_hub, which is not installed."
        problems.append(UserError("detector.kind", problem, "Run: pip install 'dupr_tf[kerashub]'."))
    if detector.head_channels != 256:
        problem = f"Expected 256, the width of KerasHub's heads, received {detector.head_channels}."
        fix = "Pass --detector.head_channels 256, or --detector.kind retinanet."
        problems.append(UserError("detector.head_channels", problem, fix))
    if detector.short_sides:
        problem = "kerashub_retinanet takes images of one size only."
        fix = "Set data.image_size instead, or pass --detector.kind retinanet."
        problems.append(UserError("detector.short_sides", problem, fix))
    return problems


def _sizes(config) -> list[UserError]:
    detector, size, problems = config.detector, config.data.image_size, []
    sides, test_side = detector.short_sides, detector.test_short_side
    if size % 32:
        problem, fix = f"Expected a multiple of 32, received {size}.", max(32, round(size / 32) * 32)
        problems.append(UserError("data.image_size", problem, f"Pass --data.image_size {fix}."))
    if detector.kind == "fcn" and sides:
        problem, fix = "fcn trains on squares of data.image_size.", "Use detector.scale_jitter instead."
        problems.append(UserError("detector.short_sides", problem, fix))
    elif sides and list(sides) != sorted(set(sides)):
        problem, fix = f"Expected rising numbers, received {list(sides)}.", f"Use {sorted(set(sides))}."
        problems.append(UserError("detector.short_sides", problem, fix))
    if not sides and detector.kind != "fcn" and test_side:
        problem = "It has no effect without detector.short_sides: images are squares of data.image_size."
        fix = f"Leave it out, or pass --detector.short_sides '[{test_side}]'."
        problems.append(UserError("detector.test_short_side", problem, fix))
    longest = max([*(sides or ()), test_side or 0])
    if detector.max_long_side < longest:
        problem = f"Expected at least the short side, {longest}, received {detector.max_long_side}."
        problems.append(UserError("detector.max_long_side", problem, f"Pass --detector.max_long_side {longest}."))
    return problems


def _schedule(config) -> list[UserError]:
    optimizer, steps, problems = config.optimizer, config.optimizer.milestone_steps, []
    last = config.train.max_steps
    if steps and last is not None and steps[-1] >= last:
        problem = f"Expected steps before train.max_steps, {last}, received {list(steps)}."
        problems.append(UserError("optimizer.milestone_steps", problem, "Use earlier steps, or a longer run."))
    if steps and optimizer.schedule != "milestones":
        problem = f"Expected milestones, since optimizer.milestone_steps is set, received {optimizer.schedule}."
        problems.append(UserError("optimizer.schedule", problem, "Pass --optimizer.schedule milestones."))
    return problems


def _devices(config, replicas: int) -> list[UserError]:
    batch = config.train.batch_size
    if batch % replicas == 0:
        return []
    problem = f"Expected a multiple of the {replicas} devices, received {batch}."
    return [UserError("train.batch_size", problem, f"Pass --train.batch_size {max(1, batch // replicas) * replicas}.")]
