"""Pre-trains with the Python API and `model.fit`: scripts/pretrain.py IMAGES OUTPUT.keras [STEPS].

`dupr-tf pretrain` does the same and adds checkpoints, resuming and metrics.
"""

import sys

import dupr_tf
from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.training.feed import feed
from dupr_tf.training.optimizers import Cosine, CoupledSGD


def main(images, output, steps=200):
    """Trains a half-width ResNet-18 on a folder of photos for some steps and saves its backbone."""
    config = parse_config(
        {"data": {"image_size": 64}, "views": {"min_overlap": 24}, "train": {"batch_size": 64, "micro_batches": 4}}
    )
    paths = list_images(images)
    model = dupr_tf.DUPR(
        dupr_tf.build_backbone("resnet18", width=0.5),
        image_weights=(0.1, 0.4, 0.7, 1.0),  # alpha of P2..P5
        patch_weights=(0.0, 0.0, 1.0, 1.0),  # beta of P2..P5
        roi_sizes=(16, 8, 4, 2),
        bank_size=4096,
        momentum=0.99,
        micro_batches=4,
    )
    model.compile(optimizer=CoupledSGD(Cosine(0.06, steps), momentum=0.9, coupled_decay=1e-4), jit_compile=False)
    with view_pairs(paths, config, 0, steps, BadImages(paths, max_share=0.01)) as batches:
        model.fit(feed(batches), shuffle=False)
    model.backbone.save(output)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.splitlines()[0])
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
