"""The optimiser and schedules of MoCo and DUPR, as PyTorch computes them (docs/method.md, Optimiser)."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.errors import UserError
from dupr_tf.ops.gather import agree_on_finite, global_sum


class VariableFactors:
    """Adds per-variable factors for the learning rate and the weight decay to a Keras optimiser.

    Args:
        rate_factors: {path of a variable: factor of its learning rate}. Default: 1.
        decay_factors: {path of a variable: factor of its weight decay}. Default: 1; 0 switches the decay off.
        **kwargs: arguments of the optimiser.

    Raises:
        UserError: in `build`, if a path matches no variable or several.
    """

    def __init__(self, *args, rate_factors=None, decay_factors=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.rate_factors, self.decay_factors = dict(rate_factors or {}), dict(decay_factors or {})

    def build(self, variables):
        if self.built:
            return
        paths = [variable.path for variable in variables]
        for name, factors in (("rate_factors", self.rate_factors), ("decay_factors", self.decay_factors)):
            for path in factors:
                if paths.count(path) != 1:
                    problem = f"{paths.count(path)} of the {len(paths)} variables to train have the path {path}."
                    raise UserError(name, problem, "Pass paths of single variables (variable.path).")
        super().build(variables)
        self._factors = [(self.rate_factors.get(path, 1.0), self.decay_factors.get(path, 1.0)) for path in paths]

    def factors_of(self, variable):
        """Returns (rate factor, decay factor) of a variable as `update_step` receives it."""
        return self._factors[self._get_variable_index(variable)]

    def _clip_gradients(self, grads):
        if not self.global_clipnorm:
            return super()._clip_gradients(grads)
        # As Keras clips on one device, but without storing the squares of each gradient. On several, each has its share
        # of the gradient, so the norm is that of their sum. This exchanges the gradients a second time.
        norm = tf.linalg.global_norm(global_sum(grads))
        return tf.clip_by_global_norm(grads, self.global_clipnorm, use_norm=norm)[0]

    def get_config(self):
        return {**super().get_config(), "rate_factors": self.rate_factors, "decay_factors": self.decay_factors}


def _refuse_weight_decay(arguments: dict, own: str) -> None:
    """Raises UserError for Keras' `weight_decay`, which would come on top of the decay of this optimiser."""
    if arguments.pop("weight_decay", None):
        problem = f"This optimiser calls its weight decay {own}, and Keras would add a second one."
        raise UserError("weight_decay", problem, f"Pass {own}.")


@keras.saving.register_keras_serializable("dupr_tf")
class CoupledSGD(VariableFactors, keras.optimizers.Optimizer):
    """SGD whose weight decay is part of the gradient: v <- mu v + g + wd w;  w <- w - lr v.

    Keras' `SGD(weight_decay=)` is decoupled, ten times weaker at momentum 0.9, and multiplies the rate into the
    velocity.

    Args:
        learning_rate: float or schedule.
        momentum: mu in [0, 1).
        coupled_decay: wd >= 0, on every variable, including batch norm and biases.
        **kwargs: arguments of `VariableFactors` and of Keras' optimisers, except for `weight_decay`.

    Raises:
        UserError: `weight_decay` is given, which Keras would add as decoupled decay.
    """

    def __init__(self, learning_rate=0.03, momentum=0.9, coupled_decay=1e-4, name="coupled_sgd", **kwargs):
        _refuse_weight_decay(kwargs, "coupled_decay")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum, self.coupled_decay = momentum, coupled_decay

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = [self.add_variable_from_reference(v, name="velocity") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        rate_factor, decay_factor = self.factors_of(variable)
        rate = tf.cast(learning_rate * rate_factor, variable.dtype)
        velocity = self.velocities[self._get_variable_index(variable)].value
        # Every operation works in place and waits for the gradient. Products of weights and velocities would be
        # computed when the step begins, and would hold twice the memory of the weights until it ends.
        shared = {"var": variable.handle, "accum": velocity.handle, "grad": tf.cast(gradient, variable.dtype)}
        tf.raw_ops.ResourceApplyMomentum(**shared, lr=tf.zeros_like(rate), momentum=tf.cast(self.momentum, rate.dtype))
        decay = self.coupled_decay * decay_factor
        if decay:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=velocity.handle, alpha=tf.cast(-decay, rate.dtype), delta=variable
            )
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=velocity)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "coupled_decay": self.coupled_decay}


@keras.saving.register_keras_serializable("dupr_tf")
class AdamW(VariableFactors, keras.optimizers.Adam):
    """Keras' AdamW with factors: w <- w - lr wd w, then Adam's update with the rate lr.

    A rate factor does not change the decay. To slow both down, as PyTorch's groups do, pass the same decay factor.

    Args:
        learning_rate: float or schedule.
        decoupled_decay: wd >= 0.
        **kwargs: arguments of `VariableFactors` and of Keras' Adam, except for `amsgrad` and `weight_decay`.

    Raises:
        UserError: `amsgrad` or `weight_decay` is set.
    """

    def __init__(self, learning_rate=0.001, decoupled_decay=0.004, name="adamw", **kwargs):
        if kwargs.get("amsgrad"):
            raise UserError(
                "amsgrad", "This AdamW has no AMSGrad.", "Leave amsgrad out, or use keras.optimizers.AdamW."
            )
        _refuse_weight_decay(kwargs, "decoupled_decay")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.decoupled_decay = decoupled_decay

    def update_step(self, gradient, variable, learning_rate):
        rate_factor, decay_factor = self.factors_of(variable)
        rate, step, one, two, epsilon = (
            tf.cast(number, variable.dtype)
            for number in (learning_rate, self.iterations + 1, self.beta_1, self.beta_2, self.epsilon)
        )
        index = self._get_variable_index(variable)
        # As in `CoupledSGD`: in place, and after the gradient.
        gradient = tf.cast(gradient, variable.dtype)
        with tf.control_dependencies([gradient]):
            decay = rate * tf.cast(self.decoupled_decay * decay_factor, rate.dtype)
        self.assign_sub(variable, variable * decay)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(one, step),
            beta2_power=tf.pow(two, step),
            lr=rate * rate_factor,
            beta1=one,
            beta2=two,
            epsilon=epsilon,
            grad=gradient,
        )

    def get_config(self):
        return {**super().get_config(), "decoupled_decay": self.decoupled_decay}


