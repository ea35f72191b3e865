"""Counts the costs of a training step from the model's backbone and terms. No step is taken."""

from __future__ import annotations

import dataclasses

import numpy as np

from dupr_tf.config import Config
from dupr_tf.models import DUPR
from dupr_tf.models.cost import BackboneCost
from dupr_tf.ops.info_nce import KEY_BLOCK
from dupr_tf.training.checkpoints import state_bytes, state_of
from dupr_tf.training.optimizers import build_optimizer
from dupr_tf.training.pretrain import build_model

SOME_IMAGES = 1_000_000  # the optimiser's schedule requires a number of images; its variables do not depend on it
NUMBER = 4  # bytes of a gathered element: a float32, or a bool or index, which are gathered as 4 bytes
BOX = 4  # numbers in an overlap box
QUERY = 3  # passes of the query encoder: forward, and the gradients w.r.t. inputs and kernels
KEY = 1  # passes of the key encoder: forward only


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of a step.

    Args:
        levels: {level: (height, width, channels) of a view's feature map}.
        parameters: values of the query encoder, by part.
        flops: operations by part, over all devices.
        reduced, gathered: bytes by part that go through the collectives.
        memory: bytes on a device, by part.
        activations: bytes per image that are kept for the gradient.
        weights: number of trainable values of the query encoder.
        bank_numbers: number of values in all memory banks together.
        checkpoint: bytes.
    """

    levels: dict[str, tuple[int, ...]]
    parameters: dict[str, int]
    flops: dict[str, int]
    reduced: dict[str, int]
    gathered: dict[str, int]
    memory: dict[str, int]
    activations: int
    weights: int
    bank_numbers: int
    checkpoint: int

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())


def count(config: Config, devices: int, gpu: bool, model: DUPR | None = None) -> Counts:
    """Counts a step of a config.

    Args:
        config: config of the run.
        devices: number of devices that share the batch.
        gpu: True for GPUs, on which the losses take larger blocks of a bank.
        model: the compiled model of the run. Default: it is built.
    """
    if model is None:
        model = build_model(config, total_steps=config.total_steps(SOME_IMAGES))
        model.compile(optimizer=build_optimizer(config, SOME_IMAGES))
        model.optimizer.build(model.query_variables)
    size, batch = config.data.image_size, config.train.batch_size
    cost, width = backbone_cost(model, size), 4 if config.train.precision == "float32" else 2  # bytes per number
    shapes = model.query_encoder.pyramid.compute_output_shape((1, size, size, 3))
    heads = sum(_numbers(head.variables) for head in model.query_encoder.projectors.values())
    traffic, activations = step_traffic(model, size, batch), width * cost.activations
    return Counts(
        levels={level: tuple(shape[1:]) for level, shape in shapes.items()},
        parameters={"backbone": model.backbone.count_params(), "heads": heads},
        flops=step_flops(model, size, batch, cost),
        **traffic,
        memory=_memory(model, config, devices, KEY_BLOCK["GPU" if gpu else "CPU"], activations, traffic),
        activations=activations,
        weights=_numbers(model.query_variables),
        bank_numbers=_bank_numbers(model),
        checkpoint=state_bytes(state_of(model)),
    )


def backbone_cost(model: DUPR, image_size: int) -> BackboneCost:
    """Returns the backbone's costs of one view, or zeros if it does not state them, as for a term."""
    return model.backbone.cost(image_size) if hasattr(model.backbone, "cost") else BackboneCost()


def step_flops(model: DUPR, image_size: int, batch: int, cost: BackboneCost | None = None) -> dict[str, int]:
    """Counts the operations of a step by part.

    Norm layers and the exponentials of the losses are left out.

    Args:
        model: the pre-training model.
        image_size: side of a view, px.
        batch: images per step.
        cost: costs of the backbone for this size. Default: that of the backbone.

    Returns:
        `{"convolutions": …, "heads": …, "losses": …}`.
    """
    cost = cost or backbone_cost(model, image_size)
    terms = _term_costs(model, batch)
    heads = sum(one.projector_flops * (QUERY + KEY if term.needs_keys else QUERY) for term, one in terms)
    return {
        "convolutions": batch * ((QUERY + KEY) * cost.flops - cost.first_flops),
        "heads": batch * heads,
        "losses": batch * sum(one.compare_flops for _, one in terms),
    }


def step_traffic(model: DUPR, image_size: int, batch: int) -> dict[str, dict[str, int]]:
    """Counts the bytes that collectives move in a step: the size of the result that each replica holds afterwards.

    Scalars (the sums of the losses, the count of valid pairs) are left out.

    Args:
        model: the pre-training model.
        image_size: side of a view, px.
        batch: images per step, over all replicas.

    Returns:
        `{"reduced": bytes by part, "gathered": bytes by part}`.
    """
    keys = sum(one.key_bytes for term, one in _term_costs(model, batch) if term.needs_keys)
    return {
        "reduced": {"gradients": NUMBER * _numbers(model.query_variables)},
        "gathered": {
            "views of the keys": NUMBER * batch * image_size**2 * 3,
            "boxes, flips, valid pairs": NUMBER * batch * (BOX + 2),
            "keys": batch * keys,
        },
    }


def _memory(model, config, devices, block_keys, activations, traffic) -> dict[str, int]:
    """Returns the bytes a device holds, by part. Activations are of one batch-norm group, as only one is held."""
    batch, view = config.train.batch_size, config.data.image_size**2 * 3
    group = batch // config.train.micro_batches
    return {
        "weights of both encoders": 4 * _numbers((*model.query_encoder.variables, *model.key_encoder.variables)),
        "gradients and momentum": 4 * 2 * _numbers(model.query_variables),
        "memory banks": 4 * _bank_numbers(model),
        "views of a batch": batch // devices * 2 * view * (1 + 4),  # uint8, and float32 once augmented
        **({"views gathered and shuffled": 2 * 4 * batch * view} if devices > 1 else {}),
        "keys gathered and put back": 2 * traffic["gathered"]["keys"],
        f"activations of {group} images": group * activations,
        "logits": max(one.compare_bytes for _, one in _term_costs(model, group, block_keys)),
    }


def _term_costs(model, images, block_keys=None):
    """Returns [(term, its cost)] of the features that each term reads."""
    outputs = model.query_encoder.pyramid.output
    return [(term, term.cost(outputs[term.level].shape[-1], images, block_keys)) for term in model.terms]


def _bank_numbers(model) -> int:
    return sum(_numbers(v for v in term.non_trainable_variables if len(v.shape)) for term in model.terms)


def _numbers(variables) -> int:
    return sum(int(np.prod(variable.shape, dtype=np.int64)) for variable in variables)
