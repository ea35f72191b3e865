"""Draws sample views of a run: its first pairs, with the overlap framed and its patches numbered."""

from __future__ import annotations

import dataclasses
import io

from dupr_tf.errors import UserError
from dupr_tf.reporting.folders import RunFolder
from dupr_tf.reporting.metrics import number
from dupr_tf.text import one_line

QUALITY = 88  # quality of the JPEGs


@dataclasses.dataclass(frozen=True)
class Samples:
    """Pairs of views as pictures, or the reason why there are none."""

    run: str
    pictures: list[tuple[bytes, str]]  # (JPEG, description)
    note: str = ""


def sample_views(run: RunFolder, count: int) -> Samples:
    """Draws the first pairs of a run from its images, or explains in a sentence that they are gone.

    Args:
        run: a pre-training run.
        count: number of pairs.
    """
    if run.config is None or run.config.data.root is None:
        return Samples(run.label, [], "No views: the config that names the images is missing.")
    from dupr_tf.data.images.bad_images import BadImages, check_readable
    from dupr_tf.training.pool import recorded_pool

    data = run.config.data
    try:
        root, source = recorded_pool(run.path, run.config)
        check_readable(source, BadImages(source, 1.0, data.max_pixels, depth=data.depth), tries=4)
    except (UserError, OSError) as error:
        return Samples(run.label, [], f"No views: the images cannot be read any more. {one_line(error)}")
    notes = [_changed(run, source, root)]
    if not run.config.model.patch_sizes:
        notes.append("It has no patch loss: the numbers only show where its views agree.")
    return Samples(run.label, _drawn(source, run.config, count), " ".join(filter(None, notes)))


def _changed(run: RunFolder, source, root: str) -> str:
    """Returns a sentence if the images are no longer those of the run."""
    recorded = run.images or {}
    if (number(recorded.get("count")), recorded.get("sha256")) == (len(source), source.digest(root)):
        return ""
    return f"{root} now holds {len(source):,} images, which are not those of the run: these pairs were not its first."


def _drawn(source, config, count: int) -> list[tuple[bytes, str]]:
    from dupr_tf.probing.view_sheet import cells_of, first_pairs, view_sheet

    relaxed = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_share": 1.0})})
    pairs, names = first_pairs(source, relaxed, count)
    cells = cells_of(config)
    pictures = []
    for k, name in enumerate(names):
        pair = {field: value[k : k + 1] for field, value in pairs.items()}
        file = io.BytesIO()
        view_sheet(pair, [name], cells, columns=1).save(file, "JPEG", quality=QUALITY)
        pictures.append((file.getvalue(), _described(pair, name)))
    return pictures


def _described(pair: dict, name: str) -> str:
    if not pair["valid"][0]:
        return f"Two views of {name}; they overlap too little for a patch loss"
    sides = [f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} px" for box in (pair["boxes_1"][0], pair["boxes_2"][0])]
    flips = [number for number in (1, 2) if pair[f"flipped_{number}"][0]]
    mirrored = f"; mirrored: view {' and '.join(map(str, flips))}" if flips else ""
    return (
        f"Two views of {name}; the overlap is {sides[0]} high and wide in the first, {sides[1]} in the second{mirrored}"
    )
