"""Exports a backbone with the Python API: scripts/export.py RUN OUTPUT_DIR."""

import sys
from pathlib import Path

import tensorflow as tf

import dupr_tf


def main(run, output):
    """Writes a run's backbone as a SavedModel and for detectron2, and runs the SavedModel as another program would."""
    backbone = dupr_tf.load_backbone(run)
    saved_model = dupr_tf.export(backbone, "saved_model", Path(output) / "saved_model")
    dupr_tf.export(backbone, "detectron2", Path(output) / "detectron2")

    loaded = tf.saved_model.load(str(saved_model))
    images = tf.random.uniform([1, 160, 224, 3], maxval=255.0)  # RGB in 0..255, any size; normalised inside
    for level, features in loaded.signatures["serving_default"](images=images).items():
        print(level, features.shape)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
