"""Checks every image of a split before a detector uses it, and leaves out those that cannot be used."""

from __future__ import annotations

import itertools

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import unreadable_images
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.images.bad_images import MOST_LISTED, advice, count_reasons, log, warn_of_few_levels
from dupr_tf.data.labels.split import Split
from dupr_tf.errors import UserError
from dupr_tf.text import escape
from dupr_tf.values import exceeds


def leave_out_unusable(images: Split, split: str, data: DataConfig, results: FileResults | None = None) -> Split:
    """Returns the images of a split that can be decoded and whose masks can be read. The log names the others.

    Args:
        images: `AnnotatedImages` or `SegmentedImages`.
        split: its name, for messages.
        data: its `max_bad_share`, `max_pixels`, `depth` and `threads` are used; threads decode.
        results: results of an earlier check, see `unreadable_images`.

    Raises:
        UserError: all images, or a larger share of them than `data.max_bad_share`, cannot be used.
    """
    bad = unreadable_images(images, data, results)
    warn_of_few_levels(images.paths, data.depth)
    if not bad:
        return images
    pairs = zip(images.paths, getattr(images, "segment_paths", images.paths), strict=True)
    reasons = [bad.get(path) or bad.get(label) for path, label in pairs]
    kept = [index for index, reason in enumerate(reasons) if not reason]
    count = len(images) - len(kept)
    if not kept or exceeds(count, data.max_bad_share, len(images)):
        path, reason = next(iter(bad.items()))
        problem = (
            f"{count} of {len(images)} images of the split {split} cannot be used, where {data.max_bad_share:.2%} may "
            f"be left out: {count_reasons(bad.values())}, such as {escape(path)} ({escape(reason)})."
        )
        raise UserError("data.max_bad_share", problem, advice(bad.values(), len(images)))
    for path, reason in itertools.islice(bad.items(), MOST_LISTED):
        log.warning("skipped: %s (%s)", escape(path), escape(reason))
    log.warning("%s: %d of %d images cannot be used and are left out", split, count, len(images))
    return images.select(kept)
