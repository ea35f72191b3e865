"""Fine-tunes with the Python API and `model.fit`: scripts/finetune_retinanet.py BACKBONE DATA [STEPS].

BACKBONE is a pre-training run, `.keras` or `.safetensors`, or "random"; DATA is a COCO or VOC root. `dupr-tf finetune`
does the same and writes metrics, a SavedModel and pictures.
"""

import sys

import keras

from dupr_tf import build_backbone, load_backbone
from dupr_tf.config import parse_config
from dupr_tf.data.detection import train_batches
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.detection.coco_eval import coco_ap
from dupr_tf.detection.predictions import detect
from dupr_tf.detection.retinanet import RetinaNet
from dupr_tf.detection.saving import save_detector
from dupr_tf.training.feed import feed
from dupr_tf.training.optimizers import Cosine


def main(weights, data, steps=1500):
    """Trains a narrow RetinaNet at 128 px, prints its average precision and saves it as detector.keras."""
    train = read_annotations(data, "train")
    val = read_annotations(data, "val", class_names=train.class_names)
    settings = {"data": {"image_size": 128}, "train": {"batch_size": 8}, "detector": {"scale_jitter": [0.8, 1.25]}}
    config = parse_config(settings)

    if weights == "random":
        backbone = build_backbone("resnet18", width=0.5, include_normalization=True)
    else:
        backbone = load_backbone(weights, include_normalization=True)  # it takes images in 0–255
    model = RetinaNet(
        backbone,
        train.class_names,
        image_size=128,
        fpn_channels=64,
        head_channels=64,
        head_convs=2,
        anchor_scale=3.0,
    )
    rate = Cosine(1e-3, steps, warmup_steps=min(100, steps))
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=10.0))
    with train_batches(train, config, steps) as batches:
        model.fit(feed(batches), shuffle=False)  # the batches are already shuffled

    result = coco_ap(val, detect(model, val))
    print(f"AP {result['AP']:.3f}, AP50 {result['AP50']:.3f}, AP75 {result['AP75']:.3f}")
    save_detector(model, "detector.keras")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.splitlines()[0])
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
