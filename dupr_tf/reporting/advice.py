"""Advice on a config for a number of images: plain sentences, each with an action.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import math

import numpy as np

from dupr_tf.config import Config
from dupr_tf.reporting.folders import counted
from dupr_tf.training.collapse import patience

SMALL_SET = 100_000  # images, below which the small recipe is meant
LEAST_TURNS = 3  # least ratio of images to bank keys; with more keys, many come from the query's image
FEW = 1000  # images
RATE_RANGE = (0.25, 8.0)  # range of the scaled learning rate; the small recipe has 4
LOW_OVERLAP, LONG = 0.97, 2.0
GOOD = "Nothing to do."


def sensible_bank(images: int, least: int) -> int:
    """Returns a bank size for `images`: the largest power of two up to a third of them.

    It is within 64 to 65,536, and at least the keys of a step.
    """
    fitting = 2 ** int(math.log2(max(images // LEAST_TURNS, 1)))
    return max(min(max(fitting, 64), 65536), least)


def sensible_epochs(config: Config, images: int) -> int:
    """Returns the epochs for ten times the steps until a run no longer guesses, with a sensible bank."""
    most = sensible_bank(images, config.model.keys_per_step(config.train.batch_size))
    return max(1, math.ceil(10 * patience(config, most) / config.steps_per_epoch(images)))


def advice_on_length(config: Config, images: int) -> list[str]:
    """Advises on steps, epochs, warm-up and the average of the key encoder."""
    per_epoch, total, least = config.steps_per_epoch(images), config.total_steps(images), patience(config)
    batch, sentences = config.train.batch_size, []
    if images < FEW:
        sentences.append(
            f"{images:,} images are few: backbones are pre-trained on thousands and more. What to do: collect more "
            "photos, they need no labels."
        )
    if images < batch:
        sentences.append(
            f"{images:,} images are fewer than one batch of {batch}, so that images repeat within it and count as each "
            f"other's negatives. What to do: more images, or --train.batch_size {max(2, images // 2)}."
        )
    text = (
        f"{images:,} images in batches of {batch} are {counted(per_epoch, 'step')} an epoch and "
        f"{counted(total, 'step')} in all. After about {least:,} (warm-up, four turns of the banks, two of the key "
        "encoder's average) a run no longer guesses. "
    )
    if total < 2 * least:
        epochs = sensible_epochs(config, images)
        cap = ", without --train.max_steps" if config.train.max_steps else ""
        text += f"This one is over before it learns much. What to do: --train.epochs {epochs}{cap}, or a smaller bank."
    else:
        text += GOOD
    sentences.append(text)
    average = 1 / (1 - config.model.momentum)
    if average > total / 10:
        momentum = 1 - 10 / total if total > 20 else 0.5
        sentences.append(
            f"The key encoder averages over about {average:,.0f} steps, more than a tenth of the run: it lags behind "
            f"all "
            f"along. What to do: --model.momentum {max(0.5, round(momentum, 3)):g}, or a longer run."
        )
    return sentences


def advice_on_banks(config: Config, images: int) -> list[str]:
    """Advises on K for the number of images."""
    size, batch = config.model.largest_bank, config.train.batch_size
    better = sensible_bank(images, config.model.keys_per_step(batch))
    text = f"A bank holds {size:,} keys, those of the last {math.ceil(size / batch):,} steps for images. "
    if size > images:
        text += (
            f"That is more than the {images:,} images: every query meets {size / images:.1f} earlier keys of its own "
            f"image "
            f"as negatives. What to do: --model.bank_size {better}."
        )
    elif size > images / LEAST_TURNS and better < size:
        text += (
            f"That is {size / images:.0%} of the images, so that this share of queries meets a key of its own image "
            f"as a "
            f"negative. What to do: nothing if it must be; --model.bank_size {better} is safer."
        )
    else:
        text += f"That is {size / images:.1%} of the images. {GOOD}"
    return [text]


def advice_on_rate(config: Config) -> list[str]:
    """Advises on the learning rate for the batch, and on the warm-up."""
    rate, scaled = config.learning_rate, 0.06 * config.train.batch_size / 256
    share = rate / scaled
    batch = config.train.batch_size
    text = f"The learning rate peaks at {rate:.3g}; the paper's, scaled to batches of {batch}, is {scaled:.3g}. "
    if share > RATE_RANGE[1]:
        text += f"{share:.0f} times as much may diverge. What to do: --optimizer.learning_rate {4 * scaled:.2g}."
    elif share < RATE_RANGE[0]:
        text += f"{share:.2g} times as much learns slowly. What to do: --optimizer.learning_rate {scaled:.2g}."
    elif share > 1.5 and not config.optimizer.warmup_steps:
        text += "More than that wants a warm-up. What to do: --optimizer.warmup_steps 100."
    else:
        text += GOOD
    return [text]


def expected_curve(config: Config) -> list[str]:
    """Describes how the losses start."""
    model = config.model
    size, coldest = model.largest_bank, min((term.temperature for term in model.term_list), default=1.0)
    guess = math.log(size + 1)
    first = math.log1p(size * math.exp(-1 / coldest))
    weight = sum(term.weight for term in model.term_list)
    return [
        f"Every loss term will begin between {first:.1f} and {guess:.2f}, rise to about ln(K + 1) = {guess:.2f} within "
        f"the {math.ceil(size / config.train.batch_size):,} steps in which the bank fills, and then fall. "
        f"It "
        "rises because the bank begins with random keys, easily told from the positive one; then come the keys of a "
        "young "
        f"network, which look all alike. All terms at that level add up to a loss of {weight * guess:.1f}. What to do: "
        f"wait; only terms still at {guess:.2f} after {patience(config):,} steps mean something (the run warns then)."
    ]


def advice_on_overlap(overlap, config: Config) -> list[str]:
    """Advises on the share of pairs with a patch loss, and on a patch's size on the feature map.

    Args:
        overlap: an `Overlap`.
        config: its config.
    """
    text = (
        f"Of pairs drawn once {overlap.first:.1%}, drawn up to {config.views.draws} times {overlap.valid:.1%} "
        f"overlap by "
        f"{config.views.min_overlap:g} px and more ({overlap.pairs:,} pairs drawn). "
    )
    if overlap.valid < LOW_OVERLAP:
        text += "The others have no patch loss. What to do: more --views.draws, or a larger least --views.crop_area."
    else:
        text += GOOD
    sentences = [text]
    for level, cells in overlap.support.items():
        size = config.model.patch_sizes[level]
        text = (
            f"At {level} the median overlap gives each of {size} x {size} patches {cells:.2f} cells of the map a side. "
        )
        if cells < 0.25:
            text += "Neighbouring patches read the same cells. What to do: smaller --model.roi_sizes, or larger views."
        else:
            text += GOOD
        sentences.append(text)
    if not len(overlap.sides):
        sentences.append("No pair overlaps enough at all. What to do: a smaller --views.min_overlap.")
    return sentences


def advice_on_sizes(sizes, enlarged: float, image_size: int, max_bad_share: float) -> list[str]:
    """Advises on images that are too small, too large, too long, or unreadable.

    Args:
        sizes: a `Sizes`.
        enlarged: share of views cut out of fewer pixels than they have.
        image_size: side of a view, px.
        max_bad_share: `data.max_bad_share`.
    """
    sentences, bad = [], len(sizes.unreadable) / sizes.looked
    if bad:
        text = f"No readable header: {counted(len(sizes.unreadable), 'file')} of {sizes.looked:,} ({bad:.1%}). "
        stops = (
            f"More than data.max_bad_share ({max_bad_share:.1%}) of them stops a run. " if bad > max_bad_share else ""
        )
        sentences.append(f"{text}{stops}What to do: dupr-tf scan names every one, with its reason.")
    if not len(sizes.sizes):
        return sentences
    if enlarged > 0.5:
        half = max(32, int(np.median(sizes.short_sides)) // 64 * 32)
        fix = f"--data.image_size {half}, or larger images" if half < image_size else "larger images"
        sentences.append(
            f"{enlarged:.0%} of the views are cut out of fewer than {image_size} px a side and blown up. What to do: "
            f"{fix}."
        )
    if np.median(sizes.short_sides) > 6 * image_size:
        side = 32 * math.ceil(3 * image_size / 32)
        sentences.append(
            f"Most images have more than six times the {image_size} px of a view on their short side: decoding will "
            f"take "
            f"longest. What to do: dupr-tf pack --long-side {side} makes them smaller once and for all."
        )
    if np.mean(sizes.aspects > LONG) > 0.1:
        sentences.append(
            f"{np.mean(sizes.aspects > LONG):.0%} of the images are more than twice as long as wide; crops lie apart "
            f"on "
            "them. What to do: cut them in two, or more --views.draws."
        )
    return sentences or [f"Sizes suit views of {image_size} px. {GOOD}"]


def advice_on_memory(needed: int, available: int | None, config: Config) -> list[str]:
    """Compares the predicted memory, plus a gibibyte for TensorFlow itself, with the available memory."""
    text = f"Memory: about {needed / 2**30:.1f} GiB and 1 GiB for TensorFlow itself; "
    if available is None:
        return [f"{text}how much is free is not known here. What to do: compare."]
    text += f"{available / 2**30:.1f} GiB are free. "
    if needed + 2**30 <= available:
        return [text + GOOD]
    groups = 2 * config.train.micro_batches
    more = f"--train.micro_batches {groups}, " if config.train.batch_size // groups >= 2 else ""
    return [f"{text}What to do: {more}a smaller --train.batch_size, --data.image_size or --model.bank_size."]


def recipe(images: int) -> str:
    """Names the config to start with."""
    if images < SMALL_SET:
        bank = min(sensible_bank(images, 256), 4096)
        return (
            f"For {images:,} images: configs/dupr_r18_small.yaml with --model.bank_size {bank}. What to do: dupr-tf "
            f"doctor "
            "configs/dupr_r18_small.yaml --data with this folder says more."
        )
    return (
        f"For {images:,} images: configs/dupr_r50_imagenet_200ep.yaml on GPUs, configs/dupr_r18_small.yaml without. "
        "What to do: dupr-tf doctor with that config and this folder says more."
    )
