"""Checks labelled images for `dupr-tf doctor`: classes, boxes at the network, duplicates. Needs no TensorFlow."""

from __future__ import annotations

import numpy as np

from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import unreadable_images
from dupr_tf.data.inspection import count_boxes, inspect_targets, lost_boxes
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.class_names import grouped_counts, similar_text
from dupr_tf.data.labels.partition import group_duplicates
from dupr_tf.data.labels.segments import SegmentedImages
from dupr_tf.errors import UserError
from dupr_tf.text import escape

Images = AnnotatedImages | SegmentedImages
MOST_MASKS = 200  # of a split whose pixels are counted
FEW_BOXES = 10  # boxes of a class; with fewer it hardly trains
MANY_LOST = 0.05  # share of the boxes from which on a setting is proposed
MOST_PLACED = 2000  # images whose boxes are placed as in training
MOST_DECODED = 20_000  # images that are decoded, to find unusable ones and duplicates


def about_labels(
    train: Images, val: Images | None, config: Config, missing: str = ""
) -> tuple[list[tuple[str, str]], list[str]]:
    """Examines the labelled images of a detector's config.

    Args:
        train: the training split.
        val: the split to evaluate on, or None.
        config: with the section `detector`.
        missing: what the root has that seems to be val under another name.

    Returns:
        Rows (name, numbers), and sentences that say what to change.

    Raises:
        UserError: train has no labels to train on.
    """
    splits = {"train": train} | ({} if val is None else {"val": val})
    rows = [("images", ", ".join(f"{len(images):,} in {split}" for split, images in splits.items()))]
    sentences = []
    if val is None:
        fix = f"{missing} Pass --data.val_share 0.1 to draw a tenth of train for it.".strip()
        sentences += [] if config.data.val_share else [f"There is no split val. {fix}"]
    if isinstance(train, AnnotatedImages):
        parts = [_on_classes(splits), _on_boxes(train, config), _on_background(splits, config)]
    else:
        rows.append(("targets", inspect_targets(train, config).removeprefix("targets: ")))
        parts = [_on_pixels(splits)]
    parts.append(_on_unusable(splits, config))
    if val is not None:
        parts.append(_on_duplicates(train, val, config))
    for its_rows, its_sentences in parts:
        rows += its_rows
        sentences += its_sentences
    return rows, sentences


def _on_unusable(splits: dict[str, Images], config: Config) -> tuple[list, list]:
    """Decodes the images of both splits, unless they are too many."""
    if sum(map(len, splits.values())) > MOST_DECODED:
        text = f"not decoded, as there are more than {MOST_DECODED:,}: run dupr-tf scan"
        return [("unusable images", text)], []
    bad = {split: unreadable_images(images, config.data) for split, images in splits.items()}
    rows = [("unusable images", ", ".join(f"{len(found):,} in {split}" for split, found in bad.items()))]
    sentences = []
    for split, found in bad.items():
        if found:
            path, reason = next(iter(found.items()))
            text = f"{len(found):,} of {len(splits[split]):,} images of {split} cannot be used, such as {escape(path)}"
            share = f"A run stops at more than data.max_bad_share ({config.data.max_bad_share:.1%})"
            sentences.append(f"{text} ({escape(reason)}). {share}. Repair or remove them.")
    return rows, sentences


def _on_classes(splits: dict[str, AnnotatedImages]) -> tuple[list, list]:
    names = splits["train"].class_names
    counts = {split: _class_counts(images, len(names)) for split, images in splits.items()}
    order = np.argsort(-counts["train"], kind="stable").tolist()
    ignored = {split: sum(int(flags.sum()) for flags in images.ignored) for split, images in splits.items()}
    rows = [("boxes", ", ".join(f"{counts[s].sum():,} in {s} ({ignored[s]:,} more ignored)" for s in splits))]
    by_name = {split: dict(zip(names, of_split.tolist(), strict=True)) for split, of_split in counts.items()}
    for title, of_splits in grouped_counts(by_name, "class "):
        rows.append((title, ", ".join(f"{count:,} in {split}" for split, count in of_splits.items())))
    similar = similar_text({name: sum(of_split[name] for of_split in by_name.values()) for name in names})
    sentences = [similar] if similar else []
    rare = [escape(names[number]) for number in order if counts["train"][number] < FEW_BOXES]
    if rare:
        sentences.append(
            f"{len(rare)} of {len(names)} classes have fewer than {FEW_BOXES} boxes in train, such as {rare[-1]}. "
            "Label more of them, or remove them from the classes."
        )
    if "val" in counts:
        missing = [escape(names[number]) for number in order if counts["train"][number] and not counts["val"][number]]
        if missing:
            text = f"{len(missing)} of {len(names)} classes have no box in val, such as {missing[0]}"
            sentences.append(f"{text}. They get no AP: add images of them to val.")
    return rows, sentences


