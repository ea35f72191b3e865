"""Counts the costs of a config: its network is built, but not run."""

from __future__ import annotations

import numpy as np

from dupr_tf.config import Config
from dupr_tf.models.cost import step_flops, step_traffic
from dupr_tf.ops.info_nce import KEY_BLOCK
from dupr_tf.planning.estimate import Counts
from dupr_tf.training.checkpoints import state_bytes, state_of
from dupr_tf.training.dry_run import activation_numbers, memory_bytes, predicted_memory
from dupr_tf.training.optimizers import build_optimizer
from dupr_tf.training.pretrain import build_model

SOME_IMAGES = 1_000_000  # the optimiser's schedule requires a number; its variables do not depend on it


def count(config: Config, devices: int, gpu: bool) -> Counts:
    """Counts a step of a config.

    Args:
        config: config of the run.
        devices: number of devices that share the batch.
        gpu: True for GPUs, on which the losses take larger blocks of a bank.
    """
    model = build_model(config, total_steps=config.total_steps(SOME_IMAGES))
    model.compile(optimizer=build_optimizer(config, SOME_IMAGES))
    model.optimizer.build(model.query_variables)
    size, batch = config.data.image_size, config.train.batch_size
    width = 4 if config.train.precision == "float32" else 2
    return Counts(
        flops=step_flops(model, size, batch),
        **step_traffic(model, size, batch),
        memory=predicted_memory(model, config, devices, KEY_BLOCK["GPU" if gpu else "CPU"]),
        activations=width * activation_numbers(model.backbone, size),
        weights=sum(_numbers(variable) for variable in model.query_variables),
        bank_numbers=memory_bytes(model) // 4,
        checkpoint=state_bytes(state_of(model)),
    )


def _numbers(variable) -> int:
    return int(np.prod(variable.shape, dtype=np.int64))