@keras.saving.register_keras_serializable("dupr_tf")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Computes `peak * (1 + cos(pi t / T)) / 2` after a linear warm-up.

    Args:
        peak: rate at the start.
        total_steps: T.
        hold_steps: steps between two changes of the rate: 1, or the steps of an epoch (MoCo's own code).
        warmup_steps: steps of linear warm-up; they count towards T.
    """

    def __init__(self, peak, total_steps, hold_steps=1, warmup_steps=0):
        self.peak, self.total_steps = peak, total_steps
        self.hold_steps, self.warmup_steps = hold_steps, warmup_steps

    def __call__(self, step):
        held = tf.cast(tf.cast(step, tf.int64) // self.hold_steps * self.hold_steps, tf.float32)
        done = tf.minimum(held / float(self.total_steps), 1.0)
        rate = self.peak * 0.5 * (1.0 + tf.cos(math.pi * done))
        return rate * _warmup(step, self.warmup_steps)

    def get_config(self):
        names = ("peak", "total_steps", "hold_steps", "warmup_steps")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("dupr_tf")
class Milestones(keras.optimizers.schedules.LearningRateSchedule):
    """Divides the peak rate by ten at each milestone, after a linear warm-up.

    Args:
        peak: rate at the start.
        steps: the steps at which the rate falls.
        warmup_steps: steps of linear warm-up.
    """

    def __init__(self, peak, steps, warmup_steps=0):
        self.peak, self.steps, self.warmup_steps = peak, tuple(steps), warmup_steps

    def __call__(self, step):
        passed = sum((tf.cast(step >= at, tf.float32) for at in self.steps), tf.constant(0.0))
        return self.peak * tf.pow(0.1, passed) * _warmup(step, self.warmup_steps)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps}


def _warmup(step, warmup_steps):
    if not warmup_steps:
        return 1.0
    return tf.minimum((tf.cast(step, tf.float32) + 1.0) / float(warmup_steps), 1.0)


@keras.saving.register_keras_serializable("dupr_tf")
class AfterChange(keras.optimizers.schedules.LearningRateSchedule):
    """Scales a schedule from the step of a change on, after a linear warm-up.

    Args:
        schedule: the schedule.
        since_step: step of the change.
        factor: factor on the rate.
        warmup_steps: steps of linear warm-up from `since_step` on.
    """

    def __init__(self, schedule, since_step, factor=1.0, warmup_steps=0):
        self.schedule, self.since_step = schedule, since_step
        self.factor, self.warmup_steps = factor, warmup_steps

    def __call__(self, step):
        since = tf.maximum(tf.cast(step, tf.int64) - self.since_step, 0)
        return self.schedule(step) * self.factor * _warmup(since, self.warmup_steps)

    def get_config(self):
        names = ("since_step", "factor", "warmup_steps")
        settings = {name: getattr(self, name) for name in names}
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), **settings}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


def build_schedule(config: Config, per_epoch: int, total: int):
    """Creates the learning-rate schedule of a run.

    Args:
        config: the experiment.
        per_epoch: steps of an epoch.
        total: steps of the run.
    """
    optimizer = config.optimizer
    if optimizer.schedule == "milestones":
        steps = optimizer.milestone_steps or [round(epoch * per_epoch) for epoch in optimizer.milestones]
        return Milestones(config.learning_rate, steps, optimizer.warmup_steps)
    hold = per_epoch if optimizer.schedule == "epoch" else 1
    return Cosine(config.learning_rate, total, hold, optimizer.warmup_steps)


def planned_schedule(config: Config, images: int):
    """Creates the learning-rate schedule of a run over `images` images."""
    return build_schedule(config, config.steps_per_epoch(images), config.total_steps(images))


def build_optimizer(config: Config, images: int):
    """Creates the optimiser of a pre-training run. Under float16 it scales the loss."""
    settings = config.optimizer
    optimizer = CoupledSGD(planned_schedule(config, images), settings.momentum, settings.weight_decay)
    return scale_loss(optimizer, config.train.precision)


def scale_loss(optimizer, precision):
    """Returns the optimiser with loss scaling in float16, and unchanged in the other formats of `train.precision`."""
    return LossScaling(optimizer, name="loss_scale_optimizer") if precision == "float16" else optimizer


@keras.saving.register_keras_serializable("dupr_tf")
class LossScaling(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling, whose `iterations` also count the steps that it skips because a gradient overflowed.

    Keras looks for an overflow on the first device only. Here one on any device skips the step.

    If they were not counted, a resumed run would repeat the batches of earlier steps. The learning rate follows the
    steps that were applied.
    """

    @property
    def iterations(self):
        return self._iterations

    def apply(self, grads, trainable_variables=None):
        super().apply(agree_on_finite(grads), trainable_variables)
        self._iterations.assign_add(1)
