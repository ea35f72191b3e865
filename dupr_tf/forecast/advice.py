"""Advises on a config for a number of images, in sentences that each name an action.

Every warning rests on a count, a simulation or a measurement. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import math

import numpy as np

from dupr_tf.config import Config
from dupr_tf.data.statistics import Sizes, ViewOverlap
from dupr_tf.text import count_text, memory_text
from dupr_tf.training.collapse import patience
from dupr_tf.values import exceeds

FEW = 1_000  # below this number of images the recipe that continues from public weights is suggested first
SMALL_SET = 100_000  # below this number of images the small recipe is suggested
SMALL_BATCH, SMALL_BANK = 64, 4096  # those of the small recipe
MOST_SHARE = 0.5  # share of queries that meet a key of the same image, above which a bank is too large
LOW_OVERLAP = 0.97
GOOD = "Nothing to do."


def repeat_share(images: int, batch: int, keys: float) -> float:
    """Computes the share of queries that meet an earlier key of the same image in the memory bank.

    Every epoch has its own order and drops the images of an incomplete batch. An image comes at most once an epoch.

    Args:
        images: number of images.
        batch: images per step.
        keys: images whose keys the bank holds.

    Returns:
        Share in [0, 1].
    """
    steps, reach = max(1, images // batch), keys / batch
    earlier = reach - np.arange(min(steps, math.ceil(reach)))  # steps of earlier epochs in the bank
    missed = np.ones(len(earlier))
    while (earlier > 0).any():
        missed *= 1 - np.minimum(1, np.clip(earlier, 0, steps) * batch / images)
        earlier = np.where(missed > 1e-9, earlier - steps, 0)
    return float((1 - missed).sum() / steps)


def fitting_bank(images: int, least: int) -> int:
    """Returns the largest power of two up to a third of the images: 6 % of the queries meet a key of the same image.

    It is within 64 to 65,536, and at least the keys of a step.
    """
    fitting = 2 ** int(math.log2(max(images // 3, 1)))
    return max(min(max(fitting, 64), 65536), least)


def advice_on_length(config: Config, images: int) -> list[str]:
    """Counts the steps, and warns of fewer images than a batch has."""
    batch, total = config.train.batch_size, config.total_steps(images)
    steps = f"{count_text(config.steps_per_epoch(images), 'step')} an epoch and {count_text(total, 'step')} in all"
    return [f"{images:,} images in batches of {batch} are {steps}.", *_few_images(config, images)]


def _few_images(config: Config, images: int) -> list[str]:
    batch = config.train.batch_size
    if images >= batch:
        return []
    return [
        f"{images:,} images are fewer than one batch of {batch}. Images repeat within a batch and count as each "
        f"other's negatives. What to do: use more images, or --train.batch_size {max(2, images // 2)}."
    ]


def grave_warnings(config: Config, images: int) -> list[str]:
    """Lists what spoils a run over this number of images: too few images, a bank too large, a schedule too long."""
    banks = [sentence for sentence in advice_on_banks(config, images) if not sentence.endswith(GOOD)]
    return [*_few_images(config, images), *banks, *config.schedule_warnings(images)]


def advice_on_banks(config: Config, images: int) -> list[str]:
    """Advises on K for the number of images, by the term whose bank reaches back furthest."""
    batch = config.train.batch_size
    banks = [
        (term.bank_size * batch / term.keys_per_step(batch), term.bank_size)
        for term in config.model.term_list
        if hasattr(term, "bank_size")
    ]
    if not banks:
        return []
    keys, size = max(banks)
    share = repeat_share(images, batch, keys)
    text = (
        f"A bank of {size:,} keys holds those of the last {count_text(math.ceil(keys / batch), 'step')}. In it "
        f"{share:.0%} of the queries meet a key of the same image as a negative. "
    )
    better = fitting_bank(images, config.model.keys_per_step(batch))
    if share < MOST_SHARE or better >= size:
        return [text + GOOD]
    if config.model.terms is not None:
        return [f"{text}What to do: use a bank_size of {better} in model.terms."]
    return [f"{text}What to do: use --model.bank_size {better}."]


def expected_curve(config: Config) -> list[str]:
    """Describes how the losses start."""
    model = config.model
    size, coldest = model.largest_bank, min((term.temperature for term in model.term_list), default=1.0)
    guess, level = math.log(size + 1), model.guessing_loss
    first = math.log1p(size * math.exp(-1 / coldest))
    total = "" if level is None else f"All terms at that level add up to a loss of {level:.1f}. "
    return [
        f"Every loss term begins between {first:.1f} and {guess:.2f}. It rises to about ln(K + 1) = {guess:.2f} within "
        f"the {count_text(math.ceil(size / config.train.batch_size), 'step')} in which the bank fills, and then falls. "
        "It rises because the bank begins with random keys, which are easy to tell from the positive key. The keys of "
        f"a young network replace them, and look alike. {total}What to do: wait. The run warns if a term is still at "
        f"{guess:.2f} after "
        f"{count_text(patience(config), 'step')}."
    ]


def advice_on_overlap(overlap: ViewOverlap, config: Config) -> list[str]:
    """Advises on the share of pairs with a patch loss."""
    if not len(overlap.sides):
        return ["No pair overlaps enough for a patch loss. What to do: use a smaller --views.min_overlap."]
    text = (
        f"Of {overlap.pairs:,} pairs, {overlap.first:.1%} overlap by {config.views.min_overlap:g} px or more if drawn "
        f"once, and {overlap.valid:.1%} if drawn up to {config.views.draws} times. "
    )
    if overlap.valid >= LOW_OVERLAP:
        return [text + GOOD]
    fix = "use more --views.draws, or a larger least --views.crop_area"
    return [f"{text}The others have no patch loss. What to do: {fix}."]


def advice_on_sizes(sizes: Sizes, image_size: int, max_bad_share: float) -> list[str]:
    """Advises on images that are unreadable, or larger than the views need.

    Args:
        sizes: the sizes of the images.
        image_size: side of a view, px.
        max_bad_share: `data.max_bad_share`.
    """
    sentences, bad = [], len(sizes.unreadable) / sizes.looked
    if bad:
        text = f"{count_text(len(sizes.unreadable), 'file')} of {sizes.looked:,} ({bad:.1%}) have no readable header. "
        if exceeds(len(sizes.unreadable), max_bad_share, sizes.looked):
            text += f"A run stops at more than data.max_bad_share ({max_bad_share:.1%}). "
        sentences.append(f"{text}What to do: list them and their faults with dupr-tf scan.")
    if len(sizes.sizes) and np.median(sizes.short_sides) > 6 * image_size:
        side = 32 * math.ceil(3 * image_size / 32)
        sentences.append(
            f"Most images have more than six times the {image_size} px of a view on their short side. Decoding them "
            f"takes most of the reading time. What to do: shrink them once with dupr-tf pack --long-side {side}."
        )
    return sentences


def advice_on_memory(needed: int, available: int | None, config: Config) -> list[str]:
    """Compares the predicted memory, plus a gibibyte for TensorFlow itself, with the available memory."""
    text = f"The run needs about {memory_text(needed)} of memory, and TensorFlow itself 1 GiB. "
    if available is None:
        return [f"{text}The free memory is unknown here. What to do: compare it with that of your GPU or machine."]
    text += f"{memory_text(available)} are free. "
    if needed + 2**30 <= available:
        return [text + GOOD]
    groups, batch = 2 * config.train.micro_batches, config.train.batch_size
    more = f"--train.micro_batches {groups}, " if batch % groups == 0 and batch // groups >= 2 else ""
    banks = "--model.bank_size" if config.model.terms is None else "bank_size in model.terms"
    return [f"{text}What to do: use {more}a smaller --train.batch_size, --data.image_size or {banks}."]


def recipe(images: int) -> str:
    """Names the configs to start with."""
    small = "configs/dupr_r18_small.yaml"
    if repeat_share(images, SMALL_BATCH, SMALL_BANK) >= MOST_SHARE:
        small += f" with --model.bank_size {fitting_bank(images, 256)}"
    if images < FEW:
        configs = f"configs/dupr_r18_imagenet.yaml with --weights imagenet, or {small}"
    elif images < SMALL_SET:
        configs = small
    else:
        configs = "configs/dupr_r50_imagenet_200ep.yaml on GPUs, or configs/dupr_r18_small.yaml without"
    return f"What to do with {images:,} images: start from {configs}. Check it with dupr-tf doctor CONFIG."
