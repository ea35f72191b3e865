"""The dry run of `pretrain`: builds all that a run needs, takes a few real steps and reports what a run costs."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from dupr_tf.config import Config
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.errors import RunFailed
from dupr_tf.models import DUPR, ResNetBackbone
from dupr_tf.models.cost import channels_by_term, step_traffic
from dupr_tf.text import duration
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.feed import feed
from dupr_tf.training.pretrain import checked_images, compiled_model

STEPS = 2  # timed steps, after one step that traces and one that warms up
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The measurements of a few real steps on this machine."""

    levels: dict[str, tuple[int, ...]]  # {level: (height, width, channels) of a view's feature map}
    parameters: dict[str, int]  # by part
    memory: dict[str, int]  # predicted bytes, by part
    measured_memory: int  # most bytes this process has held, including TensorFlow and Python
    input_ms: float  # per image, input pipeline alone
    step_ms: float  # per image, step alone, with its batch in memory
    images_per_second: float  # input and step together
    first_step_seconds: float  # including tracing
    batch_size: int
    total_steps: int
    loss: float

    @property
    def hours(self) -> float:
        """Returns the hours of the whole run at this speed."""
        return self.total_steps * self.batch_size / self.images_per_second / 3600

    @property
    def limit(self) -> str:
        """States in one sentence if reading images or the step limits the speed."""
        share = self.input_ms / (self.input_ms + self.step_ms)
        if self.input_ms > self.step_ms:
            return f"reading images decides ({share:.0%} of the work). Fix: more CPU cores, or smaller files"
        return f"the step decides; reading images is {share:.0%} of the work"


def dry_run(config: Config, data: str | Path | None = None) -> DryRun:
    """Takes a few steps of a run without writing anything.

    Args:
        config: the experiment.
        data: folder of images, COCO or VOC root, shards, or `tfds:NAME`. Default: `config.data.root`.

    Raises:
        UserError: any that `pretrain` would raise.
        RunFailed: the loss is not finite.
    """
    setting = config.train.strategy
    strategy = choose_strategy("auto" if setting == "multi_worker" else setting)  # for this machine alone
    config, source, bad = checked_images(config, data, replicas(strategy))
    with scope(strategy):
        model = compiled_model(config, len(source), replicas=replicas(strategy))
    batch, steps = config.train.batch_size, WARM_UP + STEPS
    with view_pairs(source, config, 0, steps, bad) as batches:
        start = time.perf_counter()
        *_, last_batch = batches
        input_seconds = (time.perf_counter() - start) / steps
    with view_pairs(source, config, 0, steps, bad) as batches:
        both = _fit(model, feed(batches), steps)
    alone = _fit(model, tf.data.Dataset.from_tensors(last_batch).repeat(steps), steps)
    loss = both.loss
    if not np.isfinite(loss):
        raise RunFailed(f"The loss is {loss} after {steps} steps. Use a lower --optimizer.learning_rate.")
    return DryRun(
        levels=_level_shapes(model, config.data.image_size),
        parameters=_parameters(model),
        memory=predicted_memory(model, config),
        measured_memory=peak_memory(),
        input_ms=1e3 * input_seconds / batch,
        step_ms=1e3 * alone.seconds_each / batch,
        images_per_second=batch / both.seconds_each,
        first_step_seconds=both.first,
        batch_size=batch,
        total_steps=config.total_steps(len(source)),
        loss=loss,
    )


