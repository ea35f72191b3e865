"""Loads the backbone of an unfinished run from its newest undamaged checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from dupr_tf.config import load_config
from dupr_tf.errors import UserError
from dupr_tf.files import plain_alias
from dupr_tf.models.resnet import build_backbone
from dupr_tf.weights.checkpoint_files import find_damage, saved_checkpoints, step_of
from dupr_tf.weights.paths import CHECKPOINTS_FOLDER, CONFIG_FILE

log = logging.getLogger(__name__)


def load_unfinished(run: Path):
    """Loads the query backbone of a pre-training run from its newest undamaged checkpoint, and logs its step.

    Raises:
        UserError: no checkpoint can be used.
    """
    model = load_config(run / CONFIG_FILE).model
    backbone = build_backbone(model.backbone, model.width)
    variables = {f"model/query_encoder/{variable.path}": variable.value for variable in backbone.variables}
    for path in undamaged_checkpoints(run):
        try:
            with plain_alias(path.parent) as folder:
                status = tf.train.Checkpoint(variables=variables).read(str(folder / path.name))
            status.assert_existing_objects_matched().expect_partial()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            log.warning("checkpoint %s cannot be used: %.200s", path, error)
            continue
        log.info("%s has not ended; the weights are those of step %d", run, step_of(path))
        return backbone
    raise UserError(None, f"{run} has not ended, and has no usable checkpoint.", "Resume the run first.")


def undamaged_checkpoints(run: Path) -> Iterator[Path]:
    """Yields the undamaged checkpoints of a run, newest first, as paths without the endings."""
    for path in saved_checkpoints(run / CHECKPOINTS_FOLDER):
        damage = find_damage(path)
        if damage is None:
            yield path
        else:
            log.warning("checkpoint %s cannot be used: %s", path, damage)
