"""Runs the training loop: calls Keras' `fit` from one step to another, with a log, validation and checkpoints.

It takes any compiled Keras model whose batches are a function of the step.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from dupr_tf.data.reader import Reader
from dupr_tf.training.callbacks import SaveCheckpoints, StepCallback, StopOnSignal, Validate
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.feed import feed
from dupr_tf.training.metrics_log import MetricsLog


def train(
    model: keras.Model,
    open_reader: Callable[[int, int], Reader],
    steps: tuple[int, int],
    steps_per_epoch: int,
    callbacks: Sequence[StepCallback] = (),
    as_dataset: Callable[[Reader], tf.data.Dataset] = feed,
) -> None:
    """Calls `fit` up to the last step: once for all whole epochs, and separately for the parts a resume cuts off.

    It ends earlier if a callback sets `model.stop_training`.

    Args:
        model: compiled, at the first step.
        open_reader: (first, last) -> reader of the batches of the steps from first to last. The loop closes it.
        steps: number of steps already taken, and number of steps of the whole run.
        steps_per_epoch: steps of a whole epoch.
        callbacks: callbacks in order, such as those of `chief_callbacks`.
        as_dataset: converts a reader to the dataset that `fit` reads. With several workers the dataset has this
            worker's rows.

    Raises:
        The reader's own error, if that is why `fit` failed. TensorFlow would report it as a different error.
    """
    for first, last in stretches(steps[0], steps_per_epoch, steps[1]):
        with open_reader(first, last) as reader:
            try:
                model.fit(
                    as_dataset(reader),
                    initial_epoch=first // steps_per_epoch,
                    epochs=first // steps_per_epoch + -(-(last - first) // steps_per_epoch),
                    steps_per_epoch=min(steps_per_epoch, last - first),
                    callbacks=list(callbacks),
                    shuffle=False,  # the batches are already shuffled
                    verbose=0,
                )
            except tf.errors.OpError:
                if reader.error is None:
                    raise
                raise reader.error from None
        if model.stop_training:
            return


def chief_callbacks(
    metrics: MetricsLog,
    checkpoints: RunCheckpoints,
    save_every: int | float,
    signals: list[int],
    guards: Sequence[StepCallback] = (),
    validation: Validate | None = None,
    checks: Sequence[StepCallback] = (),
) -> list[StepCallback]:
    """Lists the callbacks of a run in the order in which they must see a step.

    Args:
        metrics: the log. Its state goes into each checkpoint, so that a resumed run lacks no lines. So do those of
            `validation` and `checks`.
        checkpoints: checkpoints of the run.
        save_every: steps (int) or seconds (float) between two checkpoints.
        signals: list from `noted_signals`.
        guards: callbacks that end the run at a step that must be neither logged nor saved.
        validation: callback whose results go into the step's line.
        checks: callbacks that inspect a step after it is logged.
    """
    validations = [] if validation is None else [validation]
    for one in validations:
        one.metrics = metrics
    checkpoints.before_save = lambda: functools.reduce(
        operator.or_, (one.state() for one in (*validations, *checks)), metrics.flush()
    )
    saving = SaveCheckpoints(checkpoints, metrics.step, save_every)
    return [*guards, *validations, metrics, *checks, saving, StopOnSignal(signals, checkpoints, metrics.step)]


def stretches(step: int, per_epoch: int, total: int) -> list[tuple[int, int]]:
    """Lists spans of steps for `fit`, (first, last): the rest of a cut epoch, the whole epochs, the rest of the run."""
    cut = min(total, -(-step // per_epoch) * per_epoch)
    spans = itertools.pairwise([step, cut, max(cut, total // per_epoch * per_epoch), total])
    return [(first, last) for first, last in spans if last > first]