def predicted_memory(model: DUPR, config: Config, replicas: int = 1, block_keys: int | None = None) -> dict[str, int]:
    """Predicts the bytes a device holds, by part.

    Activations are those of one batch-norm group, because only one group's are held at a time.

    Args:
        model: the pre-training model.
        config: config of the run.
        replicas: devices that share the batch. Each holds all weights and banks.
        block_keys: block size of the losses, see `info_nce`. Default: that of this machine.
    """
    batch = config.train.batch_size
    group = batch // config.train.micro_batches
    width = 4 if config.train.precision == "float32" else 2  # bytes per number
    trainable = sum(_size(v.shape) for v in model.query_variables)
    everything = sum(_size(v.shape) for v in (*model.query_encoder.variables, *model.key_encoder.variables))
    view = config.data.image_size**2 * 3
    keys = step_traffic(model, config.data.image_size, batch)["gathered"]["keys"]
    costs = [term.cost(channels, group, block_keys) for term, channels in channels_by_term(model)]
    return {
        "weights of both encoders": 4 * everything,
        "gradients and momentum": 4 * 2 * trainable,
        "memory banks": memory_bytes(model),
        "views of a batch": batch // replicas * 2 * view * (1 + 4),  # uint8, and float32 once augmented
        **({"views gathered and shuffled": 2 * 4 * batch * view} if replicas > 1 else {}),
        "keys gathered and put back": 2 * keys,
        f"activations of {group} images": width * group * activation_numbers(model.backbone, config.data.image_size),
        "logits": max(cost.compare_bytes for cost in costs),
    }


def memory_bytes(model: DUPR) -> int:
    """Returns the bytes of the terms' state between steps."""
    return sum(4 * _size(v.shape) for term in model.terms for v in term.non_trainable_variables if len(v.shape))


def peak_memory() -> int:
    """Returns the most bytes this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_dry_run(result: DryRun, console: Console | None = None) -> None:
    """Prints the result as a table."""
    table = Table(box=None, show_header=False)
    rows = {
        "features of a view": ", ".join(f"{level} {h}×{w}×{c}" for level, (h, w, c) in result.levels.items()),
        **{f"parameters, {part}": f"{count:,}" for part, count in result.parameters.items()},
        **{f"memory, {part}": _mib(size) for part, size in result.memory.items()},
        "memory, predicted sum": _mib(sum(result.memory.values())),
        "memory, measured": f"{_mib(result.measured_memory)} (the whole process)",
        "first step": f"{result.first_step_seconds:.1f} s (tracing included), loss {result.loss:.3f}",
        "input alone": f"{result.input_ms:.2f} ms an image",
        "step alone": f"{result.step_ms:.2f} ms an image",
        "together": f"{result.images_per_second:.1f} images/s: {result.limit}",
        "the whole run": f"{result.total_steps:,} steps of {result.batch_size} in {duration(3600 * result.hours)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    (console or Console(highlight=False)).print(table)


class _Clock(keras.callbacks.Callback):
    """Records when each step of a `fit` ended."""

    def __init__(self):
        super().__init__()
        self.ends, self.loss = [], float("nan")

    def on_train_begin(self, logs=None):
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        self.loss = float(logs["loss"])  # waits for the step
        self.ends.append(time.perf_counter())

    @property
    def first(self) -> float:
        return self.ends[1] - self.ends[0]

    @property
    def seconds_each(self) -> float:
        return (self.ends[-1] - self.ends[WARM_UP]) / STEPS


def _fit(model, batches, steps):
    clock = _Clock()
    model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    return clock


def _level_shapes(model, size):
    shapes = model.query_encoder.pyramid.compute_output_shape((1, size, size, 3))
    return {level: tuple(shape[1:]) for level, shape in shapes.items()}


def _parameters(model) -> dict[str, int]:
    backbone = model.backbone.count_params()
    heads = sum(_size(v.shape) for head in model.query_encoder.projectors.values() for v in head.variables)
    return {"backbone": backbone, "heads": heads}


def activation_numbers(backbone, size) -> int:
    """Counts the numbers per image that one of our ResNets keeps for the gradient; 0 for other backbones."""
    if not isinstance(backbone, ResNetBackbone):
        return 0
    twin = ResNetBackbone.from_config({**backbone.get_config(), "input_shape": (size, size, 3)})
    freed = (keras.layers.BatchNormalization, keras.layers.Add)  # the gradient needs their inputs, not their outputs
    return sum(_size(layer.output.shape[1:]) for layer in twin.layers if not isinstance(layer, freed))


def _size(shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
