"""A small config and images for tests of the doctor."""

import numpy as np
from PIL import Image

from dupr_tf.config import parse_config

TINY = {
    "data": {"image_size": 32},
    "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 64, "embedding_dim": 16},
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 5},
}


def config(**sections):
    return parse_config({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


def write_photos(folder):
    """Writes 30 PNG images, a rotated JPEG and a broken one. Returns the folder."""
    rng = np.random.default_rng(0)
    for i in range(30):
        shape = (40, 100, 3) if i % 3 else (60, 60, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:02}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (50, 90)).save(folder / "turned.jpg", exif=turned)
    (folder / "broken.jpg").write_bytes(b"text")
    return folder