def _on_pixels(splits: dict[str, SegmentedImages]) -> tuple[list, list]:
    """Examines the classes of the pixels in some masks of each split."""
    names = splits["train"].class_names
    pixels = {split: dict(zip(names, _pixel_counts(images), strict=True)) for split, images in splits.items()}
    totals = {split: max(1, sum(of_split.values())) for split, of_split in pixels.items()}
    rows, sentences = [], []
    for title, of_splits in grouped_counts(pixels, "class "):
        shares = (f"{count / totals[split]:.2%} of the pixels in {split}" for split, count in of_splits.items())
        rows.append((title, ", ".join(shares)))
    for split, of_split in pixels.items():
        missing = [escape(name) for name in names if not of_split[name]]
        if missing:
            text = f"{len(missing)} of {len(names)} classes have no pixel in the masks of {split} that were read"
            sentences.append(f"{text}, such as {missing[0]}. Add images of them, or remove them from the classes.")
    return rows, sentences


def _pixel_counts(images: SegmentedImages) -> list[int]:
    """Counts the pixels of each class in at most `MOST_MASKS` masks, which are spread over the split."""
    counts = np.zeros(256, np.int64)
    for index in range(0, len(images), -(-len(images) // MOST_MASKS)):
        try:
            counts += np.bincount(images.truth(index).ravel(), minlength=256)
        except UserError:  # a bad mask is reported with the images that cannot be used
            continue
    return counts[: len(images.class_names)].tolist()


def _class_counts(images: AnnotatedImages, classes: int) -> np.ndarray:
    """Counts the boxes of each class, without ignored ones, (classes,) int64."""
    counted = [labels[~ignored] for labels, ignored in zip(images.labels, images.ignored, strict=True)]
    return np.bincount(np.concatenate(counted), minlength=classes)


def _on_boxes(train: AnnotatedImages, config: Config) -> tuple[list, list]:
    if not train.with_boxes():
        inspect_targets(train, config)  # It refuses such data.
    counts = count_boxes(train, config, images=MOST_PLACED)
    rows = []
    if counts.short_sides:
        low, median, high = np.percentile(counts.short_sides, (5, 50, 95))
        text = f"median {median:.3g}, nine of ten between {low:.3g} and {high:.3g}"
        rows.append(("short sides of boxes at the network, px", text))
        rows.append(
            ("boxes lost", f"{counts.lost_share:.1%}: {counts.small:,} too small, {counts.unmatched:,} without anchor")
        )
    reached = counts.boxes - counts.cropped - counts.small
    if DETECTORS[config.detector.kind].facts["anchor_iou"] is not None and reached:
        rows.append(("boxes with an anchor", f"{1 - counts.unmatched / reached:.1%} of {reached:,}"))
    sentences = []
    if counts.lost_share > MANY_LOST:
        sentences.append(str(UserError(*lost_boxes(train, config, counts))))
    return rows, sentences


def _on_background(splits: dict[str, AnnotatedImages], config: Config) -> tuple[list, list]:
    bare = {split: sum(images.bare) for split, images in splits.items()}
    rows = [("images without boxes", ", ".join(f"{count:,} in {split}" for split, count in bare.items()))]
    if not bare["train"] or config.data.background:
        return rows, []
    text = f"{bare['train']:,} images of train have no boxes, and are not trained on"
    return rows, [f"{text}. If they show no object, pass --data.background true to lower false alarms."]


def _on_duplicates(train: Images, val: Images, config: Config) -> tuple[list, list]:
    if len(train) + len(val) > MOST_DECODED:
        text = f"not searched for in more than {MOST_DECODED:,} images: run dupr-tf duplicates"
        return [("near duplicates", text)], []
    groups = group_duplicates((*train.paths, *val.paths), config.data)
    first = {}
    for path, group in zip(train.paths, groups[: len(train)].tolist(), strict=True):
        first.setdefault(group, path)
    shared = [(first[g], path) for path, g in zip(val.paths, groups[len(train) :].tolist(), strict=True) if g in first]
    rows = [("near duplicates", f"{len(shared):,} of {len(val):,} images of val are in train too")]
    if not shared:
        return rows, []
    one, other = map(escape, shared[0])
    text = f"{len(shared):,} images of val are duplicates of images of train, such as {other} of {one}"
    return rows, [f"{text}. Move them to one split, since scores on val will be too high."]
