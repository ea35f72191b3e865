"""A config of a network that is built in a second. None of its groups has enough work for Winograd's domain."""

from dupr_tf.config import parse_config

TINY = parse_config({
    "data": {"image_size": 32},
    "views": {"min_overlap": 8, "photometric": "none"},
    "model": {
        "backbone": "resnet18", "width": 0.125, "image_weights": [0, 0, 0.5, 1], "patch_weights": [0, 0, 1, 0],
        "roi_sizes": [8, 4, 2, 1], "embedding_dim": 16, "bank_size": 96,
    },
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 2},
})  # fmt: skip
