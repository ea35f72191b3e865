"""The doctor: statistics against images made for it, overlap against the pipeline's own pairs, sentences that fit."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import Files
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.reporting import advice
from dupr_tf.reporting.folder_statistics import Overlap, Sizes, look_at_sizes, simulate_overlap
from dupr_tf.training.collapse import patience

TINY = {
    "data": {"image_size": 32},
    "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 64, "embedding_dim": 16},
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 5},
}


def config(**sections):
    return parse_config({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(30):
        shape = (40, 100, 3) if i % 3 else (60, 60, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:02}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (50, 90)).save(folder / "turned.jpg", exif=turned)
    (folder / "broken.jpg").write_bytes(b"text")
    return folder


def test_sizes_are_those_of_the_upright_images(photos):
    sizes = look_at_sizes(Files(list_images(photos)))
    assert (sizes.count, sizes.looked, len(sizes.sizes)) == (32, 32, 31)
    assert [Path(name).name for name in sizes.unreadable] == ["broken.jpg"]
    assert [sizes.sizes.tolist().count(s) for s in ([60, 60], [40, 100], [50, 90])] == [10, 20, 1]
    assert sorted(set(sizes.aspects.round(2))) == [1.0, 1.8, 2.5] and set(sizes.short_sides) == {40, 50, 60}


def test_the_simulated_overlap_is_what_the_pipeline_draws(photos):
    """Not of the same seeds: both are estimates of one share."""
    paths = [path for path in list_images(photos) if path.endswith(".png")]
    settings = config(views={"draws": 1, "min_overlap": 12}, train={"batch_size": 30})
    with view_pairs(Files(paths), settings, 0, 10, BadImages(paths, 1.0)) as batches:
        seen = np.concatenate([batch["valid"] for batch in batches])
    overlap = simulate_overlap(look_at_sizes(Files(paths)).sizes, settings, pairs=500)
    spread = math.sqrt(seen.mean() * (1 - seen.mean()) * (1 / len(seen) + 1 / 500))
    assert 0.3 < seen.mean() < 0.97 and abs(overlap.valid - seen.mean()) < 4 * spread
    assert overlap.first == overlap.valid  # of one draw
    again = simulate_overlap(look_at_sizes(Files(paths)).sizes, config(views={"min_overlap": 12}), pairs=500)
    assert again.valid > again.first == overlap.first
    assert (again.sides >= 12 - 1e-2).all() and again.sides.max() <= 32


def test_support_is_cells_a_patch():
    overlap = simulate_overlap(
        np.full((4, 2), 500), config(views={"crop_area": [1, 1], "crop_aspect": [1, 1]}), pairs=20
    )
    assert overlap.valid == 1 and overlap.enlarged == 0 and (overlap.sides == 32).all()
    assert overlap.support == {"P4": 32 / 2 / 16, "P5": 32 / 1 / 32}
    small = simulate_overlap(np.full((4, 2), 31), config(views={"crop_area": [1, 1], "crop_aspect": [1, 1]}), pairs=20)
    assert small.enlarged == 1


@pytest.mark.parametrize("images, least, expected", [
    (1_281_167, 1024, 65536), (12_221, 256, 2048), (1200, 256, 256), (6 * 1024, 256, 2048), (10, 8, 64), (0, 8, 64),
])  # fmt: skip
def test_a_sensible_bank_fits_three_times_into_the_images(images, least, expected):
    assert advice.sensible_bank(images, least) == expected


def test_a_bank_is_held_against_the_images():
    settings = config()
    assert "more than the 40 images: every query meets 1.6 earlier keys" in advice.advice_on_banks(settings, 40)[0]
    assert advice.GOOD in advice.advice_on_banks(settings, 640)[0]
    big = config(model={"bank_size": 4096})
    assert "41% of the images" in advice.advice_on_banks(big, 10_000)[0]
    assert "--model.bank_size 2048" in advice.advice_on_banks(big, 10_000)[0]


def test_a_run_too_short_is_given_epochs_that_are_long_enough():
    settings = config(model={"momentum": 0.9})
    (text,) = advice.advice_on_length(settings, 2000)
    assert text.endswith(advice.GOOD) and "250 steps an epoch and 1,250 steps in all" in text
    assert f"After about {patience(settings)} " in text
    few, text, _ = advice.advice_on_length(config(model={"momentum": 0.9}, train={"epochs": 1}), 80)
    assert "80 images are few" in few
    epochs = advice.sensible_epochs(settings, 80)
    assert f"--train.epochs {epochs}," in text and epochs * 10 >= 10 * patience(settings)
    assert any("lags behind" in text for text in advice.advice_on_length(config(model={"momentum": 0.999}), 2000))
    assert "fewer than one batch" in " ".join(advice.advice_on_length(settings, 5))


@pytest.mark.parametrize("rate, warmup, expected", [
    (None, 0, advice.GOOD), (0.0075, 10, advice.GOOD), (0.0075, 0, "--optimizer.warmup_steps"),
    (0.1, 10, "may diverge. What to do: --optimizer.learning_rate 0.0075"),
    (0.0001, 0, "learns slowly. What to do: --optimizer.learning_rate 0.0019"),
])  # fmt: skip
def test_the_rate_is_held_against_the_scaled_one(rate, warmup, expected):
    (text,) = advice.advice_on_rate(config(optimizer={"learning_rate": rate, "warmup_steps": warmup}))
    assert "is 0.00187. " in text and expected in text  # 0.06 x 8 / 256


def test_the_first_losses():
    (text,) = advice.expected_curve(config())
    assert f"between {math.log(1 + 64 * math.exp(-5)):.1f} and {math.log(65):.2f}" in text
    assert f"a loss of {4.2 * math.log(65):.1f}" in text and f"after {patience(config()):,} steps" in text


def test_sizes_and_overlap_are_judged():
    def sizes(height, width, unreadable=()):
        return Sizes(100, 100, np.array([[height, width]] * 10), list(unreadable))

    assert advice.advice_on_sizes(sizes(80, 90), 0.0, 64, 0.01) == [f"Sizes suit views of 64 px. {advice.GOOD}"]
    assert "--data.image_size 64" in advice.advice_on_sizes(sizes(150, 200), 0.7, 224, 0.01)[0]
    assert "pack --long-side 192" in advice.advice_on_sizes(sizes(1000, 900), 0.0, 64, 0.01)[0]
    assert "100% of the images are more than twice as long" in advice.advice_on_sizes(sizes(80, 200), 0.0, 64, 0.01)[0]
    bad = advice.advice_on_sizes(sizes(80, 90, ["a", "b"]), 0.0, 64, 0.01)[0]
    assert "2 files of 100 (2.0%)" in bad and "stops a run" in bad and "dupr-tf scan" in bad
    poor = Overlap(100, 0.5, 0.8, np.array([9.0]), 0.0, {"P4": 0.1})
    texts = advice.advice_on_overlap(poor, config())
    assert "50.0%, drawn up to 4 times 80.0%" in texts[0] and "more --views.draws" in texts[0]
    assert "0.10 cells" in texts[1] and "smaller --model.roi_sizes" in texts[1]


def test_memory_is_held_against_what_is_free():
    settings = config()
    assert advice.GOOD in advice.advice_on_memory(2**30, 4 * 2**30, settings)[0]
    short = advice.advice_on_memory(4 * 2**30, 4 * 2**30, settings)[0]
    assert "--train.micro_batches 4" in short and "4.0 GiB are free" in short
    assert "not known" in advice.advice_on_memory(1, None, settings)[0]


def test_every_sentence_says_what_to_do():
    texts = [
        *advice.expected_curve(config()),
        *advice.advice_on_rate(config()),
        advice.recipe(50),
        advice.recipe(10**6),
    ]
    for images in (3, 60, 500, 10**5):
        texts += advice.advice_on_length(config(), images) + advice.advice_on_banks(config(), images)
    assert all("What to do: " in text or text.endswith(advice.GOOD) for text in texts), texts


def test_the_command_tells_all_of_it_and_writes_nothing(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(dump_config(config()))
    assert main(["doctor", "c.yaml", "--data", str(photos), "--train.epochs", "7"]) == 0
    out = capsys.readouterr().out
    for words in ("versions keras", "memory free", "memory banks", "images/s", "ln(K + 1) = 4.17", "28 steps in all",
                  "median 40", "dupr-tf scan"):  # fmt: skip
        assert words in out, words
    assert main(["doctor", "--data", str(photos)]) == 0 and "configs/dupr_r18_small.yaml" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["c.yaml"]
    logging.getLogger().handlers.clear()


def test_predicted_memory_is_the_dry_runs():
    from dupr_tf.reporting.prediction import predict
    from dupr_tf.training.dry_run import predicted_memory
    from dupr_tf.training.pretrain import build_model

    predicted = predict(config())
    assert predicted.memory == predicted_memory(build_model(config()), config())
    slow, fast = predicted.images_per_second
    assert 0 < slow < fast and fast * predicted.gflop < predicted.gflops


@pytest.mark.parametrize("arguments, lines", [
    (["nowhere.yaml"], ["nowhere.yaml"]),
    (["--data", "nowhere"], ["nowhere"]),
    (["c.yaml", "--train.batch_size", "9", "--data", "nowhere"], ["train.batch_size", "nowhere"]),
    (["c.yaml", "--train.epoch", "9"], ["Did you mean train.epochs"]),
    (["--train.epochs", "9"], ["--train.epochs: "]),
    (["c.yaml", "--steps"], ["--steps: "]),
])  # fmt: skip
def test_mistakes_are_a_line_each_before_tensorflow_loads(tmp_path, arguments, lines):
    (tmp_path / "c.yaml").write_text(dump_config(config()))
    code = (
        "import sys; from dupr_tf.cli import main\n"
        f"code = main({['doctor', *arguments]})\n"
        "sys.exit(10 * code + ('tensorflow' in sys.modules))"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=where, capture_output=True, text=True, check=False
    )
    told = done.stderr.strip().splitlines()
    assert done.returncode == 20 and len(told) == len(lines)
    assert all(word in line for word, line in zip(lines, told, strict=True))
