"""JPEGs for the input benchmarks: the user's photos or drawn scenes, 500 px on their long side."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from PIL import Image

from dupr_tf.data.images.decode import decode
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import read_file
from dupr_tf.data.sample import draw_scene
from dupr_tf.errors import UserError

LONG_SIDE, QUALITY = 500, 90
DRAWN_SIDES = (375, 500)  # smallest and largest


def photos(data: str | None, count: int) -> list[str]:
    """Returns paths of `count` JPEGs, made once and kept in the system's folder for temporary files.

    Args:
        data: a folder of at least `count` images; None draws scenes.
        count: number of JPEGs.
    """
    key = hashlib.sha256(f"{data} {count} {LONG_SIDE} {QUALITY}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"dupr_tf_benchmark_{key}"
    if not (folder / "whole").exists():
        folder.mkdir(exist_ok=True)
        for number, image in enumerate(_images(data, count)):
            scale = LONG_SIDE / max(image.size)
            size = tuple(round(side * scale) for side in image.size)
            image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=QUALITY)
        (folder / "whole").touch()
    return sorted(str(path) for path in folder.glob("*.jpg"))


def _images(data, count):
    if data is None:
        for index in range(count):
            yield Image.fromarray(draw_scene(0, "unlabeled", index, DRAWN_SIDES).image)
        return
    paths = list_images(data)
    if len(paths) < count:
        problem = f"Expected at least {count} images below {data}, received {len(paths)}."
        raise UserError("--data", problem, "Pass a folder with more.")
    for path in paths[:: len(paths) // count][:count]:
        yield Image.fromarray(decode(read_file(path)))
