"""Rules between the settings of a detector. All mistakes are reported at once, before TensorFlow loads."""

from __future__ import annotations

from dupr_tf.config.detectors import DETECTORS
from dupr_tf.errors import UserError


def finetune_problems(config, replicas: int = 1) -> list[UserError]:
    """Lists the cross-field mistakes that make fine-tuning impossible or meaningless.

    Args:
        config: a `Config`.
        replicas: number of devices that train together.
    """
    if config.detector is None:
        problem = "This is a config of pre-training: it has no section detector."
        fix = "Pass it to `pretrain`, or start from configs/retinanet_r18_small.yaml."
        return [UserError("detector", problem, fix)]
    checks = (_training, _kind, _sizes, _schedule, _validation)
    return [error for check in checks for error in check(config)] + _devices(config, replicas)


def _training(config) -> list[UserError]:
    problems = []
    if config.optimizer.learning_rate is None:
        problem = "It is not set, and its default is for pre-training."
        problems.append(UserError("optimizer.learning_rate", problem, "Pass --optimizer.learning_rate 0.01."))
    if config.train.batch_size == 1 and config.detector.norm != "frozen":
        problem = "Batch norm needs at least 2 images unless it is frozen, received 1."
        problems.append(UserError("train.batch_size", problem, "Pass --train.batch_size 2, or --detector.norm frozen."))
    if config.train.jit == "on":
        problem = "Expected auto or off for a detector, whose NMS XLA does not compile, received on."
        problems.append(UserError("train.jit", problem, "Pass --train.jit auto."))
    return problems


def _kind(config) -> list[UserError]:
    """Checks the needs of the kind of detector, and fields that it does not take."""
    kind, problems = config.detector.kind, []
    try:
        facts = DETECTORS.check(kind).facts
    except UserError as error:
        problems, facts = [error], DETECTORS[kind].facts
    allowed, note = facts["data"], facts["data_note"]
    if config.data.kind not in allowed:
        problem = f"Expected {', '.join(allowed[:-1])} or {allowed[-1]} for {kind}, received {config.data.kind}."
        problems.append(UserError("data.kind", problem, f"Pass --data.kind auto{note and f'; {note}'}."))
    for field, (why, fix) in facts["refuses"].items():
        section, _, name = field.partition(".")
        section = getattr(config, section)
        if getattr(section, name) not in (type(section).model_fields[name].default, ()):
            problems.append(UserError(field, f"{kind} {why}", fix))
    return problems


def _sizes(config) -> list[UserError]:
    detector, size, problems = config.detector, config.data.image_size, []
    sides, test_side = detector.short_sides, detector.test_short_side
    if size % 32:
        problem, fix = f"Expected a multiple of 32, received {size}.", max(32, round(size / 32) * 32)
        problems.append(UserError("data.image_size", problem, f"Pass --data.image_size {fix}."))
    facts = DETECTORS[detector.kind].facts
    multiple, channels = facts["channels_multiple"], detector.fpn_channels
    if channels % multiple:
        problem = f"Expected a multiple of {multiple} for {detector.kind}, received {channels}."
        fix = f"Pass --detector.fpn_channels {channels // multiple * multiple}."
        problems.append(UserError("detector.fpn_channels", problem, fix))
    if sides and "detector.short_sides" not in facts["refuses"] and list(sides) != sorted(set(sides)):
        problem, fix = f"Expected rising numbers, received {list(sides)}.", f"Use {sorted(set(sides))}."
        problems.append(UserError("detector.short_sides", problem, fix))
    if test_side and not sides and not facts["any_test_size"]:
        problem = "It has no effect without detector.short_sides: images are squares of data.image_size."
        fix = f"Leave it out, or pass --detector.short_sides '[{test_side}]'."
        problems.append(UserError("detector.test_short_side", problem, fix))
    longest = max([*(sides or ()), test_side or 0])
    if detector.max_long_side < longest:
        problem = f"Expected at least the short side, {longest}, received {detector.max_long_side}."
        problems.append(UserError("detector.max_long_side", problem, f"Pass --detector.max_long_side {longest}."))
    return problems


def _schedule(config) -> list[UserError]:
    steps, problems = config.optimizer.milestone_steps, [*config.milestone_problems()]
    last = config.train.max_steps
    if steps and last is not None and steps[-1] >= last:
        problem = f"Expected steps before train.max_steps, {last}, received {list(steps)}."
        problems.append(UserError("optimizer.milestone_steps", problem, "Use earlier steps, or a longer run."))
    return problems


def _validation(config) -> list[UserError]:
    if config.detector.patience is None or config.detector.validate_every:
        return []
    problem = "It has no effect without detector.validate_every."
    return [UserError("detector.patience", problem, "Pass --detector.validate_every '1 epoch', or leave it out.")]


def _devices(config, replicas: int) -> list[UserError]:
    batch = config.train.batch_size
    if batch % replicas == 0:
        return []
    problem = f"Expected a multiple of the {replicas} devices, received {batch}."
    return [UserError("train.batch_size", problem, f"Pass --train.batch_size {max(1, batch // replicas) * replicas}.")]
