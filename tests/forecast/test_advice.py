"""Tests of the doctor's advice: the share of repeated keys against a simulation, and thresholds. No TensorFlow."""

import math
import re

import numpy as np
import pytest

from dupr_tf.config import load_config
from dupr_tf.data.statistics import Sizes, ViewOverlap
from dupr_tf.forecast import advice
from dupr_tf.training.collapse import patience
from tests.forecast.small_photos import config


def simulate_repeats(images, batch, keys, epochs=100):
    """Returns the share of queries whose image has a key in the bank, over the last half of some shuffled epochs."""
    last, meets, start = np.full(images, -np.inf), [], 0  # the number of each image's last key
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(images)
        for step in range(images // batch):
            rows = order[step * batch : (step + 1) * batch]
            meets.append(np.mean(last[rows] >= start - keys))
            last[rows] = start + np.arange(batch)
            start += batch
    return np.mean(meets[len(meets) // 2 :])


@pytest.mark.parametrize("images, batch, keys", [
    (1500, 64, 1024), (160, 8, 40), (100, 8, 100), (96, 8, 144), (83, 8, 200), (40, 8, 64),
])  # fmt: skip
def test_repeat_share_equals_simulation(images, batch, keys):
    assert advice.repeat_share(images, batch, keys) == pytest.approx(simulate_repeats(images, batch, keys), abs=0.01)


def test_repeat_share_is_right_for_small_and_huge_sets():
    assert advice.repeat_share(1500, 64, 1024) == pytest.approx(0.252, abs=0.001)
    assert advice.repeat_share(10**9, 256, 65536) == pytest.approx(0, abs=1e-6)
    assert advice.repeat_share(5, 8, 64) == 1  # fewer images than a batch: each is in every batch


@pytest.mark.parametrize("images, least, expected", [
    (1_281_167, 1024, 65536), (12_221, 256, 2048), (1200, 256, 256), (6 * 1024, 256, 2048), (10, 8, 64), (0, 8, 64),
])  # fmt: skip
def test_fitting_bank_is_at_most_a_third_of_the_images(images, least, expected):
    assert advice.fitting_bank(images, least) == expected


def test_bank_warns_if_half_the_queries_meet_their_image():
    (text,) = advice.advice_on_banks(config(model={"bank_size": 4096}), 3000)
    assert "--model.bank_size 512" in text
    assert all(text.endswith(advice.GOOD) for text in advice.advice_on_banks(config(), 640))


def test_bank_of_patches_reaches_less_far_than_of_images():
    patches = {"image_weights": [0, 0, 0, 0], "patch_weights": [0, 0, 0, 1], "bank_size": 4096}
    (text,) = advice.advice_on_banks(config(model=patches), 3000)
    assert "128 steps" in text and text.endswith(advice.GOOD)  # 4096 keys / (8 images x 4 patches)


def test_length_warns_only_of_fewer_images_than_a_batch():
    (text,) = advice.advice_on_length(config(model={"momentum": 0.999}), 2000)
    assert "250 steps an epoch and 1,250 steps in all" in text
    _, few = advice.advice_on_length(config(), 5)
    assert "--train.batch_size 2" in few


def test_curve_gives_first_losses_and_level_of_guessing():
    (text,) = advice.expected_curve(config())
    assert f"between {math.log(1 + 64 * math.exp(-5)):.1f} and {math.log(65):.2f}" in text
    assert f"a loss of {4.2 * math.log(65):.1f}" in text and f"after {patience(config()):,} steps" in text


def test_sizes_warn_of_unreadable_and_large_images():
    def sizes(height, width, unreadable=()):
        return Sizes(100, 100, np.array([[height, width]] * 10), list(unreadable))

    assert advice.advice_on_sizes(sizes(80, 90), 64, 0.01) == []
    assert "pack --long-side 192" in advice.advice_on_sizes(sizes(1000, 900), 64, 0.01)[0]
    bad = advice.advice_on_sizes(sizes(80, 90, ["a", "b"]), 64, 0.01)[0]
    assert "2 files of 100 (2.0%)" in bad and "data.max_bad_share" in bad and "dupr-tf scan" in bad
    assert "data.max_bad_share" not in advice.advice_on_sizes(sizes(80, 90, ["a"]), 64, 0.01)[0]


@pytest.mark.parametrize("valid, sides, expected", [
    (0.8, [9.0], "--views.draws"), (0.99, [9.0], advice.GOOD), (0.0, [], "--views.min_overlap"),
])  # fmt: skip
def test_overlap_warns_of_pairs_without_patch_loss(valid, sides, expected):
    (text,) = advice.advice_on_overlap(ViewOverlap(100, 0.5, valid, np.array(sides), 0.0, {}), config())
    assert expected in text


def test_memory_warns_if_less_is_free():
    settings = config()
    assert advice.advice_on_memory(2**30, 4 * 2**30, settings)[0].endswith(advice.GOOD)
    short = advice.advice_on_memory(4 * 2**30, 4 * 2**30, settings)[0]
    assert "--train.micro_batches 4" in short and "4.0 GiB are free" in short
    assert "unknown" in advice.advice_on_memory(1, None, settings)[0]


def test_serious_warnings_omit_harmless_settings():
    settings = config()
    assert advice.grave_warnings(settings, 100_000) == []
    few = advice.grave_warnings(settings, settings.train.batch_size - 1)
    assert "fewer than one batch" in few[0]


@pytest.mark.parametrize("images, names", [
    (300, ["dupr_r18_imagenet", "dupr_r18_small"]),
    (5_000, ["dupr_r18_small"]),
    (10**6, ["dupr_r50_imagenet_200ep", "dupr_r18_small"]),
])  # fmt: skip
def test_recipe_fits_the_number_of_photos(images, names):
    assert re.findall(r"configs/(\w+)\.yaml", advice.recipe(images)) == names


@pytest.mark.parametrize("images", [1_200, 3_000, 5_000, 50_000])
def test_recipe_names_the_bank_that_the_small_config_needs(images):
    advised = advice.advice_on_banks(load_config("configs/dupr_r18_small.yaml"), images)[0]
    banks = re.findall(r"--model\.bank_size \d+", advised)
    assert re.findall(r"--model\.bank_size \d+", advice.recipe(images)) == banks


@pytest.mark.parametrize("images", [200, 300, 999])
def test_recipe_for_few_photos_suits_them(images):
    assert advice.grave_warnings(load_config("configs/dupr_r18_imagenet.yaml"), images) == []


def test_advice_on_banks_fits_a_config_with_terms():
    short = config(model={"bank_size": 4096})
    full = config().model_copy(update={"model": short.model.model_copy(update={"terms": short.model.term_list})})
    assert "--model.bank_size" in advice.advice_on_banks(short, 500)[0]
    (text,) = advice.advice_on_banks(full, 500)
    assert "in model.terms" in text and "--model.bank_size" not in text
    assert "or bank_size in model.terms" in advice.advice_on_memory(2**33, 2**32, full)[0]


@pytest.mark.parametrize("batch, groups, named", [(64, 4, True), (36, 4, False)])
def test_advice_on_memory_names_groups_that_divide_the_batch(batch, groups, named):
    settings = config(train={"batch_size": batch, "micro_batches": groups})
    assert (f"--train.micro_batches {2 * groups}" in advice.advice_on_memory(2**33, 2**32, settings)[0]) == named
